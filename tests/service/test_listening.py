"""
Tests of opening sockets: real ones, in temporary folders and on loopback ports that are free.
"""

from __future__ import annotations

import os
import socket
import stat
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

from twisted.internet import reactor, tcp
from twisted.internet.defer import Deferred, fail
from twisted.internet.endpoints import AdoptedStreamServerEndpoint, UNIXServerEndpoint
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Protocol, ServerFactory
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase, TestCase

from yatxmilter.protocol._endpoints import server_endpoint
from yatxmilter.service import _listening as listening
from yatxmilter.service._listening import Adopter, Opener, adopt, close_port, open_port


class Taking(ServerFactory):
    """
    Says when it has taken a connection, and closes it.
    """

    def __init__(self) -> None:
        self.taken: Deferred[None] = Deferred()

    def buildProtocol(self, addr: Any) -> Protocol:
        protocol = Protocol()
        protocol.connectionMade = self.made  # type: ignore[method-assign]
        self.protocol_made = protocol
        return protocol

    def made(self) -> None:
        self.protocol_made.transport.abortConnection()  # type: ignore[union-attr]
        self.taken.callback(None)


class ListeningCase(TestCase):
    """
    A folder for sockets.
    """

    timeout = 120

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.path = f"{self.folder}/socket"
        self.factory = Taking()

    def bound(self, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """
        Bind a UNIX socket.
        """
        one = socket.socket(socket.AF_UNIX, kind)
        self.addCleanup(one.close)
        one.bind(self.path)
        return one

    def listening(self, family: int = socket.AF_UNIX) -> socket.socket:
        """
        Listen as another process would that shares the socket.
        """
        if family == socket.AF_UNIX:
            one = self.bound()
        else:
            one = socket.socket(family)
            self.addCleanup(one.close)
            one.bind(("127.0.0.1", 0))
        one.listen()
        return one

    def knock(self, where: Any) -> None:
        """
        Connect; whoever listens has the connection to take.
        """
        inet = isinstance(where, tuple)
        client = socket.socket(socket.AF_INET if inet else socket.AF_UNIX)
        self.addCleanup(client.close)
        client.connect(where)

    async def check_takes(self, port: Any, where: Any) -> None:
        """
        The port takes a connection; then it is closed.
        """
        self.addCleanup(port.stopListening)
        self.knock(where)
        await self.factory.taken


class AdoptTests(ListeningCase):
    """
    Descriptors that another has opened.
    """

    async def test_connections_of_a_shared_unix_socket_are_taken_one_at_a_time(self) -> None:
        """
        Connections of a shared UNIX socket are taken one at a time, and its file outlives the port.
        """
        shared = self.listening()
        port = adopt(reactor, shared.fileno(), self.factory)
        self.assertEqual(port.numberAccepts, 1)
        await self.check_takes(port, self.path)
        await port.stopListening()
        self.assertTrue(os.path.exists(self.path))
        # The other's descriptor listens as before.
        self.knock(self.path)

    def test_a_descriptor_is_kept_back_for_a_shared_unix_socket_as_for_all_ports(self) -> None:
        """
        A descriptor is kept back for a shared UNIX socket, as for all ports, by which connections
        are refused when there is no other.
        """
        reserved: Any = tcp._reservedFD
        reserved.reserve()
        with reserved:
            self.assertFalse(reserved.available())
            port = adopt(reactor, self.listening().fileno(), self.factory)
            self.assertTrue(reserved.available())
        self.addCleanup(port.stopListening)

    async def test_connections_of_a_shared_port_are_taken_one_at_a_time(self) -> None:
        """
        Connections of a shared port are taken one at a time.
        """
        shared = self.listening(socket.AF_INET)
        port = adopt(reactor, shared.fileno(), self.factory)
        port.numberAccepts = 100
        self.assertEqual(port.numberAccepts, 1)
        await self.check_takes(port, shared.getsockname())
        await port.stopListening()
        # The other's descriptor listens as before.
        self.knock(shared.getsockname())

    async def test_endpoint_that_would_open_a_port_is_given_the_descriptor(self) -> None:
        """
        An endpoint that would open a port is given the descriptor.
        """
        shared = self.listening(socket.AF_INET)
        endpoint = server_endpoint(Adopter(reactor, shared.fileno()), "inet:0@127.0.0.1")
        port = await endpoint.listen(self.factory)
        await self.check_takes(port, shared.getsockname())

    async def test_endpoint_that_would_open_unix_socket_is_given_descriptor(self) -> None:
        """
        An endpoint that would open a UNIX socket is given the descriptor.
        """
        shared = self.listening()
        endpoint = server_endpoint(Adopter(reactor, shared.fileno()), f"unix:{self.path}")
        await self.check_takes(await endpoint.listen(self.factory), self.path)

    async def test_endpoint_of_twisted_for_a_unix_socket_is_given_the_descriptor(self) -> None:
        """
        So is one that asks the reactor as Twisted's do, such as those within other endpoints.
        """
        shared = self.listening()
        adopter: Any = Adopter(reactor, shared.fileno())
        endpoint = UNIXServerEndpoint(adopter, self.path)
        await self.check_takes(await endpoint.listen(self.factory), self.path)

    async def test_endpoint_that_has_descriptor_of_its_own_is_given_shared_one(self) -> None:
        """
        An endpoint that has a descriptor of its own is given the shared one.
        """
        shared = self.listening()
        other = socket.socket(socket.AF_UNIX)
        adopter: Any = Adopter(reactor, shared.fileno())
        endpoint = AdoptedStreamServerEndpoint(adopter, other.detach(), socket.AF_UNIX)
        await self.check_takes(await endpoint.listen(self.factory), self.path)

    async def test_with_tls_factory_that_takes_connections_wraps_ours_as_servers_end(self) -> None:
        """
        With TLS, the factory that takes the connections wraps ours, as the server's end.
        """
        calls = []

        def wrap(*arguments: Any) -> Any:
            calls.append(arguments)
            return self.factory

        tls: Any = ModuleType("twisted.protocols.tls")
        tls.TLSMemoryBIOFactory = wrap
        shared = self.listening()
        inner = ServerFactory()
        with patch.dict(sys.modules, {"twisted.protocols.tls": tls}):
            port = Adopter(reactor, shared.fileno()).listenSSL(0, inner, "contexts", 50)
        self.assertEqual(calls, [("contexts", False, inner)])
        await self.check_takes(port, self.path)

    def test_all_else_is_asked_of_the_reactor(self) -> None:
        """
        All else is asked of the reactor.
        """
        real: Any = reactor
        self.assertEqual(Adopter(reactor, 0).callLater, real.callLater)


class OpenTests(ListeningCase):
    """
    Sockets of our own.
    """

    def check_refused(self, message: str, spec: str | None = None) -> None:
        with self.assertRaisesRegex(CannotListenError, message):
            open_port(reactor, spec or f"unix:{self.path}", self.factory)

    async def test_unix_socket_gets_the_permissions_asked_for(self) -> None:
        """
        A UNIX socket gets the permissions asked for, takes connections, and goes with its port.
        """
        port = open_port(reactor, f"unix:{self.path}", self.factory, mode=0o600)
        self.assertEqual(stat.S_IMODE(os.stat(self.path).st_mode), 0o600)
        await self.check_takes(port, self.path)
        await port.stopListening()
        self.assertFalse(os.path.exists(self.path))

    async def test_mode_of_endpoint(self) -> None:
        """
        Permissions that the address itself names win.
        """
        port = open_port(reactor, f"unix:{self.path}:mode=640", self.factory, mode=0o600)
        self.assertEqual(stat.S_IMODE(os.stat(self.path).st_mode), 0o640)
        await self.check_takes(port, self.path)

    async def test_without_a_factory_a_connection_waits(self) -> None:
        """
        Without a factory a connection waits, until another takes it from the same socket.
        """
        port = open_port(reactor, "inet:0@127.0.0.1")
        self.addCleanup(port.stopListening)
        self.assertNotIn(port, reactor.getReaders())  # type: ignore[attr-defined]
        where = (port.getHost().host, port.getHost().port)
        await self.check_takes(adopt(reactor, port.fileno(), self.factory), where)

    async def test_socket_that_systemd_has_opened_is_taken_over(self) -> None:
        """
        A socket that systemd has opened is taken over, and its file left alone.
        """
        shared = self.listening()
        opener: Any = Opener(reactor)
        descriptor = os.dup(shared.fileno())
        endpoint = AdoptedStreamServerEndpoint(opener, descriptor, socket.AF_UNIX)
        port = await endpoint.listen(self.factory)
        await self.check_takes(port, self.path)
        await port.stopListening()
        self.assertTrue(os.path.exists(self.path))

    def test_what_is_not_listened_on_is_refused(self) -> None:
        """
        What is not listened on is refused with what may be wrong: what systemd gives a service if
        its unit has C{Accept=yes}, a socket for datagrams, and what is no socket.
        """
        adopt: Any = Opener(reactor).adoptStreamPort
        connected, other = socket.socketpair()
        self.addCleanup(other.close)
        datagrams = socket.socket(type=socket.SOCK_DGRAM)
        read, write = os.pipe()
        self.addCleanup(os.close, write)
        for descriptor in (connected.detach(), datagrams.detach(), read):
            error = self.assertRaises(OSError, adopt, descriptor, socket.AF_INET, self.factory)
            self.assertIn(f"descriptor {descriptor} is no socket to which", str(error))
            os.close(descriptor)

    async def test_socket_that_nobody_listens_on_any_more_is_replaced(self) -> None:
        """
        A socket that nobody listens on any more is replaced.
        """
        self.bound().close()
        port = open_port(reactor, f"unix:{self.path}", self.factory)
        await self.check_takes(port, self.path)

    def test_what_another_listens_on_is_refused_be_it_path_or_port(self) -> None:
        """
        What another listens on is refused, be it a path or a port.
        """
        self.listening()
        self.check_refused("Address already in use")
        port = self.listening(socket.AF_INET).getsockname()[1]
        self.check_refused(f"127.0.0.1:{port}", f"inet:{port}@127.0.0.1")

    def test_socket_for_datagrams_is_not_a_milters_and_stays(self) -> None:
        """
        A socket for datagrams is not a milter's, and stays.
        """
        self.bound(socket.SOCK_DGRAM)
        self.check_refused("Couldn't listen on .*socket: .*wrong type")
        self.assertTrue(os.path.exists(self.path))

    def test_file_that_is_no_socket_is_refused_and_stays(self) -> None:
        """
        A file that is no socket is refused, and stays.
        """
        Path(self.path).write_text("precious")
        self.check_refused("Address already in use")
        self.assertEqual(Path(self.path).read_text(), "precious")

    def test_folder_that_is_missing_or_is_none_is_named(self) -> None:
        """
        A folder that is missing, or is none, is named.
        """
        self.check_refused(
            f"{self.folder}/none/socket: .*No such file or directory", f"{self.folder}/none/socket"
        )
        Path(self.path).touch()
        self.check_refused(f"Not a directory: '{self.path}/one'", f"{self.path}/one")

    def test_endpoint_of_plugin_that_listens_in_its_own_time_is_refused(self) -> None:
        """
        An endpoint of a plugin that listens in its own time is refused, by its address.
        """

        class Slow:
            def listen(self, factory: Any) -> Deferred[Any]:
                return Deferred()

        self.patch(listening, "server_endpoint", lambda *_: Slow())
        with self.assertRaisesRegex(ValueError, "'onion:25' cannot be listened on at once"):
            open_port(reactor, "onion:25")


class StuckPort:
    """
    A port that cannot be closed.
    """

    def getHost(self) -> str:
        """
        Give its address.
        """
        return "unix:/run/stuck"

    def stopListening(self) -> Deferred[None]:
        """
        Fail.
        """
        return fail(PermissionError(13, "Permission denied"))


class CloseTests(SynchronousTestCase):
    """
    Closing a port.
    """

    def test_one_that_cannot_be_closed_is_told_about_and_keeps_nobody_waiting(self) -> None:
        """
        One that cannot be closed is told about, and keeps nobody waiting.
        """
        with capturedLogs() as logs:
            self.assertIsNone(self.successResultOf(close_port(StuckPort())))
        self.assertEqual(
            [formatEvent(event) for event in logs],
            ["unix:/run/stuck could not be closed: [Errno 13] Permission denied"],
        )
