"""
Tests of connections inside one process: bytes, ends and producers, with plain protocols on both
sides where that shows more than milters would.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IConsumer, IPushProducer, ITransport
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from yatxmilter import Milter, MilterFactory, MilterProtocolFactory
from yatxmilter import constants as c
from yatxmilter.client import MilterClient, PeerError
from yatxmilter.client._in_memory import connect_in_memory


class Recorder(Protocol):
    """
    Keep what comes; answer each ``ping`` with a shorter one, and fail when told to.
    """

    transport: Any

    def __init__(self) -> None:
        self.data: list[bytes] = []
        self.ended: Failure | None = None
        self.inside = False

    def dataReceived(self, data: bytes) -> None:
        """
        Take bytes.
        """
        assert not self.inside, "entered from within"
        self.inside = True
        self.data.append(data)
        if data == b"fail":
            raise ValueError("as told")
        if data.isdigit() and int(data):
            self.transport.write(b"%d" % (int(data) - 1))
        self.inside = False

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """
        Note why it is over.
        """
        assert self.ended is None, "told twice"
        self.ended = reason


class Factory:
    """
    What `connect_in_memory` needs of a milter's factory, with a protocol of our own.
    """

    def __init__(self, clock: Clock, protocol: Recorder) -> None:
        self.clock = clock
        self.protocol = protocol

    def buildProtocol(self, addr: object) -> Recorder:
        """
        Give the protocol.
        """
        return self.protocol


class Producer:
    """
    Note what a consumer asks for; one that pulls writes a line each time.
    """

    def __init__(self, transport: Any, lines: int = 0) -> None:
        self.asked: list[str] = []
        self.transport = transport
        self.lines = lines

    def pauseProducing(self) -> None:
        """
        Note it.
        """
        self.asked.append("pause")

    def resumeProducing(self) -> None:
        """
        Note it, and write a line, or say that there are no more.
        """
        self.asked.append("resume")
        if self.lines:
            self.lines -= 1
            self.transport.write(b"line")
        else:
            self.transport.unregisterProducer()

    def stopProducing(self) -> None:
        """
        Note it.
        """
        self.asked.append("stop")


class TransportTests(SynchronousTestCase):
    """
    Two protocols and the connection between them.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.mta, self.milter = Recorder(), Recorder()
        factory: Any = Factory(self.clock, self.milter)
        self.connection = connect_in_memory(self.mta, factory)

    def check_ended(self, mta: type[Exception], milter: type[Exception]) -> None:
        """
        Check why the connection is over for each side.
        """
        assert self.mta.ended is not None and self.milter.ended is not None
        self.assertIs(self.mta.ended.type, mta)
        self.assertIs(self.milter.ended.type, milter)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_transport_is_what_twisteds_interfaces_say(self) -> None:
        """
        A transport is what Twisted's interfaces say.
        """
        for interface in (ITransport, IConsumer, IPushProducer):
            self.assertTrue(verifyObject(interface, self.connection.mta))

    def test_each_side_sees_others_address(self) -> None:
        """
        Each side sees the other's address, and one without a name where none was given.
        """
        self.assertEqual(self.mta.transport.getPeer(), UNIXAddress(None))
        one, two = (IPv4Address("TCP", "192.0.2.1", port) for port in (1, 2))
        factory: Any = Factory(self.clock, Recorder())
        connection = connect_in_memory(Recorder(), factory, mta_address=one, milter_address=two)
        self.assertEqual((connection.mta.getHost(), connection.mta.getPeer()), (one, two))
        self.assertEqual((connection.milter.getHost(), connection.milter.getPeer()), (two, one))

    def test_not_while_writing(self) -> None:
        """
        Nothing arrives before the writer has returned; the next turn of the clock brings it.
        """
        self.mta.transport.write(b"one")
        self.mta.transport.writeSequence([b"t", b"wo"])
        self.mta.transport.write(b"")
        self.assertEqual(self.milter.data, [])
        self.clock.advance(0)
        self.assertEqual(self.milter.data, [b"one", b"two"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_conversation_of_ten_thousand_turns_is_no_deeper_than_one_of_two(self) -> None:
        """
        A conversation of ten thousand turns is no deeper than one of two.
        """
        self.mta.transport.write(b"10000")
        self.connection.flush()
        self.assertEqual(len(self.mta.data) + len(self.milter.data), 10001)

    def test_flush_from_within(self) -> None:
        """
        To flush while bytes are carried does nothing.
        """

        def receive(data: bytes) -> None:
            self.milter.transport.write(b"answer")
            self.connection.flush()
            self.assertEqual(self.mta.data, [])

        self.milter.dataReceived = receive  # type: ignore[method-assign]
        self.mta.transport.write(b"question")
        self.connection.flush()
        self.assertEqual(self.mta.data, [b"answer"])

    def test_text_is_no_bytes(self) -> None:
        """
        Text is no bytes.
        """
        error = self.assertRaises(TypeError, self.mta.transport.write, "text")
        self.assertIn("'text'", str(error))

    def test_connection_is_closed_when_all_is_written(self) -> None:
        """
        A connection is closed when all is written, and what is written later is lost.
        """
        for close in ("loseConnection", "stopProducing"):
            self.setUp()
            self.mta.transport.write(b"last")
            getattr(self.mta.transport, close)()
            self.mta.transport.write(b"late")
            self.assertIsNone(self.mta.ended)
            self.connection.flush()
            self.assertEqual(self.milter.data, [b"last"])
            self.check_ended(ConnectionDone, ConnectionDone)
            self.mta.transport.loseConnection()
            self.milter.transport.write(b"late")
            self.connection.flush()
            self.assertEqual(self.mta.data, [])

    def test_both_sides_may_close_at_once(self) -> None:
        """
        Both sides may close at once.
        """
        self.mta.transport.loseConnection()
        self.milter.transport.loseConnection()
        self.connection.flush()
        self.check_ended(ConnectionDone, ConnectionDone)

    def test_lose_waits_for_producer(self) -> None:
        """
        A connection is not closed before its producer has gone.
        """
        producer = Producer(self.mta.transport)
        self.mta.transport.registerProducer(producer, True)
        self.mta.transport.loseConnection()
        self.connection.flush()
        self.assertIsNone(self.milter.ended)
        self.mta.transport.unregisterProducer()
        self.connection.flush()
        self.check_ended(ConnectionDone, ConnectionDone)

    def test_aborting_loses_what_is_on_its_way_in_both_directions(self) -> None:
        """
        Aborting loses what is on its way, in both directions, and tells the sides apart.
        """
        self.mta.transport.write(b"lost")
        self.milter.transport.write(b"lost too")
        self.mta.transport.abortConnection()
        self.mta.transport.abortConnection()
        self.milter.transport.loseConnection()
        self.connection.flush()
        self.assertEqual((self.mta.data, self.milter.data), ([], []))
        self.check_ended(ConnectionAborted, ConnectionLost)

    def test_protocol_that_fails_loses_its_connection_and_log_has_error(self) -> None:
        """
        A protocol that fails loses its connection, and the log has the error.
        """
        self.mta.transport.write(b"fail")
        self.connection.flush()
        self.check_ended(ConnectionLost, ConnectionAborted)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_side_that_is_paused_gets_nothing_until_it_reads_again(self) -> None:
        """
        A side that is paused gets nothing until it reads again.
        """
        self.milter.transport.pauseProducing()
        self.mta.transport.write(b"wait")
        self.mta.transport.loseConnection()
        self.connection.flush()
        self.assertEqual((self.milter.data, self.milter.ended), ([], None))
        self.milter.transport.resumeProducing()
        self.clock.advance(0)
        self.assertEqual(self.milter.data, [b"wait"])
        self.check_ended(ConnectionDone, ConnectionDone)

    def test_producer_is_paused_when_too_much_is_unread_once(self) -> None:
        """
        A producer is paused when too much is unread, once, and resumed when it has been read.
        """
        producer = Producer(self.mta.transport, 1)
        self.mta.transport.registerProducer(producer, True)
        self.milter.transport.pauseProducing()
        for _ in range(3):
            self.mta.transport.write(b"x" * 60000)
        self.connection.flush()
        self.assertEqual(producer.asked, ["pause"])
        self.milter.transport.resumeProducing()
        self.connection.flush()
        self.assertEqual(producer.asked, ["pause", "resume"])
        self.assertEqual(self.milter.data[3:], [b"line"])

    def test_producer_that_waits_to_be_asked_is_asked_until_it_has_no_more(self) -> None:
        """
        A producer that waits to be asked is asked until it has no more.
        """
        producer = Producer(self.mta.transport, 3)
        self.mta.transport.registerProducer(producer, False)
        self.connection.flush()
        self.assertEqual(self.milter.data, [b"line"] * 3)

    def test_there_is_one_producer_at_time(self) -> None:
        """
        There is one producer at a time.
        """
        self.mta.transport.registerProducer(Producer(None), True)
        error = self.assertRaises(
            RuntimeError, self.mta.transport.registerProducer, Producer(None), True
        )
        self.assertIn("Producer object", str(error))

    def test_producer_is_stopped_at_connections_end(self) -> None:
        """
        A producer is stopped at the connection's end, and one that comes later at once.
        """
        first, second = Producer(None), Producer(None)
        self.mta.transport.registerProducer(first, True)
        self.milter.transport.abortConnection()
        self.connection.flush()
        self.mta.transport.registerProducer(second, True)
        self.assertEqual((first.asked, second.asked), (["stop"], ["stop"]))


class MilterTests(SynchronousTestCase):
    """
    A client and milters.
    """

    def test_client_talks_to_milters_of_factory_and_each_side_learns_of_end(self) -> None:
        """
        A client talks to the milters of a factory, and each side learns of the end.
        """
        seen: list[object] = []

        class Curious(Milter):
            def xxfi_helo(self, helohost: str) -> int:
                seen.append(helohost)
                return c.SMFIS_REJECT

            def xxfi_close(self) -> None:
                seen.append("close")

        clock = Clock()
        factory = MilterProtocolFactory(MilterFactory(Curious), reactor=clock)
        client = MilterClient(clock=clock)
        connection = connect_in_memory(client, factory)
        client.negotiate()
        response = client.helo("mail.example.org")
        closed = client.quit()
        connection.flush()
        self.assertEqual(self.successResultOf(response).code, c.SMFIS_REJECT)
        self.successResultOf(closed)
        self.assertEqual(seen, ["mail.example.org", "close"])
        self.assertEqual(factory.connections, set())
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_connection_that_factory_does_not_take_is_over_for_client_at_once(self) -> None:
        """
        A connection that the factory does not take is over for the client at once.
        """
        clock = Clock()
        factory = MilterProtocolFactory((), max_connections=1, reactor=clock)
        clients = [MilterClient(clock=clock) for _ in range(2)]
        connections = [connect_in_memory(client, factory) for client in clients]
        for connection in connections:
            connection.flush()
        self.failureResultOf(clients[1].negotiate(), PeerError)
        self.assertTrue(connections[0].mta.connected)
        connections[0].mta.abortConnection()
        connections[0].flush()
