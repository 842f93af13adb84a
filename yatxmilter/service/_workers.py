"""
Several processes that share listening sockets, and one that watches over them.

The supervisor opens the sockets and takes no connection itself. Each worker is a fresh Python
process (nothing is forked that a reactor or a thread has touched) that gets the descriptors, and
two pipes: one to be told things (drain, reload, count), one to tell (ready, reloaded,
counts), a JSON object a line. A worker whose pipe closes has lost its supervisor, and drains. Since
the supervisor keeps the descriptors, connections that wait to be taken survive a worker that dies.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from twisted.application.service import Service
from twisted.internet.defer import Deferred, TimeoutError, gatherResults, succeed
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger

from yatxmilter._options import count_option, seconds_option
from yatxmilter.protocol._steady_clock import steady
from yatxmilter.service._listening import close_port, open_port
from yatxmilter.service._reactors import module_of
from yatxmilter.service._worker import SOCKETS, TELLING, TOLD, WORKER
from yatxmilter.service._worker_shares import Share, shared_numbers

__all__ = ["WorkerService"]

_log = Logger()

# Not what happens to be in the working directory, but what the supervisor would import.
_PROGRAM: Final = (
    "import sys; sys.path[:] = filter(None, sys.path);"
    " from yatxmilter.service._worker import work; work(sys.stdin.read())"
)
# A worker that lives so many seconds is restarted at once when it dies.
_STEADY: Final = 10.0
_LONGEST_PAUSE: Final = 60.0
# Bytes: of what a worker writes for people, and of what it tells us.
_LONGEST_LINE: Final = 2**20
_LONGEST_MESSAGE: Final = 2**24
# Seconds beyond the drain's time-out after which a worker is killed.
_GRACE: Final = 10.0
# Seconds that a worker has which is told to hurry.
_HURRY: Final = 3.0
# Seconds within which a worker must answer a question.
_PATIENCE: Final = 5.0
# Seconds for which a worker that has ended may have its pipes open: what it started may have them.
_LAST_WORDS: Final = 1.0


class _Lines:
    """
    Cuts what a worker writes into lines.

    What is left of one that is too long begins with a tab, as the further lines of an event do:
    strangers, whose text it may be, cannot choose what a line begins with.
    """

    def __init__(self, said: Callable[[bytes], None], longest: int = _LONGEST_LINE) -> None:
        self._said = said
        self._longest = longest
        self._rest = b""

    def add(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > self._longest:
            lines, self._rest = [*lines, self._rest], b"\t"
        for line in lines:
            self._said(line)

    def end(self) -> None:
        """
        Take what is left for a line: nothing more comes.
        """
        if self._rest:
            self.add(b"\n")


class _Worker(ProcessProtocol):
    """
    One worker's place: its process, and the one after that.
    """

    transport: Any
    pid: int

    def __init__(self, service: WorkerService, number: int) -> None:
        self.service = service
        self.number = number
        self.failures = 0
        self.ready = False
        self.running = False
        self.timer: Any = None
        self.gone: Deferred[None] | None = None
        # Whether it can be told something; and what closes the pipes behind it.
        self._hears = False
        self._closing: Any = None
        self._asked: list[Deferred[Any]] = []

    def start(self) -> None:
        self.timer = None
        try:
            self.service.spawn(self)
        except OSError as error:
            _log.error(
                "Worker {worker} cannot be started: {error}", worker=self.number, error=error
            )
            self.failures += 1
            self.timer = self.service.clock.callLater(self._pause(), self.start)

    def connectionMade(self) -> None:
        self.running = self._hears = True
        self.started = self.service.clock.seconds()
        # What is printed is written in pieces that end anywhere, and must not meet the log's lines.
        self._lines = {
            TELLING: _Lines(self._told_line, _LONGEST_MESSAGE),
            1: _Lines(self._said_line),
            2: _Lines(self._said_line),
        }
        for number, arguments in self.service.untried.items():
            self.reload(number, arguments)

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        self._lines[childFD].add(data)

    def _said_line(self, line: bytes) -> None:
        try:
            self.service.said(self.number, _text(line))
        except Exception:
            # It would close the pipe: the disk may be full for a while, the worker has more to say.
            _log.failure("What worker {worker} says cannot be passed on", worker=self.number)

    def _told_line(self, line: bytes) -> None:
        message = json.loads(line)
        if "ready" in message:
            self.ready = True
            self.service.worker_ready()
        elif "reloaded" in message:
            self.service.reloaded(message["reloaded"], message["done"])
        elif "failed" in message:
            self.service.worker_failed(self.number, message["failed"])
        else:
            self._asked.pop(0).callback(message["answer"])

    def tell(self, **message: Any) -> None:
        if self._hears:
            self.transport.writeToChild(TOLD, json.dumps(message).encode() + b"\n")

    def reload(self, number: int, arguments: Sequence[Any] | None) -> None:
        self.tell(do="reload", number=number, arguments=list(arguments or ()))

    def ask(self, what: str) -> Deferred[Any]:
        if not self.ready:
            return succeed(None)
        answer: Deferred[Any] = Deferred()
        self._asked.append(answer)
        self.tell(do="ask", what=what)
        answer.addTimeout(_PATIENCE, self.service.clock)
        # Its answer may yet come, and is then for nobody.
        return answer.addErrback(lambda failure: failure.trap(TimeoutError) and None)

    def end(self, timeout: float | None) -> Deferred[None]:
        self.gone = Deferred()
        gone = self.gone
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if not self.running:
            self.gone.callback(None)
            return gone
        self.tell(do="drain", timeout=timeout)
        if timeout is not None:
            self.timer = self.service.clock.callLater(timeout + _GRACE, self.kill)
        return gone

    def hurry(self) -> None:
        self.tell(do="drain", timeout=0.001)
        if self.running and self.gone is not None:
            if self.timer is not None:
                self.timer.cancel()
            self.timer = self.service.reactor.callLater(_HURRY, self.kill)

    def kill(self) -> None:
        self.timer = None
        _log.error(
            "Worker {worker} (process {pid}) does not come to its end and is killed; the messages"
            " that it had are left to the MTA",
            worker=self.number,
            pid=self.pid,
        )
        with suppress(ProcessExitedAlready):
            self.transport.signalProcess("KILL")

    def _pause(self) -> float:
        return min(2.0 ** (self.failures - 2), _LONGEST_PAUSE) if self.failures > 1 else 0

    def childConnectionLost(self, childFD: int) -> None:
        if childFD == TOLD:
            self._hears = False

    def processExited(self, reason: Any) -> None:
        self._hears = False
        # It has ended for Twisted when its pipes are closed, which programs that it has started
        # may keep open for as long as they live.
        self._closing = self.service.clock.callLater(_LAST_WORDS, self._close_pipes)

    def _close_pipes(self) -> None:
        for descriptor in (0, 1, 2, TOLD, TELLING):
            self.transport.closeChildFD(descriptor)

    def processEnded(self, reason: Any) -> None:
        if self._closing.active():
            self._closing.cancel()
        for descriptor in (1, 2):
            self._lines[descriptor].end()
        self.running = self.ready = False
        self.service.worker_gone(self)
        asked, self._asked = self._asked, []
        for answer in asked:
            answer.callback(None)
        if self.gone is not None:
            if self.timer is not None:
                self.timer.cancel()
            self.gone.callback(None)
            return
        lived = self.service.clock.seconds() - self.started
        self.failures = 0 if lived >= _STEADY else self.failures + 1
        pause = self._pause()
        _log.error(
            "Worker {worker} (process {pid}) has ended ({reason}); another is started in"
            " {pause:g} seconds",
            worker=self.number,
            pid=self.pid,
            reason=_reason(reason.value),
            pause=pause,
        )
        self.timer = self.service.clock.callLater(pause, self.start)


def _reason(value: Any) -> str:
    if value.signal is not None:
        return f"killed by {signal.Signals(value.signal).name}"
    return f"status {value.exitCode}"


def _text(line: bytes) -> str:
    return line.decode("utf-8", "backslashreplace")


class WorkerService(Service):
    """
    Serve milters in several processes that share the listening sockets.

    :param specs: Where to listen, as `server_endpoint` reads it.
    :param builder: ``module:function``, called in each worker; it returns a
        `MilterProtocolFactory`, or another factory with ``drain(timeout)``. What it may have
        besides: ``start()``, called before it listens, which may return a Deferred; ``reload()``,
        called by `reload`, which gives false, or a Deferred of it, when nothing has changed;
        ``numbers()``, a dict of numbers that `numbers` adds up; and whatever else `ask` is to call.
    :param arguments: What the function is called with; JSON carries it.
    :param count: How many workers.
    :param drain_timeout: Seconds that messages in progress may take when the service stops.
    :param mode: Permissions of UNIX sockets, where their addresses say nothing of them.
    :param owner: Their owner, likewise, as a number; ``None`` to leave it.
    :param group: Their group, likewise.
    :param said: Called with a worker's number and each line it writes on its standard output or
        error; by default it is logged.
    :param ready: Called each time that all workers take connections.
    :param failed: Called with a worker's number and the reason when what it serves cannot start. It
        is started anew later, all the same.
    :param reactor: By default the global one. The workers run one of its kind.
    :raises TypeError: for an option of the wrong type.
    :raises ValueError: for an option out of range.
    """

    def __init__(
        self,
        specs: Iterable[str],
        builder: str,
        arguments: Sequence[Any] = (),
        *,
        count: int = 2,
        drain_timeout: float | None = 30,
        mode: int | None = None,
        owner: int | None = None,
        group: int | None = None,
        said: Callable[[int, str], None] | None = None,
        ready: Callable[[], None] | None = None,
        failed: Callable[[int, str], None] | None = None,
        reactor: Any = None,
    ) -> None:
        if reactor is None:
            from twisted.internet import reactor
        self.reactor: Any = reactor
        self.clock = steady(reactor)
        self.specs = [specs] if isinstance(specs, str) else list(specs)
        if builder.count(":") != 1:
            raise ValueError(f"builder is {builder!r}, expected 'module:function'")
        self.drain_timeout = seconds_option("drain_timeout", drain_timeout)
        self._start = {
            "builder": builder,
            "arguments": list(arguments),
            "specs": self.specs,
            "drain_timeout": self.drain_timeout,
            # The workers' milters may need what this one's would.
            "reactor": module_of(reactor),
        }
        # How often they were to reload; and with what, where none of them has said how it went.
        self._reloads = 0
        self.untried: dict[int, list[Any]] = {}
        self._permissions = {"mode": mode, "owner": owner, "group": group}
        self.worker_failed = _nothing if failed is None else failed
        self.said = _log_line if said is None else said
        self._ready = ready
        self._ports: list[Any] = []
        # How many connections each worker has, in memory that they share.
        self._numbers: int | None = None
        self._workers = [_Worker(self, i + 1) for i in range(count_option("count", count) or 1)]

    @property
    def pids(self) -> list[int]:
        """
        The processes of the workers that there are.
        """
        return [worker.transport.pid for worker in self._workers if worker.running]

    @property
    def takes_connections(self) -> bool:
        """
        Whether there is a worker that does.
        """
        return any(worker.ready for worker in self._workers)

    def privilegedStartService(self) -> None:
        """
        Open the sockets.
        """
        if not self._ports:
            self._ports = [open_port(self.reactor, s, **self._permissions) for s in self.specs]

    def startService(self) -> None:
        """
        Open the sockets, if they are not yet, and start the workers.
        """
        self.privilegedStartService()
        Service.startService(self)
        self._numbers = shared_numbers(len(self._workers))
        for worker in self._workers:
            worker.gone = None
            worker.start()

    def spawn(self, worker: _Worker) -> None:
        """
        Start a process in a worker's place.
        """
        descriptors: dict[int, Any] = {0: "w", 1: "r", 2: "r", TOLD: "w", TELLING: "r"}
        for number, port in enumerate(self._ports):
            descriptors[SOCKETS + number] = port.fileno()
        # Made before the first one, and closed behind the last.
        assert self._numbers is not None
        descriptors[SOCKETS + len(self._ports)] = self._numbers
        start = {**self._start, "share": worker.number - 1}
        program = [sys.executable, "-c", _PROGRAM]
        path = os.pathsep.join(one or os.getcwd() for one in sys.path)
        worker.transport = self.reactor.spawnProcess(
            worker,
            sys.executable,
            program,
            env={**os.environ, "PYTHONPATH": path, WORKER: str(worker.number)},
            childFDs=descriptors,
        )
        worker.pid = worker.transport.pid
        # Not on its command line, which all users can read, and which the system keeps short.
        worker.transport.writeToChild(0, json.dumps(start).encode())
        worker.transport.closeChildFD(0)

    def worker_ready(self) -> None:
        """
        Take note that a worker takes connections.
        """
        if self._ready is not None and all(worker.ready for worker in self._workers):
            self._ready()

    def worker_gone(self, worker: _Worker) -> None:
        """
        Take note that a worker takes no connections any more.
        """
        if self._numbers is not None:
            Share(self._numbers, worker.number - 1).end()

    def reload(self, arguments: Sequence[Any] | None = None) -> None:
        """
        Have all workers reload.

        :param arguments: What their ``reload()`` is called with and, once one of them has reloaded,
            the builder in workers that are started; by default nothing, and what it was called with
            before.
        """
        self._reloads = number = self._reloads + 1
        for worker in self._workers:
            worker.reload(number, arguments)
        if arguments is not None:
            self.untried[number] = list(arguments)
        if not self.takes_connections:
            # It may be what they need to start.
            self.reloaded(number, True)

    def reloaded(self, number: int, done: bool) -> None:
        """
        Take note that a worker has reloaded, or could not.

        :param number: Which reload it was.
        """
        arguments = self.untried.pop(number, None)
        if done and arguments is not None:
            self._start["arguments"] = arguments

    def ask(self, what: str) -> Deferred[list[Any]]:
        """
        Call a method of each worker's factory.

        :param what: Its name; what it returns, JSON carries.
        :return: A Deferred of the answers; a worker that is not ready, fails to answer, or does not
            do so within 5 seconds, is left out.
        """
        answers = gatherResults([worker.ask(what) for worker in self._workers])
        return answers.addCallback(lambda found: [one for one in found if one is not None])

    def numbers(self) -> Deferred[dict[str, float]]:
        """
        Add up what the workers count.
        """
        return self.ask("numbers").addCallback(_sum)

    def hurry(self) -> None:
        """
        Have workers that drain come to their end now.
        """
        for worker in self._workers:
            worker.hurry()

    def stopService(self) -> Deferred[Any]:
        """
        Have all workers drain, and close the sockets.

        :return: A Deferred that fires when all workers are gone.
        """
        Service.stopService(self)
        ports, self._ports = self._ports, []
        waiting: list[Deferred[Any]] = [w.end(self.drain_timeout) for w in self._workers]
        if self._numbers is not None:
            # Those that there are have it open.
            os.close(self._numbers)
            self._numbers = None
        return gatherResults([*waiting, *map(close_port, ports)])


def _log_line(number: int, line: str) -> None:
    _log.info("Worker {worker}: {line}", worker=number, line=line)


def _nothing(number: int, reason: str) -> None:
    """
    The worker has said it in its own log.
    """


def _sum(numbers: list[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for one in numbers:
        for name, value in one.items():
            total[name] = total.get(name, 0) + value
    return total
