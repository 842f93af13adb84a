"""
``examples/header_tagger.py``: marks on mail from outside.
"""

from __future__ import annotations

from twisted.internet.address import IPv4Address
from twisted.trial.unittest import SynchronousTestCase

from examples.header_tagger import HeaderTagger
from yatxmilter.constants import (
    SMFIF_ADDHDRS,
    SMFIF_CHGHDRS,
    SMFIP_NOBODY,
    SMFIP_NORCPT,
    SMFIS_ACCEPT,
)
from yatxmilter.testing import MilterTestMixin

INSIDE = IPv4Address("TCP", "127.0.0.1", 40025)
MESSAGE = b"""\
From: Sender <sender@client.example>
To: Reader <reader@example.com>
Subject: hello

A short letter.
"""
FLAVOURS = ("postfix", "sendmail")


class HeaderTaggerTests(MilterTestMixin, SynchronousTestCase):
    """
    What is marked, and what is not.
    """

    def test_deletes_forged_marks(self) -> None:
        """
        Marks that a message brings along are deleted, all of them and in any spelling.
        """
        forged = b"X-External: no\nx-external: never\nX-EXTERNAL: not me\n" + MESSAGE
        for flavour in FLAVOURS:
            delivered = self.milter_mta(HeaderTagger, flavour=flavour).send(forged).delivered
            self.assertEqual(delivered.values("X-External"), ["yes; client=192.0.2.25"])
            self.assertEqual(delivered.values("Subject"), ["[EXT] hello"])

    def test_marks_each_message_once(self) -> None:
        """
        The second message on a connection is judged by itself; a subject keeps the mark it has.
        """
        mta = self.milter_mta(HeaderTagger)
        mta.send(b"X-External: no\n" + MESSAGE)
        delivered = mta.send(MESSAGE.replace(b"hello", b"Re: [EXT] hello")).delivered
        self.assertEqual(delivered.values("Subject"), ["Re: [EXT] hello"])
        delivered = mta.send(b"From: <sender@client.example>\n\nNo subject.\n").delivered
        self.assertEqual(delivered.values("Subject"), ["[EXT]"])
        self.assertEqual(len(mta.milters), 1)

    def test_leaves_insiders_alone(self) -> None:
        """
        This host, and those who logged in, are not marked.
        """
        mta = self.milter_mta(HeaderTagger)
        with mta.session(address=INSIDE) as session:
            self.assertEqual(session.greeting.verdict, SMFIS_ACCEPT)
            self.assertEqual(mta.send(MESSAGE, session=session).edits, ())
        with mta.session(macros={"{auth_authen}": "reader"}) as session:
            self.assertEqual(session.mail("<reader@example.com>").verdict, SMFIS_ACCEPT)

    def test_asks_for_what_it_needs(self) -> None:
        """
        It negotiates the two actions it uses, and neither recipients nor body.
        """
        with self.milter_mta(HeaderTagger).session() as session:
            agreement = session.agreement
        self.assertEqual(agreement.actions, SMFIF_ADDHDRS | SMFIF_CHGHDRS)
        for step in (SMFIP_NORCPT, SMFIP_NOBODY):
            self.assertTrue(agreement.steps & step)
