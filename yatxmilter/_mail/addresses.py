"""
Lists of addresses (RFC 5322, section 3.4), as they come: groups, comments, missing commas and
brackets, and whatever else; and encoded words where fields with structure may have them.

Where a list can be read in two ways, each address that somebody might see is in the result, so
that a rule on authors is not passed by.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from yatxmilter._mail.tokens import quote, rough_tokens, tokens, unquote
from yatxmilter._mail.words import (
    ENCODED_WORD,
    Piece,
    decode_runs,
    decode_text,
    has_octets,
    must_encode,
)

__all__ = ["Address", "Group", "format_address", "read_addresses", "show_structured", "structured"]

# What a display name is quoted for; and what a local part is.
_SPECIAL: Final = re.compile(r'[()<>\[\]:;@\\,."]|^\s|\s$|\s\s|[\t\r\n]|=\?')
_NO_ATOM: Final = re.compile(r"""[()<>\[\]:;@\\,"\s]|^$|^\.|\.$|\.\.""")
# Blanks around dots and the @ are part of an address.
_AROUND_BLANK: Final = re.compile(r"[ \t][.@]|[.@][ \t]")
_BLANKS: Final = re.compile(r"[ \t]+")
_COMMENT_SPECIAL: Final = re.compile(r"([()\\])")


class Address(NamedTuple):
    """
    An address.

    :ivar display_name: The name beside it, decoded; the comment behind it where there is no name.
    :ivar username: Its local part, without quotes.
    :ivar domain: Its domain; empty where there is none.
    """

    display_name: str = ""
    username: str = ""
    domain: str = ""

    @property
    def addr_spec(self) -> str:
        """
        The address as it is written, the local part quoted where it has to be.
        """
        if not self.username and not self.domain:
            return ""
        local = quote(self.username) if _NO_ATOM.search(self.username) else self.username
        return f"{local}@{self.domain}" if self.domain else local

    def __str__(self) -> str:
        if not self.display_name:
            return self.addr_spec or "<>"
        return f"{quote_phrase(self.display_name)} <{self.addr_spec}>"


_NOBODY: Final = Address()


class Group(NamedTuple):
    """
    A group of addresses, or an address by itself.

    :ivar display_name: The group's name; ``None`` for an address that is in no group.
    """

    display_name: str | None
    addresses: tuple[Address, ...]

    def __str__(self) -> str:
        listed = ", ".join(map(str, self.addresses))
        if self.display_name is None:
            return listed
        return f"{quote_phrase(self.display_name)}: {listed};"


def quote_phrase(text: str) -> str:
    """
    Write a display name, in quotes where it needs them.
    """
    return quote(text) if not text or _SPECIAL.search(text) else text


# ---- reading


def read_addresses(text: str) -> tuple[list[Address | Group], list[str]]:
    """
    Read an unfolded list of addresses: groups, and addresses that are in none, in order; and what
    is wrong with it.
    """
    reader = _Reader()
    return reader.read(text), list(reader._noted)


