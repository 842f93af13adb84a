"""
One connection from an MTA as Twisted sees it.

A `TransportLine` moves bytes between its transport and a `Conversation`, and watches the clock and
the buffers; what the bytes mean is not decided here.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from twisted.internet import tcp
from twisted.internet.address import UNIXAddress
from twisted.internet.interfaces import (
    IHandshakeListener,
    IPushProducer,
    IReactorTime,
    ITCPTransport,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from yatxmilter._engine.addresses import describe_address
from yatxmilter._engine.connection import Conversation
from yatxmilter._engine.observed_connection import ObservedConversation
from yatxmilter._engine.observing import Watch
from yatxmilter._wire.commands import stage_of
from yatxmilter.protocol._descriptor_set import Served
from yatxmilter.protocol._time_limits import NO_HANDSHAKE, Fault, hung_up
from yatxmilter.protocol._tls import announces_handshake, tls_failure

if TYPE_CHECKING:
    from yatxmilter.protocol._factory import MilterProtocolFactory

__all__ = ["TransportLine"]

_log = Logger()

_QUICKACK: Final = getattr(socket, "TCP_QUICKACK", None)

# More is written in pieces of this size, so that we see how far the MTA reads.
_PIECE: Final = 128 * 1024
_NUMBERS: Final = count(1)


@implementer(IHandshakeListener, IPushProducer)
class TransportLine(Protocol):
    """
    The bytes of one connection from an MTA.

    They come and go either by a transport, as Twisted's protocols have it (`makeConnection`), or by
    a `Served`, which needs none (`accepted`); then the transport is made when it is asked for.

    :param options: The factory whose options count.
    :ivar connected: Whether the connection has come, as Twisted has it.
    :ivar factory: The factory, if it was built by one.
    :ivar number: Its serial number in this process; ``connection`` in the log.
    :ivar peer: Where it comes from.
    :ivar resumed: When a callback that the reactor did not wait for was over.
    :ivar slow: Seconds after which a read is too slow.
    """

    # Not `__dict__`, which subclasses and their users may have: what is found there, or in a class
    # behind it, is found more slowly, and takes more memory.
    __slots__ = (
        "_conversation",
        "_handshaking",
        "_options",
        "_paused",
        "_seconds",
        "_served",
        "_taken",
        "_transport",
        "_unsent",
        "_watch",
        "connected",
        "factory",
        "number",
        "peer",
        "resumed",
        "slow",
    )

    factory: MilterProtocolFactory | None
    _conversation: Conversation

    def __init__(self, options: MilterProtocolFactory) -> None:
        clock = options.clock
        self.connected = self.number = 0
        self.peer: Any = None
        self._options = options
        self._transport: Any = None
        self._served: Served | None = None
        self._paused = self._handshaking = False
        self._unsent: list[memoryview] | None = None
        # How many packets there had been when the one that is incomplete began.
        self._taken = -1
        self._seconds = clock.seconds
        self.resumed = 0.0
        watch: Watch | None = None
        make: Callable[..., Conversation] = Conversation
        slow = options.slow_callbacks
        self.slow = slow.limit
        timing = slow.timing
        if options.audience.observers or timing:
            times = timing or options.audience.hears_of_callbacks
            watch = Watch(options.audience, self, self._seconds, times=times)
            make = ObservedConversation
        self._watch = watch
        self._conversation = make(
            self, clock, options.merge, options.progress_interval, options.limits, watch
        )
        self._conversation.macros.limits = options.macro_limits

    # ---- Twisted's side

    @property
    def clock(self) -> IReactorTime:
        """
        What keeps time.
        """
        return self._options.clock

    @property
    def moved(self) -> float:
        """
        When bytes moved last, by the factory's clock.
        """
        return self._conversation.moved

    @property
    def transport(self) -> Any:
        """
        The connection as Twisted has it.
        """
        if self._transport is None and self._served is not None:
            self._transport = self._served.transport
        return self._transport

    @transport.setter
    def transport(self, transport: Any) -> None:
        self._transport = transport

    def accepted(self, served: Served, peer: Any) -> bool:
        """
        Begin, as `makeConnection`, with a connection that has no transport.

        :param peer: Where it comes from.
        :return: Whether it has begun; else it is to have its transport from the beginning.
        """
        if not self._options.fast_path:
            return False
        self._served = served
        self.peer = peer
        may_be_passed_over = (
            self._seconds is monotonic and type(self).dataReceived is TransportLine.dataReceived
        )
        served.begin(self, self._conversation if may_be_passed_over else None)
        self.connected = 1
        self.connectionMade()
        return True

    def connectionMade(self) -> None:
        """
        Tell the milters of the connection, and start to watch it.
        """
        served, factory = self._served, self.factory
        may_hurry = False
        if served is None:
            transport = self._transport
            peer = self.peer = transport.getPeer()
            has_delay = not isinstance(peer, UNIXAddress) and ITCPTransport.providedBy(transport)
            if has_delay:
                transport.setTcpNoDelay(True)
                may_hurry = type(transport) is tcp.Server
            if factory is not None:
                self._served = factory.serve(transport)
            transport.registerProducer(self, True)
        else:
            peer = self.peer
            if not isinstance(peer, UNIXAddress):
                served.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                may_hurry = True
        # Sendmail sends macros and command in two writes, and the second waits until the first is
        # acknowledged: without an answer to go with, that takes some 40 ms.
        self._conversation.hurried = may_hurry and _QUICKACK is not None
        if factory is not None:
            factory.connection_made(self, peer)
        self._conversation.moved = now = self._seconds()
        self._options.time_limits.idle.start(self, now)
        if served is None and announces_handshake(self._transport):
            self._handshaking = True
            self._options.time_limits.command.start(self, now)
        self.number = next(_NUMBERS)
        if self._watch is not None:
            self._watch.tell("connection_made")
        self._conversation.connected(peer, self.number)

    def handshakeCompleted(self) -> None:
        """
        Wait for the first command: TLS is there.
        """
        self._handshaking = False
        self._options.time_limits.command.stop(self)

    def dataReceived(self, data: bytes) -> None:
        """
        Hand bytes to the conversation, and look at the clock.

        `ConnectionSet._serve_ready` does the same.
        """
        conversation, watch = self._conversation, self._watch
        began = self._seconds()
        if watch is not None:
            moved = None if conversation.busy else conversation.moved
            watch.count_read(len(data), moved, began)
        answer = conversation.take_in(data)
        now = self._seconds()
        if answer is not None:
            conversation.moved = now
            if answer:
                (self._served or self._transport).write(answer)
        if now - began > self.slow:
            self.look_back(data, began, now)

    def held_up(self) -> None:
        """
        Take note that what has arrived has to wait; pause the transport when it is too much.
        """
        self._conversation.moved = self._seconds()
        # What is missing of a command is not looked at before there is time for it.
        self._options.time_limits.command.stop(self)
        if self._conversation.session.splitter.buffered > self._options.max_buffered:
            self._pause()

    def look_back(self, data: bytes, began: float, now: float) -> None:
        """
        Tell of a read if it has been slow.

        :param data: What was read.
        :param began: When it began, and ``now``: when it was done with.
        """
        # Not if the reactor has gone on meanwhile, nor where each callback is timed.
        watch, taken = self._watch, now - max(began, self.resumed)
        if taken > self.slow and (watch is None or not watch.times):
            stage = stage_of(data) or ("" if watch is None else watch.stage)
            self._options.slow_callbacks.read(self, stage, taken)

    def _pause(self) -> None:
        self._paused = True
        self.transport.pauseProducing()
        self._options.time_limits.away.start(self)

    def look(self) -> None:
        """
        See whether an MTA that is not read from is still there.
        """
        # Who does not read does not see the end either: the milter might be waited for in vain.
        if not self._paused:
            return
        if hung_up(self.transport):
            self.transport.abortConnection()
        else:
            self._pause()

    def hurry(self) -> None:
        """
        Acknowledge what has come: it has no answer that could.
        """
        served = self._served
        handle = self._transport.getHandle() if served is None else served.socket
        handle.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        Cancel what is awaited, and tell the milters.
        """
        self._options.time_limits.stop(self)
        self._unsent = None
        # Those that a set serves are not over TLS.
        why = tls_failure(self._transport, reason) if self._served is None else None
        try:
            if why is not None:
                self._log_fault(Fault("tls", f"failed in TLS: {why}"))
            self._conversation.lost(reason)
        finally:
            # Whatever happens: one that stays counted is a place that is never free again.
            if self.factory is not None:
                self.factory.connection_lost(self, self.peer)
            if self._served is not None:
                self._served.release()
            if self._watch is not None:
                self._watch.tell("connection_lost", reason)

    def expired(self, fault: Fault) -> None:
        """
        Come to an end: the MTA has taken too long.
        """
        if self._conversation.waiting:
            # The MTA waits for a milter, not we for the MTA.
            self._options.time_limits.idle.start(self)
            return
        self._log_fault(NO_HANDSHAKE if self._handshaking else fault)
        self._conversation.end()

    def stuck(self, fault: Fault) -> None:
        """
        Come to an end at once: the MTA does not read.
        """
        self._log_fault(fault)
        self.transport.abortConnection()

    def _begin_command(self, taken: int) -> None:
        command = self._options.time_limits.command
        if taken != self._taken:
            command.stop(self)
        self._taken = taken
        command.start(self)

    def _log_fault(self, fault: Fault) -> None:
        if self._watch is not None:
            self._watch.tell("mta_failed", fault.kind, fault.words)
        _log.warn(
            "The MTA at {mta} {fault}; closing the connection",
            mta=describe_address(self.peer),
            connection=self.number,
            fault=fault.words,
        )

    # ---- a callback that the reactor does not wait for

    def rest(self) -> None:
        """
        Read nothing: a callback is running, and the reactor goes on without it.
        """
        self._conversation.elsewhere = True
        self._options.time_limits.command.stop(self)
        if self._served is None:
            self._transport.stopReading()
        else:
            self._served.pause()
            # Those of others do not wait for the callback.
            self._served.connections.send_answers()

    def go_on(self) -> None:
        """
        Read on: the callback is over.
        """
        self._conversation.elsewhere = False
        self._conversation.moved = self.resumed = self._seconds()
        served, transport = self._served, self._transport
        if self._paused:
            return
        if served is None:
            if transport.connected:
                # One of TLS is read from also when it is being closed; that others are not they
                # know themselves.
                transport.resumeProducing()
        elif served.connected:
            served.resume()

    def missing_milter(self, name: str, failure: Failure) -> None:
        """
        Tell observers of a milter that could not be built for this connection.
        """
        if self._watch is not None:
            self._watch.milter_failed(name, "build_milter", failure)

    @property
    def milter_names(self) -> list[str]:
        """
        What the milters on the connection are called in the log.
        """
        return [member.name for member in self._conversation.everyone]

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
    def watch(self) -> Watch | None:
        """
        What is known of it where there are observers.
        """
        return self._watch

    @property
    def traffic(self) -> tuple[int, int]:
        """
        How many bytes were read from the MTA, and written for it; 0 where there are no observers.
        """
        return (0, 0) if self._watch is None else (self._watch.received, self._watch.sent)

    # ---- IPushProducer: the MTA reads slowly, or reads again

    def pauseProducing(self) -> None:
        """
        Make no more answers until those made are read.
        """
        self._conversation.stalled = True
        self._options.time_limits.reading.start(self)

    def resumeProducing(self) -> None:
        """
        Go on.
        """
        self._options.time_limits.reading.stop(self)
        self._conversation.stalled = False
        if self._unsent is not None:
            self._conversation.moved = self._seconds()
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
        if len(packets) == 1:
            data = packets.pop()
        else:
            data = b"".join(packets)
            packets.clear()
        if len(data) > _PIECE or self._unsent is not None:
            whole = memoryview(data)
            pieces = [whole[place : place + _PIECE] for place in range(0, len(data), _PIECE)]
            self._unsent = (self._unsent or []) + pieces
            self._send_pieces()
        else:
            (self._served or self._transport).write(data)

    def _send_pieces(self) -> None:
        # Until the transport has us pause; each piece it takes then is a sign that the MTA reads.
        pieces = self._unsent
        while pieces and not self._conversation.stalled:
            (self._served or self._transport).write(bytes(pieces.pop(0)))
        if not pieces:
            self._unsent = None

    def caught_up(self) -> None:
        """
        Read on, if reading was paused; give what is missing of a command its time.
        """
        self._conversation.moved = self._seconds()
        splitter = self._conversation.session.splitter
        if splitter.partial:
            self._begin_command(splitter.taken)
        else:
            self._options.time_limits.command.stop(self)
        if self._paused:
            self._paused = False
            self.transport.resumeProducing()

    def hang_up(self) -> None:
        """
        Close the connection when all is written.
        """
        served = self._served
        if self._unsent is None and served is not None and served.finish():
            return
        time_limits, transport = self._options.time_limits, self.transport
        time_limits.stop(self)
        if self._paused:
            # Over TLS the peer has to agree, or to be gone: who does not read sees neither.
            self._paused = False
            transport.resumeProducing()
        transport.unregisterProducer()
        if self._unsent is not None:
            transport.write(b"".join(self._unsent))
            self._unsent = None
        time_limits.closing.start(self)
        transport.loseConnection()
