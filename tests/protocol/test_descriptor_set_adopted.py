"""
Tests of sockets that others have opened: connections and ports a reactor adopts, and systemd's.
"""

from __future__ import annotations

import os
import select
import socket
import tempfile
from typing import Any

from twisted.internet.endpoints import _SystemdParser, serverFromString
from twisted.python.systemd import ListenFDs

from tests.conversation_helpers import ABORT, MESSAGE, QUIT, offer
from tests.pathways import Mta, PathCase, both_paths, reactor


class _AdoptedTests(PathCase):
    """
    They are served as others are, on the same path.
    """

    def listen(self, factory: Any) -> None:
        """
        Open a socket that listens, as another program would; what takes it over is the test's.
        """
        self.socket = socket.socket(self.family)
        self.addCleanup(self.socket.close)
        folder = tempfile.TemporaryDirectory(prefix="yatx")
        self.addCleanup(folder.cleanup)
        name = os.path.join(folder.name, "s")
        self.socket.bind(name if self.family == socket.AF_UNIX else ("127.0.0.1", 0))
        self.socket.listen()
        self.socket.setblocking(False)
        self.address = self.socket.getsockname()

    def check_path(self, protocol: Any) -> None:
        """
        See that the connection is on the path that was asked for.
        """
        expected = self.fast_path and hasattr(select, "epoll")
        self.assertEqual(protocol._served is not None, expected)

    async def check_served(self) -> None:
        """
        Have a whole session played.
        """
        mta, protocol = await self.mta()
        self.check_path(protocol)
        mta.send(MESSAGE)
        await self.until(lambda: mta.letters() == "ccccccc")
        mta.send(ABORT + QUIT)
        await self.gone()
        await self.over(mta)
        self.assertEqual(mta.end, "closed")

    async def test_connection_that_was_accepted_elsewhere_is_adopted(self) -> None:
        """
        A connection that was accepted elsewhere.
        """
        self.serve()
        mta = Mta(self.family, self.address)
        self.addCleanup(mta.socket.close)
        accepted, _ = self.socket.accept()
        descriptor = accepted.fileno()
        reactor.adoptStreamConnection(descriptor, self.family, self.factory)
        # The reactor has a descriptor of its own; ours is ours to close.
        accepted.close()
        (protocol,) = self.factory.connections
        self.check_path(protocol)
        mta.send(offer() + MESSAGE + QUIT)
        await self.gone()
        await self.over(mta)
        self.assertEqual((mta.letters(), mta.end), ("Occccccc", "closed"))

    async def test_port_that_was_opened_elsewhere_is_adopted(self) -> None:
        """
        A port that was opened elsewhere.
        """
        self.serve()
        port = reactor.adoptStreamPort(self.socket.fileno(), self.family, self.factory)
        self.addCleanup(port.stopListening)
        await self.check_served()

    async def test_socket_that_systemd_has_opened_which_endpoint_finds_by_its_number(self) -> None:
        """
        A socket that systemd has opened, which the endpoint finds by its number.
        """
        self.serve()
        # systemd's first is 3; here it is whatever is free, and the endpoint closes it.
        descriptor = os.dup(self.socket.fileno())
        self.patch(_SystemdParser, "_sddaemon", ListenFDs([descriptor]))
        domain = self.family.name.removeprefix("AF_")
        endpoint = serverFromString(reactor, f"systemd:domain={domain}:index=0")
        port = await endpoint.listen(self.factory)
        self.addCleanup(port.stopListening)
        await self.check_served()


both_paths(globals(), _AdoptedTests)
