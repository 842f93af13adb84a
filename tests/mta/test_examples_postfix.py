"""
The examples that are there to be deployed, each once behind a real Postfix: what its client is
told, and the message as it is delivered.  Those that could be spoilt by Sendmail, too, are in
test_examples_real.py.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
import sys
from collections.abc import Iterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path

import dkim

from tests.examples.test_dkim_signer import make_key, public_record
from tests.examples.test_side_by_side import MESSAGE, MESSAGES, libmilter, pymilter, yatxmilter

from .control import ROOT
from .hosting import HostCase
from .postfix import Postfix
from .processes import require_program, start, stop, wait_until
from .sink import Delivery
from .smtp import SmtpClient

EXAMPLES = ROOT / "examples"

TEXT = "Für den Empfänger & niemanden sonst."
HTML = "Für den Empfänger &amp; niemanden sonst."

VIRUS = b"this is a virus"

#: One signature: a name, any kind of file, anywhere in it, these octets.
DATABASE = f"Example.Virus-1:0:*:{VIRUS.hex()}\n"

CLAMD = """\
DatabaseDirectory {folder}/database
LocalSocket {folder}/clamd
Foreground yes
User root
StreamMaxLength 1M
"""

#: The DNS of test_example_authentication_results.py, on a free port.
DNS = """
import sys
from pathlib import Path
from twisted.internet import reactor
from twisted.names import dns
from twisted.names.server import DNSServerFactory
from tests.examples.test_authentication_results import Zone

