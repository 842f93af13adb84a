"""
Tests of `yatxmilter._mail.ordered`: a sequence whose items are found by their number, at any size.
"""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.growth import assert_linear
from tests.helpers import STEADY
from yatxmilter._mail.ordered import Ordered

_CHANGES = st.lists(st.tuples(st.booleans(), st.integers(0, 40), st.booleans()), max_size=60)


class OrderedTests(SynchronousTestCase):
    """
    It does what a list would do.
    """

    @given(st.lists(st.booleans(), max_size=20), _CHANGES)
    @settings(STEADY, max_examples=150)
    def test_as_a_list(self, start: list[bool], changes: list[tuple[bool, int, bool]]) -> None:
        """
        Whatever is inserted, wherever, and made to count or not, all are found by their numbers.
        """
        plain = [[number, counts] for number, counts in enumerate(start)]
        ordered = Ordered(enumerate(start))
        for number, (inserts, place, counts) in enumerate(changes, 1000):
            node = ordered.at(place)
            if inserts:
                ordered.insert(number, counts, node)
                plain.insert(place, [number, counts])
            elif node is not None:
                ordered.recount(node, counts)
                plain[place][1] = counts
        self.assertEqual([[node.item, node.counts] for node in ordered], plain)
        labels = [node.label for node in ordered]
        self.assertEqual(labels, sorted(set(labels)))
        counted = [number for number, counts in plain if counts]
        ignored = [number for number, counts in plain if not counts]
        self.assertEqual(ordered.ignored(), len(ignored))
        for index in range(len(plain) + 1):
            for find, numbers in (
                (ordered.at, [number for number, _ in plain]),
                (ordered.counted, counted),
                (ordered.ignored_at, ignored),
            ):
                found = find(index)
                expected = numbers[index] if index < len(numbers) else None
                self.assertEqual(None if found is None else found.item, expected)

    def test_first_behind(self) -> None:
        """
        The first item behind something is found, if there is one.
        """
        ordered = Ordered((number, True) for number in range(10))
        found = ordered.first(lambda item: item > 6)
        self.assertEqual(None if found is None else found.item, 7)
        self.assertIsNone(ordered.first(lambda item: item > 9))

    def test_growth(self) -> None:
        """
        Insertions at the same place, at any, cost no more each when there are many.
        """

        def inserting(place: int) -> Callable[[int], Callable[[], object]]:
            def prepare(size: int) -> Callable[[], object]:
                def work() -> None:
                    ordered = Ordered((number, True) for number in range(size))
                    for number in range(size):
                        ordered.insert(number, True, ordered.at(place))

                return work

            return prepare

        for place in (0, 100, 1 << 31):
            assert_linear(inserting(place), 500)
