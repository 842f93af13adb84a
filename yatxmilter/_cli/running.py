"""
A reactor that runs for as long as one coroutine does.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

__all__ = ["Interrupted", "run_reactor"]

_Result = TypeVar("_Result")


class Interrupted(Exception):
    """
    The reactor was stopped, as by Ctrl-C, before the coroutine was done.
    """


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
    if not results:
        raise Interrupted
    if isinstance(results[0], Failure):
        results[0].raiseException()
    result: _Result = results[0]
    return result
