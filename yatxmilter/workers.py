"""
Several processes that share listening sockets, and one that watches over them.

The supervisor opens the sockets and takes no connection itself. Each worker is a fresh Python
process (nothing is forked that a reactor or a thread has touched) that gets the descriptors, and
two pipes: one to be told things (drain, reload, count), one to tell (ready, counts), a JSON object
a line. A worker whose pipe closes has lost its supervisor, and drains. Since the supervisor keeps
the descriptors, connections that wait to be taken survive a worker that dies.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, Final

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.error import ReactorNotRunning
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.protocols.basic import LineOnlyReceiver

from yatxmilter.connspec import server_endpoint
from yatxmilter.listening import Adopter, open_port
from yatxmilter.options import count_option, seconds_option

__all__ = ["WorkerService"]

_log = Logger()

# Descriptors of a worker: told and telling, then the sockets.
_TOLD: Final = 3
_TELLING: Final = 4
_SOCKETS: Final = 5
_PROGRAM: Final = "import sys; from yatxmilter.workers import work; work(sys.argv[1])"
# A worker that lives so many seconds is restarted at once when it dies.
_STEADY: Final = 10.0
_LONGEST_PAUSE: Final = 60.0
_LONGEST_LINE: Final = 65536
# Seconds beyond the drain's time-out after which a worker is killed.
_GRACE: Final = 10.0


class _Lines:
    """
    Cuts what a worker writes into lines.
    """

    def __init__(self, said: Callable[[bytes], None]) -> None:
        self._said = said
        self._rest = b""

    def add(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LONGEST_LINE:
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            self._said(line)


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
        self._asked: list[Deferred[Any]] = []

    def start(self) -> None:
        self.timer = None
        self.service.spawn(self)

    def connectionMade(self) -> None:
        self.running = True
        self.started = self.service.reactor.seconds()
        self._told = _Lines(self._told_line)
        self._said = _Lines(lambda line: self.service.said(self.number, _text(line)))

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        (self._told if childFD == _TELLING else self._said).add(data)

    def _told_line(self, line: bytes) -> None:
        message = json.loads(line)
        if "ready" in message:
            self.ready = True
            self.service.worker_ready()
        else:
            self._asked.pop(0).callback(message["numbers"])

    def tell(self, **message: Any) -> None:
        if self.running:
            self.transport.writeToChild(_TOLD, json.dumps(message).encode() + b"\n")

    def ask(self) -> Deferred[Any]:
        answer: Deferred[Any] = Deferred()
        if not self.ready:
            answer.callback({})
            return answer
        self._asked.append(answer)
        self.tell(do="numbers")
        return answer

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
            self.timer = self.service.reactor.callLater(timeout + _GRACE, self.kill)
        return gone

    def kill(self) -> None:
        self.timer = None
        self.transport.signalProcess("KILL")

    def processEnded(self, reason: Any) -> None:
        self.running = self.ready = False
        asked, self._asked = self._asked, []
        for answer in asked:
            answer.callback({})
        if self.gone is not None:
            if self.timer is not None:
                self.timer.cancel()
            self.gone.callback(None)
            return
        lived = self.service.reactor.seconds() - self.started
        self.failures = 0 if lived >= _STEADY else self.failures + 1
        pause = min(2.0 ** (self.failures - 2), _LONGEST_PAUSE) if self.failures > 1 else 0
        _log.error(
            "Worker {number} (process {pid}) has ended ({reason}); another is started in"
            " {pause:g} seconds",
            number=self.number,
            pid=self.pid,
            reason=_reason(reason.value),
            pause=pause,
        )
        self.timer = self.service.reactor.callLater(pause, self.start)


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
        besides: ``reload()``, called for SIGHUP, and ``numbers()``, a dict of numbers that
        `numbers` adds up.
    :param arguments: What the function is called with; JSON carries it.
    :param count: How many workers.
    :param drain_timeout: Seconds that messages in progress may take when the service stops.
    :param mode: Permissions of UNIX sockets.
    :param said: Called with a worker's number and each line it writes on its standard output or
        error; by default it is logged.
    :param reactor: By default the global one.
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
        said: Callable[[int, str], None] | None = None,
        ready: Callable[[], None] | None = None,
        reactor: Any = None,
    ) -> None:
        if reactor is None:
            from twisted.internet import reactor
        self.reactor: Any = reactor
        self.specs = [specs] if isinstance(specs, str) else list(specs)
        if builder.count(":") != 1:
            raise ValueError(f"builder is {builder!r}, expected 'module:function'")
        self.drain_timeout = seconds_option("drain_timeout", drain_timeout)
        self._start = json.dumps(
            {
                "builder": builder,
                "arguments": list(arguments),
                "specs": self.specs,
                "drain_timeout": self.drain_timeout,
            }
        )
        self._mode = mode
        self.said = _log_line if said is None else said
        self._ready = ready
        self._ports: list[Any] = []
        self._workers = [_Worker(self, i + 1) for i in range(count_option("count", count) or 1)]

    @property
    def pids(self) -> list[int]:
        """
        The processes of the workers that there are.
        """
        return [worker.transport.pid for worker in self._workers if worker.running]

    def privilegedStartService(self) -> None:
        """
        Open the sockets.
        """
        if not self._ports:
            self._ports = [open_port(self.reactor, s, mode=self._mode) for s in self.specs]

    def startService(self) -> None:
        """
        Open the sockets, if they are not yet, and start the workers.
        """
        self.privilegedStartService()
        Service.startService(self)
        for worker in self._workers:
            worker.gone = None
            worker.start()

    def spawn(self, worker: _Worker) -> None:
        """
        Start a process in a worker's place.
        """
        descriptors: dict[int, Any] = {0: "w", 1: "r", 2: "r", _TOLD: "w", _TELLING: "r"}
        for number, port in enumerate(self._ports):
            descriptors[_SOCKETS + number] = port.fileno()
        program = [sys.executable, "-c", _PROGRAM, self._start]
        path = os.pathsep.join(one or os.getcwd() for one in sys.path)
        worker.transport = self.reactor.spawnProcess(
            worker,
            sys.executable,
            program,
            env={**os.environ, "PYTHONPATH": path},
            childFDs=descriptors,
        )
        worker.pid = worker.transport.pid

    def worker_ready(self) -> None:
        """
        Take note that a worker takes connections.
        """
        if self._ready is not None and all(worker.ready for worker in self._workers):
            self._ready()

    def reload(self) -> None:
        """
        Have all workers reload.
        """
        for worker in self._workers:
            worker.tell(do="reload")

    def numbers(self) -> Deferred[dict[str, float]]:
        """
        Add up what the workers count.
        """
        return gatherResults([worker.ask() for worker in self._workers]).addCallback(_sum)

    def hurry(self) -> None:
        """
        Have workers that drain come to their end now.
        """
        for worker in self._workers:
            worker.tell(do="drain", timeout=0.001)

    def stopService(self) -> Deferred[Any]:
        """
        Have all workers drain, and close the sockets.

        :return: A Deferred that fires when all workers are gone.
        """
        Service.stopService(self)
        ports, self._ports = self._ports, []
        waiting: list[Deferred[Any]] = [w.end(self.drain_timeout) for w in self._workers]
        for port in ports:
            closed = port.stopListening()
            waiting += [closed] if isinstance(closed, Deferred) else []
        return gatherResults(waiting)


def _log_line(number: int, line: str) -> None:
    _log.info("Worker {number}: {line}", number=number, line=line)


def _sum(numbers: list[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for one in numbers:
        for name, value in one.items():
            total[name] = total.get(name, 0) + value
    return total


class _Orders(LineOnlyReceiver):
    """
    The worker's end: does what it is told.
    """

    delimiter = b"\n"
    transport: Any

    def __init__(
        self, reactor: Any, factory: Any, ports: list[Any], drain_timeout: float | None
    ) -> None:
        self._reactor = reactor
        self._factory = factory
        self._ports = ports
        self._drain_timeout = drain_timeout

    def connectionMade(self) -> None:
        self.send({"ready": os.getpid()})
        signal.signal(signal.SIGTERM, self._terminated)

    def _terminated(self, *_: object) -> None:
        self._reactor.callFromThread(self.drain, self._drain_timeout)

    def send(self, message: Any) -> None:
        self.transport.write(json.dumps(message).encode() + b"\n")

    def lineReceived(self, line: bytes) -> None:
        order = json.loads(line)
        if order["do"] == "drain":
            self.drain(order["timeout"])
        elif order["do"] == "reload":
            getattr(self._factory, "reload", lambda: None)()
        else:
            self.send({"numbers": getattr(self._factory, "numbers", self._count)()})

    def _count(self) -> dict[str, float]:
        return {"connections": len(self._factory.connections)}

    def drain(self, timeout: float | None) -> None:
        ports, self._ports = self._ports, []
        for port in ports:
            port.stopListening()
        self._factory.drain(timeout).addCallback(self._end)

    def _end(self, _: object) -> None:
        # Who drains twice, since it is told to hurry, comes to its end twice.
        with suppress(ReactorNotRunning):
            self._reactor.stop()

    def connectionLost(self, reason: Any = None) -> None:
        # The supervisor is gone: nobody would ever tell us to end.
        self.drain(self._drain_timeout)


def work(start: str) -> None:
    """
    Be a worker.

    :param start: What `WorkerService` gives it, in JSON.
    """
    # A terminal's Ctrl-C goes to all processes; the supervisor passes it on. SIGHUP as well.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # The sockets that systemd gave the supervisor are ours too.
    if "LISTEN_PID" in os.environ:
        os.environ["LISTEN_PID"] = str(os.getpid())
    what = json.loads(start)
    module, _, name = what["builder"].partition(":")
    factory = getattr(import_module(module), name)(*what["arguments"])
    from twisted.internet import reactor
    from twisted.internet.stdio import StandardIO

    reactor_: Any = reactor
    ports: list[Any] = []
    for number, spec in enumerate(what["specs"]):
        adopter = Adopter(reactor, _SOCKETS + number)
        server_endpoint(adopter, spec).listen(factory).addCallback(ports.append)
    orders = _Orders(reactor, factory, ports, what["drain_timeout"])
    # After the reactor's own signal handlers are there, one of which is replaced.
    reactor_.callLater(0, StandardIO, orders, stdin=_TOLD, stdout=_TELLING)
    reactor_.run()
