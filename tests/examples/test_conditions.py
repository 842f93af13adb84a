"""
``examples/conditions.py``: milters for some of the mail.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from examples.conditions import build_milters
from yatxmilter.testing import InMemoryMTA, MilterTestMixin

MESSAGE = b"From: <sender@client.example>\nSubject: hello\n\nA short letter.\n"
STAFF = "<staff@example.com>"


class ConditionsTests(MilterTestMixin, SynchronousTestCase):
    """
    Users, strangers, and what is on trial.
    """

    def make(self, flavour: str = "postfix") -> InMemoryMTA:
        """
        Make an MTA with the example's milters.
        """
        return self.milter_mta(build_milters(), merge="strictest", flavour=flavour)

    def test_mail_of_user_who_has_logged_in_over_tls_gets_note(self) -> None:
        """
        Mail of a user who has logged in over TLS gets the note, and may go to the staff.
        """
        for flavour in ("postfix", "sendmail"):
            mta = self.make(flavour)
            macros = {"{tls_version}": "TLSv1.3", "{auth_type}": "PLAIN"}
            with mta.session(macros=macros) as session:
                sent = mta.send(MESSAGE, recipients=[STAFF], session=session)
            self.assertEqual(sent.delivered.values("X-Sent-By"), ["a user of example.com"])

    def test_stranger_may_not_write_to_staff_nor_use_our_name(self) -> None:
        """
        A stranger may not write to the staff, nor use our name; otherwise mail passes as it is.
        """
        mta = self.make()
        sent = mta.send(MESSAGE, recipients=[STAFF])
        self.assertEqual(str(sent.refused[STAFF]), "550 5.7.1 for our users only")
        self.assertEqual(mta.send(MESSAGE).edits, ())
        with mta.session(helo="mail.example.com") as session:
            sent = mta.send(MESSAGE, session=session)
        self.assertEqual(str(sent.reply), "550 5.7.1 for our users only")

    def test_subject_in_capital_letters_passes_for_now(self) -> None:
        """
        A subject in capital letters passes, for now.
        """
        self.assertTrue(self.make().send(MESSAGE.replace(b"hello", b"HELLO")).accepted)
