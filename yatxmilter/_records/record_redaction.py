"""
Records without what is private: bodies, and e-mail addresses.

A body keeps its size and its lines; each of its other bytes becomes an ``x``. An address becomes
another, ``u1a2b3c4d5e@d5e4d3c2b1.invalid``, by a key that is made anew for each recording and kept
nowhere: equal local parts and equal domains stay equal, and a guess cannot be tested. A milter that
is given such an address answers with it, so its answer can still be compared; an address of the
milter's own cannot, and `Likeness` takes any other for it, as long as it is always the same.
"""

from __future__ import annotations

import hmac
import os
import re
from collections.abc import Callable, Collection, Iterator
from typing import Final

from yatxmilter import constants as c
from yatxmilter._records.decoding import body_of
from yatxmilter._wire.actions import ACTIONS
from yatxmilter._wire.commands import COMMANDS
from yatxmilter._wire.payloads import from_text, to_text

__all__ = ["KINDS", "Likeness", "Redactor", "find_addresses", "hide_body", "shape"]

#: What can be left out of a record.
KINDS: Final = ("body", "addresses")

_TEXT: Final = re.compile(rb"[^\r\n]")
_ATOM: Final = re.compile(r'[^\x00-\x20\x7f<>()\[\],;:\\"@]+')
_LOCAL_PART: Final = re.compile(rf'{_ATOM.pattern}|"')
_END_OF_QUOTES: Final = re.compile(r'[^"\\\x00]*(?:\\[^\x00][^"\\\x00]*)*"')

# Macros that are a domain or a user, without an @ to tell them by.
_DOMAINS: Final = ("{mail_host}", "{rcpt_host}")
_USERS: Final = ("{mail_user}", "{rcpt_user}", "{auth_authen}", "{auth_author}", "u", "{u}")


def hide_body(text: bytes) -> bytes:
    """
    Give a body of the same size and the same lines, without its text.
    """
    return _TEXT.sub(b"x", text)


class Redactor:
    """
    Take out of payloads what a record should not have.

    :param kinds: Of `KINDS`.
    :param key: What the new addresses depend on.
    """

    def __init__(self, kinds: Collection[str], key: bytes = b"") -> None:
        self.kinds = tuple(kind for kind in KINDS if kind in kinds)
        self._key = key or os.urandom(16)

    def redact(self, from_mta: bool, letter: int, payload: bytes) -> bytes:
        """
        Give the payload as it may be kept.
        """
        if body_of(from_mta, letter, payload) is not None:
            return hide_body(payload) if "body" in self.kinds else payload
        if "addresses" not in self.kinds or letter == c.SMFIC_OPTNEG:
            return payload
        if from_mta and letter == c.SMFIC_MACRO:
            return payload[:1] + self._redact_macros(payload[1:])
        if from_mta and letter == c.SMFIC_CONNECT:
            # Behind the host's name there is a family and a port, whose bytes are no text.
            name, nul, address = payload.partition(b"\0")
            return b"".join(
                (self._redact_bytes(name), nul, address[:3], self._redact_bytes(address[3:]))
            )
        start, has_parameters = _layout(from_mta, letter)
        pieces = to_text(payload[start:]).split("\0")
        if has_parameters:
            # ESMTP arguments are behind the address: AUTH=user@example.org. The name of one is no
            # part of the address that is its value.
            pieces[1:] = map(self._redact_argument, pieces[1:])
        return payload[:start] + from_text("\0".join(map(self._redact_text, pieces)))

    def _redact_bytes(self, text: bytes) -> bytes:
        return from_text(self._redact_text(to_text(text)))

    def _redact_argument(self, text: str) -> str:
        name, equals, value = text.partition("=")
        return name + equals + self._redact_text(value)

    def _redact_macros(self, payload: bytes) -> bytes:
        strings = to_text(payload).split("\0")
        for place in range(1, len(strings), 2):
            name, value = strings[place - 1 : place + 1]
            if name in _DOMAINS and value:
                strings[place] = self._domain(value)
            elif name in _USERS and value and "@" not in value:
                strings[place] = self._local_part(value)
            else:
                strings[place] = self._redact_text(value)
        return from_text("\0".join(strings))

    def _redact_text(self, text: str) -> str:
        def another(local_part: str, domain: str) -> str:
            if is_token(local_part) and is_token(domain):
                return f"{local_part}@{domain}"
            return f"{self._local_part(local_part)}@{self._domain(domain)}"

        return replace_addresses(text, another)

    def _local_part(self, text: str) -> str:
        return "u" + self._digest("u" + text)

    def _domain(self, text: str) -> str:
        return f"d{self._digest('d' + text.lower().rstrip('.'))}.invalid"

    def _digest(self, text: str) -> str:
        return hmac.digest(self._key, from_text(text), "sha256").hex()[:10]


