"""
Header values between the wire and the author of a milter.

On the wire a value is raw: folded, encoded, perhaps in no encoding at all. What the wire cannot
carry is refused here.
"""

from __future__ import annotations

import re
from typing import Final

from yatxmilter._mail.fields import FieldValue, read_field, write_field
from yatxmilter._wire.payloads import text_argument
from yatxmilter.errors import ValueNotSendable

__all__ = ["check_name", "check_raw", "decode_value", "encode_value"]

_NAME: Final = re.compile(r"[!-9;-~]+")
_BREAKS_RAW: Final = re.compile(r"[\r\0]|\n(?![ \t])")


def check_name(name: object) -> str:
    """
    Check the name of a field.

    :raises ValueNotSendable: when it is none.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueNotSendable(
            f"header name {name!r} is not printable ASCII without blanks and colons"
        )
    return name


def check_raw(name: str, raw: object) -> str:
    """
    Check a raw value.

    :raises ValueNotSendable: for what would not arrive as one field with this value.
    """
    if not isinstance(raw, str):
        raise ValueNotSendable(f"header {name}: raw value {raw!r} is not str")
    text_argument(f"header {name}: raw value", raw)
    if _BREAKS_RAW.search(raw):
        raise ValueNotSendable(
            f"header {name}: raw value {raw!r} has a CR or NUL in it, or an LF that no blank or tab"
            " follows"
        )
    return str(raw)


def decode_value(name: str, raw: str) -> FieldValue:
    """
    Decode a value, whatever it is, as the object for fields of this name.
    """
    return read_field(name, raw)


def encode_value(name: str, value: object, old: str | None = None) -> str:
    """
    Encode and fold a value.

    :param old: The raw value that the field has: what was read of it can be set.
    :raises ValueNotSendable: when the field cannot carry it.
    """
    try:
        return write_field(name, value, old)
    except ValueError as error:
        raise ValueNotSendable(str(error)) from None
