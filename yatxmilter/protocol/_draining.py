"""
Coming to an end: waiting until the connections there are have gone, but not for ever.

Each drain waits for the connections that it found. One that comes later, because connections are
taken again, is none of its business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
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


class _Drain:
    """
    One who waits.
    """

    __slots__ = ("drained", "left", "timer")

    def __init__(self, connections: Iterable[Drainable]) -> None:
        self.drained: Deferred[None] = Deferred()
        self.left = set(connections)
        self.timer: IDelayedCall | None = None


class Drains:
    """
    Those who wait for a factory's connections to be gone.

    :param clock: Gives what keeps time; not asked before there is something to wait for.
    """

    def __init__(self, clock: Callable[[], IReactorTime]) -> None:
        self._clock = clock
        self._waiting: list[_Drain] = []

    def start(self, connections: Iterable[Drainable], seconds: float | None) -> Deferred[None]:
        """
        Wait until these connections are gone.

        :param seconds: After so many those that are left are given up; ``None`` for never.
        """
        drain = _Drain(connections)
        if not drain.left:
            drain.drained.callback(None)
            return drain.drained
        self._waiting.append(drain)
        if seconds is not None:
            drain.timer = self._clock().callLater(seconds, self._give_up, drain)
        return drain.drained

    def gone(self, connection: Drainable) -> None:
        """
        Take note that a connection has gone; tell those who waited for no other.
        """
        for drain in self._waiting.copy():
            drain.left.discard(connection)
            # Who is told may make another connection go.
            if not drain.left and drain in self._waiting:
                self._waiting.remove(drain)
                if drain.timer is not None:
                    drain.timer.cancel()
                drain.drained.callback(None)

    def _give_up(self, drain: _Drain) -> None:
        _log.warn(
            "Closing {count} connections that did not come to an end in time",
            count=len(drain.left),
        )
        drain.timer = self._clock().callLater(_GRACE, self._abort, drain)
        for connection in drain.left.copy():
            connection.give_up()

    def _abort(self, drain: _Drain) -> None:
        drain.timer = None
        for connection in drain.left.copy():
            connection.transport.abortConnection()
