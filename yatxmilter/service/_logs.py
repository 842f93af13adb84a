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
from contextlib import suppress
from datetime import datetime, timezone
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final, TextIO

from twisted.logger import (
    FilteringLogObserver,
    ILogFilterPredicate,
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

__all__ = ["FIELDS", "FromLevel", "JournalLog", "JsonLog", "Redactor", "TextLog"]

#: The fields of our events that are written by name, where an event has them.
FIELDS: Final = (
    *("milter", "stage", "queue_id", "mta", "connection", "code", "error", "fault", "refusal"),
    *("dropped", "outcome", "reply", "edits", "recipients", "count"),
    *("worker", "pid", "role", "reason"),
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
# What is left between these where nothing is a program's own.
_WORDS_LEFT: Final = re.compile(r"[^\s<>\[\]]+")
_KINDS: Final = {"mail": "address", "ip4": "ip", "ip6": "ip", "host": "host"}


class Redactor:
    """
    Replaces mail addresses, IP addresses and host names in texts; the same by the same.

    In the log it sees the values of events, but for those that are never a stranger's: names of
    milters, files and addresses of our own stay. What looks like a host name is taken for one,
    unless it is the name of a module, a class or a file: rather too much is replaced than too
    little.

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

    def stranger(self, text: str) -> str:
        """
        Give a stranger's name or address with all of its words replaced, also those that look like
        neither.
        """
        replaced, position = [], 0
        for match in _SENSITIVE.finditer(text):
            replaced.append(_WORDS_LEFT.sub(self._replace_word, text[position : match.start()]))
            replaced.append(self._hidden(match.lastgroup or "host", match.group()))
            position = match.end()
        replaced.append(_WORDS_LEFT.sub(self._replace_word, text[position:]))
        return "".join(replaced)

    def _replace(self, match: re.Match[str]) -> str:
        text = match.group()
        kind = match.lastgroup or "host"
        if kind == "host" and _is_of_a_program(text):
            return text
        return self._hidden(kind, text)

    def _replace_word(self, match: re.Match[str]) -> str:
        word = match.group()
        return word if word == "unknown" else self._hidden("host", word)

    def _hidden(self, kind: str, text: str) -> str:
        text = text.lower().rstrip(".")
        digest = hmac.new(self._key, text.encode("utf-8", "surrogatepass"), sha256).hexdigest()
        return f"{_KINDS[kind]}-{digest[:10]}"


#: The last parts of names of files that are not domains.
_FILES: Final = frozenset(
    ("cf", "cfg", "conf", "csv", "db", "eml", "json", "lock", "log", "pem", "pid", "sock")
    + ("sqlite", "toml", "txt")
)
#: The fields of our own events that a stranger has no part in.
_OWN_FIELDS: Final = frozenset(
    ("milter", "stage", "mta", "connection", "code", "outcome", "count", "dropped", "worker")
    + ("pid", "role", "where", "path", "place", "observer", "address", "seconds", "pause")
    + ("changed", "restart", "mode")
)
#: Those that are a stranger's name or address and nothing else.
_STRANGERS_FIELDS: Final = frozenset(("client", "sender"))
#: What an event is written as.
_WORDS: Final = ("log_format", "log_flattened", "log_text")
_OTHER_WORDS: Final = frozenset(_WORDS) - {"log_format"}
_BRACES: Final = re.compile(r"(\{[^{}]*\})")


def _is_of_a_program(name: str) -> bool:
    """
    Tell whether a name with dots is one of a module, of what is in one, or of a file.
    """
    before, _, last = name.rpartition(".")
    if last in _FILES or name in sys.modules or (last == "py" and before in sys.modules):
        return True
    if last[0].isupper() and not last.isupper():
        # A class; a domain may have capitals, but not the name of a module before it.
        return name.partition(".")[0] in sys.modules
    return hasattr(sys.modules.get(before), last)


#: What looks harmless however it is formatted.
_NUMBERS: Final = frozenset({int, float})

#: How many decisions about a namespace and a level are kept.
_MOST_DECISIONS: Final = 512

# What syslog calls the levels.
_SEVERITIES: Final = {"debug": 7, "info": 6, "warn": 4, "error": 3, "critical": 2}


@implementer(ILogFilterPredicate)
class FromLevel:
    """
    Has events from a level on.

    :param level: The level's name.
    """

    def __init__(self, level: str) -> None:
        predicate = LogLevelFilterPredicate(LogLevel.lookupByName(level))
        # What Twisted says about itself is for those who look for its errors.
        predicate.setLogLevelForNamespace("twisted", LogLevel.warn)
        for namespace in ("twisted.internet", "twisted.python", "-", "log_legacy"):
            predicate.setLogLevelForNamespace(namespace, LogLevel.error)

        # To look for the level of a namespace costs as much as to format a line.
        @lru_cache(maxsize=_MOST_DECISIONS)
        def decide(namespace: str | None, level: object) -> Any:
            return predicate({"log_namespace": namespace, "log_level": level})

        self._decide = decide

    def __call__(self, event: LogEvent) -> Any:
        """
        Say whether an event is logged.
        """
        return self._decide(event.get("log_namespace"), event.get("log_level"))


def begin_usual_log() -> None:
    """
    Write the log on standard error as lines of text, unless the program has seen to its log.
    """
    # Twisted does not tell otherwise: what it has of its own until somebody begins.
    waiting = getattr(globalLogBeginner, "_temporaryObserver", None)
    if waiting is None or list(getattr(globalLogPublisher, "_observers", ())) != [waiting]:
        return
    write: Any = FilteringLogObserver(TextLog(sys.stderr), [FromLevel("info")])
    globalLogBeginner.beginLoggingTo([write], redirectStandardIO=False)


def _unchanged(text: str) -> str:
    return text


def _traceback(event: LogEvent, redact: Callable[[str], str]) -> str | None:
    failure = event.get("log_failure")
    if not isinstance(failure, Failure):
        return None
    text = failure.getTraceback()
    said = failure.getErrorMessage()
    if redact is _unchanged or not said:
        return text
    # Where it happened is the program's own; what the error says may be of a stranger.
    head, found, tail = text.rpartition(said)
    return f"{head}{redact(found)}{tail}"


def _time(event: LogEvent) -> str:
    moment = datetime.fromtimestamp(event.get("log_time", 0), timezone.utc)
    return moment.isoformat(timespec="milliseconds")


def _level(event: LogEvent) -> str:
    level = event.get("log_level")
    return "info" if level is None else str(level.name)


class _Value:
    """
    A value of an event, which is redacted and escaped when it is formatted, as is all that it leads
    to.
    """

    __slots__ = ("_redact", "_value")

    def __init__(self, value: object, redact: Callable[[str], str]) -> None:
        self._value = value
        self._redact = redact

    def __format__(self, spec: str) -> str:
        return printable(self._redact(format(self._value, spec)))

    def __str__(self) -> str:
        return printable(self._redact(str(self._value)))

    def __repr__(self) -> str:
        return printable(self._redact(repr(self._value)))

    def __getattribute__(self, name: str) -> Any:
        # Not `__getattr__`: some versions of Twisted look attributes up by this alone.
        try:
            return super().__getattribute__(name)
        except AttributeError:
            return _Value(getattr(self._value, name), self._redact)

    def __getitem__(self, key: Any) -> _Value:
        value: Any = self._value
        return _Value(value[key], self._redact)

    def __call__(self) -> _Value:
        value: Any = self._value
        return _Value(value(), self._redact)


def _is_ours(event: LogEvent) -> bool:
    return str(event.get("log_namespace", "")).partition(".")[0] == "yatxmilter"


def _format(event: LogEvent) -> str:
    """
    Format an event as Twisted does. Most of ours need little of what Twisted can do, which is slow.
    """
    words = event.get("log_format")
    if isinstance(words, str) and not event.keys() & _OTHER_WORDS:
        # What calls something, or cannot be formatted, is for the longer way.
        with suppress(Exception):
            return words.format_map(event)
    return formatEvent(event)


def _redacts(event: LogEvent, name: str, redact: Callable[[str], str]) -> Callable[[str], str]:
    """
    Tell what is done with the value of a field.
    """
    if redact is _unchanged or name in (
        "log_level",
        "log_namespace",
        "log_time",
        "log_source",
        "log_logger",
    ):
        return _unchanged
    if not _is_ours(event):
        return redact
    if name in _STRANGERS_FIELDS and isinstance(redact, Redactor):
        return redact.stranger
    own = name in _OWN_FIELDS and "@" not in str(event.get("mta"))
    return _unchanged if own else redact


def _own_words(text: str, redact: Callable[[str], str]) -> str:
    """
    Redact the words of a program, which may have put values in itself, but for names in braces.
    """
    return "".join(one if one.startswith("{") else redact(one) for one in _BRACES.split(text))


def _values(event: LogEvent, redact: Callable[[str], str]) -> LogEvent:
    """
    Give an event whose values say nothing that must be hidden, or escaped, when they are formatted.
    """
    if redact is _unchanged:
        # Most are numbers, or texts in which nothing is to be escaped.
        return {
            name: value
            if type(value) in _NUMBERS
            or (type(value) is str and value.isprintable())
            or name in _WORDS
            else _Value(value, _unchanged)
            for name, value in event.items()
        }
    return {
        name: value if name in _WORDS else _Value(value, _redacts(event, name, redact))
        for name, value in event.items()
    }


def _message(event: LogEvent, redact: Callable[[str], str]) -> str:
    """
    Format an event: its own lines, with nothing of a value on a line of its own.
    """
    # What a program has printed or logged as text is its own in full.
    values = _values(event, redact)
    if _is_ours(event):
        return _format(values)
    if redact is _unchanged:
        return formatEvent(values)
    if "log_flattened" in values or "log_text" in values:
        return redact(formatEvent(values))
    values["log_format"] = _own_words(str(values.get("log_format", "")), redact)
    return formatEvent(values)


def _lines(event: LogEvent, redact: Callable[[str], str], out: TextIO) -> list[str]:
    encoding = getattr(out, "encoding", None)
    text = "\n".join(filter(None, (_message(event, redact), _traceback(event, redact))))
    return [printable(line, encoding, keep="\t") for line in text.rstrip("\n").split("\n")]


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
            "message": _message(event, self._redact),
        }
        for name in FIELDS:
            if event.get(name) is not None:
                record[name] = _plain(event[name], _redacts(event, name, self._redact))
        traceback = _traceback(event, self._redact)
        if traceback is not None:
            record["traceback"] = traceback
        # The one control character that JSON lets stand.
        line = json.dumps(record).replace("\x7f", "\\u007f") + "\n"
        mark = f"<{_SEVERITIES[record['level']]}>" if self._severity else ""
        self._out.write(mark + line)
        self._out.flush()


def _plain(value: object, redact: Callable[[str], str]) -> object:
    if isinstance(value, (bool, float)) or type(value) is int:
        return value
    return redact(str(value))


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
