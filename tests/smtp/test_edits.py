"""
Twisted's SMTP server with milters: the message that is delivered.
"""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.mail.interfaces import IMessageDeliveryFactory
from twisted.mail.smtp import SMTPBadRcpt, SMTPBadSender
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from tests.helpers import STEADY
from tests.smtp_session import (
    MESSAGE,
    OTHER,
    RECEIVED_LINES,
    RECIPIENT,
    Kept,
    Mailbox,
    Session,
    recorder,
)
from yatxmilter import Milter, MilterFactory
from yatxmilter._mail.delivery import Delivery
from yatxmilter._mail.pieces import done_at_once
from yatxmilter._wire.actions import AddHeader, ChangeHeader, InsertHeader, ReplaceBody
from yatxmilter.client import apply_edits
from yatxmilter.constants import SMFIP_HDR_LEADSPC, SMFIS_CONTINUE, SMFIS_REJECT, SMFIS_SKIP
from yatxmilter.smtp._content import Content


def editor(edit: Any) -> type[Milter]:
    """
    Make a milter that edits each message.
    """
    return recorder([], eom=edit)


class ContentTests(SynchronousTestCase):
    """
    Header and body.
    """

    def delivered(self, lines: list[bytes], *milters: type[Milter], **options: Any) -> list[bytes]:
        """
        Send a message; give the lines that were delivered, but for the server's own field.
        """
        session = Session(*milters, **options)
        stuffed = [b"." + line if line.startswith(b".") else line for line in lines]
        self.assertEqual(session.send(lines=stuffed), ["250 Delivery in progress"])
        (message,) = session.delivered
        return message

    def test_message_is_what_postfix_would_deliver(self) -> None:
        """
        The message is what Postfix would deliver, by the same rules as `apply_edits`.
        """

        def edit(milter: Milter) -> None:
            milter.smfi_addheader("X-Last", "folded\n\tvalue")
            milter.smfi_insheader(0, "X-First", "1")
            milter.smfi_chgheader("Subject", 1, "changed")
            milter.smfi_chgheader("From", 1, None)
            milter.smfi_replacebody(b"new\r\n.dot\r\n")
            milter.smfi_replacebody("and\nbare end")

        edits = [
            AddHeader("X-Last", "folded\n\tvalue"),
            InsertHeader(0, "X-First", "1"),
            ChangeHeader(1, "Subject", "changed"),
            ChangeHeader(1, "From", ""),
            ReplaceBody(b"new\r\n.dot\r\nand\nbare end"),
        ]
        expected = apply_edits(b"\r\n".join([*MESSAGE, b""]), edits)
        self.assertEqual(
            self.delivered(MESSAGE, editor(edit)), expected.removesuffix(b"\r\n").split(b"\r\n")
        )

    def test_servers_own_field_is_counted_as_postfixs(self) -> None:
        """
        The server's own field is counted, as Postfix's: what is inserted at 0 stands above it, what
        is inserted at 1 below. Milters are not shown it.
        """
        calls: list[tuple[Any, ...]] = []

        def edit(milter: Milter) -> None:
            milter.smfi_insheader(1, "X-Below", "b")
            milter.smfi_insheader(0, "X-Above", "a")

        session = Session(recorder(calls, eom=edit))
        session.send()
        (kept,) = session.mailbox.kept
        self.assertEqual(kept.lines, [b"X-Above: a", *RECEIVED_LINES, b"X-Below: b", *MESSAGE])
        self.assertNotIn("Received", [call[1] for call in calls if call[0] == "header"])

    def test_no_own_field(self) -> None:
        """
        A delivery without a field of its own gets none.
        """
        session = Session(recorder([]))
        session.mailbox.receivedHeader = lambda *_: None  # type: ignore[method-assign,assignment,return-value]
        session.send()
        self.assertEqual(session.mailbox.kept[0].lines, MESSAGE)

    def test_what_no_milter_edits_is_delivered_as_it_came(self) -> None:
        """
        What no milter edits is delivered as it came, each odd byte of it.
        """
        for lines in (
            MESSAGE,
            [],
            [b""],
            [b"", b"", b""],
            [b"Subject: no body"],
            [b"Subject: empty body", b""],
            [b"X: \xff\x00\x80", b"\tfolded \r ", b"", b"\x00\xff\r", b".", b"..", b" ", b""],
            [b"Subject: x", b"", b"a" * 16_000, *[b"line"] * 50_000],
        ):
            self.assertEqual(self.delivered(lines, recorder([])), lines, lines[:9])

    def test_header_ends_at_first_line_that_is_none_of_it(self) -> None:
        """
        The header ends at the first line that is none of it, which gets an empty line before it.
        """
        rows = {
            (b"text",): [b"", b"text"],
            (b" blank", b"X: y"): [b"", b" blank", b"X: y"],
            (b"X: y", b"text: more", b"no field"): [b"X: y", b"text: more", b"", b"no field"],
            (b"From me", b">From you", b"X: y", b"From z"): [
                *(b"X-Mailbox-Line: From me", b"X-Mailbox-Line: >From you", b"X: y"),
                *(b"", b"From z"),
            ],
        }
        for lines, expected in rows.items():
            self.assertEqual(self.delivered(list(lines), recorder([])), expected)

    def test_lone_line_feeds(self) -> None:
        """
        A lone LF ends a line, for milters and in what is delivered: nothing is smuggled on.
        """
        calls: list[tuple[Any, ...]] = []
        lines = [b"X: a\nY: b", b"", b"one\n.\nMAIL FROM:<x@y.example>"]
        message = self.delivered(lines, recorder(calls))
        self.assertEqual(message, [b"X: a", b"Y: b", b"", b"one", b".", b"MAIL FROM:<x@y.example>"])
        self.assertIn(("body", b"one\r\n.\r\nMAIL FROM:<x@y.example>\r\n"), calls)

    def test_milter_that_asks_for_blank_after_colon_gives_it_itself(self) -> None:
        """
        A milter that asks for the blank after the colon gives it itself.
        """
        seen: list[str] = []

        class Exact(Milter):
            def xxfi_negotiate(self, actions: int, steps: int) -> tuple[int, int, int]:
                return SMFIS_CONTINUE, actions, SMFIP_HDR_LEADSPC

            def xxfi_header(self, headerf: str, headerv: str) -> None:
                seen.append(headerv)

            def xxfi_eom(self) -> None:
                self.smfi_addheader("X-A", "none")
                self.smfi_addheader("X-B", "\ttab")

        message = self.delivered([b"A:x", b"B:  y", b"", b"z"], Exact)
        self.assertEqual(seen, ["x", "  y"])
        self.assertEqual(message, [b"A:x", b"B:  y", b"X-A:none", b"X-B:\ttab", b"", b"z"])

    def test_large_body_is_kept_in_files_and_goes_through_as_it_came(self) -> None:
        """
        A large body is kept in files, and goes through as it came; a new one of one line too.
        """
        lines = [b"", *[b"x" * 997 + b"%03d" % (n % 1000) for n in range(4000)]]
        chunks: list[bytes] = []

        class Reads(Milter):
            def xxfi_body(self, bodyp: bytes) -> None:
                chunks.append(bodyp)

        self.assertEqual(self.delivered(lines, Reads, spool_memory=1000), lines)
        self.assertEqual(b"".join(chunks), b"".join(line + b"\r\n" for line in lines[1:]))

        def replace(milter: Milter) -> None:
            milter.smfi_replacebody(b"y" * 3_000_000)

        message = self.delivered(lines, editor(replace), spool_memory=1000)
        self.assertEqual(message, [b"", b"y" * 3_000_000])

    def test_each_milter_sees_what_the_one_before_it_has_made(self) -> None:
        """
        Each milter sees what the one before it has made.
        """
        calls: list[tuple[Any, ...]] = []

        def edit(milter: Milter) -> None:
            milter.smfi_chgheader("Subject", 1, "changed")
            milter.smfi_replacebody("new")

        message = self.delivered(MESSAGE, editor(edit), recorder(calls))
        self.assertIn(("header", "Subject", "changed"), calls)
        self.assertIn(("body", b"new\r\n"), calls)
        self.assertEqual(message[-2:], [b"", b"new"])


