"""
Tests of the life cycle of milter factories: ``start()`` before the first connection, ``stop()``
after the last, however the milters run.
"""

from __future__ import annotations

import tempfile
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.endpoints import UNIXServerEndpoint, serverFromString
from twisted.internet.error import CannotListenError, ConnectError, ConnectionDone
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer

from tests.programs import ProgramTestCase
from yatxmilter import Milter, MilterFactory, MilterProtocol, MilterProtocolFactory
from yatxmilter.client import MilterClient, connect_milter
from yatxmilter.client._in_memory import connect_in_memory
from yatxmilter.errors import StartError
from yatxmilter.interfaces import IMilterFactory
from yatxmilter.metrics import MilterMetrics
from yatxmilter.service import MilterService
from yatxmilter.smtp import MilterSMTPFactory, SMTPMilters
from yatxmilter.testing import InMemoryMTA, MilterTestFailure


class Watched(MilterFactory):
    """
    Notes when it is started and stopped; a test may set what these give.
    """

    def __init__(self, name: str = "one", told: list[str] | None = None) -> None:
        super().__init__(Milter, name=name)
        self.told: list[str] = [] if told is None else told
        self.started: Any = None
        self.stopped: Any = None

    def start(self) -> Any:
        self.told.append(f"start {self.name}")
        return self.started() if callable(self.started) else self.started

    def stop(self) -> Any:
        self.told.append(f"stop {self.name}")
        return self.stopped() if callable(self.stopped) else self.stopped


class OnlyStart(MilterFactory):
    """
    Has nothing to stop.
    """

    starts = 0

    def start(self) -> None:
        self.starts += 1


def failing(error: BaseException) -> Any:
    """
    Make a method that fails.
    """

    def fail() -> None:
        raise error

    return fail


