"""
Holding the records of a case against each other.

Three things must hold for every case: the reference engine by libmilter's rules gives what the
real libmilter gave (so the reference can be believed), by our rules what yatxmilter gave (so
yatxmilter differs where `differences.py` says and nowhere else), and where the two sets of rules
give the same, so did the two libraries (so nothing rests on the reference alone).
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass, replace

from . import ours
from .case import Case, Record
from .reference import Reference
from .rules import LIBMILTER, NAMES, YATXMILTER

Shown = tuple[object, ...]


@dataclass
class Comparison:
    """
    The four records of a case.

    :ivar problems: What is wrong, in words; empty when all is well.
    """

    case: Case
    real: Record
    ours: ours.OurRecord
    by_libmilter: Record
    by_ours: Record
    problems: list[str]

    @property
    def deliberate(self) -> bool:
        """Whether yatxmilter did something else than libmilter, as it should."""
        case = self.case
        ours_shown, real_shown = (_shown(case, one, True) for one in (self.ours.record, self.real))
        return not self.problems and real_shown != ours_shown


def _in_step(case: Case) -> bool:
    """Whether each piece of the delivery is one whole packet, so that answers can be told apart."""
    return case.delivery == "packets" and all(
        len(piece) > 4 and int.from_bytes(piece[:4], "big") == len(piece) - 4
        for piece in case.conversation
    )


def _shown(case: Case, record: Record, in_step: bool) -> Shown:
    """Reduce a record to what is compared."""
    # Of several milters each is told of the end, of a message that another one has ended, too.
    ignored = ("abort", "close") if case.several else ()
    return (
        tuple(
            (one.callback, one.args, tuple(one.answers), one.written if in_step else None)
            for one in record.invocations
            if one.callback not in ignored
        ),
        record.output,
    )


def _closing(closed: tuple[int, int] | None, consumed: int, total: int) -> str | None:
    """Say what is wrong with when the connection was closed."""
    if consumed >= total:
        # Read to the end: a close that came with the very last bytes cannot be told from none.
        if closed is not None and closed[1] < total:
            return f"closed after {closed[1]} bytes, should have read all {total}"
        return None
    if closed is None:
        return f"still open at the end, should have closed after {consumed} of {total} bytes"
    if not closed[0] < consumed <= closed[1]:
        return f"closed within bytes {closed[0]} to {closed[1]}, should have after {consumed}"
    return None


def compare(case: Case, real: Record) -> Comparison:
    """Run a case on yatxmilter and the reference, and hold all against libmilter's record."""
    by_libmilter = Reference(case, LIBMILTER).run()
    by_ours = Reference(case, YATXMILTER).run()
    try:
        result = ours.run(case)
    except Exception:
        raised = ours.OurRecord(Record([], b"", 0), None)
        problem = "yatxmilter raised " + traceback.format_exc(limit=-4)
        return Comparison(case, real, raised, by_libmilter, by_ours, [problem])
    in_step = _in_step(case)
    problems = []
    if real != by_libmilter:
        problems.append("the reference engine is not libmilter")
    shown, expected, seen = (_shown(case, one, in_step) for one in (result.record, by_ours, real))
    if shown != expected:
        problems.append("yatxmilter does not do what the table of differences says")
    closing = _closing(result.closed, by_ours.consumed, len(case.stream))
    if closing is not None:
        problems.append("yatxmilter " + closing)
    if by_libmilter == by_ours and shown != seen:
        problems.append("yatxmilter differs from libmilter")
    return Comparison(case, real, result, by_libmilter, by_ours, problems)


def reasons(case: Case) -> list[str]:
    """Name the deliberate differences that a case shows: those without which we would be alike."""
    ours_now = Reference(case, YATXMILTER).run()
    found = []
    for name in NAMES:
        without = Reference(case, replace(YATXMILTER, **{name: False})).run()
        alone = Reference(case, replace(LIBMILTER, **{name: True})).run()
        if without != ours_now or alone != Reference(case, LIBMILTER).run():
            found.append(name)
    return found
