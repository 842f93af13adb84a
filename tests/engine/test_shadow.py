"""
``MilterFactory(shadow=True)``: a milter that runs, and of which the MTA never hears.
"""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.conversation_helpers import (
    ABORT,
    BODY,
    CONNECT,
    DATA,
    DECLINED,
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
    macros,
    milter,
    names,
    offer,
    packet,
    started,
)
from tests.helpers import STEADY
from tests.remotes import RemoteConversation, serving
from yatxmilter import MilterFactory
from yatxmilter import constants as c
from yatxmilter._engine.shadow_queue import Backlog
from yatxmilter._engine.shadow_statistics import Report, Shadow, describe_edit
from yatxmilter.conditions import client_in, recipient_matches

WITH_ID = MAIL + RCPT + DATA + HEADER + EOH + BODY + macros("E", b"i", b"4Xq1") + EOM
SPEAKING = ["connect", "helo", "envfrom", "envrcpt", "data", "header", "eoh", "body", "eom"]


def in_shadow(made: Any, **options: Any) -> MilterFactory:
    """
    Make the factory of a milter in shadow.
    """
    return MilterFactory(made, shadow=True, **options)


def tally(factory: MilterFactory) -> Shadow:
    """
    Give what counts for a factory.
    """
    assert factory.shadow is not None
    return factory.shadow


class OptionTests(SynchronousTestCase):
    """
    The option, and what it gives.
    """

    def test_is_a_yes_or_no(self) -> None:
        """
        It is a yes or no; what counts is there with a yes only.
        """
        self.assertIsNone(MilterFactory().shadow)
        self.assertIsInstance(in_shadow(milter()).shadow, Shadow)
        self.assertRaises(TypeError, MilterFactory, shadow=1)

    def test_edits_as_calls(self) -> None:
        """
        An edit is written as the call that makes it; long values are cut, bodies only counted.
        """
        cases = [
            (packet("h", b"X-Spam\0yes\0"), "smfi_addheader('X-Spam', 'yes')"),
            (packet("+", b"<a@example.com>\0"), "smfi_addrcpt('<a@example.com>')"),
            (packet("b", b"12345"), "smfi_replacebody(5 bytes)"),
            (packet("m", b"\0\0\0\2X\0new\0"), "smfi_chgheader('X', 2, 'new')"),
            (packet("i", b"\0\0\0\2X\0new\0"), "smfi_insheader(2, 'X', 'new')"),
            (packet("2", b"<a@b>\0RET=HDRS\0"), "smfi_addrcpt_par('<a@b>', 'RET=HDRS')"),
            (packet("q", b"h\xc3\xa9\0"), "smfi_quarantine('h\\xe9')"),
        ]
        for edit, expected in cases:
            self.assertEqual(describe_edit(edit), expected)
        long = describe_edit(packet("q", b"x" * 1000 + b"\0"))
        self.assertTrue(long.endswith("... (1002 characters))"), long)
        self.assertLess(len(long), 300)

    def test_report_says_in_a_word_how_a_message_ended(self) -> None:
        """
        A report says in a word how a message ended.
        """
        self.assertEqual(Report().outcome, "undecided")
        self.assertEqual(Report(verdict=c.SMFIS_REJECT).outcome, "SMFIS_REJECT")
        self.assertEqual(Report(verdict=c.SMFIS_REJECT, cut_off=True).outcome, "cut off")


