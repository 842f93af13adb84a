"""
Several processes that serve one program, forked where it calls ``main``.

The process that forks them has no reactor: it waits for its children, passes signals on, and starts
a worker anew that has died. A process of its own shows the metrics of all workers.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import ClientFactory, Factory, Protocol
from twisted.logger import Logger

from yatxmilter.pymilter._serving import SIGNALS, heeding, make_reactor
from yatxmilter.service._listening import open_port
from yatxmilter.service._metrics_families import merge

__all__ = ["Family", "serve_in_processes"]

_log = Logger()

#: The exit status of a process that cannot show metrics where it should.
_CANNOT_LISTEN: Final = 3
#: A worker that has lived for fewer seconds is not started anew at once.
_TOO_SHORT: Final = 1.0


def serve_in_processes(
    count: int,
    serve: Callable[[Callable[[Any, Any], None] | None], None],
    family: Family,
    *,
    metrics: str | None,
) -> None:
    """
    Serve in several processes until `Family.stop`, or a signal that says so.

    :param count: How many.
    :param serve: Serves, in a worker; what it is given is called with the reactor and the `Serving`
        once that runs.
    :param metrics: Where to show the metrics of all of them.
    :raises OSError: when that cannot be.
    """
    if metrics is None:
        family.run([lambda: serve(None)] * count)
        return
    # The workers' counts are told on sockets that nobody else can reach.
    with tempfile.TemporaryDirectory(prefix="yatxmilter-") as folder:
        page = _Page(metrics, folder)
        family.run([lambda: serve(page.tell)] * count, page.run)


class Family:
    """
    Child processes.

    :param fork: Forks; 0 in the child.
    :param leave: Ends a child at once, with an exit status.
    :param watch: Called in a child, with a pipe to the process that has forked it.
    """

    def __init__(
        self,
        fork: Callable[[], int] = os.fork,
        leave: Callable[[int], object] = os._exit,
        pause: Callable[[float], object] = time.sleep,
        watch: Callable[[int], object] | None = None,
    ) -> None:
        self._fork = fork
        self._leave = leave
        self._pause = pause
        self._watch = watch or _watch
        self._stopping = False
        self._failed: str | None = None
        # By the descriptor that becomes readable when the process is gone.
        self._children: dict[int, tuple[int, Callable[[], None], bool, float]] = {}

    def run(
        self, workers: list[Callable[[], None]], page: Callable[[], None] | None = None
    ) -> None:
        """
        Run functions in processes of their own until they are stopped.

        :param page: One more; when that says that it cannot listen, all is over.
        :raises OSError: then.
        """
        with heeding(self.stop):
            for work in workers:
                self._start(work, False)
            if page is not None:
                self._start(page, True)
            while self._children:
                poll = select.poll()
                for descriptor in self._children:
                    poll.register(descriptor, select.POLLIN)
                for descriptor, _ in poll.poll():
                    self._gone(descriptor)
        if self._failed is not None:
            raise OSError(self._failed)

    def _start(self, work: Callable[[], None], is_page: bool) -> None:
        ours, theirs = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = self._fork()
        if pid == 0:
            os.close(ours)
            for descriptor in self._children:
                os.close(descriptor)
            self._children.clear()
            self._watch(theirs)
            self._leave(_status(work))
        os.close(theirs)
        self._children[ours] = pid, work, is_page, time.monotonic()
        if self._stopping:
            # The signal came while it was being made.
            self._tell(pid)

    def _gone(self, descriptor: int) -> None:
        pid, work, is_page, began = self._children.pop(descriptor)
        os.close(descriptor)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if self._stopping:
            return
        if is_page and status == _CANNOT_LISTEN:
            self._failed = "metrics cannot be shown where --metrics says"
        if status == 0 or self._failed:
            # Its program has said that it is over: for all of them.
            self.stop()
            return
        _log.warn("Worker {pid} ended with {reason}; starting another", pid=pid, reason=status)
        if time.monotonic() - began < _TOO_SHORT:
            self._pause(_TOO_SHORT)
        if not self._stopping:
            self._start(work, is_page)

    def stop(self) -> None:
        """
        Have all of them come to their end.
        """
        self._stopping = True
        for pid, *_ in list(self._children.values()):
            self._tell(pid)

    def _tell(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def _watch(descriptor: int) -> None:
    threading.Thread(target=_end_without, args=(descriptor,), daemon=True).start()


def _end_without(descriptor: int) -> None:
    """
    Have this process end when the one at the other end of a pipe is gone, however that came: nobody
    else would ever tell it to, and its socket would stay taken.
    """
    poll = select.poll()
    poll.register(descriptor, 0)
    poll.poll()
    os.kill(os.getpid(), signal.SIGTERM)


def _status(work: Callable[[], None]) -> int:
    """
    Work, in a child, and give its exit status.
    """
    try:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        work()
    except CannotListenError as error:
        _log.error("{error}", error=str(error))
        return _CANNOT_LISTEN
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
    return 0


class _Page:
    """
    The metrics of all workers, each of which tells its own on a UNIX socket.
    """

    def __init__(self, spec: str, folder: str) -> None:
        self._spec = spec
        self._folder = folder
        #: The reactor of `run`.
        self.reactor: Any = None

    def tell(self, reactor: Any, serving: Any) -> None:
        """
        Tell what a worker has counted, in the worker.
        """
        factory: Any = Factory.forProtocol(_Teller)
        factory.noisy = False
        factory.snapshot = serving.metrics.snapshot
        reactor.listenUNIX(os.path.join(self._folder, str(os.getpid())), factory, mode=0o600)

    def run(self) -> None:
        """
        Show what all of them tell, in a process for that.
        """
        # It needs what not everybody has.
        from yatxmilter.service._metrics_page import metrics_site

        self.reactor = reactor = make_reactor()
        site = metrics_site(lambda: self._ask(reactor))
        open_port(reactor, self._spec, site)
        with heeding(lambda: reactor.callFromThread(reactor.stop)):
            reactor.run(installSignalHandlers=False)

    def _ask(self, reactor: Any) -> Deferred[Any]:
        names = sorted(os.listdir(self._folder))
        paths = [os.path.join(self._folder, name) for name in names]
        return gatherResults([_Listener(reactor, path).told for path in paths]).addCallback(
            lambda all_: merge([json.loads(one) for one in all_ if one])
        )


class _Teller(Protocol):
    factory: Any

    def connectionMade(self) -> None:
        """
        Tell all, and be gone.
        """
        transport: Any = self.transport
        transport.write(json.dumps(self.factory.snapshot()).encode())
        transport.loseConnection()


class _Listener(ClientFactory):
    """
    Hears what one worker tells; nothing where the worker is gone.
    """

    noisy = False

    def __init__(self, reactor: Any, path: str) -> None:
        self.told: Deferred[bytes] = Deferred()
        reactor.connectUNIX(path, self, timeout=5)

    def buildProtocol(self, addr: Any) -> Any:
        """
        Listen.
        """
        return _Ear(self.told)

    def clientConnectionFailed(self, connector: Any, reason: Any) -> None:
        """
        Take note that it is gone.
        """
        self.told.callback(b"")


class _Ear(Protocol):
    def __init__(self, told: Deferred[bytes]) -> None:
        self._told = told
        self._heard = b""

    def dataReceived(self, data: bytes) -> None:
        """
        Hear a piece.
        """
        self._heard += data

    def connectionLost(self, reason: Any = None) -> None:
        """
        Hear that this was all.
        """
        self._told.callback(self._heard)
