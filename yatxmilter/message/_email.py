"""
A message as an object of the ``email`` package, and back.

The object is put together here, from the parts that `yatxmilter._mail.mime` finds: within bounds,
and for any octets. It remembers what it was made of. So when it is written, what nobody touched is
written as it was, to the octet, and nothing is left to the folding of the ``email`` package.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from copy import copy, deepcopy
from email.errors import MessageDefect
from email.message import EmailMessage
from email.message import Message as AnyEmail
from email.policy import EmailPolicy
from itertools import zip_longest
from typing import Any, Final

from yatxmilter._mail.fields import ContentValue, FieldValue, read_field
from yatxmilter._mail.mime import Octets, Part, find_parts
from yatxmilter._mail.words import has_octets
from yatxmilter.errors import ValueNotSendable
from yatxmilter.message._values import check_name, check_raw, encode_value

__all__ = ["ParsedMessage", "build_email", "write_email"]

_LINE_END: Final = re.compile(r"\r\n|\r|\n")
_MULTIPART: Final = re.compile(r"(?i)multipart/")


class _ExactPolicy(EmailPolicy):
    """
    A policy under which fields are kept as they stand in a message: what is set is encoded at once.
    """

    def header_source_parse(self, sourcelines: list[str]) -> tuple[str, str]:
        """
        Keep all that follows the colon.
        """
        name, _, value = "".join(sourcelines).partition(":")
        return name, _LINE_END.sub("\n", value.rstrip("\r\n"))

    def header_store_parse(self, name: str, value: Any) -> tuple[str, str]:
        """
        Encode what is set.
        """
        if hasattr(value, "max_count"):
            # Of the email package's own making, which keeps the blank.
            value = str(value).strip(" \t")
        return check_name(name), f" {check_raw(name, encode_value(name, value))}"

    def header_fetch_parse(self, name: str, value: str) -> Any:
        """
        Decode what is kept.
        """
        return _decoded(name, value)

    def fold(self, name: str, value: Any) -> str:
        """
        Give a field as it stands in a message.
        """
        return f"{name}:{value}\n".replace("\n", self.linesep)

    def fold_binary(self, name: str, value: Any) -> bytes:
        """
        Give a field's octets.
        """
        return self.fold(name, value).encode("utf-8", "surrogateescape")


#: How the email package reads and writes messages here.
_POLICY: Final = _ExactPolicy(linesep="\r\n")


def _decoded(name: str, value: str) -> FieldValue:
    return read_field(name, value.removeprefix(" "))


class ParsedMessage(EmailMessage):
    """
    An ``EmailMessage`` of which no method fails, or takes its time, for what stands in a header.

    :ivar source: What it was made of; ``None`` for one that the author makes.
    """

    source: _Source | None = None

    def __init__(self, policy: Any = None) -> None:
        super().__init__(policy=policy or _POLICY)

    def _get_params_preserve(self, failobj: Any, header: str) -> Any:
        """
        Read parameters: what all of the ``email`` package's methods for them ask.
        """
        value = self.get(header)
        if value is None:
            return failobj
        if not isinstance(value, ContentValue):
            value = ContentValue(header, str(value))
        # As they stand in a field: in quotes.
        quoted = (
            (name, '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"')
            for name, text in value.params.items()
        )
        return [(value.first, ""), *quoted]

    def as_bytes(self, unixfrom: bool = False, policy: Any = None) -> bytes:
        """
        Give the message's octets, the parts that were not touched as they came.
        """
        if unixfrom or policy is not None:
            return super().as_bytes(unixfrom, policy)
        fields, body = write_email(self)
        return written_header(fields) + b"\r\n" + body

    def as_string(self, unixfrom: bool = False, *args: Any, **options: Any) -> str:
        """
        Give the message as text, for people to read.
        """
        if unixfrom or args or options:
            return super().as_string(unixfrom, *args, **options)
        return self.as_bytes().decode("utf-8", "replace").replace("\r\n", "\n")

    def iter_attachments(self) -> Any:
        """
        Yield attachments; of a multipart without parts, none.
        """
        return super().iter_attachments() if _payload(self) else iter(())


class _Source:
    """
    What a message object was made of.

    :ivar part: Where it lies in the body.
    :ivar boundary: What stands between its parts.
    :ivar parts: What its parts were made to; ``None`` for a leaf.
    """

    def __init__(self, part: Part, made: ParsedMessage) -> None:
        self.part = part
        self.boundary = made.get_boundary()
        self._fields = list(_kept_fields(made))
        self._payload = _payload(made)
        self.parts = list(self._payload) if isinstance(self._payload, list) else None
        self._around = made.preamble, made.epilogue

    def __deepcopy__(self, memo: dict[int, Any]) -> _Source:
        # What it was made of cannot be copied, and does not change.
        twin = copy(self)
        twin.parts = deepcopy(self.parts, memo)
        return twin

    def has_header(self, email: AnyEmail) -> bool:
        """
        Tell whether the header is what it was.
        """
        return list(_kept_fields(email)) == self._fields

    def has_content(self, email: AnyEmail) -> bool:
        """
        Tell whether the content is what it was, but for what is in its parts.
        """
        payload = _payload(email)
        if (
            email.preamble,
            email.epilogue,
        ) != self._around or email.get_boundary() != self.boundary:
            return False
        if self.parts is None:
            return bool(payload == self._payload)
        return (
            isinstance(payload, list)
            and len(payload) == len(self.parts)
            and all(one is other for one, other in zip(payload, self.parts, strict=True))
        )


def _payload(email: AnyEmail) -> Any:
    # `get_payload` would decode octets that are not ASCII.
    return email._payload  # type: ignore[attr-defined]


def _kept_fields(email: AnyEmail) -> Iterator[tuple[str, Any]]:
    # Names and values as the policy keeps them: `items` would decode them.
    return iter(email.raw_items())


# ---- making


def build_email(data: Octets, fields: Sequence[tuple[str, str]]) -> ParsedMessage:
    """
    Make the object of a message.

    :param data: The body.
    :param fields: Names, and all that follows the colons.
    """
    return _build(find_parts(data, fields))


def _build(root: Part) -> ParsedMessage:
    # What lies within comes first.
    made: dict[int, ParsedMessage] = {}
    for part in reversed(list(root.walk())):
        email = ParsedMessage()
        for name, value in part.fields:
            email.set_raw(name, value)
        if part.parts:
            email.set_payload([made.pop(id(child)) for child in part.parts])
            if part.between:
                start, end = part.between[0][0], part.between[-1][1]
                email.preamble = _text(part.between_places(part.start, start)) or None
                if len(part.between) > len(part.parts):
                    email.epilogue = _text(part.between_places(end, part.end))
        elif _MULTIPART.match(part.content_type):
            # One without parts: to the email package they are a list all the same.
            email.set_payload([])
            email.preamble = _text(part.octets)
        else:
            email.set_payload(_text(part.octets))
        email.defects.extend(map(MessageDefect, part.defects))
        email.source = _Source(part, email)
        made[id(part)] = email
    return made[id(root)]


def _text(octets: bytes) -> str:
    return octets.replace(b"\r\n", b"\n").decode("ascii", "surrogateescape")


# ---- writing


def write_email(email: object) -> tuple[list[tuple[str, str]], bytes]:
    """
    Write a message of the email package: its header, names and all that follows the colons; and
    its body.

    :raises ValueNotSendable: for what is none, and for one that cannot be written.
    """
    if not isinstance(email, AnyEmail):
        raise ValueNotSendable(f"message is {type(email).__name__}, not an EmailMessage")
    try:
        body = b"".join(_content(email, 0))
        return list(_header(email)), body
    except ValueNotSendable:
        raise
    except Exception as error:
        raise ValueNotSendable(f"cannot write this message: {error}") from error


#: Parts that an author puts into one another for ever are a mistake.
_DEEPEST: Final = 200


def written_header(fields: Iterable[tuple[str, str]]) -> bytes:
    """
    Write fields as they stand in a message.
    """
    text = "".join(f"{name}:{full}\n" for name, full in fields)
    return text.encode("utf-8", "surrogateescape").replace(b"\n", b"\r\n")


def _header(email: AnyEmail) -> Iterator[tuple[str, str]]:
    for name, value in _kept_fields(email):
        yield check_name(name), _full_value(email, name, value)


def _full_value(email: AnyEmail, name: str, value: Any) -> str:
    if isinstance(email.policy, _ExactPolicy):
        return str(value)
    if isinstance(value, str):
        if hasattr(value, "name") or not (value.isascii() or has_octets(value)):
            # What it shows is set.
            return f" {encode_value(name, str(value))}"
        # As it was read.
        full = f" {_LINE_END.sub(chr(10), value)}"
    else:
        folded = email.policy.fold_binary(name, value).decode("utf-8", "surrogateescape")
        full = _LINE_END.sub("\n", folded.partition(":")[2]).removesuffix("\n")
    # What the email package gives, or an author puts there, may be several fields.
    return check_raw(name, full)


def _source_of(email: AnyEmail) -> _Source | None:
    source = getattr(email, "source", None)
    return source if isinstance(source, _Source) else None


def _content(email: AnyEmail, depth: int) -> Iterator[bytes]:
    """
    Yield the pieces of what follows a header.
    """
    if depth > _DEEPEST:
        raise ValueNotSendable(f"message has parts more than {_DEEPEST} deep")
    payload = _payload(email)
    source = _source_of(email)
    same = source is not None and source.has_content(email)
    if source is not None and same and (source.parts is None or not source.part.parts):
        yield source.part.octets
    elif not isinstance(payload, list):
        yield _leaf(payload)
    elif email.get_content_maintype() == "multipart":
        yield from _multipart(email, payload, source if same else None, depth)
    elif email.get_content_maintype() == "message":
        # Reports of delivery have several: groups of fields, with empty lines behind them.
        for part in payload:
            yield from _part(part, depth)
    else:
        raise ValueNotSendable(f"{email.get_content_type()} has a list of parts for its content")


def _leaf(payload: Any) -> bytes:
    if payload is None:
        return b""
    if not isinstance(payload, str):
        raise ValueNotSendable(f"content is {type(payload).__name__}, not str")
    octets = payload.encode("ascii", "surrogateescape")
    return re.sub(rb"\r\n|\r|\n", b"\r\n", octets)


def _part(email: AnyEmail, depth: int) -> Iterator[bytes]:
    """
    Yield the pieces of a part with its header.
    """
    source = _source_of(email)
    if source is not None and source.has_header(email):
        yield source.part.between_places(source.part.head, source.part.start)
        if source.part.has_open_header and not source.has_content(email):
            yield b"\r\n"
    else:
        yield written_header(_header(email)) + b"\r\n"
    yield from _content(email, depth + 1)


def _multipart(
    email: AnyEmail, parts: list[AnyEmail], source: _Source | None, depth: int
) -> Iterator[bytes]:
    boundary = email.get_boundary()
    if boundary is None:
        boundary = f"={'=' * 14}{os.urandom(12).hex()}=="
        email.set_boundary(boundary)
    if source is not None:
        yield from _as_it_was(parts, source, depth)
        return
    mark = b"--" + boundary.encode("utf-8", "surrogateescape")
    if email.preamble is not None:
        yield _leaf(email.preamble) + b"\r\n"
    for part in parts:
        yield mark + b"\r\n"
        yield from _part(part, depth)
        yield b"\r\n"
    yield mark + b"--\r\n"
    if email.epilogue is not None:
        yield _leaf(email.epilogue)


def _as_it_was(parts: list[AnyEmail], source: _Source, depth: int) -> Iterator[bytes]:
    """
    Yield parts with what stood between them, to the octet.
    """
    whole = source.part
    position = whole.start
    ends = [start for start, _ in whole.between[1:]]
    for part, old, end in zip_longest(parts, whole.parts, ends[: len(parts)]):
        yield whole.between_places(position, old.head)
        position = old.end
        if end is None or end == position:
            yield from _part(part, depth)
            continue
        # The line after it has ended its header, so the line end before that belongs to both.
        written = b"".join(_part(part, depth))
        yield written
        if written != whole.between_places(old.head, old.end):
            position = end
    yield whole.between_places(position, whole.end)
