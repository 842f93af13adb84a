"""
A milter's connection inside one process: no socket, no running reactor.

Two transports hand each other bytes through queues. As with sockets, nothing arrives while it is
being written: a write, a close or a loss waits for its turn, which comes by ``clock.callLater(0)``
or by `InMemoryConnection.flush`, whichever is first. So neither side is ever entered anew from
within its own call, and a conversation of any length needs no deeper stack than one command.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from twisted.internet.address import UNIXAddress
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IAddress,
    IConsumer,
    IDelayedCall,
    IProtocol,
    IPushProducer,
    IReactorTime,
    ITransport,
)
from twisted.internet.task import Clock
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from yatxmilter._engine.awaitables import running_loop
from yatxmilter.client._client import MilterClient
from yatxmilter.protocol import MilterProtocolFactory

__all__ = ["InMemoryConnection", "InMemoryTransport", "connect_in_memory"]

_log = Logger()

# So much may be on its way to one side before the other is asked to make no more.
_FULL: Final = 64 * 1024


@implementer(ITransport, IConsumer, IPushProducer)
class InMemoryTransport:
    """
    One side's end of the connection.

    :ivar connected: Whether the protocol has not been told of the connection's end.
    :ivar disconnecting: Whether it is to be closed once all is written.
    """

    def __init__(
        self, connection: InMemoryConnection, protocol: Any, host: IAddress, peer: IAddress
    ) -> None:
        self.protocol = protocol
        self.connected = True
        self.disconnecting = False
        self.other: InMemoryTransport = self
        self._connection = connection
        self._host = host
        self._peer = peer
        self._incoming: deque[bytes] = deque()
        self._unread = 0
        self._paused = False
        self._producer: Any = None
        self._streaming = self._stalled = False
        # Why the protocol is to be told that the connection is over.
        self._end: Exception | None = None

    # ---- ITransport

    def write(self, data: bytes) -> None:
        """
        Send bytes; those written once the connection is closing or over are lost.
        """
        if not isinstance(data, bytes):
            raise TypeError(f"data is {data!r}, expected bytes")
        if self.disconnecting or self._end is not None or not data:
            return
        self.other._incoming.append(data)
        self.other._unread += len(data)
        if self._producer is not None and not self._stalled and self.other._unread > _FULL:
            self._stalled = True
            self._producer.pauseProducing()
        self._connection.schedule()

    def writeSequence(self, iovec: Any) -> None:
        """
        Send several pieces.
        """
        self.write(b"".join(iovec))

    def loseConnection(self) -> None:
        """
        Close when all is written.
        """
        self.disconnecting = True
        self._connection.schedule()

    def abortConnection(self) -> None:
        """
        Close at once; what is on its way is lost.
        """
        self._finish(ConnectionAborted(), ConnectionLost())

    def getHost(self) -> IAddress:
        """
        Give this side's address.
        """
        return self._host

    def getPeer(self) -> IAddress:
        """
        Give the other side's address.
        """
        return self._peer

    # ---- IConsumer

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """
        Have a producer that is paused while the other side does not read.
        """
        if self._producer is not None:
            raise RuntimeError(f"cannot register {producer!r}: there is {self._producer!r}")
        if self._end is not None:
            producer.stopProducing()
            return
        self._producer = producer
        self._streaming = streaming
        if not streaming:
            producer.resumeProducing()

    def unregisterProducer(self) -> None:
        """
        Have no producer any more.
        """
        self._producer = None
        self._stalled = False
        self._connection.schedule()

    # ---- IPushProducer

    def pauseProducing(self) -> None:
        """
        Read no more for now.
        """
        self._paused = True

    def resumeProducing(self) -> None:
        """
        Give out what has come meanwhile, and read again.
        """
        self._paused = False
        self._connection.schedule()

    def stopProducing(self) -> None:
        """
        Close the connection, since what reads from it is gone.
        """
        self.loseConnection()

    # ---- the way of the bytes

    def _finish(self, ours: Exception, theirs: Exception) -> None:
        # Each is told once, and of what came first.
        for side, reason in ((self, ours), (self.other, theirs)):
            if side._end is None:
                side._end = reason
                side._incoming.clear()
                side._unread = 0
        self._connection.schedule()

    def step(self) -> bool:
        """
        Do the next thing that is due on this side, if any.
        """
        if self._end is not None:
            return self._tell_end()
        if self._incoming and not self._paused:
            data = self._incoming.popleft()
            self._unread -= len(data)
            self._read(data)
            return True
        if self.disconnecting and not self.other._incoming and self._producer is None:
            self._finish(ConnectionDone(), ConnectionDone())
            return True
        return self._unstall()

    def _read(self, data: bytes) -> None:
        try:
            self.protocol.dataReceived(data)
        except Exception:
            # What a reactor does.
            _log.failure("{protocol} failed to take what was read", protocol=self.protocol)
            self.abortConnection()

    def _tell_end(self) -> bool:
        if not self.connected:
            return False
        self.connected = False
        if self._producer is not None:
            self._producer.stopProducing()
            self._producer = None
        self.protocol.connectionLost(Failure(self._end))
        return True

    def _unstall(self) -> bool:
        # A producer that does not stream is asked anew each time that all has been read.
        ready = self._stalled or not self._streaming
        if self._producer is None or not ready or self.other._incoming:
            return False
        self._stalled = False
        self._producer.resumeProducing()
        return bool(self.other._incoming)


class InMemoryConnection:
    """
    Both ends, and the bytes between them.

    :ivar mta: The client's transport.
    :ivar milter: The milter's; ``None`` where the factory has refused the connection.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._ends: list[InMemoryTransport] = []
        self._call: IDelayedCall | None = None
        self._flushing = False

    def join(self, mta: InMemoryTransport, milter: InMemoryTransport) -> None:
        """
        Connect the two ends: what one writes the other reads.
        """
        mta.other, milter.other = milter, mta
        self.mta, self.milter = mta, milter
        self._ends = [mta, milter]

    def schedule(self) -> None:
        """
        See to it that what is due is done in a turn of its own.
        """
        if self._call is None and not self._flushing:
            self._call = self._clock.callLater(0, self.flush)
            if isinstance(self._clock, Clock):
                # It is set by hand. In a test of asyncio's there are turns all the same.
                loop = running_loop()
                if loop is not None:
                    loop.call_soon(self.flush)

    def flush(self) -> None:
        """
        Carry bytes, and tell of the end, until both sides wait for something else.
        """
        if self._flushing:
            return
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None
        self._flushing = True
        try:
            # Both sides in turn, so that none runs ahead of the other.
            while [end for end in self._ends if end.step()]:
                pass
        finally:
            self._flushing = False


