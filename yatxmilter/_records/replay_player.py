"""
A recorded session, played to a milter again.

Commands go out one by one, each when the one before it is answered, through the library's client,
which does what the new agreement says: a command that is declined now is not sent, and one that
needs no answer now is not waited for. What the milter says now may also end a message, or the whole
session, earlier than it was recorded; then what an MTA would not send is not sent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from twisted.internet.defer import Deferred

from yatxmilter import constants as c
from yatxmilter._records.decoding import decode_packet
from yatxmilter._records.record import Session
from yatxmilter._records.replay_compare import Comparison, Difference, Rules
from yatxmilter._records.replay_steps import CLOSED, REMARK, Heard, Recorded, Step
from yatxmilter._wire.commands import (
    ABORT_ROW,
    CALLBACK_STEPS,
    EOM_ROW,
    HEADER_ROW,
    HELO_ROW,
    MAIL_ROW,
    OPTNEG_ROW,
    QUIT_NC_ROW,
    QUIT_ROW,
    UNKNOWN_ROW,
)
from yatxmilter._wire.payloads import encode_packet
from yatxmilter.client import EndOfMessage, MilterClient, MilterClientFactory
from yatxmilter.client._profiles import find_flavour
from yatxmilter.client._session_script import MessageState
from yatxmilter.errors import PeerError, ValueNotSendable

__all__ = ["Part", "Player", "Result", "play_session"]


# What is not sent after an answer is what Postfix would not send.
_HABITS: Final = find_flavour("postfix")


@dataclass
class Part:
    """
    What came of a message, or of what goes before messages.

    :ivar message: The message's number in its session; 0 for what is before it.
    :ivar unsent: How many recorded commands were not sent, because the milter's answers would have
        kept an MTA from it.
    """

    message: int
    line: int
    queue_id: str | None = None
    differences: list[Difference] = field(default_factory=list)
    unsent: int = 0


@dataclass
class Result:
    """
    What came of a session.

    :ivar notes: What a reader should know of the record.
    """

    session: Session
    parts: list[Part] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def differences(self) -> int:
        """
        How many there are.
        """
        return sum(len(part.differences) for part in self.parts)


class Player(MilterClient):
    """
    A client that keeps what it hears.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.heard: list[Heard] = []

    def _receive(self, letter: int, payload: bytes) -> None:
        leaving = self._current is not None and self._current.row is QUIT_ROW
        if letter != c.SMFIR_PROGRESS and not leaving:
            self.heard.append((letter, payload))
        super()._receive(letter, payload)

    def send_step(self, step: Step, payload: bytes) -> Deferred[Any]:
        """
        Send a command, its macros exactly as they were.
        """
        self.heard = []
        for macros in step.macros:
            self._write(encode_packet(c.SMFIC_MACRO, macros))
        return self._ask(step.row, payload)


async def play_session(
    endpoint: Any, session: Session, recorded: Recorded, rules: Rules, factory: MilterClientFactory
) -> Result:
    """
    Play a session, and compare.

    :param factory: What builds the `Player`.
    :raises ConnectError: when the milter cannot be connected to.
    """
    factory.protocol = Player
    client = await endpoint.connect(factory)
    play = _Play(client, session, recorded, rules)
    try:
        await play.play()
    finally:
        await client.quit()
    return play.result


