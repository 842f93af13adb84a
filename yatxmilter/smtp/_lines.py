"""
The lines of an SMTP client, each taken when there is time for it.
"""

from __future__ import annotations

from typing import Final

__all__ = ["LineBuffer"]

_END: Final = b"\r\n"


class LineBuffer:
    """
    What has come and is not handled yet.

    :param most: How long a line may be, its end aside.
    :ivar too_long: Whether the last line was longer; of it nothing is kept.
    """

    def __init__(self, most: int) -> None:
        self.too_long = False
        self._most = most
        self._data = bytearray()
        # So much of it has no line's end: a line that comes in many pieces is looked at once.
        self._searched = 0
        self._dropping = False

    def __len__(self) -> int:
        return len(self._data)

    def feed(self, data: bytes) -> None:
        """
        Take in bytes from the client.
        """
        self._data += data

    def clear(self) -> None:
        """
        Drop the bytes that have come.
        """
        self._data.clear()
        self._searched = 0
        self._dropping = False

    def next_line(self) -> bytes | None:
        """
        Give the next line without its end; ``None`` if there is none yet.
        """
        end = self._data.find(_END, self._searched)
        if end < 0:
            # The last byte may be the first of a line's end.
            if len(self._data) - self._data.endswith(_END[:1]) > self._most:
                self._dropping = True
                del self._data[:-1]
            self._searched = max(len(self._data) - 1, 0)
            return None
        self.too_long = self._dropping or end > self._most
        self._dropping = False
        line = b"" if self.too_long else bytes(self._data[:end])
        del self._data[: end + len(_END)]
        self._searched = 0
        return line
