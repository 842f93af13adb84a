"""
A milter is served alike on both paths.

What Twisted promises for its own connections is in `tests.protocol.test_descriptor_set_twisted`.
"""

from __future__ import annotations

import os
import socket
from typing import Any
from unittest import skipIf

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.logger import LogEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from zope.interface import alsoProvides

from tests.conversation_helpers import (
    ABORT,
    EOM,
    HELO,
    MAIL,
    MESSAGE,
    QUIT,
    RCPT,
    Waiting,
    full,
    macros,
    names,
    packet,
    parse,
)
from tests.pathways import HAS_EPOLL, Mta, PathCase, both_paths, reactor
from yatxmilter import Milter, MilterProtocol
from yatxmilter.constants import SMFIS_CONTINUE
from yatxmilter.defaults import MilterObserver
from yatxmilter.protocol._descriptor_set import _LONG, _SHORT, _SOON, _TURN, connection_set


class _ServiceTests(PathCase):
    """
    Sessions, and how they end.
    """

    async def test_session_is_answered_on_path_that_was_asked_for(self) -> None:
        """
        A session is answered, on the path that was asked for, and ends as the MTA says.
        """
        self.serve(full(mta_close=None))
        mta, protocol = await self.mta()
        self.assertEqual(protocol._served is not None, self.fast_path and HAS_EPOLL)
        mta.send(MESSAGE)
        await self.until(lambda: mta.letters() == "ccccccc")
        mta.send(QUIT)
        await self.gone()
        await self.over(mta)
        self.assertEqual((mta.end, self.reasons()), ("closed", [ConnectionDone]))
        if protocol._served is not None:
            # It was made only where it was asked for.
            self.assertEqual(protocol._served.made is not None, self.has_transport)
            connections = connection_set(reactor)
            self.assertIn(connections, reactor.getReaders())
            await self.port.stopListening()
            self.assertNotIn(connections, reactor.getReaders())

    async def test_packets_of_any_size_are_read_whole(self) -> None:
        """
        Packets are read whole, whatever their size: also those that a short read just holds, and
        those that come after a large one, which are read with more room.
        """
        self.serve(full())
        mta, _ = await self.mta()
        mta.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 * _LONG)
        mta.send(MAIL + RCPT)
        sizes = [_SHORT - 1, _SHORT, _SHORT + 1, 2 * _SHORT, 6000, _SHORT, 20]
        sizes += [2 * _LONG, 6000, 2 * _LONG, _SHORT - 1, 2 * _LONG, _SHORT, 2 * _LONG, 20]
        answers = "cc"
        await self.until(lambda: mta.letters() == answers)
        for size in (*sizes, *sizes):
            mta.send(packet("L", b"N\0" + b"x" * (size - 8) + b"\0"))
            answers += "c"
            await self.until(lambda answers=answers: mta.letters() == answers)
        values = [call[-1] for call in self.milter.calls if call[0] == "header"]
        self.assertEqual([len(value) for value in values], [size - 8 for size in (*sizes, *sizes)])

    async def test_beginning_of_packet_waits_for_its_end(self) -> None:
        """
        A packet that is cut anywhere is handled when it is whole, macros before it or none; each
        beginning is the first of a read.
        """
        self.serve(full())
        mta, protocol = await self.mta()
        answers = ""
        for before in (b"", macros("H", b"j", b"mta")):
            for cut in range(1, len(HELO)):
                mta.send(before + HELO[:cut])
                splitter = protocol._conversation.splitter
                await self.until(lambda of=splitter: mta.read() or mta.end or of.partial)
                self.assertEqual((mta.letters(), mta.end), (answers, ""))
                mta.send(HELO[cut:])
                answers += "c"
                await self.until(lambda answers=answers: mta.letters() == answers)

    async def test_bytes_that_move_and_time_that_passes_are_told(self) -> None:
        """
        Observers are told of the bytes of each read and of each answer, and of the milters' work.
        """
        told: list[tuple[str, float]] = []

        class Observer(MilterObserver):
            reads_work = True

            def bytes_received(self, connection: Any, count: int) -> None:
                told.append(("read", count))

            def bytes_sent(self, connection: Any, count: int) -> None:
                told.append(("sent", count))

            def message_ended(self, connection: Any, outcome: str) -> None:
                told.append((outcome, connection.watch.worked))

        def rcpt(milter: Any, argv: list[str]) -> None:
            self.clock.advance(3)

        def eom(milter: Any) -> None:
            milter.smfi_addheader("X", "1")

        self.serve(full(envrcpt=rcpt, eom=eom), observers=[Observer()])
        mta, _ = await self.mta()
        told.clear()
        sent = (MAIL, macros("R", b"i", b"Q") + RCPT, EOM)
        for said, answers in zip(sent, ("c", "cc", "cchc"), strict=True):
            self.clock.advance(10)
            mta.send(said)
            await self.until(lambda answers=answers: mta.letters() == answers)
        read = [("read", len(said)) for said in sent]
        written = [("sent", 5), ("sent", 5), ("continue", 3), ("sent", 14)]
        self.assertEqual(told, [read[0], written[0], read[1], written[1], read[2], *written[2:]])

    async def test_bytes_that_nobody_is_told_of_are_counted(self) -> None:
        """
        Bytes are counted where an observer is told neither of them nor of the milters' work.
        """

        class Observer(MilterObserver):
            def message_ended(self, connection: Any, outcome: str) -> None:
                told.append((outcome, connection.traffic))

        told: list[object] = []
        self.serve(full(), observers=[Observer()])
        mta, protocol = await self.mta()
        received, sent = protocol.traffic
        for said, answers in ((MAIL, "c"), (macros("R", b"i", b"Q") + RCPT, "cc")):
            mta.send(said)
            received, sent = received + len(said), sent + 5
            await self.until(lambda answers=answers: mta.letters() == answers)
            self.assertEqual(protocol.traffic, (received, sent))
        mta.send(EOM)
        await self.until(lambda: mta.letters() == "ccc")
        self.assertEqual(told, [("continue", (received + len(EOM), sent))])
        self.assertEqual(protocol.traffic, (received + len(EOM), sent + 5))

    async def test_callback_that_has_its_connection_drained(self) -> None:
        """
        A callback that has its own connection drained is answered for before that ends.
        """
        for callback, said in (("helo", HELO), ("eom", MAIL + RCPT + EOM)):
            self.serve(
                full(mta_close=None, **{callback: lambda milter, *_: milter.protocol.drain()})
            )
            mta, _ = await self.mta()
            mta.send(said)
            await self.over(mta)
            self.assertEqual(mta.letters(), "c" * len(parse(said)))
            self.assertEqual(self.reasons(), [ConnectionDone])

    async def test_mta_that_goes_away_has_gone(self) -> None:
        """
        An MTA that goes away has gone: the milter is told so, once.
        """
        self.serve(full(mta_close=None))
        mta, _ = await self.mta()
        mta.send(MAIL)
        mta.socket.close()
        await self.gone()
        self.assertEqual(names(self.milter.calls)[-3:], ["abort", "close", "mta_close"])
        self.assertEqual(len(self.reasons()), 1)

    async def test_mta_that_closes_its_half_is_taken_for_one_that_has_gone(self) -> None:
        """
        An MTA that closes its half is taken for one that has gone, after what it has sent.
        """
        self.serve(full(mta_close=None))
        mta, _ = await self.mta()
        mta.send(MAIL)
        mta.socket.shutdown(socket.SHUT_WR)
        await self.gone()
        await self.over(mta)
        self.assertEqual(names(self.milter.calls)[-4], "envfrom")
        self.assertEqual(self.reasons(), [ConnectionDone])

    async def test_protocol_that_knows_of_halves_is_told_and_can_still_write(self) -> None:
        """
        A protocol that knows of halves is told, and can still write.
        """
        self.serve()
        mta, protocol = await self.mta()
        told: list[str] = []
        protocol.readConnectionLost = lambda: told.append("read")
        protocol.writeConnectionLost = lambda: told.append("write")
        alsoProvides(protocol, IHalfCloseableProtocol)
        mta.socket.shutdown(socket.SHUT_WR)
        await self.until(lambda: told)
        protocol.send(b"more")
        await self.until(lambda: mta.read() == b"more")
        protocol.transport.loseConnection()
        await self.gone()
        self.assertEqual(told, ["read"])

    async def test_connection_that_callback_aborts_is_lost_once_for_that_reason(self) -> None:
        """
        A connection that a callback aborts is lost once, for that reason, and answers no more.
        """

        def abort(milter: Any, *_: Any) -> None:
            milter.protocol.transport.abortConnection()

        self.serve(full(helo=abort, mta_close=None))
        mta, _ = await self.mta()
        mta.send(HELO)
        await self.gone()
        await self.over(mta)
        self.assertEqual(self.reasons(), [ConnectionAborted])

    async def test_connection_that_a_milter_refuses_at_once_is_closed(self) -> None:
        """
        A connection that a milter refuses at once is closed.
        """
        self.serve(full(mta_connect=Milter.ReturnCodes.REJECT, mta_close=None))
        mta = Mta(self.family, self.address)
        self.addCleanup(mta.socket.close)
        await self.over(mta)
        await self.gone()
        self.assertEqual(mta.received, b"")

    async def test_one_that_is_silent_for_too_long_is_closed(self) -> None:
        """
        One that is silent for too long is closed.
        """
        self.serve(full(mta_close=None), timeout=10)
        mta, _ = await self.mta()
        self.clock.advance(10)
        await self.gone()
        await self.over(mta)
        self.assertEqual(self.reasons(), [ConnectionDone])

    async def test_number_used_again(self) -> None:
        """
        A connection that has the descriptor number of one before it is served.
        """
        self.serve()
        numbers = set()
        for _ in range(3):
            mta, protocol = await self.mta()
            numbers.add(protocol.transport.fileno())
            mta.send(HELO + QUIT)
            await self.gone()
            await self.until(lambda mta=mta: mta.letters() == "c")
            mta.socket.close()
        self.assertEqual(len(numbers), 1)


