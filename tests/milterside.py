"""
The milter's end of a client's connection, written by hand: packets in, packets out.

A `Rig` holds a client, its transport and its clock. `Rig.sent` gives what the client has written
since the last look, and `Rig.answer` says something to it. `Rig.serve` answers on and on by a
script.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from twisted import internet
from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransportWithDisconnection
from twisted.trial.unittest import SynchronousTestCase

from yatxmilter import constants as c
from yatxmilter._wire.payloads import Offer, PacketSplitter, encode_offer, encode_packet
from yatxmilter.client import MilterClient, Response

Packet = tuple[str, bytes]

CONTINUE = Response(c.SMFIS_CONTINUE, c.SMFIR_CONTINUE)
#: What a command gets that was not sent, or needs no answer.
NOTHING = Response(c.SMFIS_CONTINUE)
V4 = IPv4Address("TCP", "192.0.2.1", 4321)
#: The offer of Postfix and Sendmail.
OFFER = b"\0\0\0\x0dO\0\0\0\6\0\0\1\xff\0\x1f\xff\xff"


class Rig:
    """
    A client with a milter that says what the test says.
    """

    def __init__(self, *, start: bool = True, **options: Any) -> None:
        self.clock = Clock()
        self.client = MilterClient(clock=self.clock, **options)
        self.transport = StringTransportWithDisconnection()
        self.transport.protocol = self.client
        if start:
            self.start()

    def start(self) -> None:
        """
        Make the connection.
        """
        self.client.makeConnection(self.transport)

    def written(self) -> bytes:
        """
        Give the bytes written since the last look.
        """
        data: bytes = self.transport.value()
        self.transport.clear()
        return data

    def sent(self) -> list[Packet]:
        """
        Give the packets written since the last look: letter and payload.
        """
        splitter = PacketSplitter(c.MILTER_MDS_1M, strict=True)
        splitter.feed(self.written())
        packets = []
        while (packet := splitter.next_packet()) is not None:
            packets.append((chr(packet[0]), packet[1]))
        return packets

    def letters(self) -> str:
        """
        Give the letters of the packets written since the last look.
        """
        return "".join(letter for letter, _ in self.sent())

    def answer(self, letter: str, payload: bytes = b"") -> None:
        """
        Send the client a packet.
        """
        self.client.dataReceived(encode_packet(ord(letter), payload))

    def agree(
        self,
        steps: int = 0,
        actions: int = c.SMFI_CURR_ACTS,
        version: int = 6,
        lists: dict[int, bytes] | None = None,
    ) -> None:
        """
        Negotiate, with this for the milter's answer, and forget what was written for it.
        """
        offered = c.SMFI_CURR_PROT | steps
        self.client.negotiate(steps=offered)
        self.client.dataReceived(encode_offer(Offer(version, actions, steps), lists))
        self.written()

    def serve(self, script: dict[str, list[bytes]] | None = None) -> list[Packet]:
        """
        Answer commands until none comes any more.

        :param script: The answers to a command, first come first served; after them, and to all
            others, CONTINUE.
        :return: What the client sent.
        """
        script = script or {}
        seen = []
        while packets := self.sent():
            seen.extend(packets)
            letter = packets[-1][0]
            if letter in "DAKQ":
                break
            answers = script.get(letter)
            self.client.dataReceived(answers.pop(0) if answers else packet("c"))
        return seen


def packet(letter: str, payload: bytes = b"") -> bytes:
    """
    Frame a response.
    """
    return encode_packet(ord(letter), payload)


def reply(text: str) -> bytes:
    """
    Frame an SMTP reply.
    """
    return packet("y", text.encode("ascii") + b"\0")


def letters_of(packets: list[Packet], *, macros: bool = False) -> str:
    """
    Give the letters of packets, those of macros only on demand.
    """
    return "".join(letter for letter, _ in packets if macros or letter != "D")


def stand_in_for_reactor(test: SynchronousTestCase, reactor: object) -> None:
    """
    Have ``from twisted.internet import reactor`` give this one until the test is over.
    """
    # The attribute is there, and can be replaced, once a reactor has been installed.
    import_module("twisted.internet.reactor")
    test.patch(internet, "reactor", reactor)
