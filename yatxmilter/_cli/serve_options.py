"""
The options of ``serve``: one table, from which the command line and the file are read.

A value is checked where it is read. What is said on the command line counts more than the file.
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from yatxmilter import constants as c
from yatxmilter._engine.connection import MERGES
from yatxmilter._engine.on_error import DISCONNECT, Reply, on_error_option
from yatxmilter._options import choice_option, count_option, seconds_option
from yatxmilter.protocol import MilterProtocolFactory
from yatxmilter.protocol._endpoints import server_endpoint
from yatxmilter.protocol._socket_file import find_group, find_user
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
    """


class _Option(NamedTuple):
    name: str
    check: Callable[[str, Any], Any]
    default: Any
    help: str
    word: str = "N"


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"{name} is {value!r}, expected a text")
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
    for spec in _texts(name, value):
        _address(name, spec)
    return list(value)


def _address(name: str, spec: str) -> str:
    try:
        server_endpoint(_Nothing(), spec)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return spec


def _networks(name: str, value: Any) -> list[str]:
    MilterProtocolFactory((), allow=_texts(name, value))
    return list(value)


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


def _level(name: str, value: Any) -> str:
    return choice_option(name, value, ["debug", "info", "warn", "error", "critical"])


def _on_error(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        answers = {stage: _answer(f"{name}.{stage}", answer) for stage, answer in value.items()}
        return on_error_option(name, answers)
    return on_error_option(name, _answer(name, value))


def _answer(name: str, value: Any) -> Any:
    codes = {code.name.removeprefix("SMFIS_"): code for code in c.ReturnCode}
    word = str(value).upper().removeprefix("SMFIS_")
    if word in codes:
        return codes[word]
    if word == DISCONNECT.name:
        return DISCONNECT
    reply = re.fullmatch(r"([45]\d\d)(?: +([245]\.\d+\.\d+))?(?: +(.*))?", str(value))
    if reply is not None:
        return Reply(*reply.groups())
    raise ValueError(
        f"{name} is {value!r}, expected tempfail, continue, accept, reject, discard, disconnect or"
        " a reply such as '451 4.3.0 Try again later'"
    )


def _metrics(name: str, value: Any) -> str:
    _address(name, _text(name, value))
    if importlib.util.find_spec("prometheus_client") is None:
        raise ValueError(f"{name} needs prometheus-client: pip install yatxmilter[metrics]")
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
    ):
        yield _Option(name, seconds_option, _FACTORY[name].default, help_, "SECONDS")
    for name, help_ in (
        ("max_connections", "MTA connections at once"),
        ("max_connections_per_peer", "MTA connections at once from one IP address"),
        ("max_macros", "macros for one stage"),
        ("max_macro_bytes", "bytes of macros for one connection"),
        ("max_buffered", "bytes that may wait for a milter before reading is paused"),
        ("max_header_bytes", "bytes of header fields that a chain keeps of one message"),
        ("max_recipients", "recipients of one message that a chain takes"),
        ("max_edit_bytes", "bytes of a milter's edits of one message, a new body aside"),
        ("max_body", "bytes of a body that a chain keeps in all"),
        ("spool_memory", "bytes of a body that a chain keeps in memory"),
    ):
        yield _Option(name, count_option, _FACTORY[name].default, help_)


_LIMITS: Final = tuple(_limits())
#: What `MilterProtocolFactory` is given.
FACTORY_OPTIONS: Final = ("merge", "allow", *(row.name for row in _LIMITS))

OPTIONS: Final = (
    _Option("listen", _listen, [], "where to listen (repeatable)", "SPEC"),
    _Option("merge", _merge, "first", "first, strictest or chain", "HOW"),
    _Option("allow", _networks, None, "network that may connect by TCP (repeatable)", "NETWORK"),
    *_LIMITS,
    _Option("reactor", _reactor, None, "asyncio, epoll, poll or select", "NAME"),
    _Option("workers", count_option, None, "processes that share the sockets"),
    _Option("drain_timeout", seconds_option, 30, "seconds for messages at the end", "SECONDS"),
    _Option("metrics", _metrics, None, "where to serve metrics and health by HTTP", "SPEC"),
    _Option("record_failures", _folder, None, "where to keep sessions of failures", "DIR"),
    _Option("pidfile", _text, None, "file for the process id", "FILE"),
    _Option("mode", _mode, 0o660, "permissions of UNIX sockets, by default 660", "OCTAL"),
    _Option("owner", _user, None, "owner of UNIX sockets, by default the --user", "NAME"),
    _Option("socket_group", _group, None, "group of UNIX sockets, by default --group", "NAME"),
    _Option("umask", _mode, None, "of the process, such as 007", "OCTAL"),
    _Option("user", _user, None, "user to become after the sockets are open", "NAME"),
    _Option("group", _group, None, "group to become, and of UNIX sockets", "NAME"),
    _Option("log_level", _level, "info", "debug, info, warn, error or critical", "LEVEL"),
    _Option("json_log", _flag, False, "log a JSON object a line"),
    _Option("redact", _flag, False, "keep mail addresses out of the log"),
)
_ROWS: Final = {row.name: row for row in OPTIONS}
_MILTER: Final[dict[str, Callable[[str, Any], Any]]] = {
    "object": _text,
    "on_error": _on_error,
    "timeout": seconds_option,
    "name": _text,
    "when": _text,
    "shadow": _flag,
}


