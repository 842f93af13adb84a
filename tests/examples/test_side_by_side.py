"""
``examples/side_by_side``: the same milter with yatxmilter, pymilter and libmilter.

All three are run - the one in C compiled first - and are sent the same messages: their outcomes are
equal to each other, and to what the page says of them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectError
from twisted.internet.task import deferLater
from twisted.trial.unittest import SkipTest

from tests.programs import PATIENCE, ROOT, ProgramTestCase
from yatxmilter.client import AddHeader, Outcome, connect_milter
from yatxmilter.constants import SMFIS_REJECT

FOLDER = ROOT / "examples" / "side_by_side"
MESSAGE = b"From: <a@client.example>\r\nSubject: hello\r\n\r\n"
#: What is sent: the sender, the recipients, the body.
MESSAGES = (
    ("<a@client.example>", ("<b@example.com>",), b"A letter.\r\n"),
    ("<a@spam.example>", ("<b@example.com>",), b"Buy!\r\n"),
    ("<a@notspam.example>", ("<b@example.com>", "<nobody@example.com>"), b""),
    ("<>", ("<nobody@example.com>",), b"Nobody reads this.\r\n"),
    ("<>", ("<b@example.com>",), b"12345678\r\n" * 20_000),
)


def missing(reason: str) -> SkipTest:
    """
    Skip for this reason; in CI that is a failure.
    """
    if os.environ.get("YATXMILTER_REQUIRE_MTA"):
        raise AssertionError(reason)
    return SkipTest(reason)


def pymilter() -> list[str | Path]:
    """
    Give the command of the one with pymilter, less its socket; skip where there is none.
    """
    python = "/usr/bin/python3"
    probe = [python, "-c", "import Milter"]
    if not Path(python).exists() or subprocess.run(probe, capture_output=True).returncode:
        raise missing("there is no pymilter for /usr/bin/python3 (python3-milter)")
    return [python, FOLDER / "pymilter_way.py"]


def libmilter(folder: Path) -> list[str | Path]:
    """
    Compile the one in C, and give its command, less its socket; skip where that cannot be done.
    """
    if not shutil.which("cc") or not Path("/usr/include/libmilter/mfapi.h").exists():
        raise missing("there is no C compiler, or no libmilter (libmilter-dev)")
    program = folder / "counter"
    command = ["cc", "-Wall", "-Wextra", "-Werror", "-o", program, FOLDER / "libmilter.c"]
    subprocess.run([*command, "-lmilter", "-lpthread"], check=True)
    return [program]


def yatxmilter() -> list[str | Path]:
    """
    Give the command of ours, less its endpoint.
    """
    return [sys.executable, FOLDER / "yatxmilter_way.py"]


class SideBySideTests(ProgramTestCase):
    """
    One milter, three times.
    """

    async def outcomes(self, folder: Path, *command: str | Path) -> list[Outcome]:
        """
        Run one, send it the messages, and stop it.
        """
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                mta = await connect_milter(f"unix:{folder}/socket")
                break
            except ConnectError:
                late = process.poll() is not None or time.monotonic() > deadline
                self.assertFalse(late, (folder / "log").read_text())
                await deferLater(reactor, 0.05)
        await mta.negotiate()
        await mta.connect("client.example", IPv4Address("TCP", "192.0.2.25", 4025))
        await mta.helo("client.example")
        outcomes = [
            await mta.send_message(MESSAGE + body, sender, recipients)
            for sender, recipients, body in MESSAGES
        ]
        await mta.quit()
        return outcomes

    def check(self, outcomes: list[Outcome]) -> None:
        """
        Compare with what the page says: refusals, and a header with the octets.
        """
        octets: list[list[int]] = [[11], [], [0], [], [200_000]]
        edits = [tuple(AddHeader("X-Octets", str(one)) for one in some) for some in octets]
        self.assertEqual([outcome.edits for outcome in outcomes], edits)
        self.assertEqual(outcomes[1].text, "550 5.7.1 not from you")
        for number in (2, 3):
            refused = outcomes[number].recipients[-1].response
            assert refused is not None
            self.assertEqual(refused.code, SMFIS_REJECT)
            self.assertEqual(refused.text, "550 5.1.1 nobody lives here")

    async def test_one_with_yatxmilter_does_what_page_says(self) -> None:
        """
        The one with yatxmilter does what the page says.
        """
        folder = self.program().folder
        self.check(await self.outcomes(folder, *yatxmilter(), f"unix:{folder}/socket"))

    async def test_program_with_pymilter_does_the_same(self) -> None:
        """
        So does the one with pymilter.
        """
        folder = self.program().folder
        self.check(await self.outcomes(folder, *pymilter(), f"unix:{folder}/socket"))

    async def test_program_in_c_does_the_same(self) -> None:
        """
        So does the one in C.
        """
        folder = self.program().folder
        self.check(await self.outcomes(folder, *libmilter(folder), f"unix:{folder}/socket"))
