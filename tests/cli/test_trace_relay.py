"""
Tests of `yatxmilter._cli.trace_relay`: bytes, and the ways in which connections end.

Real sockets, because it is their ends that count: an MTA and a milter made of plain sockets are at
both ends of the relay, and the reactor runs until what they wait for has happened.
"""

from __future__ import annotations

import socket
import struct
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import ISSLTransport
from twisted.internet.task import deferLater
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer

from tests.ports import free_port
from yatxmilter._cli import trace_relay
from yatxmilter._cli.trace_relay import Relay
from yatxmilter.protocol._endpoints import client_endpoint, server_endpoint

#: Seconds after which what has not happened never will.
PATIENCE = 60.0

#: More than the buffers of a connection hold, with no two blocks alike.
PATTERN = bytes(range(251)) * 130_000


class Notes:
    """
    A watcher that remembers.
    """

    def __init__(self) -> None:
        self.bytes: dict[tuple[int, bool], bytes] = {}
        self.events: list[tuple[Any, ...]] = []

    def opened(self, number: int) -> None:
        self.events.append(("opened", number))

    def passed(self, number: int, from_mta: bool, data: bytes) -> None:
        key = number, from_mta
        self.bytes[key] = self.bytes.get(key, b"") + data

    def unreachable(self, number: int, reason: Failure) -> None:
        self.events.append(("unreachable", number))

    def ended(self, number: int, from_mta: bool, how: str) -> None:
        self.events.append((how, number, "mta" if from_mta else "milter"))

    def closed(self, number: int, by: str) -> None:
        self.events.append(("closed", number, by))


class RelayCase(TestCase):
    """
    A relay between a listening socket of ours and whoever connects.
    """

    timeout = 60

    async def start(self, *, unix: bool = False) -> None:
        """
        Listen, at both ends.
        """
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = Path(folder.name)
        self.family = socket.AF_UNIX if unix else socket.AF_INET
        self.where: Any = str(path / "relay") if unix else ("127.0.0.1", free_port())
        self.listening = socket.socket(self.family)
        self.addCleanup(self.listening.close)
        self.listening.bind(str(path / "milter") if unix else ("127.0.0.1", 0))
        self.listening.listen()
        self.listening.setblocking(False)
        name: Any = self.listening.getsockname()
        self.notes = Notes()
        self.relay = Relay(client_endpoint(reactor, name if unix else f"inet:{name[1]}@127.0.0.1"))
        self.relay.watcher = self.notes
        spec = self.where if unix else f"inet:{self.where[1]}@127.0.0.1"
        port: Any = await server_endpoint(reactor, spec).listen(self.relay)
        self.addCleanup(port.stopListening)
        self.addCleanup(lambda: self.relay.stop(reactor))

    def dial(self) -> socket.socket:
        """
        Connect as an MTA.
        """
        mta = socket.socket(self.family)
        self.addCleanup(mta.close)
        mta.connect(self.where)
        mta.setblocking(False)
        return mta

    async def connect(self) -> tuple[socket.socket, socket.socket]:
        """
        Connect as an MTA; give that, and the milter's end.
        """
        mta = self.dial()
        milter = await self.until(lambda: self.listening.accept()[0])
        self.addCleanup(milter.close)
        milter.setblocking(False)
        return mta, milter

    async def until(self, there: Callable[[], Any]) -> Any:
        """
        Run the reactor until this gives something; what would block gives nothing.
        """
        deadline = reactor.seconds() + PATIENCE  # type: ignore[attr-defined]
        while True:
            try:
                value = there()
            except BlockingIOError:
                value = None
            if value is not None and value is not False:
                return value
            if reactor.seconds() > deadline:  # type: ignore[attr-defined]
                raise AssertionError(f"it has not happened: {self.notes.events}")
            await self.turn()

    async def read(self, end: socket.socket, size: int) -> bytes:
        """
        Read so many bytes.
        """
        data = b""
        while len(data) < size:
            try:
                piece = await self.until(partial(end.recv, size - len(data)))
            except ConnectionResetError:
                break
            if not piece:
                break
            data += piece
        return data

    async def fill(self, end: socket.socket) -> int:
        """
        Send until nothing more is taken; give how much that was.
        """
        sent = idle = 0
        while idle < 50:
            try:
                sent += end.send(PATTERN[sent : sent + 65536])
                idle = 0
            except BlockingIOError:
                idle += 1
                await self.turn(0.002)
        return sent

    async def turn(self, seconds: float = 0.001) -> None:
        """
        Let the reactor have its turn.
        """
        pause: Deferred[None] = deferLater(reactor, seconds)
        await pause

    async def at_end(self, end: socket.socket) -> str:
        """
        Wait for the end of what comes.
        """
        try:
            data = await self.until(lambda: end.recv(1))
        except ConnectionResetError:
            return "reset"
        return "more" if data else "end"

    async def over(self) -> tuple[Any, ...]:
        """
        Wait until the relay has forgotten the connection.
        """
        events = self.notes.events
        await self.until(lambda: events and events[-1][0] == "closed")
        return events[-1]


