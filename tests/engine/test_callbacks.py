"""
Tests of `yatxmilter._engine.callbacks`: whatever a callback does, comes out as a return code.
"""

from __future__ import annotations

import asyncio
from typing import Any

from twisted.internet.defer import Deferred, succeed

from tests.conversation_helpers import (
    ABORT,
    DATA,
    EOH,
    EOM,
    HEADER,
    HELO,
    MAIL,
    QUIT,
    RCPT,
    STAGES,
    Conversation,
    ConversationTestCase,
    Waiting,
    full,
    macros,
    milter,
    names,
    offer,
    packet,
    started,
)
from yatxmilter import MilterFactory
from yatxmilter import constants as c


def broken(*_: Any) -> None:
    """
    Be a callback with a bug.
    """
    raise ValueError("bug")


class CoroutineTests(ConversationTestCase):
    """
    Callbacks that are coroutines.
    """

    def said(self, stage: str, answer: Any) -> tuple[Conversation, bytes]:
        """
        Give the conversation, and what is said to a callback's packet.
        """
        conversation = started(full(**{stage: answer}))
        before, last = STAGES[stage]
        conversation.send(before)
        return conversation, conversation.send(last)

    def test_one_that_waits_is_answered_when_it_ends_at_every_stage(self) -> None:
        """
        One that waits is answered when it ends, at every stage.
        """
        for stage in STAGES:
            waits: list[Deferred[Any]] = [Deferred(), Deferred()]

            async def answer(*_: Any, waits: list[Deferred[Any]] = waits) -> Any:
                await waits[0]
                return await waits[1]

            conversation, said = self.said(stage, answer)
            self.assertEqual(said, b"")
            waits[0].callback(None)
            self.assertEqual(conversation.written(), b"")
            waits[1].callback(c.SMFIS_REJECT)
            self.assertEqual(conversation.written(), packet("r"), stage)

    def test_coroutine_that_raises_at_once_or_later_is_a_failed_callback(self) -> None:
        """
        One that raises, at once or later, is a failed callback with its own traceback.
        """
        wait: Deferred[None] = Deferred()

        async def at_once(*_: Any) -> None:
            raise ValueError("bug")

        async def later(*_: Any) -> None:
            await wait
            raise ValueError("bug")

        self.assertEqual(self.said("helo", at_once)[1], packet("t"))
        conversation, said = self.said("helo", later)
        self.assertEqual(said, b"")
        wait.callback(None)
        self.assertEqual(conversation.written(), packet("t"))
        for failure, name in zip(self.failures(), ("at_once", "later"), strict=True):
            self.assertIn(name, failure.getTraceback())

    def test_what_a_cancelled_task_of_asyncio_raises_fails_the_callback(self) -> None:
        """
        What a cancelled task of asyncio's raises, which is no C{Exception}, fails the callback too.
        """

        def plain(*_: Any) -> None:
            raise asyncio.CancelledError

        async def at_once(*_: Any) -> None:
            raise asyncio.CancelledError

        for answer in (plain, at_once):
            conversation, said = self.said("envrcpt", answer)
            self.assertEqual(said, packet("t"))
            self.assertFalse(conversation.closed)
        self.assertEqual(len(self.failures()), 2)

    def test_when_the_mta_goes_it_is_cancelled_where_it_waits(self) -> None:
        """
        When the MTA goes, it is cancelled where it waits.
        """
        seen: list[str] = []

        async def answer(*_: Any) -> None:
            try:
                await Deferred()
            except BaseException as error:
                seen.append(type(error).__name__)
                raise

        conversation, _ = self.said("eoh", answer)
        conversation.drop()
        self.assertEqual(seen, ["CancelledError"])
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_future_is_no_answer_and_neither_is_coroutine_that_awaits_one(self) -> None:
        """
        A Future is no answer, and neither is a coroutine that awaits one.
        """
        loop = asyncio.new_event_loop()
        self.addCleanup(loop.close)
        self.assertEqual(self.said("helo", lambda *_: loop.create_future())[1], packet("t"))
        self.assertEqual(len(self.failures()), 1)

    def test_deferred_within_a_deferred_of_a_coroutine_is_awaited(self) -> None:
        """
        A Deferred of a coroutine's making, and one of one.
        """

        async def inner() -> Any:
            return c.SMFIS_REJECT

        self.assertEqual(
            self.said("helo", lambda *_: Deferred.fromCoroutine(inner()))[1], packet("r")
        )

        async def outer(*_: Any) -> Any:
            return await inner()

        self.assertEqual(self.said("helo", outer)[1], packet("r"))

    def test_deferred_of_nonsense(self) -> None:
        """
        What comes out of a Deferred is checked as what is returned.
        """
        for value in ("x", c.SMFIS_SKIP, c.SMFIS_ALL_OPTS):
            said = self.said("helo", lambda *_, value=value: succeed(value))[1]
            self.assertEqual(said, packet("t"))
            self.assertEqual(len(self.failures()), 1)
            self.events.clear()


