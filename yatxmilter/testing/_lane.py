"""
The commands of the milter protocol, each with the macros that one kind of MTA sends with it.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from yatxmilter._wire import commands
from yatxmilter.client import MilterClient
from yatxmilter.client._commands import Dialogue, Macros
from yatxmilter.client._profiles import Flavour

__all__ = ["Lane"]


class Lane(Dialogue):
    """
    The commands, each with the macros that this MTA sends with it.
    """

    def __init__(self, client: MilterClient, flavour: Flavour, values: dict[str, str]) -> None:
        self._client = client
        self._flavour = flavour
        self._values = values

    def _ask(
        self, row: commands.Command, payload: bytes = b"", macros: Macros | None = None
    ) -> Deferred[Any]:
        names = self._flavour.macro_names(row.letter, self._client.agreement)
        known = {**self._values, **(macros or {})}
        chosen = None
        if names is not None:
            chosen = {name: known[bare] for name in names if (bare := name.strip("{}")) in known}
        return self._client._ask(row, payload, chosen)
