"""
Text that others have written, made fit for a log or a terminal: the one place that knows how.

Nothing of it may begin a line, move a cursor, or turn the direction of what stands behind it.
"""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str, encoding: str | None = None, *, keep: str = "") -> str:
    """
    Escape what is not printable: control characters, line and paragraph separators, marks that turn
    the direction of text, and lone surrogates.

    :param encoding: Escape, too, what this encoding does not have.
    :param keep: Characters that stay all the same, such as a tab.
    """
    if not text.isprintable():
        text = "".join(c if c.isprintable() or c in keep else _escape(c) for c in text)
    return text if encoding is None else text.encode(encoding, "backslashreplace").decode(encoding)


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        # It stands for a byte that is not UTF-8.
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
