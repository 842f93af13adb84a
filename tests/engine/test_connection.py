"""
Tests of `yatxmilter._engine.connection`: one thing after the other, whatever happens in between.

A conversation is driven through its protocol, in memory.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed

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
    STAGES,
    STEPS,
    UNKNOWN,
    Conversation,
    ConversationTestCase,
    Waiting,
    full,
    macros,
    milter,
    names,
    offer,
    packet,
    parse,
    started,
)
from yatxmilter import Milter, MilterFactory
from yatxmilter import constants as c
from yatxmilter._engine.connection import MERGES

WHOLE = CONNECT + HELO + macros("M", b"i", b"1") + MESSAGE + MAIL + ABORT + MESSAGE + QUIT


def letters(data: bytes) -> str:
    """
    Give the letters of packets.
    """
    return "".join(letter for letter, _ in parse(data))


class OrderTests(ConversationTestCase):
    """
    One command at a time.
    """

    def test_mistake_of_the_librarys_own_is_no_end_of_the_loop(self) -> None:
        """
        What should never be raised is passed on, and the connection can still be served, or ended.
        """
        conversation = started(full())

        def fail(*_: Any) -> None:
            raise ZeroDivisionError

        engine = conversation.protocol._conversation
        before = engine.table
        engine.table = [(fail, before)] * 256
        self.assertRaises(ZeroDivisionError, engine.take_in, HELO)
        engine.table = before
        self.assertEqual(letters(conversation.send(HELO + QUIT)), "c")
        self.assertFalse(conversation.transport.connected)

    def test_every_waiting_callback_is_answered_as_if_it_did_not_wait(self) -> None:
        """
        With every callback waiting, the same is called and answered as with none.
        """
        plain = full()
        expected = started(plain).send(WHOLE)
        for merge in MERGES:
            quick = full()
            said = started(quick, full(), merge=merge).send(WHOLE)
            waiting = Waiting()
            slow = full(**dict.fromkeys(STEPS, waiting))
            conversation = started(slow, full(), merge=merge)
            slow_said = conversation.send(WHOLE)
            while waiting.deferreds:
                self.assertEqual(len(waiting.deferreds), 1)
                waiting.fire()
            slow_said += conversation.written()
            self.assertEqual(slow_said, said, merge)
            self.assertEqual(said, expected, merge)
            self.assertEqual(slow.calls, quick.calls, merge)
            self.assertTrue(conversation.closed)

    def test_deferreds_that_have_fired_already_change_nothing_either_many_in_one_read(self) -> None:
        """
        Deferreds that have fired already change nothing either, many in one read.
        """
        cls = full(**dict.fromkeys(STEPS, lambda *_: succeed(None)))
        conversation = started(cls)
        many = 2000 * HEADER
        self.assertEqual(conversation.letters(MAIL + RCPT + DATA + many), 2003 * "c")

    def test_fired_by_a_fellow(self) -> None:
        """
        A callback may fire what an earlier milter waits for, in the same step.
        """
        for merge in ("first", "strictest"):
            for code, letter in ((c.SMFIS_CONTINUE, "c"), (c.SMFIS_REJECT, "r")):
                waiting = Waiting()

                def fire(*_: Any, waiting: Waiting = waiting, code: Any = code) -> None:
                    waiting.fire(code)

                conversation = started(full(helo=waiting), full(helo=fire), merge=merge)
                self.assertEqual(conversation.letters(HELO + CONNECT), letter)

    def test_one_read_while_a_message_ends(self) -> None:
        """
        What came in one read with a refused command waits until all are done with the message.
        """
        waiting = Waiting()
        first = full(abort=waiting)
        conversation = started(first, full(envrcpt=c.SMFIS_ACCEPT))
        conversation.send(MAIL)
        answers = conversation.send(RCPT + MAIL)
        self.assertEqual([letter for letter, _ in parse(answers)], ["a"])
        self.assertEqual(names(first.calls), ["envfrom", "envrcpt", "abort"])
        waiting.fire()
        self.assertEqual(names(first.calls), ["envfrom", "envrcpt", "abort", "envfrom"])

    def test_fired_by_a_cancellation(self) -> None:
        """
        To cancel one Deferred may fire another; one answer is given, and nobody called twice.
        """
        for merge in ("first", "strictest"):
            for stage in STAGES:
                other: Deferred[Any] = Deferred(lambda _: None)
                first = Waiting()

                def fire(deferred: Any, other: Any = other) -> None:
                    if not other.called:
                        other.callback(c.SMFIS_REJECT)
                    deferred.errback(CancelledError())

                tied: Deferred[Any] = Deferred(fire)
                milters = [
                    full(**{stage: lambda *_, tied=tied: tied}),
                    full(**{stage: first}),
                    full(**{stage: lambda *_, other=other: other}),
                ]
                conversation = started(*milters, merge=merge)
                before, last = STAGES[stage]
                conversation.send(before, last)
                first.fire(c.SMFIS_TEMPFAIL)
                if merge == "first":
                    self.assertEqual(letters(conversation.written()), "t", stage)
                conversation.drop()
                for cls in milters:
                    self.assertLessEqual(names(cls.calls).count("abort"), 1)
                    self.assertEqual(names(cls.calls).count("close"), 1)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_many_results_in_one_go(self) -> None:
        """
        Firing in the middle of a callback answers what waits afterwards, in order.
        """
        waiting = Waiting()

        def helo(*_: Any) -> Any:
            return waiting()

        conversation = started(full(helo=helo, envfrom=waiting))
        conversation.send(HELO + HELO + MAIL + RCPT)
        deferred = waiting.deferreds.pop()

        def refire(result: Any) -> Any:
            return result

        deferred.addCallback(refire)
        deferred.callback(None)
        self.assertEqual(letters(conversation.written()), "c")
        waiting.fire()
        waiting.fire(c.SMFIS_REJECT)
        self.assertEqual(letters(conversation.written()), "cr")

    def test_quit_waits_too(self) -> None:
        """
        Ends that were sent behind a command wait for its answer.
        """
        for last, ends in ((QUIT, ["close"]), (QUIT_NC, ["close"])):
            waiting = Waiting()
            cls = full(helo=waiting)
            conversation = started(cls)
            conversation.send(HELO + last)
            self.assertEqual(names(cls.calls), ["helo"])
            waiting.fire()
            self.assertEqual(names(cls.calls), ["helo", *ends])
            self.assertEqual(letters(conversation.written()), "c")

    def test_abort_waits_too(self) -> None:
        """
        An ABORT behind a command in progress is taken after its answer.
        """
        waiting = Waiting()
        cls = full(envrcpt=waiting)
        conversation = started(cls)
        conversation.send(MAIL, RCPT + ABORT)
        self.assertNotIn("abort", names(cls.calls))
        waiting.fire()
        self.assertEqual(names(cls.calls)[-1], "abort")


class EndTests(ConversationTestCase):
    """
    However it ends, the ends are called once.
    """

    def check_ends(self, cls: Any, in_message: bool) -> None:
        """
        Check the calls that end a connection.
        """
        found = names(cls.calls)
        self.assertEqual(found.count("close"), 1)
        self.assertEqual(found.count("mta_close"), 1)
        ends = ["abort", "close", "mta_close"] if in_message else ["close", "mta_close"]
        self.assertEqual(found[-len(ends) :], ends)
        if not in_message:
            self.assertNotEqual(found[-3:-2], ["abort"])

    def test_at_every_byte(self) -> None:
        """
        The MTA may vanish after any byte.
        """
        stream = offer() + CONNECT + HELO + MAIL + RCPT + DATA + HEADER + EOM + QUIT
        begins = stream.index(MAIL) + len(MAIL)
        for merge in MERGES:
            for place in range(len(stream)):
                milters = [milter(header=None, envfrom=None, mta_close=None), full(mta_close=None)]
                conversation = Conversation(*milters, merge=merge)
                conversation.send(stream[:place])
                conversation.drop()
                # An end of message without end of headers is out of order, and ends the message.
                for cls in milters:
                    found = names(cls.calls)
                    self.assertEqual(found[-2:], ["close", "mta_close"])
                    self.assertEqual(found.count("close"), 1)
                    self.assertEqual(found.count("abort"), int(begins <= place), place)

    def test_at_every_byte_with_a_callback_waiting(self) -> None:
        """
        And whatever is awaited then.
        """
        stream = CONNECT + HELO + MESSAGE
        for merge in MERGES:
            for stage in STEPS:
                for place in range(1, len(stream)):
                    waiting = Waiting()
                    cls = full(**{stage: waiting}, mta_close=None)
                    conversation = started(full(), cls, merge=merge)
                    conversation.send(stream[:place])
                    owed = len(waiting.deferreds)
                    conversation.drop()
                    self.assertEqual(waiting.cancelled, owed)
                    in_message = place >= len(CONNECT + HELO + MAIL) and (
                        stage not in ("connect", "helo")
                    )
                    self.check_ends(cls, in_message)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_milter_may_close_the_connection_in_any_callback(self) -> None:
        """
        A milter may close the connection in any callback; nothing is said after that.
        """
        for stage, (before, last) in STAGES.items():

            def hang_up(self: Any, *_: Any) -> Any:
                self.protocol.transport.loseConnection()
                return c.SMFIS_REJECT

            cls = full(**{stage: hang_up}, mta_close=None)
            conversation = started(cls)
            conversation.send(before)
            self.assertEqual(conversation.send(last + MAIL), b"", stage)
            self.check_ends(cls, stage not in ("connect", "helo"))

    def test_milter_closes_at_the_start(self) -> None:
        """
        A milter may close the connection in `xxfi_mta_connect` and in `xxfi_negotiate`.
        """

        def hang_up(self: Any, *_: Any) -> None:
            self.protocol.transport.loseConnection()

        for stage in ("mta_connect", "negotiate"):
            cls = full(**{stage: hang_up}, mta_close=None)
            conversation = Conversation(cls)
            conversation.send(offer(), HELO)
            self.check_ends(cls, False)
            self.assertEqual(conversation.written(), b"")

    def test_ends_while_opening(self) -> None:
        """
        The MTA may go while `xxfi_mta_connect` or `xxfi_negotiate` is awaited.
        """
        for stage in ("mta_connect", "negotiate"):
            waiting, fellow = Waiting(), Waiting()
            cls = milter(**{stage: waiting}, mta_close=None)
            conversation = Conversation(cls, milter(**{stage: fellow}))
            conversation.send(offer(), HELO)
            conversation.drop()
            self.assertEqual((waiting.cancelled, fellow.cancelled), (1, 1))
            self.check_ends(cls, False)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_refused_while_others_are_awaited(self) -> None:
        """
        The first that refuses ends the opening; what is awaited of the others is cancelled.
        """
        for stage in ("mta_connect", "negotiate"):
            waits = [Waiting() for _ in range(3)]
            milters = [milter(**{stage: one}, mta_close=None) for one in waits]
            conversation = Conversation(*milters)
            conversation.send(offer())
            waits[1].fire(c.SMFIS_REJECT)
            self.assertTrue(conversation.closed)
            self.assertEqual([one.cancelled for one in waits], [1, 0, 1])
            for cls in milters:
                self.check_ends(cls, False)

    def test_refused_at_once_with_others_awaited(self) -> None:
        """
        One that refuses at once keeps those behind it from being asked.
        """
        for stage in ("mta_connect", "negotiate"):
            waiting = Waiting()
            last = milter(**{stage: None})
            conversation = Conversation(
                milter(**{stage: waiting}), milter(**{stage: c.SMFIS_REJECT}), last
            )
            conversation.send(offer())
            self.assertTrue(conversation.closed)
            self.assertEqual(waiting.cancelled, 1)
            self.assertEqual(names(last.calls), ["close"])

    def test_all_negotiate_late(self) -> None:
        """
        The agreement is made when the last has answered, in any order.
        """
        waits = [Waiting() for _ in range(3)]
        conversation = Conversation(*(milter(negotiate=one) for one in waits))
        self.assertEqual(conversation.send(offer() + HELO), b"")
        for place in (2, 0):
            waits[place].fire((c.SMFIS_CONTINUE, 1 << place, 0))
            self.assertEqual(conversation.written(), b"")
        waits[1].fire((c.SMFIS_CONTINUE, 2, 0))
        said = conversation.written()
        self.assertEqual(letters(said), "Oc")
        self.assertEqual(said[:17], offer(0, 7))

    def test_fellow_fires_in_opening(self) -> None:
        """
        A milter may fire, in its own callback, what an earlier one waits for.
        """
        for stage in ("mta_connect", "negotiate"):
            for code, closed in ((None, False), (c.SMFIS_REJECT, True)):
                waiting = Waiting()

                def fire(*_: Any, waiting: Waiting = waiting, code: Any = code) -> None:
                    waiting.fire(code)

                last = Waiting()
                conversation = Conversation(
                    milter(**{stage: waiting}), milter(**{stage: fire}), milter(**{stage: last})
                )
                conversation.send(offer())
                self.assertEqual(conversation.closed, closed)
                if not closed:
                    last.fire(None)
                    self.assertEqual(letters(conversation.written()), "O")

    def test_broken_packet_while_waiting(self) -> None:
        """
        What is broken is found out when its turn comes; what came before is answered.
        """
        waiting = Waiting()
        cls = full(helo=waiting)
        conversation = started(cls)
        conversation.send(HELO + b"\0\1\0\1B")
        self.assertFalse(conversation.closed)
        waiting.fire()
        self.assertEqual(conversation.written(), packet("c"))
        self.assertTrue(conversation.closed)

    def test_nothing_after_the_end(self) -> None:
        """
        What comes behind QUIT is not looked at.
        """
        cls = full()
        conversation = started(cls)
        conversation.send(QUIT + HELO)
        conversation.protocol.dataReceived(HELO)
        self.assertEqual(names(cls.calls), ["close"])


class MembershipTests(ConversationTestCase):
    """
    Who is on the connection.
    """

    def test_once_the_mta_has_begun_to_talk_no_milter_can_be_added(self) -> None:
        """
        Once the MTA has begun to talk no milter can be added.
        """
        conversation = started(Milter)
        with self.assertRaises(RuntimeError):
            conversation.protocol.addMilter(Milter(None, conversation.protocol))

    def test_what_is_no_milter_cannot_be_added(self) -> None:
        """
        What is no milter cannot be added.
        """
        with self.assertRaises(TypeError):
            Conversation(Milter).protocol.addMilter("x")

    def test_without_any_milter_everything_is_declined(self) -> None:
        """
        Without any milter everything is declined, and what comes all the same continued.
        """
        conversation = Conversation()
        self.assertEqual(conversation.agree(), (6, 0, 0x37F))
        self.assertEqual(conversation.letters(CONNECT, HELO, MESSAGE), 9 * "c")
        for merge in MERGES:
            self.assertEqual(started(merge=merge).letters(MESSAGE), 7 * "c")

    def test_missing_milters_are_named(self) -> None:
        """
        A milter that could not be built is named in the log: by its factory's name, its own, its
        class's or its function's.
        """

        class Raising(Milter):
            def __init__(self, factory: Any, protocol: Any) -> None:
                raise ValueError("x")

        named = type("Named", (Raising,), {"xxfi_name": "named"})

        def built(factory: Any, protocol: Any) -> Any:
            raise ValueError("x")

        Conversation(Raising, named, MilterFactory(Raising, name="other"), MilterFactory(built))
        self.assertEqual(len(self.failures()), 4)
        told = [line.split(" could ")[0] for line in self.log_text().splitlines()]
        self.assertEqual(told, ["Milter Raising", "Milter named", "Milter other", "Milter built"])

    def test_refusals_for_missing_milters(self) -> None:
        """
        What is answered for a milter that could not be built holds for the connection.
        """

        class Never(MilterFactory):
            def build_milter(self, protocol: Any) -> Any:
                raise ValueError("x")

        table = {
            c.SMFIS_TEMPFAIL: "tttc",
            c.SMFIS_DISCARD: "tttc",
            c.SMFIS_REJECT: "rrrc",
            c.SMFIS_ACCEPT: "cccc",
            c.SMFIS_CONTINUE: "cccc",
        }
        for merge in MERGES:
            for code, expected in table.items():
                cls = full()
                conversation = started(Never(on_error=code), cls, merge=merge)
                found = "".join(conversation.letters(one) for one in (CONNECT, MAIL, MAIL, UNKNOWN))
                self.assertEqual(found[1:], expected[1:] if expected[0] == "c" else found[1:])
                self.assertEqual(found[0], expected[0])
        self.flushLoggedErrors(ValueError)


class DroppedTests(ConversationTestCase):
    """
    Commands out of order.
    """

    def test_first_command_that_is_dropped_is_logged_with_mtas_address(self) -> None:
        """
        The first command that is dropped is logged, with the MTA's address; the rest are not.
        """
        conversation = started(full())
        conversation.send(RCPT, DATA, HEADER)
        conversation.send(RCPT)
        said = [event for event in self.events if "dropped" in str(event.get("log_format"))]
        self.assertEqual(len(said), 1)
        self.assertIn("192.0.2.25", self.log_text())

    def test_aborts_between_messages_are_everyday_life_and_not_worth_a_word(self) -> None:
        """
        ABORTs between messages are everyday life, and not worth a word.
        """
        conversation = started(full())
        self.events.clear()
        conversation.send(ABORT, MESSAGE, ABORT, ABORT)
        self.assertEqual(self.events, [])


class ProgressTests(ConversationTestCase):
    """
    SMFIR_PROGRESS by itself and by hand.
    """

    def test_for_all_merges(self) -> None:
        """
        It goes out while any milter's end of message is awaited, and stops with the answer.
        """
        for merge in MERGES:
            one, two = Waiting(), Waiting()
            conversation = started(full(eom=one), full(eom=two), merge=merge, progress_interval=2)
            conversation.send(MESSAGE)
            for waiting in (one, two):
                conversation.clock.pump([1] * 4)
                self.assertEqual(letters(conversation.written()), "pp")
                waiting.fire()
            self.assertEqual(letters(conversation.written()), "c")
            conversation.clock.advance(20)
            self.assertEqual(conversation.written(), b"")

    def test_with_none_it_never_goes_out(self) -> None:
        """
        With None it never goes out.
        """
        for merge in MERGES:
            conversation = started(full(eom=Waiting()), merge=merge, progress_interval=None)
            conversation.send(MESSAGE)
            conversation.clock.pump([10] * 10)
            self.assertEqual(conversation.written(), b"")

    def test_progress_sent_by_hand_goes_out_behind_earlier_answers(self) -> None:
        """
        One sent by hand goes out behind the answers that were made before it in the same read.
        """

        def eom(self: Any) -> None:
            self.smfi_progress()

        conversation = started(full(eom=eom))
        self.assertEqual(conversation.letters(MESSAGE), "ccccccpc")

    def test_stops_when_the_mta_goes(self) -> None:
        """
        When the connection is gone no timer is left.
        """
        for merge in MERGES:
            conversation = started(full(eom=Waiting()), merge=merge)
            conversation.send(MESSAGE)
            conversation.drop()
            self.assertEqual(conversation.clock.getDelayedCalls(), [], merge)


class NoHeaderTests(ConversationTestCase):
    """
    Messages without header fields.
    """

    def test_body_and_end_behind_data_are_answered_whatever_is_wanted(self) -> None:
        """
        Body and end of message behind DATA are answered, whatever is wanted of the content.
        """
        rows: list[tuple[tuple[str, ...], tuple[bytes, ...], str]] = [
            (("data", "header", "body", "eom"), (MAIL, RCPT, DATA, BODY, EOM), "ccc"),
            (("data", "header", "eom"), (MAIL, RCPT, DATA, EOM), "cc"),
            (("data", "header", "body"), (MAIL, RCPT, DATA, packet("E", b"x\r\n")), "cc"),
            (("data", "header", "eoh", "eom"), (MAIL, RCPT, DATA, EOH, EOM), "ccc"),
            (("header", "body", "eom"), (MAIL, RCPT, BODY, EOM), "cc"),
        ]
        for merge in ("first", "strictest", "chain"):
            for wanted, sent, answers in rows:
                cls = milter(**dict.fromkeys(wanted))
                for pieces in (sent, (b"".join(sent),)):
                    conversation = started(cls, merge=merge)
                    said = conversation.letters(*pieces).replace("p", "")
                    # Senders and recipients are declined, but answered if they are sent.
                    self.assertEqual(said, "cc" + answers, (merge, wanted))
                    self.assertNotIn("abort", names(cls.calls))
