"""
Tests of callbacks that use asyncio: where its loop runs they are its tasks, elsewhere they are told
what to do.

The loop is one of the test's own, so all this needs no reactor; that the daemons run asyncio's is
tested with them.
"""

from __future__ import annotations

import asyncio
import functools
import gc
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tests.conversation_helpers import DATA, EOH, MAIL, RCPT, Conversation, full, packet
from yatxmilter import Milter, MilterFactory, MilterProtocolFactory
from yatxmilter import constants as c
from yatxmilter.conditions import sender_matches
from yatxmilter.defaults import MilterObserver
from yatxmilter.errors import WrongReactor
from yatxmilter.message import Message, MessageMilter
from yatxmilter.testing import InMemoryMTA, MilterTestFailure, MilterTestMixin

MESSAGE = b"From: a\nSubject: hi\n\nbody\n"

Test = Callable[[Any], Coroutine[Any, Any, None]]


def in_loop(test: Test) -> Callable[[Any], None]:
    """
    Run a test in a loop of its own.
    """

    @functools.wraps(test)
    def run(self: Any) -> None:
        loop = asyncio.new_event_loop()
        complaints: list[Any] = []
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        try:
            loop.run_until_complete(test(self))
            gc.collect()
            self.assertEqual(complaints, [])
        finally:
            loop.close()

    return run


def milter(eom: Callable[..., Any], base: type[Milter] = Milter) -> type[Milter]:
    """
    Make a milter of its ``xxfi_eom``.
    """
    return type("Tried", (base,), {"xxfi_eom": eom})


async def turns(count: int = 5) -> None:
    """
    Let the loop have some turns.
    """
    for _ in range(count):
        await asyncio.sleep(0)


