"""
Tests of callbacks that block the process: the log tells of them by milter and stage.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from yatxmilter import Milter, MilterFactory, MilterProtocolFactory
from yatxmilter import constants as c
from yatxmilter.client import MilterClient
from yatxmilter.client._in_memory import InMemoryConnection, connect_in_memory
from yatxmilter.defaults import MilterObserver

MERGES = ("first", "strictest", "chain")


class Lasting(Milter):
    """
    Blocks in two of its callbacks, by moving the clock on.
    """

    seconds = 0.0

    def block(self) -> None:
        """
        Let time go by.
        """
        clock: Any = self.factory.clock  # type: ignore[union-attr]
        clock.advance(self.seconds)

    def xxfi_helo(self, helohost: str) -> Any:
        """
        See `Milter`.
        """
        self.block()

    def xxfi_envfrom(self, argv: list[str]) -> Any:
        """
        See `Milter`.
        """
        return c.SMFIS_CONTINUE


class Answers(MilterObserver):
    """
    Listens to the answers of callbacks.
    """

    def callback_answered(self, *details: object) -> None:
        """
        See `IMilterObserver`.
        """


class Ends(MilterObserver):
    """
    Listens to the ends of messages.
    """

    def message_ended(self, *details: object) -> None:
        """
        See `IMilterObserver`.
        """


class SlowCallbackTests(SynchronousTestCase):
    """
    What the log tells, by a clock that callbacks move on.
    """

    def setUp(self) -> None:
        """
        Keep what is logged.
        """
        self.clock = Clock()
        self.events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def serve(self, *milters: type[Milter], **options: Any) -> None:
        """
        Have these milters served.
        """
        factories = [MilterFactory(milter) for milter in milters]
        for factory in factories:
            vars(factory)["clock"] = self.clock
        self.factory = MilterProtocolFactory(factories, reactor=self.clock, **options)

    @property
    def milter(self) -> Any:
        """
        The class of the first milter.
        """
        factory: Any = self.factory.milter_factories[0]
        return factory.milter

    def greet(self) -> InMemoryConnection:
        """
        Connect an MTA that says HELO and names a sender.
        """
        client = MilterClient(clock=self.clock, timeout=None)
        peer = IPv4Address("TCP", "192.0.2.9", 9)
        connection = connect_in_memory(client, self.factory, mta_address=peer)
        self.client = client
        client.negotiate()
        client.connect("h.example.org", IPv4Address("TCP", "192.0.2.1", 25))
        client.helo("h.example.org")
        connection.flush()
        client.mail("<a@example.org>")
        connection.flush()
        return connection

    def told(self) -> list[str]:
        """
        Give what was told of slow callbacks since it was asked for last.
        """
        texts = [formatEvent(event) for event in self.events if "hint" in event]
        self.events.clear()
        return texts

    def make(self, **attributes: Any) -> type[Milter]:
        """
        Make a milter of that name with these attributes.
        """
        return type("Blocking", (Lasting,), attributes)

    def test_slow_read_is_told_and_then_the_callback_by_milter_and_stage(self) -> None:
        """
        A slow read is told with its milters; on the next connection, the callback that was slow.
        """
        for merge in MERGES:
            for observers in ((), (Ends(),)):
                with self.subTest(merge=merge, observers=observers):
                    other = type("Other", (Milter,), {"xxfi_helo": lambda self, helohost: None})
                    self.serve(self.make(seconds=0.7), other, merge=merge, observers=observers)
                    self.greet()
                    (text,) = self.told()
                    self.assertIn("Callbacks of Blocking, Other have blocked", text)
                    self.assertIn("for 0.7 s in one read from the MTA at [192.0.2.9]:9", text)
                    self.assertIn("the last of them xxfi_helo", text)
                    self.greet()
                    (text,) = self.told()
                    self.assertIn(
                        "Milter Blocking has blocked the process for 0.7 s in xxfi_helo()", text
                    )
                    self.assertIn("@threaded", text)

    def test_callback_is_told_at_once_where_an_observer_has_callbacks_timed(self) -> None:
        """
        Where an observer is told of callbacks, the slow one is told the first time.
        """
        for merge in MERGES:
            self.serve(self.make(seconds=0.7), merge=merge, observers=(Answers(),))
            self.greet()
            (text,) = self.told()
            self.assertIn("Milter Blocking has blocked the process for 0.7 s in xxfi_helo()", text)

    def test_same_is_told_once_a_minute(self) -> None:
        """
        The same milter and stage are told once a minute, and after a minute again.
        """
        self.serve(self.make(seconds=0.7))
        self.greet()
        self.greet()
        self.assertEqual(len(self.told()), 2)
        self.greet()
        self.assertEqual(self.told(), [])
        self.clock.advance(59)
        self.greet()
        self.assertEqual(len(self.told()), 1)
        self.clock.advance(60)
        self.greet()
        (text,) = self.told()
        self.assertIn("in one read", text)

    def test_slow_reads_of_connections_that_were_there_are_told_once_a_minute(self) -> None:
        """
        Slow reads of connections whose callbacks are not timed are told once a minute.
        """

        self.serve(self.make(seconds=0.0))
        connections = []
        for _ in range(3):
            connections.append((self.greet(), self.client))
        self.milter.seconds = 0.7
        for count, wait in ((1, 0), (0, 59), (1, 0)):
            connection, client = connections.pop()
            client.helo("again.example.org")
            connection.flush()
            self.assertEqual(len(self.told()), count)
            self.clock.advance(wait)

    def test_quick_callbacks_are_not_told(self) -> None:
        """
        A callback that takes as long as allowed is not told; nor is any without a limit.
        """
        for seconds, limit in ((0.5, 0.5), (3.0, 3), (1000.0, None)):
            with self.subTest(limit=limit):
                self.serve(self.make(seconds=seconds), slow_callback=limit)
                self.greet()
                self.greet()
                self.assertEqual(self.told(), [])

    def test_time_for_which_a_callback_waits_does_not_count(self) -> None:
        """
        Time for which a callback waits for a Deferred does not count; what a coroutine blocks does.
        """
        waiting: list[Deferred[None]] = []

        async def helo(self: Any, helohost: str) -> None:
            self.block()
            waiting.append(Deferred())
            await waiting[-1]

        for seconds in (0.0, 0.7):
            with self.subTest(seconds=seconds):
                self.serve(self.make(xxfi_helo=helo, seconds=0.7))
                self.greet()
                self.told()
                self.milter.seconds = seconds
                self.greet()
                self.clock.advance(5)
                waiting.pop().callback(None)
                self.assertEqual(len(self.told()), int(seconds > 0))

    def test_failing_callback_is_told_as_slow_too(self) -> None:
        """
        A callback that blocks and then raises is told as slow as well.
        """

        def helo(self: Any, helohost: str) -> None:
            self.block()
            raise ValueError("no")

        self.serve(self.make(xxfi_helo=helo, seconds=0.7))
        self.greet()
        self.told()
        self.greet()
        self.assertEqual(len(self.told()), 1)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 2)

    def test_callback_that_the_reactor_does_not_wait_for_is_not_told(self) -> None:
        """
        A callback that the reactor goes on without blocks nothing, whether it is timed or not.
        """

        def helo(self: Any, helohost: str) -> None:
            if self.rests:
                # As a connection in memory has it not.
                transport = self.protocol.transport
                transport.stopReading = transport.startReading = lambda: None
                self.protocol.rest()
            self.block()
            if self.rests:
                self.protocol.go_on()

        self.serve(self.make(xxfi_helo=helo, seconds=0.7, rests=True))
        self.greet()
        self.assertEqual(self.told(), [])
        self.milter.rests = False
        self.greet()
        self.assertEqual(len(self.told()), 1)
        self.milter.rests = True
        self.greet()
        self.assertEqual(self.told(), [])

    def test_names_of_milters_are_escaped_and_bounded(self) -> None:
        """
        A milter's name cannot forge a line; however many names there are, each is told.
        """
        self.serve(self.make(seconds=0.7, xxfi_name="a\nb"))
        for number in range(300):
            self.milter.xxfi_name = f"a\n{number}"
            self.greet()
        texts = self.told()
        self.assertEqual(len(texts), 300)
        self.assertNotIn("\n", "".join(texts))

    def test_bad_option_is_refused(self) -> None:
        """
        A time that is none, and what is not a number, are refused by name and value.
        """
        with self.assertRaisesRegex(ValueError, "slow_callback is 0, expected more than 0"):
            self.serve(slow_callback=0)
        with self.assertRaisesRegex(TypeError, "slow_callback is 'a', expected seconds or None"):
            self.serve(slow_callback="a")
