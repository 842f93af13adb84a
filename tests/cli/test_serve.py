"""
Tests of ``yatxmilter serve``: what it says of wrong options, milters and sockets.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.cli.test_main import ROOT, command

DEPLOY = ROOT / "examples" / "deploy"
#: What the program of that name runs; ``-m twisted`` does not start everywhere in Twisted 22.10.
TWIST = """
from importlib.metadata import entry_points
(twist,) = entry_points(group="console_scripts", name="twist")
twist.load()()
"""


class ServeCommandTests(SynchronousTestCase):
    """
    The command's complaints, each with its exit status.
    """

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        (self.folder / "mine.py").write_text("from yatxmilter import Milter\nother = 7\n")

    def check(self, status: int, expected: str, *words: str) -> None:
        """
        Run it, and compare the status and what is said, without the folder's name.
        """
        result = command("serve", *words, cwd=self.folder)
        said = (result.stdout + result.stderr).decode().replace(str(self.folder), "")
        self.assertEqual((result.returncode, said), (status, expected))

    def test_configuration_in_examples_deploy_is_good(self) -> None:
        """
        The configuration in examples/deploy is good.
        """
        result = command(
            "serve", f"--config={DEPLOY / 'yatxmilter.toml'}", "--check-config",
            cwd=ROOT / "examples",
        )  # fmt: skip
        self.assertEqual((result.returncode, result.stdout), (0, b"the configuration is good\n"))

    def test_every_mistake_in_a_file_is_told_at_once_with_its_line(self) -> None:
        """
        Every mistake in a file is told at once, with its line.
        """
        (self.folder / "bad.toml").write_text(
            'listn = ["inet:1"]\ntimeout = "x"\n[[milter]]\nobject = "a:b"\non_eror = 3\n'
        )
        self.check(
            2,
            "yatxmilter serve: bad.toml:1: unknown option 'listn', did you mean 'listen'?\n"
            "yatxmilter serve: bad.toml:2: timeout is 'x', expected seconds or None\n"
            "yatxmilter serve: bad.toml:5: unknown option 'on_eror', did you mean 'on_error'?\n",
            "--config=bad.toml",
            "--check-config",
        )

    def test_what_cannot_be_a_milter_is_named(self) -> None:
        """
        What cannot be a milter is named.
        """
        self.check(
            2,
            "yatxmilter serve: --milter: none:X: there is no module 'none'\n"
            "yatxmilter serve: --milter: mine:X: mine has no 'X'\n"
            "yatxmilter serve: --milter: mine:other is 7, expected a Milter subclass, an"
            " IMilterFactory or a function that makes one\n",
            "--listen=inet:0@127.0.0.1",
            "--milter=none:X",
            "--milter=mine:X",
            "--milter=mine:other",
        )

    def test_does_not_serve_where_another_listens(self) -> None:
        """
        Where another listens it does not, be it a port or a UNIX socket; the status is 3.
        """
        with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
            tcp.bind(("127.0.0.1", 0))
            tcp.listen()
            port = tcp.getsockname()[1]
            unix.bind(str(self.folder / "taken"))
            unix.listen()
            for spec, said in (
                (
                    f"inet:{port}@127.0.0.1",
                    f"127.0.0.1:{port}: Address already in use: another program listens there;"
                    " `ss -ltnp` shows which. End that one, or take another port",
                ),
                (f"unix:{self.folder}/taken", "/taken: another program listens there"),
            ):
                self.check(
                    3,
                    f"yatxmilter serve: cannot listen on {said}\n",
                    f"--listen={spec}",
                    "--milter=mine:Milter",
                )

    def test_twist_knows_the_service_and_its_wrong_options_are_told(self) -> None:
        """
        ``twist`` knows the service, and its wrong options are told.
        """
        result = subprocess.run(
            [sys.executable, "-c", TWIST, "yatxmilter", "--milter=mine:Milter"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=self.folder,
            capture_output=True,
            check=False,
        )
        self.assertNotEqual(result.returncode, 0)
        self.assertIn(b"nowhere to listen", result.stdout + result.stderr)
