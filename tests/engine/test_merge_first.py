"""
Tests of the merges' corners: answers kept where none was promised, several milters, all merges.

What each merge promises is in `tests.engine.test_contract_several` and
`tests.engine.test_contract_chain`; here is what comes of odd orders of things.
"""

from __future__ import annotations

from itertools import product
from typing import Any

from twisted.internet.defer import Deferred

from tests.conversation_helpers import (
    ABORT,
    BODY,
    CONNECT,
    DATA,
    EOH,
    EOM,
    HEADER,
    HELO,
    MAIL,
    MESSAGE,
    QUIT,
    QUIT_NC,
    RCPT,
    UNKNOWN,
    Conversation,
    ConversationTestCase,
    Waiting,
    full,
    names,
    offer,
    packet,
    parse,
    started,
)
from yatxmilter import MilterFactory
from yatxmilter import constants as c

CONTINUE, REJECT, DISCARD = c.SMFIS_CONTINUE, c.SMFIS_REJECT, c.SMFIS_DISCARD
ACCEPT, TEMPFAIL, SKIP = c.SMFIS_ACCEPT, c.SMFIS_TEMPFAIL, c.SMFIS_SKIP
ALL = ("first", "strictest", "chain")


def quiet(title: str, *stages: str, **answers: Any) -> Any:
    """
    Make a milter that promised not to answer at some stages.
    """
    return full(title, quiet=stages, **answers)


