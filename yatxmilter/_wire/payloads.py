"""
Bytes on the wire: the payloads of both directions, as ``encode_*``/``decode_*`` pairs.

What frames them is in `yatxmilter._wire.packets`. A decoder of a command answers with the
callback's arguments, with ``None`` where libmilter drops the command without a word, and raises
`ProtocolError` where libmilter closes the connection. Text is UTF-8 with surrogateescape, so that
any byte survives the round trip. Strings end at their NUL as they do in C.
"""

from __future__ import annotations

import socket
from struct import Struct
from typing import Final, NamedTuple

from yatxmilter._describing import described
from yatxmilter._wire.packets import PacketSplitter, encode_packet
from yatxmilter.constants import (
    MILTER_OPTLEN,
    SMFIA_INET,
    SMFIA_INET6,
    SMFIA_UNIX,
    SMFIA_UNKNOWN,
    SMFIC_MACRO,
    SMFIC_OPTNEG,
)
from yatxmilter.errors import ProtocolError, ValueNotSendable

__all__ = [
    "ConnectInfo",
    "Offer",
    "PacketSplitter",
    "decode_connect",
    "decode_header",
    "decode_indexed_header",
    "decode_line",
    "decode_macros",
    "decode_nothing",
    "decode_offer",
    "decode_raw",
    "decode_string",
    "decode_strings",
    "encode_connect",
    "encode_indexed_header",
    "encode_macros",
    "encode_offer",
    "encode_packet",
    "encode_strings",
    "from_text",
    "split_symbol_lists",
    "text_argument",
    "to_text",
]

_U32: Final = Struct(">I")
_U16: Final = Struct(">H")
_OFFER: Final = Struct(">III")

# sizeof(sun_path) less the closing NUL: a longer path is refused by libmilter.
_MAX_UNIX_PATH: Final = 107


def to_text(data: bytes) -> str:
    """
    Decode bytes from the wire; every byte survives a round trip through `from_text`.
    """
    return data.decode("utf-8", "surrogateescape")


def from_text(text: str | bytes) -> bytes:
    """
    Encode text for the wire; bytes pass unchanged.

    :raises UnicodeEncodeError: for a surrogate that is not an escaped byte.
    """
    if isinstance(text, str):
        return text.encode("utf-8", "surrogateescape")
    return text


def text_argument(what: str, value: object) -> bytes:
    """
    Encode a text that a user gave.

    :param what: What the text is, for the message of the error.
    :raises ValueNotSendable: when it is neither str nor bytes, or has characters of no encoding.
    """
    try:
        if isinstance(value, str):
            # `from_text`, without a call.
            return value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise ValueNotSendable(f"{what} {described(value)} cannot be encoded: {error}") from None
    if isinstance(value, bytes):
        return value
    raise ValueNotSendable(f"{what} {described(value)} is not str or bytes")


# ---- payloads of several kinds of packet


def encode_strings(*strings: bytes) -> bytes:
    """
    Join strings, each with its NUL.
    """
    return b"\0".join(strings) + b"\0"


def decode_strings(payload: bytes) -> tuple[list[str]]:
    """
    Split an argument vector (MAIL, RCPT); bytes after the last NUL are dropped.

    :raises ProtocolError: when there is no NUL at all.
    """
    # `to_text`, without a call.
    argv = payload.decode("utf-8", "surrogateescape").split("\0")
    argv.pop()
    if not argv:
        raise ProtocolError(f"argument vector without a NUL: {payload[:80]!r}")
    return (argv,)


def decode_string(payload: bytes) -> tuple[str] | None:
    """
    Read one string (HELO), up to its first NUL; ``None`` if the last byte is not a NUL.
    """
    if not payload.endswith(b"\0"):
        return None
    return (to_text(payload).partition("\0")[0],)


def decode_line(payload: bytes) -> tuple[str]:
    """
    Read a command line (UNKNOWN), up to its first NUL or the end.
    """
    return (to_text(payload).partition("\0")[0],)


def decode_nothing(payload: bytes) -> tuple[()]:
    """
    Take a payload that should be empty, and ignore it as libmilter does.
    """
    return ()


def decode_raw(payload: bytes) -> tuple[bytes]:
    """
    Take a payload that is one argument as it is (BODY).
    """
    return (payload,)


def decode_header(payload: bytes) -> tuple[str, str]:
    """
    Split a header field into name and value.

    :raises ProtocolError: when the last byte is not a NUL, or there is no second string.
    """
    # There are more of these than of all other commands: no calls, and first what most are.
    try:
        # What is no UTF-8 raises one, too.
        name, value, rest = payload.decode().split("\0")
        if name and not rest:
            return name, value
    except ValueError:
        pass
    # libmilter looks for the separator from the second byte on, so an empty name takes the
    # string behind it along; strings after the second are ignored.
    separator = payload.find(b"\0", 1)
    if not payload.endswith(b"\0") or not 0 < separator < len(payload) - 1:
        raise ProtocolError(f"header field is not two strings: {payload[:80]!r}")
    return (
        to_text(payload).partition("\0")[0],
        to_text(payload[separator + 1 :]).partition("\0")[0],
    )


def encode_indexed_header(index: int, name: bytes, value: bytes) -> bytes:
    """
    Write the payload of INSHEADER and CHGHEADER.
    """
    return _U32.pack(index) + encode_strings(name, value)


