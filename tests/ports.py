"""
TCP ports on which nobody listens, for programs that have to be told theirs.

What the system chooses (port 0) is anybody's as soon as it is let go: another test that runs at the
same time, or any connection to a server, may have it before the program that was told it listens.
So these are not of the range from which the system chooses, and no two test runs share them.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

#: The lowest of our ports.
_LOWEST = 10_000

#: Ports that one process of the tests takes together.
_BLOCK = 100

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def _blocks() -> Iterator[range]:
    low, high = map(int, _RANGE.read_text().split()) if _RANGE.exists() else (32768, 65535)
    for first in range(_LOWEST, 65536 - _BLOCK, _BLOCK):
        if first + _BLOCK <= low or first > high:
            yield range(first, first + _BLOCK)


def _ports() -> Iterator[int]:
    for block in _blocks():
        # Such a name is the system's own, in no folder, and is gone with the process.
        lock = socket.socket(socket.AF_UNIX)
        try:
            lock.bind(f"\0yatxmilter tests, ports from {block.start}")
        except OSError:
            lock.close()
            continue
        _locks.append(lock)
        yield from filter(_is_free, block)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


_locks: list[socket.socket] = []
_free = _ports()


def free_port() -> int:
    """
    Give a TCP port on which nobody listens, never the same one twice.

    :raises StopIteration: if all are used up.
    """
    return next(_free)


def free_ports(count: int) -> list[int]:
    """
    Give TCP ports on which nobody listens, all different.
    """
    return [free_port() for _ in range(count)]
