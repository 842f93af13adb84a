"""
Time limits of one connection: how long it may be idle, sending one command, or not reading.

Bytes that move only leave a mark of their time: to move a timer for each costs more than to look
at the mark when the timer is due.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

__all__ = ["Deadline", "Watch"]


class Deadline:
    """
    A time limit that can be set again and again at the cost of an assignment.

    :param seconds: The limit; ``None`` for none.
    :param passed: Called when so many seconds have passed since `since`.
    :ivar since: What the limit counts from; ``None`` while it does not count.
    """

    __slots__ = ("_clock", "_passed", "_seconds", "_timer", "since")

    def __init__(
        self, clock: IReactorTime, seconds: float | None, passed: Callable[[], None]
    ) -> None:
        self._clock = clock
        self._seconds = seconds
        self._passed = passed
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
        self._passed()


class Watch:
    """
    The deadlines of one connection.

    :param expired: Called with what was too slow, in words.
    :param stuck: Called when the peer does not read, so that nothing can be said to it any more.
    """

    __slots__ = ("closing", "command", "idle", "reading")

    def __init__(
        self,
        clock: IReactorTime,
        *,
        timeout: float | None,
        command_timeout: float | None,
        write_timeout: float | None,
        expired: Callable[[str], None],
        stuck: Callable[[str], None],
    ) -> None:
        self.idle = Deadline(clock, timeout, lambda: expired("was silent too long"))
        self.command = Deadline(
            clock, command_timeout, lambda: expired("took too long to send one command")
        )
        self.reading = Deadline(clock, write_timeout, lambda: stuck("did not read its answers"))
        self.closing = Deadline(clock, write_timeout, lambda: stuck("did not let itself be closed"))

    def cancel(self) -> None:
        """
        Stop watching.
        """
        for deadline in (self.idle, self.command, self.reading, self.closing):
            deadline.cancel()
