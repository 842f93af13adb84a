"""
The least edits that turn a header into another.

The two are laid side by side as in the well-known edit distance: a field is kept, or given another
value, or deleted, or a new one is put in, each of the last three at the price of one edit. The
layout of the lowest price is then handed to the model of the MTA's header, which knows how that MTA
counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from yatxmilter._mail.header_models import HeaderModel, SendmailHeader, Slot, header_model
from yatxmilter._wire.actions import AddHeader, Edit, InsertHeader
from yatxmilter._wire.payloads import from_text

__all__ = ["Wanted", "least_edits"]

#: Which field of the old header, if any, is which of the new one.
_Pair = tuple[int | None, int | None]

# So many pairs of fields are compared; beyond that fields are only told apart by where they are
# from.
_MOST_PAIRS: Final = 40_000
_NEVER: Final = 1 << 30

# An index beyond any count.
_FAR: Final = 0x7FFFFFFF


class Wanted(NamedTuple):
    """
    A field of the new header.

    :ivar origin: Its number in the old header, ``None`` for a new one.
    """

    origin: int | None
    name: str
    value: str


class _Layout:
    """
    Two headers side by side.
    """

    def __init__(
        self,
        old: Sequence[tuple[str, str]],
        new: Sequence[Wanted],
        flavour: str,
        adds: bool,
        changes: bool,
    ) -> None:
        self._old = old
        self._new = new
        # Sendmail leaves the spelling of a name as it is when the value changes.
        self._exact = flavour == "sendmail"
        self._add = 1 if adds else _NEVER
        self._change = 1 if changes else _NEVER

    def pairs(self) -> Iterator[_Pair]:
        old, new = len(self._old), len(self._new)
        start = 0
        while start < min(old, new) and self._same(start, start):
            start += 1
        end = 0
        while end < min(old, new) - start and self._same(old - end - 1, new - end - 1):
            end += 1
        yield from ((n, n) for n in range(start))
        middle = range(start, old - end), range(start, new - end)
        if len(middle[0]) * len(middle[1]) <= _MOST_PAIRS:
            yield from self._cheapest(*middle)
        else:
            yield from self._by_origin(*middle)
        yield from zip(range(old - end, old), range(new - end, new), strict=True)

    def _same(self, i: int, j: int) -> bool:
        return self._old[i] == self._new[j][1:]

    def _price(self, i: int, j: int) -> int:
        if self._same(i, j):
            return 0
        return self._change if self._may_change(i, j) else _NEVER

    def _may_change(self, i: int, j: int) -> bool:
        old, (_, new, value) = self._old[i][0], self._new[j]
        # An empty new value is a deletion.
        return bool(value) and (old == new or not self._exact and old.lower() == new.lower())

    def _cheapest(self, rows: range, columns: range) -> Iterator[_Pair]:
        """
        Pair fields so that the edits cost least, by a table of the costs from each pair of places
        on.
        """
        # The price of all from a place on, for each place in either header.
        below = [self._add * n for n in range(len(columns), -1, -1)]
        table = [below]
        for place in reversed(rows):
            line = [0] * len(columns) + [below[-1] + self._change]
            for n in range(len(columns) - 1, -1, -1):
                line[n] = min(
                    below[n + 1] + self._price(place, columns[n]),
                    below[n] + self._change,
                    line[n + 1] + self._add,
                )
            table.append(line)
            below = line
        table.reverse()
        row = column = 0
        while row < len(rows) or column < len(columns):
            price = table[row][column]
            i: int | None = rows[row] if row < len(rows) else None
            j: int | None = columns[column] if column < len(columns) else None
            if i is not None and j is not None:
                if price == table[row + 1][column + 1] + self._price(i, j):
                    yield i, j
                    row, column = row + 1, column + 1
                    continue
                if price != table[row + 1][column] + self._change:
                    i = None
                else:
                    j = None
            yield i, j
            row, column = row + (i is not None), column + (j is not None)

    def _by_origin(self, rows: range, columns: range) -> Iterator[_Pair]:
        following = rows.start
        for j in columns:
            origin = self._new[j].origin
            if origin is None or not following <= origin < rows.stop:
                yield None, j
                continue
            yield from ((i, None) for i in range(following, origin))
            following = origin + 1
            if self._same(origin, j) or self._may_change(origin, j):
                yield origin, j
            else:
                yield origin, None
                yield None, j
        yield from ((i, None) for i in range(following, rows.stop))


def least_edits(
    flavour: str,
    old: Sequence[tuple[str, str]],
    new: Sequence[Wanted],
    *,
    adds: bool = True,
    changes: bool = True,
    leading_space: bool = False,
) -> list[Edit]:
    """
    Give the edits that turn one header into another, as few as there can be.

    :param flavour: The MTA: ``"postfix"`` or ``"sendmail"``.
    :param old: Names and values as the MTA has shown them.
    :param adds: Whether fields may be added; ``changes``: whether they may be changed or deleted.
    :param leading_space: Whether values have the blank after the colon, as with SMFIP_HDR_LEADSPC.
    """
    received = header_model(flavour, leading_space=leading_space)
    for name, value in old:
        received.receive(name, value)
    target = received.copy()
    pairs = _Layout(old, new, flavour, adds, changes).pairs()
    _arrange(target, old, new, pairs)
    return list(_with_additions(target, target.edits_from(received)))


def _arrange(
    header: HeaderModel,
    given: Sequence[tuple[str, str]],
    new: Sequence[Wanted],
    pairs: Iterator[_Pair],
) -> None:
    """
    Make a header, which starts with fields of the MTA's own, the new one.
    """
    own = len(header.slots) - len(given)
    top: list[Slot] = []
    slots, old = header.slots[:own], header.slots[own:]
    names = {slot.name.lower() for slot in old}
    # What comes before all fields comes before the MTA's own too.
    place = top if old else slots
    for i, j in pairs:
        if i is None:
            assert j is not None
            made = _slot(header, new[j])
            if not _stands_in(made, slots[:own], names):
                place.append(made)
            continue
        place = slots
        slot = old[i]
        if j is not None:
            if new[j][1:] != given[i]:
                made = _slot(header, new[j])
                slot.change(made.name, made.value)
        elif isinstance(header, SendmailHeader):
            slot.change(slot.name, None)
        else:
            continue
        slots.append(slot)
    header.slots = slots[: header.top] + top + slots[header.top :]


def _slot(header: HeaderModel, field: Wanted) -> Slot:
    value = from_text(field.value)
    raw = value if header.leading_space else b" " + value
    return Slot(from_text(field.name), raw, None, True)


def _stands_in(made: Slot, own: list[Slot], names: set[bytes]) -> bool:
    # A field that Sendmail would make itself takes the place of that one.
    name = made.name.lower()
    for slot in own:
        if slot.is_named(name) and not slot.shown:
            if name == b"received" or name in names:
                return False
            slot.change(slot.name, made.value)
            slot.shown = True
            return True
    return False


def _with_additions(target: HeaderModel, edits: list[Edit]) -> Iterator[Edit]:
    """
    Add at the end what is inserted there, or insert it beyond all: that needs no counting, and an
    MTA may count what other filters have deleted.
    """
    # Insertions come last, so these are the slots before the first.
    slots = [slot for slot in target.slots if slot.origin is not None]
    end = len(slots)
    taken: set[bytes] = set()
    if isinstance(target, SendmailHeader):
        # Its index is that of the slot before; and it adds in front of the first of a name.
        end -= 1
        taken = {slot.name.lower() for slot in slots}
    for edit in edits:
        if not isinstance(edit, InsertHeader):
            yield edit
            continue
        name = from_text(edit.name).lower()
        if edit.index < end:
            yield edit
        elif name in taken:
            yield InsertHeader(_FAR, edit.name, edit.value)
        else:
            yield AddHeader(edit.name, edit.value)
        end += 1
        if isinstance(target, SendmailHeader):
            taken.add(name)
