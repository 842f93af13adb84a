"""
Text, strings and header fields, one table for each kind of payload.

What is malformed has a row for each way to be so.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.helpers import STEADY, STRINGS, table_of
from yatxmilter._wire import payloads
from yatxmilter.errors import ProtocolError, ValueNotSendable


class TextTests(SynchronousTestCase):
    """
    Text from the wire is str, and every byte survives.
    """

    def test_every_byte_survives(self) -> None:
        """
        Each single byte, in front of and behind text, is the same after decoding and encoding.
        """
        for value in range(256):
            data = b"a" + bytes([value]) + b"z"
            self.assertEqual(payloads.from_text(payloads.to_text(data)), data)

    @STEADY
    @given(st.binary())
    def test_any_bytes_survive(self, data: bytes) -> None:
        """
        Any bytes, UTF-8 or not, are the same after decoding and encoding.
        """
        self.assertEqual(payloads.from_text(payloads.to_text(data)), data)

    def test_utf_8_is_read_as_what_it_means_and_text_is_written_as_utf_8(self) -> None:
        """
        UTF-8 is read as what it means, and text is written as UTF-8.
        """
        self.assertEqual(payloads.to_text(b"<gr\xc3\xbcn@example.com>"), "<gr\xfcn@example.com>")
        self.assertEqual(payloads.from_text("<gr\xfcn@example.com>"), b"<gr\xc3\xbcn@example.com>")

    def test_other_bytes_are_escaped(self) -> None:
        """
        A byte that is not UTF-8 becomes a lone surrogate, as with surrogateescape.
        """
        self.assertEqual(payloads.to_text(b"gr\xfcn"), "gr\udcfcn")
        self.assertEqual(payloads.from_text("gr\udcfcn"), b"gr\xfcn")

    def test_bytes_are_sent_unchanged(self) -> None:
        """
        Bytes are sent unchanged, text or not.
        """
        self.assertEqual(payloads.from_text(b"\xff\xfe"), b"\xff\xfe")

    def test_surrogate_that_is_no_byte(self) -> None:
        """
        A surrogate that stands for no byte cannot be encoded, and says so.
        """
        self.assertRaises(UnicodeEncodeError, payloads.from_text, "\ud800")


class TextArgumentTests(SynchronousTestCase):
    """
    Text that a user gives is str or bytes, and anything else is refused with its name.
    """

    def test_str_is_encoded_as_utf_8_with_surrogateescape_bytes_pass(self) -> None:
        """
        A str is encoded as UTF-8 with surrogateescape, bytes pass, both may be empty.
        """
        rows: list[tuple[str | bytes, bytes]] = [
            ("gr\xfcn", b"gr\xc3\xbcn"),
            ("\udcff", b"\xff"),
            (b"\xff", b"\xff"),
            ("", b""),
            (b"", b""),
        ]
        self.assertEqual([(row, payloads.text_argument("reason", row)) for row, _ in rows], rows)

    def test_what_is_no_text_and_what_no_encoding_can_carry_is_refused(self) -> None:
        """
        What is no text, and what no encoding can carry, is refused: numbers are not sizes here.
        """
        rows = (None, 5, True, ("a",), object, "\ud800")
        self.assertEqual(
            table_of(lambda row: payloads.text_argument("reason", row), rows),
            dict.fromkeys(rows, ValueNotSendable),
        )

    def test_error_says_which_text_it_was_and_which_value(self) -> None:
        """
        The error says which text it was, and which value.
        """
        error = self.assertRaises(ValueNotSendable, payloads.text_argument, "reason", 5)
        self.assertEqual(str(error), "reason 5 is not str or bytes")
        error = self.assertRaises(ValueNotSendable, payloads.text_argument, "reason", "a\ud800")
        self.assertIn(r"reason 'a\ud800' cannot be encoded", str(error))


class StringTests(SynchronousTestCase):
    """
    Strings on the wire end at their NUL, as they do in C.
    """

    def test_each_string_gets_its_nul_empty_one_too(self) -> None:
        """
        Each string gets its NUL, an empty one too.
        """
        self.assertEqual(payloads.encode_strings(b"<a@example.com>", b"SIZE=42"),
                         b"<a@example.com>\0SIZE=42\0")  # fmt: skip
        self.assertEqual(payloads.encode_strings(b""), b"\0")
        self.assertEqual(payloads.encode_strings(b"X-Old", b""), b"X-Old\0\0")

    ARGV = {
        b"<a@example.com>\0": (["<a@example.com>"],),
        b"<a@example.com>\0SIZE=42\0BODY=8BITMIME\0": (
            ["<a@example.com>", "SIZE=42", "BODY=8BITMIME"],
        ),
        b"<>\0": (["<>"],),
        b"\0": ([""],),
        b"a\0b": (["a"],),
        b"a\0\0": (["a", ""],),
        b"\0\0": (["", ""],),
        b"<gr\xc3\xbcn@example.com>\0\xff\0": (["<gr\xfcn@example.com>", "\udcff"],),
        b"abc": ProtocolError,
        b"": ProtocolError,
    }

    def test_mail_and_rcpt_empty_strings_are_kept_bytes_behind_last_nul_dropped(self) -> None:
        """
        MAIL and RCPT: empty strings are kept, bytes behind the last NUL dropped, no NUL is fatal.
        """
        self.assertEqual(table_of(payloads.decode_strings, self.ARGV), self.ARGV)

    @STEADY
    @given(st.lists(STRINGS, min_size=1, max_size=5))
    def test_argument_vector_round_trip(self, strings: list[bytes]) -> None:
        """
        Any strings without a NUL survive encoding and decoding.
        """
        (argv,) = payloads.decode_strings(payloads.encode_strings(*strings))
        self.assertEqual([payloads.from_text(arg) for arg in argv], strings)

    HELO = {
        b"mail.example.org\0": ("mail.example.org",),
        b"\0": ("",),
        b"a\0b\0": ("a",),
        b"\0b\0": ("",),
        b"\xff\0": ("\udcff",),
        b"abc": None,
        b"a\0b": None,
        b"": None,
    }

    def test_helo_text_up_to_first_nul(self) -> None:
        """
        HELO: text up to the first NUL; without a NUL at its end the command is dropped in silence.
        """
        self.assertEqual(table_of(payloads.decode_string, self.HELO), self.HELO)

    LINES = {
        b"VRFY root\0": ("VRFY root",),
        b"VRFY root": ("VRFY root",),
        b"VRFY\0root\0": ("VRFY",),
        b"VRFY\0root": ("VRFY",),
        b"\0": ("",),
        b"": ("",),
        b"\xe9\0": ("\udce9",),
    }

    def test_unknown_line_ends_at_its_first_nul_or_with_packet_if_it_has_none(self) -> None:
        """
        UNKNOWN: the line ends at its first NUL, or with the packet if it has none.
        """
        self.assertEqual(table_of(payloads.decode_line, self.LINES), self.LINES)

    def test_data_eoh_bodyeob_abort_and_quit_have_no_arguments(self) -> None:
        """
        DATA, EOH, BODYEOB, ABORT and QUIT have no arguments, whatever comes with them.
        """
        self.assertEqual(
            table_of(payloads.decode_nothing, [b"", b"abc\0"]), {b"": (), b"abc\0": ()}
        )

    def test_body_is_bytes_untouched_nuls(self) -> None:
        """
        BODY is bytes, untouched: NULs, line ends and bytes that are no text included.
        """
        rows = [b"Hello\r\n", b"a\0b\0", b"\xff\r", b"\n.\r\n", b""]
        self.assertEqual(table_of(payloads.decode_raw, rows), {row: (row,) for row in rows})


class HeaderTests(SynchronousTestCase):
    """
    Header fields are two strings, name and value.
    """

    ROWS = {
        b"Subject\0hi\0": ("Subject", "hi"),
        b"Subject\0 hi\0": ("Subject", " hi"),
        b"To\0a@example.com,\n\tb@example.com\0": ("To", "a@example.com,\n\tb@example.com"),
        b"X\xff\0\xc3\xa9\xe9\0": ("X\udcff", "\xe9\udce9"),
        b"N\0\0": ("N", ""),
        b"N\0v\0extra\0": ("N", "v"),
        b"N\0v\0\0": ("N", "v"),
        b"N\0\0v\0": ("N", ""),
        # The search for the separator starts at the second byte.
        b"\0v\0w\0": ("", "w"),
        b"\0\0w\0": ("", "w"),
        b"\0v\0w\0x\0": ("", "w"),
        b"\0v\0": ProtocolError,
        b"\0\0": ProtocolError,
        b"\0": ProtocolError,
        b"N\0": ProtocolError,
        b"N\0v": ProtocolError,
        b"N\0v\0x": ProtocolError,
        b"\0v\0w": ProtocolError,
        b"Nv": ProtocolError,
        b"": ProtocolError,
    }

    def test_header_extra_strings_are_ignored(self) -> None:
        """
        HEADER: extra strings are ignored; a missing second string or a missing last NUL is fatal.
        """
        self.assertEqual(table_of(payloads.decode_header, self.ROWS), self.ROWS)

    @STEADY
    @given(STRINGS.filter(bool), STRINGS)
    def test_any_name_and_value_without_nul_survive_encoding_and_decoding(
        self, name: bytes, value: bytes
    ) -> None:
        """
        Any name and value without a NUL survive encoding and decoding.
        """
        decoded = payloads.decode_header(payloads.encode_strings(name, value))
        self.assertEqual(tuple(map(payloads.from_text, decoded)), (name, value))

    INDEXED = {
        (0, b"X-Top", b"one"): b"\x00\x00\x00\x00X-Top\x00one\x00",
        (1, b"Subject", b"[x] hi"): b"\x00\x00\x00\x01Subject\x00[x] hi\x00",
        (1, b"X-Old", b""): b"\x00\x00\x00\x01X-Old\x00\x00",
        (0x01020304, b"N", b"v"): b"\x01\x02\x03\x04N\x00v\x00",
        (0xFFFFFFFF, b"N", b"v"): b"\xff\xff\xff\xffN\x00v\x00",
    }

    def test_insheader_and_chgheader_put_big_endian_index_before_name_and_value(self) -> None:
        """
        INSHEADER and CHGHEADER put a big-endian index before name and value, and it comes back.
        """
        for (index, name, value), payload in self.INDEXED.items():
            self.assertEqual(payloads.encode_indexed_header(index, name, value), payload)
            self.assertEqual(
                payloads.decode_indexed_header(payload),
                (index, payloads.to_text(name), payloads.to_text(value)),
            )

    def test_action_without_whole_index_name_and_value_is_refused(self) -> None:
        """
        An action without a whole index, name and value is refused.
        """
        rows = (b"", b"\0\0\0", b"\0\0\0\1", b"\0\0\0\1N\0", b"\0\0\0\1N\0v")
        self.assertEqual(
            table_of(payloads.decode_indexed_header, rows), dict.fromkeys(rows, ProtocolError)
        )
