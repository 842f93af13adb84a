"""
The options of ``serve``: one table, from which the command line and the file are read.

A value is checked where it is read. What is said on the command line counts more than the file.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from yatxmilter._cli.serve_tables import MILTER, OF_REMOTE, unknown_option
from yatxmilter._engine.connection import MERGES
from yatxmilter._options import choice_option, count_option, seconds_option
from yatxmilter.protocol import MilterProtocolFactory
from yatxmilter.protocol._endpoints import server_endpoint
from yatxmilter.protocol._socket_file import find_group, find_user
from yatxmilter.service._log_outlets import FACILITIES
from yatxmilter.service._reactors import REACTORS

__all__ = [
    "OPTIONS",
    "ConfigurationError",
    "add_arguments",
    "add_some",
    "read_settings",
    "read_some",
]

_FACTORY: Final = inspect.signature(MilterProtocolFactory).parameters


class ConfigurationError(Exception):
    """
    What is wrong with the options, a line for each mistake.

    :ivar sound: The milters in whose options no mistake was found; they may have others.
    """

    def __init__(self, text: str, sound: Iterable[dict[str, Any]] = ()) -> None:
        super().__init__(text)
        self.sound = list(sound)


class _Option(NamedTuple):
    name: str
    check: Callable[[str, Any], Any]
    default: Any
    help: str
    word: str = "N"


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise TypeError(f"{name} is {value!r}, expected a text, without NUL")
    return value


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}, expected true or false")
    return value


def _texts(name: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
        raise TypeError(f"{name} is {value!r}, expected a list of texts")
    return value


def _listen(name: str, value: Any) -> list[str]:
    return _each(name, value, _address)


def _each(name: str, value: Any, check: Callable[[str, str], object]) -> list[str]:
    """
    Check each of some texts, and tell of all that are wrong.
    """
    wrong = []
    for one in _texts(name, value):
        try:
            check(name, one)
        except ValueError as error:
            wrong.append(str(error))
    if wrong:
        raise ValueError("\n".join(wrong))
    return list(value)


def _address(name: str, spec: str) -> str:
    try:
        server_endpoint(_Nothing(), spec)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return spec


def _networks(name: str, value: Any) -> list[str]:
    return _each(name, value, lambda _, one: MilterProtocolFactory((), allow=[one]))


def _mode(name: str, value: Any) -> int:
    if not isinstance(value, str) or not re.fullmatch("[0-7]{3,4}", value):
        raise ValueError(f"{name} is {value!r}, expected an octal number such as 660")
    return int(value, 8)


def _user(name: str, value: Any) -> str:
    find_user(name, _text(name, value))
    return str(value)


def _group(name: str, value: Any) -> str:
    find_group(name, _text(name, value))
    return str(value)


def _merge(name: str, value: Any) -> str:
    return choice_option(name, value, list(MERGES))


def _folder(name: str, value: Any) -> str:
    if not Path(_text(name, value)).is_dir():
        raise ValueError(f"{name} is {value!r}, expected a folder that is there")
    return str(value)


def _reactor(name: str, value: Any) -> str:
    return choice_option(name, value, list(REACTORS))


def _facility(name: str, value: Any) -> str:
    return choice_option(name, value, list(FACILITIES))


def _level(name: str, value: Any) -> str:
    return choice_option(name, value, ["debug", "info", "warn", "error", "critical"])


def _metrics(name: str, value: Any) -> str:
    _address(name, _text(name, value))
    if importlib.util.find_spec("prometheus_client") is None:
        raise ValueError(f"{name} needs prometheus-client: pip install prometheus-client")
    return str(value)


class _Nothing:
    """
    Stands where endpoints keep their reactor until they listen.
    """


def _limits() -> Iterator[_Option]:
    """
    Make the rows of all that `MilterProtocolFactory` limits, with its own defaults.
    """
    for name, help_ in (
        ("timeout", "seconds that an MTA may be silent"),
        ("command_timeout", "seconds within which a command must have arrived whole"),
        ("write_timeout", "seconds that an MTA may read nothing of what waits for it"),
        ("progress_interval", "seconds between signs of progress at the end of a message"),
        ("start_timeout", "seconds that a milter factory may take to start"),
        ("stop_timeout", "seconds that a milter factory may take to stop"),
        ("slow_callback", "seconds that a callback may block the process before the log says so"),
    ):
        yield _Option(name, seconds_option, _FACTORY[name].default, help_, "SECONDS")
    for name, help_ in (
        ("max_connections", "MTA connections at once"),
        ("max_connections_per_peer", "MTA connections at once from one IP address"),
        ("max_macros", "macros for one stage"),
        ("max_macro_bytes", "bytes of macros for one connection"),
        ("max_buffered", "bytes that may wait for a milter before reading is paused"),
        ("max_header_bytes", "bytes of header fields that a chain keeps of one message"),
        ("max_recipients", "recipients of one message that a chain takes, or a condition looks at"),
        ("max_edit_bytes", "bytes of a milter's edits of one message, a new body aside"),
        ("max_body", "bytes of a body that a chain keeps in all"),
        ("spool_memory", "bytes of a body that a chain keeps in memory"),
    ):
        yield _Option(name, count_option, _FACTORY[name].default, help_)


_LIMITS: Final = tuple(_limits())
#: What `MilterProtocolFactory` is given.
FACTORY_OPTIONS: Final = ("merge", "allow", *(row.name for row in _LIMITS))

#: The options in the groups in which ``--help`` lists them.
GROUPS: Final[tuple[tuple[str, tuple[_Option, ...]], ...]] = (
    (
        "who may connect, and where",
        (
            _Option("listen", _listen, [], "where to listen (repeatable)", "SPEC"),
            _Option(
                "allow", _networks, None, "network that may connect by TCP (repeatable)", "NETWORK"
            ),
            _Option("mode", _mode, 0o660, "permissions of UNIX sockets", "OCTAL"),
            _Option("owner", _user, None, "owner of UNIX sockets, else the --user", "NAME"),
            _Option("socket_group", _group, None, "group of UNIX sockets, else --group", "NAME"),
        ),
    ),
    ("answers", (_Option("merge", _merge, "first", "first, strictest or chain", "HOW"),)),
    ("limits and time-outs; none is no limit", _LIMITS),
    (
        "the process",
        (
            _Option("reactor", _reactor, None, "asyncio, epoll, poll or select", "NAME"),
            _Option("workers", count_option, None, "processes that share the sockets"),
            _Option(
                "drain_timeout", seconds_option, 30, "seconds for messages at the end", "SECONDS"
            ),
            _Option("user", _user, None, "user to become after the sockets are open", "NAME"),
            _Option("group", _group, None, "group to become, and of UNIX sockets", "NAME"),
            _Option("umask", _mode, None, "of the process, such as 007", "OCTAL"),
            _Option("pidfile", _text, None, "file for the process id", "FILE"),
        ),
    ),
    (
        "log and metrics",
        (
            _Option("metrics", _metrics, None, "where to serve metrics and health by HTTP", "SPEC"),
            _Option("log_level", _level, "info", "debug, info, warn, error or critical", "LEVEL"),
            _Option("json_log", _flag, False, "log a JSON object a line"),
            _Option("redact", _flag, False, "keep mail addresses out of the log"),
            _Option("log_file", _text, None, "file for the log; SIGUSR1 opens it anew", "FILE"),
            _Option("syslog", _facility, None, "log to syslog, such as mail", "FACILITY"),
            _Option("record_failures", _folder, None, "folder for the sessions of failures", "DIR"),
            _Option("syslog_socket", _text, "/dev/log", "where syslog listens", "PATH"),
        ),
    ),
)
OPTIONS: Final = tuple(row for _, rows in GROUPS for row in rows)
_ROWS: Final = {row.name: row for row in OPTIONS}


def add_arguments(parser: ArgumentParser) -> None:
    """
    Declare what ``serve`` takes.
    """
    group = parser.add_argument_group("milters")
    add = group.add_argument
    add("--milter", action="append", metavar="MODULE:NAME", help="a milter (repeatable, in order)")
    add("--config", metavar="FILE", help="read options from a TOML file")
    add("--check-config", action="store_true", help="check all, start nothing")
    for title, rows in GROUPS:
        _add(parser.add_argument_group(title), rows)


def add_some(parser: ArgumentParser, names: Iterable[str]) -> None:
    """
    Declare some of the options, for commands that serve as ``serve`` does.
    """
    _add(parser, map(_ROWS.__getitem__, names))


def _add(parser: Any, rows: Iterable[_Option]) -> None:
    for row in rows:
        flag = "--" + row.name.replace("_", "-")
        if row.check is _flag:
            parser.add_argument(flag, action="store_true", default=None, help=row.help)
        else:
            many = "append" if row.check in (_listen, _networks) else "store"
            words = f"{row.help}{_default(row)}".replace("%", "%%")
            parser.add_argument(flag, action=many, metavar=row.word, help=words)


def _default(row: _Option) -> str:
    """
    Say what holds without the option; nothing, where that is nothing.
    """
    if row.check is _mode and row.default is not None:
        return f" (default: {row.default:o})"
    if row.check in (count_option, seconds_option) and row.name != "workers":
        return f" (default: {'none' if row.default is None else row.default})"
    return f" (default: {row.default})" if row.default else ""


def read_some(arguments: Namespace, names: Iterable[str]) -> dict[str, Any]:
    """
    Read what the command line says of some of the options; the rest of them have their defaults.

    :raises ConfigurationError: that tells of every mistake.
    """
    errors: list[str] = []
    settings = {name: _ROWS[name].default for name in names}
    _read_words(arguments, settings, settings, errors)
    if errors:
        raise ConfigurationError("\n".join(errors))
    return settings


def _read_words(
    arguments: Namespace, names: Iterable[str], settings: dict[str, Any], errors: list[str]
) -> None:
    for row in map(_ROWS.__getitem__, list(names)):
        value = getattr(arguments, row.name)
        if value is not None:
            numeric = row.check in (count_option, seconds_option)
            _check(
                row.name, row.check, _number(value) if numeric else value, settings, errors, "--"
            )


def _number(text: Any) -> Any:
    """
    Read a word of the command line as the file would have it.
    """
    if text == "none":
        return None
    try:
        return int(text)
    except ValueError:
        with_point = re.fullmatch(r"\d*\.\d+", text)
        return float(text) if with_point else text


def read_settings(arguments: Namespace) -> dict[str, Any]:
    """
    Put together what the command line and the file say.

    :raises ConfigurationError: that tells of every mistake.
    """
    errors: list[str] = []
    settings: dict[str, Any] = {row.name: row.default for row in OPTIONS}
    settings["milters"] = []
    # Of these, those in which there is no mistake so far.
    settings["sound"] = []
    if arguments.config is not None:
        _read_file(arguments.config, settings, errors)
    _read_words(arguments, _ROWS, settings, errors)
    if arguments.milter:
        settings["milters"] = [{"object": spec, "place": "--milter"} for spec in arguments.milter]
        settings["sound"] = settings["milters"]
    place = arguments.config or "arguments"
    if not settings["listen"] and not errors:
        errors.append(f"{place}: nowhere to listen; give --listen, such as inet:8891@localhost")
    if not settings["milters"] and not errors:
        errors.append(f"{place}: no milter; give --milter, such as mymilter:MyMilter")
    if settings["log_file"] and settings["syslog"]:
        errors.append("log_file and syslog are both given; expected one of them")
    sound = settings.pop("sound")
    if errors:
        raise ConfigurationError("\n".join(errors), sound)
    return settings


def _check(
    name: str, check: Any, value: Any, into: dict[str, Any], errors: list[str], place: str
) -> None:
    try:
        into[name] = check(name, value)
    except (TypeError, ValueError) as error:
        for words in str(error).splitlines():
            if place == "--":
                errors.append(words.replace(name, "--" + name.replace("_", "-"), 1))
            else:
                errors.append(f"{place}: {words}")


def _load_toml(path: str) -> tuple[str, dict[str, Any]]:
    parsers = []
    for name in ("tomllib", "tomli"):
        try:
            parsers.append(importlib.import_module(name))
        except ImportError:
            continue
    if not parsers:
        raise ConfigurationError(f"{path}: Python 3.10 needs tomli: pip install tomli")
    text = ""
    try:
        text = Path(path).read_text(encoding="utf-8")
        return text, parsers[0].loads(text)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        line = re.search(r"\(at line (\d+)", str(error))
        # Without a line it is the end, where something is missing.
        number = int(line[1]) if line else len(text.splitlines()) or 1
        raise ConfigurationError(f"{path}:{number}: {error}") from None


class _Places:
    """
    Finds the lines of keys in a TOML file; the parser does not tell them.
    """

    def __init__(self, path: str, text: str) -> None:
        self._path = path
        self._lines: dict[tuple[int, str], int] = {}
        table, within = 0, ""
        for number, line in enumerate(text.splitlines(), 1):
            header = re.match(r"\s*\[+\s*([\w.-]+)\s*\]", line)
            if header is not None:
                first, _, rest = header[1].partition(".")
                if re.match(r"\s*\[\[\s*milter\s*\]\]", line):
                    table += 1
                    self._lines[table, ""] = number
                if first == "milter" and rest:
                    # A table within the table of a milter.
                    within = f"{rest}."
                    self._lines.setdefault((table, rest), number)
                else:
                    within = ""
                    self._lines.setdefault((0, first), number)
                continue
            key = re.match(r"\s*\"?([\w-]+)\"?\s*[=.]", line)
            if key:
                self._lines.setdefault((table, within + key[1]), number)

    def of(self, table: int, key: str) -> str:
        """
        Say where a key is.
        """
        line = self._lines.get((table, key)) or self._lines.get((table, "")) or 1
        return f"{self._path}:{line}"


def _read_file(path: str, settings: dict[str, Any], errors: list[str]) -> None:
    """
    Read a TOML file; what is wrong in it is added to the errors, with its line.
    """
    text, found = _load_toml(path)
    places = _Places(path, text)
    milters = found.pop("milter", [])
    for key, value in found.items():
        if key in _ROWS:
            value = None if value == "none" else value
            _check(key, _ROWS[key].check, value, settings, errors, places.of(0, key))
        elif key in MILTER:
            errors.append(
                f"{places.of(0, key)}: {key} is an option of a milter; write it below [[milter]]"
            )
        else:
            errors.append(f"{places.of(0, key)}: {unknown_option(key, [*_ROWS, 'milter'])}")
    if not isinstance(milters, list) or not all(isinstance(one, dict) for one in milters):
        errors.append(f"{places.of(0, 'milter')}: milter must be tables, each under [[milter]]")
        return
    for number, table in enumerate(milters, 1):
        before = len(errors)
        milter = _read_milter(table, partial(places.of, number), errors)
        settings["milters"].append(milter)
        if len(errors) == before:
            settings["sound"].append(milter)


def _read_milter(
    table: dict[str, Any], place: Callable[[str], str], errors: list[str]
) -> dict[str, Any]:
    """
    Read one ``[[milter]]`` table; what is wrong in it is added to the errors.
    """
    milter: dict[str, Any] = {"place": place("remote" if "remote" in table else "object")}
    for key, value in table.items():
        if key in MILTER:
            _check(key, MILTER[key], value, {}, errors, place(key))
            milter[key] = value
        elif key in _ROWS:
            errors.append(
                f"{place(key)}: {key} is not a milter's option; write it above the first [[milter]]"
            )
        else:
            errors.append(f"{place(key)}: {unknown_option(key, MILTER)}")
    if ("object" in table) == ("remote" in table):
        has = "both object and remote" if "object" in table else "no object and no remote"
        errors.append(
            f"{place('')}: [[milter]] has {has}; expected object = 'module:name', or remote ="
            " 'inet:port@host' for a milter that runs elsewhere"
        )
    elif "remote" in table and "options" in table:
        errors.append(f"{place('options')}: options are for an object, not for a remote milter")
    elif "object" in table:
        errors += [
            f"{place(key)}: {key} is for a remote milter" for key in OF_REMOTE if key in table
        ]
    return milter