class KeptTests(ConversationTestCase):
    """
    Final answers given where none was promised.
    """

    def test_for_the_connection(self) -> None:
        """
        One given at connect or HELO is given to every message after it, until QUIT_NC.
        """
        for merge, stage in product(ALL, ("connect", "helo")):
            one = quiet("One", stage, **{stage: REJECT})
            two = quiet("Two", stage)
            conversation = started(one, two, merge=merge)
            self.assertEqual(conversation.letters(CONNECT + HELO), "c" if stage == "helo" else "r")
            self.assertEqual(conversation.letters(UNKNOWN), "c")
            if stage == "connect":
                continue
            self.assertEqual(conversation.letters(MAIL, MAIL), "rr")
            self.assertEqual(conversation.letters(QUIT_NC + MAIL), "c", (merge, stage))

    def test_text_is_kept(self) -> None:
        """
        Its text is kept with it.
        """

        def header(self: Any, *_: Any) -> Any:
            self.smfi_setreply("550", "5.7.1", "kept")
            return REJECT

        for merge in ALL:
            milters = [quiet("One", "header", header=header), quiet("Two", "header")]
            conversation = started(*milters, merge=merge)
            said = parse(conversation.send(MAIL + RCPT + DATA + HEADER + EOH + EOM))
            self.assertIn(("y", b"550 5.7.1 kept\0"), said, merge)

    def test_one_who_gave_it_is_not_told_of_end_of_message(self) -> None:
        """
        The one who gave it is not told of the end of the message; the others are, once.
        """
        for merge in ("first", "strictest"):
            one = quiet("One", "header", header=REJECT)
            two = quiet("Two", "header")
            for ends in (EOH, ABORT, QUIT):
                one.calls.clear()
                two.calls.clear()
                conversation = started(one, two, merge=merge)
                conversation.send(MAIL + RCPT + DATA + HEADER)
                conversation.send(ends, QUIT)
                self.assertEqual(names(one.calls).count("abort"), 0, (merge, ends))
                self.assertEqual(names(two.calls).count("abort"), 1, (merge, ends))

    def test_among_several_answers_kept_first_takes_first_and_strictest_strictest(self) -> None:
        """
        Among several answers kept, first takes the first and strictest the strictest.
        """
        for merge, letter in (("first", "t"), ("strictest", "r")):
            one = quiet("One", "header", "eoh", header=TEMPFAIL)
            two = quiet("Two", "header", "eoh", eoh=REJECT)
            conversation = started(one, two, merge=merge)
            self.assertEqual(conversation.letters(MAIL + RCPT + DATA + HEADER + EOH), "ccc")
            self.assertEqual(conversation.letters(BODY), letter)

    def test_several_votes_before_messages(self) -> None:
        """
        At connect and HELO too, and the decider's text goes with it.
        """

        def helo(self: Any, *_: Any) -> Any:
            self.smfi_setreply("550", None, self.xxfi_name)
            return REJECT

        one = quiet("One", "helo", helo=TEMPFAIL)
        two = quiet("Two", "helo", helo=helo)
        conversation = started(one, two, merge="strictest")
        self.assertEqual(conversation.send(HELO), b"")
        self.assertEqual(parse(conversation.send(MAIL)), [("y", b"550 Two\0")])

    def test_accept_where_no_answer_was_promised_ends_it_for_all(self) -> None:
        """
        An ACCEPT where no answer was promised ends it for all, or for its own milter alone.
        """
        for merge, letter in (("first", "a"), ("strictest", "c")):
            one, two = quiet("One", "data", data=ACCEPT), quiet("Two", "data")
            conversation = started(one, two, merge=merge)
            self.assertEqual(conversation.letters(MAIL + RCPT + DATA), "cc")
            self.assertEqual(conversation.letters(HEADER), letter)
            self.assertEqual(names(one.calls), ["envfrom", "envrcpt", "data"])
        for merge in ALL:
            both = [quiet(name, "data", data=ACCEPT) for name in ("One", "Two")]
            conversation = started(*both, merge=merge)
            self.assertEqual(conversation.letters(MAIL + RCPT + DATA), "cc")
            said = conversation.letters(HEADER + EOH + BODY + EOM)
            self.assertIn("a", said, merge)

    def test_at_an_unknown_command_it_is_about_nothing_else_and_dropped(self) -> None:
        """
        At an unknown command it is about nothing else, and dropped.
        """
        for merge, code in product(ALL, (REJECT, TEMPFAIL)):
            both = [quiet(name, "unknown", unknown=code) for name in ("One", "Two")]
            conversation = started(*both, merge=merge)
            self.assertEqual(conversation.letters(UNKNOWN, MAIL, UNKNOWN, RCPT, EOM), "ccc")

    def test_final_answer_to_a_body_in_end_of_message_counts_at_once(self) -> None:
        """
        A body's final answer counts at once when its chunk came in the end of message.
        """
        for merge, answer in product(("first", "strictest"), (REJECT, Waiting())):
            one, two = quiet("One", "body", body=answer), quiet("Two", "body")
            conversation = started(one, two, merge=merge)
            conversation.send(MAIL + RCPT + DATA + EOH)
            said = conversation.letters(packet("E", b"x"))
            if isinstance(answer, Waiting):
                self.assertEqual(said, "")
                answer.fire(REJECT)
                said = "".join(letter for letter, _ in parse(conversation.written()))
            self.assertEqual(said, "r")
            self.assertNotIn("eom", names(one.calls) + names(two.calls))

    def test_behind_last_chunk(self) -> None:
        """
        What is awaited in the message behind one that its last chunk has ended is answered.
        """
        for merge in ALL:
            answer = Waiting()
            one = full("One", envfrom=answer, body=TEMPFAIL)
            conversation = started(one, merge=merge)
            conversation.send(MAIL)
            answer.fire(CONTINUE)
            conversation.written()
            self.assertEqual(conversation.letters(RCPT, packet("E", b"x"))[-1:], "t", merge)
            self.assertEqual(conversation.letters(MAIL), "")
            answer.fire(CONTINUE)
            said = "".join(letter for letter, _ in parse(conversation.written()))
            self.assertEqual(said, "c", merge)