_LINES = st.lists(
    st.sampled_from(
        [
            b"A: b",
            b"a:c\r",
            b"Long \t: d",
            b" folded",
            b"\t",
            b"",
            b"text",
            b":",
            b"B:\xff\x00",
            b".",
        ]
    ),
    max_size=8,
)
_NAMES = st.sampled_from(["A", "a", "B", "New"])
_VALUES = st.sampled_from(["v", "two\n\tlines", " blank", "\udcff"])
_EDITS = st.lists(
    st.one_of(
        st.builds(AddHeader, _NAMES, _VALUES),
        st.builds(InsertHeader, st.integers(0, 5), _NAMES, _VALUES),
        st.builds(ChangeHeader, st.integers(0, 3), _NAMES, st.one_of(_VALUES, st.just(""))),
        st.builds(ReplaceBody, st.sampled_from([b"", b"new", b"one\r\ntwo\n", b"\r"])),
    ),
    max_size=5,
)


class PropertyTests(SynchronousTestCase):
    """
    Any message and any edits.
    """

    @STEADY
    @given(_LINES, _EDITS, st.booleans())
    def test_lines_given_out_are_those_of_message_that_apply_edits_makes(
        self, lines: list[bytes], edits: list[Any], leading_space: bool
    ) -> None:
        """
        The lines given out are those of the message that `apply_edits` makes.
        """
        content = Content(10, 10_000)
        for line in lines:
            content.add_line(line)
        done_at_once(content.edit(Delivery(edits), leading_space=leading_space))
        given_out = b"".join(line + b"\r\n" for line in content.lines() if line is not None)
        content.close()
        # The first line says to `apply_edits` which line ends there are.
        message = b"".join(line + b"\r\n" for line in lines) or b"\r\n"
        applied = apply_edits(message, edits, leading_space=leading_space)
        # Behind a header that came without one there is an empty line only if a body follows.
        has_body = any(isinstance(edit, ReplaceBody) and edit.chunk for edit in edits)
        self.assertEqual(given_out, applied if lines or has_body else applied.removesuffix(b"\r\n"))