class VerdictTests(ConversationTestCase):
    """
    What it would have said.
    """

    def reports(self) -> list[dict[str, Any]]:
        """
        Give the reports logged.
        """
        return [event for event in self.events if "in shadow" in event.get("log_format", "")]

    def talk(self, made: Any, *pieces: bytes, **options: Any) -> tuple[MilterFactory, str]:
        """
        Say this to it and a milter that says yes to all; give its factory and the answers.
        """
        factory = in_shadow(made, **options)
        conversation = started(full("Real"), factory)
        return factory, conversation.letters(*pieces)

    def test_shadow_milter_sees_all_and_the_mta_gets_real_answers_only(self) -> None:
        """
        It sees all; its edits are logged and counted, and the MTA gets the real answers only.
        """

        def edit(self: Any) -> int:
            self.smfi_progress()
            self.smfi_addheader("X-Spam", "yes")
            self.smfi_replacebody(b"gone")
            return c.SMFIS_ACCEPT

        made = full("Trial", eom=edit)
        factory, answers = self.talk(made, CONNECT + HELO + WITH_ID + QUIT)
        self.assertEqual(answers, "c" * 9)
        self.assertEqual(names(made.calls), [*SPEAKING, "close"])
        (report,) = self.reports()
        self.assertEqual(report["milter"], "Trial")
        self.assertEqual(report["queue_id"], "4Xq1")
        self.assertIs(report["verdict"], c.SMFIS_ACCEPT)
        self.assertEqual(report["stage"], "xxfi_eom")
        expected = ["smfi_addheader('X-Spam', 'yes')", "smfi_replacebody(4 bytes)"]
        self.assertEqual(report["edits"], expected)
        self.assertEqual(tally(factory).verdicts, {c.SMFIS_ACCEPT: 1})
        self.assertEqual(tally(factory).edited, 1)

    def test_after_its_own_answer_to_message_it_sees_no_more_of_that(self) -> None:
        """
        After its own answer to a message it sees no more of that; the next one it sees again.
        """

        def refuse(self: Any, argv: list[str]) -> int:
            self.smfi_setreply("550", "5.7.1", "no")
            return c.SMFIS_REJECT

        made = full(envfrom=refuse)
        factory, answers = self.talk(made, CONNECT + HELO + MESSAGE + MESSAGE)
        self.assertEqual(answers, "c" * 16)
        self.assertEqual(names(made.calls), ["connect", "helo", "envfrom", "envfrom"])
        self.assertEqual(tally(factory).verdicts, {c.SMFIS_REJECT: 2})
        self.assertEqual({one["reply"] for one in self.reports()}, {"550 5.7.1 no"})

    def test_recipients_it_would_have_refused_are_told_of_with_message(self) -> None:
        """
        Recipients it would have refused are told of with the message, which goes on.
        """
        made = full(envrcpt=c.SMFIS_TEMPFAIL)
        factory, answers = self.talk(made, CONNECT + HELO + MESSAGE)
        self.assertEqual(answers, "c" * 9)
        (report,) = self.reports()
        expected = [("<r@example.net>", c.SMFIS_TEMPFAIL, None)]
        self.assertEqual(report["recipients"], expected)
        self.assertEqual(tally(factory).verdicts, {c.SMFIS_CONTINUE: 1})
        self.assertEqual(tally(factory).recipients, {c.SMFIS_TEMPFAIL: 1})

    def test_discarded_at_recipient(self) -> None:
        """
        A DISCARD at a recipient is its answer to the message.
        """
        made = full(envrcpt=c.SMFIS_DISCARD)
        factory, _ = self.talk(made, CONNECT + HELO + MESSAGE)
        self.assertEqual(tally(factory).verdicts, {c.SMFIS_DISCARD: 1})
        self.assertEqual(names(made.calls), ["connect", "helo", "envfrom", "envrcpt"])

    def test_answer_to_connect_is_its_answer_to_each_message(self) -> None:
        """
        What it would have said to the connection is its answer to each message of that.
        """
        made = full(connect=c.SMFIS_REJECT)
        factory, answers = self.talk(
            made, CONNECT + HELO + UNKNOWN + MESSAGE + MESSAGE + QUIT_NC + CONNECT + MESSAGE
        )
        self.assertEqual(answers, "c" * 25)
        self.assertEqual(tally(factory).verdicts, {c.SMFIS_REJECT: 3})
        self.assertEqual(names(made.calls).count("envfrom"), 0)
        self.assertEqual(self.reports()[0]["stage"], "xxfi_connect")

    def test_answer_to_an_unknown_command_is_about_no_message(self) -> None:
        """
        An answer to an unknown command is about no message.
        """
        factory, answers = self.talk(
            full(unknown=c.SMFIS_REJECT), CONNECT + MAIL + UNKNOWN + RCPT + EOM
        )
        self.assertEqual(answers, "ccccc")
        self.assertEqual(tally(factory).verdicts, {c.SMFIS_CONTINUE: 1})

    def test_message_that_ends_before_its_answer_is_undecided(self) -> None:
        """
        A message that ends before its answer is undecided, and told by ``xxfi_abort``.
        """
        made = full()
        factory, _ = self.talk(made, CONNECT + HELO + MAIL + ABORT)
        self.assertEqual(names(made.calls)[-1], "abort")
        self.assertEqual(tally(factory).undecided, 1)

    def test_real_answer_ends(self) -> None:
        """
        A message that the real milters refuse is aborted for it, with the next command.
        """
        made = full()
        factory = in_shadow(made)
        conversation = started(full("Real", envfrom=c.SMFIS_REJECT), factory)
        self.assertEqual(conversation.letters(CONNECT + HELO + MAIL + MAIL + QUIT), "ccrr")
        self.assertEqual(
            names(made.calls), ["connect", "helo", "envfrom", "abort", "envfrom", "abort", "close"]
        )
        self.assertEqual(tally(factory).undecided, 2)

    def test_its_failures_are_logged_under_a_name_that_says_so(self) -> None:
        """
        Its failures are logged under a name that says so, and count as what would be answered.
        """

        def fail(self: Any) -> None:
            self.smfi_quarantine("suspect")
            raise ZeroDivisionError

        factory, answers = self.talk(full("Trial", eom=fail), CONNECT + HELO + MESSAGE)
        self.assertEqual(answers, "c" * 9)
        self.assertEqual(len(self.failures()), 1)
        self.assertIn("Milter Trial (shadow) failed in xxfi_eom", self.log_text())
        self.assertEqual(tally(factory).verdicts, {c.SMFIS_TEMPFAIL: 1})
        self.assertEqual(tally(factory).edited, 0)

    def test_failing_with_continue(self) -> None:
        """
        Edits made before a callback failed count where the message would have passed.
        """

        def fail(self: Any) -> None:
            self.smfi_quarantine("suspect")
            raise ZeroDivisionError

        factory, _ = self.talk(full(eom=fail), CONNECT + HELO + MESSAGE, on_error=c.SMFIS_CONTINUE)
        self.assertEqual(len(self.failures()), 1)
        self.assertEqual(tally(factory).verdicts, {c.SMFIS_CONTINUE: 1})
        self.assertEqual(tally(factory).edited, 1)

    def test_if_it_cannot_even_be_built_the_mta_does_not_hear_of_that(self) -> None:
        """
        If it cannot even be built the MTA does not hear of that, either.
        """

        def build(*_: Any) -> None:
            raise ZeroDivisionError

        conversation = started(full("Real"), in_shadow(build))
        self.assertEqual(conversation.letters(CONNECT + HELO + MESSAGE), "c" * 9)
        self.assertEqual(len(self.failures()), 1)

    def test_real_one_not_built(self) -> None:
        """
        For a milter that is no shadow and cannot be built ``on_error`` stands as ever.
        """

        def build(*_: Any) -> None:
            raise ZeroDivisionError

        conversation = started(MilterFactory(build), in_shadow(full()))
        self.assertEqual(conversation.letters(CONNECT + HELO + MESSAGE), "t")
        self.assertEqual(len(self.failures()), 1)

    def test_two_shadow_milters_know_nothing_of_one_another(self) -> None:
        """
        Two of them know nothing of one another.
        """
        one, two = full("One", envfrom=c.SMFIS_REJECT), full("Two", eom=Waiting())
        factories = [in_shadow(one), in_shadow(two)]
        conversation = started(full("Real"), *factories)
        self.assertEqual(conversation.letters(CONNECT + HELO + MESSAGE), "c" * 9)
        self.assertEqual(names(one.calls), SPEAKING[:3])
        self.assertEqual(names(two.calls), SPEAKING)
        self.assertEqual(tally(factories[0]).verdicts, {c.SMFIS_REJECT: 1})
        self.assertEqual(tally(factories[1]).verdicts, {})

    def test_milter_in_shadow_may_have_a_condition_too(self) -> None:
        """
        A milter in shadow may have a condition, too; other mail is neither logged nor counted.
        """
        for condition in (recipient_matches("example.org"), client_in("198.51.100.0/24")):
            made = full()
            factory = MilterFactory(made, when=condition, shadow=True)
            conversation = started(full("Real"), factory)
            session = CONNECT + HELO + MESSAGE + MAIL + ABORT
            self.assertEqual(conversation.letters(session), "c" * 10)
            self.assertEqual(made.calls, [])
            self.assertEqual(self.reports(), [])
            self.assertEqual((tally(factory).verdicts, tally(factory).undecided), ({}, 0))

    def test_its_condition_is_true(self) -> None:
        """
        Mail that a condition leaves to it counts, and so does what it says of it late.
        """
        for condition in (recipient_matches("example.net"), client_in("192.0.2.0/24")):
            for code in (c.SMFIS_CONTINUE, c.SMFIS_REJECT):
                factory = MilterFactory(full(connect=code), when=condition, shadow=True)
                conversation = started(full("Real"), factory)
                self.assertEqual(conversation.letters(CONNECT + HELO + MESSAGE), "c" * 9)
                self.assertEqual(len(self.reports()), 1)
                self.assertEqual(sum(tally(factory).verdicts.values()), 1)
                self.events.clear()

    def test_not_a_member(self) -> None:
        """
        It is not one of the connection's milters, but has its context.
        """
        conversation = started(in_shadow(milter(eom=None)), milter(eom=None))
        (real,) = conversation.protocol.milters
        made = conversation.factory.milter_factories[0].milter.made[0]
        self.assertIsNot(real, made)
        self.assertIs(conversation.protocol.contextOf(made), made._ctx())


