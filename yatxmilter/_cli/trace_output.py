"""
Printing that does not hold up mail.

A terminal that was stopped by Ctrl-S, or a pager that waits, would stop the whole process, and with
it all mail. So a thread does the writing: lines wait for it up to a bound, beyond which they are
counted in place of being kept.
"""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable
from threading import Condition, Thread
from typing import Final, TextIO

__all__ = ["Outlet"]

# How many pieces of output may wait, and how many characters.
_MOST_WAITING: Final = 10_000
_MOST_CHARACTERS: Final = 16 * 1024 * 1024

# How long, in seconds, the last lines may take.
_LAST_GRACE: Final = 2.0


class Outlet(io.StringIO):
    """
    A text stream that is written by a thread of its own.

    :param stream: Where to.
    :param broken: Called, in that thread, when nobody reads any more.
    :ivar failure: What was wrong with the stream; ``None`` while it works.
    """

    def __init__(self, stream: TextIO, broken: Callable[[], object]) -> None:
        super().__init__()
        self._stream = stream
        self._broken = broken
        self._waiting: deque[str] = deque()
        self._size = 0
        self._news = Condition()
        self._lost = 0
        self._done = False
        self.failure: OSError | None = None
        try:
            # Not through the stream's own buffer: its lock could not be had at exit.
            self._fd = stream.fileno()
        except (OSError, AttributeError):
            self._fd = -1
        self._thread = Thread(target=self._work, daemon=True)
        self._thread.start()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """
        The stream's encoding.
        """
        return self._stream.encoding or "utf-8"

    def isatty(self) -> bool:
        """
        Whether it is a terminal.
        """
        return self._stream.isatty()

    def write(self, text: str) -> int:
        """
        Have text written in its turn, or dropped if too much waits.
        """
        with self._news:
            size = self._size + len(text)
            if len(self._waiting) >= _MOST_WAITING or size > _MOST_CHARACTERS:
                self._lost += 1
            else:
                if self._lost:
                    self._waiting.append(f"... {self._lost} lines were not printed in time\n")
                    self._lost = 0
                self._waiting.append(text)
                self._size += len(text)
                self._news.notify()
        return len(text)

    def finish(self) -> None:
        """
        Wait until all is written, but not for ever.
        """
        with self._news:
            self._done = True
            self._news.notify()
        self._thread.join(_LAST_GRACE)

    def _work(self) -> None:
        while (text := self._take()) is not None:
            try:
                self._put(text)
            except OSError as error:
                self.failure = error
                self._broken()
                return

    def _take(self) -> str | None:
        with self._news:
            self._news.wait_for(lambda: self._waiting or self._done)
            if not self._waiting:
                return None
            text = "".join(self._waiting)
            self._waiting.clear()
            self._size = 0
            return text

    def _put(self, text: str) -> None:
        if self._fd < 0:
            self._stream.write(text)
            self._stream.flush()
            return
        data = text.encode(self.encoding, "backslashreplace")
        while data:
            data = data[os.write(self._fd, data) :]
