"""
``serve`` with a class that is written for pymilter.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from yatxmilter import constants as c
from yatxmilter._cli.serve_milters import build_factory
from yatxmilter._cli.serve_options import ConfigurationError
from yatxmilter._cli.serve_service import parse
from yatxmilter.testing import InMemoryMTA, MilterTestFailure

PROGRAM = """\
import Milter

class Mine(Milter.Base):
    def eom(self):
        self.addheader("X-Version", "one")
        return Milter.CONTINUE

class Fails(Milter.Base):
    def eom(self):
        raise RuntimeError
"""


class ServeTests(SynchronousTestCase):
    """
    ``--milter yatxmilter.pymilter:module.Class``.
    """

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.module = Path(folder.name, "aprogram.py")
        self.module.write_text(PROGRAM)
        self.patch(sys, "path", [folder.name, *sys.path])
        self.addCleanup(sys.modules.pop, "aprogram", None)

    def send(self, *words: str, again: bool = False) -> InMemoryMTA:
        """
        Send a message to what the words describe.
        """
        settings = parse(["--listen", "inet:0@127.0.0.1", *words])
        mta = InMemoryMTA(build_factory(settings, again=again).milter_factories)
        self.sent = mta.send(b"Subject: x\n\nbody\n")
        return mta

    def test_class_of_a_program(self) -> None:
        """
        The class is found in its module, whose imports find ours; a reload finds a new one.
        """
        self.send("--milter", "yatxmilter.pymilter:aprogram.Mine").finish()
        self.assertEqual(self.sent.delivered.message["X-Version"], "one")
        self.module.write_text(PROGRAM.replace('"one"', '"second"'))
        self.send("--milter", "yatxmilter.pymilter:aprogram:Mine", again=True).finish()
        self.assertEqual(self.sent.delivered.message["X-Version"], "second")

    def test_takes_the_options_that_other_milters_take(self) -> None:
        """
        It takes the options that other milters take.
        """
        config = Path(self.module.parent, "serve.toml")
        config.write_text(
            '[[milter]]\nobject = "yatxmilter.pymilter:aprogram.Fails"\non_error = "reject"\n'
        )
        mta = self.send("--config", str(config))
        self.assertEqual(self.sent.verdict, c.SMFIS_REJECT)
        self.assertRaises(MilterTestFailure, mta.finish)
        self.flushLoggedErrors(RuntimeError)

    def test_what_is_none(self) -> None:
        """
        What is no such class is told, with where it was named.
        """
        for spec in ("yatxmilter.pymilter:aprogram.Milter", "yatxmilter.pymilter:nothing.Mine"):
            settings = parse(["--listen", "inet:0@127.0.0.1", "--milter", spec])
            error = self.assertRaises(ConfigurationError, build_factory, settings)
            self.assertIn("--milter: ", str(error))
