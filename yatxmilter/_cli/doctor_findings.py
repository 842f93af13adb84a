"""
What ``yatxmilter doctor`` knows and says: findings, the milters of an MTA, and what came of them.

An MTA's configuration is read into a `Reading`, whichever MTA it is; all that is checked later is
checked of that.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from yatxmilter import constants as c
from yatxmilter._wire.payloads import Offer

__all__ = [
    "FULL_OFFER",
    "LEVELS",
    "MAX_UNIX_PATH",
    "STAGES",
    "ConfigurationError",
    "Finding",
    "InetAddress",
    "Misspelt",
    "Reading",
    "Use",
    "View",
    "braced",
    "unix_path",
    "worst",
]

#: From the best to the worst.
LEVELS: Final = ("ok", "note", "warning", "error")

#: How long the path of a UNIX socket may be: sizeof(sun_path) less the closing NUL.
MAX_UNIX_PATH: Final = 107

#: What an MTA offers that has been told nothing else.
FULL_OFFER: Final = Offer(c.SMFI_PROT_VERSION, c.SMFI_CURR_ACTS, c.SMFI_CURR_PROT)

#: The stages that have macros, in the order in which they come, and how they are called.
STAGES: Final = {
    c.SMFIM_CONNECT: "CONNECT",
    c.SMFIM_HELO: "HELO",
    c.SMFIM_ENVFROM: "MAIL",
    c.SMFIM_ENVRCPT: "RCPT",
    c.SMFIM_DATA: "DATA",
    c.SMFIM_EOH: "end of headers",
    c.SMFIM_EOM: "end of message",
}


class ConfigurationError(Exception):
    """
    The MTA's configuration cannot be read at all.
    """


class Misspelt(ValueError):
    """
    Something in the configuration is not what the MTA expects.

    :ivar what: What is so, in a sentence.
    :ivar todo: What to do.
    """

    def __init__(self, what: str, todo: str) -> None:
        super().__init__(what)
        self.what = what
        self.todo = todo


class Finding(NamedTuple):
    """
    One thing that was found.

    :ivar level: One of `LEVELS`.
    :ivar check: A word for programs: what kind of thing it is.
    :ivar what: What is so, in a sentence.
    :ivar todo: What to do, or nothing.
    """

    level: str
    check: str
    what: str
    todo: str = ""


class InetAddress(NamedTuple):
    """
    A TCP address; without a host it is this machine.

    :ivar family: ``inet`` or ``inet6`` where the MTA is told which, else nothing.
    """

    host: str
    port: int
    family: str = ""


class View(NamedTuple):
    """
    How a process of the MTA sees the files of the machine.

    :ivar root: What it sees as ``/``; nothing outside a chroot.
    :ivar base: The folder in which a path without a leading slash begins.
    :ivar user: The name of the user who connects.
    :ivar group: The group, if it is not the user's own.
    """

    root: str
    base: str
    user: str
    group: str = ""


@dataclass(frozen=True)
class Use:
    """
    A milter as an MTA uses it. The same settings in several places are one use.

    :ivar text: The address as it stands in the configuration.
    :ivar address: The same as a TCP address, or the path of a UNIX socket.
    :ivar action: What becomes of mail when the milter is down, as the configuration has it.
    :ivar times: Pairs of the name of a time-out and its seconds.
    :ivar offer: What the MTA offers in negotiation.
    :ivar macros: Pairs of a ``SMFIM_*`` stage and the names that are sent at it by default.
    :ivar name: What the MTA calls it in its log, if that is not the address.
    """

    text: str
    address: InetAddress | str
    action: str
    times: tuple[tuple[str, float], ...]
    offer: Offer
    macros: tuple[tuple[int, tuple[str, ...]], ...]
    view: View
    name: str = ""

    @property
    def title(self) -> str:
        """
        Its name, with what the configuration says; or that alone.
        """
        return f"{self.name} ({self.text})" if self.name else self.text

    def seconds(self, name: str) -> float:
        """
        Give a time-out by its name in the configuration.
        """
        return dict(self.times)[name]


@dataclass
class Reading:
    """
    What an MTA's configuration says about milters.

    :ivar mta: ``postfix`` or ``sendmail``.
    :ivar version: The MTA's, as far as it is known.
    :ivar source: The folder or file that was read.
    :ivar lists: The milters that are asked for one kind of mail, in their order, by the place in
        the configuration.
    :ivar broken: Entries that the MTA cannot use: the text, the place, and what is wrong.
    :ivar findings: What is to be said of the configuration and not of one milter.
    :ivar limits: Other times of the MTA, in seconds, by their names.
    :ivar defaults: Macros that get a value where the MTA has none.
    :ivar safe: What the MTA is told not to mind about folders.
    """

    mta: str
    version: str
    source: str
    lists: dict[str, list[Use]] = field(default_factory=dict)
    broken: list[tuple[str, str, Finding]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    limits: dict[str, float] = field(default_factory=dict)
    defaults: tuple[str, ...] = ()
    safe: frozenset[str] = frozenset()

    def places(self) -> dict[Use, list[str]]:
        """
        Give each use, and where it stands.
        """
        found: dict[Use, list[str]] = {}
        for place, uses in self.lists.items():
            for use in uses:
                where = found.setdefault(use, [])
                if place not in where:
                    where.append(place)
        return found


def braced(name: str) -> str:
    """
    Spell a macro as the MTAs do: a longer name has braces, one of a letter has none.
    """
    bare = name.strip("{}")
    return bare if len(bare) == 1 else f"{{{bare}}}"


def unix_path(use: Use) -> str:
    """
    Give the path of a UNIX socket as the whole machine has it.
    """
    assert isinstance(use.address, str)
    path, view = use.address, use.view
    if not path.startswith("/"):
        return f"{view.base.rstrip('/')}/{path}"
    return view.root.rstrip("/") + path


def worst(findings: Iterable[Finding]) -> str:
    """
    Give the worst level of several findings.
    """
    return max((finding.level for finding in findings), key=LEVELS.index, default="ok")