class RefusedContentTests(SynchronousTestCase):
    """
    Messages that the server itself refuses.
    """

    def test_line_or_header_that_is_too_long_is_refused_at_messages_end(self) -> None:
        """
        A line or a header that is too long is refused at the message's end; the milters' message
        is given up, and the next one is fine.
        """
        rows = {
            b"x" * 20_000: "500 5.5.2 Line too long",
            b"Y: " + b"y" * 16_000: "552 5.3.4 Message header too large",
        }
        for line, expected in rows.items():
            calls: list[tuple[Any, ...]] = []
            session = Session(recorder(calls))
            folded = [line, *[b" " + b"z" * 16_000] * 80]
            self.assertEqual(session.send(lines=folded), [expected])
            self.assertEqual(calls[-1], ("abort",))
            self.assertEqual(session.mailbox.kept, [])
            self.assertEqual(session.send(), ["250 Delivery in progress"])

    def test_message_too_long(self) -> None:
        """
        A message that has more bytes than it may have is refused, and no more of it is kept.
        """
        size = sum(len(line) + 2 for line in MESSAGE)
        for most, expected in (
            (size, "250 Delivery in progress"),
            (size - 1, "552 5.3.4 Message too large"),
        ):
            session = Session(recorder([]), max_size=most)
            self.assertEqual(session.send(lines=MESSAGE), [expected])
        self.assertEqual(session.send(lines=[*MESSAGE, *[b"x" * 10_000] * 9]), [expected])

    def test_field_too_long(self) -> None:
        """
        A header field that does not fit into a packet cannot be shown to milters.
        """
        calls: list[tuple[Any, ...]] = []
        session = Session(recorder(calls))
        field = [b"X: y", *[b" " + b"z" * 16_000] * 5]
        self.assertEqual(session.send(lines=field), ["552 5.3.4 Message header too large"])
        self.assertEqual(calls[-1], ("abort",))
        self.assertEqual(session.send(), ["250 Delivery in progress"])


