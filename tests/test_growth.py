"""
The measure of growth tells linear work from quadratic work.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from tests.growth import MOST, assert_linear, growth


def linear(size: int) -> Callable[[], object]:
    return lambda: sum(range(size * 100))


def quadratic(size: int) -> Callable[[], object]:
    return lambda: sum(sum(range(size)) for _ in range(size))


class GrowthTests(SynchronousTestCase):
    """
    Both kinds of work are recognised.
    """

    def test_linear_work_passes(self) -> None:
        """
        Work in proportion to its size is called linear.
        """
        assert_linear(linear, 1000)

    def test_quadratic_work_fails(self) -> None:
        """
        Work in proportion to the square of its size is not.
        """
        self.assertGreater(growth(quadratic, 500), MOST)
