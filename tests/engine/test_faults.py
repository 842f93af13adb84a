"""
Tests with faults: connections that go at any moment, peers that read slowly, milters that fail.

A conversation of two messages is cut after each of its bytes, with milters of each kind. Whatever
happens, milters hear of each end once and in order, what they awaited is cancelled, and nothing is
left: no timer, no error, no reference.
"""

from __future__ import annotations

import gc
import socket
import tempfile
import weakref
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import StringTransport
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from tests.conversation_helpers import (
    CONNECT,
    EOM,
    HELO,
    MAIL,
    MESSAGE,
    QUIT_NC,
    RCPT,
    STEPS,
    UNKNOWN,
    Conversation,
    ConversationTestCase,
    Waiting,
    full,
    macros,
    names,
    offer,
    packet,
    parse,
    started,
)
from yatxmilter import Milter, MilterFactory, MilterProtocolFactory
from yatxmilter.constants import SMFIS_CONTINUE, SMFIS_REJECT

PEER = IPv4Address("TCP", "192.0.2.25", 4242)
BEFORE = offer() + macros("C", b"j", b"mx.example.net") + CONNECT + HELO
#: Two messages, RSET, an unknown command, a new connection on the same agreement.
STREAM = (
    BEFORE + macros("M", b"i", b"1") + MESSAGE + MAIL + RCPT + packet("A") + UNKNOWN
    + MESSAGE + QUIT_NC + CONNECT + HELO + MAIL + packet("Q")
)  # fmt: skip


