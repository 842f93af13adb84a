"""
The log of ``serve``, on standard error.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from twisted.logger import (
    FilteringLogObserver,
    ILogObserver,
    LogEvent,
    Logger,
    LogLevel,
    LogLevelFilterPredicate,
    globalLogBeginner,
)
from zope.interface import implementer

from yatxmilter.logs import JournalLog, JsonLog, Redactor, TextLog

__all__ = ["Shortage", "begin_log"]

# How Twisted says that a connection cannot be taken, or was taken in order to be closed.
_NOT_TAKEN: Final = ("Could not accept new connection", "EMFILE recovery: Closed socket")
# What it says besides, as often.
_AROUND: Final = ("EMFILE encountered", "Re-reserving EMFILE")
# Seconds for which they are counted before they are told.
_PERIOD: Final = 60.0

_KEY = "YATXMILTER_REDACTION_KEY"


@implementer(ILogObserver)
class Shortage:
    """
    Tells of connections that cannot be taken, since there are too few file descriptors: at once,
    and then once a minute. Twisted says so for each, and as something of no interest.

    :param write: Writes all other events.
    :param clock: Tells the time in seconds.
    """

    def __init__(
        self, write: Callable[[LogEvent], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write = write
        self._clock = clock
        self._log = Logger("yatxmilter.serve", observer=self)
        self._count = 0
        self._next = -_PERIOD

    def __call__(self, event: LogEvent) -> None:
        """
        Write an event, or count it.
        """
        text = str(event.get("log_format"))
        if not text.startswith(_NOT_TAKEN):
            if not text.startswith(_AROUND):
                self._write(event)
            return
        self._count += 1
        now = self._clock()
        if now >= self._next:
            self._log.error(
                "Connections cannot be taken ({count} since this was last said): this process may"
                " open no more files ({error}); raise its limit (ulimit -n, LimitNOFILE=) or lower"
                " max_connections",
                count=self._count,
                error=event.get("acceptError", "EMFILE"),
            )
            self._count, self._next = 0, now + _PERIOD


def begin_log(settings: Mapping[str, Any]) -> None:
    """
    Write what is logged as the settings say, from their level on.
    """
    kind: Any = TextLog
    if settings["json_log"]:
        kind = JsonLog
    elif "JOURNAL_STREAM" in os.environ:
        kind = JournalLog
    if settings["redact"]:
        # Workers inherit it: the same has to be replaced by the same in all of them.
        key = os.environ.setdefault(_KEY, secrets.token_hex(32))
        write = kind(sys.stderr, Redactor(key.encode()))
    else:
        write = kind(sys.stderr)
    predicate = LogLevelFilterPredicate(LogLevel.lookupByName(settings["log_level"]))
    # What Twisted says about itself is for those who look for its errors.
    predicate.setLogLevelForNamespace("twisted", LogLevel.warn)
    for namespace in ("twisted.internet", "twisted.python", "-", "log_legacy"):
        predicate.setLogLevelForNamespace(namespace, LogLevel.error)
    filtering: Any = FilteringLogObserver(write, [predicate])
    globalLogBeginner.beginLoggingTo([Shortage(filtering)], redirectStandardIO=False)
