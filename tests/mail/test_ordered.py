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
from yatxmilter._mail.ordered import LARGEST, Ordered

_PLACES = st.one_of(st.integers(0, 40), st.integers(0, 3 * LARGEST))
_CHANGES = st.lists(st.tuples(st.sampled_from("irc"), _PLACES, st.booleans()), max_size=60)


class Item:
    """
    Something to be put in order.
    """

    def __init__(self, counts: bool) -> None:
        self.counts = counts
        self.block: object = None


def ordered(items: list[Item]) -> Ordered[Item]:
    """
    Make a sequence that begins with some items.
    """
    return Ordered(items.copy(), "block", "counts")


class OrderedTests(SynchronousTestCase):
    """
    It does what a list would do.
    """

    def compare(self, made: Ordered[Item], plain: list[Item], indexes: list[int]) -> None:
        """
        Compare what is found with what is in a list.
        """
        self.assertEqual(list(made), plain)
        self.assertEqual(made.items(), plain)
        places = [made.place(item) for item in plain]
        self.assertEqual(places, sorted(set(places)))
        counted = [item for item in plain if item.counts]
        ignored = [item for item in plain if not item.counts]
        for index in indexes:
            self.assertIs(made.at(index), plain[index] if index < len(plain) else None)
            found = counted[index] if index < len(counted) else None
            self.assertIs(made.counted(index), found)
        self.assertIs(made.ignored(last=False), ignored[0] if ignored else None)
        self.assertIs(made.ignored(last=True), ignored[-1] if ignored else None)

    def change(self, made: Ordered[Item], plain: list[Item], kind: str, at: int, how: bool) -> None:
        """
        Make a change to a sequence and to a list.
        """
        found = made.at(at)
        if kind == "i":
            new = Item(how)
            made.insert(new, found)
            plain.insert(at, new)
        elif found is not None and kind == "r":
            made.remove(found)
            plain.remove(found)
        elif found is not None and found.counts is not how:
            found.counts = how
            made.recount(found)

    @given(st.sampled_from([0, 1, 3, 20, LARGEST - 1, LARGEST, LARGEST + 1, 3 * LARGEST]), _CHANGES)
    @settings(STEADY, max_examples=150)
    def test_as_a_list(self, size: int, changes: list[tuple[str, int, bool]]) -> None:
        """
        Whatever is inserted, removed, and made to count or not, all are found by their numbers.
        """
        plain = [Item(bool(number % 7)) for number in range(size)]
        made = ordered(plain)
        for kind, at, how in changes:
            self.change(made, plain, kind, at, how)
        self.compare(made, plain, [0, 1, 5, size // 2, size, size + 60])

    def test_others_can_be_put_in_after_all_of_many_were_removed(self) -> None:
        """
        When all items of many have been removed, from either end, others can be put in.
        """
        for at in (0, -1):
            plain = [Item(True) for _ in range(3 * LARGEST)]
            made = ordered(plain)
            while plain:
                made.remove(plain.pop(at))
            self.compare(made, plain, [0, 1])
            self.assertIsNone(made.first(lambda _: True))
            for kind in "iii":
                self.change(made, plain, kind, 1, False)
            self.compare(made, plain, [0, 1, 2, 3])

    def test_first_item_behind_something_is_found_if_there_is_one(self) -> None:
        """
        The first item behind something is found, if there is one.
        """
        for size in (0, 10, 3 * LARGEST):
            plain = [Item(True) for _ in range(size)]
            made = ordered(plain)
            for item, after in zip(plain, [*plain[1:], None], strict=False):
                here = made.place(item)
                self.assertIs(made.first(lambda other: made.place(other) > here), after)  # noqa: B023

    def test_insertions_at_the_same_place_cost_no_more_each(self) -> None:
        """
        Insertions at the same place, at any, cost no more each when there are many.
        """

        def inserting(place: int) -> Callable[[int], Callable[[], object]]:
            def prepare(size: int) -> Callable[[], object]:
                def work() -> None:
                    made = ordered([Item(True) for _ in range(size)])
                    for _ in range(size):
                        made.insert(Item(True), made.at(place))

                return work

            return prepare

        for place in (0, 100, 1 << 31):
            assert_linear(inserting(place), 500)
