"""
The greylisting example on each of its stores, with the real servers, and behind a real Postfix.

Time is a clock's, but for what Redis forgets by itself: there it is asked how long it keeps it.
"""

from __future__ import annotations

import atexit
import itertools
import runpy
from typing import Any, ClassVar

from twisted.internet import reactor
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import UNIXServerEndpoint
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from yatxmilter import MilterProtocolFactory
from yatxmilter.client import MilterClient, connect_milter
from yatxmilter.constants import SMFIS_CONTINUE, SMFIS_TEMPFAIL

from .control import ROOT
from .hosting import HostCase
from .postfix import Postfix
from .processes import LOOPBACK
from .stores import PostgresServer, RedisServer, SqliteFile, StoreServer

EXAMPLE = ROOT / "examples" / "greylist.py"

DAY = 24 * 3600.0
MESSAGE = b"Subject: hello\r\n\r\nA letter.\r\n"
CLIENT = "192.0.2.25"

_numbers = itertools.count()
_running: dict[type[StoreServer], StoreServer] = {}


def _running_server(kind: type[StoreServer]) -> StoreServer:
    # Kept for all tests; a test may stop it, and the next one has it again.
    if kind not in _running:
        server = kind()
        atexit.register(server.remove)
        _running[kind] = server
        server.start()
    return _running[kind]


class _StoreCase(TestCase):
    """
    A test with two instances of the example that share a store.
    """

    timeout = 60
    server_class: ClassVar[type[StoreServer]]

    def setUp(self) -> None:
        """
        Empty the store.
        """
        self.server = _running_server(self.server_class)
        self.server.clear()
        self.example = runpy.run_path(str(EXAMPLE))
        self.clock = Clock()
        self.clock.advance(1_700_000_000)
        self.here, self.there = self.instance(), self.instance()

    def instance(self, **options: Any) -> Any:
        """
        Make one instance, whose clock is ours.
        """
        terms = self.example["Terms"](delay=300.0, retry=2 * DAY, keep=36 * DAY)
        store = self.example["open_store"](self.server.url)
        factory = self.example["GreylistFactory"](
            store, terms, now=self.clock.seconds, **{"rest": 0, **options}
        )
        self.addCleanup(factory.thread.stop)
        return factory

    async def mta(self, instance: Any, client: str = CLIENT) -> MilterClient:
        """
        Connect to an instance as an MTA does that has a client.
        """
        path = f"{self.server.folder}/milter{next(_numbers)}"
        endpoint: Any = UNIXServerEndpoint(reactor, path)
        port = await endpoint.listen(MilterProtocolFactory(instance))
        self.addCleanup(port.stopListening)
        mta: MilterClient = await connect_milter(f"unix:{path}")
        self.addCleanup(mta.quit)
        await mta.negotiate()
        kind = IPv6Address if ":" in client else IPv4Address
        await mta.connect("client.example", kind("TCP", client, 40025))
        await mta.helo("client.example")
        return mta

    async def passes(
        self,
        mta: MilterClient,
        sender: str = "<sender@client.example>",
        recipient: str = "<reader@example.com>",
    ) -> bool:
        """
        Tell whether a message passes; otherwise it has to be put off.
        """
        outcome = await mta.send_message(MESSAGE, sender, [recipient])
        if not outcome.accepted:
            self.assertEqual((outcome.verdict, outcome.stage), (SMFIS_TEMPFAIL, "rcpt"))
            self.assertRegex(str(outcome.text), r"^451 4\.7\.1 greylisted, try again in \d+ sec")
        return outcome.accepted

    # ---- what holds for each store

    async def test_what_one_instance_has_put_off_passes_at_other_once_it_has_waited(self) -> None:
        """
        What one instance has put off passes at the other once it has waited, and not before; case
        and host within the network do not matter, all else does.
        """
        here, there = await self.mta(self.here), await self.mta(self.there, "192.0.2.99")
        self.assertFalse(await self.passes(here))
        self.clock.advance(299)
        self.assertFalse(await self.passes(there))
        self.clock.advance(2)
        self.assertTrue(await self.passes(there, "<SENDER@client.example>"))
        self.assertTrue(await self.passes(here))
        self.assertFalse(await self.passes(here, "<>"))
        self.assertFalse(await self.passes(here, recipient="<other@example.com>"))
        self.assertFalse(await self.passes(await self.mta(self.here, "192.0.3.25")))
        self.clock.advance(301)
        self.assertTrue(await self.passes(there, "<>"))

    async def test_of_ipv6_client_first_64_bits_count(self) -> None:
        """
        Of an IPv6 client the first 64 bits count; octets that are no UTF-8 do no harm.
        """
        sender = "<caf\udce9\udcff@client.example>"
        self.assertFalse(await self.passes(await self.mta(self.here, "2001:db8::1"), sender))
        self.clock.advance(301)
        there = await self.mta(self.there, "2001:db8::ffff:1")
        self.assertTrue(await self.passes(there, sender))
        self.assertFalse(await self.passes(await self.mta(self.there, "2001:db8:0:1::1"), sender))

    async def test_instances_that_see_triplet_at_same_moment_table_not_yet_made(self) -> None:
        """
        Instances that see a triplet at the same moment, the table not yet made, agree on when the
        first attempt was.
        """
        instances = [self.here, self.there, self.instance()]
        for number in range(40):
            asked = []
            for place, instance in enumerate(instances):
                now = self.clock.seconds() + place * 0.25
                recipient = f"<{number}@example.com>"
                asked.append(
                    Deferred.fromCoroutine(instance.first_seen(CLIENT, "<a@b>", recipient, now))
                )
            answers = await gatherResults(asked)
            self.assertEqual(len(set(answers)), 1, answers)
            self.assertIn(answers[0] - self.clock.seconds(), (0, 0.25, 0.5))
        self.assertEqual(len(list(self.server.lifetimes())), 40)

    async def test_attempt_that_is_not_repeated_is_kept_for_two_days(self) -> None:
        """
        An attempt that is not repeated is kept for two days, a good triplet for 36 days from its
        last message.
        """
        here = await self.mta(self.here)
        await self.passes(here)
        (left,) = self.server.lifetimes()
        self.assertLess(abs(left - 2 * DAY), 60)
        self.clock.advance(400)
        self.assertTrue(await self.passes(here))
        (left,) = self.server.lifetimes()
        self.assertLess(abs(left - 36 * DAY), 460)


