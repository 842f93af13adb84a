"""
For tests that run under trial.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from twisted.python import log
from twisted.python.failure import Failure

from yatxmilter.testing._mta import InMemoryMTA

__all__ = ["MilterTestMixin"]


class MilterTestMixin:
    """
    Give a ``SynchronousTestCase`` or ``TestCase`` of trial MTAs that are checked at the test's end.
    """

    def milter_mta(self: Any, milters: Any, **options: Any) -> InMemoryMTA:
        """
        Make an MTA; the arguments are those of `InMemoryMTA`.
        """
        mta = InMemoryMTA(milters, **options)
        self.addCleanup(mta.finish)
        return mta

    @contextmanager
    def expect_milter_errors(self: Any, mta: InMemoryMTA, pattern: str = "") -> Iterator[list[str]]:
        """
        Take errors of milters for expected, as `InMemoryMTA.expect_errors` does; trial, which
        watches the log too, forgets these, and no others.
        """

        def forgive(expected: list[Failure]) -> None:
            for failure in self.flushLoggedErrors():
                if not any(failure is one for one in expected):
                    log.err(failure)

        with mta._watch.expect(pattern, forgive) as errors:
            yield errors