class AgreementTests(ConversationTestCase):
    """
    What is asked of the MTA for its sake.
    """

    def test_steps_that_it_wants_are_asked_for_without_an_answer(self) -> None:
        """
        Steps that it wants are asked for, without an answer; actions and other options are not.
        """
        real = milter(envfrom=None, xxfi_flags=0)
        conversation = Conversation(real, in_shadow(milter(body=None, helo=None)))
        _, actions, steps = conversation.agree()
        self.assertEqual(actions, 0)
        wanted = c.SMFIP_NOMAIL | c.SMFIP_NOHELO | c.SMFIP_NOBODY
        self.assertEqual(steps & DECLINED, DECLINED & ~wanted)
        silent = steps & c.ALL_NR_STEPS
        self.assertEqual(silent, c.SMFIP_NR_HELO | c.SMFIP_NR_BODY)
        self.assertFalse(steps & c.SMFIP_SKIP)

    def test_macros_that_it_asks_for_are_asked_for(self) -> None:
        """
        Macros that it asks for are asked for.
        """

        def negotiate(self: Any, actions: int, steps: int) -> int:
            self.smfi_setsymlist(c.SMFIM_EOM, "{own}")
            return c.SMFIS_CONTINUE

        conversation = Conversation(
            milter(eom=None), in_shadow(milter(negotiate=negotiate, eom=None))
        )
        ((_, payload),) = conversation.packets(offer())
        self.assertIn(b"{own} i {msg_id}", payload)

    def test_if_it_refuses_the_connection_it_is_out_of_it(self) -> None:
        """
        If it refuses the connection it is out of it, and the MTA does not notice.
        """
        made = milter(negotiate=c.SMFIS_REJECT, body=None)
        conversation = Conversation(milter(envfrom=None), in_shadow(made))
        _, _, steps = conversation.agree()
        self.assertEqual(steps & DECLINED, DECLINED & ~c.SMFIP_NOMAIL)
        self.assertEqual(conversation.letters(MAIL + QUIT), "c")
        self.assertEqual(names(made.calls), ["negotiate", "close"])
        self.assertIn("negotiation failed; its shadow is gone from the connection", self.log_text())
        self.assertIn("(shadow) refuses the connection", self.log_text())

    def test_if_it_takes_its_time_to_negotiate_nobody_waits(self) -> None:
        """
        If it takes its time to negotiate nobody waits; what comes meanwhile waits for it.
        """
        connect, slow = Waiting(), Waiting()
        made = full(mta_connect=connect, negotiate=slow)
        conversation = Conversation(milter(envfrom=None), in_shadow(made))
        _, _, steps = conversation.agree()
        self.assertEqual(steps & DECLINED, 0)
        conversation.letters(CONNECT + HELO)
        self.assertEqual(names(made.calls), ["mta_connect"])
        connect.fire()
        self.assertEqual(names(made.calls), ["mta_connect", "negotiate"])
        slow.fire()
        self.assertEqual(names(made.calls), ["mta_connect", "negotiate", "connect", "helo"])

    def test_what_real_milters_asked_for_in_the_protocol_is_not_shown(self) -> None:
        """
        What real milters asked for in the protocol does not show: it sees what it asked for.
        """

        def ask(self: Any, actions: int, steps: int) -> tuple[int, int, int]:
            return c.SMFIS_CONTINUE, 0, c.SMFIP_HDR_LEADSPC

        made = full()
        conversation = started(full("Real", negotiate=ask), in_shadow(made))
        conversation.send(MAIL + RCPT + DATA + packet("L", b"Subject\0 hi\0"))
        self.assertEqual(made.calls[-1], ("header", "Subject", "hi"))

    def test_mta_that_does_not_negotiate_leaves_it_out(self) -> None:
        """
        An MTA that does not negotiate leaves it out.
        """
        made = full()
        conversation = Conversation(full("Real"), in_shadow(made))
        conversation.send(CONNECT)
        conversation.drop()
        conversation.clock.advance(0)
        self.assertEqual(names(made.calls), ["close"])
        self.assertEqual(conversation.clock.getDelayedCalls(), [])


