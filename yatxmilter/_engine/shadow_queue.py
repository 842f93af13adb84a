"""
What waits for a milter in shadow: packets, put aside as the real conversation takes them.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from yatxmilter import constants as c
from yatxmilter._wire.commands import COMMANDS
from yatxmilter._wire.packets import PacketSplitter

__all__ = ["Backlog", "Packet"]

Packet = tuple[int, bytes]

#: Commands before which a message, if one is open, is over; and the macros that belong to them.
_BOUNDARIES: Final = frozenset(b"CHMQK")
_THEIR_MACROS: Final = (b"C", b"H", b"M")
#: Commands that are the last of a message.
_LAST: Final = frozenset((c.SMFIC_BODYEOB, c.SMFIC_ABORT))


class Backlog(PacketSplitter):
    """
    Packets that wait, in the place of the bytes of a connection.

    :ivar size: How many bytes they have.
    """

    __slots__ = ("_dropping", "_packets", "size")

    def __init__(self) -> None:
        super().__init__()
        self._packets: deque[Packet] = deque()
        self._dropping = False
        self.size = 0

    def put(self, packet: Packet) -> None:
        """
        Let a packet wait, unless it is of a message that is dropped.
        """
        letter, payload = packet
        if self._dropping:
            if letter in _LAST:
                self._dropping = False
                return
            if letter in _BOUNDARIES:
                self._dropping = False
            elif letter != c.SMFIC_MACRO or payload[:1] not in _THEIR_MACROS:
                return
        self._packets.append(packet)
        self.size += len(payload) + 5

    def next_packet(self) -> Packet | None:
        """
        Take the packet that has waited longest.
        """
        if not self._packets:
            return None
        packet = self._packets.popleft()
        self.size -= len(packet[1]) + 5
        return packet

    def clear(self) -> None:
        """
        Forget all.
        """
        self._packets.clear()
        self.size = 0

    def drop_message(self, *, begun: bool) -> bool:
        """
        Drop a message, what is still to come of it included.

        :param begun: Whether it is the one that has been begun; otherwise the first that waits.
        :return: Whether there was one.
        """
        packets = list(self._packets)
        self.clear()
        self._dropping = dropped = begun
        for packet in packets:
            letter = packet[0]
            command = COMMANDS.get(letter)
            if not dropped and command is not None and command.in_message:
                dropped = True
                self._dropping = letter not in _LAST
            else:
                self.put(packet)
        return dropped
