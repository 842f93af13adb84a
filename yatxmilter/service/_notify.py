"""
Telling systemd how a service is: ready, reloading, stopping, alive.

This is the protocol of ``sd_notify(3)``: a datagram of ``NAME=value`` lines to the socket that
``NOTIFY_SOCKET`` names. Without one nothing is sent, and nothing fails.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping

__all__ = ["Notifier"]


class Notifier:
    """
    Speaks to the service manager, if there is one.

    :param environ: Where ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID`` are looked for.
    :ivar watchdog: Seconds between two signs of life, half of what systemd allows; ``None`` where
        it wants none.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        found = os.environ if environ is None else environ
        path = found.get("NOTIFY_SOCKET", "")
        # An @ is an abstract socket, whose name begins with a NUL.
        self._path = "\0" + path[1:] if path.startswith("@") else path
        self.watchdog: float | None = None
        microseconds = found.get("WATCHDOG_USEC", "")
        mine = found.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        if self._path and mine and microseconds.isdecimal() and int(microseconds):
            self.watchdog = int(microseconds) / 2_000_000

    def tell(self, *lines: str) -> None:
        """
        Send what has changed; a manager that is gone is no reason to fail.
        """
        if self._path:
            with (
                contextlib.suppress(OSError),
                socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s,
            ):
                # A manager that does not listen must not hold us up.
                s.setblocking(False)
                s.connect(self._path)
                s.sendall("\n".join(lines).encode())

    def ready(self, status: str) -> None:
        """
        Tell that the service takes connections (again).
        """
        self.tell("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """
        Tell that the configuration is being read; `ready` ends it.
        """
        self.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """
        Tell that the service comes to its end.
        """
        self.tell("STOPPING=1")

    def alive(self) -> None:
        """
        Give the watchdog its sign of life.
        """
        self.tell("WATCHDOG=1")
