"""
Fuzzing for the ordinary tests: the seeds, and a bounded number of inputs, the same on each run.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ..helpers import STEADY
from . import codec, session
from .model import Model

ROOT = Path(__file__).resolve().parents[2]
SEEDS = Path(__file__).resolve().parent / "seeds"


def seeds(target: str) -> list[bytes]:
    """
    Read the seeds of a target.
    """
    return [path.read_bytes() for path in sorted((SEEDS / target).iterdir())]


class FuzzTests(SynchronousTestCase):
    """
    What holds for all input.
    """

    def play(self, data: bytes) -> None:
        try:
            session.test_one(data)
        finally:
            # Failures that milters were told to have.
            self.flushLoggedErrors()

    def test_seeds_of_codec_are_read_without_anything_but_protocol_errors(self) -> None:
        """
        The seeds of the codec are read without anything but protocol errors.
        """
        self.assertGreater(len(seeds("codec")), 5)
        for data in seeds("codec"):
            codec.test_one(data)

    def test_seeds_of_session_keep_all_promises(self) -> None:
        """
        The seeds of the session keep all promises.
        """
        self.assertGreater(len(seeds("session")), 5)
        for data in seeds("session"):
            self.play(data)

    @STEADY
    @given(st.binary(max_size=400))
    def test_any_bytes_are_read_without_anything_but_protocol_errors(self, data: bytes) -> None:
        """
        Any bytes are read without anything but protocol errors, however they are cut.
        """
        codec.test_one(data)

    @settings(STEADY, max_examples=250)
    @given(st.randoms(use_true_random=False), st.sampled_from((40, 150, 400)))
    def test_any_course_of_events_keeps_all_promises(self, random: object, size: int) -> None:
        """
        Any course of events keeps all promises.
        """
        self.play(random.randbytes(size))  # type: ignore[attr-defined]


class ModelTests(SynchronousTestCase):
    """
    The second opinion can disagree.
    """

    SENT = [
        ("O", b"\0\0\0\6\0\0\1\xff\0\x1f\xff\xff"),
        ("C", b"h\0U"),
        ("M", b"<>\0"),
        ("L", b"out\0of order\0"),
        ("R", b"<r>\0"),
        ("M", b"<>\0"),
        ("R", b"<r>\0"),
        ("E", b""),
        ("Q", b""),
    ]
    AGREED = ("O", b"\0\0\0\6\0\0\1\xff\0\0\0\0")

    def judge(self, letters: str) -> Model:
        model = Model(0, [self.AGREED, *((letter, b"") for letter in letters)])
        model.run(self.SENT)
        return model

    def test_conversation_in_order_has_no_answer_too_many_and_none_too_few(self) -> None:
        """
        A conversation in order has no answer too many and none too few.
        """
        model = self.judge("cccchc")
        self.assertEqual((model.left, model.unanswered, model.over), ([], "", True))
        self.assertEqual(model.aborted, 1)

    def test_answer_to_what_is_out_of_order_is_one_too_many(self) -> None:
        """
        An answer to what is out of order is one too many.
        """
        self.assertEqual(len(self.judge("ccccccc").left), 2)

    def test_missing_answer_is_named_by_its_command(self) -> None:
        """
        A missing answer is named by its command.
        """
        self.assertEqual(self.judge("ccc").unanswered, "R")

    def test_answer_that_does_not_fit_its_command_is_error(self) -> None:
        """
        An answer that does not fit its command is an error, and so is an edit out of place.
        """
        self.assertRaises(AssertionError, self.judge, "cs")
        self.assertRaises(AssertionError, self.judge, "cch")


class CommandTests(SynchronousTestCase):
    """
    C{python -m tests.fuzz}.
    """

    def run_fuzz(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )

    def test_input_can_be_run_again_without_atheris(self) -> None:
        """
        An input can be run again without Atheris.
        """
        seed = next((SEEDS / "session").iterdir())
        done = self.run_fuzz("-m", "tests.fuzz", "--replay", str(seed))
        self.assertEqual((done.returncode, done.stdout), (0, ""), done.stderr)

    def test_where_atheris_is_not_installed_that_is_what_is_said(self) -> None:
        """
        Where Atheris is not installed, that is what is said.
        """
        hide = "import sys, runpy; sys.modules['atheris'] = None; "
        done = self.run_fuzz("-c", hide + "runpy.run_module('tests.fuzz', run_name='__main__')")
        self.assertEqual((done.returncode, done.stdout), (2, ""), done.stderr)
        self.assertIn("pip install atheris", done.stderr)
