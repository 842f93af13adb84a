"""
Running the tools that build what is shipped.

They take minutes, and get packages from the network: so they run where they are asked for.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.mta.processes import require_program, require_root

ROOT = Path(__file__).resolve().parents[2]


def set_up(case: SynchronousTestCase, *programs: str) -> Path:
    """
    Skip a test unless it is asked for, and can be run here; make it a folder.
    """
    if not os.environ.get("YATXMILTER_TEST_SHIPPING"):
        raise SkipTest("YATXMILTER_TEST_SHIPPING is not set; .ci/run builds what is shipped")
    require_root()
    for program in programs:
        require_program(program)
    folder = tempfile.TemporaryDirectory(prefix="yatxmilter-shipping-")
    case.addCleanup(folder.cleanup)
    return Path(folder.name)


def run(*words: str | Path, cwd: Path | None = None) -> str:
    """
    Run a command, which has to succeed, and give what it says.
    """
    result = subprocess.run(
        words, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip
    assert result.returncode == 0, f"{words}\n{result.stdout}"
    return result.stdout
