"""
Tests of connections that are not plain: they take the ordinary path, and are served all the same.
"""

from __future__ import annotations

import socket
from typing import Any
from unittest import skipIf

from twisted.internet import tcp
from twisted.internet.endpoints import SSL4ServerEndpoint, serverFromString
from twisted.internet.protocol import Factory, Protocol
from twisted.protocols.policies import TimeoutFactory, WrappingFactory
from twisted.trial.unittest import TestCase

from tests.conversation_helpers import HELO, QUIT, offer, parse
from tests.pathways import Mta, PathCase, reactor
from tests.secure import certificate
from yatxmilter import MilterProtocolFactory
from yatxmilter.protocol._descriptor_set import adoptable
from yatxmilter.service import MilterService

try:
    from OpenSSL import SSL
    from twisted.internet.ssl import CertificateOptions, ClientContextFactory
except ImportError:
    SSL = None


class WrapperTests(PathCase, TestCase):
    """
    Wrappers of C{twisted.protocols.policies}, and of HAProxy.
    """

    family = socket.AF_INET

    async def talk(self, prefix: bytes = b"") -> Any:
        """
        Play a session; give the protocol that served it.
        """
        mta = Mta(self.family, self.address)
        self.addCleanup(mta.socket.close)
        # Behind a proxy the connection begins with the first bytes of the MTA.
        mta.send(prefix + offer() + HELO)
        await self.until(lambda: self.factory.connections)
        (protocol,) = self.factory.connections
        await self.until(lambda: mta.letters() == "Oc")
        mta.send(QUIT)
        await self.gone()
        self.assertIsNone(protocol._served)
        return protocol

    async def test_wrapped_factory_is_served(self) -> None:
        """
        A wrapped factory is served.
        """
        for wrap in (WrappingFactory, lambda made: TimeoutFactory(made, 30)):
            self.serve()
            self.listen(wrap(self.factory))
            await self.talk()

    async def test_behind_haproxy_the_address_is_the_one_that_the_proxy_tells_of(self) -> None:
        """
        Behind C{haproxy:} the address is the one that the proxy tells of.
        """
        self.serve()
        port = await serverFromString(reactor, "haproxy:tcp:0:interface=127.0.0.1").listen(
            self.factory
        )
        self.addCleanup(port.stopListening)
        self.address = ("127.0.0.1", port.getHost().port)
        protocol = await self.talk(b"PROXY TCP4 192.0.2.1 192.0.2.2 4000 8890\r\n")
        self.assertEqual(protocol.transport.getPeer().host, "192.0.2.1")

    def test_what_is_no_plain_connection_of_twisteds_is_not_adopted(self) -> None:
        """
        What is no plain connection of Twisted's is not adopted.
        """
        self.assertFalse(adoptable(object()))


class Client(Protocol):
    """
    An MTA that speaks TLS.
    """

    received = b""

    def connectionMade(self) -> None:
        self.transport.write(offer() + HELO + QUIT)

    def dataReceived(self, data: bytes) -> None:
        """
        Gather what comes.
        """
        self.received += data


@skipIf(SSL is None, "pyOpenSSL is not installed")
class TLSTests(PathCase, TestCase):
    """
    Connections over TLS.
    """

    def contexts(self) -> tuple[Any, Any]:
        """
        Make a certificate for a server, and a client that does not ask whose it is.
        """
        key, own = certificate()
        return CertificateOptions(privateKey=key, certificate=own), ClientContextFactory()

    async def test_session_over_tls_is_served_on_the_ordinary_path(self) -> None:
        """
        A session over TLS is served, on the ordinary path.
        """
        self.serve()
        server, client = self.contexts()
        port = reactor.listenSSL(0, self.factory, server, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        mta = Client()
        factory = Factory.forProtocol(lambda: mta)
        factory.startedConnecting = factory.clientConnectionLost = lambda *_: None
        factory.noisy = False
        reactor.connectSSL("127.0.0.1", port.getHost().port, factory, client)
        await self.until(lambda: self.factory.connections)
        (protocol,) = self.factory.connections
        self.assertIsNone(protocol._served)
        await self.gone()
        await self.until(lambda: not mta.transport.connected)
        self.assertEqual([letter for letter, _ in parse(mta.received)], ["O", "c"])

    async def test_connection_that_is_refused_is_closed_though_it_says_nothing(self) -> None:
        """
        A connection that is refused is closed, though its peer says nothing, with no error in the
        log; the port starts and stops the factory.
        """
        self.serve()
        self.factory = MilterProtocolFactory((), allow=["192.0.2.0/24"])
        endpoint = SSL4ServerEndpoint(reactor, 0, self.contexts()[0], interface="127.0.0.1")
        service = MilterService(endpoint, self.factory)
        service.startService()
        (port,) = [one for one in reactor.getReaders() if isinstance(one, tcp.Port)]
        self.assertEqual(self.factory.numPorts, 1)
        with socket.create_connection(("127.0.0.1", port.getHost().port)) as stranger:
            stranger.setblocking(False)
            await self.until(lambda: not is_open(stranger))
        await service.stopService()
        self.assertEqual(self.factory.numPorts, 0)


def is_open(connection: socket.socket) -> bool:
    """
    Tell whether the other end of a connection has not closed it.
    """
    try:
        return bool(connection.recv(1))
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False
