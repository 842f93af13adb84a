"""
Programs for pymilter in this process and beside it, and an MTA that talks to them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.python import threadable
from twisted.trial.unittest import SynchronousTestCase

from tests.programs import ROOT
from yatxmilter.pymilter._callbacks import Callbacks
from yatxmilter.pymilter._program import PROGRAM, RunOptions

__all__ = ["MTA", "ProgramCase", "wait_for"]


def wait_for(condition: Callable[[], object]) -> None:
    """
    Wait until something is so; for a minute, which is a matter of nothing else but patience.
    """
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it does not come about"
        time.sleep(0.005)


class MTA:
    """
    An MTA on a blocking socket.
    """

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(path)

    def send(self, letter: bytes, payload: bytes = b"") -> None:
        self.socket.sendall(struct.pack("!I", len(payload) + 1) + letter + payload)

    def packet(self) -> bytes:
        data = b""
        size = 4
        while len(data) < size:
            piece = self.socket.recv(size - len(data))
            if not piece:
                return b""
            data += piece
            if len(data) == 4:
                size = 4 + struct.unpack("!I", data)[0]
        return data[4:]

    def ask(self, letter: bytes, payload: bytes = b"") -> bytes:
        self.send(letter, payload)
        return self.packet()

    def negotiate(self, steps: int = 0x1FFFFF) -> bytes:
        return self.ask(b"O", struct.pack("!III", 6, 0x1FF, steps))

    def close(self) -> None:
        self.socket.close()


class ProgramCase(SynchronousTestCase):
    """
    A program, which is this process's one.
    """

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = f"{folder.name}/socket"
        self.folder = Path(folder.name)
        self.addCleanup(setattr, threadable, "ioThread", threadable.ioThread)
        self.addCleanup(vars(PROGRAM).update, vars(PROGRAM).copy())
        PROGRAM.callbacks = Callbacks()
        PROGRAM.options = RunOptions()
        PROGRAM.name = PROGRAM.spec = None

    def run_in_thread(self, run: Callable[[], object]) -> Callable[[], None]:
        """
        Run a program; what is returned waits for its end, and raises what it has raised.
        """
        raised: list[BaseException] = []

        def running() -> None:
            try:
                run()
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=running)
        thread.start()

        def end() -> None:
            while thread.is_alive():
                thread.join(20)
                # A test that has failed has not said so.
                PROGRAM.stop()
            if raised:
                raise raised.pop()

        self.addCleanup(end)
        return end

    def mta(self) -> MTA:
        """
        Connect, as soon as that can be.
        """
        made: list[MTA] = []

        def connected() -> bool:
            with contextlib.suppress(OSError):
                made.append(MTA(self.path))
            return bool(made)

        wait_for(connected)
        self.addCleanup(made[0].close)
        return made[0]

    def start(self, program: str, *options: str, **popen: Any) -> subprocess.Popen[str]:
        """
        Run a program beside this process, by the command.
        """
        script = self.folder / "program.py"
        script.write_text(program)
        process = subprocess.Popen(
            [sys.executable, "-m", "yatxmilter", "pymilter", *options, str(script), self.path],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **popen,
        )

        def end() -> None:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.communicate()

        self.addCleanup(end)
        return process
