"""
yatxmilter and the real libmilter, on thousands of cases.

The cases are the same on every run. `python -m tests.libmilter` runs as many others as one likes.
"""

from __future__ import annotations

import atexit
import os
import unittest
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.python.reflect import namedAny
from twisted.trial.unittest import SynchronousTestCase

from . import driver, rules
from .case import OPTIONAL, Case
from .compare import reasons
from .differences import DIFFERENCES, OTHER_ROWS
from .examples import BY_ROW, EXAMPLES
from .generator import PROFILES, generate
from .packets import offer, packet, strings
from .real import LibMilter, Unavailable
from .source import HypothesisSource

ROOT = Path(__file__).resolve().parent.parent.parent

_NUMBERED = 3000
_STEADY = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=150,
    suppress_health_check=list(HealthCheck),
)


@lru_cache(maxsize=1)
def _library() -> LibMilter:
    library = LibMilter()
    atexit.register(library.close)
    return library


class ComparedTestCase(SynchronousTestCase):
    """
    A test that needs the real libmilter; without it, it is skipped.

    With YATXMILTER_REQUIRE_MTA=1 in the environment it fails instead.
    """

    def setUp(self) -> None:
        try:
            self.library = _library()
        except Unavailable as error:
            if os.environ.get("YATXMILTER_REQUIRE_MTA") == "1":
                raise
            raise unittest.SkipTest(str(error)) from None

    def assertSame(self, case: Case) -> None:
        """
        Fail, showing all there is to see, when a case shows a difference that is not deliberate.
        """
        comparison = driver.check(self.library, case)
        if comparison.problems:
            raise self.failureException(driver.report(comparison))


class TestNumberedCases(ComparedTestCase):
    """
    A fixed number of cases of each profile.
    """

    def _compare_all(self, profile: str) -> None:
        tally = driver.Tally()
        cases = driver.numbered(profile, 1, range(_NUMBERED))
        for comparison in driver.check_many(self.library, cases):
            tally.add(comparison, explain=False)
            if comparison.problems:
                small = driver.minimised(self.library, comparison)
                raise self.failureException(
                    f"{profile}:1:{tally.cases - 1}\n{driver.report(small)}"
                )
        # Cases that never come as far as a callback would compare nothing.
        self.assertEqual(tally.cases, _NUMBERED)
        self.assertGreater(tally.callbacks, 4 * _NUMBERED)

    def test_with_mta_and_milter_that_keep_to_rules(self) -> None:
        """
        With an MTA and a milter that keep to the rules, the MTA cannot tell us from libmilter.
        """
        self._compare_all("conforming")

    def test_whatever_milter_does_wrong_is_answered_as_by_libmilter(self) -> None:
        """
        Whatever a milter does wrong is answered as by libmilter, or as the table says.
        """
        self._compare_all("misused")

    def test_whatever_mta_does_wrong_is_answered_as_by_libmilter(self) -> None:
        """
        Whatever an MTA does wrong is answered as by libmilter, or as the table says.
        """
        self._compare_all("hostile")


class TestDrawnCases(ComparedTestCase):
    """
    Cases that Hypothesis draws and, when one fails, makes small.
    """

    @given(st.data())
    @_STEADY
    def test_cases_drawn_from_conforming_profile_show_no_difference(
        self, data: st.DataObject
    ) -> None:
        """
        Cases drawn from the conforming profile show no difference.
        """
        self.assertSame(generate(HypothesisSource(data.draw), "conforming"))

    @given(st.data())
    @_STEADY
    def test_cases_drawn_from_misused_profile_show_no_difference_but_those_in_table(
        self, data: st.DataObject
    ) -> None:
        """
        Cases drawn from the misused profile show no difference but those in the table.
        """
        self.assertSame(generate(HypothesisSource(data.draw), "misused"))

    @given(st.data())
    @_STEADY
    def test_cases_drawn_from_hostile_profile_show_no_difference_but_those_in_table(
        self, data: st.DataObject
    ) -> None:
        """
        Cases drawn from the hostile profile show no difference but those in the table.
        """
        self.assertSame(generate(HypothesisSource(data.draw), "hostile"))


