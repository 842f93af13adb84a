"""
Where a log is written to besides standard error: a file that can be opened anew, and syslog.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

__all__ = ["FACILITIES", "LogFile", "Syslog"]

#: syslog's names of what a message is about.
FACILITIES: Final = {
    **{"user": 1, "mail": 2, "daemon": 3, "auth": 4},
    **{f"local{number}": 16 + number for number in range(8)},
}

# Without waiting: a FIFO that nobody reads would hold us up before it is seen to be no file.
_FLAGS: Final = (
    os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
)
# Those on the other side of the socket cut what is longer, or lose it.
_LONGEST: Final = 8000
_MARK: Final = re.compile(r"<([0-7])>")
_INFO: Final = 6


class LogFile:
    """
    A file that is written at its end.

    :param path: Its name. A link there is not followed.
    :param owner: The user and the group that it is given to when it is made.
    :raises OSError: when it cannot be opened.
    """

    encoding = "utf-8"

    def __init__(self, path: str, owner: tuple[int, int] | None = None) -> None:
        self.path = path
        self._owner = owner
        self._descriptor = self._open()

    def _open(self) -> int:
        there = os.path.lexists(self.path)
        descriptor = os.open(self.path, _FLAGS, 0o640)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "it is not a regular file", self.path)
            if not there and self._owner is not None and os.geteuid() == 0:
                os.fchown(descriptor, *self._owner)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def reopen(self) -> None:
        """
        Open it anew by its name, behind a program that has given the old one another.

        :raises OSError: when that cannot be; what is written goes to the old one still.
        """
        descriptor = self._open()
        os.close(self._descriptor)
        self._descriptor = descriptor

    def write(self, text: str) -> None:
        """
        Write whole lines, in one piece: other processes may write between them.
        """
        data = text.encode(self.encoding, "backslashreplace")
        while data:
            data = data[os.write(self._descriptor, data) :]

    def flush(self) -> None:
        """
        Do nothing: what is written is in the file.
        """

    def close(self) -> None:
        """
        Close it.
        """
        os.close(self._descriptor)


class Syslog:
    """
    The local syslog socket. It is never waited for: what it does not take is counted, and told of
    with the next line that it takes.

    :param path: The socket.
    :param facility: One of `FACILITIES`.
    :param name: What the lines are from.
    :param now: Tells the time, in seconds since 1970.
    :raises OSError: when it is not there.
    """

    encoding = "utf-8"

    def __init__(
        self,
        path: str = "/dev/log",
        facility: str = "mail",
        name: str = "yatxmilter",
        now: Callable[[], float] = time.time,
    ) -> None:
        self.path = path
        self._facility = FACILITIES[facility]
        self._name = name
        self._now = now
        self._lost = 0
        self._socket = self._connected()

    def _connected(self) -> socket.socket:
        one = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            one.setblocking(False)
            one.connect(self.path)
        except OSError:
            one.close()
            raise
        return one

    def write(self, text: str) -> None:
        """
        Send each line, with the severity that stands before it, as `JournalLog` writes it.
        """
        for line in text.splitlines():
            mark = _MARK.match(line)
            severity = int(mark[1]) if mark is not None else _INFO
            body = line[mark.end() :] if mark is not None else line
            if self._lost and self._send(4, f"{self._lost} lines of the log were lost"):
                self._lost = 0
            if not self._send(severity, body):
                self._lost += 1

    def _send(self, severity: int, text: str) -> bool:
        """
        Send a line, if it is taken at once.
        """
        moment = time.strftime("%b %e %H:%M:%S", time.localtime(self._now()))
        head = f"<{8 * self._facility + severity}>{moment} {self._name}[{os.getpid()}]: "
        data = (head + text).encode(self.encoding, "backslashreplace")[:_LONGEST]
        try:
            self._socket.send(data)
        except BlockingIOError:
            return False
        except OSError:
            # Its daemon may have been started anew.
            try:
                self.reopen()
                self._socket.send(data)
            except OSError:
                return False
        return True

    def reopen(self) -> None:
        """
        Connect anew.

        :raises OSError: when it is not there.
        """
        fresh = self._connected()
        self.close()
        self._socket = fresh

    def flush(self) -> None:
        """
        Do nothing: what is written is sent.
        """

    def close(self) -> None:
        """
        Close it.
        """
        with suppress(OSError):
            self._socket.close()
