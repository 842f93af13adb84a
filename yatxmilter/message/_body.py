"""
The body of a message: in memory up to a size, in a temporary file beyond it; read like a file.
"""

from __future__ import annotations

import io
from typing import BinaryIO, cast

from yatxmilter._mail.body_spool import BodySpool

__all__ = ["Body"]

_BLOCK = 65536


class Body(BodySpool):
    """
    A body as it comes.

    :param memory: How many bytes of it are kept in memory.
    """

    def __init__(self, memory: int) -> None:
        super().__init__(memory, "")

    def read_at(self, position: int, size: int) -> bytes:
        """
        Read some of it.
        """
        self._file.seek(position)
        return self._file.read(size)

    def write(self, chunk: bytes) -> None:
        """
        Append bytes; somebody may have read in between.
        """
        self._file.seek(self.size)
        super().write(chunk)

    def open(self) -> BinaryIO:
        """
        Open it for reading from the start, beside all others that read it.
        """
        return cast(BinaryIO, io.BufferedReader(_Reader(self), _BLOCK))


class _Reader(io.RawIOBase):
    """
    A place in a body.
    """

    def __init__(self, body: Body) -> None:
        self._body = body
        self._position = 0

    def readable(self) -> bool:
        """
        Answer that it can be read.
        """
        return True

    def seekable(self) -> bool:
        """
        Answer that it can be read in any order.
        """
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """
        Go to a place.
        """
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._body.size}[whence]
        if start + offset < 0:
            raise ValueError(f"place {start + offset} is before the body's start")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        """
        Read as many bytes as there is room for.
        """
        data = self._body.read_at(self._position, len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
