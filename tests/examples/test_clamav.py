"""
``examples/clamav.py``, run as a program, with a clamd of the test's.

That one speaks clamd's INSTREAM protocol as its manual has it, knows one virus, and misbehaves as a
real one would not on demand.  A real one is asked in tests/mta/test_examples_postfix.py.
"""

from __future__ import annotations

import struct
import tempfile
from io import BytesIO
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock, deferLater

from examples.clamav import VirusScannerFactory
from tests.programs import ROOT, ProgramTestCase
from yatxmilter.client import Outcome
from yatxmilter.constants import SMFIS_REJECT, SMFIS_TEMPFAIL

VIRUS = b"this is a virus"
MESSAGE = b"From: <a@client.example>\r\nSubject: hello\r\n\r\n"


class FakeClamd(Protocol):
    """
    Read the pieces, and answer; or break off, or say nothing.
    """

    def connectionMade(self) -> None:
        self.data, self.scanned, self.begun = b"", b"", False

    def dataReceived(self, data: bytes) -> None:
        self.data += data
        mode = self.factory.mode  # type: ignore[attr-defined]
        if mode == "breaks":
            return self.transport.abortConnection()
        if mode == "limit":
            return self.answer(b"INSTREAM size limit exceeded. ERROR")
        if not self.begun:
            command, found, rest = self.data.partition(b"\0")
            if not found:
                return None
            assert command == b"zINSTREAM", command
            self.begun, self.data = True, rest
        while len(self.data) >= 4:
            (length,) = struct.unpack("!L", self.data[:4])
            if length == 0:
                self.factory.scanned.append(self.scanned)  # type: ignore[attr-defined]
                if mode == "silent":
                    return None
                found = b"Test.Virus-1 FOUND" if VIRUS in self.scanned else b"OK"
                return self.answer(b"stream: " + found)
            if len(self.data) < 4 + length:
                return None
            self.scanned += self.data[4 : 4 + length]
            self.data = self.data[4 + length :]
        return None

    def answer(self, text: bytes) -> None:
        self.transport.write(text + b"\0")
        self.transport.loseConnection()


class ClamavTests(ProgramTestCase):
    """
    A daemon that answers in all ways.
    """

    def clamd(self, mode: str = "scans") -> str:
        """
        Start a daemon, and tell where it is.
        """
        self.daemon = Factory.forProtocol(FakeClamd)
        self.daemon.mode, self.daemon.scanned = mode, []
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = Path(folder.name, "clamd")
        self.addCleanup(reactor.listenUNIX(str(path), self.daemon).stopListening)
        return f"unix:{path}"

    async def outcomes(self, clamd: str, *bodies: bytes) -> list[Outcome]:
        """
        Start the example, and send it messages.
        """
        program = self.program()
        program.start(ROOT / "examples" / "clamav.py", program.endpoint, clamd)
        mta = await program.connect()
        await mta.negotiate()
        await mta.connect("client.example", IPv4Address("TCP", "192.0.2.25", 4025))
        await mta.helo("client.example")
        sender, recipients = "<a@client.example>", ["<b@example.com>"]
        outcomes = [await mta.send_message(MESSAGE + body, sender, recipients) for body in bodies]
        await mta.quit()
        program.stop()
        return outcomes

    async def test_virus_is_refused_by_its_name_daemon_is_shown_each_message_to_octet(self) -> None:
        """
        A virus is refused by its name; the daemon is shown each message to the octet, large or not.
        """
        large = b"x" * 78 + b"\r\n"
        bodies = [
            b"Hello.\r\n",
            b"\r\n" + VIRUS + b"\r\n",
            large * 5000,
            large * 5000 + VIRUS + b"\r\n",
        ]
        outcomes = await self.outcomes(self.clamd(), *bodies)
        text = "550 5.7.1 refused: it contains Test.Virus-1"
        for outcome, infected in zip(outcomes, (False, True, False, True), strict=True):
            if infected:
                self.assertEqual((outcome.verdict, outcome.text), (SMFIS_REJECT, text))
            else:
                self.assertTrue(outcome.accepted)
        self.assertTrue(self.daemon.scanned == [MESSAGE + body for body in bodies])

    async def test_daemon_that_is_away_breaks_off_or_takes_no_more_has_mail_put_off(self) -> None:
        """
        A daemon that is away, breaks off or takes no more has mail put off.
        """
        text = "451 4.7.1 cannot scan for viruses now, try again later"
        large = b"x" * 2_000_000
        places = ["unix:/nonexistent/clamd", self.clamd("breaks"), self.clamd("limit")]
        for place in places:
            for outcome in await self.outcomes(place, b"Hello.\r\n", large):
                self.assertEqual((outcome.verdict, outcome.text), (SMFIS_TEMPFAIL, text), place)

    async def test_daemon_that_says_nothing_has_mail_put_off_when_patience_ends(self) -> None:
        """
        A daemon that says nothing has mail put off when patience ends.
        """
        place, clock = self.clamd("silent"), Clock()
        scanners = VirusScannerFactory(clientFromString(reactor, place), clock, patience=120)
        said = Deferred.fromCoroutine(scanners.scan(BytesIO(MESSAGE)))
        while not self.daemon.scanned:
            await deferLater(reactor, 0.01)
        self.assertNoResult(said)
        clock.advance(120)
        self.assertEqual(await said, "")
