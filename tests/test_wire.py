"""
Tests of `yatxmilter.wire`: bytes on the wire, one table for each kind of payload.

Packets are written out as bytes, as they were captured from libmilter and its MTAs, and are never
made by the encoder that is under test. What is malformed has a row for each way to be so.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from yatxmilter import wire
from yatxmilter.constants import SMFIA_INET, SMFIA_INET6, SMFIA_UNIX, SMFIA_UNKNOWN
from yatxmilter.errors import ProtocolError, ValueNotSendable
from yatxmilter.wire import ConnectInfo, Offer, PacketSplitter

from .helpers import STEADY, byte_by_byte, every_split, outcome, table_of

#: The MTA's side of one short connection: each packet's bytes, its letter and its payload.
CONVERSATION = [
    (
        b"\x00\x00\x00\x0dO\x00\x00\x00\x06\x00\x00\x01\xff\x00\x1f\xff\xff",
        b"O",
        b"\x00\x00\x00\x06\x00\x00\x01\xff\x00\x1f\xff\xff",
    ),
    (
        b"\x00\x00\x00%DCj\x00mx.example.net\x00{daemon_name}\x00MTA\x00",
        b"D",
        b"Cj\x00mx.example.net\x00{daemon_name}\x00MTA\x00",
    ),
    (
        b"\x00\x00\x00\x1fCmail.example.org\x004\x10\xe1192.0.2.1\x00",
        b"C",
        b"mail.example.org\x004\x10\xe1192.0.2.1\x00",
    ),
    (b"\x00\x00\x00\x04M<>\x00", b"M", b"<>\x00"),
    (b"\x00\x00\x00\x01T", b"T", b""),
    (b"\x00\x00\x00\x0cLSubject\x00hi\x00", b"L", b"Subject\x00hi\x00"),
    (b"\x00\x00\x00\x01N", b"N", b""),
    (b"\x00\x00\x00\x08BHello\x0d\x0a", b"B", b"Hello\r\n"),
    (b"\x00\x00\x00\x01E", b"E", b""),
    (b"\x00\x00\x00\x01Q", b"Q", b""),
]
STREAM = b"".join(packet for packet, _, _ in CONVERSATION)
PACKETS = [(letter[0], payload) for _, letter, payload in CONVERSATION]

PAYLOADS = st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=40)), max_size=6)
#: Any bytes that can stand in a string on the wire.
STRINGS = st.binary(max_size=30).map(lambda data: data.replace(b"\0", b""))


def _drain(splitter: PacketSplitter) -> list[tuple[int, bytes]]:
    packets = []
    while (packet := splitter.next_packet()) is not None:
        packets.append(packet)
    return packets


def _pull_between(chunks: list[bytes]) -> list[tuple[int, bytes]]:
    splitter = PacketSplitter()
    packets = []
    for chunk in chunks:
        splitter.feed(chunk)
        packets += _drain(splitter)
    return packets


def _pull_at_end(chunks: list[bytes]) -> list[tuple[int, bytes]]:
    splitter = PacketSplitter()
    for chunk in chunks:
        splitter.feed(chunk)
    return _drain(splitter)


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
            self.assertEqual(wire.from_text(wire.to_text(data)), data)

    @STEADY
    @given(st.binary())
    def test_any_bytes_survive(self, data: bytes) -> None:
        """
        Any bytes, UTF-8 or not, are the same after decoding and encoding.
        """
        self.assertEqual(wire.from_text(wire.to_text(data)), data)

    def test_utf8(self) -> None:
        """
        UTF-8 is read as what it means, and text is written as UTF-8.
        """
        self.assertEqual(wire.to_text(b"<gr\xc3\xbcn@example.com>"), "<gr\xfcn@example.com>")
        self.assertEqual(wire.from_text("<gr\xfcn@example.com>"), b"<gr\xc3\xbcn@example.com>")

    def test_other_bytes_are_escaped(self) -> None:
        """
        A byte that is not UTF-8 becomes a lone surrogate, as with surrogateescape.
        """
        self.assertEqual(wire.to_text(b"gr\xfcn"), "gr\udcfcn")
        self.assertEqual(wire.from_text("gr\udcfcn"), b"gr\xfcn")

    def test_bytes_pass(self) -> None:
        """
        Bytes are sent unchanged, text or not.
        """
        self.assertEqual(wire.from_text(b"\xff\xfe"), b"\xff\xfe")

    def test_surrogate_that_is_no_byte(self) -> None:
        """
        A surrogate that stands for no byte cannot be encoded, and says so.
        """
        self.assertRaises(UnicodeEncodeError, wire.from_text, "\ud800")


class TextArgumentTests(SynchronousTestCase):
    """
    Text that a user gives is str or bytes, and anything else is refused with its name.
    """

    def test_accepted(self) -> None:
        """
        A str is encoded as UTF-8 with surrogateescape, bytes pass, both may be empty.
        """
        rows: dict[str | bytes, bytes] = {
            "gr\xfcn": b"gr\xc3\xbcn", "\udcff": b"\xff", b"\xff": b"\xff", "": b"", b"": b"",
        }  # fmt: skip
        self.assertEqual(table_of(lambda row: wire.text_argument("reason", row), rows), rows)

    def test_refused(self) -> None:
        """
        What is no text, and what no encoding can carry, is refused: numbers are not sizes here.
        """
        rows = (None, 5, True, ("a",), object, "\ud800")
        self.assertEqual(
            table_of(lambda row: wire.text_argument("reason", row), rows),
            dict.fromkeys(rows, ValueNotSendable),
        )

    def test_message(self) -> None:
        """
        The error says which text it was, and which value.
        """
        error = self.assertRaises(ValueNotSendable, wire.text_argument, "reason", 5)
        self.assertEqual(str(error), "reason 5 is not str or bytes")
        error = self.assertRaises(ValueNotSendable, wire.text_argument, "reason", "a\ud800")
        self.assertIn(r"reason 'a\ud800' cannot be encoded", str(error))


class PacketTests(SynchronousTestCase):
    """
    A packet is a length, a letter and a payload.
    """

    def test_encode(self) -> None:
        """
        Packets are framed with a big-endian length that counts the letter.
        """
        for packet, letter, payload in CONVERSATION:
            self.assertEqual(wire.encode_packet(letter[0], payload), packet)
        self.assertEqual(wire.encode_packet(ord("c")), b"\x00\x00\x00\x01c")
        self.assertEqual(
            wire.encode_packet(ord("b"), b"x" * 65535), b"\x00\x01\x00\x00b" + b"x" * 65535
        )

    def test_whole(self) -> None:
        """
        Many packets in one read come out in order, each with its letter and payload.
        """
        self.assertEqual(_pull_between([STREAM]), PACKETS)

    def test_byte_by_byte(self) -> None:
        """
        Packets that arrive byte by byte come out the same.
        """
        self.assertEqual(_pull_between(byte_by_byte(STREAM)), PACKETS)
        self.assertEqual(_pull_at_end(byte_by_byte(STREAM)), PACKETS)

    def test_every_split(self) -> None:
        """
        Wherever a stream is cut in two, the same packets come out.
        """
        for chunks in every_split(STREAM):
            self.assertEqual(_pull_between(chunks), PACKETS)
            self.assertEqual(_pull_at_end(chunks), PACKETS)

    def test_every_two_splits(self) -> None:
        """
        Wherever a short stream is cut in three, the same packets come out.
        """
        stream = b"".join(packet for packet, _, _ in CONVERSATION[4:])
        packets = PACKETS[4:]
        for start, rest in every_split(stream):
            for middle, end in every_split(rest):
                self.assertEqual(_pull_between([start, middle, end]), packets)
                self.assertEqual(_pull_at_end([start, middle, end]), packets)

    @STEADY
    @given(PAYLOADS, st.lists(st.tuples(st.integers(0, 90), st.booleans()), max_size=12))
    def test_any_split(
        self, packets: list[tuple[int, bytes]], reads: list[tuple[int, bool]]
    ) -> None:
        """
        However a stream is cut, and whenever packets are asked for, the same packets come out.
        """
        stream = b"".join(wire.encode_packet(*packet) for packet in packets)
        splitter = PacketSplitter()
        found = []
        for size, pull in reads:
            chunk, stream = stream[:size], stream[size:]
            splitter.feed(chunk)
            if pull:
                found += _drain(splitter)
        splitter.feed(stream)
        self.assertEqual(found + _drain(splitter), packets)
        self.assertEqual(splitter.buffered, 0)

    def test_one_at_a_time(self) -> None:
        """
        A packet is taken when it is asked for, and what is behind it stays.
        """
        splitter = PacketSplitter()
        splitter.feed(b"\x00\x00\x00\x01T\x00\x00\x00\x01N")
        self.assertEqual(splitter.next_packet(), (ord("T"), b""))
        self.assertEqual(splitter.buffered, 5)
        self.assertEqual(splitter.next_packet(), (ord("N"), b""))
        self.assertEqual(splitter.next_packet(), None)

    def test_incomplete(self) -> None:
        """
        No packet comes out before its last byte has arrived, and then at once.
        """
        for packet, letter, payload in CONVERSATION:
            splitter = PacketSplitter()
            for byte in byte_by_byte(packet)[:-1]:
                splitter.feed(byte)
                self.assertEqual(splitter.next_packet(), None)
            splitter.feed(packet[-1:])
            self.assertEqual(splitter.next_packet(), (letter[0], payload))

    def test_no_bytes(self) -> None:
        """
        An empty read changes nothing, at whatever point it comes.
        """
        chunks = [part for byte in byte_by_byte(STREAM) for part in (b"", byte, b"")]
        self.assertEqual(_pull_between(chunks), PACKETS)
        self.assertEqual(_pull_at_end(chunks), PACKETS)

    def test_payload_type(self) -> None:
        """
        A payload is bytes, whether it came in one read or in several.
        """
        packet = b"\x00\x00\x00\x05Babcd"
        for chunks in ([packet], [packet[:6], packet[6:]], byte_by_byte(packet)):
            self.assertEqual([type(payload) for _, payload in _pull_between(chunks)], [bytes])


class LengthTests(SynchronousTestCase):
    """
    Length fields are treated as libmilter treats them, or as an MTA does when strict.
    """

    LENGTHS = {
        0: (ord("Q"), b""),
        1: (ord("Q"), b""),
        2: None,
        65535: None,
        65536: None,
        65537: ProtocolError,
        0x00FFFFFF: ProtocolError,
        0x7FFFFFFF: ProtocolError,
        0x80000000: ProtocolError,
        0x80000001: (ord("Q"), b""),
        0xFFFFFFFF: (ord("Q"), b""),
    }

    @staticmethod
    def _first(length: int, *, strict: bool = False) -> Any:
        splitter = PacketSplitter(strict=strict)
        splitter.feed(length.to_bytes(4, "big") + b"Q")
        return outcome(splitter.next_packet)

    def test_lengths(self) -> None:
        """
        A length of 0 or a negative one is a packet without payload; one over 65536 is fatal.
        """
        self.assertEqual({row: self._first(row) for row in self.LENGTHS}, self.LENGTHS)

    def test_strict_lengths(self) -> None:
        """
        A strict splitter refuses a length of 0 and a negative one too.
        """
        expected: dict[int, Any] = self.LENGTHS | {
            0: ProtocolError, 0x80000001: ProtocolError, 0xFFFFFFFF: ProtocolError,
        }  # fmt: skip
        self.assertEqual({row: self._first(row, strict=True) for row in expected}, expected)

    def test_not_before_five_bytes(self) -> None:
        """
        A bad length is fatal as soon as five bytes are there, and not before.
        """
        splitter = PacketSplitter()
        for byte in byte_by_byte(b"\x00\x01\x00\x01"):
            splitter.feed(byte)
            self.assertEqual(splitter.next_packet(), None)
        splitter.feed(b"B")
        self.assertRaises(ProtocolError, splitter.next_packet)

    def test_fails_for_good(self) -> None:
        """
        After a fatal length no packet comes out any more, whatever arrives.
        """
        splitter = PacketSplitter()
        splitter.feed(b"\x00\x01\x00\x01B")
        for _ in range(3):
            self.assertRaises(ProtocolError, splitter.next_packet)
            splitter.feed(b"\x00\x00\x00\x01Q")

    def test_packets_before_a_fatal_one(self) -> None:
        """
        Packets in front of a fatal length come out first.
        """
        splitter = PacketSplitter()
        splitter.feed(b"\x00\x00\x00\x01T\xff\xff\xff\xff")
        splitter.feed(b"N\x7f\xff\xff\xffQ")
        self.assertEqual(splitter.next_packet(), (ord("T"), b""))
        self.assertEqual(splitter.next_packet(), (ord("N"), b""))
        self.assertRaises(ProtocolError, splitter.next_packet)

    def test_lengths_taken_for_one(self) -> None:
        """
        A packet of length 0 ends behind its letter: the next packet is read from there.
        """
        stream = b"\x00\x00\x00\x00T\xff\xff\xff\xffN\x00\x00\x00\x03Bhi"
        packets = [(ord("T"), b""), (ord("N"), b""), (ord("B"), b"hi")]
        for chunks in ([stream], byte_by_byte(stream), *every_split(stream)):
            self.assertEqual(_pull_between(chunks), packets)

    def test_largest(self) -> None:
        """
        A payload of 65535 bytes is accepted, in one read and in many.
        """
        body = bytes(range(256)) * 255 + b"x" * 255
        self.assertEqual(len(body), 65535)
        packet = b"\x00\x01\x00\x00B" + body
        for size in (65540, 65539, 1460, 7):
            chunks = [packet[place : place + size] for place in range(0, len(packet), size)]
            self.assertEqual(_pull_between(chunks), [(ord("B"), body)])

    def test_limit(self) -> None:
        """
        The limit of a splitter is on the payload, its letter not counted.
        """
        splitter = PacketSplitter(limit=4)
        splitter.feed(b"\x00\x00\x00\x05B1234\x00\x00\x00\x06B12345")
        self.assertEqual(splitter.next_packet(), (ord("B"), b"1234"))
        error = self.assertRaises(ProtocolError, splitter.next_packet)
        self.assertIn("packet length 6 is not between 1 and 5", str(error))


class BufferTests(SynchronousTestCase):
    """
    What has arrived and was not taken is counted, can be forgotten, and stays small.
    """

    def test_buffered(self) -> None:
        """
        The count covers reads in waiting, the rest of a read, and the parts of a cut packet.
        """
        splitter = PacketSplitter()
        counts = [splitter.buffered]
        for data in (b"\x00\x00\x00\x01T\x00\x00", b"\x00\x05B12", b"34\x00"):
            splitter.feed(data)
            counts.append(splitter.buffered)
        splitter.next_packet()
        counts.append(splitter.buffered)
        splitter.next_packet()
        counts.append(splitter.buffered)
        self.assertEqual(counts, [0, 7, 12, 15, 10, 1])

    def test_buffered_in_a_packet(self) -> None:
        """
        The payload of a packet that is not whole yet is counted.
        """
        splitter = PacketSplitter()
        splitter.feed(b"\x00\x00\x00\x65B" + b"x" * 40)
        self.assertEqual(splitter.next_packet(), None)
        self.assertEqual(splitter.buffered, 40)
        splitter.feed(b"x" * 59)
        self.assertEqual(splitter.next_packet(), None)
        self.assertEqual(splitter.buffered, 99)
        splitter.feed(b"x")
        self.assertEqual(splitter.next_packet(), (ord("B"), b"x" * 100))
        self.assertEqual(splitter.buffered, 0)

    def test_clear(self) -> None:
        """
        After a clear the splitter is as new, at whatever byte the stream was cut.
        """
        for start, rest in every_split(STREAM):
            for pull in (True, False):
                splitter = PacketSplitter()
                splitter.feed(start)
                if pull:
                    _drain(splitter)
                splitter.feed(rest[:3])
                splitter.clear()
                self.assertEqual(splitter.buffered, 0)
                splitter.feed(STREAM)
                self.assertEqual(_drain(splitter), PACKETS)

    def test_few_objects(self) -> None:
        """
        A peer that sends a large packet in tiny pieces makes us keep little more than its bytes.
        """
        splitter = PacketSplitter()
        splitter.feed(b"\x00\x01\x00\x00B")
        splitter.next_packet()
        tracemalloc.start()
        try:
            for number in range(21845):
                splitter.feed(b"%03d" % (number % 1000))
                packet = splitter.next_packet()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        self.assertEqual(packet, (ord("B"), b"".join(b"%03d" % (n % 1000) for n in range(21845))))
        # Kept as they came, the pieces would take some 900 KB.
        self.assertLess(peak, 300_000)

    def test_few_objects_in_waiting(self) -> None:
        """
        Tiny reads that wait, because nobody asks for packets, take little more than their bytes.
        """
        splitter = PacketSplitter()
        stream = b"".join(b"\x00\x00\x00\x05B%04d" % number for number in range(8000))
        tracemalloc.start()
        try:
            for place in range(0, len(stream), 3):
                splitter.feed(stream[place : place + 3])
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        self.assertEqual(splitter.buffered, 72000)
        # Kept as they came, the reads would take more than 1 MB.
        self.assertLess(peak, 300_000)
        packets = [(ord("B"), b"%04d" % number) for number in range(8000)]
        self.assertEqual(_drain(splitter), packets)


class StringTests(SynchronousTestCase):
    """
    Strings on the wire end at their NUL, as they do in C.
    """

    def test_encode_strings(self) -> None:
        """
        Each string gets its NUL, an empty one too.
        """
        self.assertEqual(wire.encode_strings(b"<a@example.com>", b"SIZE=42"),
                         b"<a@example.com>\0SIZE=42\0")  # fmt: skip
        self.assertEqual(wire.encode_strings(b""), b"\0")
        self.assertEqual(wire.encode_strings(b"X-Old", b""), b"X-Old\0\0")

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

    def test_argument_vectors(self) -> None:
        """
        MAIL and RCPT: empty strings are kept, bytes behind the last NUL dropped, no NUL is fatal.
        """
        self.assertEqual(table_of(wire.decode_strings, self.ARGV), self.ARGV)

    @STEADY
    @given(st.lists(STRINGS, min_size=1, max_size=5))
    def test_argument_vector_round_trip(self, strings: list[bytes]) -> None:
        """
        Any strings without a NUL survive encoding and decoding.
        """
        (argv,) = wire.decode_strings(wire.encode_strings(*strings))
        self.assertEqual([wire.from_text(arg) for arg in argv], strings)

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

    def test_helo(self) -> None:
        """
        HELO: text up to the first NUL; without a NUL at its end the command is dropped in silence.
        """
        self.assertEqual(table_of(wire.decode_string, self.HELO), self.HELO)

    LINES = {
        b"VRFY root\0": ("VRFY root",),
        b"VRFY root": ("VRFY root",),
        b"VRFY\0root\0": ("VRFY",),
        b"VRFY\0root": ("VRFY",),
        b"\0": ("",),
        b"": ("",),
        b"\xe9\0": ("\udce9",),
    }

    def test_unknown(self) -> None:
        """
        UNKNOWN: the line ends at its first NUL, or with the packet if it has none.
        """
        self.assertEqual(table_of(wire.decode_line, self.LINES), self.LINES)

    def test_nothing(self) -> None:
        """
        DATA, EOH, BODYEOB, ABORT and QUIT have no arguments, whatever comes with them.
        """
        self.assertEqual(table_of(wire.decode_nothing, [b"", b"abc\0"]), {b"": (), b"abc\0": ()})

    def test_raw(self) -> None:
        """
        BODY is bytes, untouched: NULs, line ends and bytes that are no text included.
        """
        rows = [b"Hello\r\n", b"a\0b\0", b"\xff\r", b"\n.\r\n", b""]
        self.assertEqual(table_of(wire.decode_raw, rows), {row: (row,) for row in rows})


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

    def test_header(self) -> None:
        """
        HEADER: extra strings are ignored; a missing second string or a missing last NUL is fatal.
        """
        self.assertEqual(table_of(wire.decode_header, self.ROWS), self.ROWS)

    @STEADY
    @given(STRINGS.filter(bool), STRINGS)
    def test_round_trip(self, name: bytes, value: bytes) -> None:
        """
        Any name and value without a NUL survive encoding and decoding.
        """
        decoded = wire.decode_header(wire.encode_strings(name, value))
        self.assertEqual(tuple(map(wire.from_text, decoded)), (name, value))

    INDEXED = {
        (0, b"X-Top", b"one"): b"\x00\x00\x00\x00X-Top\x00one\x00",
        (1, b"Subject", b"[x] hi"): b"\x00\x00\x00\x01Subject\x00[x] hi\x00",
        (1, b"X-Old", b""): b"\x00\x00\x00\x01X-Old\x00\x00",
        (0x01020304, b"N", b"v"): b"\x01\x02\x03\x04N\x00v\x00",
        (0xFFFFFFFF, b"N", b"v"): b"\xff\xff\xff\xffN\x00v\x00",
    }

    def test_indexed(self) -> None:
        """
        INSHEADER and CHGHEADER put a big-endian index before name and value, and it comes back.
        """
        for (index, name, value), payload in self.INDEXED.items():
            self.assertEqual(wire.encode_indexed_header(index, name, value), payload)
            self.assertEqual(
                wire.decode_indexed_header(payload),
                (index, wire.to_text(name), wire.to_text(value)),
            )

    def test_malformed_indexed(self) -> None:
        """
        An action without a whole index, name and value is refused.
        """
        rows = (b"", b"\0\0\0", b"\0\0\0\1", b"\0\0\0\1N\0", b"\0\0\0\1N\0v")
        self.assertEqual(
            table_of(wire.decode_indexed_header, rows), dict.fromkeys(rows, ProtocolError)
        )


class ConnectTests(SynchronousTestCase):
    """
    CONNECT: host name, family, port and address.
    """

    #: Payloads that have one form only, so that they are also what is written.
    CANONICAL = {
        b"mail.example.org\x004\x10\xe1192.0.2.1\x00": ConnectInfo(
            "mail.example.org", SMFIA_INET, 4321, "192.0.2.1"
        ),
        b"[::1]\x006\x00\x00::1\x00": ConnectInfo("[::1]", SMFIA_INET6, 0, "::1"),
        b"x\x006\xff\xff2001:db8::9\x00": ConnectInfo("x", SMFIA_INET6, 65535, "2001:db8::9"),
        b"x\x006\x00\x19::ffff:192.0.2.1\x00": ConnectInfo(
            "x", SMFIA_INET6, 25, "::ffff:192.0.2.1"
        ),
        b"localhost\x00L\x00\x00/run/mta.sock\x00": ConnectInfo(
            "localhost", SMFIA_UNIX, 0, "/run/mta.sock"
        ),
        b"localhost\x00L\x00\x00\x00": ConnectInfo("localhost", SMFIA_UNIX, 0, ""),
        b"localhost\x00U": ConnectInfo("localhost", SMFIA_UNKNOWN, 0, ""),
        b"\x004\x00\x00192.0.2.1\x00": ConnectInfo("", SMFIA_INET, 0, "192.0.2.1"),
        b"h\xc3\xbcte\xff\x00U": ConnectInfo("h\xfcte\udcff", SMFIA_UNKNOWN, 0, ""),
        b"x\x00L\x00\x00" + b"p" * 107 + b"\x00": ConnectInfo("x", SMFIA_UNIX, 0, "p" * 107),
        b"x\x00L\x00\x00/\xff\x00": ConnectInfo("x", SMFIA_UNIX, 0, "/\udcff"),
    }

    def test_both_ways(self) -> None:
        """
        Each family has its layout, for reading and for writing.
        """
        self.assertEqual(table_of(wire.decode_connect, self.CANONICAL), self.CANONICAL)
        self.assertEqual(
            {wire.encode_connect(info): info for info in self.CANONICAL.values()}, self.CANONICAL
        )

    ADDRESSES = {
        b"4192.0.2.1": "192.0.2.1",
        b"410.1": "10.0.0.1",
        b"40x7f.1": "127.0.0.1",
        b"41.2.3.4 junk": "1.2.3.4",
        b"41.2.3.4\0junk": "1.2.3.4",
        b"4": ProtocolError,
        b"4[1.2.3.4]": ProtocolError,
        b"4::1": ProtocolError,
        b"4mail.example.org": ProtocolError,
        b"4256.0.0.1": ProtocolError,
        b"4\xff": ProtocolError,
        b"6::1": "::1",
        b"6IPv6:0:0:0:0:0:0:0:1": "::1",
        b"6ipv6:::1": "::1",
        b"6IPV6:2001:DB8:0:0:0:0:0:9": "2001:db8::9",
        b"6::ffff:1.2.3.4": "::ffff:1.2.3.4",
        b"6": ProtocolError,
        b"6IPv6:": ProtocolError,
        b"6IPv6:IPv6:::1": ProtocolError,
        b"6[::1]": ProtocolError,
        b"6fe80::1%1": ProtocolError,
        b"6192.0.2.1": ProtocolError,
        b"6\xff": ProtocolError,
        b"L" + b"p" * 108: ProtocolError,
        b"L" + b"\xc3\xbc" * 54: ProtocolError,
        b"L" + b"\xc3\xbc" * 53: "\xfc" * 53,
        b"L/a\0b": "/a",
        b"5192.0.2.1": ProtocolError,
        b"\x00192.0.2.1": ProtocolError,
        b"u192.0.2.1": ProtocolError,
    }

    @staticmethod
    def _address(row: bytes) -> str:
        return wire.decode_connect(b"h\0" + row[:1] + b"\0\0" + row[1:] + b"\0").address

    def test_addresses(self) -> None:
        """
        Addresses are read as inet_aton and inet_pton read them; any other closes the connection.
        """
        self.assertEqual(table_of(self._address, self.ADDRESSES), self.ADDRESSES)

    MALFORMED = (
        b"",
        b"host",
        b"host\0",
        b"\0",
        b"host\x004",
        b"host\x004\x00",
        b"host\x004\x00\x19",
        b"host\x004\x00\x191.2.3.4",
        b"host\x006\x00\x19::1",
        b"host\x00L\x00\x00/run/sock",
        b"host\x00L\x00\x00",
    )

    def test_malformed(self) -> None:
        """
        A missing family, port, address or last NUL closes the connection.
        """
        rows = dict.fromkeys(self.MALFORMED, ProtocolError)
        self.assertEqual(table_of(wire.decode_connect, rows), rows)

    def test_unknown_family(self) -> None:
        """
        For an unknown family what stands behind it is ignored.
        """
        self.assertEqual(
            wire.decode_connect(b"localhost\0Ujunk"), ("localhost", SMFIA_UNKNOWN, 0, "")
        )

    def test_errors_name_the_reason(self) -> None:
        """
        The error says which address was refused, or which family is not known.
        """
        reasons: dict[bytes, str] = {
            b"4::1": "'::1' is none of family 4",
            b"5::1": "unknown address family '5'",
            b"L" + b"p" * 108: "path of 108 bytes, at most 107",
        }
        for row, reason in reasons.items():
            error = self.assertRaises(ProtocolError, self._address, row)
            self.assertIn(reason, str(error))


class MacroTests(SynchronousTestCase):
    """
    Macro packets: a stage's letter, then names and values.
    """

    PACKETS: dict[bytes, tuple[int, dict[str, str]]] = {
        b"\x00\x00\x00%DCj\x00mx.example.net\x00{daemon_name}\x00MTA\x00": (
            ord("C"), {"j": "mx.example.net", "{daemon_name}": "MTA"},
        ),
        b"\x00\x00\x00#DMi\x004Xyz\x00{mail_addr}\x00s@example.org\x00": (
            ord("M"), {"i": "4Xyz", "{mail_addr}": "s@example.org"},
        ),
        b"\x00\x00\x00\x02DH": (ord("H"), {}),
        b"\x00\x00\x00\x06DTx\x00\xff\x00": (ord("T"), {"x": "\udcff"}),
    }  # fmt: skip

    def test_both_ways(self) -> None:
        """
        Names and values are written behind the stage's letter, and read back.
        """
        for packet, (letter, macros) in self.PACKETS.items():
            self.assertEqual(wire.encode_macros(letter, macros), packet)
            self.assertEqual(wire.decode_macros(packet[6:]), macros)

    ROWS: dict[bytes, dict[str, str | None]] = {
        b"": {},
        b"i": {},
        b"i\0": {"i": None},
        b"i\x001\0": {"i": "1"},
        b"i\x001\0j\0": {"i": "1", "j": None},
        b"i\x001\0j": {"i": "1"},
        b"i\x001\0j\x002": {"i": "1", "j": None},
        b"i\x001\0i\x002\0": {"i": "1"},
        b"i\x001\0i\0": {"i": "1"},
        b"i\0\0": {"i": ""},
        b"\0v\0": {"": "v"},
    }

    def test_malformed(self) -> None:
        """
        Bytes behind the last NUL are dropped, an odd last name has no value, the first of two wins.
        """
        self.assertEqual(table_of(wire.decode_macros, self.ROWS), self.ROWS)

    @STEADY
    @given(st.dictionaries(STRINGS, STRINGS, max_size=5))
    def test_round_trip(self, macros: dict[bytes, bytes]) -> None:
        """
        Any names and values without a NUL survive encoding and decoding.
        """
        text = {wire.to_text(name): wire.to_text(value) for name, value in macros.items()}
        self.assertEqual(wire.decode_macros(wire.encode_macros(ord("R"), text)[6:]), text)


class OfferTests(SynchronousTestCase):
    """
    OPTNEG: three words, and symbol lists behind a milter's.
    """

    PACKETS: dict[bytes, tuple[Offer, dict[int, bytes]]] = {
        b"\x00\x00\x00\x0dO\x00\x00\x00\x06\x00\x00\x01\xff\x00\x1f\xff\xff": (
            Offer(6, 0x1FF, 0x1FFFFF), {},
        ),
        b"\x00\x00\x00\x0dO\x00\x00\x00\x02\x00\x00\x00\x0f\x00\x00\x00\x00": (
            Offer(2, 0x0F, 0), {},
        ),
        b"\x00\x00\x00\x0dO\x80\x00\x00\x06\xff\xff\xff\xff\xf0\x1f\xff\xff": (
            Offer(0x80000006, 0xFFFFFFFF, 0xF01FFFFF), {},
        ),
        b"\x00\x00\x005O\x00\x00\x00\x06\x00\x00\x01\xff\x00\x00\x07z"
        b"\x00\x00\x00\x00j {client_port}\x00\x00\x00\x00\x01\x00\x00\x00\x00\x05i {msg_id}\x00": (
            Offer(6, 0x1FF, 0x77A), {5: b"i {msg_id}", 0: b"j {client_port}", 1: b""},
        ),
    }  # fmt: skip

    def test_both_ways(self) -> None:
        """
        Words are big-endian and unsigned; symbol lists stand in ascending order of their stages.
        """
        for packet, (offer, lists) in self.PACKETS.items():
            self.assertEqual(wire.encode_offer(offer, lists), packet)
            self.assertEqual(wire.decode_offer(packet[5:]), offer)
            self.assertEqual(
                wire.split_symbol_lists(packet[5:]),
                {stage: names.decode() for stage, names in lists.items()},
            )

    def test_without_lists(self) -> None:
        """
        An offer without symbol lists is twelve bytes.
        """
        self.assertEqual(len(wire.encode_offer(Offer(6, 0, 0))), 17)

    OFFERS: dict[bytes, Any] = {
        b"": ProtocolError,
        b"\0\0\0\6\0\0\1\xff\0\x1f\xff": ProtocolError,
        b"\0\0\0\6\0\0\1\xff\0\x1f\xff\xff": Offer(6, 0x1FF, 0x1FFFFF),
        b"\0\0\0\6\0\0\1\xff\0\x1f\xff\xff\1\2\3": Offer(6, 0x1FF, 0x1FFFFF),
    }

    def test_offers(self) -> None:
        """
        An offer of fewer than twelve bytes is fatal; what stands behind them is ignored.
        """
        self.assertEqual(table_of(wire.decode_offer, self.OFFERS), self.OFFERS)

    LISTS: dict[bytes, Any] = {
        b"": {},
        b"\0\0\0\0\0": {0: ""},
        b"\0\0\0\x02i\0": {2: "i"},
        b"\0\0\0\x06i\xff\0\0\0\0\x05j\0": {5: "j", 6: "i\udcff"},
        b"\0": ProtocolError,
        b"\0\0\0\0": ProtocolError,
        b"\0\0\0\2i": ProtocolError,
        b"\0\0\0\2i\0\0\0\0\3": ProtocolError,
    }

    def test_symbol_lists(self) -> None:
        """
        Symbol lists are read by stage; an empty one counts, a cut one is refused.
        """
        words = b"\0" * 12
        split: Callable[[bytes], Any] = lambda row: wire.split_symbol_lists(words + row)  # noqa: E731
        self.assertEqual(table_of(split, self.LISTS), self.LISTS)
