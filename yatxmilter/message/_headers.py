"""
The header of a message as an object to read and edit.

It is a list of fields that can be looked into by name. A field keeps its raw value, and its number
in the header as it came, until it is given another; so what is not edited stays as it is, and what
was edited can be told at the end by comparing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from yatxmilter import constants as c
from yatxmilter._mail.fields import FieldValue
from yatxmilter._wire.payloads import from_text
from yatxmilter.errors import NotOnce, ValueNotSendable
from yatxmilter.message._values import check_name, check_raw, decode_value, encode_value

__all__ = ["HeaderField", "Headers"]

#: Called with what is about to be done, the ``SMFIF_*`` flag for it and its size in bytes.
Allow = Callable[[str, int, int], None]


class HeaderField:
    """
    A field of a header.

    :ivar name: Its name, spelled as in the message.
    :ivar origin: Its number in the header as it came, ``None`` for a new one.
    """

    __slots__ = ("_full", "_headers", "_received", "_there", "_value", "name", "origin")

    def __init__(self, headers: Headers, name: str, full: str, origin: int | None) -> None:
        self._headers = headers
        self._received = full
        self._full = full
        self._value: FieldValue | None = None
        self._there = True
        self.name = name
        self.origin = origin

    def __repr__(self) -> str:
        return f"<HeaderField {self.name}: {self.raw!r}>"

    @property
    def full(self) -> str:
        """
        All that follows the colon, lines separated by LF.
        """
        return self._full

    @property
    def octets(self) -> bytes:
        """
        The field as it stands in the message, to the octet, its lines ending in CR LF: with the
        white space behind the colon as it came, where the MTA tells it.
        """
        field = from_text(f"{self.name}:{self._full}\n")
        return field.replace(b"\n", b"\r\n")

    @property
    def raw(self) -> str:
        """
        The value as it stands in the message: what follows the colon and a blank, still encoded and
        folded, bytes that are not UTF-8 as surrogates. It can be set to any text that is one field.
        """
        return self._full.removeprefix(" ")

    @raw.setter
    def raw(self, raw: str) -> None:
        self._set(check_raw(self.name, raw))

    def _set(self, raw: str) -> None:
        if raw == self.raw:
            return
        # The wire has an empty value for a deletion: it takes a new field.
        flags = c.SMFIF_CHGHDRS if raw else c.SMFIF_CHGHDRS | c.SMFIF_ADDHDRS
        self._headers.allow(f"changing header {self.name}", flags, self.name, raw)
        # What is set back to what it was is as it was, whatever stood behind the colon.
        received = self._received
        self._full = received if raw == received.removeprefix(" ") else f" {raw}"
        self._value = None

    @property
    def value(self) -> Any:
        """
        The value decoded: a ``str`` that has ``raw``, ``octets`` and ``defects`` besides, and
        depending on the field ``addresses``, ``datetime``, ``params`` and so on. Set, it is encoded
        and folded.
        """
        if self._value is None:
            self._value = decode_value(self.name, self.raw)
        return self._value

    @value.setter
    def value(self, value: Any) -> None:
        raw = encode_value(self.name, value, self.raw)
        # One that is set to what it is stays as it is encoded.
        if not isinstance(value, str) or str(value) != str(self.value):
            self._set(check_raw(self.name, raw))

    def remove(self) -> None:
        """
        Delete the field.
        """
        self._headers.remove(self)


class _Named:
    """
    The fields of one name; those that were deleted may be among them.

    :ivar top: New ones above the others, the uppermost last.
    """

    __slots__ = ("_start", "fields", "gone", "top")

    def __init__(self) -> None:
        self.fields: list[HeaderField] = []
        self.top: list[HeaderField] = []
        self._start = 0
        self.gone = 0

    def first(self) -> HeaderField | None:
        """
        Give the first that is there; ``None`` where there is none.
        """
        # Those that are gone further on are not looked at, each time anew.
        while self.top:
            if self.top[-1]._there:
                return self.top[-1]
            self.top.pop()
            self.gone -= 1
        while self._start < len(self.fields):
            if self.fields[self._start]._there:
                return self.fields[self._start]
            self._start += 1
            self.gone -= 1
        return None

    def listed(self) -> list[HeaderField]:
        """
        Give those that are there, in order.
        """
        if self.top or self.gone:
            fields = [*reversed(self.top), *self.fields[self._start :]]
            self.fields = [field for field in fields if field._there]
            self.top = []
            self._start = self.gone = 0
        return self.fields[self._start :]


class Headers:
    """
    The header of a message, in order.

    By name it answers as ``email.message.EmailMessage`` does: with the decoded value of the first
    field of that name, in any case, or ``None``. Iterating gives `HeaderField` objects.

    :param received: Names, and all that follows the colons.
    :param allow: Raises for what cannot be done.
    """

    def __init__(self, received: Iterable[tuple[str, str]], allow: Allow) -> None:
        self._fields = [
            HeaderField(self, name, full, number) for number, (name, full) in enumerate(received)
        ]
        # New fields above all others, the uppermost last.
        self._top: list[HeaderField] = []
        # How many of all these have been deleted and are still in the lists.
        self._gone = 0
        # The fields by their names in small letters.
        self._index: dict[str, _Named] | None = None
        self._allow = allow

    def allow(self, what: str, flags: int, name: str = "", raw: str = "") -> None:
        """
        Check that something can be done.

        :raises UsageError: when it cannot.
        """
        # What goes with them: an index, a blank, and their ends.
        self._allow(what, flags, len(name) + len(from_text(raw)) + 7 if name else 0)

    # ---- reading

    def _settled(self) -> list[HeaderField]:
        """
        Give the fields in one list, without those that are gone.
        """
        if self._top or self._gone:
            fields = [*reversed(self._top), *self._fields]
            self._fields = [field for field in fields if field._there] if self._gone else fields
            self._top = []
            self._gone = 0
        return self._fields

    def _named(self, name: str) -> _Named | None:
        """
        Give the fields of a name.
        """
        if self._index is None:
            self._index = {}
            for field in self._settled():
                self._index.setdefault(field.name.lower(), _Named()).fields.append(field)
        return self._index.get(name.lower())

    def _first(self, name: str) -> HeaderField | None:
        named = self._named(name)
        return None if named is None else named.first()

    def __iter__(self) -> Iterator[HeaderField]:
        return iter(self._settled())

    def __len__(self) -> int:
        return len(self._fields) + len(self._top) - self._gone

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._first(name) is not None

    def __getitem__(self, name: str) -> Any:
        return self.get(name)

    def get(self, name: str, default: Any = None) -> Any:
        """
        Give the decoded value of the first field of this name.
        """
        field = self._first(name)
        return default if field is None else field.value

    def only(self, name: str) -> Any:
        """
        Give the decoded value of the one field of this name.

        A rule on a field that RFC 5322 allows once, such as From, had better ask so: which of two
        a reader is shown, is not known.

        :raises NotOnce: when there is none, or more than one.
        """
        fields = self.fields(name)
        if len(fields) != 1:
            there = f"there are {len(fields)}" if fields else "there is none"
            raise NotOnce(f"header {name}: {there} in the message, expected one")
        return fields[0].value

    def get_all(self, name: str) -> list[Any]:
        """
        Give the decoded values of all fields of this name.
        """
        return [field.value for field in self.fields(name)]

    def fields(self, name: str) -> list[HeaderField]:
        """
        Give the fields of this name, in order.
        """
        named = self._named(name)
        return [] if named is None else named.listed()

    def octets(self) -> bytes:
        """
        Give all fields as they stand in the message, to the octet.
        """
        lines = [f"{field.name}:{field.full}\n" for field in self._settled()]
        return from_text("".join(lines)).replace(b"\n", b"\r\n")

    # ---- editing

    def __setitem__(self, name: str, value: Any) -> None:
        """
        Make it the one field of this name: the first is changed, others go; or it is added.
        """
        fields = self.fields(check_name(name))
        if not fields:
            self.add(name, value)
            return
        fields[0].value = value
        self._remove(fields[1:])

    def __delitem__(self, name: str) -> None:
        """
        Delete all fields of this name; there need be none.
        """
        self._remove(self.fields(name))

    def _remove(self, fields: list[HeaderField]) -> None:
        if fields:
            self.allow(f"deleting header {fields[0].name}", c.SMFIF_CHGHDRS)
        for field in fields:
            field._there = False
            if self._index is not None:
                self._index[field.name.lower()].gone += 1
        self._gone += len(fields)

    def add(self, name: str, value: Any, *, raw: bool = False) -> HeaderField:
        """
        Add a field at the end.

        :param raw: Whether the value is encoded and folded (LF and white space) already.
        """
        return self._put(None, name, value, raw)

    def insert(self, place: int, name: str, value: Any, *, raw: bool = False) -> HeaderField:
        """
        Put a field in front of the one at a place.

        :param place: 0 is the very top; beyond the last it is the end.
        """
        if not isinstance(place, int) or place < 0:
            raise ValueNotSendable(f"header {name}: place {place!r} is not a number from 0 on")
        return self._put(place, name, value, raw)

    def _put(self, place: int | None, name: str, value: Any, raw: bool) -> HeaderField:
        check_name(name)
        text = check_raw(name, value if raw else encode_value(name, value))
        self.allow(f"adding header {name}", c.SMFIF_ADDHDRS, name, text)
        field = HeaderField(self, name, f" {text}", None)
        if place == 0:
            self._top.append(field)
        elif place is None or place >= len(self):
            self._fields.append(field)
        else:
            self._settled().insert(place, field)
            if self._index is not None and name.lower() in self._index:
                # It is among others of its name, and nobody knows where.
                self._index = None
        if self._index is not None:
            named = self._index.setdefault(name.lower(), _Named())
            (named.top if place == 0 else named.fields).append(field)
        return field

    def replace(self, name: str, value: Any, number: int = 1) -> None:
        """
        Give another value to one field of a name.

        :param number: Which of them, counted from 1.
        :raises ValueNotSendable: when there are not so many.
        """
        fields = self.fields(name)
        if not 0 < number <= len(fields):
            raise ValueNotSendable(f"header {name}: there are {len(fields)}, no number {number!r}")
        fields[number - 1].value = value

    def remove(self, field: HeaderField) -> None:
        """
        Delete a field; one that is deleted already stays so.
        """
        if field._there and field._headers is self:
            self._remove([field])

    def rewrite(self, wanted: Iterable[tuple[str, str]]) -> None:
        """
        Make it these names, and what follows the colons; a field that is among them as it is stays.
        """
        before: dict[tuple[str, str], deque[HeaderField]] = {}
        for field in self._settled():
            before.setdefault((field.name, field.full), deque()).append(field)
        fields = []
        for name, full in wanted:
            raw = full.removeprefix(" ")
            same = before.get((name, full)) or before.get((name, f" {raw}"))
            if same:
                fields.append(same.popleft())
                continue
            check_raw(check_name(name), raw)
            self.allow(f"rewriting header {name}", _REWRITE, name, raw)
            fields.append(HeaderField(self, name, f" {raw}", None))
        if fields != self._fields:
            self.allow("rewriting the header", _REWRITE)
            for field in self._fields:
                field._there = False
            for field in fields:
                field._there = True
            self._fields = fields
            self._index = None


_REWRITE = c.SMFIF_ADDHDRS | c.SMFIF_CHGHDRS
