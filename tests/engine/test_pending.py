"""
Coroutines stepped by hand, and single answers that are awaited.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tests.contexts import member
from yatxmilter import Milter, MilterFactory
from yatxmilter._engine.awaitables import run_coroutine
from yatxmilter._engine.pending import Pending
from yatxmilter._wire.commands import EOM_ROW

SETTING: ContextVar[str] = ContextVar("SETTING", default="outside")


class CoroutineTests(SynchronousTestCase):
    """
    `run_coroutine`.
    """

    def result(self, coroutine: Any) -> Any:
        """
        Run one that awaits only what is there: not every Twisted lets it go on at once then.
        """
        result = run_coroutine(coroutine)
        return self.successResultOf(result) if isinstance(result, Deferred) else result

    def test_one_that_does_not_wait_gives_its_result_no_deferred(self) -> None:
        """
        One that does not wait gives its result, no Deferred, even if it awaits what is there.
        """

        async def plain() -> str:
            return "done"

        async def nested() -> str:
            return await plain()

        self.assertEqual(run_coroutine(plain()), "done")
        self.assertEqual(run_coroutine(nested()), "done")

    def test_raises_at_once(self) -> None:
        """
        One that raises before it waits raises here.
        """

        async def broken() -> None:
            raise ValueError("x")

        with self.assertRaises(ValueError):
            run_coroutine(broken())

    def test_waits_many_times(self) -> None:
        """
        One that waits gives a Deferred, which fires when it has come to its end.
        """
        waits: list[Deferred[int]] = [Deferred() for _ in range(3)]

        async def adding() -> int:
            return sum([await one for one in waits])

        result = run_coroutine(adding())
        assert isinstance(result, Deferred)
        for number, one in enumerate(waits):
            self.assertNoResult(result)
            one.callback(number)
        self.assertEqual(self.successResultOf(result), 3)

    def test_what_has_fired_already(self) -> None:
        """
        Deferreds that have fired before they are awaited are no obstacle, thousands in a row.
        """

        async def adding() -> int:
            total = 0
            for _ in range(5000):
                total += await succeed(1)
            return total

        self.assertEqual(self.result(adding()), 5000)

    def test_what_a_coroutine_raises_after_waiting_fails_the_deferred(self) -> None:
        """
        What it raises after waiting fails the Deferred.
        """
        wait: Deferred[None] = Deferred()

        async def broken() -> None:
            await wait
            raise ValueError("x")

        result = run_coroutine(broken())
        wait.callback(None)
        self.failureResultOf(result, ValueError)

    def test_cancelled_tasks_can_be_caught(self) -> None:
        """
        That a task of asyncio's was cancelled, which is no C{Exception}, comes out where awaited.
        """
        wait: Deferred[None] = Deferred()

        async def careful() -> str:
            try:
                await wait
            except asyncio.CancelledError:
                return "caught"
            return "not raised"

        result = run_coroutine(careful())
        assert isinstance(result, Deferred)
        wait.errback(Failure(asyncio.CancelledError()))
        self.assertEqual(self.successResultOf(result), "caught")

    def test_one_that_nobody_can_wake_any_more_ends_without_a_word(self) -> None:
        """
        One that nobody can wake any more ends without a word.
        """
        ended: list[type[BaseException] | None] = []
        complaints: list[Any] = []
        self.patch(sys, "unraisablehook", complaints.append)

        async def waiting(wait: Deferred[None]) -> None:
            try:
                await wait
            finally:
                ended.append(sys.exc_info()[0])

        run_coroutine(waiting(Deferred()))
        gc.collect()
        self.assertEqual((ended, complaints), ([GeneratorExit], []))

    def test_failures_can_be_caught(self) -> None:
        """
        What it awaits may fail, and it may go on, or not.
        """

        async def careful() -> str:
            try:
                await fail(KeyError("x"))
            except KeyError:
                return "caught"
            return "not raised"

        wait: Deferred[None] = Deferred()

        async def later() -> str:
            try:
                await wait
            except KeyError:
                return "caught"
            return "not raised"

        self.assertEqual(self.result(careful()), "caught")
        result = run_coroutine(later())
        wait.errback(KeyError("x"))
        self.assertEqual(self.successResultOf(result), "caught")

    def test_cancelling_it_cancels_what_it_awaits(self) -> None:
        """
        To cancel it cancels what it awaits; it may clean up, and even answer.
        """
        cleaned: list[str] = []

        async def tidy() -> None:
            try:
                await Deferred()
            finally:
                cleaned.append("up")

        async def stubborn() -> str:
            try:
                await Deferred()
            except CancelledError:
                return "all the same"
            return "not cancelled"

        first: Any = run_coroutine(tidy())
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.assertEqual(cleaned, ["up"])
        second: Any = run_coroutine(stubborn())
        second.cancel()
        self.assertEqual(self.successResultOf(second), "all the same")

    def test_what_it_sets_is_its_own_and_lasts_over_its_waits(self) -> None:
        """
        What it sets is its own, and lasts over its waits.
        """
        wait: Deferred[None] = Deferred()

        async def setting() -> str:
            SETTING.set("inside")
            await wait
            return SETTING.get()

        result = run_coroutine(setting())
        self.assertEqual(SETTING.get(), "outside")
        wait.callback(None)
        self.assertEqual(self.successResultOf(result), "inside")
        self.assertEqual(SETTING.get(), "outside")


class PendingTests(SynchronousTestCase):
    """
    `Pending`.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.settled: list[Any] = []

    def pending(self, deferred: Deferred[Any], timeout: float | None = None) -> Pending:
        """
        Make one of a milter with this time-out.
        """
        nobody: Any = None
        slow = Milter(MilterFactory(Milter, timeout=timeout, name="Slow"), nobody)
        return Pending(member(slow), EOM_ROW, deferred)

    def waiting(
        self, timeout: float | None = None, canceller: Callable[..., Any] | None = None
    ) -> tuple[Deferred[Any], Pending]:
        """
        Make one that is waited for.
        """
        deferred: Deferred[Any] = Deferred(canceller)
        pending = self.pending(deferred, timeout)
        pending.wait(self.clock, lambda one: self.settled.append(one.result))
        return deferred, pending

    def test_there_at_once(self) -> None:
        """
        A result that is there already is stored, and settled when it is waited for.
        """
        pending = self.pending(succeed(5))
        self.assertFalse(pending.waiting)
        self.assertEqual(pending.result, 5)
        pending.wait(self.clock, lambda one: self.settled.append(one.result))
        self.assertEqual(self.settled, [5])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_result_that_comes_is_settled_once_and_its_time_out_forgotten(self) -> None:
        """
        A result that comes is settled once, and its time-out forgotten.
        """
        deferred, pending = self.waiting(timeout=5)
        self.assertTrue(pending.waiting)
        deferred.callback(7)
        self.assertFalse(pending.waiting)
        self.assertEqual(self.settled, [7])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_failure_is_a_result_and_reported_by_nobody_else(self) -> None:
        """
        A failure is a result, and reported by nobody else.
        """
        deferred, _ = self.waiting()
        deferred.errback(ValueError("x"))
        (result,) = self.settled
        self.assertIsInstance(result, Failure)
        del deferred
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_when_its_time_is_over_it_is_cancelled(self) -> None:
        """
        When its time is over it is cancelled, and the result is a TimeoutError that says so.
        """
        cancelled: list[Any] = []
        _, pending = self.waiting(5, cancelled.append)
        self.clock.advance(4.9)
        self.assertEqual(self.settled, [])
        self.clock.advance(0.2)
        (result,) = self.settled
        result.trap(TimeoutError)
        self.assertIn("xxfi_eom", str(result.value))
        self.assertIn("5", str(result.value))
        self.assertEqual(len(cancelled), 1)
        self.assertFalse(pending.waiting)

    def test_answers_to_its_cancellation(self) -> None:
        """
        A value given when it is cancelled for being late does not count.
        """
        _, _ = self.waiting(5, lambda deferred: deferred.callback("at last"))
        self.clock.advance(6)
        (result,) = self.settled
        result.trap(TimeoutError)

    def test_one_that_is_cancelled_is_never_settled_whatever_comes_of_it(self) -> None:
        """
        One that is cancelled is never settled, whatever comes of it.
        """
        for canceller in (None, lambda d: d.callback(1), lambda d: d.errback(ValueError("x"))):
            _, pending = self.waiting(5, canceller)
            pending.cancel()
            pending.cancel()
            self.assertFalse(pending.waiting)
        self.clock.advance(10)
        self.assertEqual(self.settled, [])
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_fires_after_cancellation(self) -> None:
        """
        What comes after a cancellation is dropped without a word.
        """
        deferred, pending = self.waiting()
        pending.cancel()
        deferred.callback("too late")
        self.assertEqual(self.settled, [])

    def test_canceller_that_raises_is_logged_with_milters_name_and_stops_nothing(self) -> None:
        """
        A canceller that raises is logged with the milter's name, and stops nothing.
        """

        def broken(_: Any) -> None:
            raise ValueError("x")

        _, pending = self.waiting(5, broken)
        pending.cancel()
        self.assertFalse(pending.waiting)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
