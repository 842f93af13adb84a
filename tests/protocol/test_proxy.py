"""
Connections that come by way of HAProxy, which names their peers.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols.haproxy._wrapper import HAProxyWrappingFactory
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from yatxmilter import Milter, MilterFactory, MilterProtocolFactory
from yatxmilter.constants import SMFIS_CONTINUE, SMFIS_REJECT

HAPROXY = IPv4Address("TCP", "192.0.2.1", 40000)
MTA = IPv4Address("TCP", "198.51.100.7", 40025)
V1 = b"PROXY TCP4 198.51.100.7 192.0.2.1 40025 9900\r\n"
V2 = (
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"
    + bytes([198, 51, 100, 7, 192, 0, 2, 1])
    + (40025).to_bytes(2, "big")
    + (9900).to_bytes(2, "big")
)
#: HAProxy speaks for itself, as in a health check.
LOCAL = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"
OFFER = bytes.fromhex("0000000d4f00000006000001ff001fffff")


class Transport(StringTransport):
    """
    One that is TCP enough for the wrapper.
    """

    disconnected = False

    def abortConnection(self) -> None:
        self.disconnected = True


class ProxiedTests(SynchronousTestCase):
    """
    The endpoint ``haproxy:``.
    """

    def setUp(self) -> None:
        """
        Make a connection.
        """
        self.calls: list[Any] = []
        self.answer = SMFIS_CONTINUE
        case = self

        class Watching(Milter):
            def xxfi_mta_connect(self, address: object) -> int:
                case.calls.append(address)
                return case.answer

            def xxfi_mta_close(self, reason: object) -> None:
                case.calls.append("close")

        self.clock = Clock()
        self.milters = MilterProtocolFactory(
            MilterFactory(Watching), reactor=self.clock, command_timeout=10
        )
        self.transport = Transport(peerAddress=HAPROXY)
        wrapping = HAProxyWrappingFactory(self.milters)
        self.protocol: Any = wrapping.buildProtocol(HAPROXY)
        self.protocol.makeConnection(self.transport)

    def lose(self) -> None:
        """
        Lose the connection.
        """
        self.protocol.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.milters.connections, set())
        self.assertEqual(self.milters.admission._by_peer, {})
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_peer(self) -> None:
        """
        In either version of the protocol the milter sees the MTA's address, and HAProxy's where
        that speaks for itself; in one piece with the first command or before it.
        """
        for header, peer in ((V1, MTA), (V2, MTA), (LOCAL, HAPROXY)):
            for pieces in ((header, OFFER), (header + OFFER,)):
                self.setUp()
                for piece in pieces:
                    self.assertEqual(self.calls, [])
                    self.protocol.dataReceived(piece)
                self.assertEqual(self.calls, [peer])
                self.assertEqual(self.transport.value()[4:9], b"O\0\0\0\6")
                self.lose()
                self.assertEqual(self.calls, [peer, "close"])

    def test_lost_before(self) -> None:
        """
        No milter hears of a connection that ends before its peer is known.
        """
        self.lose()
        self.setUp()
        self.protocol.dataReceived(V1)
        self.lose()
        self.assertEqual(self.calls, [])

    def test_silent(self) -> None:
        """
        Who says nothing is cut off after the time that a command may take.
        """
        self.clock.advance(9)
        self.assertFalse(self.transport.disconnected)
        self.clock.advance(2)
        self.assertTrue(self.transport.disconnected)
        self.lose()

    def test_no_header(self) -> None:
        """
        Who is not HAProxy is not listened to.
        """
        self.protocol.dataReceived(OFFER)
        self.assertTrue(self.transport.disconnecting)
        self.lose()
        self.assertEqual(self.calls, [])

    def test_refused(self) -> None:
        """
        A milter that turns the MTA away gets nothing of what it says.
        """
        self.answer = SMFIS_REJECT
        self.protocol.dataReceived(V2 + OFFER)
        self.assertTrue(self.transport.disconnecting)
        self.assertEqual(self.transport.value(), b"")
        self.assertEqual(self.calls[0], MTA)
        self.lose()
