"""
``yatxmilter send`` as a program, to milters that are not ours: OpenDKIM, and one of libmilter.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.ports import free_ports

from .control import ROOT
from .processes import LOOPBACK, is_listening, require, start, stop, wait_until
from .test_remote_libmilter import CONNECTION_CALLS, SOURCE
from .test_remote_opendkim import MESSAGE, OpenDkim, require_opendkim


class SendCase(SynchronousTestCase):
    """
    A test that runs the program.
    """

    def setUp(self) -> None:
        """
        Write the message.
        """
        folder = tempfile.TemporaryDirectory(prefix="yatxmilter-send-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.message = self.folder / "m.eml"
        self.message.write_bytes(MESSAGE)

    def send(self, *words: str | Path) -> tuple[int, str]:
        """
        Run the program on the message, or on those among the words; give status and output.
        """
        result = subprocess.run(
            [sys.executable, "-m", "yatxmilter", "send", *map(str, words)],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
            check=False,
        )
        self.assertNotIn("Traceback", result.stderr)
        return result.returncode, result.stdout


class OpenDkimTests(SendCase):
    """
    OpenDKIM.
    """

    def setUp(self) -> None:
        """
        Make a key.
        """
        self.dkim = require_opendkim()
        super().setUp()
        self.opendkim = OpenDkim(self.folder)
        self.addCleanup(self.opendkim.stop)

    def verifies(self, data: bytes) -> bool:
        """
        Tell whether a message's signature holds.
        """

        def look_up(name: bytes, timeout: int = 5) -> bytes | None:
            return {b"test._domainkey.client.example.": self.opendkim.public_key}.get(name)

        return bool(self.dkim.verify(data, dnsfunc=look_up))

    def test_sign_and_verify(self) -> None:
        """
        What OpenDKIM signs is saved as an MTA would deliver it: the signature holds, dkimpy says
        so, and so does OpenDKIM itself when it is sent that; and not if a letter is another.
        """
        self.opendkim.start("s")
        out = self.folder / "out"
        words = ("--to", self.opendkim.address, "--expect", "accept", "--client", "127.0.0.1")
        status, text = self.send(self.message, *words, "--save", out)
        self.assertEqual(status, 0, text)
        self.assertIn(
            "+DKIM-Signature: v=1; a=rsa-sha256; c=simple/simple; d=client.example;", text
        )
        signed = (out / "000001.eml").read_bytes()
        self.assertTrue(self.verifies(signed))
        self.opendkim.stop()

        self.opendkim.start("v")
        forged = self.folder / "forged.eml"
        forged.write_bytes(signed.replace(b"last line", b"last link"))
        self.assertFalse(self.verifies(forged.read_bytes()))
        status, text = self.send(
            out / "000001.eml", forged, "--to", self.opendkim.address, "--json", "--reuse"
        )
        self.assertEqual(status, 0, text)
        good, bad = (json.loads(line)["edits"] for line in text.splitlines())
        for edits, result in ((good, "pass"), (bad, "fail")):
            (seen,) = [edit["value"] for edit in edits if edit["name"] == "Authentication-Results"]
            self.assertIn(f"dkim={result}", seen)

    def test_as_check_of_system_one_line_and_status_3_when_opendkim_is_away(self) -> None:
        """
        As a check of a system: one line, and status 3 when OpenDKIM is away.
        """
        words = (self.message, "--to", self.opendkim.address, "-q", "--max-time", "10")
        status, text = self.send(*words)
        self.assertEqual((status, text.partition(":")[0]), (3, "FAILED"))
        self.opendkim.start("v")
        status, text = self.send(*words)
        self.assertEqual((status, text.partition(":")[0]), (0, "OK"))


class LibmilterTests(SendCase):
    """
    A milter in C.
    """

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
        (port,) = free_ports(1)
        self.address = f"inet:{port}@{LOOPBACK}"
        process = start([program, self.address], self.output)
        self.addCleanup(stop, process)
        # libmilter looks every five seconds whether it was told to end.
        self.addCleanup(process.kill)
        wait_until(
            lambda: is_listening(port) or process.poll() is not None, "the C milter to listen"
        )
        self.assertIsNone(process.poll(), self.output.read_text())

    def calls(self, count: int) -> list[str]:
        """
        Give the callbacks, when that many connections were closed.
        """

        def called() -> list[str]:
            return [line.split()[1] for line in self.output.read_text().splitlines()]

        wait_until(lambda: called().count("close") >= count, "the C milter's xxfi_close")
        return called()

    def test_each_message_has_connection_of_its_own_or_all_share_one(self) -> None:
        """
        Each message has a connection of its own, or all share one, and each has its queue id.
        """
        words = (self.message, "--to", self.address, "--repeat", "3", "--json")
        status, text = self.send(*words)
        self.assertEqual(status, 0, text)
        ids = [json.loads(line)["edits"][0]["value"] for line in text.splitlines()]
        self.assertEqual(ids, ["SEND000001", "SEND000002", "SEND000003"])
        self.assertEqual(self.calls(3), 3 * CONNECTION_CALLS)
        status, text = self.send(*words, "--reuse", "--macro", "i=mine")
        self.assertEqual(status, 0, text)
        self.assertEqual(text.count('"value": "mine"'), 3)
        once = self.calls(4)[len(3 * CONNECTION_CALLS) :]
        self.assertEqual((once.count("connect"), once.count("eom"), once.count("close")), (1, 3, 1))

    def test_many_at_once(self) -> None:
        """
        Many messages over many connections at once all have their verdict.
        """
        words = ("--to", self.address, "--repeat", "200", "--concurrency", "10", "--reuse", "-q")
        status, text = self.send(self.message, *words, "--expect", "accept")
        self.assertEqual(status, 0, text)
        self.assertTrue(text.startswith("OK: messages 200: accept 200; unexpected 0"), text)
