"""
A reactor whose loop moves to another thread when a callback takes long.

Most callbacks of most programs answer within microseconds, and handing each to a thread and back
costs ten times that. Here a callback is called where the reactor's loop is. A thread beside it
looks on, and when a callback has not come back after some milliseconds, the loop goes on in another
thread: the connection that the callback is about rests, all others are served. When the callback
comes back its thread takes the loop over again, at a place where nothing is in progress.

One thread at a time has the loop, and only that thread touches the reactor, the connections and
the milters' state. So nothing of that needs a lock, or knows that the thread is another one than
before.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

from twisted.internet.epollreactor import EPollReactor
from twisted.logger import Logger
from twisted.python import log

from yatxmilter.pymilter._threads import Threads
from yatxmilter.pymilter._waking import guard

__all__ = ["Leading", "MovingReactor", "Resting"]

_log = Logger()

#: Seconds after which the loop leaves a callback behind: twice this at most.
TICK: Final = 0.005
#: After so many looks at which nothing was going on nobody looks any more, until something is.
_QUIET: Final = 20


class Resting(Protocol):
    """
    The connection that a callback is about.
    """

    def left_behind(self) -> None:
        """
        Rest: the loop goes on without the callback.
        """

    def back(self) -> None:
        """
        Go on: the callback is over.
        """


class MovingReactor(EPollReactor):
    """
    A reactor whose events may be served by a loop within the loop.

    What was found ready by a loop that has been left behind is not served any more when that goes
    on: it has been found anew, and been served, since, or will be.
    """

    _turn = 0

    def doPoll(self, timeout: float | None) -> None:
        """
        Wait for events, and serve them.
        """
        events = self._poller.poll(-1 if timeout is None else timeout, len(self._selectables))
        self._turn = turn = self._turn + 1
        for descriptor, event in events:
            selectable = self._selectables.get(descriptor)
            if selectable is not None:
                log.callWithLogger(selectable, self._doReadOrWrite, selectable, descriptor, event)
            if self._turn != turn:
                return

    doIteration = doPoll


class Leading:
    """
    The loop of a `MovingReactor`, and the threads that it moves between.

    :ivar reactor: The reactor.
    :ivar threads: The threads.
    """

    def __init__(self, threads: Threads, tick: float = TICK) -> None:
        make: Any = MovingReactor
        self.reactor: Any = guard(make())
        self.threads = threads
        self._tick = tick
        self._over = threading.Event()
        # The callback that is being called; whoever takes the list's one element decides what
        # becomes of the loop.
        self._running: list[Resting] | None = None
        self._returning: deque[threading.Lock] = deque()
        self._hops: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._looking = True
        self._look = threading.Lock()
        self._look.acquire()

    # ---- for all threads

    def hop(self, function: Callable[..., object], *arguments: object) -> None:
        """
        Have something done by the thread that has the loop.
        """
        self._hops.append((function, arguments))
        if not self._over.is_set():
            self.reactor.wakeUp()

    def run(self) -> None:
        """
        Have other threads run the reactor until it is stopped; this one only heeds signals.
        """
        self.reactor.startRunning(installSignalHandlers=False)
        watcher = threading.Thread(target=self._watch, name="yatxmilter-watch", daemon=True)
        watcher.start()
        try:
            self.threads.give(self)
            self._over.wait()
        finally:
            self._over.set()
            self._rouse()
            watcher.join()

    # ---- the loop

    def work(self) -> None:
        """
        Have the loop, until another thread has it.
        """
        reactor, hops = self.reactor, self._hops
        while not self._over.is_set():
            if self._returning:
                self._returning.popleft().release()
                return
            try:
                if hops:
                    function, arguments = hops.popleft()
                    function(*arguments)
                    continue
                reactor.runUntilCurrent()
                reactor.doIteration(reactor.running and reactor.timeout())
            except BaseException:
                _log.failure("Something in the loop failed")
            if not reactor._started:
                self._over.set()
                # Callbacks that come back too late find that there is nothing left to do.
                while self._returning:
                    self._returning.popleft().release()

    def call(self, connection: Resting, callback: Callable[..., Any], *arguments: Any) -> Any:
        """
        Call a callback, in the thread that has the loop; without the loop if it takes long.
        """
        running = self._running = [connection]
        if not self._looking:
            self._rouse()
        try:
            return callback(*arguments)
        finally:
            try:
                running.pop()
            except IndexError:
                self._come_back(connection)
            else:
                self._running = None

    def _come_back(self, connection: Resting) -> None:
        ticket = threading.Lock()
        ticket.acquire()
        self._returning.append(ticket)
        if self._over.is_set():
            return
        self.reactor.wakeUp()
        ticket.acquire()
        connection.back()

    # ---- beside the loop

    def _rouse(self) -> None:
        self._looking = True
        if self._look.locked():
            self._look.release()

    def _watch(self) -> None:
        seen: list[Resting] | None = None
        quiet = 0
        while not self._over.wait(self._tick):
            running = self._running
            if running is None:
                seen = None
                quiet += 1
                if quiet > _QUIET:
                    quiet = 0
                    self._look.acquire(blocking=False)
                    self._looking = False
                    if self._running is None and not self._over.is_set():
                        self._look.acquire()
                    self._looking = True
                continue
            quiet = 0
            if running is not seen:
                seen = running
                continue
            seen = None
            try:
                connection = running.pop()
            except IndexError:
                continue
            self._leave_behind(connection)

    def _leave_behind(self, connection: Resting) -> None:
        # Whoever has taken the callback's mark has the loop: here, for this moment.
        self._running = None
        try:
            connection.left_behind()
        except Exception:
            _log.failure("A connection could not rest")
        try:
            self.threads.give(self)
        except RuntimeError:
            # There are no more threads: this one has the loop, until another comes back.
            self.work()
