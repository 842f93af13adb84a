"""
Describing what users gave, however odd it is, for logs and errors.

What a milter returns, or passes to a function, may be anything: an object whose ``__repr__``
raises, or is a megabyte long. To say what it was must not be a second fault.
"""

from __future__ import annotations

import inspect
from typing import Final

from yatxmilter._escaping import printable

__all__ = ["described", "not_awaited", "text_of", "type_name"]

# So many characters of a value are told.
_SHOWN: Final = 200


def described(value: object) -> str:
    """
    Give the ``repr`` of a value on one line, or its type where it has none.

    What could be awaited is never what was wanted: that is told, too.
    """
    try:
        text = repr(value)
        missing = not_awaited(value)
    except BaseException:
        return f"<{type_name(value)} object, whose repr() fails>"
    if len(text) > _SHOWN:
        text = f"{text[:_SHOWN]}... ({len(text)} characters)"
    return printable(text) + missing


def not_awaited(value: object) -> str:
    """
    Give words for a value that is a coroutine or the like; none for any other.
    """
    return " (an await is missing)" if inspect.isawaitable(value) else ""


def type_name(value: object) -> str:
    """
    Give the name of a value's class.
    """
    # Not as an attribute of the class, which its metaclass may have replaced.
    return str(type.__dict__["__name__"].__get__(type(value)))


def text_of(owner: object, attribute: str) -> str | None:
    """
    Give an attribute that is a text with something in it; ``None`` where there is no such thing.
    """
    try:
        value = getattr(owner, attribute, None)
    except BaseException:
        return None
    if type(value) is not str:
        # A subclass may have a method of its own for whatever is done with it.
        value = str.__str__(value) if issubclass(type(value), str) else None
    return value or None
