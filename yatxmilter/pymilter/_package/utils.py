"""
Small helpers of programs written for pymilter: addresses, networks, header values.
"""

from __future__ import annotations

import email.errors
import email.header
import email.utils
import ipaddress
import re
import socket
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Final

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
    name, address = email.utils.parseaddr(text)
    opening = text.find("<")
    if (name and address) or opening <= 0 or not text.endswith(">"):
        return name, address
    before = text[:opening].strip()
    inside = text[opening + 1 : -1]
    route, colon, rest = inside.rpartition(":")
    if colon and route:
        inside = rest
    again = f'"{before}" <{inside}>' if not name else f"{before}<{inside}>"
    return email.utils.parseaddr(again)


def parse_header(value: str) -> str:
    """
    Decode the encoded words of a header value; where that cannot be, give it as it is.
    """
    try:
        parts = email.header.decode_header(value)
        if not parts or (len(parts) == 1 and not parts[0][1]):
            return value
        # Where anything is encoded all parts are bytes.
        return "".join([_part(text, charset) for text, charset in parts])
    except (LookupError, ValueError, email.errors.HeaderParseError):
        return value


def _part(text: bytes, charset: str | None) -> str:
    if charset:
        try:
            return text.decode(charset, "replace")
        except LookupError:
            pass
    return text.decode()
