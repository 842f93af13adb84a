"""
Time limits strike when they should, and not a moment sooner.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.growth import assert_linear
from yatxmilter.protocol._time_limits import LOOKS, TimeLimit


class One:
    """
    What a limit counts for.
    """

    def __init__(self) -> None:
        self.moved = 0.0


class TimeLimitTests(SynchronousTestCase):
    """
    One limit, of several.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.passed: list[Any] = []
        self.one = One()

    def limit(self, seconds: float | None = 10) -> TimeLimit[One]:
        return TimeLimit(lambda: self.clock, seconds, self.note, lambda one: one.moved)

    def note(self, one: One) -> None:
        self.passed.append((one, self.clock.seconds()))

    def test_strikes_once_when_the_time_is_over(self) -> None:
        """
        It strikes once, when the time is over, and leaves no timer.
        """
        self.limit().start(self.one)
        self.clock.advance(9.99)
        self.assertEqual(self.passed, [])
        self.clock.advance(0.01)
        self.assertEqual(self.passed, [(self.one, 10)])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_one_that_was_not_started_or_has_no_limit_makes_no_timer(self) -> None:
        """
        One that was not started, or has no limit, makes no timer.
        """
        self.limit()
        self.limit(None).start(self.one)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_to_start_what_counts_changes_nothing(self) -> None:
        """
        To start what counts changes nothing.
        """
        limit = self.limit()
        limit.start(self.one)
        self.clock.advance(9)
        limit.start(self.one)
        self.clock.advance(1)
        self.assertEqual(self.passed, [(self.one, 10)])

    def test_mark_of_something_that_moved_puts_it_off_exactly(self) -> None:
        """
        A mark of something that moved puts it off, exactly.
        """
        self.limit().start(self.one)
        self.clock.advance(7)
        self.one.moved = self.clock.seconds()
        self.clock.pump([3, 6.9])
        self.assertEqual(self.passed, [])
        self.clock.advance(0.1)
        self.assertEqual(self.passed, [(self.one, 17)])

    def test_stopped_transport_is_not_struck_and_leaves_no_timer(self) -> None:
        """
        What was stopped is not struck, and leaves no timer; started again it counts from then.
        """
        limit = self.limit()
        limit.start(self.one)
        self.clock.advance(5)
        limit.stop(self.one)
        limit.stop(self.one)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.clock.advance(1)
        limit.start(self.one)
        self.clock.pump([4, 5.9])
        self.assertEqual(self.passed, [])
        self.clock.advance(0.1)
        self.assertEqual(self.passed, [(self.one, 16)])

    def test_each_is_struck_at_its_own_time_by_one_timer_for_all(self) -> None:
        """
        Each is struck at its own time, by one timer for all.
        """
        limit, others = self.limit(), [One() for _ in range(3)]
        for other in others:
            limit.start(other)
            self.clock.advance(2)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        limit.stop(others[1])
        self.clock.pump([4, 2, 2])
        self.assertEqual(self.passed, [(others[0], 10), (others[2], 14)])

    def test_with_many_due_it_strikes_late_by_part_of_the_limit_at_most(self) -> None:
        """
        Where many are due one after the other it strikes late by a part of the limit at most, and
        looks that seldom.
        """
        limit, looks = self.limit(), 0
        for _ in range(1000):
            one = One()
            one.moved = self.clock.seconds()
            limit.start(one)
            self.clock.advance(0.01)
        call_later = self.clock.callLater

        def counting(*arguments: Any) -> Any:
            nonlocal looks
            looks += 1
            return call_later(*arguments)

        self.clock.callLater = counting
        self.clock.pump([0.01] * 1020)
        late = [when - one.moved - 10 for one, when in self.passed]
        self.assertEqual(len(late), 1000)
        self.assertGreaterEqual(min(late), -0.001)
        self.assertLessEqual(max(late), 10 / LOOKS + 0.011)
        self.assertLessEqual(looks, 2 * LOOKS + 2)

    def test_one_ends_others(self) -> None:
        """
        What was stopped while another one was struck is not struck.
        """
        limit: TimeLimit[One] = TimeLimit(lambda: self.clock, 10, lambda one: end(one))
        other = One()

        def end(one: One) -> None:
            self.note(one)
            limit.stop(other)

        limit.start(self.one)
        limit.start(other)
        self.clock.advance(10)
        self.assertEqual(self.passed, [(self.one, 10)])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_what_is_struck_may_be_started_again_then_beside_others(self) -> None:
        """
        What is struck may be started again then, beside others.
        """
        limit: TimeLimit[One] = TimeLimit(lambda: self.clock, 10, lambda one: again(one))

        def again(one: One) -> None:
            self.note(one)
            if one is self.one:
                limit.start(one)

        limit.start(self.one)
        limit.start(One())
        self.clock.advance(10)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.advance(10)
        self.assertEqual([when for one, when in self.passed if one is self.one], [10, 20])

    def test_error_at_one_is_logged_and_the_others_are_struck(self) -> None:
        """
        An error at one is logged, and the others are struck.
        """
        limit: TimeLimit[One] = TimeLimit(lambda: self.clock, 10, lambda one: fail(one))

        def fail(one: One) -> None:
            if one is self.one:
                raise ZeroDivisionError
            self.note(one)

        limit.start(self.one)
        limit.start(One())
        self.clock.advance(10)
        self.assertEqual(len(self.passed), 1)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_to_look_at_twice_as_many_takes_twice_as_long(self) -> None:
        """
        To look at twice as many takes twice as long.
        """

        def prepare(count: int) -> Callable[[], object]:
            ones = [One() for _ in range(count)]

            def look() -> None:
                clock = Clock()
                limit: TimeLimit[One] = TimeLimit(lambda: clock, 10, self.passed.append)
                for one in ones:
                    limit.start(one)
                clock.advance(10)

            return look

        assert_linear(prepare, 500)
