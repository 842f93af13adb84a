"""
``examples/three_milters.py``: three milters on one connection.
"""

from __future__ import annotations

from twisted.internet.address import IPv4Address
from twisted.trial.unittest import SynchronousTestCase

from examples.three_milters import AttachmentCheck, HeloCheck, Tally
from yatxmilter.constants import SMFIS_REJECT
from yatxmilter.testing import InMemoryMTA, MilterTestMixin

INSIDE = IPv4Address("TCP", "127.0.0.1", 40025)
MESSAGE = b"""\
From: Sender <sender@client.example>
To: Reader <reader@example.com>
Subject: hello

A short letter.
"""
ATTACHED = b"""\
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


class ThreeMiltersTests(MilterTestMixin, SynchronousTestCase):
    """
    The milters, put together as the example does.
    """

    def make(self, flavour: str = "postfix") -> InMemoryMTA:
        """
        Make an MTA with the three.
        """
        milters = [HeloCheck, AttachmentCheck, Tally]
        return self.milter_mta(milters, merge="chain", flavour=flavour)

    def test_first_refuses_our_name(self) -> None:
        """
        A stranger with our name is turned away; our own host may use it.
        """
        mta = self.make()
        with mta.session(helo="MAIL.example.com") as session:
            reply = session.mail("<sender@client.example>").reply
            self.assertEqual(str(reply), "550 5.7.1 you are not MAIL.example.com")
        with mta.session(address=INSIDE, helo="mail.example.com") as session:
            self.assertTrue(mta.send(MESSAGE, session=session).accepted)

    def test_second_refuses_programs(self) -> None:
        """
        A program as an attachment is refused at the end of the message, by either MTA.
        """
        for flavour in ("postfix", "sendmail"):
            mta = self.make(flavour)
            sent = mta.send(ATTACHED)
            self.assertEqual((sent.verdict, sent.stage), (SMFIS_REJECT, "eom"))
            self.assertEqual(str(sent.reply), "550 5.7.1 no programs by mail, please")
            self.assertTrue(mta.send(ATTACHED.replace(b".EXE", b".png")).accepted)

    def test_third_counts_each_message_by_itself(self) -> None:
        """
        The third counts each message by itself.
        """
        mta = self.make()
        for message, octets in ((MESSAGE, 17), (MESSAGE + b"More.\n", 24)):
            delivered = mta.send(message).delivered
            self.assertEqual(delivered.values("X-Tally"), [f"3 header fields, {octets} octets"])
