"""
The log of ``serve``, on standard error.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping
from typing import Any

from twisted.logger import (
    FilteringLogObserver,
    LogLevel,
    LogLevelFilterPredicate,
    globalLogBeginner,
)

from yatxmilter.logs import JournalLog, JsonLog, Redactor, TextLog

__all__ = ["begin_log"]

_KEY = "YATXMILTER_REDACTION_KEY"


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
    globalLogBeginner.beginLoggingTo([filtering], redirectStandardIO=False)
