"""
Log observers for those who run milters: one JSON object a line, and addresses replaced on demand.

Observers of `twisted.logger`; events are written down here and nowhere changed. Values in an event
may be a stranger's: whatever they contain, they stay on the line of the event, and do nothing to
the terminal on which it is read.
"""

from __future__ import annotations

import hmac
import json
import re
import secrets
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from hashlib import sha256
from typing import Any, Final, TextIO

from twisted.logger import (
    FilteringLogObserver,
    ILogObserver,
    LogEvent,
    LogLevel,
    LogLevelFilterPredicate,
    formatEvent,
    globalLogBeginner,
    globalLogPublisher,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from yatxmilter._escaping import printable

__all__ = ["FIELDS", "JournalLog", "JsonLog", "Redactor", "TextLog"]

#: The fields of our events that are written by name, where an event has them.
FIELDS: Final = (
    *("milter", "stage", "queue_id", "mta", "connection", "code", "error", "fault", "refusal"),
    *("dropped", "outcome", "reply", "edits", "recipients", "count"),
    *("worker", "pid", "reason"),
    *("client", "sender", "accepted", "refused", "deferred", "verdict", "edit_counts"),
    *("milliseconds", "callback_milliseconds"),
)

# From the start of a word on alone: no text takes more than one look at each of its characters.
_WORD: Final = r"[^\s<>\"'(),;:@\[\]]"
_LOCAL: Final = rf"(?:\"[^\"\n]{{1,256}}\"|(?<!{_WORD}){_WORD}+)"
_MAIL: Final = rf"(?P<mail>{_LOCAL}@(?:\[[^\]\s]{{0,256}}\]|[\w.-]+))"
_IP4: Final = r"(?P<ip4>(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w]))"
_IP6: Final = r"(?P<ip6>(?<!\w)(?=[0-9A-Fa-f.]{0,4}:[0-9A-Fa-f.]{0,45}:)[0-9A-Fa-f:.]{2,45}(?!\w))"
_HOST: Final = r"(?P<host>(?<![\w./-])(?:[\w-]+\.)+[A-Za-z][\w-]*[A-Za-z0-9]\b)"
_SENSITIVE: Final = re.compile("|".join((_MAIL, _IP6, _IP4, _HOST)))
_KINDS: Final = {"mail": "address", "ip4": "ip", "ip6": "ip", "host": "host"}


class Redactor:
    """
    Replaces mail addresses, IP addresses and host names in texts; the same by the same.

    What looks like a host name is taken for one: rather too much is replaced than too little.

    :param key: What the replacements depend on; by default one of this process alone, so that
        nobody can find out by trying what stood there.
    """

    def __init__(self, key: bytes | None = None) -> None:
        self._key = secrets.token_bytes(32) if key is None else key

    def __call__(self, text: str) -> str:
        """
        Give a text with all of them replaced.
        """
        return _SENSITIVE.sub(self._replace, text)

    def _replace(self, match: re.Match[str]) -> str:
        text = match.group().lower().rstrip(".")
        digest = hmac.new(self._key, text.encode("utf-8", "surrogatepass"), sha256).hexdigest()
        return f"{_KINDS[match.lastgroup or 'host']}-{digest[:10]}"


# What syslog calls the levels.
_SEVERITIES: Final = {"debug": 7, "info": 6, "warn": 4, "error": 3, "critical": 2}


def from_level(level: str) -> LogLevelFilterPredicate:
    """
    Have events from a level on.
    """
    predicate = LogLevelFilterPredicate(LogLevel.lookupByName(level))
    # What Twisted says about itself is for those who look for its errors.
    predicate.setLogLevelForNamespace("twisted", LogLevel.warn)
    for namespace in ("twisted.internet", "twisted.python", "-", "log_legacy"):
        predicate.setLogLevelForNamespace(namespace, LogLevel.error)
    return predicate


def begin_usual_log() -> None:
    """
    Write the log on standard error as lines of text, unless the program has seen to its log.
    """
    # Twisted does not tell otherwise: what it has of its own until somebody begins.
    waiting = getattr(globalLogBeginner, "_temporaryObserver", None)
    if waiting is None or list(getattr(globalLogPublisher, "_observers", ())) != [waiting]:
        return
    write: Any = FilteringLogObserver(TextLog(sys.stderr), [from_level("info")])
    globalLogBeginner.beginLoggingTo([write], redirectStandardIO=False)


def _unchanged(text: str) -> str:
    return text


def _traceback(event: LogEvent) -> str | None:
    failure = event.get("log_failure")
    return failure.getTraceback() if isinstance(failure, Failure) else None


def _time(event: LogEvent) -> str:
    moment = datetime.fromtimestamp(event.get("log_time", 0), timezone.utc)
    return moment.isoformat(timespec="milliseconds")


def _level(event: LogEvent) -> str:
    level = event.get("log_level")
    return "info" if level is None else str(level.name)


class _Value:
    """
    A value of an event, which is escaped when it is formatted, as is all that it leads to.
    """

    __slots__ = ("_value",)

    def __init__(self, value: object) -> None:
        self._value = value

    def __format__(self, spec: str) -> str:
        return printable(format(self._value, spec))

    def __str__(self) -> str:
        return printable(str(self._value))

    def __repr__(self) -> str:
        return printable(repr(self._value))

    def __getattr__(self, name: str) -> _Value:
        return _Value(getattr(self._value, name))

    def __getitem__(self, key: Any) -> _Value:
        value: Any = self._value
        return _Value(value[key])

    def __call__(self) -> _Value:
        value: Any = self._value
        return _Value(value())


def _message(event: LogEvent) -> str:
    """
    Format an event: its own lines, with nothing of a value on a line of its own.
    """
    # What a program has printed or logged as text is its own in full.
    own = ("log_format", "log_flattened", "log_text")
    values = {name: v if name in own else _Value(v) for name, v in event.items()}
    return formatEvent(values)


def _lines(event: LogEvent, redact: Callable[[str], str], out: TextIO) -> list[str]:
    encoding = getattr(out, "encoding", None)
    text = "\n".join(filter(None, (_message(event), _traceback(event))))
    lines = redact(text).rstrip("\n").split("\n")
    return [printable(line, encoding, keep="\t") for line in lines]


@implementer(ILogObserver)
class JsonLog:
    """
    Writes each event as one JSON object on a line of its own, in ASCII.

    :param out: Where to.
    :param redact: Changes each text, such as a `Redactor`.
    :param severity: Whether syslog's severity stands before each line, as in `JournalLog`.
    """

    def __init__(
        self,
        out: TextIO,
        redact: Callable[[str], str] = _unchanged,
        *,
        severity: bool = False,
    ) -> None:
        self._out = out
        self._redact = redact
        self._severity = severity

    def __call__(self, event: LogEvent) -> None:
        """
        Write an event.
        """
        record: dict[str, Any] = {
            "time": _time(event),
            "level": _level(event),
            "namespace": str(event.get("log_namespace", "-")),
            "message": self._redact(_message(event)),
        }
        for name in FIELDS:
            if event.get(name) is not None:
                record[name] = self._plain(event[name])
        traceback = _traceback(event)
        if traceback is not None:
            record["traceback"] = self._redact(traceback)
        # The one control character that JSON lets stand.
        line = json.dumps(record).replace("\x7f", "\\u007f") + "\n"
        mark = f"<{_SEVERITIES[record['level']]}>" if self._severity else ""
        self._out.write(mark + line)
        self._out.flush()

    def _plain(self, value: object) -> object:
        if isinstance(value, (bool, float)) or type(value) is int:
            return value
        return self._redact(str(value))


@implementer(ILogObserver)
class TextLog:
    """
    Writes each event as a line of text, and its traceback behind it.

    :param out: Where to.
    :param redact: Changes each text, such as a `Redactor`.
    """

    def __init__(self, out: TextIO, redact: Callable[[str], str] = _unchanged) -> None:
        self._out = out
        self._redact = redact

    def __call__(self, event: LogEvent) -> None:
        """
        Write an event.
        """
        # A line of a message must not pass for an event of its own.
        lines = "\n\t".join(_lines(event, self._redact, self._out))
        namespace = printable(str(event.get("log_namespace", "-")))
        self._out.write(f"{_time(event)} [{namespace}#{_level(event)}] {lines}\n")
        self._out.flush()


@implementer(ILogObserver)
class JournalLog:
    """
    Writes each event as journald wants it: syslog's severity before each line, and no time. The
    lines after the first begin with a tab.

    :param out: Where to.
    :param redact: Changes each text, such as a `Redactor`.
    """

    def __init__(self, out: TextIO, redact: Callable[[str], str] = _unchanged) -> None:
        self._out = out
        self._redact = redact

    def __call__(self, event: LogEvent) -> None:
        """
        Write an event.
        """
        mark = f"<{_SEVERITIES[_level(event)]}>"
        lines = f"\n{mark}\t".join(_lines(event, self._redact, self._out))
        self._out.write(f"{mark}{lines}\n")
        self._out.flush()
