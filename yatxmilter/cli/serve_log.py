"""
The log of ``serve``: a line an event on standard error, as journald likes it, or a JSON object.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, Final, TextIO

from twisted.logger import (
    FilteringLogObserver,
    LogLevel,
    LogLevelFilterPredicate,
    formatEvent,
    globalLogBeginner,
)

__all__ = ["begin_log", "observer"]

# What syslog calls the levels; journald reads them at the beginning of a line.
_SEVERITIES: Final = {"debug": 7, "info": 6, "warn": 4, "error": 3, "critical": 2}
# What an event may tell about, under the names that the library uses.
_FIELDS: Final = ("queue_id", "connection", "mta", "milter", "stage", "worker", "number", "pid")
_ADDRESS: Final = re.compile(r"[^\s<>@\"',;:]+@([^\s<>@\"',;:]+)")


def observer(
    stream: TextIO, *, as_json: bool = False, redact: bool = False, journal: bool = False
) -> Callable[[dict[str, Any]], None]:
    """
    Make what writes events to a stream.

    :param redact: Keep the local parts of mail addresses out.
    :param journal: Begin lines with syslog's severity.
    """

    def write(event: dict[str, Any]) -> None:
        text = formatEvent(event)
        trace = event["log_failure"].getTraceback() if event.get("log_failure") else ""
        level = event["log_level"].name
        fields = {name: str(event[name]) for name in _FIELDS if event.get(name) is not None}
        if redact:
            text, trace = (_ADDRESS.sub(r"***@\1", one) for one in (text, trace))
            fields = {name: _ADDRESS.sub(r"***@\1", one) for name, one in fields.items()}
        if as_json:
            when = datetime.fromtimestamp(event["log_time"], timezone.utc).isoformat()
            head = {"time": when, "level": level, "from": event.get("log_namespace", "")}
            rest = {"traceback": trace} if trace else {}
            stream.write(json.dumps({**head, "message": text, **fields, **rest}) + "\n")
        else:
            mark = f"<{_SEVERITIES[level]}>" if journal else f"{level}: "
            lines = [*text.splitlines(), *trace.splitlines()]
            stream.write("".join(f"{mark}{line}\n" for line in lines))
        stream.flush()

    return write


def begin_log(write: Callable[[dict[str, Any]], None], level: str) -> None:
    """
    Send what is logged there, from a level on.
    """
    predicate = LogLevelFilterPredicate(LogLevel.lookupByName(level))
    # What Twisted says about itself is for those who look for its errors.
    predicate.setLogLevelForNamespace("twisted", LogLevel.warn)
    for namespace in ("twisted.internet", "twisted.python", "-", "log_legacy"):
        predicate.setLogLevelForNamespace(namespace, LogLevel.error)
    filtering: Any = FilteringLogObserver(write, [predicate])  # type: ignore[arg-type]
    globalLogBeginner.beginLoggingTo([filtering], redirectStandardIO=False)
