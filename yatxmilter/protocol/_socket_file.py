"""
UNIX sockets as files: whose they are, and who may connect.

A socket has its permissions from the moment it is there, and its owner before anybody can connect.
What stands in its folder is not trusted: no link is followed.
"""

from __future__ import annotations

import difflib
import grp
import os
import pwd
import re
import stat
from contextlib import suppress
from typing import Any, Final, NamedTuple

from twisted.internet import tcp, unix
from twisted.internet.error import CannotListenError
from twisted.internet.posixbase import PosixReactorBase
from twisted.logger import Logger
from twisted.python import lockfile

__all__ = [
    "DEFAULT_MODE",
    "SocketFile",
    "find_group",
    "find_user",
    "keep_a_descriptor",
    "open_socket_file",
]

_log = Logger()

#: The owner and the group may connect.
DEFAULT_MODE: Final = 0o660

# Parts of Twisted that are not annotated.
_TCP_PORT: Final[Any] = tcp.Port
_UNIX_PORT: Final[Any] = unix.Port
_RESERVED: Final[Any] = getattr(tcp, "_reservedFD", None)


class SocketFile(NamedTuple):
    """
    A UNIX socket to listen on.

    :ivar mode: Its permissions; ``None`` for what is usual.
    :ivar takes_over: Whether one that a dead process has left behind is replaced.
    :ivar owner: The user whom it is given to; ``None`` for nobody in particular.
    :ivar group: The group that it is given to, likewise.
    """

    path: str
    backlog: int = 50
    mode: int | None = None
    takes_over: bool = True
    owner: int | None = None
    group: int | None = None


def find_user(name: str, value: str) -> pwd.struct_passwd:
    """
    Look up a user by name or number.

    :param name: The option that names the user.
    :raises ValueError: for one that this system does not have.
    """
    with suppress(KeyError, ValueError, OverflowError):
        return pwd.getpwnam(value)
    with suppress(KeyError, ValueError, OverflowError):
        return pwd.getpwuid(int(value))
    known = [entry.pw_name for entry in pwd.getpwall()]
    raise ValueError(f"{name} is {value!r}, {_expected('user', value, known)}")


def find_group(name: str, value: str) -> int:
    """
    Look up a group by name or number.

    :param name: The option that names the group.
    :raises ValueError: for one that this system does not have.
    """
    with suppress(KeyError, ValueError, OverflowError):
        return grp.getgrnam(value).gr_gid
    with suppress(KeyError, ValueError, OverflowError):
        return grp.getgrgid(int(value)).gr_gid
    known = [entry.gr_name for entry in grp.getgrall()]
    raise ValueError(f"{name} is {value!r}, {_expected('group', value, known)}")


def _expected(kind: str, value: str, known: list[str]) -> str:
    nearest = difflib.get_close_matches(value, known, 1)
    if nearest:
        return f"expected a {kind} that this system has; did you mean {nearest[0]!r}?"
    make = "adduser --system" if kind == "user" else "addgroup --system"
    return f"expected a {kind} that this system has; `{make} {value}` would make it"


def keep_a_descriptor() -> None:
    """
    Keep a descriptor back, as each of Twisted's ports does: when there is no other, it is for
    taking connections in order to close them. Else they would be told of for ever.
    """
    if _RESERVED is not None:
        _RESERVED.reserve()


def open_socket_file(reactor: Any, file: SocketFile, factory: Any) -> Any:
    """
    Listen on a UNIX socket.

    :return: The port.
    :raises CannotListenError: when that cannot be.
    """
    mode = DEFAULT_MODE if file.mode is None else file.mode
    if mode & stat.S_IWOTH:
        _log.warn(
            "Every user of this machine may connect to {path}, which has mode {mode}; 660 and the"
            " MTA's group let in the MTA alone",
            path=file.path,
            mode=f"{mode:o}",
        )
    if not isinstance(reactor, PosixReactorBase):
        # A reactor in memory, or one that has no UNIX sockets of Twisted's.
        return reactor.listenUNIX(file.path, factory, file.backlog, mode, file.takes_over)
    port = _Port(file.path, factory, file.backlog, mode, reactor, file.takes_over)
    port.owner = -1 if file.owner is None else file.owner
    port.group = -1 if file.group is None else file.group
    port.startListening()
    return port


