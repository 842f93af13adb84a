"""
Conversations that observers are told of: the same rules, and a word about each thing done.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from twisted.internet.interfaces import IReactorTime

from yatxmilter._engine.command_order import Handler
from yatxmilter._engine.connection import Conversation, Line
from yatxmilter._engine.observing import Watch
from yatxmilter._engine.pending import Pending
from yatxmilter._mail.bounds import Limits
from yatxmilter._wire.commands import Command
from yatxmilter.errors import ProtocolError

__all__ = ["ObservedConversation"]


class ObservedConversation(Conversation):
    """
    A conversation that observers are told of; the same rules, and a word about each thing done.

    It is chosen when the connection is made, so that others have nothing of this on their way.
    """

    __slots__ = ("_message_told", "_quiet", "_told_of", "_watch", "untold")

    def __init__(
        self,
        line: Line,
        clock: IReactorTime,
        merge: str,
        progress_interval: float | None,
        limits: Limits,
        watch: Watch | None,
    ) -> None:
        super().__init__(line, clock, merge, progress_interval, limits, watch)
        assert watch is not None
        # The same as `watch`, of which others may have none.
        self._watch = watch
        # Whether observers know that a message is open, and how much they know of the output.
        self._message_told = self.untold = False
        self._told_of = 0
        # Whether nobody needs to be told of each answer: only of those that are not usual, or that
        # end a message.
        self._quiet = not self._watch.audience.tells_usual_answers
        self._watch.macros = self.macros

    def send(self, out: list[bytes]) -> None:
        """
        Send packets, and empty the list; tell of them.
        """
        self._tell_sent()
        size = sum(map(len, out))
        self.line.send_packets(out)
        self._watch.count_sent(size)

    def take_out(self) -> bytes:
        """
        Give the packets that are to be sent, joined; tell of them.
        """
        self._tell_sent()
        # Before the bytes are told of: who hears of them may end the connection, which sends all
        # that is there.
        data = super().take_out()
        self._watch.count_sent(len(data))
        return data

    def _tell_sent(self) -> None:
        # If not all of it has been told.
        if self._told_of or not self._quiet:
            self._tell_output()
            self._told_of = 0

    def observe(self, command: Command, handler: Handler, payload: bytes) -> bytes | None:
        """
        Handle a command, and tell of it.

        :return: The usual answer, where nobody needs to be told of it.
        """
        self.begin_command(command)
        return self.end_command(command, handler(self, payload))

    def begin_command(self, command: Command) -> None:
        """
        Take note that a command is about to be handled.
        """
        self._watch.stage = command.callback
        if command.in_message and not self._message_told:
            self._message_told = True
            self.untold = self._quiet
            self._watch.begin_message()
            self._watch.tell("message_began")

    def end_command(self, command: Command, answer: bytes | None) -> bytes | None:
        """
        Tell of the answer to a command, and of the end of a message.

        :param answer: The usual one, if that was given.
        :return: The same, where nobody needs to be told of it.
        """
        if answer is not None:
            if self._quiet and not (self._message_told and self.message is None):
                return answer
            self.out.append(answer)
        self._watch.stage = command.callback
        self._tell_done(None if command.codes else "aborted")
        return None

    def resume(self, work: Callable[[Pending], None], pending: Pending) -> None:
        """
        Do what an awaited result calls for, tell of it, then go on pulling.
        """
        super().resume(partial(self._work, work), pending)

    def _work(self, work: Callable[[Pending], None], pending: Pending) -> None:
        work(pending)
        self._tell_done()

    def end(self) -> None:
        """
        End the conversation; a message that is open is aborted.
        """
        self._tell_output()
        super().end()
        self._tell_done("aborted")

    def _break_off(self, error: ProtocolError) -> None:
        self._watch.tell("mta_failed", error.kind, str(error))
        super()._break_off(error)

    def _tell_done(self, outcome: str | None = None) -> None:
        self._tell_output()
        if self._message_told and not self.in_message:
            self._message_told = self.untold = False
            self._watch.count_work(now=self.at_work)
            if outcome == "aborted" and self._watch.discards:
                # As long as the MTA does not end it, it is open for libmilter.
                outcome = "discard"
            self._watch.tell("message_ended", outcome or self._watch.last)
            self._watch.end_message()

    def _tell_output(self) -> None:
        if len(self.out) > self._told_of and not self.ended:
            for packet in self.out[self._told_of :]:
                self._watch.output(packet)
            self._told_of = len(self.out)
