"""
Time limits of connections: how long one may be idle, sending one command, or not reading.

Bytes that move only leave a mark of their time, and all connections that a limit counts for have
one timer in common: to make one for each, or to move it, costs more than to look at all marks now
and then. The timer is set for the first that is due, so that the limit strikes on time. But where
many are due one after the other it does not look thrice within a `LOOKS`th of the limit: by that
part of it the limit may strike late.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

__all__ = [
    "LOOKS",
    "NO_HANDSHAKE",
    "NOT_CLOSING",
    "NOT_READING",
    "SILENT",
    "SLOW_COMMAND",
    "Fault",
    "TimeLimit",
    "TimeLimits",
    "hung_up",
]

_log = Logger()

#: Into how many parts a limit's time is divided, in each of which it looks twice at most.
LOOKS: Final = 64
# Seconds by which a timer may be early, as floating-point numbers are not exact.
_ROUNDING: Final = 1e-6


class Fault(NamedTuple):
    """
    What an MTA has done, or left undone.

    :ivar kind: The same in a word, for observers.
    """

    kind: str
    words: str


SILENT: Final = Fault("silent", "was silent too long")
SLOW_COMMAND: Final = Fault("slow_command", "took too long to send one command")
NO_HANDSHAKE: Final = Fault("tls", "took too long over the TLS handshake")
NOT_READING: Final = Fault("not_reading", "did not read its answers")
NOT_CLOSING: Final = Fault("not_closing", "did not let itself be closed")

_T = TypeVar("_T")

# Seconds after which we look whether an MTA is still there that is not read from.
_LOOK: Final = 10.0

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


class TimeLimit(Generic[_T]):
    """
    A time limit of all connections of a factory.

    :param clock: Gives what keeps time; not asked before something counts.
    :param seconds: The limit; ``None`` for none.
    :param passed: Called with one when so many seconds have passed since it was started.
    :param moved: Gives the time of the last mark of one that counts, where marks are made: the
        limit counts from there.
    :ivar since: For whom it counts, and since when, marks aside.
    """

    __slots__ = ("_clock", "_looked", "_moved", "_passed", "_seconds", "_timer", "since")

    def __init__(
        self,
        clock: Callable[[], IReactorTime],
        seconds: float | None,
        passed: Callable[[_T], object],
        moved: Callable[[_T], float] | None = None,
    ) -> None:
        self._clock = clock
        self._seconds = seconds
        self._passed = passed
        self._moved = moved
        self.since: dict[_T, float] = {}
        self._looked = float("-inf")
        self._timer: IDelayedCall | None = None

    def start(self, one: _T, now: float | None = None) -> None:
        """
        Count for one from now, unless it counts already.

        :param now: What time it is, if that is known.
        """
        if self._seconds is None or one in self.since:
            return
        self.since[one] = self._clock().seconds() if now is None else now
        # Where there is a timer it is set for one that began before.
        if self._timer is None:
            self._timer = self._clock().callLater(self._seconds, self._look)

    def stop(self, one: _T) -> None:
        """
        Count for one no more; leave no timer behind it.
        """
        if self.since.pop(one, None) is None or self.since or self._timer is None:
            return
        self._timer.cancel()
        self._timer = None

    def _counts_from(self, one: _T, since: float) -> float:
        return since if self._moved is None else max(since, self._moved(one))

    def _look(self) -> None:
        self._timer = None
        assert self._seconds is not None
        clock = self._clock()
        now = clock.seconds()
        before = now - self._seconds + _ROUNDING
        for one, since in list(self.since.items()):
            # To end one may have ended others.
            if self._counts_from(one, since) <= before and self.since.pop(one, None) is not None:
                try:
                    self._passed(one)
                except Exception:
                    # It is the matter of one connection, and there are others.
                    _log.failure("A time limit could not be kept")
        if self.since:
            self._look_again(clock, self._seconds)
        self._looked = now

    def _look_again(self, clock: IReactorTime, seconds: float) -> None:
        if self._timer is not None:
            # It was started while there was no other.
            self._timer.cancel()
        first = min(self._counts_from(one, since) for one, since in self.since.items())
        due = max(first + seconds, self._looked + seconds / LOOKS)
        self._timer = clock.callLater(max(0, due - clock.seconds()), self._look)


class Limited(Protocol):
    """
    What has limits: a connection.
    """

    @property
    def moved(self) -> float:
        """
        When bytes moved last.
        """

    def expired(self, fault: Fault) -> None:
        """
        Come to an end: the MTA has taken too long.
        """

    def stuck(self, fault: Fault) -> None:
        """
        Come to an end at once: the MTA does not read.
        """

    def look(self) -> None:
        """
        See whether an MTA that is not read from is still there.
        """


class TimeLimits:
    """
    The time limits of a factory's connections.

    :param clock: Gives what keeps time.
    :param idle: Seconds that an MTA may be silent; ``None`` for any time, as for the others.
    :param command: Seconds within which a command must have arrived whole.
    :param write: Seconds that an MTA may read nothing.
    :ivar idle: How long it is silent.
    :ivar command: How long it takes to send a command.
    :ivar reading: How long it does not read.
    :ivar closing: How long it does not read what is written last.
    :ivar away: How long it is not read from, and may have gone.
    """

    __slots__ = ("_all", "away", "closing", "command", "idle", "reading")

    def __init__(
        self,
        clock: Callable[[], IReactorTime],
        idle: float | None,
        command: float | None,
        write: float | None,
    ) -> None:
        self.idle: TimeLimit[Limited] = TimeLimit(
            clock, idle, lambda one: one.expired(SILENT), lambda one: one.moved
        )
        self.command: TimeLimit[Limited] = TimeLimit(
            clock, command, lambda one: one.expired(SLOW_COMMAND)
        )
        self.reading: TimeLimit[Limited] = TimeLimit(
            clock, write, lambda one: one.stuck(NOT_READING)
        )
        self.closing: TimeLimit[Limited] = TimeLimit(
            clock, write, lambda one: one.stuck(NOT_CLOSING)
        )
        self.away: TimeLimit[Limited] = TimeLimit(clock, _LOOK, lambda one: one.look())
        self._all = (self.idle, self.command, self.reading, self.closing, self.away)

    def stop(self, one: Limited) -> None:
        """
        Count for one no more.
        """
        for limit in self._all:
            if limit.since:
                limit.stop(one)
