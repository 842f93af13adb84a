"""
What a milter's author may say of a callback, in a line above it.

A decorator leaves a mark on the function; `MARKS` says what each means and where it may stand. They
are read once for each class, when it is made and when its milters negotiate: no call of a callback
looks at them.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from types import MappingProxyType
from typing import Any, Final, NamedTuple, ParamSpec, TypeVar

from twisted.internet.defer import Deferred

from yatxmilter import constants as c
from yatxmilter._engine.threads import in_thread
from yatxmilter._wire.commands import CALLBACK_STEPS
from yatxmilter._wire.payloads import from_text

__all__ = [
    "MARKS",
    "Marks",
    "check_marks",
    "leading_space",
    "noreply",
    "read_marks",
    "rejected_recipients",
    "symlist",
    "threaded",
]

_AnyCallback = TypeVar("_AnyCallback", bound=Callable[..., Any])
_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")

#: The stages that have macros, by their callbacks.
STAGES: Final[Mapping[str, int]] = MappingProxyType(
    {
        "xxfi_connect": c.SMFIM_CONNECT,
        "xxfi_helo": c.SMFIM_HELO,
        "xxfi_envfrom": c.SMFIM_ENVFROM,
        "xxfi_envrcpt": c.SMFIM_ENVRCPT,
        "xxfi_data": c.SMFIM_DATA,
        "xxfi_eoh": c.SMFIM_EOH,
        "xxfi_eom": c.SMFIM_EOM,
    }
)

_MACRO: Final = re.compile(r"[^\s{},]|\{[^\s{},]+\}")


class Mark(NamedTuple):
    """
    What a decorator leaves behind.

    :ivar word: The decorator's name.
    :ivar places: The callbacks that it may stand above; ``None`` for all.
    """

    word: str
    places: frozenset[str] | None


#: The decorators' marks, by the attribute that each sets.
MARKS: Final[Mapping[str, Mark]] = MappingProxyType(
    {
        "smfip_noreply": Mark(
            "noreply", frozenset(command.callback for command in CALLBACK_STEPS if command.nr)
        ),
        "smfip_rejected_recipients": Mark("rejected_recipients", frozenset({"xxfi_envrcpt"})),
        "smfip_leading_space": Mark("leading_space", frozenset({"xxfi_header"})),
        "smfip_symlist": Mark("symlist", frozenset(STAGES)),
        "smfip_threaded": Mark("threaded", None),
    }
)

_STEPS: Final = {
    "smfip_rejected_recipients": c.SMFIP_RCPT_REJ,
    "smfip_leading_space": c.SMFIP_HDR_LEADSPC,
}


# ---- the decorators


def _mark(callback: _AnyCallback, name: str, value: object) -> _AnyCallback:
    try:
        # What a class gives for a static method is the function in it.
        for one in (callback, getattr(callback, "__func__", callback)):
            setattr(one, name, value)
    except AttributeError:
        raise TypeError(
            f"@{MARKS[name].word} cannot mark {callback!r}, expected a function"
        ) from None
    return callback


def noreply(callback: _AnyCallback) -> _AnyCallback:
    """
    Mark a callback as one that never answers: the ``SMFIP_NR_*`` flag of its stage is negotiated.

    The MTA then need not wait for it. It must return SMFIS_NOREPLY or ``None``. Not for
    ``xxfi_eom``, whose answer cannot be done without.
    """
    return _mark(callback, "smfip_noreply", True)


def rejected_recipients(callback: _AnyCallback) -> _AnyCallback:
    """
    Have ``xxfi_envrcpt`` called for recipients that the MTA has refused itself, too.

    ``SMFIP_RCPT_REJ`` is negotiated where it is offered. Of such a recipient the macro
    ``{rcpt_mailer}`` is ``"error"``, ``{rcpt_host}`` and ``{rcpt_addr}`` are the status and the
    text. It stays refused, whatever is answered.
    """
    return _mark(callback, "smfip_rejected_recipients", True)


def leading_space(callback: _AnyCallback) -> _AnyCallback:
    """
    Have ``xxfi_header`` shown values with the white space behind the colon.

    ``SMFIP_HDR_LEADSPC`` is negotiated where it is offered. The milter's own header values then
    need that white space, too.
    """
    return _mark(callback, "smfip_leading_space", True)


def symlist(*macros: str) -> Callable[[_AnyCallback], _AnyCallback]:
    """
    Ask for the macros of a callback's stage: ``smfi_setsymlist`` above the callback.

    For ``xxfi_connect``, ``xxfi_helo``, ``xxfi_envfrom``, ``xxfi_envrcpt``, ``xxfi_data``,
    ``xxfi_eoh`` and ``xxfi_eom``. The MTA sends these and no others at that stage. A list that
    ``smfi_setsymlist`` sets for the stage counts more.

    :param macros: Names such as ``"i"`` and ``"{auth_authen}"``, one each; none at all asks for no
        macros.
    :raises TypeError: for what is no text.
    :raises ValueError: for what is no macro's name.
    """
    for name in macros:
        if not isinstance(name, str):
            raise TypeError(
                f"@symlist({name!r}): expected names of macros, as in @symlist('i', '{{msg_id}}')"
            )
        if not _MACRO.fullmatch(name):
            raise ValueError(
                f"@symlist({name!r}): expected one letter, or a name in braces such as"
                " '{auth_authen}', each a text of its own"
            )

    def mark(callback: _AnyCallback) -> _AnyCallback:
        return _mark(callback, "smfip_symlist", macros)

    return mark


def threaded(
    callback: Callable[_Parameters, _Result],
) -> Callable[_Parameters, Deferred[_Result]]:
    """
    Run a callback in a thread of the reactor's pool; its result is the answer.

    For what blocks: databases, files, libraries that wait. The conversation waits, other
    connections go on. The callback may call the ``smfi_*`` functions meanwhile; once its answer is
    no longer waited for they raise `WrongThread`. What it shares with other connections it has to
    lock.

    :raises TypeError: for a coroutine function, which cannot run in a thread.
    """
    if inspect.iscoroutinefunction(callback) or not callable(callback):
        raise TypeError(f"@threaded is for a plain function, not for {callback!r}")

    @wraps(callback)
    def call(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> Any:
        return in_thread(args[0] if args else None, callback, args, kwargs)

    # What it takes, for who looks at it without looking through it.
    call.__signature__ = inspect.signature(callback)  # type: ignore[attr-defined]
    return _mark(call, "smfip_threaded", True)


# ---- reading them


class Marks(NamedTuple):
    """
    What the marks on a milter's callbacks ask for.

    :ivar silent: The callbacks that promise no answer.
    :ivar steps: ``SMFIP_*`` steps that are asked for where they are offered.
    :ivar lists: Symbol lists, by ``SMFIM_*`` stage.
    """

    silent: frozenset[str]
    steps: int
    lists: Mapping[int, bytes]


def read_marks(callbacks: Iterable[tuple[str, object]]) -> Marks:
    """
    Read the marks of callbacks.

    :param callbacks: Names and functions; of a name that stands there twice both count.
    """
    silent: set[str] = set()
    steps = 0
    lists: dict[int, bytes] = {}
    for name, callback in callbacks:
        if getattr(callback, "smfip_noreply", None) is True:
            silent.add(name)
        for mark, step in _STEPS.items():
            if getattr(callback, mark, None) is True:
                steps |= step
        macros = getattr(callback, "smfip_symlist", None)
        if isinstance(macros, tuple) and name in STAGES:
            lists[STAGES[name]] = from_text(" ".join(dict.fromkeys(macros)))
    return Marks(frozenset(silent), steps, MappingProxyType(lists))


def check_marks(
    cls: type,
    attributes: Mapping[str, object],
    callbacks: Iterable[str],
    hooks: Mapping[str, str],
) -> None:
    """
    Check where a milter class has decorators.

    :param attributes: What may have one, as it stands in the class, by its name.
    :param callbacks: The names of callbacks.
    :param hooks: What stands for callbacks in this class, and for which.
    :raises TypeError: for one that stands above what it is not for.
    """
    names = frozenset(callbacks)
    for name, value in attributes.items():
        for attribute, mark in MARKS.items():
            # A class may have whatever attributes it likes.
            if not _is_marked(value, attribute):
                continue
            stands_for = hooks.get(name, name)
            if mark.word in ("noreply", "leading_space"):
                stands_for = name
            if stands_for in (names if mark.places is None else mark.places):
                continue
            if mark.word == "noreply" and name in names:
                raise TypeError(f"{cls.__qualname__}.{name} must answer, it cannot be @noreply")
            places = "callbacks" if mark.places is None else ", ".join(sorted(mark.places))
            raise TypeError(
                f"{cls.__qualname__}.{name} cannot be @{mark.word}, which is for {places}"
            )


def _is_marked(value: object, attribute: str) -> bool:
    # Not `isinstance`: an object may raise when it is looked at.
    try:
        return not issubclass(type(value), type) and attribute in vars(value)
    except BaseException:
        return False
