"""
Tests of draining: C{MilterProtocolFactory.drain} in every state a connection may be in.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from tests.conversation_helpers import (
    CONNECT,
    HELO,
    MAIL,
    PEER,
    QUIT_NC,
    RCPT,
    STAGES,
    Conversation,
    ConversationTestCase,
    Waiting,
    full,
    milter,
    names,
    offer,
    packet,
    started,
)
from yatxmilter import MilterFactory, MilterProtocolFactory
from yatxmilter.constants import SMFIS_CONTINUE
from yatxmilter.protocol._draining import Drains


class StuckTransport(StringTransport):
    """
    A transport whose peer does not read: it is closed by force only.
    """

    protocol: Any

    def abortConnection(self) -> None:
        self.aborted = True
        self.protocol.connectionLost(Failure(ConnectionAborted()))


class DrainTestCase(ConversationTestCase):
    """
    Tests that drain.
    """

    def drain(self, mta: Conversation, seconds: float | None = None) -> list[object]:
        """
        Drain; the list gets an item when that is done.
        """
        done: list[object] = []
        mta.factory.drain(seconds).addCallback(done.append)
        return done


class StateTests(DrainTestCase):
    """
    What becomes of a connection.
    """

    def test_with_no_connection_there_is_nothing_to_wait_for_and_no_timer(self) -> None:
        """
        With no connection there is nothing to wait for, and no timer.
        """
        mta = Conversation(full())
        mta.drop()
        self.assertEqual(self.drain(mta, 10), [None])
        self.assertEqual(mta.clock.getDelayedCalls(), [])

    def test_connection_between_messages_is_closed_at_once(self) -> None:
        """
        A connection between messages is closed at once, whether anything was said on it or not.
        """
        for said in (
            b"",
            offer(),
            offer() + CONNECT,
            offer() + CONNECT + HELO,
            offer() + MAIL + packet("A"),
            offer() + CONNECT + QUIT_NC,
        ):
            tester = full()
            mta = Conversation(tester)
            mta.send(said)
            self.assertEqual(self.drain(mta, 10), [None], said)
            self.assertTrue(mta.closed)
            self.assertEqual(names(tester.calls).count("close"), 1 + said.endswith(QUIT_NC))
            self.assertEqual(mta.clock.getDelayedCalls(), [])

    def test_message_in_progress_is_finished_first(self) -> None:
        """
        A message in progress is finished first; then the connection is closed.
        """
        mta = started(full())
        mta.send(MAIL + RCPT)
        done = self.drain(mta)
        self.assertEqual(mta.letters(RCPT), "c")
        self.assertEqual((mta.closed, done), (False, []))
        self.assertEqual(mta.letters(packet("E")), "c")
        self.assertEqual((mta.closed, done), (True, [None]))

    def test_message_is_aborted(self) -> None:
        """
        It is finished, too, when the MTA aborts it or it is refused.
        """
        for said, answer in ((packet("A"), ""), (RCPT, "a")):
            mta = started(full(envrcpt=3))
            mta.send(MAIL)
            done = self.drain(mta)
            self.assertEqual(mta.letters(said), answer)
            self.assertEqual((mta.closed, done), (True, [None]))

    def test_at_each_stage_awaited_answer_is_given_before_connection_is_closed(self) -> None:
        """
        At each stage an awaited answer is given before the connection is closed.
        """
        for stage, (before, command) in STAGES.items():
            waiting = Waiting()
            mta = started(full(**{stage: waiting}))
            mta.send(before)
            self.assertEqual(mta.letters(command), "")
            done = self.drain(mta, 10)
            self.assertEqual((mta.closed, done), (False, []), stage)
            waiting.fire(SMFIS_CONTINUE)
            self.assertEqual(mta.letters(), "c", stage)
            in_message = before.startswith(MAIL) or stage == "envfrom"
            if in_message and stage != "eom":
                self.assertFalse(mta.closed, stage)
                mta.send(packet("A"))
            self.assertEqual((mta.closed, done), (True, [None]), stage)
            self.assertEqual(mta.clock.getDelayedCalls(), [], stage)

    def test_negotiation_that_is_awaited_is_answered_before_connection_is_closed(self) -> None:
        """
        A negotiation that is awaited is answered before the connection is closed.
        """
        waiting = Waiting()
        mta = Conversation(full(negotiate=waiting))
        mta.send(offer())
        done = self.drain(mta, 10)
        self.assertEqual((mta.closed, done), (False, []))
        waiting.fire()
        self.assertEqual(mta.letters(), "O")
        self.assertEqual((mta.closed, done), (True, [None]))

    def test_drained_by_a_milter(self) -> None:
        """
        A callback may drain; the connection that it is called for gets its answer.
        """
        drained: list[Deferred[None]] = []
        tester = full(helo=lambda self, *_: drained.append(self.protocol.factory.drain()))
        mta = started(tester)
        self.assertEqual(mta.letters(HELO), "c")
        self.assertTrue(mta.closed)
        self.successResultOf(drained[0])


class TimeTests(DrainTestCase):
    """
    When the time is over.
    """

    def test_at_each_stage_the_awaited_answer_is_cancelled_in_time(self) -> None:
        """
        At each stage an awaited answer is cancelled, not a second too early; TEMPFAIL is given for
        it, once, and the connection closed.
        """
        for stage, (before, command) in STAGES.items():
            waiting = Waiting()
            tester = full(**{stage: waiting})
            mta = started(tester, progress_interval=None)
            mta.send(before)
            mta.send(command)
            done = self.drain(mta, 10)
            mta.clock.advance(9.9)
            self.assertEqual((mta.letters(), mta.closed, waiting.cancelled), ("", False, 0), stage)
            mta.clock.advance(0.1)
            self.assertEqual((mta.letters(), mta.closed, waiting.cancelled), ("t", True, 1), stage)
            self.assertEqual(done, [None])
            called = names(tester.calls)
            in_message = before.startswith(MAIL) or stage == "envfrom"
            self.assertEqual(
                (called.count("abort"), called.count("close")), (int(in_message), 1), stage
            )
            self.assertEqual(mta.clock.getDelayedCalls(), [], stage)
        self.assertIn("Closing 1 connections that did not come to an end in time", self.log_text())

    def test_no_answer_owed(self) -> None:
        """
        Where no answer is owed none is given: in a silent step, in negotiation, between commands.
        """
        for options, said in (
            (
                {"header": Waiting(), "quiet": ("header",)},
                [offer(), MAIL + RCPT + packet("T"), packet("L", b"A\0b\0")],
            ),
            ({"negotiate": Waiting()}, [offer()]),
            ({"abort": Waiting()}, [offer(), MAIL, packet("A")]),
            ({}, [offer(), MAIL]),
        ):
            mta = Conversation(full(**options))
            mta.send(*said)
            done = self.drain(mta, 10)
            mta.clock.advance(10)
            self.assertEqual((mta.letters(), mta.closed, done), ("", True, [None]), said)

    def test_body_chunk_in_bodyeob_is_owed_answer_of_end_of_message(self) -> None:
        """
        A body chunk in BODYEOB is owed the answer of the end of message, in a silent step too.
        """
        mta = started(full(body=Waiting(), quiet=("body",)))
        mta.send(MAIL + RCPT + packet("T") + packet("N"), packet("E", b"last"))
        self.drain(mta, 10)
        mta.clock.advance(10)
        self.assertEqual(mta.letters(), "t")

    def test_peer_does_not_read(self) -> None:
        """
        A connection that does not let itself be closed is cut off five seconds later.
        """
        mta = Conversation(full())
        mta.drop()
        transport = StuckTransport()
        protocol = mta.factory.buildProtocol(PEER)
        transport.protocol = protocol
        protocol.makeConnection(transport)
        protocol.dataReceived(offer() + MAIL)
        protocol.pauseProducing()
        done = self.drain(mta, 10)
        mta.clock.advance(10)
        self.assertEqual((transport.disconnecting, done), (True, []))
        mta.clock.advance(4.9)
        self.assertEqual(done, [])
        mta.clock.advance(0.1)
        self.assertEqual((transport.aborted, done), (True, [None]))
        self.assertEqual(mta.clock.getDelayedCalls(), [])

    def test_without_a_time_out_it_waits_for_ever(self) -> None:
        """
        Without a time-out it waits for ever.
        """
        mta = started(full(), timeout=None)
        mta.send(MAIL)
        done = self.drain(mta, None)
        mta.clock.advance(10**6)
        self.assertEqual((mta.closed, done), (False, []))

    def test_time_out_that_is_none_is_refused(self) -> None:
        """
        A time-out that is none is refused, and connections are taken as before.
        """
        mta = started(full())
        self.assertRaises(ValueError, mta.factory.drain, -1)
        self.assertRaises(TypeError, mta.factory.drain, "1")
        self.assertNotEqual(mta.factory.buildProtocol(PEER), None)


class RepeatedTests(DrainTestCase):
    """
    Draining, and again.
    """

    def test_no_new_connections(self) -> None:
        """
        While draining no connection is taken, nor after it; the log says why.
        """
        mta = started(full())
        mta.send(MAIL)
        self.drain(mta)
        self.assertEqual(mta.factory.buildProtocol(PEER), None)
        mta.send(packet("A"))
        self.assertEqual(mta.factory.buildProtocol(PEER), None)
        self.assertIn("[192.0.2.25]:4242: it is shutting down", self.log_text())

    def test_each_call_has_its_deferred_and_its_time(self) -> None:
        """
        Each call has its Deferred and its time; the shorter one ends the connections.
        """
        mta = started(full())
        mta.send(MAIL)
        first = self.drain(mta, 20)
        second = self.drain(mta, 10)
        third = self.drain(mta)
        mta.clock.advance(10)
        self.assertEqual((first, second, third), ([None], [None], [None]))
        self.assertEqual(mta.clock.getDelayedCalls(), [])
        self.assertEqual(self.drain(mta), [None])

    def test_is_done_when_the_last_connection_has_gone(self) -> None:
        """
        It is done when the last connection has gone.
        """
        mta = started(full())
        mta.send(MAIL)
        first, first_transport = mta.protocol, mta.transport
        mta.connect()
        mta.send(offer() + MAIL)
        done = self.drain(mta, 10)
        mta.send(packet("A"))
        self.assertEqual(done, [])
        first.dataReceived(packet("A"))
        self.assertEqual((first_transport.connected, done), (False, [None]))

    def test_factory_that_is_started_again_takes_connections(self) -> None:
        """
        A factory that is started again takes connections; a drain before that does not end them.
        """
        mta = started(full())
        mta.send(MAIL)
        done = self.drain(mta, 10)
        mta.factory.startFactory()
        old = mta.transport
        mta.connect()
        mta.send(offer() + MAIL)
        mta.clock.advance(10)
        self.assertEqual((old.connected, mta.closed, done), (False, False, [None]))
        self.assertEqual(self.drain(mta, 10), [])

    def test_told_in_turn(self) -> None:
        """
        Who is told that one drain is done may cause another to be done.
        """
        drains = Drains(lambda: None)
        told: list[str] = []

        class Nothing:
            transport = None

            def give_up(self) -> None:
                pass

        one = Nothing()

        def first(_: None) -> None:
            told.append("first")
            drains.gone(one)

        drains.start([one], None).addCallback(first)
        drains.start([one], None).addCallback(lambda _: told.append("second"))
        drains.gone(one)
        self.assertEqual(sorted(told), ["first", "second"])

    def test_real_reactor_untouched(self) -> None:
        """
        A factory without connections drains without a look at the clock.
        """
        factory = MilterProtocolFactory(MilterFactory(milter()))
        self.successResultOf(factory.drain(10))
        self.assertEqual(factory._clock, None)
