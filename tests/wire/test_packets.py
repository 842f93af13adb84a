"""
Tests of `yatxmilter._wire.packets`: cutting packets out of a byte stream.

Packets are written out as bytes, as they were captured from libmilter and its MTAs, and are never
made by the encoder that is under test. Each stream also arrives byte by byte and cut at each place.
"""

from __future__ import annotations

import tracemalloc
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.helpers import STEADY, byte_by_byte, every_split, outcome
from yatxmilter._wire.packets import PacketSplitter, encode_packet
from yatxmilter.errors import ProtocolError

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


class PacketTests(SynchronousTestCase):
    """
    A packet is a length, a letter and a payload.
    """

    def test_packets_are_framed_with_big_endian_length_that_counts_letter(self) -> None:
        """
        Packets are framed with a big-endian length that counts the letter.
        """
        for packet, letter, payload in CONVERSATION:
            self.assertEqual(encode_packet(letter[0], payload), packet)
        self.assertEqual(encode_packet(ord("c")), b"\x00\x00\x00\x01c")
        self.assertEqual(encode_packet(ord("b"), b"x" * 65535), b"\x00\x01\x00\x00b" + b"x" * 65535)

    def test_many_packets_in_one_read_come_out_in_order(self) -> None:
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

    def test_wherever_stream_is_cut_in_two_same_packets_come_out(self) -> None:
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
    def test_however_stream_is_cut(
        self, packets: list[tuple[int, bytes]], reads: list[tuple[int, bool]]
    ) -> None:
        """
        However a stream is cut, and whenever packets are asked for, the same packets come out.
        """
        stream = b"".join(encode_packet(*packet) for packet in packets)
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

    def test_no_packet_comes_out_before_its_last_byte_has_arrived(self) -> None:
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

    def test_empty_read_changes_nothing_at_whatever_point_it_comes(self) -> None:
        """
        An empty read changes nothing, at whatever point it comes.
        """
        chunks = [part for byte in byte_by_byte(STREAM) for part in (b"", byte, b"")]
        self.assertEqual(_pull_between(chunks), PACKETS)
        self.assertEqual(_pull_at_end(chunks), PACKETS)

    def test_payload_is_bytes_whether_it_came_in_one_read_or_in_several(self) -> None:
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

    def test_length_of_0_or_negative_one_is_packet_without_payload(self) -> None:
        """
        A length of 0 or a negative one is a packet without payload; one over 65536 is fatal.
        """
        self.assertEqual({row: self._first(row) for row in self.LENGTHS}, self.LENGTHS)

    def test_strict_splitter_refuses_length_of_0_and_negative_one_too(self) -> None:
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

    def test_payload_of_65535_bytes_is_accepted_in_one_read_and_in_many(self) -> None:
        """
        A payload of 65535 bytes is accepted, in one read and in many.
        """
        body = bytes(range(256)) * 255 + b"x" * 255
        self.assertEqual(len(body), 65535)
        packet = b"\x00\x01\x00\x00B" + body
        for size in (65540, 65539, 1460, 7):
            chunks = [packet[place : place + size] for place in range(0, len(packet), size)]
            self.assertEqual(_pull_between(chunks), [(ord("B"), body)])

    def test_limit_of_splitter_is_on_payload_its_letter_not_counted(self) -> None:
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

    def test_count_covers_reads_in_waiting_rest_of_read_and_parts_of_cut_packet(self) -> None:
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

    def test_packet_is_partial_from_its_first_byte_on_until_it_is_taken_whole(self) -> None:
        """
        A packet is partial from its first byte on until it is taken whole, in waiting too.
        """
        for packet in (b"\x00\x00\x00\x01T", b"\x00\x00\x00\x04Babc"):
            splitter = PacketSplitter()
            self.assertFalse(splitter.partial)
            for byte in byte_by_byte(packet):
                self.assertEqual(splitter.next_packet(), None)
                splitter.feed(byte)
                self.assertTrue(splitter.partial)
            self.assertNotEqual(splitter.next_packet(), None)
            self.assertFalse(splitter.partial)
        splitter.feed(b"\x00\x00\x00\x01T")
        splitter.feed(b"\x00")
        splitter.next_packet()
        self.assertTrue(splitter.partial)

    def test_after_clear_splitter_is_as_new_at_whatever_byte_stream_was_cut(self) -> None:
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

    def test_large_packet_in_tiny_pieces_makes_us_keep_little_more(self) -> None:
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
