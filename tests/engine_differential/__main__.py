"""
The command: ``python -m tests.engine_differential``; see the package.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from twisted.logger import globalLogBeginner

from .plans import make_plan
from .recording import PLACE, RECORDED, difference, fingerprint, record, recorded
from .session import Step, run_in_memory, run_on_socket
from .ways import HAS_EPOLL, Sockets


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.engine_differential",
        description="Random sessions, through both ways of bytes and against a recording.",
    )
    parser.add_argument(
        "--cases", type=int, help="run so many others, in the place of those recorded"
    )
    parser.add_argument("--seed", type=int, default=1, help="which others (default: 1)")
    parser.add_argument("--record", action="store_true", help="write the recording anew")
    parser.add_argument(
        "--file", type=Path, default=PLACE, help="another recording, to be written or compared with"
    )
    parser.add_argument("--show", type=int, metavar="NUMBER", help="print one session")
    parser.add_argument(
        "--counts", action="store_true", help="say what happened in these sessions, and how often"
    )
    options = parser.parse_args(arguments)
    if options.cases is not None and options.cases < 1:
        parser.error(f"--cases {options.cases}: 1 or more are needed")
    if options.seed < 1:
        parser.error(f"--seed {options.seed}: 1 or more is needed")
    return options


def numbers(options: argparse.Namespace) -> range:
    """
    Give the numbers of the sessions that are asked for.
    """
    if options.cases is None:
        return range(RECORDED)
    first = options.seed * 1_000_000
    return range(first, first + options.cases)


def _show(number: int) -> None:
    print(make_plan(number))
    for step in run_in_memory(number):
        print(step)


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Do what the command line asks for; give the exit status.
    """
    options = _options(arguments)
    if options.show is not None:
        _show(options.show)
        return 0
    if options.record:
        wanted = numbers(options)
        record(wanted, options.file)
        print(f"{len(wanted)} sessions, {options.file.stat().st_size:,} bytes: {options.file}")
        return 0
    if options.cases is not None:
        return compare(numbers(options), {}, options.counts)
    generator, known = recorded(options.file)
    if generator != fingerprint(known):
        print("the generator is not the one of the recording; --record makes it anew")
        return 2
    return compare(known, known, options.counts)


def compare(wanted: Collection[int], known: dict[int, list[Step]], counting: bool) -> int:
    """
    Run sessions on all ways and compare them; give the exit status.

    :param wanted: Their numbers.
    :param known: What was recorded of them.
    """
    began, wrong, counts = time.monotonic(), 0, Counter[str]()
    sockets = Sockets() if HAS_EPOLL else None
    for number in wanted:
        steps = run_in_memory(number)
        others = {"recorded": known[number]} if number in known else {}
        if sockets is not None:
            others["fast path"] = run_on_socket(number, sockets)
            if number not in known:
                others["socket without it"] = run_on_socket(number, sockets, fast_path=False)
        for name, other in others.items():
            parting = difference(other, steps)
            if parting is not None:
                wrong += 1
                print(f"session {number}: {name} (-), in memory (+)\n{parting}")
        if counting:
            count(steps, counts)
    if sockets is not None:
        sockets.close()
    print(f"{len(wanted)} sessions, {wrong} differences, {time.monotonic() - began:.1f} s")
    for name, number in sorted(counts.items()):
        print(f"{number:9,}  {name}")
    return int(wrong > 0)


def count(steps: list[Step], counts: Counter[str]) -> None:
    """
    Count what happened in a session.
    """
    for step in steps:
        counts["steps"] += 1
        counts.update(f"fault {name}" for name in step.get("faults", ()))
        for note in step.get("notes", ()):
            counts[f"call {note.split()[1].partition('(')[0]}"] += "(" in note
            counts["edits made, text set and so on"] += "(" not in note
        counts["notes of milters in shadow"] += len(step.get("shadow", ()))
        counts["connections ended"] += step.get("closed", False)


if __name__ == "__main__":
    # What fails is part of what is compared.
    globalLogBeginner.beginLoggingTo([lambda event: None], redirectStandardIO=False)
    sys.exit(main())
