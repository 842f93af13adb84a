"""
What was recorded, in one file.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .dialogue import Script
from .plans import make_plan
from .session import Step, run_in_memory

PLACE = Path(__file__).with_name("recorded.json.gz")

#: How many sessions are recorded.
RECORDED = 300


def fingerprint(numbers: Iterable[int]) -> str:
    """
    Tell the generator of these sessions apart from another one: of plans and of what MTAs say.
    """
    digest = hashlib.sha256()
    for number in numbers:
        plan = make_plan(number)
        digest.update(repr(plan).encode())
        for command in Script(plan).commands():
            digest.update(command.packets)
    return digest.hexdigest()


def record(numbers: Iterable[int] = range(RECORDED), place: Path = PLACE) -> None:
    """
    Run sessions in memory, and write down what was seen.

    :param numbers: Which ones.
    :param place: The file.
    """
    wanted = list(numbers)
    steps = {str(number): run_in_memory(number) for number in wanted}
    content = {"generator": fingerprint(wanted), "sessions": steps}
    text = json.dumps(content, separators=(",", ":"), sort_keys=True)
    # Neither a name nor a time inside, so that the same content gives the same file.
    place.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def recorded(place: Path = PLACE) -> tuple[str, dict[int, list[Step]]]:
    """
    Read a recording: what made it, and the sessions by their numbers.
    """
    content: dict[str, Any] = json.loads(gzip.decompress(place.read_bytes()))
    sessions = {int(number): steps for number, steps in content["sessions"].items()}
    return content["generator"], dict(sorted(sessions.items()))


def difference(expected: list[Step], found: list[Step]) -> str | None:
    """
    Say where two runs of a session part, with the steps before that.
    """
    if expected == found:
        return None
    place = next(
        (
            place
            for place, (one, other) in enumerate(zip(expected, found, strict=False))
            if one != other
        ),
        min(len(expected), len(found)),
    )
    lines = [f"  {step}" for step in expected[max(0, place - 4) : place]]
    for sign, steps in (("-", expected), ("+", found)):
        step = steps[place] if place < len(steps) else "(nothing more)"
        lines.append(f"{sign} {step}")
    return "\n".join(lines)
