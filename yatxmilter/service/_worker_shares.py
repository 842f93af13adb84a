"""
Sharing connections out evenly between processes that listen on the same sockets.

The system wakes all of them for a connection, and whoever is first has it. Left alone, that gives
one of two twice as many as the other, and held connections stay as they fell. So the workers have
some numbers in common, in memory that they share: how many connections each has, and how many it
has taken. One that is ahead of another leaves a connection that comes to the others for some
moments. If none of them takes anything meanwhile - they may be busy - it takes it after all, and
has less patience the next time, until one of them takes something.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from array import array
from typing import Final

__all__ = ["Share", "shared_numbers"]

# Two numbers for each worker: its connections, below 0 while it takes none; how many it has taken.
_EACH: Final = 2
_NONE: Final = -1

# A worker is ahead with this many connections more than another, and this part of its own.
_BAND: Final = 1
_PART: Final = 32
# For so many moments it leaves a connection to the others.
_PATIENCE: Final = 10


def shared_numbers(count: int) -> int:
    """
    Open the memory that so many workers share.

    :return: A descriptor.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("yatxmilter workers")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.pwrite(descriptor, array("q", [_NONE, 0] * count).tobytes(), 0)
    return descriptor


class Share:
    """
    What one worker has of all connections.

    :param descriptor: Of `shared_numbers`; it may be closed afterwards.
    :param number: Which worker this is, from 0.
    """

    def __init__(self, descriptor: int, number: int) -> None:
        self._numbers = memoryview(mmap.mmap(descriptor, 0)).cast("q")
        self._own = number * _EACH
        # What the others had taken when they were last looked at; for how many moments a connection
        # is left to them, and for how many it has been.
        self._taken = -1
        self._patience = self._moments = 0

    def begin(self) -> None:
        """
        Take connections from now on.
        """
        self._numbers[self._own] = 0

    def end(self) -> None:
        """
        Take none any more.
        """
        self._numbers[self._own] = _NONE

    def took(self) -> None:
        """
        Take note that a connection was taken.
        """
        self._numbers[self._own + 1] += 1

    def leaves(self, connections: int) -> bool:
        """
        Tell whether a connection that has come is to be left to others for now.

        :param connections: How many this worker has.
        """
        numbers, own = self._numbers, self._own
        numbers[own] = connections
        least, taken = connections, 0
        for place in range(0, len(numbers), _EACH):
            if place != own and numbers[place] >= 0:
                least = min(least, numbers[place])
                taken += numbers[place + 1]
        if taken != self._taken:
            self._taken, self._patience, self._moments = taken, _PATIENCE, 0
        if connections <= least + _BAND + connections // _PART:
            return False
        if self._moments == self._patience:
            self._patience //= 2
            self._moments = 0
            return False
        self._moments += 1
        return True