class RemoteTests(SynchronousTestCase):
    """
    Milters that run elsewhere, in shadow or for some of the mail.
    """

    def talk(self, made: Any, **options: Any) -> tuple[RemoteConversation, str]:
        """
        Send a message to a real milter here and a remote one; give the answers.
        """
        conversation = RemoteConversation(serving(made), before=(full("Real"),), **options)
        conversation.agree()
        answers = conversation.letters(CONNECT + HELO, *[MAIL, RCPT, DATA, HEADER, EOH, BODY, EOM])
        return conversation, answers

    def test_remote_milter_in_shadow_sees_message_and_its_answer_is_only_counted(self) -> None:
        """
        A remote milter in shadow sees the message, and its answer is only counted.
        """

        def refuse(self: Any) -> int:
            self.smfi_addheader("X-Spam", "yes")
            return c.SMFIS_REJECT

        made = full("Remote", eom=refuse)
        conversation, answers = self.talk(made, shadow=True)
        self.assertEqual(answers, "c" * 9)
        self.assertEqual(names(made.calls), SPEAKING)
        self.assertEqual(tally(conversation.standing).verdicts, {c.SMFIS_REJECT: 1})

    def test_remote_milter_may_join_late(self) -> None:
        """
        A remote milter may join late; it gets the macros of their time with what it missed.
        """
        made = full("Remote", envrcpt=c.SMFIS_REJECT)
        _, answers = self.talk(made, when=recipient_matches("example.net"))
        self.assertEqual(answers[:4], "cccr")
        self.assertEqual(names(made.calls)[:4], SPEAKING[:4])

    def test_of_mail_that_is_not_its_own_a_remote_milter_sees_nothing(self) -> None:
        """
        Of mail that is not its own a remote milter sees nothing.
        """
        made = full("Remote")
        _, answers = self.talk(made, when=recipient_matches("example.org"))
        self.assertEqual(len(answers), 9)
        self.assertEqual(made.calls, [])


