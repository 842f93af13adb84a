"""
What is measured, one row for each scenario, and which milters take part in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: Peers that are compared wherever they can do what is asked.
LIBRARIES = ("libmilter", "pymilter")
BOUNDS = ("limit",)


@dataclass(frozen=True)
class Variant:
    """
    One milter as it takes part in a scenario.
    """

    peer: str
    label: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """
        What tells it apart from the others of a scenario.
        """
        return f"{self.peer} ({self.label})" if self.label else self.peer


@dataclass(frozen=True)
class Scenario:
    """
    One table.

    :ivar load: Options of the load generator.
    :ivar settings: What all milters are told, as ``peers/settings.py`` describes it.
    """

    name: str
    title: str
    load: Mapping[str, int]
    variants: tuple[Variant, ...]
    settings: Mapping[str, str] = field(default_factory=dict)
    tcp: bool = False
    seconds: float = 3


def _all(*ours: Variant, bounds: bool = True) -> tuple[Variant, ...]:
    peers = LIBRARIES + (BOUNDS if bounds else ())
    return (*(ours or (Variant("yatxmilter"),)), *map(Variant, peers))


_SMALL = {"connections": 20, "headers": 20, "body": 4096}

SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "small-unix",
            "Small messages, a connection for each, UNIX socket",
            _SMALL,
            _all(),
        ),
    )
}
