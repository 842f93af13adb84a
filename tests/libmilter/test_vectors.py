"""
Points and sessions whose outcome is written down, on the real libmilter and on yatxmilter.

The differential test shows that the two agree; these show what they agree on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from . import driver, ours
from .case import Record
from .compare import reasons
from .sessions import SESSIONS
from .test_differential import ComparedTestCase
from .vectors import VECTORS
from .written import Outcome, Vector


def _packets(output: bytes) -> tuple[bytes, ...]:
    found = []
    at = 0
    while at < len(output):
        end = at + 4 + int.from_bytes(output[at : at + 4], "big")
        found.append(output[at + 4 : end])
        at = end
    return tuple(found)


def _outcome(record: Record, closed: bool) -> Outcome:
    return Outcome(
        tuple((one.callback, *one.args) for one in record.invocations),
        _packets(record.output),
        closed,
        tuple(answer for one in record.invocations for answer in one.answers),
    )


class _WrittenDown(ComparedTestCase):
    """
    Runs vectors.
    """

    def check(self, vector: Vector) -> None:
        """
        Check a vector on both libraries, and that they differ for the reason given only.
        """
        case = vector.case
        real = self.library.run(case)
        self.assertEqual(_outcome(real, real.consumed < len(case.stream)), vector.libmilter)
        with driver.LogWatch().watching():
            mine = ours.run(case)
        self.assertEqual(_outcome(mine.record, mine.closed is not None), vector.ours)
        if vector.difference:
            self.assertIn(vector.difference, reasons(case))
        self.assertEqual(driver.checked(case, real).problems, [])


def _tests(vectors: Iterable[Vector], what: str) -> dict[str, Callable[[_WrittenDown], None]]:
    def make(vector: Vector) -> Callable[[_WrittenDown], None]:
        def test(self: _WrittenDown) -> None:
            self.check(vector)

        test.__doc__ = f"\n        {what}: {vector.title}.\n        "
        return test

    return {
        f"test_{number:02}_{'_'.join(vector.title.replace(',', '').split()).lower()}": make(vector)
        for number, vector in enumerate(vectors, 1)
    }


class TestVectors(_WrittenDown):
    """
    Single points of the protocol.
    """

    locals().update(_tests(VECTORS, "Point"))


class TestSessions(_WrittenDown):
    """
    Whole sessions.
    """

    locals().update(_tests(SESSIONS, "Session"))

    def test_there_are_46_points_and_8_sessions_each_under_its_own_name(self) -> None:
        """
        There are 46 points (one of 45 comes in two forms) and 8 sessions, each under its own name.
        """
        self.assertEqual((len(VECTORS), len(SESSIONS)), (46, 8))
        for case, vectors in ((TestVectors, VECTORS), (TestSessions, SESSIONS)):
            names = [name for name in vars(case) if re.match("test_[0-9]", name)]
            self.assertEqual(len(names), len(vectors))
