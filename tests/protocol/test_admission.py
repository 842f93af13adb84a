"""
Tests of `yatxmilter.protocol._admission`: who may connect, and how often.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_network
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from tests.conversation_helpers import Conversation, ConversationTestCase, full
from tests.helpers import table_of
from yatxmilter import MilterProtocolFactory
from yatxmilter.protocol._admission import Admission, Refusals

UNIX = UNIXAddress(b"/run/x")


def v4(host: str) -> IPv4Address:
    return IPv4Address("TCP", host, 1)


def v6(host: str) -> IPv6Address:
    return IPv6Address("TCP", host, 1)


class AllowTests(SynchronousTestCase):
    """
    C{allow=}.
    """

    def assert_allowed(self, allow: Any, yes: list[Any], no: list[Any]) -> None:
        admission = Admission(allow, None, None)
        found = table_of(admission.refusal, [*yes, *no])
        refusal = "its address is not allowed"
        self.assertEqual(found, {**dict.fromkeys(yes), **dict.fromkeys(no, refusal)})

    def test_without_it_anybody_may_connect(self) -> None:
        """
        Without it anybody may connect.
        """
        self.assert_allowed(None, [v4("192.0.2.1"), v6("2001:db8::1"), UNIX, None], [])

    def test_ipv4_network_lets_its_addresses_in_to_the_last(self) -> None:
        """
        An IPv4 network lets its addresses in, to the last, as IPv4 and as IPv4 mapped to IPv6.
        """
        self.assert_allowed(
            ["192.0.2.8/30"],
            [v4("192.0.2.8"), v4("192.0.2.11"), v6("::ffff:192.0.2.9"), v6("::FFFF:192.0.2.9")],
            [v4("192.0.2.7"), v4("192.0.2.12"), v6("::ffff:192.0.2.12"), v6("::192.0.2.9")],
        )

    def test_ipv6_network_lets_its_addresses_in_with_a_scope_or_without(self) -> None:
        """
        An IPv6 network lets its addresses in, with a scope or without.
        """
        self.assert_allowed(
            ["2001:db8::/64", "fe80::/10"],
            [v6("2001:db8::"), v6("2001:db8::ffff:ffff:ffff:ffff"), v6("fe80::1%eth0")],
            [v6("2001:db8:0:1::"), v6("fec0::1%eth0"), v4("192.0.2.1")],
        )

    def test_address_alone_is_a_network_of_one(self) -> None:
        """
        An address alone is a network of one; networks of C{ipaddress} are taken as they are.
        """
        self.assert_allowed(
            ["192.0.2.1", "::1", ip_network("198.51.100.0/24")],
            [v4("192.0.2.1"), v6("::1"), v4("198.51.100.7")],
            [v4("192.0.2.2"), v6("::2")],
        )

    def test_unix_sockets_are_not_concerned(self) -> None:
        """
        UNIX sockets are not concerned; what has no address at all is not let in.
        """
        self.assert_allowed(["127.0.0.1"], [UNIX, UNIXAddress(None)], [None, v4("a name")])

    def test_empty_list_lets_nobody_in_but_by_unix_sockets(self) -> None:
        """
        An empty list lets nobody in but by UNIX sockets.
        """
        self.assert_allowed([], [UNIX], [v4("127.0.0.1"), v6("::1")])

    def test_what_is_no_network_is_refused_by_its_value(self) -> None:
        """
        What is no network is refused by its value; so is a lone string, whose letters are none.
        """
        for error, allow, words in (
            (ValueError, ["192.0.2.1/24"], "allow has '192.0.2.1/24', which is not a network"),
            (ValueError, ["localhost"], "allow has 'localhost', which is not a network"),
            (TypeError, [1], "allow has 1, expected a network as a string"),
            (TypeError, "127.0.0.1", "allow is '127.0.0.1', expected a list of networks"),
            (TypeError, b"127.0.0.1", "allow is b'127.0.0.1', expected a list of networks"),
            (TypeError, 5, "allow is 5, expected a list of networks"),
        ):
            raised = self.assertRaises(error, Admission, allow, None, None)
            self.assertIn(words, str(raised))


class CountTests(SynchronousTestCase):
    """
    C{max_connections=} and C{max_connections_per_peer=}.
    """

    def test_connections_from_wherever_have_a_limit(self) -> None:
        """
        There may be so many connections, from wherever, and one more when one has gone.
        """
        admission = Admission(None, 3, None)
        for address in (v4("192.0.2.1"), v6("::1"), UNIX):
            self.assertEqual(admission.refusal(address), None)
            admission.enter(address)
        refusal = "there are 3 connections already"
        self.assertEqual(
            table_of(admission.refusal, [v4("192.0.2.2"), UNIX]),
            {v4("192.0.2.2"): refusal, UNIX: refusal},
        )
        admission.leave(v6("::1"))
        self.assertEqual(admission.refusal(UNIX), None)

    def test_connections_from_one_address_have_a_limit(self) -> None:
        """
        There may be so many from one address, whatever the port; others are not concerned.
        """
        admission = Admission(None, None, 2)
        for port in (1, 2):
            self.assertEqual(admission.refusal(IPv4Address("TCP", "192.0.2.1", port)), None)
            admission.enter(IPv4Address("TCP", "192.0.2.1", port))
        self.assertEqual(
            admission.refusal(IPv4Address("TCP", "192.0.2.1", 3)),
            "there are 2 connections from there already",
        )
        self.assertEqual(admission.refusal(v4("192.0.2.2")), None)
        admission.leave(v4("192.0.2.1"))
        self.assertEqual(admission.refusal(v4("192.0.2.1")), None)

    def test_ipv4_address_counts_the_same_on_a_socket_for_both_kinds(self) -> None:
        """
        An IPv4 address counts the same on a socket for both kinds.
        """
        admission = Admission(None, None, 1)
        admission.enter(v6("::ffff:192.0.2.1"))
        self.assertNotEqual(admission.refusal(v4("192.0.2.1")), None)
        admission.leave(v4("192.0.2.1"))
        self.assertEqual(admission.refusal(v6("::ffff:192.0.2.1")), None)

    def test_unix_has_no_peer(self) -> None:
        """
        UNIX sockets have no limit by peer.
        """
        admission = Admission(None, None, 1)
        admission.enter(UNIX)
        admission.enter(UNIX)
        self.assertEqual(admission.refusal(UNIX), None)

    def test_of_peers_that_have_gone_nothing_is_kept(self) -> None:
        """
        Of peers that have gone nothing is kept.
        """
        admission = Admission(None, None, 1)
        for number in range(50):
            admission.enter(v4(f"192.0.2.{number}"))
        for number in range(50):
            admission.leave(v4(f"192.0.2.{number}"))
        self.assertEqual(len(admission._by_peer), 0)

    def test_numbers_that_are_no_limit_are_refused_by_their_name(self) -> None:
        """
        Numbers that are no limit are refused by their name.
        """
        for error, value in ((ValueError, 0), (TypeError, 1.5), (TypeError, True)):
            for place, name in ((1, "max_connections"), (2, "max_connections_per_peer")):
                arguments: list[Any] = [None, None, None]
                arguments[place] = value
                raised = self.assertRaises(error, Admission, *arguments)
                self.assertIn(f"{name} is {value!r}", str(raised))


class FactoryTests(ConversationTestCase):
    """
    What a factory does with it.
    """

    def test_one_connection_too_many_gets_no_protocol(self) -> None:
        """
        A connection too many gets no protocol, no milter is built, and the log says why.
        """
        milter = full()
        mta = Conversation(milter, max_connections=1)
        self.assertEqual(mta.factory.buildProtocol(v4("192.0.2.9")), None)
        self.assertEqual(len(milter.made), 1)
        self.assertIn(
            "Refusing the connection from [192.0.2.9]:1: there are 1 connections already",
            self.log_text(),
        )
        mta.drop()
        self.assertNotEqual(mta.factory.buildProtocol(v4("192.0.2.9")), None)

    def test_connection_from_elsewhere_gets_no_protocol(self) -> None:
        """
        So does one from elsewhere.
        """
        factory = Conversation(allow=["192.0.2.25"]).factory
        self.assertEqual(factory.buildProtocol(v4("192.0.2.9")), None)
        self.assertIn("[192.0.2.9]:1: its address is not allowed", self.log_text())

    def test_one_too_many_from_a_peer_gets_no_protocol(self) -> None:
        """
        So does one too many from a peer, whose own are still served.
        """
        mta = Conversation(full(), max_connections_per_peer=1)
        self.assertEqual(mta.factory.buildProtocol(mta.transport.getPeer()), None)
        self.assertEqual(mta.agree()[0], 6)


class RefusalTests(SynchronousTestCase):
    """
    What is told of refused connections.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.factory = MilterProtocolFactory((), allow=[], reactor=self.clock)

    def refuse(self, count: int) -> None:
        for _ in range(count):
            self.assertIsNone(self.factory.buildProtocol(v4("192.0.2.9")))

    def said(self, after: Callable[[], object]) -> list[str]:
        """
        Do something, and give what the log says.
        """
        with capturedLogs() as logs:
            after()
        return [str(formatEvent(event)) for event in logs]

    def test_first_is_told_and_others_are_summed_up(self) -> None:
        """
        The first is told at once, the others as a number once a minute, until there are none.
        """
        first = "Refusing the connection from [192.0.2.9]:1: its address is not allowed"
        more = "Refused {} more connections in 60 seconds, the last from [192.0.2.9]:1: its address"
        more += " is not allowed"
        self.assertEqual(self.said(lambda: self.refuse(1000)), [first])
        self.assertEqual(
            self.said(lambda: self.clock.advance(60)),
            [more.format(999)],
        )
        self.assertEqual(self.said(lambda: self.refuse(7)), [])
        self.assertEqual(
            self.said(lambda: self.clock.advance(60)),
            [more.format(7)],
        )
        self.assertEqual(self.said(lambda: self.clock.pump([60, 60])), [])
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.said(lambda: self.refuse(1)), [first])

    def test_end_tells_the_rest(self) -> None:
        """
        When the port is closed what was counted is told, and no timer is left.
        """
        self.refuse(3)
        self.clock.advance(20)
        (said,) = self.said(self.factory.stopFactory)
        self.assertIn("Refused 2 more connections in 20 seconds", said)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.said(self.factory.stopFactory), [])

    def test_end_after_one(self) -> None:
        """
        One that has been told is not told again at the end.
        """
        self.refuse(1)
        self.assertEqual(self.said(self.factory.stopFactory), [])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_two_reasons_at_once(self) -> None:
        """
        Two reasons are counted at the same time, each by itself.
        """
        refusals = Refusals(lambda: self.clock)
        for reason in ("one", "two"):
            refusals.add("somebody", reason)
            refusals.add("somebody", reason)
        said = self.said(lambda: self.clock.advance(60))
        self.assertEqual([one.rpartition(" ")[2] for one in said], ["one", "two"])

    def test_reasons_are_told_apart(self) -> None:
        """
        Each reason is told when it is new.
        """
        self.refuse(2)
        self.factory.drain()
        (said,) = self.said(lambda: self.refuse(2))
        self.assertIn("it is shutting down", said)
