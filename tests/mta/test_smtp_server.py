"""
Twisted's SMTP server beside real programs: OpenDKIM as its milter, and Postfix to compare it with.

The example program is run as its first lines say; what is in the maildir is verified by dkimpy, as
it is behind the MTAs. That needs no MTA.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, ClassVar

from twisted.trial.unittest import SynchronousTestCase

from tests.ports import free_ports
from tests.smtp_session import RECEIVED, Session, recorder
from yatxmilter import Milter

from .bench import MtaTestCase
from .control import ROOT, script
from .mta import Mta
from .postfix import Postfix
from .processes import LOOPBACK, is_listening, start, stop, wait_until
from .smtp import Reply, SmtpClient
from .test_remote_opendkim import MESSAGE, OpenDkim, require_opendkim

#: Complete as far as Postfix completes messages, so that it adds nothing of its own.
HEADER = (
    b"From: Sender <sender@client.example>\r\n"
    b"To: Reader <rcpt@sink.example>\r\n"
    b"Subject: A test of\r\n\tmessages\r\n"
    b"Date: Thu, 02 Jan 2025 03:04:05 +0000\r\n"
    b"Message-Id: <1@client.example>\r\n"
)
MESSAGES = (
    HEADER + b"\r\nbody\r\n..dots\r\n",
    HEADER,
    HEADER + b"\r\n\r\n\xff\x01 text\r\n \r\n\r\n",
    b"From mailbox\r\n>From mailbox\r\n" + HEADER + b"no field\r\nX: body\r\n",
)
EDITS: tuple[tuple[tuple[Any, ...], ...], ...] = (
    (),
    (
        ("smfi_insheader", 0, "X-Zero", "0"),
        ("smfi_insheader", 1, "X-One", "1"),
        ("smfi_insheader", 3, "X-Three", "3"),
        ("smfi_addheader", "X-Last", "folded\n\tvalue"),
        ("smfi_chgheader", "subject", 1, "changed"),
        ("smfi_chgheader", "To", 1, ""),
        ("smfi_chgheader", "X-New", 1, "new"),
    ),
    (("smfi_insheader", 1, "X-One", "1"), ("smfi_replacebody", b"new\r\n.end")),
)


def same_received(lines: list[bytes]) -> list[bytes]:
    """
    Put a word in the place of the server's own field, all its lines.
    """
    kept: list[bytes] = []
    inside = False
    for line in lines:
        inside = line.startswith(b"Received:") or (inside and line[:1] in (b" ", b"\t"))
        if not inside:
            kept.append(line)
        elif line.startswith(b"Received:"):
            kept.append(b"(the server's own)")
    return kept


class SameAsPostfixTests(MtaTestCase):
    """
    The same messages and edits by Postfix and by our server.
    """

    mta_class: ClassVar[type[Mta]] = Postfix

    def by_server(self, message: bytes, edits: tuple[tuple[Any, ...], ...]) -> list[bytes]:
        """
        Give the lines that our server delivers.
        """

        def edit(milter: Milter) -> None:
            for name, *arguments in edits:
                getattr(milter, name)(*arguments)

        session = Session(recorder([], eom=edit))
        session.send(lines=message.replace(b"\r\n.", b"\r\n..").split(b"\r\n")[:-1])
        (kept,) = session.mailbox.kept
        return [
            part
            for line in kept.lines
            for part in (line.split(b"\n") if line == RECEIVED else [line])
        ]

    def test_our_server_delivers_line_by_line_what_postfix_delivers(self) -> None:
        """
        Our server delivers, line by line, what Postfix delivers; only what the server says of
        itself is another.
        """
        for message in MESSAGES:
            for edits in EDITS:
                self.sink.clear()
                self.load(script(xxfi_eom=[*edits]))
                by_postfix = self.deliver(message).data.split(b"\r\n")[:-1]
                self.assertEqual(
                    same_received(self.by_server(message, edits)), same_received(by_postfix)
                )


class ExampleTests(SynchronousTestCase):
    """
    OpenDKIM asked by the example.
    """

    def setUp(self) -> None:
        """
        Start the example; OpenDKIM is not there yet.
        """
        self._dkim = require_opendkim()
        folder = tempfile.TemporaryDirectory(prefix="yatxmilter-smtp-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.opendkim = OpenDkim(self.folder)
        self.addCleanup(self.opendkim.stop)
        self.maildir = self.folder / "Maildir"
        self.log = self.folder / "server.log"
        (self.port,) = free_ports(1)
        self.server = self.run_example()

    def run_example(self) -> subprocess.Popen[bytes]:
        """
        Run the example.
        """
        example = ROOT / "examples" / "smtp_server.py"
        endpoint = f"tcp:{self.port}:interface={LOOPBACK}"
        command = [sys.executable, example, endpoint, self.opendkim.address, self.maildir]
        server = start(command, self.log, {"PYTHONPATH": str(ROOT)})
        self.addCleanup(stop, server)
        wait_until(lambda: is_listening(self.port) or server.poll() is not None, "the example")
        self.assertIsNone(server.poll(), self.log.read_text())
        return server

    def send(self, count: int = 1) -> list[Reply]:
        """
        Send the message, one time after the other in one connection.
        """
        client = SmtpClient(self.port)
        client.ehlo()
        replies = [client.message(MESSAGE) for _ in range(count)]
        client.quit()
        return replies

    def delivered(self) -> list[bytes]:
        """
        Give what is in the maildir.
        """
        return [path.read_bytes() for path in sorted((self.maildir / "new").iterdir())]

    def verifies(self, data: bytes) -> bool:
        """
        Tell whether a message has a signature, and whether that holds.
        """

        def look_up(name: bytes, timeout: int = 5) -> bytes | None:
            return {b"test._domainkey.client.example.": self.opendkim.public_key}.get(name)

        self.assertEqual(data.count(b"DKIM-Signature:"), 1, data)
        return bool(self._dkim.verify(data, dnsfunc=look_up))

    def test_while_opendkim_is_away_mail_has_to_wait(self) -> None:
        """
        While OpenDKIM is away mail has to wait. Then each message of a connection is signed, and
        the signature holds for what is delivered; it would not if a letter were another.
        """
        (reply,) = self.send()
        self.assertEqual(str(reply), "451 4.7.1 Service unavailable - try again later")
        self.assertEqual(self.delivered(), [])
        self.opendkim.start()
        self.assertEqual([reply.code for reply in self.send(2)], [250, 250])
        first, second = self.delivered()
        for data in (first, second):
            self.assertTrue(self.verifies(data), data)
            self.assertFalse(self.verifies(data.replace(b"last line", b"last link")))
            self.assertFalse(self.verifies(data.replace(b"A test", b"A text")))
            # OpenDKIM puts it on top of all, the server's own field included, as behind Postfix.
            top = [line[:15] for line in data.split(b"\n") if line[:1] != b"\t"]
            self.assertEqual(top[:3], [b"DKIM-Signature:", b"Received: from ", b"From: Sender <s"])
            self.assertEqual(
                data.partition(b"\n\n")[2],
                MESSAGE.partition(b"\r\n\r\n")[2].replace(b"\r\n", b"\n"),
            )
        self.assertEqual(self.log.read_text(), "")

    def test_on_sigterm_message_that_has_begun_is_finished(self) -> None:
        """
        On SIGTERM a message that has begun is finished; then its client is told to come back later.
        """
        self.opendkim.start()
        client = SmtpClient(self.port)
        self.addCleanup(client.close)
        client.ehlo()
        self.assertEqual(client.command("MAIL FROM:<sender@client.example>").code, 250)
        self.server.terminate()
        wait_until(lambda: not is_listening(self.port), "the port to be closed")
        self.assertEqual(client.command("RCPT TO:<rcpt@sink.example>").code, 250)
        self.assertEqual(client.command("DATA").code, 354)
        self.assertEqual(client.content(MESSAGE).code, 250)
        self.assertEqual(client.reply().code, 421)
        self.assertEqual(self.server.wait(10), 0)
        [data] = self.delivered()
        self.assertTrue(self.verifies(data), data)
        self.assertEqual(self.log.read_text(), "")
