"""
Telling of callbacks that block the process: all its connections wait for them.

To look at the clock around each callback would cost more than most callbacks do. So the time of a
whole read is looked at; only when one has been slow are callbacks timed one by one, for a while, on
the connections that come. Where an observer is told of callbacks they are timed anyway; both is
done in `yatxmilter._engine.observing`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from yatxmilter._engine.addresses import describe_address
from yatxmilter._escaping import printable

__all__ = ["SlowCallbacks"]

_log = Logger(__name__)

#: Seconds for which callbacks are timed, and in which the same is told once.
_WHILE: Final = 60.0
_MOST_TOLD: Final = 256
_HINT: Final = "have it wait in a thread (@threaded, deferToThread) or use an asynchronous library"


class SlowCallbacks:
    """
    What a factory knows of slow callbacks.

    :param limit: Seconds that a callback may block the process; ``None`` for any time.
    :param clock: Gives what keeps time; not asked before a connection comes.
    :ivar limit: The same; infinite for any time.
    """

    def __init__(self, limit: float | None, clock: Callable[[], IReactorTime]) -> None:
        self.limit = math.inf if limit is None else limit
        self._clock = clock
        # Until when connections that come have their callbacks timed.
        self._until: float | None = None
        self._told: dict[tuple[str, ...], float] = {}

    @property
    def seconds(self) -> Callable[[], float]:
        """
        What tells the time.
        """
        seconds: Callable[[], float] = self._clock().seconds
        return seconds

    @property
    def timing(self) -> bool:
        """
        Whether a connection that comes now is to have its callbacks timed.
        """
        if self._until is not None and self._clock().seconds() >= self._until:
            self._until = None
        return self._until is not None

    def read(self, connection: Any, stage: str, taken: float) -> None:
        """
        Take note that a read of a connection whose callbacks are not timed has been slow.

        :param connection: The `MilterProtocol`.
        :param stage: The callback of its last command; empty where that cannot be told.
        :param taken: For how many seconds it has blocked the process.
        """
        milters = ", ".join(connection.milter_names)
        if self._is_news(milters, stage):
            _log.warn(
                "Callbacks of {milters} have blocked the process for {seconds:.1f} s in one read"
                " from the MTA at {mta}{last}; all connections waited. Callbacks of connections"
                " that come in the next minute are timed one by one. If one is slow, {hint}",
                milters=printable(milters),
                seconds=taken,
                mta=describe_address(connection.peer),
                connection=connection.number,
                last=f", the last of them {stage}" if stage else "",
                hint=_HINT,
            )

    def callback(self, milter: str, stage: str, connection: Any, taken: float) -> None:
        """
        Take note that a callback has been slow; what it waits for afterwards does not count.

        :param milter: The milter's name.
        :param stage: The callback's.
        :param connection: The `MilterProtocol`.
        :param taken: For how many seconds it has blocked the process.
        """
        if self._is_news(milter, stage, "callback"):
            _log.warn(
                "Milter {milter} has blocked the process for {seconds:.1f} s in {stage}();"
                " all connections waited. If that is not rare, {hint}",
                milter=printable(milter),
                seconds=taken,
                stage=stage,
                mta=describe_address(connection.peer),
                connection=connection.number,
                hint=_HINT,
            )

    def _is_news(self, *what: str) -> bool:
        """
        Have callbacks timed from now on for a while; tell whether this was not told for as long.
        """
        now = self._clock().seconds()
        self._until = now + _WHILE
        told = self._told
        if what in told and now - told[what] < _WHILE:
            return False
        if len(told) >= _MOST_TOLD:
            # Names are the milters' own, which may have made one for each connection.
            told.clear()
        told[what] = now
        return True
