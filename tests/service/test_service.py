"""
Tests of `yatxmilter.service`, on real sockets.

The MTA's side is our own client, or a bare socket where bytes or their absence are looked at.
"""

from __future__ import annotations

import os
import socket
import stat
import tempfile
import threading
from pathlib import Path
from typing import Any

from twisted import internet
from twisted.application.service import IService
from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import TCP4ServerEndpoint, serverFromString
from twisted.internet.error import ConnectError
from twisted.internet.task import deferLater
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from tests.programs import ProgramTestCase
from yatxmilter import Milter, MilterFactory, MilterProtocolFactory
from yatxmilter.client import MilterClient, connect_milter
from yatxmilter.constants import SMFIS_CONTINUE, SMFIS_TEMPFAIL
from yatxmilter.service import MilterService, run_milters


class Slow(Milter):
    """
    A milter whose end of message is awaited.
    """

    def xxfi_envfrom(self, argv: list[str]) -> None:
        pass

    def xxfi_eom(self) -> Deferred[Any]:
        self.factory.awaited.callback(None)
        return self.factory.answer  # type: ignore[no-any-return]


class SlowFactory(MilterFactory):
    """
    Says when the end of message is reached, and is told the answer.
    """

    def __init__(self) -> None:
        super().__init__(Slow)
        self.awaited: Deferred[None] = Deferred()
        self.answer: Deferred[Any] = Deferred()


class BrokenEndpoint:
    """
    An endpoint whose port does not close.
    """

    def listen(self, factory: object) -> Deferred[Any]:
        return succeed(self)

    def stopListening(self) -> None:
        raise OSError("no")


class ServiceTests(TestCase):
    """
    A service that listens on a UNIX socket or on loopback.
    """

    timeout = 60

    def setUp(self) -> None:
        # Under -bb: Twisted's UNIX transport compares bytes with a string.
        self.addCleanup(self.flushWarnings)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "socket"
        self.milters = SlowFactory()

    def service(self, spec: str = "", **options: Any) -> MilterService:
        endpoint = serverFromString(reactor, spec or f"unix:{self.path}")
        return MilterService(endpoint, MilterProtocolFactory(self.milters), **options)

    async def client(self) -> MilterClient:
        client = await connect_milter(f"unix:{self.path}")
        await client.negotiate()
        return client

    async def test_stopping_lets_message_in_progress_end_with_milters_own_answer(self) -> None:
        """
        Stopping lets a message in progress end with the milter's own answer, then is done.
        """
        service = self.service()
        service.startService()
        client = await self.client()
        outcome = client.send_message(b"A: b\r\n\r\nc\r\n", "<s@example.org>", ["<r@example.net>"])
        await self.milters.awaited
        done: list[object] = []
        stopped = service.stopService().addCallback(done.append)
        with self.assertRaises(ConnectError):
            await connect_milter(f"unix:{self.path}")
        self.assertEqual(done, [])
        self.milters.answer.callback(SMFIS_CONTINUE)
        self.assertEqual((await outcome).verdict, SMFIS_CONTINUE)
        await stopped
        self.assertEqual(service.factory.connections, set())
        self.assertFalse(self.path.exists())
        await client.quit()

    async def test_message_that_takes_longer_than_drain_timeout_is_answered_tempfail(self) -> None:
        """
        A message that takes longer than drain_timeout is answered TEMPFAIL.
        """
        service = self.service(drain_timeout=0.05)
        service.startService()
        client = await self.client()
        outcome = client.send_message(b"A: b\r\n\r\nc\r\n", "<s@example.org>", ["<r@example.net>"])
        await self.milters.awaited
        cancelled = self.milters.answer
        await service.stopService()
        self.assertEqual((await outcome).verdict, SMFIS_TEMPFAIL)
        self.assertTrue(cancelled.called)
        await client.quit()

    async def test_idle_connections_are_closed_when_it_stops(self) -> None:
        """
        Idle connections are closed when it stops.
        """
        service = self.service()
        service.startService()
        client = await self.client()
        await service.stopService()
        self.assertEqual(service.factory.connections, set())
        await client.quit()

    async def test_service_listens_on_tcp_ports_as_well(self) -> None:
        """
        It listens on TCP ports as well.
        """
        listening: Deferred[Any] = Deferred()
        endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
        listen = endpoint.listen
        endpoint.listen = lambda factory: listen(factory).addCallback(
            lambda port: (listening.callback(port), port)[1]
        )
        service = MilterService(endpoint, MilterProtocolFactory(MilterFactory()))
        service.startService()
        port = await listening
        client = await connect_milter(f"inet:{port.getHost().port}@127.0.0.1")
        await client.negotiate()
        await service.stopService()
        await client.quit()

    async def test_unix_socket_has_permissions_that_endpoint_says(self) -> None:
        """
        A UNIX socket has the permissions that the endpoint says: that is who may connect.
        """
        service = self.service(f"unix:{self.path}:mode=660")
        service.startService()
        self.assertEqual(stat.S_IMODE(os.stat(self.path).st_mode), 0o660)
        await service.stopService()


