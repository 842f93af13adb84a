"""
Two texts, line by line: what is different, in a time that grows with their length.

`difflib` compares as people would, in a time that may grow with the square of the length, or worse.
So it is given short pieces only: what both texts begin and end with is taken away, and what is left
is cut at the lines that each of the two has once, as far as these are in the same order. What is
long, and has no such line in it, is told as taken out and put in.
"""

from __future__ import annotations

import difflib
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

__all__ = ["unified_lines"]

# Pieces are compared by difflib if the product of their lengths is no more than this.
_SHORT: Final = 250_000

_Piece = tuple[int, int, int, int]


def unified_lines(
    before: Sequence[str], after: Sequence[str], context: int = 3
) -> Iterator[tuple[str, str]]:
    """
    Give the lines of a unified diff: each with its mark, which is ``"-"``, ``"+"``, ``" "``, or
    ``"@"`` for a line that names a place.

    :param context: How many lines are shown around what is different.
    """
    for group in _Matcher(before, after).get_grouped_opcodes(context):
        (_, begin, _, new_begin, _), (_, _, end, _, new_end) = group[0], group[-1]
        old, new = _range(begin, end), _range(new_begin, new_end)
        yield "@", f"@@ -{old} +{new} @@"
        for tag, start, stop, new_start, new_stop in group:
            if tag == "equal":
                yield from ((" ", line) for line in before[start:stop])
                continue
            yield from (("-", line) for line in before[start:stop])
            yield from (("+", line) for line in after[new_start:new_stop])


def _range(start: int, stop: int) -> str:
    # Of no line the place before it is told, of one line its number alone.
    length = stop - start
    if length == 1:
        return str(start + 1)
    return f"{start + 1 if length else start},{length}"


class _Matcher(difflib.SequenceMatcher[str]):
    """
    A matcher that compares short pieces only.
    """

    def __init__(self, before: Sequence[str], after: Sequence[str]) -> None:
        # Without lines: it would make an index of them, which nobody needs.
        super().__init__(None, (), ())
        self._before = before
        self._after = after

    def get_matching_blocks(self) -> list[difflib.Match]:
        """
        Give what is the same, piece by piece, and an empty piece for the end.
        """
        blocks: list[list[int]] = []
        for start, new_start, length in self._same((0, len(self._before), 0, len(self._after))):
            last = blocks[-1] if blocks else [0, 0, 0]
            if (start, new_start) == (last[0] + last[2], last[1] + last[2]) and blocks:
                last[2] += length
            elif length:
                blocks.append([start, new_start, length])
        blocks.append([len(self._before), len(self._after), 0])
        return [difflib.Match(*block) for block in blocks]

    def _same(self, piece: _Piece) -> Iterator[tuple[int, int, int]]:
        (begin, end, new_begin, new_end), head, tail = self._trimmed(piece)
        yield begin - head, new_begin - head, head
        if (end - begin) * (new_end - new_begin) <= _SHORT:
            yield from self._compared(begin, end, new_begin, new_end)
        else:
            for start, stop, new_start, new_stop in self._cut(begin, end, new_begin, new_end):
                inner, first, last = self._trimmed((start, stop, new_start, new_stop))
                yield start, new_start, first
                if (inner[1] - inner[0]) * (inner[3] - inner[2]) <= _SHORT:
                    yield from self._compared(*inner)
                yield inner[1], inner[3], last
        yield end, new_end, tail

    def _trimmed(self, piece: _Piece) -> tuple[_Piece, int, int]:
        """
        Take away what both begin and end with; tell how many lines that was.
        """
        begin, end, new_begin, new_end = piece
        before, after = self._before, self._after
        head = tail = 0
        while begin < end and new_begin < new_end and before[begin] == after[new_begin]:
            begin, new_begin, head = begin + 1, new_begin + 1, head + 1
        while begin < end and new_begin < new_end and before[end - 1] == after[new_end - 1]:
            end, new_end, tail = end - 1, new_end - 1, tail + 1
        return (begin, end, new_begin, new_end), head, tail

    def _compared(
        self, begin: int, end: int, new_begin: int, new_end: int
    ) -> Iterator[tuple[int, int, int]]:
        lines = self._before[begin:end], self._after[new_begin:new_end]
        for start, new_start, length in difflib.SequenceMatcher(None, *lines).get_matching_blocks():
            yield begin + start, new_begin + new_start, length

    def _cut(self, begin: int, end: int, new_begin: int, new_end: int) -> Iterator[_Piece]:
        """
        Cut at the lines that both have once.
        """
        before, after = self._before, self._after
        counts = Counter(before[begin:end]), Counter(after[new_begin:new_end])
        places = {after[place]: place for place in range(new_begin, new_end)}
        pairs = [
            (place, places[before[place]])
            for place in range(begin, end)
            if counts[0][before[place]] == counts[1][before[place]] == 1
        ]
        for place, new_place in _rising(pairs):
            yield begin, place, new_begin, new_place
            # A line by itself, so that it is found: each piece begins with what is the same.
            begin, new_begin = place, new_place
        yield begin, end, new_begin, new_end


def _rising(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """
    Choose as many pairs as possible whose second numbers rise, as the first ones do.
    """
    ends: list[int] = []
    chosen: list[int] = []
    before: list[int] = []
    for number, (_, value) in enumerate(pairs):
        row = bisect_left(ends, value)
        if row == len(ends):
            ends.append(value)
            chosen.append(number)
        else:
            ends[row], chosen[row] = value, number
        before.append(chosen[row - 1] if row else -1)
    result = []
    number = chosen[-1] if chosen else -1
    while number >= 0:
        result.append(pairs[number])
        number = before[number]
    return result[::-1]
