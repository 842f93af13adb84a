"""
Callbacks in threads: their order, their number, and what becomes of those nobody waits for.
"""

from __future__ import annotations

import threading
from typing import Any

import Milter
import milter
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.pymilter.programs import wait_for
from yatxmilter.pymilter import factory
from yatxmilter.pymilter._pace import Pace
from yatxmilter.pymilter._threads import Lane, Threads
from yatxmilter.testing import InMemoryMTA, MilterTestFailure

MESSAGE = b"Subject: hello\n\nbody\n"


class Errand:
    """
    Something to do, and whether it was refused.
    """

    def __init__(self, do: Any) -> None:
        self.run = do
        self.refused: BaseException | None = None

    def refuse(self, error: BaseException) -> None:
        self.refused = error


class ThreadsTests(SynchronousTestCase):
    """
    Lanes and threads by themselves.
    """

    def setUp(self) -> None:
        self.threads = Threads(most_idle=2)
        self.addCleanup(self.threads.stop)

    def test_what_lane_has_to_do_is_done_in_order_one_thing_at_time(self) -> None:
        """
        What a lane has to do is done in order, one thing at a time.
        """
        done: list[int] = []
        lane = Lane(self.threads)
        for number in range(100):
            lane.put(Errand(lambda number=number: done.append(number)))
        wait_for(lambda: not lane.busy)
        self.assertEqual(done, list(range(100)))

    def test_few_idle_threads(self) -> None:
        """
        As many threads as lanes wait; when they are done a few are kept, and used again.
        """
        gate = threading.Event()
        lanes = [Lane(self.threads) for _ in range(20)]
        for lane in lanes:
            lane.put(Errand(gate.wait))
        self.assertEqual(self.threads.count, 20)
        gate.set()
        wait_for(lambda: self.threads.count == 2)
        seen: list[int] = []
        lanes[0].put(Errand(lambda: seen.append(threading.get_ident())))
        wait_for(lambda: seen and not lanes[0].busy)
        self.assertEqual(self.threads.count, 2)

    def test_when_stopped_no_thread_is_kept_what_is_in_progress_is_done(self) -> None:
        """
        When stopped no thread is kept; what is in progress is done.
        """
        gate = threading.Event()
        done: list[bool] = []
        idle, working = Lane(self.threads), Lane(self.threads)
        idle.put(Errand(lambda: None))
        wait_for(lambda: not idle.busy and self.threads._idle)
        working.put(Errand(gate.wait))
        idle.put(Errand(lambda: None))
        wait_for(lambda: self.threads._idle)
        working.put(Errand(lambda: done.append(True)))
        self.threads.stop()
        gate.set()
        wait_for(lambda: self.threads.count == 0)
        self.assertEqual(done, [True])
        self.threads.start()
        idle.put(Errand(lambda: None))
        wait_for(lambda: self.threads.count == 1 and self.threads._idle)

    def test_no_more_threads(self) -> None:
        """
        Where the system gives no thread each thing to do is told so, and later ones are done.
        """
        real = threading.Thread.start

        def fails(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        self.patch(threading.Thread, "start", fails)
        lane = Lane(self.threads)
        errand = Errand(lambda: None)
        lane.put(errand)
        self.assertIsInstance(errand.refused, RuntimeError)
        self.assertEqual(self.threads.count, 0)
        self.patch(threading.Thread, "start", real)
        done: list[bool] = []
        lane.put(Errand(lambda: done.append(True)))
        wait_for(lambda: done)


class PaceTests(SynchronousTestCase):
    """
    Which callbacks are slow.
    """

    def test_callback_is_slow_from_its_first_slow_call_on(self) -> None:
        """
        A callback is slow from its first slow call on, until it has been quick for a while.
        """
        pace = Pace()
        pace.note("eom", 0.0)
        self.assertEqual(pace.slow, {})
        pace.note("eom", None)
        for _ in range(49):
            pace.note("eom", 0.0)
        self.assertIn("eom", pace.slow)
        pace.note("eom", 0.0)
        self.assertEqual(pace.slow, {})
        pace.note("eom", 1.0)
        self.assertIn("eom", pace.slow)


class HopClock(Clock):
    """
    A clock that takes calls from other threads, and makes them when told to.
    """

    def __init__(self) -> None:
        super().__init__()
        self.hops: list[Any] = []

    def callFromThread(self, function: Any, *arguments: Any) -> None:
        self.hops.append((function, arguments))

    def work(self) -> None:
        while self.hops:
            function, arguments = self.hops.pop(0)
            function(*arguments)


class AdapterTests(SynchronousTestCase):
    """
    Callbacks of a connection in a thread.
    """

    def mta(self, milter_class: type, **options: Any) -> InMemoryMTA:
        """
        Make an MTA on a clock with threads.
        """
        self.clock = HopClock()
        self.factory = factory(milter_class, **options)
        made = InMemoryMTA(self.factory, clock=self.clock)

        def finish() -> None:
            self.clock.work()
            try:
                made.finish()
            except MilterTestFailure as failure:
                self.failures = str(failure)
            self.flushLoggedErrors()
            self.clock.work()
            self.factory.stop()

        self.addCleanup(finish)
        return made

    def settle(self, answer: Any) -> Any:
        """
        Do what threads ask for, until there is an answer.
        """

        def done() -> bool:
            self.clock.work()
            return bool(answer.done)

        wait_for(done)
        return answer

    def test_callbacks_run_in_other_threads_than_engine_in_order(self) -> None:
        """
        Callbacks run in other threads than the engine, in order, with their edits and progress.
        """
        threads: set[int] = set()
        calls: list[str] = []

        class Mine(Milter.Base):
            def envfrom(self, *arguments: Any) -> int:
                calls.append(f"envfrom {self.getsymval('j')}")
                threads.add(threading.get_ident())
                return Milter.CONTINUE

            def header(self, name: str, value: str) -> int:
                calls.append(name)
                return Milter.CONTINUE

            def eom(self) -> int:
                threads.add(threading.get_ident())
                self.progress()
                self.addheader("X-Thread", "yes")
                calls.append("eom")
                return Milter.ACCEPT

            def close(self) -> int:
                calls.append("close")
                return Milter.CONTINUE

        mta = self.mta(Mine)
        self.factory.start()
        session = mta.session()
        sent = self.settle(mta.send(MESSAGE, session=session))
        self.assertEqual(sent.delivered.message["X-Thread"], "yes")
        session.quit()
        wait_for(lambda: "close" in calls)
        self.assertEqual(calls, ["envfrom mta.example.com", "Subject", "eom", "close"])
        self.assertNotIn(threading.get_ident(), threads)

    def test_what_is_raised_in_thread_is_answered_as_policy_says(self) -> None:
        """
        What is raised in a thread is answered as the policy says.
        """

        class Mine(Milter.Base):
            def eom(self) -> int:
                raise SystemExit(1)

        sent = self.settle(self.mta(Mine).send(MESSAGE))
        self.assertIn("untrapped exception in Mine", str(sent.reply))

    def test_abort_is_not_lost(self) -> None:
        """
        A client that goes away in a callback is told of behind it, with the macros of that time.
        """
        gate = threading.Event()
        calls: list[Any] = []

        class Mine(Milter.Base):
            def eom(self) -> int:
                calls.append("eom")
                gate.wait()
                for function, arguments in (
                    (self.addheader, ("X-Late", "x")),
                    (self.getsymval, ("j",)),
                ):
                    try:
                        function(*arguments)
                    except milter.error as error:
                        calls.append(str(error)[:12])
                return Milter.ACCEPT

            def abort(self) -> int:
                calls.append(f"abort {self.getsymval('i')}")
                return Milter.CONTINUE

            def close(self) -> int:
                calls.append("close")
                return Milter.CONTINUE

        mta = self.mta(Mine)
        session = mta.session()
        mta.send(MESSAGE, session=session)

        def begun() -> bool:
            self.clock.work()
            mta.flush()
            return "eom" in calls

        wait_for(begun)
        session.vanish()
        gate.set()
        wait_for(lambda: "close" in calls)
        late = "the callback"
        self.assertEqual(calls, ["eom", late, late, "abort 4TEST0001", "close"])

    def test_callback_that_is_late(self) -> None:
        """
        A callback that takes longer than the factory allows is answered for, and can do no more.
        """
        gate = threading.Event()
        calls: list[str] = []

        class Mine(Milter.Base):
            def envfrom(self, *arguments: Any) -> int:
                calls.append(f"envfrom {arguments[0]}")
                gate.wait()
                return Milter.CONTINUE

        mta = self.mta(Mine, timeout=10)
        session = mta.session()
        answer = session.mail("<a@example.com>")

        def begun() -> bool:
            self.clock.work()
            mta.flush()
            return bool(calls)

        wait_for(begun)
        mta.advance(11)
        self.assertEqual(self.settle(answer).reply.code, 451)
        # This one waits in the lane, is given up, and is never begun.
        second = session.mail("<b@example.com>")
        mta.advance(11)
        self.assertEqual(self.settle(second).reply.code, 451)
        gate.set()
        wait_for(lambda: not mta.milters[0]._lane.busy)
        self.assertEqual(calls, ["envfrom <a@example.com>"])
        session.vanish()

    def test_where_there_are_no_more_threads_callback_has_failed(self) -> None:
        """
        Where there are no more threads the callback has failed.
        """

        def fails(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        class Mine(Milter.Base):
            pass

        mta = self.mta(Mine)
        self.patch(threading.Thread, "start", fails)
        session = mta.session()
        self.clock.work()
        self.assertRaises(MilterTestFailure, lambda: session.agreement)
