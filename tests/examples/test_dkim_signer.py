"""
``examples/dkim_signer.py``: what it signs, dkimpy verifies.

In memory, where signing need not be in a thread, and once as a program, where it is.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import dkim
from twisted.internet.address import IPv4Address
from twisted.internet.defer import maybeDeferred
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from examples.dkim_signer import DkimSignerFactory
from tests.programs import ROOT, ProgramTestCase
from yatxmilter.client import apply_edits
from yatxmilter.testing import MilterTestMixin

INSIDE = IPv4Address("TCP", "127.0.0.1", 4025)
MESSAGE = (
    b"From: A <a@Example.com>\r\nTo: b@client.example\r\nSubject: a fold\r\n\tand \xe4\r\n"
    b"\r\nHello, \xff.\r\n\r\n"
)


def make_key(folder: Path) -> tuple[Path, bytes]:
    """
    Make a key, and the DNS record of its public half.
    """
    path = folder / "key.pem"
    subprocess.run(
        ["openssl", "genrsa", "-traditional", "-out", path, "2048"], check=True, capture_output=True
    )
    return path, public_record(path)


def public_record(path: Path) -> bytes:
    """
    Make the DNS record of a key's public half.
    """
    command = ["openssl", "rsa", "-in", path, "-pubout"]
    public = subprocess.run(command, check=True, capture_output=True).stdout
    return b"v=DKIM1; k=rsa; p=" + b"".join(public.splitlines()[1:-1])


class SigningTests(MilterTestMixin, SynchronousTestCase):
    """
    A key for example.com.
    """

    def setUp(self) -> None:
        """
        Make the key.
        """
        folder = Path(self.mktemp())
        folder.mkdir()
        path, self.record = make_key(folder)
        self.factory = DkimSignerFactory("example.com", "sel", path.read_bytes(), maybeDeferred)

    def verifies(self, message: bytes) -> bool:
        """
        Tell whether a message's signature holds; the public key is only at its own name.
        """
        records = {b"sel._domainkey.example.com.": self.record}
        return bool(dkim.verify(message, dnsfunc=lambda name, timeout=5: records.get(name)))

    def test_signature_on_top_holds_for_message_as_delivered_for_either_mta(self) -> None:
        """
        The signature on top holds for the message as delivered, for either MTA, and no other.
        """
        for flavour in ("postfix", "sendmail"):
            mta = self.milter_mta(self.factory, flavour=flavour)
            with mta.session(address=INSIDE) as session:
                sent = mta.send(MESSAGE, session=session)
            data = sent.delivered.data
            self.assertEqual(sent.delivered.fields[0][0], "DKIM-Signature")
            self.assertTrue(self.verifies(data), data)
            self.assertFalse(self.verifies(data.replace(b"Hello", b"Howdy")))
            self.assertFalse(self.verifies(data.replace(b"a fold", b"folds")))

    def test_mail_from_outside_is_not_signed(self) -> None:
        """
        Mail from outside is not signed, except that of users who have logged in.
        """
        self.assertEqual(self.milter_mta(self.factory).send(MESSAGE).edits, ())
        mta = self.milter_mta(self.factory, macros={"{auth_authen}": "user"})
        self.assertTrue(self.verifies(mta.send(MESSAGE).delivered.data))

    def test_mail_of_authors_elsewhere_or_of_none_is_not_signed(self) -> None:
        """
        Mail of authors elsewhere, or of none, is not signed.
        """
        mta = self.milter_mta(self.factory, macros={"{auth_authen}": "user"})
        for author in (b"From: a@example.org", b"From:", b"Sender: a@example.com"):
            self.assertEqual(mta.send(author + b"\r\n\r\nHello.\r\n").edits, (), author)

    def test_several_authors_fields(self) -> None:
        """
        Mail with two From fields is not signed: nobody knows which of them is shown.
        """
        mta = self.milter_mta(self.factory, macros={"{auth_authen}": "user"})
        self.assertEqual(mta.send(b"From: a@example.com\r\n" + MESSAGE).edits, ())

    def test_message_with_line_that_mtas_cut_is_not_signed(self) -> None:
        """
        A message with a line that MTAs cut is not signed, and the log says so.
        """
        told: list[str] = []
        observer = globalLogPublisher
        watch = lambda event: told.append(formatEvent(event))  # noqa: E731
        observer.addObserver(watch)
        self.addCleanup(observer.removeObserver, watch)
        mta = self.milter_mta(self.factory, macros={"{auth_authen}": "user"})
        for long in (MESSAGE + b"x" * 999 + b"\r\n", b"X-Long: " + b"y" * 991 + b"\r\n" + MESSAGE):
            told.clear()
            self.assertEqual(mta.send(long).edits, ())
            self.assertTrue(any("more than 998 octets" in line for line in told), told)
        self.assertTrue(self.verifies(mta.send(MESSAGE + b"x" * 998 + b"\r\n").delivered.data))

    def test_what_is_no_key_is_told_at_once(self) -> None:
        """
        What is no key is told at once.
        """
        with self.assertRaises(dkim.KeyFormatError):
            DkimSignerFactory("example.com", "sel", b"no key")


class ProgramTests(ProgramTestCase):
    """
    The example as it is started.
    """

    async def test_signs_in_its_own_thread(self) -> None:
        """
        It signs in its thread.
        """
        program = self.program()
        path, record = make_key(program.folder)
        example = ROOT / "examples" / "dkim_signer.py"
        program.start(example, program.endpoint, "example.com", "sel", path)
        mta = await program.connect()
        await mta.negotiate()
        await mta.connect("localhost", INSIDE)
        await mta.helo("localhost")
        outcome = await mta.send_message(MESSAGE, "<a@example.com>", ["<b@client.example>"])
        await mta.quit()
        program.stop()
        delivered = apply_edits(MESSAGE, outcome.edits)
        self.assertTrue(dkim.verify(delivered, dnsfunc=lambda name, timeout=5: record))
