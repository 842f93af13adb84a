"""
Where the generator's choices come from: a seeded random number generator, or Hypothesis.

The generator asks for everything through `Source`, so what Hypothesis shrinks and what `python -m
tests.libmilter` runs by the hundred thousand are the same cases. Options are given simplest first:
Hypothesis shrinks towards them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Source(Protocol):
    """Somebody who makes choices."""

    def choice(self, options: Sequence[T]) -> T:
        """Choose one of several."""

    def integer(self, low: int, high: int) -> int:
        """Choose a number, both ends included."""

    def chance(self, percent: int) -> bool:
        """Say yes in so many cases of a hundred."""


class RandomSource:
    """Choices by a seed; fast."""

    def __init__(self, seed: int | str) -> None:
        self._random = random.Random(seed).random

    def choice(self, options: Sequence[T]) -> T:
        """Choose one of several."""
        return options[int(self._random() * len(options))]

    def integer(self, low: int, high: int) -> int:
        """Choose a number, both ends included."""
        return low + int(self._random() * (high - low + 1))

    def chance(self, percent: int) -> bool:
        """Say yes in so many cases of a hundred."""
        return self._random() * 100 < percent


class HypothesisSource:
    """Choices that Hypothesis draws, and can draw again more simply."""

    def __init__(self, draw: Callable[[Any], Any]) -> None:
        from hypothesis import strategies

        self._draw = draw
        self._strategies = strategies

    def choice(self, options: Sequence[T]) -> T:
        """Choose one of several."""
        chosen: T = options[self.integer(0, len(options) - 1)]
        return chosen

    def integer(self, low: int, high: int) -> int:
        """Choose a number, both ends included."""
        number: int = self._draw(self._strategies.integers(low, high))
        return number

    def chance(self, percent: int) -> bool:
        """Say yes in so many cases of a hundred."""
        return self.integer(0, 99) >= 100 - percent
