"""
Tests of ``@threaded``: a callback in a thread of the reactor's pool, whose result is the answer.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any
from unittest import skipIf

from twisted.internet import reactor
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorThreads
from twisted.internet.task import Clock, deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import classImplements

from tests.conversation_helpers import HELO, MAIL, ConversationTestCase, started
from yatxmilter import Milter, MilterFactory, MilterProtocolFactory, threaded
from yatxmilter import constants as c
from yatxmilter._engine.connection import COMPILED
from yatxmilter.errors import WrongThread
from yatxmilter.message import Message, MessageMilter
from yatxmilter.testing import InMemoryMTA, MilterTestMixin

MESSAGE = b"From: a\nSubject: hi\n\nbody\n"


class Gate:
    """
    Something that a thread waits for.
    """

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def wait(self) -> None:
        """
        Wait, in the thread.
        """
        self.reached.set()
        assert self.opened.wait(30)

    async def arrival(self) -> None:
        """
        Wait until the thread waits.
        """
        await deferToThread(self.reached.wait, 30)


class ThreadTests(MilterTestMixin, TestCase):
    """
    Where a reactor runs.
    """

    timeout = 60

    def setUp(self) -> None:
        """
        Make what a thread waits for.
        """
        super().setUp()
        self.gate = Gate()

    async def test_runs_in_a_thread(self) -> None:
        """
        The callback runs in another thread, may look macros up, set a reply, edit and tell of its
        progress, and what it returns is the answer; under all merges.
        """
        here = threading.get_ident()

        class Working(Milter):
            @threaded
            def xxfi_envrcpt(self, argv: list[str]) -> int:
                self.message_state.elsewhere = threading.get_ident() != here
                self.smfi_setreply("550", "5.1.1", f"no {self.smfi_getsymval('{rcpt_host}')}")
                return c.SMFIS_REJECT if argv[0] == "<b@example.com>" else c.SMFIS_CONTINUE

            @threaded
            def xxfi_eom(self) -> None:
                self.smfi_progress()
                self.smfi_addheader("X-Elsewhere", str(self.message_state.elsewhere))

        for merge in ("first", "strictest", "chain"):
            mta = self.milter_mta([Working, Working], merge=merge)
            recipients = ["<a@example.com>", "<b@example.com>"]
            sent = await mta.send(MESSAGE, recipients=recipients)
            self.assertEqual(sent.delivered.values("X-Elsewhere"), ["True", "True"])
            self.assertEqual(str(sent.refused["<b@example.com>"]), "550 5.1.1 no example.com")

    async def test_has_a_copy_of_the_callers_context(self) -> None:
        """
        It has a copy of the caller's context.
        """
        number: ContextVar[int] = ContextVar("number")
        number.set(5)

        class Working(Milter):
            @threaded
            def xxfi_eom(self) -> None:
                self.smfi_addheader("X-Number", str(number.get()))

        sent = await self.milter_mta(Working).send(MESSAGE)
        self.assertEqual(sent.delivered.values("X-Number"), ["5"])

    async def test_what_it_raises_is_the_milters_failure(self) -> None:
        """
        What it raises is the milter's failure.
        """

        class Broken(Milter):
            @threaded
            def xxfi_eom(self) -> None:
                raise LookupError("nothing there")

        mta = self.milter_mta(Broken)
        with self.expect_milter_errors(mta, "nothing there"):
            self.assertEqual((await mta.send(MESSAGE)).verdict, c.SMFIS_TEMPFAIL)

    async def test_callback_that_is_late_is_answered_for(self) -> None:
        """
        A callback that is late is answered for; what it does after that is refused, and its result
        is dropped.
        """
        gate = Gate()
        refused: list[Any] = []
        over = threading.Event()

        class Late(Milter):
            @threaded
            def xxfi_eom(self) -> int:
                gate.wait()
                for late in (
                    self.smfi_progress,
                    lambda: self.smfi_progress(any_stage=True),
                    lambda: self.smfi_addheader("X", "y"),
                ):
                    try:
                        late()
                    except WrongThread as error:
                        refused.append(error)
                over.set()
                return c.SMFIS_REJECT

        mta = self.milter_mta(MilterFactory(Late, timeout=5))
        with self.expect_milter_errors(mta, "did not answer within 5"):
            sent = mta.send(MESSAGE)
            await gate.arrival()
            mta.advance(5)
            self.assertEqual(sent.verdict, c.SMFIS_TEMPFAIL)
        gate.opened.set()
        await deferToThread(over.wait, 30)
        self.assertEqual(len(refused), 3)
        self.assertEqual(sent.verdict, c.SMFIS_TEMPFAIL)
        mta.settle(lambda: False)

    async def two_messages(
        self, first: Callable[[Milter], None], second: Callable[[Milter], int | None]
    ) -> tuple[Any, list[Any]]:
        """
        Have the end of a first message be late in its thread, in the midst of something, until a
        second one has begun; give the second one, and what the thread was told.

        :param first: What the first message's end does, waiting at the gate.
        :param second: What that of the second one does.
        """
        told: list[Any] = []
        over = threading.Event()
        messages: list[str] = []

        class Late(Milter):
            def xxfi_envfrom(self, argv: list[str]) -> None:
                messages.append(argv[0])
                self.message_state.sender = argv[0]

            @threaded
            def xxfi_eom(self) -> int | None:
                if len(messages) == 1:
                    try:
                        first(self)
                    except WrongThread as error:
                        told.append(error)
                    over.set()
                    return None
                return second(self)

        mta = self.milter_mta(MilterFactory(Late, timeout=5))
        session = mta.session()
        with self.expect_milter_errors(mta, "did not answer within 5"):
            sent = mta.send(MESSAGE, session=session)
            await self.gate.arrival()
            mta.advance(5)
            self.assertEqual(sent.verdict, c.SMFIS_TEMPFAIL)
        session.mail("<second@example.com>")
        session.rcpt("<a@example.com>")
        session.data()
        self.gate.opened.set()
        await deferToThread(over.wait, 30)
        sent = await session.content(MESSAGE)
        session.quit()
        return sent, told

    async def test_body_of_a_message_that_is_over_is_not_put_into_the_next_one(self) -> None:
        """
        A new body that is read while its message ends is refused, and is not that of the next one.
        """

        def pieces() -> Iterator[bytes]:
            yield b"of the first message\n"
            self.gate.wait()

        sent, told = await self.two_messages(
            lambda one: one.smfi_replacebody(pieces()), lambda one: None
        )
        self.assertEqual(sent.transaction.delivered.body, b"body\r\n")
        self.assertEqual([type(error) for error in told], [WrongThread])

    async def test_late_thread_has_the_state_of_its_own_message(self) -> None:
        """
        A thread that is late has the state of its own message, and leaves that of the next alone.
        """
        senders: list[str] = []

        def note(milter: Milter) -> None:
            self.gate.wait()
            senders.append(milter.message_state.sender)
            milter.message_state.verdict = "of the first message"

        def tell(milter: Milter) -> None:
            milter.smfi_addheader("X-State", repr(vars(milter.message_state)))

        sent, _ = await self.two_messages(note, tell)
        self.assertEqual(senders, ["<sender@client.example>"])
        state = sent.transaction.delivered.values("X-State")
        self.assertEqual(state, ["{'sender': '<second@example.com>'}"])

    @skipIf(COMPILED, "a compiled engine does not ask a text how it is encoded")
    async def test_reply_of_a_message_that_is_over_is_not_that_of_the_next_one(self) -> None:
        """
        A reply that is made while its message ends is refused, and is not that of the next one.
        """
        gate = self.gate

        class Slow(str):
            def encode(self, *args: Any) -> bytes:
                gate.wait()
                return super().encode(*args)

        for function in (
            lambda one: one.smfi_setreply("550", "5.7.1", Slow("of the first message")),
            lambda one: one.smfi_setmlreply("550", "5.7.1", Slow("of the first"), "message"),
        ):
            self.gate = gate = Gate()
            sent, told = await self.two_messages(function, lambda one: c.SMFIS_REJECT)
            self.assertEqual(str(sent.reply), "550 5.7.1 Command rejected")
            self.assertEqual([type(error) for error in told], [WrongThread])

    async def test_progress_too_late(self) -> None:
        """
        A sign of progress that comes to the reactor when the answer has been given is dropped.
        """
        gate = Gate()

        class Telling(Milter):
            @threaded
            def xxfi_eom(self) -> None:
                self.smfi_progress()
                gate.wait()

        mta = self.milter_mta(MilterFactory(Telling, timeout=4))
        with self.expect_milter_errors(mta, "did not answer"):
            sent = mta.send(MESSAGE)
            self.assertTrue(gate.reached.wait(30))
            mta.advance(4)
            self.assertEqual(sent.verdict, c.SMFIS_TEMPFAIL)
        gate.opened.set()
        await deferLater(reactor, 0)
        self.assertEqual(sent.transaction.progress, 0)

    async def test_given_up_before_it_began(self) -> None:
        """
        A callback that has no thread yet when it is given up is not called.
        """
        called: list[str] = []

        class Waiting(Milter):
            @threaded
            def xxfi_envfrom(self, argv: list[str]) -> None:
                called.append(argv[0])

        pool: Any = reactor.getThreadPool()  # type: ignore[attr-defined]
        gate = Gate()
        blocked = [deferToThread(gate.wait) for _ in range(pool.max)]
        conversation = started(Waiting)
        self.assertEqual(conversation.letters(MAIL), "")
        conversation.drop()
        gate.opened.set()
        for one in blocked:
            await one
        await deferToThread(lambda: None)
        self.assertEqual(called, [])

    async def test_hook_of_a_messagemilter_may_be_one(self) -> None:
        """
        A hook of a `MessageMilter` may be one; what it says of the message counts.
        """
        here = threading.get_ident()

        class Hooked(MessageMilter):
            @threaded
            def message(self, msg: Message) -> None:
                msg.headers.add("X-Elsewhere", str(threading.get_ident() != here))

        sent = await self.milter_mta(Hooked).send(MESSAGE)
        self.assertEqual(sent.delivered.values("X-Elsewhere"), ["True"])


class NoReactorTests(SynchronousTestCase):
    """
    In the kit, where no reactor runs.
    """

    def test_test_kit_runs_it_in_a_thread_of_its_own(self) -> None:
        """
        It runs in a thread of the kit's, and who looks at the answer waits for it.
        """

        class Working(Milter):
            @threaded
            def xxfi_eom(self) -> None:
                self.smfi_progress()
                self.smfi_addheader("X-Thread", str(threading.get_ident()))

        mta = InMemoryMTA(Working)
        sent = mta.send(MESSAGE)
        other = sent.delivered.values("X-Thread")[0]
        self.assertNotEqual(other, str(threading.get_ident()))
        self.assertEqual(sent.transaction.progress, 1)
        mta.finish()

    def test_end_of_the_test_waits_for_it_as_well(self) -> None:
        """
        The end of the test waits for it as well.
        """
        gate = Gate()

        class Working(Milter):
            @threaded
            def xxfi_abort(self) -> None:
                gate.wait()

            def xxfi_envfrom(self, argv: list[str]) -> None:
                pass

        mta = InMemoryMTA(Working)
        with mta.session() as session:
            mta.send(MESSAGE, session=session)
            session.mail("<a@example.com>")
            session.rset()
        self.assertEqual([str(call) for call in mta.waiting], ["Working.xxfi_abort()"])
        gate.opened.set()
        mta.finish()

    def test_in_a_test_of_asyncios_the_answer_can_be_awaited(self) -> None:
        """
        In a test of asyncio's the answer can be awaited.
        """

        class Working(Milter):
            @threaded
            def xxfi_eom(self) -> int:
                return c.SMFIS_REJECT

        async def test() -> None:
            self.assertEqual((await mta.send(MESSAGE)).verdict, c.SMFIS_REJECT)

        mta = InMemoryMTA(Working)
        asyncio.run(test())
        mta.finish()

    def test_coroutine_function_which_cannot_run_in_a_thread_is_refused(self) -> None:
        """
        A coroutine function, which cannot run in a thread, is refused; so is what is no function.
        """

        async def eom(self: Milter) -> None:
            await Deferred()

        for wrong in (eom, 5):
            error = self.assertRaises(TypeError, threaded, wrong)
            self.assertIn("@threaded is for a plain function", str(error))


class ReactorTests(ConversationTestCase, TestCase):
    """
    With the reactor's own pool.
    """

    timeout = 60

    async def test_conversation_waits_while_the_reactor_turns(self) -> None:
        """
        The conversation waits while the reactor turns; the thread is one of the pool's.
        """
        gate = Gate()
        names: list[str] = []

        class Working(Milter):
            @threaded
            def xxfi_helo(self, helohost: str) -> int:
                gate.wait()
                names.append(threading.current_thread().name)
                return c.SMFIS_REJECT

        conversation = started(Working)
        self.assertEqual(conversation.letters(HELO), "")
        await gate.arrival()
        self.assertEqual(conversation.letters(), "")
        gate.opened.set()
        while not conversation.transport.value():
            await deferLater(reactor, 0.001)
        self.assertEqual(conversation.letters(), "r")
        self.assertIn("PoolThread", names[0])

    async def test_callback_of_something_that_is_on_no_connection_runs_in_thread_too(self) -> None:
        """
        A callback of something that is on no connection runs in a thread, too.
        """
        here = threading.get_ident()
        call: Any = threaded(lambda self: threading.get_ident())
        self.assertNotEqual(await call(None), here)

    def test_pool_is_that_of_the_reactor_that_serves_the_connection(self) -> None:
        """
        It is the pool of the reactor that serves the connection.
        """

        class Reactor(Clock):
            def getThreadPool(self) -> Any:
                return self

            def callInThreadWithCallback(self, done: Any, work: Any) -> None:
                done(True, work())

            def callFromThread(self, work: Any, *args: Any) -> None:
                work(*args)

        classImplements(Reactor, IReactorThreads)

        class Working(Milter):
            @threaded
            def xxfi_helo(self, helohost: str) -> int:
                return c.SMFIS_REJECT

        factory = MilterProtocolFactory(MilterFactory(Working), reactor=Reactor())
        milter: Any = factory.buildProtocol(UNIXAddress(None)).milters[0]
        self.assertEqual(self.successResultOf(milter.xxfi_helo("x")), c.SMFIS_REJECT)
