"""
Answers to what was read in one event are sent together, and nothing of them is late or lost.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Any
from unittest import skipUnless

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from tests.conversation_helpers import EOM, HELO, MAIL, QUIT, RCPT, full
from tests.pathways import HAS_EPOLL, Mta, PathCase, reactor
from yatxmilter.constants import SMFIS_CONTINUE
from yatxmilter.protocol._descriptor_set import _FEW, _SOON

_MANY = _FEW + 2


class Broken:
    """
    A socket to which nothing can be sent, by a fault of ours.
    """

    def __init__(self, whole: socket.socket) -> None:
        self.whole = whole

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)

    def send(self, data: bytes) -> int:
        """
        Fail.
        """
        raise RuntimeError("no")


def filled(protocol: Any) -> int:
    """
    Send to an MTA until the system takes no more; give the number of bytes.
    """
    size = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            size += protocol._served.socket.send(b"x" * 1000)
    return size


@skipUnless(HAS_EPOLL, "there is no epoll")
class AnswersTests(PathCase, TestCase):
    """
    Connections that have no transport, and are ready at the same time.
    """

    family = socket.AF_UNIX

    async def served(
        self, act: Callable[[list[Any]], object], said: bytes = HELO, **answers: Any
    ) -> list[Mta]:
        """
        Let many MTAs talk at once, and do something in the callback of each.

        :param act: Called with the protocols that have been served so far, the present one last.
        :return: The MTAs, in the order in which they are served.
        """
        protocols: list[Any] = []

        def helo(milter: Any, *_: Any) -> Any:
            protocols.append(milter.protocol)
            return act(protocols)

        self.serve(full(helo=helo, mta_close=None, **answers))
        self.of = {}
        for _ in range(_MANY):
            mta, protocol = await self.mta()
            self.of[protocol] = mta
        for mta in self.of.values():
            mta.send(said)
        await self.until(lambda: len(protocols) == _MANY)
        return [self.of[protocol] for protocol in protocols]

    async def test_answers_go_when_all_is_handled(self) -> None:
        """
        While callbacks are quick, no answer goes before all that was ready has been handled.
        """
        early: list[bytes] = []
        mtas = await self.served(
            lambda protocols: early.extend([self.of[one].read() for one in protocols])
        )
        self.assertEqual(early, [b""] * (_MANY * (_MANY + 1) // 2))
        for mta in mtas:
            await self.until(lambda mta=mta: mta.letters() == "c")

    async def test_answers_do_not_wait_for_slow_callbacks(self) -> None:
        """
        When a callback has taken longer, its answer and those before it go before the next one.
        """
        early: list[str] = []

        def helo(protocols: list[Any]) -> None:
            early.append("".join(self.of[one].letters() for one in protocols))
            if len(protocols) == 2:
                self.clock.advance(2 * _SOON)

        await self.served(helo)
        self.assertEqual(early, ["", "", "cc", *["cc"] * (_MANY - 3)])

    async def test_answer_of_one_that_another_closes_is_sent(self) -> None:
        """
        One that a later callback closes or aborts has sent its answer before; also where a milter
        closes the connection with it.
        """
        acts: list[Callable[[Any], object]] = [
            lambda protocol: protocol.give_up(),
            lambda protocol: protocol.transport.abortConnection(),
            lambda protocol: protocol.transport.loseConnection(),
            lambda protocol: protocol._served.lose(Failure(ConnectionDone())),
        ]
        for act in acts:
            first, *_ = await self.served(
                lambda protocols, act=act: act(protocols[0]) if len(protocols) == 2 else None
            )
            await self.over(first)
            self.assertEqual(first.letters(), "c")
            await self._end()

    async def test_answer_comes_before_what_is_written_later(self) -> None:
        """
        What a later callback writes to one that was served before goes behind its answer.
        """
        written = b"\0\0\0\1p"
        first, *_ = await self.served(
            lambda protocols: protocols[0].send(written) if len(protocols) == 2 else None
        )
        await self.until(lambda: first.letters() == "cp")

    async def test_what_a_callback_writes_is_written_at_once(self) -> None:
        """
        What a callback has the MTA told, such as that it is at work, goes at once, behind what was
        answered before, and before its own answer.
        """
        early: list[str] = []

        def helo(protocols: list[Any]) -> None:
            for one in protocols:
                one.send(b"\0\0\0\1p")
            early.append("".join(self.of[one].letters() for one in protocols))

        mtas = await self.served(helo)
        letters_of = [
            ["pc" + "p" * (number - earlier) for earlier in range(number)]
            for number in range(_MANY + 1)
        ]
        self.assertEqual(early, ["".join(letters) + "p" for letters in letters_of[:-1]])
        for mta, letters in zip(mtas, [one[:-1] for one in letters_of[-1]], strict=True):
            await self.until(lambda mta=mta, letters=letters: mta.letters() == letters)

    async def test_edits_and_answer_of_a_message(self) -> None:
        """
        Edits go with the answer to their message, and the next message is answered as always.
        """

        def eom(milter: Any) -> Any:
            milter.smfi_addheader("X-One", "1")
            milter.smfi_progress()
            milter.smfi_addheader("X-Two", "2")
            return SMFIS_CONTINUE

        mtas = await self.served(lambda protocols: None, HELO + MAIL + RCPT + EOM, eom=eom)
        for mta in mtas:
            await self.until(lambda mta=mta: mta.letters() == "cccphhc")
            mta.received = b""
            mta.send(MAIL)
        for mta in mtas:
            await self.until(lambda mta=mta: mta.letters() == "c")

    async def test_answer_that_is_not_taken_waits(self) -> None:
        """
        An answer that the system does not take at once goes when it does.
        """
        sizes: list[int] = []

        def helo(protocols: list[Any]) -> None:
            sizes.append(filled(protocols[-1]))

        mtas = await self.served(helo)
        for mta, size in zip(mtas, sizes, strict=True):
            while len(mta.received) < size + 5:
                mta.read()
                await self.turn()
            self.assertEqual(mta.received[size:], b"\0\0\0\1c")

    async def test_one_that_cannot_be_answered_does_not_harm_the_others(self) -> None:
        """
        Where sending to one fails by a fault of ours, it is logged, that one is closed, and the
        others have their answers.
        """

        def helo(protocols: list[Any]) -> None:
            if len(protocols) == 1:
                served = protocols[0]._served
                served.socket = Broken(served.socket)

        first, *others = await self.served(helo)
        for mta in others:
            await self.until(lambda mta=mta: mta.letters() == "c")
        await self.over(first)
        self.assertEqual(first.received, b"")
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    async def test_end_of_one_that_cannot_be_answered_writes_to_another(self) -> None:
        """
        Where the end of one whose answer cannot be sent has something written to another, each has
        its answer once, and what is written goes behind it.
        """
        waiting: list[Any] = []

        def helo(protocols: list[Any]) -> None:
            waiting[:] = protocols
            if len(protocols) == 2:
                served = protocols[1]._served
                served.socket = Broken(served.socket)

        def close(milter: Any) -> None:
            if milter.protocol is waiting[1]:
                waiting[2].send(b"\0\0\0\1p")

        first, broken, third, *others = await self.served(helo, close=close)
        await self.over(broken)
        self.assertEqual(broken.received, b"")
        await self.until(lambda: third.letters() == "cp")
        for mta in (first, *others):
            await self.until(lambda mta=mta: mta.letters() == "c")
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    async def test_what_is_written_behind_an_answer_that_is_not_taken(self) -> None:
        """
        What a later callback writes to one whose answer the system does not take goes behind that.
        """
        sizes: list[int] = []

        def helo(protocols: list[Any]) -> None:
            if len(protocols) == 1:
                sizes.append(filled(protocols[0]))
            elif len(protocols) == 2:
                protocols[0].send(b"\0\0\0\1p")

        first, *_ = await self.served(helo)
        while len(first.received) < sizes[0] + 10:
            first.read()
            await self.turn()
        self.assertEqual(first.received[sizes[0] :], b"\0\0\0\1c\0\0\0\1p")

    async def test_end_of_one_whose_answer_is_not_taken(self) -> None:
        """
        One that a later callback closes, and whose answer the system does not take, is closed when
        the answer is written.
        """
        sizes: list[int] = []

        def helo(protocols: list[Any]) -> None:
            if len(protocols) == 1:
                sizes.append(filled(protocols[0]))
            elif len(protocols) == 2:
                protocols[0].drain()

        first, *_ = await self.served(helo)
        while len(first.received) < sizes[0] + 5:
            first.read()
            await self.turn()
        self.assertEqual(first.received[sizes[0] :], b"\0\0\0\1c")
        await self.over(first)

    async def test_answers_go_before_a_callback_has_others_served(self) -> None:
        """
        Where a callback has the reactor go on, the answers that wait go before others are served.
        """
        early: list[str] = []

        def helo(protocols: list[Any]) -> None:
            if len(protocols) == 3:
                self.addCleanup(Mta(self.family, self.address).socket.close)
                reactor.iterate(0)
                early.extend([self.of[one].letters() for one in protocols[:2]])

        await self.served(helo)
        self.assertEqual(early, ["c", "c"])

    async def test_one_that_is_lost_before_it_is_looked_at(self) -> None:
        """
        One that could be written to, and was lost by another's doing in the same turn, is not
        served any more.
        """
        self.serve(full(helo=lambda *_: full_one._served.lose(Failure(ConnectionDone()))))
        mta, _ = await self.mta()
        reading, full_one = await self.mta()
        full_one.send(b"x" * 1_000_000)
        await self.turn()
        mta.send(HELO)
        while reading.read():
            pass
        await self.until(lambda: mta.letters() == "c")
        self.assertEqual(len(self.factory.connections), 1)

    async def test_answers_that_wait_go_when_a_callback_is_left_behind(self) -> None:
        """
        When the reactor is to go on without a callback, the answers of others go before that.
        """
        early: list[str] = []

        def helo(protocols: list[Any]) -> None:
            if len(protocols) == 3:
                protocols[-1].rest()
                early.extend([self.of[one].letters() for one in protocols])
                protocols[-1].go_on()

        await self.served(helo)
        self.assertEqual(early, ["c", "c", ""])

    async def test_answer_that_comes_while_a_callback_is_left_behind_goes_at_once(self) -> None:
        """
        An answer that was awaited, and comes while a callback is left behind, goes at once.
        """
        answers: list[Deferred[None]] = [Deferred(), Deferred()]
        early: list[str] = []

        def helo(protocols: list[Any]) -> Any:
            if len(protocols) < 3:
                return answers[len(protocols) - 1]
            if len(protocols) > 3:
                return None
            protocols[-1].rest()
            for answer in answers:
                answer.callback(None)
            early.extend([self.of[one].letters() for one in protocols])
            protocols[-1].go_on()
            return None

        await self.served(helo)
        self.assertEqual(early, ["c", "c", ""])

    async def test_answers_wait_for_no_slow_end_and_no_slow_beginning(self) -> None:
        """
        Answers do not wait until others have come to their end, slowly, nor for new connections.
        """
        for kind in ("end", "transport", "beginning"):
            await self.slowly(kind)

    async def slowly(self, kind: str) -> None:
        """
        Let one MTA ask for something, and others do something that takes long.
        """
        early: list[str] = []

        def slow(milter: Any, *_: Any) -> None:
            early.append(asking.letters())
            self.clock.advance(2 * _SOON)

        self.serve(full(mta_connect=None, close=slow, envfrom=slow))
        asking, _ = await self.mta()
        others = [await self.mta() for _ in range(_MANY)]
        if kind == "beginning":
            self.milter.xxfi_mta_connect = slow
        asking.send(HELO)
        for mta, protocol in others:
            if kind == "end":
                mta.socket.close()
            elif kind == "transport":
                self.assertIsNotNone(protocol.transport)
                mta.send(MAIL)
            else:
                self.addCleanup(Mta(self.family, self.address).socket.close)
        await self.until(lambda: len(early) == _MANY)
        # The first of them may be served before it, and is slow.
        self.assertEqual(early[2:], ["c"] * (_MANY - 2))
        await self._end()

    async def test_goodbye_of_one_and_answers_of_others(self) -> None:
        """
        One that says goodbye with its last command is answered before it is closed.
        """
        mtas = await self.served(lambda protocols: None, HELO + QUIT)
        for mta in mtas:
            await self.over(mta)
            self.assertEqual((mta.letters(), mta.end), ("c", "closed"))

    async def test_answer_that_was_waited_for_is_written_at_once(self) -> None:
        """
        An answer that comes later, by a Deferred, does not wait for anything else.
        """
        answer: Deferred[None] = Deferred()
        self.serve(full(helo=lambda *_: answer))
        mta, _ = await self.mta()
        mta.send(HELO)
        await self.until(lambda: self.milter.calls)
        answer.callback(None)
        self.assertEqual(mta.letters(), "c")
