"""
Every program in ``examples/`` is started as its first lines say, and has to do what they promise.

A client plays the MTA. The DNS example asks a DNS server of its own, on loopback. What a
milter does with all kinds of mail is in ``test_example_*.py``, tested in memory as users would.
"""

from __future__ import annotations

import socket
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.mail.smtp import SMTPDeliveryError, sendmail
from twisted.names import dns
from twisted.names.authority import FileAuthority
from twisted.names.server import DNSServerFactory

from tests.ports import free_port
from tests.programs import ROOT, Program, ProgramTestCase
from yatxmilter import Milter, MilterFactory, MilterProtocolFactory
from yatxmilter.client import MilterClient, Outcome, apply_edits
from yatxmilter.constants import (
    SMFIS_ACCEPT,
    SMFIS_CONTINUE,
    SMFIS_REJECT,
    SMFIS_TEMPFAIL,
)

EXAMPLES = ROOT / "examples"
OUTSIDE = IPv4Address("TCP", "192.0.2.25", 40025)
INSIDE = IPv4Address("TCP", "127.0.0.1", 40025)
MESSAGE = b"""\
From: Sender <sender@client.example>
To: Reader <reader@example.com>
Subject: hello

A short letter.
"""


class ExampleTestCase(ProgramTestCase):
    """
    A test of one example.
    """

    example = ""

    def begin(self, *arguments: str) -> Program:
        """
        Start the example at the UNIX socket of a new program.
        """
        program = self.program()
        return program.start(EXAMPLES / self.example, program.endpoint, *arguments)

    async def greeted(
        self,
        program: Program,
        address: IPv4Address | UNIXAddress = OUTSIDE,
        helo: str = "client.example",
    ) -> MilterClient:
        """
        Connect to it as an MTA does on behalf of an SMTP client.
        """
        mta = await program.connect()
        await mta.negotiate()
        await mta.connect("client.example", address)
        await mta.helo(helo)
        return mta

    async def send(
        self,
        mta: MilterClient,
        message: bytes = MESSAGE,
        recipient: str = "<reader@example.com>",
        **macros: str,
    ) -> Outcome:
        """
        Send a message to one recipient.
        """
        return await mta.send_message(
            message, "<sender@client.example>", [recipient], macros={"i": "4Xq1", **macros}
        )


class AllExamplesTests(ProgramTestCase):
    """
    The folder as a whole.
    """

    def test_each_is_tested(self) -> None:
        """
        Each program in the folder has tests, here or in a file named after it, or both.
        """
        tested = {case.example for case in ExampleTestCase.__subclasses__()}
        names = {path.name.removeprefix("test_") for path in Path(__file__).parent.glob("test_*")}
        self.assertEqual({path.name for path in EXAMPLES.glob("*.py")} - names - tested, set())


class SimpleTests(ExampleTestCase):
    """
    The example of the 0.1.1 README.
    """

    example = "milter_twisted_simple.py"

    async def test_lets_mail_pass(self) -> None:
        """
        It listens as it stands there, but for the port's number, and mail passes unchanged.
        """
        program, port = self.program(), free_port()
        source = (EXAMPLES / self.example).read_text()
        self.assertEqual(source.count("listenTCP(1234,"), 1)
        copy = program.folder / self.example
        copy.write_text(source.replace("listenTCP(1234,", f"listenTCP({port},"))
        program.start(copy, spec=f"inet:{port}@127.0.0.1")
        mta = await self.greeted(program)
        outcome = await self.send(mta)
        self.assertTrue(outcome.accepted)
        self.assertEqual(outcome.edits, ())
        await mta.quit()
        program.stop()


class HeaderTaggerTests(ExampleTestCase):
    """
    Marks on mail from outside.
    """

    example = "header_tagger.py"

    async def test_marks_mail_from_outside(self) -> None:
        """
        A message from outside gets the header and the subject's mark, in the message's own place.
        """
        program = self.begin()
        mta = await self.greeted(program)
        outcome = await self.send(mta)
        delivered = apply_edits(MESSAGE, outcome.edits)
        self.assertIn(b"\nX-External: yes; client=192.0.2.25\n", delivered)
        self.assertIn(b"\nSubject: [EXT] hello\n", delivered)
        self.assertNotIn(b"\nSubject: hello\n", delivered)
        await mta.quit()
        program.stop()


