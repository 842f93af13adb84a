"""
The least edits of a header: applied by the model of either MTA they give the header that was
wanted, and there are no fewer that do.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.helpers import STEADY
from yatxmilter._mail.rfc5322 import split_mail
from yatxmilter.client import AddHeader, ChangeHeader, InsertHeader, apply_edits
from yatxmilter.message import _least as least
from yatxmilter.message._least import Wanted, least_edits

Fields = list[tuple[str, str]]

NAMES = st.sampled_from(["Received", "Subject", "subject", "X-A", "X-B", "DKIM-Signature"])
VALUES = st.sampled_from(["", "1", "2", "3", " 1", "1\n\tfolded", "caf\udce9"])
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=7)
FLAVOURS = st.sampled_from(["postfix", "sendmail"])
#: What may be done to a field: keep, delete, change, put another in front.
STEPS = st.lists(st.tuples(st.sampled_from("kkkdci"), NAMES, VALUES), max_size=9)

BODY = b"\nbody\n"


def message_of(fields: Fields) -> bytes:
    """
    Write a message file.
    """
    lines = [f"{name}: {value}\n".encode("utf-8", "surrogateescape") for name, value in fields]
    return b"".join(lines) + BODY


def delivered(fields: Fields, edits: list[Any], flavour: str) -> Fields:
    """
    Give the header that the MTA delivers.
    """
    mail = split_mail(apply_edits(message_of(fields), edits, flavour=flavour))
    return [
        (name.decode(), value[1:].decode("utf-8", "surrogateescape")) for name, value in mail.fields
    ]


def distance(old: Fields, new: Fields, flavour: str, *, adds: bool, changes: bool) -> float:
    """
    Count, by trying all, the fewest edits from one header to another.
    """

    def spelled(name: str) -> str:
        return name.lower() if flavour == "postfix" else name

    @lru_cache(None)
    def count(i: int, j: int) -> float:
        ways = [float("inf")]
        if i == len(old) and j == len(new):
            return 0
        if i < len(old) and changes:
            ways.append(1 + count(i + 1, j))
        if j < len(new) and adds:
            ways.append(1 + count(i, j + 1))
        if i < len(old) and j < len(new):
            (was, _), (name, value) = old[i], new[j]
            if old[i] == new[j]:
                ways.append(count(i + 1, j + 1))
            elif value and changes and spelled(was) == spelled(name):
                ways.append(1 + count(i + 1, j + 1))
        return min(ways)

    return count(0, 0)


def edited(old: Fields, steps: list[tuple[str, str, str]], allowed: str) -> list[Wanted]:
    """
    Edit a header field by field.
    """
    new: list[Wanted] = []
    left = list(enumerate(old))
    for step, name, value in steps:
        if step == "i" and "i" in allowed:
            new.append(Wanted(None, name, value))
        elif left:
            origin, field = left.pop(0)
            if step == "c" and "c" in allowed:
                new.append(Wanted(origin, field[0], value or "changed"))
            elif step != "d" or "c" not in allowed:
                new.append(Wanted(origin, *field))
    return new + [Wanted(origin, *field) for origin, field in left]


def plain(new: list[Wanted]) -> Fields:
    """
    Give names and values.
    """
    return [(field.name, field.value) for field in new]


class LeastEditsTests(SynchronousTestCase):
    """
    `least_edits`.
    """

    @STEADY
    @given(FIELDS, FIELDS, FLAVOURS)
    def test_any_to_any(self, old: Fields, new: Fields, flavour: str) -> None:
        """
        From any header to any other, on either MTA, and with no edit too many.
        """
        edits = least_edits(flavour, old, [Wanted(None, *field) for field in new])
        self.assertEqual(delivered(old, edits, flavour), new)
        self.assertEqual(len(edits), distance(old, new, flavour, adds=True, changes=True))

    @STEADY
    @given(FIELDS, STEPS, FLAVOURS, st.sampled_from(["c", "i", "ci", ""]))
    def test_edits_of_permitted_kinds_are_sent_with_these_alone(
        self, old: Fields, steps: list[tuple[str, str, str]], flavour: str, allowed: str
    ) -> None:
        """
        What was done by kinds of edit that are permitted is sent with these alone.
        """
        new = edited(old, steps, allowed)
        can = {"adds": "i" in allowed, "changes": "c" in allowed}
        edits = least_edits(flavour, old, new, **can)
        self.assertEqual(delivered(old, edits, flavour), plain(new))
        self.assertEqual(len(edits), distance(old, plain(new), flavour, **can))
        kinds = {"c" if isinstance(edit, ChangeHeader) else "i" for edit in edits}
        self.assertLessEqual(kinds, set(allowed))

    @STEADY
    @given(FIELDS, STEPS, FLAVOURS, st.sampled_from(["c", "i", "ci", ""]))
    def test_headers_too_long_to_compare_give_a_right_result_all_the_same(
        self, old: Fields, steps: list[tuple[str, str, str]], flavour: str, allowed: str
    ) -> None:
        """
        Where the headers are too long to be compared field by field the result is as right.
        """
        self.patch(least, "_MOST_PAIRS", 0)
        new = edited(old, steps, allowed)
        edits = least_edits(flavour, old, new, adds="i" in allowed, changes="c" in allowed)
        self.assertEqual(delivered(old, edits, flavour), plain(new))
        kinds = {"c" if isinstance(edit, ChangeHeader) else "i" for edit in edits}
        self.assertLessEqual(kinds, set(allowed))

    def test_too_many_out_of_order(self) -> None:
        """
        There fields that changed places, or lost their value, are deleted and made anew.
        """
        self.patch(least, "_MOST_PAIRS", 0)
        old = [("A", "1"), ("B", "2"), ("C", "3"), ("D", "4")]
        new = [Wanted(2, "C", "3"), Wanted(0, "A", "1"), Wanted(3, "D", "")]
        for flavour in ("postfix", "sendmail"):
            edits = least_edits(flavour, old, new)
            self.assertEqual(delivered(old, edits, flavour), plain(new))

    def test_header_of_thousands_of_fields_edited_at_both_ends_and_in_middle(self) -> None:
        """
        A header of thousands of fields, edited at both ends and in the middle, takes three edits.
        """
        old = [(f"X-{n}", "v") for n in range(4000)]
        new = [Wanted(n, *field) for n, field in enumerate(old)]
        new[0] = Wanted(0, "X-0", "first")
        new[-1] = Wanted(3999, "X-3999", "last")
        del new[2000]
        for flavour in ("postfix", "sendmail"):
            self.assertEqual(len(least_edits(flavour, old, new)), 3)

    def test_at_the_end(self) -> None:
        """
        A field for the end is added, which needs no counting; so is one for an empty header.
        """
        added = [AddHeader("X", "1")]
        for flavour in ("postfix", "sendmail"):
            for old in ([("A", "1")], []):
                new = [Wanted(n, *field) for n, field in enumerate(old)]
                self.assertEqual(least_edits(flavour, old, [*new, Wanted(None, "X", "1")]), added)

    def test_at_the_top(self) -> None:
        """
        A field for the top comes before what the MTA has put there itself.
        """
        new = [Wanted(None, "X", "1"), Wanted(0, "A", "1")]
        for flavour in ("postfix", "sendmail"):
            self.assertEqual(least_edits(flavour, [("A", "1")], new), [InsertHeader(0, "X", "1")])

    def test_sendmail_makes_it_too(self) -> None:
        """
        A field that Sendmail would make itself is added, wherever it is wanted: two would be
        delivered otherwise. A second one is an ordinary field.
        """
        new = [Wanted(None, "date", "d"), Wanted(0, "A", "1"), Wanted(None, "Date", "e")]
        self.assertEqual(
            least_edits("sendmail", [("A", "1")], new),
            [AddHeader("Date", "d"), InsertHeader(0x7FFFFFFF, "Date", "e")],
        )
        there = [Wanted(0, "Date", "0"), Wanted(1, "A", "1"), Wanted(None, "Date", "d")]
        self.assertEqual(
            delivered(
                [("Date", "0"), ("A", "1")],
                least_edits("sendmail", [("Date", "0"), ("A", "1")], there),
                "sendmail",
            ),
            plain(there),
        )
