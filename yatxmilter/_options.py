"""
Checks of options: a bad one is refused where it is given, by its name and value.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable
from typing import Any, Final

from zope.interface.interface import InterfaceClass

from yatxmilter import constants as c
from yatxmilter.constants import ReturnCode

__all__ = [
    "CALLBACK_TIMEOUT",
    "callable_option",
    "choice_option",
    "code_option",
    "count_option",
    "flag_option",
    "limit_option",
    "name_option",
    "seconds_option",
]

_ERROR_CODES: Final = (
    c.SMFIS_CONTINUE,
    c.SMFIS_REJECT,
    c.SMFIS_DISCARD,
    c.SMFIS_ACCEPT,
    c.SMFIS_TEMPFAIL,
)


#: Seconds that a callback may take, where nothing else is said. With automatic progress an MTA
#: would wait for ever.
CALLBACK_TIMEOUT: Final = 600


def callable_option(name: str, value: Any, interface: InterfaceClass) -> Callable[..., Any]:
    """
    Check for a class that implements an interface, or any other callable.

    :raises TypeError: for anything else.
    """
    if isinstance(value, type) and not interface.implementedBy(value):
        raise TypeError(f"{name} is {value!r}, which does not implement {interface.__name__}")
    if not callable(value):
        raise TypeError(f"{name} is {value!r}, expected a class or another callable")
    return value  # type: ignore[no-any-return]


def choice_option(name: str, value: str, choices: list[str]) -> str:
    """
    Check for one of several words.

    :raises ValueError: for anything else.
    """
    if value not in choices:
        words = f"{name} is {value!r}, expected one of {', '.join(choices)}"
        near = difflib.get_close_matches(value, choices, 1) if isinstance(value, str) else []
        raise ValueError(words + (f"; did you mean {near[0]!r}?" if near else ""))
    return value


def code_option(name: str, value: int) -> ReturnCode:
    """
    Check for a return code that may be answered for a failed callback.

    :raises ValueError: for anything else.
    """
    if isinstance(value, bool) or value not in _ERROR_CODES:
        names = ", ".join(code.name for code in _ERROR_CODES)
        raise ValueError(f"{name} is {value!r}, expected one of {names}")
    return ReturnCode(value)


def count_option(name: str, value: int | None) -> int | None:
    """
    Check for a whole number, or ``None`` for no limit.

    :raises TypeError: for anything else.
    :raises ValueError: for a number below 1.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is {value!r}, expected a whole number or None")
    if value < 1:
        raise ValueError(f"{name} is {value!r}, expected at least 1")
    return value


def flag_option(name: str, value: bool | None) -> bool | None:
    """
    Check for True or False, or ``None`` where nothing is said.

    :raises TypeError: for anything else.
    """
    if value is not None and not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}, expected True, False or None")
    return value


def limit_option(name: str, value: int | None) -> int:
    """
    Check for a whole number; ``None``, for no limit, becomes a number that is never reached.

    :raises TypeError: for anything else.
    :raises ValueError: for a number below 1.
    """
    count = count_option(name, value)
    return sys.maxsize if count is None else count


def name_option(name: str, value: str | None) -> str | None:
    """
    Check for a text that is not empty, or ``None``.

    :raises TypeError: for anything else.
    """
    if value is not None and (not isinstance(value, str) or not value):
        raise TypeError(f"{name} is {value!r}, expected a text or None")
    return value


def seconds_option(name: str, value: float | None) -> float | None:
    """
    Check for a time in seconds, more than none, or ``None`` for no limit.

    :raises TypeError: if it is not a number.
    :raises ValueError: for a number that is not a time.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is {value!r}, expected seconds or None")
    if not 0 < value <= sys.float_info.max:
        raise ValueError(f"{name} is {value!r}, expected more than 0 seconds, or None for no limit")
    return value