zone = Zone("")
zone.publish(b"sel._domainkey.good-mail.example", Path(sys.argv[1]).read_bytes())
protocol = dns.DNSDatagramProtocol(DNSServerFactory(authorities=[zone]))
port = reactor.listenUDP(0, protocol, interface="127.0.0.1").getHost().port
Path(sys.argv[2]).write_text(str(port))
reactor.run()
"""

#: The block of docs/examples.md that runs three of them.
[SERVED] = re.findall(
    r"^```sh\n(.*?)^```$",
    (ROOT / "docs" / "examples.md").read_text(encoding="utf-8"),
    re.MULTILINE | re.DOTALL,
)


class _PostfixCase(HostCase):
    """
    A test of one example.
    """

    mta_class = Postfix

    def setUp(self) -> None:
        """
        See to it that the example has nothing to complain of until it has been stopped.
        """
        super().setUp()
        self.addCleanup(self._check_log)

    def _check_log(self) -> None:
        # There is none if the test was over before an example ran.
        text = self.log.read_text() if self.log.exists() else ""
        self.assertNotIn("Traceback", text)

    def run_example(self, name: str, *arguments: object) -> None:
        """
        Run an example behind the door.
        """
        endpoint = f"tcp:{self.mta.addresses.example_port}:interface=127.0.0.1"
        self.run_program(EXAMPLES / name, endpoint, *map(str, arguments))

    def session(self) -> SmtpClient:
        """
        Begin an SMTP session that the example sees.
        """
        return self.connect("example")


def letter(**fields: str) -> EmailMessage:
    """
    Begin a letter that nobody need complete.
    """
    mail = EmailMessage(policy=policy.SMTP)
    mail["From"] = "Sender <sender@client.example>"
    mail["To"] = "rcpt@sink.example"
    mail["Subject"] = "A test"
    mail["Date"] = "Thu, 02 Jan 2025 03:04:05 +0000"
    mail["Message-Id"] = "<1@client.example>"
    for name, value in fields.items():
        mail[name] = value
    return mail


def read(delivery: Delivery) -> EmailMessage:
    """
    Read a delivered message.
    """
    return message_from_bytes(delivery.data, policy=policy.default)  # type: ignore[return-value]


def rich(charset: str = "utf-8") -> EmailMessage:
    """
    Write a letter of text and HTML, both in base64, with an attachment.
    """
    mail = letter()
    mail.set_content("Grüße aus der Werkstatt.\n", charset=charset, cte="base64")
    page = "<html><body><p>Grüße aus der Werkstatt.</p></body></html>\n"
    mail.add_alternative(page, subtype="html", charset=charset, cte="base64")
    mail.add_attachment(bytes(range(256)), "application", "octet-stream", filename="octets")
    return mail


class DeployedExampleTests(_PostfixCase):
    """
    Examples that look at messages.
    """

    def test_both_texts_of_alternative_have_it_in_base64_as_they_came(self) -> None:
        """
        Both texts of an alternative have it, in base64 as they came; the attachment is untouched.
        """
        self.run_example("disclaimer.py", TEXT)
        got = read(self.deliver(bytes(rich()), door="example"))
        plain, page = got.get_body(("plain",)), got.get_body(("html",))
        assert plain is not None and page is not None
        self.assertEqual(plain["Content-Transfer-Encoding"], "base64")
        ours = "Grüße aus der Werkstatt."
        self.assertEqual(plain.get_content(), f"{ours}\r\n\r\n-- \r\n{TEXT}\r\n")
        expected = f"<html><body><p>{ours}</p><hr><p>{HTML}</p>\r\n</body></html>\r\n"
        self.assertEqual(page.get_content(), expected)
        [attachment] = got.iter_attachments()
        self.assertEqual(attachment.get_content(), bytes(range(256)))

    def test_signed_mail_is_delivered_to_octet_as_it_was_sent(self) -> None:
        """
        Signed mail is delivered to the octet as it was sent.
        """
        self.run_example("disclaimer.py", TEXT)
        signed = letter()
        signed.make_mixed()
        signed.set_type("multipart/signed")
        signed.set_param("protocol", "application/pgp-signature")
        for content, subtype in (("Hello. \n", "plain"), ("-- a signature --\n", "x-signature")):
            part = EmailMessage(policy=policy.SMTP)
            part.set_content(content, subtype=subtype)
            signed.attach(part)
        delivery = self.deliver(bytes(signed), door="example")
        self.assertEqual(delivery.without_trace(), bytes(signed))

    def test_what_manual_says_to_run_archive_disclaimer_and_signature(self) -> None:
        """
        What the manual says to run: archive, disclaimer and signature, which holds for all of it.
        """
        block = SERVED.replace("9900@localhost", f"{self.mta.addresses.example_port}@127.0.0.1")
        block = block.replace(" --check-config", "").replace("python -m", "exec python -m")
        path = Path(sys.executable).parent
        self.run_command("bash", "-euc", f'PATH="{path}:$PATH"\ncd "{self.folder}"\n{block}')
        mail = rich()
        mail.replace_header("From", "a@example.com")
        delivery = self.deliver(bytes(mail), "<a@example.com>", door="example")
        recipients = {each.address for each in delivery.recipients}
        self.assertEqual(recipients, {"<rcpt@sink.example>", "<archive@example.net>"})
        for kind in ("plain", "html"):
            part = read(delivery).get_body((kind,))
            assert part is not None
            self.assertIn("Example Ltd., registered in Exampleton.", part.get_content())
        data, record = delivery.without_trace(), public_record(self.folder / "june.pem")
        self.assertTrue(dkim.verify(data, dnsfunc=lambda name, timeout=5: record), data)
        self.assertNotIn(b"archive", delivery.data)

    def test_mail_from_outside_has_the_results_on_top(self) -> None:
        """
        Mail from outside has the results on top; a forged field of ours is gone, from inside, too.
        """
        path, record = make_key(self.folder)
        (self.folder / "record").write_bytes(record)
        port = self.folder / "port"
        command = [sys.executable, "-c", DNS, self.folder / "record", port]
        server = start(command, self.folder / "dns.log", {"PYTHONPATH": str(ROOT)})
        self.addCleanup(stop, server)
        wait_until(lambda: port.exists() and port.read_text(), "the DNS server")
        name = "mx.example.com"
        self.run_example("authentication_results.py", name, "127.0.0.1", port.read_text())

        mail = letter()
        mail.replace_header("From", "a@good-mail.example")
        mail.set_content("Hello.\n")
        signature = dkim.sign(bytes(mail), b"sel", b"good-mail.example", path.read_bytes())
        forged = f"Authentication-Results: {name}; dmarc=pass\r\n".encode()
        client = self.session()
        client.come_from("mail.good-mail.example", "192.0.2.25")
        reply = client.message(forged + signature + bytes(mail), "<a@good-mail.example>")
        client.quit()
        self.assertEqual(reply.code, 250, reply)
        [delivery] = self.sink.wait()
        self.assertEqual(delivery.names()[0], "Authentication-Results")
        [results] = delivery.values("Authentication-Results")
        self.assertEqual(
            b" ".join(results.split()).decode(),
            f"{name}; spf=pass smtp.mailfrom=good-mail.example; "
            "dkim=pass header.d=good-mail.example; dmarc=pass header.from=good-mail.example",
        )
        self.sink.clear()
        delivery = self.deliver(forged + bytes(mail), door="example")
        self.assertEqual(delivery.without_trace(), bytes(mail))


class RecipientExampleTests(_PostfixCase):
    """
    Examples that look at recipients.
    """

    def test_unknown_recipients_of_our_domains_are_refused(self) -> None:
        """
        Unknown recipients of our domains are refused, and mail for the others is delivered.
        """
        path = self.folder / "recipients.sqlite"
        self.run_example("recipient_database.py", path)
        with contextlib.closing(sqlite3.connect(path)) as database, database:
            database.execute("INSERT INTO domains VALUES ('sink.example')")
            database.execute("INSERT INTO mailboxes VALUES ('rcpt@sink.example')")
        client = self.session()
        client.command("MAIL FROM:<sender@client.example>")
        reply = client.command("RCPT TO:<nobody@sink.example>")
        self.assertReply(reply, 550, "5.1.1 no such user here")
        for known in ("Rcpt+lists@sink.example", "anybody@other.example"):
            self.assertEqual(client.command(f"RCPT TO:<{known}>").code, 250)
        self.assertEqual(client.command("DATA").code, 354)
        self.assertEqual(client.content(bytes(rich())).code, 250)
        [delivery] = self.sink.wait()
        self.assertEqual(
            {each.address for each in delivery.recipients},
            {"<Rcpt+lists@sink.example>", "<anybody@other.example>"},
        )

    def test_above_limit_recipients_are_put_off(self) -> None:
        """
        Above the limit recipients are put off, in another session from that network, too.
        """
        self.run_example("rate_limit.py", 1, 2)
        for first, replies in (("a", (250, 250, 451)), ("b", (451,)), ("c", (250,))):
            client = self.session()
            if first == "c":
                client.come_from("client.example", "192.0.2.25")
            client.command(f"MAIL FROM:<{first}@client.example>")
            for number, code in enumerate(replies):
                reply = client.command(f"RCPT TO:<rcpt{number}@sink.example>")
                self.assertEqual(reply.code, code, reply)
                if code == 451:
                    self.assertRegex(reply.lines[0], r"^4\.7\.1 too much mail, try again in \d+ s")
            client.quit()


class ClamavTests(_PostfixCase):
    """
    The example with a real clamd, whose database knows one virus.
    """

    def setUp(self) -> None:
        """
        Start both.
        """
        clamd = require_program("clamd")
        super().setUp()
        (self.folder / "database").mkdir()
        (self.folder / "database" / "example.ndb").write_text(DATABASE)
        configuration = self.folder / "clamd.conf"
        configuration.write_text(CLAMD.format(folder=self.folder))
        output = self.folder / "clamd.log"
        self.clamd = start([clamd, "-c", configuration], output)
        self.addCleanup(stop, self.clamd)
        socket = self.folder / "clamd"
        ready = lambda: socket.exists() or self.clamd.poll() is not None  # noqa: E731
        wait_until(ready, "clamd")
        self.assertIsNone(self.clamd.poll(), output.read_text())
        self.run_example("clamav.py", f"unix:{socket}")

    def test_virus_is_refused_by_its_name_in_base64_within_attachment_too(self) -> None:
        """
        A virus is refused by its name, in base64 within an attachment, too; other mail passes.
        """
        infected = rich()
        infected.add_attachment(b"Look: " + VIRUS, "application", "octet-stream", filename="it")
        self.assertNotIn(VIRUS, bytes(infected))
        plain = letter()
        plain.set_content(VIRUS.decode())
        for mail in (plain, infected):
            reply = self.send(bytes(mail), door="example")
            text = "5.7.1 refused: it contains Example.Virus-1.UNOFFICIAL"
            self.assertReply(reply, 550, text)
        self.assertNothingDelivered()
        harmless = bytes(rich())
        delivery = self.deliver(harmless, door="example")
        self.assertEqual(delivery.without_trace(), harmless)

    def test_what_clamd_does_not_take_and_mail_that_comes_while_it_is_away(self) -> None:
        """
        What clamd does not take, and mail that comes while it is away, is put off.
        """
        large = bytes(rich()) + (b"x" * 78 + b"\r\n") * 30_000
        text = "4.7.1 cannot scan for viruses now, try again later"
        self.assertReply(self.send(large, door="example"), 451, text)
        stop(self.clamd)
        self.assertReply(self.send(bytes(rich()), door="example"), 451, text)
        self.assertNothingDelivered()


class SideBySideTests(_PostfixCase):
    """
    One milter, three times: Postfix makes the same of all.
    """

    def results(self, *command: str | Path) -> Iterator[object]:
        """
        Run one, and send it the messages: what the client is told, and what is delivered.
        """
        process = self.run_command(*command)
        for sender, recipients, body in MESSAGES:
            self.sink.clear()
            client = self.session()
            replies = [client.command(f"MAIL FROM:{sender}")]
            replies += [client.command(f"RCPT TO:{recipient}") for recipient in recipients]
            replies.append(client.command("DATA"))
            if replies[-1].code == 354:
                replies.append(client.content(MESSAGE + body))
                [delivery] = self.sink.wait()
                yield delivery.values("X-Octets"), delivery.body == body, delivery.recipients
            client.quit()
            yield [re.sub("queued as .*", "queued", str(reply)) for reply in replies]
        # libmilter would take its time over a TERM.
        process.kill()
        process.wait()

    def test_what_postfix_tells_its_clients_and_delivers_is_same_with_each(self) -> None:
        """
        What Postfix tells its clients, and delivers, is the same with each, and right.
        """
        others = pymilter(), libmilter(self.folder)
        port = self.mta.addresses.example_port
        ours = list(self.results(*yatxmilter(), f"tcp:{port}:interface=127.0.0.1"))
        told = [line for each in ours if isinstance(each, list) for line in each]
        self.assertEqual(told.count("550 5.7.1 not from you"), 1)
        self.assertEqual(told.count("550 5.1.1 nobody lives here"), 2)
        octets = [each[0] for each in ours if isinstance(each, tuple)]
        self.assertEqual(octets, [[b"11"], [b"0"], [b"200000"]])
        for command in others:
            self.assertEqual(list(self.results(*command, f"inet:{port}@127.0.0.1")), ours)
