"""
Tests of the limits on an MTA: each strikes exactly when it should, says so, and shows on the wire.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionAborted
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from tests.conversation_helpers import (
    BODY,
    CONNECT,
    EOM,
    HELO,
    MAIL,
    QUIT,
    RCPT,
    Conversation,
    ConversationTestCase,
    Waiting,
    full,
    names,
    offer,
    packet,
    started,
)
from yatxmilter import MilterFactory
from yatxmilter.constants import SMFIS_CONTINUE

PEER_ADDRESS = IPv4Address("TCP", "192.0.2.25", 4242)
PEER = "[192.0.2.25]:4242"
CONTENT = MAIL + RCPT + packet("T") + packet("N")


class SizeTests(ConversationTestCase):
    """
    How much an MTA may send in one packet, and as macros.
    """

    def assert_broken(self, mta: Conversation, sent: bytes, words: str) -> None:
        self.assertEqual((mta.letters(sent), mta.closed), ("", True))
        self.assertIn(f"The MTA at {PEER} broke the milter protocol: {words}", self.log_text())

    def test_packet_of_65_535_bytes_is_taken(self) -> None:
        """
        A packet of 65,535 bytes is taken, one of a byte more is not waited for.
        """
        mta = started(full())
        mta.send(CONTENT)
        self.assertEqual(mta.letters(packet("B", b"x" * 65535)), "c")
        self.assert_broken(mta, b"\0\1\0\1B", "packet length 65537 is not between 1 and 65536")

    def test_packet_as_negotiated(self) -> None:
        """
        With larger packets negotiated those are the limit.
        """
        for flag, size in ((0x10000000, 262143), (0x20000000, 1048575)):
            tester = full(negotiate=lambda self, actions, steps: (0, 0, steps & 0x30000000))
            mta = Conversation(tester)
            mta.agree(0x1FFFFF | flag)
            mta.send(CONTENT)
            self.assertEqual(mta.letters(packet("B", b"x" * size)), "c")
            mta.send((size + 2).to_bytes(4, "big") + b"B")
            self.assertTrue(mta.closed)

    def test_macros_of_a_stage(self) -> None:
        """
        A stage may have so many macros; one more ends the connection.
        """
        mta = started(full(), max_macros=3)
        self.assertEqual(mta.letters(packet("D", b"C" + b"n\0v\0" * 3) + CONNECT), "c")
        words = "4 macros for one stage, at most 3 are taken"
        self.assert_broken(mta, packet("D", b"H" + b"n\0v\0" * 4) + HELO, words)

    def test_bytes_of_macros(self) -> None:
        """
        A connection may have so many bytes of macros; one more ends it.
        """
        mta = started(full(), max_macro_bytes=20)
        self.assertEqual(mta.letters(packet("D", b"Cn\0" + b"v" * 16 + b"\0") + CONNECT), "c")
        self.assertFalse(mta.closed)
        words = "macros of 21 bytes, at most 20 are taken"
        mta = started(full(), max_macro_bytes=20)
        self.assert_broken(mta, packet("D", b"Cn\0" + b"v" * 17 + b"\0") + CONNECT, words)

    def test_without_limits_of_macros_packet_of_them_is_as_good_as_any(self) -> None:
        """
        Without limits of macros a packet of them is as good as any.
        """
        mta = started(full(), max_macros=None, max_macro_bytes=None)
        self.assertEqual(mta.letters(packet("D", b"C" + b"\0\0" * 30000) + CONNECT), "c")


class IdleTests(ConversationTestCase):
    """
    C{timeout=}.
    """

    def test_mta_that_is_silent_so_long_is_hung_up_on(self) -> None:
        """
        An MTA that is silent so long is hung up on, not a second earlier; the milters are told.
        """
        tester = full()
        mta = started(tester, timeout=100)
        mta.send(MAIL)
        mta.clock.advance(99)
        self.assertFalse(mta.closed)
        mta.clock.advance(1)
        self.assertTrue(mta.closed)
        self.assertEqual(names(tester.calls)[-2:], ["abort", "close"])
        self.assertIn(
            f"The MTA at {PEER} was silent too long; closing the connection", self.log_text()
        )
        self.assertEqual(mta.clock.getDelayedCalls(), [])

    def test_any_byte_counts_from_the_beginning_of_the_connection(self) -> None:
        """
        Any byte counts, from the beginning of the connection.
        """
        mta = Conversation(full(), timeout=100, command_timeout=None)
        for byte in offer():
            mta.clock.advance(99)
            mta.send(bytes([byte]))
        self.assertFalse(mta.closed)
        mta.clock.advance(99)
        self.assertFalse(mta.closed)
        mta.clock.advance(1)
        self.assertTrue(mta.closed)

    def test_not_while_a_milter_works(self) -> None:
        """
        While a milter is waited for the MTA may be silent; its time begins with the answer, and
        with the result where there is none to give.
        """
        for quiet in ((), ("helo",)):
            waiting = Waiting()
            mta = started(full(helo=waiting, quiet=quiet), timeout=100)
            mta.send(HELO)
            mta.clock.pump([100, 100, 99])
            waiting.fire(SMFIS_CONTINUE)
            self.assertFalse(mta.closed)
            mta.clock.pump([99])
            self.assertFalse(mta.closed)
            mta.clock.pump([1])
            self.assertTrue(mta.closed)

    def test_there_may_be_no_idle_limit(self) -> None:
        """
        There may be no limit.
        """
        mta = started(full(), timeout=None)
        mta.clock.advance(10**7)
        self.assertFalse(mta.closed)


class CommandTimeTests(ConversationTestCase):
    """
    C{command_timeout=}.
    """

    def test_command_that_has_not_arrived_whole_in_that_time_ends_connection(self) -> None:
        """
        A command that has not arrived whole in that time ends the connection, however it trickles.
        """
        mta = started(full(), command_timeout=30)
        for byte in MAIL[:15]:
            self.assertFalse(mta.closed)
            mta.send(bytes([byte]))
            mta.clock.advance(2)
        self.assertTrue(mta.closed)
        self.assertIn(f"The MTA at {PEER} took too long to send one command", self.log_text())

    def assert_not_struck(self, mta: Conversation, seconds: float) -> None:
        mta.clock.advance(seconds - 0.1)
        self.assertFalse(mta.closed)
        mta.clock.advance(0.1)
        self.assertTrue(mta.closed)

    def test_strikes_at_that_time_and_not_before(self) -> None:
        """
        It strikes at that time and not before; between commands it does not count.
        """
        mta = started(full(), command_timeout=30)
        mta.clock.advance(100)
        mta.send(MAIL[:7])
        self.assert_not_struck(mta, 30)

    def test_command_that_is_whole_in_time_has_no_effect_on_next(self) -> None:
        """
        A command that is whole in time has no effect on the next.
        """
        mta = started(full(), command_timeout=30)
        mta.send(MAIL[:7])
        mta.clock.advance(29)
        self.assertEqual(mta.letters(MAIL[7:]), "c")
        mta.clock.advance(100)
        mta.send(RCPT[:3])
        self.assert_not_struck(mta, 30)

    def test_stream_of_commands_cut_in_their_middle_may_go_on_for_ever(self) -> None:
        """
        A stream of commands cut in their middle may go on for ever: each has its own time.
        """
        mta = started(full(quiet=("body",)), command_timeout=30)
        mta.send(CONTENT, BODY[:3])
        for _ in range(20):
            mta.clock.advance(20)
            mta.send(BODY[3:] + BODY[:3])
        self.assertFalse(mta.closed)
        self.assert_not_struck(mta, 30)

    def test_while_a_milter_is_waited_for_it_does_not_count(self) -> None:
        """
        While a milter is waited for it does not count; then what is missing has its time.
        """
        waiting = Waiting()
        mta = started(MilterFactory(full(envfrom=waiting), timeout=None), command_timeout=30)
        mta.send(MAIL[:5])
        mta.clock.advance(20)
        mta.send(MAIL[5:] + RCPT[:5])
        mta.clock.advance(1000)
        waiting.fire(SMFIS_CONTINUE)
        self.assertFalse(mta.closed)
        self.assert_not_struck(mta, 30)


class StuckTransport(StringTransport):
    """
    A transport whose peer does not read.
    """

    protocol: Any
    aborted = False

    def __init__(self) -> None:
        super().__init__(peerAddress=PEER_ADDRESS)

    def abortConnection(self) -> None:
        self.aborted = True
        self.protocol.connectionLost(Failure(ConnectionAborted()))


class UnreadTests(ConversationTestCase):
    """
    C{write_timeout=}: an MTA that does not read its answers.
    """

    def stuck(self, *milters: Any) -> tuple[Any, StuckTransport]:
        mta: Any = Conversation(*milters, write_timeout=20, timeout=100)
        mta.drop()
        mta.transport = transport = StuckTransport()
        mta.protocol = transport.protocol = mta.factory.buildProtocol(PEER_ADDRESS)
        mta.protocol.makeConnection(transport)
        mta.agree()
        for made in milters:
            made.calls.clear()
        return mta, transport

    def test_nothing_is_called_or_written_until_it_reads_again(self) -> None:
        """
        No callback is called and nothing is written until it reads again; then all goes on.
        """
        tester = full()
        mta, _ = self.stuck(tester)
        mta.protocol.pauseProducing()
        self.assertEqual(mta.letters(MAIL + RCPT), "")
        self.assertEqual(names(tester.calls), [])
        mta.protocol.resumeProducing()
        self.assertEqual(mta.letters(), "cc")
        mta.clock.advance(20)
        self.assertEqual(mta.transport.aborted, False)

    def test_after_that_time_the_connection_is_cut_off_not_a_second_earlier(self) -> None:
        """
        After that time the connection is cut off, not a second earlier.
        """
        tester = full()
        mta, transport = self.stuck(tester)
        mta.send(MAIL)
        mta.protocol.pauseProducing()
        mta.clock.advance(19.9)
        self.assertFalse(transport.aborted)
        mta.clock.advance(0.1)
        self.assertTrue(transport.aborted)
        self.assertEqual(names(tester.calls)[-2:], ["abort", "close"])
        self.assertIn(f"The MTA at {PEER} did not read its answers", self.log_text())
        self.assertEqual(mta.clock.getDelayedCalls(), [])

    def test_transport_that_does_not_close_is_cut_off_after_that_time(self) -> None:
        """
        One that does not let itself be closed is cut off after that time.
        """
        mta, transport = self.stuck(full())
        mta.send(QUIT)
        self.assertTrue(transport.disconnecting)
        mta.clock.advance(19.9)
        self.assertFalse(transport.aborted)
        mta.clock.advance(0.1)
        self.assertTrue(transport.aborted)
        self.assertIn(f"The MTA at {PEER} did not let itself be closed", self.log_text())

    def test_silent_and_closing(self) -> None:
        """
        One that is idle too long and does not let itself be closed is cut off as well.
        """
        mta, transport = self.stuck(full())
        mta.clock.advance(100)
        self.assertTrue(transport.disconnecting)
        mta.clock.advance(20)
        self.assertTrue(transport.aborted)

    def test_nothing_more_is_called_when_the_transport_stops_producing(self) -> None:
        """
        When the transport says that it is about to be lost nothing more is called.
        """
        tester = full()
        mta, _ = self.stuck(tester)
        mta.protocol.stopProducing()
        self.assertEqual(mta.letters(MAIL), "")
        self.assertEqual(names(tester.calls), [])

    def test_after_the_end(self) -> None:
        """
        What still arrives while the connection is being closed is neither kept nor answered.
        """
        mta, transport = self.stuck(full())
        mta.send(QUIT)
        for _ in range(5):
            self.assertEqual(mta.letters(MAIL + RCPT[:3]), "")
        self.assertEqual(mta.protocol._conversation.session.splitter.buffered, 0)
        self.assertEqual(len(mta.clock.getDelayedCalls()), 1)


class BufferTests(ConversationTestCase):
    """
    C{max_buffered=}.
    """

    def test_reading_is_paused_when_more_bytes_than_that_are_waiting(self) -> None:
        """
        Reading is paused when more bytes than that are waiting, and not at just as many.
        """
        waiting = Waiting()
        mta = started(full(envfrom=waiting), max_buffered=len(RCPT) * 2)
        mta.send(MAIL + RCPT, RCPT)
        self.assertEqual(mta.transport.producerState, "producing")
        mta.send(RCPT)
        self.assertEqual(mta.transport.producerState, "paused")
        # There is no telling whether this one has gone.
        mta.clock.advance(10)
        self.assertEqual(mta.transport.producerState, "paused")
        waiting.fire(SMFIS_CONTINUE)
        self.assertEqual(mta.letters(), "cccc")
        self.assertEqual(mta.transport.producerState, "producing")

    def test_stays_paused_while_the_next_answer_is_awaited(self) -> None:
        """
        It stays paused while the next answer is awaited.
        """
        waiting = Waiting()
        mta = started(full(envrcpt=waiting), max_buffered=10)
        self.assertEqual(mta.letters(MAIL + RCPT + RCPT), "c")
        self.assertEqual(mta.transport.producerState, "paused")
        waiting.fire(SMFIS_CONTINUE)
        self.assertEqual((mta.letters(), mta.transport.producerState), ("c", "paused"))
        waiting.fire(SMFIS_CONTINUE)
        self.assertEqual((mta.letters(), mta.transport.producerState), ("c", "producing"))

    def test_mta_that_does_not_read_is_not_read_from_for_ever_either(self) -> None:
        """
        An MTA that does not read its answers is not read from for ever either.
        """
        mta = started(full(), max_buffered=100)
        mta.protocol.pauseProducing()
        mta.send(MAIL + RCPT * 10)
        self.assertEqual(mta.transport.producerState, "paused")
        mta.protocol.resumeProducing()
        self.assertEqual(mta.letters(EOM), "c" * 12)
        self.assertEqual(mta.transport.producerState, "producing")

    def test_idle_keeps_nothing(self) -> None:
        """
        Nothing of what was read is kept once it was handled.
        """
        mta = started(full())
        mta.send(CONTENT + packet("B", b"x" * 60000) + EOM)
        splitter = mta.protocol._conversation.session.splitter
        self.assertEqual((splitter.buffer, splitter._pieces, splitter.queue), (b"", [], []))
