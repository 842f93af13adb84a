"""
The measure of growth tells linear work from quadratic work.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from tests import growth


def linear(size: int) -> Callable[[], object]:
    return lambda: sum(range(size * 100))


def quadratic(size: int) -> Callable[[], float]:
    return lambda: size * size * 1e-6


class GrowthTests(SynchronousTestCase):
    """
    Both kinds of work are recognised.
    """

    def test_linear_work_passes(self) -> None:
        """
        Work in proportion to its size is called linear.
        """
        growth.assert_linear(linear, 1000)

    def test_quadratic_work_fails(self) -> None:
        """
        Work in proportion to the square of its size is not.
        """
        # It says what it costs: work that is measured until it is slow would make this test slow.
        self.patch(growth, "traced", lambda: False)
        self.patch(growth, "cost", lambda work, rounds=2: work())
        self.assertGreater(growth.growth(quadratic, 10), growth.MOST)
        with self.assertRaisesRegex(AssertionError, "costs 16.0 times as much, at most 8"):
            growth.assert_linear(quadratic, 10)

    def test_one_slow_round_does_not_make_linear_work_quadratic(self) -> None:
        """
        Linear work is linear at some size, however busy the machine is at another.
        """
        slow = iter([1, 30, 1, 30, 1, 1, 1, 1])
        self.patch(growth, "traced", lambda: False)
        self.patch(growth, "cost", lambda work, rounds=2: work() * next(slow))
        growth.assert_linear(lambda size: lambda: size / 100, 10)
