"""
A message as an object of the ``email`` package, and back.

The object is put together here, from the parts that `yatxmilter._mail.mime` finds: within bounds,
and for any octets. It remembers what it was made of. So when it is written, what was not changed
is written as it was, to the octet, and nothing is left to the folding of the ``email`` package.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from copy import copy, deepcopy
from email.errors import MessageDefect
from email.message import (  # type: ignore[attr-defined]
    EmailMessage,
    _formatparam,
)
from email.message import Message as AnyEmail
from email.policy import EmailPolicy
from itertools import zip_longest
from typing import Any, Final

from yatxmilter._mail.fields import ContentValue, FieldValue, read_field
from yatxmilter._mail.mime import Octets, Part, find_parts
from yatxmilter._mail.rfc5322 import with_line_ends
from yatxmilter._mail.tokens import quote
from yatxmilter._mail.words import charset_codec, charset_text, has_octets
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
        Keep a field as it came, all that follows the colon included.
        """
        name, _, value = "".join(sourcelines).partition(":")
        return name, _LINE_END.sub("\n", value.rstrip("\r\n"))

    def header_store_parse(self, name: str, value: Any) -> tuple[str, str]:
        """
        Encode a value that is set, and check that it is one field.
        """
        if hasattr(value, "max_count"):
            # Of the email package's own making, which keeps the blank.
            value = str(value).strip(" \t")
        return check_name(name), f" {check_raw(name, encode_value(name, value))}"

    def header_fetch_parse(self, name: str, value: str) -> Any:
        """
        Decode a value that is kept, when it is looked up.
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

    def set_param(
        self,
        param: str,
        value: Any,
        header: str = "Content-Type",
        requote: bool = True,
        charset: Any = None,
        language: str = "",
        replace: bool = False,
    ) -> None:
        """
        Set a parameter of a field, as the ``email`` package does; in time linear in its length.
        """
        if charset and not isinstance(value, tuple):
            value = (charset, language, value)
        if self.get_param(param, header=header):
            params = self.get_params([], header, requote)
            changed = (
                _parameter(param, value, requote)
                if name.lower() == param.lower()
                else _parameter(name, old, requote)
                for name, old in params
            )
            self._set_params(header, changed, replace)
            return
        whole = self.get(header)
        if whole is None and header.lower() == "content-type":
            whole = "text/plain"
        before = [str(whole)] if whole else []
        self._set_params(header, [*before, _parameter(param, value, requote)], replace)

    def del_param(self, param: str, header: str = "content-type", requote: bool = True) -> None:
        """
        Delete a parameter of a field, as the ``email`` package does; in time linear in its length.
        """
        if header in self:
            params = self.get_params([], header, requote)
            kept = [each for each in params if each[0].lower() != param.lower()]
            self._set_params(header, (_parameter(*each, requote) for each in kept), False)

    def set_type(self, type: str, header: str = "Content-Type", requote: bool = True) -> None:
        """
        Set the type, as the ``email`` package does; in time linear in the length of the field.
        """
        params = self.get_params([], header, requote)[1:]
        if type.count("/") == 1:
            # Else the parameters would be set again one by one.
            del self[header]
        super().set_type(type, header, requote)
        if params:
            written = (_parameter(*each, requote) for each in params)
            self._set_params(header, [type, *written], False)

    def _set_params(self, header: str, written: Iterable[str], replace: bool) -> None:
        text = "; ".join(written)
        if text == self.get(header):
            return
        if replace:
            self.replace_header(header, text)
        else:
            del self[header]
            self[header] = text

    def as_bytes(self, unixfrom: bool = False, policy: Any = None) -> bytes:
        """
        Give the message's octets, the parts that were not touched as they came.

        :param unixfrom: Whether a ``From `` line stands before them.
        :param policy: Says what lines end in. Nothing else of it counts: the ``email`` package
            cannot fold what a stranger wrote without failing, or taking its time.
        """
        fields, body = write_email(self)
        octets = written_header(fields) + b"\r\n" + body
        if unixfrom:
            mark = self.get_unixfrom() or f"From nobody {time.ctime()}"
            octets = mark.encode("utf-8", "surrogateescape") + b"\r\n" + octets
        if policy is None:
            return octets
        return _lines_ending_in(octets, policy.linesep.encode("ascii"))

    def as_string(
        self, unixfrom: bool = False, maxheaderlen: int | None = None, policy: Any = None
    ) -> str:
        """
        Give the message as text, for people to read.

        :param maxheaderlen: Nothing is folded, whatever it is.
        :param policy: Says what lines end in, as for `as_bytes`.
        """
        if unixfrom or maxheaderlen is not None or policy is not None:
            return self.as_bytes(unixfrom, policy or self.policy).decode("utf-8", "replace")
        return self.as_bytes().decode("utf-8", "replace").replace("\r\n", "\n")

    def get_payload(self, i: Any = None, decode: bool = False) -> Any:
        """
        Give the content as it is kept: parts, or a string; decoded, octets.
        """
        payload = _payload(self)
        if i is not None or not isinstance(payload, str):
            inherited: Any = super()
            return inherited.get_payload(i, decode)
        if decode:
            try:
                return super().get_payload(decode=True)
            except ValueError:
                # Python 3.10 does so for what is not uuencoded.
                return payload.encode("utf-8", "surrogateescape")
        if not has_octets(payload):
            return payload
        return charset_text(payload.encode("utf-8", "surrogateescape"), self._charset_name())

    def get_content(self, *args: Any, content_manager: Any = None, **options: Any) -> Any:
        """
        Give what the content says: text, octets, or the message in a message.

        :param errors: For text: what is done with octets that are not what the charset says. A
            charset that is not known counts as UTF-8; where this is ``strict``, it is an error.
        :raises KeyError: for a multipart, whose content is its parts.
        """
        if content_manager is None and isinstance(_payload(self), str):
            maintype = self.get_content_maintype()
            if maintype == "text":
                return self._text(*args, **options)
            if maintype != "multipart":
                return self._octets(*args, **options)
        return super().get_content(*args, content_manager=content_manager, **options)

    def _text(self, errors: str = "replace") -> str:
        charset = self._charset_name()
        if errors == "strict" and charset_codec(charset.strip()) is None:
            raise LookupError(f"unknown charset: {charset}")
        return charset_text(self.get_payload(decode=True), charset, errors)

    def _octets(self) -> Any:
        # A type that the email package does not know counts as octets (RFC 2046, section 4), and
        # so does a message in a message that was not looked into.
        return self.get_payload(decode=True)

    def _charset_name(self) -> str:
        return str(self.get_param("charset", "us-ascii"))

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


def _parameter(name: str, value: Any, requote: bool) -> str:
    """
    Write a parameter: as the ``email`` package does, but for octets that are no UTF-8, which are
    left as they are.
    """
    if isinstance(value, str) and has_octets(value):
        return f"{name}={quote(value)}"
    return str(_formatparam(name, value, requote))


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
    """
    Make e-mail objects of MIME parts, from the innermost outwards: recursion could be too deep.
    """
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
    return _lines_ending_in(octets, b"\r\n")


def _lines_ending_in(octets: bytes, line_end: bytes) -> bytes:
    # Here a lone CR ends a line, too.
    return with_line_ends(octets.replace(b"\r\n", b"\n").replace(b"\r", b"\n"), line_end)


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
