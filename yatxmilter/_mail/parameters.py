"""
Parameters of Content-Type, Content-Disposition and their like (RFC 2045, section 5.1; RFC 2231).

Reading never fails. A value that is not ASCII is written in the form of RFC 2231.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import quote as percent_encoded
from urllib.parse import unquote_to_bytes

from yatxmilter._mail.tokens import comment_end, unquote
from yatxmilter._mail.words import Piece, charset_codec, decode_text, has_octets

__all__ = ["parameter_pieces", "read_parameters"]

_BETWEEN: Final = re.compile(r"[ \t;]*")
_NAME: Final = re.compile(r"""[^ \t;="(]*""")
_EQUALS: Final = re.compile(r"[ \t]*=[ \t]*")
_QUOTED: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
_BARE: Final = re.compile(r"[^;]*")
_VALUE: Final = re.compile(r"[^;(]*")
_EXTENDED: Final = re.compile(r"(.+?)(?:\*([0-9]{1,4}))?(\*)?", re.DOTALL)
_NO_CHARACTER: Final = re.compile("[\0\ud800-\udfff]")
_TOKEN_END: Final = re.compile(r"[;(]")

#: A piece of a value in the form of RFC 2231 is no longer than this.
_SEGMENT: Final = 60


def read_parameters(text: str) -> tuple[str, dict[str, str], list[str]]:
    """
    Read an unfolded value: what stands before the parameters, the parameters by their names in
    small letters, and what is wrong with them.
    """
    defects: list[str] = []
    first = _TOKEN_END.search(text)
    if first is None:
        return text.strip(" \t"), {}, defects
    # What the first of several of one name says counts: so most programs have it.
    plain: dict[str, str] = {}
    extended: dict[str, dict[int, tuple[str, bool]]] = {}
    for name, value, quoted in _pairs(text, first.start(), defects):
        match = _EXTENDED.fullmatch(name)
        if match is None or (match[2] is None and match[3] is None):
            if quoted:
                value = unquote(value)
            plain.setdefault(name, decode_text(value, defects) if "=?" in value else value)
            continue
        segments = extended.setdefault(match[1], {})
        number = int(match[2]) if match[2] else 0
        segments.setdefault(number, (unquote(value) if quoted else value, match[3] is not None))
    for name, segments in extended.items():
        plain[name] = _joined(segments, defects)
    return text[: first.start()].strip(" \t"), plain, defects


def _pairs(text: str, position: int, defects: list[str]) -> Iterator[tuple[str, str, bool]]:
    """
    Yield names, values, and whether a value is a quoted string.
    """
    while position < len(text):
        position = _match(_BETWEEN, text, position).end()
        if text[position : position + 1] == "(":
            position = comment_end(text, position)
            continue
        name = _match(_NAME, text, position)
        equals = _EQUALS.match(text, name.end())
        if equals is None or not name[0]:
            if position < len(text):
                _note(defects, "a parameter has no value")
            # At least one character, so that there is an end.
            position = max(_match(_BARE, text, name.end()).end(), position + 1)
            continue
        quoted = _QUOTED.match(text, equals.end())
        value = quoted or _match(_VALUE, text, equals.end())
        if quoted and (len(quoted[0]) < 2 or quoted[0][-1] != '"'):
            _note(defects, "a quoted string is not closed")
        yield name[0].lower(), value[0] if quoted else value[0].strip(" \t"), quoted is not None
        position = value.end()


def _match(pattern: re.Pattern[str], text: str, position: int) -> re.Match[str]:
    # For patterns that match everywhere.
    match = pattern.match(text, position)
    assert match is not None
    return match


def _note(defects: list[str], defect: str) -> None:
    if defect not in defects:
        defects.append(defect)


def _joined(segments: dict[int, tuple[str, bool]], defects: list[str]) -> str:
    """
    Put the segments of a value together, and decode those that are encoded.
    """
    numbers = sorted(segments)
    # What follows a gap belongs to nothing.
    whole = [number for place, number in enumerate(numbers) if number == place]
    if len(whole) < len(numbers):
        _note(defects, "a segment of a parameter is missing")
        whole = whole or numbers[:1]
    charset = ""
    octets: list[bytes] = []
    for place, number in enumerate(whole):
        value, encoded = segments[number]
        if encoded and place == 0:
            charset, mark, rest = value.partition("'")
            _, other, rest = rest.partition("'")
            if mark and other:
                value = rest
            else:
                charset = ""
                _note(defects, "an encoded parameter has no charset")
        data = value.encode("utf-8", "surrogateescape")
        octets.append(unquote_to_bytes(data) if encoded else data)
    joined = b"".join(octets)
    codec = charset_codec(charset) if charset else "utf-8"
    if codec is None:
        _note(defects, "an encoded parameter has an unknown charset")
        codec = "ascii"
    try:
        text = joined.decode(codec)
    except UnicodeError:
        _note(defects, "an encoded parameter is not what its charset says")
        text = joined.decode(codec, "replace")
    return _NO_CHARACTER.sub("\ufffd", text)


# ---- writing


def parameter_pieces(text: str, kept: frozenset[str]) -> Iterator[Piece]:
    """
    Yield the pieces of a value that is not all ASCII: parameters in the form of RFC 2231.

    :raises ValueError: with what cannot be written so.
    """
    position = 0
    blank = ""
    while position < len(text):
        end = _segment_end(text, position)
        part, mark = text[position:end], text[end : end + 1]
        stripped = part.strip(" \t")
        yield from _parameter(blank, stripped, mark, kept)
        blank = " "
        position = end + 1


def _segment_end(text: str, position: int) -> int:
    # The next semicolon outside quotes.
    while position < len(text) and text[position] != ";":
        quoted = _QUOTED.match(text, position)
        position = quoted.end() if quoted else position + 1
    return position


def _parameter(blank: str, part: str, mark: str, kept: frozenset[str]) -> Iterator[Piece]:
    if part.isascii() or has_octets(part) or part in kept:
        yield Piece(blank, part + mark)
        return
    name, equals, value = part.partition("=")
    name, value = name.strip(" \t"), value.strip(" \t")
    if not equals or not name.isascii() or "*" in name:
        raise ValueError(part)
    if value.startswith('"'):
        value = unquote(value)
    segments = list(_segments(value))
    # Each segment has the name, which a stranger may have chosen.
    if len(segments) == 1 or len(name) > _SEGMENT:
        yield Piece(blank, f"{name}*=utf-8''{''.join(segments)}{mark}")
        return
    for number, segment in enumerate(segments):
        charset = "utf-8''" if number == 0 else ""
        last = mark if number == len(segments) - 1 else ";"
        yield Piece(blank, f"{name}*{number}*={charset}{segment}{last}")
        blank = " "


def _segments(value: str) -> Iterator[str]:
    segment: list[str] = []
    size = 0
    for character in value:
        coded = percent_encoded(character, safe="")
        if size + len(coded) > _SEGMENT:
            yield "".join(segment)
            segment, size = [], 0
        segment.append(coded)
        size += len(coded)
    yield "".join(segment)