class _Reader:
    """
    A list of addresses as it is read, in as few pieces as can be: a stranger chooses how many.
    """

    def __init__(self) -> None:
        self._noted: dict[str, bool] = {}
        self._found: list[Address | Group] = []
        self._group: str | None = None
        self._members: list[Address] = []
        # What there is of an address: pieces outside brackets, and inside.
        self._words: list[str] = []
        self._comment = ""
        self._angle: list[str] | None = None
        self._inside = False
        self._has_at = False
        # What brackets began with that was looked at last, and whether it begins a route.
        self._looked_at: str | None = None
        self._routes = False

    def read(self, text: str) -> list[Address | Group]:
        words = self._words
        for token in rough_tokens(text):
            first = token[0]
            if first in ",;:<>":
                self._take_mark(first)
                words = self._words
            elif first == "(":
                if token[-1] != ")":
                    self._note("a comment is not closed")
                self._comment = token
            elif self._inside:
                assert self._angle is not None
                self._angle.append(token)
            else:
                if self._angle is not None and not token.isspace():
                    self._note("there is text behind an address")
                    self._end_address()
                    words = self._words
                words.append(token)
                if "@" in token:
                    self._has_at = True
        self._end_address()
        if self._group is not None:
            self._note("a group is not closed")
            self._end_group()
        return self._found

    def _take_mark(self, mark: str) -> None:
        """
        Take one of the characters that divide addresses: brackets, commas, colons, semicolons.
        """
        if mark == ">" and self._inside and not self._angle and not self._words:
            # ``<>`` names no address. It is handled at once, since there may be very many.
            self._inside = False
            if self._group is None and not self._comment:
                self._found.append(_NOBODY)
                self._angle = None
        elif mark == "<":
            if self._angle is not None:
                self._note("there is no comma between two addresses")
                self._end_address()
            self._angle, self._inside = [], True
        elif mark == ">":
            if not self._inside:
                self._note("a bracket is closed that is not open")
            self._inside = False
        elif mark == ":":
            self._take_colon()
        elif mark == "," and self._inside and self._is_route():
            # A route: ``<@a.example,@b.example:c@d.example>``.
            pass
        else:
            if self._words or self._angle is not None:
                self._end_address()
            if mark == ";":
                self._end_group()

    def _is_route(self) -> bool:
        if not self._angle:
            return False
        first = self._angle[0]
        # Once for each: it may be long, and be asked about at each of very many commas.
        if first is not self._looked_at:
            self._looked_at, self._routes = first, first.lstrip(" \t")[:1] == "@"
        return self._routes

    def _take_colon(self) -> None:
        if self._inside:
            assert self._angle is not None
            if self._is_route():
                self._angle.clear()
            else:
                self._angle.append(":")
        elif self._group is None and self._angle is None and not self._has_at:
            self._group = _phrase(self._words)
            self._words, self._comment = [], ""
        else:
            self._note("there is a colon in an address")
            self._words.append(":")

    def _end_address(self) -> None:
        words, angle = self._words, self._angle
        if angle is not None:
            if self._inside:
                self._note("a bracket is not closed")
            name = _phrase(words) if words else ""
            if name or angle or not self._inside:
                self._add(name, angle)
        elif words:
            self._end_without_brackets(words)
        if words:
            self._words = []
        self._comment, self._angle = "", None
        self._inside = self._has_at = False

    def _end_without_brackets(self, words: list[str]) -> None:
        """
        End an address that is written without angle brackets, which may be several run together.
        """
        if len(words) == 1 and words[0][0] == '"':
            self._add("", words)
            return
        if len(words) == 1:
            text = words[0].strip(" \t")
            if text and " " not in text and "\t" not in text:
                self._add("", [text])
                return
            if not _AROUND_BLANK.search(text):
                self._end_chunks(text.split())
                return
        found = list(_without_brackets(list(tokens("".join(words)))))
        if not found:
            return
        if len(found) > 1 or any(word[0] not in " \t" for word in found[0][0]):
            self._note("an address has no brackets, and text beside it")
        for before, address in found:
            self._add(_phrase(before), address)

    def _end_chunks(self, chunks: list[str]) -> None:
        # Each one with an @ is an address.
        name: list[str] = []
        for chunk in chunks:
            if "@" in chunk:
                self._add(decode_text(" ".join(name)) if name else "", [chunk])
                name = []
            else:
                name.append(chunk)
        if name:
            self._add("", [" ".join(name)])
        if len(chunks) > 1:
            self._note("an address has no brackets, and text beside it")

    def _add(self, name: str, address: list[str]) -> None:
        """
        Add an address, whose local part ends at the last @ outside quotes.
        """
        if not name and self._comment:
            name = _comment_text(self._comment)
        members: list[Any] = self._found if self._group is None else self._members
        if len(address) == 1 and address[0][0] != '"':
            token = address[0]
            if "@" in token and (" " in token or "\t" in token):
                token = "".join(token.split())
            before, at, behind = token.rpartition("@")
            if not at:
                self._note("an address has no @")
                before, behind = behind, ""
            elif "@" in before:
                self._note("an address has more than one @")
            members.append(Address(name, before, behind))
            return
        local: list[str] = []
        domain: list[str] = []
        ats = 0
        for token in reversed(address):
            if token[0] == '"':
                (local if ats else domain).append(unquote(token))
                continue
            if " " in token or "\t" in token:
                token = "".join(token.split())
            if not ats and "@" in token:
                before, _, behind = token.rpartition("@")
                domain.append(behind)
                local.append(before)
                ats = 1 + before.count("@")
            else:
                (local if ats else domain).append(token)
                ats += token.count("@") if ats else 0
        if not ats:
            local, domain = domain, []
            if address:
                self._note("an address has no @")
        elif ats > 1:
            self._note("an address has more than one @")
        members.append(Address(name, "".join(reversed(local)), "".join(reversed(domain))))

    def _end_group(self) -> None:
        if self._group is not None:
            self._found.append(Group(self._group, tuple(self._members)))
            self._group, self._members = None, []

    def _note(self, defect: str) -> None:
        # Each once: a stranger chooses how often.
        self._noted[defect] = True