class AwaitingTests(MilterTestMixin, SynchronousTestCase):
    """
    A coroutine callback may await what asyncio awaits.
    """

    @in_loop
    async def test_what_asyncios_own_functions_give_can_be_awaited(self) -> None:
        """
        What asyncio's own functions give can be awaited, and edits are made behind it.
        """

        async def double(number: int) -> int:
            await asyncio.sleep(0)
            return 2 * number

        async def eom(self: Milter) -> int:
            assert await asyncio.wait_for(double(1), 5) == 2
            one, two = await asyncio.gather(double(2), asyncio.create_task(double(3)))
            self.smfi_addheader("X-Sum", str(one + two))
            return c.SMFIS_ACCEPT

        for merge in ("first", "strictest", "chain"):
            mta = InMemoryMTA([milter(eom), milter(eom)], merge=merge)
            sent = await mta.send(MESSAGE)
            self.assertEqual(sent.delivered.values("X-Sum")[:1], ["10"], merge)
            mta.finish()

    @in_loop
    async def test_asyncio_timeout_which_asks_for_its_task_works_from_first_step_on(self) -> None:
        """
        ``asyncio.timeout``, which asks for its task, works from the first step on.
        """
        timeout = getattr(asyncio, "timeout", None)

        async def eom(self: Milter) -> int:
            try:
                if timeout is None:
                    await asyncio.wait_for(asyncio.Future(), 0)
                async with timeout(0):
                    await asyncio.Future()
            except asyncio.TimeoutError:
                return c.SMFIS_REJECT
            return c.SMFIS_CONTINUE

        mta = InMemoryMTA(milter(eom))
        self.assertEqual((await mta.send(MESSAGE)).verdict, c.SMFIS_REJECT)
        mta.finish()

    @in_loop
    async def test_coroutine_may_await_deferreds_too(self) -> None:
        """
        The same coroutine may await Deferreds: fired ones, later ones, and those that fail.
        """
        later: list[Deferred[str]] = []

        async def eom(self: Milter) -> None:
            words = [await succeed("one")]
            for _ in range(2):
                await asyncio.sleep(0)
                later.append(Deferred())
                try:
                    words.append(await later[-1])
                except KeyError as error:
                    words.append(str(error.args[0]))
            self.smfi_addheader("X-Words", " ".join(words))

        mta = InMemoryMTA(milter(eom))
        sent = mta.send(MESSAGE)
        await turns()
        later[0].callback("two")
        self.assertFalse(sent.done)
        await turns()
        later[1].errback(KeyError("three"))
        await sent
        self.assertEqual(sent.delivered.values("X-Words"), ["one two three"])
        mta.finish()

    @in_loop
    async def test_first_awaits_a_deferred(self) -> None:
        """
        A Deferred may be the first thing that is awaited.
        """
        later: Deferred[int] = Deferred()

        async def eom(self: Milter) -> int:
            return await later

        mta = InMemoryMTA(milter(eom))
        sent = mta.send(MESSAGE)
        later.callback(c.SMFIS_REJECT)
        self.assertEqual((await sent).verdict, c.SMFIS_REJECT)
        mta.finish()

    @in_loop
    async def test_answers_at_once(self) -> None:
        """
        A coroutine that waits for nothing has answered without a turn of the loop.
        """

        async def eom(self: Milter) -> int:
            return c.SMFIS_REJECT

        mta = InMemoryMTA(milter(eom))
        sent = mta.send(MESSAGE)
        self.assertEqual(sent.verdict, c.SMFIS_REJECT)
        self.assertIs(await sent, sent)
        mta.finish()

    @in_loop
    async def test_is_a_task(self) -> None:
        """
        A coroutine is a task of its own from its first step on, whose coroutine has its name.
        """
        tasks: list[Any] = []

        async def eom(self: Milter) -> None:
            tasks.append(asyncio.current_task())
            await asyncio.sleep(0)
            tasks.append(asyncio.current_task())

        outer = asyncio.current_task()
        mta = InMemoryMTA(milter(eom))
        sent = mta.send(MESSAGE)
        self.assertIs(asyncio.current_task(), outer)
        await sent
        self.assertIs(tasks[0], tasks[1])
        self.assertIsNot(tasks[0], outer)
        self.assertIn("eom", repr(tasks[0]))
        self.assertIs(tasks[0].get_coro().cr_code, eom.__code__)
        mta.finish()

    @in_loop
    async def test_what_a_coroutine_sets_in_its_context_it_finds_behind_await(self) -> None:
        """
        What a coroutine sets in its context it finds behind an await, and nobody else does.
        """
        number: ContextVar[int] = ContextVar("number", default=0)
        seen = []

        async def eom(self: Milter) -> None:
            seen.append(number.get())
            number.set(1)
            await asyncio.sleep(0)
            seen.append(number.get())

        mta = InMemoryMTA(milter(eom))
        await mta.send(MESSAGE)
        await mta.send(MESSAGE)
        self.assertEqual((seen, number.get()), ([0, 1, 0, 1], 0))
        mta.finish()

    @in_loop
    async def test_exception_of_a_coroutine_is_logged_and_answered_by_on_error(self) -> None:
        """
        What a coroutine raises, at once or behind an await, is logged and answered by ``on_error``.
        """

        errors: list[BaseException] = []

        async def eom(self: Milter) -> None:
            if self.smfi_getsymval("{wait}") == "yes":
                await asyncio.sleep(0)
            raise errors[-1]

        for error in (ValueError("bad"), asyncio.CancelledError("bad"), SystemExit("bad")):
            errors.append(error)
            for wait in ("yes", "no"):
                mta = InMemoryMTA(MilterFactory(milter(eom), on_error=c.SMFIS_REJECT))
                with (
                    self.expect_milter_errors(mta, "bad"),
                    mta.session(macros={"{wait}": wait}) as session,
                ):
                    sent = await mta.send(MESSAGE, session=session)
                    self.assertEqual(sent.verdict, c.SMFIS_REJECT)
                mta.finish()

    @in_loop
    async def test_coroutine_gives_a_future(self) -> None:
        """
        A coroutine may return a Deferred or a Future of its result, as a plain callback may.
        """
        for make in (asyncio.get_running_loop().create_future, Deferred):
            later: Any = make()

            async def eom(self: Milter, later: Any = later) -> Any:
                return later

            mta = InMemoryMTA(milter(eom))
            sent = mta.send(MESSAGE)
            await turns()
            getattr(later, "set_result", getattr(later, "callback", None))(c.SMFIS_REJECT)
            self.assertEqual((await sent).verdict, c.SMFIS_REJECT)
            mta.finish()


