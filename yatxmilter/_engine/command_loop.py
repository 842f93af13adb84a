"""
The loop of a conversation: calls are pulled from the session one by one and answered.

Negotiation, the end of messages and of connections are for the conversation itself, everything else
goes to the fan-out. While an answer is awaited, or the MTA does not read, nothing is pulled, and
later commands stay where they are. Answers are gathered and written at once when there is nothing
more to pull.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

from twisted.logger import Logger

from yatxmilter._engine.callbacks import Caller
from yatxmilter._engine.command_order import Session
from yatxmilter._engine.merge import Merge
from yatxmilter._engine.opening import Opening
from yatxmilter._engine.pending import Pending
from yatxmilter._escaping import printable
from yatxmilter._wire.commands import Command
from yatxmilter.errors import ProtocolError

__all__ = ["Line", "Pulling"]

_log = Logger()


class Line(Protocol):
    """
    What a conversation needs of its connection.
    """

    def send_packets(self, packets: list[bytes]) -> None:
        """
        Write packets to the MTA; empty the list.
        """

    def caught_up(self) -> None:
        """
        Take note that nothing is waited for: what has arrived so far was handled.
        """

    def hang_up(self) -> None:
        """
        Close the connection when all is written.
        """


class Pulling(ABC):
    """
    The loop of one conversation.

    :ivar session: The connection's rules.
    :ivar stalled: While true nothing is pulled, because the MTA does not read what we write.
    :ivar busy: Whether what arrives has to wait: for a milter, or for the MTA to read.
    :ivar elsewhere: Whether a callback is running that the reactor does not wait for.
    """

    _opening: Opening
    _fanout: Merge
    _caller: Caller

    def __init__(self, line: Line) -> None:
        self.session = Session()
        self.stalled = self.busy = self.elsewhere = False
        self._line = line
        self._send: Callable[[list[bytes]], None] = line.send_packets
        self._out: list[bytes] = []
        # Who answers commands; the first time somebody has to see to it that there is a plan.
        self._step: Callable[[Command], None] = self._first_step
        # Whether the line knows that nothing is waited for, and nothing left of what was read.
        self._at_ease = False
        self._begun = self._running = self._ended = self._lost = self._told = False
        self._draining = False

    @abstractmethod
    def _begin(self) -> None:
        """
        Take note that the MTA begins to talk.
        """

    @abstractmethod
    def _first_step(self, command: Command) -> None:
        """
        Have the first command answered that comes without a negotiation.
        """

    @abstractmethod
    def _control(self, command: Command) -> None:
        """
        Do what a command calls for that is not for the fan-out.
        """

    @abstractmethod
    def end(self) -> None:
        """
        End the conversation.
        """

    @property
    def waiting(self) -> bool:
        """
        Whether a milter is waited for.
        """
        return bool(
            self.elsewhere or self._opening.awaited or self._fanout.round or self._caller.settling
        )

    def run(self) -> None:
        """
        Go on with what has arrived, and tell the line how that stands.
        """
        self._at_ease = False
        self.receive()

    def receive(self, data: bytes = b"") -> bool:
        """
        Take in bytes from the MTA; pull commands and have them answered until there is nothing to
        pull, or something must be waited for.

        :return: Whether the line need not be told: all is answered and nothing is waited for, as it
            was before, and no part of a packet is left.
        """
        session, splitter = self.session, self.session.splitter
        if data:
            if self._ended:
                return False
            # `PacketSplitter.feed`, without a call, where nothing is left of what came before.
            if splitter.buffer or splitter.queue:
                splitter.feed(data)
            else:
                splitter.buffer = data
        # A callback may lead here again, by a Deferred that it fires.
        if self._running:
            return False
        self._running = True
        if not self._begun:
            self._begin()
        opening, fanout, caller = self._opening, self._fanout, self._caller
        try:
            # As in `waiting`, without calls: this is looked at for each command.
            while not (
                self._ended or self.stalled or fanout.round or opening.awaited or caller.settling
            ):
                command = session.next_call()
                if command is None:
                    if splitter.partial:
                        self._at_ease = False
                    break
                if command.codes:
                    self._step(command)
                else:
                    self._control(command)
                if session.idle:
                    break
        except ProtocolError as error:
            self._break_off(error)
        finally:
            self._running = False
        if self._ended:
            # A callback may have ended it, and then have answered.
            opening.cancel()
            fanout.cancel()
            self._out.clear()
        elif self._out:
            self._send(self._out)
        if session.dropped is not None:
            self._tell_dropped(session.dropped)
        if self._ended or self.stalled or fanout.round or opening.awaited or caller.settling:
            self._at_ease = False
            self.busy = bool(self.stalled or fanout.round or opening.awaited or caller.settling)
            return False
        if self._at_ease:
            return True
        self.busy = False
        if self._draining and not session.in_message:
            self.end()
            return False
        self._at_ease = not (splitter.partial or self._draining)
        self._line.caught_up()
        return False

    def _break_off(self, error: ProtocolError) -> None:
        _log.warn(
            "The MTA at {mta} broke the milter protocol: {error}; closing the connection",
            mta=self._caller.mta,
            connection=self._caller.connection,
            error=printable(str(error)),
        )
        # A message counts as open, as in libmilter, whose state is set before a payload is read.
        self._fanout.join_all()
        self.end()

    def _tell_dropped(self, dropped: str) -> None:
        # Once: an MTA that is out of step sends many.
        self.session.dropped = None
        if not self._told:
            self._told = True
            _log.info(
                "The MTA at {mta} sent {dropped}, which is out of order: dropped without an"
                " answer (further ones are not logged)",
                mta=self._caller.mta,
                connection=self._caller.connection,
                dropped=dropped,
            )

    def resume(self, work: Callable[[Pending], None], pending: Pending) -> None:
        """
        Do what an awaited result calls for, then go on pulling.

        Not before: user code that the work runs must not make the loop pull in its middle.
        """
        running = self._running
        self._running = True
        try:
            work(pending)
        finally:
            self._running = running
        self.run()
