"""
`MessageMilter` seen from the MTA: what a class asks for, when its hooks are called, what is
answered, and what reaches the MTA of what they edit.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.client.test_both_ends import Pair
from yatxmilter import Milter, MilterFactory
from yatxmilter import constants as c
from yatxmilter.client import (
    AddHeader,
    AddRecipient,
    ChangeHeader,
    ChangeSender,
    DeleteRecipient,
    InsertHeader,
    Outcome,
    Quarantine,
    ReplaceBody,
)
from yatxmilter.conditions import recipient_matches
from yatxmilter.errors import NotNegotiated, ValueNotSendable, WrongStage
from yatxmilter.message import Client, Message, MessageMilter, Recipient

A, B, C = "<a@example.net>", "<b@example.net>", "<c@example.org>"
LETTER = b"From: a\nSubject: hi\nX-Old: 1\nX-Old: 2\n\nbody \xff\n"
PLAIN = c.SMFI_CURR_PROT & ~c.SMFIP_HDR_LEADSPC
NOTHING = c.SMFIP_NOUNKNOWN | c.SMFIP_NODATA


class MessageTestCase(SynchronousTestCase):
    """
    A test with a milter and an MTA in memory.
    """

    def begin(
        self, *milters: type[Milter], actions: int = 0x1FF, steps: int = PLAIN, **options: Any
    ) -> Pair:
        """
        Negotiate, connect and say HELO.
        """
        pair = Pair(*milters, **options)
        # What goes over the wire is the easier to read without SMFIP_HDR_LEADSPC.
        self.answer(pair, pair.client.negotiate(actions=actions, steps=steps))
        client = pair.client
        self.answer(
            pair,
            client.connect(
                "client.example",
                IPv4Address("TCP", "192.0.2.25", 40025),
                macros={"j": "mx.example", "v": "Postfix 3.9", "{daemon_name}": "smtpd"},
            ),
        )
        self.answer(pair, client.helo("helo.example"))
        return pair

    def answer(self, pair: Pair, command: Deferred[Any]) -> Any:
        """
        Carry bytes until a command is answered.
        """
        pair.flush()
        return self.successResultOf(command)

    def play(
        self,
        pair: Pair,
        message: bytes = LETTER,
        recipients: tuple[str, ...] = (B,),
        **options: Any,
    ) -> Outcome:
        """
        Send a message.
        """
        return self.answer(pair, pair.client.send_message(message, A, recipients, **options))

    def send(self, edit: Any, *arguments: Any, **options: Any) -> Outcome:
        """
        Send a message to a milter that does this with it.
        """

        class Editor(MessageMilter):
            message = edit

        return self.play(self.begin(Editor), *arguments, **options)

    def logged(self, kind: type[Exception]) -> str:
        """
        Give the one error of a kind that was logged.
        """
        (failure,) = self.flushLoggedErrors(kind)
        return str(failure.value)


class HookTests(MessageTestCase):
    """
    What is called, and when.
    """

    def test_hooks_see_client_envelope_and_message_as_they_come_to_be_known(self) -> None:
        """
        The hooks see the client, the envelope and the message as they come to be known.
        """
        seen: list[Any] = []

        class Watcher(MessageMilter):
            def connected(self, client: Client) -> None:
                seen.append((client.host, client.ip, client.helo))

            def greeted(self, client: Client) -> None:
                seen.append(client.helo)

            def sender(self, msg: Message) -> None:
                seen.append((msg.sender, msg.sender_args, msg.client.helo))

            def recipient(self, msg: Message, rcpt: Recipient) -> None:
                seen.append((rcpt.address, rcpt.args, len(msg.recipients)))

            def headers(self, msg: Message) -> None:
                seen.append(msg.headers["subject"])

            async def message(self, msg: Message) -> None:
                seen.append((msg.body, msg.size, msg.queue_id))

        pair = self.begin(Watcher)
        outcome = self.play(
            pair,
            sender_args=["SIZE=9"],
            recipient_args={B: ["NOTIFY=NEVER"]},
            macros={"i": "4Xq1"},
        )
        self.assertEqual(outcome.edits, ())
        self.assertEqual(
            seen,
            [
                ("client.example", "192.0.2.25", None),
                "helo.example",
                ("a@example.net", ("SIZE=9",), "helo.example"),
                ("b@example.net", ("NOTIFY=NEVER",), 1),
                "hi",
                (b"body \xff\r\n", 8, "4Xq1"),
            ],
        )

    def test_class_asks_for_what_its_hooks_need_and_no_more(self) -> None:
        """
        A class asks for what its hooks need and no more; a subclass may take the body away.
        """

        def hook(self: Any, *about: Any) -> None:
            pass

        no = c.SMFIP_NOBODY
        steps = {}
        for name in ("message", "headers", "recipient", "sender", "greeted", "connected", "no"):
            steps[name] = no
            no |= {
                "message": 0,
                "headers": c.SMFIP_NOHDRS | c.SMFIP_NOEOH,
                "recipient": c.SMFIP_NORCPT,
                "sender": c.SMFIP_NOMAIL,
                "greeted": c.SMFIP_NOHELO,
                "connected": c.SMFIP_NOCONNECT,
                "no": 0,
            }[name]
        steps["message"] = 0
        for name, expected in steps.items():
            made = type("Made", (MessageMilter,), {name: hook})
            pair = Pair(made)
            agreement = self.answer(pair, pair.client.negotiate(steps=PLAIN))
            self.assertEqual(agreement.steps & c.ALL_NO_STEPS, NOTHING | expected, name)
        made = type("Whole", (MessageMilter,), {"message": hook})
        pair = Pair(type("Header", (made,), {"wants_body": False}))
        agreement = self.answer(pair, pair.client.negotiate(steps=PLAIN))
        self.assertEqual(agreement.steps & c.ALL_NO_STEPS, NOTHING | c.SMFIP_NOBODY)

    def test_milter_that_looks_at_clients_alone_lets_mail_pass(self) -> None:
        """
        A milter that looks at clients alone lets mail pass.
        """

        class Door(MessageMilter):
            def connected(self, client: Client) -> None:
                pass

        self.assertTrue(self.play(self.begin(Door)).accepted)

    def test_client_without_an_ip_address_has_none(self) -> None:
        """
        A client without an IP address has none; one that was never shown is unknown.
        """
        seen: list[Client] = []

        class Watcher(MessageMilter):
            def sender(self, msg: Message) -> None:
                seen.append(msg.client)

        pair = Pair(Watcher)
        self.answer(pair, pair.client.negotiate(steps=PLAIN))
        self.answer(pair, pair.client.connect("local", UNIXAddress("/run/x")))
        self.play(pair)
        self.assertEqual((seen[0].host, seen[0].ip), ("local", None))
        self.assertIsNone(Client(lambda *reply: None, "unknown", None).ip)

    def test_hook_may_take_its_time_answer_waits(self) -> None:
        """
        A hook may take its time: the answer waits, and what it does afterwards counts.
        """
        waits: list[Deferred[None]] = [Deferred() for _ in range(4)]
        left = waits.copy()

        async def wait(self: Any, msg: Any, *more: Any) -> None:
            await left.pop(0)
            if not left:
                msg.headers.add("X-Late", "yes")

        def plain(self: Any, msg: Any) -> Deferred[None]:
            return left.pop(0)

        made = type(
            "Slow",
            (MessageMilter,),
            {"sender": wait, "recipient": wait, "headers": plain, "message": wait},
        )
        pair = self.begin(made)
        sending = pair.client.send_message(LETTER, A, [B])
        for wait_for in waits:
            pair.flush()
            self.assertNoResult(sending)
            wait_for.callback(None)
        self.assertEqual(self.answer(pair, sending).edits, (AddHeader("X-Late", "yes"),))

    def test_nothing_of_one_message_is_left_for_next_on_same_connection(self) -> None:
        """
        Nothing of one message is left for the next on the same connection.
        """

        def edit(self: Any, msg: Message) -> None:
            msg.headers.add("X-Size", f"{msg.size} for {len(msg.recipients)}")

        class Editor(MessageMilter):
            message = edit

        pair = self.begin(Editor)
        for _ in range(2):
            self.assertEqual(self.play(pair).edits, (AddHeader("X-Size", "8 for 1"),))

    def test_macros_are_found_with_and_without_braces(self) -> None:
        """
        Macros are found with and without braces; one that is not there is no key.
        """
        seen: list[Any] = []

        def look(self: Any, msg: Message) -> None:
            macros = msg.macros
            seen.extend([macros["{auth_authen}"], macros["auth_authen"], macros.get("j")])
            seen.extend(["{nope}" in macros, "auth_authen" in macros, macros.get("nope", "-")])
            try:
                macros["nope"]
            except KeyError as error:
                seen.append(error.args[0])

        self.send(look, macros={"{auth_authen}": "user"})
        self.assertEqual(seen, ["user", "user", "mx.example", False, True, "-", "nope"])


class VerdictTests(MessageTestCase):
    """
    What becomes of the message.
    """

    def test_at_the_end(self) -> None:
        """
        Each verdict reaches the MTA, with its reply.
        """
        cases: list[tuple[Any, int, str | None]] = [
            (lambda msg: msg.reject(), c.SMFIS_REJECT, None),
            (lambda msg: msg.reject(text="no"), c.SMFIS_REJECT, "550 5.7.1 no"),
            (lambda msg: msg.reject(554), c.SMFIS_REJECT, "554 5.7.1"),
            (lambda msg: msg.reject(550, "5.1.1", "50% a\nb"), c.SMFIS_REJECT, None),
            (lambda msg: msg.tempfail(), c.SMFIS_TEMPFAIL, None),
            (lambda msg: msg.tempfail(text="later"), c.SMFIS_TEMPFAIL, "451 4.7.1 later"),
            (lambda msg: msg.discard(), c.SMFIS_DISCARD, None),
            (lambda msg: msg.accept(), c.SMFIS_ACCEPT, None),
            (lambda msg: None, c.SMFIS_CONTINUE, None),
        ]
        for say, code, text in cases:
            for returned in (False, True):

                def hook(self: Any, msg: Message, say: Any = say, back: Any = returned) -> Any:
                    return say(msg) if back else say(msg) and None

                outcome = self.send(hook)
                self.assertEqual((outcome.verdict, outcome.stage), (code, "eom"))
                if text:
                    self.assertEqual(outcome.text, text)

    def test_each_line_of_text_is_one_of_reply_per_cent_sign_is_doubled_for_mta(self) -> None:
        """
        Each line of the text is one of the reply; a per cent sign is doubled for the MTA.
        """
        outcome = self.send(lambda self, msg: msg.reject(550, "5.1.1", "50% a\nb"))
        self.assertEqual(outcome.text, "550-5.1.1 50%% a\r\n550 5.1.1 b")

    def test_code_that_hook_returns_counts_whatever_it_has_said_before(self) -> None:
        """
        A code that a hook returns counts, whatever it has said before.
        """

        def hook(self: Any, msg: Message) -> int:
            msg.reject(text="no")
            return c.SMFIS_ACCEPT

        self.assertEqual(self.send(hook).verdict, c.SMFIS_ACCEPT)

    def test_of_several_verdicts_last_one_counts_and_no_reply_is_left_of_others(self) -> None:
        """
        Of several verdicts the last one counts, and no reply is left of the others.
        """

        def hook(self: Any, msg: Message) -> None:
            msg.reject(text="no")
            msg.tempfail(text="later")

        self.assertEqual(self.send(hook).text, "451 4.7.1 later")

    def test_of_the_wrong_class(self) -> None:
        """
        Codes that do not go with the verdict, and text that is no reply, are refused at once.
        """
        for say in (
            lambda msg: msg.reject(450),
            lambda msg: msg.reject(550, "4.7.1"),
            lambda msg: msg.tempfail(550),
            lambda msg: msg.reject(text="a\rb"),
            lambda msg: msg.reject(text="x" * 1000),
        ):
            outcome = self.send(lambda self, msg, say=say: say(msg))
            self.assertEqual(outcome.verdict, c.SMFIS_TEMPFAIL)
            self.logged(ValueNotSendable)

    def test_recipient_is_refused_by_itself_and_is_then_no_recipient_of_message(self) -> None:
        """
        A recipient is refused by itself, and is then no recipient of the message.
        """
        seen: list[list[str]] = []

        class Picky(MessageMilter):
            async def recipient(self, msg: Message, rcpt: Recipient) -> Any:
                if rcpt.address == "b@example.net":
                    return rcpt.reject(550, "5.1.1", "no such user")
                if rcpt.address == "later@example.net":
                    rcpt.tempfail()
                return None

            def message(self, msg: Message) -> None:
                seen.append([rcpt.address for rcpt in msg.recipients])

        outcome = self.play(self.begin(Picky), recipients=(B, C, "<later@example.net>"))
        self.assertTrue(outcome.accepted)
        answers = [rcpt.response for rcpt in outcome.recipients]
        self.assertEqual(
            [answer and answer.text for answer in answers], ["550 5.1.1 no such user", None, None]
        )
        self.assertEqual(answers[2] and answers[2].code, c.SMFIS_TEMPFAIL)
        self.assertEqual(seen, [["c@example.org"]])

    def test_removed_and_refused(self) -> None:
        """
        A recipient that a hook removes and refuses is gone, and not removed once more.
        """

        class Both(MessageMilter):
            def recipient(self, msg: Message, rcpt: Recipient) -> None:
                if rcpt.address == "b@example.net":
                    msg.recipients.remove("b@example.net")
                    rcpt.reject()

            def message(self, msg: Message) -> None:
                msg.headers.add("X-To", repr(next(iter(msg.recipients))))

        outcome = self.play(
            self.begin(Both), recipients=(B, C), recipient_args={C: ["NOTIFY=NEVER"]}
        )
        self.assertEqual(
            outcome.edits, (AddHeader("X-To", "<Recipient <c@example.org> NOTIFY=NEVER>"),)
        )

    def test_recipient_for_which_hook_fails_is_refused_and_is_then_none_either(self) -> None:
        """
        A recipient for which the hook fails is refused, and is then none either.
        """
        seen: list[int] = []

        class Broken(MessageMilter):
            def recipient(self, msg: Message, rcpt: Recipient) -> None:
                if rcpt.address == "b@example.net":
                    raise KeyError

            def message(self, msg: Message) -> None:
                seen.append(len(msg.recipients))

        self.assertTrue(self.play(self.begin(Broken), recipients=(B, C)).accepted)
        self.assertEqual(seen, [1])
        self.flushLoggedErrors(KeyError)

    def test_message_at_recipient(self) -> None:
        """
        The message refused at a recipient is refused from there on, with the same reply.
        """

        class Early(MessageMilter):
            def recipient(self, msg: Message, rcpt: Recipient) -> None:
                if rcpt.address == "c@example.org":
                    msg.reject(text="not you")

        outcome = self.play(self.begin(Early), recipients=(B, C, "<d@example.net>"))
        self.assertEqual((outcome.stage, outcome.text), ("eom", "550 5.7.1 not you"))
        answers = [rcpt.response and rcpt.response.text for rcpt in outcome.recipients]
        self.assertEqual(answers, [None, "550 5.7.1 not you", "550 5.7.1 not you"])

        class WithHeader(Early):
            def headers(self, msg: Message) -> None:
                pass

        outcome = self.play(self.begin(WithHeader), recipients=(B, C))
        self.assertEqual((outcome.stage, outcome.text), ("header", "550 5.7.1 not you"))

    def test_client_sender_and_header_can_be_refused_before_there_is_body(self) -> None:
        """
        Client, sender and header can be refused before there is a body.
        """
        for hook, stage in (
            ("connected", "connect"),
            ("greeted", "helo"),
            ("sender", "mail"),
            ("headers", "eoh"),
        ):
            made = type(
                "Made", (MessageMilter,), {hook: lambda self, about: about.reject(text="no")}
            )
            outcome = self.play(self.begin(made))
            self.assertEqual((outcome.stage, outcome.text), (stage, "550 5.7.1 no"))

    def test_client_refused_for_its_name_may_come_with_another(self) -> None:
        """
        A client refused for its name may come with another.
        """

        class Names(MessageMilter):
            def greeted(self, client: Client) -> None:
                if client.helo == "localhost":
                    client.reject(text="not here")

        pair = self.begin(Names)
        answers = [
            self.answer(pair, pair.client.helo(name)).text
            for name in ("localhost", "mx.example", "localhost")
        ]
        self.assertEqual(answers, ["550 5.7.1 not here", None, "550 5.7.1 not here"])

    def test_gone_while_waiting(self) -> None:
        """
        When the MTA goes while a hook is at work that is cancelled, and the message is over.
        """
        kept: list[Message] = []
        cancelled: list[object] = []

        class Slow(MessageMilter):
            async def message(self, msg: Message) -> None:
                kept.append(msg)
                await Deferred(cancelled.append)

        pair = self.begin(Slow)
        sending = pair.client.send_message(LETTER, A, [B])
        pair.flush()
        self.assertEqual((len(kept), cancelled), (1, []))
        assert pair.client.transport is not None
        pair.client.transport.abortConnection()
        pair.flush()
        self.failureResultOf(sending)
        self.assertEqual(len(cancelled), 1)
        self.assertRaises(WrongStage, lambda: kept[0].body)

    def test_of_body_over_limit_no_more_is_read(self) -> None:
        """
        Of a body over the limit no more is read, and the message passes with earlier edits only.
        """
        called: list[int] = []

        class Small(MessageMilter):
            max_size = 100_000

            def headers(self, msg: Message) -> None:
                msg.headers.add("X-Seen", "yes")

            def message(self, msg: Message) -> None:
                called.append(msg.size)

        pair = self.begin(Small)
        for size, calls in ((99_998, [100_000]), (300_000, [])):
            called.clear()
            outcome = self.play(pair, b"A: b\n\n" + b"x" * size)
            self.assertEqual(outcome.edits, (AddHeader("X-Seen", "yes"),))
            self.assertEqual(called, calls)

        class Strict(Small):
            too_large = c.SMFIS_REJECT

        outcome = self.play(self.begin(Strict), b"A: b\n\n" + b"x" * 300_000)
        self.assertEqual((outcome.verdict, outcome.stage), (c.SMFIS_REJECT, "body"))

    def test_when_hook_fails_nothing_is_edited_and_message_is_over(self) -> None:
        """
        When the hook fails nothing is edited, and the message is over.
        """
        kept: list[Message] = []

        def hook(self: Any, msg: Message) -> None:
            kept.append(msg)
            msg.headers.add("X", "y")
            raise LookupError

        outcome = self.send(hook)
        self.assertEqual((outcome.verdict, outcome.edits), (c.SMFIS_TEMPFAIL, ()))
        self.flushLoggedErrors(LookupError)
        self.assertRaises(WrongStage, kept[0].headers.add, "X", "y")
        self.assertRaises(WrongStage, lambda: kept[0].body)

    def test_message_that_client_gives_up_is_over(self) -> None:
        """
        A message that the client gives up is over, and so is one whose connection ends.
        """
        kept: list[Message] = []

        class Watcher(MessageMilter):
            def sender(self, msg: Message) -> None:
                kept.append(msg)

        pair = self.begin(Watcher)
        pair.client.mail(A, macros={})
        pair.client.abort()
        pair.client.mail(A, macros={})
        pair.client.quit()
        pair.flush()
        self.assertEqual(len(kept), 2)
        for msg in kept:
            self.assertIn("over", str(self.assertRaises(WrongStage, msg.set_sender, "x@y.example")))


class EditTests(MessageTestCase):
    """
    Edits as the MTA gets them.
    """

    def test_fields_are_changed_deleted_and_put_in_by_as_many_edits_as_fields(self) -> None:
        """
        Fields are changed, deleted and put in by as many edits as fields.
        """

        def edit(self: Any, msg: Message) -> None:
            msg.headers["subject"] = f"[x] {msg.headers['Subject']}"
            msg.headers.fields("X-Old")[1].remove()
            msg.headers.insert(0, "X-Top", "1")
            msg.headers["X-New"] = "ü"

        self.assertEqual(
            self.send(edit).edits,
            (
                ChangeHeader(2, "X-Old", ""),
                ChangeHeader(1, "Subject", "[x] hi"),
                InsertHeader(0, "X-Top", "1"),
                AddHeader("X-New", "=?utf-8?q?=C3=BC?="),
            ),
        )

    def test_for_sendmail_places_are_counted_as_sendmail_counts(self) -> None:
        """
        For Sendmail places are counted as Sendmail counts.
        """

        class Editor(MessageMilter):
            def message(self, msg: Message) -> None:
                msg.headers.insert(1, "X", "1")

        for version, index in (("Postfix 3.9", 2), ("8.18.1", 9)):
            pair = Pair(Editor)
            self.answer(pair, pair.client.negotiate(steps=PLAIN))
            self.answer(pair, pair.client.connect("c", None, macros={"v": version}))
            self.assertEqual(self.play(pair).edits, (InsertHeader(index, "X", "1"),))

    def test_what_is_undone_or_set_to_what_it_is_is_not_sent(self) -> None:
        """
        What is undone, or set to what it is, is not sent.
        """

        def edit(self: Any, msg: Message) -> None:
            msg.headers["Subject"] = "other"
            msg.headers["Subject"] = "hi"
            msg.headers.add("X", "1").remove()
            msg.recipients.add("d@example.net")
            msg.recipients.remove("d@example.net")
            msg.recipients.remove("B@example.net".lower())
            msg.recipients.add("b@example.net")
            msg.recipients.add("b@example.net")
            msg.sender = "other@example.net"
            msg.sender = "a@example.net"
            msg.body = b"other"
            msg.body = msg.body.replace(b"other", b"body \xff")
            msg.replace(msg.email())

        self.assertEqual(self.send(edit).edits, ())

    def test_sender_and_recipients_with_their_esmtp_arguments(self) -> None:
        """
        Sender and recipients, with their ESMTP arguments.
        """

        def edit(self: Any, msg: Message) -> None:
            msg.set_sender("<n@example.org>", "SIZE=7")
            msg.sender = "m@example.org"
            msg.recipients.remove("b@EXAMPLE.net")
            msg.recipients.add("d@example.net")
            msg.recipients.add("e@example.net", "NOTIFY=NEVER  ORCPT=rfc822;x")
            assert "d@example.net" in msg.recipients and "b@example.net" not in msg.recipients

        self.assertEqual(
            self.send(edit, LETTER, (B, B, C)).edits,
            (
                ChangeSender("<m@example.org>", "SIZE=7"),
                DeleteRecipient(B),
                AddRecipient("<d@example.net>"),
                AddRecipient("<e@example.net>", "NOTIFY=NEVER ORCPT=rfc822;x"),
            ),
        )

    def test_one_that_was_named_twice_removed_and_added_again_stays(self) -> None:
        """
        One that was named twice, removed and added again stays.
        """

        def edit(self: Any, msg: Message) -> None:
            msg.recipients.remove("b@example.net")
            msg.recipients.add("b@example.net")

        self.assertEqual(self.send(edit, LETTER, (B, B)).edits, ())

    def test_sender_of_bounces_is_empty_text(self) -> None:
        """
        The sender of bounces is an empty text.
        """

        def edit(self: Any, msg: Message) -> None:
            msg.sender = ""

        self.assertEqual(self.send(edit).edits, (ChangeSender("<>"),))

    def test_body_is_replaced_its_lines_ending_in_cr_lf(self) -> None:
        """
        The body is replaced, its lines ending in CR LF, and edits go with ACCEPT too.
        """

        def edit(self: Any, msg: Message) -> Any:
            msg.body = b"one\ntwo"
            assert (msg.body, msg.size) == (b"one\r\ntwo\r\n", 10)
            msg.quarantine("held")
            return msg.accept()

        self.assertEqual(
            self.send(edit).edits, (Quarantine("held"), ReplaceBody(b"one\r\ntwo\r\n"))
        )

    def test_what_is_edited_on_email_packages_object_is_sent(self) -> None:
        """
        What is edited on the email package's object is sent, and only that.
        """

        def edit(self: Any, msg: Message) -> None:
            mail = msg.email()
            mail.replace_header("Subject", "new")
            del mail["X-Old"]
            mail["X-Last"] = "last"
            msg.replace(mail)

        self.assertEqual(
            self.send(edit).edits,
            (
                ChangeHeader(2, "X-Old", ""),
                ChangeHeader(1, "X-Old", ""),
                ChangeHeader(1, "Subject", "new"),
                AddHeader("X-Last", "last"),
            ),
        )

    def test_what_mta_did_not_offer_is_refused_where_author_wants_it(self) -> None:
        """
        What the MTA did not offer is refused where the author wants it, by its name.
        """
        errors: list[str] = []

        def edit(self: Any, msg: Message) -> None:
            for attempt in (
                lambda: msg.headers.add("X", "1"),
                lambda: msg.headers.fields("Subject")[0].remove(),
                lambda: msg.set_sender("x@example.net"),
                lambda: msg.recipients.add("x@example.net"),
                lambda: msg.recipients.add("x@example.net", "NOTIFY=NEVER"),
                lambda: msg.recipients.remove("b@example.net"),
                lambda: setattr(msg, "body", b"x"),
                lambda: msg.quarantine("x"),
            ):
                try:
                    attempt()
                except NotNegotiated as error:
                    errors.append(str(error))

        class Editor(MessageMilter):
            message = edit

        pair = Pair(Editor)
        self.answer(pair, pair.client.negotiate(actions=c.SMFIF_SETSYMLIST))
        self.assertEqual(self.play(pair).edits, ())
        self.assertEqual(
            [error.partition(" needs ")[2].partition(",")[0] for error in errors],
            [
                "SMFIF_ADDHDRS",
                "SMFIF_CHGHDRS",
                "SMFIF_CHGFROM",
                "SMFIF_ADDRCPT",
                "SMFIF_ADDRCPT_PAR",
                "SMFIF_DELRCPT",
                "SMFIF_CHGBODY",
                "SMFIF_QUARANTINE",
            ],
        )
        self.assertTrue(all("MTA does not offer" in error for error in errors))

    def test_class_that_says_what_it_edits_asks_for_no_more(self) -> None:
        """
        A class that says what it edits asks for no more, and is told when it does edit more.
        """

        class Tagger(MessageMilter):
            may_edit = ("headers",)

            def message(self, msg: Message) -> None:
                msg.headers.add("X", "1")
                msg.body = b"x"

        pair = Pair(Tagger)
        agreement = self.answer(pair, pair.client.negotiate(steps=PLAIN))
        self.assertEqual(agreement.actions, c.SMFIF_ADDHDRS | c.SMFIF_CHGHDRS)
        self.assertEqual(self.play(pair).verdict, c.SMFIS_TEMPFAIL)
        self.assertIn("may_edit = ('headers',) of Tagger leaves out", self.logged(NotNegotiated))

        class Flags(MessageMilter):
            xxfi_flags = 0

            def message(self, msg: Message) -> None:
                msg.quarantine("x")

        self.play(self.begin(Flags))
        self.assertIn("xxfi_flags of Flags leaves out", self.logged(NotNegotiated))

    def test_may_edit_words(self) -> None:
        """
        A word that ``may_edit`` does not know is refused when the class is made.
        """
        for words in (("header",), "body"):
            error = self.assertRaises(
                TypeError, type, "Made", (MessageMilter,), {"may_edit": words}
            )
            self.assertIn("expected a list of headers, body", str(error))

    def test_value_that_no_packet_takes_is_refused_where_it_is_set(self) -> None:
        """
        A value that no packet takes is refused where it is set.
        """
        self.send(lambda self, msg: msg.headers.add("X", "x" * 70_000, raw=True))
        self.assertIn("a packet takes 65535", self.logged(ValueNotSendable))

    def test_one_that_packet_just_takes_is_sent_on_milter_of_list_too(self) -> None:
        """
        One that a packet just takes is sent, on the milter of a list too.
        """

        class Leading(Milter):
            def xxfi_negotiate(self, actions: int, steps: int) -> Any:
                return c.SMFIS_CONTINUE, actions, c.SMFIP_HDR_LEADSPC

        class Editor(MessageMilter):
            def message(self, msg: Message) -> None:
                msg.headers.fields("X-Old")[1].raw = "x" * (65535 - 5 - 7)

        outcome = self.play(self.begin(Leading, Editor, steps=c.SMFI_CURR_PROT))
        self.assertEqual([type(edit) for edit in outcome.edits], [ChangeHeader])

    def test_ways_to_merge(self) -> None:
        """
        Several are merged as all milters are: in a chain the second sees what the first edited.
        """

        class One(MessageMilter):
            def message(self, msg: Message) -> None:
                msg.headers["Subject"] = "one"
                msg.body = b"one"

        class Two(MessageMilter):
            def message(self, msg: Message) -> None:
                msg.headers["Subject"] = f"{msg.headers['Subject']} two"
                msg.body = msg.body.strip() + b" two"

        outcome = self.play(self.begin(One, Two, merge="chain"))
        self.assertEqual(
            outcome.edits, (ChangeHeader(1, "Subject", "one two"), ReplaceBody(b"one two\r\n"))
        )

    def test_conditions_and_shadow(self) -> None:
        """
        For mail that a condition keeps away nothing is edited; in shadow edits are only counted.
        """

        class Editor(MessageMilter):
            def message(self, msg: Message) -> None:
                msg.headers["Subject"] = f"{msg.client.helo} {len(msg.recipients)} {msg.size}"

        def conditional(kept: str, shadow: bool) -> Any:
            return MilterFactory(Editor, when=recipient_matches(kept), shadow=shadow)

        edit = ChangeHeader(1, "Subject", "helo.example 1 8")
        for kept, shadow, edits in (
            ("c@example.org", False, (edit,)),
            ("d@example.org", False, ()),
            ("c@example.org", True, ()),
        ):
            factory = conditional(kept, shadow)
            pair = Pair(factory)
            self.answer(pair, pair.client.negotiate(steps=PLAIN))
            self.answer(pair, pair.client.connect("client.example", None))
            self.answer(pair, pair.client.helo("helo.example"))
            self.assertEqual(self.play(pair, recipients=(B, C)).edits, edits)
            if shadow:
                pair.clock.advance(0)
                self.assertEqual(factory.shadow.edited, 1)