class FutureTests(MilterTestMixin, SynchronousTestCase):
    """
    A callback may return a Future or a Task.
    """

    @in_loop
    async def test_result_of_future_there_already_or_come_later_is_answer(self) -> None:
        """
        The result of a Future, there already or come later, is the answer.
        """
        for early in (True, False):
            future = asyncio.get_running_loop().create_future()
            mta = InMemoryMTA(milter(lambda self, future=future: future))
            if early:
                future.set_result(c.SMFIS_REJECT)
            sent = mta.send(MESSAGE)
            self.assertIs(sent.done, early)
            if not early:
                future.set_result(c.SMFIS_REJECT)
            self.assertEqual((await sent).verdict, c.SMFIS_REJECT)
            mta.finish()

    @in_loop
    async def test_task_that_fails_is_a_failure_of_the_milter(self) -> None:
        """
        A Task that fails is a failure of the milter.
        """

        async def look() -> None:
            raise LookupError("not found")

        mta = InMemoryMTA(milter(lambda self: asyncio.create_task(look())))
        with self.expect_milter_errors(mta, "not found"):
            self.assertEqual((await mta.send(MESSAGE)).verdict, c.SMFIS_TEMPFAIL)
        mta.finish()

    @in_loop
    async def test_future_that_failed_before_it_is_returned_fails(self) -> None:
        """
        So is a Future that has failed before it is returned.
        """
        future = asyncio.get_running_loop().create_future()
        future.set_exception(LookupError("not found"))
        mta = InMemoryMTA(milter(lambda self: future))
        with self.expect_milter_errors(mta, "not found"):
            self.assertEqual(mta.send(MESSAGE).verdict, c.SMFIS_TEMPFAIL)
        mta.finish()

    @in_loop
    async def test_future_of_a_loop_that_does_not_run_is_an_error(self) -> None:
        """
        A Future of a loop that is not the one that runs is an error, which says so.
        """
        other = asyncio.new_event_loop()
        self.addCleanup(other.close)
        mta = InMemoryMTA(milter(lambda self: other.create_future()))
        with self.expect_milter_errors(mta, "returned a Future"):
            self.assertEqual(mta.send(MESSAGE).verdict, c.SMFIS_TEMPFAIL)
        mta.finish()


class GivingUpTests(MilterTestMixin, SynchronousTestCase):
    """
    What is no longer waited for is cancelled, and that is not reported as a bug.
    """

    async def cancelled(self, wait: Callable[[], Any], *, at_once: bool) -> list[str]:
        """
        Have a milter wait for something while the MTA goes away; give what it has noticed.
        """
        noticed: list[str] = []

        async def eom(self: Milter) -> None:
            try:
                await wait()
            except BaseException as error:
                noticed.append(type(error).__name__)
                raise

        class Noticing(milter(eom)):  # type: ignore[misc]
            def xxfi_abort(self) -> None:
                noticed.append("abort")

        mta = InMemoryMTA(Noticing)
        session = mta.session()
        sent = mta.send(MESSAGE, session=session)
        if not at_once:
            await turns()
        session.vanish()
        await turns()
        self.assertTrue(sent.done)
        mta.finish()
        return noticed

    @in_loop
    async def test_coroutine_gets_asyncios_cancellederror_where_it_waits_for_whatever_that_is(
        self,
    ) -> None:
        """
        The coroutine gets asyncio's CancelledError where it waits, for whatever that is.
        """
        for at_once in (True, False):
            deferred: Deferred[None] = Deferred()
            future = asyncio.get_running_loop().create_future()
            child = asyncio.ensure_future(asyncio.sleep(1000))
            for wait in (
                lambda deferred=deferred: deferred,
                lambda future=future: future,
                lambda child=child: asyncio.gather(child),
                lambda seconds=0 if at_once else 1000: asyncio.sleep(seconds),
            ):
                noticed = await self.cancelled(wait, at_once=at_once)
                self.assertEqual(sorted(noticed), ["CancelledError", "abort"])
            self.assertTrue(future.cancelled())
            self.assertTrue(child.cancelled())
            self.assertTrue(deferred.called)

    @in_loop
    async def test_future_is_cancelled(self) -> None:
        """
        So is a Future that the callback has returned.
        """
        future = asyncio.get_running_loop().create_future()
        mta = InMemoryMTA(milter(lambda self: future))
        session = mta.session()
        mta.send(MESSAGE, session=session)
        session.vanish()
        self.assertTrue(future.cancelled())
        await turns()
        mta.finish()

    @in_loop
    async def test_late_failure_is_dropped(self) -> None:
        """
        What a coroutine raises or returns after that is dropped.
        """

        async def eom(self: Milter) -> None:
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                raise ValueError("too late") from None

        mta = InMemoryMTA(milter(eom))
        session = mta.session()
        mta.send(MESSAGE, session=session)
        await turns()
        session.vanish()
        await turns()
        mta.finish()

    @in_loop
    async def test_coroutine_that_ended_in_its_first_step_is_not_disturbed(self) -> None:
        """
        A coroutine that has ended in its first step is not disturbed by what cancels its task.
        """
        tasks: list[Any] = []

        async def eom(self: Milter) -> int:
            tasks.append(asyncio.current_task())
            return c.SMFIS_REJECT

        mta = InMemoryMTA(milter(eom))
        self.assertEqual(mta.send(MESSAGE).verdict, c.SMFIS_REJECT)
        tasks[0].cancel()
        await turns()
        mta.finish()

    @in_loop
    async def test_callback_that_is_late_is_cancelled_and_logged_as_late(self) -> None:
        """
        A callback that is late is cancelled, and logged as late.
        """
        future = asyncio.get_running_loop().create_future()

        async def eom(self: Milter) -> None:
            await future

        mta = InMemoryMTA(MilterFactory(milter(eom), timeout=5))
        with self.expect_milter_errors(mta, "did not answer within 5"):
            sent = mta.send(MESSAGE)
            await turns()
            mta.advance(5)
            self.assertEqual(sent.verdict, c.SMFIS_TEMPFAIL)
            await turns()
        self.assertTrue(future.cancelled())
        mta.finish()