class _BackPressureTests(PathCase):
    """
    MTAs that read slowly, and milters that answer slowly.
    """

    @staticmethod
    def editing() -> Any:
        """
        Make a milter whose answer to a message has three megabytes.
        """
        return full(eom=lambda milter: milter.smfi_replacebody(b"x" * 3_000_000))

    async def test_one_that_reads_in_small_pieces_gets_all_in_order(self) -> None:
        """
        One that reads in small pieces gets all, in order, and what it said meanwhile is answered.
        """
        self.serve(self.editing())
        mta, _ = await self.mta()
        mta.send(MAIL + RCPT + EOM + ABORT + HELO)
        while not mta.received.endswith(b"\0\0\0\1c\0\0\0\1c"):
            if not mta.read(50_000):
                await self.turn()
        found = parse(mta.received)
        self.assertEqual("".join(letter for letter, _ in found).replace("b", ""), "cccc")
        self.assertEqual(b"".join(data for _, data in found), b"x" * 3_000_000)

    async def test_peer_that_reads_something_within_the_limit_may_go_on(self) -> None:
        """
        As long as it reads something within each span of the time limit it may go on.
        """
        self.serve(self.editing(), write_timeout=100, timeout=500)
        mta, protocol = await self.mta()
        mta.send(MAIL + RCPT + EOM)
        await self.stuck(protocol)
        spans = 0
        while not mta.received.endswith(b"\0\0\0\1c"):
            self.clock.advance(90)
            spans += 1
            wanted = len(mta.received) + 500_000
            while len(mta.received) < wanted and not mta.received.endswith(b"\0\0\0\1c"):
                if not mta.read(50_000):
                    await self.turn()
        self.assertGreater(spans, 2)
        self.assertTrue(protocol.transport.connected)

    async def test_one_that_reads_nothing_for_that_time_is_cut_off(self) -> None:
        """
        One that reads nothing for that time is cut off.
        """
        self.serve(full(eom=self.editing().xxfi_eom, mta_close=None), write_timeout=100)
        mta, protocol = await self.mta()
        mta.send(MAIL + RCPT + EOM)
        await self.stuck(protocol)
        self.clock.advance(99)
        await self.turn()
        self.assertTrue(protocol.transport.connected)
        self.clock.advance(1)
        await self.gone()
        self.assertEqual(self.reasons(), [ConnectionAborted])
        self.assertIsNone(protocol._unsent)

    async def test_gone_with_much_unread(self) -> None:
        """
        One that goes away in the middle of a large answer is lost.
        """
        self.serve(full(eom=self.editing().xxfi_eom, mta_close=None))
        mta, protocol = await self.mta()
        mta.send(MAIL + RCPT + EOM)
        await self.stuck(protocol)
        mta.socket.close()
        await self.gone()
        self.assertEqual(len(self.reasons()), 1)

    async def test_ended_with_much_unread(self) -> None:
        """
        When we end a connection, all that was answered is still delivered, in order.
        """
        self.serve(self.editing())
        mta, protocol = await self.mta()
        mta.send(MAIL + RCPT + EOM)
        await self.stuck(protocol)
        # Behind the answer, which is not all written.
        protocol.send(b"!")
        protocol.give_up()
        while not mta.end:
            if not mta.read(200_000):
                await self.turn()
        self.assertEqual(mta.received[-6:], b"\0\0\0\1c!")
        self.assertEqual(mta.received.count(b"x"), 3_000_000)

    async def test_reading_is_paused_while_too_much_waits_for_a_milter(self) -> None:
        """
        Reading is paused while too much waits for a milter; one that vanishes then is lost after.
        """
        waiting = Waiting()
        self.serve(full(envfrom=waiting, mta_close=None), max_buffered=10, timeout=None)
        mta, protocol = await self.mta()
        mta.send(MAIL + RCPT)
        await self.until(lambda: protocol._paused)
        mta.send(HELO)
        mta.socket.shutdown(socket.SHUT_WR)
        for _ in range(5):
            await self.turn()
        self.assertTrue(protocol.transport.connected)
        waiting.fire(SMFIS_CONTINUE)
        await self.gone()
        self.assertIn("helo", names(self.milter.calls))
        self.assertEqual(self.reasons(), [ConnectionDone])

    async def test_paused_and_gone(self) -> None:
        """
        One that goes while reading is paused is missed, and what is awaited is cancelled.
        """
        waiting = Waiting()
        self.serve(full(envfrom=waiting, mta_close=None), max_buffered=10, timeout=None)
        mta, protocol = await self.mta()
        mta.send(MAIL + RCPT)
        await self.until(lambda: protocol._paused)
        self.clock.advance(10)
        await self.turn()
        self.assertTrue(protocol.transport.connected)
        mta.socket.close()
        await self.turn()
        self.clock.advance(10)
        await self.gone()
        self.assertEqual(waiting.cancelled, 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    async def test_paused_no_more(self) -> None:
        """
        One that is read again is not looked after any more.
        """
        waiting = Waiting()
        self.serve(full(envfrom=waiting), max_buffered=10, timeout=None)
        mta, protocol = await self.mta()
        mta.send(MAIL + RCPT)
        await self.until(lambda: protocol._paused)
        waiting.fire(SMFIS_CONTINUE)
        await self.until(lambda: mta.letters() == "cc")
        self.clock.advance(10)
        self.assertTrue(protocol.transport.connected)

    async def test_callback_that_blocks_the_process_is_told(self) -> None:
        """
        A callback that blocks the process is told, once; a quick one is not.
        """

        def helo(milter: Any, helohost: str) -> None:
            self.clock.advance(3)

        told: list[LogEvent] = []
        globalLogPublisher.addObserver(told.append)
        self.addCleanup(globalLogPublisher.removeObserver, told.append)
        self.serve(full(helo=helo), slow_callback=2)
        mta, _ = await self.mta()
        for sent, answers in ((HELO, "c"), (MAIL, "cc")):
            mta.send(sent)
            await self.until(lambda answers=answers: mta.letters() == answers)
        self.assertEqual([event["seconds"] for event in told if "hint" in event], [3])

    async def test_callback_that_takes_less_than_answers_wait_may_be_slow(self) -> None:
        """
        A limit below the time for which answers may wait is kept, too.
        """
        told: list[LogEvent] = []
        globalLogPublisher.addObserver(told.append)
        self.addCleanup(globalLogPublisher.removeObserver, told.append)
        self.serve(full(helo=lambda *_: self.clock.advance(_SOON / 2)), slow_callback=_SOON / 4)
        mta, _ = await self.mta()
        mta.send(HELO)
        await self.until(lambda: mta.letters() == "c")
        self.assertEqual([event["seconds"] for event in told if "hint" in event], [_SOON / 2])

    async def test_callback_that_blocks_the_process_where_the_mta_is_cut_off_is_told(self) -> None:
        """
        So is one that is called because the MTA breaks the protocol, and none that is quick.
        """
        told: list[LogEvent] = []
        globalLogPublisher.addObserver(told.append)
        self.addCleanup(globalLogPublisher.removeObserver, told.append)
        for seconds in (1, 3):
            slow = full(abort=lambda *_, seconds=seconds: self.clock.advance(seconds))
            self.serve(slow, slow_callback=2)
            mta, _ = await self.mta()
            mta.send(MAIL)
            await self.until(lambda mta=mta: mta.letters() == "c")
            mta.send(packet("D"))
            await self.over(mta)
        self.assertEqual([event["seconds"] for event in told if "hint" in event], [3])

    async def test_paused_and_reset(self) -> None:
        """
        One that is not read, but written to, is lost when it vanishes.
        """
        self.serve(full(mta_close=None))
        mta, protocol = await self.mta()
        protocol.transport.pauseProducing()
        protocol.send(b"x" * 3_000_000)
        await self.turn()
        mta.reset()
        await self.gone()
        self.assertEqual(self.reasons(), [ConnectionLost])


class _ErrorTests(PathCase):
    """
    Errors of one connection are its own.
    """

    def break_method(self, method: str) -> list[MilterProtocol]:
        """
        Have a method of all protocols that are in the list raise.
        """
        broken: list[MilterProtocol] = []
        original = getattr(MilterProtocol, method)

        def failing(protocol: MilterProtocol, *args: Any) -> None:
            if protocol not in broken or method == "connectionLost":
                original(protocol, *args)
            if protocol in broken:
                raise ZeroDivisionError(method)

        self.patch(MilterProtocol, method, failing)
        return broken

    async def fails(self, method: str, said: bytes = HELO + QUIT) -> None:
        """
        Let a method of one of two protocols raise when the MTA has said something; the other one is
        served on.
        """
        self.serve(full(mta_close=None))
        broken = self.break_method(method)
        mta, protocol = await self.mta()
        other, _ = await self.mta()
        broken.append(protocol)
        mta.send(said)
        await self.until(lambda: len(self.factory.connections) == 1)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        other.send(HELO)
        await self.until(lambda: other.letters() == "c")

    async def test_in_data_received(self) -> None:
        """
        An error in C{dataReceived} is logged, once, and ends its connection, for that reason.
        """
        await self.fails("dataReceived")
        self.assertEqual(self.reasons(), [ZeroDivisionError])

    async def test_in_end_of_one_that_breaks_the_protocol(self) -> None:
        """
        So does one at the end of a connection whose MTA breaks the protocol.
        """
        await self.fails("hang_up", packet("D"))
        self.assertEqual(self.reasons(), [ZeroDivisionError])

    async def test_while_answers_wait(self) -> None:
        """
        So does one at a time when answers wait to be read.
        """
        self.serve(full(mta_close=None))
        broken = self.break_method("dataReceived")
        mta, protocol = await self.mta()
        protocol.transport.write(b"x" * 3_000_000)
        broken.append(protocol)
        mta.send(HELO)
        while not self.reasons():
            mta.read()
            await self.turn()
        self.assertEqual(self.reasons(), [ZeroDivisionError])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    async def test_in_connection_lost(self) -> None:
        """
        An error in C{connectionLost} is logged, once, and nothing more.
        """
        await self.fails("connectionLost")
        self.assertEqual(self.reasons(), [ConnectionDone])


class _TogetherTests(PathCase):
    """
    Connections that are ready at the same time.
    """

    async def pair(self, act: Any, **answers: Any) -> tuple[list[Mta], list[Any]]:
        """
        Let two MTAs talk at once; whichever is served first does something to the other.
        """
        acted: list[Any] = []

        def helo(milter: Any, *_: Any) -> None:
            others = [found for found in self.factory.connections if found is not milter.protocol]
            if not acted:
                acted.append(milter.protocol)
                act(others[0])

        self.serve(full(helo=helo, mta_close=None, **answers))
        ends = [await self.mta() for _ in range(2)]
        for mta, _ in ends:
            mta.send(HELO)
        await self.until(lambda: acted)
        for _ in range(5):
            await self.turn()
        ends.sort(key=lambda end: end[1] is not acted[0])
        return [mta for mta, _ in ends], [protocol for _, protocol in ends]

    async def test_one_aborts_the_other(self) -> None:
        """
        One that was aborted in the same turn is not served; the one that did it is.
        """
        (first, second), _ = await self.pair(lambda other: other.transport.abortConnection())
        await self.until(lambda: first.letters() == "c")
        await self.over(second)
        self.assertEqual((second.received, self.reasons()), (b"", [ConnectionAborted]))

    async def test_one_closes_the_other(self) -> None:
        """
        One that was closed in the same turn is closed, once.
        """
        (first, second), _ = await self.pair(lambda other: other.give_up())
        await self.until(lambda: first.letters() == "c")
        await self.over(second)
        self.assertEqual((second.received, len(self.reasons())), (b"", 1))

    async def test_one_aborts_another_that_has_said_goodbye(self) -> None:
        """
        Those that end in the same turn, and are aborted by another, are lost once: those that were
        served before it, and those that would have been after it.
        """

        def helo(milter: Any, *_: Any) -> None:
            for other in list(self.factory.connections):
                if other is not milter.protocol:
                    other.transport.abortConnection()

        self.serve(full(helo=helo, mta_close=None))
        (first, _), (second, _), (third, _) = [await self.mta() for _ in range(3)]
        first.send(QUIT)
        second.send(HELO)
        third.send(QUIT)
        await self.until(lambda: second.letters() == "c")
        for mta in (first, third):
            await self.over(mta)
        await self.until(lambda: len(self.reasons()) >= 2)
        self.assertEqual(len(self.reasons()), 2)

    async def test_one_pauses_the_other(self) -> None:
        """
        One that was paused in the same turn is read when it is resumed.
        """
        (_, second), (_, paused) = await self.pair(lambda other: other.transport.pauseProducing())
        self.assertEqual(second.read(), b"")
        paused.transport.resumeProducing()
        await self.until(lambda: second.letters() == "c")

    async def test_nothing_to_read(self) -> None:
        """
        One whose bytes have gone elsewhere is served when there are more.
        """
        taken: list[bytes] = []
        (_, second), _ = await self.pair(
            lambda other: taken.append(other.transport.getHandle().recv(1000))
        )
        self.assertEqual(taken, [HELO])
        second.send(HELO)
        await self.until(lambda: second.letters() == "c")

    async def test_no_descriptor_leaks(self) -> None:
        """
        Descriptors that come along a UNIX connection do not stay open.
        """
        self.serve()
        mta, _ = await self.mta()
        if self.family != socket.AF_UNIX or not os.path.isdir("/proc/self/fd"):
            mta.send(HELO)
        else:
            before = len(os.listdir("/proc/self/fd"))
            socket.send_fds(mta.socket, [HELO], [mta.socket.fileno()])
        await self.until(lambda: mta.letters() == "c")
        if self.family == socket.AF_UNIX and self.fast_path and os.path.isdir("/proc/self/fd"):
            self.assertEqual(len(os.listdir("/proc/self/fd")), before)


both_paths(globals(), _ServiceTests, _BackPressureTests, _ErrorTests, _TogetherTests)


class ResetTests(PathCase, TestCase):
    """
    TCP connections that are reset, on the fast path.
    """

    family = socket.AF_INET

    async def test_one_that_is_reset_is_lost(self) -> None:
        """
        One that is reset is lost.
        """
        self.serve(full(mta_close=None))
        mta, _ = await self.mta()
        mta.reset()
        await self.gone()
        self.assertEqual(self.reasons(), [ConnectionLost])

    async def test_before_the_answer(self) -> None:
        """
        One that is reset while a callback is running is lost too, though it is writing that fails.
        """
        found: list[Mta] = []
        self.serve(full(helo=lambda *_: found[0].reset(), mta_close=None))
        mta, _ = await self.mta()
        found.append(mta)
        mta.send(HELO)
        await self.gone()
        self.assertEqual(self.reasons(), [ConnectionLost])


class OrdinaryResetTests(ResetTests):
    """
    The same on the ordinary path.
    """

    fast_path = False


@skipIf(not HAS_EPOLL, "there is no epoll here")
class EndTests(PathCase, TestCase):
    """
    The reactor ends, or a transport does what it does not do by itself.
    """

    async def test_all_connections_are_lost_each_once(self) -> None:
        """
        All connections are lost, each once, also where one of them fails or ends another.
        """
        self.serve(full(mta_close=None))
        ends = [await self.mta() for _ in range(4)]
        protocols = [protocol for _, protocol in ends]
        connections = protocols[0].transport.reactor._served.connections
        self.assertIn(connections, reactor.getReaders())
        reason = Failure(ConnectionLost())
        lost = protocols[0].connectionLost

        def ending(why: Failure) -> None:
            lost(why)
            protocols[1].transport.connectionLost(why)
            raise ZeroDivisionError

        protocols[0].connectionLost = ending
        # As a reactor does when it stops.
        reactor.removeReader(connections)
        connections.connectionLost(reason)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.reasons(), [ConnectionLost] * 4)
        self.assertEqual(self.factory.connections, set())

    async def test_being_told_to_go_on_without_a_stop_changes_nothing(self) -> None:
        """
        To be told to go on, without having been told to stop, changes nothing.
        """
        self.serve()
        mta, protocol = await self.mta()
        protocol.resumeProducing()
        mta.send(HELO)
        await self.until(lambda: mta.letters() == "c")


