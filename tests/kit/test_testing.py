"""
Tests of the MTA in memory: what it shows of milters, and what it does not let pass.

That it does as Postfix and Sendmail do is tested with these, in ``tests/mta``.
"""

from __future__ import annotations

import unittest
from email.message import EmailMessage
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater
from twisted.python import log
from twisted.trial.unittest import SynchronousTestCase

from yatxmilter import Milter, MilterFactory, noreply
from yatxmilter import constants as c
from yatxmilter.client import AddHeader, PeerError
from yatxmilter.testing import (
    Call,
    InMemoryMTA,
    MilterTestFailure,
    MilterTestMixin,
    Path,
    Reply,
)

MESSAGE = b"From: a\nSubject: hi\nMessage-Id: <1@client.example>\n\nbody\n"
A, B = "<a@example.com>", "<b@example.com>"


class Tagger(Milter):
    """
    Add a field.
    """

    def xxfi_eom(self) -> None:
        """
        Add it.
        """
        self.smfi_addheader("X-Tag", "yes")


def answering(callback: str, code: int, *reply: str) -> type[Milter]:
    """
    Make a milter that answers one callback, with a text or without.
    """

    def answer(self: Milter, *_: object) -> int:
        if reply:
            self.smfi_setmlreply(*reply)
        return code

    return type("Answering", (Milter,), {f"xxfi_{callback}": answer})


class Looking(Milter):
    """
    Look at the test's MTA from within.
    """

    mta: Any

    def xxfi_eom(self) -> None:
        """
        Look.
        """
        self.smfi_addheader("X-Calls", str(len(self.mta.calls)))


class LookingTests(MilterTestMixin, SynchronousTestCase):
    """
    A milter that knows the MTA it is tested with.
    """

    def test_may_look_at_the_mta_in_a_callback(self) -> None:
        """
        It may look at the MTA in a callback.
        """
        Looking.mta = self.milter_mta(Looking)
        self.assertEqual(Looking.mta.send(MESSAGE).delivered.values("X-Calls"), ["1"])


class Patient(Milter):
    """
    Answer later.
    """

    later: Deferred[int]

    def xxfi_envfrom(self, argv: list[str]) -> Deferred[int]:
        """
        Keep the Deferred.
        """
        self.later = Deferred()
        return self.later

    async def xxfi_eom(self) -> None:
        """
        Take five seconds.
        """
        clock: Any = self.protocol.factory.clock
        await deferLater(clock, 5)
        self.smfi_addheader("X-Later", "yes")