def _layout(from_mta: bool, letter: int) -> tuple[int, bool]:
    """
    Tell where a payload's strings begin, and whether ESMTP arguments follow the first one.
    """
    if from_mta:
        command = COMMANDS.get(letter)
        return 0, command is not None and command.has_argv
    action = ACTIONS.get(letter)
    arguments = () if action is None else action.arguments
    return 4 if "index" in arguments else 0, "parameters" in arguments


def find_addresses(text: str) -> Iterator[tuple[int, int, int]]:
    """
    Find what looks like an e-mail address: where each begins, where its @ is, and where it ends.

    The time grows with the text's length, whatever is in it: nothing is looked for a second time
    at each place where an address might begin.
    """
    place = quotes = 0
    brackets = text.rfind("]")
    while (match := _LOCAL_PART.search(text, place)) is not None:
        start, place = match.span()
        at = place
        if match[0] == '"':
            if start >= quotes - 1:
                closing = _END_OF_QUOTES.match(text, place)
                quotes = closing.end() if closing is not None else len(text) + 1
            # Whichever quote inside a quoted string might begin another, that would end there too;
            # and behind one that does not end, none does.
            at = quotes
        if text[at : at + 1] != "@":
            continue
        end = at + 1
        if text[end : end + 1] == "[":
            # What is looked for and found is used, so that it is not looked for again.
            end = text.find("]", end) + 1 if end < brackets else len(text) + 1
        else:
            domain = _ATOM.match(text, end)
            end = domain.end() if domain is not None else len(text) + 1
        if end <= len(text):
            yield start, at, end
            place = end


def replace_addresses(text: str, another: Callable[[str, str], str]) -> str:
    """
    Replace addresses by made-up ones.

    :param another: Gives the new one for a local part and a domain.
    """
    pieces = []
    place = 0
    for start, at, end in find_addresses(text):
        pieces += [text[place:start], another(text[start:at], text[at + 1 : end])]
        place = end
    return "".join([*pieces, text[place:]])


def shape(text: str) -> str:
    """
    Give a text without its addresses: two that differ in nothing else have the same.
    """
    return replace_addresses(text, lambda *_: "@")


def _parts(text: str) -> list[tuple[str, str]]:
    return [(text[start:at], text[at + 1 : end]) for start, at, end in find_addresses(text)]


_TOKEN: Final = re.compile(r"u[0-9a-f]{10}|d[0-9a-f]{10}\.invalid")


def is_token(text: str) -> bool:
    """
    Tell whether this stands in place of a local part or a domain.
    """
    return _TOKEN.fullmatch(text) is not None


class Likeness:
    """
    Compare texts with redacted ones: what stands for an unknown address is like any address.
    """

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._meaning: dict[str, str] = {}

    def learn(self, text: str) -> None:
        """
        Note what the milter is given: what stands in it must come back as it is.
        """
        self._known.update(_TOKEN.findall(text))

    def alike(self, was: str, now: str) -> str:
        """
        Give the new text; or the recorded one, if only unknown addresses differ.
        """
        pairs = list(zip(_parts(was), _parts(now), strict=False))
        if was == now or not pairs or shape(was) != shape(now):
            return now
        learnt: dict[str, str] = {}
        for parts in pairs:
            for old, new in zip(*parts, strict=True):
                if old != new and not self._may_mean(learnt, old, new):
                    return now
        self._meaning.update(learnt)
        return was

    def _may_mean(self, learnt: dict[str, str], old: str, new: str) -> bool:
        if not is_token(old) or is_token(new) or old in self._known:
            return False
        return learnt.setdefault(old, self._meaning.get(old, new)) == new