def reset(end: socket.socket) -> None:
    """
    Close with a reset.
    """
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()


class ByteTests(RelayCase):
    """
    All bytes arrive, as they were.
    """

    async def test_byte_by_byte(self) -> None:
        """
        Each byte is there before the next one is sent, both ways.
        """
        await self.start()
        mta, milter = await self.connect()
        for number in range(40):
            byte = bytes([number])
            mta.sendall(byte)
            self.assertEqual(await self.read(milter, 1), byte)
            milter.sendall(byte)
            self.assertEqual(await self.read(mta, 1), byte)
        self.assertEqual(self.notes.bytes[1, True], bytes(range(40)))
        self.assertEqual(self.notes.bytes[1, False], bytes(range(40)))

    async def test_side_that_does_not_read_holds_up_other_then_everything_comes(self) -> None:
        """
        A side that does not read holds up the other; then everything comes, and the end behind it.
        """
        for unix in (False, True):
            await self.start(unix=unix)
            mta, milter = await self.connect()
            sent = await self.fill(mta)
            self.assertGreater(sent, len(self.notes.bytes[1, True]))
            mta.shutdown(socket.SHUT_WR)
            got = await self.read(milter, sent + 1)
            self.assertEqual(got, PATTERN[:sent])
            milter.close()
            await self.over()

    async def test_connections_do_not_mix(self) -> None:
        """
        Connections do not mix.
        """
        await self.start(unix=True)
        pairs = [await self.connect() for _ in range(3)]
        for number, (mta, _) in enumerate(pairs):
            mta.sendall(b"%d" % number)
        self.assertEqual([await self.read(milter, 1) for _, milter in pairs], [b"0", b"1", b"2"])
        self.assertEqual(len(self.notes.events), 3)


