"""
Work that is done in pieces: a generator that yields between them, and returns what came of it.

Whoever does it in the reactor's thread lets other connections have their turns in between.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final, TypeVar

__all__ = ["PIECE", "done_at_once"]

T = TypeVar("T")

#: So many header fields are a piece of work: it takes about a millisecond.
PIECE: Final = 1000


def done_at_once(work: Generator[None, None, T]) -> T:
    """
    Do work without a pause, and give what comes of it.
    """
    while True:
        try:
            next(work)
        except StopIteration as done:
            result: T = done.value
            return result
