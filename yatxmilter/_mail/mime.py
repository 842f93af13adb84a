"""
The parts of a message (RFC 2046), found by where they lie in its body.

The body is looked through once, for lines that may stand between parts; nothing is copied, and
nothing decoded before it is asked for. There is a bound on how deep parts may lie and on how many
there may be: what is beyond it is part of a leaf, which has a defect. So it is with whatever else
is wrong: there are parts for any octets.
"""

from __future__ import annotations

import mmap
import re
from binascii import a2b_base64, a2b_qp
from collections.abc import Iterator, Sequence
from typing import Final

from yatxmilter._mail.bounds import MAX_HEADER_BYTES, MAX_MIME_DEPTH, MAX_MIME_PARTS
from yatxmilter._mail.fields import ContentValue, EncodingValue, FieldValue, read_field
from yatxmilter._mail.words import charset_text

__all__ = ["Octets", "Part", "decode_content", "find_parts"]

#: Where octets are: in memory, or in a file that looks like it.
Octets = bytes | mmap.mmap

_FIELD: Final = re.compile(rb"([!-9;-~]+)[ \t]*:")
#: No line between parts is longer: a boundary has at most 70 characters, here some more.
_LONGEST_BOUNDARY: Final = 512
_BASE64: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_NOT_BASE64: Final = bytes(set(range(256)) - set(_BASE64))
_IDENTITY: Final = frozenset(("7bit", "8bit", "binary"))
_TOO_DEEP: Final = f"parts lie deeper than {MAX_MIME_DEPTH}"
_TOO_MANY: Final = f"there are more than {MAX_MIME_PARTS} parts"


class Part:
    """
    A part of a message, the message itself included.

    :ivar fields: Its header: names and raw values, all that follows the colon.
    :ivar depth: In how many parts it lies.
    :ivar parts: The parts in it; none for a leaf.
    :ivar defects: What is wrong with it, in words.
    """

    __slots__ = (
        "_data",
        "_values",
        "between",
        "defects",
        "depth",
        "end",
        "fields",
        "head",
        "parts",
        "start",
    )

    def __init__(
        self, data: Octets, fields: Sequence[tuple[str, str]], depth: int, head: int, start: int
    ) -> None:
        self._data = data
        self.fields = fields
        self.depth = depth
        # Where its header, its content and what follows it begin.
        self.head = head
        self.start = start
        self.end = start
        self.parts: list[Part] = []
        # Of a multipart: where the lines before each part, and the one after the last, lie.
        self.between: list[tuple[int, int]] = []
        self.defects: list[str] = []
        self._values: dict[str, FieldValue | None] = {}

    def __repr__(self) -> str:
        return f"<Part {self.content_type} at depth {self.depth}, {self.end - self.start} bytes>"

    # ---- header

    def get(self, name: str) -> FieldValue | None:
        """
        Give the decoded value of the first field of a name; ``None`` when there is none.
        """
        lower = name.lower()
        if lower not in self._values:
            found = (
                read_field(own, value.removeprefix(" "))
                for own, value in self.fields
                if own.lower() == lower
            )
            self._values[lower] = next(found, None)
        return self._values[lower]

    def _content(self, name: str) -> ContentValue | None:
        value = self.get(name)
        return value if isinstance(value, ContentValue) else None

    @property
    def content_type(self) -> str:
        """
        Its type in small letters; ``text/plain`` where it has none, or what is none.
        """
        value = self._content("Content-Type")
        return "text/plain" if value is None else value.content_type

    @property
    def charset(self) -> str | None:
        """
        The charset that it names, in small letters.
        """
        value = self._content("Content-Type")
        charset = None if value is None else value.params.get("charset")
        return None if charset is None else charset.strip().lower()

    @property
    def disposition(self) -> str | None:
        """
        ``inline`` or ``attachment``, as a rule; ``None`` where it says neither.
        """
        value = self._content("Content-Disposition")
        return None if value is None else value.content_disposition

    @property
    def filename(self) -> str | None:
        """
        The name of the file that it is, decoded.
        """
        for field, parameter in (("Content-Disposition", "filename"), ("Content-Type", "name")):
            value = self._content(field)
            if value is not None and parameter in value.params:
                return value.params[parameter]
        return None

    @property
    def encoding(self) -> str:
        """
        Its transfer encoding in small letters; ``7bit`` where it has none.
        """
        value = self.get("Content-Transfer-Encoding")
        return value.cte if isinstance(value, EncodingValue) else "7bit"

    # ---- content

    @property
    def size(self) -> int:
        """
        The length of its content as it stands in the message.
        """
        return self.end - self.start

    @property
    def octets(self) -> bytes:
        """
        Its content as it stands in the message, of a multipart all that is in it.
        """
        return self._data[self.start : self.end]

    def between_places(self, start: int, end: int) -> bytes:
        """
        Give octets of the body it is in.
        """
        return self._data[start:end]

    @property
    def has_open_header(self) -> bool:
        """
        Whether no empty line ends its header.
        """
        line = self._data[max(self.start - 3, self.head) : self.start].replace(b"\r", b"")
        return not line.endswith(b"\n\n") and line != b"\n"

    @property
    def content(self) -> bytes:
        """
        Its content with the transfer encoding taken off, where there is one; whatever is broken in
        it is left out.
        """
        return decode_content(self.octets, self.encoding)

    @property
    def text(self) -> str:
        """
        Its content as text, its lines ending in LF. Octets that are not what the charset says are
        U+FFFD; a charset that is not known counts as UTF-8.
        """
        return charset_text(self.content, self.charset or "utf-8").replace("\r\n", "\n")

    def walk(self) -> Iterator[Part]:
        """
        Yield it and all parts in it, in the order in which they begin.
        """
        waiting = [self]
        while waiting:
            part = waiting.pop()
            yield part
            waiting.extend(reversed(part.parts))


