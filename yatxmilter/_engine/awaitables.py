"""
What a user's method may return that has to be waited for: Deferreds, coroutines, asyncio's Futures.

Whatever it is, it becomes a Deferred, or its result where that can be had at once. A callback that
answers at once makes no object here. A coroutine is stepped by hand until it really waits, because
most never do and a Deferred for each would cost more than the callback.

Where a loop of asyncio's runs - under Twisted's asyncio reactor, or in a test of asyncio's - a
coroutine is a task of that loop from its first step on, since ``asyncio.timeout`` and its like ask
for the task they are in. The first step is made at once even so, and Deferreds can be awaited there
as well.
"""

from __future__ import annotations

import asyncio
from asyncio import AbstractEventLoop, Future, Task
from asyncio.tasks import _enter_task, _leave_task
from collections.abc import Callable, Coroutine, Generator
from contextvars import copy_context
from types import CoroutineType
from typing import Any, Final, cast

from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.python.failure import Failure

from yatxmilter.errors import WrongReactor

__all__ = [
    "awaited",
    "begun",
    "is_awaited",
    "outcome_of",
    "run_coroutine",
    "running_loop",
    "wrong_reactor",
]

_NOTHING: Final = object()

#: Gives the loop that runs in this thread, or ``None``. Public functions raise where there is none.
running_loop: Final = asyncio._get_running_loop


def outcome_of(result: object) -> object:
    """
    Get at what a user's method has returned: the one place that knows what may be awaited.

    :return: A coroutine's result if it can be had at once; a Deferred of it; or anything else as
        it is.
    :raises BaseException: whatever the coroutine raises, or an object that does not let itself be
        looked at.
    """
    if type(result) is CoroutineType:
        loop = running_loop()
        result = run_coroutine(result) if loop is None else _run_task(result, loop)
    # To ask what it is costs more than most callbacks, where it is nothing.
    return None if result is None else _at_hand(result)


def begun(coroutine: Coroutine[Any, Any, object]) -> object:
    """
    Get at what a coroutine has to say, as far as it can be had at once.

    :return: As `outcome_of`; a Failure if it raises.
    """
    try:
        loop = running_loop()
        result = run_coroutine(coroutine) if loop is None else _run_task(coroutine, loop)
        return None if result is None else _at_hand(result)
    except BaseException:
        return Failure()


def _at_hand(result: object) -> object:
    if isinstance(result, Deferred):
        return result
    return _outcome_of_future(result) if asyncio.isfuture(result) else result


def is_awaited(result: object) -> bool:
    """
    Tell whether `outcome_of` would have to wait for it, or to run it.
    """
    return isinstance(result, (Deferred, CoroutineType)) or asyncio.isfuture(result)


async def awaited(result: object) -> object:
    """
    Wait for what a user's method has returned, in a coroutine of ours that `run_coroutine` runs.
    """
    result = outcome_of(result)
    return await result if isinstance(result, Deferred) else result


def wrong_reactor(what: str) -> WrongReactor:
    """
    Make the error of a milter that uses asyncio where nothing runs its loop.

    :param what: What the milter did.
    """
    return WrongReactor(
        f"{what}, but the reactor that runs is not asyncio's, so nothing would ever wake it: start"
        " with `yatxmilter serve --reactor asyncio`, run_milters(..., reactor='asyncio'), `twist"
        " --reactor=asyncio yatxmilter`, or twisted.internet.asyncioreactor.install() before"
        " anything imports the reactor"
    )


# ---- without asyncio


def run_coroutine(coroutine: Coroutine[Any, Any, object]) -> object:
    """
    Run a coroutine that waits for Deferreds until it ends or waits.

    :return: Its result, or, when it waits, a Deferred of it that can be cancelled.
    """
    # A context of its own: what the coroutine sets must not show in other connections.
    context = copy_context()
    try:
        awaited = context.run(coroutine.send, None)
    except StopIteration as done:
        return done.value
    return context.run(_resume, coroutine, awaited)


@inlineCallbacks
def _resume(coroutine: Coroutine[Any, Any, object], awaited: object) -> Generator[Any, Any, object]:
    while True:
        try:
            try:
                if not isinstance(awaited, Deferred):
                    # A Future, or the bare None of asyncio.sleep(0).
                    raise wrong_reactor("a coroutine awaits something of asyncio's")
                value = yield awaited
            except GeneratorExit:
                # Nobody waits for it any more; the coroutine ends by itself.
                raise
            except BaseException as error:
                # asyncio's CancelledError is no Exception.
                awaited = coroutine.throw(error)
            else:
                awaited = coroutine.send(value)
        except StopIteration as done:
            return done.value


# ---- with asyncio


