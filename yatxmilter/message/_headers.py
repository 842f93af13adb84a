"""
The header of a message as an object to read and edit.

It is a list of fields that can be looked into by name. A field keeps its raw value, and its number
in the header as it came, until it is given another; so what is not edited stays as it is, and what
was edited can be told at the end by comparing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from yatxmilter import constants as c
from yatxmilter._wire.payloads import from_text
from yatxmilter.errors import ValueNotSendable
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

    def __init__(self, headers: Headers, name: str, raw: str, origin: int | None) -> None:
        self._headers = headers
        self._raw = raw
        self.name = name
        self.origin = origin

    def __repr__(self) -> str:
        return f"<HeaderField {self.name}: {self._raw!r}>"

    @property
    def raw(self) -> str:
        """
        The value as it stands in the message: what follows the colon and a blank, still encoded and
        folded, bytes that are no UTF-8 as surrogates. It can be set to any text that is one field.
        """
        return self._raw

    @raw.setter
    def raw(self, raw: str) -> None:
        check_raw(self.name, raw)
        if raw != self._raw:
            # The wire has an empty value for a deletion: it takes a new field.
            flags = c.SMFIF_CHGHDRS if raw else c.SMFIF_CHGHDRS | c.SMFIF_ADDHDRS
            self._headers.allow(f"changing header {self.name}", flags, self.name, raw)
            self._raw = raw

    @property
    def value(self) -> Any:
        """
        The value decoded: a ``str`` that has, depending on the field, ``addresses``, ``datetime``
        and so on as in ``email.headerregistry``. Set, it is encoded and folded.
        """
        return decode_value(self.name, self._raw)

    @value.setter
    def value(self, value: str) -> None:
        # One that is set to what it is stays as it is encoded.
        raw = encode_value(self.name, value)
        if str(value) != str(self.value):
            self.raw = raw

    def remove(self) -> None:
        """
        Delete the field.
        """
        self._headers.remove(self)


class Headers:
    """
    The header of a message, in order.

    By name it answers as ``email.message.EmailMessage`` does: with the decoded value of the first
    field of that name, in any case, or ``None``. Iterating gives `HeaderField` objects.

    :param received: Names and raw values.
    :param allow: Raises for what cannot be done.
    """

    def __init__(self, received: Iterable[tuple[str, str]], allow: Allow) -> None:
        self._fields = [
            HeaderField(self, name, raw, number) for number, (name, raw) in enumerate(received)
        ]
        self._allow = allow

    def allow(self, what: str, flags: int, name: str = "", raw: str = "") -> None:
        """
        Check that something can be done.

        :raises UsageError: when it cannot.
        """
        # What goes with them: an index, and their ends.
        self._allow(what, flags, len(name) + len(from_text(raw)) + 7 if name else 0)

    # ---- reading

    def __iter__(self) -> Iterator[HeaderField]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and bool(self.fields(name))

    def __getitem__(self, name: str) -> Any:
        return self.get(name)

    def get(self, name: str, default: Any = None) -> Any:
        """
        Give the decoded value of the first field of this name.
        """
        fields = self.fields(name)
        return fields[0].value if fields else default

    def get_all(self, name: str) -> list[Any]:
        """
        Give the decoded values of all fields of this name.
        """
        return [field.value for field in self.fields(name)]

    def fields(self, name: str) -> list[HeaderField]:
        """
        Give the fields of this name, in order.
        """
        return [field for field in self._fields if field.name.lower() == name.lower()]

    # ---- editing

    def __setitem__(self, name: str, value: str) -> None:
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
            gone = set(fields)
            self._fields = [field for field in self._fields if field not in gone]

    def add(self, name: str, value: str, *, raw: bool = False) -> HeaderField:
        """
        Add a field at the end.

        :param raw: Whether the value is encoded and folded (LF and white space) already.
        """
        return self.insert(len(self._fields), name, value, raw=raw)

    def insert(self, place: int, name: str, value: str, *, raw: bool = False) -> HeaderField:
        """
        Put a field in front of the one at a place.

        :param place: 0 is the very top; beyond the last it is the end.
        """
        if not isinstance(place, int) or place < 0:
            raise ValueNotSendable(f"header {name}: place {place!r} is not a number from 0 on")
        check_name(name)
        text = check_raw(name, value) if raw else encode_value(name, value)
        self.allow(f"adding header {name}", c.SMFIF_ADDHDRS, name, text)
        field = HeaderField(self, name, text, None)
        self._fields.insert(place, field)
        return field

    def replace(self, name: str, value: str, number: int = 1) -> None:
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
        self._remove([field])

    def rewrite(self, wanted: Iterable[tuple[str, str]]) -> None:
        """
        Make it these names and raw values; a field that is among them as it is stays.
        """
        before: dict[tuple[str, str], list[HeaderField]] = {}
        for field in self._fields:
            before.setdefault((field.name, _one_line(field.raw)), []).append(field)
        fields = []
        for name, raw in wanted:
            same = before.get((name, _one_line(raw)))
            if same:
                fields.append(same.pop(0))
                continue
            check_raw(check_name(name), raw)
            self.allow(f"rewriting header {name}", _REWRITE, name, raw)
            fields.append(HeaderField(self, name, raw, None))
        if fields != self._fields:
            self.allow("rewriting the header", _REWRITE)
            self._fields = fields


_REWRITE = c.SMFIF_ADDHDRS | c.SMFIF_CHGHDRS


def _one_line(raw: str) -> str:
    # To the email package a CR ends a line, so it is not shown any: see `Message.email`.
    return raw.replace("\r", " ")
