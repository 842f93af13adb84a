"""
Why it is not possible to listen somewhere, or to be somebody, in words: what is wrong, and what to
do about it.
"""

from __future__ import annotations

import errno
import os
import pwd
import socket
import stat
from typing import Any, Final

from twisted.internet.error import CannotListenError

__all__ = ["cannot_become", "cannot_listen", "me"]

#: The highest port that needs a privilege, as Linux has it.
_PRIVILEGED: Final = 1023
_TAKEN: Final = "another program listens there"


def cannot_listen(spec: str | None, error: CannotListenError | OSError) -> str:
    """
    Say why it is not possible to listen, and what to do.

    :param spec: The address as it was given; ``None`` for the place that the error names.
    """
    problem: Any = getattr(error, "socketError", error)
    port = getattr(error, "port", None)
    if isinstance(port, (str, bytes)):
        path = os.fsdecode(port)
        return f"cannot listen on {spec or path}: {_path_reason(path, problem)}"
    if port is None:
        return f"cannot listen on {spec}: {_words(problem)}" if spec else _words(problem)
    where = f"{getattr(error, 'interface', None) or '*'}:{port}"
    return f"cannot listen on {spec or where}: {_port_reason(port, problem)}"


def cannot_become(user: str | None, group: str | None, error: OSError) -> str:
    """
    Say why a process cannot become another user, and what to do.
    """
    whom = " and ".join(
        f"{kind} {name!r}" for kind, name in (("user", user), ("group", group)) if name
    )
    return (
        f"cannot become {whom}: {_words(error)}; only root may. Start it as root, or as that user"
        " without --user and --group (under systemd: User= and Group=)"
    )


def _words(problem: Any) -> str:
    return getattr(problem, "strerror", None) or str(problem)


def me() -> str:
    """
    Name the user whom this process is.
    """
    number = os.geteuid()
    try:
        return f"user {pwd.getpwuid(number).pw_name!r}"
    except KeyError:
        return f"user {number}"


def _port_reason(port: int, problem: Any) -> str:
    words, number = _words(problem), getattr(problem, "errno", None)
    if number == errno.EADDRINUSE:
        return f"{words}: {_TAKEN}; `ss -ltnp` shows which. End that one, or take another port"
    if number == errno.EADDRNOTAVAIL:
        return f"{words}: this machine does not have that address; `ip address` shows those it has"
    if number in (errno.EACCES, errno.EPERM) and port <= _PRIVILEGED:
        return (
            f"{words}: ports below {_PRIVILEGED + 1} are root's. Take a higher one, or start it as"
            " root with --user"
        )
    if isinstance(problem, socket.gaierror):
        return f"{words}: this host name has no address here; an IP address needs no look-up"
    return words


def _path_reason(path: str, problem: Any) -> str:
    number = getattr(problem, "errno", None)
    if number is None:
        # It is in words of our own, but for Twisted's, whose lock beside the socket is taken.
        text = str(problem)
        return _TAKEN if text == "Cannot acquire lock" else text
    words, folder = _words(problem), os.path.dirname(path) or "."
    if number == errno.EADDRINUSE:
        return _why_path_is_taken(path)
    if number == errno.ENOENT:
        return f"{words}: there is no folder {folder}. Make it, for {me()} to write to"
    if number == errno.ENOTDIR:
        return f"{words}: a part of {folder} is a file"
    if number in (errno.EACCES, errno.EPERM):
        if os.path.lexists(path):
            return f"{words}: what is there is another user's; end its program, or remove it"
        return (
            f"{words}: {me()} may not make a socket in {folder}. Give that folder to that user"
            " (under systemd: RuntimeDirectory=), or listen elsewhere"
        )
    if number == errno.EROFS:
        return (
            f"{words}: {folder} may only be read here. Listen elsewhere (under systemd:"
            " ReadWritePaths= or RuntimeDirectory=)"
        )
    return words


def _why_path_is_taken(path: str) -> str:
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return "there is a file of that name, which is not a socket; it is left alone"
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(path) == errno.ECONNREFUSED:
                return f"a program that is gone has left its socket behind; remove it: rm {path}"
    except OSError as error:
        return _words(error)
    return _TAKEN
