"""
The packets that C{smfi_*} functions make, and what they refuse.

Packets were captured from libmilter. A refused call must leave nothing behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO, StringIO
from typing import Any

from tests.contexts import EXAMPLES, ContextCase
from yatxmilter._mail.bounds import Limits
from yatxmilter.errors import LimitExceeded, ValueNotSendable


class PacketTests(ContextCase):
    """
    Each edit is the packet that libmilter would send.
    """

    ROWS: dict[tuple[Any, ...], bytes] = {
        ("insheader", 0, "X-Top", "one"): b"\x00\x00\x00\x0fi\x00\x00\x00\x00X-Top\x00one\x00",
        ("insheader", 0x7FFFFFFF, "N", "v"): b"\x00\x00\x00\x09i\x7f\xff\xff\xffN\x00v\x00",
        ("addheader", "X-Spam", "no"): b"\x00\x00\x00\x0bhX-Spam\x00no\x00",
        ("addheader", b"N", b"\xff"): b"\x00\x00\x00\x05hN\x00\xff\x00",
        ("addheader", "N", "\xfc\udcff"): b"\x00\x00\x00\x07hN\x00\xc3\xbc\xff\x00",
        ("addheader", "N", ""): b"\x00\x00\x00\x04hN\x00\x00",
        ("addheader", "N", "a\n b\n\tc"): b"\x00\x00\x00\x0bhN\x00a\n b\n\tc\x00",
        ("addheader", "!-9;~", "v"): b"\x00\x00\x00\x09h!-9;~\x00v\x00",
        ("chgheader", "Subject", 1, "[x] hi"):
            b"\x00\x00\x00\x14m\x00\x00\x00\x01Subject\x00[x] hi\x00",
        ("chgheader", "X-Old", 1, None): b"\x00\x00\x00\x0cm\x00\x00\x00\x01X-Old\x00\x00",
        ("chgheader", "X-Old", 1, ""): b"\x00\x00\x00\x0cm\x00\x00\x00\x01X-Old\x00\x00",
        ("chgheader", "X-Old", 0, b""): b"\x00\x00\x00\x0cm\x00\x00\x00\x00X-Old\x00\x00",
        ("quarantine", "held"): b"\x00\x00\x00\x06qheld\x00",
        ("addrcpt", "<n@example.net>"): b"\x00\x00\x00\x11+<n@example.net>\x00",
        ("addrcpt_par", "<p@example.net>", "NOTIFY=NEVER"):
            b"\x00\x00\x00\x1e2<p@example.net>\x00NOTIFY=NEVER\x00",
        ("addrcpt_par", "<p@example.net>", None): b"\x00\x00\x00\x112<p@example.net>\x00",
        ("addrcpt_par", "<p@example.net>", ""): b"\x00\x00\x00\x122<p@example.net>\x00\x00",
        ("delrcpt", "<r@example.net>"): b"\x00\x00\x00\x11-<r@example.net>\x00",
        ("chgfrom", "<new@example.org>", None): b"\x00\x00\x00\x13e<new@example.org>\x00",
        ("chgfrom", "<new@example.org>", "RET=HDRS"):
            b"\x00\x00\x00\x1ce<new@example.org>\x00RET=HDRS\x00",
        ("chgfrom", "<new@example.org>", ""): b"\x00\x00\x00\x14e<new@example.org>\x00\x00",
        ("chgfrom", "<>", None): b"\x00\x00\x00\x04e<>\x00",
        ("replacebody", b"new\r\n"): b"\x00\x00\x00\x06bnew\r\n",
        ("replacebody", b"\0\xff"): b"\x00\x00\x00\x03b\x00\xff",
        ("replacebody", "\xfc\udcff"): b"\x00\x00\x00\x04b\xc3\xbc\xff",
        ("replacebody", b""): b"\x00\x00\x00\x01b",
    }  # fmt: skip

    def test_bytes_are_libmilters_for_text_and_for_bytes(self) -> None:
        """
        The bytes are libmilter's, for text and for bytes, with and without optional arguments.
        """
        self.assertEqual(
            {row: self.call(*row) for row in self.ROWS},
            {row: [packet] for row, packet in self.ROWS.items()},
        )

    def test_edits_are_given_in_the_order_in_which_they_were_made(self) -> None:
        """
        Edits are given in the order in which they were made, the pieces of a new body in a row
        behind the others.
        """
        for function, args in [*EXAMPLES.items(), ("replacebody", (b"more",))]:
            self.assertIsNone(getattr(self.context, function)(*args))
        edits = self.context.take_edits()
        letters = [packet[4:5] for packet in edits]
        self.assertEqual(letters, [b"h", b"i", b"m", b"+", b"2", b"-", b"e", b"q", b"b", b"b"])
        self.assertEqual([packet[5:] for packet in edits[-2:]], [b"new\r\n", b"more"])

    def test_whatever_line_ends_a_header_value_has_it_is_one_field(self) -> None:
        """
        Whatever line ends a header value has, it is one field.
        """
        for value, sent in (
            ("a\n b", b"a\n b"),
            ("a\n\tb", b"a\n\tb"),
            ("a\nb", b"a\n\tb"),
            ("a\r\nb", b"a\n\tb"),
            ("a\r\n b", b"a\n b"),
            ("a\n\nb", b"a\n\t\n\tb"),
            ("a\r\n", b"a\n\t"),
            (b"\n", b"\n\t"),
        ):
            for call in (
                ("addheader", "N", value),
                ("insheader", 1, "N", value),
                ("chgheader", "N", 1, value),
            ):
                (packet,) = self.call(*call)
                self.assertTrue(packet.endswith(b"N\0" + sent + b"\0"), (call, packet))

    def test_name_of_a_header_field_is_printable_ascii_without_blanks_and_colons(
        self,
    ) -> None:
        """
        Nothing but printable ASCII without blanks and colons is a header field's name.
        """
        good = {chr(number) for number in range(33, 127)} - {":"}
        for number in range(256):
            for name in (chr(number), f"A{chr(number)}", f"{chr(number)}Z", bytes([number])):
                fine = number < 127 and chr(number) in good
                for call in (
                    ("addheader", name, "v"),
                    ("insheader", 0, name, "v"),
                    ("chgheader", name, 1, None),
                ):
                    result = self.call(*call)
                    self.assertEqual(result is ValueNotSendable, not fine, call)

    def test_edits_are_given_up_once(self) -> None:
        """
        Edits are given up once.
        """
        self.context.addheader("X-Spam", "no")
        self.context.replacebody(b"x")
        self.assertEqual(len(self.context.take_edits()), 2)
        self.assertEqual((self.context.take_edits(), self.context.bodies), ([], 0))


class BodyTests(ContextCase):
    """
    A new body is cut into packets.
    """

    def test_body_is_cut_into_packets_of_65535_bytes(self) -> None:
        """
        A body is cut into packets of 65535 bytes; exactly so many are one packet.
        """
        for size, lengths in {
            65534: [65535], 65535: [65536], 65536: [65536, 2], 131070: [65536, 65536],
            131071: [65536, 65536, 2],
        }.items():  # fmt: skip
            body = (b"0123456789abcde" * 9000)[:size]
            packets = self.call("replacebody", body)
            self.assertEqual([int.from_bytes(packet[:4], "big") for packet in packets], lengths)
            self.assertEqual({packet[4:5] for packet in packets}, {b"b"})
            self.assertEqual(b"".join(packet[5:] for packet in packets), body)

    def test_each_call_counts_once_however_many_packets_it_takes(self) -> None:
        """
        Each call counts once, however many packets it takes.
        """
        self.context.replacebody(b"x" * 200000)
        self.context.replacebody(b"")
        self.assertEqual((self.context.bodies, len(self.context.outbox)), (2, 5))

    def test_bytearray_and_a_memoryview_are_bodies_too(self) -> None:
        """
        A bytearray and a memoryview are bodies too, and later changes of them are not sent.
        """
        buffer = bytearray(b"abc")
        self.context.replacebody(buffer)
        self.context.replacebody(memoryview(buffer))
        buffer[0] = ord("X")
        self.assertEqual(self.context.outbox, [b"\0\0\0\4babc"] * 2)

    def test_iterable_of_pieces_and_a_file_are_one_body(self) -> None:
        """
        An iterable of pieces, and a file, are one body: it is cut as if it had come in one.
        """
        whole = bytes(range(256)) * 600
        pieces = [whole[:10], "", bytearray(whole[10:70000]), memoryview(whole[70000:])]
        bodies = (
            pieces,
            (piece for piece in pieces),
            BytesIO(whole),
            StringIO("abc\r\n"),
            [],
            [b""],
        )
        for body in bodies:
            packets = self.call("replacebody", body)
            expected = b"abc\r\n" if isinstance(body, StringIO) else whole
            expected = b"" if body in ([], [b""]) else expected
            self.assertEqual(b"".join(packet[5:] for packet in packets), expected)
            size = len(expected)
            lengths = [min(65535, size - start) for start in range(0, size or 1, 65535)]
            self.assertEqual([len(packet) - 5 for packet in packets], lengths)

    def test_edit_that_is_made_while_a_body_is_read_stands_as_well(self) -> None:
        """
        An edit that is made while a body is read stands as well.
        """

        def pieces() -> Iterator[bytes]:
            yield b"one"
            self.context.addheader("X-Pieces", "2")
            yield b"two"

        self.context.replacebody(pieces())
        edits = self.context.take_edits()
        self.assertEqual([packet[4:] for packet in edits], [b"hX-Pieces\x002\0", b"bonetwo"])

    def test_pieces_are_all_or_nothing(self) -> None:
        """
        Of a body that fails on its way, or is too long, nothing is kept, and the piece is named.
        """

        def broken() -> Iterator[bytes]:
            yield b"x" * 70000
            raise OSError("the disk has gone")

        self.assertRaises(OSError, self.context.replacebody, broken())
        error = self.assertRaises(ValueNotSendable, self.context.replacebody, [b"a", 5])
        self.assertEqual(str(error), "piece 1 of the body is 5, not bytes or a text")
        self.context.limits = Limits(max_body=100_000)
        endless = iter(lambda: b"x" * 1000, b"")
        error = self.assertRaises(LimitExceeded, self.context.replacebody, endless)
        self.assertIn("max_body, an option of the server, is 100000", str(error))
        self.assertEqual((self.context.bodies, self.context.outbox), (0, []))
        self.context.replacebody([b"x" * 100_000])
        self.assertRaises(LimitExceeded, self.context.replacebody, b"x")

    def test_coroutine_in_place_of_a_value_is_told_to_lack_an_await(self) -> None:
        """
        Of a coroutine that stands where a value belongs it is said that an await is missing.
        """

        async def look_up() -> str:
            return ""

        for call in (
            lambda given: self.context.replacebody(given),
            lambda given: self.context.replacebody([given]),
            lambda given: self.context.addheader("X", given),
            lambda given: self.context.setreply("550", None, given),
            lambda given: self.context.getsymval(given),
        ):
            given = look_up()
            error = self.assertRaises(ValueNotSendable, call, given)
            self.assertIn("(an await is missing)", str(error))
            given.close()

    def test_what_is_no_body_is_refused(self) -> None:
        """
        What is no body is refused: a number is not a length here.
        """
        self.assert_refused("replacebody", [(None,), (5,), ([5],), ({"x": 1},), ("\ud800",)])


class RefusedValueTests(ContextCase):
    """
    A value that cannot be sent is refused, and nothing is kept of the call.
    """

    #: What can stand in no string: line ends and NUL, what is no text, what has no encoding.
    NO_STRINGS = (None, 5, ["x"], "\ud800", "a\nb", "a\rb", "a\r\n b", "a\n b", "a\0b", b"a\n")
    #: What cannot be a header value.
    NO_VALUES = (None, 5, ["x"], "\ud800", "a\rb", "a\r", "a\r\r\nb", "a\0b", b"\r X-Evil: 1")
    NO_INDEX = (-1, 0x80000000, None, "1", 1.0, True)

    def test_header_name_is_not_empty_and_has_no_cr_lf_or_nul(self) -> None:
        """
        A header name is not empty and has no CR, LF or NUL.
        """
        for name in (*self.NO_STRINGS, "", b""):
            self.assert_refused("addheader", [(name, "v")])
            self.assert_refused("insheader", [(0, name, "v")])
            self.assert_refused("chgheader", [(name, 1, "v"), (name, 1, None)])

    def test_header_value_has_no_nul_and_no_cr_that_no_lf_follows(self) -> None:
        """
        A header value has no NUL, and no CR that no LF follows.
        """
        for value in self.NO_VALUES:
            self.assert_refused("addheader", [("N", value)])
            self.assert_refused("insheader", [(0, "N", value)])
            if value is not None:
                self.assert_refused("chgheader", [("N", 1, value)])

    def test_header_index_is_number_from_0_to_2147483647_and_no_truth_value(self) -> None:
        """
        A header index is a number from 0 to 2147483647, and no truth value.
        """
        self.assert_refused("insheader", [(index, "N", "v") for index in self.NO_INDEX])
        self.assert_refused("chgheader", [("N", index, "v") for index in self.NO_INDEX])

    def test_address_is_not_empty_and_has_no_cr_lf_or_nul(self) -> None:
        """
        An address is not empty and has no CR, LF or NUL.
        """
        for address in (*self.NO_STRINGS, "", b""):
            self.assert_refused("addrcpt", [(address,)])
            self.assert_refused("delrcpt", [(address,)])
            self.assert_refused("addrcpt_par", [(address, None), (address, "NOTIFY=NEVER")])
            self.assert_refused("chgfrom", [(address, None), (address, "RET=HDRS")])

    def test_esmtp_arguments_may_be_empty_or_missing(self) -> None:
        """
        ESMTP arguments may be empty or missing, but have no CR, LF or NUL.
        """
        for args in self.NO_STRINGS[1:]:
            self.assert_refused("addrcpt_par", [("<p@example.net>", args)])
            self.assert_refused("chgfrom", [("<p@example.net>", args)])

    def test_reason_is_not_empty_and_has_no_cr_lf_or_nul(self) -> None:
        """
        A reason is not empty and has no CR, LF or NUL.
        """
        self.assert_refused("quarantine", [(reason,) for reason in (*self.NO_STRINGS, "", b"")])

    def test_error_says_what_was_wrong_with_which_value(self) -> None:
        """
        The error says what was wrong with which value.
        """
        rows: dict[tuple[Any, ...], str] = {
            ("addheader", "", "v"): "header name is empty",
            ("addheader", "A b", "v"): "header name 'A b' is not printable ASCII without blanks",
            ("addheader", "N", "a\rb"): "header value 'a\\rb' has a NUL in it, or a CR that no LF",
            ("addheader", "N", 5): "header value 5 is not str or bytes",
            ("insheader", -1, "N", "v"): "header index -1 is not a number from 0 to 2147483647",
            ("addrcpt", "a\0b"): "address 'a\\x00b' has a CR, LF or NUL in it",
            ("chgfrom", "<>", "a\nb"): "ESMTP arguments 'a\\nb' has a CR, LF or NUL in it",
            ("quarantine", ""): "reason is empty",
            ("replacebody", 5): "body is int, not bytes",
        }
        for (function, *args), message in rows.items():
            error = self.assertRaises(ValueNotSendable, getattr(self.context, function), *args)
            self.assertTrue(str(error).startswith(message), error)


class SizeTests(ContextCase):
    """
    A packet's payload has at most 65535 bytes.
    """

    def test_names_values_nuls_and_index_may_be_exactly_65535_bytes_together(self) -> None:
        """
        Names, values, NULs and index may be exactly 65535 bytes together, and not one more.
        """
        rows = {
            ("addheader", "N", "x" * 65532): True,
            ("addheader", "N", "x" * 65533): False,
            ("insheader", 0, "N", "x" * 65528): True,
            ("insheader", 0, "N", "x" * 65529): False,
            ("chgheader", "N", 1, "\xfc" * 32764): True,
            ("chgheader", "N", 1, "\xfc" * 32764 + "x"): False,
            ("addrcpt", "x" * 65534): True,
            ("addrcpt", "x" * 65535): False,
            ("quarantine", "x" * 65534): True,
            ("quarantine", "x" * 65535): False,
        }
        actual = {}
        for row in rows:
            result = self.call(*row)
            if isinstance(result, list):
                self.assertEqual([len(packet) for packet in result], [65540])
            actual[row] = result is not ValueNotSendable
        self.assertEqual(actual, rows)

    def test_larger_size_agreed(self) -> None:
        """
        Where a larger data size was agreed on, that is the limit.
        """
        self.context.max_payload = 262143
        self.assertEqual(len(self.call("addheader", "N", "x" * 262140)[0]), 262148)
        self.assertIs(self.call("addheader", "N", "x" * 262141), ValueNotSendable)

    def test_error_says_how_long_it_was_and_how_long_it_may_be(self) -> None:
        """
        The error says how long it was and how long it may be.
        """
        error = self.assertRaises(ValueNotSendable, self.context.addheader, "N", "x" * 65533)
        self.assertEqual(str(error), "smfi_addheader() of 65536 bytes; a packet takes 65535")


class LeadingSpaceTests(ContextCase):
    """
    Where another milter makes the MTA leave blanks alone, this one's values get theirs.
    """

    def test_blank_is_put_before_each_header_value_an_empty_one_included(self) -> None:
        """
        A blank is put before each header value, an empty one included.
        """
        self.context.adds_space = True
        self.assertEqual(self.call("addheader", "N", "v"), [b"\x00\x00\x00\x06hN\x00 v\x00"])
        self.assertEqual(self.call("addheader", "N", ""), [b"\x00\x00\x00\x05hN\x00 \x00"])
        self.assertEqual(
            self.call("insheader", 1, "N", "\tv"), [b"\0\0\0\x0bi\0\0\0\1N\x00 \tv\x00"]
        )
        self.assertEqual(self.call("chgheader", "N", 1, "v"), [b"\0\0\0\x0am\0\0\0\1N\x00 v\x00"])

    def test_deleting_still_deletes(self) -> None:
        """
        What deletes a header field stays empty.
        """
        self.context.adds_space = True
        for value in (None, "", b""):
            self.assertEqual(
                self.call("chgheader", "N", 1, value), [b"\0\0\0\x08m\0\0\0\1N\x00\x00"]
            )