class BacklogTests(SynchronousTestCase):
    """
    What waits.
    """

    def waiting(self, letters: str, *, begun: bool, later: str = "") -> tuple[bool, str]:
        """
        Let packets wait, drop a message, let some more wait; tell whether there was a message, and
        what waits then. Small letters are macros.
        """
        backlog = Backlog()

        def put(text: str) -> None:
            for letter in text:
                macro = letter.islower()
                backlog.put((ord("D"), letter.upper().encode()) if macro else (ord(letter), b"x"))

        put(letters)
        dropped = backlog.drop_message(begun=begun)
        put(later)
        left = ""
        while (packet := backlog.next_packet()) is not None:
            left += packet[1].decode().lower() if packet[0] == ord("D") else chr(packet[0])
        self.assertEqual(backlog.size, 0)
        return dropped, left

    def test_one_message_is_dropped_up_to_its_last_command(self) -> None:
        """
        One message is dropped, up to its last command or what cannot belong to it any more;
        the macros of what follows stay, and what is still to come of it is dropped as it comes.
        """
        cases = [
            ("TLNBE" + "mMRE", True, "", (True, "mMRE")),
            ("TrRLmMR", True, "", (True, "mMR")),
            ("TA" + "Q", True, "", (True, "Q")),
            ("T", True, "LNBEmM", (True, "mM")),
            ("T", True, "LhHmM", (True, "hHmM")),
            ("cChHmMrRTEmMRE", False, "", (True, "cChHmmMRE")),
            ("ChHmMr", False, "RTEM", (True, "ChHmM")),
            ("EM", False, "", (True, "M")),
            ("cCUQ", False, "R", (False, "cCUQR")),
            ("", False, "", (False, "")),
        ]
        for letters, begun, later, expected in cases:
            found = self.waiting(letters, begun=begun, later=later)
            self.assertEqual(found, expected, letters)


