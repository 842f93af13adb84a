"""
A milter made with the real libmilter as a member of the list, behind a real Postfix: what it is
called for, and that one connection to it can serve one SMTP connection after the other.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.ports import free_ports

from .bench import MESSAGE
from .hosting import HostCase, connections_to
from .postfix import Postfix
from .processes import LOOPBACK, is_listening, require, start, stop, wait_until

SOURCE = Path(__file__).with_name("counting_milter.c")

MESSAGE_CALLS = ["envfrom", "eom"]
CONNECTION_CALLS = ["connect", "helo", *MESSAGE_CALLS, "close"]


class LibmilterTests(HostCase):
    """
    ``counting_milter.c``.
    """

    mta_class = Postfix

    def setUp(self) -> None:
        """
        Compile the milter, and start it.
        """
        require(Path("/usr/include/libmilter/mfapi.h").exists(), "libmilter-dev is not installed")
        compiler = shutil.which("cc")
        require(compiler is not None, "a C compiler is not installed")
        super().setUp()
        program = self.folder / "milter"
        command = [str(compiler), "-o", program, SOURCE, "-lmilter", "-lpthread"]
        subprocess.run(command, check=True)
        self.output = self.folder / "output"
        (self.port,) = free_ports(1)
        self.address = f"inet:{self.port}@{LOOPBACK}"
        process = start([program, self.address], self.output)
        # Asked to end, libmilter takes five seconds.
        self.addCleanup(stop, process, patience=0)
        wait_until(
            lambda: is_listening(self.port) or process.poll() is not None, "the C milter to listen"
        )
        self.assertIsNone(process.poll(), self.output.read_text())

    def calls(self, last: str, count: int) -> list[str]:
        """
        Give the callbacks of the milter, as soon as one was called that many times.
        """

        def called() -> list[str]:
            return [line.split()[1] for line in self.output.read_text().splitlines()]

        wait_until(lambda: called().count(last) >= count, f"{last} of the C milter")
        return called()

    def test_one_connection_each(self) -> None:
        """
        Each SMTP connection has a connection of its own; the macros arrive with the commands.
        """
        self.run_remote(self.address)
        for _ in range(2):
            self.sink.clear()
            (queue_id,) = self.deliver(door="example").values("X-Queue-Id")
            self.assertNotEqual(queue_id, b"none")
        self.assertEqual(self.calls("close", 2), 2 * CONNECTION_CALLS)
        wait_until(lambda: connections_to(self.port) == 0, "the connections to be closed")

    def test_with_reuse_one_connection_is_enough(self) -> None:
        """
        With ``reuse`` one connection is enough: libmilter takes QUIT_NC behind an accepted message,
        and each message still has macros of its own.
        """
        self.run_remote(self.address, reuse=True)
        seen = set()
        for _ in range(3):
            self.sink.clear()
            seen.update(self.deliver(door="example").values("X-Queue-Id"))
        self.assertEqual(len(seen - {b"none"}), 3)
        self.assertEqual(self.calls("close", 3), 3 * CONNECTION_CALLS)
        self.assertEqual(connections_to(self.port), 1)
        contexts = {line.split()[0] for line in self.output.read_text().splitlines()}
        self.assertEqual(len(contexts), 1)
        self.assertNotIn("cannot be given another", self.log.read_text())

    def test_reuse_only_where_it_can(self) -> None:
        """
        Behind a message that was given up the connection is not kept, and mail goes on.
        """
        self.run_remote(self.address, reuse=True)
        client = self.connect("example")
        client.command("MAIL FROM:<sender@client.example>")
        client.command("RCPT TO:<rcpt@sink.example>")
        client.command("RSET")
        client.quit()
        self.assertEqual(self.calls("close", 1), ["connect", "helo", "envfrom", "abort", "close"])
        wait_until(lambda: connections_to(self.port) == 0, "the connection to be closed")
        self.deliver(MESSAGE, door="example")
        self.assertEqual(self.calls("close", 2)[5:], CONNECTION_CALLS)
        self.assertNotIn("failed", self.log.read_text())
