"""
The body of a message: in memory up to a size, in a temporary file beyond it; read like a file.
"""

from __future__ import annotations

import io
import mmap
from threading import Lock
from typing import BinaryIO, Protocol, cast

from yatxmilter._mail.body_spool import BodySpool
from yatxmilter._mail.mime import Octets

__all__ = ["Body", "open_octets"]

_BLOCK = 65536


class Body(BodySpool):
    """
    A body as it comes. It may be read in a thread.

    :param memory: How many bytes of it are kept in memory.
    """

    def __init__(self, memory: int) -> None:
        super().__init__(memory, "")
        self._lock = Lock()

    def read_at(self, position: int, size: int) -> bytes:
        """
        Read some of it.
        """
        with self._lock:
            return super().read_at(position, size)

    def write(self, chunk: bytes) -> None:
        """
        Append bytes; somebody may have read in between.
        """
        with self._lock:
            super().write(chunk)

    def view(self) -> Octets:
        """
        Give all of it: what is in a file is not read, but looks like memory.
        """
        if self.size <= self._memory:
            return self.read_at(0, self.size)
        with self._lock:
            assert self._file is not None
            self._file.flush()
            return mmap.mmap(self._file.fileno(), self.size, access=mmap.ACCESS_READ)

    def open(self) -> BinaryIO:
        """
        Open it for reading from the start, beside all others that read it.
        """
        return cast(BinaryIO, io.BufferedReader(_Reader(b"", self), _BLOCK))


class _Source(Protocol):
    """
    What can be read at any place.
    """

    size: int

    def read_at(self, position: int, size: int) -> bytes:
        """
        Read some of it.
        """


def open_octets(header: bytes, body: Body | bytes) -> BinaryIO:
    """
    Open a header and a body as one file.
    """
    if isinstance(body, bytes):
        return io.BytesIO(header + body)
    return cast(BinaryIO, io.BufferedReader(_Reader(header, body), _BLOCK))


class _Reader(io.RawIOBase):
    """
    A place in a body, which may have a header before it.
    """

    def __init__(self, header: bytes, body: _Source) -> None:
        self._header = header
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
        end = len(self._header) + self._body.size
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: end}[whence]
        if start + offset < 0:
            raise ValueError(f"place {start + offset} is before the start")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        """
        Read as many bytes as there is room for.
        """
        if self._position < len(self._header):
            data = self._header[self._position : self._position + len(buffer)]
        else:
            data = self._body.read_at(self._position - len(self._header), len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
