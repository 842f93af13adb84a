"""
What a milter answered, as lines that can be compared, and how two such answers differ.

Both what was recorded and what comes now are packets, and go through the same function: edits in
their order, then the response. What is not to be compared is taken out of both.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from yatxmilter import constants as c
from yatxmilter._records.decoding import decode_packet
from yatxmilter._records.record_redaction import Likeness, hide_body, shape
from yatxmilter._records.replay_steps import REMARK, Heard
from yatxmilter._wire.actions import ACTIONS
from yatxmilter._wire.payloads import to_text

__all__ = ["Comparison", "Difference", "Rules"]

# Longer bodies are compared by their sum: nobody reads so long a difference.
_MOST_LINES: Final = 2_000

# With how many recorded lines a line is compared that may be one of them but for its addresses.
_MOST_LIKE: Final = 50

_HEADER_ACTIONS: Final = {row.letter for row in ACTIONS.values() if row.subject == "headers"}


@dataclass(frozen=True)
class Rules:
    """
    What is not to be compared.

    :ivar ignored: Names of header fields, in lower case, of which edits do not count.
    :ivar masks: What these match is as good as anything else that they match.
    :ivar negotiation: Whether the negotiation is compared.
    """

    ignored: frozenset[str] = frozenset()
    masks: tuple[re.Pattern[str], ...] = ()
    negotiation: bool = True


@dataclass
class Difference:
    """
    An answer that is not what it was.

    :ivar at: The command.
    :ivar line: Where it stands in the record.
    """

    at: str
    line: int
    was: list[str] = field(default_factory=list)
    now: list[str] = field(default_factory=list)


class Comparison:
    """
    Compare answers by rules.

    :param redacted: What was left out of the record.
    """

    def __init__(self, rules: Rules, redacted: Collection[str]) -> None:
        self._rules = rules
        self._likeness = Likeness() if "addresses" in redacted else None
        self._hides_body = "body" in redacted

    def learn(self, payload: bytes) -> None:
        """
        Note what the milter is given.
        """
        if self._likeness is not None:
            self._likeness.learn(to_text(payload))

    def compare(
        self, was: Sequence[Heard], now: Sequence[Heard], spaces: tuple[bool, bool]
    ) -> tuple[list[str], list[str]]:
        """
        Put two answers in lines, those of the new one as far as possible like the old.

        :param spaces: For each, whether SMFIP_HDR_LEADSPC was agreed.
        """
        old = self._lines(was, spaces[0], hide=False)
        return old, self._like(old, self._lines(now, spaces[1], hide=self._hides_body))

    def _like(self, was: list[str], now: list[str]) -> list[str]:
        likeness = self._likeness
        if likeness is None:
            return now
        # Only lines that have the same about their addresses can be alike; of many such lines,
        # those at about the same place.
        places: defaultdict[str, list[str]] = defaultdict(list)
        for old in was:
            places[shape(old)].append(old)
        seen: Counter[str] = Counter()
        result = []
        for new in now:
            kind = shape(new)
            start = max(seen[kind] - _MOST_LIKE // 2, 0)
            seen[kind] += 1
            near = places[kind][start : start + _MOST_LIKE]
            result.append(next((old for old in near if likeness.alike(old, new) == old), new))
        return result

    def _lines(self, heard: Iterable[Heard], leading_space: bool, *, hide: bool) -> list[str]:
        lines: list[str] = []
        body: list[bytes] = []
        place = 0
        for letter, payload in heard:
            if letter == c.SMFIR_REPLBODY:
                if not body:
                    place = len(lines)
                body.append(payload)
                continue
            if letter == REMARK:
                lines.append(to_text(payload))
                continue
            decoded = decode_packet(False, letter, payload)
            text = decoded.text
            if letter in _HEADER_ACTIONS and not decoded.error:
                if decoded.fields["name"].lower() in self._rules.ignored:
                    continue
                if leading_space:
                    text = text.replace(":  ", ": ", 1)
            lines.append(self._masked(f"{decoded.name} {text}".rstrip()))
        if body:
            # The chunks follow each other, whatever other edits are in between.
            lines[place:place] = self._body_lines(b"".join(body), hide=hide)
        return lines

    def _body_lines(self, body: bytes, *, hide: bool) -> list[str]:
        if hide:
            body = hide_body(body)
        lines = to_text(body).split("\n")
        if len(lines) > _MOST_LINES:
            digest = hashlib.sha256(body).hexdigest()
            return [f"REPLBODY {len(body)} bytes, sha256 {digest}"]
        return ["REPLBODY", *(self._masked(f"| {line}".rstrip("\r")) for line in lines)]

    def _masked(self, line: str) -> str:
        for mask in self._rules.masks:
            line = mask.sub("***", line)
        return line
