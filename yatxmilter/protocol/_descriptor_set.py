"""
Many connections in one reactor event: a descriptor set of our own between reactor and transports.

What the reactor does for each event of each descriptor - a log context, a look-up, a dispatch -
costs more than a milter's whole answer, and a transport that writes asks the reactor twice more. A
`ConnectionSet` is one descriptor for the reactor, an ``epoll`` of its own, and serves all its
connections that are ready in one event. Transports are Twisted's own and stay so: after
`ConnectionSet.adopt` they ask the set, instead of the reactor, to be told of what they can read and
write. While a transport has nothing queued and is not paused, its socket is read and written
directly; everything else - buffers, producers, closing, errors - the transport does as always.
"""

from __future__ import annotations

import select
import sys
from collections.abc import Callable
from typing import Any, Final

from twisted.internet import main, tcp, unix
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.python import log
from twisted.python.failure import Failure
from zope.interface import implementer

__all__ = ["ConnectionSet", "Served", "adoptable"]

#: Bytes read at once: a whole body chunk with its length and letter, and the macros before it.
READ_SIZE: Final = 65536 + 4096

# How many connections are served before the reactor has its turn again.
_MOST_AT_ONCE: Final = 64

_IN: Final[int] = getattr(select, "EPOLLIN", 1)
_OUT: Final[int] = getattr(select, "EPOLLOUT", 4)
_IN_OR_OUT: Final = _IN | _OUT
_GONE: Final[int] = getattr(select, "EPOLLHUP", 16) | getattr(select, "EPOLLERR", 8)

# Made once, as in Twisted's reactors: a Failure costs more than a whole answer.
_FAILURES: Final[dict[type[BaseException], Failure]] = {
    type(why): Failure(why) for why in (main.CONNECTION_DONE, main.CONNECTION_LOST)
}

_TRANSPORTS: Final = (tcp.Server, unix.Server)


def adoptable(transport: Any) -> bool:
    """
    Tell whether a connection can be served by a `ConnectionSet`.

    It can where there is ``epoll``, on a reactor that watches descriptors, when it is a plain TCP
    or UNIX connection of Twisted's: no TLS, no wrapper around it.
    """
    return (
        type(transport) in _TRANSPORTS
        and hasattr(select, "epoll")
        and not transport.TLS
        and IReactorFDSet.providedBy(transport.reactor)
    )


class Served:
    """
    One connection in a set; for its transport it is the reactor.

    :ivar events: What the connection is watched for.
    :ivar failed: Whether the system has told us, and tells nobody else, that the peer is lost.
    :ivar finished: Whether it is to be closed when what was read is dealt with.
    """

    __slots__ = ("_send", "_set", "events", "failed", "finished", "receive", "transport")

    def __init__(self, transport: Any, connections: ConnectionSet) -> None:
        socket = transport.getHandle()
        self.transport = transport
        self.receive: Callable[[int], bytes] = socket.recv
        self.events = 0
        self.failed = self.finished = False
        self._send: Callable[[bytes], int] = socket.send
        self._set = connections

    def write(self, data: bytes) -> None:
        """
        Send at once what can be sent at once; the transport has the rest.
        """
        # Watched for reading alone: nothing is queued, it is not paused and not being closed.
        if self.events == _IN and not self.transport.TLS:
            try:
                sent = self._send(data)
            except (BlockingIOError, BrokenPipeError):
                # The transport finds out about a broken pipe, once it has read what is to be read.
                sent = 0
            except OSError:
                # This error is given once; who reads now is told that all is well and at its end.
                self.failed = True
                sent = 0
            if sent == len(data):
                return
            data = data[sent:]
        self.transport.write(data)

    def finish(self) -> bool:
        """
        Close the connection as soon as what was read is dealt with, if that can be done.

        :return: Whether it can: all is written, and the connection is being read.
        """
        self.finished = self.events == _IN and self._set.serving is self
        return self.finished

    def release(self) -> None:
        """
        Let go of the transport, whose connection is over.
        """
        self.transport.reactor = self._set.reactor
        self.transport = None

    # ---- what the transport asks of its reactor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._set.reactor, name)

    def addReader(self, transport: Any) -> None:
        """
        Tell the transport when it can read.
        """
        self._set.watch(self, self.events | _IN)

    def addWriter(self, transport: Any) -> None:
        """
        Tell the transport when it can write.
        """
        self._set.watch(self, self.events | _OUT)

    def removeReader(self, transport: Any) -> None:
        """
        Tell the transport no more when it can read.
        """
        self._set.watch(self, self.events & ~_IN)

    def removeWriter(self, transport: Any) -> None:
        """
        Tell the transport no more when it can write.
        """
        self._set.watch(self, self.events & ~_OUT)


