"""
Tests of ``on_error``: a code, a code with its text, a disconnect, or one of these for each stage.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import fail
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import directlyProvides

from tests.conversation_helpers import (
    CONNECT,
    EOM,
    HELO,
    MAIL,
    MESSAGE,
    RCPT,
    STAGES,
    STEPS,
    UNKNOWN,
    Conversation,
    ConversationTestCase,
    Waiting,
    full,
    milter,
    names,
    offer,
    packet,
    started,
)
from tests.smtp_session import RECIPIENT, SENDER, Session
from yatxmilter import DISCONNECT, Milter, MilterFactory, Reply
from yatxmilter import constants as c
from yatxmilter._cli.serve_options import OPTIONS
from yatxmilter._cli.serve_tables import MILTER as MILTER_OPTIONS
from yatxmilter._engine.on_error import Fallback, lets_pass, on_error_option
from yatxmilter.conditions import known_at
from yatxmilter.errors import ValueNotSendable
from yatxmilter.message import MessageMilter
from yatxmilter.remote import RemoteMilterFactory

TEXT = Reply("451", "4.3.0", "Filter is broken")
WORDS = b"451 4.3.0 Filter is broken\0"
MERGES = ("first", "strictest", "chain")


def broken(*_: Any) -> None:
    """
    Be a callback with a bug.
    """
    raise ValueError("bug")


class OptionTests(SynchronousTestCase):
    """
    What may be given, is checked when it is given.
    """

    def test_codes_replies_disconnect_and_mappings_are_taken(self) -> None:
        """
        Codes, replies, DISCONNECT, and mappings, whose stages have any of their names.
        """
        for value in (c.SMFIS_TEMPFAIL, 0, TEXT, DISCONNECT):
            self.assertEqual(MilterFactory(on_error=value).on_error, value)
        answers = MilterFactory(
            on_error={
                "xxfi_eom": c.SMFIS_ACCEPT,
                "mail": TEXT,
                "envrcpt": 4,
                "negotiate": DISCONNECT,
                "mta_connect": 0,
                "default": c.SMFIS_REJECT,
            }
        ).on_error
        self.assertEqual(
            answers,
            {
                "xxfi_eom": c.SMFIS_ACCEPT,
                "xxfi_envfrom": TEXT,
                "xxfi_envrcpt": c.SMFIS_TEMPFAIL,
                "xxfi_negotiate": DISCONNECT,
                "xxfi_mta_connect": c.SMFIS_CONTINUE,
                "default": c.SMFIS_REJECT,
            },
        )
        self.assertEqual(on_error_option("on_error", answers), answers)
        self.assertEqual(MilterFactory(on_error={}).on_error, {"default": c.SMFIS_TEMPFAIL})

    def test_any_other_value_is_refused_by_its_name(self) -> None:
        """
        Anything else is refused, by its name and value, with what was meant where that is clear.
        """
        table: list[tuple[Any, str]] = [
            (99, "on_error is 99"),
            (True, "on_error is True"),
            (c.SMFIS_SKIP, "on_error is SMFIS_SKIP"),
            ("x", "Reply, DISCONNECT, or a dict of stages"),
            (None, "on_error is None"),
            ({"eom": 99}, "on_error['eom'] is 99"),
            ({"eon": 0}, "the stage 'eon', did you mean 'eom'?"),
            ({"close": 0}, "the stage 'close'"),
            ({"zzz": 0}, "expected one of mta_connect, negotiate, connect"),
            ({5: 0}, "the stage 5, expected one of"),
            ({"eom": 0, "xxfi_eom": 0}, "on_error['xxfi_eom'] and on_error['eom'] are the same"),
            ({"eom": {}}, "on_error['eom'] is {}, expected no further mapping"),
            ({"connect": c.SMFIS_DISCARD}, "on_error['connect'] is SMFIS_DISCARD; legal there:"),
            ({"unknown": c.SMFIS_ACCEPT}, "on_error['unknown'] is SMFIS_ACCEPT"),
        ]
        for value, words in table:
            error = self.assertRaises(ValueError, MilterFactory, on_error=value)
            self.assertIn(words, str(error), value)
            self.assertRaises(ValueError, RemoteMilterFactory, "inet:1@x", on_error=value)

    def test_reply_is_checked_as_smfi_setreply_does(self) -> None:
        """
        A reply is checked as `smfi_setreply` does; its code is that of its class.
        """
        self.assertEqual((TEXT.code, TEXT.text), (c.SMFIS_TEMPFAIL, WORDS[:-1]))
        self.assertEqual(Reply("550").code, c.SMFIS_REJECT)
        self.assertEqual(Reply("554", "5.7.1", "a", "b").text, b"554-5.7.1 a\r\n554 5.7.1 b")
        self.assertEqual(Reply(b"451", None, message="x"), Reply("451", message=b"x"))
        self.assertNotEqual(TEXT, WORDS)
        self.assertEqual(len({TEXT, Reply("451", "4.3.0", "Filter is broken")}), 1)
        self.assertEqual(repr(TEXT), "<Reply '451 4.3.0 Filter is broken'>")
        for arguments in (("250",), ("451", "4"), ("451", None, "a\nb"), (451,)):
            self.assertRaises(ValueNotSendable, Reply, *arguments)

    def test_disconnect_says_what_it_is(self) -> None:
        """
        DISCONNECT says what it is.
        """
        self.assertEqual((repr(DISCONNECT), str(DISCONNECT)), ("DISCONNECT", "DISCONNECT"))

    def test_mail_passes_where_all_that_is_answered_is_continue_or_accept(self) -> None:
        """
        Mail passes where all that is answered is CONTINUE or ACCEPT.
        """
        for value, passes in (
            (0, True),
            (c.SMFIS_ACCEPT, True),
            (4, False),
            (TEXT, False),
            (DISCONNECT, False),
            ({"eom": 0}, False),
            ({"eom": 0, "default": 3}, True),
        ):
            self.assertEqual(lets_pass(on_error_option("on_error", value)), passes, value)

    def test_in_the_file_of_serve_there_are_words_for_all_of_it(self) -> None:
        """
        In the file of ``serve`` there are words for all of it.
        """
        read = MILTER_OPTIONS["on_error"]
        for value, expected in (
            ("accept", c.SMFIS_ACCEPT),
            ("SMFIS_DISCARD", c.SMFIS_DISCARD),
            ("disconnect", DISCONNECT),
            ("451 4.3.0 Filter is broken", TEXT),
            ("550", Reply("550")),
            ("451 Later", Reply("451", None, "Later")),
            ({"eom": "accept"}, {"default": c.SMFIS_TEMPFAIL, "xxfi_eom": c.SMFIS_ACCEPT}),
        ):
            self.assertEqual(read("on_error", value), expected)
        for value in ("perhaps", 3, "250 fine", {"eom": "perhaps"}, {"eon": "accept"}):
            error = self.assertRaises(ValueError, read, "on_error", value)
            self.assertIn("on_error", str(error))
        self.assertNotIn("on_error", [row.name for row in OPTIONS])


class AnswerTests(ConversationTestCase):
    """
    What the MTA hears.
    """

    def test_text_of_a_reply_goes_with_its_code(self) -> None:
        """
        A reply's text goes with its code, at each stage and in each merge, and the log has it.
        """
        for merge in MERGES:
            for stage in STEPS:
                failing = MilterFactory(full(**{stage: broken}), on_error=TEXT)
                conversation = started(failing, full("Other"), merge=merge)
                before, last = STAGES[stage]
                if merge == "chain" and stage in ("header", "eoh", "body"):
                    before, last = STAGES["eom"]
                conversation.send(before)
                self.assertEqual(conversation.packets(last), [("y", WORDS)], (merge, stage))
                self.assertIn("SMFIS_TEMPFAIL ('451 4.3.0 Filter is broken')", self.log_text())
                self.flushLoggedErrors()
                self.events.clear()

    def test_each_stage_has_its_own_answer_those_that_are_not_named_default(self) -> None:
        """
        Each stage has its own answer, those that are not named the default.
        """
        answers = {"eom": c.SMFIS_ACCEPT, "envrcpt": TEXT, "default": c.SMFIS_REJECT}
        for merge in MERGES:
            for stage, expected in (
                ("eom", "a"),
                ("envrcpt", "y"),
                ("envfrom", "r"),
                ("data", "r"),
            ):
                conversation = started(
                    MilterFactory(full(**{stage: broken}), on_error=answers), merge=merge
                )
                before, last = STAGES[stage]
                conversation.send(before)
                self.assertEqual(conversation.letters(last), expected, (merge, stage))
        self.flushLoggedErrors()

    def test_callback_that_is_late_is_answered_for_like_one_that_raises(self) -> None:
        """
        A callback that is late is answered for like one that raises.
        """
        for on_error, said in ((TEXT, packet("y", WORDS)), (DISCONNECT, b"")):
            failing = MilterFactory(full(helo=Waiting()), on_error=on_error, timeout=3)
            conversation = started(failing)
            conversation.send(HELO)
            conversation.clock.advance(3)
            self.assertEqual(conversation.written(), said)
            self.assertEqual(conversation.closed, on_error is DISCONNECT)
        self.flushLoggedErrors()

    def test_time_by_default(self) -> None:
        """
        A callback that never answers is given up after ten minutes, whatever progress is sent.
        """
        for made in (full(eom=Waiting()), MilterFactory(full(eom=Waiting()))):
            conversation = started(made)
            conversation.send(MESSAGE)
            for _ in range(599):
                conversation.clock.advance(1)
            self.assertLessEqual(set(conversation.written()), set(packet("p")))
            conversation.clock.advance(1)
            self.assertTrue(conversation.written().endswith(packet("t")))
        self.flushLoggedErrors()

    def test_no_time_limit(self) -> None:
        """
        ``timeout=None`` waits for ever.
        """
        conversation = started(MilterFactory(full(helo=Waiting()), timeout=None))
        conversation.send(HELO)
        conversation.clock.advance(100_000)
        self.assertEqual(conversation.written(), b"")

    def test_other_milters_text(self) -> None:
        """
        The text is that of the milter that decided; with strictest, what the other one said of a
        recipient is not said of the next one.
        """

        def refuse(self: Any, argv: list[str]) -> Any:
            if len(self.calls) == 1:
                self.smfi_setreply("550", "5.1.1", "about the first")
            return c.SMFIS_REJECT

        failing = MilterFactory(
            milter("One", envrcpt=broken), on_error=Reply("550", "5.3.0", "one")
        )
        conversation = started(failing, milter("Two", envrcpt=refuse), merge="strictest")
        conversation.send(MAIL)
        self.assertEqual(conversation.packets(RCPT), [("y", b"550 5.3.0 one\0")])
        failing.on_error = c.SMFIS_CONTINUE
        conversation = started(
            milter("One", envrcpt=c.SMFIS_REJECT), milter("Two", envrcpt=refuse), merge="strictest"
        )
        conversation.send(MAIL)
        self.assertEqual(conversation.packets(RCPT + RCPT), [("r", b""), ("r", b"")])
        self.flushLoggedErrors()

    def test_text_of_a_failure_is_not_kept(self) -> None:
        """
        A text that is not told with its failure is not told with something else later.
        """
        failing = MilterFactory(milter("One", helo=broken, envfrom=4), on_error=TEXT)
        conversation = started(failing, milter("Two", helo=c.SMFIS_REJECT), merge="strictest")
        self.assertEqual(conversation.packets(HELO), [("r", b"")])
        conversation.send(MAIL + packet("A"))
        self.assertEqual(conversation.packets(MAIL), [("t", b"")])
        self.flushLoggedErrors()

    def test_milter_that_cannot_be_built_is_answered_for_at_connect(self) -> None:
        """
        A milter that cannot be built is answered for at connect, or by a closed connection.
        """

        class Never(MilterFactory):
            def build_milter(self, protocol: Any) -> Any:
                raise ValueError("bug")

        conversation = started(Never(on_error=TEXT), full())
        self.assertEqual(conversation.packets(CONNECT), [("y", WORDS)])
        answers = {"connect": c.SMFIS_REJECT}
        self.assertEqual(started(Never(on_error=answers)).letters(CONNECT), "r")
        other = full("Other", mta_connect=None, mta_close=None)
        conversation = Conversation(other, Never(on_error=DISCONNECT))
        self.assertTrue(conversation.closed)
        self.assertEqual(names(other.calls), ["mta_connect", "close", "mta_close"])
        self.assertEqual(len(self.failures()), 3)

    def test_negotiation_that_fails_is_closed_with_a_text_too(self) -> None:
        """
        A negotiation that fails is closed with a text too, which no MTA could be told.
        """
        for on_error in (TEXT, DISCONNECT, {"negotiate": c.SMFIS_REJECT, "default": 0}):
            conversation = Conversation(MilterFactory(full(negotiate=broken), on_error=on_error))
            self.assertEqual((conversation.send(offer()), conversation.closed), (b"", True))
        answers = {"negotiate": c.SMFIS_CONTINUE}
        conversation = Conversation(MilterFactory(full(negotiate=broken), on_error=answers))
        self.assertEqual(conversation.letters(offer()), "O")
        self.flushLoggedErrors()

    def test_behind_a_condition(self) -> None:
        """
        A condition that fails, and a callback that it calls late, are answered for with the text.
        """
        for when, stage in (
            (known_at("envfrom")(broken), "none"),
            (known_at("envfrom")(lambda view: True), "helo"),
        ):
            failing = MilterFactory(full(**{stage: broken}), when=when, on_error=TEXT)
            conversation = started(failing)
            conversation.send(CONNECT + HELO)
            self.assertEqual(conversation.packets(MAIL), [("y", WORDS)])
            self.flushLoggedErrors()

    def test_late_behind_a_condition(self) -> None:
        """
        So is one that was called late and takes too long.
        """
        always = known_at("envfrom")(lambda view: True)
        failing = MilterFactory(full(helo=Waiting()), when=always, on_error=TEXT, timeout=3)
        conversation = started(failing)
        conversation.send(CONNECT + HELO + MAIL)
        conversation.written()
        conversation.clock.advance(3)
        self.assertEqual(conversation.written(), packet("y", WORDS))
        self.flushLoggedErrors()

    def test_remote_milter_that_cannot_be_reached_is_answered_for(self) -> None:
        """
        A remote milter that cannot be reached is answered for in the same ways: with a text, by
        stage, and by a closed connection as soon as it is missed.
        """

        class Away:
            """
            An endpoint where nobody listens.
            """

            def connect(self, factory: Any) -> Any:
                return fail(ConnectionRefusedError())

        for on_error, offered, answers in (
            (TEXT, "O", [("y", WORDS)]),
            ({"mail": c.SMFIS_REJECT}, "O", [("r", b"")]),
            ({"negotiate": DISCONNECT}, "", []),
            (DISCONNECT, "", []),
            ({"mail": DISCONNECT}, "O", []),
        ):
            directlyProvides(away := Away(), IStreamClientEndpoint)
            conversation = Conversation(
                RemoteMilterFactory(away, on_error=on_error, reactor=Clock())
            )
            self.assertEqual(conversation.letters(offer()), offered, on_error)
            self.assertEqual(conversation.packets(MAIL), answers, on_error)
            self.assertEqual(conversation.closed, not answers)
            self.assertEqual(self.failures(), [])

    def test_others_are_cancelled(self) -> None:
        """
        A disconnect in the middle of a step cancels what others have begun.
        """
        for merge in ("first", "strictest"):
            waiting, last = Waiting(), full("Last")
            failing = MilterFactory(full(envfrom=broken), on_error=DISCONNECT)
            conversation = started(full(envfrom=waiting), failing, last, merge=merge)
            self.assertEqual(conversation.letters(MAIL), "")
            self.assertEqual((conversation.closed, waiting.cancelled), (True, 1))
            self.assertEqual(names(last.calls), ["close"])
        self.flushLoggedErrors()

    def test_refused_by_hand(self) -> None:
        """
        `MilterProtocol.refuse` takes the same.
        """
        conversation = Conversation(full())
        conversation.protocol.refuse(TEXT)
        conversation.agree()
        self.assertEqual(conversation.packets(CONNECT), [("y", WORDS)])
        self.assertRaises(ValueError, conversation.protocol.refuse, 99)

    def test_answers_before_it(self) -> None:
        """
        What was answered before a disconnect still goes out.
        """
        conversation = started(MilterFactory(full(envfrom=broken), on_error=DISCONNECT))
        self.assertEqual(conversation.letters(CONNECT + HELO + MAIL + RCPT), "cc")
        self.assertTrue(conversation.closed)
        self.flushLoggedErrors()

    def test_what_milter_in_shadow_would_have_been_answered_for_with_is_told(self) -> None:
        """
        What a milter in shadow would have been answered for with is told.
        """
        for on_error, verdict, reply in (
            (TEXT, "SMFIS_TEMPFAIL", "451 4.3.0 Filter is broken"),
            (DISCONNECT, "SMFIS_TEMPFAIL", "None"),
        ):
            failing = MilterFactory(full(envfrom=broken), on_error=on_error, shadow=True)
            conversation = started(failing, full())
            self.assertEqual(conversation.letters(MESSAGE), "c" * 7)
            for _ in range(4):
                conversation.clock.advance(0)
            self.assertIn(f"in shadow: {verdict} at xxfi_envfrom", self.log_text())
            self.assertIn(f"reply {reply}", self.log_text())
            self.flushLoggedErrors()
            self.events.clear()

    def test_recipient_of_a_message_milter(self) -> None:
        """
        A recipient whose hook fails is one of the message or not, as ``on_error`` says.
        """
        for on_error, expected in ((TEXT, 0), ({"rcpt": c.SMFIS_CONTINUE}, 1)):
            seen: list[int] = []

            class Mine(MessageMilter):
                def recipient(self, msg: Any, rcpt: Any) -> Any:
                    raise ValueError("bug")

                def message(self, msg: Any, seen: list[int] = seen) -> None:
                    seen.append(len(msg.recipients))

            conversation = started(MilterFactory(Mine, on_error=on_error))
            conversation.send(MAIL, RCPT, EOM)
            self.assertEqual(seen, [expected])
        self.flushLoggedErrors()


class EditTests(ConversationTestCase):
    """
    Edits of an ``xxfi_eom`` that fails.
    """

    def test_edits_stand_where_the_message_passes(self) -> None:
        """
        They stand where the message passes, whatever the merge and the way it fails.
        """

        def plain(self: Any) -> Any:
            self.smfi_addheader("X-Mark", "forged sender")
            raise SystemExit

        async def coroutine(self: Any) -> Any:
            self.smfi_addheader("X-Mark", "forged sender")
            raise ValueError("bug")

        def nonsense(self: Any) -> Any:
            self.smfi_addheader("X-Mark", "forged sender")
            return "x"

        rows: list[tuple[Any, str]] = [
            (c.SMFIS_CONTINUE, "hc"),
            (c.SMFIS_ACCEPT, "ha"),
            (c.SMFIS_TEMPFAIL, "t"),
            (c.SMFIS_REJECT, "r"),
            (c.SMFIS_DISCARD, "d"),
            (TEXT, "y"),
            (DISCONNECT, ""),
            ({"eom": c.SMFIS_CONTINUE}, "hc"),
            ({"default": c.SMFIS_CONTINUE}, "hc"),
            ({"default": c.SMFIS_CONTINUE, "eom": DISCONNECT}, ""),
        ]
        for merge in MERGES:
            for eom in (plain, coroutine, nonsense):
                for on_error, letters in rows:
                    conversation = started(
                        MilterFactory(milter(eom=eom), on_error=on_error), merge=merge
                    )
                    conversation.send(MAIL, RCPT)
                    said = conversation.letters(EOM)
                    self.assertEqual(said, letters, (merge, eom.__name__, on_error))
        self.flushLoggedErrors()

    def test_one_that_is_late_has_its_edits_stand_too(self) -> None:
        """
        One that is late has its edits stand too.
        """

        def eom(self: Any) -> Any:
            self.smfi_addheader("X-Mark", "y")
            return Waiting()()

        for merge in MERGES:
            failing = MilterFactory(milter(eom=eom), on_error=c.SMFIS_CONTINUE, timeout=3)
            conversation = started(failing, merge=merge, progress_interval=None)
            conversation.send(MAIL, RCPT, EOM)
            conversation.clock.advance(3)
            self.assertEqual([letter for letter, _ in conversation.packets(b"")][-2:], ["h", "c"])
        self.flushLoggedErrors()


class ServerTests(SynchronousTestCase):
    """
    ``on_error`` of an SMTP server.
    """

    def test_text_of_a_reply_is_told_to_the_client(self) -> None:
        """
        A reply's text is told to the client when the milters cannot be asked at all; a milter's
        own too, and DISCONNECT leaves the word to the server.
        """

        class Unwilling(Milter):
            def xxfi_negotiate(self, actions: int, steps: int) -> int:
                return c.SMFIS_REJECT

            def xxfi_envfrom(self, argv: list[str]) -> None:
                pass

        class Failing(Milter):
            def xxfi_envfrom(self, argv: list[str]) -> None:
                raise ValueError("bug")

        def said(*factories: Any, **options: Any) -> list[str]:
            session = Session(factories=factories, **options)
            session.say("EHLO client.example")
            return list(session.say(f"MAIL FROM:{SENDER}", f"RCPT TO:{RECIPIENT}"))

        line = "451 4.3.0 Filter is broken"
        self.assertEqual(said(MilterFactory(Unwilling), on_error=TEXT)[0], line)
        self.assertEqual(said(MilterFactory(Failing, on_error=TEXT))[0], line)
        failing = MilterFactory(Failing, on_error=DISCONNECT)
        self.assertEqual(said(failing, on_error=TEXT)[0], line)
        self.flushLoggedErrors()

    def test_server_with_no_mta_behind_it_refuses_disconnect(self) -> None:
        """
        There is no MTA behind the server that could decide.
        """
        from yatxmilter.smtp import SMTPMilters

        for value in (DISCONNECT, {"eom": 0}, "x"):
            self.assertRaises(ValueError, SMTPMilters, (), on_error=value)


class FallbackTests(SynchronousTestCase):
    """
    What is told of an answer.
    """

    def test_code_is_told_as_it_is_and_text_with_its_code(self) -> None:
        """
        A code is told as it is, a text with its code, a disconnect by its name.
        """
        self.assertIs(Fallback(c.SMFIS_REJECT).described, c.SMFIS_REJECT)
        self.assertEqual(Fallback(c.SMFIS_REJECT, b"550 x").described, "SMFIS_REJECT ('550 x')")
        self.assertEqual(Fallback(c.SMFIS_TEMPFAIL, None, True).described, "DISCONNECT")


class UnknownTests(ConversationTestCase):
    """
    Where no message is meant.
    """

    def test_unknown_command_that_fails_with_text_is_answered_with_it(self) -> None:
        """
        An unknown command that fails with a text is answered with it, and the message goes on.
        """
        conversation = started(MilterFactory(full(unknown=broken), on_error=TEXT))
        conversation.send(MAIL + RCPT)
        self.assertEqual(conversation.letters(UNKNOWN + RCPT), "yc")
        self.flushLoggedErrors()
