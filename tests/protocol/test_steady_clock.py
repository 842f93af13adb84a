"""
Tests of `yatxmilter.protocol._steady_clock`: deadlines hold when the system's clock is set.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from typing import Any

from twisted.internet import reactor
from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred
from twisted.internet.error import AlreadyCalled, AlreadyCancelled
from twisted.internet.interfaces import IReactorTime
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from tests.conversation_helpers import full
from tests.helpers import close_reactor
from yatxmilter import MilterFactory, MilterProtocolFactory
from yatxmilter.client import MilterClient
from yatxmilter.client._in_memory import connect_in_memory
from yatxmilter.protocol._steady_clock import _ALARM, SteadyClock, steady
from yatxmilter.remote import RemoteMilterFactory
from yatxmilter.smtp._pacing import PacedESMTP


class Reactor(ReactorBase):
    """
    A reactor that is turned by hand, and whose time can be set.
    """

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.woken = threading.Event()
        super().__init__()

    def seconds(self) -> float:
        return self.now

    def installWaker(self) -> None:
        pass

    def wakeUp(self) -> None:
        self.woken.set()

    def turn(self) -> None:
        """
        Wait to be woken, and do what is due.
        """
        if not self.woken.wait(60):
            raise AssertionError("nothing wakes the reactor")
        self.woken.clear()
        self.runUntilCurrent()


class ClosedReactorTests(SynchronousTestCase):
    """
    A reactor that has given back the descriptor which wakes it.
    """

    def test_closed_reactor_is_not_woken(self) -> None:
        """
        Nothing is written to a descriptor that may be another file's by now.
        """
        reactor = SelectReactor()
        clock = SteadyClock(reactor)
        written: list[int] = []
        self.patch(os, "write", lambda descriptor, data: written.append(descriptor))
        clock.wake()
        self.assertEqual(len(written), 1)
        close_reactor(reactor)
        clock.wake()
        self.assertEqual(len(written), 1)


class SharedTests(SynchronousTestCase):
    """
    What clocks cost a process.
    """

    def test_clocks_of_many_reactors_share_a_thread_and_its_descriptors(self) -> None:
        """
        A hundred reactors that were timed once leave neither threads nor descriptors behind.
        """
        steady(Reactor()).callLater(1000, lambda: None)
        descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
        for _ in range(100):
            steady(Reactor()).callLater(1000, lambda: None)
        self.assertEqual(threading.active_count(), threads)
        self.assertLess(len(os.listdir("/proc/self/fd")), descriptors + 50)

    def test_what_is_due_is_called_though_nobody_keeps_the_clock(self) -> None:
        """
        A call is made even if neither it nor the clock is kept.
        """
        reactor = Reactor()
        called: list[bool] = []
        steady(reactor).callLater(0.001, called.append, True)
        gc.collect()
        while not called:
            reactor.turn()
        self.assertEqual(called, [True])


class SteadyTests(SynchronousTestCase):
    """
    A clock on a reactor whose own goes wrong.
    """

    def setUp(self) -> None:
        self.reactor = Reactor()
        self.clock = SteadyClock(self.reactor)
        self.called: list[str] = []

    def call(self, seconds: float, name: str) -> Any:
        return self.clock.callLater(seconds, self.called.append, name)

    def turn(self, *names: str) -> None:
        """
        Let the reactor turn until these were called.
        """
        while len(self.called) < len(names):
            self.reactor.turn()
        self.assertEqual(self.called, list(names))

    def test_clock_takes_the_place_of_the_reactor_as_far_as_time_goes(self) -> None:
        """
        It is what takes the place of a reactor as far as time goes.
        """
        verifyObject(IReactorTime, self.clock)
        self.assertLessEqual(self.clock.seconds(), time.monotonic())

    def test_clock_set_back(self) -> None:
        """
        What is due is called in its order, though the reactor's time is set back.
        """
        last = self.call(1000, "last")
        for name in ("first", "second", "third"):
            self.call(0.01, name)
        self.reactor.now -= 3600
        self.turn("first", "second", "third")
        last.cancel()

    def test_clock_set_ahead(self) -> None:
        """
        Nothing is called before its time when it is set ahead.
        """
        call = self.call(1000, "never")
        self.reactor.now += 3600
        self.reactor.runUntilCurrent()
        self.assertEqual((self.called, self.clock.getDelayedCalls()), ([], [call]))
        call.cancel()

    def test_in_the_reactors_thread(self) -> None:
        """
        What is called is called in the reactor's thread, by no other.
        """
        threads: list[int] = []
        self.clock.callLater(0.001, lambda: threads.append(threading.get_ident()))
        while not threads:
            self.reactor.turn()
        self.assertEqual(threads, [threading.get_ident()])

    def test_no_time_at_all_is_the_reactors_next_turn(self) -> None:
        """
        No time at all is the reactor's next turn.
        """
        self.call(0, "now")
        self.reactor.runUntilCurrent()
        self.assertEqual(self.called, ["now"])
        self.assertRaises(ValueError, self.call, -1, "before")

    def test_one_that_is_cancelled_is_not_called_and_says_so(self) -> None:
        """
        One that is cancelled is not called, and says so.
        """
        cancelled = self.call(0.001, "cancelled")
        cancelled.cancel()
        self.assertRaises(AlreadyCancelled, cancelled.cancel)
        last = self.call(0.002, "last")
        self.assertEqual(self.clock.getDelayedCalls(), [last])
        self.turn("last")
        self.assertRaises(AlreadyCalled, last.cancel)

    def test_cancelled_time_outs_do_not_stay(self) -> None:
        """
        Those that are cancelled do not stay: most time-outs never come.
        """
        last = self.call(5000, "last")
        for _ in range(10_000):
            self.call(1000, "no").cancel()
        self.assertLess(len(self.clock._calls), 200)
        self.assertEqual(self.clock.getDelayedCalls(), [last])
        last.cancel()

    def test_strike_may_be_moved_to_an_earlier_time(self) -> None:
        """
        One may be moved to an earlier time, from now or from where it was.
        """
        reset, delayed = self.call(1000, "reset"), self.call(2000, "delayed")
        reset.reset(0.001)
        self.turn("reset")
        delayed.delay(-2000)
        self.turn("reset", "delayed")

    def test_one_may_be_moved_to_a_later_time_and_back(self) -> None:
        """
        One may be moved to a later time, and back.
        """
        moved, back = self.call(0.001, "moved"), self.call(0.001, "back")
        moved.delay(1000)
        back.reset(1000)
        back.reset(0.01)
        self.turn("back")
        self.assertEqual(self.clock.getDelayedCalls(), [moved])
        moved.cancel()

    def test_what_is_due_in_years_keeps_nothing_else_from_its_time(self) -> None:
        """
        What is due in a month, or in more seconds than the system can wait, keeps nothing else from
        its time.
        """
        for seconds in (3e6, 1e300):
            self.call(seconds, "never")
            for _ in range(20):
                self.called.clear()
                self.call(0.001, "soon")
                self.turn("soon")

    def test_one_that_fails_is_logged_and_the_others_are_called(self) -> None:
        """
        One that fails is logged, and the others are called.
        """
        self.clock.callLater(0.001, lambda: [][0])
        self.call(0.001, "other")
        self.turn("other")
        self.assertEqual(len(self.flushLoggedErrors(IndexError)), 1)

    def test_more_wakes_than_are_heard(self) -> None:
        """
        Any number of deadlines, each before the last one, can be set in a row.
        """
        for number in range(3000):
            self.call(5000 - number, "no").cancel()
        self.call(0.001, "yes")
        self.turn("yes")

    def test_in_a_forked_process_it_is_woken_too(self) -> None:
        """
        In a process that was forked, where no thread is, it is woken too.
        """
        self.call(0.001, "parent")
        self.turn("parent")
        alarm = _ALARM
        (before,) = [one for one in threading.enumerate() if one.name == "yatxmilter clock"]
        alarm._process = os.getpid() + 1
        self.call(0.001, "child")
        self.turn("parent", "child")
        self.assertEqual(alarm._process, os.getpid())
        # Whose alarm cannot be set any more does not go on, least of all in circles.
        before.join(30)
        self.assertFalse(before.is_alive())

    def test_what_is_steady(self) -> None:
        """
        A reactor of Twisted's has one clock; what tests take for one is left as it is.
        """
        for one in (Clock(), MemoryReactorClock(), self.clock):
            self.assertIs(steady(one), one)
        self.assertIs(steady(self.reactor), steady(self.reactor))
        self.assertIsInstance(steady(self.reactor), SteadyClock)


class ReactorTests(TestCase):
    """
    The running reactor, whose time is set back in the middle.
    """

    def set_back(self) -> None:
        """
        Set its time back by an hour.
        """
        self.patch(reactor, "seconds", lambda: time.time() - 3600)

    async def test_callback_that_is_late(self) -> None:
        """
        A callback's time-out, progress and the client's time-out come in time.
        """
        wait: Deferred[None] = Deferred()
        slow = MilterFactory(full(eom=lambda *_: wait), timeout=0.2)
        factory = MilterProtocolFactory(slow, progress_interval=0.05)
        progress: list[str] = []
        client = MilterClient(timeout=30, progress=progress.append)
        connect_in_memory(client, factory)
        await client.negotiate()
        await client.mail("<a@example.org>")
        await client.rcpt("<b@example.org>")
        asked = client.end_of_message()
        self.set_back()
        end = await asked
        self.assertEqual(str(end.response.code), "SMFIS_TEMPFAIL")
        self.assertGreater(len(progress), 0)
        self.flushLoggedErrors(TimeoutError)
        client.transport.abortConnection()  # type: ignore[union-attr]
        connection: Deferred[None] = Deferred()
        steady(reactor).callLater(0, connection.callback, None)
        self.patch(reactor, "seconds", time.time)
        await connection

    async def test_drains_time_out_comes_in_time(self) -> None:
        """
        A drain's time-out comes in time.
        """
        factory = MilterProtocolFactory(MilterFactory(full()))
        client = MilterClient()
        connect_in_memory(client, factory)
        await client.negotiate()
        await client.mail("<a@example.org>")
        drained = factory.drain(0.1)
        self.set_back()
        await drained
        self.assertEqual(factory.connections, set())
        self.patch(reactor, "seconds", time.time)

    def test_whose_clock_it_is(self) -> None:
        """
        Wherever Twisted's reactor is the clock, it is this one; what connects is the reactor.
        """
        for options in ({}, {"reactor": reactor}):
            self.assertIs(MilterProtocolFactory((), **options).clock, steady(reactor))
            remote = RemoteMilterFactory("inet:1@localhost", **options)
            self.assertIs(remote.connections.clock, steady(reactor))
            self.assertIs(remote.connections.reactor, reactor)

    async def test_smtp_clients_time_is_measured_so_too(self) -> None:
        """
        An SMTP client's time is measured so, too.
        """
        passed: Deferred[None] = Deferred()
        server: Any = PacedESMTP()
        server.timeoutConnection = lambda: passed.callback(None)
        server.setTimeout(0.05)
        self.set_back()
        await passed
        self.patch(reactor, "seconds", time.time)
