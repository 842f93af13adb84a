"""
A misspelt callback must not pass silently: the checks made when a milter class is made.
"""

from __future__ import annotations

import difflib
from typing import Final

from yatxmilter._engine.legacy import OLD_NAMES
from yatxmilter._engine.member import CALLBACKS
from yatxmilter._wire.commands import CALLBACK_STEPS

__all__ = ["check_callback_names"]

_NAMES: Final = frozenset(CALLBACKS) | {"xxfi_name", "xxfi_flags"}
_MAY_BE_SILENT: Final = frozenset(command.callback for command in CALLBACK_STEPS if command.nr)


def check_callback_names(cls: type) -> None:
    """
    Check what a milter class defines under ``xxfi_`` names.

    :raises TypeError: for a name that is no callback, naming the nearest that is; for a callback
        that is no function; for @noreply on one that must answer; for flags that are no number.
    """
    for name in dir(cls):
        if not name.startswith("xxfi_") or name in OLD_NAMES:
            continue
        if name not in _NAMES:
            nearest = difflib.get_close_matches(name, sorted(_NAMES), 1, 0)[0]
            raise TypeError(
                f"{cls.__qualname__}.{name} is no callback of a milter; the nearest is {nearest}"
            )
        value = getattr(cls, name)
        # A property may give something callable.
        if name in CALLBACKS and not callable(value) and not hasattr(value, "__get__"):
            raise TypeError(f"{cls.__qualname__}.{name} is {value!r}, expected a function")
        if hasattr(value, "smfip_noreply") and name not in _MAY_BE_SILENT:
            raise TypeError(f"{cls.__qualname__}.{name} must answer, it cannot be @noreply")
    flags = getattr(cls, "xxfi_flags", None)
    if flags is not None and (not isinstance(flags, int) or isinstance(flags, bool)):
        raise TypeError(f"{cls.__qualname__}.xxfi_flags is {flags!r}, not a number or None")
