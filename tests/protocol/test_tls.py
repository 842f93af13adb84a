"""
Connections over TLS, in memory.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import INegotiated
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs, formatEvent
from twisted.protocols.policies import WrappingFactory
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from tests.conversation_helpers import BODY, HELO, QUIT, Waiting, full, offer, parse
from tests.secure import SecureMta, certificate
from yatxmilter import MilterFactory, MilterProtocolFactory
from yatxmilter.defaults import MilterObserver
from yatxmilter.protocol import _connection, _life_cycle
from yatxmilter.protocol._tls import tls_failure


class _Faults(MilterObserver):
    """
    Takes note of what MTAs do wrong.
    """

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def mta_failed(self, connection: object, kind: str, description: str) -> None:
        self.seen.append((kind, description))


class TlsTests(SynchronousTestCase):
    """
    A connection over TLS.
    """

    def setUp(self) -> None:
        """
        Skip where there is no TLS.
        """
        certificate()
        self.clock = Clock()
        self.faults = _Faults()

    def connect(self, cls: Any = None, wrap: Any = lambda factory: factory) -> SecureMta:
        """
        Connect to a milter.
        """
        self.factory = MilterProtocolFactory(
            MilterFactory(full() if cls is None else cls),
            reactor=self.clock,
            command_timeout=10,
            timeout=100,
            observers=[self.faults],
        )
        return SecureMta(wrap(self.factory), self.clock)

    def the_end(self, mta: SecureMta) -> None:
        """
        Check that nothing is left.
        """
        mta.lose()
        self.assertEqual(self.factory.connections, set())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_one_that_is_not_read_is_gone_when_it_has_ended(self) -> None:
        """
        A connection of which too much waits for a milter, and which is given up, is closed as soon
        as the MTA agrees: it is read from for that.
        """
        mta = self.connect(full(helo=Waiting()))
        mta.shake_hands()
        mta.send(offer())
        mta.send(HELO + BODY * 200_000)
        self.assertEqual(mta.transport.producerState, "paused")
        for connection in self.factory.connections:
            connection.give_up()
        mta.carry()
        self.assertEqual([letter for letter, _ in parse(mta.received)], ["O", "t"])
        self.assertFalse(mta.closed)
        mta.agree_to_close()
        self.assertTrue(mta.closed)
        self.the_end(mta)

    def test_one_that_ends_while_a_callback_runs_elsewhere_is_gone_afterwards(self) -> None:
        """
        So is one that ends while the reactor goes on without a callback, when that is over.
        """
        mta = self.connect()
        mta.shake_hands()
        mta.send(offer())
        (connection,) = self.factory.connections
        connection.rest()
        connection.give_up()
        mta.carry()
        mta.agree_to_close()
        self.assertFalse(mta.closed)
        connection.go_on()
        mta.carry()
        self.assertTrue(mta.closed)
        self.the_end(mta)

    def test_handshake_takes_no_longer_than_a_command(self) -> None:
        """
        A handshake may take no longer than a command, and is not made longer by single bytes.
        """
        mta = self.connect()
        with capturedLogs() as logs:
            for byte in b"\x16\x03\x01\x01\x00":
                self.assertFalse(mta.closed)
                mta.protocol.dataReceived(bytes([byte]))
                self.clock.advance(2)
        self.assertTrue(mta.closed)
        self.assertEqual(self.faults.seen, [("tls", "took too long over the TLS handshake")])
        (text,) = map(formatEvent, logs)
        self.assertIn("took too long over the TLS handshake; closing the connection", text)
        self.the_end(mta)

    def test_after_the_handshake_the_mta_has_the_time_that_others_have(self) -> None:
        """
        After the handshake the MTA may be silent for as long as others; also where a wrapper is in
        between, which is not told of a handshake.
        """
        for wrap in (lambda factory: factory, WrappingFactory):
            mta = self.connect(wrap=wrap)
            mta.shake_hands()
            self.clock.advance(99)
            mta.send(offer() + HELO)
            self.clock.advance(99)
            mta.send(QUIT)
            mta.agree_to_close()
            self.assertEqual([letter for letter, _ in parse(mta.received)], ["O", "c"])
            self.assertEqual(self.faults.seen, [])
            self.the_end(mta)

    def test_handshake_may_be_over_before_the_milters_have_started(self) -> None:
        """
        A handshake that is over, or not, when the milters have started, is not waited for twice.
        """
        for early in (True, False):
            started: Deferred[None] = Deferred()

            class Slow(MilterFactory):
                start = staticmethod(lambda started=started: started)

            self.factory = MilterProtocolFactory(
                Slow(full()), reactor=self.clock, command_timeout=10, observers=[self.faults]
            )
            self.factory.startFactory()
            mta = SecureMta(self.factory, self.clock)
            if early:
                # Not every transport rests at once.
                mta.transport.resumeProducing()
                mta.shake_hands()
            started.callback(None)
            if not early:
                mta.shake_hands()
            self.clock.advance(99)
            mta.send(offer())
            self.assertEqual([letter for letter, _ in parse(mta.received)], ["O"])
            self.assertEqual(self.faults.seen, [])
            self.the_end(mta)

    def test_handshake_of_one_that_is_not_served_is_nobodys_business(self) -> None:
        """
        Nor is one waited for that is over when the milters have failed to start.
        """
        waiting = _life_cycle.Waiting(lambda: None, lambda _: None, lambda _: None)
        waiting.makeConnection(StringTransport(lenient=True))
        waiting.go_on()
        waiting.handshakeCompleted()

    def test_handshake_that_is_over_later_is_passed_on(self) -> None:
        """
        A handshake that is over when the milters have started is passed on to who waits for it.
        """
        self.factory = MilterProtocolFactory(
            MilterFactory(full()), reactor=self.clock, command_timeout=10, observers=[self.faults]
        )
        built = self.factory.buildProtocol(None)
        assert built is not None
        waiting = _life_cycle.Waiting(lambda: built, lambda _: None, lambda _: None)
        self.patch(_connection, "announces_handshake", lambda transport: True)
        waiting.makeConnection(StringTransport())
        waiting.go_on()
        waiting.handshakeCompleted()
        self.clock.advance(99)
        self.assertEqual(self.faults.seen, [])
        waiting.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_mta_that_does_not_speak_tls_is_told_of(self) -> None:
        """
        The log and observers are told of an MTA that does not speak TLS.
        """
        mta = self.connect()
        with capturedLogs() as logs:
            mta.protocol.dataReceived(offer())
            self.assertTrue(mta.closed)
            self.the_end(mta)
        ((kind, words),) = self.faults.seen
        self.assertEqual(kind, "tls")
        self.assertRegex(words, "failed in TLS: [a-z ]+$")
        (text,) = map(formatEvent, logs)
        self.assertIn(f"{words}; closing the connection", text)

    def test_mta_that_is_gone_is_not(self) -> None:
        """
        They are not told of one that has simply gone, or was closed.
        """
        mta = self.connect()
        mta.shake_hands()
        with capturedLogs() as logs:
            self.the_end(mta)
        self.assertEqual((self.faults.seen, logs), ([], []))


@implementer(INegotiated)
class _Secure:
    """
    What a transport of TLS is.
    """


class FailureTests(SynchronousTestCase):
    """
    What is said of a failure.
    """

    def test_reasons_are_said_on_one_line(self) -> None:
        """
        OpenSSL's reasons are said, other errors as they say it themselves, or by their name.
        """
        secure = _Secure()
        for error, words in (
            (Exception([("", "", "bad\n"), ("", "", "b")]), r"bad\n; b"),
            (Exception(-1, "end"), "(-1, 'end')"),
            (Exception([object]), "[<class 'object'>]"),
            (ValueError(), "ValueError"),
            (ConnectionDone(), None),
        ):
            self.assertEqual(tls_failure(secure, Failure(error)), words)
        self.assertIsNone(tls_failure(object(), Failure(ValueError())))
