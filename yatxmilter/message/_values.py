"""
Header values between the wire and the author of a milter.

On the wire a value is raw: folded, encoded, perhaps in no encoding at all. The ``email`` package
decodes it, and encodes and folds what an author sets; what it is not asked to change it must not
touch, so its policy is one here that keeps each field as it came. What the wire cannot carry is
refused.
"""

from __future__ import annotations

import io
import re
from email.generator import BytesGenerator
from email.headerregistry import HeaderRegistry
from email.message import Message
from email.policy import EmailPolicy
from typing import Any, Final

from yatxmilter._wire.payloads import text_argument
from yatxmilter.errors import ValueNotSendable

__all__ = [
    "POLICY",
    "check_name",
    "check_raw",
    "decode_value",
    "encode_value",
    "write_email",
]

_NAME: Final = re.compile(r"[!-9;-~]+")
_LINE_END: Final = re.compile(r"\r?\n")
_ENDS_VALUE: Final = re.compile(r"[\r\n\0]")
_BREAKS_RAW: Final = re.compile(r"[\r\0]|\n(?![ \t])")
_BYTES: Final = re.compile("[\udc80-\udcff]")


class _ExactPolicy(EmailPolicy):
    """
    A policy under which a field that nobody sets goes out as it came in.

    """

    def header_source_parse(self, sourcelines: list[str]) -> tuple[str, str]:
        """
        Keep all that follows the colon.
        """
        name, _, value = "".join(sourcelines).partition(":")
        return name, value.rstrip("\r\n")

    def header_fetch_parse(self, name: str, value: str) -> Any:
        """
        Decode what `header_source_parse` kept; what was set is decoded already.
        """
        return super().header_fetch_parse(
            name, value if hasattr(value, "name") else value.lstrip(" \t\r\n")
        )

    def fold_binary(self, name: str, value: str) -> bytes:
        """
        Give a field's bytes.
        """
        if hasattr(value, "name"):
            return super().fold_binary(name, value)
        lines = _LINE_END.split(f"{name}:{value}\n")
        return self.linesep.join(lines).encode("utf-8", "surrogateescape")


#: How the email package reads and writes messages here.
POLICY: Final = _ExactPolicy(linesep="\r\n")

# For values that the parser of their field cannot read.
_UNSTRUCTURED: Final = HeaderRegistry(use_default_map=False)


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
    return raw


def decode_value(name: str, raw: str) -> Any:
    """
    Decode a value: the object that ``email.headerregistry`` has for fields of this name.
    """
    try:
        return POLICY.header_fetch_parse(name, raw)
    except Exception:
        # The parsers of structured fields fail on some that are ill-formed.
        return _UNSTRUCTURED(name, " ".join(raw.split()))


def encode_value(name: str, value: object) -> str:
    """
    Encode and fold a text. One with bytes of no encoding in it is left as it is.

    :raises ValueNotSendable: when it has a line end or NUL in it, or cannot be encoded.
    """
    if not isinstance(value, str):
        raise ValueNotSendable(f"header {name}: value {value!r} is not str")
    if _ENDS_VALUE.search(value):
        raise ValueNotSendable(f"header {name}: value {value!r} has a CR, LF or NUL in it")
    text = str(value)
    if _BYTES.search(text):
        return check_raw(name, text)
    try:
        folded = POLICY.header_factory(name, text).fold(policy=POLICY)
    except Exception as error:
        raise ValueNotSendable(f"header {name}: value {value!r} cannot be encoded: {error}") from (
            error
        )
    raw = _LINE_END.sub("\n", folded.partition(":")[2].removeprefix(" ")).removesuffix("\n")
    # The name's own line is not left empty for a first word that is too long for it.
    return check_raw(name, raw.lstrip("\n").lstrip() if raw.startswith("\n") else raw)


class _Writer(BytesGenerator):
    """
    A generator that can write a multipart without parts, too, when it has bytes of no encoding.
    """

    def _handle_multipart(self, msg: Any) -> None:
        if isinstance(msg.get_payload(), str):
            self._handle_text(msg)  # type: ignore[attr-defined]
        else:
            super()._handle_multipart(msg)  # type: ignore[misc]


def write_email(email: object) -> bytes:
    """
    Write a message of the email package.

    :raises ValueNotSendable: for what is none, and for one that cannot be written.
    """
    if not isinstance(email, Message):
        raise ValueNotSendable(f"message is {type(email).__name__}, not an EmailMessage")
    file = io.BytesIO()
    try:
        _Writer(file, mangle_from_=False, policy=POLICY).flatten(email)
    except Exception as error:
        raise ValueNotSendable(f"the email package cannot write this message: {error}") from error
    return file.getvalue()
