"""
Conditions: which mail is a milter's business, for ``MilterFactory(..., when=...)``.

A condition has three values: true, false, or not known yet. Each leaf says from which callback on
it is known, which commands the MTA must send for it, and which macros; ``&``, ``|`` and ``~`` join
them, and a part that decides alone does so as soon as it is known. Nothing here calls a milter:
that is `yatxmilter._engine.conditional_member`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network
from itertools import islice
from typing import Any, Final, overload

from twisted.internet.interfaces import IAddress

from yatxmilter import constants as c
from yatxmilter._mail.envelope import bare_address
from yatxmilter._wire.commands import (
    CALLBACK_STEPS,
    CONNECT_ROW,
    DATA_ROW,
    HELO_ROW,
    MAIL_ROW,
    RCPT_ROW,
    Command,
)
from yatxmilter._wire.negotiation import DEFAULT_SYMBOLS

__all__ = [
    "Condition",
    "MailView",
    "Recipients",
    "authenticated",
    "client_in",
    "condition_option",
    "known_at",
    "macro_is",
    "over_tls",
    "recipient_matches",
    "sender_matches",
]

#: When a condition may be known, and where the macros of that time come from.
STAGES: Final[dict[str, tuple[Command, int]]] = {
    "connect": (CONNECT_ROW, c.SMFIM_CONNECT),
    "helo": (HELO_ROW, c.SMFIM_HELO),
    "envfrom": (MAIL_ROW, c.SMFIM_ENVFROM),
    "envrcpt": (RCPT_ROW, c.SMFIM_ENVRCPT),
    "data": (DATA_ROW, c.SMFIM_DATA),
}


class Recipients(Sequence[tuple[str, ...]]):
    """
    The recipients of a message up to one of them: a tuple but for the room it takes.

    There is one for each recipient, and copies would make many of them dear.

    :param kept: All of them. Others may come behind those of now; none is ever taken away.
    """

    __slots__ = ("_count", "_kept")

    def __init__(self, kept: list[tuple[str, ...]]) -> None:
        self._kept = kept
        self._count = len(kept)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        return islice(self._kept, self._count)

    @overload
    def __getitem__(self, index: int) -> tuple[str, ...]: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[tuple[str, ...], ...]: ...

    def __getitem__(self, index: int | slice) -> tuple[str, ...] | tuple[tuple[str, ...], ...]:
        places = range(self._count)[index]
        if isinstance(places, range):
            return tuple([self._kept[place] for place in places])
        return self._kept[places]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, (tuple, Recipients)):
            return tuple(self) == tuple(other)
        return NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))


@dataclass(frozen=True, slots=True)
class MailView:
    """
    What is known of a connection and its message: the argument of a condition.

    :ivar macro: Looks a macro up by its name, as ``smfi_getsymval`` does.
    :ivar hostname: The client's name, as ``xxfi_connect`` has it; ``None`` before that.
    :ivar client: The client's address, as ``xxfi_connect`` has it; ``None`` when unknown.
    :ivar helo: What the client said in HELO or EHLO.
    :ivar sender: The arguments of ``xxfi_envfrom``.
    :ivar recipient: Those of the ``xxfi_envrcpt`` that is decided upon.
    :ivar recipients: Those of all recipients that were asked for so far, this one included: a
        sequence that compares as a tuple does.
    """

    macro: Callable[[str], str | None]
    hostname: str | None = None
    client: IAddress | None = None
    helo: str | None = None
    sender: tuple[str, ...] | None = None
    recipient: tuple[str, ...] | None = None
    recipients: Sequence[tuple[str, ...]] = ()


Predicate = Callable[[MailView], object]


class Condition:
    """
    A condition on mail; ``&``, ``|`` and ``~`` make others of it.

    :ivar needs: The commands that the MTA must send for it.
    :ivar symbols: The macros it looks at, with the ``SMFIM_*`` stage each comes with.
    """

    needs: frozenset[Command]
    symbols: frozenset[tuple[int, str]]

    def evaluate(self, view: MailView, reached: Command) -> bool | None:
        """
        Tell whether it holds; ``None`` while that is not known.

        :param reached: The last step that the view knows of.
        """
        raise NotImplementedError

    def __and__(self, other: Condition | Predicate) -> Condition:
        return _joined(self, other, False)

    def __rand__(self, other: Condition | Predicate) -> Condition:
        return _joined(other, self, False)

    def __or__(self, other: Condition | Predicate) -> Condition:
        return _joined(self, other, True)

    def __ror__(self, other: Condition | Predicate) -> Condition:
        return _joined(other, self, True)

    def __invert__(self) -> Condition:
        return _Not(self)

    def __bool__(self) -> bool:
        raise TypeError("a condition has no value by itself; join conditions with &, | and ~")


class _Leaf(Condition):
    def __init__(
        self,
        predicate: Predicate,
        stage: Command,
        needs: Iterable[Command],
        symbols: Iterable[tuple[int, str]] = (),
    ) -> None:
        self._predicate = predicate
        self._stage = stage
        self.needs = frozenset(needs)
        self.symbols = frozenset(symbols)

    def evaluate(self, view: MailView, reached: Command) -> bool | None:
        if reached.index < self._stage.index:
            return None
        value = self._predicate(view)
        if inspect.isawaitable(value):
            if inspect.iscoroutine(value):
                value.close()
            raise TypeError("a condition cannot wait: it gave a Deferred or a coroutine")
        return bool(value)


class _Not(Condition):
    def __init__(self, part: Condition) -> None:
        self._part = part
        self.needs = part.needs
        self.symbols = part.symbols

    def evaluate(self, view: MailView, reached: Command) -> bool | None:
        value = self._part.evaluate(view, reached)
        return None if value is None else not value


class _Joined(Condition):
    """
    Two conditions; ``decisive`` is the value that one of them can give to both.
    """

    def __init__(self, parts: tuple[Condition, Condition], decisive: bool) -> None:
        self._parts = parts
        self._decisive = decisive
        self.needs = parts[0].needs | parts[1].needs
        self.symbols = parts[0].symbols | parts[1].symbols

    def evaluate(self, view: MailView, reached: Command) -> bool | None:
        first = self._parts[0].evaluate(view, reached)
        if first is self._decisive:
            return first
        second = self._parts[1].evaluate(view, reached)
        if second is self._decisive:
            return second
        return None if first is None else second


def _joined(first: object, second: object, decisive: bool) -> Condition:
    one, other = _as_condition(first), _as_condition(second)
    if one is None or other is None:
        return NotImplemented  # type: ignore[no-any-return]
    return _Joined((one, other), decisive)


def _as_condition(value: object) -> Condition | None:
    if isinstance(value, Condition):
        return value
    # A class is callable too, and always true: it would be a milter in the wrong place.
    if isinstance(value, type) or not callable(value):
        return None
    return known_at("envfrom")(value)


def condition_option(name: str, value: Any) -> Condition | None:
    """
    Check for a condition, or a callable that serves as one; ``None`` for always.

    :raises TypeError: for anything else.
    """
    if value is None:
        return None
    condition = _as_condition(value)
    if condition is None:
        raise TypeError(f"{name} is {value!r}, expected a condition or a function of a MailView")
    return condition


def known_at(stage: str) -> Callable[[Predicate], Condition]:
    """
    Make a condition of a function that takes a `MailView`; a decorator.

    :param stage: The callback from which on all is there that the function looks at:
        ``"connect"``, ``"helo"``, ``"envfrom"``, ``"envrcpt"`` (it is asked for each recipient)
        or ``"data"``. A function without this is taken for one of ``"envfrom"``.
    :raises ValueError: for another stage.
    """
    row = _stage("stage", stage)[0]
    # It may look at anything up to there.
    needs = [command for command in CALLBACK_STEPS if command.index <= row.index]
    return lambda predicate: _Leaf(predicate, row, needs)


def _stage(name: str, stage: str) -> tuple[Command, int]:
    if stage not in STAGES:
        raise ValueError(f"{name} is {stage!r}, expected one of {', '.join(STAGES)}")
    return STAGES[stage]


# ---- ready ones


def client_in(*networks: str) -> Condition:
    """
    Make the condition that the SMTP client's address is in one of some networks.

    :param networks: Such as ``"192.0.2.0/24"``, ``"2001:db8::/32"`` or one address.
    :raises ValueError: for what is no network, and without any.
    """
    known = [ip_network(network) for network in _some("networks", networks)]

    def holds(view: MailView) -> bool:
        try:
            address = ip_address(getattr(view.client, "host", ""))
        except ValueError:
            # A UNIX socket, or unknown.
            return False
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in known)

    return _Leaf(holds, CONNECT_ROW, [CONNECT_ROW])


def authenticated() -> Condition:
    """
    Make the condition that the SMTP client has logged in.

    It looks at the macros ``{auth_authen}`` and ``{auth_type}``.
    """
    names = ("{auth_authen}", "{auth_type}")
    symbols = [(c.SMFIM_ENVFROM, name) for name in names]
    return _Leaf(lambda view: any(map(view.macro, names)), MAIL_ROW, [MAIL_ROW], symbols)


def over_tls() -> Condition:
    """
    Make the condition that the SMTP client has encrypted the connection.

    It looks at the macro ``{tls_version}``, which comes with the HELO after STARTTLS; so it is
    known when a message begins.
    """
    symbols = [(c.SMFIM_HELO, "{tls_version}")]
    needs = [HELO_ROW, MAIL_ROW]
    return _Leaf(lambda view: bool(view.macro("{tls_version}")), MAIL_ROW, needs, symbols)


def macro_is(name: str, *values: str, at: str | None = None) -> Condition:
    """
    Make the condition that a macro has one of some values; without values, that it is not empty.

    :param at: The callback it comes with, such as ``"connect"``; by default the first one with
        which MTAs send it unasked, ``"envfrom"`` for a macro that they do not.
    :raises ValueError: for another stage.
    """
    if at is None:
        at = next(
            (stage for stage, (_, sent) in STAGES.items() if name in DEFAULT_SYMBOLS[sent].split()),
            "envfrom",
        )
    row, sent = _stage("at", at)

    def holds(view: MailView) -> bool:
        value = view.macro(name)
        return value in values if values else bool(value)

    return _Leaf(holds, row, [row], [(sent, name)])


def sender_matches(*patterns: str) -> Condition:
    """
    Make the condition that the envelope sender matches one of some patterns.

    :param patterns: ``"user@example.com"`` is an address, ``"example.com"`` all of a domain,
        ``".example.com"`` its subdomains, ``"user@"`` a local part in any domain, ``"<>"`` the
        empty sender. Case does not matter.
    :raises ValueError: without any.
    """
    wanted = [_pattern(pattern) for pattern in _some("patterns", patterns)]
    return _Leaf(lambda view: _matches(view.sender, wanted), MAIL_ROW, [MAIL_ROW])


def recipient_matches(*patterns: str) -> Condition:
    """
    Make the condition that a recipient matches one of some patterns, as for `sender_matches`.

    It is decided for each recipient by itself: the milter is shown those that match.
    """
    wanted = [_pattern(pattern) for pattern in _some("patterns", patterns)]
    return _Leaf(lambda view: _matches(view.recipient, wanted), RCPT_ROW, [RCPT_ROW])


def _some(name: str, values: tuple[str, ...]) -> tuple[str, ...]:
    if not values:
        raise ValueError(f"{name} are missing")
    wrong = [value for value in values if not isinstance(value, str) or not value]
    if wrong:
        raise ValueError(f"{name} contain {wrong[0]!r}, expected a text")
    return values


def _pattern(pattern: str) -> str:
    return _bare(pattern) if pattern.startswith("<") else pattern.lower()


def _bare(address: str) -> str:
    bare = bare_address(address)
    if bare.startswith("@"):
        # A source route, as of old: only its end is the address.
        bare = bare.partition(":")[2]
    return bare.lower()


def _matches(argv: tuple[str, ...] | None, patterns: list[str]) -> bool:
    if not argv:
        return False
    address = _bare(argv[0])
    local, at, domain = address.rpartition("@")
    if not at:
        local, domain = address, ""
    for pattern in patterns:
        if pattern.startswith("."):
            found = domain.endswith(pattern)
        elif pattern.endswith("@"):
            found = local == pattern[:-1]
        elif "@" in pattern or not pattern:
            found = address == pattern
        else:
            found = domain == pattern
        if found:
            return True
    return False