class LifeCase(SynchronousTestCase):
    """
    Servers without sockets.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.one = Watched()

    def server(self, *factories: Any, **options: Any) -> MilterProtocolFactory:
        return MilterProtocolFactory(factories or self.one, reactor=self.clock, **options)

    def connect(self, server: MilterProtocolFactory) -> Any:
        """
        Connect to a server; give what it has built, with its transport.
        """
        built = server.buildProtocol(None)
        transport = StringTransport()
        if built is not None:
            built.makeConnection(transport)
        return built

    def lose(self, connection: Any) -> None:
        connection.connectionLost(Failure(ConnectionDone()))


class StartTests(LifeCase):
    """
    The beginning.
    """

    def test_start_is_called_once_before_connections_are_taken(self) -> None:
        """
        A port that is opened starts the factory; a second port, or another call, does not.
        """
        server = self.server()
        server.doStart()
        self.assertEqual(self.one.told, ["start one"])
        server.doStart()
        self.successResultOf(server.start())
        self.assertIsInstance(self.connect(server), MilterProtocol)
        self.assertEqual(self.one.told, ["start one"])

    def test_either_method_may_be_missing(self) -> None:
        """
        A factory with one of the two, or with none, is served like any other.
        """
        factory = OnlyStart()
        server = self.server(factory, MilterFactory())
        server.doStart()
        server.doStop()
        self.assertEqual(factory.starts, 1)

    def test_coroutines_and_deferreds_are_awaited(self) -> None:
        """
        A start that is a coroutine, or gives a Deferred, is over when that is.
        """
        for kind in ("coroutine", "deferred"):
            waiting: Deferred[None] = Deferred()

            async def begin(waiting: Deferred[None] = waiting) -> None:
                await waiting

            factory = Watched()
            factory.started = begin if kind == "coroutine" else waiting
            server = self.server(factory)
            started = server.start()
            self.assertNoResult(started)
            waiting.callback(None)
            self.successResultOf(started)

    def test_failure_at_once_is_a_failure_to_listen(self) -> None:
        """
        What start() raises, SystemExit too, keeps the port from being opened, and says why.
        """
        for error in (ValueError("no database"), SystemExit("no database")):
            self.one.started = failing(error)
            server = self.server()
            raised = self.assertRaises(StartError, server.doStart)
            kind = type(error).__name__
            self.assertEqual(str(raised), f"milter one could not start: {kind}: no database")
            self.assertIs(raised.__cause__, error)
            self.assertNotIn("stop one", self.one.told)

    def test_keyboard_interrupt_goes_through(self) -> None:
        """
        Ctrl-C while a factory starts ends the program, as everywhere.
        """
        self.one.started = failing(KeyboardInterrupt())
        self.assertRaises(KeyboardInterrupt, self.server().doStart)

    def test_error_without_text_is_named_by_its_class(self) -> None:
        """
        An error that says nothing is told by its class.
        """
        self.one.started = failing(ValueError())
        raised = self.assertRaises(StartError, self.server().doStart)
        self.assertEqual(str(raised), "milter one could not start: ValueError")

    def test_others_are_stopped_when_one_fails(self) -> None:
        """
        When one of several does not start, those that had started are stopped, and those that
        were about to are given up.
        """
        told: list[str] = []
        first, second, third = (Watched(name, told) for name in ("first", "second", "third"))
        waiting: Deferred[None] = Deferred()
        refusal: Deferred[None] = Deferred()
        second.started, third.started = refusal, waiting
        started = self.server(first, second, third).start()
        refusal.errback(ValueError("no"))
        self.assertIn("second could not start", str(self.failureResultOf(started, StartError)))
        self.assertEqual(told, ["start first", "start second", "start third", "stop first"])
        self.assertTrue(waiting.called)

    def test_start_that_never_ends_fails_in_time(self) -> None:
        """
        A start that has not come to its end within start_timeout has failed, and is cancelled.
        """
        cancelled: list[object] = []
        self.one.started = Deferred(cancelled.append)
        started = self.server(start_timeout=5).start()
        self.clock.advance(4)
        self.assertNoResult(started)
        self.clock.advance(1)
        failure = self.failureResultOf(started, StartError)
        self.assertIn("it was not done within 5 seconds", failure.getErrorMessage())
        self.assertEqual(len(cancelled), 1)

    def test_canceller_that_fails_is_logged(self) -> None:
        """
        A Deferred whose canceller fails does not stand in the way.
        """
        for error in (ZeroDivisionError(), SystemExit("bye"), GeneratorExit()):
            self.one.started = Deferred(lambda _, error=error: failing(error)())
            started = self.server(start_timeout=5).start()
            self.clock.advance(5)
            self.failureResultOf(started, StartError)
            self.assertEqual(len(self.flushLoggedErrors(type(error))), 1)

    def test_results_that_do_not_let_themselves_be_looked_at(self) -> None:
        """
        A result whose class cannot be asked for is a failure to start, and not the program's end.
        """

        class Hidden:
            @property
            def __class__(self) -> Any:
                raise SystemExit("bye")

        self.one.started = Hidden
        raised = self.assertRaises(StartError, self.server().doStart)
        self.assertEqual(str(raised), "milter one could not start: SystemExit: bye")

    def test_end_in_time_leaves_no_timer(self) -> None:
        """
        Nothing is left of the time that a start was given, nor without a limit of one.
        """
        for seconds in (5, None):
            waiting: Deferred[None] = Deferred()
            self.one.started = waiting
            server = self.server(start_timeout=seconds)
            started = server.start()
            waiting.callback(None)
            self.successResultOf(started)
            self.successResultOf(server.stop())
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_can_be_tried_again(self) -> None:
        """
        After a failure the port may be opened again, and the factory is started again.
        """
        self.one.started = failing(ValueError("no"))
        server = self.server()
        self.assertRaises(StartError, server.doStart)
        self.one.started = None
        server.doStart()
        self.assertIsInstance(self.connect(server), MilterProtocol)

    def test_connection_by_other_means_starts_the_factory(self) -> None:
        """
        Who builds connections without a port starts the factory with the first one; what cannot be
        started refuses them.
        """
        server = self.server()
        self.assertIsInstance(self.connect(server), MilterProtocol)
        self.assertEqual(self.one.told, ["start one"])
        self.one.started = failing(ValueError("no"))
        broken = Watched("broken")
        broken.started = failing(ValueError("no database"))
        with capturedLogs() as logs:
            self.assertIsNone(self.connect(self.server(broken)))
        self.assertIn("no database", str(formatEvent(logs[-1])))

    def test_nameless_factory_is_named_by_its_class(self) -> None:
        """
        A factory that is no MilterFactory is named by its class when it fails.
        """

        @implementer(IMilterFactory)
        class Own:
            def build_milter(self, protocol: object) -> None:
                """
                Never called.
                """

            def start(self) -> None:
                raise ValueError("no")

        raised = self.assertRaises(StartError, self.server(Own()).doStart)
        self.assertIn("milter Own could not start", str(raised))


class WaitingTests(LifeCase):
    """
    Connections that come while a factory starts.
    """

    def setUp(self) -> None:
        super().setUp()
        self.ready: Deferred[None] = Deferred()
        self.one.started = self.ready
        self.milters = self.server(max_connections=2)
        self.milters.doStart()

    def client(self) -> MilterClient:
        """
        Connect as an MTA.
        """
        client = MilterClient(clock=self.clock, timeout=None)
        connect_in_memory(client, self.milters)
        self.clock.advance(0)
        return client

    def test_they_wait_and_are_served_then(self) -> None:
        """
        A connection that comes too early is not read from, and is served once all have started.
        """
        negotiated = self.client().negotiate()
        self.clock.advance(1)
        self.assertNoResult(negotiated)
        self.assertEqual(self.milters.connections, set())
        self.ready.callback(None)
        self.clock.pump([0] * 5)
        self.successResultOf(negotiated)
        self.assertEqual(len(self.milters.connections), 1)

    def test_they_are_counted(self) -> None:
        """
        They count among all connections, as long as they are there.
        """
        first = self.client()
        self.client()
        self.assertIsNone(self.milters.buildProtocol(None))
        first.transport.abortConnection()
        self.clock.advance(0)
        self.assertIsNotNone(self.milters.buildProtocol(None))

    def test_they_are_closed_when_the_start_fails(self) -> None:
        """
        When a factory does not start they are closed, later ones are refused, and the log says why.
        """
        negotiated = self.client().negotiate()
        with capturedLogs() as logs:
            self.ready.errback(ValueError("no database"))
            self.clock.pump([0] * 5)
            self.failureResultOf(negotiated)
            self.assertIsNone(self.milters.buildProtocol(None))
        said = [str(formatEvent(event)) for event in logs]
        why = "milter one could not start: ValueError: no database"
        self.assertEqual(said[0], f"Refusing the connection from unix:: {why}")
        self.assertEqual(said[1], f"{why}; connections are refused")

    def test_they_are_closed_when_the_server_stops(self) -> None:
        """
        A server that is stopped or drained before it has started gives that up, and closes them.
        """
        for end in ("stop", "drain"):
            self.setUp()
            negotiated = self.client().negotiate()
            self.successResultOf(getattr(self.milters, end)())
            self.clock.pump([0] * 5)
            self.failureResultOf(negotiated)
            self.assertTrue(self.ready.called)
            self.assertEqual(self.one.told, ["start one"])

    def test_what_was_read_already_is_kept(self) -> None:
        """
        Bytes that a wrapper hands on although the connection is paused are not lost.
        """
        waiting = self.milters.buildProtocol(None)
        transport = StringTransport()
        waiting.makeConnection(transport)
        self.assertEqual(transport.producerState, "paused")
        waiting.dataReceived(bytes.fromhex("0000000d4f00000006000001ff001fffff"))
        self.ready.callback(None)
        self.assertEqual(transport.value()[4:5], b"O")
        self.assertEqual(transport.producerState, "producing")
        waiting.dataReceived(bytes.fromhex("0000000151"))
        self.assertTrue(transport.disconnecting)
        self.lose(waiting)
        self.assertEqual(self.milters.connections, set())

    def test_wrappers_talk_to_the_connection_itself(self) -> None:
        """
        Where a wrapper names its protocol, that is the real one from then on.
        """
        waiting = self.milters.buildProtocol(None)
        transport: Any = StringTransport()
        transport.wrappedProtocol = waiting
        waiting.makeConnection(transport)
        self.ready.callback(None)
        self.assertIsInstance(transport.wrappedProtocol, MilterProtocol)

    def test_metrics_count_them_once(self) -> None:
        """
        Metrics count a connection that waited once, when it is served.
        """
        metrics = MilterMetrics()
        metrics.watch(self.milters)
        self.client()
        self.assertEqual(metrics.snapshot()["yatxmilter_connections"], [[[], 0]])
        self.ready.callback(None)
        self.assertEqual(metrics.snapshot()["yatxmilter_connections"], [[[], 1]])


class StopTests(LifeCase):
    """
    The end.
    """

    def test_stop_comes_after_the_last_connection(self) -> None:
        """
        A port that is closed has the factory stopped when the last connection has gone, not before.
        """
        server = self.server()
        server.doStart()
        first, second = self.connect(server), self.connect(server)
        server.doStop()
        self.lose(first)
        self.assertEqual(self.one.told, ["start one"])
        self.lose(second)
        self.assertEqual(self.one.told, ["start one", "stop one"])

    def test_port_opened_again_keeps_it_running(self) -> None:
        """
        When a port is opened again before the last connection has gone, nothing is stopped.
        """
        server = self.server()
        server.doStart()
        connection = self.connect(server)
        stopped = server.stop()
        server.startFactory()
        self.lose(connection)
        self.successResultOf(stopped)
        self.assertEqual(self.one.told, ["start one"])

    def test_port_opened_again_after_the_end(self) -> None:
        """
        A server may be started again when it has stopped, and even while it stops.
        """
        stopping: Deferred[None] = Deferred()
        self.one.stopped = stopping
        server = self.server()
        server.doStart()
        server.doStop()
        started = server.start()
        self.assertEqual(self.one.told, ["start one", "stop one"])
        self.assertNoResult(started)
        stopping.callback(None)
        self.successResultOf(started)
        self.assertEqual(self.one.told, ["start one", "stop one", "start one"])

    def test_drain_waits_for_stop(self) -> None:
        """
        Draining is over when the factory has stopped; so is a second one, and stopping.
        """
        stopping: Deferred[None] = Deferred()
        self.one.stopped = stopping
        server = self.server()
        server.doStart()
        ends = [server.drain(), server.drain(5), server.stop()]
        for end in ends:
            self.assertNoResult(end)
        stopping.callback(None)
        for end in ends:
            self.successResultOf(end)
        self.assertEqual(self.one.told, ["start one", "stop one"])

    def test_drain_does_not_stop_what_is_started_again(self) -> None:
        """
        Who takes connections again while a drain is under way keeps the factory running.
        """
        server = self.server()
        server.doStart()
        connection = self.connect(server)
        connection.dataReceived(bytes.fromhex("0000000d4f00000006000001ff001fffff"))
        connection.dataReceived(b"\0\0\0\x0cM<a@example>\0\0"[:-1])
        drained = server.drain()
        server.startFactory()
        self.lose(connection)
        self.successResultOf(drained)
        self.assertEqual(self.one.told, ["start one"])

    def test_stop_that_fails_is_logged(self) -> None:
        """
        A stop that fails is logged with its traceback, and the end goes on.
        """
        self.one.stopped = failing(ValueError("no"))
        server = self.server()
        server.doStart()
        self.successResultOf(server.stop())
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_stop_that_never_ends_is_not_waited_for(self) -> None:
        """
        A stop that takes longer than stop_timeout is told, and not waited for.
        """
        self.one.stopped = Deferred()
        server = self.server(stop_timeout=3)
        server.doStart()
        stopped = server.stop()
        with capturedLogs() as logs:
            self.clock.advance(3)
        self.successResultOf(stopped)
        self.assertEqual(
            str(formatEvent(logs[0])),
            "Milter one does not stop: it was not done within 3 seconds; going on without waiting"
            " for it",
        )

    def test_opened_again_while_a_start_is_given_up(self) -> None:
        """
        A port that is opened while an earlier start is still being given up starts all anew.
        """
        told: list[str] = []
        first, second = Watched("first", told), Watched("second", told)
        first.stopped, second.started = Deferred(), Deferred()
        server = self.server(first, second)
        begun = server.start()
        stopped = server.stop()
        again = server.start()
        self.assertNoResult(again)
        second.started = None
        first.stopped.callback(None)
        self.failureResultOf(begun, CancelledError)
        self.successResultOf(stopped)
        self.successResultOf(again)
        ends = ["start first", "start second"]
        self.assertEqual(told, [*ends, "stop first", *ends])


class SharedTests(LifeCase):
    """
    A factory that several servers use.
    """

    def test_first_starts_and_last_stops(self) -> None:
        """
        A factory that is in two servers is started by the first, and stopped by the last.
        """
        servers = [self.server(), self.server()]
        for server in servers:
            server.doStart()
        self.successResultOf(servers[0].stop())
        self.assertEqual(self.one.told, ["start one"])
        self.successResultOf(servers[1].stop())
        self.assertEqual(self.one.told, ["start one", "stop one"])

    def test_both_wait_for_one_start(self) -> None:
        """
        Two servers that start at once wait for one start, and fail together.
        """
        self.one.started = Deferred()
        starts = [self.server().start(), self.server().start()]
        self.one.started.errback(ValueError("no"))
        for started in starts:
            self.failureResultOf(started, StartError)
        self.assertEqual(self.one.told, ["start one"])

    def test_one_that_gives_up_leaves_it_to_the_other(self) -> None:
        """
        When one of two servers stops while the factory starts, the other has it.
        """
        self.one.started = Deferred()
        first, second = self.server(), self.server()
        first.doStart()
        started = second.start()
        self.successResultOf(first.stop())
        self.one.started.callback(None)
        self.successResultOf(started)
        self.assertEqual(self.one.told, ["start one"])

    def test_twice_in_one_server(self) -> None:
        """
        A factory that stands twice in one server is started and stopped once.
        """
        server = self.server(self.one, self.one)
        server.doStart()
        self.successResultOf(server.stop())
        self.assertEqual(self.one.told, ["start one", "stop one"])

    def test_the_test_kit_and_a_server_share_it(self) -> None:
        """
        An MTA in memory counts as a server.
        """
        mta = InMemoryMTA(self.one)
        server = self.server()
        server.doStart()
        mta.finish()
        self.assertEqual(self.one.told, ["start one"])
        self.successResultOf(server.stop())
        self.assertEqual(self.one.told, ["start one", "stop one"])


class AddedTests(LifeCase):
    """
    Factories that are added to a server that runs.
    """

    def test_started_before_it_is_asked(self) -> None:
        """
        A factory that is added is asked when it has started; the others go on meanwhile.
        """
        server = self.server(MilterFactory())
        server.doStart()
        ready: Deferred[None] = Deferred()
        self.one.started = ready
        server.addMilterFactory(self.one)
        self.assertEqual(len(self.connect(server).milters), 1)
        ready.callback(None)
        self.assertEqual(len(self.connect(server).milters), 2)

    def test_failure_at_once_is_raised(self) -> None:
        """
        One that does not start is not added, and the line that adds it says why.
        """
        server = self.server(MilterFactory())
        server.doStart()
        self.one.started = failing(ValueError("no"))
        self.assertRaises(StartError, server.addMilterFactory, self.one)
        self.assertEqual(len(self.connect(server).milters), 1)

    def test_failure_later_is_logged(self) -> None:
        """
        One that turns out not to start is logged, and not added.
        """
        server = self.server(MilterFactory())
        server.doStart()
        self.one.started = Deferred()
        server.addMilterFactory(self.one)
        with capturedLogs() as logs:
            self.one.started.errback(ValueError("no"))
        self.assertIn("ValueError: no; it is not added", str(formatEvent(logs[0])))
        self.assertEqual(len(self.connect(server).milters), 1)

    def test_server_that_stops_gives_it_up(self) -> None:
        """
        A server that stops meanwhile gives up what is being added.
        """
        server = self.server(MilterFactory())
        server.doStart()
        self.one.started = waiting = Deferred()
        server.addMilterFactory(self.one)
        self.successResultOf(server.stop())
        self.assertTrue(waiting.called)


class KitTests(SynchronousTestCase):
    """
    The test kit.
    """

    def test_starts_and_stops(self) -> None:
        """
        An MTA in memory starts the factories at its beginning and stops them when it finishes.
        """
        factory = Watched()
        mta = InMemoryMTA(factory)
        self.assertEqual(factory.told, ["start one"])
        self.assertTrue(mta.send(b"A: b\r\n\r\nc\r\n").accepted)
        mta.finish()
        self.assertEqual(factory.told, ["start one", "stop one"])

    def test_sessions_wait_for_the_start(self) -> None:
        """
        Sessions that begin before a factory has started go on then.
        """
        factory = Watched()
        factory.started = Deferred()
        mta = InMemoryMTA(factory)
        sent = mta.send(b"A: b\r\n\r\nc\r\n")
        self.assertFalse(sent.done)
        factory.started.callback(None)
        self.assertTrue(sent.accepted)
        mta.finish()

    def test_failure_to_start_fails_the_test(self) -> None:
        """
        A factory that fails to start fails where the MTA is made.
        """
        factory = Watched()
        factory.started = failing(ValueError("no"))
        self.assertRaises(StartError, InMemoryMTA, factory)

    def test_stop_without_an_end_fails_the_test(self) -> None:
        """
        A factory that does not stop is a failure of the test, which says so.
        """
        factory = Watched()
        factory.stopped = Deferred()
        mta = InMemoryMTA(factory)
        failure = self.assertRaises(MilterTestFailure, mta.finish)
        self.assertIn("has not stopped", str(failure))


class SMTPTests(SynchronousTestCase):
    """
    Milters of an SMTP server.
    """

    def test_port_starts_and_stops_them(self) -> None:
        """
        The factories start when the SMTP port is opened, and stop when it is closed.
        """
        factory = Watched()
        server = MilterSMTPFactory(SMTPMilters(factory, reactor=Clock()))
        server.noisy = False
        server.doStart()
        self.assertEqual(factory.told, ["start one"])
        server.doStop()
        self.assertEqual(factory.told, ["start one", "stop one"])

    def test_failure_keeps_the_port_closed(self) -> None:
        """
        A factory that does not start keeps the SMTP port from being opened.
        """
        factory = Watched()
        factory.started = failing(ValueError("no"))
        server = MilterSMTPFactory(SMTPMilters(factory, reactor=Clock()))
        self.assertRaises(StartError, server.doStart)

    def test_drain_stops_them(self) -> None:
        """
        Draining the SMTP server stops them.
        """
        factory = Watched()
        milters = SMTPMilters(factory, reactor=Clock())
        MilterSMTPFactory(milters).doStart()
        self.successResultOf(milters.drain())
        self.assertEqual(factory.told, ["start one", "stop one"])


class ReactorTests(TestCase):
    """
    Ports of a real reactor.
    """

    timeout = 60

    def setUp(self) -> None:
        # Under -bb: Twisted's UNIX transport compares bytes with a string.
        self.addCleanup(self.flushWarnings)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = f"{folder.name}/socket"
        self.one = Watched()

    def listeners(self, factory: MilterProtocolFactory) -> list[Any]:
        real: Any = reactor
        endpoint: Any = UNIXServerEndpoint
        return [
            lambda: succeed(real.listenTCP(0, factory, interface="127.0.0.1")),
            lambda: succeed(real.listenUNIX(self.path, factory)),
            lambda: endpoint(reactor, self.path).listen(factory),
        ]

    async def test_every_port_starts_and_stops(self) -> None:
        """
        listenTCP, listenUNIX and endpoints start the factory, and stop it when they are closed.
        """
        for number in range(3):
            self.one.told.clear()
            port = await self.listeners(MilterProtocolFactory(self.one))[number]()
            self.assertEqual(self.one.told, ["start one"])
            await port.stopListening()
            self.assertEqual(self.one.told, ["start one", "stop one"])

    async def test_every_port_fails_with_the_factory(self) -> None:
        """
        A factory that does not start keeps each of them from listening.
        """
        self.one.started = failing(ValueError("no"))
        for number in range(3):
            try:
                await self.listeners(MilterProtocolFactory(self.one))[number]()
            except StartError:
                continue
            self.fail("it listens")

    async def test_milterservice_starts_the_factory_and_stops_it_behind_the_drain(self) -> None:
        """
        A MilterService starts the factory, serves who waited for it, and stops it behind the drain.
        """
        ready: Deferred[None] = Deferred()
        self.one.started = ready
        endpoint = serverFromString(reactor, f"unix:{self.path}")
        service = MilterService(endpoint, MilterProtocolFactory(self.one))
        service.startService()
        client = await connect_milter(f"unix:{self.path}")
        negotiated = client.negotiate()
        await deferLater(reactor, 0.05)
        self.assertNoResult(negotiated)
        ready.callback(None)
        await negotiated
        await client.quit()
        await service.stopService()
        self.assertEqual(self.one.told, ["start one", "stop one"])

    async def test_service_whose_factory_fails(self) -> None:
        """
        A MilterService whose factory turns out not to start closes its port, and can be stopped.
        """
        self.one.started = Deferred()
        endpoint = serverFromString(reactor, f"unix:{self.path}")
        service = MilterService(endpoint, MilterProtocolFactory(self.one))
        service.startService()
        self.one.started.errback(ValueError("no"))
        await deferLater(reactor, 0.05)
        with self.assertRaises(ConnectError):
            await connect_milter(f"unix:{self.path}")
        await service.stopService()

    async def test_service_that_stops_before_it_has_started(self) -> None:
        """
        A MilterService may be stopped while its factory starts.
        """
        self.one.started = Deferred()
        endpoint = serverFromString(reactor, f"unix:{self.path}")
        service = MilterService(endpoint, MilterProtocolFactory(self.one))
        service.startService()
        await service.stopService()
        self.assertTrue(self.one.started.called)

    async def test_service_that_cannot_listen(self) -> None:
        """
        A MilterService that cannot listen starts nothing.
        """
        endpoint = serverFromString(reactor, "unix:/nowhere/socket")
        service = MilterService(endpoint, MilterProtocolFactory(self.one))
        service.startService()
        self.assertEqual(len(self.flushLoggedErrors(CannotListenError, OSError)), 1)
        await service.stopService()


#: A milter whose factory takes a while to stop, in a program of whatever kind.
PROGRAM = """
import sys
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from yatxmilter import Milter, MilterFactory, MilterProtocolFactory
from yatxmilter.service import run_milters