class FairTests(PathCase, TestCase):
    """
    Many connections that are busy at the same time.
    """

    async def test_others_have_their_turn(self) -> None:
        """
        Once the time of a turn is over, which is looked at after 64 connections each, the others
        have theirs; until then all connections are served.
        """
        served: list[int] = []
        for seconds, most in ((_TURN / 4, 2 * 64), (0, 200)):
            served.clear()
            await self.talk(served, seconds)
            counts = [served.count(turn) for turn in set(served)]
            self.assertEqual(max(counts), most)
            await self._end()

    async def talk(self, served: list[int], seconds: float) -> None:
        """
        Let 200 connections be ready at once, and note the turn in which each is served.

        :param seconds: What a callback takes.
        """

        def helo(*_: object) -> None:
            served.append(len(turns))
            self.clock.advance(seconds)

        self.serve(full(helo=helo))
        turns: list[None] = []
        ends = [await self.mta() for _ in range(200)]
        for mta, _ in ends:
            mta.send(HELO)
        while len(served) < 200:
            turns.append(None)
            await self.turn()
        for mta, _ in ends:
            self.assertEqual(mta.letters(), "c")


class _Noting:
    """
    A socket that notes the options set on it.
    """

    def __init__(self, original: Any) -> None:
        self._original = original
        self.options: list[tuple[int, ...]] = []

    def setsockopt(self, *option: int) -> None:
        self.options.append(option)
        self._original.setsockopt(*option)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


