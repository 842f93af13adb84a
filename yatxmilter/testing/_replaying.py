"""
Recorded sessions as tests: what ``yatxmilter trace --record`` or ``serve --record-failures`` has
kept, played to milters in memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from yatxmilter._records.differing import unified_lines
from yatxmilter._records.record import RecordError, Session, read_sessions, record_lines
from yatxmilter._records.replay_compare import Rules
from yatxmilter._records.replay_player import Part, Result, play_session
from yatxmilter._records.replay_steps import Recorded, read_steps
from yatxmilter.client import MilterClient, MilterClientFactory
from yatxmilter.testing._answers import Stage
from yatxmilter.testing._watching import MilterTestFailure

__all__ = ["Replayed", "replay"]


@dataclass
class Replayed:
    """
    What came of a record.

    :ivar sessions: How many sessions were played.
    :ivar messages: How many messages were in them.
    :ivar differences: What the milters did differently, in words, one for each answer.
    :ivar notes: What a reader should know: what the record does not have, or could not be sent.
    """

    sessions: int = 0
    messages: int = 0
    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def check(self) -> None:
        """
        See that nothing is different.

        :raises MilterTestFailure: with all that is, and with the notes.
        """
        if self.differences:
            raise MilterTestFailure("\n".join([*self.differences, *self.notes]))


class Player(Stage, Protocol):
    """
    What a replay needs of the MTA.
    """

    @property
    def clock(self) -> IReactorTime:
        """
        What keeps time.
        """

    def join(self, client: MilterClient) -> None:
        """
        Connect a client to the milters.
        """


class _Endpoint:
    """
    Where the milters are, for who connects.
    """

    def __init__(self, mta: Player) -> None:
        self._mta = mta

    def connect(self, factory: MilterClientFactory) -> Deferred[MilterClient]:
        """
        Connect.
        """
        client = factory.buildProtocol(None)
        self._mta.join(client)
        return succeed(client)


def replay(
    mta: Player,
    file: str | FilePath,
    ignore: Iterable[str],
    mask: Iterable[str | re.Pattern[str]],
    *,
    negotiation: bool,
    partial: bool,
) -> Replayed:
    """
    Play all sessions of a record, one after the other.

    :raises MilterTestFailure: when a milter does not answer.
    :raises ValueError: for what is no record.
    """
    rules = Rules(
        frozenset(name.lower() for name in ignore),
        tuple(re.compile(one) for one in mask),
        negotiation,
    )
    replayed = Replayed()
    try:
        with open(file, "rb") as stream:
            for session in read_sessions(record_lines(stream), partial=partial):
                recorded = read_steps(session)
                session.packets = []
                if recorded is not None:
                    _add(replayed, _play(mta, session, recorded, rules))
    except RecordError as error:
        raise ValueError(f"{file}: {error}") from None
    if not replayed.sessions:
        raise ValueError(f"{file}: no session is in the record")
    return replayed


def _play(mta: Player, session: Session, recorded: Recorded, rules: Rules) -> Result:
    factory = MilterClientFactory(timeout=None, clock=mta.clock)
    played: list[Result | Failure] = []
    Deferred.fromCoroutine(play_session(_Endpoint(mta), session, recorded, rules, factory)).addBoth(
        played.append
    )
    mta.settle(lambda: bool(played))
    if not played:
        calls = ", ".join(map(str, mta.waiting)) or "nobody"
        raise MilterTestFailure(
            f"the session of line {session.line} does not go on; waiting for {calls}"
        )
    result = played[0]
    if isinstance(result, Failure):
        result.raiseException()
    assert isinstance(result, Result)
    return result


def _add(replayed: Replayed, result: Result) -> None:
    connection = f"connection {result.session.connection}"
    replayed.sessions += 1
    replayed.messages += sum(part.message > 0 for part in result.parts)
    replayed.notes += [f"{connection}: note: {note}" for note in result.notes]
    for part in result.parts:
        for difference in part.differences:
            lines = [f"{connection}, {_name(part)}: {difference.at} (line {difference.line})"]
            for mark, line in unified_lines(difference.was, difference.now, context=1):
                if mark != "@":
                    lines.append(f"  { ({'-': 'was', '+': 'now'}.get(mark, '')):<3} {line}")
            replayed.differences.append("\n".join(lines))


def _name(part: Part) -> str:
    if not part.message:
        return "before any message"
    return f"message {part.message}" + (f" [{part.queue_id}]" if part.queue_id else "")
