"""
Coming to an end: waiting until all connections are gone, but not for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

__all__ = ["Drains"]

_log = Logger()

# Seconds for the last answers to go out before what is left is cut off.
_GRACE: Final = 5


class Drainable(Protocol):
    """
    What is waited for: a `MilterProtocol`.
    """

    transport: Any

    def give_up(self) -> None:
        """
        Come to an end now.
        """


class Drains:
    """
    Those who wait for a factory's connections to be gone.

    :param connections: The factory's own, live.
    :param clock: Gives what keeps time; not asked before there is something to wait for.
    """

    def __init__(
        self, connections: Collection[Drainable], clock: Callable[[], IReactorTime]
    ) -> None:
        self._connections = connections
        self._clock = clock
        self._waiting: list[Deferred[None]] = []
        self._timers: list[IDelayedCall] = []

    def start(self, seconds: float | None) -> Deferred[None]:
        """
        Wait until there is no connection.

        :param seconds: After so many those that are left are given up; ``None`` for never.
        """
        drained: Deferred[None] = Deferred()
        self._waiting.append(drained)
        if seconds is not None:
            self._timers.append(self._clock().callLater(seconds, self._give_up))
        return drained

    def check(self) -> None:
        """
        Tell those who wait, if there is no connection.
        """
        if self._connections:
            return
        timers, self._timers = self._timers, []
        for timer in timers:
            if timer.active():
                timer.cancel()
        waiting, self._waiting = self._waiting, []
        for drained in waiting:
            drained.callback(None)

    def _give_up(self) -> None:
        _log.warn(
            "Closing {count} connections that did not come to an end in time",
            count=len(self._connections),
        )
        self._timers.append(self._clock().callLater(_GRACE, self._abort))
        for connection in list(self._connections):
            connection.give_up()

    def _abort(self) -> None:
        for connection in list(self._connections):
            connection.transport.abortConnection()
