"""
Packets: a length (four bytes, big-endian, counting the letter), a letter, and a payload.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Final

from yatxmilter.constants import MILTER_MAX_DATA_SIZE
from yatxmilter.errors import ProtocolError

__all__ = ["PacketSplitter", "encode_packet", "read_head", "readers_of_one"]

#: Read a length and a letter at a place in bytes.
read_head: Final = Struct(">IB").unpack_from
_PREFIX: Final = Struct(">IB")

# An incoming packet's pieces are joined before there are more than this many of them, so that a
# peer that sends byte by byte cannot make us keep thousands of objects.
_MAX_PIECES: Final = 64

# Reads that wait are joined while they are smaller than this, for the same reason: the queue stays
# short however the peer cuts what it sends while an answer is awaited.
_SMALL_READ: Final = 4096


def readers_of_one(most: int) -> list[Callable[[bytes], tuple[int, int, bytes]]]:
    """
    Make what reads bytes that may be one packet and nothing else, by how many there are.

    It costs half of what it does to read the head and to cut off the rest. Each gives the length, a
    letter and a payload; it is one packet if the length is by four less than their number. Of bytes
    that are none, as there are too few of them or too many, the length is less than that can be.

    :param most: Up to how many bytes it may be one.
    """
    some = [Struct(f">IB{size - 5}s").unpack for size in range(5, most + 1)]
    return [*[_read_none] * 5, *some, _read_none]


def _read_none(data: bytes) -> tuple[int, int, bytes]:
    # Four less than none are -4: of three bytes, -1 would be the length of a packet.
    return -5, 0, b""


def encode_packet(letter: int, payload: bytes = b"") -> bytes:
    """
    Write a packet: its length, the letter of the command or answer, the payload.
    """
    return _PREFIX.pack(len(payload) + 1, letter) + payload


class PacketSplitter:
    """
    Cut packets out of a byte stream, however it arrives.

    Bytes stay where they arrived until a packet is asked for. The pieces of a packet that spans
    several reads are kept in a list and joined once.

    :ivar buffer: The read that packets are taken from, and ``position``: how far they have been.
    :ivar queue: The reads behind it.
    :ivar missing: How many bytes are missing of a packet whose beginning has been taken.
    :ivar taken: How many packets have been taken by `next_packet`.
    :param limit: The largest payload accepted, in bytes.
    :param strict: Refuse lengths of 0 and of more than 2**31, as MTAs do. libmilter, which reads
        five bytes before it looks at the length and then counts in signed numbers, takes them for
        packets without payload; so does a splitter that is not strict.
    :param odd: Told of such a length where it is taken.
    """

    __slots__ = (
        "_letter",
        "_pieces",
        "buffer",
        "limit",
        "missing",
        "odd",
        "position",
        "queue",
        "strict",
        "taken",
    )

    def __init__(
        self,
        limit: int = MILTER_MAX_DATA_SIZE,
        *,
        strict: bool = False,
        odd: Callable[[int], object] | None = None,
    ) -> None:
        self.limit = limit
        self.strict = strict
        self.odd = odd
        self.buffer = b""
        self.position = 0
        self.queue: list[bytes] = []
        self._pieces: list[bytes | bytearray] = []
        self.missing = 0
        self._letter = 0
        self.taken = 0

    def feed(self, data: bytes) -> None:
        """
        Take in bytes that have arrived.
        """
        if self.position == len(self.buffer) and not self.queue:
            self.buffer = data
            self.position = 0
        elif self.queue and len(self.queue[-1]) < _SMALL_READ:
            self.queue[-1] += data
        else:
            self.queue.append(data)

    @property
    def buffered(self) -> int:
        """
        How many bytes have arrived and are not yet part of a packet that was taken.
        """
        waiting = len(self.buffer) - self.position
        return waiting + sum(map(len, self.queue)) + sum(map(len, self._pieces))

    @property
    def partial(self) -> bool:
        """
        Whether bytes have arrived that are not yet part of a packet that was taken.
        """
        return bool(self.missing or self.queue or self.position < len(self.buffer))

    def clear(self) -> None:
        """
        Forget all that has arrived.
        """
        self.buffer = b""
        self.position = self.missing = 0
        self.queue.clear()
        self._pieces.clear()

    def next_packet(self) -> tuple[int, bytes] | None:
        """
        Take the next whole packet: its letter and its payload; ``None`` if there is none yet.

        :raises ProtocolError: when its length is not acceptable. The stream cannot be read on.
        """
        while True:
            buffer = self.buffer
            position = self.position
            available = len(buffer) - position
            if self.missing:
                packet = self._continue_packet(buffer, position, available)
                if packet is not None:
                    return packet
            elif available >= 5:
                length, letter = read_head(buffer, position)
                if not 0 < length <= self.limit + 1:
                    length = self._odd_length(length)
                end = position + 4 + length
                if end <= len(buffer):
                    self.position = end
                    self.taken += 1
                    return letter, buffer[position + 5 : end]
                self._letter = letter
                self._pieces = [buffer[position + 5 :]]
                self.missing = end - len(buffer)
                self.position = len(buffer)
            if not self._next_buffer():
                return None

    def lend(self) -> tuple[bytes, int]:
        """
        Give up the rest of the read that packets are taken from: it, and how far they have been.

        What is not taken of it must be put back before anything else is asked for.
        """
        lent = self.buffer, self.position
        self.buffer = self.queue.pop(0) if self.queue else b""
        self.position = 0
        return lent

    def put_back(self, data: bytes, position: int) -> None:
        """
        Take the rest of a read in, before all that has arrived since.
        """
        if self.buffer:
            self.queue.insert(0, self.buffer[self.position :])
        self.buffer = data
        self.position = position

    def _next_buffer(self) -> bool:
        if not self.queue:
            if self.position == len(self.buffer):
                self.buffer = b""
                self.position = 0
            return False
        rest = self.buffer[self.position :]
        arrived = self.queue.pop(0)
        self.buffer = rest + arrived if rest else arrived
        self.position = 0
        return True

    def _continue_packet(
        self, buffer: bytes, position: int, available: int
    ) -> tuple[int, bytes] | None:
        """
        Take more of a packet that came in part; give it when it is whole.
        """
        if available == 0:
            return None
        taken = min(available, self.missing)
        # A whole read is the usual piece: slicing all of a bytes object makes no copy.
        self._pieces.append(buffer[position : position + taken])
        self.position = position + taken
        self.missing -= taken
        if self.missing:
            if len(self._pieces) > _MAX_PIECES:
                # Into the first one, which grows: to join all of them anew each time would take
                # time with the square of the packet's size.
                first = self._pieces[0]
                if not isinstance(first, bytearray):
                    first = bytearray(first)
                first += b"".join(self._pieces[1:])
                self._pieces = [first]
            return None
        payload = b"".join(self._pieces)
        self._pieces = []
        self.taken += 1
        return self._letter, payload

    def _odd_length(self, length: int) -> int:
        if not self.strict and (length == 0 or length > 0x80000000):
            if self.odd is not None:
                self.odd(length)
            return 1
        raise ProtocolError(
            f"packet length {length} is not between 1 and {self.limit + 1}"
            " (is the peer a milter client at all?)"
        )
