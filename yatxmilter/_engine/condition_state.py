"""
What a condition says of a conversation: `Decision`, the state behind a `GatedMember`.

It follows one SMTP connection after the other, command by command, and knows whether the milter is
to be shown the current one, and what it has not been shown so far.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final, NamedTuple

from yatxmilter._engine.conditions import Condition, MailView
from yatxmilter._engine.member import Callback
from yatxmilter._engine.on_error import answer_for
from yatxmilter._wire.commands import (
    CONNECT_ROW,
    DATA_ROW,
    HELO_ROW,
    MAIL_ROW,
    RCPT_ROW,
    UNKNOWN_ROW,
    Command,
)
from yatxmilter._wire.macros import MacroStore
from yatxmilter.constants import ReturnCode

__all__ = ["CONNECTION_ROWS", "Decision", "Late", "Standing"]

#: The commands that are about the connection, not about one of its messages.
CONNECTION_ROWS: Final = (CONNECT_ROW, HELO_ROW)


class Late(NamedTuple):
    """
    A callback that the milter has not been shown yet.

    :ivar callback: ``None`` if the milter does not want it; it is kept for the condition.
    """

    command: Command
    callback: Callback | None
    arguments: tuple[Any, ...]
    macros: MacroStore


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
    """

    def __init__(self, condition: Condition, on_error: Any, macros: MacroStore) -> None:
        self._condition = condition
        self._on_error = on_error
        self._macros = macros
        self.begin_connection()

    def begin_connection(self) -> None:
        """
        Forget all: there is a new connection, or none.
        """
        self.view = MailView(self._macros.get)
        self.early: list[Late] = []
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
        self.view = replace(self.view, sender=None, recipient=None, recipients=())
        if self.standing is not None and not self.standing.for_connection:
            self.standing = None

    @property
    def open(self) -> bool:
        """
        Whether the milter has its place in the connection or the message.
        """
        return bool(self.known or self._now or self._joined)

    def keep(self, late: Late) -> None:
        """
        Keep what the milter may have to be shown later, with the macros as they are.
        """
        kept = self.pending if self.in_message else self.early
        kept.append(late._replace(macros=self._macros.copy()))

    def missed(self) -> list[Late]:
        """
        Take what the milter has not been shown yet, but for recipients not decided upon.
        """
        early, pending = self.early, self.pending
        undecided = [one for one in pending if self._now is None and one.command is RCPT_ROW]
        self.early, self.pending = [], undecided
        return early + [one for one in pending if one not in undecided]

    def put_back(self, missed: list[Late]) -> None:
        """
        Keep what is about the connection for its next message: this one is over.
        """
        self.early = [late for late in missed if late.command in CONNECTION_ROWS] + self.early

    def note(self, command: Command, arguments: tuple[Any, ...]) -> None:
        """
        Take note of a command.
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
            one = tuple(arguments[0])
            recipients = (*self.view.recipients, one)
            self.view = replace(self.view, recipient=one, recipients=recipients)

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
        for late in self.pending.copy():
            if late.command is RCPT_ROW:
                self.view = replace(self.view, recipient=tuple(late.arguments[0]))
                if self._evaluate(DATA_ROW):
                    opened = True
                else:
                    self.pending.remove(late)
        if not self.view.recipients:
            opened = self._evaluate(DATA_ROW) is True
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
