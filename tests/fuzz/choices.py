"""
Bytes read as decisions, so that whoever makes up bytes makes up a course of events.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

_T = TypeVar("_T")


class Choices:
    """
    Decisions taken from bytes; when they are used up all decisions are the first choice.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    def __bool__(self) -> bool:
        return self._place < len(self._data)

    def below(self, bound: int) -> int:
        """
        Choose a number from 0 to below ``bound``, which is at most 256.
        """
        self._place += 1
        taken = self._data[self._place - 1 : self._place]
        return taken[0] % bound if taken else 0

    def one_in(self, many: int) -> bool:
        """
        Choose the rare case once in so many times.
        """
        return self.below(many) == many - 1

    def pick(self, among: Sequence[_T]) -> _T:
        """
        Choose one.
        """
        return among[self.below(len(among))]

    def bits(self) -> int:
        """
        Choose 32 bits.
        """
        return int.from_bytes(bytes(self.below(256) for _ in range(4)), "big")

    def take(self, most: int) -> bytes:
        """
        Choose some bytes.
        """
        return bytes(self.below(256) for _ in range(self.below(most + 1)))
