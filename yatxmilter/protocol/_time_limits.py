"""
Time limits of one connection: how long it may be idle, sending one command, or not reading.

Bytes that move only leave a mark of their time: to move a timer for each costs more than to look
at the mark when the timer is due.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Any, Final, Generic, NamedTuple, TypeVar

from twisted.internet.interfaces import IDelayedCall, IReactorTime

__all__ = ["NOT_CLOSING", "NOT_READING", "SILENT", "SLOW_COMMAND", "Deadline", "Fault", "hung_up"]


class Fault(NamedTuple):
    """
    What an MTA has done, or left undone.

    :ivar kind: The same in a word, for observers.
    """

    kind: str
    words: str


SILENT: Final = Fault("silent", "was silent too long")
SLOW_COMMAND: Final = Fault("slow_command", "took too long to send one command")
NOT_READING: Final = Fault("not_reading", "did not read its answers")
NOT_CLOSING: Final = Fault("not_closing", "did not let itself be closed")

_F = TypeVar("_F")

# Elsewhere than on Linux only a connection that is closed both ways is seen.
_HUNG_UP: Final = getattr(select, "POLLRDHUP", 0)


def hung_up(transport: Any) -> bool:
    """
    Tell whether a peer has gone whose bytes are not read at the moment.

    Reading would tell, but there are bytes before the end that nobody has a place for.
    """
    fileno = getattr(transport, "fileno", None)
    if fileno is None:
        return False
    poll = select.poll()
    poll.register(fileno(), _HUNG_UP)
    return bool(poll.poll(0))


class Deadline(Generic[_F]):
    """
    A time limit that can be set again and again at the cost of an assignment.

    :param seconds: The limit; ``None`` for none.
    :param passed: Called with ``fault`` when so many seconds have passed since `since`.
    :param fault: What the peer has done then.
    :ivar since: What the limit counts from; ``None`` while it does not count.
    """

    __slots__ = ("_clock", "_fault", "_passed", "_seconds", "_timer", "since")

    def __init__(
        self,
        clock: IReactorTime,
        seconds: float | None,
        passed: Callable[[_F], None],
        fault: _F,
    ) -> None:
        self._clock = clock
        self._seconds = seconds
        self._passed = passed
        self._fault = fault
        self._timer: IDelayedCall | None = None
        self.since: float | None = None

    def start(self) -> None:
        """
        Count from now, unless it counts already.
        """
        if self._seconds is None or self.since is not None:
            return
        self.since = self._clock.seconds()
        if self._timer is None:
            self._timer = self._clock.callLater(self._seconds, self._check)

    def stop(self) -> None:
        """
        Count no more.
        """
        self.since = None

    def cancel(self) -> None:
        """
        Count no more, and leave no timer behind.
        """
        self.since = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self) -> None:
        self._timer = None
        if self.since is None or self._seconds is None:
            return
        left = self.since + self._seconds - self._clock.seconds()
        if left > 0:
            self._timer = self._clock.callLater(left, self._check)
            return
        self.since = None
        self._passed(self._fault)
