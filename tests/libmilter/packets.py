"""
Packets of an MTA, for the generator and for tests: whole and right, or broken in the ways that
matter.
"""

from __future__ import annotations

import struct

from .source import Source

OFFER = (6, 0x1FF, 0x1FFFFF)
"""What Postfix and Sendmail offer."""

HOSTS = (b"mail.example.org", b"[192.0.2.1]", b"localhost", b"", b"h\xc3\xa9.example", b"h\xe9\xff")
ADDRESSES = (b"<s@example.org>", b"<>", b"r@example.net", b"", b"<\xff@x>", b"<a b@example.org>")
PARAMETERS = (b"SIZE=42", b"BODY=8BITMIME", b"NOTIFY=NEVER", b"", b"X=\xc3\xa9")
NAMES = (b"Subject", b"From", b"X-Long-Name", b"a", b"X\xff", b"X Y")
VALUES = (b"hi", b"", b" hi", b"one\n two", b"\xff\xfe", b"caf\xc3\xa9", b"a\rb", b"x" * 300)
LINES = (b"FOO bar", b"", b"\xff", b"EXPN list")
BODIES = (b"Hello\r\n", b"x", b"\0", b"a\0b\r\n", b"\xff\xfe", b"line\r\n" * 200)
MACROS = (
    b"j", b"i", b"_", b"{daemon_name}", b"{i}", b"daemon_name", b"{mail_addr}", b"", b"v", b"{}",
    b"{i}x", b"\xff", b"{\xff}", b"\xc3\xa9", b"{\xc3\xa9}",
)  # fmt: skip
STAGES = b"CHMRTNE"

IPV4 = (
    b"192.0.2.1", b"10.1", b"0x7f.1", b"127.0.0.1", b"1.2.3.4 junk", b"", b"[1.2.3.4]", b"::1",
    b"256.1.1.1",
)  # fmt: skip
IPV6 = (
    b"::1", b"IPv6:2001:db8:0:0:0:0:0:9", b"ipv6:::1", b"::ffff:1.2.3.4", b"[::1]",
    b"fe80::1%eth0", b"1.2.3.4", b"", b"IPv6:",
)  # fmt: skip
PATHS = (b"/run/socket", b"", b"x" * 107, b"x" * 108, b"/\xff")
ODD = {
    b"L": (
        b"N\x00\x00", b"N\x00v\x00more\x00", b"\x00v\x00w\x00", b"\x00\x00w\x00", b"\x00v\x00",
        b"\x00\x00", b"\x00", b"N\x00v", b"N\x00", b"N\x00\x00v\x00",
    ),
    b"H": (b"a\x00b\x00", b"abc", b"\x00", b"\x00a\x00", b"a\x00b"),
    b"M": (b"\x00", b"a\x00b", b"\x00\x00", b"abc", b"<a>\x00\x00B\x00"),
    b"R": (b"\x00", b"a\x00b", b"\x00\x00", b"abc", b"<a>\x00\x00B\x00"),
    b"U": (b"a\x00b\x00", b"abc", b"\x00", b"\x00a"),
    b"C": (
        b"h\x00U", b"h\x00U\x00", b"h\x00", b"h", b"\x00", b"h\x004", b"h\x004\x00",
        b"h\x004\x00\x19", b"h\x004\x00\x19\x00", b"h\x00L\x00\x19\x00", b"h\x00L\x00\x19",
        b"h\x006\x00\x19::1", b"h\x004\x00\x191.2.3.4\x00\x00", b"h\x004\x00\x191.2.3.4\x00x\x00",
    ),
    b"D": (
        b"Mi", b"Mi\x00", b"Mi\x00v", b"Mi\x00v\x00j\x00", b"M\x00", b"M\x00\x00", b"Li\x00v\x00",
    ),
    b"O": (b"", b"\x00" * 11, b"\x00\x00\x00\x06" + b"\x00" * 8, b"\x00\x00\x00\x02" * 4),
}  # fmt: skip
"""Payloads at the edges of what can be decoded."""


def packet(letter: bytes, payload: bytes = b"") -> bytes:
    """Frame a payload."""
    return struct.pack(">I", len(payload) + 1) + letter + payload


def strings(*values: bytes) -> bytes:
    """Put a NUL behind each string."""
    return b"".join([value + b"\0" for value in values])


def offer(version: int = 6, actions: int = 0x1FF, steps: int = 0x1FFFFF) -> bytes:
    """Make an option packet."""
    return packet(b"O", struct.pack(">III", version, actions & 0xFFFFFFFF, steps & 0xFFFFFFFF))


