"""
Chance that is the same everywhere: on each Python, and wherever else something was drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TypeVar

_T = TypeVar("_T")


class Chance:
    """
    A stream of random choices that depends on its name alone.

    Only ``Random.random`` is used: its numbers are promised to be the same in every version.

    :param name: Anything that tells this stream apart from others.
    """

    def __init__(self, *name: object) -> None:
        self._random = Random("/".join(map(str, name))).random

    def whether(self, probability: float) -> bool:
        """
        Say yes with a probability.
        """
        return self._random() < probability

    def number(self, least: int, most: int) -> int:
        """
        Draw a whole number, both ends included.
        """
        return least + int(self._random() * (most - least + 1))

    def pick(self, choices: Sequence[_T]) -> _T:
        """
        Draw one of several.
        """
        return choices[int(self._random() * len(choices))]

    def some(self, choices: Sequence[_T], probability: float) -> list[_T]:
        """
        Draw each with a probability; their order stays.
        """
        return [each for each in choices if self._random() < probability]

    def weighed(self, choices: Sequence[tuple[float, _T]]) -> _T:
        """
        Draw one of several, each of which has a weight before it.
        """
        rest = self._random() * sum(weight for weight, _ in choices)
        for weight, each in choices:
            rest -= weight
            if rest < 0:
                return each
        return choices[-1][1]
