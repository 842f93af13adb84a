"""
Connections that come by way of HAProxy, which names their peers.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs, formatEvent
from twisted.protocols.haproxy._wrapper import HAProxyWrappingFactory
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from yatxmilter import Milter, MilterFactory, MilterProtocolFactory
from yatxmilter._engine.addresses import describe_address
from yatxmilter.constants import SMFIS_CONTINUE, SMFIS_REJECT
from yatxmilter.protocol import _proxy as proxied
from yatxmilter.protocol._endpoints import _Refusing

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
#: Its client has come by a UNIX socket.
UNKNOWN = b"PROXY UNKNOWN\r\n"
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
        self.assertEqual(self.milters.admission.count, 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_in_either_version_of_protocol_milter_sees_mtas_address(self) -> None:
        """
        In either version of the protocol the milter sees the MTA's address, and HAProxy's where
        that speaks for itself; in one piece with the first command or before it.
        """
        for header, peer in ((V1, MTA), (V2, MTA), (LOCAL, HAPROXY), (UNKNOWN, HAPROXY)):
            for pieces in ((header, OFFER), (header + OFFER,)):
                self.setUp()
                for piece in pieces:
                    self.assertEqual(self.calls, [])
                    self.protocol.dataReceived(piece)
                self.assertEqual(self.calls, [peer])
                self.assertEqual(self.transport.value()[4:9], b"O\0\0\0\6")
                self.lose()
                self.assertEqual(self.calls, [peer, "close"])

    def test_header_may_come_in_pieces(self) -> None:
        """
        A header may come in pieces, wherever it is cut, also byte for byte.
        """
        for header, peer in ((V1, MTA), (V2, MTA), (LOCAL, HAPROXY), (UNKNOWN, HAPROXY)):
            cuts = [[header[:place], header[place:] + OFFER] for place in range(1, len(header))]
            for pieces in (*cuts, [bytes([byte]) for byte in header + OFFER]):
                self.setUp()
                for piece in pieces:
                    self.protocol.dataReceived(piece)
                self.assertEqual(self.calls, [peer])
                self.assertEqual(self.transport.value()[4:9], b"O\0\0\0\6")
                self.lose()

    def test_who_sends_too_little_of_header_is_cut_off(self) -> None:
        """
        Who sends a part of a header, and no more, is cut off as who says nothing.
        """
        for said in (V1[:3], V2[:12], b"PROXY"):
            self.setUp()
            self.protocol.dataReceived(said)
            self.assertFalse(self.transport.disconnected)
            self.clock.advance(11)
            self.assertTrue(self.transport.disconnected)
            self.lose()

    def test_no_milter_hears_of_connection_that_ends_before_its_peer_is_known(self) -> None:
        """
        No milter hears of a connection that ends before its peer is known.
        """
        self.lose()
        self.setUp()
        self.protocol.dataReceived(V1)
        self.lose()
        self.assertEqual(self.calls, [])

    def test_who_says_nothing_is_cut_off_after_time_that_command_may_take(self) -> None:
        """
        Who says nothing is cut off after the time that a command may take.
        """
        self.clock.advance(9)
        self.assertFalse(self.transport.disconnected)
        self.clock.advance(2)
        self.assertTrue(self.transport.disconnected)
        self.lose()

    def test_who_is_not_haproxy_is_not_listened_to(self) -> None:
        """
        Who is not HAProxy is not listened to, and the log says so: it may be an MTA that should
        connect elsewhere.
        """
        for said in (
            OFFER,
            b"GET / HTTP/1.0\r\n\r\n",
            b"PROXY TCP4 192.0.2.1\r\n",
            V2[:15] + b"\0\0",
        ):
            self.again()
            with capturedLogs() as logs:
                self.protocol.dataReceived(said)
            self.assertEqual(
                [formatEvent(event) for event in logs],
                [
                    "Refusing the connection from [192.0.2.1]:40000: its PROXY line is missing, or"
                    " cannot be read"
                ],
            )
            self.assertTrue(self.transport.disconnected)
            self.protocol.connectionLost(Failure(ConnectionDone()))
            self.assertEqual(self.milters.admission.count, 0)
        self.assertEqual(self.calls, [])

    def test_milter_that_turns_mta_away_gets_nothing_of_what_it_says(self) -> None:
        """
        A milter that turns the MTA away gets nothing of what it says.
        """
        self.answer = SMFIS_REJECT
        self.protocol.dataReceived(V2 + OFFER)
        self.assertTrue(self.transport.disconnecting)
        self.assertEqual(self.transport.value(), b"")
        self.assertEqual(self.calls[0], MTA)
        self.lose()

    def again(self, **options: Any) -> None:
        """
        Connect once more, to a server with these options.
        """
        self.milters = MilterProtocolFactory(
            self.milters.milter_factories, reactor=self.clock, **options
        )
        self.connect()

    def connect(self) -> None:
        self.transport = Transport(peerAddress=HAPROXY)
        self.protocol = HAProxyWrappingFactory(_Refusing(self.milters)).buildProtocol(HAPROXY)
        self.protocol.makeConnection(self.transport)

    def test_what_is_no_address(self) -> None:
        """
        A PROXY line whose addresses or ports are none ends the connection, with a readable line in
        the log; no milter hears of it.
        """
        for line in (
            b"PROXY TCP4 \x1b[2J 192.0.2.1 1 2",
            b"PROXY TCP4 2001:db8::1 192.0.2.1 1 2",
            b"PROXY TCP4 192.0.2.256 192.0.2.1 1 2",
            b"PROXY TCP4 a\rb 192.0.2.1 1 2",
            b"PROXY TCP4 192.0.2.1 192.0.2.1 65536 2",
            b"PROXY TCP4 192.0.2.1 192.0.2.1 -1 2",
            b"PROXY TCP6 fe80::1%\x1b[2J ::1 1 2",
            b"PROXY TCP6 192.0.2.1 ::1 1 2",
            b"PROXY TCP4 \xff\xfe 192.0.2.1 1 2",
            b"PROXY TCP4 192.0.2.1 192.0.2.1 one 2",
        ):
            self.again()
            with capturedLogs() as logs:
                self.protocol.dataReceived(line + b"\r\n" + OFFER)
            self.assertTrue(self.transport.disconnected or self.transport.disconnecting, line)
            for said in map(formatEvent, logs):
                self.assertTrue(said.isprintable(), said)
                self.assertIn("[192.0.2.1]:40000: its PROXY line", said)
            self.protocol.connectionLost(Failure(ConnectionDone()))
            self.assertEqual(self.milters.admission.count, 0)
        self.assertEqual(self.calls, [])
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_haproxy_may_have_been_connected_to_by_a_unix_socket(self) -> None:
        """
        HAProxy may have been connected to by a UNIX socket, whatever its name is.
        """
        self.again()
        name = b"/run/\x1b[2J".ljust(108, b"\0")
        self.protocol.dataReceived(V2[:13] + b"\x31\0\xd8" + name + name + OFFER)
        self.assertEqual(self.calls, [UNIXAddress(b"/run/\x1b[2J")])
        self.assertEqual(describe_address(self.calls[0]), "unix:/run/\\x1b[2J")

    def test_line_that_its_parser_does_not_know(self) -> None:
        """
        What makes the parser fail, a protocol that does not exist, is no error in the log.
        """
        self.again()
        self.protocol.dataReceived(V2[:13] + b"\x13" + V2[14:] + OFFER)
        self.assertTrue(self.transport.disconnected or self.transport.disconnecting)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_errors_of_the_connection_are_its_own(self) -> None:
        """
        What fails once the peer is known fails as on any other connection.
        """

        class Failing(Protocol):
            def dataReceived(self, data: bytes) -> None:
                raise ZeroDivisionError

        self.again()
        self.protocol.wrappedProtocol._protocol = Failing()
        self.assertRaises(ZeroDivisionError, self.protocol.dataReceived, V1 + OFFER)

    def test_connections_that_have_not_said_the_line_count_among_all(self) -> None:
        """
        Connections that have not said the line count among all, not by HAProxy's address.
        """
        self.again(max_connections=2, max_connections_per_peer=1)
        self.connect()
        first = self.protocol
        self.connect()
        self.assertTrue(self.transport.disconnected)
        first.connectionLost(Failure(ConnectionDone()))
        self.connect()
        self.assertFalse(self.transport.disconnected)

    def test_they_are_bounded(self) -> None:
        """
        There may be so many of them, whatever else is allowed; for so long, whatever a command may.
        """
        self.patch(proxied, "MOST", 2)
        self.again(command_timeout=None)
        first = self.transport
        self.connect()
        self.connect()
        self.assertTrue(self.transport.disconnected)
        self.protocol.dataReceived(V1 + OFFER)
        self.protocol.connectionLost(Failure(ConnectionDone()))
        self.assertFalse(first.disconnected)
        self.clock.advance(30)
        self.assertTrue(first.disconnected)
        self.assertEqual(self.calls, [])

    def test_drain_ends_them(self) -> None:
        """
        A server that drains or stops does not wait for those whose peer nobody knows.
        """
        self.again()
        stopped = self.milters.stop()
        self.assertNoResult(stopped)
        self.successResultOf(self.milters.drain())
        self.successResultOf(stopped)
        self.assertTrue(self.transport.disconnected)
