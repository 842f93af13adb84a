"""
yatxmilter and other milter libraries, measured side by side: ``python -m benchmarks``.

The milters of a scenario run in turn, A B C A B C, so that what the machine does in the meantime
hits all alike; a table shows medians over the rounds. A milter that answers wrong ends the run.
"""

from __future__ import annotations

import argparse
import sys

from .build import Unavailable
from .measure import Result, Wrong, measure
from .scenarios import SCENARIOS, Scenario
from .table import markdown


def run(scenario: Scenario, rounds: int, seconds: float) -> str:
    """
    Run one scenario, and give its table.
    """
    results: dict[str, list[Result]] = {variant.key: [] for variant in scenario.variants}
    missing: dict[str, str] = {}
    for number in range(rounds):
        for variant in scenario.variants:
            if variant.key in missing:
                continue
            print(
                f"{scenario.name}, round {number + 1} of {rounds}: {variant.key}", file=sys.stderr
            )
            try:
                results[variant.key].append(measure(scenario, variant, seconds))
            except Unavailable as reason:
                missing[variant.key] = str(reason)
            except Wrong as fault:
                raise Wrong(f"{scenario.name}: {variant.key}: {fault}") from fault
    shown = {key: runs for key, runs in results.items() if runs}
    return markdown(scenario.title, shown, missing)


def main(arguments: list[str] | None = None) -> int:
    """
    Run what the command line asks for; give the exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", action="append", choices=SCENARIOS, metavar="SCENARIO")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    rounds = 1 if options.quick else options.rounds
    for name in options.only or SCENARIOS:
        scenario = SCENARIOS[name]
        seconds = scenario.seconds / 3 if options.quick else scenario.seconds
        try:
            print(run(scenario, rounds, seconds))
        except Wrong as fault:
            print(f"wrong: {fault}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