class PromiseTests(ConversationTestCase):
    """
    Milters that promised not to answer.
    """

    def test_broken_promise_is_logged(self) -> None:
        """
        A final code is logged, with milter, stage and code.
        """
        conversation = started(full("Chatty", quiet=("eoh",), eoh=c.SMFIS_REJECT))
        conversation.send(MAIL, RCPT, DATA)
        self.assertEqual(conversation.letters(EOH), "")
        for word in ("Chatty", "xxfi_eoh", "SMFIS_REJECT", "given at the next step"):
            self.assertIn(word, self.log_text())
        self.assertEqual(self.flushLoggedErrors(), [])
        # Another milter answers there, so that this one's answer is given, too.
        conversation = started(full("Quick", quiet=("eoh",), eoh=c.SMFIS_REJECT), full())
        conversation.send(MAIL, RCPT, DATA)
        self.assertEqual(conversation.letters(EOH), "r")
        self.assertIn("it is given all the same", self.log_text())

    def test_skip_and_continue_are_fine(self) -> None:
        """
        CONTINUE, and SKIP of the body, break no promise.
        """
        cls = full(quiet=("eoh", "body"), eoh=c.SMFIS_CONTINUE, body=c.SMFIS_SKIP)
        conversation = started(cls)
        conversation.send(MAIL, RCPT, DATA, EOH, packet("B", b"x"), packet("B", b"x"))
        self.assertNotIn("promised", self.log_text())
        self.assertEqual(names(cls.calls).count("body"), 1)
        self.assertEqual(conversation.letters(EOM), "c")

    def test_callback_that_fails_without_a_promised_answer_keeps_its_on_error(self) -> None:
        """
        A callback that fails where no answer was promised has its `on_error` kept.
        """
        conversation = started(full(quiet=("header",), header=broken))
        conversation.send(MAIL, RCPT, DATA)
        self.assertEqual(conversation.letters(HEADER), "")
        self.assertEqual(len(self.failures()), 1)
        self.assertEqual(conversation.letters(EOH), "t")


class TextTests(ConversationTestCase):
    """
    Texts for the SMTP client that milters set.
    """

    def log_of(self, code: int, rcode: str, merge: str) -> str:
        """
        Answer MAIL with a code, having set a text; give what is logged.
        """

        def answer(self: Any, argv: list[str]) -> int:
            self.smfi_setreply(rcode, None, "so\x1b")
            return code

        conversation = started(full("Texted", envfrom=answer), full(), merge=merge)
        conversation.send(MAIL)
        log = self.log_text()
        self.events.clear()
        return log

    def test_text_of_the_other_class_is_told(self) -> None:
        """
        A text of the other class than its verdict is dropped with a warning, which names milter,
        stage, verdict and text; others are not warned of.
        """
        for merge in ("first", "strictest", "chain"):
            log = self.log_of(c.SMFIS_REJECT, "451", merge)
            for word in ("Texted", "SMFIS_REJECT", "xxfi_envfrom", "'451 so\\x1b'", "other class"):
                self.assertIn(word, log, merge)
            self.assertIn("other class", self.log_of(c.SMFIS_TEMPFAIL, "550", merge))
            for code, rcode in (
                (c.SMFIS_TEMPFAIL, "451"),
                (c.SMFIS_REJECT, "550"),
                (c.SMFIS_ACCEPT, "550"),
                (c.SMFIS_CONTINUE, "451"),
            ):
                self.assertNotIn("other class", self.log_of(code, rcode, merge))


