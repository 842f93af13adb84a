"""
The file that names a process.

Written as root, into a folder that may be another's: what is there already is not opened, and no
link is followed.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from typing import Final

from twisted.logger import Logger

__all__ = ["PidFile"]

_log = Logger()

_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class PidFile:
    """
    A file with the number of this process.

    It belongs to the user that wrote it, and everybody may read it.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        # Device and number of the file that is ours.
        self._file: tuple[int, int] | None = None

    def write(self) -> None:
        """
        Write the file anew, and replace the old one by it.

        :raises OSError: when that cannot be.
        """
        beside = f"{self._path}.{secrets.token_hex(8)}"
        descriptor = os.open(beside, _NEW, 0o644)
        try:
            with open(descriptor, "w", encoding="ascii") as file:
                # Whatever the umask says.
                os.fchmod(descriptor, 0o644)
                file.write(f"{os.getpid()}\n")
                found = os.fstat(descriptor)
            os.rename(beside, self._path)
        except BaseException:
            with suppress(OSError):
                os.unlink(beside)
            raise
        self._file = found.st_dev, found.st_ino

    def remove(self) -> None:
        """
        Remove the file, if it is still the one that was written. Where its folder does not let us,
        it is emptied; where the file, root's, does not either, it stays.
        """
        file, self._file = self._file, None
        if file is None:
            return
        try:
            found = os.lstat(self._path)
            if (found.st_dev, found.st_ino) == file:
                os.unlink(self._path)
        except FileNotFoundError:
            # Somebody else has cleared up.
            pass
        except OSError:
            try:
                self._empty(file)
            except OSError as error:
                _log.info("{path} stays: {error}", path=self._path, error=error.strerror)

    def _empty(self, file: tuple[int, int]) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            found = os.fstat(descriptor)
            if (found.st_dev, found.st_ino) == file:
                os.ftruncate(descriptor, 0)
        finally:
            os.close(descriptor)