def _comment_text(comment: str) -> str:
    inner = comment[1:].removesuffix(")")
    return " ".join(re.sub(r"\\(.)", r"\1", decode_text(inner)).split())


def _plain(token: str) -> str:
    return unquote(token) if token[0] == '"' else token


def _without_brackets(words: list[str]) -> Iterator[tuple[list[str], list[str]]]:
    """
    Yield the addresses among words, each with the words before it. Words behind the last are by
    themselves.
    """
    done = 0
    for start, end in _places(words):
        yield words[done:start], [word for word in words[start:end] if word[0] not in " \t"]
        done = end
    rest = "".join(map(_plain, words[done:])).strip(" \t")
    if rest:
        yield [], [rest]


def _places(words: list[str]) -> Iterator[tuple[int, int]]:
    """
    Yield where addresses are among words: what stands at an @ without blanks but around dots.
    """
    solid = [place for place, word in enumerate(words) if word[0] not in " \t"]
    done = 0
    for at, place in enumerate(solid):
        if at < done or words[place] != "@":
            continue
        start = end = at
        while start > done and _belongs(words, solid, start - 1, start, at):
            start -= 1
        while end < len(solid) - 1 and _belongs(words, solid, end, end + 1, at):
            end += 1
        yield solid[start], solid[end] + 1
        done = end + 1


def _belongs(words: list[str], solid: list[int], left: int, right: int, at: int) -> bool:
    # Blanks may be around dots and the @.
    joined = solid[right] == solid[left] + 1
    return joined or at in (left, right) or "." in (words[solid[left]], words[solid[right]])


def _phrase(words: list[str]) -> str:
    """
    Write a display name as text, its quotes and encoded words undone.
    """
    parts: list[str] = []
    plain: list[str] = []
    for word in words:
        if word[0] == '"':
            parts += (decode_text("".join(plain)), _show_quoted(word))
            plain = []
        else:
            plain.append(word)
    parts.append(decode_text("".join(plain)))
    return _BLANKS.sub(" ", "".join(parts)).strip(" ")


def _show_quoted(token: str) -> str:
    # There are no encoded words in a quoted string; programs put them there all the same, and
    # show them. One with a backslash in it is none.
    if "=?" not in token:
        return unquote(token)
    inner = token[1:-1] if len(token) > 1 and token.endswith('"') else token[1:]
    defects: list[str] = []
    return "".join(
        piece if encoded else unquote(f'"{piece}"')
        for piece, encoded in decode_runs(inner, defects)
    )


# ---- showing and writing the whole value


def show_structured(text: str, defects: list[str]) -> str:
    """
    Show an unfolded value of a field with structure: its text with the encoded words decoded, and
    put in quotes where they would change the structure.
    """
    if "=?" not in text:
        return text
    shown: list[str] = []
    plain: list[str] = []
    inside = False
    for token in tokens(text):
        first = token[0]
        if first == "<":
            inside = True
        elif first == ">":
            inside = False
        if inside or first in '"(,;:<>':
            shown += (*_show_plain(plain, defects), _show_token(token, inside, defects))
            plain = []
        else:
            plain.append(token)
    shown += _show_plain(plain, defects)
    return "".join(shown)


def _show_plain(plain: list[str], defects: list[str]) -> Iterator[str]:
    for piece, encoded in decode_runs("".join(plain), defects):
        if encoded:
            word = _BLANKS.sub(" ", piece).strip(" ")
            yield quote_phrase(word) if word else ""
        else:
            yield piece


def _show_token(token: str, inside: bool, defects: list[str]) -> str:
    if "=?" not in token or inside:
        return token
    if token[0] == '"':
        if ENCODED_WORD.search(token) is None:
            return token
        defects.append("there is an encoded word in quotes")
        return quote(_show_quoted(token))
    return "".join(
        _COMMENT_SPECIAL.sub(r"\\\1", piece) if encoded else piece
        for piece, encoded in decode_runs(token, defects)
    )


