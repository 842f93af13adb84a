"""
What is wrong with a milter must not pass silently: the checks made when its class is made.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping
from functools import lru_cache, partial
from types import FunctionType
from typing import Final

from yatxmilter._engine.decorators import check_marks
from yatxmilter._engine.legacy import OLD_NAMES
from yatxmilter._engine.member import CALLBACKS

__all__ = ["check_milter_class", "check_signature"]

_NAMES: Final = frozenset(CALLBACKS) | {"xxfi_name", "xxfi_flags"}

#: What each callback is called with.
_ARGUMENTS: Final[Mapping[str, tuple[str, ...]]] = {
    **dict.fromkeys(CALLBACKS, ()),
    "xxfi_mta_connect": ("address",),
    "xxfi_negotiate": ("actions", "steps"),
    "xxfi_connect": ("hostname", "hostaddr"),
    "xxfi_helo": ("helohost",),
    "xxfi_envfrom": ("argv",),
    "xxfi_envrcpt": ("argv",),
    "xxfi_unknown": ("arg",),
    "xxfi_header": ("headerf", "headerv"),
    "xxfi_body": ("bodyp",),
    "xxfi_mta_close": ("reason",),
}

#: pymilter's callbacks: how many arguments each has, and what it is here.
_PYMILTER: Final[Mapping[str, tuple[int, str]]] = {
    "connect": (3, "xxfi_connect"),
    "hello": (1, "xxfi_helo"),
    "envfrom": (1, "xxfi_envfrom"),
    "envrcpt": (1, "xxfi_envrcpt"),
    "data": (0, "xxfi_data"),
    "unknown": (1, "xxfi_unknown"),
    "header": (2, "xxfi_header"),
    "eoh": (0, "xxfi_eoh"),
    "body": (1, "xxfi_body"),
    "eom": (0, "xxfi_eom"),
    "abort": (0, "xxfi_abort"),
    "close": (0, "xxfi_close"),
    "negotiate": (1, "xxfi_negotiate"),
}


def check_milter_class(cls: type, base: type, hooks: Mapping[str, str]) -> None:
    """
    Check what a milter class defines.

    :param base: The class whose callbacks do nothing.
    :param hooks: What stands for callbacks in this class, and for which.
    :raises TypeError: for an ``xxfi_`` name that is no callback, naming the nearest that is; for a
        callback that is no function, or cannot be called with its arguments; for a decorator above
        what it is not for; for flags that are no number; for a name that is no text; for pymilter's
        callbacks and none of ours.
    :raises ValueError: for flags that do not fit into 32 bits; for an empty name.
    """
    own = _own_attributes(cls, base)
    for name in sorted(own):
        if not name.startswith("xxfi_") or name in OLD_NAMES:
            continue
        if name not in _NAMES:
            nearest = difflib.get_close_matches(name, sorted(_NAMES), 1, 0)[0]
            raise TypeError(
                f"{cls.__qualname__}.{name} is not a callback of a milter; the nearest is {nearest}"
            )
        if name in _ARGUMENTS:
            value = getattr(cls, name)
            # A property may give something callable.
            if not callable(value) and not hasattr(value, "__get__"):
                raise TypeError(f"{cls.__qualname__}.{name} is {value!r}, expected a function")
            check_signature(cls, name, _ARGUMENTS[name])
    for old, new in OLD_NAMES.items():
        if old in own:
            check_signature(cls, old, _ARGUMENTS[new])
    check_marks(cls, own, _ARGUMENTS, hooks)
    flags = getattr(cls, "xxfi_flags", None)
    if flags is not None and (not isinstance(flags, int) or isinstance(flags, bool)):
        raise TypeError(f"{cls.__qualname__}.xxfi_flags is {flags!r}, not a number or None")
    if flags is not None and not 0 <= flags <= 0xFFFFFFFF:
        raise ValueError(
            f"{cls.__qualname__}.xxfi_flags is {flags!r}, expected a number from 0 to 0xFFFFFFFF"
        )
    called = own.get("xxfi_name", "name")
    # A property gives each milter its own.
    if not (isinstance(called, str) or hasattr(called, "__get__")):
        raise TypeError(f"{cls.__qualname__}.xxfi_name is {called!r}, expected text")
    if called == "":
        raise ValueError(f"{cls.__qualname__}.xxfi_name is empty, expected a name")
    if all(_same(cls, base, name) for name in CALLBACKS):
        _check_foreign_names(cls, base)


def _attributes(cls: type) -> dict[str, object]:
    found: dict[str, object] = {}
    for one in reversed(cls.__mro__):
        found.update(vars(one))
    return found


# A program may make milter classes by the thousand, its tests surely do.
_attributes_of_base: Final = lru_cache(maxsize=None)(_attributes)


def _own_attributes(cls: type, base: type) -> dict[str, object]:
    """
    Give the attributes that instances of a class find in another way than those of ``base``, as
    they stand in the classes.
    """
    theirs = _attributes_of_base(base)
    nothing = object()
    return {
        name: value
        for name, value in _attributes(cls).items()
        if value is not theirs.get(name, nothing)
    }


def _same(cls: type, base: type, name: str) -> bool:
    return getattr(cls, name) is getattr(base, name) and not any(
        hasattr(cls, old) for old, new in OLD_NAMES.items() if new == name
    )


def _check_foreign_names(cls: type, base: type) -> None:
    found = [
        (name, ours)
        for name, (count, ours) in _PYMILTER.items()
        if not hasattr(base, name) and _takes(cls, name, count)
    ]
    if found:
        names = ", ".join(f"{ours} for {name}" for name, ours in found)
        raise TypeError(
            f"{cls.__qualname__} has callbacks under pymilter's names, and none under libmilter's:"
            f" nothing would ever call it. Here they are {names}. (A program that is written for"
            " pymilter runs unchanged with `yatxmilter pymilter`.)"
        )


def _takes(cls: type, name: str, count: int) -> bool:
    value = inspect.getattr_static(cls, name, None)
    if type(value) is not FunctionType:
        return False
    return _fits(inspect.signature(value), count + 1)


def check_signature(cls: type, name: str, arguments: tuple[str, ...]) -> None:
    """
    Check that a method can be called with its arguments; what cannot be known is let pass.

    :raises TypeError: when it cannot.
    """
    for callee, count in _callees(cls, name, len(arguments)):
        try:
            # A wrapper may do as it likes with what it takes.
            signature = inspect.signature(callee, follow_wrapped=False)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            continue
        if not _fits(signature, count):
            given = f"({', '.join(arguments)})"
            raise TypeError(
                f"{cls.__qualname__}.{name}{signature} cannot be called with its arguments;"
                f" expected {name}(self{', ' if arguments else ''}{given[1:]}"
            )


def _callees(cls: type, name: str, count: int) -> Iterator[tuple[object, int]]:
    """
    Give what will be called for a method, and with how many arguments.
    """
    value = inspect.getattr_static(cls, name, None)
    kind = type(value)
    # Not `isinstance`: an object may raise when it is looked at.
    if issubclass(kind, staticmethod):
        yield getattr(value, "__func__", value), count
    elif issubclass(kind, (FunctionType, classmethod)):
        yield getattr(value, "__func__", value), count + 1
    elif issubclass(kind, partial):
        # From Python 3.14 on it is a method, and is given the milter.
        yield value, count + hasattr(kind, "__get__")
    elif value is not None and not hasattr(value, "__get__"):
        yield value, count


def _fits(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True
