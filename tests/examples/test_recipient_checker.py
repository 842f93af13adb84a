"""
``examples/recipient_checker.py``: recipients whose domain takes no mail; DNS is the test's.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.names import dns
from twisted.names.error import DNSNameError, DNSServerError
from twisted.trial.unittest import SynchronousTestCase

from examples.recipient_checker import RecipientCheckerFactory
from yatxmilter.constants import SMFIS_CONTINUE, SMFIS_TEMPFAIL
from yatxmilter.testing import MilterTestMixin


class Resolver:
    """
    A resolver whose answers the test gives, when it likes.
    """

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.answers: list[Deferred[Any]] = []

    def lookupMailExchange(self, name: bytes, timeout: object = None) -> Deferred[Any]:
        """
        Take a question.
        """
        self.asked.append(name)
        self.answers.append(Deferred())
        return self.answers[-1]


class RecipientCheckerTests(MilterTestMixin, SynchronousTestCase):
    """
    Answers of DNS, and what becomes of the recipient.
    """

    def setUp(self) -> None:
        """
        Begin a message.
        """
        self.resolver = Resolver()
        self.mta = self.milter_mta(RecipientCheckerFactory(self.resolver))
        self.session = self.mta.session()
        self.addCleanup(self.session.quit)
        self.session.mail("<sender@client.example>")

    def reply(self, answer: object) -> str:
        """
        Tell what the client is told about a recipient when DNS says this.
        """
        step = self.session.rcpt("<a@mail.example>")
        self.assertFalse(step.done)
        if isinstance(answer, Exception):
            self.resolver.answers[-1].errback(answer)
        else:
            self.resolver.answers[-1].callback(answer)
        return str(step.reply)

    def exchanger(self, name: bytes) -> object:
        """
        Make the answer with one mail exchanger.
        """
        return [dns.RRHeader(b"mail.example", dns.MX, payload=dns.Record_MX(10, name))], [], []

    def test_domain_with_mail_exchanger_passes(self) -> None:
        """
        A domain with a mail exchanger passes, and so does one that is there without any.
        """
        for answer in (self.exchanger(b"mx.mail.example"), ([], [], [])):
            self.assertEqual(self.reply(answer), "250 2.1.5 Ok")
        self.assertEqual(self.resolver.asked, [b"mail.example"] * 2)

    def test_domain_that_takes_no_mail_is_refused_for_good(self) -> None:
        """
        A domain that is not there, or takes no mail (RFC 7505), is refused for good.
        """
        text = "550 5.1.2 the recipient's domain does not exist"
        self.assertEqual(self.reply(DNSNameError()), text)
        text = "556 5.1.10 the recipient's domain takes no mail"
        self.assertEqual(self.reply(self.exchanger(b"")), text)

    def test_when_dns_gives_no_answer_sender_is_asked_to_try_again(self) -> None:
        """
        When DNS gives no answer, the sender is asked to try again.
        """
        text = "451 4.4.3 cannot look up the recipient's domain now"
        self.assertEqual(self.reply(DNSServerError()), text)

    def test_what_is_no_dns_error_is_bug_which_shows_in_log(self) -> None:
        """
        What is no DNS error is a bug, which shows in the log.
        """
        with self.expect_milter_errors(self.mta, "ZeroDivisionError"):
            step = self.session.rcpt("<a@mail.example>")
            self.resolver.answers[-1].errback(ZeroDivisionError())
            self.assertEqual(step.verdict, SMFIS_TEMPFAIL)

    def test_what_has_no_domain_is_not_looked_up_what_cannot_be_one_is_refused(self) -> None:
        """
        What has no domain is not looked up; what cannot be one is refused.
        """
        for address in ("<postmaster>", "<a@[192.0.2.1]>"):
            self.assertEqual(self.session.rcpt(address).verdict, SMFIS_CONTINUE)
        reply = self.session.rcpt("<a@double..dot>").reply
        self.assertEqual(str(reply), "550 5.1.3 that is not a domain")
        self.assertEqual(self.resolver.asked, [])

    def test_when_mta_hangs_up_look_up_is_cancelled(self) -> None:
        """
        When the MTA hangs up, the look-up is cancelled.
        """
        self.session.rcpt("<a@mail.example>")
        self.assertFalse(self.resolver.answers[0].called)
        self.session.vanish()
        self.assertTrue(self.resolver.answers[0].called)