class _SqlTests(_StoreCase):
    """
    What a database does by the example's clock.
    """

    async def test_what_has_expired_counts_as_never_seen(self) -> None:
        """
        What has expired counts as never seen, before it is deleted and after; what is good stays.
        """
        here = await self.mta(self.here)
        await self.passes(here)
        await self.passes(here, "<good@client.example>")
        self.clock.advance(301)
        self.assertTrue(await self.passes(here, "<good@client.example>"))
        self.clock.advance(2 * DAY)
        self.assertFalse(await self.passes(here))
        self.clock.advance(2 * DAY + 1)
        await self.here.forget()
        (left,) = self.server.lifetimes()
        self.assertGreater(left, 36 * DAY)
        self.assertTrue(await self.passes(await self.mta(self.there), "<good@client.example>"))


class _ServerTests(_StoreCase):
    """
    What a server may do.
    """

    async def test_over_restart_of_server_nothing_is_forgotten_and_nobody_notices(self) -> None:
        """
        Over a restart of the server nothing is forgotten, and nobody notices.
        """
        here = await self.mta(self.here)
        self.assertFalse(await self.passes(here))
        self.server.stop()
        self.server.start()
        self.clock.advance(301)
        self.assertTrue(await self.passes(here))
        self.assertFalse(self.here.thread.away)
        self.assertFalse(await self.passes(here, "<other@client.example>"))

    async def test_while_server_is_down_mail_passes(self) -> None:
        """
        While the server is down mail passes, or is put off where that was wanted; it is asked again
        when it is back.
        """
        careful = await self.mta(self.instance(when_away=SMFIS_TEMPFAIL))
        patient = await self.mta(self.instance(rest=3600))
        here = await self.mta(self.here)
        self.assertFalse(await self.passes(here))
        self.assertFalse(await self.passes(patient))
        self.server.stop()
        self.addCleanup(self.server.start)
        for mta in (here, patient):
            outcome = await mta.send_message(MESSAGE, "<new@client.example>", ["<r@example.com>"])
            self.assertEqual(outcome.verdict, SMFIS_CONTINUE)
        outcome = await careful.send_message(MESSAGE, "<new@client.example>", ["<r@example.com>"])
        self.assertEqual(outcome.text, "451 4.3.0 the greylist is away, try again later")
        self._cleanups.pop()
        self.server.start()
        self.assertFalse(await self.passes(here, "<new@client.example>"))
        self.assertFalse(await self.passes(careful, "<new@client.example>"))
        # This one has not yet asked again.
        self.assertTrue(await self.passes(patient, "<new@client.example>"))

    async def test_server_that_takes_questions_and_does_not_answer_is_away_too(self) -> None:
        """
        A server that takes questions and does not answer is away too.
        """
        hasty = self.instance(late=0.2)
        mta = await self.mta(hasty)
        self.assertFalse(await self.passes(mta))
        self.server.freeze()
        self.addCleanup(self.server.thaw)
        self.assertTrue(await self.passes(mta))
        self.assertTrue(hasty.thread.away)
        self.server.thaw()
        hasty.thread.late = 10
        self.assertFalse(await self.passes(mta))
        self.assertFalse(hasty.thread.away)


class SqliteTests(_SqlTests):
    """
    SQLite: two instances open the same file.
    """

    server_class = SqliteFile


class PostgresTests(_SqlTests, _ServerTests):
    """
    PostgreSQL.
    """

    server_class = PostgresServer


class RedisTests(_ServerTests):
    """
    Redis.
    """

    server_class = RedisServer


del _StoreCase, _SqlTests, _ServerTests


class BehindPostfixTests(HostCase):
    """
    With SQLite, behind Postfix.
    """

    mta_class = Postfix

    def test_put_off_then_delivered(self) -> None:
        """
        The client is told 451 first; when it comes again the message is delivered unchanged.
        """
        endpoint = f"tcp:{self.mta.addresses.example_port}:interface={LOOPBACK}"
        self.run_program(EXAMPLE, endpoint, f"sqlite:///{self.folder / 'seen'}", "0")
        client = self.connect("example")
        client.command("MAIL FROM:<sender@client.example>")
        reply = client.command("RCPT TO:<rcpt@sink.example>")
        self.assertReply(reply, 451)
        self.assertIn("4.7.1", reply.lines[0])
        self.assertIn("greylisted, try again in 1 seconds", reply.lines[0])
        client.quit()
        self.assertNothingDelivered()
        self.deliver(door="example")
