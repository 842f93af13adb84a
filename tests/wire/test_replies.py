"""
Tests of `yatxmilter._wire.replies`: what is a reply, and the text that libmilter makes of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.helpers import outcome
from yatxmilter._wire.replies import format_multiline_reply, format_reply
from yatxmilter.errors import ValueNotSendable

#: Reply codes and enhanced status codes that libmilter refuses.
BAD_CODES = ("", "55", "5500", "250", "350", "650", "5a0", "55a", " 550", "550 ", "550\n", "٥50",
             "5٥0", None, 550, b"\xff50")  # fmt: skip
BAD_ENHANCED = ("", "5", "5.7", "5.7.", "5..1", ".7.1", "3.7.1", "6.0.0", "5.7.1234", "5.1234.1",
                "5.7.1 ", " 5.7.1", "5.7.1\n", "5.7.1.1", "5.٧.1", "55.7.1", "5-7-1",
                571)  # fmt: skip
BAD_TEXTS = ("a\rb", "a\nb", "a\r\nb", "a\0b", "\n", "x" * 981, "\xfc" * 491, b"\xff" * 981, 5,
             "\ud800")  # fmt: skip


def _results(function: Any, rows: Iterable[tuple[Any, ...]]) -> dict[tuple[Any, ...], Any]:
    return {row: outcome(function, *row) for row in rows}


class OneLineTests(SynchronousTestCase):
    """
    C{smfi_setreply} stores one line.
    """

    TEXTS = {
        ("550", "5.7.1", "text"): b"550 5.7.1 text",
        ("550", None, "text"): b"550 text",
        ("550", "5.7.1", None): b"550 5.7.1",
        ("550", None, None): b"550 ",
        ("550",): b"550 ",
        ("550", "5.7.1"): b"550 5.7.1",
        ("421", "4.3.2", "try later"): b"421 4.3.2 try later",
        ("550", "5.7.1", ""): b"550 5.7.1 ",
        (b"450", b"4.0.0", b"\xff"): b"450 4.0.0 \xff",
        ("550", None, "gr\xfc\xdf \udcff"): b"550 gr\xc3\xbc\xc3\x9f \xff",
        # The MTA's business, not libmilter's:
        ("550", "4.7.1", "x"): b"550 4.7.1 x",
        ("550", "2.0.0", "x"): b"550 2.0.0 x",
        ("599", "5.000.007", "x"): b"599 5.000.007 x",
        ("550", "5.123.456", "x"): b"550 5.123.456 x",
        ("550", None, "5\t100%\x7f\x01"): b"550 5\t100%\x7f\x01",
    }

    def test_text_stored_is_libmilters_byte_for_byte(self) -> None:
        """
        The text stored is libmilter's, byte for byte.
        """
        self.assertEqual(_results(format_reply, self.TEXTS), self.TEXTS)

    def test_bad_reply_codes(self) -> None:
        """
        A reply code is exactly three digits, the first a 4 or a 5.
        """
        rows = [(code, "5.7.1", "x") for code in BAD_CODES]
        self.assertEqual(_results(format_reply, rows), dict.fromkeys(rows, ValueNotSendable))

    def test_bad_enhanced_codes(self) -> None:
        """
        An enhanced status code is a 2, 4 or 5 and two numbers of one to three digits, no more.
        """
        rows = [("550", code, "x") for code in BAD_ENHANCED]
        self.assertEqual(_results(format_reply, rows), dict.fromkeys(rows, ValueNotSendable))

    def test_text_has_at_most_980_bytes_in_utf_8_and_neither_cr_lf_nor_nul(self) -> None:
        """
        A text has at most 980 bytes, in UTF-8, and neither CR, LF nor NUL.
        """
        rows = [("550", None, text) for text in BAD_TEXTS]
        self.assertEqual(_results(format_reply, rows), dict.fromkeys(rows, ValueNotSendable))

    def test_text_of_980_bytes_is_accepted_codes_are_not_counted(self) -> None:
        """
        A text of 980 bytes is accepted; the codes are not counted.
        """
        self.assertEqual(format_reply("550", "5.7.1", "x" * 980), b"550 5.7.1 " + b"x" * 980)
        self.assertEqual(format_reply("550", None, "\xfc" * 490), b"550 " + b"\xc3\xbc" * 490)

    def test_error_says_which_argument_was_wrong(self) -> None:
        """
        The error says which argument was wrong, what it was, and what would be right.
        """
        rows = {
            ("250",): "reply code '250' is not three digits, the first a 4 or a 5",
            ("550", "5.7"): "enhanced status code '5.7' is not like 5.7.1 (class 2, 4 or 5)",
            ("550", None, "x" * 981): "reply text of 981 bytes, at most 980 per line",
            ("550", None, "a\nb"): "reply text 'a\\nb' has a CR, LF or NUL in it",
        }
        for row, message in rows.items():
            error = self.assertRaises(ValueNotSendable, format_reply, *row)
            self.assertEqual(str(error), message)


class MultiLineTests(SynchronousTestCase):
    """
    C{smfi_setmlreply} stores several lines.
    """

    TEXTS = {
        ("550", "5.7.1", "a"): b"550 5.7.1 a",
        ("550", "5.7.1", "a", "b", "c"): b"550-5.7.1 a\r\n550-5.7.1 b\r\n550 5.7.1 c",
        ("550", None, "a", "b"): b"550-5.0.0 a\r\n550 5.0.0 b",
        ("451", None, "a"): b"451 4.0.0 a",
        ("550", "5.7.1", "", ""): b"550-5.7.1 \r\n550 5.7.1 ",
        (b"550", b"4.7.1", b"\xff", "\udcfe"): b"550-4.7.1 \xff\r\n550 4.7.1 \xfe",
    }

    def test_each_line_has_both_codes_all_but_last_hyphen(self) -> None:
        """
        Each line has both codes, all but the last a hyphen; the class's own code is the default.
        """
        self.assertEqual(_results(format_multiline_reply, self.TEXTS), self.TEXTS)

    def test_number_of_lines(self) -> None:
        """
        One to 32 lines are accepted; none and 33 are refused.
        """
        lengths = {}
        for number in (0, 1, 32, 33):
            reply = outcome(format_multiline_reply, "550", "5.7.1", *["x"] * number)
            lengths[number] = reply.count(b"\r\n") + 1 if isinstance(reply, bytes) else reply
        self.assertEqual(lengths, {0: ValueNotSendable, 1: 1, 32: 32, 33: ValueNotSendable})

    def test_no_lines_message(self) -> None:
        """
        The error says how many lines there were and how many there may be.
        """
        error = self.assertRaises(ValueNotSendable, format_multiline_reply, "550", "5.7.1")
        self.assertEqual(str(error), "a reply of 0 lines; 1 to 32 can be sent")

    def test_codes_and_lines_obey_rules_of_one_line_replies(self) -> None:
        """
        Codes and lines obey the rules of one-line replies, and a line cannot be None.
        """
        rows: list[tuple[Any, ...]] = [(code, None, "x") for code in BAD_CODES]
        rows += [("550", code, "x") for code in BAD_ENHANCED]
        rows += [("550", None, "x", text) for text in (*BAD_TEXTS, None)]
        rows += [("550", None, text, "x") for text in (*BAD_TEXTS, None)]
        self.assertEqual(
            _results(format_multiline_reply, rows), dict.fromkeys(rows, ValueNotSendable)
        )

    def test_each_of_lines_may_have_980_bytes(self) -> None:
        """
        Each of the lines may have 980 bytes.
        """
        reply = format_multiline_reply("550", "5.7.1", *["x" * 980] * 32)
        self.assertEqual({len(line) for line in reply.split(b"\r\n")}, {990})
