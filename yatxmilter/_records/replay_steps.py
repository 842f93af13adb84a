"""
A recorded session as steps: each command, with the macros before it and the answer it got.

Which commands were to be answered follows from the agreement that was recorded; answers come in the
order of the commands, however many of these were under way.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from yatxmilter import constants as c
from yatxmilter._records.decoding import QueueId, decode_packet
from yatxmilter._records.record import Packet, RecordError, Session
from yatxmilter._wire.commands import ACTIONS, COMMANDS, OPTNEG_ROW, RCPT_ROW, Command
from yatxmilter._wire.payloads import Offer, decode_macros, decode_offer
from yatxmilter.errors import ProtocolError

__all__ = ["CLOSED", "REMARK", "Heard", "Recorded", "Step", "read_steps"]

#: A packet of the milter: letter and payload.
Heard: TypeAlias = tuple[int, bytes]

#: In the place of a packet's letter: what follows is in words.
REMARK: Final = 0

#: What is said of a milter that hung up in place of an answer.
CLOSED: Final = b"(closed the connection)"

_MOST_SHOWN: Final = 60


@dataclass
class Step:
    """
    A command and what came of it.

    :ivar line: Where the command stands in the record.
    :ivar macros: Payloads of the macro packets before it.
    :ivar heard: What the milter answered.
    :ivar answered: Whether that is all; a command that needs no answer has it at once.
    """

    line: int
    row: Command
    payload: bytes
    macros: list[bytes]
    queue_id: str | None
    heard: list[Heard] = field(default_factory=list)
    answered: bool = True

    @property
    def name(self) -> str:
        """
        The command in a few words.
        """
        text = decode_packet(True, self.row.letter, self.payload).text
        if len(text) > _MOST_SHOWN:
            text = text[: _MOST_SHOWN - 3] + "..."
        return f"{self.row.name} {text}".rstrip()

    @property
    def refused_by_mta(self) -> bool:
        """
        Whether it is a recipient that the MTA has refused by itself.
        """
        return self.row is RCPT_ROW and any(
            decode_macros(payload[1:]).get("{rcpt_mailer}") == "error"
            for payload in self.macros
            if payload[:1] == b"R"
        )


@dataclass
class Recorded:
    """
    The steps of a session.

    :ivar offer: What the MTA offered.
    :ivar agreed: What the milter answered to it; ``None`` if it did not.
    """

    offer: Offer
    agreed: Offer | None
    steps: list[Step]


def read_steps(session: Session) -> Recorded | None:
    """
    Read the steps of a session; ``None`` for one in which the MTA said nothing.

    :raises RecordError: when it does not begin with a negotiation.
    """
    # Bytes of a stranger, which are no packets, may have been answered all the same.
    if not any(packet.from_mta for packet in session.packets):
        return None
    first = session.packets[0]
    if not first.from_mta or first.letter != c.SMFIC_OPTNEG:
        raise RecordError(
            f"line {first.line} is not an OPTNEG of the MTA, with which a session begins"
        )
    recorded = Recorded(_offer(first), None, [])
    waiting: deque[Step] = deque()
    macros: list[bytes] = []
    queue_id = QueueId()
    for packet in session.packets:
        if packet.from_mta:
            queue_id.follow(packet.letter, packet.payload)
            if packet.letter == c.SMFIC_MACRO:
                macros.append(packet.payload)
                continue
            step = Step(packet.line, _row(packet), packet.payload, macros, queue_id.value)
            macros = []
            recorded.steps.append(step)
            step.answered = not _is_awaited(step.row, recorded.agreed)
            if not step.answered:
                waiting.append(step)
        elif packet.letter != c.SMFIR_PROGRESS:
            if packet.letter == c.SMFIC_OPTNEG and recorded.agreed is None:
                recorded.agreed = _offer(packet)
            # What comes unasked belongs to what was said last.
            step = waiting[0] if waiting else recorded.steps[-1]
            step.heard.append((packet.letter, packet.payload))
            if packet.letter not in ACTIONS and waiting:
                waiting.popleft().answered = True
    return recorded


def _is_awaited(row: Command, agreed: Offer | None) -> bool:
    if row is OPTNEG_ROW:
        return agreed is None
    return bool(row.codes) and not row.nr & (agreed.steps if agreed is not None else 0)


def _row(packet: Packet) -> Command:
    row = COMMANDS.get(packet.letter)
    if row is None:
        letter = repr(chr(packet.letter))
        raise RecordError(f"line {packet.line} has the letter {letter}: not a command")
    return row


def _offer(packet: Packet) -> Offer:
    try:
        return decode_offer(packet.payload)
    except ProtocolError as error:
        raise RecordError(f"line {packet.line} cannot be read: {error}") from None