class _Refused:
    """
    The protocol of a connection that was not taken.
    """

    def connectionLost(self, reason: Failure) -> None:
        """
        Do nothing: the connection was not taken, so there is no milter to tell.
        """


def connect_in_memory(
    client: MilterClient | IProtocol,
    factory: MilterProtocolFactory,
    *,
    mta_address: IAddress | None = None,
    milter_address: IAddress | None = None,
) -> InMemoryConnection:
    """
    Connect an MTA's side with a new connection of a milter's side.

    Where the factory takes no connection (it has too many, or is shutting down) the client is
    connected and loses the connection at once, as over a socket.

    :param client: The MTA's side, as it was made; its clock should be the factory's.
    :param mta_address: What the milter's side sees as its peer, by default a UNIX socket's.
    :param milter_address: What the client sees as its peer.
    """
    mta_address = mta_address or UNIXAddress(None)
    milter_address = milter_address or UNIXAddress(None)
    connection = InMemoryConnection(factory.clock)
    protocol: Any = factory.buildProtocol(mta_address)
    mta = InMemoryTransport(connection, client, mta_address, milter_address)
    milter = InMemoryTransport(connection, protocol or _Refused(), milter_address, mta_address)
    connection.join(mta, milter)
    if protocol is None:
        milter.loseConnection()
    else:
        protocol.makeConnection(milter)
    client.makeConnection(mta)
    return connection
