"""
The socket of a program: opened early, with the user and the umask of that time, and served later.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat

from yatxmilter.protocol._endpoints import parse_address

__all__ = ["Listening"]


class Listening:
    """
    A socket that a program listens on.

    :param spec: ``unix:/path``, ``local:/path``, ``/path``, ``inet:port@host``,
        ``inet6:port@host``, or ``fd:3`` for one that another process has opened, such as systemd.
    :param backlog: How many connections may wait to be taken.
    :param remove: Whether a UNIX socket that is there is removed first.
    :raises OSError: when it cannot be opened.
    :raises ValueError: if it is not an address.
    """

    def __init__(self, spec: str, backlog: int, *, remove: bool) -> None:
        self.spec = spec
        kind, _, rest = spec.partition(":")
        if kind == "fd":
            if not (rest.isascii() and rest.isdigit()):
                raise ValueError(f"{spec!r} names no descriptor, expected a number such as fd:3")
            self.socket = socket.socket(fileno=int(rest))
        else:
            # A bare name is a path for libmilter.
            family, address = parse_address(spec if ":" in spec else f"local:{spec}")
            self.socket = self._bound(family, address, remove)
        self.socket.listen(backlog)
        self.socket.setblocking(False)

    def _bound(self, family: int, address: str | tuple[str, int], remove: bool) -> socket.socket:
        made = socket.socket(family, socket.SOCK_STREAM)
        try:
            if isinstance(address, str):
                if remove:
                    _remove_socket(address)
            else:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
        except BaseException:
            made.close()
            raise
        return made

    def close(self) -> None:
        """
        Listen no more. The file of a UNIX socket stays, as with libmilter: some programs remove it.
        """
        self.socket.close()


def _remove_socket(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