class NoLoopTests(MilterTestMixin, SynchronousTestCase):
    """
    Under another reactor what needs asyncio fails, and the error says what to do.
    """

    def told(self, eom: Callable[..., Any]) -> str:
        """
        Give what is logged of a callback.
        """
        mta = InMemoryMTA(milter(eom))
        with self.expect_milter_errors(mta) as errors:
            self.assertEqual(mta.send(MESSAGE).verdict, c.SMFIS_TEMPFAIL)
        mta.finish()
        return "\n".join(errors)

    def test_says_what_to_do(self) -> None:
        """
        Whether a Future is awaited or returned, or asyncio finds out by itself: it is told how to
        have the right reactor.
        """
        loop = asyncio.new_event_loop()
        self.addCleanup(loop.close)

        class AsyncLibraryNotFoundError(RuntimeError):
            pass

        async def future(self: Milter) -> None:
            await loop.create_future()

        async def turn(self: Milter) -> None:
            await asyncio.sleep(0)

        async def sleep(self: Milter) -> None:
            await asyncio.sleep(1)

        async def library(self: Milter) -> None:
            raise AsyncLibraryNotFoundError("unknown async library")

        async def later(self: Milter) -> None:
            await succeed(None)
            await asyncio.sleep(0)

        def plain(self: Milter) -> Any:
            return loop.create_future()

        for eom in (future, turn, sleep, library, later, plain):
            self.assertIn("WrongReactor", self.told(eom), eom.__name__)
            self.assertIn("--reactor asyncio", self.told(eom), eom.__name__)

    def test_can_be_caught(self) -> None:
        """
        The error is raised where the coroutine waits, and the coroutine may do without.
        """
        loop = asyncio.new_event_loop()
        self.addCleanup(loop.close)

        async def eom(self: Milter) -> int:
            try:
                await loop.create_future()
            except WrongReactor:
                return c.SMFIS_REJECT
            return c.SMFIS_CONTINUE

        mta = InMemoryMTA(milter(eom))
        self.assertEqual(mta.send(MESSAGE).verdict, c.SMFIS_REJECT)
        mta.finish()

    def test_future_that_is_done_needs_no_loop(self) -> None:
        """
        A Future that is done needs no loop.
        """
        loop = asyncio.new_event_loop()
        self.addCleanup(loop.close)
        future = loop.create_future()
        future.set_result(c.SMFIS_REJECT)
        mta = InMemoryMTA(milter(lambda self: future))
        self.assertEqual(mta.send(MESSAGE).verdict, c.SMFIS_REJECT)
        mta.finish()

    def test_other_errors_stay(self) -> None:
        """
        A RuntimeError about something else is told as it is.
        """

        def eom(self: Milter) -> None:
            raise RuntimeError("of the milter's own")

        self.assertIn("RuntimeError: of the milter's own", self.told(eom))

    def test_await_without_a_loop(self) -> None:
        """
        An answer of the kit may be awaited in a coroutine of trial's, which knows Deferreds.
        """
        later: Deferred[int] = Deferred()
        mta = InMemoryMTA(milter(lambda self: later))

        async def test() -> None:
            self.assertEqual((await mta.send(MESSAGE)).verdict, c.SMFIS_REJECT)

        tested = Deferred.fromCoroutine(test())
        self.assertNoResult(tested)
        later.callback(c.SMFIS_REJECT)
        mta.flush()
        self.successResultOf(tested)
        mta.finish()


