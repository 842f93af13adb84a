"""
A process of ours behind the door "example", in which a remote milter has its stand-in.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from .bench import MtaTestCase
from .control import ROOT
from .processes import is_listening, stop, wait_until

#: What a user would write, with the options of a test.
_HOST = """
import sys
from twisted.internet import reactor
from twisted.python import log
from yatxmilter import MilterProtocolFactory
from yatxmilter.remote import RemoteMilterFactory

log.startLogging(sys.stderr)
where = sys.argv[2].split()
remote = RemoteMilterFactory(where if where[1:] else where[0], **eval(sys.argv[3]))
factory = MilterProtocolFactory(remote, merge="first")
reactor.listenTCP(int(sys.argv[1]), factory, interface="127.0.0.1")
reactor.run()
"""


def connections_to(port: int) -> int:
    """
    Count the established connections to a port of the loopback interface, at the end of who made
    them.
    """
    address = f"0100007F:{port:04X}"
    with open("/proc/net/tcp") as table:
        fields = [line.split() for line in table]
    return sum(field[2] == address and field[3] == "01" for field in fields)


class HostCase(MtaTestCase):
    """
    A test with such a process.

    :ivar folder: Where the test may write; removed at its end.
    """

    def setUp(self) -> None:
        """
        Make the folder.
        """
        super().setUp()
        folder = tempfile.TemporaryDirectory(prefix="yatxmilter-remote-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.log = self.folder / "milters.log"

    def run_program(self, *arguments: str | Path) -> None:
        """
        Run a Python program behind the door.
        """
        self.run_command(sys.executable, *arguments)

    def run_command(self, *command: str | Path) -> subprocess.Popen[bytes]:
        """
        Run any program behind the door.
        """
        port = self.mta.addresses.example_port
        with self.log.open("wb") as output:
            process = subprocess.Popen(
                [*map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        self.addCleanup(stop, process)
        wait_until(lambda: is_listening(port) or process.poll() is not None, "the milters")
        self.assertIsNone(process.poll(), self.log.read_text())
        return process

    def run_remote(self, address: str, **options: Any) -> None:
        """
        Run the stand-in of a remote milter as the only member.

        :param address: Its address; or several, with blanks between.
        :param options: Those of `RemoteMilterFactory`.
        """
        self.run_program("-c", _HOST, str(self.mta.addresses.example_port), address, repr(options))