def connect(source: Source, *, good: bool) -> bytes:
    """Make a connect packet; a good one is of the kinds that MTAs send."""
    host = source.choice(HOSTS[:4] if good else HOSTS)
    family = source.choice(
        (b"4", b"6", b"U", b"L") if good else (b"4", b"6", b"U", b"L", b"l", b"\0", b"5")
    )
    if family == b"U":
        return packet(
            b"C", strings(host) + family + (b"" if good else source.choice((b"", b"junk", b"\0")))
        )
    port = struct.pack(">H", source.choice((4321, 25, 0, 65535)))
    pool = {b"4": IPV4, b"6": IPV6, b"L": PATHS}.get(family, IPV4)
    address = source.choice(pool[:3]) if good else source.choice(pool)
    if good and family == b"6":
        address = source.choice(IPV6[:4])
    return packet(b"C", strings(host) + family + port + strings(address))


def macros(source: Source, stage: bytes, *, good: bool) -> bytes:
    """Make a macro packet for a stage."""
    pairs = []
    for _ in range(source.integer(0, 3)):
        pairs += [
            source.choice(MACROS[:5] if good else MACROS),
            source.choice((b"v1", b"v2", b"", b"\xc3\xa9\xff")),
        ]
    payload = strings(*pairs)
    if not good and source.chance(2):
        payload = strings(*[b"n", b"v"] * source.choice((513, 512, 3000)))
    elif not good and source.chance(20):
        payload = source.choice(
            (payload[:-1], strings(*pairs, b"i"), payload + b"tail", b"", b"no NUL")
        )
    return packet(b"D", stage + payload)


def argv(source: Source, letter: bytes) -> bytes:
    """Make a MAIL or RCPT packet."""
    values = [source.choice(ADDRESSES)]
    values += [source.choice(PARAMETERS) for _ in range(source.choice((0, 0, 0, 1, 2)))]
    return packet(letter, strings(*values))


def header(source: Source) -> bytes:
    """Make a header packet."""
    return packet(b"L", strings(source.choice(NAMES), source.choice(VALUES)))


def body(source: Source) -> bytes:
    """Make a body packet."""
    if source.chance(1):
        return packet(b"B", b"b" * 65535)
    return packet(b"B", source.choice(BODIES))


def any_packet(source: Source) -> bytes:
    """Make a packet of any kind, whole and decodable."""
    letter = source.choice(
        (b"M", b"R", b"E", b"L", b"B", b"T", b"N", b"A", b"U", b"H", b"C", b"D", b"K", b"O", b"Q")
    )
    if letter in b"MR":
        return argv(source, letter)
    if letter == b"L":
        return header(source)
    if letter == b"B":
        return body(source)
    if letter == b"U":
        return packet(letter, strings(source.choice(LINES)))
    if letter == b"H":
        return packet(letter, strings(source.choice(HOSTS)))
    if letter == b"C":
        return connect(source, good=True)
    if letter == b"D":
        return macros(source, bytes((source.choice(STAGES),)), good=True)
    if letter == b"O":
        return offer(*OFFER)
    if letter == b"E" and source.chance(30):
        return packet(letter, source.choice(BODIES))
    return packet(letter)


def broken(source: Source) -> bytes:
    """Make bytes that no MTA would send."""
    kind = source.integer(0, 11)
    if kind >= 10:
        letter = source.choice(tuple(ODD))
        return packet(letter, source.choice(ODD[letter]))
    if kind == 0:
        return connect(source, good=False)
    if kind == 1:
        return macros(
            source, source.choice((b"M", b"E", b"L", b"B", b"U", b"A", b"\0", b"O")), good=False
        )
    if kind == 2:  # a payload cut short
        whole = any_packet(source)
        payload = whole[5 : source.integer(5, len(whole))]
        return packet(whole[4:5], payload)
    if kind == 3:  # a NUL or another byte somewhere
        whole = any_packet(source)
        at = source.integer(5, len(whole))
        return packet(whole[4:5], whole[5:at] + source.choice((b"\0", b"x", b"\xff")) + whole[at:])
    if kind == 4:  # an odd length
        length = source.choice((0, 0xFFFFFFFF, 0x80000001, 0x80000000, 65537, 2, 0x7FFFFFFF))
        return struct.pack(">I", length) + source.choice((b"Q", b"E", b"A", b"B", b"M", b"Z", b"N"))
    if kind == 5:  # a letter that means nothing
        return packet(
            source.choice((b"Z", b"c", b"\0", b"\x1f", b"\x80", b"\xff", b" ")),
            source.choice((b"", b"x\0")),
        )
    if kind == 6:  # the packet ends before its payload does
        whole = any_packet(source)
        return whole[: source.integer(0, len(whole))]
    if kind == 7:  # no payload at all
        return packet(source.choice((b"B", b"C", b"D", b"H", b"L", b"M", b"O", b"R", b"U")))
    if kind == 8:  # a payload where there is none
        return packet(
            source.choice((b"E", b"A", b"N", b"T", b"K", b"Q")),
            source.choice((b"x", b"\0", b"junk\0")),
        )
    return bytes([source.integer(0, 255) for _ in range(source.integer(1, 12))])
