"""
Arguments as pymilter's C extension takes them: what is wrong with one is the same exception.

Programs test for these exceptions. A text must be ``str``, without NUL, and something that UTF-8
can say; a number must be whole and fit into 32 bits.
"""

from __future__ import annotations

from operator import index
from typing import Final

__all__ = ["body", "number", "optional_text", "text"]

_LARGEST: Final = 0x7FFFFFFF


def text(function: str, position: int, value: object) -> str:
    """
    Take a text.

    :raises TypeError: if it is not a ``str``.
    :raises ValueError: for a NUL in it, and (as UnicodeEncodeError) for a lone surrogate.
    """
    if not isinstance(value, str):
        kind = "None" if value is None else type(value).__name__
        raise TypeError(f"{function}() argument {position} must be str, not {kind}")
    value.encode()
    if "\0" in value:
        raise ValueError("embedded null character")
    return value


def optional_text(function: str, position: int, value: object) -> str | None:
    """
    Take a text, or ``None``.

    :raises TypeError: and ValueError, as `text`.
    """
    if value is None:
        return None
    try:
        return text(function, position, value)
    except TypeError:
        kind = type(value).__name__
        raise TypeError(
            f"{function}() argument {position} must be str or None, not {kind}"
        ) from None


def number(value: object) -> int:
    """
    Take a whole number of 32 bits.

    :raises TypeError: if it is not a whole number.
    :raises OverflowError: for one that is too large or too small.
    """
    whole = index(value)  # type: ignore[arg-type]
    if whole > _LARGEST:
        raise OverflowError("signed integer is greater than maximum")
    if whole < -_LARGEST - 1:
        raise OverflowError("signed integer is less than minimum")
    return whole


def body(value: object) -> bytes:
    """
    Take a piece of a body: ``bytes``, or a ``str`` that becomes UTF-8.

    :raises TypeError: for anything else.
    :raises UnicodeEncodeError: for a lone surrogate.
    """
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    raise TypeError(f"replacebody() argument must be bytes or str, not {type(value).__name__}")
