"""
Header fields by their kinds: what is read of each, and how what is set is written.

A value is a ``str``, with what belongs to the kind of its field beside it. What is read can be
set: a value that was read of a message goes out again even where nobody could have made it up.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import cached_property
from types import MappingProxyType
from typing import Final

from yatxmilter._mail.addresses import (
    Address,
    Group,
    format_address,
    read_addresses,
    show_structured,
    structured,
)
from yatxmilter._mail.dates import read_date, write_date
from yatxmilter._mail.parameters import parameter_pieces, read_parameters
from yatxmilter._mail.tokens import without_comments
from yatxmilter._mail.words import (
    Piece,
    decode_text,
    encode_text,
    fold,
    has_octets,
    raw_words,
    unfold,
)

__all__ = [
    "AddressesValue",
    "ContentValue",
    "DateValue",
    "FieldValue",
    "IdsValue",
    "MachineValue",
    "read_field",
    "write_field",
]

_ENDS_VALUE: Final = re.compile(r"[\r\n\0]")
_NO_CHARACTER: Final = re.compile("[\ud800-\udc7f\udd00-\udfff]")
_TYPE: Final = re.compile(r"[^\s()<>@,;:\\\"/\[\]?=]+/[^\s()<>@,;:\\\"/\[\]?=]+")
_ID: Final = re.compile(r"<[^<>\s]*>")


class FieldValue(str):
    """
    The value of a field, decoded: text without structure, and what all kinds of value have.

    :ivar name: The field's name.
    :ivar raw: The value as it stands in the message, without the one blank after the colon.
    """

    name: str
    raw: str
    _found: list[str]

    def __new__(cls, name: str, raw: str) -> FieldValue:
        """
        Decode a raw value.
        """
        # Some fields are folded right behind their name.
        defects: list[str] = []
        value = super().__new__(cls, cls._show(unfold(raw).lstrip(" \t"), defects))
        value.name, value.raw, value._found = name, raw, defects
        return value

    @classmethod
    def _show(cls, text: str, defects: list[str]) -> str:
        return decode_text(text, defects)

    @property
    def octets(self) -> bytes:
        """
        The raw value as octets.
        """
        return self.raw.encode("utf-8", "surrogateescape")

    @property
    def defects(self) -> tuple[str, ...]:
        """
        What is wrong with the value, in words; nothing most of the time.
        """
        self._read()
        found = self._found
        if has_octets(self.raw):
            found = [*found, "some bytes are not UTF-8"]
        return tuple(dict.fromkeys(found))

    def _read(self) -> None:
        # What belongs to the kind is read when it is asked for.
        pass


class MachineValue(FieldValue):
    """
    The value of a field that programs write for programs: as it stands, but for folds.
    """

    @classmethod
    def _show(cls, text: str, defects: list[str]) -> str:
        return text


class AddressesValue(FieldValue):
    """
    The value of a field with addresses.
    """

    _items: list[Address | Group] | None = None

    @classmethod
    def _show(cls, text: str, defects: list[str]) -> str:
        return show_structured(text, defects)

    def _read(self) -> None:
        if self._items is None:
            self._items, defects = read_addresses(unfold(self.raw))
            self._found = [*self._found, *defects]

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """
        Groups, and addresses by themselves as groups without a name, in order.
        """
        self._read()
        return tuple(
            item if isinstance(item, Group) else Group(None, (item,)) for item in self._items or ()
        )

    @cached_property
    def addresses(self) -> tuple[Address, ...]:
        """
        All addresses, those in groups included.
        """
        self._read()
        addresses: list[Address] = []
        for item in self._items or ():
            if isinstance(item, Group):
                addresses += item.addresses
            else:
                addresses.append(item)
        return tuple(addresses)

    @property
    def address(self) -> Address | None:
        """
        The address, if there is exactly one.
        """
        addresses = self.addresses
        return addresses[0] if len(addresses) == 1 else None


class DateValue(MachineValue):
    """
    The value of a field with a date.
    """

    @cached_property
    def datetime(self) -> datetime | None:
        """
        The date; naive and in UTC where it has no zone; ``None`` where it is none.
        """
        return read_date(self)

    def _read(self) -> None:
        if self.datetime is None:
            self._found = [*self._found, "it is not a date"]


class IdsValue(MachineValue):
    """
    The value of a field with message ids.
    """

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """
        The ids, in their angle brackets.
        """
        return tuple(_ID.findall(without_comments(self)))

    def _read(self) -> None:
        if not self.ids:
            self._found = [*self._found, "there is no id"]


class ContentValue(MachineValue):
    """
    The value of Content-Type, Content-Disposition and other fields with parameters.
    """

    _params: Mapping[str, str] | None = None
    _first = ""

    def _read(self) -> None:
        if self._params is None:
            self._first, params, defects = read_parameters(self)
            self._params = MappingProxyType(params)
            self._found = [*self._found, *defects]
            if self.name.lower() == "content-type" and not _TYPE.fullmatch(self._first):
                self._found.append("it is not a content type")

    @property
    def first(self) -> str:
        """
        What stands before the parameters.
        """
        self._read()
        return self._first

    @property
    def params(self) -> Mapping[str, str]:
        """
        The parameters by their names in small letters, decoded.
        """
        self._read()
        return self._params or {}

    @property
    def content_type(self) -> str:
        """
        The type in small letters: ``text/plain`` where it is none (RFC 2045, section 5.2).
        """
        self._read()
        return self._first.lower() if _TYPE.fullmatch(self._first) else "text/plain"

    @property
    def maintype(self) -> str:
        """
        What stands before the slash.
        """
        return self.content_type.partition("/")[0]

    @property
    def subtype(self) -> str:
        """
        What stands behind the slash.
        """
        return self.content_type.partition("/")[2]

    @property
    def content_disposition(self) -> str:
        """
        The disposition in small letters.
        """
        self._read()
        return self._first.lower()


class EncodingValue(MachineValue):
    """
    The value of Content-Transfer-Encoding.
    """

    @property
    def cte(self) -> str:
        """
        The encoding in small letters: ``7bit`` where there is none.
        """
        return without_comments(self).strip(" \t").lower() or "7bit"


class VersionValue(MachineValue):
    """
    The value of MIME-Version.
    """

    @property
    def version(self) -> str | None:
        """
        The version, ``None`` where it is none.
        """
        text = "".join(without_comments(self).split())
        return text if re.fullmatch(r"[0-9]{1,4}\.[0-9]{1,4}", text) else None


class PhraseValue(FieldValue):
    """
    The value of List-Id, with a name before the id.
    """

    @classmethod
    def _show(cls, text: str, defects: list[str]) -> str:
        return show_structured(text, defects)


def _kinds() -> dict[str, type[FieldValue]]:
    kinds: dict[str, type[FieldValue]] = {}
    for kind, names in (
        (
            AddressesValue,
            "from sender reply-to to cc bcc resent-from resent-sender resent-to resent-cc"
            " resent-bcc resent-reply-to disposition-notification-to errors-to mail-followup-to"
            " mail-reply-to return-receipt-to apparently-to",
        ),
        (DateValue, "date resent-date orig-date delivery-date"),
        (IdsValue, "message-id resent-message-id in-reply-to references content-id"),
        (ContentValue, "content-type content-disposition"),
        (EncodingValue, "content-transfer-encoding"),
        (VersionValue, "mime-version"),
        (PhraseValue, "list-id"),
        (
            MachineValue,
            "received return-path authentication-results arc-authentication-results"
            " arc-message-signature arc-seal dkim-signature domainkey-signature received-spf"
            " list-unsubscribe list-unsubscribe-post list-subscribe list-help list-post list-owner"
            " list-archive auto-submitted content-location content-base content-md5"
            " content-language delivered-to tls-required require-recipient-valid-since",
        ),
    ):
        kinds.update(dict.fromkeys(names.split(), kind))
    return kinds


_KINDS: Final = _kinds()


def read_field(name: str, raw: str) -> FieldValue:
    """
    Read a value: linear in its length, and never an exception.

    :param raw: What follows the colon and one blank.
    """
    return _KINDS.get(name.lower(), FieldValue)(name, raw)


# ---- writing


def write_field(name: str, value: object, old: str | None = None) -> str:
    """
    Write a value: encoded where it has to be, and folded, its lines separated by LF.

    :param value: Text, or address objects or a ``datetime`` for fields of that kind.
    :param old: The raw value that the field has: what was read of it may be written.
    :raises ValueError: for what the field cannot carry; it names the field.
    """
    kind = _KINDS.get(name.lower(), FieldValue)
    text = _text_of(kind, value)
    if text is None:
        raise ValueError(f"header {name}: value {value!r} is not str")
    if _ENDS_VALUE.search(text):
        raise ValueError(f"header {name}: value {text!r} has a CR, LF or NUL in it")
    if not text.isascii() and _NO_CHARACTER.search(text):
        raise ValueError(
            f"header {name}: value {text!r} has a surrogate in it that stands for no octet"
        )
    read = [raw for raw in (old, getattr(value, "raw", None)) if isinstance(raw, str)]
    kept = frozenset[str]().union(*map(raw_words, read))
    column = len(name) + 2
    if kind is FieldValue:
        return encode_text(text, column, kept)
    values = [str(read_field(name, raw)) for raw in read]
    was_read = any(old_value in text for old_value in values)
    if issubclass(kind, DateValue) and not was_read and read_date(text) is None:
        raise ValueError(
            f"header {name}: value {text!r} is not a date, such as"
            " 'Fri, 27 Nov 2026 12:00:00 +0100'"
        )
    # Text around what was read does not make it worse.
    if issubclass(kind, MachineValue) and any(_adds_ascii(text, value) for value in values):
        return fold(_as_it_is(text), column)
    try:
        return fold(_pieces(kind, text, kept), column)
    except ValueError as error:
        if was_read:
            return fold(_as_it_is(text), column)
        raise ValueError(
            f"header {name}: value {text!r} cannot be encoded: {str(error)!r} is not ASCII, and no"
            " encoded word may stand there"
        ) from None


def _text_of(kind: type[FieldValue], value: object) -> str | None:
    if isinstance(value, str):
        return str(value)
    if kind is AddressesValue:
        return format_address(value)
    if kind is DateValue and isinstance(value, datetime):
        return write_date(value)
    return None


def _adds_ascii(text: str, value: str) -> bool:
    before, there, behind = text.partition(value) if value else (text, "", "")
    return bool(there) and before.isascii() and behind.isascii()


def _pieces(kind: type[FieldValue], text: str, kept: frozenset[str]) -> Iterator[Piece]:
    if text.isascii():
        return _as_it_is(text)
    if kind is ContentValue:
        return parameter_pieces(text, kept)
    return structured(text, kept, kind in (AddressesValue, PhraseValue))


def _as_it_is(text: str) -> Iterator[Piece]:
    blank = ""
    for token in re.findall(r"[ \t]+|[^ \t]+", text):
        if token[0] in " \t":
            blank = token
        else:
            yield Piece(blank, token)
            blank = ""
    if blank:
        yield Piece(blank, "")
