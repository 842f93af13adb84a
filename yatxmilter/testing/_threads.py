"""
The threads of an MTA in memory, for callbacks that are ``@threaded``: real ones, without a reactor.

What a thread has to say waits in a queue until the test looks at an answer, so that all but the
callback itself happens in the test's thread.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Final

from twisted.python.failure import Failure

from yatxmilter._engine.awaitables import running_loop

__all__ = ["Threads"]

#: Seconds that a test waits for a thread, before it says that there is no answer.
_PATIENCE: Final = 10.0


class Threads:
    """
    Stands where a reactor does that has threads.

    :param flush: Called, where somebody awaits an answer, when a thread has said something.
    """

    def __init__(self, flush: Callable[[], None]) -> None:
        self._flush = flush
        self._said: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._tell: Callable[[Callable[[], None]], object] | None = None
        self._busy = 0

    def getThreadPool(self) -> Threads:
        """
        Give what calls things in threads.
        """
        return self

    def callInThreadWithCallback(
        self, done: Callable[[bool, Any], None], work: Callable[[], Any]
    ) -> None:
        """
        Do a piece of work in a thread.
        """

        def run() -> None:
            try:
                result = True, work()
            except BaseException:
                result = False, Failure()
            done(*result)
            self._said.put(self._ended)

        self._busy += 1
        Thread(target=run, name="yatxmilter.testing", daemon=True).start()

    def callFromThread(self, work: Callable[..., object], *arguments: Any) -> None:
        """
        Do something in the test's thread, when it looks.
        """
        self._said.put(lambda: work(*arguments))
        if self._tell is not None:
            self._tell(self._flush)

    def _ended(self) -> None:
        self._busy -= 1

    def awaited(self) -> None:
        """
        Take note that an answer is awaited, by asyncio's means or by Twisted's.
        """
        loop = running_loop()
        if loop is not None and asyncio.current_task(loop) is not None:
            self._tell = loop.call_soon_threadsafe
        else:
            reactor = sys.modules.get("twisted.internet.reactor")
            self._tell = getattr(reactor, "callFromThread", None)

    def take(self, *, wait: bool = False) -> bool:
        """
        Do what the threads have said; tell whether there was something.

        :param wait: Wait for it, if there are threads at work.
        """
        try:
            if wait and self._busy:
                work = self._said.get(timeout=_PATIENCE)
            else:
                work = self._said.get_nowait()
        except Empty:
            return False
        work()
        return True
