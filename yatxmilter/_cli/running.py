"""
A reactor that runs for as long as one coroutine does.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

__all__ = ["Interrupted", "interruptible", "run_reactor"]

_Result = TypeVar("_Result")


class Interrupted(Exception):
    """
    The reactor was stopped, as by Ctrl-C, before the coroutine was done.
    """


@contextmanager
def interruptible() -> Iterator[None]:
    """
    Have Ctrl-C and SIGTERM raise KeyboardInterrupt, for as long as a file is read.

    A reactor takes note of them for its loop, which does not go on before the read is over; and of
    a pipe or a terminal that may be never.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # One that is ignored stays so.
    taken = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in taken:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)


def run_reactor(
    play: Callable[[Any], Coroutine[Any, Any, _Result]], reactor: Any = None
) -> _Result:
    """
    Run a reactor until a coroutine is done, and give its result or raise its error.

    :param play: Makes the coroutine; called with the reactor.
    :param reactor: By default the global one.
    :raises Interrupted: when the reactor is stopped before.
    """
    if reactor is None:
        from twisted.internet import reactor
    results: list[Any] = []
    stopping = False

    def finish(result: object) -> None:
        # A reactor that stops ends all connections: what comes of that is not a result.
        if not stopping:
            results.append(result)
            reactor.stop()

    def begin() -> None:
        Deferred.fromCoroutine(play(reactor)).addBoth(finish)

    def stop() -> None:
        nonlocal stopping
        stopping = True

    reactor.callWhenRunning(begin)
    reactor.addSystemEventTrigger("before", "shutdown", stop)
    reactor.run()
    if not results or (isinstance(results[0], Failure) and results[0].check(KeyboardInterrupt)):
        raise Interrupted
    if isinstance(results[0], Failure):
        results[0].raiseException()
    result: _Result = results[0]
    return result