class _OptionTests(PathCase):
    """
    Options of sockets.
    """

    async def test_tcp_does_not_wait_with_small_answers(self) -> None:
        """
        TCP does not wait with small answers; there is nothing to set on a UNIX socket.
        """
        self.serve()
        _, protocol = await self.mta()
        if self.family == socket.AF_INET:
            found = protocol.transport.getHandle().getsockopt(
                socket.IPPROTO_TCP, socket.TCP_NODELAY
            )
            self.assertNotEqual(found, 0)
        else:
            self.assertFalse(protocol._conversation.hurried)

    async def test_acknowledged_at_once(self) -> None:
        """
        What calls for no answer is acknowledged at once, over TCP, and nothing else is.
        """
        waiting: list[Deferred[Any]] = []

        def helo(*_: Any) -> Deferred[Any]:
            waiting.append(Deferred())
            return waiting[-1]

        self.serve(full(helo=helo))
        mta, protocol = await self.mta()
        holder = protocol._served or protocol.transport
        noting = holder.socket = _Noting(holder.socket)
        quick = [(socket.IPPROTO_TCP, getattr(socket, "TCP_QUICKACK", None), 1)]
        hurries = quick[0][1] is not None and self.family == socket.AF_INET
        for data, expected in (
            (macros("M", b"i", b"queue"), quick),
            (MAIL[:7], quick),
            (MAIL[7:], []),
            (RCPT, []),
            (ABORT + macros("H", b"j", b"name") + HELO, []),
            (macros("M", b"i", b"queue"), []),
        ):
            mta.send(data)
            for _ in range(5):
                await self.turn()
            self.assertEqual(noting.options, expected if hurries else [], data)
            noting.options.clear()
        self.assertEqual(len(waiting), 1)
        waiting[0].callback(SMFIS_CONTINUE)

    async def test_nothing_is_set_on_a_socket_that_was_closed(self) -> None:
        """
        Nothing is set on a socket that was closed.
        """
        self.serve()
        mta, protocol = await self.mta()

        def lost(packet: tuple[int, bytes]) -> None:
            protocol.transport.connectionLost(Failure(ConnectionLost()))

        protocol._conversation.show(lost)
        mta.send(macros("M", b"i", b"queue"))
        await self.gone()
        self.assertEqual(self.flushLoggedErrors(), [])


both_paths(globals(), _OptionTests)
