"""
Tests of the pytest plugin, each with a pytest of its own: a process, as users start one.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.conversation_helpers import CONNECT, HELO, MESSAGE, QUIT, offer
from tests.kit.test_replaying import NAMED, Tagger, record
from tests.programs import ROOT

TESTS = """
from yatxmilter import Milter

class Broken(Milter):
    def xxfi_eom(self):
        raise KeyError("nobody")

def test_good(milter_mta):
    assert milter_mta(Milter).send(b"Subject: hi\\n\\nbody\\n").accepted

def test_broken(milter_mta):
    milter_mta(Broken).send(b"Subject: hi\\n\\nbody\\n")

def test_expected(milter_mta):
    mta = milter_mta(Broken)
    with mta.expect_errors("KeyError"):
        mta.send(b"Subject: hi\\n\\nbody\\n")
"""


REPLAYS = """
from tests.kit.test_replaying import Other, Tagger

def test_same(milter_replay):
    assert milter_replay(Tagger, {file!r}).messages == 1

def test_different(milter_replay):
    milter_replay(Other, {file!r}, options={{"merge": "chain"}})
"""


class PluginTests(SynchronousTestCase):
    """
    The plugin in a pytest of its own.
    """

    def run_pytest(self, source: str) -> str:
        """
        Run tests, and give what pytest prints.
        """
        if subprocess.run([sys.executable, "-c", "import pytest"], capture_output=True).returncode:
            raise SkipTest("there is no pytest")
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "test_it.py").write_text(source)
            command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
            result = subprocess.run(
                [*command, "-p", "pytest_yatxmilter", "test_it.py"],
                cwd=folder,
                # Where it is installed, pytest would find it a second time.
                env={"PYTHONPATH": str(ROOT), "PATH": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
                capture_output=True,
                text=True,
            )
        return result.stdout + result.stderr

    def test_fixture_makes_mtas_and_test_whose_milter_fails_unexpectedly_fails(self) -> None:
        """
        The fixture makes MTAs, and a test whose milter fails unexpectedly fails.
        """
        output = self.run_pytest(TESTS)
        self.assertIn("3 passed, 1 error", output)
        self.assertIn("Milter Broken failed in xxfi_eom", output)
        self.assertIn("KeyError", output)

    def test_record_fixture_fails_the_test_with_what_is_different(self) -> None:
        """
        The other fixture plays a record, and fails the test with what is different.
        """
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "mail.jsonl")
            record(file, Tagger, offer(), CONNECT, HELO, NAMED, MESSAGE, QUIT)
            output = self.run_pytest(REPLAYS.format(file=str(file)))
        self.assertIn("1 failed, 1 passed", output)
        self.assertIn("now ADDHEADER X-Tag: looked at 4QID", output)

    def test_tests_without_the_plugin_do_not_import_the_library(self) -> None:
        """
        Tests that do not use it are not made to import the library, nor Twisted.
        """
        source = (
            "import sys\n"
            "def test_it():\n"
            "    assert not {'yatxmilter', 'twisted'} & sys.modules.keys()\n"
        )
        self.assertIn("1 passed", self.run_pytest(source))