class Zone(FileAuthority):
    """
    What the DNS server of these tests knows: all of ``example``.
    """

    def loadFile(self, filename: str) -> None:
        """
        Take the zone from here instead of from a file.
        """
        start = dns.Record_SOA(b"ns.example", b"root.example", 1, 3600, 600, 86400, 300, 300)
        self.soa = b"example", start
        self.records = {
            b"example": [start],
            b"mail.example": [dns.Record_MX(10, b"mx.mail.example")],
            b"plain.example": [dns.Record_A("192.0.2.80")],
            b"null.example": [dns.Record_MX(0, b"")],
        }


class RecipientCheckerTests(ExampleTestCase):
    """
    Recipients whose domain takes no mail.
    """

    example = "recipient_checker.py"

    def dns_server(self) -> int:
        """
        Start a DNS server for the zone above, and return its port.
        """
        factory = DNSServerFactory(authorities=[Zone("")])
        protocol = dns.DNSDatagramProtocol(factory)
        port = reactor.listenUDP(0, protocol, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        return int(port.getHost().port)

    async def asked(self, *recipients: str) -> list[tuple[object, str | None]]:
        """
        Tell what the example answers to these recipients.
        """
        program = self.begin("127.0.0.1", str(self.dns_server()))
        mta = await self.greeted(program)
        await mta.mail("<sender@client.example>")
        answers = [await mta.rcpt(recipient) for recipient in recipients]
        await mta.quit()
        program.stop()
        return [(answer.code, answer.text) for answer in answers]

    async def test_domain_that_dns_denies_or_that_takes_no_mail_is_refused(self) -> None:
        """
        A domain that DNS denies, or that takes no mail, is refused; others pass.
        """
        names = ("mail", "plain", "missing", "null")
        answers = await self.asked(*[f"<a@{name}.example>" for name in names])
        missing = "550 5.1.2 the recipient's domain does not exist"
        null = "556 5.1.10 the recipient's domain takes no mail"
        passed = (SMFIS_CONTINUE, None)
        refused = [(SMFIS_REJECT, missing), (SMFIS_REJECT, null)]
        self.assertEqual(answers, [passed, passed, *refused])


class GreylistTests(ExampleTestCase):
    """
    First attempts are put off.
    """

    example = "greylist.py"

    async def test_puts_off_strangers(self) -> None:
        """
        The first attempt is put off, with the time to wait, and so is one that comes too early.
        """
        program = self.begin("sqlite:///seen.sqlite", "300")
        mta = await self.greeted(program)
        for _ in range(2):
            outcome = await self.send(mta)
            self.assertEqual((outcome.verdict, outcome.stage), (SMFIS_TEMPFAIL, "rcpt"))
            self.assertRegex(
                str(outcome.text), r"^451 4\.7\.1 greylisted, try again in (300|29\d) seconds$"
            )
        await mta.quit()
        program.stop()

    async def test_lets_those_pass_who_come_again(self) -> None:
        """
        An attempt after the delay passes; another sender is a stranger still.
        """
        program = self.begin("sqlite:///seen.sqlite", "0")
        mta = await self.greeted(program)
        self.assertEqual((await self.send(mta)).verdict, SMFIS_TEMPFAIL)
        self.assertTrue((await self.send(mta)).accepted)
        other = await mta.send_message(MESSAGE, "<other@client.example>", ["<reader@example.com>"])
        self.assertEqual(other.verdict, SMFIS_TEMPFAIL)
        await mta.quit()
        program.stop()

    async def test_what_was_seen_is_kept_in_database_over_restart(self) -> None:
        """
        What was seen is kept in the database over a restart.
        """
        program = self.begin("sqlite:///seen.sqlite", "0")
        mta = await self.greeted(program)
        await self.send(mta)
        await mta.quit()
        program.stop()
        program.start(EXAMPLES / self.example, program.endpoint, "sqlite:///seen.sqlite", "0")
        mta = await self.greeted(program)
        self.assertTrue((await self.send(mta)).accepted)
        await mta.quit()
        program.stop()

    async def test_leaves_local_mail_alone(self) -> None:
        """
        A client without an address is not greylisted.
        """
        program = self.begin("sqlite:///seen.sqlite", "300")
        mta = await self.greeted(program, UNIXAddress("/run/submission"))
        self.assertEqual(mta.standing and mta.standing[1].code, SMFIS_ACCEPT)
        await mta.quit()
        program.stop()

    async def test_leaves_own_users_alone(self) -> None:
        """
        Who has logged in is not greylisted.
        """
        program = self.begin("sqlite:///seen.sqlite", "300")
        mta = await self.greeted(program)
        outcome = await self.send(mta, auth_authen="reader")
        self.assertEqual((outcome.verdict, outcome.stage), (SMFIS_ACCEPT, "mail"))
        await mta.quit()
        program.stop()

    async def test_networks_that_are_trusted_are_not_greylisted(self) -> None:
        """
        Networks that are trusted are not greylisted, others are.
        """
        program = self.begin("sqlite:///seen.sqlite", "300", "--trust", "192.0.2.0/24")
        for address, verdict in (
            (OUTSIDE, SMFIS_CONTINUE),
            (IPv4Address("TCP", "198.51.100.7", 40025), SMFIS_TEMPFAIL),
        ):
            mta = await self.greeted(program, address)
            self.assertEqual((await self.send(mta)).verdict, verdict)
            await mta.quit()
        program.stop()

    async def test_while_store_is_away_mail_passes_or_has_to_wait_if_that_is_wanted(self) -> None:
        """
        While the store is away mail passes, or has to wait if that is wanted; the log has one line.
        """
        for option, verdict in (("pass", SMFIS_CONTINUE), ("tempfail", SMFIS_TEMPFAIL)):
            program = self.begin("sqlite:///none/here", "300", "--when-away", option)
            mta = await self.greeted(program)
            for _ in range(2):
                outcome = await self.send(mta)
                self.assertEqual(outcome.verdict, verdict)
            await mta.quit()
            self.assertEqual(program.stop().count("the store is away"), 1)


class BehindHaproxyTests(ExampleTestCase):
    """
    One of several hosts; HAProxy itself is in tests/mta/test_haproxy.py.
    """

    example = "behind_haproxy.py"

    async def test_agent_says_that_host_is_ready_and_once_it_was_told_to_end(self) -> None:
        """
        The agent says that the host is ready, and, once it was told to end, that it leaves; a
        message that is under way then comes to its end, and a new connection is still served.
        """
        program, port, agent = self.program(), free_port(), free_port()
        spec = f"inet:{port}@127.0.0.1"
        endpoints = [f"tcp:{each}:interface=127.0.0.1" for each in (port, agent)]
        program.start(EXAMPLES / self.example, *endpoints, spec=spec)
        mta = await self.greeted(program)
        self.assertEqual(self.ask(agent), b"ready up\n")
        program.signal()
        while self.ask(agent) != b"drain\n":
            pass
        late = await self.greeted(program)
        for each in (mta, late):
            outcome = await self.send(each)
            self.assertEqual([edit.name for edit in outcome.edits], ["X-Filtered-By"])
            await each.quit()
        self.assertEqual(program.ended().count("4Xq1 from the MTA at 127.0.0.1"), 2)

    def ask(self, port: int) -> bytes:
        """
        Ask an agent, as HAProxy does.
        """
        with socket.create_connection(("127.0.0.1", port), 10) as connection:
            return connection.recv(100)


class ThreeMiltersTests(ExampleTestCase):
    """
    Three milters on one connection.
    """

    example = "three_milters.py"

    async def test_all_three_see_a_message(self) -> None:
        """
        A message that none of them refuses gets the note of the last one.
        """
        program = self.begin()
        mta = await self.greeted(program)
        outcome = await self.send(mta)
        self.assertTrue(outcome.accepted)
        delivered = apply_edits(MESSAGE, outcome.edits)
        self.assertIn(b"\nX-Tally: 3 header fields, 17 octets\n", delivered)
        await mta.quit()
        program.stop()


class RemoteMilterTests(ExampleTestCase):
    """
    Two milters in front of one that is another program; here that program is another example.
    """

    example = "remote_milter.py"

    async def test_remote_one_sees_their_edits(self) -> None:
        """
        The remote milter puts its mark on the subject that the first one has tagged.
        """
        afar = self.program()
        afar.start(EXAMPLES / "header_tagger.py", afar.endpoint)
        await (await afar.connect()).quit()
        program = self.begin(afar.endpoint)
        mta = await self.greeted(program)
        outcome = await self.send(mta)
        self.assertTrue(outcome.accepted)
        delivered = apply_edits(MESSAGE, outcome.edits)
        self.assertIn(b"\nSubject: [EXT] [friends] hello\n", delivered)
        self.assertIn(b"\nX-External: yes; client=192.0.2.25\n", delivered)
        self.assertTrue(delivered.endswith(b"https://lists.example.com/friends\n"), delivered)
        await mta.quit()
        program.stop()
        afar.stop()

    async def test_mail_waits_while_it_is_away(self) -> None:
        """
        Without the remote milter mail is put off.
        """
        program = self.begin(f"unix:{self.program().folder / 'nobody'}")
        mta = await self.greeted(program)
        outcome = await self.send(mta)
        self.assertEqual((outcome.verdict, outcome.stage), (SMFIS_TEMPFAIL, "mail"))
        await mta.quit()
        program.stop()


class MessageMilterTests(ExampleTestCase):
    """
    A milter written in messages.
    """

    example = "message_milter.py"

    async def test_tags_mail_from_outside(self) -> None:
        """
        Subject and text of mail from outside are tagged, and a header that is not theirs goes.
        """
        program = self.begin()
        mta = await self.greeted(program)
        forged = b"X-Internal: yes\n" + MESSAGE
        delivered = apply_edits(forged, (await self.send(mta, forged)).edits)
        self.assertNotIn(b"X-Internal", delivered)
        self.assertIn(b"\nSubject: [EXT] hello\n", delivered)
        self.assertIn(b"\n\nThis message comes from outside.\n\nA short letter.\n", delivered)
        await mta.quit()
        program.stop()


class ConditionsTests(ExampleTestCase):
    """
    Milters for some of the mail.
    """

    example = "conditions.py"

    async def test_subject_in_capital_letters_passes(self) -> None:
        """
        A subject in capital letters passes; the log says that it would not have.
        """
        program = self.begin()
        mta = await self.greeted(program)
        outcome = await self.send(mta, MESSAGE.replace(b"hello", b"HELLO"))
        self.assertTrue(outcome.accepted)
        await mta.quit()
        program.stop()
        self.assertIn("ShoutingCheck in shadow: SMFIS_REJECT at xxfi_header", program.output)


class SmtpServerTests(ExampleTestCase):
    """
    Twisted's SMTP server with a milter that is another program, here one of the test's.
    """

    example = "smtp_server.py"

    async def test_message_is_in_the_maildir_as_the_milter_has_left_it(self) -> None:
        """
        The message is in the maildir as the milter has left it; what the milter refuses is not.
        """

        class Signer(Milter):
            def xxfi_envfrom(self, argv: list[str]) -> int:
                return SMFIS_REJECT if argv[0] == "<>" else SMFIS_CONTINUE

            def xxfi_eom(self) -> None:
                self.smfi_insheader(0, "X-Signature", "made for the test")

        program, port = self.program(), free_port()
        listening = reactor.listenUNIX(
            f"{program.folder}/milter", MilterProtocolFactory(MilterFactory(Signer))
        )
        self.addCleanup(listening.stopListening)
        maildir = program.folder / "Maildir"
        endpoint = f"tcp:{port}:interface=127.0.0.1"
        program.start(
            *(EXAMPLES / self.example, endpoint, f"unix:{program.folder}/milter", maildir),
            spec=f"inet:{port}@127.0.0.1",
        )
        # Only to wait for it: this speaks no SMTP.
        probe = await program.connect()
        probe.transport.abortConnection()
        to = "reader@example.com"
        await sendmail("127.0.0.1", "sender@client.example", to, MESSAGE, port=port)
        with self.assertRaises(SMTPDeliveryError) as caught:
            await sendmail("127.0.0.1", "", to, MESSAGE, port=port)
        self.assertEqual(caught.exception.code, 550)
        (path,) = (maildir / "new").iterdir()
        top, received, rest = path.read_bytes().split(b"\n", 2)
        self.assertEqual(top, b"X-Signature: made for the test")
        self.assertTrue(received.startswith(b"Received: from "), received)
        self.assertEqual(rest, MESSAGE)
        program.stop()
