"""
Scenarios: a part of the proof in :mod:`tests.mta.chain_equality`, small enough for a test run.
"""

from __future__ import annotations

import atexit
import random
from collections.abc import Iterable
from itertools import islice
from typing import ClassVar

from twisted.trial.unittest import SynchronousTestCase

from .chain_bench import Case, ChainBench
from .chain_cases import generated_cases, table
from .chain_equality import MTAS, compare

#: How many cases of each part of the table are tried here.
SIZES = {
    "pairs": 60,
    "messages": 30,
    "bodies": 12,
    "envelopes": 40,
    "long fields": 10,
    "answers": 40,
    "declined": 30,
    "abilities": 16,
}

_benches: dict[str, ChainBench] = {}


def bench_for(mta: str) -> ChainBench:
    """
    Give the running bench of an MTA, which lasts until the test run ends.
    """
    if mta not in _benches:
        MTAS[mta].require_installed()
        bench = ChainBench(MTAS[mta])
        try:
            bench.start()
        except BaseException:
            bench.stop()
            raise
        atexit.register(bench.stop)
        _benches[mta] = bench
    return _benches[mta]


class Equality(SynchronousTestCase):
    """
    Milters in one chain do what they do as filters of their own.
    """

    mta: ClassVar[str]

    def setUp(self) -> None:
        """
        Start what does not run yet.
        """
        self.bench = bench_for(self.mta)

    def assertNoDifference(self, cases: Iterable[Case]) -> None:
        """
        Send all cases in both ways.
        """
        for case in cases:
            found = compare(self.bench, case)
            if not case.known:
                self.assertEqual(found, {}, case.name)

    def some(self, part: str) -> list[Case]:
        """
        Choose cases of a part of the table, each time the same.
        """
        cases = list(table(self.mta.partition(",")[0])[part])
        return random.Random(part).sample(cases, min(SIZES[part], len(cases)))

    def test_two_editors_in_a_row_come_to_the_same(self) -> None:
        """
        Two editors in a row come to the same.
        """
        self.assertNoDifference(self.some("pairs"))

    def test_no_difference_on_messages_that_lack_fields_or_a_body(self) -> None:
        """
        They do on messages that lack fields, or a body, or have blanks and octets.
        """
        self.assertNoDifference(self.some("messages"))

    def test_body_with_any_line_ends_is_shown_and_delivered_alike(self) -> None:
        """
        A body with any line ends is shown to the next milter, and delivered, alike.
        """
        self.assertNoDifference(self.some("bodies"))

    def test_senders_and_recipients_come_to_the_same_however_spelled(self) -> None:
        """
        Senders and recipients come to the same, however they are spelled, and whatever they stand
        for.
        """
        self.assertNoDifference(self.some("envelopes"))

    def test_next_milter_sees_of_long_field_what_mta_shows_of_it(self) -> None:
        """
        The next milter sees of a long field what the MTA shows of it.
        """
        self.assertNoDifference(self.some("long fields"))

    def test_declined_parts_are_not_learned_at_the_end_of_message(self) -> None:
        """
        Those that declined a part of the message learn no more of its end, nor of recipients that
        they were not shown, than they would as filters.
        """
        self.assertNoDifference(self.some("declined"))

    def test_any_answer_at_any_stage_has_the_same_effect(self) -> None:
        """
        Any answer at any stage, by any of three, has the same effect.
        """
        self.assertNoDifference(self.some("answers"))

    def test_abilities_of_milters_make_no_difference(self) -> None:
        """
        SKIP, leading blanks, missing callbacks, Deferreds and coroutines make no difference.
        """
        self.assertNoDifference(self.some("abilities"))

    def test_milters_made_at_random_make_no_difference(self) -> None:
        """
        Neither do milters made at random.
        """
        self.assertNoDifference(islice(generated_cases(7, 1000), 40))
