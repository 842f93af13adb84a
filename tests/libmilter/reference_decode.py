"""
How libmilter reads the two payloads that are more than strings, for the reference engine.
"""

from __future__ import annotations

import socket
import struct

from .case import Answer


def connect_arguments(payload: bytes) -> tuple[Answer, ...] | None:
    """Give host, address, port and family (or host, None, 0); None when libmilter gives up."""
    host, separator, rest = payload.partition(b"\0")
    if not separator or not rest:
        return None
    family, rest = rest[:1], rest[1:]
    if family == b"U":
        return host, None, 0
    if len(rest) < 3 or not rest.endswith(b"\0"):
        return None
    port = struct.unpack(">H", rest[:2])[0]
    text = rest[2:].partition(b"\0")[0]
    try:
        if family == b"4":
            packed = socket.inet_aton(text.decode("latin-1"))
            return host, socket.inet_ntop(socket.AF_INET, packed).encode(), port, 4
        if family == b"6":
            if text[:5].lower() == b"ipv6:":
                text = text[5:]
            packed = socket.inet_pton(socket.AF_INET6, text.decode("latin-1"))
            return host, socket.inet_ntop(socket.AF_INET6, packed).encode(), port, 6
    except (OSError, UnicodeEncodeError):
        return None
    return (host, text, 1) if family == b"L" and len(text) <= 107 else None


def header_arguments(payload: bytes) -> tuple[bytes, bytes] | None:
    """Give name and value; None when libmilter gives up. The separator is never the first byte."""
    end = payload.find(b"\0", 1)
    if not payload.endswith(b"\0") or not 0 < end < len(payload) - 1:
        return None
    return payload.partition(b"\0")[0], payload[end + 1 :].partition(b"\0")[0]
