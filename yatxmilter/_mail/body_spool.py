"""
A body as an MTA keeps it while filters replace it: in memory up to a size, on disk beyond it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from tempfile import SpooledTemporaryFile

from yatxmilter._mail.rfc5322 import wire_body, with_line_ends

__all__ = ["BodySpool"]


def _sendmail_body(body: bytes) -> bytes:
    # It keeps lines that end in LF, and puts a CR before each LF that has none. It adds no line
    # end before the message is delivered.
    return with_line_ends(body.replace(b"\r\n", b"\n"))


class BodySpool:
    """
    A body: in memory up to a size, in a temporary file beyond it.

    :param memory: How many bytes are kept in memory.
    :param flavour: The MTA: ``"postfix"`` or ``"sendmail"``.
    """

    def __init__(self, memory: int, flavour: str) -> None:
        self._memory = memory
        self._flavour = flavour
        # Most bodies come in one chunk, which is kept as it is: a file costs more than to show it.
        # There is none once it is closed: a thread that is late must not take it for an empty one.
        self._chunk: bytes | None = b""
        self._file: SpooledTemporaryFile[bytes] | None = None
        self.size = 0

    def another(self) -> BodySpool:
        """
        Give an empty one of the same kind.
        """
        return type(self)(self._memory, self._flavour)

    def write(self, chunk: bytes) -> None:
        """
        Append bytes; from a certain size on all of them are in a temporary file.

        :raises ValueError: when it is closed.
        """
        before = self._kept()
        size = self.size + len(chunk)
        if self._file is None and (self.size or size > self._memory):
            self._file = SpooledTemporaryFile(self._memory)  # noqa: SIM115 (closed by close)
            self._file.write(before)
            self._chunk = b""
        if self._file is None:
            self._chunk = chunk
        else:
            # A reader may have moved the file's position.
            self._file.seek(self.size)
            self._file.write(chunk)
        self.size = size

    def read_at(self, position: int, size: int) -> bytes:
        """
        Read some of it.

        :raises ValueError: when it is closed.
        """
        chunk = self._kept()
        if self._file is None:
            return chunk[position : position + size]
        self._file.seek(position)
        return self._file.read(size)

    def chunks(self, size: int) -> Iterator[bytes]:
        """
        Read all, in chunks as an MTA sends them; nothing for an empty body.

        :raises ValueError: when it is closed meanwhile.
        """
        position = 0
        while position < self.size:
            chunk = self.read_at(position, size)
            if not chunk:
                raise ValueError("the body is shorter than it was")
            position += len(chunk)
            yield chunk

    def replace(self, chunks: Iterable[bytes]) -> None:
        """
        Take a filter's new body, as the MTA shows it to the next filter.
        """
        self._kept()
        self._chunk = b""
        self.size = 0
        if self._file is not None:
            self._file.seek(0)
            self._file.truncate()
        body = b"".join(chunks)
        self.write(_sendmail_body(body) if self._flavour == "sendmail" else wire_body(body))

    def _kept(self) -> bytes:
        chunk = self._chunk
        if chunk is None:
            raise ValueError("the body was given back")
        return chunk

    def close(self) -> None:
        """
        Give the memory, or the file, back.
        """
        self._chunk = None
        if self._file is not None:
            # What could not be written yet is tried once more, to no purpose.
            with contextlib.suppress(OSError):
                self._file.close()