def _outcome_of_future(future: Future[object]) -> object:
    if future.done():
        return future.result()
    if future.get_loop() is not running_loop():
        raise wrong_reactor("a callback returned a Future of asyncio's")
    return _deferred_of(future, Future.result)


def _deferred_of(
    future: Future[Any], result_of: Callable[[Future[Any]], object]
) -> Deferred[object]:
    def cancel(_: Deferred[Any]) -> None:
        future.cancel()

    def over(_: object) -> None:
        _look_at(future)
        # Who waits for it no more has cancelled it.
        if not deferred.called:
            deferred.callback(future)

    deferred: Deferred[Any] = Deferred(cancel)
    deferred.addCallback(result_of)
    future.add_done_callback(over)
    return deferred


def _look_at(future: Future[Any]) -> None:
    """
    Have asyncio not complain that nobody has looked at a Future's error.
    """
    if not future.cancelled():
        future.exception()


def _run_task(coroutine: Coroutine[Any, Any, object], loop: AbstractEventLoop) -> object:
    steps = _Steps(coroutine, loop)
    task: Task[None] = Task(cast("Coroutine[Any, Any, None]", steps), loop=loop)
    # The task itself would begin at the loop's next turn.
    outer = asyncio.current_task(loop)
    if outer is not None:
        _leave_task(loop, outer)
    _enter_task(loop, task)
    try:
        steps.begin()
    finally:
        _leave_task(loop, task)
        if outer is not None:
            _enter_task(loop, outer)
    return steps.result() if steps.over else _deferred_of(task, steps.result)


class _Steps:
    """
    The steps of a coroutine, as a Task asks for them: the coroutine may wait for Deferreds, too.

    What becomes of the coroutine is kept here. A Task would let SystemExit end the loop.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, object], loop: AbstractEventLoop) -> None:
        self._coroutine = coroutine
        self._loop = loop
        self._context = copy_context()
        # What the first step waits for, until the task takes it over.
        self._ahead: object = _NOTHING
        self._failure: Failure | None = None
        self._result: object = None
        self.over = False

    def __getattr__(self, name: str) -> Any:
        # What tells people and libraries about a coroutine: its name, its frame, its state.
        return getattr(self._coroutine, name)

    def begin(self) -> None:
        """
        Make the first step.
        """
        try:
            self._ahead = self._step(self._coroutine.send, None)
        except BaseException:
            # It is in the result.
            assert self.over

    def result(self, task: object = None) -> object:
        """
        Give what the coroutine returned, or raise what it raised.

        :param task: What has run it to its end.
        """
        result = self._result
        if type(result) is Failure:
            result.raiseException()
        return result

    def send(self, value: object) -> object:
        """
        Go on.
        """
        if self._ahead is not _NOTHING:
            return self._hand_over()
        if self.over:
            raise StopIteration
        failure, self._failure = self._failure, None
        if failure is not None:
            return self._step(failure.throwExceptionIntoGenerator, self._coroutine)
        return self._step(self._coroutine.send, value)

    def throw(self, error: BaseException) -> object:
        """
        Raise an error where the coroutine waits.
        """
        if self._ahead is not _NOTHING:
            # The task does not know yet of what it waits for, and so cannot cancel it.
            ahead = self._hand_over()
            if isinstance(ahead, Future):
                ahead.cancel()
                ahead.add_done_callback(_look_at)
        if self.over:
            raise StopIteration
        return self._step(self._coroutine.throw, error)

    def _hand_over(self) -> object:
        ahead, self._ahead = self._ahead, _NOTHING
        return ahead

    def _step(self, step: Callable[[Any], object], argument: object) -> object:
        try:
            awaited = self._context.run(step, argument)
        except StopIteration as done:
            self.over, self._result = True, done.value
            raise
        except BaseException as error:
            self.over, self._result = True, Failure()
            if isinstance(error, (SystemExit, KeyboardInterrupt)):
                raise StopIteration from None
            raise
        return self._future_of(awaited) if isinstance(awaited, Deferred) else awaited

    def _future_of(self, deferred: Deferred[Any]) -> object:
        """
        Make a Future that is done when a Deferred has fired, as if it were awaited.
        """
        future = self._loop.create_future()

        def fired(result: object) -> object:
            if future.cancelled():
                # Nobody waits for it any more.
                return None
            future.set_result(None)
            if isinstance(result, Failure):
                self._failure = result
                return None
            # The coroutine finds it there.
            return result

        def done(_: object) -> None:
            if future.cancelled():
                deferred.cancel()

        deferred.addBoth(fired)
        future.add_done_callback(done)
        return next(future.__await__())


Coroutine.register(_Steps)
