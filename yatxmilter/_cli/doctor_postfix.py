"""
The syntax of Postfix's main.cf and master.cf, as far as milters are concerned.

What ``postconf`` prints has the same syntax as the files, so this reads both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from yatxmilter._cli.doctor_findings import ConfigurationError, Misspelt

__all__ = [
    "MACRO_PARAMETERS",
    "Entry",
    "Service",
    "expand",
    "read_entry",
    "read_main",
    "read_master",
    "read_seconds",
    "references",
    "split_list",
    "split_words",
]

#: What may stand behind a milter's address in braces.
_OPTIONS: Final = (
    "connect_timeout",
    "command_timeout",
    "content_timeout",
    "default_action",
    "protocol",
)

_SEPARATORS: Final = ", \t\r\n"
_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_MOST_SECONDS: Final = 2**31 - 1
_DEPTH: Final = 50

#: By `SMFIM_*` stage: which parameter has the names of its macros.
MACRO_PARAMETERS: Final = {
    0: "milter_connect_macros",
    1: "milter_helo_macros",
    2: "milter_mail_macros",
    3: "milter_rcpt_macros",
    4: "milter_data_macros",
    6: "milter_end_of_header_macros",
    5: "milter_end_of_data_macros",
}


@dataclass
class Service:
    """
    A line of master.cf.

    :ivar label: Its name and type, as ``smtp/inet``.
    :ivar command: The program.
    :ivar chroot: The field as it stands: ``y``, ``n`` or ``-``.
    :ivar privileged: Whether the program runs as root.
    :ivar overrides: What ``-o`` sets.
    :ivar stray: Words that are neither options nor what belongs to them.
    """

    label: str
    command: str
    chroot: str
    privileged: bool
    overrides: dict[str, str] = field(default_factory=dict)
    stray: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Entry:
    """
    One milter of a list: its address as it stands, and its own settings.
    """

    address: str
    options: dict[str, str]


def _logical_lines(text: str) -> Iterator[str]:
    """
    Yield lines with those that continue them, without comments.
    """
    current = ""
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if line[0] in " \t":
            current = f"{current} {line.strip()}"
            continue
        if current:
            yield current.strip()
        current = line
    if current:
        yield current.strip()


def read_main(text: str) -> dict[str, str]:
    """
    Read a main.cf, or what ``postconf`` prints; of two settings of one name the last counts.

    :raises ConfigurationError: for a line that has no "=".
    """
    settings = {}
    for line in _logical_lines(text):
        name, equals, value = line.partition("=")
        if not equals or not name.strip():
            raise ConfigurationError(f"main.cf: {line!r} is not a setting, expected name = value")
        settings[name.strip()] = value.strip()
    return settings


def read_master(text: str) -> list[Service]:
    """
    Read a master.cf, or what ``postconf -M`` prints.

    :raises ConfigurationError: for a line with too few fields.
    """
    services = []
    for line in _logical_lines(text):
        words = _words(line)
        if len(words) < 8:
            raise ConfigurationError(f"master.cf: {line!r} has {len(words)} fields, expected 8")
        name, kind, _, unprivileged, chroot, _, _, command = words[:8]
        service = Service(f"{name}/{kind}", command, chroot, unprivileged == "n")
        _read_arguments(service, words[8:])
        services.append(service)
    return services


def _words(line: str) -> list[str]:
    """
    Split at white space that is not in braces.
    """
    words: list[str] = []
    place = 0
    while match := re.compile(r"\s*(\S)").match(line, place):
        start = match.start(1)
        place = _closing(line, start) if match[1] == "{" else start
        end = re.compile(r"\S*").match(line, place)
        assert end is not None
        place = end.end()
        words.append(line[start:place])
    return words


def _closing(text: str, start: int) -> int:
    """
    Find the place behind the brace that closes the one at ``start``; the end where none does.
    """
    depth = 0
    for match in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if match[0] == "{" else -1
        if not depth:
            return match.end()
    return len(text)


def _read_arguments(service: Service, words: list[str]) -> None:
    rest = iter(words)
    for word in rest:
        if word.startswith("-o"):
            setting = word[2:] or next(rest, "")
            if setting.startswith("{"):
                setting = setting[1:].removesuffix("}")
            name, equals, value = setting.partition("=")
            if equals:
                service.overrides[name.strip()] = value.strip()
            else:
                service.stray.append(setting)
        elif not word.startswith("-"):
            service.stray.append(word)


# ---- values


def references(text: str) -> set[str]:
    """
    Collect the names of the parameters that a value refers to.
    """
    return set(re.findall(r"\$[{(]{0,2}\$?(\w+)", text))


def expand(text: str, lookup: Callable[[str], str | None], depth: int = 0) -> str:
    """
    Put values in for ``$name``, ``${name}``, ``${name?text}``, ``${name:text}`` and comparisons.

    :param lookup: Gives the value of a parameter, which is expanded too; ``None`` if there is none.
    :raises ConfigurationError: for a value that refers to itself.
    """
    if depth > _DEPTH:
        raise ConfigurationError(f"{text!r} refers to itself")

    def value(name: str) -> str:
        found = lookup(name)
        return "" if found is None else expand(found, lookup, depth + 1)

    parts = []
    place = 0
    while (dollar := text.find("$", place)) >= 0:
        parts.append(text[place:dollar])
        place = dollar + 1
        opening = text[place : place + 1]
        if opening == "$":
            parts.append("$")
            place += 1
        elif opening == "{":
            end = _closing(text, place)
            inner = text[place + 1 : end].removesuffix("}")
            parts.append(_choose(inner, value, lambda part: expand(part, lookup, depth + 1)))
            place = end
        elif match := re.compile(r"\((\w+)\)|(\w+)").match(text, place):
            parts.append(value(match[1] or match[2]))
            place = match.end()
        else:
            parts.append("$")
    return "".join([*parts, text[place:]])


def _choose(inner: str, value: Callable[[str], str], full: Callable[[str], str]) -> str:
    """
    Give the value of what stands in ``${...}``.
    """
    inner = inner.strip()
    if inner.startswith("{"):
        left, rest = _braced(inner)
        match = re.match(r"\s*([=!<>]=?)\s*(level)?\s*", rest)
        if match is None:
            return ""
        right, rest = _braced(rest[match.end() :])
        holds = _compare(full(left), match[1], full(right), level=match[2] is not None)
        rest = rest.lstrip()
    else:
        name = re.match(r"\w*", inner)
        assert name is not None
        found, rest = value(name[0]), inner[name.end() :].lstrip()
        if not rest:
            return found
        holds = bool(found)
    if rest.startswith(":"):
        return "" if holds else full(_braced(rest[1:])[0])
    yes, rest = _braced(rest[1:])
    no = _braced(rest.lstrip()[1:])[0] if rest.lstrip().startswith(":") else ""
    return full(yes if holds else no)


def _braced(text: str) -> tuple[str, str]:
    """
    Take what is in braces off the front, or everything where there are none.
    """
    text = text.lstrip()
    if not text.startswith("{"):
        return text, ""
    end = _closing(text, 0)
    return text[1:end].removesuffix("}").strip(), text[end:]


def _compare(left: str, operator: str, right: str, *, level: bool) -> bool:
    def key(text: str) -> tuple[int, ...] | None:
        numbers = text.split(".") if level else [text]
        return tuple(map(int, numbers)) if all(each.isdecimal() for each in numbers) else None

    one, other = key(left), key(right)
    if one is None or other is None:
        order = (left > right) - (left < right)
    else:
        order = (one > other) - (one < other)
    return {
        "==": order == 0,
        "!=": order != 0,
        "<": order < 0,
        "<=": order <= 0,
        ">": order > 0,
        ">=": order >= 0,
    }.get(operator, False)


def read_seconds(text: str, what: str) -> float:
    """
    Read a time as Postfix writes it, in seconds where there is no unit.

    :param what: The parameter's name.
    :raises Misspelt: for what Postfix refuses, after which its program ends.
    """
    match = re.fullmatch(r"(\d+)\s*([smhdw]?)", text.strip().lower(), re.ASCII)
    seconds = int(match[1]) * _UNITS[match[2]] if match else 0
    if match is None or not 1 <= seconds <= _MOST_SECONDS:
        raise Misspelt(
            f"{what} is {text!r}, which is not a time of a second or more; the program of Postfix"
            " that reads it ends, and no mail comes in",
            f"write a whole number and a unit: {what} = 30s",
        )
    return seconds


def split_words(text: str) -> list[str]:
    """
    Split at commas and blanks that are not in braces.
    """
    words = [""]
    depth = 0
    for character in text:
        depth += {"{": 1, "}": -1}.get(character, 0)
        if character in _SEPARATORS and depth <= 0:
            words.append("")
        else:
            words[-1] += character
    return [word for word in words if word]


def split_list(text: str) -> list[str]:
    """
    Split a list of milters.

    :raises Misspelt: for braces that do not match.
    """
    items = split_words(text)
    for item in items:
        single = not item.startswith("{") or _closing(item, 0) == len(item)
        if not single or item.count("{") != item.count("}"):
            raise Misspelt(
                f"{text.strip()}: a brace has no other one, or something stands right behind it;"
                " smtpd ends at the first connection, and no mail comes in",
                "write { inet:host:port, name=value, name=value }",
            )
    return items


def read_entry(item: str) -> Entry:
    """
    Read one item of a list of milters.

    :raises Misspelt: with what Postfix does not take.
    """
    if not item.startswith("{"):
        return Entry(item, {})
    address, *settings = split_list(item[1:-1]) or [""]
    if not address:
        raise Misspelt(
            f"{item} has no address; smtpd ends at the first connection, and no mail comes in",
            "write { inet:host:port, name=value }",
        )
    options = {}
    for setting in settings:
        name, equals, value = setting.strip("{}").partition("=")
        name = name.strip()
        if not equals or name not in _OPTIONS:
            why = "has no =" if not equals else "is not a setting of a milter"
            raise Misspelt(
                f"{item}: {setting} {why}; smtpd ends at the first connection, and no mail comes"
                " in",
                f"write name=value without blanks; the names are {', '.join(_OPTIONS)}",
            )
        options[name] = value.strip()
    return Entry(address, options)