@implementer(IReadDescriptor)
class ConnectionSet:
    """
    Connections that are served together; for their reactor they are one descriptor.

    :param reactor: An `IReactorFDSet`.
    :ivar serving: The connection that is being read at the moment.
    """

    def __init__(self, reactor: Any) -> None:
        self.reactor = reactor
        self.serving: Served | None = None
        self._epoll = select.epoll()
        self._served: dict[int, Served] = {}
        self._turn = 0

    def adopt(self, transport: Any) -> Served:
        """
        Take a connection over from the reactor; it must be `adoptable`, and nothing be written yet.
        """
        transport.stopReading()
        served = transport.reactor = Served(transport, self)
        transport.startReading()
        return served

    def watch(self, served: Served, events: int) -> None:
        """
        Watch a connection for what it is to be told of.
        """
        before = served.events
        if events == before:
            return
        served.events = events
        descriptor = served.transport.fileno()
        if before and events:
            self._epoll.modify(descriptor, events)
        elif events:
            self._epoll.register(descriptor, events)
            if not self._served:
                self.reactor.addReader(self)
            self._served[descriptor] = served
        else:
            self._epoll.unregister(descriptor)
            del self._served[descriptor]
            if not self._served:
                self.reactor.removeReader(self)

    # ---- for the reactor: one descriptor

    def fileno(self) -> int:
        """
        Give the descriptor that is readable when one of the connections is ready.
        """
        return self._epoll.fileno()

    def logPrefix(self) -> str:
        """
        Name the connections in the log.
        """
        return "Milters"

    def doRead(self) -> None:
        """
        Serve the connections that are ready, each once.
        """
        ready = self._epoll.poll(0, _MOST_AT_ONCE)
        self._turn = turn = self._turn + 1
        for descriptor, events in ready:
            if self._turn != turn:
                # The reactor has gone on without a callback that was called here, and has seen
                # to the others (`yatxmilter.pymilter`).
                return
            served = self._served.get(descriptor)
            # One that was served before it may have closed it.
            if served is None:
                continue
            transport = served.transport
            reading = True
            why: Any = None
            try:
                if events & _IN_OR_OUT == _IN:
                    try:
                        data = served.receive(READ_SIZE)
                    except BlockingIOError:
                        continue
                    except OSError:
                        why = main.CONNECTION_LOST
                    else:
                        why = self._take(served, data) if data else main.CONNECTION_DONE
                else:
                    why, reading = _serve(served, events)
            except BaseException:
                # As the reactors of Twisted do: log it, and end the connection that failed.
                why = sys.exc_info()[1]
                log.err()
            if why:
                try:
                    self._disconnect(transport, why, reading and not served.finished)
                except Exception:
                    # If it came to the reactor, that would end all connections of this set.
                    log.err()

    def _take(self, served: Served, data: bytes) -> Exception | None:
        self.serving = served
        try:
            served.transport.protocol.dataReceived(data)
        finally:
            self.serving = None
        return main.CONNECTION_DONE if served.finished else None

    def _disconnect(self, transport: Any, why: Exception, reading: bool) -> None:
        failure = _FAILURES.get(type(why)) or Failure(why)
        transport.stopReading()
        if reading and isinstance(why, ConnectionDone):
            # The peer may have closed its half alone.
            transport.readConnectionLost(failure)
        else:
            transport.stopWriting()
            transport.connectionLost(failure)

    def connectionLost(self, reason: Failure) -> None:
        """
        Lose all connections: the reactor ends.
        """
        for served in list(self._served.values()):
            transport = served.transport
            # To lose one may have ended others.
            if transport is not None:
                log.callWithLogger(transport, transport.connectionLost, reason)


def _serve(served: Served, events: int) -> tuple[Any, bool]:
    """
    Let a transport do what it is ready for.

    :return: Why the connection is over, if it is, and whether that was found by reading.
    """
    transport = served.transport
    if events & _GONE and not events & _IN:
        # It is not being read: else it could be read now, if only its end.
        return main.CONNECTION_LOST, False
    why, reading = None, False
    if events & _IN:
        why, reading = transport.doRead(), True
    if served.failed:
        return main.CONNECTION_LOST, False
    if not why and events & _OUT:
        why, reading = transport.doWrite(), False
    return why, reading
