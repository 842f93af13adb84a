"""
Files for their owner alone: mail is nobody else's business.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

__all__ = ["open_private"]


def open_private(path: str | Path, mode: str) -> int:
    """
    Open a file to write to, as one that its owner alone may read, and give its descriptor.

    A file that is there must be this user's own, and becomes readable by nobody else. A symbolic
    link is not followed: where others may write, they would choose the file that is overwritten.

    :param mode: ``"x"`` for a new file, ``"w"`` to overwrite one, ``"a"`` to add to one.
    :raises OSError: when that cannot be done, with the reason in its ``strerror``.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    flags |= {"x": os.O_EXCL, "w": 0, "a": os.O_APPEND}[mode]
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            # The system's own words, "too many levels of symbolic links", lead nowhere.
            raise OSError(errno.ELOOP, "it is a symbolic link", str(path)) from None
        raise
    try:
        found = os.fstat(descriptor)
        os.set_blocking(descriptor, True)
        # A device or a pipe keeps nothing, and is left as it is.
        if stat.S_ISREG(found.st_mode):
            if found.st_uid != os.geteuid():
                raise OSError(errno.EPERM, "it belongs to another user", str(path))
            os.fchmod(descriptor, 0o600)
            if mode == "w":
                os.ftruncate(descriptor, 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