class TestTable(SynchronousTestCase):
    """
    The table of differences, which is there without libmilter, too.
    """

    def test_each_switch_of_reference_engine_has_its_row_in_table(self) -> None:
        """
        Each switch of the reference engine has its row in the table, and its example.
        """
        self.assertEqual(sorted(DIFFERENCES), sorted(rules.NAMES))
        self.assertEqual(sorted(EXAMPLES), sorted(rules.NAMES))

    def test_manuals_table_and_rules_are_about_same_points(self) -> None:
        """
        The manual's table and the rules are about the same points: each rule names its rows there,
        and each other row has a test.
        """
        text = (ROOT / "docs" / "differences.md").read_text("utf-8")
        rows = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines()]
        rows = [row for row in rows if text.count(f"\n| {row} | ") == 1 and row != "point"]
        named = [row for one in DIFFERENCES.values() for row in one.rows]
        self.assertEqual(sorted(rows), sorted([*named, *OTHER_ROWS]))
        for test in OTHER_ROWS.values():
            self.assertTrue(callable(namedAny(test)), test)


class TestDeliberateDifferences(ComparedTestCase):
    """
    The table of differences, and what the libraries do.
    """

    def test_each_row_about_a_conversation_has_a_case_that_shows_it(self) -> None:
        """
        For each row of the manual that is about one conversation there is a case that shows it.
        """
        for name, difference in DIFFERENCES.items():
            self.assertTrue(difference.rows, name)
            for row in difference.rows:
                case = BY_ROW[row] if len(difference.rows) > 1 else EXAMPLES[name]
                comparison = driver.check(self.library, case)
                self.assertEqual(comparison.problems, [], row)
                self.assertTrue(comparison.deliberate, row)
                self.assertIn(name, reasons(case), row)

    def test_each_row_has_a_case_in_which_the_two_libraries_differ(self) -> None:
        """
        For each row there is a case in which the two libraries differ, for that reason alone.
        """
        shown = {}
        for name, case in EXAMPLES.items():
            comparison = driver.check(self.library, case)
            self.assertEqual(comparison.problems, [], name)
            self.assertTrue(comparison.deliberate, name)
            shown[name] = reasons(case)
        self.assertEqual(shown, {name: [name] for name in EXAMPLES})


def _plain_case(**changes: Any) -> Case:
    case = Case(
        callbacks=OPTIONAL[1:],
        conversation=(
            offer(),
            packet(b"H", strings(b"mail.example.org")),
            packet(b"M", strings(b"<s@example.org>")),
            packet(b"A"),
            packet(b"Q"),
        ),
    )
    return replace(case, **changes)


class TestComparison(ComparedTestCase):
    """
    The comparison itself: it must see what there is to see, and depend on nothing else.
    """

    def test_cases_do_not_influence_each_other(self) -> None:
        """
        A case gives in a process that has run others what it gives in a process of its own.
        """
        for profile in PROFILES:
            for case in driver.numbered(profile, 2, range(40)):
                with LibMilter() as fresh:
                    alone = fresh.run(case)
                self.assertEqual(self.library.run(case), alone)

    def test_state_table_is_put_back(self) -> None:
        """
        The marks that one connection leaves in libmilter's state table are gone at the next.
        """
        first = _plain_case(callbacks=())
        skipping = _plain_case(conversation=(packet(b"E"), packet(b"A")))
        before = self.library.run(skipping)
        self.library.run(first)
        self.assertEqual(self.library.run(skipping), before)

    def _problems(self, change: Callable[[Any], None]) -> list[str]:
        case = _plain_case()
        real = self.library.run(case)
        self.assertEqual(driver.checked(case, real).problems, [])
        change(real)
        return driver.checked(case, real).problems

    def test_one_byte_more_or_less_from_libmilter_is_seen(self) -> None:
        """
        One byte more or less from libmilter is seen.
        """

        def cut(record: Any) -> None:
            record.output = record.output[:-1]

        self.assertNotEqual(self._problems(cut), [])

    def test_callback_more_or_less_is_seen_and_so_is_another_argument_or_order(self) -> None:
        """
        A callback more or less is seen, and so is another argument or order.
        """

        def drop(record: Any) -> None:
            del record.invocations[1]

        def swap(record: Any) -> None:
            record.invocations[0], record.invocations[1] = record.invocations[1::-1]

        def alter(record: Any) -> None:
            record.invocations[0].args = (b"other",)

        for change in (drop, swap, alter):
            self.assertNotEqual(self._problems(change), [])

    def test_answer_that_comes_before_or_after_another_callback_than_libmilters_is_seen(
        self,
    ) -> None:
        """
        An answer that comes before or after another callback than libmilter's is seen.
        """

        def later(record: Any) -> None:
            record.invocations[1].written += 5

        self.assertNotEqual(self._problems(later), [])
