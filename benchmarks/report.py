"""
From a result file to what the manual shows of it: ``python -m benchmarks.report``.

``python -m benchmarks --result FILE`` writes the file. This command puts its tables and the answer
in words into ``docs/performance.md``, and the row about speed into ``README.md``. The chart of the
manual is drawn from the same file when the manual is built.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .measure import Result
from .scenarios import SCENARIOS
from .table import markdown, typical

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "result.json"

#: The scenarios of the chart, and what they are called there.
CHARTED = {
    "reuse-unix": "50 messages on each connection",
    "small-unix": "a connection for each message",
    "headers": "200 header fields",
    "waiting": "5,000 connections that wait",
}
#: Milters that are no libraries: the floor of the reactor, and the limit for everybody.
NOT_LIBRARIES = frozenset({"raw Twisted", "raw C"})

_MICROSECONDS = 1_000_000


class Recorded:
    """
    What was measured: the machine, and for each scenario the rounds of each milter.
    """

    def __init__(self, machine: str) -> None:
        self.machine = machine
        self.results: dict[str, dict[str, list[Result]]] = {}
        self.remarks: dict[str, dict[str, str]] = {}

    def add(
        self,
        scenario: str,
        results: Mapping[str, Sequence[Result]],
        remarks: Mapping[str, str],
    ) -> None:
        """
        Keep what a scenario has shown.
        """
        self.results[scenario] = {title: list(runs) for title, runs in results.items()}
        self.remarks[scenario] = dict(remarks)

    def save(self, path: Path) -> None:
        """
        Write it to a file.
        """
        data = {
            "machine": self.machine,
            "scenarios": {
                name: {
                    "results": {
                        title: [
                            {key: round(value, 4) for key, value in asdict(run).items()}
                            for run in runs
                        ]
                        for title, runs in results.items()
                    },
                    "remarks": self.remarks[name],
                }
                for name, results in self.results.items()
            },
        }
        path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Recorded:
        """
        Read a file that `save` has written.
        """
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        recorded = cls(data["machine"])
        for name, each in data["scenarios"].items():
            results = {
                title: [Result(**run) for run in runs] for title, runs in each["results"].items()
            }
            recorded.add(name, results, each["remarks"])
        return recorded

    def carried(self, scenario: str) -> dict[str, float]:
        """
        Say how many messages a second one core carries with each library, the most first.
        """
        results = self.results.get(scenario, {})
        found = {
            title: _MICROSECONDS / typical(runs, "cpu")
            for title, runs in results.items()
            if title not in NOT_LIBRARIES
        }
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def answer(self) -> str:
        """
        Say in words what the chart shows.
        """
        reused, single = self.carried("reuse-unix"), self.carried("small-unix")
        ours = reused["yatxmilter"], single["yatxmilter"]
        lines = [
            f"One core carries **{ours[0]:,.0f} small messages a second** if the MTA sends several"
            f" over each connection, and **{ours[1]:,.0f}** if each message has a connection of its"
            " own.",
        ]
        for title in ("C libmilter", "pymilter"):
            more = ours[0] / reused[title], ours[1] / single[title]
            lines.append(f"That is {more[0]:.1f} and {more[1]:.1f} times as many as {title}.")
        return "\n".join([*lines, ""])

    def summary(self) -> str:
        """
        Write the figures of the chart as a table.
        """
        shown = {name: words for name, words in CHARTED.items() if name in self.results}
        rows = [("milter", *shown.values()), ("---", *("--:" for _ in shown))]
        carried = {name: self.carried(name) for name in shown}
        for title in carried["small-unix"]:
            values = (carried[name].get(title) for name in shown)
            rows.append((title, *("" if each is None else f"{each:,.0f}" for each in values)))
        return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), ""])

    def tables(self) -> str:
        """
        Write all tables.
        """
        parts = [self.machine]
        for name, results in self.results.items():
            parts.append(markdown(SCENARIOS[name], results, self.remarks[name]))
        return "\n".join(parts)

    def speed_row(self) -> str:
        """
        Write the row of the README's table.
        """
        results = self.results["reuse-unix"]
        theirs, ours = (typical(results[name], "cpu") for name in ("pymilter", "yatxmilter"))
        return (
            "| CPU for a small message ([measured](docs/performance.md)) |"
            f" {theirs:,.0f} µs | {ours:,.0f} µs |"
        )


def between(page: str, mark: str, text: str) -> str:
    """
    Put a text into a page, between the two comments that are called so.
    """
    begin, end = f"<!-- {mark} -->\n", f"<!-- end of {mark} -->\n"
    before, found, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise ValueError(f"the page has no {begin.strip()} and {end.strip()}")
    return f"{before}{begin}\n{text}\n{end}{after}"


def render(recorded: Recorded, manual: Path, readme: Path) -> None:
    """
    Bring the pages up to date.
    """
    page = manual.read_text(encoding="utf-8")
    page = between(page, "answer", recorded.answer())
    page = between(page, "summary", recorded.summary())
    manual.write_text(between(page, "tables", recorded.tables()), encoding="utf-8")
    text, count = re.subn(
        r"^\| CPU for a small message .*$",
        lambda match: recorded.speed_row(),
        readme.read_text(encoding="utf-8"),
        flags=re.MULTILINE,
    )
    if count != 1:
        raise ValueError(f"{readme} has no row about the CPU for a small message")
    readme.write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Render the result file that the command line names.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=(__doc__ or "").strip().splitlines()[0]
    )
    parser.add_argument(
        "result", nargs="?", type=Path, default=RESULT, help="default: benchmarks/result.json"
    )
    parser.add_argument("--manual", type=Path, default=ROOT / "docs" / "performance.md")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    options = parser.parse_args(arguments)
    render(Recorded.load(options.result), options.manual, options.readme)
    return 0


if __name__ == "__main__":
    sys.exit(main())
