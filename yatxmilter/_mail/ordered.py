"""
A sequence that finds, inserts and removes items at any place, quickly at any size.

In one list an insertion moves half of the items, so n edits of a header of n fields would cost the
square of n. Here the items are in blocks of a few hundred, and sums of the blocks' sizes tell which
block an item is in. A header as most messages have it is one block: a plain list.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Generic, TypeVar

__all__ = ["LARGEST", "Block", "Ordered"]

T = TypeVar("T")

#: A block with more items is cut in two.
LARGEST = 512


class Block(Generic[T]):
    """
    Neighbours in the sequence.

    :ivar counted: How many of the items count.
    :ivar number: The block's place among the blocks.
    """

    __slots__ = ("counted", "items", "number")

    def __init__(self, items: list[T], counted: int) -> None:
        self.items = items
        self.counted = counted
        self.number = 0


class _Sums:
    """
    Numbers whose sums from the first on are known: a Fenwick tree.

    :ivar total: The sum of all.
    """

    __slots__ = ("_highest", "_tree", "total")

    def __init__(self, numbers: list[int]) -> None:
        # At n from 1 is the sum of so many numbers up to the n-th as the lowest bit of n says.
        self._tree = tree = [0, *numbers]
        self.total = sum(numbers)
        self._highest = 1 << len(numbers).bit_length() >> 1
        for place in range(1, len(tree)):
            above = place + (place & -place)
            if above < len(tree):
                tree[above] += tree[place]

    def add(self, place: int, change: int) -> None:
        """
        Change the number at a place.
        """
        self.total += change
        tree = self._tree
        place += 1
        while place < len(tree):
            tree[place] += change
            place += place & -place

    def find(self, index: int) -> tuple[int, int]:
        """
        Give the place at which the sum gets beyond an index, and by how much the sum before is
        below the index.
        """
        tree = self._tree
        place, step = 0, self._highest
        while step:
            if place + step < len(tree) and tree[place + step] <= index:
                place += step
                index -= tree[place]
            step >>= 1
        return place, index


class Ordered(Generic[T]):
    """
    Items in an order, some of which *count*: the MTA's filters do not count all fields.

    :param items: What it begins with. The list is the sequence's own from then on.
    :param link: The attribute in which items note their block, once there are several blocks.
    :param counts: The name of the attribute that tells whether an item counts. Whoever changes it
        calls `recount`.
    """

    __slots__ = ("_blocks", "_counted", "_counts", "_ignored", "_link", "_sizes")

    def __init__(self, items: list[T], link: str, counts: str) -> None:
        self._link = link
        self._counts: Callable[[T], bool] = attrgetter(counts)
        if len(items) <= LARGEST:
            self._blocks = [self._block(items)]
            self._number([])
        else:
            # Half full, so that not each of them is cut in two soon.
            half = LARGEST // 2
            parts = (items[start : start + half] for start in range(0, len(items), half))
            self._blocks = list(map(self._block, parts))
            self._number(self._blocks)

    def _block(self, items: list[T]) -> Block[T]:
        return Block(items, sum(map(self._counts, items)))

    def _number(self, linked: list[Block[T]]) -> None:
        """
        Give the blocks their numbers, and the items of some of them their block.
        """
        blocks = self._blocks
        for number, block in enumerate(blocks):
            block.number = number
        self._sizes = _Sums([len(block.items) for block in blocks])
        self._counted = _Sums([block.counted for block in blocks])
        self._ignored = _Sums([len(block.items) - block.counted for block in blocks])
        for block in linked:
            for item in block.items:
                setattr(item, self._link, block)

    def _block_of(self, item: T) -> Block[T]:
        if len(self._blocks) == 1:
            return self._blocks[0]
        found: Block[T] = getattr(item, self._link)
        return found

    def __iter__(self) -> Iterator[T]:
        for block in self._blocks:
            yield from block.items

    def items(self) -> list[T]:
        """
        Give all items, in a list of the caller's own.
        """
        return [item for block in self._blocks for item in block.items]

    def place(self, item: T) -> tuple[int, int]:
        """
        Give something that is larger for one item than for all items before it.
        """
        block = self._block_of(item)
        return block.number, block.items.index(item)

    def at(self, index: int) -> T | None:
        """
        Give the item with that many before it; ``None`` when there are not so many.
        """
        if index >= self._sizes.total:
            return None
        number, index = self._sizes.find(index)
        return self._blocks[number].items[index]

    def counted(self, index: int) -> T | None:
        """
        Give the item that counts and has that many of its kind before it.
        """
        if index >= self._counted.total:
            return None
        number, index = self._counted.find(index)
        block = self._blocks[number]
        if block.counted == len(block.items):
            return block.items[index]
        return [item for item in block.items if self._counts(item)][index]

    def ignored(self, *, last: bool) -> T | None:
        """
        Give the first, or the last, of the items that do not count.
        """
        if not self._ignored.total:
            return None
        number, index = self._ignored.find(self._ignored.total - 1 if last else 0)
        return [item for item in self._blocks[number].items if not self._counts(item)][index]

    def first(self, is_behind: Callable[[T], bool]) -> T | None:
        """
        Give the first item that is behind something; all after it are, too.
        """
        blocks, end = self._blocks, len(self._blocks) - 1
        number = bisect_left(blocks, True, 0, end, key=lambda block: is_behind(block.items[-1]))
        items = blocks[number].items
        index = bisect_left(items, True, key=is_behind)
        return items[index] if index < len(items) else None

    def insert(self, item: T, following: T | None) -> None:
        """
        Put an item in front of another one, or, without one, at the end.
        """
        if following is None:
            block = self._blocks[-1]
            block.items.append(item)
        else:
            block = self._block_of(following)
            block.items.insert(block.items.index(following), item)
        block.counted += self._counts(item)
        if len(block.items) > LARGEST:
            self._cut(block)
            return
        if len(self._blocks) > 1:
            setattr(item, self._link, block)
        self._add_up(block, item, 1)

    def _add_up(self, block: Block[T], item: T, change: int) -> None:
        self._sizes.add(block.number, change)
        kind = self._counted if self._counts(item) else self._ignored
        kind.add(block.number, change)

    def _cut(self, block: Block[T]) -> None:
        half = len(block.items) // 2
        new = self._block(block.items[half:])
        del block.items[half:]
        block.counted -= new.counted
        self._blocks.insert(block.number + 1, new)
        self._number([block, new])

    def remove(self, item: T) -> None:
        """
        Take an item out.
        """
        block = self._block_of(item)
        block.items.remove(item)
        block.counted -= self._counts(item)
        if not block.items and len(self._blocks) > 1:
            del self._blocks[block.number]
            self._number([])
        else:
            self._add_up(block, item, -1)

    def recount(self, item: T) -> None:
        """
        Let an item count that did not, or count no more.
        """
        block = self._block_of(item)
        change = 1 if self._counts(item) else -1
        block.counted += change
        self._counted.add(block.number, change)
        self._ignored.add(block.number, -change)
