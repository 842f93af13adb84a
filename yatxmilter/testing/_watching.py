"""
What goes wrong in milters while they are tested: read from the log, and made a test's failure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

__all__ = ["ErrorWatch", "MilterTestFailure"]


class MilterTestFailure(AssertionError):
    """
    Milters did something wrong, or something was left undone, that the test did not expect.
    """


@implementer(ILogObserver)
class ErrorWatch:
    """
    The errors that milters have, from `start` to `stop`.

    :ivar errors: Those that no test has expected, as text.
    """

    # The log does not say which MTA a milter belongs to: what one of them expects is for all.
    _expecting: ClassVar[list[ErrorWatch]] = []

    def __init__(self) -> None:
        self.errors: list[str] = []
        self._failures: list[Failure] = []

    def start(self) -> None:
        """
        Begin to read the log.
        """
        globalLogPublisher.addObserver(self)

    def stop(self) -> None:
        """
        Read it no more.
        """
        globalLogPublisher.removeObserver(self)

    def __call__(self, event: LogEvent) -> None:
        """
        Take an event of the log.
        """
        namespace = str(event.get("log_namespace", ""))
        if namespace.partition(".")[0] != "yatxmilter":
            return
        # What a milter returns against its promise, and what the MTA's side gets wrong, are
        # warnings.
        if event["log_level"] < LogLevel.warn or (self._expecting and self._expecting[-1] != self):
            return
        self.errors.append(describe_event(event))
        if "log_failure" in event:
            self._failures.append(event["log_failure"])

    @contextmanager
    def expect(
        self, pattern: str = "", forgive: Callable[[list[Failure]], object] = list
    ) -> Iterator[list[str]]:
        """
        Take the errors that come inside the ``with`` block for expected.

        :param pattern: A regular expression that is to be found in each.
        :param forgive: Called with the exceptions among them, once they are what was expected.
        :return: The errors; complete when the block is over.
        :raises MilterTestFailure: when there is none, or one without the pattern.
        """
        before = self.errors, self._failures
        found: list[str] = []
        failures: list[Failure] = []
        self.errors, self._failures = found, failures
        self._expecting.append(self)
        try:
            yield found
        finally:
            self._expecting.pop()
            self.errors, self._failures = before
        if not found:
            raise MilterTestFailure(f"no milter failed; expected an error with {pattern!r} in it")
        for error in found:
            if not re.search(pattern, error):
                raise MilterTestFailure(f"expected an error with {pattern!r} in it, got: {error}")
        forgive(failures)


def describe_event(event: LogEvent) -> str:
    """
    Say what the log says, and where an exception came from.
    """
    text = formatEvent(event)
    failure: Any = event.get("log_failure")
    if failure is None:
        return text
    lines = failure.getTraceback().rstrip().splitlines()
    return "\n".join([f"{text}: {failure.type.__name__}: {failure.getErrorMessage()}", *lines])
