"""
One connection from an MTA as Twisted sees it.

A `TransportLine` moves bytes between its transport and a `Conversation`, and watches the clock and
the buffers; what the bytes mean is not decided here.
"""

from __future__ import annotations

import socket
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from twisted.internet import tcp
from twisted.internet.address import UNIXAddress
from twisted.internet.interfaces import IPushProducer, ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from yatxmilter._engine.addresses import describe_address
from yatxmilter._engine.connection import Conversation, ObservedConversation
from yatxmilter._engine.observing import Watch
from yatxmilter.protocol._descriptor_set import Served
from yatxmilter.protocol._time_limits import (
    NOT_CLOSING,
    NOT_READING,
    SILENT,
    SLOW_COMMAND,
    Deadline,
    Fault,
    hung_up,
)

if TYPE_CHECKING:
    from yatxmilter.protocol._factory import MilterProtocolFactory

__all__ = ["TransportLine"]

_log = Logger()

_QUICKACK: Final = getattr(socket, "TCP_QUICKACK", None)

# More is written in pieces of this size, so that we see how far the MTA reads.
_PIECE: Final = 128 * 1024
_NUMBERS: Final = count(1)
# Seconds after which we look whether an MTA is still there that is not read from.
_LOOK: Final = 10.0


@implementer(IPushProducer)
class TransportLine(Protocol):
    """
    The bytes of one connection from an MTA.

    :param options: The factory whose options count.
    :ivar number: The how manyth connection of this process it is; ``connection`` in the log.
    """

    transport: Any
    number = 0

    def __init__(self, options: MilterProtocolFactory) -> None:
        self._options = options
        self._paused = False
        self._served: Served | None = None
        self._unsent: list[memoryview] | None = None
        self._sent = self._may_hurry = False
        # How many packets there had been when the one that is incomplete began.
        self._taken = -1
        self._clock = options.clock
        # All but the first only once they are needed: most connections never are that slow.
        self._idle = Deadline(self._clock, options.timeout, self._expired, SILENT)
        self._command: Deadline[Fault] | None = None
        self._reading: Deadline[Fault] | None = None
        self._closing: Deadline[Fault] | None = None
        self._away: Deadline[None] | None = None
        self._watch: Watch | None = None
        make = Conversation
        if options.audience.observers:
            self._watch = Watch(options.audience, self, self._clock.seconds)
            make = ObservedConversation
        self._conversation = make(
            self, self._clock, options.merge, options.progress_interval, options.limits, self._watch
        )
        macros = self._conversation.session.macros
        macros.most = options.max_macros
        macros.most_bytes = options.max_macro_bytes

    # ---- Twisted's side

    def connectionMade(self) -> None:
        """
        Tell the milters of the connection, and start to watch it.
        """
        transport = self.transport
        peer = transport.getPeer()
        if self.factory is not None:
            self.factory.connection_made(self, peer)
            self._served = self.factory.serve(transport)
        if not isinstance(peer, UNIXAddress) and ITCPTransport.providedBy(transport):
            transport.setTcpNoDelay(True)
            self._may_hurry = type(transport) is tcp.Server and _QUICKACK is not None
        transport.registerProducer(self, True)
        self._idle.start()
        self.number = next(_NUMBERS)
        if self._watch is not None:
            self._watch.tell("connection_made")
        self._conversation.connected(peer, self.number)

    def dataReceived(self, data: bytes) -> None:
        """
        Hand bytes to the conversation; pause the transport when too many are waiting there.
        """
        conversation = self._conversation
        self._sent = False
        if conversation.receive(data):
            # `_moved`, without a call.
            idle = self._idle
            if idle.since is not None:
                idle.since = self._clock.seconds()
            if self._may_hurry and not self._sent:
                self._acknowledge()
        elif conversation.busy:
            self._moved()
            # What is missing of a command is not looked at before there is time for it.
            if self._command is not None:
                self._command.stop()
            if conversation.session.splitter.buffered > self._options.max_buffered:
                self._pause()
        elif self._may_hurry and not self._sent:
            self._acknowledge()

    def _pause(self) -> None:
        self._paused = True
        self.transport.pauseProducing()
        if self._away is None:
            self._away = Deadline(self._clock, _LOOK, self._look, None)
        self._away.start()

    def _look(self, fault: None) -> None:
        # Who does not read does not see the end either: the milter might be waited for in vain.
        if not self._paused:
            return
        if hung_up(self.transport):
            self.transport.abortConnection()
        else:
            self._pause()

    def _acknowledge(self) -> None:
        # Sendmail sends macros and command in two writes, and the second waits until the first
        # is acknowledged: without an answer to go with, that takes some 40 ms.
        if self.transport.connected:
            self.transport.getHandle().setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)

    def _moved(self) -> None:
        # Only while it counts: not once the connection is being closed.
        idle = self._idle
        if idle.since is not None:
            idle.since = self._clock.seconds()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        Cancel what is awaited, and tell the milters.
        """
        self._stop_watching()
        self._unsent = None
        try:
            self._conversation.lost(reason)
        finally:
            # Whatever happens: one that stays counted is a place that is never free again.
            if self.factory is not None:
                self.factory.connection_lost(self, self.transport.getPeer())
            if self._served is not None:
                self._served.release()
            if self._watch is not None:
                self._watch.tell("connection_lost", reason)

    def _expired(self, fault: Fault) -> None:
        if self._conversation.waiting:
            # The MTA waits for a milter, not we for the MTA.
            self._idle.start()
            return
        self._log_fault(fault)
        self._conversation.end()

    def _stuck(self, fault: Fault) -> None:
        self._log_fault(fault)
        self.transport.abortConnection()

    def _unread(self, fault: Fault) -> Deadline[Fault]:
        return Deadline(self._clock, self._options.write_timeout, self._stuck, fault)

    def _begin_command(self, taken: int) -> None:
        command = self._command
        if command is None:
            command = self._command = Deadline(
                self._clock,
                self._options.command_timeout,
                self._expired,
                SLOW_COMMAND,
            )
        elif taken != self._taken:
            command.stop()
        self._taken = taken
        command.start()

    def _stop_watching(self) -> None:
        for deadline in (self._idle, self._command, self._reading, self._closing, self._away):
            if deadline is not None:
                deadline.cancel()

    def _log_fault(self, fault: Fault) -> None:
        if self._watch is not None:
            self._watch.tell("mta_failed", fault.kind, fault.words)
        _log.warn(
            "The MTA at {mta} {fault}; closing the connection",
            mta=describe_address(self.transport.getPeer()),
            connection=self.number,
            fault=fault.words,
        )

    # ---- a callback that the reactor does not wait for

    def rest(self) -> None:
        """
        Read nothing: a callback is running, and the reactor goes on without it.
        """
        self._conversation.elsewhere = True
        if self._command is not None:
            self._command.stop()
        self.transport.stopReading()

    def go_on(self) -> None:
        """
        Read on: the callback is over.
        """
        self._conversation.elsewhere = False
        self._moved()
        transport = self.transport
        if transport.connected and not transport.disconnecting and not self._paused:
            transport.startReading()

    def missing_milter(self, name: str, failure: Failure) -> None:
        """
        Tell observers of a milter that could not be built for this connection.
        """
        if self._watch is not None:
            self._watch.milter_failed(name, "build_milter", failure)

    def drain(self) -> None:
        """
        Close the connection as soon as no message is open and no milter is waited for.
        """
        self._conversation.drain()

    def give_up(self) -> None:
        """
        Close the connection now; answer TEMPFAIL where an answer is owed.
        """
        self._conversation.give_up()

    @property
    def paused(self) -> tuple[str, ...]:
        """
        What the connection waits for while nothing is answered or read, in a word each:
        ``"mta_not_reading"`` while the MTA does not read what we write, ``"milter_busy"`` while too
        much waits for a milter.
        """
        waits = (("mta_not_reading", self._conversation.stalled), ("milter_busy", self._paused))
        return tuple(reason for reason, waiting in waits if waiting)

    @property
    def traffic(self) -> tuple[int, int]:
        """
        How many bytes were read from the MTA, and written for it; counted where there are
        observers, else 0.
        """
        return (0, 0) if self._watch is None else (self._watch.received, self._watch.sent)

    # ---- IPushProducer: the MTA reads slowly, or reads again

    def pauseProducing(self) -> None:
        """
        Make no more answers until those made are read.
        """
        self._conversation.stalled = True
        if self._reading is None:
            self._reading = self._unread(NOT_READING)
        self._reading.start()

    def resumeProducing(self) -> None:
        """
        Go on.
        """
        if self._reading is not None:
            self._reading.stop()
        self._conversation.stalled = False
        if self._unsent is not None:
            self._moved()
            self._send_pieces()
        self._conversation.run()

    def stopProducing(self) -> None:
        """
        Make no more answers; the connection is about to be lost.
        """
        self._conversation.stalled = True

    def send(self, data: bytes) -> None:
        """
        Write to the MTA.
        """
        self.send_packets([data])

    def send_packets(self, packets: list[bytes]) -> None:
        """
        Write packets to the MTA; empty the list.
        """
        data = packets[0] if len(packets) == 1 else b"".join(packets)
        packets.clear()
        self._sent = True
        if len(data) > _PIECE or self._unsent is not None:
            whole = memoryview(data)
            pieces = [whole[place : place + _PIECE] for place in range(0, len(data), _PIECE)]
            self._unsent = (self._unsent or []) + pieces
            self._send_pieces()
        else:
            (self._served or self.transport).write(data)

    def _send_pieces(self) -> None:
        # Until the transport has us pause; each piece it takes then is a sign that the MTA reads.
        pieces = self._unsent
        while pieces and not self._conversation.stalled:
            (self._served or self.transport).write(bytes(pieces.pop(0)))
        if not pieces:
            self._unsent = None

    def caught_up(self) -> None:
        """
        Read on, if reading was paused; give what is missing of a command its time.
        """
        idle = self._idle
        if idle.since is not None:
            idle.since = self._clock.seconds()
        splitter = self._conversation.session.splitter
        if splitter.partial:
            self._begin_command(splitter.taken)
        elif self._command is not None:
            self._command.stop()
        if self._paused:
            self._paused = False
            self.transport.resumeProducing()

    def hang_up(self) -> None:
        """
        Close the connection when all is written.
        """
        self._stop_watching()
        self.transport.unregisterProducer()
        if self._unsent is not None:
            self.transport.write(b"".join(self._unsent))
            self._unsent = None
        if self._served is None or not self._served.finish():
            self._closing = self._unread(NOT_CLOSING)
            self._closing.start()
            self.transport.loseConnection()