def add_arguments(parser: ArgumentParser) -> None:
    """
    Declare what ``serve`` takes.
    """
    add = parser.add_argument
    add("--milter", action="append", metavar="MODULE:NAME", help="a milter (repeatable, in order)")
    add("--config", metavar="FILE", help="read options from a TOML file")
    add("--check-config", action="store_true", help="check all, start nothing")
    add_some(parser, _ROWS)


def add_some(parser: ArgumentParser, names: Iterable[str]) -> None:
    """
    Declare some of the options, for ``serve`` and for commands that serve as it does.
    """
    for row in map(_ROWS.__getitem__, names):
        flag = "--" + row.name.replace("_", "-")
        if row.check is _flag:
            parser.add_argument(flag, action="store_true", default=None, help=row.help)
        else:
            many = "append" if row.check in (_listen, _networks) else "store"
            parser.add_argument(flag, action=many, metavar=row.word, help=row.help)


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
    if arguments.config is not None:
        _read_file(arguments.config, settings, errors)
    _read_words(arguments, _ROWS, settings, errors)
    if arguments.milter:
        settings["milters"] = [{"object": spec, "place": "--milter"} for spec in arguments.milter]
    place = arguments.config or "arguments"
    if not settings["listen"] and not errors:
        errors.append(f"{place}: nowhere to listen; give --listen, such as inet:8891@localhost")
    if not settings["milters"] and not errors:
        errors.append(f"{place}: no milter; give --milter, such as mymilter:MyMilter")
    if errors:
        raise ConfigurationError("\n".join(errors))
    return settings


def _check(
    name: str, check: Any, value: Any, into: dict[str, Any], errors: list[str], place: str
) -> None:
    try:
        into[name] = check(name, value)
    except (TypeError, ValueError) as error:
        words = str(error)
        if place == "--":
            words = words.replace(name, "--" + name.replace("_", "-"), 1)
        errors.append(words if place == "--" else f"{place}: {words}")


def _load_toml(path: str) -> tuple[str, dict[str, Any]]:
    parsers = []
    for name in ("tomllib", "tomli"):
        try:
            parsers.append(importlib.import_module(name))
        except ImportError:
            continue
    if not parsers:
        raise ConfigurationError(f"{path}: Python 3.10 needs tomli: pip install yatxmilter[serve]")
    try:
        text = Path(path).read_text(encoding="utf-8")
        return text, parsers[0].loads(text)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        line = re.search(r"\(at line (\d+)", str(error))
        raise ConfigurationError(f"{path}:{line[1] if line else 1}: {error}") from None


class _Places:
    """
    Finds the lines of keys in a TOML file; the parser does not tell them.
    """

    def __init__(self, path: str, text: str) -> None:
        self._path = path
        self._lines: dict[tuple[int, str], int] = {}
        table = 0
        for number, line in enumerate(text.splitlines(), 1):
            if re.match(r"\s*\[\[\s*milter\s*\]\]", line):
                table += 1
                self._lines[table, ""] = number
            header = re.match(r"\s*\[+\s*([\w-]+)", line)
            key = header or re.match(r"\s*\"?([\w-]+)\"?\s*[=.]", line)
            if key:
                self._lines.setdefault((0 if header else table, key[1]), number)

    def of(self, table: int, key: str) -> str:
        """
        Say where a key is.
        """
        line = self._lines.get((table, key)) or self._lines.get((table, "")) or 1
        return f"{self._path}:{line}"


def _read_file(path: str, settings: dict[str, Any], errors: list[str]) -> None:
    text, found = _load_toml(path)
    places = _Places(path, text)
    milters = found.pop("milter", [])
    for key, value in found.items():
        if key in _ROWS:
            value = None if value == "none" else value
            _check(key, _ROWS[key].check, value, settings, errors, places.of(0, key))
        else:
            errors.append(f"{places.of(0, key)}: {_unknown(key, [*_ROWS, 'milter'])}")
    if not isinstance(milters, list) or not all(isinstance(one, dict) for one in milters):
        errors.append(f"{places.of(0, 'milter')}: milter must be tables, each under [[milter]]")
        return
    for number, table in enumerate(milters, 1):
        milter: dict[str, Any] = {"place": places.of(number, "object")}
        for key, value in table.items():
            if key in _MILTER:
                _check(key, _MILTER[key], value, milter, errors, places.of(number, key))
            else:
                errors.append(f"{places.of(number, key)}: {_unknown(key, list(_MILTER))}")
        if "object" not in table:
            errors.append(f"{places.of(number, '')}: [[milter]] has no object")
        settings["milters"].append(milter)


def _unknown(key: str, known: list[str]) -> str:
    nearest = difflib.get_close_matches(key, known, 1)
    return f"unknown option {key!r}" + (f", did you mean {nearest[0]!r}?" if nearest else "")
