"""
Small helpers of programs written for pymilter: addresses, networks, header values.
"""

from __future__ import annotations

import email.quoprimime
import email.utils
import ipaddress
import re
import socket
from binascii import a2b_base64
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

from yatxmilter._mail.addresses import Group, read_addresses
from yatxmilter._mail.words import charset_codec, unfold

__all__ = ["addr2bin", "bin2long6", "inet_ntop", "inet_pton", "iniplist", "ip4re", "ip6re"]
__all__ += ["parse_addr", "parse_header", "parseaddr"]

_OCTET: Final = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IP4: Final = rf"{_OCTET}(?:\.{_OCTET}){{3}}"
_GROUP: Final = "[0-9a-f]{1,4}"
_LAST: Final = rf"(?:{_GROUP}:{_GROUP}|{_IP4})"


def _ip6_pattern() -> str:
    """
    Write all places where ``::`` may stand in an IPv6 address.
    """
    forms = [rf"(?:{_GROUP}:){{6}}{_LAST}"]
    # Groups that may stand before it, and what stands behind it.
    for before, behind in enumerate(
        (
            rf"(?:{_GROUP}:){{5}}{_LAST}",
            rf"(?:{_GROUP}:){{4}}{_LAST}",
            rf"(?:{_GROUP}:){{3}}{_LAST}",
            rf"(?:{_GROUP}:){{2}}{_LAST}",
            rf"{_GROUP}:{_LAST}",
            _LAST,
            _GROUP,
            "",
        )
    ):
        first = rf"(?:(?:{_GROUP}:){{0,{before - 1}}}{_GROUP})?" if before else ""
        forms.append(f"{first}::{behind}")
    return "|".join(forms)


#: Matches an IPv4 address from its beginning to its end.
ip4re: Final = re.compile(rf"{_IP4}$")
#: Matches an IPv6 address from its beginning to its end.
ip6re: Final = re.compile(rf"(?:{_ip6_pattern()})$", re.IGNORECASE)
#: What an encoded word begins with. Its text ends at the next ``?=``.
_WORD: Final = re.compile(r"=\?([^?]*)\?([bBqQ])\?")
#: Longer lists, and those with more colons and brackets, are not left to Python's reader.
_ADDRESS_LENGTH: Final = 4096
_ADDRESS_MARKS: Final = 50
_HOSTNAME: Final = re.compile(r"[a-z][-a-z0-9.]+$", re.IGNORECASE)


def inet_ntop(packed: bytes) -> str:
    """
    Write the 16 bytes of an IPv6 address as text.
    """
    return socket.inet_ntop(socket.AF_INET6, packed)


def inet_pton(text: str) -> bytes:
    """
    Read an IPv6 address as 16 bytes.

    :raises OSError: for what is none.
    """
    return socket.inet_pton(socket.AF_INET6, text.strip())


def bin2long6(packed: bytes) -> int:
    """
    Read 16 bytes as a number.
    """
    return int.from_bytes(packed, "big")


def addr2bin(text: str) -> int:
    """
    Read an IPv4 or IPv6 address as a number.

    :raises OSError: for what is none.
    """
    if ":" in text:
        try:
            return bin2long6(inet_pton(text))
        except OSError:
            raise OSError(f"Invalid IP6 address: {text}") from None
    try:
        return int.from_bytes(socket.inet_aton(text), "big")
    except OSError:
        raise OSError(f"Invalid IP4 address: {text}") from None


def _in_network(address: ipaddress.IPv4Address | ipaddress.IPv6Address, network: str) -> bool:
    # An IPv4 pattern for an IPv6 client, and the other way round, is no match.
    return address in ipaddress.ip_network(network, strict=False)


def iniplist(ipaddr: str, iplist: Iterable[str]) -> bool:
    """
    Tell whether an address is in a list of addresses, networks, patterns and host names.

    :param iplist: ``192.0.2.1``, ``192.0.2.0/24``, ``2001:db8::/32``, ``192.0.2.*``, or a host
        name, which is looked up, with ``/24`` behind it or without.
    :raises ValueError: when ``ipaddr`` is no address.
    """
    if not (ip4re.match(ipaddr) or ip6re.match(ipaddr)):
        raise ValueError(f"Invalid ip syntax:{ipaddr}")
    address = ipaddress.ip_address(ipaddr)
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    for pattern in iplist:
        where, slash, length = pattern.partition("/")
        if ip4re.match(where) or ip6re.match(where):
            if _in_network(address, pattern):
                return True
        elif _HOSTNAME.match(where):
            try:
                found = {str(one[4][0]) for one in socket.getaddrinfo(where, 25, family)}
            except socket.gaierror:
                continue
            if iniplist(ipaddr, [one + slash + length for one in found]):
                return True
        elif fnmatchcase(ipaddr, pattern):
            return True
    return False


