"""
Bytes between MTAs and a milter, passed on unchanged and at once.

Nothing here knows what the bytes mean: whoever watches is told after they have been written. Each
side is the producer of the other, so one that does not read holds up the one that sends, and
nothing piles up in between. What ends a connection is passed on as it came: the end of one
direction alone, the end of both, or a reset.
"""

from __future__ import annotations

from typing import Any, Final
from typing import Protocol as Shape

from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IAddress,
    IHalfCloseableProtocol,
    IPullProducer,
    IStreamClientEndpoint,
    IUNIXTransport,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from zope.interface import implementer

from yatxmilter.protocol._steady_clock import steady
from yatxmilter.protocol._tls import is_tls

__all__ = ["Relay", "Watcher"]

# How long, in seconds, the last bytes may take when the relay is stopped.
_LAST_GRACE: Final = 1.0


class Watcher(Shape):
    """
    Whoever is told what goes through the relay.
    """

    def opened(self, number: int) -> None:
        """
        An MTA has connected.
        """

    def passed(self, number: int, from_mta: bool, data: bytes) -> None:
        """
        Bytes were passed on.
        """

    def unreachable(self, number: int, reason: Failure) -> None:
        """
        The milter could not be connected to.
        """

    def ended(self, number: int, from_mta: bool, how: str) -> None:
        """
        One side has ended its direction of the connection, or all of it.
        """

    def closed(self, number: int, by: str) -> None:
        """
        Nothing more will come: ``"mta"``, ``"milter"`` or ``"trace"`` was the first to end.
        """


