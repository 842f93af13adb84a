"""
What is measured, one row for each table, and which milters take part in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .milters import PEERS


@dataclass(frozen=True)
class Variant:
    """
    One milter as it takes part in a scenario.

    :ivar label: What tells it apart from others of the same library.
    :ivar settings: What it alone is told, as ``peers/settings.py`` describes it.
    :ivar everywhere: Whether it and the load generator may use every core; else each has its own.
    """

    peer: str
    label: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    everywhere: bool = False

    @property
    def title(self) -> str:
        """
        Its name in a table.
        """
        title = PEERS[self.peer].title
        return f"{title}, {self.label}" if self.label else title


@dataclass(frozen=True)
class Scenario:
    """
    One table.

    :ivar load: Options of the load generator.
    :ivar settings: What all milters are told, as ``peers/settings.py`` describes it.
    :ivar seconds: How long one run takes.
    :ivar kind: How it is measured: ``load``, ``idle``, ``shares`` or ``sendmail``.
    :ivar compared: The figures whose ratio to the first milter is shown.
    :ivar inverse: Show the others' figures over those of the first, not the first's over theirs.
    """

    name: str
    title: str
    load: Mapping[str, object]
    variants: tuple[Variant, ...]
    settings: Mapping[str, str] = field(default_factory=dict)
    tcp: bool = False
    seconds: float = 2.5
    kind: str = "load"
    compared: tuple[str, ...] = ("cpu", "rate")
    inverse: bool = False


def _variants(*peers: str) -> tuple[Variant, ...]:
    return tuple(map(Variant, peers))


_OURS = Variant("yatxmilter")
#: Of the two in Go, the faster one that can be had.
_GO = _variants("go-milter", "go-milter-emersion")
_FAST = (*_variants("yatxmilter", "compiled", "libmilter", "pymilter"), *_GO)
_LIBRARIES = (*_FAST, *_variants("python-libmilter", "purepythonmilter"))
_ALL = (*_LIBRARIES, *_variants("floor", "limit"))
#: Those that thousands of connections do not bring to a halt.
_LARGE = _FAST

_SMALL = {"connections": 20, "headers": 20, "body": 4096}
_REUSE = {**_SMALL, "reuse": 50}
_HEADERS = {"connections": 20, "headers": 200, "body": 4096, "reuse": 10}

_STYLES = (
    _OURS,
    Variant("yatxmilter", "three milters", {"BENCH_MILTERS": "3"}),
    Variant("yatxmilter", "Deferreds", {"BENCH_STYLE": "deferred"}),
    Variant("yatxmilter", "coroutines", {"BENCH_STYLE": "coroutine"}),
)

#: The same program on the real pymilter, and on ours.
_UNCHANGED = _variants("unchanged", "unchanged-threads", "pymilter")

_THREE = {"BENCH_MILTERS": "3"}
_CHAIN = (
    Variant("yatxmilter", "three milters, first", _THREE),
    Variant("yatxmilter", "three milters, strictest", {**_THREE, "BENCH_MERGE": "strictest"}),
    Variant("yatxmilter", "three milters, chain", {**_THREE, "BENCH_MERGE": "chain"}),
)

# A line of the log for each message is level info; the metrics count messages, too.
_METRICS = {"BENCH_METRICS": "1"}
_NO_LINES = {"BENCH_LOG_LEVEL": "warn"}
_SERVE = (
    _OURS,
    Variant("serve", "no line a message", _NO_LINES),
    Variant("serve", "metrics, no line a message", {**_METRICS, **_NO_LINES}),
    Variant("serve"),
    Variant("serve", "metrics", _METRICS),
    *_variants("compiled", "compiled-serve"),
    Variant("compiled-serve", "metrics", _METRICS),
)

_WORKERS = (
    Variant("workers", "one worker", {"BENCH_WORKERS": "1"}),
    Variant("workers", "two workers", {"BENCH_WORKERS": "2"}, everywhere=True),
)

SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("small-unix", "Small messages, a connection each, UNIX", _SMALL, _ALL),
        Scenario("small-tcp", "Small messages, a connection each, TCP", _SMALL, _ALL, tcp=True),
        Scenario("reuse-unix", "Small messages, 50 on a connection, UNIX", _REUSE, _ALL),
        Scenario("reuse-tcp", "Small messages, 50 on a connection, TCP", _REUSE, _ALL, tcp=True),
        Scenario(
            "pymilter",
            "A program for pymilter, unchanged: small messages, a connection each, UNIX",
            _SMALL,
            _UNCHANGED,
        ),
        Scenario(
            "pymilter-reuse",
            "A program for pymilter, unchanged: 50 messages on a connection, UNIX",
            _REUSE,
            _UNCHANGED,
        ),
        Scenario(
            "pymilter-waiting",
            "A program for pymilter, unchanged: 1,000 connections, each message waits 100 ms",
            {"connections": 1000, "headers": 20, "body": 4096},
            _UNCHANGED[1:],
            {"BENCH_WAIT": "100"},
            seconds=12,
            compared=("rate", "p99", "cpu"),
        ),
        Scenario(
            "styles",
            "Several milters; callbacks that return Deferreds or are coroutines, and do not wait",
            _SMALL,
            _STYLES,
            inverse=True,
        ),
        Scenario("chain", "Three milters, a connection each", _SMALL, _CHAIN, inverse=True),
        Scenario("chain-reuse", "Three milters, 50 on a connection", _REUSE, _CHAIN, inverse=True),
        Scenario("serve", "A plain listenUNIX, and serve", _SMALL, _SERVE, inverse=True),
        Scenario(
            "workers",
            "One worker process with a core of its own; two, which share two with the generator",
            _HEADERS,
            _WORKERS,
            {"BENCH_NOREPLY": "1"},
            compared=("whole", "rate", "cpu"),
            inverse=True,
        ),
        Scenario(
            "shares",
            "200 connections that are held, and how two workers share them",
            {"connections": 200, "headers": 2, "body": 100, "window": 20},
            (
                Variant("workers", "two workers", {"BENCH_WORKERS": "2"}, everywhere=True),
                Variant("workers", "four workers", {"BENCH_WORKERS": "4"}, everywhere=True),
            ),
            kind="shares",
            compared=(),
        ),
        Scenario("headers", "200 header fields, each answered", _HEADERS, _ALL),
        Scenario(
            "headers-noreply",
            "200 header fields, none answered",
            _HEADERS,
            _ALL,
            {"BENCH_NOREPLY": "1"},
        ),
        Scenario(
            "large",
            "Bodies of 10 MB",
            {"connections": 4, "headers": 20, "body": 10_000_000, "reuse": 4},
            _ALL,
            compared=("rate", "cpu"),
        ),
        Scenario(
            "two-writes",
            "Macros and command in two writes, as Sendmail sends them; TCP, 25 header fields",
            {"connections": 1, "headers": 25, "body": 4096, "reuse": 50, "split": True},
            (*_FAST, *_variants("floor", "limit")),
            tcp=True,
            compared=("p50", "cpu"),
        ),
        Scenario(
            "waiting",
            "5,000 connections, each message waits 100 ms at its end",
            {"connections": 5000, "headers": 20, "body": 4096},
            _LARGE,
            {"BENCH_WAIT": "100"},
            seconds=12,
            compared=("rate", "p99", "cpu"),
        ),
        Scenario(
            "idle",
            "10,000 idle connections, then a message on each",
            {"connections": 10_000, "headers": 20, "body": 4096, "window": 100},
            (*_LARGE, Variant("limit")),
            kind="idle",
            compared=("each", "after", "cpu"),
        ),
        Scenario(
            "sendmail",
            "Behind Sendmail, over TCP, 25 header fields: the time of a message",
            {"headers": 25},
            _FAST,
            tcp=True,
            seconds=5,
            kind="sendmail",
            compared=("p50", "cpu"),
        ),
    )
}
