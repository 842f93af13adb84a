"""
Running a callback in a thread, for ``@threaded``.

The milter's context, which belongs to one thread, is lent to it meanwhile: the conversation waits,
and nobody else uses it. When the answer is no longer waited for, the loan is called in at once;
what the thread still does then is refused, and its result dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import copy_context
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorThreads

if TYPE_CHECKING:
    from yatxmilter._engine.context import Context
    from yatxmilter._engine.member import Member

__all__ = ["in_thread", "threads_of"]


def in_thread(
    milter: Any, callback: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Deferred[Any]:
    """
    Call a callback in a thread of the reactor's pool.

    :param milter: Whose callback it is.
    :return: A Deferred of its result.
    """
    # A context of its own, as a coroutine's.
    call = partial(copy_context().run, callback, *args, **kwargs)
    member: Member | None = getattr(milter, "_member", None)
    context = None if member is None else member.context
    reactor = threads_of(milter)
    if reactor is None:
        from twisted.internet import reactor
    return _Loan(reactor, context, call).deferred


def threads_of(milter: Any) -> Any:
    """
    Find what has threads for a milter: the reactor that its connection is served by; ``None`` where
    that is the clock of a test.
    """
    factory = getattr(getattr(milter, "protocol", None), "factory", None)
    threads = getattr(factory, "threads", None)
    if threads is not None:
        return threads
    clock = getattr(factory, "clock", None)
    reactor = getattr(clock, "reactor", clock)
    return reactor if IReactorThreads.providedBy(reactor) else None


class _Loan:
    """
    A context in a thread's hands.

    :ivar deferred: The callback's result.
    """

    def __init__(self, reactor: Any, context: Context | None, call: Callable[[], Any]) -> None:
        self._reactor = reactor
        self._context = context
        self._call = call
        self._lock = Lock()
        self._over = False
        self._result: Any = None
        self.deferred: Deferred[Any] = Deferred(self._call_in)
        # It may be anything, which a Deferred does not take for its first result.
        self.deferred.addCallback(lambda _: self._result)
        reactor.getThreadPool().callInThreadWithCallback(self._done, self._work)

    def _work(self) -> Any:
        with self._lock:
            if self._over:
                return None
            if self._context is not None:
                self._context.lend(self._hop)
        try:
            return self._call()
        finally:
            if self._context is not None:
                self._context.give_back()

    def _hop(self, work: Callable[[], None]) -> None:
        """
        Do something in the reactor's thread, if it is still of use by then.
        """
        self._reactor.callFromThread(lambda: None if self._over else work())

    def _done(self, success: bool, result: Any) -> None:
        # In the thread.
        self._reactor.callFromThread(self._come, result)

    def _come(self, result: Any) -> None:
        if not self._over:
            self._call_in()
            self._result = result
            self.deferred.callback(None)

    def _call_in(self, _: object = None) -> None:
        with self._lock:
            self._over = True
            if self._context is not None:
                self._context.claim()
