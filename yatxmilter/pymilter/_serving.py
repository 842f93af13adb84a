"""
Serving a program's callbacks on a reactor of its own, in whatever thread it asks for that.

The reactor is made when `Serving.run` is called: programs fork, drop privileges and become daemons
before that. It is gone when `Serving.run` returns, and another can be made after it.
"""

from __future__ import annotations

import contextlib
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from twisted.internet.defer import gatherResults
from twisted.logger import Logger

from yatxmilter.protocol import MilterProtocolFactory
from yatxmilter.pymilter._adapter import AdapterFactory
from yatxmilter.pymilter._sockets import Listening
from yatxmilter.pymilter._threads import Threads
from yatxmilter.pymilter._waking import close_reactor, guard
from yatxmilter.service._listening import adopt, close_port, open_port
from yatxmilter.service._metrics import MilterMetrics
from yatxmilter.service._notify import Notifier

__all__ = ["SIGNALS", "Serving", "heeding", "make_leading", "make_reactor"]

_log = Logger()

#: What has a program come to its end, as with libmilter.
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

#: The reactors there may be, the best one first.
_REACTORS: Final = (
    ("twisted.internet.epollreactor", "EPollReactor"),
    ("twisted.internet.pollreactor", "PollReactor"),
    ("twisted.internet.selectreactor", "SelectReactor"),
)
_MODULE: Final = "twisted.internet.reactor"


def make_reactor(kinds: tuple[tuple[str, str], ...] = _REACTORS) -> Any:
    """
    Make a reactor that is nobody else's.
    """
    for module, name in kinds[:-1]:
        with contextlib.suppress(ImportError, AttributeError):
            return _reactor(module, name)
    return _reactor(*kinds[-1])


def make_leading() -> Any:
    """
    Make a loop that leaves callbacks behind which take long; ``None`` where there is no ``epoll``.
    """
    if not hasattr(select, "epoll"):
        return None
    from yatxmilter.pymilter._leading import Leading

    return Leading(Threads())


def _reactor(module: str, name: str) -> Any:
    __import__(module)
    return guard(getattr(sys.modules[module], name)())


@contextlib.contextmanager
def _installed(reactor: Any) -> Iterator[None]:
    """
    Have a reactor found as Twisted's own, where no other one is, for as long as it runs.
    """
    import twisted.internet

    if _MODULE in sys.modules:
        yield
        return
    twisted.internet.reactor = sys.modules[_MODULE] = reactor
    try:
        yield
    finally:
        del twisted.internet.reactor, sys.modules[_MODULE]


@contextlib.contextmanager
def heeding(act: Callable[[], None]) -> Iterator[None]:
    """
    Call ``act`` for each signal that ends a program; where signals come to the main thread alone,
    which is always, in that thread only.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: act()) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            # One that was not set from Python cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class Serving:
    """
    One run of a program's main loop.

    :param listening: The socket.
    :param milter: Builds the program's milters.
    :param options: Those of `MilterProtocolFactory`.
    :param metrics: Where to serve metrics and health; ``None`` for no such page.
    :param drain_timeout: Seconds that messages in progress may take to come to their end.
    """

    def __init__(
        self,
        listening: Listening,
        milter: AdapterFactory,
        options: Mapping[str, Any],
        *,
        metrics: str | None = None,
        drain_timeout: float | None = 30,
    ) -> None:
        self._leading = milter.leading
        self.reactor: Any = make_reactor() if self._leading is None else self._leading.reactor
        self.factory = MilterProtocolFactory(milter, reactor=self.reactor, **options)
        self.metrics = MilterMetrics()
        self._milter = milter
        self._listening = listening
        self._metrics_spec = metrics
        self._drain_timeout = drain_timeout
        self._ports: list[Any] = []
        self._stopping = self._ready = False
        if metrics is not None:
            self.watch()

    def watch(self) -> None:
        """
        Count what happens.
        """
        self.metrics.watch(self.factory)

    def run(self, started: Callable[[Any, Serving], None] | None = None) -> None:
        """
        Serve until `stop`, and drain.

        :param started: Called with the reactor, and this, once it runs.
        """
        notifier = Notifier()
        reactor = self.reactor
        try:
            with _installed(reactor), heeding(self.stop):
                self._open()
                reactor.callWhenRunning(self._is_ready, notifier)
                if started is not None:
                    reactor.callWhenRunning(started, reactor, self)
                if self._leading is None:
                    reactor.run(installSignalHandlers=False)
                else:
                    self._leading.run()
                notifier.stopping()
        finally:
            self._milter.stop()
            close_reactor(reactor)

    def _open(self) -> None:
        if self._metrics_spec is not None:
            # It needs what not everybody has.
            from yatxmilter.service._metrics_page import metrics_site

            site = metrics_site(self.metrics.snapshot, lambda: self._ready)
            self._ports.append(open_port(self.reactor, self._metrics_spec, site))
        self._ports.append(adopt(self.reactor, self._listening.socket.fileno(), self.factory))

    def _is_ready(self, notifier: Notifier) -> None:
        if not self._stopping:
            self._ready = True
            _log.info("Ready, listening on {where}", where=self._listening.spec)
            notifier.ready(f"listening on {self._listening.spec}")

    def stop(self) -> None:
        """
        Drain and end, the second time at once; from any thread, and from a signal's handler.
        """
        if self._leading is None:
            self.reactor.callFromThread(self._stop)
        else:
            self._leading.hop(self._stop)

    def _stop(self) -> None:
        if self._stopping:
            self.factory.drain(0.001)
            return
        self._stopping, self._ready = True, False
        _log.info("Stopping: messages in progress come to their end")
        # Until the last moment somebody may want to see how the end goes.
        closed = close_port(self._ports.pop())
        drained = self.factory.drain(self._drain_timeout)
        gatherResults([closed, drained]).addBoth(self._drained)

    def _drained(self, result: object) -> None:
        closed = gatherResults([close_port(port) for port in self._ports])
        closed.addBoth(lambda _: self.reactor.stop())
