"""
Readable text for a terminal, a file or a pipe.

What comes out of a message must not steer the terminal: what is not printable is escaped, and so is
what the stream's encoding does not have.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final, TextIO

from yatxmilter._escaping import printable

__all__ = ["Page"]

_COLOURS: Final = {"good": "32", "bad": "31", "soft": "33", "head": "1", "place": "36", "dim": "2"}


class Page:
    """
    Text line by line, in colour on a terminal, unless NO_COLOR is set.
    """

    def __init__(self, stream: TextIO, environ: Mapping[str, str] = os.environ) -> None:
        self._stream = stream
        plain = environ.get("NO_COLOR") or environ.get("TERM") == "dumb"
        self._colour = stream.isatty() and not plain

    def line(self, text: str = "", kind: str = "") -> None:
        """
        Print a line.

        :param kind: A key of the colours, or nothing.
        """
        safe = printable(text, self._stream.encoding or "utf-8", keep="\t")
        if kind and self._colour:
            safe = f"\x1b[{_COLOURS[kind]}m{safe}\x1b[0m"
        self._stream.write(safe.rstrip(" ") + "\n")

    def title(self, text: str) -> None:
        """
        Begin a section.
        """
        self.line()
        self.line(text, "head")