class DiscardTests(ConversationTestCase):
    """
    DISCARD of a recipient is about the whole message.
    """

    def test_others_are_told_once(self) -> None:
        """
        The others get `xxfi_abort` at once, and not again when the MTA ends the message.
        """
        for merge, end in product(("first", "strictest"), (ABORT, MAIL, QUIT)):
            one, two = full("One", envrcpt=DISCARD), full("Two")
            conversation = started(one, two, merge=merge)
            self.assertEqual(conversation.letters(MAIL, RCPT), "cd")
            conversation.send(end)
            conversation.send(QUIT)
            self.assertEqual(names(two.calls).count("abort"), 1 + (end == MAIL), (merge, end))

    def test_others_are_called_no_more(self) -> None:
        """
        Whatever the MTA sends of that message, the others hear nothing more of it; the next
        message is theirs again.
        """
        rest = b"".join((RCPT, DATA, HEADER, EOH, BODY, UNKNOWN, EOM))
        for merge in ALL:
            for early in ({}, {"quiet": ("envfrom",)}):
                one, two = full("One", envrcpt=DISCARD), full("Two", **early)
                conversation = started(one, two, merge=merge)
                self.assertEqual(conversation.letters(MAIL, RCPT), "cd")
                before = list(two.calls)
                self.assertEqual(names(before)[-1:], ["abort"], merge)
                self.assertEqual(conversation.letters(rest), "dcccccc", merge)
                self.assertEqual(two.calls, before, merge)
                conversation.send(ABORT)
                self.assertEqual(two.calls, before, merge)
                conversation.send(MAIL)
                self.assertEqual(names(two.calls)[-1], "envfrom", merge)

    def test_refuser_of_that_recipient_is_one_of_the_others(self) -> None:
        """
        Who refused the recipient that another discards the message for is told, and hears no more.
        """
        one, two = full("One", envrcpt=DISCARD), full("Two", envrcpt=REJECT)
        conversation = started(two, one, merge="strictest")
        self.assertEqual(conversation.letters(MAIL, RCPT), "cd")
        self.assertEqual(names(two.calls)[-1], "abort")
        before = list(two.calls)
        conversation.send(RCPT, DATA, ABORT)
        self.assertEqual(two.calls, before)

    def test_decider_is_told_at_the_end(self) -> None:
        """
        The one who said so is told when the MTA ends the message, as with libmilter.
        """
        for merge in ALL:
            one = full("One", envrcpt=DISCARD)
            conversation = started(one, merge=merge)
            conversation.send(MAIL, RCPT)
            self.assertNotIn("abort", names(one.calls))
            conversation.send(ABORT)
            self.assertEqual(names(one.calls)[-1], "abort")


class StrictestTests(ConversationTestCase):
    """
    Corners of ``merge="strictest"``.
    """

    def test_answers_that_come_late_are_all_counted_in_any_order(self) -> None:
        """
        Answers that come late are all counted, in any order.
        """
        for codes in ((ACCEPT, REJECT), (REJECT, ACCEPT), (DISCARD, CONTINUE), (CONTINUE, DISCARD)):
            waits = [Waiting(), Waiting()]
            conversation = started(*(full(eoh=one) for one in waits), merge="strictest")
            conversation.send(MAIL + RCPT + DATA + EOH)
            conversation.written()
            for place in (1, 0):
                waits[place].fire(codes[place])
            expected = "d" if DISCARD in codes else "r"
            self.assertEqual(conversation.written(), packet(expected))

    def test_those_who_have_left_wait_for_nothing(self) -> None:
        """
        When the last that was left accepts too, the MTA is told, at any step.
        """
        for stage in ("envrcpt", "data", "header", "eoh", "body", "eom"):
            one, two = full("One", envfrom=ACCEPT), full("Two", **{stage: ACCEPT})
            conversation = started(one, two, merge="strictest")
            self.assertEqual(conversation.letters(MESSAGE)[-1], "a", stage)
            self.assertEqual(names(one.calls), ["envfrom"])

    def test_accept_at_unknown_is_not_legal(self) -> None:
        """
        When all have left for good, an unknown command is continued all the same.
        """
        conversation = started(full(helo=ACCEPT), full(helo=ACCEPT), merge="strictest")
        self.assertEqual(conversation.letters(HELO), "a")
        self.assertEqual(conversation.letters(UNKNOWN), "c")
        self.assertEqual(conversation.letters(MAIL), "a")

    def test_skip_of_those_who_are_left(self) -> None:
        """
        SKIP goes out when all that still want the body have skipped.
        """
        one, two = full("One", data=ACCEPT), full("Two", body=SKIP)
        conversation = started(one, two, merge="strictest")
        self.assertEqual(conversation.letters(MAIL, RCPT, DATA, EOH, BODY), "ccccs")

    def test_payload_that_cannot_be_read_ends_connection_under_any_merge(self) -> None:
        """
        A payload that cannot be read ends the connection under any merge.
        """
        for merge in ALL:
            milters = [full("One", mta_close=None), full("Two", mta_close=None)]
            conversation = started(*milters, merge=merge)
            conversation.send(MAIL + RCPT + DATA + packet("L", b"N\0"))
            self.assertTrue(conversation.closed)
            for cls in milters:
                self.assertEqual(names(cls.calls)[-3:], ["abort", "close", "mta_close"])
            conversation = started(full(), merge=merge)
            self.assertEqual(conversation.letters(packet("H", b"abc"), MAIL), "c")


