"""
The log of ``serve``: on standard error, in a file, or at syslog.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from twisted.logger import (
    FilteringLogObserver,
    ILogObserver,
    LogEvent,
    Logger,
    globalLogBeginner,
)
from zope.interface import implementer

from yatxmilter._cli.serve_options import ConfigurationError
from yatxmilter.logs import JournalLog, JsonLog, Redactor, TextLog
from yatxmilter.service._log_outlets import LogFile, Syslog
from yatxmilter.service._logs import FromLevel

__all__ = ["OUTLET", "Outlet", "Shortage", "begin_log"]

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


class Outlet:
    """
    Where the log of this process goes; there is one, since a process has one log.

    :ivar out: What is written to.
    """

    def __init__(self) -> None:
        self._out: Any = None

    @property
    def out(self) -> Any:
        """
        What is written to: standard error, until there is something else.
        """
        return sys.stderr if self._out is None else self._out

    def open(self, settings: Mapping[str, Any], owner: tuple[int, int] | None) -> None:
        """
        Open what the settings say.

        :raises ConfigurationError: when that cannot be.
        """
        path, facility = settings.get("log_file"), settings.get("syslog")
        self._out = None
        if path is not None:
            try:
                self._out = LogFile(path, owner)
            except OSError as error:
                raise ConfigurationError(
                    f"cannot write the log to {path}: {error.strerror}; the folder has to be there,"
                    " and this user has to be allowed to write to it"
                ) from None
        elif facility is not None:
            path = settings["syslog_socket"]
            try:
                self._out = Syslog(path, facility)
            except OSError as error:
                raise ConfigurationError(
                    f"cannot write the log to syslog at {path}: {error.strerror or error}; no"
                    " syslog daemon may run here, as in a container. Start one, name its socket"
                    " with --syslog-socket, or leave out --syslog: then the log is on standard"
                    " error"
                ) from None

    def reopen(self) -> None:
        """
        Open a log file anew by its name; what cannot be opened is told in the old one.
        """
        if self._out is None:
            _log.info("SIGUSR1: the log is on standard error, there is nothing to open anew")
            return
        try:
            self._out.reopen()
        except OSError as error:
            _log.error(
                "{path} cannot be opened anew, the log goes where it went: {error}",
                path=self._out.path,
                error=error.strerror or error,
            )
        else:
            _log.info("Opened {path} anew", path=self._out.path)

    def pass_on(self, number: int, line: str) -> None:
        """
        Write what a worker has written: it is a line of the log already.
        """
        out = self.out
        out.write(line + "\n")
        out.flush()


_log = Logger()

#: The log of this process.
OUTLET: Final = Outlet()


def begin_log(
    settings: Mapping[str, Any], *, owner: tuple[int, int] | None = None, worker: bool = False
) -> None:
    """
    Write what is logged as the settings say, from their level on.

    :param owner: Whose a log file is, if it has to be made.
    :param worker: Whether this is a worker, whose lines its supervisor writes where they belong.
    :raises ConfigurationError: when it cannot be written there.
    """
    if not worker:
        OUTLET.open(settings, owner)
    to_syslog = settings.get("syslog") is not None and settings.get("log_file") is None
    journal = "JOURNAL_STREAM" in os.environ and settings.get("log_file") is None
    kind: Any = JournalLog if to_syslog or journal else TextLog
    if settings["json_log"]:
        kind = partial(JsonLog, severity=to_syslog)
    redact: Any = ()
    if settings["redact"]:
        # Workers inherit it: the same has to be replaced by the same in all of them.
        key = os.environ.setdefault(_KEY, secrets.token_hex(32))
        redact = (Redactor(key.encode()),)
    write = kind(OUTLET.out, *redact)
    filtering: Any = FilteringLogObserver(write, [FromLevel(settings["log_level"])])
    globalLogBeginner.beginLoggingTo([Shortage(filtering)], redirectStandardIO=False)
