"""
Records without what is private: bodies, and e-mail addresses.

A body keeps its size and its lines; each of its other bytes becomes an ``x``. An address becomes
another, ``u1a2b3c4d5e@d5e4d3c2b1.invalid``, by a key that is made anew for each recording and kept
nowhere: equal local parts and equal domains stay equal, and nobody can test a guess. A milter that
is given such an address answers with it, so its answer can still be compared; an address of the
milter's own cannot, and `Likeness` takes any other for it, as long as it is always the same.
"""

from __future__ import annotations

import hmac
import os
import re
from collections.abc import Collection
from typing import Final

from yatxmilter import constants as c
from yatxmilter._cli.decoding import body_of
from yatxmilter._wire.payloads import from_text, to_text

__all__ = ["KINDS", "Likeness", "Redactor", "hide_body"]

#: What can be left out of a record.
KINDS: Final = ("body", "addresses")

_TEXT: Final = re.compile(rb"[^\r\n]")
_CHARACTER: Final = r'[^\x00-\x20\x7f<>()\[\],;:\\"@]'
# From the start of a word on alone, and with an end to what is in quotes or brackets: no text takes
# more than so many looks at each of its characters. SMTP has 64 for a local part, 255 for a domain.
_LOCAL: Final = rf'(?<!{_CHARACTER}){_CHARACTER}+|"(?:[^"\\\x00]|\\[^\x00]){{0,256}}"'
_ADDRESS: Final = re.compile(rf"({_LOCAL})@(\[[^\]\x00]{{0,256}}\]|{_CHARACTER}+)")

# Macros that are a domain or a user, without an @ to tell them by.
_DOMAINS: Final = ("{mail_host}", "{rcpt_host}")
_USERS: Final = ("{mail_user}", "{rcpt_user}", "{auth_authen}", "{auth_author}", "u", "{u}")

_INDEXED: Final = (c.SMFIR_INSHEADER, c.SMFIR_CHGHEADER)
# ESMTP arguments are behind the address: AUTH=user@example.org.
_ARGUMENTS: Final = "MR2e"


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
        start = 4 if not from_mta and letter in _INDEXED else 0
        pieces = to_text(payload[start:]).split("\0")
        if letter in map(ord, _ARGUMENTS):
            # The name of an argument is no part of the address that is its value.
            pieces[1:] = map(self._redact_argument, pieces[1:])
        return payload[:start] + from_text("\0".join(map(self._redact_text, pieces)))

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
        def another(match: re.Match[str]) -> str:
            local_part, domain = match.groups()
            if is_token(local_part) and is_token(domain):
                return match[0]
            return f"{self._local_part(local_part)}@{self._domain(domain)}"

        return _ADDRESS.sub(another, text)

    def _local_part(self, text: str) -> str:
        return "u" + self._digest("u" + text)

    def _domain(self, text: str) -> str:
        return f"d{self._digest('d' + text.lower().rstrip('.'))}.invalid"

    def _digest(self, text: str) -> str:
        return hmac.digest(self._key, from_text(text), "sha256").hex()[:10]


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
        Give the new text; or the recorded one, if only addresses that nobody knows differ.
        """
        pairs = list(zip(_ADDRESS.findall(was), _ADDRESS.findall(now), strict=False))
        if was == now or not pairs or _ADDRESS.sub("@", was) != _ADDRESS.sub("@", now):
            return now
        meaning = dict(self._meaning)
        for parts in pairs:
            for old, new in zip(*parts, strict=True):
                if old != new and not self._may_mean(meaning, old, new):
                    return now
        self._meaning = meaning
        return was

    def _may_mean(self, meaning: dict[str, str], old: str, new: str) -> bool:
        if not is_token(old) or is_token(new) or old in self._known:
            return False
        return meaning.setdefault(old, new) == new
