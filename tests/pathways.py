"""
A milter on real sockets, by each way that bytes can come, and an MTA that is a plain socket.

On the fast path connections are accepted by the set, and have no transport, or have it from the
beginning; on the ordinary one they are Twisted's alone.

The MTA's socket never waits: between its steps the reactor has its turns (`PathCase.until`). Time
that counts is a `Clock`'s.
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import tempfile
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import TestCase

from yatxmilter import MilterFactory, MilterProtocolFactory
from yatxmilter.protocol import _connection, _descriptor_set
from yatxmilter.protocol._accepting import adopt_port
from yatxmilter.protocol._descriptor_set import connection_set

from .conversation_helpers import full, offer, parse

reactor: Any = _reactor
HAS_EPOLL = hasattr(select, "epoll")


class Mta:
    """
    The MTA's end of a connection.

    :ivar received: What came so far.
    :ivar end: How it ended: ``"closed"``, ``"reset"``, or empty.
    """

    def __init__(self, family: int, address: Any) -> None:
        self.socket = socket.socket(family)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            self.socket.setsockopt(socket.SOL_SOCKET, option, 8192)
        self.socket.connect(address)
        self.socket.setblocking(False)
        self.received = b""
        self.end = ""

    def send(self, data: bytes) -> None:
        """
        Send all of it.
        """
        assert self.socket.send(data) == len(data)

    def read(self, amount: int = 1 << 20) -> bytes:
        """
        Read what is there.
        """
        data = b""
        try:
            data = self.socket.recv(amount)
            self.end = "" if data else "closed"
        except BlockingIOError:
            pass
        except ConnectionResetError:
            self.end = "reset"
        self.received += data
        return data

    def letters(self) -> str:
        """
        Give the letters of all packets that came.
        """
        self.read()
        return "".join(letter for letter, _ in parse(self.received))

    def reset(self) -> None:
        """
        Vanish without a word.
        """
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()


class PathCase:
    """
    A server with milters, and MTAs: to be mixed into a `TestCase`.

    :cvar fast_path: Which path.
    :cvar has_transport: Whether a transport is made at once, on the fast path.
    :cvar family: TCP or UNIX.
    """

    timeout = 60
    fast_path = True
    has_transport = False
    family = socket.AF_UNIX
    addCleanup: Any
    flushWarnings: Any
    patch: Any

    def setUp(self) -> None:
        # Under -bb: Twisted's UNIX transport compares bytes with a string.
        self.addCleanup(self.flushWarnings)
        self.clock = Clock()
        # Nothing is passed over where time is kept otherwise than by this.
        seconds = self.clock.seconds
        self.clock.seconds = seconds  # type: ignore[method-assign]
        for module in (_connection, _descriptor_set):
            self.patch(module, "monotonic", seconds)

    def serve(self, cls: Any = None, **options: Any) -> MilterProtocolFactory:
        """
        Listen with a milter.
        """
        self.milter = full() if cls is None else cls
        factory = MilterProtocolFactory(MilterFactory(self.milter), reactor=self.clock, **options)
        factory.fast_path = self.fast_path
        self.factory = factory
        # Twisted 22.10 does not await what a cleanup gives.
        self.addCleanup(lambda: Deferred.fromCoroutine(self._end()))
        self.listen(factory)
        return factory

    def listen(self, factory: Any) -> None:
        """
        Listen with a factory.
        """
        if self.family == socket.AF_UNIX:
            # A path may have 107 bytes, which a folder for tests may exceed.
            folder = tempfile.mkdtemp(prefix="yatx")
            self.addCleanup(shutil.rmtree, folder)
            self.address: Any = os.path.join(folder, "s")
            port = reactor.listenUNIX(self.address, factory)
        else:
            port = reactor.listenTCP(0, factory, interface="127.0.0.1")
            self.address = ("127.0.0.1", port.getHost().port)
        self.addCleanup(port.stopListening)
        self.port = port
        if self.fast_path and HAS_EPOLL:
            # The first connection, too.
            adopt_port(connection_set(reactor), port)

    async def _end(self) -> None:
        # Also after a test that failed: the next one starts with a clean reactor.
        for protocol in list(self.factory.connections):
            protocol.transport.abortConnection()
        await self.until(lambda: not self.factory.connections)
        await self.turn()

    async def turn(self) -> None:
        """
        Let the reactor have a turn.
        """
        await deferLater(reactor, 0)

    async def until(self, condition: Callable[[], Any]) -> None:
        """
        Let the reactor have its turns until something is so.
        """
        while not condition():
            await self.turn()

    async def mta(self, *, agree: bool = True) -> tuple[Mta, Any]:
        """
        Connect an MTA; give the protocol that serves it too.
        """
        before = set(self.factory.connections)
        mta = Mta(self.family, self.address)
        self.addCleanup(mta.socket.close)
        await self.until(lambda: len(self.factory.connections) > len(before))
        (protocol,) = self.factory.connections - before
        # Else the system takes several megabytes of what nobody reads.
        self.handle(protocol).setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        if agree:
            mta.send(offer())
            await self.until(lambda: mta.letters() == "O")
            mta.received = b""
        return mta, protocol

    def handle(self, protocol: Any) -> Any:
        """
        Give the socket of a connection, which is not to have a transport by that.
        """
        if protocol._served is None or self.has_transport:
            return protocol.transport.getHandle()
        return protocol._served.socket

    async def stuck(self, protocol: Any) -> None:
        """
        Wait until nothing more can be written.
        """
        turns = 0
        while turns < 20:
            await self.turn()
            turns = turns + 1 if protocol._conversation.stalled else 0

    async def over(self, mta: Mta) -> None:
        """
        Read to the end.
        """
        while not mta.end:
            if not mta.read():
                await self.turn()

    async def gone(self) -> None:
        """
        Wait until all connections are gone.
        """
        await self.until(lambda: not self.factory.connections)

    def reasons(self) -> list[type[BaseException]]:
        """
        Give the reasons for which connections were lost, as the milters were told.
        """
        return [type(call[1].value) for call in self.milter.calls if call[0] == "mta_close"]


def both_paths(namespace: dict[str, Any], *cases: type[Any]) -> None:
    """
    Put each case into a module six times: both paths, the fast one with and without a transport,
    over TCP and UNIX sockets.
    """
    for case in cases:
        for path in ("Fast", "Transport", "Ordinary"):
            for family in (socket.AF_INET, socket.AF_UNIX):
                name = f"{path}{'TCP' if family == socket.AF_INET else 'UNIX'}{case.__name__[1:]}"
                members = {
                    "fast_path": path != "Ordinary",
                    "has_transport": path == "Transport",
                    "family": family,
                    "__module__": namespace["__name__"],
                    "__doc__": case.__doc__,
                }
                namespace[name] = type(name, (case, TestCase), members)
