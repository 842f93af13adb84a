"""
Milters that run as programs of their own, and clients that talk to them.

What the manual and the examples show is started as a user starts it, with the Python that runs the
tests, and has to end cleanly when it is told to.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from yatxmilter.client import MilterClient, connect_milter

ROOT = Path(__file__).resolve().parent.parent

#: Seconds after which a program that does not listen, or does not end, has failed.
PATIENCE = 120.0


class Program:
    """
    A Python program that is a milter.

    It runs in a folder of its own and is stopped when the test is over.

    :ivar endpoint: A UNIX socket in its folder, for its command line.
    """

    def __init__(self, case: TestCase, folder: Path) -> None:
        self._case = case
        self.folder = folder
        self._log = folder / "log"
        self.endpoint = self._spec = f"unix:{folder / 'socket'}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str | Path, spec: str = "") -> Program:
        """
        Start it.

        :param arguments: What follows ``python`` on the command line.
        :param spec: Where it will listen, as `connect_milter` takes it, if not at `endpoint`.
        """
        self._spec = spec or self._spec
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._case.addCleanup(self._process.wait)
        self._case.addCleanup(self._process.kill)
        return self

    @property
    def output(self) -> str:
        """
        What it has printed so far.
        """
        return self._log.read_text()

    async def connect(self) -> MilterClient:
        """
        Connect to it as an MTA, as soon as it listens.
        """
        assert self._process is not None
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                client: MilterClient = await connect_milter(self._spec)
            except ConnectError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"{self._spec}: not there\n{self.output}") from None
                pause: Deferred[None] = deferLater(reactor, 0.05)
                await pause
            else:
                return client

    def stop(self) -> str:
        """
        Tell it to end, and return what it printed; it is a failure if it does not end cleanly.
        """
        self.signal()
        return self.ended()

    def signal(self) -> None:
        """
        Tell it to end.
        """
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    def ended(self) -> str:
        """
        Wait for its end, and return what it printed; it is a failure if it does not end cleanly.
        """
        self._case.assertEqual(self.status(), 0, self.output)
        self._case.assertNotIn("Traceback", self.output)
        return self.output

    def status(self) -> int:
        """
        Wait for its end, and return its exit status.
        """
        assert self._process is not None
        return self._process.wait(PATIENCE)


class ProgramTestCase(TestCase):
    """
    A test that runs programs.
    """

    timeout = 300

    def program(self) -> Program:
        """
        Prepare a program, with a folder of its own.
        """
        # Not self.mktemp(): a path in there may be too long for a UNIX socket.
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        return Program(self, Path(folder.name))
