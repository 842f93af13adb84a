"""
What a `MessageMilter` keeps of a message is bounded, and edits cost no more than there are.
"""

from __future__ import annotations

from threading import get_ident
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.conversation_helpers import EOM, HEADER, MAIL, RCPT, packet, started
from tests.growth import assert_linear
from yatxmilter import MilterFactory
from yatxmilter import constants as c
from yatxmilter._mail import bounds
from yatxmilter.client import AddHeader
from yatxmilter.errors import LimitExceeded
from yatxmilter.message import Message, MessageMilter, Recipient
from yatxmilter.message._envelope import Recipients
from yatxmilter.message._milter import _MANY
from yatxmilter.testing import InMemoryMTA

from .test_content import allow, headers, message
from .test_message import A, B, C, MessageTestCase


class BoundTests(MessageTestCase):
    """
    Options of the class.
    """

    def played(self, on_error: int, letter: bytes = b"", to: Any = (B,), **options: Any) -> Any:
        """
        Send a message to a milter with bounds; give what is answered, and which hooks were called.
        """
        called: list[str] = []

        class Bounded(MessageMilter):
            def sender(self, msg: Message) -> None:
                msg.set_sender("x@example.net")

            def recipient(self, msg: Message, rcpt: Recipient) -> None:
                called.append(rcpt.address)

            def headers(self, msg: Message) -> None:
                called.append("headers")

            def message(self, msg: Message) -> None:
                called.append("message")
                msg.headers.add("X-Seen", "1")

        made = type("Bounded", (Bounded,), options)
        pair = self.begin(MilterFactory(made, on_error=on_error))
        outcome = self.play(pair, letter or b"A: " + b"x" * 50 + b"\nB: y\nC: z\n\nbody\n", to)
        errors = [str(failure.value) for failure in self.flushLoggedErrors(LimitExceeded)]
        return outcome, called, errors

    def test_each_is_in_the_table(self) -> None:
        """
        The table of bounds that the manual has names each bound of the class, and its default.
        """
        rows = {bound.option: bound.default for bound in reversed(bounds.BOUNDS)}
        options = {
            name
            for name, value in vars(MessageMilter).items()
            if name.startswith(("max_", "spool_")) and not callable(value)
        }
        # What is left out sets no bound of what is kept: it says what is looked at.
        self.assertEqual(options - rows.keys(), {"max_size", "max_email"})
        for option in options & rows.keys():
            self.assertEqual(getattr(MessageMilter, option), rows[option], option)

    def test_defaults_are_those_of_table_of_bounds(self) -> None:
        """
        The defaults are those of the table of bounds.
        """
        for option, default in (
            ("max_header_bytes", bounds.MAX_HEADER_BYTES),
            ("max_recipients", bounds.MAX_RECIPIENTS),
            ("max_body", bounds.MAX_BODY),
            ("spool_memory", bounds.SPOOL_MEMORY),
        ):
            self.assertEqual(getattr(MessageMilter, option), default)

    def test_more_header_fields_than_are_kept_are_milters_failure(self) -> None:
        """
        More header fields than are kept are the milter's failure, told once by the option's name;
        where that lets mail pass, its hooks are not asked any more.
        """
        outcome, called, errors = self.played(c.SMFIS_TEMPFAIL, max_header_bytes=40)
        self.assertEqual((outcome.verdict, outcome.stage), (c.SMFIS_TEMPFAIL, "header"))
        self.assertIn("more than max_header_bytes = 40 of Bounded", errors[0])
        outcome, called, errors = self.played(c.SMFIS_CONTINUE, max_header_bytes=40)
        self.assertEqual((outcome.accepted, called, len(errors)), (True, ["b@example.net"], 1))
        outcome, called, errors = self.played(c.SMFIS_CONTINUE, max_header_bytes=None)
        self.assertEqual((called[1:], errors), (["headers", "message"], []))
        octets = b"A: " + b"\xe9" * 50 + b"\n\nx\n"
        self.assertEqual(len(self.played(c.SMFIS_CONTINUE, octets, max_header_bytes=51)[2]), 0)
        self.assertEqual(len(self.played(c.SMFIS_CONTINUE, octets, max_header_bytes=50)[2]), 1)

    def test_of_a_body_that_is_let_pass_no_more_is_kept(self) -> None:
        """
        So it is with a body; of one that is let pass no more is kept.
        """
        letter = b"A: b\n\n" + b"x" * 200_000
        outcome, called, errors = self.played(c.SMFIS_REJECT, letter, max_body=1000)
        self.assertEqual((outcome.verdict, outcome.stage), (c.SMFIS_REJECT, "body"))
        self.assertIn("max_body = 1000", errors[0])
        outcome, called, errors = self.played(c.SMFIS_CONTINUE, letter, max_body=1000)
        self.assertEqual((called, len(errors)), (["b@example.net", "headers"], 1))
        outcome, called, errors = self.played(
            c.SMFIS_CONTINUE, letter, max_body=1_000_000, body_memory=5
        )
        self.assertEqual(
            (called[1:], outcome.edits[-1]), (["headers", "message"], AddHeader("X-Seen", "1"))
        )

    def test_recipient_too_many_is_answered_by_on_error_and_is_not_kept(self) -> None:
        """
        A recipient too many is answered by ``on_error``, and is not kept; it is told once.
        """
        outcome, called, errors = self.played(
            c.SMFIS_TEMPFAIL, to=(B, C, A, A, A), max_recipients=2
        )
        self.assertEqual(called, ["b@example.net", "c@example.org", "headers", "message"])
        self.assertEqual(len(errors), 1)
        self.assertIn("max_recipients = 2", errors[0])

    def test_bound_that_is_none_is_refused_when_class_is_made_by_its_name(self) -> None:
        """
        A bound that is none is refused when the class is made, by its name.
        """
        for value in (-1, "1", True, 1.5):
            error = self.assertRaises(
                TypeError, type, "Made", (MessageMilter,), {"max_body": value}
            )
            self.assertIn("Made.max_body", str(error))