class Witness(Milter):
    """
    A milter that checks what is done to it; what its answers are is its subclasses' matter.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.seen: list[str] = []
        self.awaited: list[Deferred[Any]] = []

    def answer(self, name: str) -> Any:
        return None

    def xxfi_abort(self) -> None:
        self.seen.append("abort")

    def xxfi_close(self) -> None:
        self.seen.append("close")

    def xxfi_mta_close(self, reason: Failure) -> None:
        self.seen.append("mta_close")


def _step(name: str) -> Any:
    def callback(self: Witness, *_: Any) -> Any:
        self.seen.append(name)
        if name == "eom":
            self.smfi_addheader("X", "y")
        return self.answer(name)

    return callback


class Sync(Witness):
    for _name in STEPS:
        locals()[f"xxfi_{_name}"] = _step(_name)


class Awaiting(Sync):
    """
    Deferreds; all but the one of a chosen step fire at once.
    """

    def answer(self, name: str) -> Any:
        deferred: Deferred[Any] = Deferred()
        self.awaited.append(deferred)
        if name != self.factory.name:
            deferred.callback(SMFIS_CONTINUE)
        return deferred


class Coroutine(Awaiting):
    def answer(self, name: str) -> Any:
        return self.wait(super().answer(name))

    async def wait(self, deferred: Deferred[Any]) -> Any:
        return await deferred


class Failing(Sync):
    def answer(self, name: str) -> Any:
        if name in ("helo", "body"):
            return fail(RuntimeError("no"))
        raise RuntimeError("no")


class Wire(StringTransport):
    """
    A transport that goes when it is told to.
    """

    def __init__(self) -> None:
        super().__init__(peerAddress=PEER)


class CutTests(ConversationTestCase):
    """
    The MTA vanishes after any byte.
    """

    def play(self, kind: type[Witness], data: bytes, error: Exception, name: str = "no") -> None:
        """
        Say this in pieces, lose the connection, and look at what is left.
        """
        clock = Clock()
        milters = [MilterFactory(kind, name=name, timeout=50), MilterFactory(Sync)]
        factory = MilterProtocolFactory(milters, reactor=clock)
        protocol = factory.buildProtocol(PEER)
        wire = Wire()
        protocol.makeConnection(wire)
        for start in range(0, len(data), 50):
            if not wire.disconnecting:
                protocol.dataReceived(data[start : start + 50])
        protocol.connectionLost(Failure(error))
        for milter in protocol.milters:
            self.assert_told(milter.seen, kind is Failing)
            self.assertTrue(all(one.called for one in milter.awaited))
        self.assertEqual(clock.getDelayedCalls(), [])
        self.assertEqual((factory.connections, factory.admission.count), (set(), 0))
        parse(wire.value())

    def assert_told(self, seen: list[str], failing: bool) -> None:
        self.assertEqual(seen.count("mta_close"), 1)
        self.assertEqual(seen[-2:], ["close", "mta_close"])
        # A second one for the connection that QUIT_NC ended.
        self.assertLessEqual(seen.count("close"), 2)
        in_message = False
        before = ""
        for name in seen:
            if name == "abort":
                # Or its end was awaited.
                self.assertTrue(in_message or before == "eom", seen)
            if name in ("abort", "eom"):
                in_message = False
            elif name in ("envfrom", "envrcpt", "data", "header", "eoh", "body"):
                in_message = True
            before = name
        # A milter that fails has itself ended the message.
        self.assertFalse(in_message and not failing, seen)

    def cut_everywhere(self, kind: type[Witness], stride: int = 1, **options: Any) -> None:
        errors = (ConnectionDone(), ConnectionLost(), ConnectionAborted())
        for place in range(0, len(STREAM) + 1, stride):
            self.play(kind, STREAM[:place], errors[place % 3], **options)

    def test_with_answers_at_once(self) -> None:
        """
        With answers at once.
        """
        self.cut_everywhere(Sync)
        self.assertEqual(self.failures(), [])

    def test_with_deferreds_that_have_fired(self) -> None:
        """
        With Deferreds that have fired.
        """
        self.cut_everywhere(Awaiting)
        self.assertEqual(self.failures(), [])

    def test_awaited_at_each_stage(self) -> None:
        """
        With a Deferred or a coroutine awaited at each of the stages in turn.
        """
        for kind in (Awaiting, Coroutine):
            for name in STEPS:
                self.cut_everywhere(kind, stride=23, name=name)
        self.assertEqual(self.failures(), [])

    def test_with_coroutines_that_do_not_wait(self) -> None:
        """
        With coroutines that do not wait.
        """
        self.cut_everywhere(Coroutine)
        self.assertEqual(self.failures(), [])

    def test_milter_that_fails_in_every_callback_answers_on_error(self) -> None:
        """
        With a milter that fails in every callback: nothing but its own failures is logged.
        """
        self.cut_everywhere(Failing, stride=3)
        kinds = {failure.type for failure in self.failures()}
        self.assertEqual(kinds, {RuntimeError})

    def test_nothing_holds_milter_or_its_connection_when_connection_has_gone(self) -> None:
        """
        Nothing holds a milter, or its connection, when the connection has gone.
        """
        for kind in (Sync, Awaiting, Coroutine):
            for place in (len(BEFORE), len(STREAM) // 2, len(STREAM)):
                mta = Conversation(MilterFactory(kind, name="eom", timeout=50))
                mta.send(STREAM[:place])
                if not mta.closed:
                    mta.drop()
                left = [weakref.ref(one) for one in (mta.protocol, *mta.protocol.milters)]
                mta.transport = mta.protocol = None  # type: ignore[assignment]
                gc.collect()
                self.assertEqual([ref() for ref in left], [None, None], (kind, place))


class ShareTests(ConversationTestCase):
    """
    Milters that share what they wait for.
    """

    def test_another_one_fires_it(self) -> None:
        """
        A Deferred that is fired while the next milter is called, such as by a batch of look-ups,
        is an answer like any other.
        """
        for stage in ("negotiate", "mta_connect", "envfrom"):
            waiting = Waiting()
            first = full("First", **{stage: waiting})
            second = full("Second", **{stage: lambda *_, w=waiting: w.fire() or SMFIS_CONTINUE})
            mta = Conversation(first, second)
            self.assertEqual(mta.letters(offer() + MAIL + RCPT), "Occ", stage)

    def test_when_one_that_came_early_ends_round_those_behind_it_are_cancelled(self) -> None:
        """
        When the one that came early ends the round, those behind it are cancelled.
        """
        early, late = Waiting(), Waiting()
        mta = started(
            full("First", envfrom=early),
            full("Second", envfrom=late),
            full("Third", envfrom=lambda *_: early.fire(SMFIS_REJECT)),
        )
        self.assertEqual(mta.letters(MAIL), "r")
        self.assertEqual(late.cancelled, 1)

    def test_milter_that_refuses_early_while_connecting_ends_the_connection(self) -> None:
        """
        The same while connecting: who refuses early ends the connection.
        """
        early, late = Waiting(), Waiting()
        mta = Conversation(
            full("First", mta_connect=early),
            full("Second", mta_connect=late),
            full("Third", mta_connect=lambda *_: early.fire(SMFIS_REJECT)),
        )
        self.assertEqual((mta.closed, late.cancelled), (True, 1))

    def test_cancelling_fires_another(self) -> None:
        """
        To cancel one Deferred may make another fire: a round that is over stays over.
        """
        for merge in ("first", "strictest"):
            waiting = Waiting()
            shared: Deferred[Any] = Deferred()
            cancelling: Deferred[Any] = Deferred(lambda _, d=shared: d.callback(SMFIS_REJECT))
            mta = started(
                full("First", envfrom=lambda *_, d=cancelling: d),
                full("Second", envfrom=lambda *_, d=shared: d),
                full("Third", envfrom=waiting),
                merge=merge,
            )
            mta.send(MAIL)
            mta.drop()
            self.assertEqual((mta.written(), waiting.cancelled), (b"", 1))
            self.assertTrue(shared.called)

    def test_cancelling_fires_another_in_negotiation(self) -> None:
        """
        The same in negotiation.
        """
        shared: Deferred[Any] = Deferred()
        cancelling: Deferred[Any] = Deferred(lambda _: shared.callback(SMFIS_CONTINUE))
        mta = Conversation(
            full("First", negotiate=lambda *_: cancelling),
            full("Second", negotiate=lambda *_: shared),
        )
        mta.send(offer())
        mta.drop()
        self.assertEqual(mta.written(), b"")

    def test_ended_by_a_callback(self) -> None:
        """
        A callback may end the conversation; what it answers then, at once or later, is dropped.
        """
        for answer in (SMFIS_REJECT, Waiting()):

            def end(self: Any, *_: Any, answer: Any = answer) -> Any:
                self.protocol.give_up()
                return answer() if callable(answer) else answer

            mta = started(full(helo=end))
            self.assertEqual((mta.letters(HELO), mta.closed), ("", True))
            if isinstance(answer, Waiting):
                self.assertEqual(answer.cancelled, 1)
            self.assertEqual(mta.clock.getDelayedCalls(), [])

    def test_recipient_discarded_twice(self) -> None:
        """
        A second DISCARD of a recipient is not told to the others again.
        """
        other = full("Other")
        mta = started(other, full(envrcpt=2))
        self.assertEqual(mta.letters(MAIL + RCPT + RCPT + packet("A")), "cdd")
        self.assertEqual(names(other.calls).count("abort"), 1)

    def test_verdict_kept_in_silence(self) -> None:
        """
        A verdict of a step that is not answered is not given to an unknown command, and stands
        for each recipient.
        """
        for merge in ("first", "strictest"):
            mta = started(full(envfrom=SMFIS_REJECT, quiet=("envfrom",)), merge=merge)
            self.assertEqual(mta.letters(MAIL + UNKNOWN + RCPT + RCPT), "crr", merge)


class Editing(Milter):
    """
    A milter whose answers are large.
    """

    def xxfi_negotiate(self, actions: int, steps: int) -> Any:
        return SMFIS_CONTINUE, actions, 0x37F & ~0x4

    def xxfi_envfrom(self, argv: list[str]) -> None:
        pass

    def xxfi_eom(self) -> None:
        self.smfi_replacebody(b"x" * 300_000)


class SocketTests(TestCase):
    """
    Real sockets with small buffers.
    """

    timeout = 60

    def setUp(self) -> None:
        # Under -bb: Twisted's UNIX transport compares bytes with a string.
        self.addCleanup(self.flushWarnings)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = str(Path(folder.name) / "socket")
        self.listen(write_timeout=30)

    def listen(self, write_timeout: float) -> None:
        """
        Serve on the path.
        """
        self.factory = MilterProtocolFactory(MilterFactory(Editing), write_timeout=write_timeout)
        port = reactor.listenUNIX(self.path, self.factory)
        self.addCleanup(port.stopListening)

    def talk(self, amount: int) -> int:
        """
        Ask for large answers, read so many bytes at a time, and count the answers.
        """
        with socket.socket(socket.AF_UNIX) as mta:
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                mta.setsockopt(socket.SOL_SOCKET, option, 4096)
            mta.settimeout(30)
            mta.connect(self.path)
            mta.sendall(offer() + (MAIL + EOM) * 5)
            found = b""
            while found.count(b"\0\0\0\1c") < 10:
                piece = mta.recv(amount)
                if not piece:
                    break
                found += piece
        return found.count(b"\0\0\0\1c")

    async def test_one_that_reads_in_small_pieces_gets_all_in_order(self) -> None:
        """
        One that reads in small pieces gets all, in order.
        """
        self.assertEqual(await deferToThread(self.talk, 5000), 10)

    async def test_reader_that_stops(self) -> None:
        """
        One that does not read at all is cut off.
        """
        self.path += "-of-the-impatient"
        self.listen(write_timeout=0.2)
        with socket.socket(socket.AF_UNIX) as mta:
            mta.connect(self.path)
            mta.setblocking(False)
            mta.sendall(offer() + (MAIL + EOM) * 5)
            while not self.factory.connections:
                await deferLater(reactor, 0.01)
            while self.factory.connections:
                await deferLater(reactor, 0.01)

    async def test_gone_with_answers_unread(self) -> None:
        """
        One that goes away with answers unread leaves nothing behind.
        """
        with socket.socket(socket.AF_UNIX) as mta:
            mta.connect(self.path)
            mta.sendall(offer() + (MAIL + EOM) * 5)
            while not self.factory.connections:
                await deferLater(reactor, 0.01)
        while self.factory.connections:
            await deferLater(reactor, 0.01)