class EverywhereTests(MilterTestMixin, SynchronousTestCase):
    """
    It is so wherever a user's method may wait.
    """

    @in_loop
    async def test_hooks_of_messagemilter_may_await_asyncios_and_return_its_futures(self) -> None:
        """
        Hooks of a `MessageMilter` may await asyncio's, and return its Futures.
        """

        class Hooked(MessageMilter):
            async def sender(self, msg: Message) -> None:
                await asyncio.sleep(0)

            def recipient(self, msg: Message, rcpt: object) -> Any:
                return asyncio.ensure_future(asyncio.sleep(0))

            async def message(self, msg: Message) -> None:
                await asyncio.sleep(0)
                msg.headers.add("X-Hooked", "yes")

        mta = InMemoryMTA(Hooked)
        self.assertEqual((await mta.send(MESSAGE)).delivered.values("X-Hooked"), ["yes"])
        mta.finish()

    @in_loop
    async def test_behind_a_condition(self) -> None:
        """
        A milter behind a condition may wait in callbacks that are called late, and be given up.
        """
        seen: list[str] = []

        class Late(Milter):
            async def xxfi_connect(self, hostname: str, hostaddr: object) -> None:
                await asyncio.sleep(0)
                seen.append("connect")

            def xxfi_helo(self, helohost: str) -> Any:
                seen.append("helo")
                return asyncio.ensure_future(asyncio.sleep(0))

            async def xxfi_eom(self) -> None:
                await asyncio.sleep(0)
                self.smfi_addheader("X-Late", "yes")

        factory = MilterFactory(Late, when=sender_matches("client.example"))
        mta = InMemoryMTA(factory)
        self.assertEqual((await mta.send(MESSAGE)).delivered.values("X-Late"), ["yes"])
        self.assertEqual(seen, ["connect", "helo"])
        with mta.session() as session:
            session.mail("<a@client.example>")
            session.vanish()
        await turns()
        self.assertEqual(seen, ["connect", "helo"])
        mta.finish()

    @in_loop
    async def test_observer_is_told_of_callbacks_answer_once_when_it_has_come(self) -> None:
        """
        An observer is told of a callback's answer once, when it has come.
        """
        told: list[str] = []

        class Told(MilterObserver):
            def callback_answered(
                self, connection: object, milter: str, stage: str, answer: str, seconds: float
            ) -> None:
                if stage == "xxfi_eom":
                    told.append(answer)

        future = asyncio.get_running_loop().create_future()

        async def eom(self: Milter) -> int:
            await asyncio.sleep(0)
            return c.SMFIS_REJECT

        for tried in (milter(lambda self: future), milter(eom)):
            mta = InMemoryMTA(tried)
            mta.factory.addObserver(Told())
            sent = mta.send(MESSAGE)
            self.assertEqual(told, [])
            if not future.done():
                future.set_result(c.SMFIS_REJECT)
            await sent
            self.assertEqual(told, ["reject"])
            told.clear()
            mta.finish()

    @in_loop
    async def test_start_and_stop_of_factory_may_await_asyncios_and_return_its_futures(
        self,
    ) -> None:
        """
        ``start`` and ``stop`` of a factory may await asyncio's, and return its Futures.
        """
        done = []

        class Living(MilterFactory):
            async def start(self) -> None:
                await asyncio.sleep(0)
                done.append("start")

            def stop(self) -> Any:
                done.append("stop")
                return asyncio.ensure_future(asyncio.sleep(0))

        factory = MilterProtocolFactory(Living(), reactor=Clock())
        started = factory.start()
        self.assertFalse(started.called)
        await turns()
        self.assertEqual(done, ["start"])
        self.successResultOf(started)
        stopped = factory.stop()
        await turns()
        self.assertEqual(done, ["start", "stop"])
        self.successResultOf(stopped)

    def test_life_cycle_before_the_loop(self) -> None:
        """
        Under asyncio's reactor a factory that is used before that runs is started when it does.
        """

        class Living(MilterFactory):
            async def start(self) -> None:
                await asyncio.sleep(0)

        class Reactor(Clock):
            _asyncioEventloop = asyncio.new_event_loop()

        clock = Reactor()
        loop = clock._asyncioEventloop
        self.addCleanup(loop.close)
        started = MilterProtocolFactory(Living(), reactor=clock).start()
        self.assertFalse(started.called)
        loop.call_soon(clock.advance, 0)
        loop.run_until_complete(turns())
        self.successResultOf(started)

    def test_life_cycle_without_a_loop(self) -> None:
        """
        Without asyncio's reactor the failure to start says what to do.
        """

        class Living(MilterFactory):
            async def start(self) -> None:
                await asyncio.sleep(1)

        started = MilterProtocolFactory(Living(), reactor=Clock()).start()
        failure = self.failureResultOf(started)
        self.assertIn("--reactor asyncio", failure.getErrorMessage())
        self.flushLoggedErrors()

    @in_loop
    async def test_body_in_smaller_pieces_waits_for_each(self) -> None:
        """
        A body shown in pieces, because another milter asked for larger ones, waits for each.
        """
        sizes: list[int] = []

        async def body(self: Milter, bodyp: bytes) -> None:
            await asyncio.sleep(0)
            sizes.append(len(bodyp))

        large = full("Large", negotiate=(c.SMFIS_CONTINUE, 0, c.SMFIP_MDS_256K))
        conversation = Conversation(large, type("Small", (Milter,), {"xxfi_body": body}))
        conversation.agree(steps=0x1FFFFF | c.SMFIP_MDS_256K)
        conversation.send(MAIL, RCPT, DATA, EOH)
        self.assertEqual(conversation.letters(packet("B", bytes(200_000))), "")
        await turns(20)
        self.assertEqual(sizes, [65535, 65535, 65535, 3395])