class ConstructionTests(SynchronousTestCase):
    """
    What can be told before it starts.
    """

    def test_milter_service_is_a_service(self) -> None:
        """
        It is a service.
        """
        service = MilterService(BrokenEndpoint(), MilterProtocolFactory(()))
        verifyObject(IService, service)
        self.assertEqual(service.drain_timeout, 30)

    def test_factory_that_is_none_and_time_out_that_is_none_are_refused(self) -> None:
        """
        A factory that is none, and a time-out that is none, are refused.
        """
        for error, factory, seconds in (
            (TypeError, MilterFactory(), 30),
            (TypeError, MilterProtocolFactory(()), "30"),
            (ValueError, MilterProtocolFactory(()), 0),
        ):
            with self.assertRaises(error):
                MilterService(BrokenEndpoint(), factory, drain_timeout=seconds)

    def test_port_does_not_close(self) -> None:
        """
        A port that fails to close is reported once the connections are gone.
        """
        service = MilterService(BrokenEndpoint(), MilterProtocolFactory(()))
        service.startService()
        self.failureResultOf(service.stopService(), OSError)


#: A milter that takes half a second for a message, and says so.
PROGRAM = """
import sys
from twisted.internet import reactor
from twisted.internet.task import deferLater
from yatxmilter import Milter, MilterFactory, MilterProtocolFactory
from yatxmilter.service import run_milters

class Slow(Milter):
    async def xxfi_eom(self):
        print("at it", flush=True)
        await deferLater(reactor, 0.5)

run_milters(sys.argv[1], MilterProtocolFactory(MilterFactory(Slow)))
"""


class RunTests(ProgramTestCase):
    """
    `run_milters`, in programs.
    """

    async def test_sigterm_lets_message_in_progress_come_to_its_end_then_program_ends(self) -> None:
        """
        SIGTERM lets the message in progress come to its end; then the program ends, with 0.
        """
        program = self.program()
        program.start("-c", PROGRAM, program.endpoint)
        client = await program.connect()
        await client.negotiate()
        outcome = client.send_message(b"A: b\r\n\r\nc\r\n", "<s@example.org>", ["<r@example.net>"])
        while "at it" not in program.output:
            await deferLater(reactor, 0.01)
        program.signal()
        self.assertEqual((await outcome).verdict, SMFIS_CONTINUE)
        await client.quit()
        self.assertIn("at it\n", program.ended())

    async def test_says_where_it_listens(self) -> None:
        """
        A program that has no log of its own says on standard error where it listens, and when it
        drains and stops; one that ends before it listens says nothing.
        """
        program = self.program()
        program.start("-c", PROGRAM, program.endpoint)
        await (await program.connect()).quit()
        lines = [line.partition("#info] ")[2] for line in program.stop().splitlines()]
        self.assertEqual(
            lines,
            [
                f"Ready, listening on {program.endpoint}",
                "Draining: 0 connections come to their end",
                "Stopped",
            ],
        )

    async def test_program_that_cannot_listen_says_why_and_ends_with_1(self) -> None:
        """
        A program that cannot listen says why, and ends with 1.
        """
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            for spec in (f"inet:{port}@127.0.0.1", "/nowhere/socket"):
                program = self.program()
                program.start("-c", PROGRAM, spec)
                self.assertEqual(program.status(), 1)
                self.assertRegex(program.output, f"^cannot listen on {spec}: .+\n$")

    def test_reactor_of_a_test_ends_without_the_process(self) -> None:
        """
        On a reactor in memory it serves, drains and closes the port; the process is left alone.
        """
        memory: Any = MemoryReactorClock()
        served: list[int] = []

        def run() -> None:
            served.append(len(memory.tcpServers))
            for function, arguments, named in memory.triggers["before"]["shutdown"]:
                function(*arguments, **named)

        memory.run = run
        self.patch(internet, "reactor", memory)
        before = threading.active_count()
        with self.assertRaises(SystemExit) as end:
            run_milters("inet:9900@127.0.0.1", MilterProtocolFactory(MilterFactory(Milter)))
        self.assertEqual((end.exception.code, served), (0, [1]))
        self.assertNotIn("during", memory.triggers)
        self.assertEqual(threading.active_count(), before)

    def test_what_is_no_address(self) -> None:
        """
        What is no address, no factory or no time is told before anything runs.
        """
        factory = MilterProtocolFactory(MilterFactory(Milter))
        self.assertRaises(ValueError, run_milters, "nowhere", factory)
        self.assertRaises(TypeError, run_milters, "inet:0@127.0.0.1", MilterFactory(Milter))
        self.assertRaises(ValueError, run_milters, "inet:0@127.0.0.1", factory, drain_timeout=-1)
