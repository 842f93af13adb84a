"""
The proof of ``merge="chain"``: ``python -m tests.mta.chain_equality --seed 1 --cases 200``.

Each case is sent through real MTAs twice, once with its milters chained in one yatxmilter and once
with each as a filter of its own, and all that can be seen of the two is compared: the replies, what
is delivered to whom, what is held, and what each milter was shown.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from typing import Any, TextIO

from .chain_bench import BluntPostfix, Case, ChainBench, ChainPostfix, ChainSendmail, Outcome
from .chain_cases import generated_cases, table_cases
from .sink import Path

MTAS = {"postfix": ChainPostfix, "postfix, blunt": BluntPostfix, "sendmail": ChainSendmail}

# The MTA's clock and queue ids differ from one message to the next.
_QUEUE_ID = re.compile(rb"(?<=id )[0-9A-Za-z]{8,}|(?<=queued as )[0-9A-Za-z]+")
_REPLY_ID = re.compile(r"\b(?:queued as \w+|[0-9A-Za-z]{14,16}(?= Message accepted))")
_MESSAGE_ID = re.compile(rb"<[0-9]{12,14}\.[^@>]+@mta\.example\.test>")
# The client's dates are of another year.
_DATE = re.compile(
    rb"\w{3}, +\d+ \w{3} %d \d\d:\d\d:\d\d ([+-]\d{4}|GMT)( \(\w+\))?"
    % datetime.now(timezone.utc).year
)


def _plain(data: bytes) -> bytes:
    """
    Give a text without what the MTA made up for it: ids and the time.
    """
    return _DATE.sub(b"DATE", _MESSAGE_ID.sub(b"<MESSAGE-ID>", _QUEUE_ID.sub(b"ID", data)))


def _path(path: Path) -> str:
    # SIZE is an estimate that counts each edit.
    return " ".join([path.address, *(arg for arg in path.args if not arg.startswith("SIZE="))])


def _messages(outcome: Outcome) -> list[Any]:
    return sorted(
        (_path(each.sender), sorted(map(_path, each.recipients)), _plain(each.data))
        for each in outcome.deliveries
    )


def _shown(outcome: Outcome) -> list[list[tuple[str, Any]]]:
    return [list(_calls(events)) for events in outcome.shown]


def _calls(events: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """
    Give the calls of one milter; how a body is cut into chunks is no promise.
    """
    calls: list[tuple[str, Any]] = []
    for event in events:
        if event.callback == "xxfi_body" and calls and calls[-1][0] == "xxfi_body":
            [chunk] = event.args
            [before] = calls[-1][1]
            if isinstance(chunk, str) and isinstance(before, str):
                calls[-1] = ("xxfi_body", (before + chunk,))
                continue
        args = event.args
        if event.callback == "xxfi_connect":
            # The client's port.
            continue
        if event.callback == "xxfi_header":
            name, value = args
            args = (name, _plain(value.encode("utf-8", "surrogateescape")))
        calls.append((event.callback, args))
    yield from calls


def differences(chained: Outcome, separate: Outcome) -> dict[str, tuple[Any, Any]]:
    """
    Compare two outcomes of one case.

    :return: What differs: both sides of it, by name.
    """
    sides: dict[str, tuple[Any, Any]] = {
        "log": (chained.log, separate.log),
        "replies": tuple(
            [_plain(_REPLY_ID.sub("ID", reply).encode()) for reply in one.replies]
            for one in (chained, separate)
        ),
        "held": (len(chained.held), len(separate.held)),
        "delivered": (_messages(chained), _messages(separate)),
    }
    pairs = zip(_shown(chained), _shown(separate), strict=True)
    for number, pair in enumerate(pairs):
        sides[f"shown to {number + 1}"] = pair
    return {what: (one, other) for what, (one, other) in sides.items() if one != other}


def compare(bench: ChainBench, case: Case) -> dict[str, tuple[Any, Any]]:
    """
    Send a case in both ways, and give what differs.
    """
    return differences(bench.chained(case), bench.separate(case))


def _tell(case: Case, found: dict[str, tuple[Any, Any]], out: TextIO) -> None:
    print(f"--- {case.name}", file=out)
    for milter in case.milters:
        steps = {name: steps for name, steps in milter["callbacks"].items() if steps}
        print(f"  {milter['name']}: {steps}", file=out)
    for what, (one, other) in found.items():
        print(f"  {what}:\n    chained:  {one}\n    separate: {other}", file=out)


def run(name: str, cases: Iterable[Case], out: TextIO) -> tuple[int, int, int, float]:
    """
    Compare all cases on one MTA.

    :return: How many there were, how many differ as is known, how many otherwise, and the seconds.
    """
    bench = ChainBench(MTAS[name])
    count = known = different = 0
    begin = time.monotonic()
    try:
        bench.start()
        for case in cases:
            count += 1
            found = compare(bench, case)
            if found and case.known:
                known += 1
            elif found:
                different += 1
                _tell(case, found, out)
    finally:
        bench.stop()
    return count, known, different, time.monotonic() - begin


def main(arguments: list[str]) -> int:
    """
    Print the table.

    :return: The exit status: whether something differs that is not known to.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.mta.chain_equality")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cases", type=int, default=200, help="how many are generated")
    parser.add_argument("--mta", choices=[*MTAS], action="append", help="both if not given")
    parser.add_argument("--only", help="the cases whose name has this in it")
    options = parser.parse_args(arguments)
    rows = []
    for name in options.mta or MTAS:
        sets = {
            "table": table_cases(name.partition(",")[0]),
            f"seed {options.seed}": generated_cases(options.seed, options.cases),
        }
        for title, cases in sets.items():
            chosen = [case for case in cases if not options.only or options.only in case.name]
            rows.append((name, title, *run(name, chosen, sys.stdout)))
    print("| MTA | cases | compared | differ as known | differ | seconds |")
    print("|---|---|---|---|---|---|")
    for name, title, count, known, different, seconds in rows:
        print(f"| {name} | {title} | {count} | {known} | {different} | {seconds:.0f} |")
    return int(any(row[4] for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