def structured(text: str, kept: frozenset[str], phrases: bool) -> Iterator[Piece]:
    """
    Yield the pieces of a value with structure as it is written: display names and comments are
    encoded, what else is not ASCII is refused.

    :param kept: Words that are not ASCII and may stay so.
    :param phrases: Whether there may be encoded words outside comments.
    :raises ValueError: with the word that this field cannot carry.
    """
    blank = ""
    glued: list[tuple[str, bool]] = []
    for token, named in _in_context(text, phrases):
        if token[0] in " \t":
            yield from _written(blank, glued, kept)
            blank, glued = token, []
        else:
            glued.append((token, named))
    yield from _written(blank, glued, kept)


def _in_context(text: str, phrases: bool) -> Iterator[tuple[str, bool]]:
    """
    Yield tokens, and of each whether it is part of a display name.
    """
    waiting: list[str] = []
    inside = False
    for token in tokens(text):
        mark = token if len(token) == 1 and token in "<>,;:" else ""
        if not mark:
            waiting.append(token)
            continue
        named = phrases and not inside and (mark in "<:" or "@" not in waiting)
        yield from _marked(waiting, named, phrases and not inside)
        waiting = []
        inside = mark == "<" or (inside and mark not in ">")
        yield mark, False
    yield from _marked(waiting, phrases and not inside and "@" not in waiting, phrases)


def _marked(waiting: list[str], named: bool, before: bool) -> Iterator[tuple[str, bool]]:
    if named or not before or "@" not in waiting:
        yield from ((token, named) for token in waiting)
        return
    # An address without brackets, perhaps with a name before it.
    done = 0
    for start, end in _places(waiting):
        yield from ((token, True) for token in waiting[done:start])
        yield from ((token, False) for token in waiting[start:end])
        done = end
    yield from ((token, True) for token in waiting[done:])


def _written(blank: str, glued: list[tuple[str, bool]], kept: frozenset[str]) -> Iterator[Piece]:
    """
    Yield what stands together between two blanks.
    """
    source = "".join(token for token, _ in glued)
    if source.isascii() or source in kept or has_octets(source):
        if source or blank:
            yield Piece(blank, source)
        return
    start = 0
    while start < len(glued):
        token, named = glued[start]
        end = start + 1
        if token[0] == "(":
            yield from _comment(blank, token, kept)
        elif named:
            # All that stands together and is of the name is one word.
            while end < len(glued) and glued[end][1] and glued[end][0][0] != "(":
                end += 1
            word = "".join(map(_plain, (word for word, _ in glued[start:end])))
            raw = "".join(word for word, _ in glued[start:end])
            # An encoded word is a word by itself: blanks set it off from brackets.
            yield Piece(blank or " " * bool(start), raw, None if raw.isascii() else word)
        elif token.isascii() or token in kept:
            yield Piece(blank or (_apart(glued, start) if start else ""), token)
        else:
            raise ValueError(token)
        blank = ""
        start = end


def _apart(glued: list[tuple[str, bool]], place: int) -> str:
    # Behind an encoded word.
    before, named = glued[place - 1]
    return " " if named and not before.isascii() else ""


def _comment(blank: str, token: str, kept: frozenset[str]) -> Iterator[Piece]:
    """
    Yield the pieces of a comment that is not all ASCII.
    """
    for part in re.findall(r"[ \t]+|[()]|(?:\\.|[^()\\ \t])+|.", token, re.DOTALL):
        if part[0] in " \t":
            blank += part
            continue
        if part in "()":
            yield Piece(blank, part)
        else:
            shown = re.sub(r"\\(.)", r"\1", part)
            encode = not part.isascii() and must_encode(shown, kept)
            yield Piece(blank, part, shown if encode else None)
        blank = ""


def format_address(value: Any) -> str | None:
    """
    Write an address object, ours or one of ``email.headerregistry``, or a list of them;
    ``None`` for what is none.
    """
    if isinstance(value, (list, tuple)) and not isinstance(value, (Address, Group)):
        parts = [format_address(part) for part in value]
        return None if None in parts else ", ".join(map(str, parts))
    if isinstance(value, (Address, Group)):
        return str(value)
    if hasattr(value, "addr_spec") and hasattr(value, "display_name"):
        return str(Address(value.display_name, value.username, value.domain))
    if hasattr(value, "addresses") and hasattr(value, "display_name"):
        members = tuple(Address(a.display_name, a.username, a.domain) for a in value.addresses)
        return str(Group(value.display_name, members))
    return None
