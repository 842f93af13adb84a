"""
Tests of a remote milter that runs on several hosts: which one is asked, what happens when one fails
and when it is back, and what is told of each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.conversation_helpers import (
    ABORT,
    BODY,
    CONNECT,
    DATA,
    EOH,
    EOM,
    HEADER,
    HELO,
    MAIL,
    MESSAGE,
    QUIT,
    RCPT,
    ConversationTestCase,
    macros,
    offer,
    packet,
)
from tests.remotes import Remote, RemoteConversation, breaking
from yatxmilter import DISCONNECT, MilterFactory
from yatxmilter import constants as c
from yatxmilter._wire.payloads import Offer, encode_offer
from yatxmilter.metrics import MilterMetrics
from yatxmilter.remote import RemoteMilterFactory

CONNECTION = (CONNECT, HELO, MAIL, RCPT, DATA, HEADER, EOH, BODY, EOM)
#: A conversation in which the milter has seen all and said CONTINUE.
ALL = 9 * "c"


class Hosts:
    """
    Several hosts, for `RemoteConversation`: what is one remote milter there.
    """

    def __init__(self, *hosts: Remote) -> None:
        self.hosts = hosts

    def __iter__(self) -> Iterator[Remote]:
        return iter(self.hosts)

    def pump(self) -> bool:
        return sum(host.pump() for host in self.hosts) > 0


class HostsTestCase(ConversationTestCase):
    """
    A test of several hosts.
    """

    def conversation(self, *hosts: Remote, **options: Any) -> RemoteConversation:
        """
        Make the conversation of an MTA with them.
        """
        remote: Any = Hosts(*hosts)
        return RemoteConversation(remote, **options)

    def begin(self, conversation: RemoteConversation) -> Any:
        """
        Connect and negotiate; give the MTA's connection.
        """
        conversation.connect()
        conversation.agree()
        conversation.carry()
        return conversation.protocol

    def deliver(self, conversation: RemoteConversation, *commands: bytes) -> str:
        """
        Have the MTA connect, send a message and QUIT; give the letters of the answers.
        """
        self.begin(conversation)
        letters = conversation.letters(*(commands or CONNECTION), QUIT)
        if not conversation.closed:
            conversation.drop()
            conversation.carry()
        return letters

    def served(self, *hosts: Remote) -> list[int]:
        """
        Count the connections that each host had.
        """
        return [len(host.servers) for host in hosts]


class ChoiceTests(HostsTestCase):
    """
    Which one is asked.
    """

    def test_smtp_connections_one_after_the_other_go_to_one_host(self) -> None:
        """
        One SMTP connection after the other goes to one host after the other.
        """
        hosts = [breaking(), breaking(), breaking()]
        conversation = self.conversation(*hosts)
        for _ in range(6):
            self.assertEqual(self.deliver(conversation), ALL)
        self.assertEqual(self.served(*hosts), [2, 2, 2])
        self.assertEqual(self.log_text(), "")

    def test_host_with_the_fewest_connections_gets_the_next_one(self) -> None:
        """
        The host with the fewest connections gets the next one.
        """
        hosts = [breaking(), breaking()]
        conversation = self.conversation(*hosts)
        busy = [self.begin(conversation) for _ in range(4)]
        self.assertEqual(self.served(*hosts), [2, 2])
        for protocol in busy[1::2]:
            protocol.dataReceived(QUIT)
            conversation.carry()
        for _ in range(2):
            self.begin(conversation)
        self.assertEqual(self.served(*hosts), [2, 4])

    def test_all_at_once(self) -> None:
        """
        Those that still wait for a connection count, so that a rush is spread over all hosts.
        """
        hosts = [breaking(), breaking()]
        for host in hosts:
            host.hanging = True
        conversation = self.conversation(*hosts)
        for _ in range(4):
            conversation.connect()
            conversation.send(offer())
        states = conversation.standing.remote_addresses()
        self.assertEqual([state.open for state in states], [2, 2])

    def test_with_reuse_each_host_has_connections_that_are_kept(self) -> None:
        """
        With ``reuse`` each host has connections that are kept, and the choice stays the same.
        """
        hosts = [breaking(), breaking()]
        conversation = self.conversation(*hosts, reuse=True)
        for _ in range(6):
            self.assertEqual(self.deliver(conversation), ALL)
        self.assertEqual(self.served(*hosts), [1, 1])
        for host in hosts:
            self.assertEqual(host.servers[0].letters.count("C"), 3)
        states = conversation.standing.remote_addresses()
        self.assertEqual([(state.open, state.connections) for state in states], [(0, 1), (0, 1)])


class FailingOverTests(HostsTestCase):
    """
    What happens when one cannot be had.
    """

    def test_smtp_connection_that_finds_one_host_down_is_served_by_another_one(self) -> None:
        """
        An SMTP connection that finds one host down is served by another one, and nobody notices;
        the log says once which one is left out, and why.
        """
        hosts = [breaking(), breaking()]
        hosts[0].refusing = True
        conversation = self.conversation(*hosts)
        for _ in range(3):
            self.assertEqual(self.deliver(conversation), ALL)
        self.assertEqual(self.served(*hosts), [0, 3])
        self.assertEqual(
            self.log_text(),
            "Milter afar: endpoint 1 is left out for now: Connection was refused by other side.",
        )

    def test_does_not_come(self) -> None:
        """
        One that does not even refuse is waited for as long as a connection may take.
        """
        hosts = [breaking(), breaking()]
        hosts[0].hanging = True
        conversation = self.conversation(*hosts, connect_timeout=3)
        conversation.connect()
        conversation.send(offer())
        conversation.reactor.advance(2.9)
        self.assertEqual(self.served(*hosts), [0, 0])
        conversation.reactor.advance(0.2)
        self.assertEqual(conversation.letters(*CONNECTION), "O" + ALL)
        self.assertEqual(self.served(*hosts), [0, 1])

    def test_does_not_negotiate(self) -> None:
        """
        Nor is one waited for longer that takes the connection and says nothing; after negotiation
        each answer has its usual time.
        """
        hosts = [breaking(O=[b""]), breaking(H=[b""])]
        conversation = self.conversation(*hosts, connect_timeout=3, timeout=300)
        conversation.connect()
        conversation.send(offer())
        conversation.reactor.advance(3)
        self.assertEqual(conversation.letters(CONNECT, HELO), "Oc")
        conversation.reactor.advance(299)
        self.assertEqual(conversation.carry(), b"")
        self.assertIn("the milter was silent for 3 s", self.log_text())

    def test_wants_what_is_not_offered(self) -> None:
        """
        One that breaks the protocol in its negotiation is left out, too.
        """
        hosts = [breaking(O=[packet("x")]), breaking()]
        conversation = self.conversation(*hosts)
        self.assertEqual(self.deliver(conversation), ALL)
        self.assertFalse(conversation.standing.remote_addresses()[0].up)

    def test_none_can_be_had(self) -> None:
        """
        When none can be had ``on_error`` answers, and the log says of each why; the next SMTP
        connection tries all of them again, without any delay.
        """
        hosts = [breaking(), breaking()]
        for host in hosts:
            host.refusing = True
        conversation = self.conversation(*hosts)
        self.assertEqual(self.deliver(conversation, MAIL), "t")
        self.assertIn(
            "none of its addresses can be had (endpoint 1: Connection was refused by other side.;"
            " endpoint 2: Connection was refused by other side.); answering",
            self.log_text(),
        )
        for host in hosts:
            host.refusing = False
        self.assertEqual(self.deliver(conversation), ALL)
        self.assertIn("endpoint 1 can be had again", self.log_text())

    def test_none_can_be_had_and_the_mta_is_to_decide(self) -> None:
        """
        With DISCONNECT the MTA's connection ends when none can be had, in the negotiation already.
        """
        hosts = [breaking(), breaking()]
        for host in hosts:
            host.refusing = True
        conversation = self.conversation(*hosts, on_error=DISCONNECT)
        self.assertEqual(conversation.send(offer()), b"")
        self.assertTrue(conversation.closed)

    def test_gone_before_the_first_command(self) -> None:
        """
        When a host dies between the negotiation and the first command, or over that command,
        another one gets the command, with its macros.
        """
        for dies in (True, False):
            near, far = breaking(C=[None]), breaking()
            conversation = self.conversation(near, far)
            self.begin(conversation)
            if dies:
                near.crash()
                conversation.carry()
            self.assertEqual(conversation.letters(macros("C", b"j", b"here"), *CONNECTION), ALL)
            self.assertEqual(far.servers[0].letters, "ODCHMRTLNBE")
            self.assertIn("endpoint 1 is left out", self.log_text())
            self.assertNotIn("answering", self.log_text())

    def test_all_die_at_the_first_command(self) -> None:
        """
        A command at which every host dies is given to each of them once, not for ever.
        """
        hosts = [breaking(C=[None]), breaking(C=[None]), breaking(C=[None])]
        conversation = self.conversation(*hosts)
        self.begin(conversation)
        conversation.letters(CONNECT)
        self.assertEqual(conversation.letters(MAIL), "t")
        self.assertEqual(self.served(*hosts), [1, 1, 1])

    def test_not_when_it_may_have_heard_something(self) -> None:
        """
        A host that dies later on has failed: what was said to it is not said to another one, and
        ``on_error`` answers to the end of the SMTP connection.
        """
        unanswered = encode_offer(Offer(6, 0x1FF, c.SMFIP_NR_CONN | c.SMFIP_NR_HELO))
        for script in (
            {"H": [None]},
            {"M": [None]},
            {"E": [None]},
            {"O": [unanswered], "C": [b""], "H": [b""], "M": [None]},
        ):
            hosts = [breaking(**script), breaking()]  # type: ignore[arg-type]
            conversation = self.conversation(*hosts)
            self.assertIn("t", self.deliver(conversation))
            self.assertEqual(self.served(*hosts), [1, 0], script)
            self.assertIn("endpoint 1: the milter closed the connection", self.log_text())

    def test_gone_before_it_was_sent_anything(self) -> None:
        """
        Of a host that was sent nothing yet another one takes the place at any command, the end of
        a message included; it gets the macros of what the milter does not want to hear.
        """
        only_the_end = [encode_offer(Offer(6, 0x1FF, c.ALL_NO_STEPS))]
        hosts = [breaking(O=only_the_end), breaking(O=only_the_end)]
        conversation = self.conversation(*hosts)
        self.begin(conversation)
        self.assertEqual(conversation.letters(macros("M", b"i", b"4X"), MAIL), "c")
        hosts[0].crash()
        conversation.carry()
        self.assertEqual(conversation.letters(EOM), "c")
        self.assertEqual(hosts[1].servers[0].letters, "ODE")

    def test_host_that_drops_its_first_command_is_replaced_before_the_content(self) -> None:
        """
        A host that goes away without a word about the first command that it was sent is replaced
        where that was one before the content of a message, and has failed where it was another.
        """
        for command, step, letter, replaced in (
            (MAIL, c.SMFIP_NOMAIL, "M", True),
            (RCPT, c.SMFIP_NORCPT, "R", True),
            (HEADER, c.SMFIP_NOHDRS, "L", False),
            (EOM, 0, "E", False),
        ):
            agreed = [encode_offer(Offer(6, 0x1FF, c.ALL_NO_STEPS & ~step))]
            hosts = [breaking(O=agreed, **{letter: [None]}), breaking(O=agreed)]
            conversation = self.conversation(*hosts)
            self.begin(conversation)
            letters = conversation.letters(*(() if command is MAIL else (MAIL,)), command)
            self.assertEqual(letters[-1], "c" if replaced else "t")
            self.assertEqual(self.served(*hosts), [1, int(replaced)])

    def test_not_when_it_has_begun_to_answer(self) -> None:
        """
        A host that has sent an edit, and then dies, has failed, be that the first command it was
        sent at all.
        """
        only_the_end = encode_offer(Offer(6, 0x1FF, c.ALL_NO_STEPS))
        edit = packet("h", b"X-Half\0way\0")
        hosts = [breaking(O=[only_the_end], E=[edit]), breaking(O=[only_the_end])]
        conversation = self.conversation(*hosts)
        self.begin(conversation)
        self.assertEqual(conversation.letters(MAIL, EOM), "c")
        hosts[0].crash()
        self.assertEqual(conversation.carry(), packet("t"))
        self.assertEqual(self.served(*hosts), [1, 0])

    def test_not_when_it_is_late(self) -> None:
        """
        Nor is a command that was not answered in time given to another host: the MTA has waited
        for long enough.
        """
        hosts = [breaking(C=[b""]), breaking()]
        conversation = self.conversation(*hosts, timeout=30)
        self.begin(conversation)
        conversation.letters(CONNECT)
        conversation.reactor.advance(30)
        conversation.carry()
        self.assertEqual(self.served(*hosts), [1, 0])
        self.assertIn("Milter afar failed in xxfi_connect", self.log_text())

    def test_the_next_connection_goes_elsewhere(self) -> None:
        """
        A host that fails in the middle of a message is left out for the next SMTP connections,
        though it takes connections and has the fewest of them.
        """
        hosts = [breaking(B=[None]), breaking()]
        conversation = self.conversation(*hosts)
        self.deliver(conversation)
        for _ in range(3):
            self.assertEqual(self.deliver(conversation), ALL)
        self.assertEqual(self.served(*hosts), [1, 3])

    def test_one_that_is_configured_otherwise(self) -> None:
        """
        When a host takes the place of another one it has to agree on the same; one that does not
        is passed over.
        """
        other = encode_offer(Offer(6, 0, 0))
        hosts = [breaking(C=[None]), breaking(O=[other]), breaking()]
        conversation = self.conversation(*hosts)
        self.begin(conversation)
        self.assertEqual(conversation.letters(*CONNECTION), ALL)
        self.assertEqual(self.served(*hosts), [1, 1, 1])
        self.assertEqual(hosts[1].servers[0].letters, "OQ")
        self.assertIn("endpoint 2 is left out", self.log_text())

    def test_kept_connection_to_a_dead_host(self) -> None:
        """
        A host that dies while a connection to it is kept costs nobody anything.
        """
        hosts = [breaking(), breaking()]
        conversation = self.conversation(*hosts, reuse=True)
        self.deliver(conversation)
        hosts[0].crash()
        hosts[0].refusing = True
        conversation.carry()
        for _ in range(3):
            self.assertEqual(self.deliver(conversation), ALL)
        self.assertNotIn("answering", self.log_text())

    def test_mta_goes_away_meanwhile(self) -> None:
        """
        When the MTA does not wait for it, the attempt ends, and no address is blamed.
        """
        hosts = [breaking(), breaking()]
        hosts[0].hanging = True
        conversation = self.conversation(*hosts)
        conversation.connect()
        conversation.send(offer())
        conversation.drop()
        conversation.carry()
        self.assertEqual(hosts[0].cancelled, 1)
        states = conversation.standing.remote_addresses()
        self.assertEqual([(state.up, state.open) for state in states], [(True, 0), (True, 0)])


class BackAgainTests(HostsTestCase):
    """
    A host that was left out is tried again.
    """

    def down(self, **options: Any) -> tuple[Remote, Remote, RemoteConversation]:
        """
        Make two hosts of which the first is left out.
        """
        first, second = breaking(), breaking()
        first.refusing = True
        conversation = self.conversation(first, second, **options)
        self.assertEqual(self.deliver(conversation), ALL)
        return first, second, conversation

    def test_after_a_second_it_is_tried_again_beside_a_connection(self) -> None:
        """
        After a second it is tried again, beside an SMTP connection that is served elsewhere, and
        has its share from then on; the log says so.
        """
        first, second, conversation = self.down()
        first.refusing = False
        self.deliver(conversation)
        self.assertEqual(self.served(first, second), [0, 2])
        conversation.reactor.advance(1)
        self.deliver(conversation)
        self.assertEqual(self.served(first, second), [1, 3])
        self.assertEqual(first.servers[0].letters, "OQ")
        self.assertIn("Milter afar: endpoint 1 can be had again", self.log_text())
        self.deliver(conversation)
        self.assertEqual(self.served(first, second), [2, 3])

    def test_nobody_waits_for_it(self) -> None:
        """
        The attempt holds nobody up, and there is but one at a time.
        """
        first, second, conversation = self.down()
        first.refusing, first.hanging = False, True
        conversation.reactor.advance(1)
        for _ in range(3):
            self.assertEqual(self.deliver(conversation), ALL)
        self.assertEqual(conversation.standing.remote_addresses()[0].open, 1)
        conversation.reactor.advance(5)
        self.assertEqual(conversation.standing.remote_addresses()[0].open, 0)
        self.assertEqual(conversation.standing.remote_addresses()[0].failures, 2)

    def test_host_is_tried_less_often_the_longer_it_is_away(self) -> None:
        """
        The longer it is away the less often it is tried, but once a minute at least; the log does
        not say it again.
        """
        _, _, conversation = self.down()
        tried = []
        failures = 1
        for second in range(1, 125):
            conversation.reactor.advance(1)
            self.deliver(conversation)
            state = conversation.standing.remote_addresses()[0]
            if state.failures > failures:
                failures = state.failures
                tried.append(second)
        self.assertEqual(tried[:7], [1, 3, 7, 15, 31, 63, 123])
        self.assertEqual(self.log_text().count("is left out"), 1)

    def test_host_that_fails_each_time_is_tried_less_and_less_often(self) -> None:
        """
        One that takes connections and then fails each time is tried less and less often; an SMTP
        connection that ends well makes it like the others again.
        """
        first, second = breaking(M=[None]), breaking()
        conversation = self.conversation(first, second)
        failed = []
        for moment in range(40):
            if "t" in self.deliver(conversation):
                failed.append(moment)
            conversation.reactor.advance(1)
        self.assertLessEqual(len(failed), 6)
        first._serve = breaking()._serve
        conversation.reactor.advance(60)
        for _ in range(4):
            self.assertEqual(self.deliver(conversation), ALL)
        first.refusing = True
        for _ in range(2):
            self.deliver(conversation)
        first.refusing = False
        conversation.reactor.advance(1)
        before = len(first.servers)
        self.deliver(conversation)
        self.assertEqual(len(first.servers), before + 1)

    def test_close_ends_attempts(self) -> None:
        """
        `close`, or the end of the factories, ends an attempt that is under way.
        """
        for end in ("close", "stop"):
            first, _, conversation = self.down()
            first.refusing, first.hanging = False, True
            conversation.reactor.advance(1)
            self.deliver(conversation)
            getattr(conversation.standing, end)()
            self.assertEqual(first.cancelled, 1)
            state = conversation.standing.remote_addresses()[0]
            self.assertEqual((state.open, state.failures), (0, 1))

    def test_alone_is_never_left_out(self) -> None:
        """
        One address that is alone is asked each time, as it always was, and is not said to be left
        out.
        """
        only = breaking()
        only.refusing = True
        conversation = self.conversation(only)
        for _ in range(3):
            self.assertEqual(self.deliver(conversation, MAIL), "t")
        only.refusing = False
        self.assertEqual(self.deliver(conversation), ALL)
        self.assertNotIn("left out", self.log_text())
        self.assertEqual(conversation.standing.remote_addresses()[0].failures, 3)


class ToldTests(HostsTestCase):
    """
    What can be known of the addresses.
    """

    def metrics(self, metrics: MilterMetrics) -> dict[str, dict[str, int]]:
        """
        Give the metrics of addresses, by their names.
        """
        return {
            name.removeprefix("yatxmilter_remote_"): {labels[1]: value for labels, value in rows}
            for name, rows in metrics.snapshot().items()
            if name.startswith("yatxmilter_remote_")
        }

    def test_each_address_has_its_own_numbers(self) -> None:
        """
        Each address has its own numbers, which stay when its factory is gone.
        """
        hosts = [breaking(), breaking()]
        conversation = self.conversation(*hosts)
        metrics = MilterMetrics()
        metrics.watch(conversation.factory)
        self.deliver(conversation)
        hosts[0].refusing = True
        self.deliver(conversation)
        self.begin(conversation)
        counts = {
            "connections": {"endpoint 1": 1, "endpoint 2": 2},
            "failures": {"endpoint 1": 1, "endpoint 2": 0},
        }
        self.assertEqual(
            self.metrics(metrics),
            {
                "up": {"endpoint 1": 0, "endpoint 2": 1},
                "connections_open": {"endpoint 1": 0, "endpoint 2": 1},
                **counts,
            },
        )
        for _ in range(2):
            metrics.forget(conversation.factory)
            self.assertEqual(self.metrics(metrics), {"up": {}, "connections_open": {}, **counts})

    def test_metrics_over_a_reload(self) -> None:
        """
        While the factory before a reload is still there, what the latest one says of an address
        counts, and the connections of both are added up.
        """
        metrics = MilterMetrics()
        first, second = breaking(), breaking()
        for refusing in (False, True):
            first.refusing = refusing
            conversation = self.conversation(first, second)
            metrics.watch(conversation.factory)
            for _ in range(2):
                self.begin(conversation)
        told = self.metrics(metrics)
        self.assertEqual(told["up"], {"endpoint 1": 0, "endpoint 2": 1})
        self.assertEqual(told["connections_open"], {"endpoint 1": 1, "endpoint 2": 3})

    def test_edits_stay_with_those_who_made_them(self) -> None:
        """
        Several messages on one SMTP connection are all shown to one host.
        """
        hosts = [breaking(), breaking()]
        conversation = self.conversation(*hosts)
        self.begin(conversation)
        conversation.send(CONNECT, HELO, MESSAGE, MAIL, ABORT, MESSAGE)
        self.assertEqual(self.served(*hosts), [1, 0])


class AddressOptionTests(SynchronousTestCase):
    """
    How addresses are given.
    """

    def made(self, where: Any, **options: Any) -> RemoteMilterFactory:
        return RemoteMilterFactory(where, **options)

    def test_one_or_several(self) -> None:
        """
        One address is a text or an endpoint, several are any iterable of these; the milter's name
        is by default where it is.
        """
        endpoint = TCP4ClientEndpoint(Clock(), "127.0.0.1", 1)
        for where, addresses, name in (
            ("inet:1", ["inet:1"], "inet:1"),
            (["inet:1"], ["inet:1"], "inet:1"),
            (("inet:1", "/run/x"), ["inet:1", "/run/x"], "inet:1, /run/x"),
            (iter(["inet:1", endpoint]), ["inet:1", "endpoint 2"], "inet:1"),
            (endpoint, ["endpoint 1"], "remote milter"),
        ):
            factory = self.made(where)
            states = factory.remote_addresses()
            self.assertEqual([state.address for state in states], addresses)
            self.assertTrue(all(state.up for state in states))
            self.assertEqual(factory.name, name)
            self.assertIsInstance(factory, MilterFactory)

    def test_what_is_no_address_is_named(self) -> None:
        """
        What is no address is named, and so is one that is there twice.
        """
        for where, error, text in (
            (b"inet:1", TypeError, "where is b'inet:1', expected an address"),
            (None, TypeError, "where is None, expected an address"),
            ([1], TypeError, "1 is not a text"),
            ([], ValueError, "where is empty"),
            (["inet:1", "inet:x y"], ValueError, "'inet:x y' is not a milter's address"),
            (["inet:1", "inet:1"], ValueError, "where has 'inet:1' twice"),
        ):
            with self.assertRaisesRegex(error, text):
                self.made(where)
