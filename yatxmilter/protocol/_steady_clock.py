"""
A clock that nobody can set: deadlines that hold when the system's time is changed.

Twisted's reactors measure by ``time.time``. When that is set back by an hour, whatever was due in a
second is due in an hour and a second. A `SteadyClock` measures by ``time.monotonic``, and is woken
by a thread that waits by the kernel's own reckoning, since any timer of the reactor's would come
late with all the others. Only that the reactor is woken is left to the thread; all calls are made
in the reactor's.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Any, Final, cast
from weakref import WeakValueDictionary

from twisted.internet.base import DelayedCall, ReactorBase
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

__all__ = ["SteadyClock", "steady"]

_log = Logger()

# With so many cancelled calls it is looked whether they are the most.
_MANY: Final = 50
# Seconds after which the alarm looks again, whatever is due: the system knows no wait of a month.
_DAY: Final = 86400.0


class _Alarm:
    """
    Wakes clocks at their times, in a thread of its own: one for all clocks of the process.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._due: dict[SteadyClock, float] = {}
        self._process: int | None = None
        self._ears: tuple[socket.socket, socket.socket] | None = None

    def set(self, clock: SteadyClock, due: float) -> None:
        """
        Wake a clock at this time, or before; a time that was set before and is earlier stays.
        """
        if self._process != os.getpid():
            # The first time, or the first one in a process that was forked: threads stay behind.
            self._start()
        with self._lock:
            if self._due.get(clock, due + 1) <= due:
                return
            self._due[clock] = due
        assert self._ears is not None
        # It does not matter if it does not fit: then there is enough to wake it.
        with contextlib.suppress(BlockingIOError):
            self._ears[1].send(b"\0")

    def _start(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        ears = self._ears = socket.socketpair()
        for ear in ears:
            ear.setblocking(False)
        threading.Thread(
            target=self._wait, args=(ears[0],), name="yatxmilter clock", daemon=True
        ).start()

    def _wait(self, ear: socket.socket) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(ear, selectors.EVENT_READ)
            while True:
                with self._lock:
                    due = min(self._due.values(), default=None)
                left = None if due is None else min(max(0.0, due - time.monotonic()), _DAY)
                if selector.select(left) and not ear.recv(4096):
                    # Nobody is left who could set it.
                    return
                self._ring()

    def _ring(self) -> None:
        now = time.monotonic()
        with self._lock:
            ready = [clock for clock, due in self._due.items() if due <= now]
            for clock in ready:
                del self._due[clock]
        for clock in ready:
            clock.wake()


@implementer(IReactorTime)
class SteadyClock:
    """
    The time of a reactor, by ``time.monotonic``.

    :ivar reactor: The reactor, one of Twisted's; what is called is called in its thread.
    """

    def __init__(self, reactor: Any) -> None:
        self.reactor = reactor
        # Not a method: it is asked for the time at each read.
        self.seconds: Callable[[], float] = time.monotonic
        self._calls: list[DelayedCall] = []
        self._cancelled = 0

    def callLater(
        self, delay: float, callable: Callable[..., Any], *args: object, **kw: object
    ) -> IDelayedCall:
        """
        Have something called in so many seconds.
        """
        if delay < 0:
            raise ValueError(f"delay is {delay!r}, expected no time in the past")
        if not delay:
            # At the next turn, whatever the time.
            return cast(IDelayedCall, self.reactor.callLater(0, callable, *args, **kw))
        call = DelayedCall(
            time.monotonic() + delay, callable, args, kw, self._cancel, self._sooner, time.monotonic
        )
        heappush(self._calls, call)
        if self._calls[0] is call:
            _ALARM.set(self, call.time)
        return cast(IDelayedCall, call)

    def getDelayedCalls(self) -> list[IDelayedCall]:
        """
        Give what is to be called.
        """
        return [cast(IDelayedCall, call) for call in self._calls if not call.cancelled]

    def _cancel(self, call: DelayedCall) -> None:
        self._cancelled += 1
        if self._cancelled > _MANY and self._cancelled > len(self._calls) // 2:
            # It is marked when this has returned.
            self._calls = [one for one in self._calls if not one.cancelled and one is not call]
            heapify(self._calls)
            self._cancelled = 0

    def _sooner(self, call: DelayedCall) -> None:
        heapify(self._calls)
        _ALARM.set(self, self._calls[0].time)

    def wake(self) -> None:
        """
        Have what is due called by the reactor; for any thread.
        """
        # A reactor is woken by a descriptor of its own. One that is over has given it back, and it
        # may be another file's by now; its waker has no `o` then.
        waker = getattr(self.reactor, "waker", None)
        if waker is None or hasattr(waker, "o"):
            # It may have been given back this very moment.
            with contextlib.suppress(AttributeError):
                self.reactor.callFromThread(self._run)

    def _run(self) -> None:
        now = time.monotonic()
        while self._calls and self._calls[0].time <= now:
            call = heappop(self._calls)
            if call.cancelled:
                self._cancelled -= 1
            elif call.delayed_time > 0:
                call.activate_delay()
                heappush(self._calls, call)
            else:
                call.called = 1
                try:
                    call.func(*call.args, **call.kw)
                except BaseException:
                    # As the reactor does.
                    _log.failure("while handling timed call {call}", call=call)
        if self._calls:
            _ALARM.set(self, self._calls[0].time)


_ALARM: Final = _Alarm()

# One for each reactor that is in use: a clock is kept by what uses it, and by what is due.
_clocks: Final[WeakValueDictionary[int, SteadyClock]] = WeakValueDictionary()


def steady(reactor: Any) -> Any:
    """
    Give what keeps time for a reactor: a `SteadyClock` for one of Twisted's, else itself.

    A clock of a test's (``twisted.internet.task.Clock``) goes as the test wants.
    """
    if not isinstance(reactor, ReactorBase):
        return reactor
    clock = _clocks.get(id(reactor))
    if clock is None:
        clock = _clocks[id(reactor)] = SteadyClock(reactor)
    return clock
