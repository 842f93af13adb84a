"""
One connection's conversation without its I/O: bytes in, calls out.

`Session.receive` takes bytes; `Session.next_call` answers with the next command that somebody has
to look at, or ``None`` when no whole packet is there. It is pulled, never pushed: who waits for an
answer simply does not ask, and later commands stay where they are. The order of commands is
libmilter's (``engine.c``): an illegal one ends the message that is open, and is then tried once
more as if after HELO; if it is illegal there too it is dropped without a word.

Calls are not packets. Macro packets end here; an illegal command in a message gives an ABORT call
before it; BODYEOB with data gives a BODY call and then its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from yatxmilter._wire.commands import (
    ABORT_ROW,
    BODY_ROW,
    COMMANDS,
    EOM_ROW,
    HELO,
    INIT,
    MACRO_ROW,
    QUIT_ROW,
    Command,
    legal_commands,
)
from yatxmilter._wire.macros import MacroStore
from yatxmilter._wire.packets import PacketSplitter, read_length
from yatxmilter.errors import ProtocolError

__all__ = ["Session"]

_NAMES: Final = (
    "INIT", "OPTS", "CONN", "HELO", "MAIL", "RCPT", "DATA", "HDRS",
    "EOHS", "BODY", "ENDM", "QUIT", "ABRT", "UNKN", "Q_NC",
)  # fmt: skip

_LEGAL_AT_FIRST: Final = legal_commands(0)


class Session:
    """
    The state of one connection.

    :ivar payload: The payload of the call that `next_call` gave.
    :ivar last_chunk: Whether that call is the body chunk of a BODYEOB, which has no answer of its
        own: the end of message behind it has.
    :ivar in_message: Whether a message is open: one of its commands was handled since the last
        one ended.
    :ivar idle: Whether there is no other call behind the last one, as far as is known.
    :ivar takers: What is called with each packet, before it is looked at.
    :ivar dropped: The last command that was dropped as illegal, and the state it came in; stray
        ABORTs do not count.
    """

    __slots__ = (
        "_again",
        "_end_due",
        "_legal",
        "dropped",
        "idle",
        "in_message",
        "last_chunk",
        "macros",
        "payload",
        "splitter",
        "state",
        "takers",
    )

    def __init__(self) -> None:
        self.splitter = PacketSplitter()
        self.macros = MacroStore()
        self.takers: tuple[Callable[[tuple[int, bytes]], None], ...] = ()
        self.state = INIT
        self.payload = b""
        self.last_chunk = False
        self.idle = False
        self.in_message = False
        self.dropped: str | None = None
        self._legal = _LEGAL_AT_FIRST
        self._again: tuple[int, bytes] | None = None
        self._end_due = False

    def receive(self, data: bytes) -> None:
        """
        Take in bytes that have arrived.
        """
        self.splitter.feed(data)

    def decline(self, steps: int) -> None:
        """
        Take the ``SMFIP_NO*`` steps in force: the states they name are passed over.
        """
        self._legal = legal_commands(steps)

    def next_call(self) -> Command | None:
        """
        Give the next command to handle; its payload is in `payload`. ``None`` when there is none.

        :raises ProtocolError: when the stream cannot be read on. The connection must be closed.
        """
        splitter = self.splitter
        if self._end_due:
            self._end_due = self.last_chunk = False
            self.payload = b""
            self.idle = not (splitter.buffer or splitter.queue)
            return EOM_ROW
        while True:
            if self._again is None:
                # Most packets have come whole: they are cut here, without a call. What spans
                # several reads, and lengths that are odd, are for the splitter.
                buffer, start = splitter.buffer, splitter.position + 5
                size = len(buffer)
                whole = start <= size and not splitter.missing
                length = read_length(buffer, start - 5)[0] if whole else 0
                end = start - 1 + length
                if size >= end >= start and length <= splitter.limit + 1:
                    letter = buffer[start - 1]
                    payload = buffer[start:end]
                    if end < size:
                        splitter.position = end
                    else:
                        # A connection that is idle should not keep its last read.
                        splitter.buffer = b""
                        splitter.position = 0
                else:
                    packet = splitter.next_packet()
                    if packet is None:
                        return None
                    letter, payload = packet
                if self.takers:
                    for take in self.takers:
                        take((letter, payload))
            else:
                letter, payload = self._again
                self._again = None
            command = COMMANDS.get(letter)
            if command is None:
                raise ProtocolError(f"unknown command {chr(letter)!r}")
            if not self._legal[self.state] >> command.index & 1:
                if command is MACRO_ROW:
                    # It belongs to the command behind it, and is in no state's way.
                    if not payload:
                        raise ProtocolError("MACRO without a stage")
                    self.macros.put(payload)
                    continue
                if self.in_message:
                    # The message ends first; the command is looked at again after that.
                    self._again = letter, payload
                    self.state = HELO
                    self.payload = b""
                    self.idle = False
                    return ABORT_ROW
                if command is not QUIT_ROW and not self._legal[HELO] >> command.index & 1:
                    # Stray ABORTs are no mistake: Postfix sends one after each message.
                    if command is not ABORT_ROW:
                        self.dropped = f"{command.name} in state {_NAMES[self.state]}"
                    self.state = HELO
                    continue
            if not payload and command.needs_payload:
                raise ProtocolError(f"{command.name} without payload")
            if command.state is not None:
                self.state = command.state
            if command.in_message:
                self.in_message = True
            if command.stale < 7:
                self.macros.clear_from(command.stale)
            self.payload = payload
            if command is EOM_ROW and payload:
                self._end_due = self.last_chunk = True
                self.idle = False
                return BODY_ROW
            self.idle = not (splitter.buffer or splitter.queue)
            return command

    def finish(self) -> bool:
        """
        Take note of a final answer (ACCEPT, REJECT, TEMPFAIL, DISCARD); tell if a message ended.

        Not to be called where the answer is about one recipient or an unknown command alone.
        """
        self.state = HELO
        # The end of message behind a last chunk has been answered with the chunk.
        self._end_due = self.last_chunk = False
        ended = self.in_message
        self.in_message = False
        return ended
