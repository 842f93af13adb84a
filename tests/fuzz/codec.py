"""
Fuzzing of what reads bytes: the splitter, the decoders, and the client's reader of responses.

Nothing but a `ProtocolError` (or, of the client, a `PeerError`) may come of any bytes, and how
they are cut into reads must not matter.
"""

from __future__ import annotations

from contextlib import suppress

from yatxmilter import constants as c
from yatxmilter._engine.addresses import DECODERS
from yatxmilter._wire.actions import read_agreement, read_edit, read_response
from yatxmilter._wire.commands import ACTIONS, ALL_COMMANDS
from yatxmilter._wire.macros import MacroLimits, MacroStore
from yatxmilter._wire.packets import PacketSplitter, encode_packet
from yatxmilter._wire.payloads import Offer, decode_macros, encode_offer, split_symbol_lists
from yatxmilter.errors import PeerError, ProtocolError

from .choices import Choices

_OFFER = Offer(6, c.SMFI_CURR_ACTS, c.SMFI_CURR_PROT)


def test_one(data: bytes) -> None:
    """
    Read some bytes in every way.
    """
    choices = Choices(data[:8])
    stream = data[8:]
    _cut(choices, stream)
    for decode in DECODERS:
        _read(decode, stream)
    for action in ACTIONS.values():
        _read(action.decode, stream)
        if action.letter != c.SMFIR_PROGRESS:
            with suppress(PeerError):
                read_edit(action.letter, stream, c.SMFI_CURR_ACTS)
    for letter in set(stream[:4]):
        with suppress(PeerError):
            response = read_response(letter, stream)
            assert response.code in ALL_CODES, response
    _agreement(stream)
    _macros(stream)


ALL_CODES = {code for command in ALL_COMMANDS for code in command.codes}


def _read(decode: object, stream: bytes) -> None:
    assert callable(decode)
    with suppress(ProtocolError):
        found = decode(stream)
        assert found is None or isinstance(found, tuple), found


def _agreement(stream: bytes) -> None:
    with suppress(PeerError):
        agreement = read_agreement(_OFFER, c.SMFIC_OPTNEG, stream)
        assert not agreement.actions & ~_OFFER.actions
    with suppress(ProtocolError):
        lists = split_symbol_lists(stream)
        again = split_symbol_lists(
            encode_offer(
                _OFFER, {stage: n.encode("utf-8", "surrogateescape") for stage, n in lists.items()}
            )[5:]
        )
        assert again == lists, (again, lists)


def _macros(stream: bytes) -> None:
    store = MacroStore()
    store.limits = MacroLimits(16, 256)
    for payload in stream.split(b"D"):
        if payload:
            with suppress(ProtocolError):
                store.put(payload)
            for name in decode_macros(payload[1:]):
                store.get(name)
    store.all()


def _cut(choices: Choices, stream: bytes) -> None:
    whole = _packets([stream])
    pieces = []
    rest = stream
    while rest:
        size = 1 + choices.below(64)
        pieces.append(rest[:size])
        rest = rest[size:]
    assert _packets(pieces) == whole
    assert _packets([stream[place : place + 1] for place in range(len(stream))]) == whole
    packets, _ = whole
    again, failed = _packets([encode_packet(letter, payload) for letter, payload in packets])
    assert (again, failed) == (packets, False)


def _packets(pieces: list[bytes]) -> tuple[list[tuple[int, bytes]], bool]:
    splitter = PacketSplitter(200)
    fed = taken = 0
    packets: list[tuple[int, bytes]] = []
    for piece in pieces:
        splitter.feed(piece)
        fed += len(piece)
        try:
            while (packet := splitter.next_packet()) is not None:
                packets.append(packet)
                taken += 5 + len(packet[1])
        except ProtocolError:
            return packets, True
        # The five bytes before the pieces of an incomplete packet are not counted.
        assert 0 <= fed - taken - splitter.buffered <= 5
        assert splitter.partial == (fed > taken)
    assert splitter.taken == len(packets)
    return packets, False