class PaceTests(ConversationTestCase):
    """
    Its own time.
    """

    def test_after_the_answer(self) -> None:
        """
        It is called when the real answer has been given, two turns of the reactor later.
        """
        made = full()
        conversation = started(full("Real"), in_shadow(made))
        conversation.protocol.dataReceived(CONNECT)
        self.assertEqual(made.calls, [])
        self.assertNotEqual(conversation.written(), b"")
        conversation.clock.advance(0)
        self.assertEqual(names(made.calls), ["connect"])

    def test_real_answers_do_not_wait_for_it(self) -> None:
        """
        The real answers do not wait for it, and it goes through all in order.
        """
        slow = Waiting()
        made = full(eom=slow)
        factory = in_shadow(made)
        conversation = started(full("Real"), factory)
        self.assertEqual(conversation.letters(CONNECT + HELO + MESSAGE + MESSAGE), "c" * 16)
        self.assertEqual(names(made.calls), SPEAKING)
        slow.fire(c.SMFIS_REJECT)
        self.assertEqual(names(made.calls), [*SPEAKING, *SPEAKING[2:]])
        slow.fire()
        self.assertEqual(tally(factory).verdicts, {c.SMFIS_REJECT: 1, c.SMFIS_CONTINUE: 1})

    def test_when_the_connection_is_gone_it_may_finish(self) -> None:
        """
        When the connection is gone it may finish; only then is it told.
        """
        slow = Waiting()
        made = full(eom=slow, mta_close=None)
        factory = in_shadow(made)
        conversation = started(full("Real"), factory)
        conversation.send(CONNECT + HELO + MESSAGE + QUIT)
        self.assertTrue(conversation.closed)
        self.assertEqual(names(made.calls)[-1], "eom")
        slow.fire(c.SMFIS_DISCARD)
        self.assertEqual(names(made.calls)[-2:], ["close", "mta_close"])
        self.assertEqual(tally(factory).verdicts, {c.SMFIS_DISCARD: 1})
        conversation.clock.advance(0)
        self.assertEqual(conversation.clock.getDelayedCalls(), [])

    def test_shadow_milter_is_told_once_that_the_connection_is_gone(self) -> None:
        """
        It is told once that the connection is gone, however long its ``xxfi_close`` takes.
        """
        slow = Waiting()
        made = full(close=slow, mta_close=None)
        conversation = started(full("Real"), in_shadow(made))
        conversation.send(CONNECT)
        conversation.drop()
        conversation.clock.advance(0)
        slow.fire()
        self.assertEqual(names(made.calls), ["connect", "close", "mta_close"])
        self.assertEqual(conversation.clock.getDelayedCalls(), [])

    def test_lingers_too_long(self) -> None:
        """
        It has its time to finish, then it is cut off.
        """
        for name in ("eom", "connect", "negotiate", "abort"):
            slow = Waiting()
            made = full(**{name: slow})
            factory = in_shadow(made)
            conversation = started(full("Real"), factory)
            conversation.send(CONNECT + HELO + MAIL + ABORT + MESSAGE)
            conversation.drop()
            conversation.clock.advance(59)
            self.assertEqual(slow.cancelled, 0)
            conversation.clock.advance(1)
            self.assertEqual(slow.cancelled, 1)
            self.assertEqual(names(made.calls)[-1], "close")
            self.assertEqual(conversation.clock.getDelayedCalls(), [])

    def test_what_waits_is_bounded(self) -> None:
        """
        What waits is bounded: if it is too far behind, the message it is at is taken from it.
        """
        slow = Waiting()
        made = full(eom=slow)
        factory = in_shadow(made)
        tally(factory).backlog = 150
        conversation = started(full("Real"), factory)
        conversation.send(CONNECT + HELO + MESSAGE)
        self.assertEqual(names(made.calls), SPEAKING)
        self.assertEqual(conversation.letters(MESSAGE + MESSAGE), "c" * 14)
        self.assertEqual(slow.cancelled, 1)
        self.assertEqual(tally(factory).cut_off, 1)
        self.assertIn("cut off", self.log_text())
        self.assertIn("abort", names(made.calls))

    def test_cut_off_in_the_middle(self) -> None:
        """
        The rest of a message that was cut off is not shown; the next one is.
        """
        slow = Waiting()
        made = full(header=slow)
        factory = in_shadow(made)
        tally(factory).backlog = 90
        conversation = started(full("Real"), factory)
        body = packet("B", b"x" * 90)
        conversation.send(CONNECT + HELO + MAIL + RCPT + DATA + HEADER)
        conversation.send(EOH + body)
        self.assertEqual(tally(factory).cut_off, 1)
        conversation.send(body + EOM + macros("M", b"i", b"next") + MAIL + RCPT)
        self.assertEqual(names(made.calls)[5:], ["header", "abort", "envfrom", "envrcpt"])

    def test_cut_off_before_a_message(self) -> None:
        """
        If it is no message that it is at, those that wait are taken from it unseen.
        """
        slow = Waiting()
        made = full(helo=slow)
        factory = in_shadow(made)
        tally(factory).backlog = 150
        conversation = started(full("Real"), factory)
        conversation.send(CONNECT + HELO)
        for _ in range(4):
            conversation.send(macros("M", b"i", b"x") + MESSAGE)
        conversation.send(packet("U", b"x" * 500 + b"\0"), MAIL + RCPT)
        slow.fire()
        self.assertGreaterEqual(tally(factory).cut_off, 3)
        self.assertEqual(slow.cancelled, 0)
        self.assertNotIn("header", names(made.calls))

    def test_what_cannot_be_read_ends_its_conversation_with_real_one_said_once(self) -> None:
        """
        What cannot be read ends its conversation with the real one, said once.
        """
        made = full()
        factory = in_shadow(made)
        conversation = started(full("Real"), factory)
        conversation.send(CONNECT + HELO + MAIL + RCPT + packet("L", b"no end"))
        conversation.clock.advance(0)
        self.assertTrue(conversation.closed)
        self.assertEqual(self.log_text().count("broke the milter protocol"), 1)
        self.assertEqual(names(made.calls)[-1], "close")
        conversation.clock.advance(60)
        self.assertEqual(conversation.clock.getDelayedCalls(), [])


