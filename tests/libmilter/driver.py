"""
Running many cases: libmilter runs the next one while the present one is looked at.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import implementer

from . import readable
from .case import Case, Record
from .compare import Comparison, compare, reasons
from .generator import generate
from .real import LibMilter
from .shrink import shrink
from .source import RandomSource


def numbered(profile: str, seed: int, numbers: Iterable[int]) -> Iterator[Case]:
    """Generate cases of a profile by their numbers."""
    for number in numbers:
        yield generate(RandomSource(f"{profile}:{seed}:{number}"), profile)


@implementer(ILogObserver)
class LogWatch:
    """
    Takes the place of the log while cases run: scripted milters fail on purpose, and often.

    What yatxmilter logs must be text that can be written down. What others log is an error that
    nobody looked at, such as that of a Deferred.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []

    def ours(self, event: LogEvent) -> None:
        """Take an event of yatxmilter."""
        try:
            text = formatEvent(event)
            text.encode()
        except UnicodeEncodeError:
            self.problems.append(f"a log line cannot be written: {text!r}")
        else:
            if not text or text.startswith("Unable to format event"):
                self.problems.append(f"a log line cannot be formatted: {event['log_format']!r}")

    def __call__(self, event: LogEvent) -> None:
        """Take an event of anybody."""
        if "log_failure" in event:
            self.problems.append(f"an error was lost: {event['log_failure'].getErrorMessage()}")

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch for as long as the block runs."""
        loggers = [
            module._log
            for name, module in list(sys.modules.items())
            if name.startswith("yatxmilter.") and hasattr(module, "_log")
        ]
        before = [logger.observer for logger in loggers]
        for logger in loggers:
            logger.observer = self.ours
        globalLogPublisher.addObserver(self)
        try:
            yield
        finally:
            globalLogPublisher.removeObserver(self)
            for logger, observer in zip(loggers, before, strict=True):
                logger.observer = observer


def check(library: LibMilter, case: Case) -> Comparison:
    """Compare one case."""
    return checked(case, library.run(case))


def checked(case: Case, real: Record) -> Comparison:
    """Compare one case that libmilter has run; what is wrong with the log is a problem too."""
    watch = LogWatch()
    with watch.watching():
        result = compare(case, real)
    result.problems += watch.problems[:1]
    return result


def check_many(library: LibMilter, cases: Iterable[Case]) -> Iterator[Comparison]:
    """Compare cases, one after the other."""
    started: Case | None = None
    for case in cases:
        if started is None:
            library.start(case)
        else:
            real = library.finish()
            library.start(case)
            yield checked(started, real)
        started = case
    if started is not None:
        yield checked(started, library.finish())


def minimised(library: LibMilter, comparison: Comparison) -> Comparison:
    """Find the smallest case that has the same problems."""
    wanted = _kinds(comparison)
    small = shrink(comparison.case, lambda case: _kinds(check(library, case)) == wanted)
    return check(library, small)


def _kinds(comparison: Comparison) -> list[str]:
    return [re.sub("[0-9]+", "", problem.partition(":")[0]) for problem in comparison.problems]


def report(comparison: Comparison) -> str:
    """Write a comparison down: the case as text and as Python source, and the records."""
    case = comparison.case
    lines = [
        *comparison.problems,
        readable.conversation(case),
        readable.script(case),
        readable.record("libmilter ", comparison.real),
        readable.record("yatxmilter", comparison.ours.record),
        f"  closed by yatxmilter: {comparison.ours.closed}",
    ]
    if comparison.by_ours != comparison.by_libmilter:
        lines.append(readable.record("should be ", comparison.by_ours))
        lines.append(f"  deliberate differences in this case: {', '.join(reasons(case))}")
    if comparison.by_libmilter != comparison.real:
        lines.append(readable.record("reference ", comparison.by_libmilter))
    return "\n".join([*lines, readable.literal(case)])


@dataclass
class Tally:
    """What came of many cases."""

    cases: int = 0
    alike: int = 0
    deliberate: int = 0
    commands: int = 0
    callbacks: int = 0
    by_reason: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    failed: int = 0

    def add(self, comparison: Comparison, *, explain: bool) -> None:
        """Count one case; `explain`: also by which rows of the table it differs."""
        self.cases += 1
        self.commands += len(comparison.case.conversation)
        self.callbacks += len(comparison.real.invocations)
        if comparison.problems:
            self.failed += 1
        elif comparison.by_libmilter == comparison.by_ours:
            self.alike += 1
        else:
            self.deliberate += 1
            if explain:
                self.by_reason.update(reasons(comparison.case))

    def merge(self, other: Tally) -> None:
        """Add up."""
        self.cases += other.cases
        self.alike += other.alike
        self.deliberate += other.deliberate
        self.commands += other.commands
        self.callbacks += other.callbacks
        self.by_reason += other.by_reason
        self.failures += other.failures
        self.failed += other.failed
