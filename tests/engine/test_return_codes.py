"""
Which return codes are legal, how far they reach, what is sent.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.helpers import outcome
from yatxmilter import constants as c
from yatxmilter._engine.return_codes import (
    CONTINUE_PACKET,
    SKIP_PACKET,
    check_code,
    ends_message,
    fallback,
    response,
)
from yatxmilter._wire import commands
from yatxmilter._wire.commands import CALLBACK_STEPS
from yatxmilter.constants import ReturnCode
from yatxmilter.errors import ReturnCodeError

FINAL = (c.SMFIS_REJECT, c.SMFIS_DISCARD, c.SMFIS_ACCEPT, c.SMFIS_TEMPFAIL)
SETUP = {"xxfi_connect", "xxfi_helo"}


class CheckCodeTests(SynchronousTestCase):
    """
    What a callback returns is read as one of its legal return codes.
    """

    def test_each_legal_code_is_accepted_as_member_or_as_libmilters_number(self) -> None:
        """
        Each legal code is accepted, as a member or as libmilter's number, and comes as a member.
        """
        for row in CALLBACK_STEPS:
            for code in row.codes:
                for value in (code, int(code)):
                    self.assertIs(check_code(row, value), code)

    def test_none_means_continue_in_every_callback(self) -> None:
        """
        None means CONTINUE in every callback.
        """
        for row in CALLBACK_STEPS:
            self.assertIs(check_code(row, None), c.SMFIS_CONTINUE)

    def test_codes_that_are_illegal_at_their_stage_are_refused(self) -> None:
        """
        DISCARD at connect and helo, SKIP but at body, ACCEPT and DISCARD at unknown are refused.
        """
        refused = {
            row.callback: {
                code.name.removeprefix("SMFIS_")
                for code in ReturnCode
                if outcome(check_code, row, code) is ReturnCodeError
            }
            for row in CALLBACK_STEPS
        }
        nowhere = {"NOREPLY", "ALL_OPTS"}
        expected = {name: nowhere | {"SKIP"} for name in refused}
        expected["xxfi_body"] = nowhere
        for name in SETUP:
            expected[name] = nowhere | {"SKIP", "DISCARD"}
        expected["xxfi_unknown"] = nowhere | {"SKIP", "DISCARD", "ACCEPT"}
        self.assertEqual(refused, expected)

    def test_what_is_no_return_code_is_refused(self) -> None:
        """
        What is no return code is refused: truth values, texts, other numbers, objects.
        """
        for row in CALLBACK_STEPS:
            for value in (
                True,
                False,
                "SMFIS_CONTINUE",
                b"c",
                0.0,
                5,
                6,
                9,
                11,
                -1,
                20,
                [],
                object,
            ):
                self.assertIs(outcome(check_code, row, value), ReturnCodeError, repr(value))

    def test_error_names_callback_what_it_returned_and_all_it_may_return(self) -> None:
        """
        The error names the callback, what it returned, and all it may return.
        """
        error = self.assertRaises(ReturnCodeError, check_code, commands.HELO_ROW, c.SMFIS_DISCARD)
        self.assertEqual(
            str(error),
            "xxfi_helo returned SMFIS_DISCARD; legal there: SMFIS_CONTINUE, SMFIS_REJECT,"
            " SMFIS_ACCEPT, SMFIS_TEMPFAIL, None",
        )


class FallbackTests(SynchronousTestCase):
    """
    A failed callback answers with C{on_error}, or with what is nearest to it.
    """

    def test_tempfail_stands_for_discard_where_that_is_illegal(self) -> None:
        """
        Where DISCARD is illegal TEMPFAIL stands for it, where ACCEPT is, CONTINUE.
        """
        for row in CALLBACK_STEPS:
            for code in (c.SMFIS_CONTINUE, *FINAL):
                expected = code
                if code is c.SMFIS_DISCARD and row.callback in SETUP | {"xxfi_unknown"}:
                    expected = c.SMFIS_TEMPFAIL
                if code is c.SMFIS_ACCEPT and row.callback == "xxfi_unknown":
                    expected = c.SMFIS_CONTINUE
                self.assertIs(fallback(row, code), expected, f"{code} at {row.callback}")

    def test_in_negotiation_on_error_is_taken_as_it_is(self) -> None:
        """
        In negotiation, which has answers of its own, it is C{on_error} as it is.
        """
        for code in (c.SMFIS_CONTINUE, *FINAL):
            self.assertIs(fallback(commands.OPTNEG_ROW, code), code)


class ReachTests(SynchronousTestCase):
    """
    How far an answer reaches.
    """

    def test_final_answer_ends_message_but_of_recipient_only_accept_does(self) -> None:
        """
        A final answer ends the message, but of a recipient only ACCEPT does, and none at unknown.
        """
        goes_on = {
            (row.callback, code)
            for row in CALLBACK_STEPS
            for code in FINAL
            if not ends_message(row, code)
        }
        expected = {("xxfi_unknown", code) for code in FINAL}
        for code in (c.SMFIS_REJECT, c.SMFIS_TEMPFAIL, c.SMFIS_DISCARD):
            expected.add(("xxfi_envrcpt", code))
        self.assertEqual(goes_on, expected)


class ResponseTests(SynchronousTestCase):
    """
    Answers have libmilter's letters.
    """

    def test_without_a_text_an_answer_is_its_letter_alone(self) -> None:
        """
        Without a text an answer is its letter alone.
        """
        packets = {code: response(code, None) for code in (c.SMFIS_CONTINUE, *FINAL)}
        self.assertEqual(packets, {
            c.SMFIS_CONTINUE: b"\0\0\0\1c", c.SMFIS_REJECT: b"\0\0\0\1r",
            c.SMFIS_DISCARD: b"\0\0\0\1d", c.SMFIS_ACCEPT: b"\0\0\0\1a",
            c.SMFIS_TEMPFAIL: b"\0\0\0\1t",
        })  # fmt: skip
        self.assertEqual((CONTINUE_PACKET, SKIP_PACKET), (b"\0\0\0\1c", b"\0\0\0\1s"))

    def test_with_a_text_it_is_replycode_the_text_and_a_nul(self) -> None:
        """
        With a text it is REPLYCODE, the text and a NUL.
        """
        self.assertEqual(
            response(c.SMFIS_REJECT, b"550-5.7.1 a\r\n550 5.7.1 b"),
            b"\x00\x00\x00\x1ay550-5.7.1 a\r\n550 5.7.1 b\x00",
        )
        self.assertEqual(response(c.SMFIS_TEMPFAIL, b"450 x"), b"\x00\x00\x00\x07y450 x\x00")