class EnvelopeTests(SynchronousTestCase):
    """
    Sender and recipients.
    """

    def envelope(self, edit: Any, *recipients: str, **options: Any) -> list[tuple[str, str]]:
        """
        Send a message; give the sender and recipient of each one delivered.
        """
        self.session = session = Session(editor(edit), **options)
        self.reply = session.send(*recipients)
        return [(str(kept.user.orig), str(kept.user)) for kept in session.mailbox.kept]

    def test_recipients_are_added_and_deleted_in_the_order_of_the_edits(self) -> None:
        """
        Recipients are added and deleted, in the order of the edits; who is there is not added.
        """

        def edit(milter: Milter) -> None:
            milter.smfi_addrcpt("new@example.com")
            milter.smfi_addrcpt_par("<late@example.com>", "NOTIFY=NEVER")
            milter.smfi_addrcpt("<one@EXAMPLE.com>")
            milter.smfi_delrcpt("<two@Example.COM>")
            milter.smfi_delrcpt("nobody@example.com")
            milter.smfi_delrcpt("new@example.com")

        sender = "sender@client.example"
        self.assertEqual(
            self.envelope(edit, RECIPIENT, OTHER),
            [(sender, "one@example.com"), (sender, "late@example.com")],
        )
        self.assertEqual(self.session.mailbox.senders, [b"sender@client.example"])

    def test_delivery_is_asked_about_new_sender_and_about_recipients_with_it(self) -> None:
        """
        The delivery is asked about a new sender, and about the recipients with it.
        """

        def edit(milter: Milter) -> None:
            milter.smfi_chgfrom("<bounces@example.com>", "RET=HDRS")
            milter.smfi_addrcpt("new@example.com")

        sender = "bounces@example.com"
        self.assertEqual(
            self.envelope(edit), [(sender, "one@example.com"), (sender, "new@example.com")]
        )
        self.assertEqual(
            self.session.mailbox.senders, [b"sender@client.example", b"bounces@example.com"]
        )
        self.assertEqual(
            self.envelope(lambda milter: milter.smfi_chgfrom("<>")), [("", "one@example.com")]
        )

    def test_message_whose_recipients_are_all_deleted_is_taken_and_delivered_to_nobody(
        self,
    ) -> None:
        """
        A message whose recipients are all deleted is taken, and delivered to nobody.
        """
        self.assertEqual(self.envelope(lambda milter: milter.smfi_delrcpt(RECIPIENT)), [])
        self.assertEqual(self.reply, ["250 Delivery in progress"])

    def test_what_delivery_refuses_of_a_new_envelope_is_refused_for_all(self) -> None:
        """
        What the delivery refuses of the new envelope is refused for all, nobody gets half of it.
        """

        def edit(milter: Milter) -> None:
            milter.smfi_addrcpt("<bad@example.com>")

        session = Session(editor(edit))
        session.mailbox.faults["bad@example.com"] = SMTPBadRcpt("<bad@example.com>", 452, "full")
        self.assertEqual(session.send(RECIPIENT, OTHER), ["452 full"])
        self.assertEqual([kept.end for kept in session.mailbox.kept], ["lost", "lost"])
        session = Session(editor(lambda milter: milter.smfi_chgfrom("<bad@example.com>")))
        session.mailbox.faults["bad@example.com"] = SMTPBadSender("<bad@example.com>", 550, "bad")
        self.assertEqual(session.send(), ["550 bad"])
        self.assertEqual(session.mailbox.kept, [])

    def test_what_twisted_cannot_read_as_address_keeps_message_from_being_taken(self) -> None:
        """
        What Twisted cannot read as an address keeps the message from being taken.
        """
        session = Session(editor(lambda milter: milter.smfi_addrcpt("<a@b@c>")))
        self.assertEqual(
            session.send(), ["451 Requested action aborted: local error in processing"]
        )
        self.assertEqual(len(self.flushLoggedErrors()), 1)
        self.assertEqual(session.mailbox.kept, [])

    def test_with_factory_each_message_has_delivery_of_its_own(self) -> None:
        """
        With a factory each message has a delivery of its own, which a new sender's is too.
        """
        made: list[Mailbox] = []

        @implementer(IMessageDeliveryFactory)
        class Makes:
            def getMessageDelivery(self) -> Mailbox:
                made.append(Mailbox())
                return made[-1]

        session = Session(editor(lambda m: m.smfi_chgfrom("<new@example.com>")), delivery=Makes())
        self.assertEqual(session.send(), ["250 Delivery in progress"])
        self.assertEqual(
            [(one.senders, len(one.kept)) for one in made],
            [([b"sender@client.example"], 0), ([b"new@example.com"], 1)],
        )


