"""
``examples/disclaimer.py``: text gets it, what is sealed does not.
"""

from __future__ import annotations

import base64
from email.message import EmailMessage

from twisted.internet.address import IPv4Address
from twisted.trial.unittest import SynchronousTestCase

from examples.disclaimer import DisclaimerFactory
from yatxmilter.testing import MilterTestMixin, Sent

INSIDE = IPv4Address("TCP", "127.0.0.1", 4025)
TEXT = "Für den Empfänger & niemanden sonst."
HTML = "Für den Empfänger &amp; niemanden sonst."
HEADER = b"From: <a@example.com>\r\nSubject: hello\r\nMIME-Version: 1.0\r\n"


class DisclaimerTests(MilterTestMixin, SynchronousTestCase):
    """
    Mail from this host.
    """

    def sent(self, message: EmailMessage | bytes, text: str = TEXT) -> Sent:
        mta = self.milter_mta(DisclaimerFactory(text))
        with mta.session(address=INSIDE) as session:
            return mta.send(message, session=session)

    def part(self, sent: Sent, kind: str) -> str:
        part = sent.delivered.message.get_body((kind,))
        assert isinstance(part, EmailMessage)
        return str(part.get_content()).replace("\r\n", "\n")

    def test_plain_text_has_it_below_signatures_mark(self) -> None:
        """
        Plain text has it below a signature's mark, in a charset that can say it.
        """
        for charset, after in (("us-ascii", "utf-8"), ("iso-8859-1", "iso-8859-1")):
            kind = f"Content-Type: text/plain; charset={charset}; format=flowed\r\n\r\nHello.\r\n"
            sent = self.sent(HEADER + kind.encode())
            self.assertEqual(self.part(sent, "plain"), f"Hello.\n\n-- \n{TEXT}\n")
            self.assertEqual(sent.delivered.message.get_content_charset(), after)
            self.assertEqual(sent.delivered.message.get_param("format"), "flowed")

    def test_text_and_html_have_it_each_in_its_own_way_html_inside_its_body(self) -> None:
        """
        Text and HTML have it each in its own way, HTML inside its body; attachments do not.
        """
        mail = EmailMessage()
        mail["From"] = "a@example.com"
        mail.set_content("Hello.\n")
        mail.add_alternative("<html><body><p>Hello.</p></BODY></html>\n", subtype="html")
        mail.add_attachment("Of another.\n", filename="note.txt")
        sent = self.sent(mail)
        self.assertEqual(self.part(sent, "plain"), f"Hello.\n\n-- \n{TEXT}\n")
        expected = f"<html><body><p>Hello.</p><hr><p>{HTML}</p>\n</BODY></html>\n"
        self.assertEqual(self.part(sent, "html"), expected)
        (attachment,) = sent.delivered.message.iter_attachments()
        self.assertEqual(attachment.get_content(), "Of another.\r\n")

    def test_part_keeps_its_transfer_encoding(self) -> None:
        """
        A part keeps its transfer encoding; 7-bit text that needs another one stays 7-bit so.
        """
        for before, hello, after in (
            ("base64", "SGVsbG8uCg==", "base64"),
            ("Quoted-Printable", "Hello=2E", "quoted-printable"),
            ("8bit", "Hello.", "8bit"),
            ("7bit", "Hello.", "quoted-printable"),
        ):
            kind = "Content-Type: text/plain; charset=utf-8\r\n"
            encoding = f"Content-Transfer-Encoding: {before}\r\n\r\n{hello}\r\n"
            sent = self.sent(HEADER + (kind + encoding).encode())
            self.assertEqual(self.part(sent, "plain"), f"Hello.\n\n-- \n{TEXT}\n")
            self.assertEqual(sent.delivered.values("Content-Transfer-Encoding"), [after])
        sent = self.sent(HEADER + b"\r\nHello.\r\n", "plain words")
        self.assertTrue(sent.delivered.data.isascii())

    def test_html_in_pieces(self) -> None:
        """
        HTML without an end has it at its end, and keeps what names it to other parts.
        """
        kind = b"Content-Type: text/html\r\nContent-ID: <1@example.com>\r\n\r\n<p>Hello.\r\n"
        sent = self.sent(HEADER + kind)
        self.assertEqual(self.part(sent, "html"), f"<p>Hello.\n<hr><p>{HTML}</p>\n")
        self.assertEqual(sent.delivered.values("Content-ID"), ["<1@example.com>"])

    def test_what_is_signed_or_encrypted_is_delivered_to_octet_as_it_was_sent(self) -> None:
        """
        What is signed or encrypted is delivered to the octet as it was sent.
        """
        parts = b"; boundary=b\r\n\r\n--b\r\n\r\nHello.\r\n--b--\r\n"
        sealed = [
            b"Content-Type: multipart/signed" + parts,
            b"Content-Type: multipart/encrypted" + parts,
            b"Content-Type: application/pkcs7-mime; smime-type=signed-data\r\n\r\nMIAG\r\n",
            b"DKIM-Signature: v=1; b=abc\r\n\r\nHello.\r\n",
            b"\r\n-----BEGIN PGP SIGNED MESSAGE-----\r\n\r\nHello.\r\n",
            b"Content-Transfer-Encoding: base64\r\n\r\n"
            + base64.b64encode(b"-----BEGIN PGP MESSAGE-----\n\nwcBM\n")
            + b"\r\n",
            b"Content-Type: multipart/mixed; boundary=c\r\n\r\n--c\r\n\r\nHello.\r\n--c\r\n"
            b"Content-Type: multipart/signed" + parts + b"--c--\r\n",
        ]
        for rest in sealed:
            sent = self.sent(HEADER + rest)
            self.assertEqual((sent.edits, sent.delivered.data), ((), HEADER + rest))

    def test_text_that_is_not_what_its_charset_says_or_in_one_that_nobody_knows(self) -> None:
        """
        Text that is not what its charset says, or in one that nobody knows, is left alone; so is
        what is encoded in an unknown way.
        """
        head = HEADER + b"Content-Transfer-Encoding: quoted\r\n\r\nHello=2E\r\n"
        self.assertEqual(self.sent(head).edits, ())
        for kind in (b"us-ascii", b"no-such"):
            head = HEADER + b"Content-Type: text/plain; charset=" + kind
            self.assertEqual(self.sent(head + b"\r\n\r\n\xff\r\n").edits, ())

    def test_text_that_has_it_already_does_not_get_it_again(self) -> None:
        """
        Text that has it already does not get it again; a message without text gets none.
        """
        sent = self.sent(HEADER + b"\r\n> plain words\r\n", "plain words")
        self.assertEqual(sent.edits, ())
        image = b"Content-Type: image/png\r\nContent-Transfer-Encoding: base64\r\n\r\nAAAA\r\n"
        self.assertEqual(self.sent(HEADER + image).edits, ())

    def test_mail_from_outside_passes(self) -> None:
        """
        Mail from outside passes; that of a user who has logged in gets it from anywhere.
        """
        message = HEADER + b"\r\nHello.\r\n"
        self.assertEqual(self.milter_mta(DisclaimerFactory(TEXT)).send(message).edits, ())
        user = {"{auth_authen}": "user"}
        sent = self.milter_mta(DisclaimerFactory(TEXT), macros=user).send(message)
        self.assertIn(TEXT, self.part(sent, "plain"))
