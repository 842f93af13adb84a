"""
Every program in ``examples/`` is started as its first lines say, and has to do what they promise.

A client plays the MTA. The DNS example asks a DNS server of its own, on loopback.
"""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet import reactor
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.defer import Deferred, fail
from twisted.mail.smtp import SMTPDeliveryError, sendmail
from twisted.names import dns
from twisted.names.authority import FileAuthority
from twisted.names.server import DNSServerFactory

from tests.programs import ROOT, Program, ProgramTestCase, free_port
from yatxmilter import Milter, MilterFactory, MilterProtocolFactory
from yatxmilter.client import AddHeader, MilterClient, Outcome, apply_edits
from yatxmilter.constants import (
    SMFIF_ADDHDRS,
    SMFIF_CHGHDRS,
    SMFIP_NOBODY,
    SMFIP_NORCPT,
    SMFIS_ACCEPT,
    SMFIS_CONTINUE,
    SMFIS_REJECT,
    SMFIS_TEMPFAIL,
)

EXAMPLES = ROOT / "examples"
TESTS = ROOT / "tests"
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
        Each program in the folder has tests, here or in a file named after it.
        """
        tested = {case.example for case in ExampleTestCase.__subclasses__()}
        names = {path.name.removeprefix("test_example_") for path in TESTS.glob("test_example_*")}
        self.assertEqual({path.name for path in EXAMPLES.glob("*.py")} - names, tested)


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

    async def test_deletes_forged_marks(self) -> None:
        """
        Marks that a message brings along are deleted, all of them and in any spelling.
        """
        program = self.begin()
        mta = await self.greeted(program)
        forged = b"X-External: no\nx-external: never\nX-EXTERNAL: not me\n" + MESSAGE
        outcome = await self.send(mta, forged)
        delivered = apply_edits(forged, outcome.edits)
        self.assertEqual(delivered.lower().count(b"x-external:"), 1)
        self.assertIn(b"X-External: yes; client=192.0.2.25\n", delivered)
        await mta.quit()
        program.stop()

    async def test_marks_each_message_once(self) -> None:
        """
        The second message on a connection is judged by itself; a subject keeps the mark it has.
        """
        program = self.begin()
        mta = await self.greeted(program)
        await self.send(mta, b"X-External: no\n" + MESSAGE)
        answer = MESSAGE.replace(b"hello", b"Re: [EXT] hello")
        delivered = apply_edits(answer, (await self.send(mta, answer)).edits)
        self.assertEqual(delivered.count(b"[EXT]"), 1)
        bare = b"From: <sender@client.example>\n\nNo subject.\n"
        delivered = apply_edits(bare, (await self.send(mta, bare)).edits)
        self.assertIn(b"\nSubject: [EXT]\n", delivered)
        await mta.quit()
        program.stop()

    async def test_leaves_insiders_alone(self) -> None:
        """
        This host, and those who logged in, are not marked.
        """
        program = self.begin()
        mta = await self.greeted(program, INSIDE)
        self.assertEqual(mta.standing and mta.standing[1].code, SMFIS_ACCEPT)
        await mta.quit()
        mta = await self.greeted(program)
        outcome = await self.send(mta, auth_authen="reader")
        self.assertEqual((outcome.verdict, outcome.stage), (SMFIS_ACCEPT, "mail"))
        await mta.quit()
        program.stop()

    async def test_asks_for_what_it_needs(self) -> None:
        """
        It negotiates the two actions it uses, and neither recipients nor body.
        """
        program = self.begin()
        mta = await program.connect()
        agreement = await mta.negotiate()
        self.assertEqual(agreement.actions, SMFIF_ADDHDRS | SMFIF_CHGHDRS)
        self.assertEqual(agreement.steps & SMFIP_NORCPT, SMFIP_NORCPT)
        self.assertEqual(agreement.steps & SMFIP_NOBODY, SMFIP_NOBODY)
        await mta.quit()
        program.stop()


class Zone(FileAuthority):
    """
    What the DNS server of these tests knows: all of ``example``, and failure for one name.
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

    def query(self, query: dns.Query, timeout: Sequence[int] | None = None) -> Deferred[object]:
        """
        Answer a query, or fail as a server does that cannot read its zone.
        """
        if query.name.name == b"broken.example":
            return fail(OSError("the zone cannot be read"))
        answer: Deferred[object] = super().query(query, timeout)
        return answer


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

    async def test_takes_those_that_exist(self) -> None:
        """
        A domain with a mail exchanger passes, and so does one with an address only.
        """
        answers = await self.asked("<a@mail.example>", "<a@plain.example>", "<postmaster>")
        self.assertEqual([code for code, _ in answers], [SMFIS_CONTINUE] * 3)

    async def test_refuses_domains_that_do_not_exist(self) -> None:
        """
        A domain that DNS denies is refused for good, with a text that says so.
        """
        answers = await self.asked("<a@missing.example>", "<a@mail.example>")
        text = "550 5.1.2 the recipient's domain does not exist"
        self.assertEqual(answers, [(SMFIS_REJECT, text), (SMFIS_CONTINUE, None)])

    async def test_refuses_null_exchangers(self) -> None:
        """
        A domain that announces to take no mail (RFC 7505) is refused for good.
        """
        answers = await self.asked("<a@null.example>")
        text = "556 5.1.10 the recipient's domain takes no mail"
        self.assertEqual(answers, [(SMFIS_REJECT, text)])

    async def test_refuses_what_is_no_domain(self) -> None:
        """
        What cannot be a domain is refused without asking DNS.
        """
        answers = await self.asked("<a@double..dot>")
        self.assertEqual(answers, [(SMFIS_REJECT, "550 5.1.3 that is not a domain")])

    async def test_puts_off_when_dns_fails(self) -> None:
        """
        When DNS gives no answer, the sender is asked to try again.
        """
        answers = await self.asked("<a@broken.example>")
        text = "451 4.4.3 cannot look up the recipient's domain now"
        self.assertEqual(answers, [(SMFIS_TEMPFAIL, text)])
        # The server's own log of it.
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)


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

    async def test_remembers(self) -> None:
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

    async def test_store_away(self) -> None:
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

    async def test_first_refuses_our_name(self) -> None:
        """
        A stranger with our name is turned away; our own host may use it.
        """
        program = self.begin()
        mta = await self.greeted(program, helo="MAIL.example.com")
        self.assertEqual((await self.send(mta)).text, "550 5.7.1 you are not MAIL.example.com")
        await mta.quit()
        mta = await self.greeted(program, INSIDE, helo="mail.example.com")
        self.assertTrue((await self.send(mta)).accepted)
        await mta.quit()
        program.stop()

    async def test_second_refuses_programs(self) -> None:
        """
        A program as an attachment is refused at the end of the message.
        """
        program = self.begin()
        mta = await self.greeted(program)
        message = b"""\
From: <sender@client.example>
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary="sep"

--sep
Content-Type: text/plain

See the holiday pictures!
--sep
Content-Type: application/octet-stream
Content-Disposition: attachment;
 filename="pictures.EXE"

MZ
--sep--
"""
        outcome = await self.send(mta, message)
        self.assertEqual((outcome.verdict, outcome.stage), (SMFIS_REJECT, "eom"))
        self.assertEqual(outcome.text, "550 5.7.1 no programs by mail, please")
        harmless = message.replace(b"pictures.EXE", b"pictures.png")
        self.assertTrue((await self.send(mta, harmless)).accepted)
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

    async def test_respects_mime(self) -> None:
        """
        Of a multipart the text gets the banner; text in no known charset, and what is signed, is
        left as it is, but for the subject.
        """
        program = self.begin()
        mta = await self.greeted(program)
        kind = (
            b"MIME-Version: 1.0\nContent-Type: multipart/%s; boundary=b\n"
            + MESSAGE.partition(b"\n\n")[0]
        )
        parts = b"\n\n--b\n\ntext\n--b\nContent-Type: text/html\n\n<p>\n--b--\n"
        mixed, signed = (kind % name + parts for name in (b"alternative", b"signed"))
        delivered = apply_edits(mixed, (await self.send(mta, mixed)).edits)
        self.assertIn(b"\n\nThis message comes from outside.\n\ntext\n", delivered)
        self.assertIn(b"\n\n<p>\n--b--\n", delivered)
        unknown = MESSAGE.replace(b"A short", b"\xff")
        html = b"Content-Type: text/html\n" + MESSAGE
        for message in (signed, unknown, html):
            outcome = await self.send(mta, message)
            self.assertEqual(len(outcome.edits), 1)
            self.assertIn(b"Subject: [EXT] hello\n", apply_edits(message, outcome.edits))
        await mta.quit()
        program.stop()

    async def test_leaves_insiders_alone(self) -> None:
        """
        This host, and those who logged in, are not tagged.
        """
        program = self.begin()
        mta = await self.greeted(program, INSIDE)
        self.assertEqual(mta.standing and mta.standing[1].code, SMFIS_ACCEPT)
        await mta.quit()
        mta = await self.greeted(program)
        outcome = await self.send(mta, **{"{auth_authen}": "user"})
        self.assertEqual((outcome.verdict, outcome.stage), (SMFIS_ACCEPT, "mail"))
        await mta.quit()
        program.stop()


