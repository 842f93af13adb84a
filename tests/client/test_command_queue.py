"""
Tests of `yatxmilter.client._command_queue`: order, breaches, and how it all ends.

Everything is done through the client, whose lower half the exchange is.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import ITCPTransport, IUNIXTransport
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import alsoProvides

from tests.milterside import CONTINUE, NOTHING, OFFER, Rig, packet, stand_in_for_reactor
from yatxmilter import constants as c
from yatxmilter.client import MilterClient, PeerError


class OrderTests(SynchronousTestCase):
    """
    Commands may be asked for at any time, and are sent one after another.
    """

    def test_one_at_a_time(self) -> None:
        """
        A command is sent when those before it are answered, and gets its own answer.
        """
        rig = Rig()
        results = [rig.client.rcpt(f"<{n}@example.net>") for n in range(3)]
        for number, letter in enumerate("crc"):
            self.assertEqual(rig.sent(), [("R", f"<{number}@example.net>\0".encode())])
            rig.answer(letter)
        codes = [self.successResultOf(result).letter for result in results]
        self.assertEqual(bytes(codes), b"crc")

    def test_commands_asked_for_before_there_is_connection_are_sent_once_there_is(self) -> None:
        """
        Commands asked for before there is a connection are sent once there is.
        """
        rig = Rig(start=False)
        result = rig.client.negotiate()
        self.assertEqual(rig.written(), b"")
        rig.start()
        self.assertEqual(rig.written(), OFFER)
        self.assertNoResult(result)

    def test_agreement_counts_at_the_turn(self) -> None:
        """
        Whether a command is sent is decided when its turn comes.
        """
        rig = Rig()
        rig.client.negotiate()
        helo = rig.client.helo("h")
        rig.written()
        rig.client.dataReceived(b"\0\0\0\x0dO\0\0\0\6\0\0\0\0\0\0\0\2")
        self.assertEqual(rig.written(), b"")
        self.assertEqual(self.successResultOf(helo), NOTHING)

    def test_asked_from_a_callback(self) -> None:
        """
        A command asked for when another is answered comes after those that wait.
        """
        rig = Rig()
        rig.client.mail("<>").addCallback(lambda _: rig.client.eoh())
        rig.client.rcpt("<a>")
        sent = rig.serve()
        self.assertEqual([letter for letter, _ in sent], ["M", "R", "N"])

    def test_abort_and_quit_nc_are_done_when_they_are_written(self) -> None:
        """
        ABORT and QUIT_NC are done when they are written; they too wait for their turn.
        """
        rig = Rig()
        mail = rig.client.mail("<>")
        abort = rig.client.abort()
        quit_nc = rig.client.quit_nc()
        rig.written()
        self.assertNoResult(abort)
        rig.answer("c")
        self.assertEqual(rig.letters(), "AK")
        for result in (mail, abort, quit_nc):
            self.successResultOf(result)

    def test_turn_comes_when_all_before_it_are_answered_and_writes_nothing(self) -> None:
        """
        A turn comes when all before it are answered, and writes nothing.
        """
        rig = Rig()
        rig.client.mail("<>")
        turn = rig.client.turn()
        rig.written()
        self.assertNoResult(turn)
        rig.answer("c")
        self.successResultOf(turn)
        self.assertEqual(rig.written(), b"")

    def test_command_cancelled_before_its_turn_is_never_sent(self) -> None:
        """
        A command cancelled before its turn is never sent; the others go on.
        """
        rig = Rig()
        first, second, third = (rig.client.rcpt(f"<{n}>") for n in "abc")
        second.cancel()
        self.failureResultOf(second, CancelledError)
        self.assertEqual([payload for _, payload in rig.serve()], [b"<a>\0", b"<c>\0"])
        self.successResultOf(first)
        self.successResultOf(third)

    def test_cancelling_command_that_was_sent_ends_connection(self) -> None:
        """
        Cancelling a command that was sent ends the connection: its answer could come yet.
        """
        rig = Rig()
        first, second = rig.client.mail("<>"), rig.client.rcpt("<a>")
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.failureResultOf(second, PeerError)
        self.assertTrue(rig.transport.disconnected)
        self.assertEqual(rig.clock.getDelayedCalls(), [])


class BreachTests(SynchronousTestCase):
    """
    A milter that breaks the protocol is dropped, and the error says what it did.
    """

    ANSWERS = {
        ("mail", packet("Z")): "'Z'",
        ("mail", packet("c", b"x")): "payload",
        ("mail", packet("y", b"250 ok\0")): "malformed SMTP reply",
        ("mail", packet("h", b"A\0b\0")): "ADDHEADER in answer to MAIL",
        ("mail", packet("q", b"x\0")): "QUARANTINE in answer to MAIL",
        ("mail", packet("p", b"x")): "'p'",
        ("mail", packet("c") + packet("c")): "'c' unasked",
        ("mail", b"\0\0\0\0c"): "packet length 0",
        ("mail", b"HTTP/1.1 400\r\n"): "packet length",
        ("mail", b"\xff\xff\xff\xffc"): "packet length",
        ("end_of_message", packet("h", b"A\0b")): "malformed ADDHEADER",
        ("end_of_message", packet("b", b"x")): "SMFIF_CHGBODY",
    }

    def test_whatever_it_was_connection_ends_and_reason_is_given(self) -> None:
        """
        Whatever it was, the connection ends, and the reason is given.
        """
        for (name, data), words in self.ANSWERS.items():
            rig = Rig()
            rig.agree(actions=c.SMFIF_ADDHDRS)
            awaited = getattr(rig.client, name)(*(("<>",) if name == "mail" else ()))
            rig.client.dataReceived(data)
            error = self.failureResultOf(rig.client.eoh(), PeerError)
            self.assertIn(words, error.getErrorMessage())
            self.assertTrue(rig.transport.disconnected)
            self.assertEqual(rig.clock.getDelayedCalls(), [])
            if "unasked" in words:
                self.successResultOf(awaited)
            else:
                self.assertIs(self.failureResultOf(awaited).value, error.value)

    def test_what_came_before_command_was_sent_is_no_answer_to_it(self) -> None:
        """
        What came before a command was sent is no answer to it, nor to the next piece of a body.
        """
        rig = Rig()
        first, second = rig.client.mail("<>"), rig.client.rcpt("<a>")
        third = first.addCallback(lambda _: rig.client.data())
        rig.client.dataReceived(packet("c") + packet("c"))
        for result in (second, third):
            self.assertIn("'c' unasked", self.failureResultOf(result, PeerError).getErrorMessage())
        self.assertEqual(rig.letters(), "M")
        rig = Rig()
        body = rig.client.body(bytes(70_000))
        rig.client.dataReceived(packet("c") + packet("c"))
        self.assertIn("'c' unasked", self.failureResultOf(body, PeerError).getErrorMessage())

    def test_all_that_waits_behind_command_that_was_answered_wrongly_fails_with_it(self) -> None:
        """
        All that waits behind the command that was answered wrongly fails with it.
        """
        rig = Rig()
        results = [rig.client.mail("<>"), rig.client.rcpt("<a>"), rig.client.abort()]
        leaving = rig.client.quit()
        rig.answer("Z")
        for result in results:
            self.failureResultOf(result, PeerError)
        self.successResultOf(leaving)

    def test_without_negotiation_no_action_was_agreed(self) -> None:
        """
        Without negotiation no action was agreed.
        """
        rig = Rig()
        result = rig.client.end_of_message()
        rig.answer("h", b"A\0b\0")
        self.failureResultOf(result, PeerError)

    def test_after_breach_nothing_more_is_read_or_sent_and_every_command_fails(self) -> None:
        """
        After a breach nothing more is read or sent, and every command fails.
        """
        rig = Rig()
        result = rig.client.mail("<>")
        rig.client.dataReceived(packet("Z") + packet("c"))
        rig.client.dataReceived(packet("c"))
        rig.written()
        self.failureResultOf(result, PeerError)
        self.failureResultOf(rig.client.rcpt("<a>"), PeerError)
        self.assertEqual(rig.written(), b"")
        self.successResultOf(rig.client.quit())

    def test_progress_outside_command_is_let_pass(self) -> None:
        """
        PROGRESS outside a command is let pass: libmilter sends it from any callback.
        """
        rig = Rig()
        rig.client.abort()
        rig.answer("p")
        result = rig.client.mail("<>")
        rig.answer("c")
        self.assertEqual(self.successResultOf(result), CONTINUE)

    def test_response_of_megabyte_is_read(self) -> None:
        """
        A response of a megabyte is read; a longer one is refused as soon as its length is there.
        """
        rig = Rig()
        rig.agree()
        result = rig.client.end_of_message()
        rig.answer("b", bytes(c.MILTER_MDS_1M))
        self.assertNoResult(result)
        rig.client.dataReceived(b"\0\x10\0\1b")
        self.failureResultOf(result, PeerError)


class EndTests(SynchronousTestCase):
    """
    How connections end.
    """

    def test_when_milter_goes_away_everything_that_waits_fails(self) -> None:
        """
        When the milter goes away everything that waits fails, and says what was awaited.
        """
        rig = Rig()
        awaited, waiting = rig.client.mail("<>"), rig.client.rcpt("<a>")
        lost = ConnectionLost()
        rig.client.connectionLost(Failure(lost))
        error = self.failureResultOf(awaited, PeerError).value
        self.assertIn("MAIL", str(error))
        self.assertIs(error.__cause__, lost)
        self.failureResultOf(waiting, PeerError)
        self.failureResultOf(rig.client.eoh(), PeerError)
        self.assertEqual(rig.clock.getDelayedCalls(), [])

    def test_lost_while_idle(self) -> None:
        """
        A connection lost while nothing was awaited fails the next command.
        """
        rig = Rig()
        rig.transport.loseConnection()
        self.failureResultOf(rig.client.mail("<>"), PeerError)
        self.successResultOf(rig.client.quit())

    def test_cancel_in_errback(self) -> None:
        """
        Whoever is told of the end may cancel what waits behind.
        """
        rig = Rig()
        awaited, waiting = rig.client.mail("<>"), rig.client.rcpt("<a>")
        awaited.addErrback(lambda _: waiting.cancel())
        rig.transport.loseConnection()
        self.successResultOf(awaited)
        self.failureResultOf(waiting, CancelledError)

    def test_quit_is_done_when_milter_has_closed_connection(self) -> None:
        """
        QUIT is done when the milter has closed the connection; what it still says is ignored.
        """
        rig = Rig()
        result = rig.client.quit()
        self.assertEqual(rig.letters(), "Q")
        rig.answer("p")
        rig.answer("Z")
        self.assertNoResult(result)
        rig.transport.loseConnection()
        self.assertIsNone(self.successResultOf(result))
        self.assertEqual(rig.clock.getDelayedCalls(), [])

    def test_milter_that_does_not_close_after_quit_has_connection_closed_for_it(self) -> None:
        """
        A milter that does not close after QUIT has the connection cut off: over TLS it would have
        to agree to an orderly end.
        """
        rig = Rig()
        result = rig.client.quit()
        rig.clock.advance(4.9)
        self.assertNoResult(result)
        rig.clock.advance(0.1)
        self.successResultOf(result)
        self.assertTrue(rig.transport.disconnected)

    def test_command_asked_for_after_quit_fails_when_connection_is_closed(self) -> None:
        """
        A command asked for after QUIT fails when the connection is closed.
        """
        rig = Rig()
        rig.client.quit()
        result = rig.client.mail("<>")
        rig.transport.loseConnection()
        self.failureResultOf(result, PeerError)

    def test_milter_that_is_silent_for_too_long_is_dropped(self) -> None:
        """
        A milter that is silent for too long is dropped.
        """
        rig = Rig(timeout=30)
        result = rig.client.mail("<>")
        rig.clock.advance(29.9)
        self.assertNoResult(result)
        rig.clock.advance(0.1)
        error = self.failureResultOf(result, PeerError)
        self.assertIn("MAIL", error.getErrorMessage())
        self.assertTrue(rig.transport.disconnected)

    def test_each_answer_and_each_chunk_of_body_has_whole_time(self) -> None:
        """
        Each answer, and each chunk of a body, has the whole time.
        """
        rig = Rig(timeout=30)
        result = rig.client.body(bytes(131071))
        for _ in range(3):
            self.assertNoResult(result)
            rig.clock.advance(29)
            rig.answer("c")
        self.successResultOf(result)
        self.assertEqual(rig.clock.getDelayedCalls(), [])

    def test_progress_gives_milter_more_time_and_is_reported(self) -> None:
        """
        PROGRESS gives the milter more time, and is reported.
        """
        told: list[str] = []
        rig = Rig(timeout=30, progress=told.append)
        result = rig.client.end_of_message()
        for _ in range(5):
            rig.clock.advance(29)
            rig.answer("p")
        rig.answer("c")
        self.assertEqual(self.successResultOf(result).progress, 5)
        self.assertEqual(told, ["BODYEOB"] * 5)

    def test_without_timeout_answer_is_awaited_for_ever(self) -> None:
        """
        Without a timeout an answer is awaited for ever.
        """
        rig = Rig(timeout=None)
        result = rig.client.mail("<>")
        rig.answer("p")
        self.assertEqual(rig.clock.getDelayedCalls(), [])
        self.assertNoResult(result)

    def test_without_clock_of_ones_own_it_is_reactors(self) -> None:
        """
        Without a clock of one's own it is the reactor's.
        """
        clock = Clock()
        stand_in_for_reactor(self, clock)
        client = MilterClient(timeout=5)
        client.makeConnection(StringTransport())
        result = client.mail("<>")
        clock.advance(5)
        self.failureResultOf(result, PeerError)

    def test_on_tcp_and_there_alone_small_writes_are_sent_at_once(self) -> None:
        """
        On TCP, and there alone, small writes are sent at once.
        """
        for interfaces, expected in (
            ((), []),
            ((ITCPTransport,), [True]),
            # Twisted's UNIX transports provide both, and older ones fail when they are asked.
            ((ITCPTransport, IUNIXTransport), []),
        ):
            transport: Any = StringTransport()
            set_to: list[bool] = []
            transport.setTcpNoDelay = set_to.append
            if interfaces:
                alsoProvides(transport, *interfaces)
            MilterClient().makeConnection(transport)
            self.assertEqual(set_to, expected)
