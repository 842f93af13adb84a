"""
From the results of many runs to one Markdown table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from .measure import Result
from .scenarios import Scenario

Results = Mapping[str, Sequence[Result]]


@dataclass(frozen=True)
class Column:
    """
    One column.

    :ivar name: The figure of a `Result`.
    :ivar form: How it is written.
    :ivar factor: What it is multiplied with before.
    """

    name: str
    heading: str
    form: str = ",.0f"
    factor: float = 1


#: A column that is nothing but zeros is left out.
COLUMNS = (
    Column("cpu", "CPU µs/message"),
    Column("rate", "messages/s"),
    Column("whole", "capacity messages/s"),
    Column("megabytes", "MB/s"),
    Column("p50", "p50 ms", ",.1f"),
    Column("p99", "p99 ms", ",.1f"),
    Column("each", "KiB/connection", ".1f"),
    Column("after", "afterwards KiB/connection", ".1f"),
    Column("most", "busiest worker, of its share", ".2f"),
    Column("memory", "peak RSS MiB", ",.0f"),
    Column("pss", "PSS MiB", ",.0f"),
    Column("threads", "threads"),
    Column("busy", "busy %", factor=100),
    Column("load_busy", "generator busy %", factor=100),
)
#: Shown only where they say something.
_SELDOM = frozenset({"megabytes", "whole"})
_BY_NAME = {column.name: column for column in COLUMNS}
#: A ratio to this has no meaning.
_NOTHING = 1e-9


def typical(runs: Sequence[Result], name: str) -> float:
    """
    Give the median of a figure.
    """
    return float(median(getattr(run, name) for run in runs))


def ratio(first: Sequence[Result], other: Sequence[Result], name: str) -> float | None:
    """
    Compare a figure of two milters: the median of what each round gives.

    :return: The first's over the other's, or nothing if there is nothing to compare.
    """
    pairs = [
        (getattr(one, name), getattr(two, name)) for one, two in zip(first, other, strict=False)
    ]
    parts = [one / two for one, two in pairs if abs(two) > _NOTHING]
    return median(parts) if parts else None


def markdown(scenario: Scenario, results: Results, remarks: Mapping[str, str]) -> str:
    """
    Write one scenario's table; the first milter is the one the others are compared with.

    :param results: By the milters' titles; each has one result at least.
    :param remarks: What there is to say of a milter.
    """
    lines = [f"### {scenario.title} (`{scenario.name}`)", ""]
    if results:
        lines += _rows(scenario, results)
    if results and remarks:
        lines.append("")
    lines += [f"- {title}: {remark}" for title, remark in remarks.items()]
    return "\n".join(lines) + "\n"


def _rows(scenario: Scenario, results: Results) -> list[str]:
    title = next(iter(results))
    every = [run for runs in results.values() for run in runs]
    columns = [
        column
        for column in COLUMNS
        if any(getattr(run, column.name) for run in every)
        and (column.name not in _SELDOM or column.name in _wanted(scenario))
    ]
    compared: list[Callable[[Sequence[Result]], str]] = [
        _comparison(scenario, results[title], name) for name in scenario.compared
    ]
    headings = ["milter", *(column.heading for column in columns)]
    headings += [_heading(scenario, title, name) for name in scenario.compared]
    lines = [_row(headings), _row(["---"] + ["--:"] * (len(headings) - 1))]
    for key, runs in results.items():
        cells = [format(typical(runs, each.name) * each.factor, each.form) for each in columns]
        lines.append(_row([key, *cells, *(compare(runs) for compare in compared)]))
    return lines


def _wanted(scenario: Scenario) -> tuple[str, ...]:
    large = int(str(scenario.load.get("body", 0))) > 1_000_000
    return (*scenario.compared, "megabytes") if large else scenario.compared


def _heading(scenario: Scenario, title: str, name: str) -> str:
    what = _BY_NAME[name].heading.partition(" ")[0]
    return f"{what}: it / {title}" if scenario.inverse else f"{what}: {title} / it"


def _comparison(
    scenario: Scenario, first: Sequence[Result], name: str
) -> Callable[[Sequence[Result]], str]:
    def compare(runs: Sequence[Result]) -> str:
        value = ratio(runs, first, name) if scenario.inverse else ratio(first, runs, name)
        return "-" if value is None else f"{value:.2f}"

    return compare


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