def decode_content(octets: bytes, encoding: str) -> bytes:
    """
    Take a transfer encoding off; of one that is unknown, nothing.
    """
    if encoding == "base64":
        digits = octets.translate(None, _NOT_BASE64)
        if len(digits) % 4 == 1:
            digits = digits[:-1]
        return a2b_base64(digits + b"=" * (-len(digits) % 4))
    if encoding == "quoted-printable":
        return a2b_qp(octets)
    return octets


# ---- finding


class _Open:
    """
    A multipart, or a message in a message, as it is looked through.

    :ivar boundary: What stands behind the dashes; ``None`` for a message.
    """

    __slots__ = ("boundary", "closed", "part")

    def __init__(self, part: Part, boundary: bytes | None) -> None:
        self.part = part
        self.boundary = boundary
        # Whether the line after its last part has been seen.
        self.closed = False


def find_parts(data: Octets, fields: Sequence[tuple[str, str]]) -> Part:
    """
    Find the parts of a message.

    :param data: The body.
    :param fields: The message's header: names and all that follows the colon, lines of a value
        separated by LF.
    :return: The message as a part, with the others in it.
    """
    finder = _Finder(data)
    return finder.find(fields)


class _Finder:
    """
    A body as it is looked through.
    """

    def __init__(self, data: Octets) -> None:
        self._data = data
        self._size = len(data)
        self._open: list[_Open] = []
        # For each boundary, the places in `_open` where it is.
        self._boundaries: dict[bytes, list[int]] = {}
        self._leaf: Part | None = None
        self._count = 0
        self._kept = 0
        self._full = False

    def find(self, fields: Sequence[tuple[str, str]]) -> Part:
        root = Part(self._data, fields, 0, 0, 0)
        position = self._enter(root)
        while self._boundaries and not self._full:
            found = self._next_mark(position)
            if found is None:
                break
            position = self._pass(*found)
        self._close(0, self._size)
        return root

    def _enter(self, part: Part) -> int:
        """
        Begin a part; answer with where to look on.
        """
        while True:
            self._count += 1
            child = self._begin(part)
            if child is None:
                return part.start
            part = child

    def _begin(self, part: Part) -> Part | None:
        """
        Open a part that has parts, or make it the leaf; give the message that it is, if it is one.
        """
        self._leaf = part
        kind = part.content_type
        if kind.startswith("multipart/"):
            self._begin_multipart(part)
        elif kind in ("message/rfc822", "message/global") and part.encoding in _IDENTITY:
            if part.depth >= MAX_MIME_DEPTH:
                part.defects.append(_TOO_DEEP)
            elif self._count >= MAX_MIME_PARTS:
                part.defects.append(_TOO_MANY)
            else:
                self._open.append(_Open(part, None))
                child = self._read_part(part.start, part.depth + 1)
                part.parts.append(child)
                return child
        return None

    def _begin_multipart(self, part: Part) -> None:
        value = part.get("Content-Type")
        assert isinstance(value, ContentValue)
        boundary = value.params.get("boundary", "").rstrip(" \t")
        octets = boundary.encode("utf-8", "surrogateescape")
        if not octets or len(octets) > _LONGEST_BOUNDARY:
            part.defects.append("a multipart has no boundary")
        elif part.depth >= MAX_MIME_DEPTH:
            part.defects.append(_TOO_DEEP)
        else:
            self._boundaries.setdefault(octets, []).append(len(self._open))
            self._open.append(_Open(part, octets))
            self._leaf = None

    # ---- lines between parts

    def _next_mark(self, position: int) -> tuple[int, int, int, bool] | None:
        """
        Find the next line between parts at or behind a place, which a line begins at: where it
        begins and ends, the place in `_open`, and whether it closes.
        """
        data = self._data
        at = position if data[position : position + 2] == b"--" else self._after(position)
        while at >= 0:
            mark = self._mark_at(at)
            if mark is not None:
                return mark
            at = self._after(at)
        return None

    def _after(self, position: int) -> int:
        found = self._data.find(b"\n--", position)
        return found + 1 if found >= 0 else -1

    def _mark_at(self, at: int) -> tuple[int, int, int, bool] | None:
        """
        Look whether a boundary stands at a place, and which part's it is.
        """
        start = self._data[at : at + _LONGEST_BOUNDARY + 8]
        line, end_of_line, _ = start.partition(b"\n")
        text = line[2:].rstrip(b" \t\r")
        places = self._boundaries.get(text)
        closes = False
        if places is None and text.endswith(b"--"):
            places = self._boundaries.get(text[:-2])
            closes = True
        if places is None:
            return None
        end = at + len(line) + 1
        if not end_of_line:
            # Blanks without end, or the end of the body.
            found = self._data.find(b"\n", at)
            end = found + 1 if found >= 0 else self._size
            if self._data[at + len(line) : end].strip(b" \t\r\n"):
                return None
        return at, end, places[-1], closes

    def _pass(self, at: int, end: int, place: int, closes: bool) -> int:
        """
        Go past a line between parts; answer with where to look on.
        """
        before = self._before_line_end(at)
        self._close(place + 1, before)
        opened = self._open[place]
        parent = opened.part
        if closes:
            parent.between.append((before, end))
            opened.closed = True
            self._forget(opened)
            if not parent.parts:
                parent.defects.append("a multipart has no parts")
            return end
        if self._count >= MAX_MIME_PARTS:
            self._full = True
            self._swallow(parent.parts[-1] if parent.parts else parent)
            return end
        parent.between.append((before, end))
        child = self._read_part(end, parent.depth + 1)
        parent.parts.append(child)
        return self._enter(child)

    def _swallow(self, last: Part) -> None:
        # The rest is the last part's.
        last.defects.append(_TOO_MANY)
        last.parts.clear()
        last.between.clear()
        self._leaf = last

    def _forget(self, opened: _Open) -> None:
        assert opened.boundary is not None
        places = self._boundaries[opened.boundary]
        places.pop()
        if not places:
            del self._boundaries[opened.boundary]

    def _before_line_end(self, at: int) -> int:
        # The line end before such a line belongs to it.
        if at and self._data[at - 1 : at] == b"\n":
            at -= 1
            if at and self._data[at - 1 : at] == b"\r":
                at -= 1
        return at

    def _close(self, place: int, end: int) -> None:
        """
        End all that is open from a place on.
        """
        if self._leaf is not None:
            self._leaf.end = max(end, self._leaf.start)
            self._leaf = None
        while len(self._open) > place:
            opened = self._open.pop()
            part = opened.part
            # A header that the line between parts has ended reaches up to that line.
            part.end = max(end, part.parts[-1].end if part.parts else part.start)
            if opened.boundary is None or opened.closed:
                continue
            self._forget(opened)
            part.defects.append(
                "a multipart is not closed" if part.parts else "a multipart has no parts"
            )

    # ---- headers of parts

    def _read_part(self, head: int, depth: int) -> Part:
        """
        Read the header of a part, up to the empty line.
        """
        data = self._data
        lines: list[bytes] = []
        position = head
        defect = ""
        while position < self._size:
            found = data.find(b"\n", position)
            end = found + 1 if found >= 0 else self._size
            if end - position <= 2 and not data[position:end].strip(b"\r\n"):
                position = end
                break
            self._kept += end - position
            if self._kept > MAX_HEADER_BYTES:
                defect = f"the headers of parts have more than {MAX_HEADER_BYTES} bytes"
                break
            line = data[position:end]
            if line.startswith(b"--") and self._mark_at(position) is not None:
                break
            if not (_FIELD.match(line) or (lines and line[:1] in b" \t")):
                defect = "a header is not ended by an empty line"
                break
            lines.append(line)
            position = end
        part = Part(data, split_fields(lines), depth, head, position)
        if defect:
            part.defects.append(defect)
        return part


def split_fields(lines: Sequence[bytes]) -> list[tuple[str, str]]:
    """
    Put the lines of a header together: names, and all that follows the colon with LF between
    lines.
    """
    fields: list[list[bytes]] = []
    for line in lines:
        bare = line.removesuffix(b"\n").removesuffix(b"\r")
        if line[:1] in b" \t":
            fields[-1].append(bare)
        else:
            fields.append([bare])
    found = []
    for parts in fields:
        name, _, value = b"\n".join(parts).partition(b":")
        found.append(
            (
                name.rstrip(b" \t").decode("ascii"),
                value.decode("utf-8", "surrogateescape"),
            )
        )
    return found