PIECES = {
    "connect": CONNECT, "helo": HELO, "mail": MAIL, "rcpt": RCPT, "data": DATA, "header": HEADER,
    "eoh": EOH, "body": BODY, "eom": EOM, "abort": ABORT, "unknown": UNKNOWN, "quit_nc": QUIT_NC,
    "message": MESSAGE, "greeting": CONNECT + HELO,
}  # fmt: skip
ANSWERS = st.dictionaries(
    st.sampled_from(["connect", "helo", "envfrom", "envrcpt", "data", "body", "eom"]),
    st.sampled_from([None, c.SMFIS_REJECT, c.SMFIS_TEMPFAIL, c.SMFIS_ACCEPT]),
    max_size=3,
)


class PropertyTests(SynchronousTestCase):
    """
    Nothing of it reaches the MTA, whatever is said.
    """

    @settings(STEADY, max_examples=200)
    @given(
        st.lists(st.sampled_from(sorted(PIECES)), max_size=12),
        ANSWERS,
        ANSWERS,
        st.sampled_from(("first", "strictest", "chain")),
        st.booleans(),
    )
    def test_bytes_to_the_mta_are_the_same_with_it_and_without(
        self, pieces: list[str], answers: Any, secret: Any, merge: str, first: bool
    ) -> None:
        """
        The bytes to the MTA are the same with it and without; it sees all that it would alone,
        as long as the real milters let the messages go on.
        """
        session = CONNECT + b"".join(PIECES[piece] for piece in pieces) + QUIT
        trial = full("Trial", **secret)
        factories: list[Any] = [full("Real", **answers), full("Second"), in_shadow(trial)]
        if first:
            factories.reverse()
        talk = Conversation(*factories, merge=merge)
        plain = Conversation(*[one for one in factories if isinstance(one, type)], merge=merge)
        self.assertEqual(talk.send(offer()), plain.send(offer()))
        self.assertEqual(talk.send(session), plain.send(session))
        self.assertEqual(talk.closed, plain.closed)
        if not any(answers.values()):
            alone = full("Alone", **secret)
            started(alone).send(session)
            if not any(secret.values()):
                self.assertEqual(trial.calls, alone.calls)