@implementer(IHalfCloseableProtocol)
class _Side(Protocol):
    """
    The connection with the MTA, or the one with the milter.

    :ivar alive: Whether there is a connection.
    :ivar ended: Whether nothing more will come from it.
    """

    def __init__(self, pair: _Pair, from_mta: bool) -> None:
        self.pair = pair
        self.from_mta = from_mta
        self.alive = False
        self.ended = False

    @property
    def wire(self) -> Any:
        """
        The transport, of whose kinds no one interface tells.
        """
        return self.transport

    def connectionMade(self) -> None:
        """
        Tell the pair that this half is there.
        """
        self.alive = True
        if not IUNIXTransport.providedBy(self.transport):
            # Bytes must not wait for those behind them.
            self.wire.setTcpNoDelay(True)
        self.pair.made(self)

    def dataReceived(self, data: bytes) -> None:
        """
        Pass bytes on.
        """
        self.pair.pass_on(self, data)

    def readConnectionLost(self) -> None:
        """
        Pass on that no more will come.
        """
        self.pair.half_closed(self)

    def writeConnectionLost(self) -> None:
        """
        Do nothing: we closed this half ourselves, or the rest follows.
        """

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        Pass on that this was all.
        """
        self.pair.lost(self, reason)


class _Pair:
    """
    An MTA's connection, and the one with the milter that belongs to it.
    """

    def __init__(self, relay: Relay, number: int) -> None:
        self._relay = relay
        self._watcher = relay.watcher
        self.number = number
        self.gone: Deferred[None] = Deferred()
        self.mta = _Side(self, True)
        self.milter = _Side(self, False)
        self._connecting: Deferred[Any] | None = None
        self._ended_by = ""

    def _other(self, side: _Side) -> _Side:
        return self.milter if side.from_mta else self.mta

    def made(self, side: _Side) -> None:
        if side.from_mta:
            self._watcher.opened(self.number)
            # Until the milter is there, what the MTA says waits in the kernel.
            side.wire.pauseProducing()
            self._connecting = self._relay.endpoint.connect(_Once(self.milter))
            self._connecting.addErrback(self._unreachable)
            return
        self._connecting = None
        side.wire.registerProducer(self.mta.transport, True)
        self.mta.wire.registerProducer(side.transport, True)
        self.mta.wire.resumeProducing()

    def _unreachable(self, reason: Failure) -> None:
        self._connecting = None
        if not reason.check(CancelledError):
            self._ended_by = "milter"
            self._watcher.unreachable(self.number, reason)
        _close(self.mta)

    def pass_on(self, side: _Side, data: bytes) -> None:
        self._other(side).wire.write(data)
        self._watcher.passed(self.number, side.from_mta, data)

    def half_closed(self, side: _Side) -> None:
        other = self._other(side)
        self._note_end(side, "ended")
        other.wire.unregisterProducer()
        if other.ended:
            _close(side)
            _close(other)
        elif is_tls(other.transport):
            # TLS cannot close one half of a connection.
            _close(other)
        else:
            other.wire.loseWriteConnection()

    def lost(self, side: _Side, reason: Failure) -> None:
        clean = reason.check(ConnectionDone) is not None
        if not side.ended:
            self._note_end(side, "closed" if clean else "reset")
        side.alive = False
        if self._connecting is not None:
            self._connecting.cancel()
        other = self._other(side)
        if other.alive:
            if clean or is_tls(other.transport):
                _close(other)
            else:
                other.ended = True
                _Reset(other.transport)
        else:
            self._watcher.closed(self.number, self._ended_by)
            self._relay.forget(self)

    def _note_end(self, side: _Side, how: str) -> None:
        side.ended = True
        self._ended_by = self._ended_by or ("mta" if side.from_mta else "milter")
        self._watcher.ended(self.number, side.from_mta, how)

    def stop(self) -> None:
        self._ended_by = self._ended_by or "trace"
        for side in (self.mta, self.milter):
            if side.alive:
                _close(side)

    def abort(self) -> None:
        for side in (self.mta, self.milter):
            if side.alive:
                side.wire.abortConnection()


def _close(side: _Side) -> None:
    # What is still to be written is written before.
    side.ended = True
    side.wire.unregisterProducer()
    side.wire.loseConnection()


@implementer(IPullProducer)
class _Reset:
    """
    Resets a connection when all that was to be written is written: when the transport wants more.

    abortConnection() by itself would drop that, and the milter's last word may be in it.
    """

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._registered = False
        transport.pauseProducing()
        transport.unregisterProducer()
        transport.registerProducer(self, False)
        self._registered = True
        transport.startWriting()

    def resumeProducing(self) -> None:
        """
        Reset; the first time it is the registration that asks.
        """
        if self._registered:
            self._transport.abortConnection()

    def stopProducing(self) -> None:
        """
        Do nothing: the connection is gone.
        """


class _Once(Factory):
    """
    Gives out the one side for which the milter was connected to.
    """

    noisy = False

    def __init__(self, side: _Side) -> None:
        self._side = side

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        """
        Give the half that has been made already.
        """
        return self._side


class Relay(Factory):
    """
    Connect to the milter for each MTA that connects.

    :param endpoint: Where the milter is.
    :ivar watcher: The object that is told; to be set before the first connection comes.
    """

    noisy = False
    watcher: Watcher

    def __init__(self, endpoint: IStreamClientEndpoint) -> None:
        self.endpoint: Any = endpoint
        self._count = 0
        self._pairs: dict[int, _Pair] = {}

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        """
        Begin a pair of connections.
        """
        self._count += 1
        pair = self._pairs[self._count] = _Pair(self, self._count)
        return pair.mta

    def forget(self, pair: _Pair) -> None:
        """
        End a pair of connections.
        """
        del self._pairs[pair.number]
        pair.gone.callback(None)

    def stop(self, reactor: Any) -> Deferred[Any]:
        """
        Close all connections; fires when they are gone.
        """
        pairs = list(self._pairs.values())
        gone: Deferred[Any] = DeferredList([pair.gone for pair in pairs])
        for pair in pairs:
            pair.stop()
        grace = deferLater(steady(reactor), _LAST_GRACE, self._abort)
        grace.addErrback(lambda failure: failure.trap(CancelledError))

        def done(_: object) -> None:
            grace.cancel()

        return gone.addCallback(done)

    def _abort(self) -> None:
        for pair in list(self._pairs.values()):
            pair.abort()
