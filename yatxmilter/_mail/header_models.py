"""
The header of a message as an MTA keeps it while filters edit it.

One milter's edits are applied, and what the next one would be shown is read off. The two MTAs keep
the header differently, so there is a class for each: Postfix has lines, of which the first is a
``Received`` of its own; Sendmail has slots, which stay when their field is deleted. Each can also
say how one filter would get from one state to another, since the MTA may understand an edit
differently when it does not know that it comes from another filter.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from typing import Final, TypeVar

from yatxmilter._mail.rfc5322 import Field
from yatxmilter._wire.actions import AddHeader, ChangeHeader, Edit, InsertHeader
from yatxmilter._wire.payloads import from_text, to_text

__all__ = ["HeaderModel", "PostfixHeader", "SendmailHeader", "Slot", "header_model"]

_Model = TypeVar("_Model", bound="HeaderModel")

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
    """

    __slots__ = ("name", "origin", "shown", "value")

    def __init__(self, name: bytes, value: bytes | None, origin: int | None, shown: bool) -> None:
        self.name = name
        self.value = value
        self.origin = origin
        self.shown = shown

    def copy(self) -> Slot:
        """
        Give another one like it.
        """
        return Slot(self.name, self.value, self.origin, self.shown)

    def is_named(self, name: bytes) -> bool:
        """
        Tell whether it has this name, in any case.
        """
        return self.name.lower() == name.lower()


