"""
Tests of ``python -m yatxmilter``: the command line, in this process and as a program.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import runpy
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from yatxmilter import __main__, __version__
from yatxmilter._engine.connection import COMPILED

ROOT = Path(__file__).resolve().parent.parent.parent


def command(*words: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """
    Run ``python -m yatxmilter`` as a program, without a terminal.
    """
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        [sys.executable, "-m", "yatxmilter", *words],
        env=environ,
        timeout=60,
        check=False,
        **{"capture_output": True, **options},
    )


class MainTests(SynchronousTestCase):
    """
    Arguments, help and exit status.
    """

    def main(self, *words: str) -> tuple[int, str, str]:
        """
        Call ``main``; give the status, and what was printed on both streams.
        """
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = __main__.main(words)
        return status, out.getvalue(), err.getvalue()

    def test_version_prints_packages_version(self) -> None:
        """
        ``--version`` prints the package's version.
        """
        how = " (compiled)" if COMPILED else ""
        self.assertEqual(self.main("--version"), (0, f"yatxmilter {__version__}{how}\n", ""))

    def test_help_names_every_command_and_commands_own_gives_example_of_its_use(self) -> None:
        """
        ``--help`` names every command, and a command's own gives an example of its use.
        """
        status, out, _ = self.main("--help")
        self.assertEqual(status, 0)
        for row in __main__._COMMANDS:
            self.assertIn(row.summary, out)
            status, own, _ = self.main(row.name, "--help")
            self.assertEqual(status, 0)
            self.assertIn(f"python -m yatxmilter {row.name}", own)

    def test_without_command_or_with_one_that_does_not_exist(self) -> None:
        """
        Without a command, or with one that does not exist, usage is printed and the status is 2.
        """
        for words in ((), ("nonsense",), ("demo", "--nonsense")):
            status, out, err = self.main(*words)
            self.assertEqual((status, out), (2, ""))
            self.assertIn("usage: yatxmilter", err)

    def use(self, run: Any, name: str = "act") -> None:
        """
        Have one command only, which does this.
        """

        def add_arguments(parser: ArgumentParser) -> None:
            parser.add_argument("word")

        module: Any = SimpleNamespace(add_arguments=add_arguments, run=run)
        row = __main__._Row(name, module, "act", "python -m yatxmilter act")
        self.patch(__main__, "_COMMANDS", (row,))

    def test_command_gets_its_arguments_and_its_status_is_programs(self) -> None:
        """
        A command gets its arguments, and its status is the program's.
        """
        words: list[str] = []

        def run(arguments: Namespace) -> int:
            words.append(arguments.word)
            return 7

        self.use(run)
        self.assertEqual(self.main("act", "now"), (7, "", ""))
        self.assertEqual(words, ["now"])

    def test_when_nobody_reads_output_any_more_status_is_1(self) -> None:
        """
        When nobody reads the output any more the status is 1, and there is no complaint.
        """
        reading, writing = os.pipe()
        os.close(reading)

        def run(arguments: Namespace) -> int:
            print("to nobody")
            return 0

        self.use(run)
        with (
            os.fdopen(writing, "w") as stream,
            contextlib.redirect_stdout(stream),
        ):
            self.assertEqual(__main__.main(["act", "now"]), 1)

    def test_output_that_disk_has_no_room_for_is_told_in_one_line_with_status_2(self) -> None:
        """
        Output that the disk has no room for is told in one line, with status 2, also that of
        ``--help``; what a milter or a program of others writes is none of that.
        """

        def run(arguments: Namespace) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        self.use(run)
        for words in (["act", "now"], ["--help"]):
            err = io.StringIO()
            with (
                open("/dev/full", "w", encoding="utf-8") as full,
                contextlib.redirect_stdout(full),
                contextlib.redirect_stderr(err),
            ):
                self.assertEqual(__main__.main(words), 2)
            words_of_it = "yatxmilter: cannot write the output: No space left on device\n"
            self.assertEqual(err.getvalue(), words_of_it)
        self.use(run, "serve")
        self.assertRaises(OSError, self.main, "serve", "now")
        with (
            open("/dev/full", "w", encoding="utf-8") as full,
            contextlib.redirect_stdout(full),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            self.assertEqual(__main__.main(["serve", "--help"]), 2)

    def test_ctrl_c_where_no_reactor_runs_is_the_status_130(self) -> None:
        """
        Ctrl-C where no reactor runs is the status 130, without a traceback.
        """

        def run(arguments: Namespace) -> int:
            raise KeyboardInterrupt

        self.use(run)
        self.assertEqual(self.main("act", "now"), (130, "", ""))

    def test_started_without_standard_output_as_by_shells_command_runs_all_same(self) -> None:
        """
        Started without standard output, as by a shell's ``>&-``, a command runs all the same.
        """
        self.patch(sys, "stdout", None)
        self.use(lambda arguments: print("nobody reads this"))
        self.assertIsNone(__main__.main(["act", "now"]))
        sys.stdout.close()

    def test_package_run_as_a_program_takes_the_arguments_of_the_process(self) -> None:
        """
        Run as a program, the package takes the process's arguments and leaves with the status.
        """
        for words, status in ((["--version"], 0), (["nonsense"], 2)):
            self.patch(sys, "argv", ["yatxmilter", *words])
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                # By its path: pytest's own loader, which loads a package that has a plugin for
                # pytest, gives runpy no code.
                leaving = self.assertRaises(
                    SystemExit, runpy.run_path, __main__.__file__, run_name="__main__"
                )
            self.assertEqual(leaving.code, status)


class ProgramTests(SynchronousTestCase):
    """
    The program as it is started.
    """

    def test_demo_runs_prints_without_colour_into_pipe_and_ends_by_itself(self) -> None:
        """
        The demo runs, prints without colour into a pipe, and ends by itself.
        """
        result = command("demo")
        self.assertEqual((result.returncode, result.stderr), (0, b""))
        self.assertIn("+Subject: [demo] Grüße".encode(), result.stdout)
        self.assertNotIn(b"\x1b", result.stdout)

    def test_file_that_is_not_there_gives_one_line_of_complaint_and_status_2(self) -> None:
        """
        A file that is not there gives one line of complaint and status 2.
        """
        result = command("demo", "/no/such/file.eml")
        self.assertEqual((result.returncode, result.stdout), (2, b""))
        self.assertEqual(
            result.stderr, b"yatxmilter demo: cannot read /no/such/file.eml: No such file or"
            b" directory\n"
        )  # fmt: skip

    def test_whoever_reads_only_beginning_of_output_causes_no_complaint(self) -> None:
        """
        Whoever reads only the beginning of the output causes no complaint.
        """
        reading, writing = os.pipe()
        os.close(reading)
        try:
            result = command("demo", capture_output=False, stdout=writing, stderr=subprocess.PIPE)
        finally:
            os.close(writing)
        self.assertEqual((result.returncode, result.stderr), (1, b""))