class _Play:
    def __init__(self, client: Player, session: Session, recorded: Recorded, rules: Rules) -> None:
        self._client = client
        self._recorded = recorded
        self._rules = rules
        self._comparison = Comparison(rules, session.redacted)
        self.result = Result(session)
        self._part = Part(0, session.line)
        self.result.parts.append(self._part)
        # In the record a message is open; the milter has it.
        self._open = self._in_message = False
        self._hung_up = False
        # Of the message that is open; what it does not ask for is not to be sent.
        self._state = MessageState(_HABITS.skips)

    @property
    def _live_steps(self) -> int:
        agreement = self._client.agreement
        return agreement.steps if agreement is not None else 0

    @property
    def _recorded_steps(self) -> int:
        agreed = self._recorded.agreed
        return agreed.steps if agreed is not None else 0

    async def play(self) -> None:
        closed_by = self.result.session.closed_by
        for step in self._recorded.steps:
            if not step.answered:
                if closed_by != "milter":
                    end = f"the {closed_by or 'record'} ended there"
                    self._tell(f"line {step.line}: {step.name} was not answered, {end}")
                    return
                step.heard.append((REMARK, CLOSED))
            self._begin_part(step)
            if self._hung_up or self._is_skipped(step):
                self._part.unsent += step.row in CALLBACK_STEPS
            elif step.row is QUIT_ROW:
                return
            else:
                await self._play_step(step)
        if self.result.session.undecoded:
            self._tell(self.result.session.undecoded)

    def _tell(self, note: str) -> None:
        self.result.notes.append(note)

    def _begin_part(self, step: Step) -> None:
        row = step.row
        # Where MAIL is declined a message begins with whatever comes first.
        if row is MAIL_ROW or (row.in_message and not self._open):
            self._part = Part(self._part.message + 1, step.line)
            self.result.parts.append(self._part)
            self._open, self._state = True, MessageState(_HABITS.skips)
        if self._part.message and self._open:
            self._part.queue_id = step.queue_id or self._part.queue_id
        if row in (EOM_ROW, ABORT_ROW, QUIT_NC_ROW):
            self._open = False

    def _is_skipped(self, step: Step) -> bool:
        row = step.row
        if not row.in_message and row is not UNKNOWN_ROW:
            self._state = MessageState(_HABITS.skips)
        standing = self._client.standing
        if standing is not None and row not in (QUIT_ROW, QUIT_NC_ROW):
            return not (row is HELO_ROW and standing[0] == "helo")
        if step.refused_by_mta and not self._live_steps & c.SMFIP_RCPT_REJ:
            return True
        return not self._state.asks(row)

    async def _play_step(self, step: Step) -> None:
        row, client = step.row, self._client
        if row is MAIL_ROW:
            if self._in_message:
                # It was refused then, and is not now: the MTA would end it.
                await client.abort()
            self._in_message = True
        try:
            if row is OPTNEG_ROW:
                client.heard = []
                await client.negotiate(*self._recorded.offer)
                self._compare_agreements(step)
                return
            self._comparison.learn(step.payload)
            answer = await client.send_step(step, self._adapted(step))
        except ValueNotSendable as error:
            self._tell(f"line {step.line} was not sent: {error}")
            return
        except PeerError as error:
            self._hang_up(step, error)
            return
        if row in (ABORT_ROW, QUIT_NC_ROW, EOM_ROW):
            self._in_message = False
        if row not in CALLBACK_STEPS:
            return
        self._compare(step, client.heard)
        response = answer.response if isinstance(answer, EndOfMessage) else answer
        if row.in_message:
            self._state.heard(row, response, by_mta=step.refused_by_mta)
            self._in_message = self._in_message and self._state.settled is None
        self._hung_up = response.closes

    def _adapted(self, step: Step) -> bytes:
        """
        Give a header field as the new agreement wants it.
        """
        payload = step.payload
        was, now = (
            bool(steps & c.SMFIP_HDR_LEADSPC) for steps in (self._recorded_steps, self._live_steps)
        )
        if step.row is not HEADER_ROW or was == now:
            return payload
        name, nul, value = payload.partition(b"\0")
        return name + nul + (b" " + value if now else value.removeprefix(b" "))

    # ---- comparing

    def _compare(self, step: Step, heard: list[Heard]) -> None:
        was, now = self._comparison.compare(
            _with_response(step.heard),
            _with_response(heard),
            (
                bool(self._recorded_steps & c.SMFIP_HDR_LEADSPC),
                bool(self._live_steps & c.SMFIP_HDR_LEADSPC),
            ),
        )
        self._note(step, was, now)

    def _compare_agreements(self, step: Step) -> None:
        if not self._rules.negotiation:
            return
        self._note(step, _agreement_lines(step.heard), _agreement_lines(self._client.heard))
        missing = [
            row.name
            for row in CALLBACK_STEPS
            if row.no & self._recorded_steps and not row.no & self._live_steps
        ]
        if missing:
            names = ", ".join(missing)
            self._tell(f"the milter wants now what the record does not have: {names}")

    def _hang_up(self, step: Step, error: PeerError) -> None:
        self._hung_up = True
        hung_up = str(error).startswith("the milter closed the connection")
        remark = CLOSED if hung_up else f"({error})".encode()
        self._compare(step, [*self._client.heard, (REMARK, remark)])

    def _note(self, step: Step, was: list[str], now: list[str]) -> None:
        if was != now:
            name = "negotiation" if step.row is OPTNEG_ROW else step.name
            self._part.differences.append(Difference(name, step.line, was, now))


def _with_response(heard: list[Heard]) -> list[Heard]:
    # Where no answer is awaited, or a command is declined, the message goes on all the same.
    return heard or [(c.SMFIR_CONTINUE, b"")]


def _agreement_lines(heard: list[Heard]) -> list[str]:
    lines: list[str] = []
    for letter, payload in heard:
        decoded = decode_packet(False, letter, payload)
        lines.extend(decoded.text.split(", "))
    return lines