class ConditionsTests(ExampleTestCase):
    """
    Milters for some of the mail.
    """

    example = "conditions.py"

    async def test_user(self) -> None:
        """
        Mail of a user who has logged in over TLS gets the note, and may go to the staff.
        """
        program = self.begin()
        mta = await program.connect()
        await mta.negotiate()
        await mta.connect("client.example", OUTSIDE)
        await mta.helo("client.example", macros={"{tls_version}": "TLSv1.3"})
        outcome = await self.send(mta, recipient="<staff@example.com>", **{"{auth_type}": "PLAIN"})
        self.assertEqual(outcome.edits, (AddHeader("X-Sent-By", "a user of example.com"),))
        await mta.quit()
        program.stop()

    async def test_stranger(self) -> None:
        """
        A stranger may not write to the staff, nor use our name; otherwise mail passes as it is.
        """
        program = self.begin()
        mta = await self.greeted(program)
        outcome = await self.send(mta, recipient="<staff@example.com>")
        self.assertEqual(
            [one.response.text for one in outcome.recipients if one.response],
            ["550 5.7.1 for our users only"],
        )
        outcome = await self.send(mta)
        self.assertTrue(outcome.accepted)
        self.assertEqual(outcome.edits, ())
        await mta.quit()
        mta = await self.greeted(program, helo="mail.example.com")
        outcome = await self.send(mta)
        self.assertEqual(
            [one.response.text for one in outcome.recipients if one.response],
            ["550 5.7.1 for our users only"],
        )
        await mta.quit()
        program.stop()

    async def test_shadow(self) -> None:
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

    async def test_server(self) -> None:
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