class EndTests(RelayCase):
    """
    Ends are passed on as they came.
    """

    async def test_end_of_one_direction_leaves_other_open_whichever_side_begins(self) -> None:
        """
        The end of one direction leaves the other open, whichever side begins.
        """
        for unix, turned in ((False, False), (False, True), (True, False)):
            await self.start(unix=unix)
            one, two = await self.connect()
            who = ["mta", "milter"]
            if turned:
                one, two = two, one
                who.reverse()
            one.sendall(b"last")
            one.shutdown(socket.SHUT_WR)
            self.assertEqual(await self.read(two, 9), b"last")
            two.sendall(b"answer")
            self.assertEqual(await self.read(one, 6), b"answer")
            two.close()
            self.assertEqual(await self.at_end(one), "end")
            self.assertEqual(await self.over(), ("closed", 1, who[0]))
            self.assertEqual(self.notes.events[1], ("ended", 1, who[0]))

    async def test_reset_arrives_as_one(self) -> None:
        """
        A reset arrives as one, behind the bytes that were sent before it.
        """
        for turned in (False, True):
            await self.start()
            one, two = await self.connect()
            who = ["mta", "milter"]
            if turned:
                one, two = two, one
                who.reverse()
            one.sendall(b"last")
            self.assertEqual(await self.read(two, 4), b"last")
            reset(one)
            self.assertEqual(await self.at_end(two), "reset")
            self.assertEqual(await self.over(), ("closed", 1, who[0]))
            self.assertIn(("reset", 1, who[0]), self.notes.events)

    async def test_last_word_and_reset(self) -> None:
        """
        What a milter says right before it crashes gets to the MTA, however slowly that reads.
        """
        await self.start(unix=True)
        mta, milter = await self.connect()
        mta.sendall(b"unread")
        await self.until(lambda: self.notes.bytes.get((1, True)) == b"unread")
        sent = await self.fill(milter)
        milter.close()
        got = await self.read(mta, sent + 1)
        self.assertEqual(got, self.notes.bytes[1, False])
        self.assertEqual(got, PATTERN[: len(got)])
        self.assertEqual(await self.over(), ("closed", 1, "milter"))

    async def test_when_there_is_no_milter_mtas_connection_is_closed_at_once(self) -> None:
        """
        When there is no milter the MTA's connection is closed at once.
        """
        await self.start()
        self.listening.close()
        mta = self.dial()
        mta.sendall(b"hello")
        self.assertIn(await self.at_end(mta), ("end", "reset"))
        self.assertEqual(await self.over(), ("closed", 1, "milter"))
        self.assertEqual(self.notes.events[1], ("unreachable", 1))

    async def test_when_relay_is_stopped_both_sides_are_closed(self) -> None:
        """
        When the relay is stopped both sides are closed.
        """
        await self.start()
        mta, milter = await self.connect()
        await self.relay.stop(reactor)
        self.assertEqual(await self.at_end(mta), "end")
        self.assertEqual(await self.at_end(milter), "end")
        self.assertEqual(self.notes.events, [("opened", 1), ("closed", 1, "trace")])

    async def test_stop_with_slow_reader(self) -> None:
        """
        One that does not read what is written to it is not waited for.
        """
        self.patch(trace_relay, "_LAST_GRACE", 0.01)
        await self.start()
        mta, _ = await self.connect()
        await self.fill(mta)
        await self.relay.stop(reactor)
        self.assertEqual(self.notes.events[-1], ("closed", 1, "trace"))

    async def test_stop_while_connecting(self) -> None:
        """
        A connection that is still being made is given up.
        """
        await self.start()
        self.relay.endpoint = Waiting()
        mta = self.dial()
        await self.until(lambda: len(self.notes.events) > 0)
        await self.relay.stop(reactor)
        self.assertIn(await self.at_end(mta), ("end", "reset"))
        self.assertEqual(self.notes.events, [("opened", 1), ("closed", 1, "trace")])


class Waiting:
    """
    An endpoint to which no connection ever comes.
    """

    def connect(self, factory: object) -> Deferred[Any]:
        """
        Wait.
        """
        return Deferred()


@implementer(ISSLTransport)
class TlsTransport(StringTransport):
    """
    A transport that has no halves, and no socket.
    """

    def setTcpNoDelay(self, enabled: bool) -> None:
        """
        Do nothing.
        """

    def unregisterProducer(self) -> None:
        """
        Do as real ones do: it need not be there.
        """
        self.producer = None


class TlsTests(SynchronousTestCase):
    """
    Over TLS there are no half-closed connections.
    """

    def test_end_of_direction_or_reset_ends_all(self) -> None:
        """
        The end of a direction, or a reset, ends all.
        """

        class Ready:
            def connect(self, factory: Any) -> Deferred[Any]:
                milter = factory.buildProtocol(None)
                self.transport = TlsTransport()
                milter.makeConnection(self.transport)
                self.milter = milter
                return Deferred()

        for end in (
            lambda mta: mta.readConnectionLost(),
            lambda mta: mta.connectionLost(Failure(ConnectionError())),
        ):
            ready: Any = Ready()
            relay = Relay(ready)
            relay.watcher = Notes()
            mta: Any = relay.buildProtocol(None)
            mta.makeConnection(TlsTransport())
            mta.dataReceived(b"hello")
            self.assertEqual(ready.transport.value(), b"hello")
            end(mta)
            self.assertTrue(ready.transport.disconnecting)
