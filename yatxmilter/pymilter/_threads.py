"""
Threads for callbacks that wait: a thread for each connection that has something to do.

A `Lane` is what one connection has to do, first in, first out, never two things at once. While a
lane is empty it has no thread. Threads that have nothing to do are kept for the next lane, a few of
them; they are daemons, so a callback that never returns does not keep the process from ending.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Final, Protocol

__all__ = ["Job", "Lane", "Threads", "Work"]

#: Threads that are kept while they have nothing to do.
MOST_IDLE: Final = 8


class Job(Protocol):
    """
    Something to do.
    """

    def run(self) -> None:
        """
        Do it, in the lane's thread; it must not raise.
        """

    def refuse(self, error: BaseException) -> None:
        """
        Take note that there is no thread to do it in.
        """


class Work(Protocol):
    """
    What a thread is for.
    """

    def work(self) -> None:
        """
        Do all there is to do; it must not raise.
        """


class Threads:
    """
    Threads that work off lanes.

    :param most_idle: How many are kept while they have nothing to do.
    :ivar count: How many there are.
    """

    def __init__(self, most_idle: int = MOST_IDLE) -> None:
        self._most_idle = most_idle
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._stopped = False
        self.count = 0

    def give(self, lane: Work) -> None:
        """
        Have a lane worked off.

        :raises RuntimeError: when the system gives no more threads.
        """
        with self._lock:
            # The last one to have rested: its stack is still in the cache.
            worker = self._idle.pop() if self._idle else None
            if worker is None:
                self.count += 1
        if worker is not None:
            worker.lane = lane
            worker.wake.release()
            return
        try:
            _Worker(self, lane).start()
        except BaseException:
            self._gone()
            raise

    def rest(self, worker: _Worker) -> bool:
        """
        Keep a thread that has nothing to do, if it is wanted.
        """
        with self._lock:
            if self._stopped or len(self._idle) >= self._most_idle:
                self.count -= 1
                return False
            worker.lane = None
            self._idle.append(worker)
            return True

    def _gone(self) -> None:
        with self._lock:
            self.count -= 1

    def stop(self) -> None:
        """
        Let the threads end that have nothing to do, and the others when they are done.
        """
        with self._lock:
            self._stopped = True
            idle, self._idle = self._idle, []
            self.count -= len(idle)
        for worker in idle:
            worker.wake.release()

    def start(self) -> None:
        """
        Keep threads (again).
        """
        self._stopped = False


class _Worker(threading.Thread):
    def __init__(self, threads: Threads, lane: Work) -> None:
        super().__init__(name="yatxmilter", daemon=True)
        self._threads = threads
        self.lane: Work | None = lane
        self.wake = threading.Lock()
        self.wake.acquire()

    def run(self) -> None:
        """
        Work lanes off until there is no more use for this thread.
        """
        while self.lane is not None:
            self.lane.work()
            if not self._threads.rest(self):
                return
            self.wake.acquire()


class Lane:
    """
    What one connection has to do, in order.
    """

    __slots__ = ("_jobs", "_lock", "_threads", "_working")

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._jobs: deque[Job] = deque()
        self._lock = threading.Lock()
        self._working = False

    @property
    def busy(self) -> bool:
        """
        Whether there is something that is not done yet.
        """
        return self._working

    def put(self, job: Job) -> None:
        """
        Do something when all that came before is done.
        """
        with self._lock:
            self._jobs.append(job)
            if self._working:
                return
            self._working = True
        try:
            self._threads.give(self)
        except RuntimeError as error:
            with self._lock:
                jobs = list(self._jobs)
                self._jobs.clear()
                self._working = False
            for one in jobs:
                one.refuse(error)

    def work(self) -> None:
        """
        Do all there is to do.
        """
        while True:
            with self._lock:
                if not self._jobs:
                    self._working = False
                    return
                job = self._jobs.popleft()
            job.run()