class MessageTests(MilterTestMixin, SynchronousTestCase):
    """
    Messages sent whole.
    """

    def test_message_is_delivered_as_the_milters_have_made_it(self) -> None:
        """
        A message is delivered as the milters have made it, and can be looked at in any form.
        """
        for flavour in ("postfix", "sendmail"):
            sent = self.milter_mta(Tagger, flavour=flavour).send(MESSAGE, recipients=[A])
            self.assertTrue(sent.accepted)
            self.assertEqual(sent.edits, (AddHeader("X-Tag", "yes"),))
            delivered = sent.delivered
            self.assertEqual(delivered.values("x-tag"), ["yes"])
            self.assertEqual(delivered.body, b"body\r\n")
            self.assertEqual(delivered.message["Subject"], "hi")
            self.assertEqual(delivered.fields[0], ("From", "a"))
            self.assertEqual(delivered.sender, Path("<sender@client.example>"))
            self.assertEqual((delivered.recipients, sent.recipients), ((Path(A),), [A]))
            self.assertIn("250", repr(sent))

    def test_message_may_be_one_of_email_package(self) -> None:
        """
        A message may be one of the email package; text outside ASCII arrives as it should.
        """
        message = EmailMessage()
        message["Subject"] = "Gr\u00fc\u00dfe"
        message.set_content("h\u00e4\n")
        sent = self.milter_mta(Tagger).send(message)
        self.assertEqual(sent.delivered.message["Subject"], "Gr\u00fc\u00dfe")

    def test_edits_of_envelope_show_in_who_gets_message(self) -> None:
        """
        Edits of the envelope show in who gets the message.
        """

        class Redirect(Milter):
            def xxfi_eom(self) -> None:
                self.smfi_addrcpt("c@example.com")
                self.smfi_addrcpt_par("<d@example.com>", "NOTIFY=NEVER")
                self.smfi_addrcpt(A)
                self.smfi_delrcpt("b@EXAMPLE.COM")
                self.smfi_chgfrom("new@example.com", "RET=HDRS")
                self.smfi_chgfrom("<last@example.com>")

        tails = {"postfix": (Path(A),), "sendmail": ()}
        for flavour, tail in tails.items():
            mta = self.milter_mta(Redirect, flavour=flavour)
            sent = mta.send(MESSAGE, "s@client.example", ["a@example.com", B])
            added = (Path("<c@example.com>"), Path("<d@example.com>", ("NOTIFY=NEVER",)))
            self.assertEqual(sent.delivered.recipients, (Path(A), *added, *tail))
            self.assertEqual(sent.delivered.sender, Path("<last@example.com>", ("RET=HDRS",)))

    def test_esmtp_arguments_are_what_the_milter_is_called_with(self) -> None:
        """
        ESMTP arguments are what the milter is called with.
        """

        class Looker(Milter):
            def xxfi_envfrom(self, argv: list[str]) -> None:
                pass

            def xxfi_envrcpt(self, argv: list[str]) -> None:
                pass

        mta = self.milter_mta(Looker)
        mta.send(MESSAGE, "<>", [A], sender_args=["SIZE=1"], recipient_args={A: ["NOTIFY=NEVER"]})
        self.assertEqual(
            mta.calls,
            [
                Call("Looker", "xxfi_envfrom", (["<>", "SIZE=1"],)),
                Call("Looker", "xxfi_envrcpt", ([A, "NOTIFY=NEVER"],)),
            ],
        )
        self.assertEqual(str(mta.calls[0]), "Looker.xxfi_envfrom(['<>', 'SIZE=1'])")

    def test_refused_message_is_not_delivered(self) -> None:
        """
        A refused message is not delivered, and the client is told what that MTA would tell it.
        """
        table = {"postfix": 550, "sendmail": 554}
        for flavour, code in table.items():
            for callback, stage in (("header", "header"), ("eoh", "eoh"), ("eom", "eom")):
                mta = self.milter_mta(answering(callback, c.SMFIS_REJECT), flavour=flavour)
                sent = mta.send(MESSAGE)
                self.assertEqual(sent.reply, Reply(code, ("5.7.1 Command rejected",)))
                self.assertEqual((sent.verdict, sent.stage), (c.SMFIS_REJECT, stage))
                error = self.assertRaises(MilterTestFailure, getattr, sent, "delivered")
                self.assertIn("SMFIS_REJECT", str(error))

    def test_refused_recipient_gets_nothing(self) -> None:
        """
        A refused recipient gets nothing, and without any other the message ends there.
        """

        class Guard(Milter):
            def xxfi_envrcpt(self, argv: list[str]) -> int:
                return c.SMFIS_REJECT if argv[0] == B else c.SMFIS_CONTINUE

        mta = self.milter_mta(Guard)
        sent = mta.send(MESSAGE, recipients=[A, B])
        self.assertEqual((sent.recipients, list(sent.refused)), ([A], [B]))
        sent = mta.send(MESSAGE, recipients=[B])
        self.assertEqual((sent.reply.code, sent.stage), (550, "rcpt"))

    def test_what_is_refused_at_mail_or_data_goes_no_further(self) -> None:
        """
        What is refused at MAIL or DATA goes no further, and 421 ends it at once.
        """
        sent = self.milter_mta(answering("envfrom", c.SMFIS_TEMPFAIL)).send(MESSAGE)
        self.assertEqual(str(sent.reply), "451 4.7.1 Service unavailable - try again later")
        sent = self.milter_mta(answering("data", c.SMFIS_REJECT)).send(MESSAGE)
        self.assertEqual((sent.reply.code, sent.stage), (550, "data"))
        milter = answering("envrcpt", c.SMFIS_TEMPFAIL, "421", "4.7.0", "bye")
        sent = self.milter_mta(milter).send(MESSAGE, recipients=[A, B])
        self.assertEqual((sent.reply.text, list(sent.refused)), ("4.7.0 bye", [A]))

    def test_discarded_message_is_accepted_and_goes_nowhere(self) -> None:
        """
        A discarded message is accepted and goes nowhere; the milter is asked no more.
        """
        for callback in ("envfrom", "envrcpt", "data", "header", "eom"):
            sent = self.milter_mta(answering(callback, c.SMFIS_DISCARD)).send(MESSAGE)
            self.assertTrue(sent.accepted)
            self.assertEqual(sent.transaction.delivered, None)

    def test_held_message_is_accepted_reason_is_there_and_so_is_message(self) -> None:
        """
        A held message is accepted; the reason is there, and so is the message.
        """

        class Holder(Milter):
            def xxfi_eom(self) -> None:
                self.smfi_quarantine("odd")

        sent = self.milter_mta(Holder).send(MESSAGE)
        self.assertEqual((sent.quarantined, sent.accepted), ("odd", True))
        self.assertEqual(sent.delivered.body, b"body\r\n")

    def test_skip_ends_body_empty_one_is_not_shown_at_all(self) -> None:
        """
        SKIP ends the body; an empty one is not shown at all.
        """
        seen: list[int] = []

        class Brief(Milter):
            def xxfi_body(self, bodyp: bytes) -> int:
                seen.append(len(bodyp))
                return c.SMFIS_SKIP

        mta = self.milter_mta(Brief)
        mta.send(MESSAGE + b"x\n" * 50000)
        mta.send(b"Subject: no body\n\n")
        self.assertEqual(seen, [65535])

    def test_milter_that_asks_for_blank_after_colon_gets_it_and_writes_it(self) -> None:
        """
        A milter that asks for the blank after the colon gets it, and writes it.
        """

        class Exact(Milter):
            def xxfi_negotiate(self, actions: int, steps: int) -> Any:
                return c.SMFIS_CONTINUE, actions, c.SMFIP_HDR_LEADSPC

            def xxfi_header(self, headerf: str, headerv: str) -> None:
                pass

            def xxfi_eom(self) -> None:
                self.smfi_addheader("X", "  two")

        mta = self.milter_mta(Exact)
        sent = mta.send(MESSAGE)
        self.assertIn(Call("Exact", "xxfi_header", ("From", " a")), mta.calls)
        self.assertIn(b"\r\nX:  two\r\n", sent.delivered.data)

    def test_several_milters_as_classes_or_factories(self) -> None:
        """
        Several milters, as classes or factories, are merged as they would be.
        """

        class Looker(Milter):
            def xxfi_header(self, headerf: str, headerv: str) -> None:
                pass

        mta = self.milter_mta([MilterFactory(Tagger), Looker], merge="chain")
        mta.send(MESSAGE)
        self.assertIn(Call("Looker", "xxfi_header", ("X-Tag", "yes")), mta.calls)
        self.assertEqual([type(one) for one in mta.milters], [Tagger, Looker])

    def test_unknown_flavour_and_message_without_recipients_are_mistakes_of_tests(self) -> None:
        """
        An unknown flavour and a message without recipients are mistakes of the test's.
        """
        error = self.assertRaises(ValueError, InMemoryMTA, Tagger, flavour="exim")
        self.assertIn("'exim'", str(error))
        mta = self.milter_mta(Tagger)
        self.assertRaises(ValueError, mta.send, MESSAGE, recipients=[])
        wrong: Any = "text"
        for call, text in (
            (lambda: InMemoryMTA(3), "3 is neither"),
            (lambda: mta.send(wrong), "message is 'text'"),
            (lambda: mta.send(MESSAGE, recipients=A), f"recipients is '{A}'"),
            (lambda: mta.session(address=wrong), "address is 'text'"),
        ):
            with self.assertRaises(TypeError) as caught:
                call()
            self.assertIn(text, str(caught.exception))