def _whose_lock(path: str) -> str:
    """
    Say who has a lock, and what to do.
    """
    try:
        owner = os.readlink(path)
    except OSError:
        owner = ""
    if not re.fullmatch("[0-9]+", owner):
        return f"{path} is in the way, which is not a lock; move it elsewhere"
    return (
        f"another process has its lock: {path} names process {owner}, which runs. If `ps {owner}`"
        " shows that it is not a milter, remove the lock"
    )


class _Port(_UNIX_PORT):  # type: ignore[misc]
    """
    A port that makes its file itself, and removes no other.
    """

    owner = group = -1
    # Device and number of the file.
    _file: tuple[int, int] | None = None
    factory: Any
    lockFile: Any

    @property
    def _path(self) -> bytes:
        # Twisted 22.10 has it under another name.
        path: bytes = getattr(self, "_bindPath", None) or self.port
        return path

    def startListening(self) -> None:
        """
        Make the file, and listen.
        """
        keep_a_descriptor()
        if self.wantPID:
            self._lock()
        # Refused by a factory that cannot start, it leaves nothing behind.
        try:
            self.socket = self.createInternetSocket()
            self._bind()
            self.socket.listen(self.backlog)
            self.factory.doStart()
        except BaseException as error:
            self.socket.close()
            self._remove()
            if isinstance(error, OSError):
                raise CannotListenError(None, self._path, error) from None
            raise
        self.connected = True
        self.fileno = self.socket.fileno
        self.numberAccepts = 100
        self.startReading()

    def _lock(self) -> None:
        lock = lockfile.FilesystemLock(self._path + b".lock")
        try:
            locked = lock.lock()
        except PermissionError as error:
            # A process that may not be asked is there; else the lock cannot be made.
            if not os.path.islink(lock.name):
                raise CannotListenError(None, self._path, error) from None
            locked = False
        except (OSError, ValueError) as error:
            if not os.path.lexists(lock.name):
                raise CannotListenError(None, self._path, error) from None
            # What is there is not a lock.
            locked = False
        if not locked:
            raise CannotListenError(None, self._path, OSError(_whose_lock(os.fsdecode(lock.name))))
        self.lockFile = lock
        if not self.lockFile.clean:
            with suppress(OSError):
                if stat.S_ISSOCK(os.lstat(self._path).st_mode):
                    os.unlink(self._path)

    def _bind(self) -> None:
        if self._path.startswith(b"\0"):
            # It has no file.
            self.socket.bind(self._path)
            return
        before = os.umask(0o777 & ~self.mode)
        try:
            self.socket.bind(self._path)
        finally:
            os.umask(before)
        found = os.lstat(self._path)
        self._file = found.st_dev, found.st_ino
        if (self.owner, self.group) != (-1, -1):
            self._give()

    def _give(self) -> None:
        # By a descriptor: the name may be another file's by now.
        descriptor = os.open(self._path, os.O_PATH | os.O_NOFOLLOW)
        try:
            found = os.fstat(descriptor)
            if (found.st_dev, found.st_ino) != self._file:
                raise OSError("its file was replaced by another")
            os.chown(f"/proc/self/fd/{descriptor}", self.owner, self.group)
        except PermissionError as error:
            raise OSError(
                f"it cannot be given to user {self.owner}, group {self.group}: {error.strerror}."
                " Only root may give a file to another user; others may give it to a group that"
                " they are in. Start it as root with --user, or leave owner and group out"
            ) from None
        finally:
            os.close(descriptor)

    def _remove(self) -> None:
        file, self._file = self._file, None
        try:
            if file is not None:
                found = os.lstat(self._path)
                if (found.st_dev, found.st_ino) == file:
                    os.unlink(self._path)
        finally:
            if self.lockFile is not None:
                self.lockFile.unlock()
                self.lockFile = None

    def connectionLost(self, reason: Any) -> None:
        """
        Remove the file, and tell the factory.
        """
        try:
            self._remove()
        finally:
            _TCP_PORT.connectionLost(self, reason)
