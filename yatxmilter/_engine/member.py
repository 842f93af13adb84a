"""
One milter on one connection: what it wants, what it promised, how it is called.

A `Member` stands between a user's milter and the fan-out. It works out what the milter asks of the
MTA from what its class overrides, and gives for each command the callable that shows the milter
what it would see if it were alone, whatever its fellows negotiated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from gc import get_referents
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from twisted.python.failure import Failure

from yatxmilter import constants as c
from yatxmilter._describing import described, text_of, type_name
from yatxmilter._engine.awaitables import awaited, run_coroutine
from yatxmilter._engine.context import Context
from yatxmilter._engine.decorators import Marks, read_marks
from yatxmilter._engine.on_error import on_error_option
from yatxmilter._options import CALLBACK_TIMEOUT, seconds_option
from yatxmilter._wire.commands import (
    BODY_ROW,
    CALLBACK_STEPS,
    HEADER_ROW,
    RCPT_ROW,
    Command,
)
from yatxmilter._wire.macros import MacroStore
from yatxmilter._wire.negotiation import Agreement, Request, data_size
from yatxmilter._wire.payloads import Offer
from yatxmilter.constants import ReturnCode
from yatxmilter.errors import NegotiationError, ReturnCodeError

if TYPE_CHECKING:
    from yatxmilter._engine.session import Session

__all__ = [
    "ADAPTED",
    "AS_THEY_ARE",
    "CALLBACKS",
    "TOLD",
    "Callback",
    "Member",
    "Shape",
    "shape_of",
    "wanted_callbacks",
]

Callback = Callable[..., object]

#: The callbacks a milter may have, ours included.
CALLBACKS: Final = (
    "xxfi_mta_connect",
    "xxfi_negotiate",
    *[command.callback for command in CALLBACK_STEPS],
    "xxfi_abort",
    "xxfi_close",
    "xxfi_mta_close",
)

_MDS: Final = c.SMFIP_MDS_256K | c.SMFIP_MDS_1M
# What one milter asks for and all of them then see.
_SEEN_BY_ALL: Final = c.SMFIP_HDR_LEADSPC | c.SMFIP_RCPT_REJ | _MDS

#: How callbacks are called: as they are, in another way, or by what tells observers of them.
AS_THEY_ARE: Final = 0
ADAPTED: Final = 1
TOLD: Final = 2

_NOT_ADAPTED: Final[Mapping[int, Callback]] = {}
_NO_HOOKS: Final[Mapping[str, str]] = {}
_NAMES: Final = frozenset(CALLBACKS)
_callbacks_of: Final = attrgetter(*CALLBACKS)

# Each connection has its milters, but of few classes: what was told of these, and by which
# callbacks.
_MOST_SHAPES: Final = 256
_shapes: Final[dict[type, tuple[tuple[object, ...], Shape]]] = {}


class Shape:
    """
    What can be told of a milter by its callbacks.

    :ivar wanted: The names of the callbacks it has of its own.
    :ivar steps: The ``SMFIP_*`` steps that follow from them.
    :ivar marks: What decorators say of them.
    :ivar common: Whether all milters of its class have the same shape, and it says all of what they
        ask for, their ``xxfi_flags`` aside.
    """

    __slots__ = ("common", "marks", "steps", "wanted")

    def __init__(self, wanted: frozenset[str], marks: Marks, *, common: bool) -> None:
        self.wanted = wanted
        self.marks = marks
        self.steps = _steps(wanted, marks.silent)
        self.common = common and "xxfi_negotiate" not in wanted


def shape_of(milter: object, base: type) -> Shape:
    """
    Tell which callbacks a milter has of its own: those that differ from ``base``'s.

    Of a milter that is no ``base`` at all, those that it has.
    """
    if not isinstance(milter, base):
        return _own_shape(milter, frozenset(name for name in CALLBACKS if hasattr(milter, name)))
    cls = type(milter)
    callbacks = _callbacks_of(cls)
    hooks: Mapping[str, str] = getattr(cls, "_hooks", _NO_HOOKS)
    if hooks:
        callbacks += tuple([getattr(cls, hook) for hook in hooks])
    known = _shapes.get(cls)
    # A class may have been given other callbacks since.
    if known is not None and known[0] == callbacks:
        shape = known[1]
    else:
        shape = _shape_of_class(callbacks, _callbacks_of(base), hooks)
        if len(_shapes) >= _MOST_SHAPES:
            _shapes.clear()
        _shapes[cls] = callbacks, shape
    if not _may_have_own_callbacks(milter, cls):
        return shape
    own = {name for name in _NAMES.intersection(vars(milter)) if callable(vars(milter)[name])}
    return _own_shape(milter, shape.wanted | own) if own else shape


def _may_have_own_callbacks(milter: object, cls: type) -> bool:
    """
    Tell whether a milter may have callbacks among its own attributes, beside those of its class.

    Most attributes cannot be called. To look at the names, in its ``__dict__``, would have Python
    make that, and from then on find the milter's attributes more slowly.
    """
    for value in get_referents(milter):
        # A dictionary may be the `__dict__`, where there is one already.
        if value is not cls and (callable(value) or isinstance(value, dict)):
            return True
    return False


def wanted_callbacks(milter: object, base: type) -> frozenset[str]:
    """
    Give the names of the callbacks that a milter has of its own, as `shape_of` tells them.
    """
    return shape_of(milter, base).wanted


def _own_shape(milter: object, wanted: frozenset[str]) -> Shape:
    cls = type(milter)
    hooks: Mapping[str, str] = getattr(cls, "_hooks", _NO_HOOKS)
    marked = [(name, getattr(cls, hook)) for hook, name in hooks.items()]
    marked += [(name, getattr(milter, name)) for name in sorted(wanted)]
    return Shape(wanted, read_marks(marked), common=False)


def _shape_of_class(
    callbacks: tuple[object, ...], base: tuple[object, ...], hooks: Mapping[str, str]
) -> Shape:
    both = zip(CALLBACKS, callbacks, base, strict=False)
    wanted = frozenset(name for name, one, other in both if one is not other)
    # What stands for callbacks comes behind them.
    own, standing_in = callbacks[: len(CALLBACKS)], callbacks[len(CALLBACKS) :]
    marked = [
        *zip(hooks.values(), standing_in, strict=True),
        *zip(CALLBACKS, own, strict=True),
    ]
    return Shape(wanted, read_marks(marked), common=True)


def _steps(wanted: frozenset[str], silent: frozenset[str]) -> int:
    steps = 0
    for command in CALLBACK_STEPS:
        if command.callback not in wanted:
            steps |= command.no
        elif command.callback in silent:
            steps |= command.nr
    return steps


class Member:
    """
    One milter on one connection.

    :ivar position: Its place among the connection's milters, from 0.
    :ivar shape: What was told of it by its callbacks.
    :ivar wanted: The names of the callbacks it has of its own.
    :ivar request: What it asked of the MTA; before negotiation, what it would ask.
    :ivar steps: The ``SMFIP_*`` steps that follow from the callbacks it has.
    :ivar adapted: What to call, by `Command.index`, where it is not the callbacks as they are; it
        is called with the member first where it is `TOLD`.
    :ivar manner: How the callbacks are called: `AS_THEY_ARE`, `ADAPTED` or `TOLD`.
    :ivar on_error: What is answered when it fails, as `on_error_option` gives it.
    :ivar watch: What tells observers; ``None`` where there are none.
    :ivar made_context: Its `context`, if it has been needed.
    """

    __slots__ = (
        "_agreed",
        "_name",
        "_session",
        "adapted",
        "made_context",
        "manner",
        "milter",
        "on_error",
        "position",
        "request",
        "shape",
        "steps",
        "timeout",
        "wanted",
        "watch",
    )

    def __init__(self, milter: Any, position: int, shape: Shape, session: Session) -> None:
        factory = getattr(milter, "factory", None)
        on_error = getattr(factory, "on_error", c.SMFIS_TEMPFAIL)
        self.milter = milter
        self.position = position
        self.shape = shape
        self.wanted = shape.wanted
        self.steps = shape.steps
        self._session = session
        self.watch: Any = session.watch
        self.on_error = (
            on_error if type(on_error) is ReturnCode else on_error_option("on_error", on_error)
        )
        timeout = getattr(factory, "timeout", CALLBACK_TIMEOUT)
        # `MilterFactory` has checked both; whoever made another factory may have checked neither.
        self.timeout: float | None = (
            timeout if timeout is CALLBACK_TIMEOUT else seconds_option("timeout", timeout)
        )
        self.request = _asked_by(self.steps)
        self.adapted: Mapping[int, Callback] = _NOT_ADAPTED
        self.manner = AS_THEY_ARE
        self.made_context: Context | None = None
        # The steps agreed on with the MTA.
        self._agreed = 0
        self._name: str | None = None

    @property
    def name(self) -> str:
        """
        What the milter is called in the log.
        """
        name = self._name
        if name is None:
            milter = self.milter
            factory = getattr(milter, "factory", None)
            name = self._name = (
                text_of(factory, "name") or text_of(milter, "xxfi_name") or type_name(milter)
            )
        return name

    @name.setter
    def name(self, name: str) -> None:
        self._name = name

    @property
    def context(self) -> Context:
        """
        What the milter holds on the connection.
        """
        context = self.made_context
        if context is None:
            context = self.made_context = Context(self._session)
            self._equip(context)
        return context

    def _equip(self, context: Context) -> None:
        actions, steps, _ = self.request
        context.actions = actions
        if self._agreed & c.SMFIP_HDR_LEADSPC:
            context.leading_space = bool(steps & c.SMFIP_HDR_LEADSPC)
            context.adds_space = not context.leading_space
        else:
            context.leading_space = context.adds_space = False
        context.max_payload = data_size(steps)

    @property
    def concerned(self) -> bool:
        """
        Whether the last message was the milter's business.
        """
        return True

    def callback(self, name: str) -> Callback | None:
        """
        Give a callback of the milter's own; ``None`` if it has none.
        """
        if name not in self.wanted:
            return None
        if self.watch is not None:
            around: Callback = self.watch.around(self, name)
            return around
        own: Callback = getattr(self.milter, name)
        return own

    def call(self, command: Command, *arguments: object) -> object:
        """
        Call the callback that the milter has for a command, if it has it.

        :return: What it returned; a Failure if it raised.
        """
        try:
            # To look it up may run the user's code, too.
            callback = self.callback(command.callback)
            return None if callback is None else callback(*arguments)
        except BaseException:
            return Failure()

    def retire(self) -> None:
        """
        Take the milter out of the connection; only that it ends is still told.
        """
        self.wanted &= {"xxfi_close", "xxfi_mta_close"}
        self.steps = _steps(self.wanted, frozenset())
        self.request = _asked_by(self.steps)

    # ---- negotiation

    def read_request(self, answer: object, offer: Offer) -> Request:
        """
        Read what ``xxfi_negotiate`` returned as a request.

        :raises NegotiationError: when it refuses.
        :raises ReturnCodeError: when it is not an answer.
        """
        parts = answer if isinstance(answer, (tuple, list)) else [answer]
        code = c.SMFIS_CONTINUE if parts == [None] else parts[0] if parts else None
        lists = dict(self.shape.marks.lists)
        if self.made_context is not None:
            lists.update(self.made_context.symbol_lists)
        if _is_number(code) and len(parts) in (1, 3, 4):
            if code == c.SMFIS_ALL_OPTS:
                steps = self.steps | offer.steps & (c.SMFIP_SKIP | self.shape.marks.steps)
                return Request(offer.actions, steps, lists)
            if code == c.SMFIS_REJECT:
                raise NegotiationError("refuses the connection (SMFIS_REJECT)")
            if code == c.SMFIS_CONTINUE and len(parts) == 1:
                return Request(*self.computed_request(offer)[:2], lists)
            if code == c.SMFIS_CONTINUE and all(map(_is_number, parts)):
                actions, steps = map(int, parts[-2:])
                return Request(actions & 0xFFFFFFFF, steps & 0xFFFFFFFF, lists)
        raise ReturnCodeError(
            f"xxfi_negotiate returned {described(answer)}; expected SMFIS_CONTINUE, SMFIS_ALL_OPTS,"
            " SMFIS_REJECT, None or (SMFIS_CONTINUE, actions, steps)"
        )

    def computed_request(self, offer: Offer) -> Request:
        """
        Work out the request of a milter that does not negotiate by itself.

        :raises NegotiationError: when its ``xxfi_flags`` are no number.
        """
        flags = getattr(self.milter, "xxfi_flags", None)
        if flags is not None and not _is_number(flags):
            raise NegotiationError(f"has xxfi_flags {described(flags)}, expected a number or None")
        steps = self.steps
        if not steps & c.SMFIP_NOBODY:
            steps |= offer.steps & c.SMFIP_SKIP
        steps |= offer.steps & self.shape.marks.steps
        actions = offer.actions if flags is None else flags
        return Request(actions, steps, dict(self.shape.marks.lists))

    def widened(self, request: Request, offer: Offer) -> Request:
        """
        Give what is asked of the MTA on the milter's behalf: what it asked for itself, or more.
        """
        return request

    @property
    def asks_as_others(self) -> int | None | bool:
        """
        Give the ``xxfi_flags`` of a milter that asks for what all of its shape with these flags ask
        for; ``False`` for one of which that cannot be told.
        """
        if not self.shape.common:
            return False
        try:
            flags = getattr(self.milter, "xxfi_flags", None)
        except BaseException:
            # It will be raised once more where that is seen to.
            return False
        return flags if flags is None or type(flags) is int else False

    def agree(self, request: Request, agreement: Agreement) -> None:
        """
        Take what was settled.
        """
        self.request = request
        self._agreed = agreement.steps
        if self.made_context is not None:
            self._equip(self.made_context)

    # ---- calling

    def promised_silence(self, command: Command) -> bool:
        """
        Tell whether the milter promised not to answer this command.
        """
        return bool(self.request.steps & command.nr)

    def callee(self, command: Command) -> Callback | None:
        """
        Give what a command means to the milter; ``None`` when it does not want it.
        """
        return None if self.request.steps & command.no else self.callback(command.callback)

    def prepare(self, steps: int, macros: MacroStore) -> int:
        """
        Work out how the milter is called so that it sees what it would see if it were alone.

        :param steps: The steps agreed on for all milters.
        :return: The commands that it is called for, as a mask of `Command.bit`.
        """
        added = steps & ~self.request.steps
        if added & _SEEN_BY_ALL:
            self.adapted, self.manner = self._adapt(added, macros), ADAPTED
        elif self.watch is not None and self.watch.times:
            self.adapted, self.manner = self.watch.audience.tellers_of(self.name), TOLD
        else:
            self.adapted, self.manner = _NOT_ADAPTED, AS_THEY_ARE
        return _mask(self.wanted, self.request.steps)

    def _adapt(self, added: int, macros: MacroStore) -> dict[int, Callback]:
        callees = [(command, self.callee(command)) for command in CALLBACK_STEPS]
        return {
            command.index: self._view(command, callee, added, macros)
            for command, callee in callees
            if callee is not None
        }

    def _view(
        self, command: Command, callback: Callback, added: int, macros: MacroStore
    ) -> Callback:
        if command is HEADER_ROW and added & c.SMFIP_HDR_LEADSPC:
            return partial(_without_leading_space, callback)
        if command is RCPT_ROW and added & c.SMFIP_RCPT_REJ:
            return partial(_unless_refused, callback, macros)
        if command is BODY_ROW and added & _MDS:
            return partial(_in_pieces, callback, data_size(self.request.steps))
        return callback

    def view(self, command: Command) -> Callback:
        """
        Give what to call for a command that the milter is called for.
        """
        if self.manner == AS_THEY_ARE:
            own: Callback = getattr(self.milter, command.callback)
            return own
        callback = self.adapted[command.index]
        return callback if self.manner == ADAPTED else partial(callback, self)


# Most connections of a server have the same milters.
@lru_cache(maxsize=256)
def _mask(wanted: frozenset[str], steps: int) -> int:
    return sum(
        command.bit
        for command in CALLBACK_STEPS
        if command.callback in wanted and not steps & command.no
    )


@lru_cache(maxsize=256)
def _asked_by(steps: int) -> Request:
    return Request(0, steps, {})


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _without_leading_space(callback: Callback, headerf: str, headerv: str) -> object:
    # The MTA takes away one blank, no tab, where it is not told to leave values alone.
    return callback(headerf, headerv[1:] if headerv.startswith(" ") else headerv)


def _unless_refused(callback: Callback, macros: MacroStore, argv: list[str]) -> object:
    if macros.refuses_recipient:
        return c.SMFIS_CONTINUE
    return callback(argv)


def _in_pieces(callback: Callback, size: int, bodyp: bytes) -> object:
    if len(bodyp) <= size:
        return callback(bodyp)
    return run_coroutine(_one_by_one(callback, size, bodyp))


async def _one_by_one(callback: Callback, size: int, bodyp: bytes) -> object:
    for start in range(0, len(bodyp), size):
        answer = await awaited(callback(bodyp[start : start + size]))
        if answer is not None and answer not in (c.SMFIS_CONTINUE, c.SMFIS_NOREPLY):
            return answer
    return answer