class SessionTests(MilterTestMixin, SynchronousTestCase):
    """
    SMTP commands one by one.
    """

    def test_each_command_has_reply_and_message_is_there_at_end(self) -> None:
        """
        Each command has a reply, and the message is there at the end.
        """
        mta = self.milter_mta(Tagger, flavour="sendmail")
        with mta.session() as session:
            self.assertEqual(session.greeting.reply.code, 250)
            self.assertEqual(session.mail(A).reply.text, f"2.1.0 {A}... Sender ok")
            self.assertEqual(session.rcpt(B).reply.text, f"2.1.5 {B}... Recipient ok")
            self.assertEqual(session.data().reply.code, 354)
            sent = session.content(MESSAGE)
            self.assertEqual(sent.delivered.values("X-Tag"), ["yes"])
            self.assertEqual(session.agreement.version, 6)
        self.assertTrue(session.closed)

    def test_text_too_goes_part_by_part_each_with_milters_answer(self) -> None:
        """
        The text too goes part by part, each with the milters' answer, and waits where they wait.
        """

        class Parts(Milter):
            later: Deferred[int]

            def xxfi_helo(self, helohost: str) -> None:
                pass

            def xxfi_header(self, headerf: str, headerv: str) -> Deferred[int]:
                self.later = Deferred()
                return self.later

            @noreply
            def xxfi_eoh(self) -> None:
                pass

            def xxfi_body(self, bodyp: bytes) -> int:
                return c.SMFIS_SKIP

            def xxfi_eom(self) -> None:
                self.smfi_addheader("X-Msg", self.smfi_getsymval("{msg_id}") or "none")

        for flavour in ("postfix", "sendmail"):
            mta = self.milter_mta(Parts, flavour=flavour, macros={})
            with mta.session(helo=None) as session:
                self.assertEqual(session.helo("mail.example.org").reply.code, 250)
                session.mail(A), session.rcpt(B), session.data()
                header = session.header("Message-Id", "<2@client.example>\n (folded)")
                self.assertFalse(header.done)
                body = session.body(b"one\r\n")
                mta.milters[0].later.callback(c.SMFIS_CONTINUE)
                self.assertEqual((header.verdict, header.awaited), (c.SMFIS_CONTINUE, True))
                self.assertIn("SMFIS_CONTINUE", repr(header))
                error = self.assertRaises(MilterTestFailure, getattr, header, "reply")
                self.assertIn("no reply to header", str(error))
                self.assertEqual((body.verdict, body.stage), (c.SMFIS_SKIP, "body"))
                self.assertFalse(session.eoh().awaited)
                self.assertFalse(session.body(b"two\r\n").awaited)
                self.assertRaises(ValueError, session.header, "X", "too late")
                sent = session.end()
            self.assertEqual(sent.delivered.body, b"one\r\ntwo\r\n")
            names = [call.name.removeprefix("xxfi_") for call in mta.calls]
            self.assertEqual(names, ["helo", "header", "eoh", "body", "eom"])

    def test_part_that_is_refused_has_reply_of_end_and_nothing_more_is_asked(self) -> None:
        """
        A part that is refused has the reply of the end, and nothing more is asked.
        """
        for callback, code in (("header", c.SMFIS_REJECT), ("body", c.SMFIS_TEMPFAIL)):
            mta = self.milter_mta(answering(callback, code))
            with mta.session() as session:
                session.mail(A), session.rcpt(B), session.data()
                parts = [session.header("Subject", "hi"), session.eoh(), session.body(b"text\r\n")]
                reply = session.end().reply
                self.assertEqual(parts[2].reply, reply)
                self.assertEqual((parts[2].stage, parts[2].verdict), (callback, code))
                self.assertEqual([call.name for call in mta.calls], [f"xxfi_{callback}"])

    def test_after_accept_or_discard_milters_are_asked_no_more(self) -> None:
        """
        After ACCEPT or DISCARD the milters are asked no more; what is accepted is delivered.
        """
        for code in (c.SMFIS_ACCEPT, c.SMFIS_DISCARD):
            mta = self.milter_mta([answering("header", code), Tagger])
            with mta.session() as session:
                session.mail(A), session.rcpt(B), session.data()
                self.assertEqual(session.header("Subject", "hi").verdict, code)
                session.header("X-Two", "2")
                sent = session.end()
            self.assertTrue(sent.accepted)
            self.assertEqual(sent.transaction.delivered is None, code == c.SMFIS_DISCARD)

    def test_what_is_no_header_field_is_mistake_of_tests(self) -> None:
        """
        What is no header field is a mistake of the test's.
        """
        with self.milter_mta(Tagger).session() as session:
            for name, value in (("", "x"), ("a b", "x"), ("X", "1\nY: 2"), ("X", "1\n\n2")):
                self.assertRaises(ValueError, session.header, name, value)

    def test_commands_out_of_order_are_refused_by_mta_itself(self) -> None:
        """
        Commands out of order are refused by the MTA itself.
        """
        mta = self.milter_mta(Tagger)
        with mta.session() as session:
            whole = (session.rcpt(A), session.data(), session.content(MESSAGE))
            parts = (session.header("X", "y"), session.eoh(), session.body(b"z"), session.end())
            for step in (*whole, *parts):
                self.assertEqual(step.reply.code, 503)
            session.mail(A)
            self.assertEqual(session.data().reply.code, 554)

    def test_rset_aborts_message_with_no_message_milter_hears_nothing_of_it(self) -> None:
        """
        RSET aborts a message; with no message the milter hears nothing of it.
        """

        class Looker(Milter):
            def xxfi_envfrom(self, argv: list[str]) -> None:
                pass

            def xxfi_abort(self) -> None:
                pass

        for flavour in ("postfix", "sendmail"):
            mta = self.milter_mta(Looker, flavour=flavour)
            with mta.session() as session:
                session.rset()
                session.mail(A)
                self.assertEqual(session.rset().reply.code, 250)
            names = [call.name for call in mta.calls]
            self.assertEqual(names, ["xxfi_envfrom", "xxfi_abort"])

    def test_lost_connection_aborts_message_and_milter_is_closed(self) -> None:
        """
        A lost connection aborts the message, and the milter is closed.
        """

        class Looker(Milter):
            def xxfi_envfrom(self, argv: list[str]) -> None:
                pass

            def xxfi_abort(self) -> None:
                pass

            def xxfi_close(self) -> None:
                pass

        mta = self.milter_mta(Looker)
        session = mta.session()
        session.mail(A)
        session.vanish()
        session.quit()
        names = [call.name for call in mta.calls]
        self.assertEqual(names, ["xxfi_envfrom", "xxfi_abort", "xxfi_close"])
        mta.send(MESSAGE)

    def test_what_is_refused_at_connect_or_helo_is_told_at_mail(self) -> None:
        """
        What is refused at connect or HELO is told at MAIL; ACCEPT there ends the asking.
        """
        for callback in ("connect", "helo"):
            mta = self.milter_mta(answering(callback, c.SMFIS_REJECT, "550", "5.7.1", "no"))
            with mta.session() as session:
                self.assertEqual(session.greeting.stage, callback)
                self.assertEqual(session.mail(A).reply, Reply(550, ("5.7.1 no",)))
                self.assertEqual(session.helo("again").reply.code, 550)
                self.assertEqual(session.unknown("X").reply.code, 500)
            mta = self.milter_mta(answering(callback, c.SMFIS_ACCEPT))
            self.assertTrue(mta.send(MESSAGE).accepted)

    def test_client_need_not_greet_and_its_address_need_not_be_known(self) -> None:
        """
        A client need not greet, and its address need not be known.
        """

        class Looker(Milter):
            def xxfi_connect(self, hostname: str, hostaddr: object) -> None:
                pass

            def xxfi_helo(self, helohost: str) -> None:
                pass

        mta = self.milter_mta(Looker)
        mta.session("localhost", None, None).quit()
        self.assertEqual(mta.calls, [Call("Looker", "xxfi_connect", ("localhost", None))])

    def test_postfix_shows_milter_first_word_of_unknown_command_sendmail_line(self) -> None:
        """
        Postfix shows a milter the first word of an unknown command, Sendmail the line.
        """
        for flavour, line in (("postfix", "X"), ("sendmail", "X y")):
            mta = self.milter_mta(answering("unknown", c.SMFIS_CONTINUE), flavour=flavour)
            with mta.session() as session:
                self.assertEqual(session.unknown("X y").reply.code, 500)
            self.assertEqual(mta.calls[0].args, (line,))
        mta = self.milter_mta(answering("unknown", c.SMFIS_REJECT))
        with mta.session() as session:
            self.assertEqual(session.unknown("X y").reply.code, 550)

    def test_two_clients_at_once_have_milter_each(self) -> None:
        """
        Two clients at once have a milter each, and several messages go over one connection.
        """
        mta = self.milter_mta(Tagger)
        with mta.session() as one, mta.session(address=IPv4Address("TCP", "192.0.2.9", 9)) as two:
            one.mail(A)
            self.assertTrue(mta.send(MESSAGE, session=two).accepted)
            self.assertTrue(mta.send(MESSAGE, session=two).accepted)
            one.rcpt(B)
            one.data()
            self.assertTrue(one.content(MESSAGE).accepted)
        self.assertEqual(len(mta.milters), 2)

    def test_macros_are_those_of_flavour_tests_own(self) -> None:
        """
        Macros are those of the flavour, the test's own, and those a milter has asked for.
        """
        seen: list[object] = []

        class Asker(Milter):
            def xxfi_negotiate(self, actions: int, steps: int) -> None:
                self.smfi_setsymlist(c.SMFIM_CONNECT, "{client_addr} j")

            def xxfi_connect(self, hostname: str, hostaddr: object) -> None:
                seen.extend(self.smfi_getsymval(name) for name in ("{client_addr}", "j"))

            def xxfi_eom(self) -> None:
                seen.append(self.smfi_getsymval("{auth_authen}"))

        for flavour in ("postfix", "sendmail"):
            seen.clear()
            mta = self.milter_mta(Asker, flavour=flavour, macros={"{auth_authen}": "user"})
            with mta.session(macros={"j": "mx.example.com"}) as session:
                mta.send(MESSAGE, session=session)
            self.assertEqual(seen, ["192.0.2.25", "mx.example.com", "user"])


