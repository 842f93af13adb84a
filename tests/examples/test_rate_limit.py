"""
``examples/rate_limit.py``: token buckets, on a clock that the test sets.
"""

from __future__ import annotations

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from examples.rate_limit import Buckets, RateLimitFactory
from yatxmilter.constants import SMFIS_ACCEPT
from yatxmilter.testing import InMemoryMTA, MilterTestMixin

PASSED = 250


class RateLimitTests(MilterTestMixin, SynchronousTestCase):
    """
    Three recipients at once, and one more every ten seconds.
    """

    def make(self, most: int = 100) -> InMemoryMTA:
        clock = Clock()
        self.buckets = Buckets(clock, 0.1, 3, most)
        return self.milter_mta(RateLimitFactory(self.buckets), clock=clock)

    def codes(
        self,
        mta: InMemoryMTA,
        count: int,
        address: object = None,
        sender: str = "<a@client.example>",
        user: str = "",
    ) -> list[int]:
        """
        Tell what a client is told about so many recipients.
        """
        address = address or IPv4Address("TCP", "192.0.2.25", 4025)
        macros = {"{auth_authen}": user} if user else {}
        with mta.session(address=address, macros=macros) as session:  # type: ignore[arg-type]
            session.mail(sender)
            return [session.rcpt(f"<r{number}@example.com>").reply.code for number in range(count)]

    def test_what_is_above_limit_is_put_off_with_time_to_wait(self) -> None:
        """
        What is above the limit is put off, with the time to wait; after that time one passes.
        """
        mta = self.make()
        self.assertEqual(self.codes(mta, 4), [PASSED] * 3 + [451])
        with mta.session() as session:
            session.mail("<a@client.example>")
            reply = session.rcpt("<x@example.com>").reply
        self.assertEqual(str(reply), "451 4.7.1 too much mail, try again in 11 seconds")
        mta.advance(10)
        self.assertEqual(self.codes(mta, 2), [PASSED, 451])

    def test_who_was_silent_for_long_has_no_more_than_full_bucket(self) -> None:
        """
        Who was silent for long has no more than a full bucket.
        """
        mta = self.make()
        self.codes(mta, 1)
        mta.advance(100_000)
        self.assertEqual(self.codes(mta, 4), [PASSED] * 3 + [451])

    def test_network_shares_bucket_in_ipv4_ipv6_and_ipv4_written_as_ipv6(self) -> None:
        """
        A network shares a bucket, in IPv4, IPv6 and IPv4 written as IPv6; others have their own.
        """
        mta = self.make()
        groups = [
            ("198.51.100.1", "198.51.100.200", "::ffff:198.51.100.3"),
            ("2001:db8::1", "2001:db8::2:1", "2001:db8::ffff"),
        ]
        for number, (one, two, three) in enumerate(groups):
            for turn, host in enumerate((one, two, three, one)):
                kind = IPv6Address if ":" in host else IPv4Address
                sender = f"<{number}{turn}@client.example>"
                codes = self.codes(mta, 1, kind("TCP", host, 25), sender)
                self.assertEqual(codes, [PASSED if turn < 3 else 451], host)

    def test_sender_shares_bucket_in_all_networks(self) -> None:
        """
        A sender shares a bucket in all networks; bounces do not.
        """
        mta = self.make()
        for sender, last in (("<a@client.example>", 451), ("<>", PASSED)):
            codes = []
            for net in range(4):
                address = IPv4Address("TCP", f"203.0.{net + len(sender)}.1", 25)
                codes += self.codes(mta, 1, address, sender)
            self.assertEqual(codes, [PASSED] * 3 + [last])

    def test_who_has_logged_in_has_bucket_of_their_own(self) -> None:
        """
        Who has logged in has a bucket of their own, wherever they are.
        """
        mta = self.make()
        self.assertEqual(self.codes(mta, 4), [PASSED] * 3 + [451])
        self.assertEqual(self.codes(mta, 4, user="one"), [PASSED] * 3 + [451])
        self.assertEqual(self.codes(mta, 1, user="two"), [PASSED])

    def test_client_without_address_is_not_limited(self) -> None:
        """
        A client without an address is not limited.
        """
        mta = self.make()
        with mta.session(address=UNIXAddress("/run/submission")) as session:
            self.assertEqual(session.greeting.verdict, SMFIS_ACCEPT)

    def test_of_buckets_least_recently_used_go_when_there_are_too_many(self) -> None:
        """
        Of the buckets the least recently used go when there are too many.
        """
        mta = self.make(most=2)
        for number in range(5):
            self.codes(mta, 1, sender=f"<{number}@client.example>")
        self.assertEqual(list(self.buckets.levels)[1:], [("sender", "<2@client.example>")])
        self.assertEqual(len(self.buckets.levels), 2)
