"""
Sendmail's configuration, a sendmail.cf, as far as milters are concerned.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from yatxmilter import constants as c
from yatxmilter._cli.doctor_addresses import sendmail_address
from yatxmilter._cli.doctor_findings import (
    FULL_OFFER,
    ConfigurationError,
    Finding,
    Misspelt,
    Reading,
    Use,
    View,
)

__all__ = ["MACRO_OPTIONS", "read_sendmail"]

#: By `SMFIM_*` stage: which option has the names of its macros, and what makes it in a .mc file.
MACRO_OPTIONS: Final = {
    c.SMFIM_CONNECT: ("Milter.macros.connect", "confMILTER_MACROS_CONNECT"),
    c.SMFIM_HELO: ("Milter.macros.helo", "confMILTER_MACROS_HELO"),
    c.SMFIM_ENVFROM: ("Milter.macros.envfrom", "confMILTER_MACROS_ENVFROM"),
    c.SMFIM_ENVRCPT: ("Milter.macros.envrcpt", "confMILTER_MACROS_ENVRCPT"),
    c.SMFIM_DATA: ("Milter.macros.data", "confMILTER_MACROS_DATA"),
    c.SMFIM_EOH: ("Milter.macros.eoh", "confMILTER_MACROS_EOH"),
    c.SMFIM_EOM: ("Milter.macros.eom", "confMILTER_MACROS_EOM"),
}

#: The letters of time-outs, how they are called, and their defaults in seconds.
_TIMES: Final = {"C": 300.0, "S": 10.0, "R": 10.0, "E": 300.0}

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}

_NO_START: Final = "Sendmail does not start with it"

#: The flags of ``F=``, and what they stand for.
_FLAGS: Final = ("T", "R", "4")


def read_sendmail(path: Path) -> Reading:
    """
    Read a sendmail.cf.

    :raises ConfigurationError: for what cannot be read.
    """
    try:
        text = path.read_text("utf-8", "surrogateescape")
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    if path.suffix == ".mc" or "divert(" in text:
        raise ConfigurationError(f"{path} is the source for m4; give the .cf file made of it")
    return _Reader(path, list(_lines(text))).read()


def _lines(text: str) -> Iterator[str]:
    """
    Yield lines with those that continue them, without comments.
    """
    current = ""
    for line in text.splitlines():
        if line[:1] in ("#", ""):
            continue
        if line[0] in " \t":
            current += " " + line.strip()
            continue
        if current:
            yield current
        current = line.rstrip()
    if current:
        yield current


class _Reader:
    """
    Makes a `Reading` of the lines of a file.
    """

    def __init__(self, path: Path, lines: list[str]) -> None:
        options: list[tuple[str, str]] = []
        self._filters: dict[str, str] = {}
        version = ""
        for line in lines:
            if match := re.match(r"O\s+([\w.]+)\s*=\s*(.*)", line):
                options.append((match[1].lower(), match[2]))
            elif line.startswith("X"):
                name, _, equates = line[1:].partition(",")
                self._filters[name.strip()] = equates
            elif line.startswith("DZ"):
                version = line[2:].partition("/")[0]
        self._options = dict(options)
        self._daemons = [value for name, value in options if name == "daemonportoptions"]
        self._reading = Reading("sendmail", version, str(path))
        blame = re.split(r"[\s,]+", self._options.get("dontblamesendmail", "").lower())
        self._reading.safe = frozenset(filter(None, blame))

    def read(self) -> Reading:
        """
        Read everything.
        """
        reading = self._reading
        used: set[str] = set()
        # Each daemon has the common list, or one of its own.
        common = self._names(self._options.get("inputmailfilters", ""))
        used.update(common)
        self._list("InputMailFilters", common)
        for daemon in self._daemons:
            pairs = dict(re.findall(r"(\w+)\s*=\s*([^,]*)", daemon))
            names = self._names(pairs.get("InputMailFilters", ""))
            used.update(names)
            self._list(f"InputMailFilters of the daemon {pairs.get('Name', '?')}", names)
        for name in self._filters:
            if name not in used:
                reading.findings.append(
                    Finding(
                        "warning",
                        "filter-unused",
                        f"the filter {name} is defined, and no InputMailFilters names it: no mail"
                        " passes it",
                        f"write INPUT_MAIL_FILTER(`{name}', ...) instead of MAIL_FILTER, or name it"
                        " in confINPUT_MAIL_FILTERS",
                    )
                )
        if not used and not self._filters:
            reading.findings.append(
                Finding(
                    "warning",
                    "no-milters",
                    "no mail passes a milter: there is no InputMailFilters, and no X line",
                    "write INPUT_MAIL_FILTER(`first', `S=inet:9900@127.0.0.1, F=T') in sendmail.mc",
                )
            )
        return reading

    def _names(self, text: str) -> list[str]:
        return re.findall(r"[^\s,;]+", text)

    def _list(self, place: str, names: list[str]) -> None:
        for name in names:
            try:
                use = self._use(name)
            except Misspelt as error:
                finding = Finding("error", "address", error.what, error.todo)
                self._reading.broken.append((name, place, finding))
            else:
                self._reading.lists.setdefault(place, []).append(use)

    def _use(self, name: str) -> Use:
        if name not in self._filters:
            raise Misspelt(
                f"InputMailFilters names {name}, and there is no line X{name}; {_NO_START}",
                f"define it: MAIL_FILTER(`{name}', `S=inet:port@host, F=T')",
            )
        equates = self._equates(name)
        if not equates.get("S"):
            raise Misspelt(
                f"X{name} has no S=, and so no address; {_NO_START}", "write S=inet:port@host"
            )
        user, _, group = self._options.get("runasuser", "root").partition(":")
        return Use(
            text=equates["S"],
            address=sendmail_address(equates["S"]),
            action=self._action(equates.get("F", "")),
            times=tuple(self._times(name, equates.get("T", "")).items()),
            offer=FULL_OFFER,
            macros=tuple(
                (stage, tuple(re.findall(r"[^\s,]+", self._options.get(option.lower(), ""))))
                for stage, (option, _) in MACRO_OPTIONS.items()
            ),
            view=View("", self._options.get("queuedirectory", "/"), user or "root", group),
            name=name,
        )

    def _equates(self, name: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for part in self._filters[name].split(","):
            letter, equals, value = part.strip().partition("=")
            if not part.strip():
                continue
            if not equals:
                raise Misspelt(
                    f"X{name}: {part.strip()!r} has no =; {_NO_START}",
                    "put commas between S=, F= and T= alone, and semicolons between time-outs",
                )
            if letter not in ("S", "F", "T"):
                raise Misspelt(
                    f"X{name}: Sendmail knows S=, F= and T=, and not {letter}=; {_NO_START}",
                    "take it out",
                )
            # Flags add up.
            found[letter] = found.get("F", "") + value if letter == "F" else value
        return found

    def _action(self, flags: str) -> str:
        known = [flag for flag in flags if flag in _FLAGS]
        if flags.strip() and not known:
            # Sendmail says nothing of such a flag, and does nothing either.
            return f"?{flags}"
        return known[0] if known else ""

    def _times(self, name: str, text: str) -> dict[str, float]:
        times = dict(_TIMES)
        if not text.strip():
            return times
        for part in text.split(";"):
            letter, colon, value = part.strip().partition(":")
            if not colon:
                raise Misspelt(
                    f"X{name}: T={text}: {part.strip()!r} has no colon; {_NO_START}",
                    "write T=C:30s;S:30s;R:30s;E:5m, with no semicolon behind the last one",
                )
            if letter not in times:
                raise Misspelt(
                    f"X{name}: T={text}: there is no time-out {letter}; {_NO_START}",
                    "the time-outs are C, S, R and E",
                )
            match = re.fullmatch(r"((\d+)([smhdw]))+|\d+", value)
            if match is None:
                raise Misspelt(
                    f"X{name}: T={text}: {value!r} is not a time; Sendmail takes what it can of it",
                    f"write a number and a unit: {letter}:30s",
                )
            pairs = re.findall(r"(\d+)([smhdw]?)", value)
            times[letter] = float(sum(int(n) * _UNITS[unit or "s"] for n, unit in pairs))
        return times