class CancelledDeferredTests(MilterTestMixin, SynchronousTestCase):
    """
    Deferreds and tasks do not leave each other's failures lying about.
    """

    @in_loop
    async def test_failed_while_cancelled(self) -> None:
        """
        A Deferred that fails just before its task is cancelled is not reported as unhandled.
        """
        later: list[Deferred[None]] = [Deferred()]

        async def eom(self: Milter) -> None:
            await later[0]

        mta = InMemoryMTA(milter(eom))
        session = mta.session()
        mta.send(MESSAGE, session=session)
        await turns()
        later.pop().errback(KeyError("lost"))
        session.vanish()
        await turns()
        gc.collect()
        self.assertEqual(self.flushLoggedErrors(), [])
        mta.finish()

    @in_loop
    async def test_deferred_fails_at_once(self) -> None:
        """
        A Deferred that has failed already raises where it is awaited, as ever.
        """

        async def eom(self: Milter) -> int:
            try:
                await fail(Failure(CancelledError()))
            except CancelledError:
                return c.SMFIS_REJECT
            return c.SMFIS_CONTINUE

        mta = InMemoryMTA(milter(eom))
        self.assertEqual(mta.send(MESSAGE).verdict, c.SMFIS_REJECT)
        mta.finish()


class UnansweredTests(MilterTestMixin, SynchronousTestCase):
    """
    The kit says what has not been answered, in asyncio's tests too.
    """

    @in_loop
    async def test_callback_whose_future_is_not_done_is_named_at_the_end(self) -> None:
        """
        A callback whose Future is not done is named at the end.
        """
        future = asyncio.get_running_loop().create_future()
        mta = InMemoryMTA(milter(lambda self: future))
        mta.send(MESSAGE)
        failure = self.assertRaises(MilterTestFailure, mta.finish)
        self.assertIn("Tried.xxfi_eom() has not been answered", str(failure))
        await turns()
