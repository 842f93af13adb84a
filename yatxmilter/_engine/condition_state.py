"""
What a condition says of a conversation: `Decision`, the state behind a `GatedMember`.

It follows one SMTP connection after the other, command by command, and knows whether the milter is
to be shown the current one, and what it has not been shown so far.

An SMTP client chooses how much that is: all that is kept has a bound. What cannot be kept of
recipients is a failure of the milter, as in a chain. Of HELO and unknown commands a few are kept: a
client may say them without end, the last HELO is the one that counts, and what is answered late to
an unknown command is for nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from yatxmilter._engine.conditions import Condition, MailView, Recipients
from yatxmilter._engine.member import Callback
from yatxmilter._engine.on_error import answer_for
from yatxmilter._mail.bounds import MAX_LATE_COMMANDS, Limits
from yatxmilter._wire.commands import (
    CONNECT_ROW,
    DATA_ROW,
    HELO_ROW,
    MAIL_ROW,
    RCPT_ROW,
    UNKNOWN_ROW,
    Command,
)
from yatxmilter._wire.macros import NO_MACROS, MacroStore
from yatxmilter.constants import ReturnCode

__all__ = ["CONNECTION_ROWS", "Decision", "Late", "Standing"]

#: The commands that are about the connection, not about one of its messages.
CONNECTION_ROWS: Final = (CONNECT_ROW, HELO_ROW)


class Late(NamedTuple):
    """
    A callback that the milter has not been shown yet.

    :ivar callback: ``None`` if the milter does not want it; it is kept for the condition.
    :ivar macros: Those of its time, as `MacroStore.payloads` has them.
    :ivar size: How many bytes are kept for it.
    :ivar early: Whether it came before the message: it is one of the connection's.
    """

    command: Command
    callback: Callback | None
    arguments: tuple[Any, ...]
    macros: tuple[bytes | None, ...] = NO_MACROS
    size: int = 0
    early: bool = False


class Standing(NamedTuple):
    """
    What a callback that was shown late has answered.
    """

    code: ReturnCode
    reply: bytes | None
    for_connection: bool


class Decision:
    """
    What is known of the condition.

    :ivar known: What is known at connect, for all of the connection.
    :ivar standing: The answer that stands for the milter.
    :ivar early: What it has not been shown of the connection; ``pending``: of the message.
    :ivar received: How many recipients the message has.
    :ivar overrun: Why not all of them are kept, once that is so.
    """

    def __init__(
        self, condition: Condition, on_error: Any, macros: MacroStore, limits: Limits
    ) -> None:
        self._condition = condition
        self._on_error = on_error
        self._macros = macros
        self._limits = limits
        self.begin_connection()

    def begin_connection(self) -> None:
        """
        Forget all: there is a new connection, or none.
        """
        self.view = MailView(self._macros.get)
        self.early: list[Late] = []
        self._early_size = self._early_dropped = 0
        self.standing: Standing | None = None
        self.known: bool | None = None
        # What the last HELO made of it.
        self._greeted = False
        self.end_message()

    def end_message(self) -> None:
        """
        Forget the message.
        """
        self.in_message = False
        # What is known for all of the message; whether a recipient was shown before it was.
        self._now: bool | None = None
        self._joined = False
        self.pending: list[Late] = []
        # Whether there is anything among it but recipients.
        self._mixed = False
        # The macros of what was kept last: only what is new takes room.
        self._kept = NO_MACROS
        self._size = self._unknown = self._dropped = 0
        self.received = 0
        self.overrun: str | None = None
        # It grows with the message. What a condition is shown of it is a view that does not.
        self._recipients: list[tuple[str, ...]] = []
        self.view = replace(self.view, sender=None, recipient=None, recipients=())
        if self.standing is not None and not self.standing.for_connection:
            self.standing = None

    @property
    def open(self) -> bool:
        """
        Whether the milter has its place in the connection or the message.
        """
        return bool(self.known or self._now or self._joined)

    def keep(self, late: Late) -> bool:
        """
        Keep what the milter may have to be shown later, with the macros as they are.

        :return: Whether there is room for it; only a recipient needs it.
        """
        macros = tuple(self._macros.payloads)
        if not self.in_message:
            size = _size(late, macros, NO_MACROS)
            self._keep_early(late._replace(macros=macros, size=size, early=True))
            return True
        # Of MAIL there is one, and its macros have a limit of their own.
        size = 0 if late.command is MAIL_ROW else _size(late, macros, self._kept)
        unknown = late.command is UNKNOWN_ROW
        full = self._size + size > self._limits.max_header_bytes
        if full and late.command is RCPT_ROW:
            self._exceed_bytes()
            return False
        if full or (unknown and self._unknown >= MAX_LATE_COMMANDS):
            self._dropped += 1
            return True
        self._unknown += unknown
        self._mixed = self._mixed or late.command is not RCPT_ROW
        self._size += size
        self._kept = macros
        self.pending.append(late._replace(macros=macros))
        return True

    def _keep_early(self, late: Late) -> None:
        early = self.early
        early.append(late)
        self._early_size += late.size
        limit = self._limits.max_header_bytes
        while len(early) > MAX_LATE_COMMANDS or self._early_size > limit:
            # Neither the connection itself goes nor the HELO that counts.
            last_helo = max([i for i, one in enumerate(early) if one.command is HELO_ROW] or [-1])
            for index, one in enumerate(early):
                if one.command is not CONNECT_ROW and index != last_helo:
                    break
            else:
                return
            self._early_size -= one.size
            self._early_dropped += 1
            del early[index]

    def _exceed_bytes(self) -> None:
        limit = self._limits.max_header_bytes
        self.overrun = f"recipients of more than {limit} bytes with macros (max_header_bytes)"

    def missed(self) -> list[Late]:
        """
        Take what the milter has not been shown yet, but for recipients not decided upon.
        """
        taken = self.early
        self.early = []
        self._early_size = 0
        if self._now is not None:
            taken = taken + self.pending
            self.pending = []
        elif self._mixed:
            # From now on there are recipients only: they are not looked through at each of them.
            self._mixed = False
            taken = taken + [one for one in self.pending if one.command is not RCPT_ROW]
            self.pending = [one for one in self.pending if one.command is RCPT_ROW]
        return taken

    def dropped(self) -> int:
        """
        Tell, once, how many commands were not kept of what was missed.
        """
        dropped = self._early_dropped + self._dropped
        self._early_dropped = self._dropped = 0
        return dropped

    def put_back(self, missed: list[Late]) -> None:
        """
        Keep what is about the connection for its next message: this one is over.
        """
        self.early = [late for late in missed if late.command in CONNECTION_ROWS] + self.early
        self._early_size = sum([late.size for late in self.early])

    def note(self, command: Command, arguments: tuple[Any, ...]) -> bool:
        """
        Take note of a command.

        :return: Whether there is room for it; only a recipient needs it.
        """
        if command is CONNECT_ROW:
            hostname, client = arguments
            self.begin_connection()
            self.view = replace(self.view, hostname=hostname, client=client)
        elif command is HELO_ROW:
            self.view = replace(self.view, helo=arguments[0])
        elif command is MAIL_ROW:
            self.end_message()
            self.in_message = True
            self.view = replace(self.view, sender=tuple(arguments[0]))
        elif command is RCPT_ROW:
            self.received += 1
            if self.known is None and self._now is None:
                return self._note_recipient(tuple(arguments[0]))
        return True

    def _note_recipient(self, one: tuple[str, ...]) -> bool:
        recipients, limit = self._recipients, self._limits.max_recipients
        size = _length(one)
        if len(recipients) >= limit:
            self.overrun = f"a message of more than {limit} recipients (max_recipients)"
            return False
        if self._size + size > self._limits.max_header_bytes:
            self._exceed_bytes()
            return False
        self._size += size
        recipients.append(one)
        self.view = replace(self.view, recipient=one, recipients=Recipients(recipients))
        return True

    def decide(self, command: Command) -> bool | None:
        """
        Tell whether the milter is shown a command that was noted; ``None`` if not known yet.

        What the condition raises is raised, once: what is answered for it stands.
        """
        if self.known is not None:
            return self.known
        if command is CONNECT_ROW:
            self.known = self._evaluate(command)
            return self.known
        if command is HELO_ROW:
            # The client may say it once more, and something else: false is not final.
            self._greeted = self._evaluate(command) is True
            return self._greeted or None
        if command is UNKNOWN_ROW:
            return self._decide_unknown()
        if command is MAIL_ROW:
            self._now = self._evaluate(command)
        elif command is not RCPT_ROW:
            self._settle()
        elif self._now is None:
            opened = self._evaluate(command)
            self._joined = self._joined or opened is True
            return opened
        return self._now

    def _decide_unknown(self) -> bool | None:
        if not self.in_message:
            return self._greeted or None
        return self._joined or self._now

    def _settle(self) -> None:
        """
        Decide at DATA, or what comes in its place: now all is known that will be.
        """
        if self._now is not None:
            return
        opened = self._joined
        kept = []
        for late in self.pending:
            if late.command is RCPT_ROW:
                self.view = replace(self.view, recipient=tuple(late.arguments[0]))
                if not self._evaluate(DATA_ROW):
                    continue
                opened = True
            kept.append(late)
        if not self._recipients:
            opened = self._evaluate(DATA_ROW) is True
        self.pending = kept
        self._now = opened

    def _evaluate(self, reached: Command) -> bool | None:
        try:
            return self._condition.evaluate(self.view, reached)
        except BaseException:
            # What is answered for it stands until what cannot be decided is over.
            for_connection = reached in CONNECTION_ROWS
            answer = answer_for(reached, self._on_error)
            self.standing = Standing(answer.code, answer.reply, for_connection)
            if for_connection:
                self.known = True
            else:
                self._now = True
            raise


def _size(late: Late, macros: tuple[bytes | None, ...], known: tuple[bytes | None, ...]) -> int:
    """
    Tell how many bytes it takes to keep a callback.

    :param known: The macros that take no room of their own.
    """
    arguments = late.arguments[0] if late.command is RCPT_ROW else late.arguments
    size = _length(arguments) if late.command is not CONNECT_ROW else 0
    for one, other in zip(macros, known, strict=True):
        if one is not None and one is not other:
            size += len(one)
    return size


def _length(strings: Sequence[str]) -> int:
    # Each has a NUL behind it.
    return sum([len(one) for one in strings]) + len(strings)