class FiringTests(ConversationTestCase):
    """
    Deferreds that fire one another.
    """

    def test_results_that_come_before_the_wait(self) -> None:
        """
        A result that comes while fellows are still being called is taken as if it came later.
        """
        for merge, (code, letter) in product(("first", "strictest"), ((REJECT, "r"), (None, "c"))):
            one, three = Waiting(), Waiting()

            def two(*_: Any, one: Waiting = one, code: Any = code) -> None:
                one.fire(code)

            conversation = started(
                full("One", eoh=one), full("Two", eoh=two), full("Three", eoh=three), merge=merge
            )
            conversation.send(MAIL + RCPT + DATA)
            said = conversation.letters(EOH)
            if letter == "r" and merge == "first":
                self.assertEqual((said, three.cancelled), ("r", 1))
                continue
            self.assertEqual(said, "")
            three.fire()
            self.assertEqual(conversation.written(), packet(letter))

    def test_two_at_once(self) -> None:
        """
        Of two results that come before the wait the first milter's decides, and no other.
        """
        one, two = Waiting(), Waiting()

        def three(*_: Any) -> None:
            two.fire(TEMPFAIL)
            one.fire(REJECT)

        conversation = started(
            full("One", helo=one), full("Two", helo=two), full("Three", helo=three)
        )
        self.assertEqual(conversation.letters(HELO), "r")
        self.assertEqual(conversation.letters(MAIL), "c")


class CancelledTests(ConversationTestCase):
    """
    Cancellers with minds of their own.
    """

    def test_canceller_that_closes_the_connection_does_no_further_harm(self) -> None:
        """
        A canceller that closes the connection when its time is over does no further harm.
        """
        for merge, stage in product(ALL, ("mta_connect", "negotiate", "helo", "eom", "abort")):
            made: list[Any] = []

            def slow(self: Any, *_: Any, made: list[Any] = made) -> Any:
                made.append(Deferred(lambda _: self.protocol.transport.loseConnection()))
                return made[-1]

            cls = full("Slow", **{stage: slow}, mta_close=None)
            conversation = Conversation(MilterFactory(cls, timeout=3), merge=merge)
            conversation.send(offer(), HELO, MESSAGE, MAIL, ABORT)
            conversation.clock.advance(4)
            self.assertTrue(conversation.closed)
            self.assertEqual(len(made), 1)
            self.assertEqual(names(cls.calls).count("close"), 1, (merge, stage))
            self.assertEqual(names(cls.calls)[-1], "mta_close")
            self.assertLessEqual(names(cls.calls).count("abort"), 1)
        self.flushLoggedErrors()

    def test_nothing_decided_where_no_answer_is_owed(self) -> None:
        """
        Continues where no answer was promised leave nothing behind.
        """
        for merge in ALL:
            conversation = started(quiet("One", "helo"), quiet("Two", "helo"), merge=merge)
            self.assertEqual(conversation.letters(HELO, MAIL), "c")

    def test_progress_after_hanging_up(self) -> None:
        """
        A milter that hangs up and then says that it is at work is not heard.
        """

        def eom(self: Any) -> None:
            self.protocol.transport.loseConnection()
            self.smfi_progress()

        for merge in ALL:
            conversation = started(full(eom=eom), merge=merge)
            conversation.send(MESSAGE)
            self.assertEqual([letter for letter, _ in parse(conversation.written())].count("p"), 0)
            self.assertTrue(conversation.closed)
        self.flushLoggedErrors()

    def test_progress_after_the_mta_has_gone(self) -> None:
        """
        What a coroutine says when it is cancelled goes nowhere.
        """

        async def eom(self: Any) -> None:
            try:
                await Deferred()
            finally:
                self.smfi_progress()

        for merge in ALL:
            conversation = started(full(eom=eom), merge=merge)
            conversation.send(MESSAGE)
            conversation.drop()
            self.assertEqual(conversation.written(), b"")
        self.assertEqual(self.flushLoggedErrors(), [])
