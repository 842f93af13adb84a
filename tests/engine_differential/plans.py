"""
What a session is like: the milters, the options and the MTA, drawn from its number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from yatxmilter import constants as c
from yatxmilter.conditions import (
    Condition,
    MailView,
    authenticated,
    client_in,
    known_at,
    macro_is,
    over_tls,
    recipient_matches,
    sender_matches,
)

from .chance import Chance

#: Callbacks with an answer, and how many arguments they take.
ANSWERING = {
    "connect": 2,
    "helo": 1,
    "envfrom": 1,
    "envrcpt": 1,
    "data": 0,
    "unknown": 1,
    "header": 2,
    "eoh": 0,
    "body": 1,
    "eom": 0,
}
#: All of them.
CALLBACKS = {
    **ANSWERING,
    "mta_connect": 1,
    "negotiate": 2,
    "abort": 0,
    "close": 0,
    "mta_close": 1,
}
ON_ERROR = (c.SMFIS_TEMPFAIL, c.SMFIS_REJECT, c.SMFIS_CONTINUE, c.SMFIS_ACCEPT, c.SMFIS_DISCARD)

#: How a milter is: how often it says something else than continue, and how often that it waits.
MOODS = {
    "calm": (0.005, 0.05),
    "patient": (0.01, 0.5),
    "quick": (0.01, 0.0),
    "lively": (0.08, 0.25),
    "furious": (0.4, 0.2),
}


@dataclass(frozen=True)
class MilterPlan:
    """
    One milter.

    :ivar callbacks: The callbacks it has.
    :ivar coroutines: Those of them that are coroutine functions.
    :ivar silent: Those that promise not to answer.
    :ivar mood: Of `MOODS`.
    :ivar flags: Its ``xxfi_flags``.
    :ivar condition: The index of its condition in `condition`; ``None`` for all mail.
    """

    callbacks: tuple[str, ...]
    coroutines: tuple[str, ...]
    silent: tuple[str, ...]
    mood: str
    flags: int | None
    on_error: int
    timeout: float | None
    condition: int | None
    shadow: bool


@dataclass(frozen=True)
class Plan:
    """
    One session.

    :ivar manner: How the MTA is: ``polite`` waits for each answer and heeds it, ``hasty`` sends
        what it has in pieces cut anywhere, ``broken`` does so with packets that are damaged.
    :ivar version: The protocol version, actions and steps that the MTA offers.
    :ivar jumps: Whether so much time may pass that what waits is given up; no progress is sent in
        such a session, so that it does not matter when exactly that is.
    :ivar tight: Whether few bytes may wait.
    :ivar large: Whether milters may send much at once; else they may close the connection. Both
        together depend on what Twisted's transports do while a producer waits.
    """

    number: int
    merge: str
    milters: tuple[MilterPlan, ...]
    manner: str
    version: int
    actions: int
    steps: int
    jumps: bool
    tight: bool
    large: bool

    @property
    def options(self) -> dict[str, Any]:
        """
        The options of the protocol factory.
        """
        options: dict[str, Any] = {"merge": self.merge}
        if self.jumps:
            options["progress_interval"] = None
        if self.tight:
            options.update(max_buffered=600, max_macros=6, spool_memory=200)
        return options


def _milter(chance: Chance, several: bool) -> MilterPlan:
    names = list(CALLBACKS)
    few = chance.whether(0.3)
    callbacks = chance.some(names, 0.3 if few else 0.85)
    if "negotiate" in callbacks and chance.whether(0.5):
        callbacks.remove("negotiate")
    if "mta_connect" in callbacks and chance.whether(0.8):
        callbacks.remove("mta_connect")
    coroutines = chance.some(callbacks, chance.pick((0.0, 0.0, 0.3, 1.0)))
    quiet = [name for name in callbacks if name in ANSWERING and name != "eom"]
    silent = chance.some(quiet, 0.3) if chance.whether(0.3) else []
    return MilterPlan(
        tuple(callbacks),
        tuple(coroutines),
        tuple(silent),
        chance.weighed(
            [(6, "calm"), (4, "patient"), (4, "quick"), (3, "lively"), (0.5, "furious")]
        ),
        chance.pick((None, None, None, c.SMFIF_ADDHDRS, 0, c.SMFIF_CHGHDRS | c.SMFIF_CHGBODY)),
        chance.pick(ON_ERROR) if chance.whether(0.4) else c.SMFIS_TEMPFAIL,
        600 if chance.whether(0.7) else None,
        chance.number(0, CONDITIONS - 1) if chance.whether(0.2) else None,
        several and chance.whether(0.12),
    )


def make_plan(number: int) -> Plan:
    """
    Draw a session's plan.
    """
    chance = Chance("plan", number)
    count = chance.weighed([(5, 1), (3, 2), (3, 3), (1, 4), (0.2, 0)])
    old = chance.whether(0.12)
    narrow = chance.whether(0.15)
    return Plan(
        number=number,
        merge=chance.pick(("first", "strictest", "chain")),
        milters=tuple(_milter(chance, count > 1) for _ in range(count)),
        manner=chance.weighed([(5, "polite"), (3, "hasty"), (2, "broken")]),
        version=chance.pick((2, 3, 4, 5, 2, 3, 7, 1)) if old else 6,
        actions=chance.number(0, 0x1FF) if narrow else 0x1FF,
        steps=chance.number(0, 0x1FFFFF) if narrow else 0x1FFFFF,
        jumps=chance.whether(0.3),
        tight=chance.whether(0.15),
        large=chance.whether(0.5),
    )


def _helo_knows(view: MailView) -> object:
    return (view.helo or "").startswith("mail")


def _broken(view: MailView) -> object:
    raise LookupError("a condition that fails")


def condition(index: int) -> Condition:
    """
    Make one of the conditions.
    """
    made: tuple[Any, ...] = (
        lambda: client_in("192.0.2.0/24", "2001:db8::/32"),
        authenticated,
        over_tls,
        lambda: macro_is("{mail_host}", "example.org"),
        lambda: macro_is("{daemon_name}", at="connect"),
        lambda: sender_matches("example.org", "<>"),
        lambda: recipient_matches("example.net"),
        lambda: recipient_matches("bob@") | sender_matches("<>"),
        lambda: client_in("192.0.2.1") & ~sender_matches("example.org"),
        lambda: known_at("helo")(_helo_knows),
        lambda: known_at("envrcpt")(lambda view: len(view.recipients) < 2),
        lambda: known_at("data")(lambda view: len(view.recipients) == 1),
        lambda: known_at("envfrom")(_broken),
    )
    result: Condition = made[index]()
    return result


#: How many there are.
CONDITIONS = 13
