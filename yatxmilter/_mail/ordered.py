"""
A sequence that finds, inserts and forgets items at any place in logarithmic time.

A list needs a look at half of its items for that, so n edits of a header of n fields would cost the
square of n. Here the items are the nodes of a tree that is kept balanced by building a part of it
anew where it has become lopsided. Each node knows how many items are below it, and how many of
them *count*: the MTA's filters do not count all fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

__all__ = ["Node", "Ordered"]

T = TypeVar("T")

# So much smaller than the tree may a branch be: three quarters of it.
_LARGEST = 0.75
# The label of the root is 0; each floor halves the step. Deeper than this no tree can be.
_STEP = 1 << 128


class Node(Generic[T]):
    """
    A place in the sequence.

    :ivar counts: Whether the item is one of those that count.
    :ivar label: A number that is larger than the labels of all places before it; it may change
        when something is inserted.
    """

    __slots__ = ("above", "after", "before", "counted", "counts", "item", "label", "size", "step")

    def __init__(self, item: T, counts: bool) -> None:
        self.item = item
        self.counts = counts
        self.above: Node[T] | None = None
        self.before: Node[T] | None = None
        self.after: Node[T] | None = None
        self.size = 1
        self.counted = int(counts)
        self.label = 0
        self.step = _STEP


class Ordered(Generic[T]):
    """
    Items in an order.

    :param items: What it begins with, each with whether it counts.
    """

    def __init__(self, items: Iterable[tuple[T, bool]] = ()) -> None:
        self._root = _built([Node(item, counts) for item, counts in items], None, 0, _STEP)

    def __iter__(self) -> Iterator[Node[T]]:
        waiting: list[Node[T]] = []
        node = self._root
        while waiting or node is not None:
            while node is not None:
                waiting.append(node)
                node = node.before
            node = waiting.pop()
            yield node
            node = node.after

    def at(self, index: int) -> Node[T] | None:
        """
        Give the item with that many before it; ``None`` when there are not so many.
        """
        node = self._root
        while node is not None:
            here = node.before.size if node.before is not None else 0
            if index < here:
                node = node.before
            elif index == here:
                return node
            else:
                index -= here + 1
                node = node.after
        return None

    def counted(self, index: int) -> Node[T] | None:
        """
        Give the item that counts and has that many of its kind before it.
        """
        node = self._root
        while node is not None:
            here = node.before.counted if node.before is not None else 0
            if index < here:
                node = node.before
            elif index == here and node.counts:
                return node
            else:
                index -= here + node.counts
                node = node.after
        return None

    def ignored(self) -> int:
        """
        Tell how many do not count.
        """
        return 0 if self._root is None else self._root.size - self._root.counted

    def ignored_at(self, index: int) -> Node[T] | None:
        """
        Give the item that does not count and has that many of its kind before it.
        """
        node = self._root
        while node is not None:
            here = node.before.size - node.before.counted if node.before is not None else 0
            if index < here:
                node = node.before
            elif index == here and not node.counts:
                return node
            else:
                index -= here + (not node.counts)
                node = node.after
        return None

    def first(self, is_behind: Callable[[T], bool]) -> Node[T] | None:
        """
        Give the first item that is behind something; all after it are, too.
        """
        found = None
        node = self._root
        while node is not None:
            if is_behind(node.item):
                found, node = node, node.before
            else:
                node = node.after
        return found

    def insert(self, item: T, counts: bool, following: Node[T] | None) -> Node[T]:
        """
        Put an item in front of another one, or, without one, at the end.
        """
        new = Node(item, counts)
        if self._root is None:
            self._root = new
            return new
        if following is not None and following.before is None:
            above = following
            above.before = new
        else:
            # The place is right after that of the item before.
            above = (
                self._root if following is None or following.before is None else following.before
            )
            while above.after is not None:
                above = above.after
            above.after = new
        new.above = above
        new.step = above.step >> 1
        new.label = above.label + (new.step if above.after is new else -new.step)
        self._grow(new)
        return new

    def _grow(self, new: Node[T]) -> None:
        lopsided = None
        node = new.above
        while node is not None:
            node.size += 1
            node.counted += new.counts
            before = node.before.size if node.before is not None else 0
            if max(before, node.size - 1 - before) > _LARGEST * node.size + 1:
                lopsided = node
            node = node.above
        if lopsided is not None:
            self._rebuild(lopsided)

    def _rebuild(self, node: Node[T]) -> None:
        above = node.above
        nodes = list(_walk(node))
        new = _built(nodes, above, node.label, node.step)
        if above is None:
            self._root = new
        elif above.before is node:
            above.before = new
        else:
            above.after = new

    def recount(self, node: Node[T], counts: bool) -> None:
        """
        Let an item count, or count no more.
        """
        change = counts - node.counts
        if change:
            node.counts = counts
            above: Node[T] | None = node
            while above is not None:
                above.counted += change
                above = above.above


def _walk(node: Node[T]) -> Iterator[Node[T]]:
    part: Ordered[T] = Ordered()
    part._root = node
    return iter(part)


def _built(nodes: list[Node[T]], above: Node[T] | None, label: int, step: int) -> Node[T] | None:
    """
    Make a balanced tree of nodes in their order, and give its root.
    """

    def build(start: int, end: int, above: Node[T] | None, label: int, step: int) -> Node[T] | None:
        if start == end:
            return None
        middle = (start + end) // 2
        node = nodes[middle]
        node.above, node.label, node.step = above, label, step
        half = step >> 1
        before = node.before = build(start, middle, node, label - half, half)
        after = node.after = build(middle + 1, end, node, label + half, half)
        node.size = end - start
        counted = int(node.counts)
        if before is not None:
            counted += before.counted
        if after is not None:
            counted += after.counted
        node.counted = counted
        return node

    return build(0, len(nodes), above, label, step)
