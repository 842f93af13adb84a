"""
yatxmilter and other milter libraries, measured side by side: ``python -m benchmarks``.

The milters of a scenario run in turn, A B C A B C, so that what the machine does in the meantime
hits all alike; a table shows medians over the rounds. What cannot be built or run on this machine
is named below the table and left out. The exit status is 1 when a milter answered wrong, and 2
when nothing could be measured.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .build import Unavailable
from .generator import Wrong
from .measure import Result, measure
from .milters import PEERS
from .processes import OTHER_CORE, end_well, unoptimised
from .report import Recorded
from .scenarios import SCENARIOS, Scenario
from .table import markdown

_BEGIN, _END = "<!-- tables -->\n", "<!-- end of tables -->\n"


class Comparison:
    """
    One scenario, measured.

    :ivar results: By the milters' titles.
    :ivar remarks: What there is to say of those that could not be measured.
    :ivar wrong: Whether one of them answered wrong.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.results: dict[str, list[Result]] = {}
        self.remarks: dict[str, str] = {}
        self.wrong = False

    def run(self, rounds: int, seconds: float, peers: Sequence[str] = ()) -> None:
        """
        Run the milters in turn.

        :param peers: Only these; by default all.
        """
        for number in range(1, rounds + 1):
            for variant in self.scenario.variants:
                if variant.title in self.remarks or (peers and variant.peer not in peers):
                    continue
                progress = f"{self.scenario.name}, round {number} of {rounds}: {variant.title}"
                print(progress, file=sys.stderr, flush=True)
                try:
                    result = measure(self.scenario, variant, seconds)
                    self.results.setdefault(variant.title, []).append(result)
                except Unavailable as reason:
                    when = f" from round {number} on" if number > 1 else ""
                    self.remarks[variant.title] = f"not measured{when}, {reason}"
                except (OSError, AssertionError, subprocess.SubprocessError) as fault:
                    # A milter, or an MTA, that ended in the midst of it; the others go on.
                    self.remarks[variant.title] = f"failed in round {number}: {fault!r}"
                except Wrong as fault:
                    self.remarks[variant.title] = f"ANSWERED WRONG in round {number}: {fault}"
                    self.results.pop(variant.title, None)
                    self.wrong = True

    @property
    def status(self) -> int:
        """
        What the command ends with: 1 if an answer was wrong, 2 if nothing could be measured.
        """
        return 1 if self.wrong else 0 if self.results else 2

    def table(self) -> str:
        """
        Write what was found.
        """
        return markdown(self.scenario, self.results, self.remarks)


def machine(rounds: int) -> str:
    """
    Say when, where and with what this is measured.
    """
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line for line in lines if line.startswith("model name")), ":").partition(":")[2]
    warning = unoptimised()
    return (
        f"Measured on {datetime.date.today():%Y-%m-%d}: {os.cpu_count()} cores ({model.strip()}),"
        f" Linux {platform.release()}, Python {platform.python_version()}; medians over"
        f" {rounds} round{'s' if rounds > 1 else ''}.\n"
    ) + (f"\n{warning}.\n" if warning else "")


def into_page(page: str, tables: str) -> str:
    """
    Put the tables into a page, in the place of those between its marks; without marks, all of it.
    """
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    return f"{before}{begin}\n{tables}{end}{after}" if end else tables


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=(__doc__ or "").strip().splitlines()[0]
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=SCENARIOS,
        metavar="SCENARIO",
        help=f"one of these, may be given again: {', '.join(SCENARIOS)}",
    )
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        choices=PEERS,
        metavar="MILTER",
        help=f"only these: {', '.join(PEERS)}",
    )
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--quick", action="store_true", help="one short round, to see that it runs")
    parser.add_argument(
        "--result", type=Path, metavar="FILE", help="keep all figures there, for benchmarks.report"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write them there, too")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: 1 or more are needed")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run what the command line asks for; give the exit status.
    """
    options = _options(arguments)
    rounds = 1 if options.quick else options.rounds
    os.sched_setaffinity(0, {OTHER_CORE})
    pages = [machine(rounds)]
    print(pages[0], flush=True)
    recorded = Recorded(pages[0])
    status = 0
    for name in options.only or SCENARIOS:
        comparison = Comparison(SCENARIOS[name])
        seconds = comparison.scenario.seconds
        comparison.run(rounds, seconds / 3 if options.quick else seconds, options.peer)
        pages.append(comparison.table())
        print(pages[-1], flush=True)
        status = max(status, comparison.status)
        if options.result:
            recorded.add(name, comparison.results, comparison.remarks)
            recorded.save(options.result)
        if options.markdown:
            page = options.markdown.read_text() if options.markdown.exists() else ""
            options.markdown.write_text(into_page(page, "\n".join(pages)))
    return status


if __name__ == "__main__":
    end_well()
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
