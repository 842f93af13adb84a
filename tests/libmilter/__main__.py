"""
Compares yatxmilter with the real libmilter on as many cases as one likes.

    python -m tests.libmilter --profile hostile --cases 100000 --seed 1 --jobs 2

The same profile, seed and number always give the same case. Each difference that is not in the
table of deliberate ones is made as small as possible and printed as text and as Python source. The
exit status is 1 if there was one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Iterator

from .compare import Comparison
from .differences import DIFFERENCES
from .driver import Tally, check_many, minimised, numbered, report
from .generator import PROFILES
from .real import LibMilter, Unavailable

_BLOCK = 500
_SHOWN = 5
_EXPLAINED = 20

Block = tuple[str, int, int, int, bool]


def run_block(block: Block) -> Tally:
    """Run some cases; every twentieth that differs is looked up in the table."""
    profile, seed, start, end, raw = block
    tally = Tally()
    failing: list[tuple[int, Comparison]] = []
    with LibMilter() as library:
        for comparison in check_many(library, numbered(profile, seed, range(start, end))):
            tally.add(comparison, explain=tally.cases % _EXPLAINED == 0)
            if comparison.problems and len(failing) < _SHOWN:
                failing.append((start + tally.cases - 1, comparison))
        for number, comparison in failing:
            shown = comparison if raw else minimised(library, comparison)
            tally.failures.append(f"{profile}:{seed}:{number}\n{report(shown)}")
    return tally


def _blocks(profiles: list[str], cases: int, seed: int, raw: bool) -> Iterator[Block]:
    for start in range(0, cases, _BLOCK):
        for profile in profiles:
            yield profile, seed, start, min(start + _BLOCK, cases), raw


def _tallies(blocks: Iterator[Block], jobs: int) -> Iterator[tuple[str, Tally]]:
    if jobs == 1:
        for block in blocks:
            yield block[0], run_block(block)
        return
    with multiprocessing.Pool(jobs) as pool:
        yield from pool.imap(_named_block, blocks)


def _named_block(block: Block) -> tuple[str, Tally]:
    return block[0], run_block(block)


def _summary(profile: str, tally: Tally) -> str:
    return (
        f"{profile}: {tally.cases} cases, {tally.commands} packets, {tally.callbacks} callbacks;"
        f" {tally.alike} alike, {tally.deliberate} differ deliberately, {tally.failed} differ"
    )


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.libmilter", description=(__doc__ or "").strip().splitlines()[0]
    )
    parser.add_argument("--profile", choices=[*PROFILES, "all"], default="all")
    parser.add_argument("--cases", type=int, default=1000, help="of each profile")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--stop", type=int, default=10, help="stop after so many differences")
    parser.add_argument("--raw", action="store_true", help="do not make differences small")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for; give the exit status."""
    options = _options(arguments)
    profiles = list(PROFILES) if options.profile == "all" else [options.profile]
    begin = time.monotonic()
    totals = {profile: Tally() for profile in profiles}
    shown = 0
    try:
        for profile, tally in _tallies(
            _blocks(profiles, options.cases, options.seed, options.raw), options.jobs
        ):
            totals[profile].merge(tally)
            for failure in tally.failures:
                shown += 1
                print(f"DIFFERENCE {shown}: {failure}\n", flush=True)
            if shown >= options.stop:
                print("stopped: enough differences")
                break
    except Unavailable as error:
        print(f"cannot compare: {error}", file=sys.stderr)
        return 2
    seconds = time.monotonic() - begin
    cases = sum(tally.cases for tally in totals.values())
    for profile, tally in totals.items():
        print(_summary(profile, tally))
        for name, count in tally.by_reason.most_common():
            print(f"    {count * _EXPLAINED:7} (estimated) {name}: {DIFFERENCES[name].yatxmilter}")
    print(f"{cases} cases in {seconds:.0f} s, {seconds / max(cases, 1) * 1000:.2f} ms each")
    return 1 if any(tally.failed for tally in totals.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
