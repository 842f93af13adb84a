"""
Tests of `yatxmilter._records.differing`: what is different in two texts.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.growth import assert_linear
from tests.helpers import STEADY
from yatxmilter._records import differing
from yatxmilter._records.differing import unified_lines

Lines = list[str]

TEXTS = st.lists(st.sampled_from(["a", "b", "c", *map(str, range(12))]), max_size=30)


class DifferingTests(SynchronousTestCase):
    """
    A unified diff.
    """

    @given(TEXTS, TEXTS, st.sampled_from([0, 9, 100, differing._SHORT]))
    @STEADY
    def test_both_texts_are_there(self, before: Lines, after: Lines, short: int) -> None:
        """
        With all of their lines shown, both texts can be read from it, however it was made.
        """
        self.patch(differing, "_SHORT", short)
        told = list(unified_lines(before, after, 100))
        self.assertEqual(bool(told), before != after)
        if told:
            self.assertEqual([line for mark, line in told if mark in " -"], before)
            self.assertEqual([line for mark, line in told if mark in " +"], after)

    def test_as_difflib_does(self) -> None:
        """
        Short texts are compared as the standard library does it.
        """
        before = [*map(str, range(40))]
        for after in (
            ["new", *before],
            [*before, "new"],
            [*before[:20], *before[21:]],
            [*before[:5], "x", *before[5:30], "y", "z"],
            [],
            before[:1],
        ):
            for context in (1, 3):
                told = [
                    line if mark == "@" else mark + line
                    for mark, line in unified_lines(before, after, context)
                ]
                expected = difflib.unified_diff(before, after, n=context, lineterm="")
                self.assertEqual(told, [*expected][2:])

    def test_in_long_texts_what_is_the_same_is_found_by_lines(self) -> None:
        """
        In long texts what is the same is found by lines that are there once.
        """
        before = [str(number // 2) if number % 10 else f"once {number}" for number in range(5000)]
        after = ["top", *before[:2500], "middle", *before[2501:], "end"]
        told = [line for mark, line in unified_lines(before, after, 0) if mark in "+-"]
        self.assertEqual(told, ["top", before[2500], "middle", "end"])

    def test_time_of_comparing_grows_with_the_length(self) -> None:
        """
        The time grows with the length, also where nothing helps to find what is the same.
        """

        def rows(old: Callable[[int], int], new: Callable[[int], int]) -> None:
            def prepare(size: int) -> Callable[[], object]:
                before = [str(old(number)) for number in range(size)]
                after = [str(new(number)) for number in range(size)]
                return lambda: sum(1 for _ in unified_lines(before, after))

            assert_linear(prepare, 1000)

        rows(lambda number: number % 100, lambda number: number * 7 % 100)
        rows(lambda number: number, lambda number: number if number % 3 else -number)
        rows(lambda number: number, lambda number: -number)
        rows(lambda number: 1, lambda number: 2)
