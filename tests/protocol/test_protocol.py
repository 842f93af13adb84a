"""
Tests of `yatxmilter.protocol`: limits of time, space and number, the end of a server, real sockets.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import Any

from twisted.application.internet import StreamServerEndpointService
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    UNIXClientEndpoint,
    UNIXServerEndpoint,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.conversation_helpers import (
    ABORT,
    CONNECT,
    DATA,
    EOM,
    HELO,
    MAIL,
    MESSAGE,
    PEER,
    QUIT,
    RCPT,
    ConversationTestCase,
    Waiting,
    full,
    macros,
    milter,
    names,
    offer,
    packet,
    parse,
    started,
)
from yatxmilter import Milter, MilterFactory, MilterProtocol, MilterProtocolFactory
from yatxmilter import constants as c


class TimeTests(ConversationTestCase):
    """
    Limits of time.
    """

    def test_half_a_command(self) -> None:
        """
        A command must be there within its time, however slowly its bytes trickle in.
        """
        cls = full()
        conversation = started(cls, command_timeout=10, timeout=100)
        conversation.send(MAIL)
        for place in range(9):
            conversation.send(RCPT[place : place + 1])
            conversation.clock.advance(1)
        self.assertFalse(conversation.closed)
        conversation.clock.advance(2)
        self.assertTrue(conversation.closed)
        self.assertEqual(names(cls.calls), ["envfrom", "abort", "close"])
        self.assertIn("192.0.2.25", self.log_text())

    def test_time_between_commands_does_not_count(self) -> None:
        """
        Each command has its own time, and the MTA may think as long as it likes in between.
        """
        conversation = started(full(), command_timeout=10, timeout=100)
        for _ in range(5):
            conversation.send(HELO[:5])
            conversation.clock.advance(9)
            self.assertEqual(conversation.letters(HELO[5:]), "c")
            conversation.clock.advance(50)
        self.assertFalse(conversation.closed)

    def test_time_of_the_next_command(self) -> None:
        """
        A read with the end of one command and the beginning of another starts a new time.
        """
        conversation = started(full(), command_timeout=10)
        conversation.send(HELO[:5])
        conversation.clock.advance(9)
        conversation.send(HELO[5:] + HELO[:5])
        conversation.clock.advance(9)
        self.assertFalse(conversation.closed)
        conversation.clock.advance(2)
        self.assertTrue(conversation.closed)

    def test_half_a_command_behind_a_callback(self) -> None:
        """
        While a callback is awaited the incomplete command behind it has time.
        """
        waiting = Waiting()
        conversation = started(full(helo=waiting), command_timeout=10)
        conversation.send(HELO + HELO[:5])
        conversation.clock.advance(50)
        self.assertFalse(conversation.closed)
        waiting.fire()
        conversation.clock.advance(9)
        self.assertFalse(conversation.closed)
        conversation.clock.advance(2)
        self.assertTrue(conversation.closed)

    def test_where_there_are_no_limits_nothing_is_ever_closed(self) -> None:
        """
        Where there are no limits nothing is ever closed, and no timer runs.
        """
        conversation = started(full(), timeout=None, command_timeout=None, write_timeout=None)
        conversation.send(HELO[:5])
        self.assertEqual(conversation.clock.getDelayedCalls(), [])

    def test_no_timer_is_left(self) -> None:
        """
        When the connection is gone no timer is left.
        """
        for before in (b"", HELO[:5], MESSAGE, QUIT, MAIL):
            conversation = started(full())
            conversation.send(before)
            if not conversation.closed:
                conversation.drop()
            self.assertEqual(conversation.clock.getDelayedCalls(), [])

    def test_mta_that_does_not_read_is_cut_off_after_its_time(self) -> None:
        """
        An MTA that does not read is cut off after its time.
        """
        conversation = started(full(), write_timeout=10)
        aborted: list[bool] = []
        self.patch(conversation.transport, "abortConnection", lambda: aborted.append(True))
        conversation.protocol.pauseProducing()
        conversation.clock.advance(9)
        self.assertEqual(aborted, [])
        conversation.clock.advance(2)
        self.assertEqual(aborted, [True])
        conversation.drop()

    def test_read_in_time(self) -> None:
        """
        One that reads again in time is served on.
        """
        conversation = started(full(), write_timeout=10)
        conversation.protocol.pauseProducing()
        conversation.clock.advance(9)
        conversation.protocol.resumeProducing()
        conversation.clock.advance(20)
        self.assertFalse(conversation.closed)

    def test_does_not_let_itself_be_closed(self) -> None:
        """
        A connection that stays although it was closed is cut off.
        """
        clock = Clock()
        factory = MilterProtocolFactory(MilterFactory(), reactor=clock, write_timeout=10)
        protocol: Any = factory.buildProtocol(PEER)
        transport = StringTransport(peerAddress=PEER)
        aborted: list[bool] = []
        self.patch(transport, "abortConnection", lambda: aborted.append(True))
        protocol.makeConnection(transport)
        protocol.dataReceived(QUIT)
        self.assertTrue(transport.disconnecting)
        clock.advance(9)
        self.assertEqual(aborted, [])
        clock.advance(2)
        self.assertEqual(aborted, [True])
        protocol.connectionLost(None)


class SpaceTests(ConversationTestCase):
    """
    Limits of space.
    """

    def test_while_the_mta_does_not_read_no_callback_is_called(self) -> None:
        """
        While the MTA does not read, no callback is called; then all is answered in order.
        """
        cls = full()
        conversation = started(cls)
        conversation.protocol.pauseProducing()
        self.assertEqual(conversation.send(MESSAGE), b"")
        self.assertEqual(cls.calls, [])
        conversation.protocol.resumeProducing()
        self.assertEqual([letter for letter, _ in parse(conversation.written())], 7 * ["c"])

    def test_stalled_by_an_answer(self) -> None:
        """
        An answer that the transport has no more room for is the last until the MTA reads.
        """
        cls = full()
        conversation = started(cls)
        conversation.send(MAIL)
        write = conversation.transport.write

        def write_and_pause(data: bytes) -> None:
            write(data)
            conversation.protocol.pauseProducing()

        self.patch(conversation.transport, "write", write_and_pause)
        self.assertEqual([letter for letter, _ in parse(conversation.send(RCPT))], ["c"])
        self.assertEqual(conversation.send(DATA), b"")
        self.assertEqual(names(cls.calls), ["envfrom", "envrcpt"])
        self.patch(conversation.transport, "write", write)
        conversation.protocol.resumeProducing()
        self.assertEqual([letter for letter, _ in parse(conversation.written())], ["c"])

    def test_when_transport_gives_up_nothing_more_is_called_until_connection_is_lost(self) -> None:
        """
        When the transport gives up, nothing more is called until the connection is lost.
        """
        cls = full()
        conversation = started(cls)
        conversation.protocol.stopProducing()
        self.assertEqual(conversation.send(MAIL), b"")
        self.assertEqual(cls.calls, [])
        conversation.drop()
        self.assertEqual(names(cls.calls), ["close"])

    def test_more_than_max_buffered_bytes_waiting_pause_transport_afterwards_it_goes_on(
        self,
    ) -> None:
        """
        More than `max_buffered` bytes waiting pause the transport; afterwards it goes on.
        """
        waiting = Waiting()
        conversation = started(full(helo=waiting), max_buffered=100)
        conversation.send(HELO)
        self.assertEqual(conversation.transport.producerState, "producing")
        conversation.send(UNKNOWN_LINES)
        self.assertEqual(conversation.transport.producerState, "paused")
        waiting.fire()
        self.assertEqual(conversation.transport.producerState, "producing")
        self.assertEqual(len(parse(conversation.written())), 11)

    def test_buffer_when_the_mta_does_not_read(self) -> None:
        """
        What an MTA that does not read goes on sending is bounded too.
        """
        conversation = started(full(), max_buffered=100)
        conversation.protocol.pauseProducing()
        conversation.send(UNKNOWN_LINES)
        self.assertEqual(conversation.transport.producerState, "paused")
        conversation.protocol.resumeProducing()
        self.assertEqual(conversation.transport.producerState, "producing")

    def test_too_many_macros_for_one_stage_close_the_connection(self) -> None:
        """
        Too many macros for one stage, or too many bytes of them, close the connection.
        """
        many = macros("M", *(b"%d" % number for number in range(200)))
        for options in ({"max_macros": 50}, {"max_macro_bytes": 100}):
            conversation = started(full(), **options)
            conversation.send(macros("M", b"i", b"1"))
            self.assertFalse(conversation.closed)
            conversation.send(many)
            self.assertTrue(conversation.closed, options)
        conversation = started(full(), max_macros=None, max_macro_bytes=None)
        conversation.send(many)
        self.assertFalse(conversation.closed)


UNKNOWN_LINES = 10 * packet("U", b"a line of text that is not short\0")


class NumberTests(ConversationTestCase):
    """
    Limits of number, and who may come.
    """

    def accepted(self, factory: MilterProtocolFactory, address: Any) -> Any:
        """
        Make a connection from an address; ``None`` if it is refused.
        """
        protocol: Any = factory.buildProtocol(address)
        if protocol is not None:
            protocol.makeConnection(StringTransport(peerAddress=address))
        return protocol

    def test_no_more_than_max_connections_at_once_who_is_refused_is_logged(self) -> None:
        """
        No more than `max_connections` at once; who is refused is logged.
        """
        factory = MilterProtocolFactory((), max_connections=2, reactor=Clock())
        one, two = self.accepted(factory, PEER), self.accepted(factory, PEER)
        self.assertIs(self.accepted(factory, PEER), None)
        self.assertIn("192.0.2.25", self.log_text())
        self.assertEqual(factory.connections, {one, two})
        one.connectionLost()
        self.assertIsNot(self.accepted(factory, PEER), None)

    def test_connections_from_one_address_have_a_limit_of_their_own(self) -> None:
        """
        No more than `max_connections_per_peer` from one address; IPv4 in IPv6 is the same address.
        """
        factory = MilterProtocolFactory((), max_connections_per_peer=1, reactor=Clock())
        one = self.accepted(factory, IPv4Address("TCP", "192.0.2.1", 1))
        mapped = IPv6Address("TCP", "::ffff:192.0.2.1", 2)
        self.assertIs(self.accepted(factory, mapped), None)
        self.assertIsNot(self.accepted(factory, IPv4Address("TCP", "192.0.2.2", 1)), None)
        for _ in range(3):
            self.assertIsNot(self.accepted(factory, UNIXAddress("/run/x")), None)
        one.connectionLost()
        self.assertIsNot(self.accepted(factory, mapped), None)

    def test_with_allow_only_those_networks_may_come_and_unix_sockets(self) -> None:
        """
        With `allow` only those networks may come, and UNIX sockets.
        """
        factory = MilterProtocolFactory(
            (), allow=["192.0.2.0/28", "2001:db8::/32"], reactor=Clock()
        )
        table = {
            IPv4Address("TCP", "192.0.2.1", 1): True,
            IPv4Address("TCP", "192.0.2.99", 1): False,
            IPv6Address("TCP", "2001:db8::1", 1): True,
            IPv6Address("TCP", "2001:db8::1%eth0", 1): True,
            IPv6Address("TCP", "::ffff:192.0.2.1", 1): True,
            IPv6Address("TCP", "::1", 1): False,
            IPv4Address("TCP", "mail.example.org", 1): False,
            UNIXAddress("/run/x"): True,
        }
        for address, expected in table.items():
            self.assertEqual(self.accepted(factory, address) is not None, expected, address)
        self.assertIs(self.accepted(factory, None), None)

    def test_what_is_no_list_of_networks_is_refused_by_value(self) -> None:
        """
        What is no list of networks is refused, by value.
        """
        for wrong, error in (
            ("127.0.0.0/8", TypeError),
            ([1], TypeError),
            (["nonsense"], ValueError),
            (["10.0.0.1/8"], ValueError),
        ):
            with self.assertRaises(error) as caught:
                MilterProtocolFactory((), allow=wrong)
            self.assertIn("allow", str(caught.exception))

    def test_options_that_are_no_such_thing_are_refused_by_value(self) -> None:
        """
        What is no list of observers, and no clock, is refused by name and value.
        """
        for name, words in (("observers", "a list of observers"), ("reactor", "an IReactorTime")):
            options: dict[str, Any] = {name: 5}
            error = self.assertRaises(TypeError, MilterProtocolFactory, (), **options)
            self.assertEqual(str(error), f"{name} is 5, expected {words}")

    def test_nothing_is_half_added(self) -> None:
        """
        When one of several is no milter factory, none is added.
        """
        factory = MilterProtocolFactory(MilterFactory())
        with self.assertRaises(TypeError):
            factory.addMilterFactory([MilterFactory(), "x"])
        self.assertEqual(len(factory.milter_factories), 1)


class AloneTests(SynchronousTestCase):
    """
    A protocol without a factory.
    """

    def test_has_the_default_options_and_the_milters_that_it_is_given(self) -> None:
        """
        It has the default options, and the milters that it is given.
        """
        protocol = MilterProtocol()
        cls = milter(eom=c.SMFIS_REJECT)
        protocol.addMilter(cls(None, protocol))
        transport = StringTransport()
        protocol.makeConnection(transport)
        protocol.dataReceived(offer() + EOM)
        self.assertEqual([letter for letter, _ in parse(transport.value())], ["O", "r"])
        protocol.connectionLost()
        self.assertEqual(names(cls.calls), ["eom", "close"])


class DrainTests(ConversationTestCase):
    """
    Coming to an end without losing mail.
    """

    def test_without_connections_it_is_over_at_once(self) -> None:
        """
        Without connections it is over at once.
        """
        factory = MilterProtocolFactory((), reactor=Clock())
        self.successResultOf(factory.drain())

    def test_connections_without_a_message_are_closed_at_once(self) -> None:
        """
        Connections without a message are closed at once, and none is taken any more.
        """
        conversation = started(full())
        drained = conversation.factory.drain()
        self.assertTrue(conversation.closed)
        self.successResultOf(drained)
        self.assertIs(conversation.factory.buildProtocol(PEER), None)
        conversation.factory.startFactory()
        self.assertIsNot(conversation.factory.buildProtocol(PEER), None)

    def test_message_is_finished(self) -> None:
        """
        A message that is open is finished first.
        """
        waiting = Waiting()
        conversation = started(full(eom=waiting))
        conversation.send(MAIL + RCPT)
        drained = conversation.factory.drain(60)
        self.assertEqual(conversation.letters(EOM), "")
        self.assertNoResult(drained)
        waiting.fire()
        self.assertEqual(conversation.written(), packet("c"))
        self.assertTrue(conversation.closed)
        self.successResultOf(drained)
        self.assertEqual(conversation.clock.getDelayedCalls(), [])

    def test_time_is_over(self) -> None:
        """
        What is left after the time is answered TEMPFAIL where an answer is owed, and closed.
        """
        for merge in ("first", "strictest", "chain"):
            for stage, sent, said in (
                ("eom", MAIL + RCPT + EOM, "t"),
                ("envrcpt", MAIL + RCPT, "t"),
                ("helo", MAIL + HELO, "t"),
                ("nothing", MAIL + RCPT, ""),
            ):
                waiting = Waiting()
                cls = full(**{stage: waiting} if stage != "nothing" else {})
                conversation = started(cls, merge=merge)
                conversation.send(sent)
                drained = conversation.factory.drain(10)
                conversation.clock.advance(9)
                self.assertNoResult(drained)
                self.assertEqual(conversation.written().replace(packet("p"), b""), b"")
                conversation.clock.advance(2)
                letters = "".join(letter for letter, _ in parse(conversation.written()))
                self.assertEqual(letters.replace("p", ""), said, (merge, stage))
                self.assertTrue(conversation.closed)
                self.successResultOf(drained)
                self.assertEqual(names(cls.calls)[-1], "close")

    def test_time_is_over_where_no_answer_is_owed(self) -> None:
        """
        A callback that promised no answer gets none when its time is over.
        """
        for merge in ("first", "strictest", "chain"):
            conversation = started(full(quiet=("helo",), helo=Waiting()), merge=merge)
            conversation.send(MAIL + HELO)
            conversation.factory.drain(10)
            conversation.clock.advance(11)
            self.assertEqual(conversation.written(), b"")
            self.assertTrue(conversation.closed)

    def test_connection_that_does_not_go_even_then_is_cut_off(self) -> None:
        """
        A connection that does not go even then is cut off.
        """
        clock = Clock()
        factory = MilterProtocolFactory((), reactor=clock)
        protocol: Any = factory.buildProtocol(PEER)
        transport = StringTransport(peerAddress=PEER)
        aborted: list[bool] = []
        self.patch(transport, "abortConnection", lambda: aborted.append(True))
        protocol.makeConnection(transport)
        drained = factory.drain(10)
        clock.advance(11)
        self.assertEqual(aborted, [])
        clock.advance(6)
        self.assertEqual(aborted, [True])
        self.assertNoResult(drained)
        protocol.connectionLost()
        self.successResultOf(drained)

    def test_who_drains_twice_is_told_twice(self) -> None:
        """
        Who drains twice is told twice.
        """
        conversation = started(full())
        conversation.send(MAIL)
        first, second = conversation.factory.drain(), conversation.factory.drain(100)
        conversation.drop()
        self.successResultOf(first)
        self.successResultOf(second)
        self.assertEqual(conversation.clock.getDelayedCalls(), [])

    def test_what_is_no_time_is_refused(self) -> None:
        """
        What is no time is refused.
        """
        factory = MilterProtocolFactory((), reactor=Clock())
        for wrong, error in ((-1, ValueError), ("1", TypeError)):
            with self.assertRaises(error):
                factory.drain(wrong)  # type: ignore[arg-type]


class Mta(Protocol):
    """
    The other end of a real connection.
    """

    def __init__(self) -> None:
        self.received = b""
        self.awaited: list[tuple[int, Deferred[bytes]]] = []
        self.gone: Deferred[bytes] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        """
        Gather what comes.
        """
        self.received += data

    def connectionLost(self, reason: Any = None) -> None:
        """
        Tell that the connection is gone.
        """
        self.gone.callback(self.received)


class SocketTests(TestCase):
    """
    Over real sockets.
    """

    def short_path(self) -> str:
        """
        Give a path for a socket: it may have 107 bytes, which a folder for tests may exceed.
        """
        folder = tempfile.mkdtemp(prefix="yatx")
        self.addCleanup(shutil.rmtree, folder)
        return os.path.join(folder, "s")

    async def talk(self, server: Any, connect: Any) -> bytes:
        """
        Listen, play a session, and give all that was answered.
        """
        cls = full("Real", body=c.SMFIS_CONTINUE)
        factory = MilterProtocolFactory(MilterFactory(cls))
        port = await server.listen(factory)
        try:
            mta = await connect(port).connect(Factory.forProtocol(Mta))
            body = packet("B", 65535 * b"x")
            stream = offer() + CONNECT + HELO + MAIL + RCPT + DATA + packet("N")
            mta.transport.write(stream + 50 * body + EOM + ABORT + QUIT)
            said: bytes = await mta.gone
        finally:
            await port.stopListening()
        self.assertEqual(len([call for call in cls.calls if call[0] == "body"]), 50)
        self.assertEqual(names(cls.calls)[-1], "close")
        self.assertEqual(factory.connections, set())
        return said

    async def test_large_session_over_tcp_is_answered_packet_for_packet(self) -> None:
        """
        A session over TCP, a large one, is answered packet for packet.
        """
        from twisted.internet import reactor

        said = await self.talk(
            TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1"),
            lambda port: TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port),
        )
        self.assertEqual(said, offer(c.SMFIP_SKIP) + 57 * packet("c"))

    async def test_conversation_works_over_a_unix_socket(self) -> None:
        """
        And over a UNIX socket.
        """
        from twisted.internet import reactor

        path = self.short_path()
        said = await self.talk(
            UNIXServerEndpoint(reactor, path), lambda port: UNIXClientEndpoint(reactor, path)
        )
        self.assertEqual(said, offer(c.SMFIP_SKIP) + 57 * packet("c"))

    async def test_mta_that_writes_and_does_not_read_is_stopped_by_back_pressure(self) -> None:
        """
        An MTA that writes and does not read is stopped by back pressure, and served when it reads.
        """
        from twisted.internet import reactor

        count = 0

        def unknown(*_: Any) -> int:
            nonlocal count
            count += 1
            return c.SMFIS_CONTINUE

        factory = MilterProtocolFactory(MilterFactory(milter(unknown=unknown)))
        server = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
        port = await server.listen(factory)
        try:
            endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
            mta = await endpoint.connect(Factory.forProtocol(Mta))
            mta.transport.pauseProducing()
            mta.transport.write(offer() + 20000 * packet("U", b"x\0"))
            mta.transport.resumeProducing()
            mta.transport.write(QUIT)
            said = await mta.gone
        finally:
            await port.stopListening()
        self.assertEqual(count, 20000)
        self.assertEqual(len(said), 17 + 20000 * 5)

    async def test_streamserverendpointservice_listens_with_the_factory(self) -> None:
        """
        A `StreamServerEndpointService` listens with it.
        """
        from twisted.internet import reactor

        factory = MilterProtocolFactory(MilterFactory(Milter))
        path = self.short_path()
        service = StreamServerEndpointService(UNIXServerEndpoint(reactor, path), factory)
        service.startService()
        try:
            mta = await UNIXClientEndpoint(reactor, path).connect(Factory.forProtocol(Mta))
            mta.transport.write(offer() + QUIT)
            self.assertEqual(await mta.gone, offer(0x37F))
        finally:
            await service.stopService()
