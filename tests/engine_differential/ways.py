"""
The two ways on which bytes reach a milter's protocol.

Each can send, let time pass, and lose the connection; after each of these all has happened that
can happen. What came back is in `received`.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import tempfile
from typing import Any, Protocol

from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import Logger
from twisted.python.failure import Failure

from yatxmilter import MilterProtocolFactory

_log = Logger()

HAS_EPOLL = hasattr(select, "epoll")


class Way(Protocol):
    """
    A connection to a milter.

    :ivar closed: Whether it is over.
    """

    closed: bool

    def send(self, data: bytes) -> None:
        """
        Send bytes.
        """

    def advance(self, seconds: float) -> None:
        """
        Let time pass.
        """

    def settle(self) -> None:
        """
        Let happen what can happen now.
        """

    def received(self) -> bytes:
        """
        Take what has come back.
        """

    def lose(self) -> None:
        """
        Close the connection from the MTA's side.
        """


class _Transport(StringTransport):
    """
    A transport in memory that closes in a later turn, as a socket's does, and can be paused.
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.protocol: Any = None
        self.incoming: list[bytes] = []
        self.over = self.ending = self.paused = False

    def loseConnection(self) -> None:
        self._end(ConnectionDone())

    def abortConnection(self) -> None:
        self._end(ConnectionAborted())

    def _end(self, reason: Exception) -> None:
        if not self.ending:
            self.ending = self.disconnecting = True
            self.clock.callLater(0, self.lost, reason)

    def lost(self, reason: Exception) -> None:
        if not self.over:
            self.over = self.ending = True
            self.disconnected = True
            self.protocol.connectionLost(Failure(reason))

    def write(self, data: bytes) -> None:
        if not self.over:
            super().write(data)

    def writeSequence(self, data: Any) -> None:
        self.write(b"".join(data))

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False

    def deliver(self) -> None:
        while self.incoming and not self.paused and not self.ending:
            try:
                self.protocol.dataReceived(self.incoming.pop(0))
            except Exception as error:
                # As a reactor does it.
                _log.failure("dataReceived failed")
                self.lost(error)


class InMemory:
    """
    The ordinary way, without a socket.
    """

    def __init__(self, factory: MilterProtocolFactory, clock: Clock) -> None:
        self._clock = clock
        self._transport = _Transport(clock)
        factory.doStart()
        protocol = factory.buildProtocol(self._transport.getPeer())
        assert protocol is not None
        self._transport.protocol = protocol
        protocol.makeConnection(self._transport)
        self.settle()

    @property
    def closed(self) -> bool:
        return self._transport.over

    def send(self, data: bytes) -> None:
        self._transport.incoming.append(data)
        self.settle()

    def advance(self, seconds: float) -> None:
        self._clock.advance(seconds)
        self.settle()

    def settle(self) -> None:
        for _ in range(4):
            self._transport.deliver()
            self._clock.advance(0)

    def received(self) -> bytes:
        data = self._transport.value()
        self._transport.clear()
        return data

    def lose(self) -> None:
        self._transport.ending = True
        self._transport.lost(ConnectionDone())
        self.settle()


class Sockets:
    """
    A reactor that is ours alone, with a port for each session.

    It never waits: a UNIX socket has at once what was written at its other end.
    """

    def __init__(self) -> None:
        from twisted.internet.epollreactor import EPollReactor

        self.reactor: Any = EPollReactor()
        # A path may have 107 bytes, which a folder for tests may exceed.
        self.folder = tempfile.mkdtemp(prefix="yatx")
        self._number = 0

    def path(self) -> str:
        """
        Give the path of a new socket.
        """
        self._number += 1
        return os.path.join(self.folder, str(self._number))

    def connect(self, factory: MilterProtocolFactory, clock: Clock) -> Socket:
        """
        Listen with a factory, and connect to it.
        """
        return Socket(self, factory, clock)

    def turn(self) -> None:
        """
        Do what the reactor has to do, without waiting.
        """
        self.reactor.iterate(0)

    def close(self) -> None:
        """
        Let go of what belongs to the reactor.
        """
        # What it wakes itself with is its own, and not among the rest.
        own = getattr(self.reactor, "_internalReaders", ())
        for descriptor in [*self.reactor.removeAll(), *own]:
            with contextlib.suppress(Exception):
                descriptor.connectionLost(Failure(ConnectionDone()))
        self.reactor._poller.close()
        shutil.rmtree(self.folder)


class Socket:
    """
    One connection over a socket.
    """

    def __init__(self, sockets: Sockets, factory: MilterProtocolFactory, clock: Clock) -> None:
        self.closed = False
        self._clock = clock
        self._sockets = sockets
        self._received = self._unsent = b""
        path = sockets.path()
        self._port = sockets.reactor.listenUNIX(path, factory)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._socket.setblocking(False)
        self.settle()

    def send(self, data: bytes) -> None:
        self._unsent += data
        self.settle()

    def advance(self, seconds: float) -> None:
        self._clock.advance(seconds)
        self.settle()

    def settle(self) -> None:
        quiet = 0
        while quiet < 5:
            quiet = 0 if self._exchange() else quiet + 1
            self._sockets.turn()
            self._clock.advance(0)

    def _exchange(self) -> bool:
        """
        Write and read what can be; tell whether there was anything.
        """
        if self.closed:
            return False
        sent, data = 0, None
        if self._unsent:
            with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
                sent = self._socket.send(self._unsent)
            self._unsent = self._unsent[sent:]
        try:
            data = self._socket.recv(1 << 20)
            self._received += data
            self.closed = not data
        except BlockingIOError:
            pass
        except ConnectionResetError:
            # What it had not read of ours when it closed.
            self.closed = True
        return bool(sent or data is not None)

    def received(self) -> bytes:
        data, self._received = self._received, b""
        return data

    def lose(self) -> None:
        self._socket.close()
        self.closed = True
        self.settle()

    def end(self) -> None:
        """
        Close the port, too.
        """
        self._socket.close()
        self.closed = True
        self._port.stopListening()
        self.settle()
