"""
From the results of many runs to one Markdown table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from .measure import Result

Results = Mapping[str, Sequence[Result]]


@dataclass(frozen=True)
class Column:
    """
    One column: its heading, and how a milter's cell is made of its results.
    """

    heading: str
    value: Callable[[Result], float]
    form: str


COLUMNS = (
    Column("CPU µs/message", lambda result: result.cpu, ",.0f"),
    Column("messages/s", lambda result: result.rate, ",.0f"),
    Column("p50 ms", lambda result: result.p50, ",.1f"),
    Column("p99 ms", lambda result: result.p99, ",.1f"),
    Column("peak RSS MiB", lambda result: result.memory, ",.1f"),
    Column("PSS MiB", lambda result: result.pss, ",.1f"),
    Column("threads", lambda result: result.threads, ",.0f"),
    Column("busy %", lambda result: result.busy * 100, ".0f"),
    Column("generator busy %", lambda result: result.load_busy * 100, ".0f"),
)


def ratio(ours: Sequence[Result], other: Sequence[Result], value: Callable[[Result], float]) -> str:
    """
    Compare two milters: the median of what each round gives.
    """
    rounds = zip(ours, other, strict=False)
    parts = [value(one) / value(two) for one, two in rounds if value(two)]
    return f"{median(parts):.2f}" if parts else "-"


def markdown(title: str, results: Results, missing: Mapping[str, str]) -> str:
    """
    Write one scenario's table; the first milter is the one the others are compared with.

    :param missing: Why a milter is not in it.
    """
    first = next(iter(results))
    compared = [("CPU", lambda result: result.cpu), ("rate", lambda result: result.rate)]
    headings = ["milter", *(column.heading for column in COLUMNS)]
    headings += [f"{name}: {first} / it" for name, _ in compared]
    lines = [f"### {title}", "", _row(headings), _row(["---"] + ["--:"] * (len(headings) - 1))]
    for key, runs in results.items():
        cells = [format(median(map(column.value, runs)), column.form) for column in COLUMNS]
        cells += [ratio(results[first], runs, value) for _, value in compared]
        lines.append(_row([key, *cells]))
    lines += [f"\nNot measured: {key}, because {reason}." for key, reason in missing.items()]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