class ThreadTests(SynchronousTestCase):
    """
    What takes long holds no other connection up.
    """

    def test_edits_of_a_header_of_many_fields_are_worked_out_in_a_thread(self) -> None:
        """
        The edits of a header of many fields are worked out in a thread, those of others at once;
        what comes of it is the same, a failure included.
        """
        where: list[bool] = []

        class Adds(MessageMilter):
            def message(self, msg: Message) -> None:
                edits = msg.edits

                def watched(flavour: str, actions: int) -> Any:
                    where.append(get_ident() == own)
                    return edits(flavour, actions)

                msg.edits = watched  # type: ignore[method-assign]
                msg.headers.add("X-Seen", "1")

        own = get_ident()
        for count, at_once in ((1, True), (_MANY, True), (_MANY + 1, False)):
            mta = InMemoryMTA(Adds)
            sent = mta.send(b"X: y\r\n" * count + b"\r\nbody\r\n")
            self.assertEqual((sent.edits, where), ((AddHeader("X-Seen", " 1"),), [at_once]))
            where.clear()
        mta = InMemoryMTA(MilterFactory(Adds), max_edit_bytes=5)
        sent = mta.send(b"X: y\r\n" * (_MANY + 1) + b"\r\nbody\r\n")
        self.assertEqual((sent.verdict, where), (c.SMFIS_TEMPFAIL, [False]))
        self.assertEqual(len(self.flushLoggedErrors(LimitExceeded)), 1)

    def test_where_a_test_turns_the_clock_nobody_else_waits(self) -> None:
        """
        Where the clock is that of a test, nothing is done in a thread.
        """
        mta = started(type("Adds", (MessageMilter,), {"message": lambda self, msg: adds(msg)}))
        answer = mta.send(MAIL, RCPT, packet("T"), HEADER * (_MANY + 1), packet("N"), EOM)
        self.assertTrue(answer.endswith(b"\0\0\0\1c"))
        self.assertIn(b"X-Seen", answer)


def adds(msg: Message) -> None:
    """
    Add a field.
    """
    msg.headers.add("X-Seen", "1")


class LinearTests(SynchronousTestCase):
    """
    Edits of many fields and recipients.
    """

    def test_fields_are_deleted_one_by_one_changed_by_number(self) -> None:
        """
        Fields are deleted one by one, changed by number, and put in anywhere; from what is left the
        edits are worked out: all in time linear in their number.
        """

        def work(size: int) -> Any:
            def edit() -> None:
                fields = [("X", str(number)) for number in range(size)]
                msg = message([*fields, ("A", "2")])
                for field in list(msg.headers):
                    if int(field.raw) % 2:
                        field.remove()
                        msg.headers.insert(0, "Y", "1")
                        msg.headers.add("Z", "1")
                        assert "X" in msg.headers and msg.headers["A"] == "2"
                for flavour in ("postfix", "sendmail"):
                    msg.edits(flavour)

            return edit

        assert_linear(work, 200)

    def test_first_field_of_name_is_looked_up_after_each_deletion_at_either_end(self) -> None:
        """
        The first field of a name is looked up after each deletion, at either end.
        """

        def work(size: int) -> Any:
            def edit() -> None:
                header = headers(*[("X", "1")] * size, ("A", "1"))
                fields = header.fields("X")
                for first, last in zip(fields, reversed(fields), strict=True):
                    first.remove()
                    last.remove()
                    assert ("X" in header) == (len(header) > 1)
                    header.get("X")
                assert len(header) == 1

            return edit

        assert_linear(work, 200)

    def test_in_any_order(self) -> None:
        """
        Fields of one name are given in order, whichever were deleted or put in between.
        """
        header = headers(("X", "0"), ("X", "1"), ("Y", "2"), ("X", "3"))
        self.assertEqual(header["Y"], "2")
        header.fields("X")[1].remove()
        header.insert(0, "X", "top")
        header.insert(2, "Z", "4")
        self.assertEqual(header.get_all("X"), ["top", "0", "3"])
        new = header.insert(0, "X", "gone")
        self.assertEqual(header.get("X"), "gone")
        new.remove()
        self.assertEqual(header.get("X"), "top")
        header.insert(1, "X", "second")
        self.assertEqual(header.get_all("X"), ["top", "second", "0", "3"])
        self.assertEqual([field.raw for field in header], ["top", "second", "0", "4", "2", "3"])
        self.assertEqual(header["Z"], "4")
        foreign = headers(("X", "5")).fields("X")[0]
        header.remove(foreign)
        self.assertEqual(len(header), 6)

    def test_recipients_are_refused_added_and_removed(self) -> None:
        """
        Recipients are refused, added and removed.
        """

        def work(size: int) -> Any:
            def edit() -> None:
                recipients = Recipients(lambda *reply: None, allow)
                for number in range(size):
                    one = recipients.receive([f"<{number}@example.net>"])
                    if number % 3 == 0:
                        recipients.refuse(one)
                for number in range(size):
                    recipients.add(f"new{number}@example.net")
                    if number % 3:
                        recipients.remove(f"{number}@EXAMPLE.net")
                assert len(recipients.edits()) > size

            return edit

        assert_linear(work, 200)
