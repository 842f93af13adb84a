"""
The manual's page "Start here", followed to the letter with a real Postfix.

Its commands are run in their order by bash, save those that install yatxmilter, which CI takes from
the README; what the page shows below a command is what the command has to print. Only the ports are
others, and where a reader needs time to type, we wait for what is awaited.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.ports import free_ports

from .control import ROOT
from .mta import Addresses
from .postfix import Postfix
from .processes import is_listening, start, stop, wait_until

PAGE = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")


class PlainPostfix(Postfix):
    """
    A Postfix that knows nothing of milters, and keeps local mail.
    """

    doors = ("plain",)

    def configure(self) -> None:
        """
        Leave the milters out, and put local delivery in.
        """
        super().configure()
        spool = self.folder / "spool"
        spool.mkdir()
        spool.chmod(0o1777)
        main = self.folder / "conf" / "main.cf"
        lines = [line for line in main.read_text().splitlines() if "_milter" not in line]
        lines += ["mydestination = localhost", f"mail_spool_directory = {spool}"]
        # The first setting of the two, which is empty, goes.
        lines.remove("mydestination =")
        main.write_text("\n".join(lines) + "\n")
        os.utime(main, (1, 1))
        master = self.folder / "conf" / "master.cf"
        services = master.read_text().replace(" -o smtpd_milters=$plain_milter", "")
        master.write_text(services + "local unix - n n - - local\n")

    def milter(self, door: str) -> tuple[str, str, bool]:
        """
        Give what `configure` takes out again.
        """
        return "unix:none", "tempfail", False


def blocks(language: str) -> list[str]:
    """
    Give the page's blocks of a language.
    """
    return re.findall(rf"^```{re.escape(language)}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


class StartHereTests(SynchronousTestCase):
    """
    A reader.
    """

    def setUp(self) -> None:
        """
        Start Postfix, and make the environment that the first block makes.
        """
        PlainPostfix.require_installed()
        folder = Path(tempfile.mkdtemp(prefix="yatxmilter-start-"))
        self.addCleanup(shutil.rmtree, folder)
        # The daemons' own users have to pass.
        folder.chmod(0o755)
        self.mta = PlainPostfix(folder, Addresses(folder / "none", 0, 0, 0))
        self.addCleanup(self.mta.stop)
        self.mta.start()
        self.folder = folder / "milter"
        (self.folder / "bin").mkdir(parents=True)
        for name, words in (("python", ""), ("yatxmilter", " -m yatxmilter")):
            program = self.folder / "bin" / name
            program.write_text(f'#!/bin/sh\nexec "{sys.executable}"{words} "$@"\n')
            program.chmod(0o755)
        [self.port] = free_ports(1)
        self.environment = {
            **os.environ,
            "MAIL_CONFIG": str(folder / "conf"),
            "PATH": f"/usr/sbin:/sbin:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }

    def adapt(self, text: str) -> str:
        """
        Put our ports into a block.
        """
        smtp = self.mta.ports["plain"]
        return text.replace("9900", str(self.port)).replace('.1", 25', f'.1", {smtp}')

    def run_block(self, block: str) -> None:
        """
        Run commands, and compare what they print with the lines that begin with ``#``.
        """
        lines = self.adapt(block).splitlines()
        shown = [line[1:].removeprefix(" ") for line in lines if line.startswith("#")]
        source = "\n".join(line for line in lines if not line.startswith("#"))
        # A mail takes what it takes.
        until = "until grep -qs X-Milter $(postconf -hx mail_spool_directory)/*; do sleep 0.1; done"
        result = subprocess.run(
            ["bash", "-euc", source.replace("sleep 3", until)],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.assertEqual(result.returncode, 0, result.stderr)
        printed = result.stdout.splitlines()
        self.assertEqual(
            [line for line in printed if line], [line for line in shown if line], source
        )

    def test_to_the_letter(self) -> None:
        """
        A reader who does what the page says sees what the page shows.
        """
        [first], [post] = blocks("python"), blocks("{code-block} python")
        (self.folder / "first.py").write_text(self.adapt(first))
        (self.folder / "post.py").write_text(self.adapt(post))
        install, run, *rest, end = blocks("{code-block} sh")
        self.assertIn("pip install -q .\n", install)
        self.assertEqual(run, "bin/python first.py &\n")
        command = [self.folder / "bin" / "python", self.folder / "first.py"]
        milter = start(command, self.folder / "log", {"PYTHONPATH": str(ROOT)})
        self.addCleanup(stop, milter)
        wait_until(lambda: is_listening(self.port), "the milter to listen")
        self.assertEqual(len(rest), 4)
        for block in rest:
            self.run_block(block)
        self.assertIn("kill %1\n", end)
        self.run_block(end.replace("kill %1", f"kill {milter.pid}"))
        self.assertEqual(milter.wait(10), 0)
        main = (self.mta.folder / "conf" / "main.cf").read_text()
        self.assertNotRegex(main, r"(?m)^smtpd_milters")