class WaitingTests(MilterTestMixin, SynchronousTestCase):
    """
    Milters that take their time.
    """

    def test_mta_waits_for_a_deferred_and_says_for_which(self) -> None:
        """
        The MTA waits for a Deferred and says for which; the test fires it and lets time pass.
        """
        clock = Clock()
        mta = self.milter_mta(Patient, clock=clock)
        sent = mta.send(MESSAGE)
        self.assertFalse(sent.done)
        self.assertEqual([call.name for call in mta.waiting], ["xxfi_envfrom"])
        error = self.assertRaises(MilterTestFailure, getattr, sent, "reply")
        self.assertIn("waiting for Patient.xxfi_envfrom(", str(error))
        self.assertIn("waiting", repr(sent))
        mta.milters[0].later.callback(c.SMFIS_CONTINUE)
        self.assertEqual([call.name for call in mta.waiting], ["xxfi_eom"])
        mta.advance(4)
        self.assertFalse(sent.done)
        mta.advance(1)
        self.assertEqual(sent.delivered.values("X-Later"), ["yes"])
        self.assertIs(mta.clock, clock)

    def test_vanish_while_waiting(self) -> None:
        """
        Where the MTA goes while a milter is at work its Deferred is cancelled.
        """
        mta = self.milter_mta(Patient)
        session = mta.session()
        step = session.mail(A)
        session.vanish()
        self.assertEqual(mta.waiting, [])
        self.assertRaises(PeerError, getattr, step, "reply")

    def test_milter_that_refuses_negotiation_has_no_agreement(self) -> None:
        """
        A milter that refuses negotiation has no agreement, and that is an error in the log.
        """
        mta = self.milter_mta(answering("negotiate", c.SMFIS_REJECT))
        with self.expect_milter_errors(mta, "negotiation failed"):
            session = mta.session()
        self.assertRaises(MilterTestFailure, getattr, session, "agreement")
        session.vanish()