class Mine(Milter):
    def xxfi_eom(self):
        pass

class Slow(MilterFactory):
    def __init__(self):
        super().__init__(Mine)
    async def start(self):
        print("starting", flush=True)
        await deferLater(reactor, 0.1)
        print("started", flush=True)
        if "fails" in sys.argv:
            raise ValueError("no database")
        if "hangs" in sys.argv:
            await Deferred()
    async def stop(self):
        await deferLater(reactor, 0.3)
        print("stopped", flush=True)

factory = MilterProtocolFactory(Slow())
factory.drains_with_reactor = "alone" not in sys.argv
if "plain" in sys.argv:
    reactor.listenUNIX(sys.argv[1].partition(":")[2], factory)
    if "drained" in sys.argv:
        reactor.addSystemEventTrigger("before", "shutdown", factory.drain, 5)
    reactor.run()
else:
    run_milters(sys.argv[1], factory)
"""


class ProgramTests(ProgramTestCase):
    """
    Programs that are told to end.
    """

    async def check(self, *words: str) -> str:
        """
        Run one, with an MTA connected, and give what it prints, its log aside.
        """
        program = self.program()
        program.start("-c", PROGRAM, program.endpoint, *words)
        client = await program.connect()
        await client.negotiate()
        program.signal()
        lines = program.ended().splitlines(keepends=True)
        return "".join(line for line in lines if "[yatxmilter." not in line)

    async def test_reactor_waits_for_stop(self) -> None:
        """
        A program waits for the factories' stop, whether it drains by itself, by a service, or does
        not think of it.
        """
        for words in ((), ("plain",), ("plain", "drained")):
            self.assertEqual(await self.check(*words), "starting\nstarted\nstopped\n", words)

    async def test_reactor_does_not_wait(self) -> None:
        """
        A program may have it otherwise.
        """
        self.assertEqual(await self.check("plain", "alone"), "starting\nstarted\n")

    async def test_failure_to_start(self) -> None:
        """
        run_milters does not listen when a factory does not start, and says why.
        """
        program = self.program()
        program.start("-c", PROGRAM, program.endpoint, "fails")
        self.assertEqual(program.status(), 1)
        self.assertTrue(
            program.output.endswith("milter Mine could not start: ValueError: no database\n")
        )

    async def test_end_before_the_start(self) -> None:
        """
        run_milters may be told to end while a factory starts.
        """
        program = self.program()
        program.start("-c", PROGRAM, program.endpoint, "hangs")
        while "started" not in program.output.split():
            await deferLater(reactor, 0.02)
        program.signal()
        self.assertEqual(program.ended(), "starting\nstarted\n")
