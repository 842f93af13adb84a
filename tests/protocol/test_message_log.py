"""
Tests of ``log_messages``: one line of the log for each message.
"""

from __future__ import annotations

from typing import Any

from tests.conversation_helpers import (
    ABORT,
    CONNECT,
    EOM,
    HELO,
    MAIL,
    MESSAGE,
    QUIT,
    RCPT,
    UNKNOWN,
    Conversation,
    ConversationTestCase,
    Waiting,
    full,
    macros,
    milter,
    packet,
)
from yatxmilter import DISCONNECT, Milter, MilterFactory, rejected_recipients
from yatxmilter import constants as c
from yatxmilter.protocol import MilterProtocolFactory

OTHER = packet("R", b"<b@example.net>\0")


class LineTests(ConversationTestCase):
    """
    What the event says.
    """

    def started(self, *milters: Any, **options: Any) -> Conversation:
        """
        Begin a conversation whose messages are logged.
        """
        conversation = Conversation(*milters, log_messages=True, **options)
        conversation.agree()
        return conversation

    def told(self) -> list[dict[str, Any]]:
        """
        Give the events about messages since the last look.
        """
        events = [event for event in self.events if "verdict" in event]
        self.events.clear()
        for event in events:
            self.assertEqual(event["log_level"].name, "info")
        return events

    def assert_told(self, *expected: dict[str, Any]) -> None:
        """
        Compare what the events say, of what is expected.
        """
        told = self.told()
        found = [
            {name: event[name] for name in row} for event, row in zip(told, expected, strict=False)
        ]
        self.assertEqual((len(told), found), (len(expected), list(expected)))

    def test_passed_message_is_logged_with_its_edits_and_times(self) -> None:
        """
        A message that passes: who sent it to how many, the edits by kind, and the times.
        """

        def eom(self: Any) -> None:
            self.smfi_addheader("X", "y")
            self.smfi_addheader("X", "z")
            self.smfi_chgheader("S", 1, None)
            self.protocol.factory.clock.advance(0.25)

        conversation = self.started(full(eom=eom))
        conversation.send(CONNECT, HELO, macros("M", b"i", b"4QID") + MAIL, RCPT, OTHER)
        conversation.clock.advance(1)
        conversation.send(packet("T"), packet("N"), EOM)
        text = self.log_text()
        self.assert_told(
            {
                "queue_id": "4QID",
                "connection": conversation.protocol.number,
                "verdict": "continue",
                "client": "mail.example.org [192.0.2.1]",
                "sender": "<s@example.org>",
                "accepted": 2,
                "refused": 0,
                "deferred": 0,
                "milter": "nobody",
                "reply": "none",
                "edits": "2 addheader, 1 chgheader",
                "edit_counts": {"addheader": 2, "chgheader": 1},
                "milliseconds": 1250.0,
                "callback_milliseconds": 250.0,
            }
        )
        self.assertIn("Message 4QID on connection", text)
        self.assertIn("sender <s@example.org>, recipients 2 accepted, 0 refused", text)
        conversation.send(MESSAGE)
        self.assert_told(
            {"accepted": 1, "edits": "2 addheader, 1 chgheader", "verdict": "continue"}
        )

    def test_milters_are_at_work_while_they_answer_and_are_waited_for(self) -> None:
        """
        The milters' time is that in which they answer and are waited for, those that are waited for
        together once; that in which the MTA is silent is not theirs.
        """

        def takes(seconds: float) -> Any:
            return lambda self, *_: self.protocol.factory.clock.advance(seconds)

        ends: list[tuple[Any, float, float]] = [
            (lambda conversation: conversation.send(EOM), 8850.0, 2600.0),
            (lambda conversation: conversation.send(ABORT), 8600.0, 2350.0),
            (lambda conversation: conversation.drop(), 8600.0, 2350.0),
        ]
        for end, whole, theirs in ends:
            waits = [Waiting(), Waiting()]
            conversation = self.started(
                full(envfrom=takes(0.1), envrcpt=waits[0], data=takes(0.25), eom=takes(0.25)),
                full(envrcpt=waits[1]),
            )
            conversation.send(MAIL)
            conversation.clock.advance(5)
            conversation.send(RCPT)
            conversation.clock.advance(1)
            waits[0].fire()
            # What comes meanwhile has to wait, too.
            conversation.send(packet("T"))
            conversation.clock.advance(1)
            waits[1].fire()
            conversation.clock.advance(1)
            conversation.send(packet("N"))
            conversation.clock.advance(0.25)
            end(conversation)
            self.assert_told({"milliseconds": whole, "callback_milliseconds": theirs})

    def test_connection_that_is_lost_while_a_milter_is_waited_for(self) -> None:
        """
        The wait for a milter is its time also where the connection is lost meanwhile.
        """
        conversation = self.started(full(envrcpt=Waiting()))
        conversation.send(MAIL)
        conversation.clock.advance(5)
        conversation.send(RCPT)
        conversation.clock.advance(2)
        conversation.drop()
        self.assert_told({"milliseconds": 7000.0, "callback_milliseconds": 2000.0})

    def test_silence_of_the_mta_is_never_the_milters_time(self) -> None:
        """
        The MTA's silence is not the milters' time, whatever comes behind it: macros alone, a part
        of a packet, what breaks the protocol; nor is the time in which it does not read.
        """

        def stalls(conversation: Conversation) -> None:
            conversation.protocol.pauseProducing()
            conversation.clock.advance(1)
            conversation.protocol.resumeProducing()

        says: list[Any] = [
            lambda conversation: conversation.send(macros("R", b"i", b"4QID")),
            lambda conversation: conversation.send(RCPT[:3]),
            lambda conversation: conversation.send(packet("L", b"no")),
            stalls,
        ]
        for say in says:
            conversation = self.started(full())
            conversation.send(MAIL)
            conversation.clock.advance(5)
            say(conversation)
            conversation.clock.advance(1)
            conversation.drop()
            self.assert_told({"verdict": "aborted", "callback_milliseconds": 0.0})

    def test_each_of_several_messages_in_one_read_has_its_own_time(self) -> None:
        """
        Of two messages that come in one read each is told with its own time.
        """
        seconds = [0.5, 0.25]

        def eom(self: Any) -> None:
            self.protocol.factory.clock.advance(seconds.pop(0))

        conversation = self.started(full(eom=eom))
        conversation.protocol.dataReceived(MESSAGE + MESSAGE)
        self.assert_told(
            {"milliseconds": 500.0, "callback_milliseconds": 500.0},
            {"milliseconds": 250.0, "callback_milliseconds": 250.0},
        )

    def test_who_decides_is_whose_answer_the_mta_gets(self) -> None:
        """
        Who decided is whose answer the MTA gets, not who answered last; one that failed, and let
        the message pass, has decided nothing.
        """

        def fails(self: Any) -> None:
            raise RuntimeError("no")

        conversation = self.started(
            full("One", eom=c.SMFIS_REJECT), full("Two", eom=c.SMFIS_ACCEPT), merge="strictest"
        )
        conversation.send(MESSAGE)
        self.assert_told({"verdict": "reject", "milter": "One"})
        for merge in ("first", "strictest", "chain"):
            conversation = self.started(full("One", eom=c.SMFIS_ACCEPT), merge=merge)
            conversation.send(MESSAGE)
            self.assert_told({"verdict": "accept", "milter": "One"})
        conversation = self.started(MilterFactory(full(eom=fails), on_error=c.SMFIS_CONTINUE))
        conversation.send(MESSAGE)
        self.assert_told({"verdict": "continue", "milter": "nobody"})
        conversation = self.started(MilterFactory(full("One", eom=fails), on_error=DISCONNECT))
        conversation.send(MESSAGE)
        self.assert_told({"verdict": "aborted", "milter": "One"})
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 2)

    def test_message_that_is_refused_is_told_with_its_reason(self) -> None:
        """
        One that is refused: by whom, and with which text.
        """

        def eom(self: Any) -> int:
            self.smfi_setreply("550", "5.7.1", "no\u202ething")
            return c.SMFIS_REJECT

        for merge in ("first", "strictest", "chain"):
            conversation = self.started(full("One"), full("Two", eom=eom), merge=merge)
            conversation.send(MESSAGE)
            self.assert_told(
                {"verdict": "reject", "milter": "Two", "reply": "550 5.7.1 no\\u202ething"}
            )

    def test_recipients_are_counted_by_what_they_were_answered(self) -> None:
        """
        Recipients are counted by what they were answered; a message whose every recipient was
        refused, or put off, is one that was, though the MTA aborts it.
        """
        answers: list[int] = []
        conversation = self.started(full(envrcpt=lambda self, argv: answers.pop(0)))
        answers += [c.SMFIS_REJECT, c.SMFIS_CONTINUE, c.SMFIS_TEMPFAIL]
        conversation.send(MAIL, RCPT, RCPT, RCPT, packet("T"), packet("N"), EOM)
        self.assert_told({"accepted": 1, "refused": 1, "deferred": 1, "verdict": "continue"})
        answers += [c.SMFIS_REJECT, c.SMFIS_TEMPFAIL]
        conversation.send(MAIL, RCPT, RCPT, ABORT)
        self.assert_told({"accepted": 0, "refused": 1, "deferred": 1, "verdict": "tempfail"})
        answers += [c.SMFIS_REJECT]
        conversation.send(MAIL, RCPT, ABORT)
        self.assert_told({"accepted": 0, "refused": 1, "deferred": 0, "verdict": "reject"})
        answers += [c.SMFIS_CONTINUE]
        conversation.send(MAIL, RCPT, ABORT)
        self.assert_told({"accepted": 1, "verdict": "aborted", "milter": "nobody"})

    def test_recipients_that_the_mta_has_refused_itself(self) -> None:
        """
        Recipients that the MTA has refused itself, and shows all the same, are refused ones,
        whatever the milter says of them; where they are not shown, the macro says nothing.
        """
        for answer in (c.SMFIS_CONTINUE, c.SMFIS_REJECT):

            class Shown(Milter):
                @rejected_recipients
                def xxfi_envrcpt(self, argv: list[str], answer: c.ReturnCode = answer) -> int:
                    return answer

            conversation = self.started(Shown)
            error, smtp = (macros("R", b"{rcpt_mailer}", value) for value in (b"error", b"smtp"))
            conversation.send(MAIL, error + RCPT, smtp + RCPT, ABORT)
            passed = answer is c.SMFIS_CONTINUE
            self.assert_told({"accepted": int(passed), "refused": 2 - passed})
        conversation = self.started(full())
        conversation.send(MAIL, error + RCPT, smtp + RCPT, ABORT)
        self.assert_told({"accepted": 2, "refused": 0})

    def test_what_a_milter_says_of_one_recipient_may_decide_the_message(self) -> None:
        """
        ACCEPT and DISCARD at a recipient are about the message: so are its verdict and its milter,
        however the MTA ends it. What is said of one recipient, or of an unknown command, is not.
        """
        for merge in ("first", "strictest", "chain"):
            for code, word in ((c.SMFIS_ACCEPT, "accept"), (c.SMFIS_DISCARD, "discard")):
                for end in (ABORT, QUIT, MAIL):
                    conversation = self.started(full("One", envrcpt=code), merge=merge)
                    conversation.send(MAIL, RCPT, end)
                    self.assertEqual(
                        [(event["verdict"], event["milter"]) for event in self.told()],
                        [(word, "One")],
                    )
            answers = [c.SMFIS_REJECT, c.SMFIS_CONTINUE]
            conversation = self.started(
                full(envrcpt=lambda *_, answers=answers: answers.pop(0), unknown=c.SMFIS_REJECT),
                merge=merge,
            )
            conversation.send(MAIL, RCPT, RCPT, UNKNOWN, packet("T"), packet("N"), EOM)
            self.assert_told({"verdict": "continue", "milter": "nobody"})

    def test_message_that_another_one_cuts_off_is_told_with_its_own_sender(self) -> None:
        """
        A message that another one cuts off is told with its own sender, and one whose connection is
        lost is told, too.
        """
        waiting = Waiting()
        conversation = self.started(full(eom=waiting))
        conversation.send(MAIL, RCPT, packet("M", b"<other@example.org>\0"))
        self.assert_told({"sender": "<s@example.org>", "accepted": 1, "verdict": "aborted"})
        conversation.send(OTHER, packet("T"), packet("N"), EOM)
        conversation.drop()
        self.assert_told({"sender": "<other@example.org>", "accepted": 1, "verdict": "aborted"})

    def test_what_the_mta_was_not_asked_for_is_told_from_its_macros(self) -> None:
        """
        What the MTA was not asked for is told from its macros; what cannot be read is unknown.
        """
        conversation = self.started(milter(eom=None))
        conversation.send(macros("M", b"{mail_addr}", b"m@x", b"_", b"c [1]") + RCPT + EOM)
        self.assert_told({"sender": "m@x", "client": "c [1]"})
        conversation = self.started(milter(eom=None))
        conversation.send(EOM)
        self.assert_told({"sender": "unknown", "client": "unknown", "queue_id": "unknown"})

    def test_client_whose_address_is_unknown_is_told_by_its_name(self) -> None:
        """
        A client whose address is unknown is told by its name.
        """
        conversation = self.started(full())
        conversation.send(packet("C", b"here\0U"), MESSAGE)
        self.assert_told({"client": "here"})
        conversation = self.started(milter(eom=None))
        conversation.send(packet("C", b"here\0"), EOM)
        self.assert_told({"client": "unknown"})

    def test_callback_that_is_answered_when_connection_has_gone_is_none_of_messages(self) -> None:
        """
        A callback that is answered when the connection has gone is none of a message's.
        """
        waiting = Waiting()
        conversation = self.started(full(close=waiting))
        conversation.send(MESSAGE)
        conversation.drop()
        waiting.fire()
        self.assertEqual(len(self.told()), 1)

    def test_by_default_nothing_is_logged(self) -> None:
        """
        By default nothing is logged; what is no yes or no is refused.
        """
        conversation = Conversation(full())
        conversation.agree()
        conversation.send(MESSAGE)
        self.assertEqual(self.told(), [])
        self.assertRaises(TypeError, MilterProtocolFactory, (), log_messages="yes")

    def test_program_that_runs_milters_has_logging_begin_once(self) -> None:
        """
        A program that runs milters has it begin, once, unless it was said not to.
        """
        for said, count in ((None, 1), (True, 1), (False, 0)):
            factory = MilterProtocolFactory((), log_messages=said)
            factory.begin_message_log()
            factory.begin_message_log()
            self.assertEqual(len(factory.observers), count)
