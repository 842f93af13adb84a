"""
The milters that are compared, one row for each.

What they do is said in ``peers/settings.py``; each does the same work in its own language and
library.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

from .build import HERE, ROOT, c_program, go_program, python_with

#: Debian's libmilter keeps a pool of threads; one thread for a connection is its upstream's way.
Command = list[str]


@dataclass(frozen=True)
class Peer:
    """
    One milter library.

    :ivar make: Builds it, and gives the command that runs it.
    :ivar lacks: The settings that it cannot be given.
    :ivar language: What it is written in.
    """

    name: str
    title: str
    make: Callable[[], Command]
    lacks: frozenset[str] = frozenset()


def _script(name: str, *requirements: str) -> Callable[[], Command]:
    def make() -> Command:
        python = python_with(*requirements) if requirements else sys.executable
        return [str(python), str(HERE / "peers" / name)]

    return make


_ONLY_OURS = frozenset({"BENCH_MILTERS", "BENCH_STYLE"})

OURS = Peer("yatxmilter", "yatxmilter", _script("ours.py"))

PEERS = {
    peer.name: peer
    for peer in (
        OURS,
        Peer(
            "libmilter",
            "C libmilter",
            lambda: [str(c_program("peers/libmilter.c", "milter", "pthread"))],
            _ONLY_OURS,
        ),
        Peer("pymilter", "pymilter", _script("with_pymilter.py", "pymilter==1.0.5"), _ONLY_OURS),
        Peer(
            "limit",
            "raw C (limit)",
            lambda: [str(c_program("peers/limit.c"))],
            _ONLY_OURS | {"BENCH_WAIT"},
        ),
    )
}

#: What the Python peers find on their path.
PYTHONPATH = str(ROOT)
