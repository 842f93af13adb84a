"""
Tests of `yatxmilter._options`: each check by a table of values and what becomes of them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.helpers import outcome
from yatxmilter import Milter
from yatxmilter import constants as c
from yatxmilter._options import (
    callable_option,
    choice_option,
    code_option,
    count_option,
    limit_option,
    name_option,
    seconds_option,
)
from yatxmilter.constants import ReturnCode
from yatxmilter.interfaces import IMilter


def build(factory: Any, protocol: Any) -> Any:
    """
    Be a callable that could build milters.
    """
    return Milter(factory, protocol)


class OptionTests(SynchronousTestCase):
    """
    Good values pass, bad ones are refused by name and value.
    """

    def check(self, option: Callable[[str, Any], Any], table: list[tuple[Any, Any]]) -> None:
        """
        Compare what becomes of values with a table; refusals must name option and value.
        """
        found = [(value, outcome(option, "colour", value)) for value, _ in table]
        self.assertEqual(found, table)
        for value, expected in table:
            if expected in (TypeError, ValueError):
                with self.assertRaises(expected) as caught:
                    option("colour", value)
                self.assertIn("colour", str(caught.exception))
                self.assertIn(repr(value), str(caught.exception))

    def test_class_must_implement_the_interface(self) -> None:
        """
        A class must implement the interface; any other callable is taken.
        """
        self.check(
            lambda name, value: callable_option(name, value, IMilter),
            [(Milter, Milter), (build, build), (object, TypeError), ("x", TypeError)],
        )

    def test_choice_is_one_of_the_words_and_nothing_else(self) -> None:
        """
        One of the words, nothing else.
        """
        self.check(
            partial(_choice, ["red", "blue"]),
            [("red", "red"), ("blue", "blue"), ("Red", ValueError), (None, ValueError)],
        )

    def test_codes_that_can_be_answered_for_failure_are_taken(self) -> None:
        """
        The codes that can be answered for a failure, as members or numbers.
        """
        good = (0, 1, 2, 3, 4)
        self.check(
            code_option,
            [(value, ReturnCode(value)) for value in good]
            + [
                (c.SMFIS_NOREPLY, ValueError),
                (c.SMFIS_SKIP, ValueError),
                (True, ValueError),
                (False, ValueError),
                ("x", ValueError),
                (None, ValueError),
            ],
        )
        self.assertIsInstance(code_option("colour", 1), ReturnCode)

    def test_count_is_a_whole_number_from_1_or_none(self) -> None:
        """
        Whole numbers from 1, or None.
        """
        self.check(
            count_option,
            [
                (1, 1),
                (None, None),
                (0, ValueError),
                (-1, ValueError),
                (1.5, TypeError),
                (True, TypeError),
                ("1", TypeError),
            ],
        )

    def test_limit_is_a_count_and_none_is_never_reached(self) -> None:
        """
        As a count, and None is never reached.
        """
        self.check(limit_option, [(7, 7), (None, sys.maxsize), (0, ValueError), ("1", TypeError)])

    def test_text_says_something_or_is_none(self) -> None:
        """
        A text that says something, or None.
        """
        self.check(name_option, [("x", "x"), (None, None), ("", TypeError), (1, TypeError)])

    def test_seconds_are_a_time_of_more_than_none_or_no_limit(self) -> None:
        """
        A time of more than no seconds, or None.
        """
        self.check(
            seconds_option,
            [
                (1, 1),
                (0.5, 0.5),
                (None, None),
                (0, ValueError),
                (-1, ValueError),
                (math.inf, ValueError),
                (10**400, ValueError),
                ("1", TypeError),
                (True, TypeError),
            ],
        )
        with self.assertRaises(ValueError):
            seconds_option("colour", math.nan)


def _choice(choices: list[str], name: str, value: Any) -> str:
    return choice_option(name, value, choices)