def decode_indexed_header(payload: bytes) -> tuple[int, str, str]:
    """
    Split index, name and value.

    :raises ProtocolError: when they are not all there.
    """
    if len(payload) < 4:
        raise ProtocolError(f"header action without an index: {payload!r}")
    return (_U32.unpack_from(payload)[0], *decode_header(payload[4:]))


# ---- CONNECT


class ConnectInfo(NamedTuple):
    """
    What CONNECT says of the SMTP client: family (``SMFIA_*``), port, and address or path.

    :ivar address: In the form of ``inet_ntop``; a path as it came; empty for an unknown family.
    """

    hostname: str
    family: int
    port: int
    address: str


def encode_connect(info: ConnectInfo) -> bytes:
    """
    Write the payload of CONNECT, with the address in the family's own form.
    """
    start = encode_strings(from_text(info.hostname)) + bytes([info.family])
    if info.family == SMFIA_UNKNOWN:
        return start
    return start + _U16.pack(info.port) + encode_strings(from_text(info.address))


def decode_connect(payload: bytes) -> ConnectInfo:
    """
    Read CONNECT; a prefix ``IPv6:`` is dropped, and addresses are brought into one form.

    :raises ProtocolError: when a part is missing, or the address is none of its family.
    """
    return ConnectInfo(*read_connect(payload))


def read_connect(payload: bytes) -> tuple[str, int, int, str]:
    """
    Do the same, and give it as it is in a `ConnectInfo`, which costs more to make.
    """
    host, _, rest = payload.partition(b"\0")
    hostname = to_text(host)
    if not rest:
        raise ProtocolError(f"CONNECT without an address family: {payload[:80]!r}")
    family = rest[0]
    if family == SMFIA_UNKNOWN:
        return hostname, family, 0, ""
    if len(rest) < 4 or rest[-1] != 0:
        raise ProtocolError(f"CONNECT with a cut address: {payload[:80]!r}")
    address = rest[3:].partition(b"\0")[0]
    return hostname, family, rest[1] << 8 | rest[2], _normal(family, address)


def _normal(family: int, address: bytes) -> str:
    text = to_text(address)
    try:
        if family == SMFIA_INET:
            return socket.inet_ntoa(socket.inet_aton(text))
        if family == SMFIA_INET6:
            bare = text[5:] if text[:5].lower() == "ipv6:" else text
            return socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, bare))
    except (OSError, UnicodeEncodeError):
        raise ProtocolError(f"CONNECT address {text!r} is none of family {chr(family)}") from None
    if family != SMFIA_UNIX:
        raise ProtocolError(f"CONNECT with unknown address family {chr(family)!r}")
    if len(address) > _MAX_UNIX_PATH:
        raise ProtocolError(f"CONNECT path of {len(address)} bytes, at most {_MAX_UNIX_PATH}")
    return text


# ---- MACRO


def encode_macros(letter: int, macros: dict[str, str]) -> bytes:
    """
    Write a whole MACRO packet for the command with this letter.
    """
    strings = [from_text(text) for pair in macros.items() for text in pair]
    payload = bytes([letter]) + (encode_strings(*strings) if strings else b"")
    return encode_packet(SMFIC_MACRO, payload)


def decode_macros(payload: bytes) -> dict[str, str | None]:
    """
    Read name and value pairs, the stage letter left out; of two with one name the first counts.

    The last name of an odd number of strings has the value ``None``.
    """
    strings: list[str | None] = [*to_text(payload).split("\0")]
    strings.pop()
    if len(strings) % 2:
        strings.append(None)
    macros: dict[str, str | None] = {}
    for name, value in zip(strings[::2], strings[1::2], strict=True):
        macros.setdefault(name or "", value)
    return macros


# ---- OPTNEG


class Offer(NamedTuple):
    """
    The three words of OPTNEG: an MTA's offer, or a milter's answer to it.

    :ivar actions: ``SMFIF_*`` flags.
    :ivar steps: ``SMFIP_*`` flags.
    """

    version: int
    actions: int
    steps: int


def encode_offer(offer: Offer, symbol_lists: dict[int, bytes] | None = None) -> bytes:
    """
    Write a whole OPTNEG packet, symbol lists in ascending order of their stages behind it.

    :param symbol_lists: Names separated by blanks, by ``SMFIM_*`` stage.
    """
    lists = [
        _U32.pack(stage) + names + b"\0" for stage, names in sorted((symbol_lists or {}).items())
    ]
    return encode_packet(SMFIC_OPTNEG, _OFFER.pack(*offer) + b"".join(lists))


def decode_offer(payload: bytes) -> Offer:
    """
    Read the three words; what follows them is left to `split_symbol_lists`.

    :raises ProtocolError: when there are fewer than 12 bytes.
    """
    if len(payload) < MILTER_OPTLEN:
        raise ProtocolError(f"OPTNEG of {len(payload)} bytes, at least {MILTER_OPTLEN} expected")
    return Offer(*_OFFER.unpack_from(payload))


def split_symbol_lists(payload: bytes) -> dict[int, str]:
    """
    Read the symbol lists of a milter's OPTNEG answer: names separated by blanks, by stage.

    :raises ProtocolError: when a list is cut.
    """
    lists: dict[int, str] = {}
    start = MILTER_OPTLEN
    while start < len(payload):
        end = payload.find(b"\0", start + 4)
        if end < 0:
            rest = payload[start : start + 80]
            raise ProtocolError(f"OPTNEG answer with a cut symbol list: {rest!r}")
        lists[_U32.unpack_from(payload, start)[0]] = to_text(payload[start + 4 : end])
        start = end + 1
    return lists
