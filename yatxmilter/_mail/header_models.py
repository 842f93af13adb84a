"""
The header of a message as an MTA keeps it while filters edit it.

One milter's edits are applied, and what the next one would be shown is read off. The two MTAs keep
the header differently, so there is a class for each: Postfix has lines, of which the first is a
``Received`` of its own; Sendmail has slots, which stay when their field is deleted. Each can also
say how one filter would get from one state to another, since the MTA may understand an edit
differently when it does not know that it comes from another filter.

The fields are kept as they came until an edit has to find one. Then they are indexed, by their
place and by their name, and from then on an edit looks at a few hundred of them at most, however
many there are.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Generator, Iterator
from typing import Final, TypeVar

from yatxmilter._mail.ordered import Ordered
from yatxmilter._mail.pieces import PIECE, done_at_once
from yatxmilter._mail.rfc5322 import Field
from yatxmilter._wire.actions import AddHeader, ChangeHeader, Edit, InsertHeader
from yatxmilter._wire.payloads import from_text, to_text

__all__ = ["HeaderModel", "PostfixHeader", "SendmailHeader", "Slot", "Snapshot", "header_model"]

_Model = TypeVar("_Model", bound="HeaderModel")

#: A header at one time: of its slots name, value, origin and whether they are shown, and the fields
#: that have come and have none yet.
Snapshot = tuple[
    list[tuple[bytes, "bytes | None", "int | None", bool]], tuple[tuple[str, str], ...]
]

# A field whose name and value are so short is shown whole by both MTAs.
_SHORT: Final = 1000
# So many fields are looked through for a name; more are indexed.
_MANY: Final = 200
# As a number: to look for a piece of bytes in bytes costs ten times as much.
_LF: Final = 10

#: An index beyond any count.
_FAR: Final = 0x7FFFFFFF

# Stands for a value that only the MTA knows.
_SECRET: Final = b"\0"

# The fields that Sendmail has rules for, in the order of its configuration file: what it makes
# itself unless the message has it.
_SENDMAIL_OWN: Final = (
    b"Return-Path",
    b"Received",
    b"Resent-Date",
    b"Date",
    b"Resent-From",
    b"From",
    b"Full-Name",
    b"Resent-Message-Id",
    b"Message-Id",
)

# Those of which Sendmail never takes one for another.
_SENDMAIL_TRACE: Final = frozenset((b"received", b"x400-received", b"via", b"mail-from"))


class Slot:
    """
    A place in the header.

    :ivar origin: Its number in the header as it came; ``None`` for one that a filter made.
    :ivar value: The raw value; ``None`` when there is none any more.
    :ivar shown: Whether filters see it and count it.
    :ivar given: Name and value as filters are shown them, if that is known.
    :ivar block: For `Ordered`: where it is among all, and (``block_of_name``) among those of its
        name.
    """

    __slots__ = (
        "block",
        "block_of_name",
        "given",
        "name",
        "origin",
        "shown",
        "value",
    )

    def __init__(
        self,
        name: bytes,
        value: bytes | None,
        origin: int | None,
        shown: bool,
        given: tuple[str, str] | None = None,
    ) -> None:
        self.name = name
        self.value = value
        self.origin = origin
        self.shown = shown
        self.given = given

    def change(self, name: bytes, value: bytes | None) -> None:
        """
        Give it another name and value.
        """
        self.name = name
        self.value = value
        self.given = None

    def is_named(self, name: bytes) -> bool:
        """
        Tell whether it has this name, in any case.
        """
        return self.name.lower() == name.lower()


class _Index:
    """
    The slots of a header by their place and by their name.

    :ivar all: All of them, in order.
    """

    def __init__(self) -> None:
        self.all = _ordered_by_place([])
        # Those of a name are put in order when the first edit asks for them.
        self._unordered: dict[bytes, list[Slot]] = {}
        self._names: dict[bytes, Ordered[Slot]] = {}

    def fill(self, slots: list[Slot]) -> Generator[None, None, None]:
        """
        Index slots, a thousand at a time.
        """
        names = self._unordered
        for number, slot in enumerate(slots, 1):
            names.setdefault(slot.name.lower(), []).append(slot)
            if number % PIECE == 0:
                yield
        self.all = _ordered_by_place(slots)

    def named(self, name: bytes) -> Ordered[Slot]:
        """
        Give the slots of a name in any case, in order.
        """
        name = name.lower()
        found = self._names.get(name)
        if found is None:
            slots = self._unordered.pop(name, [])
            found = self._names[name] = Ordered(slots, "block_of_name", "shown")
        return found

    def insert(self, new: Slot, following: Slot | None) -> None:
        """
        Put a slot in front of another one, or at the end.
        """
        self.all.insert(new, following)
        named = self.named(new.name)
        behind = None
        if following is not None:
            place = self.all.place
            here = place(new)
            behind = named.first(lambda slot: place(slot) > here)
        named.insert(new, behind)

    def show(self, slot: Slot, shown: bool) -> None:
        """
        Have filters see a slot, or not.
        """
        if slot.shown is not shown:
            # Before the change: those of a name are counted when they are put in order.
            named = self.named(slot.name)
            slot.shown = shown
            self.all.recount(slot)
            named.recount(slot)

    def remove(self, slot: Slot) -> None:
        """
        Take a slot out of the header.
        """
        self.all.remove(slot)
        self.named(slot.name).remove(slot)


def _ordered_by_place(slots: list[Slot]) -> Ordered[Slot]:
    return Ordered(slots, "block", "shown")


class HeaderModel(ABC):
    """
    The header of one message.

    :param leading_space: Whether SMFIP_HDR_LEADSPC was agreed: values come and are shown with the
        blank after the colon.
    :ivar filters: How many filters have been given the message.
    :ivar came: Name and value of fields as the MTA shows them to the first filter. Before the first
        edit they may be put in here, at the end.
    """

    #: Where a field inserted at index 0 gets: so many slots are above it.
    top = 0
    #: Whether the MTA counts differently once another filter has begun.
    counts_by_filter = False
    #: So many octets of a field, its name included, are shown to filters.
    longest_shown: int | None = None

    def __init__(self, *, leading_space: bool = False) -> None:
        self.leading_space = leading_space
        self.filters = 0
        self._slots: list[Slot] | None = []
        self._index: _Index | None = None
        # They have no slots yet; of so many it is known that filters are shown them as they are.
        self.came: list[tuple[str, str]] = []
        self._plain = 0
        # Behind them come slots that filters have added.
        self._added: list[Slot] = []

    @property
    def slots(self) -> list[Slot]:
        """
        The slots in order; what is done to this list counts before the first edit only.
        """
        return self._settled()

    @slots.setter
    def slots(self, slots: list[Slot]) -> None:
        self._slots = slots
        self._index = None

    def _indexed(self) -> _Index:
        if self._index is None:
            done_at_once(self.prepare())
            assert self._index is not None
        return self._index

    def prepare(self, edit: Edit | None = None) -> Generator[None, None, None]:
        """
        Do in pieces what an edit would else do at once: the first one that has to find a field
        takes long when there are very many.
        """
        if self._index is None and not (
            isinstance(edit, AddHeader) and self._goes_last(from_text(edit.name))
        ):
            index = _Index()
            yield from self._settle()
            yield from index.fill(self.slots)
            self._index = index
            # The list is the index's own now.
            self._slots = None

    def _insert_slot(self, new: Slot, following: Slot | None) -> None:
        self._indexed().insert(new, following)
        self._slots = None

    def snapshot(self) -> Snapshot:
        """
        Give the state as it is now, to make a copy of it later if one is needed.
        """
        slots = self._slots
        if slots is None or self._added:
            slots = self._settled()
        parts = [(slot.name, slot.value, slot.origin, slot.shown) for slot in slots]
        return parts, tuple(self.came)

    def copy(self: _Model, snapshot: Snapshot | None = None) -> _Model:
        """
        Give another one in the same state, or in an earlier one.
        """
        return done_at_once(self.copying(snapshot))

    def copying(self: _Model, snapshot: Snapshot | None = None) -> Generator[None, None, _Model]:
        """
        Do the same as `copy` in pieces; the copy is what is returned.
        """
        twin = type(self)(leading_space=self.leading_space)
        slots, came = self.snapshot() if snapshot is None else snapshot
        copied: list[Slot] = []
        for start in range(0, len(slots), PIECE):
            if start:
                yield
            copied += [Slot(*parts) for parts in slots[start : start + PIECE]]
        twin.slots = copied
        twin.came += came
        twin.filters = self.filters
        return twin

    def receive(self, name: str, value: str) -> None:
        """
        Take a field as the MTA shows it to the first filter.
        """
        if self._added:
            self._settled()
        self.came.append((name, value))
        if self._index is not None:
            self._settled()

    def _settled(self) -> list[Slot]:
        """
        Give the slots, those of fields that have come or were added since included.
        """
        slots = self._slots
        if slots is None:
            assert self._index is not None
            slots = self._slots = self._index.all.items()
        if self.came or self._added:
            done_at_once(self._settle())
        return slots

    def _settle(self) -> Generator[None, None, None]:
        """
        Make slots of fields that have come, a thousand at a time, and put those in that were added.
        """
        slots = self._slots
        if slots is None or not (self.came or self._added):
            return
        made: list[Slot] = []
        for number, given in enumerate(self.came, len(slots)):
            name, value = given
            raw = self._raw(value)
            # Most are shown to the other filters just so: short ones, and as they are kept.
            as_it_came = len(raw) + len(name) < _SHORT and (
                _LF not in raw or self._given(raw) == value
            )
            made.append(Slot(from_text(name), raw, number, True, given if as_it_came else None))
            if len(made) % PIECE == 0:
                yield
        slots += made + self._added
        self.came.clear()
        self._plain = 0
        self._added.clear()
        self._index = None

    def receive_field(self, field: Field) -> None:
        """
        Take a field as it stands in a message file.
        """
        slots = self.slots
        slots.append(Slot(field.name, field.value, len(slots), True))
        self._index = None

    def _raw(self, value: str) -> bytes:
        # `from_text`, without a call.
        raw = value.encode("utf-8", "surrogateescape")
        if _LF in raw:
            # A line that does not start with a blank would be a field of its own: MTAs fold it.
            raw = re.sub(rb"\n(?![ \t])", b"\n\t", raw)
        return raw if self.leading_space else b" " + raw

    def _given(self, raw: bytes) -> str:
        return to_text(raw if self.leading_space else raw[1:])

    def begin_filter(self, *, shows_header: bool) -> None:
        """
        Give the message to the next filter.

        :param shows_header: Whether that filter is sent the header.
        """
        self.filters += 1

    def apply(self, edit: Edit) -> None:
        """
        Make one edit of a filter; one that is not about the header changes nothing.
        """
        match edit:
            case AddHeader(name, value):
                self._add(self._made(name, value))
            case InsertHeader(index, name, value):
                # The index is a signed number, as the MTAs read it.
                self._insert(index if index < 1 << 31 else _FAR, self._made(name, value))
            case ChangeHeader(index, name, value):
                self._change(max(index, 1), self._made(name, value), delete=not value)

    def _insert_edit(self, place: int, slot: Slot) -> Edit:
        return InsertHeader(place, to_text(slot.name), self._given(slot.value or b""))

    def _made(self, name: str, value: str) -> Slot:
        return Slot(from_text(name), self._raw(value), None, True)

    def finds(self, name: str, index: int) -> bool:
        """
        Tell whether CHGHEADER of this name and index finds a field.
        """
        return self._counted(from_text(name), max(index, 1)) is not None

    def _counted(self, name: bytes, index: int) -> Slot | None:
        return self._indexed().named(name).counted(index - 1)

    def numbered(self) -> list[tuple[Slot, int]]:
        """
        Give the slots that filters count, each with its number among those of its name.
        """
        counts: Counter[bytes] = Counter()
        numbered = []
        for slot in self.slots:
            if slot.shown:
                name = slot.name.lower()
                counts[name] += 1
                numbered.append((slot, counts[name]))
        return numbered

    @abstractmethod
    def _add(self, new: Slot) -> None:
        """
        Make an ADDHEADER: put a field where the MTA adds fields.
        """

    @abstractmethod
    def _goes_last(self, name: bytes) -> bool:
        """
        Tell whether ADDHEADER is known to put a field of this name at the end of a header that is
        not indexed.
        """

    @abstractmethod
    def _insert(self, index: int, new: Slot) -> None:
        """
        Make an INSHEADER: put a field at a place that the MTA counts in its own way.
        """

    @abstractmethod
    def _change(self, index: int, new: Slot, *, delete: bool) -> None:
        """
        Make a CHGHEADER of the field with this number, from 1, among those of its name.
        """

    def fields(self) -> list[Field]:
        """
        Give the fields that filters see, as in a message file.
        """
        return [
            Field(slot.name, slot.value)
            for slot in self.slots
            if slot.shown and slot.value is not None
        ]

    def shown(self, most: int) -> Iterator[list[tuple[str, str]]]:
        """
        Give names and values as the MTA shows them to the next filter.

        :param most: How many there are in a list at most: to make a list of very many takes a
            while.
        """
        if self._are_plain():
            slots = self._slots or []
            fields = [*self._given_of(slots), *self.came, *self._given_of(self._added)]
            for start in range(0, len(fields), most):
                yield fields[start : start + most]
        else:
            for _ in self._settle():
                yield []
            slots = self.slots
            for start in range(0, len(slots), most):
                yield self._given_of(slots[start : start + most])

    def _are_plain(self) -> bool:
        """
        Tell whether fields have come that are shown to filters just so: they are short, none is
        folded, and with what filters have added there are not too many to look at all.
        """
        came = self.came
        if not came or len(came) + len(self._added) + len(self._slots or ()) >= PIECE:
            return False
        if self._plain != len(came):
            for name, value in came:
                if len(name) + len(value) >= _SHORT or "\n" in value or "\n" in name:
                    return False
            self._plain = len(came)
        return True

    def _given_of(self, slots: list[Slot]) -> list[tuple[str, str]]:
        return [
            # Each filter is shown the same until the field is changed.
            slot.given or self._show(slot, slot.value)
            for slot in slots
            if slot.shown and slot.value is not None
        ]

    def _show(self, slot: Slot, value: bytes) -> tuple[str, str]:
        given = slot.given = self._shown(Field(slot.name, value))
        return given

    def _shown(self, field: Field) -> tuple[str, str]:
        if self.longest_shown is not None:
            field = _cut(field, self.longest_shown)
        value = field.value if self.leading_space else field.bare_value()
        return to_text(field.name), to_text(value)

    def state(self) -> list[tuple[int | None, bytes, bytes | None]]:
        """
        Give what makes a difference to the message: the slots in order.
        """
        return [(slot.origin, slot.name, slot.value) for slot in self.slots]

    def edits_from(self: _Model, first: _Model) -> list[Edit]:
        """
        Give edits with which one filter gets from an earlier state to this one.
        """
        return done_at_once(self.finding_edits(first))

    @abstractmethod
    def finding_edits(self: _Model, first: _Model) -> Generator[None, None, list[Edit]]:
        """
        Do the same as `edits_from`; each time that all slots are gone through is a piece.
        """


class PostfixHeader(HeaderModel):
    """
    A header as Postfix keeps it.

    It puts a ``Received`` on top before any filter is asked. Filters are not shown that one and
    cannot change it, but it counts as a line when something is inserted. Of a long field, filters
    are shown the beginning.
    """

    longest_shown = 60_000

    def __init__(self, *, leading_space: bool = False) -> None:
        super().__init__(leading_space=leading_space)
        self.slots = [Slot(b"Received", _SECRET, 0, False)]

    def _goes_last(self, name: bytes) -> bool:
        return True

    def _add(self, new: Slot) -> None:
        if self._index is None:
            self._added.append(new)
        else:
            self._insert_slot(new, None)

    def _insert(self, index: int, new: Slot) -> None:
        self._insert_slot(new, self._indexed().all.at(index))

    def _change(self, index: int, new: Slot, *, delete: bool) -> None:
        found = self._counted(new.name, index)
        if found is None:
            if not delete:
                self._add(new)
        elif delete:
            self._indexed().remove(found)
            self._slots = None
        else:
            found.change(new.name, new.value)

    def finding_edits(self, first: PostfixHeader) -> Generator[None, None, list[Edit]]:
        """
        Change and delete from the bottom, so that counts stay; then insert from the top.
        """
        edits: list[Edit] = []
        left: dict[int | None, Slot] = {
            slot.origin: slot for slot in self.slots if slot.origin is not None
        }
        yield
        numbered = first.numbered()
        yield
        for old, index in reversed(numbered):
            new = left.get(old.origin)
            if new is None:
                edits.append(ChangeHeader(index, to_text(old.name), ""))
            elif (new.name, new.value) != (old.name, old.value) and new.value is not None:
                edits.append(ChangeHeader(index, to_text(new.name), self._given(new.value)))
        yield
        for place, slot in enumerate(self.slots):
            if slot.origin is None:
                edits.append(self._insert_edit(place, slot))
        return edits


class SendmailHeader(HeaderModel):
    """
    A header as Sendmail keeps it.

    Ahead of the message's fields are slots for those that it can make itself, which filters are not
    shown. A deleted field leaves its slot, which counts on, until the next filter is sent the
    header; then it is one of those that are not shown.
    """

    top = 1
    counts_by_filter = True

    def __init__(self, *, leading_space: bool = False) -> None:
        super().__init__(leading_space=leading_space)
        self.slots = [Slot(name, _SECRET, n, False) for n, name in enumerate(_SENDMAIL_OWN)]
        # Those that filters still count, though their field is deleted.
        self._deleted: list[Slot] = []

    def begin_filter(self, *, shows_header: bool) -> None:
        """
        Forget the deleted fields, if the filter is sent the others.
        """
        super().begin_filter(shows_header=shows_header)
        if shows_header:
            deleted, self._deleted = self._deleted, []
            for slot in deleted:
                if slot.value is None:
                    self._indexed().show(slot, False)

    def copying(self, snapshot: Snapshot | None = None) -> Generator[None, None, SendmailHeader]:
        """
        Give another one in the same state, or in an earlier one.
        """
        twin = yield from super().copying(snapshot)
        yield
        twin._deleted = [slot for slot in twin.slots if slot.shown and slot.value is None]
        return twin

    def _goes_last(self, name: bytes) -> bool:
        # It does where there is none of that name; of many fields the index knows that.
        slots, came, added = self._slots or [], self.came, self._added
        if len(slots) + len(came) + len(added) > _MANY:
            return False
        if name.lower() in [slot.name.lower() for slot in slots + added]:
            return False
        # Names that differ in other letters than ASCII's are left to the index, too.
        return to_text(name).lower() not in [one.lower() for one, _ in came]

    def _add(self, new: Slot) -> None:
        if self._index is None and self._goes_last(new.name):
            self._added.append(new)
            return
        hidden = self._hidden(new.name, last=False)
        if hidden is not None:
            hidden.change(hidden.name, new.value)
            self._indexed().show(hidden, True)
        else:
            self._add_slot(new)

    def _hidden(self, name: bytes, *, last: bool) -> Slot | None:
        if name.lower() in _SENDMAIL_TRACE:
            return None
        return self._indexed().named(name).ignored(last=last)

    def _add_slot(self, new: Slot) -> None:
        # Before the first of its name.
        self._insert_slot(new, self._indexed().named(new.name).at(0))

    def _insert(self, index: int, new: Slot) -> None:
        # Its slot for Return-Path, which it never delivers, is always above.
        self._insert_slot(new, self._indexed().all.at(index + self.top))

    def _change(self, index: int, new: Slot, *, delete: bool) -> None:
        found = self._counted(new.name, index) or self._hidden(new.name, last=True)
        if found is not None:
            found.change(found.name, None if delete else new.value)
            if delete:
                self._deleted.append(found)
            else:
                self._indexed().show(found, True)
        elif not delete:
            self._add_slot(new)

    def finding_edits(self, first: SendmailHeader) -> Generator[None, None, list[Edit]]:
        """
        Change what was there, those first that filters count; then insert from the top.
        """
        edits: list[Edit] = []
        numbers = dict(first.numbered())
        yield
        slots = list(self._expressible(first))
        yield
        # No slot of those that were there goes, so they pair up.
        pairs = zip(first.slots, (s for s in slots if s.origin is not None), strict=True)
        changed = [(old, new.value) for old, new in pairs if new.value != old.value]
        yield
        for old, value in sorted(changed, key=lambda pair: not pair[0].shown):
            name = to_text(old.name)
            if not old.shown and value is not None:
                edits.append(AddHeader(name, self._given(value)))
            else:
                given = "" if value is None else self._given(value)
                edits.append(ChangeHeader(numbers.get(old, _FAR), name, given))
        return edits + self._inserts(slots)

    def _expressible(self, first: SendmailHeader) -> Iterator[Slot]:
        # A field that is to be empty has to be made anew: an empty value deletes it.
        old: dict[int | None, bytes | None] = {
            slot.origin: slot.value for slot in first.slots if slot.shown
        }
        for slot in self.slots:
            given = slot.value is None or self._given(slot.value)
            if not given and slot.value != old.get(slot.origin, slot.value):
                yield Slot(slot.name, None, slot.origin, True)
                yield Slot(slot.name, slot.value, None, True)
            else:
                yield slot

    def _inserts(self, slots: list[Slot]) -> list[Edit]:
        # What was made and deleted again is not made at all.
        slots = [s for s in slots if s.origin is not None or s.value is not None]
        first = next(place for place, slot in enumerate(slots) if slot.origin is not None)
        # Of all fields only a Return-Path is added in front of the MTA's own.
        edits: list[Edit] = [
            AddHeader(to_text(slot.name), self._given(slot.value or b""))
            for slot in reversed(slots[:first])
        ]
        for place, slot in enumerate(slots[first:], first):
            if slot.origin is None:
                edits.append(self._insert_edit(place - self.top, slot))
        return edits


def _cut(field: Field, longest: int) -> Field:
    """
    Cut a field that is too long to be shown: behind a whole line, if that is not far away.
    """
    behind_name = len(field.name) + 1
    if behind_name + len(field.value) <= longest:
        return field
    value = field.value[: max(0, longest - behind_name)]
    line_end = value.rfind(b"\n", max(0, longest - longest // 10 - behind_name))
    return Field(field.name, value if line_end < 0 else value[:line_end])


def header_model(flavour: str, *, leading_space: bool) -> HeaderModel:
    """
    Make the header model of an MTA: ``"postfix"`` or ``"sendmail"``.

    :raises ValueError: for another flavour.
    """
    if flavour == "postfix":
        return PostfixHeader(leading_space=leading_space)
    if flavour == "sendmail":
        return SendmailHeader(leading_space=leading_space)
    raise ValueError(f'flavour is {flavour!r}, expected "postfix" or "sendmail"')