class QuarantineTests(SynchronousTestCase):
    """
    Messages to be held.
    """

    def quarantining(self, milter: Milter) -> None:
        """
        Have a message held.
        """
        milter.smfi_addheader("X-Held", "yes")
        milter.smfi_addrcpt("new@example.com")
        milter.smfi_quarantine("first")
        milter.smfi_quarantine("odd")

    def test_callbacks_message_object_gets_message_as_edited_instead_of_delivery(self) -> None:
        """
        The callback's message object gets the message as edited, instead of the delivery.
        """
        held: list[tuple[str, str, list[str]]] = []
        place = Mailbox()

        def quarantine(reason: str, origin: Any, users: Any) -> Kept:
            held.append((reason, str(origin), list(map(str, users))))
            message = Kept(place, users[0])
            place.kept.append(message)
            return message

        session = Session(editor(self.quarantining), quarantine=quarantine)
        answer: Deferred[None] = Deferred()
        place.answer = lambda: answer
        self.assertEqual(session.send(), [])
        answer.callback(None)
        self.assertEqual(session.replies(), ["250 Delivery in progress"])
        self.assertEqual(
            held, [("odd", "sender@client.example", ["one@example.com", "new@example.com"])]
        )
        self.assertEqual(
            place.kept[0].lines, [*RECEIVED_LINES, *MESSAGE[:2], b"X-Held: yes", *MESSAGE[2:]]
        )
        self.assertEqual(session.mailbox.kept, [])

    def test_without_callback_message_is_refused_for_now_not_delivered(self) -> None:
        """
        Without a callback the message is refused for now, not delivered.
        """
        session = Session(editor(self.quarantining))
        self.assertEqual(session.send(), ["451 4.7.1 Service unavailable - try again later"])
        self.assertEqual(session.mailbox.kept, [])


class SeveralTests(SynchronousTestCase):
    """
    Merges.
    """

    def test_other_merges_do_as_well(self) -> None:
        """
        Other merges do as well.
        """
        calls: list[tuple[Any, ...]] = []
        factories = [MilterFactory(recorder([], eom=0)), MilterFactory(recorder(calls))]
        session = Session(factories=factories, merge="strictest")
        self.assertEqual(session.send(), ["250 Delivery in progress"])
        self.assertEqual(calls[-1], ("eom",))

    def test_answers_on_the_way(self) -> None:
        """
        Where the milters answer while they are shown the content, they are shown no more of it.
        """
        lines = [b"A: b", b"", *[b"x" * 1000] * 200]
        rows: tuple[tuple[dict[str, int], list[str]], ...] = (
            ({"header": SMFIS_REJECT}, ["header", "close"]),
            ({"body": SMFIS_SKIP}, ["header", "eoh", "body", "eom", "close"]),
            ({}, ["header", "eoh", *["body"] * 4, "eom", "close"]),
        )
        for answers, expected in rows:
            calls: list[tuple[Any, ...]] = []
            session = Session(recorder(calls, **answers), merge="first")
            reply = (
                "550 5.7.1 Command rejected" if "header" in answers else "250 Delivery in progress"
            )
            self.assertEqual(session.send(lines=lines), [reply])
            session.vanish()
            self.assertEqual([call[0] for call in calls[4:]][-len(expected) :], expected)

    def test_addresses_are_shown_in_brackets_completed_as_twisted_does(self) -> None:
        """
        Addresses are shown in brackets, completed as Twisted does; the empty sender is empty.
        """
        calls: list[tuple[Any, ...]] = []
        session = Session(recorder(calls))
        session.say("MAIL FROM:<>", "RSET", 'MAIL FROM:"a b"@c.example', "RCPT TO:<local>")
        shown = [call[1] for call in calls if call[0] in ("envfrom", "envrcpt")]
        self.assertEqual(shown, [["<>"], ['<"a b"@c.example>'], ["<local@mx.example.com>"]])
