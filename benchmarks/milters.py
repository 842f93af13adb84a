"""
The milters that are compared, one row for each.

What they do is said in ``peers/settings.py``; each does the same work in its own language and
library.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from .build import (
    HERE,
    ROOT,
    Unavailable,
    c_program,
    compiled_python,
    go_module_program,
    go_program,
    python_with,
)

Command = list[str]

#: What the Python milters find on their path.
PYTHONPATH = str(ROOT)


@dataclass(frozen=True)
class Peer:
    """
    One milter library.

    :ivar make: Builds it, and gives the command that runs it.
    :ivar lacks: The settings that it cannot be given.
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


def _compiled(name: str) -> Callable[[], Command]:
    # Without -E the source would be found first, on PYTHONPATH.
    return lambda: [str(compiled_python()), "-E", str(HERE / "peers" / name)]


def _on_ours(*options: str) -> Callable[[], Command]:
    program = str(HERE / "peers" / "with_pymilter.py")
    return lambda: [sys.executable, "-m", "yatxmilter", "pymilter", *options, program]


_ONE = frozenset({"BENCH_MILTERS"})
_ONLY_OURS = frozenset({"BENCH_MILTERS", "BENCH_STYLE", "BENCH_MERGE"})


@cache
def _newest_go_milter() -> Command | str:
    """
    Build the faster go-milter, once; give its command, or why there is none.
    """
    library = ("github.com/d--j/go-milter", "v0.10.1", (1, 25), "YATXMILTER_GO_MILTER")
    try:
        return [str(go_module_program("peers/gomilter/main.go", *library))]
    except Unavailable as reason:
        return str(reason)


def _go_milter() -> Command:
    found = _newest_go_milter()
    if isinstance(found, str):
        raise Unavailable(found)
    return found


def _former_go_milter() -> Command:
    # Where the faster one is, it stands for both.
    if not isinstance(_newest_go_milter(), str):
        raise Unavailable("d--j's, which is faster, is measured in its place")
    return [str(go_program("peers/gomilter_emersion/main.go", "github.com/emersion/go-milter"))]


PEERS = {
    peer.name: peer
    for peer in (
        Peer("yatxmilter", "yatxmilter", _script("ours.py")),
        Peer("compiled", "yatxmilter, compiled", _compiled("ours.py")),
        Peer("compiled-serve", "yatxmilter serve, compiled", _compiled("served.py"), _ONE),
        Peer("workers", "yatxmilter", _script("workers.py")),
        Peer("serve", "yatxmilter serve", _script("served.py"), _ONE),
        Peer(
            "libmilter",
            "C libmilter",
            lambda: [str(c_program("peers/libmilter.c", "milter", "pthread"))],
            _ONLY_OURS,
        ),
        Peer("pymilter", "pymilter", _script("with_pymilter.py", "pymilter==1.0.5"), _ONLY_OURS),
        Peer("go-milter", "go-milter (d--j)", _go_milter, _ONLY_OURS),
        Peer(
            "unchanged",
            "pymilter's program on yatxmilter",
            _on_ours("--inline"),
            _ONLY_OURS,
        ),
        Peer(
            "unchanged-threads",
            "pymilter's program on yatxmilter, in threads",
            _on_ours(),
            _ONLY_OURS,
        ),
        Peer(
            "go-milter-emersion",
            "go-milter (emersion)",
            _former_go_milter,
            _ONLY_OURS | {"BENCH_NOREPLY"},
        ),
        Peer(
            "python-libmilter",
            "python-libmilter",
            _script("with_python_libmilter.py", "python-libmilter==2.0.0"),
            _ONLY_OURS,
        ),
        Peer(
            "purepythonmilter",
            "purepythonmilter",
            _script("with_purepythonmilter.py", "purepythonmilter==0.0.1"),
            _ONLY_OURS,
        ),
        Peer("floor", "raw Twisted", _script("floor.py"), _ONLY_OURS | {"BENCH_WAIT"}),
        Peer(
            "limit",
            "raw C",
            lambda: [str(c_program("peers/limit.c"))],
            _ONLY_OURS | {"BENCH_WAIT"},
        ),
    )
}