def parse_addr(address: str) -> list[str]:
    """
    Split an envelope address into its local part and its domain.

    Angle brackets, quotes and a source route are left away; without a domain there is one part.
    """
    if address.startswith("<") and address.endswith(">"):
        address = address[1:-1]
    if address.startswith('"'):
        if address.endswith('"'):
            return [address[1:-1]]
        local, quote, domain = address[1:].partition('"@')
        if quote:
            return [local, domain]
    if address.startswith("@"):
        # A source route ends at the first colon.
        _, colon, rest = address.partition(":")
        address = rest if colon else address
    return address.rsplit("@", 1)


def parseaddr(text: str) -> tuple[str, str]:
    """
    Split an address of a header field into full name and address.

    What `email.utils.parseaddr` fails at - a full name with special characters that is not quoted,
    a source route - is tried again.
    """
    name, address = _first_address(text)
    opening = text.find("<")
    if (name and address) or opening <= 0 or not text.endswith(">"):
        return name, address
    before = text[:opening].strip()
    inside = text[opening + 1 : -1]
    route, colon, rest = inside.rpartition(":")
    if colon and route:
        inside = rest
    again = f'"{before}" <{inside}>' if not name else f"{before}<{inside}>"
    return _first_address(again)


def _first_address(text: str) -> tuple[str, str]:
    """
    Give the first address of a list, and the name beside it, in which nothing is decoded.
    """
    if len(text) <= _ADDRESS_LENGTH and text.count(":") + text.count("(") <= _ADDRESS_MARKS:
        return email.utils.parseaddr(text)
    # Of a long list Python reads a group in quadratic time, and groups or comments in one another
    # by recursion. A character that no field can have keeps encoded words from being seen.
    entries, _ = read_addresses(unfold(text).replace("=?", "=\0?"))
    for entry in entries:
        for found in entry.addresses if isinstance(entry, Group) else (entry,):
            return found.display_name.replace("\0", ""), found.addr_spec.replace("\0", "")
    return "", ""


def parse_header(value: str) -> str:
    """
    Decode the encoded words of a header value; where that cannot be, give it as it is.
    """
    if "=?" not in value:
        return value
    try:
        runs = _runs(_words(value))
        if len(runs) == 1 and not runs[0][0]:
            return value
        return "".join([_part(b"".join(texts), charset) for charset, texts in runs])
    except ValueError:
        return value


class _Word(NamedTuple):
    """
    A piece of a header value.

    :ivar text: What stands there, in an encoded word between the question marks.
    :ivar encoding: ``q`` or ``b``; empty for what is no encoded word.
    :ivar charset: Its charset; ``None`` for what is no encoded word.
    """

    text: str
    encoding: str = ""
    charset: str | None = None

    def octets(self) -> bytes:
        """
        Take the encoding off.

        :raises ValueError: for what is not base64.
        """
        if self.encoding == "b":
            missing = "=" * (-len(self.text) % 4)
            return a2b_base64((self.text + missing).encode("raw-unicode-escape"))
        text = email.quoprimime.header_decode(self.text) if self.encoding else self.text
        return text.encode("raw-unicode-escape")


def _words(value: str) -> list[_Word]:
    """
    Split a value as `email.header.decode_header` does, which takes quadratic time for it.
    """
    words: list[_Word] = []
    for line in value.splitlines():
        start = 0
        for before, word, end in _line_words(line):
            plain = line[start:before] if start else line[:before].lstrip()
            words += [_Word(plain), word] if plain else [word]
            start = end
        rest = line[start:] if start else line.lstrip()
        if rest:
            words.append(_Word(rest))
    # Blanks between two encoded words are not shown.
    return [
        word
        for place, word in enumerate(words)
        if not (
            0 < place < len(words) - 1
            and word.text.isspace()
            and words[place - 1].encoding
            and words[place + 1].encoding
        )
    ]


def _line_words(line: str) -> Iterator[tuple[int, _Word, int]]:
    """
    Yield the encoded words of a line, and where each begins and ends.
    """
    start = 0
    while (match := _WORD.search(line, start)) is not None:
        close = line.find("?=", match.end())
        if close < 0:
            # Nor is there one behind any that begins later.
            return
        start = close + 2
        text = line[match.end() : close]
        yield match.start(), _Word(text, match[2].lower(), match[1].lower()), start


def _runs(words: Iterable[_Word]) -> list[tuple[str | None, list[bytes]]]:
    """
    Put together what has one charset: it may have cut a character in two.
    """
    runs: list[tuple[str | None, list[bytes]]] = []
    for word in words:
        if not runs or runs[-1][0] != word.charset:
            runs.append((word.charset, []))
        elif word.charset is None:
            runs[-1][1].append(b" ")
        runs[-1][1].append(word.octets())
    return runs


def _part(text: bytes, charset: str | None) -> str:
    codec = charset_codec(charset) if charset else None
    return text.decode(codec, "replace") if codec else text.decode()