class FailureTests(MilterTestMixin, SynchronousTestCase):
    """
    What a test is not to miss.
    """

    def failure(self, mta: InMemoryMTA) -> str:
        """
        End a test that has to fail, and give what is said.
        """
        error = self.assertRaises(MilterTestFailure, mta.finish)
        self.flushLoggedErrors()
        return str(error)

    def broken(self) -> InMemoryMTA:
        """
        Make an MTA with a milter that raises.
        """

        class Broken(Milter):
            def xxfi_eom(self) -> None:
                raise KeyError("nobody")

        return InMemoryMTA(Broken)

    def test_exception_fails_test_milter_callback(self) -> None:
        """
        An exception fails the test; milter, callback, exception and its place are named.
        """
        mta = self.broken()
        self.assertEqual(mta.send(MESSAGE).verdict, c.SMFIS_TEMPFAIL)
        text = self.failure(mta)
        for part in ("Broken", "xxfi_eom", "KeyError: 'nobody'", "test_testing.py"):
            self.assertIn(part, text)

    def test_return_code_that_is_illegal_at_its_stage_fails_the_test(self) -> None:
        """
        So does a return code that is illegal at its stage, and one against a promise.
        """
        mta = InMemoryMTA(answering("helo", c.SMFIS_DISCARD))
        mta.send(MESSAGE)
        self.assertIn("SMFIS_DISCARD", self.failure(mta))

        class Promising(Milter):
            @noreply
            def xxfi_header(self, headerf: str, headerv: str) -> int:
                return c.SMFIS_REJECT

        mta = InMemoryMTA(Promising)
        mta.send(MESSAGE)
        self.assertIn("promised not to answer", self.failure(mta))

    def test_deferred_that_never_fires_fails_the_test(self) -> None:
        """
        So does a Deferred that has not fired at the end.
        """
        mta = InMemoryMTA(Patient)
        mta.send(MESSAGE)
        self.assertIn(
            "Patient.xxfi_envfrom(['<sender@client.example>']) has not been answered",
            self.failure(mta),
        )

    def test_cannot_be_built(self) -> None:
        """
        A milter that cannot be built is an error too; its factory says what is answered for it.
        """

        class Unbuildable(Milter):
            def __init__(self, *args: Any) -> None:
                raise KeyError("no such thing")

        mta = InMemoryMTA(MilterFactory(Unbuildable, on_error=c.SMFIS_REJECT))
        self.assertEqual(mta.send(MESSAGE).verdict, c.SMFIS_REJECT)
        self.assertIn("KeyError: 'no such thing'", self.failure(mta))

    def test_session_that_was_not_ended_fails_the_test(self) -> None:
        """
        So does a session that was not ended.
        """
        mta = InMemoryMTA(Tagger)
        mta.session()
        self.assertIn("1 session(s) left open", self.failure(mta))

    def test_error_that_was_expected_is_none(self) -> None:
        """
        An error that was expected is none.
        """
        mta = self.broken()
        with self.expect_milter_errors(mta, "KeyError") as errors:
            mta.send(MESSAGE)
        self.assertEqual(len(errors), 1)
        mta.finish()

    def test_has_to_come_and_to_be_the_one_that_was_expected(self) -> None:
        """
        It has to come, and to be the one that was expected.
        """
        mta = self.broken()
        for act, text in ((lambda: None, "no milter failed"), (lambda: mta.send(MESSAGE), "got:")):
            with self.assertRaises(MilterTestFailure) as caught, mta.expect_errors("ValueError"):
                act()
            self.assertIn(text, str(caught.exception))
        self.flushLoggedErrors()
        mta.finish()

    def test_nothing_else_is_forgiven_neither_what_was_logged_before(self) -> None:
        """
        Nothing else is forgiven: neither what was logged before, nor by others meanwhile.
        """
        mta = self.broken()
        log.err(ValueError("before"))
        with self.expect_milter_errors(mta, "KeyError"):
            log.err(ValueError("meanwhile"))
            mta.send(MESSAGE)
        mta.finish()
        self.assertEqual(self.flushLoggedErrors(KeyError), [])
        texts = [str(failure.value) for failure in self.flushLoggedErrors()]
        self.assertEqual(texts, ["before", "meanwhile"])

    def test_expected_of_one(self) -> None:
        """
        What one of several MTAs expects is no error to the others.
        """
        for mta in (one := self.broken(), other := self.broken()):
            with self.expect_milter_errors(mta, "KeyError"):
                mta.send(MESSAGE)
        one.finish()
        other.finish()

    def test_what_others_log_is_not_milters_error(self) -> None:
        """
        What others log is not a milter's error.
        """
        from twisted.logger import Logger

        mta = InMemoryMTA(Tagger)
        Logger(namespace="elsewhere").error("not ours")
        Logger(namespace="yatxmilter.milters").info("no error")
        self.flushLoggedErrors()
        mta.finish()

    def test_with_mixin_test_that_leaves_something_undone_fails_by_itself(self) -> None:
        """
        With the mixin a test that leaves something undone fails by itself.
        """

        class Case(MilterTestMixin, SynchronousTestCase):
            def test_it(self) -> None:
                """
                Leave a session open.
                """
                self.milter_mta(Tagger).session()

        result = unittest.TestResult()
        Case("test_it").run(result)
        self.assertIn("left open", result.errors[0][1])
