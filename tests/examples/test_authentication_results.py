"""
``examples/authentication_results.py``, run as a program, with a DNS server of the test's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dkim
from twisted.internet import reactor
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.defer import maybeDeferred
from twisted.names import dns
from twisted.names.authority import FileAuthority
from twisted.names.server import DNSServerFactory
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from examples import authentication_results as example
from examples.authentication_results import AuthenticatorFactory, claims
from tests.examples.test_dkim_signer import make_key
from tests.programs import ROOT, ProgramTestCase
from yatxmilter.client import apply_edits
from yatxmilter.constants import SMFIP_HDR_LEADSPC
from yatxmilter.testing import MilterTestMixin

OUTSIDE = IPv4Address("TCP", "192.0.2.25", 4025)
NAME = "mx.example.com"


class Zone(FileAuthority):
    """
    All of ``example``: a domain with everything, and one where aligned means the same.
    """

    def loadFile(self, filename: str) -> None:
        start = dns.Record_SOA(b"ns.example", b"root.example", 1, 3600, 600, 86400, 300, 300)
        self.soa = b"example", start
        texts = {
            b"good-mail.example": b"v=spf1 ip4:192.0.2.25 -all",
            b"_dmarc.good-mail.example": b"v=DMARC1; p=reject",
            b"_dmarc.strict.example": b"v=DMARC1; p=reject; adkim=s; aspf=s",
            b"sub.strict.example": b"v=spf1 ip4:192.0.2.25 -all",
        }
        self.records = {name: [dns.Record_TXT(text)] for name, text in texts.items()}
        self.records[b"example"] = [start]
        two = [dns.Record_TXT(b"v=DMARC1; p=none"), dns.Record_TXT(b"v=DMARC1; p=reject")]
        self.records[b"_dmarc.two.example"] = two

    def publish(self, name: bytes, record: bytes) -> None:
        """
        Put a key into the zone, in pieces, as its length asks for.
        """
        pieces = [record[at : at + 200] for at in range(0, len(record), 200)]
        self.records[name] = [dns.Record_TXT(*pieces)]


class AuthenticationTests(ProgramTestCase):
    """
    The header that is put on top.
    """

    async def start(self) -> None:
        """
        Start the DNS server and the example.
        """
        zone = Zone("")
        program = self.program()
        path, record = make_key(Path(program.folder))
        zone.publish(b"sel._domainkey.good-mail.example", record)
        self.key = path.read_bytes()
        protocol = dns.DNSDatagramProtocol(DNSServerFactory(authorities=[zone]))
        server = reactor.listenUDP(0, protocol, interface="127.0.0.1")
        self.addCleanup(server.stopListening)
        port = str(server.getHost().port)
        example = ROOT / "examples" / "authentication_results.py"
        program.start(example, program.endpoint, NAME, "127.0.0.1", port)
        self.running = program

    async def delivered(
        self, message: bytes, sender: str, address: object = OUTSIDE, **macros: str
    ) -> bytes:
        """
        Send a message, and give it as it is delivered.
        """
        mta = await self.running.connect()
        agreement = await mta.negotiate()
        await mta.connect("mail.good-mail.example", address)  # type: ignore[arg-type]
        await mta.helo("mail.good-mail.example")
        outcome = await mta.send_message(message, sender, ["<b@example.com>"], macros=macros)
        await mta.quit()
        self.assertTrue(outcome.accepted, outcome)
        self.assertTrue(agreement.steps & SMFIP_HDR_LEADSPC)
        return apply_edits(message, outcome.edits)

    async def results(self, message: bytes, sender: str, **options: object) -> list[str]:
        """
        Send a message, and give the results in the field on top.
        """
        delivered = await self.delivered(message, sender, **options)  # type: ignore[arg-type]
        top = delivered.decode("latin-1").replace("\r\n", "\n").replace("\n\t", " ").split("\n")[0]
        start = f"Authentication-Results: {NAME}; "
        self.assertTrue(top.startswith(start), top)
        return top.removeprefix(start).split("; ")

    def signed(self, message: bytes) -> bytes:
        signature = dkim.sign(message, b"sel", b"good-mail.example", self.key)
        return bytes(signature + message)

    async def test_each_check_tells_pass_and_fail(self) -> None:
        """
        Each check tells pass and fail, and DMARC what they say of the author's domain.
        """
        await self.start()
        for message, sender, expected in self.cases():
            self.assertEqual(await self.results(message, sender), expected)
        await self.insiders()
        self.running.stop()

    def cases(self) -> list[tuple[bytes, str, list[str]]]:
        """
        List messages, their senders, and what is to be said of them.
        """
        mail = b"From: <a@%s>\r\nSubject: hello\r\n\r\nHello.\r\n"
        good = mail % b"good-mail.example"
        spf = "spf=pass smtp.mailfrom=good-mail.example"
        signed, dmarc = "dkim=pass header.d=good-mail.example", "header.from=good-mail.example"
        us, them = "<a@good-mail.example>", "<a@client.example>"
        none = "spf=none smtp.mailfrom=client.example"
        return [
            (good, us, [spf, f"dmarc=pass {dmarc}"]),
            (
                self.signed(good),
                them,
                [none, signed, f"dmarc=pass {dmarc}"],
            ),
            (
                self.signed(good).replace(b"Hello.", b"Howdy."),
                us,
                [spf, signed.replace("pass", "fail"), f"dmarc=pass {dmarc}"],
            ),
            (good, them, [none, f"dmarc=fail {dmarc}"]),
            (
                mail % b"sub.good-mail.example",
                us,
                [spf, "dmarc=pass header.from=sub.good-mail.example"],
            ),
            (mail % b"client.example", us, [spf, "dmarc=none header.from=client.example"]),
            (mail % b"two.example", us, [spf, "dmarc=none header.from=two.example"]),
            (
                mail % b"strict.example",
                "<a@sub.strict.example>",
                [
                    "spf=pass smtp.mailfrom=sub.strict.example",
                    "dmarc=fail header.from=strict.example",
                ],
            ),
            (
                mail % (b"x" * 70 + b".example"),
                f"<a@{'x' * 70}.example>",
                [
                    f"spf=none smtp.mailfrom={'x' * 70}.example",
                    f"dmarc=permerror header.from={'x' * 70}.example",
                ],
            ),
            (
                b"DKIM-Signature: v=1; broken\r\n" + mail % b"x>, <b@y.example",
                "<>",
                ["spf=none smtp.mailfrom=mail.good-mail.example", "dkim=permerror"],
            ),
        ]

    async def insiders(self) -> None:
        """
        Mail from inside gets no results; what claims to be ours is deleted all the same.
        """
        forged = b"Authentication-Results: MX.example.com; dkim=pass\r\n"
        other = b"Authentication-Results: other.example; dkim=pass\r\n"
        mail = b"From: <a@example.com>\r\n\r\nHello.\r\n"
        for address, macros in ((UNIXAddress("/x"), {}), (OUTSIDE, {"{auth_authen}": "user"})):
            delivered = await self.delivered(
                forged + other + mail, "<a@example.com>", address, **macros
            )
            self.assertEqual(delivered, other + mail)
        delivered = await self.delivered(forged + forged + mail, "<a@example.com>")
        self.assertEqual(delivered.count(b"Authentication-Results"), 1)
        self.assertNotIn(b"dkim=pass", delivered)


BLANKS = (
    b"From:<a@good-mail.example>\r\nSubject:x\r\n",
    b"From: <a@good-mail.example>\r\nSubject:\tx\r\n",
    b"From: <a@good-mail.example>\r\nSubject:\r\n x\r\n",
    b"From:  <a@good-mail.example>\r\nSubject:   x \r\n",
    b"From: <a@good-mail.example>\r\nSubject:\r\n",
    b"From: <a@good-mail.example>\r\nSubject: two\r\n\t lines\r\n",
)


class InMemoryTests(MilterTestMixin, SynchronousTestCase):
    """
    The example in this process; the keys are looked up here.
    """

    def setUp(self) -> None:
        """
        Make a key, and have all names that are asked for give it.
        """
        folder = Path(self.mktemp())
        folder.mkdir()
        path, self.record = make_key(folder)
        self.key = path.read_bytes()
        self.patch(example, "check_spf", lambda ip, sender, helo: "none")
        self.patch(example, "check_dmarc", lambda author, passed: "none")
        published = b"sel._domainkey.good-mail.example."
        for verifier in (dkim.DKIM, dkim.ARC):
            real = verifier.verify

            def verify(self: Any, *args: Any, dnsfunc: Any = None, _real: Any = real) -> Any:
                return _real(self, *args, dnsfunc=look_up)

            self.patch(verifier, "verify", verify)

        def look_up(name: bytes, timeout: int = 5) -> bytes | None:
            return self.record if name == published else None

    def results(self, message: bytes, **options: Any) -> tuple[bytes, list[str]]:
        """
        Send a message; give it as it is delivered, and the results on top, with what was found.
        """
        factory = AuthenticatorFactory(NAME, in_thread=maybeDeferred, **options)
        delivered = self.milter_mta(factory).send(message, sender="<a@client.example>").delivered
        fields = delivered.values("Authentication-Results")
        return delivered.data, fields[0].replace("\n\t", " ").split("; ")[1:]

    def test_signature_over_each_blank_of_header_is_verified(self) -> None:
        """
        A signature over each blank of the header (simple canonicalization) is verified, in whatever
        form the white space comes.
        """
        for header in BLANKS:
            message = header + b"\r\nHello.\r\n"
            signature = dkim.sign(
                *(message, b"sel", b"good-mail.example", self.key),
                canonicalize=(b"simple", b"simple"),
            )
            self.assertIn(
                "dkim=pass header.d=good-mail.example", self.results(signature + message)[1]
            )
            broken = (signature + message).replace(b"Subject:", b"Subject: ")
            self.assertIn("dkim=fail header.d=good-mail.example", self.results(broken)[1])

    def test_several_from_fields_none_and_one_without_domain_fail(self) -> None:
        """
        Several From fields, none, and one without a domain fail; so none passes by the first.
        """
        self.patch(example, "check_dmarc", lambda author, passed: "pass")
        one, other = b"From: <a@good-mail.example>\r\n", b"From : <b@client.example>\r\n"
        for header, result in (
            (one, "dmarc=pass header.from=good-mail.example"),
            (one + other, "dmarc=fail"),
            (b"X: 1\r\n" + other + one, "dmarc=fail"),
            (b"Subject: x\r\n", "dmarc=fail"),
            (b"From: nobody\r\n", "dmarc=fail"),
        ):
            self.assertEqual(self.results(header + b"\r\nHello.\r\n")[1][-1], result)
        both = b"From: a@good-mail.example, b@client.example\r\n\r\nHello.\r\n"
        self.assertEqual(self.results(both)[1], ["spf=none smtp.mailfrom=client.example"])

    def test_sealed_message_is_told_to_be_so_and_sealed_once_more(self) -> None:
        """
        A sealed message is told to be so, and sealed once more; a broken seal is told, too.
        """
        try:
            import authres  # noqa: F401
        except ImportError:
            raise SkipTest("sealing needs authres") from None
        seal = ("good-mail.example", "sel", self.key)
        message = b"From: <a@good-mail.example>\r\nSubject:x\r\n\r\nHello.\r\n"
        once, found = self.results(message, seal=seal)
        self.assertNotIn(" arc=", " ".join(found))
        self.assertTrue(once.startswith(b"ARC-Seal: i=1; cv=none"))
        self.assertEqual(dkim.arc_verify(once)[0], dkim.CV_Pass)
        twice, found = self.results(once, seal=seal)
        self.assertIn("arc=pass", found)
        self.assertTrue(twice.startswith(b"ARC-Seal: i=2; cv=pass"))
        self.assertEqual(dkim.arc_verify(twice)[0], dkim.CV_Pass)
        broken, found = self.results(once.replace(b"Hello", b"Howdy"), seal=seal)
        self.assertIn("arc=fail", found)
        self.assertTrue(broken.startswith(b"ARC-Seal: i=2; cv=fail"))
        many = b"ARC-Seal: i=1; cv=none\r\n" * 11 + message
        self.assertIn("arc=fail", self.results(many)[1])


class ClaimTests(SynchronousTestCase):
    """
    Whose field it is.
    """

    def test_our_name_is_found_in_any_spelling_that_grammar_allows(self) -> None:
        """
        Our name is found in any spelling that the grammar allows, and what cannot be read is ours.
        """
        for raw in (
            "mx.example.com; none",
            " MX.Example.com 1; spf=pass",
            '"mx.example.com"; none',
            "(a (b; c) \\) ) mx.example.com(d); none",
            "\n\tmx.example.com\n\t; none",
            '"mx\\.example.com"; none',
            "",
            "; none",
            "(open mx.example.com; none",
            "(" * 50_000 + ")" * 50_000 + "mx.example.com; none",
        ):
            self.assertTrue(claims(raw, NAME), raw)

    def test_other_names_are_not_ours(self) -> None:
        """
        Other names are not ours, though ours be in them or in what they say.
        """
        for raw in (
            "notmx.example.com; none",
            "mx.example.com.example.net; none",
            "other.example (mx.example.com); spf=pass smtp.helo=mx.example.com",
        ):
            self.assertFalse(claims(raw, NAME), raw)
