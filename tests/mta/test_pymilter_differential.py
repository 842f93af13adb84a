"""
Random sessions: what a program writes down and what it sends, on the real pymilter and on ours.
"""

from __future__ import annotations

import os
import subprocess

from twisted.trial.unittest import SkipTest, TestCase

from tests.mta.pymilter_sessions import KINDS, OURS, REAL, play, running

#: Sessions for each kind of program; more with YATXMILTER_PYMILTER_SESSIONS.
SESSIONS = int(os.environ.get("YATXMILTER_PYMILTER_SESSIONS", "40"))


class DifferentialTests(TestCase):
    """
    One seed, two programs.
    """

    def compare(self, kind: str) -> None:
        """
        Play the same sessions to a kind of program on both.
        """
        found = subprocess.run([*REAL, "-c", "import milter"], capture_output=True)
        if found.returncode:
            raise SkipTest("no pymilter for /usr/bin/python3; see tests/mta/install.sh")
        with running(REAL, kind, "a seed") as real, running(OURS, kind, "a seed") as ours:
            for number in range(SESSIONS):
                seed = f"{kind}/{number}"
                bytes_real, log_real = play(real, seed)
                bytes_ours, log_ours = play(ours, seed)
                self.assertEqual(log_ours, log_real, seed)
                self.assertEqual(bytes_ours, bytes_real, seed)


def _add(kind: str) -> None:
    def test(self: DifferentialTests) -> None:
        self.compare(kind)

    test.__doc__ = f"""
        A program of the kind "{kind}" is called with the same, and sends the same.
        """
    test.__name__ = f"test_{kind}"
    setattr(DifferentialTests, test.__name__, test)


for _kind in KINDS:
    _add(_kind)
