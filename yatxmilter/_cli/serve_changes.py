"""
What a reload has changed, and what of the configuration takes a restart, in words.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Final

from yatxmilter._cli.serve_options import FACTORY_OPTIONS, OPTIONS

__all__ = ["changes", "needing_restart", "stamps"]

Stamps = dict[str, tuple[int, int]]

#: What a reload does bring, besides the milters.
_RELOADED: Final = (*FACTORY_OPTIONS, "record_failures")


def stamps(milters: Iterable[Mapping[str, Any]]) -> Stamps:
    """
    Take down when the files of the milters' modules were written last, and how long they are.
    """
    found: Stamps = {}
    for milter in milters:
        for spec in (milter.get("object"), milter.get("when")):
            if not isinstance(spec, str):
                continue
            name = spec.partition(":")[0] if ":" in spec else spec.rpartition(".")[0]
            path = getattr(sys.modules.get(name), "__file__", None)
            try:
                state = os.stat(path or "")
            except OSError:
                continue
            found[name] = state.st_mtime_ns, state.st_size
    return found


def changes(
    before: Mapping[str, Any], after: Mapping[str, Any], old: Stamps, new: Stamps
) -> list[str]:
    """
    Tell what new connections have that those before had not.

    :param old: The `stamps` of the milters that were loaded before.
    :param new: Those of the ones that are loaded now.
    """
    told = [
        f"{name} = {_word(after[name])} (was {_word(before[name])})"
        for name in _RELOADED
        if before[name] != after[name]
    ]
    told += _of_milters(before["milters"], after["milters"])
    told += [f"module {name}" for name, stamp in new.items() if old.get(name, stamp) != stamp]
    return told


def _of_milters(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[str]:
    old, new = list(map(_name, before)), list(map(_name, after))
    told = [f"milter {name} is gone" for name in old if name not in new]
    told += [f"milter {name} is new" for name in new if name not in old]
    if sorted(old) == sorted(new) and old != new:
        told.append("the order of the milters")
    known = dict(zip(old, before, strict=True))
    for name, milter in zip(new, after, strict=True):
        one = known.get(name, milter)
        keys = [*one, *(key for key in milter if key not in one)]
        told += [
            f"milter {name}: {key} = {_word(milter.get(key))} (was {_word(one.get(key))})"
            for key in keys
            if key != "place" and one.get(key) != milter.get(key)
        ]
    return told


def _name(milter: Mapping[str, Any]) -> str:
    return str(milter.get("name") or milter.get("object") or milter.get("remote"))


def needing_restart(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """
    Name the options that have changed, and that a reload leaves as they were.
    """
    names = [row.name for row in OPTIONS if row.name not in _RELOADED]
    return [name for name in names if before[name] != after[name]]


def _word(value: Any) -> str:
    return "none" if value is None else str(value)