class HeaderModel(ABC):
    """
    The header of one message.

    :param leading_space: Whether SMFIP_HDR_LEADSPC was agreed: values come and are shown with the
        blank after the colon.
    """

    def __init__(self, *, leading_space: bool = False) -> None:
        self.leading_space = leading_space
        self.slots: list[Slot] = []

    def copy(self: _Model) -> _Model:
        """
        Give another one in the same state.
        """
        twin = type(self)(leading_space=self.leading_space)
        twin.slots = [slot.copy() for slot in self.slots]
        return twin

    def receive(self, name: str, value: str) -> None:
        """
        Take a field as the MTA shows it to the first filter.
        """
        self.receive_field(Field(from_text(name), self._raw(value)))

    def receive_field(self, field: Field) -> None:
        """
        Take a field as it stands in a message file.
        """
        self.slots.append(Slot(field.name, field.value, len(self.slots), True))

    def _raw(self, value: str) -> bytes:
        first, *rest = from_text(value).split(b"\n")
        # A line that does not start with a blank would be a field of its own: MTAs fold it.
        folded = [line if line[:1] in (b" ", b"\t") else b"\t" + line for line in rest]
        return (b"" if self.leading_space else b" ") + b"\n".join([first, *folded])

    def _given(self, raw: bytes) -> str:
        return to_text(raw if self.leading_space else raw[1:])

    @abstractmethod
    def begin_filter(self, *, shows_header: bool) -> None:
        """
        Give the message to the next filter.

        :param shows_header: Whether that filter is sent the header.
        """

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
        named = [slot for slot in self.slots if slot.shown and slot.is_named(name)]
        return named[index - 1] if index <= len(named) else None

    def numbered(self) -> list[tuple[Slot, int]]:
        """
        Give the slots that filters count, each with its number among those of its name.
        """
        counts: Counter[bytes] = Counter()
        numbered = []
        for slot in self.slots:
            if slot.shown:
                counts[slot.name.lower()] += 1
                numbered.append((slot, counts[slot.name.lower()]))
        return numbered

    @abstractmethod
    def _add(self, new: Slot) -> None:
        """
        ADDHEADER.
        """

    @abstractmethod
    def _insert(self, index: int, new: Slot) -> None:
        """
        INSHEADER.
        """

    @abstractmethod
    def _change(self, index: int, new: Slot, *, delete: bool) -> None:
        """
        CHGHEADER: the index-th of that name.
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

    def shown(self) -> Iterator[tuple[str, str]]:
        """
        Give names and values as the MTA shows them to the next filter.
        """
        for field in self.fields():
            value = field.value if self.leading_space else field.bare_value()
            yield to_text(field.name), to_text(value)

    def state(self) -> list[tuple[int | None, bytes, bytes | None]]:
        """
        Give what makes a difference to the message: the slots in order.
        """
        return [(slot.origin, slot.name, slot.value) for slot in self.slots]

    @abstractmethod
    def edits_from(self: _Model, first: _Model) -> list[Edit]:
        """
        Give edits with which one filter gets from an earlier state to this one.
        """


class PostfixHeader(HeaderModel):
    """
    A header as Postfix keeps it.

    It puts a ``Received`` on top before any filter is asked. Filters are not shown that one and
    cannot change it, but it counts as a line when something is inserted.
    """

    def __init__(self, *, leading_space: bool = False) -> None:
        super().__init__(leading_space=leading_space)
        self.slots = [Slot(b"Received", _SECRET, 0, False)]

    def begin_filter(self, *, shows_header: bool) -> None:
        """
        Give the message to the next filter, for which nothing is counted differently.
        """

    def _add(self, new: Slot) -> None:
        self.slots.append(new)

    def _insert(self, index: int, new: Slot) -> None:
        self.slots.insert(index, new)

    def _change(self, index: int, new: Slot, *, delete: bool) -> None:
        found = self._counted(new.name, index)
        if found is None:
            if not delete:
                self.slots.append(new)
        elif delete:
            self.slots.remove(found)
        else:
            found.name, found.value = new.name, new.value

    def edits_from(self, first: PostfixHeader) -> list[Edit]:
        """
        Change and delete from the bottom, so that counts stay; then insert from the top.
        """
        edits: list[Edit] = []
        left: dict[int | None, Slot] = {
            slot.origin: slot for slot in self.slots if slot.origin is not None
        }
        for old, index in reversed(first.numbered()):
            new = left.get(old.origin)
            if new is None:
                edits.append(ChangeHeader(index, to_text(old.name), ""))
            elif (new.name, new.value) != (old.name, old.value) and new.value is not None:
                edits.append(ChangeHeader(index, to_text(new.name), self._given(new.value)))
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

    def __init__(self, *, leading_space: bool = False) -> None:
        super().__init__(leading_space=leading_space)
        self.slots = [Slot(name, _SECRET, n, False) for n, name in enumerate(_SENDMAIL_OWN)]

    def begin_filter(self, *, shows_header: bool) -> None:
        """
        Forget the deleted fields, if the filter is sent the others.
        """
        if shows_header:
            for slot in self.slots:
                slot.shown = slot.shown and slot.value is not None

    def _add(self, new: Slot) -> None:
        hidden = self._hidden(new.name)
        if hidden:
            hidden[0].value, hidden[0].shown = new.value, True
        else:
            self._add_slot(new)

    def _hidden(self, name: bytes) -> list[Slot]:
        if name.lower() in _SENDMAIL_TRACE:
            return []
        return [slot for slot in self.slots if not slot.shown and slot.is_named(name)]

    def _add_slot(self, new: Slot) -> None:
        # Before the first of its name.
        for place, slot in enumerate(self.slots):
            if slot.is_named(new.name):
                self.slots.insert(place, new)
                return
        self.slots.append(new)

    def _insert(self, index: int, new: Slot) -> None:
        # After the slot that many below the first: there is no place right below the first.
        self.slots.insert(index + 1 if index else 0, new)

    def _change(self, index: int, new: Slot, *, delete: bool) -> None:
        found = self._counted(new.name, index)
        if found is None and (hidden := self._hidden(new.name)):
            found = hidden[-1]
        if found is not None:
            found.value = None if delete else new.value
            found.shown = found.shown or not delete
        elif not delete:
            self._add_slot(new)

    def edits_from(self, first: SendmailHeader) -> list[Edit]:
        """
        Change what was there, those first that filters count; then insert from the top.
        """
        edits: list[Edit] = []
        numbers = dict(first.numbered())
        slots = list(self._expressible(first))
        # No slot of those that were there goes, so they pair up.
        pairs = zip(first.slots, (s for s in slots if s.origin is not None), strict=True)
        changed = [(old, new.value) for old, new in pairs if new.value != old.value]
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
        top = next(place for place, slot in enumerate(slots) if slot.origin is not None)
        edits = [self._insert_edit(0, slot) for slot in reversed(slots[:top])]
        for place, slot in enumerate(slots[top:], top):
            if slot.origin is None:
                edits.append(self._insert_at(place, slot))
        return edits

    def _insert_at(self, place: int, slot: Slot) -> Edit:
        if place == 1 and slot.is_named(b"Received"):
            # No index is the place below the first slot, but there such a field is added.
            return AddHeader(to_text(slot.name), self._given(slot.value or b""))
        return self._insert_edit(place - 1, slot)


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