class IgnoredTests(ConversationTestCase):
    """
    Callbacks whose results are ignored.
    """

    def test_failures_are_logged(self) -> None:
        """
        An abort or close that raises or fails is logged once, with milter, stage and queue id.
        """
        for stage, sent in (("abort", ABORT), ("close", QUIT)):
            for late in (False, True):
                waiting = Waiting()
                answer = waiting if late else broken
                conversation = started(full("Buggy", **{stage: answer}))
                conversation.send(macros("M", b"i", b"4Id"), MAIL, sent)
                if late:
                    waiting.deferreds.pop().errback(ValueError("bug"))
                self.assertEqual(len(self.failures()), 1, (stage, late))
                text = self.log_text()
                for word in ("Buggy", f"xxfi_{stage}"):
                    self.assertIn(word, text)
                self.assertEqual("4Id" in text, True)
                self.events.clear()

    def test_abort_that_takes_longer_than_its_milter_may_is_given_up(self) -> None:
        """
        An abort that takes longer than its milter may is given up, and the MTA heard again.
        """
        conversation = started(MilterFactory(full(abort=lambda *_: Deferred()), timeout=5))
        self.assertEqual(conversation.letters(MAIL, ABORT, MAIL), "c")
        conversation.clock.advance(6)
        self.assertEqual(conversation.written(), packet("c"))
        self.assertEqual(len(self.flushLoggedErrors(TimeoutError)), 1)

    def test_next_message_waits_for_the_aborts_of_all_milters(self) -> None:
        """
        The next message waits for the aborts of all milters.
        """
        one, two = Waiting(), Waiting()
        conversation = started(full(abort=one), full(abort=two))
        self.assertEqual(conversation.letters(MAIL, ABORT, HELO), "c")
        two.fire()
        self.assertEqual(conversation.written(), b"")
        one.fire()
        self.assertEqual(conversation.written(), packet("c"))


class FailureTests(ConversationTestCase):
    """
    What `on_error` becomes where it is not legal, and in negotiation.
    """

    def test_nearest_legal_code(self) -> None:
        """
        DISCARD at connect becomes TEMPFAIL, ACCEPT at unknown CONTINUE.
        """
        for stage, code, letter in (
            ("connect", c.SMFIS_DISCARD, "t"),
            ("helo", c.SMFIS_DISCARD, "t"),
            ("unknown", c.SMFIS_DISCARD, "t"),
            ("unknown", c.SMFIS_ACCEPT, "c"),
            ("eom", c.SMFIS_DISCARD, "d"),
            ("eom", c.SMFIS_ACCEPT, "a"),
        ):
            conversation = started(MilterFactory(full(**{stage: broken}), on_error=code))
            before, last = STAGES[stage]
            conversation.send(before)
            self.assertEqual(conversation.letters(last), letter, (stage, code))
        self.flushLoggedErrors(ValueError)

    def test_negotiation_that_fails_is_answered_by_continue_or_accept(
        self,
    ) -> None:
        """
        A negotiation that fails: CONTINUE has it computed, ACCEPT does without the milter.
        """
        table = {
            c.SMFIS_CONTINUE: (6, 0x1FF, 0x37F & ~c.SMFIP_NOHELO),
            c.SMFIS_ACCEPT: (6, 0, 0x37F),
            c.SMFIS_TEMPFAIL: None,
            c.SMFIS_REJECT: None,
            c.SMFIS_DISCARD: None,
        }
        for code, agreement in table.items():
            cls = milter(negotiate=broken, helo=None)
            conversation = Conversation(MilterFactory(cls, on_error=code))
            if agreement is None:
                self.assertEqual(conversation.send(offer()), b"")
            else:
                self.assertEqual(conversation.agree(), agreement)
                conversation.send(HELO, MAIL, ABORT, QUIT)
            self.assertTrue(conversation.closed)
            self.assertEqual(names(cls.calls)[-1], "close")
            self.assertEqual("helo" in names(cls.calls), code is c.SMFIS_CONTINUE)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 5)

    def test_xxfi_mta_connect_that_fails_closes_unless_on_error_lets_it_pass(self) -> None:
        """
        An `xxfi_mta_connect` that fails closes, unless `on_error` lets it pass.
        """
        for code, closed in ((c.SMFIS_TEMPFAIL, True), (c.SMFIS_CONTINUE, False)):
            conversation = Conversation(MilterFactory(milter(mta_connect=broken), on_error=code))
            self.assertEqual(conversation.closed, closed)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 2)
