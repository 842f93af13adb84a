"""
``examples/message_milter.py``: mail from outside, tagged by a milter written in messages.
"""

from __future__ import annotations

from twisted.internet.address import IPv4Address
from twisted.trial.unittest import SynchronousTestCase

from examples.message_milter import ExternalTagger
from yatxmilter.constants import SMFIS_ACCEPT
from yatxmilter.testing import MilterTestMixin

INSIDE = IPv4Address("TCP", "127.0.0.1", 40025)
MESSAGE = b"""\
From: Sender <sender@client.example>
To: Reader <reader@example.com>
Subject: hello

A short letter.
"""
FLAVOURS = ("postfix", "sendmail")


class ExternalTaggerTests(MilterTestMixin, SynchronousTestCase):
    """
    What is tagged, and what is left whole.
    """

    def test_subject_and_text_are_tagged_and_header_that_is_not_theirs_goes(self) -> None:
        """
        Subject and text are tagged, and a header that is not theirs goes.
        """
        for flavour in FLAVOURS:
            mta = self.milter_mta(ExternalTagger, flavour=flavour)
            delivered = mta.send(b"X-Internal: yes\n" + MESSAGE).delivered
            self.assertEqual(delivered.values("X-Internal"), [])
            self.assertEqual(delivered.values("Subject"), ["[EXT] hello"])
            text = b"This message comes from outside.\r\n\r\nA short letter.\r\n"
            self.assertEqual(delivered.body, text)

    def test_of_multipart_text_gets_banner_text_in_no_known_charset(self) -> None:
        """
        Of a multipart the text gets the banner; text in no known charset, and what is signed, is
        left as it is, but for the subject.
        """
        mta = self.milter_mta(ExternalTagger)
        header = MESSAGE.partition(b"\n\n")[0]
        kind = b"MIME-Version: 1.0\nContent-Type: multipart/%s; boundary=b\n" + header
        parts = b"\n\n--b\n\ntext\n--b\nContent-Type: text/html\n\n<p>\n--b--\n"
        mixed, signed = (kind % name + parts for name in (b"alternative", b"signed"))
        body = mta.send(mixed).delivered.body
        self.assertIn(b"\r\n\r\nThis message comes from outside.\r\n\r\ntext\r\n", body)
        self.assertIn(b"\r\n\r\n<p>\r\n--b--\r\n", body)
        unknown = MESSAGE.replace(b"A short", b"\xff")
        html = b"Content-Type: text/html\n" + MESSAGE
        for message in (signed, unknown, html):
            sent = mta.send(message)
            self.assertEqual(len(sent.edits), 1)
            self.assertEqual(sent.delivered.values("Subject"), ["[EXT] hello"])

    def test_leaves_insiders_alone(self) -> None:
        """
        This host, and those who logged in, are not tagged.
        """
        mta = self.milter_mta(ExternalTagger)
        with mta.session(address=INSIDE) as session:
            self.assertEqual(session.greeting.verdict, SMFIS_ACCEPT)
        with mta.session(macros={"{auth_authen}": "user"}) as session:
            self.assertEqual(session.mail("<user@example.com>").verdict, SMFIS_ACCEPT)
