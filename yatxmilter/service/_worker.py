"""
What a worker of `yatxmilter.workers.WorkerService` runs: it takes over sockets, and does as told.

It is told things (drain, reload, count) through one pipe, and tells (ready, reloaded, counts)
through another, a JSON object a line.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from contextlib import suppress
from importlib import import_module
from typing import Any, Final

from twisted.internet.base import ReactorBase
from twisted.internet.defer import maybeDeferred
from twisted.internet.error import ReactorNotRunning
from twisted.logger import Logger
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

from yatxmilter.protocol._endpoints import server_endpoint
from yatxmilter.service._ending import AT_ONCE, GRACE, LONGEST, end_within
from yatxmilter.service._listening import Adopter
from yatxmilter.service._reactors import install_module
from yatxmilter.service._worker_shares import Share

_log = Logger()

__all__ = ["SOCKETS", "TELLING", "TOLD", "WORKER", "work"]

#: The variable of the environment that has the number of a worker.
WORKER: Final = "YATXMILTER_WORKER"

#: Descriptors of a worker: where it is told, where it tells, and from which on there are sockets.
TOLD: Final = 3
TELLING: Final = 4
SOCKETS: Final = 5

_SYSTEMD: Final = re.compile("systemd:[^:]*:[^:]*")


class _Orders(LineOnlyReceiver):
    """
    The worker's end: does what it is told.
    """

    delimiter = b"\n"
    # What is told may carry a whole configuration.
    MAX_LENGTH = 2**24
    transport: Any

    def __init__(
        self,
        reactor: Any,
        factory: Any,
        specs: list[str],
        drain_timeout: float | None,
        share: Share | None = None,
    ) -> None:
        self._reactor = reactor
        self._factory = factory
        self._specs = specs
        self._share = share
        self._ports: list[Any] = []
        self._drain_timeout = drain_timeout
        self._draining = False
        self.status = 0

    def connectionMade(self) -> None:
        signal.signal(signal.SIGTERM, self._terminated)
        started = maybeDeferred(getattr(self._factory, "start", _nothing))
        started.addCallback(self._listen).addErrback(self._failed)

    def _listen(self, _: object) -> None:
        if self._draining:
            return
        for number, spec in enumerate(self._specs):
            adopter = Adopter(self._reactor, SOCKETS + number, self._share)
            # systemd gave its sockets to the supervisor, which is why we could not find them.
            spec = _SYSTEMD.sub("tcp:0", spec)
            listening = server_endpoint(adopter, spec).listen(self._factory)
            listening.addCallbacks(self._ports.append, self._failed)
            # The port has one of its own. By this one connections would come for as long as we
            # drain, if the supervisor is gone, and nobody else could listen there.
            os.close(SOCKETS + number)
        if self._share is not None:
            self._share.begin()
        self.send({"ready": os.getpid()})
        worker = os.environ.get(WORKER, "?")
        _log.info("Ready (worker {worker}, process {pid})", worker=worker, pid=os.getpid())

    def _failed(self, failure: Failure) -> None:
        if self._draining:
            # It was not to be any more.
            return
        reason = failure.getErrorMessage()
        _log.critical("{error}", error=reason)
        self.status = 1
        self.send({"failed": reason})
        # When that is written: it is lost, and with it the worker.
        self.transport.loseConnection()

    def _terminated(self, *_: object) -> None:
        self._hurry_if_twice()
        self._reactor.callFromThread(self.drain, self._drain_timeout)

    def send(self, message: Any) -> None:
        self.transport.write(json.dumps(message).encode() + b"\n")

    def lineReceived(self, line: bytes) -> None:
        order = json.loads(line)
        if order["do"] == "drain":
            self._hurry_if_twice()
            self.drain(order["timeout"])
        elif order["do"] == "reload":
            reload = getattr(self._factory, "reload", _nothing)
            reloaded = maybeDeferred(reload, *order["arguments"]).addErrback(_not_reloaded)
            reloaded.addCallback(self._reloaded, order["number"])
        else:
            self._answer(order["what"])

    def _answer(self, what: str) -> None:
        try:
            self.send({"answer": getattr(self._factory, what, self._count)()})
        except Exception:
            # It would close the pipe, and with it end the worker; and who asks waits for his turn.
            _log.failure("This worker has no answer: {what}", what=what)
            self.send({"answer": None})

    def _reloaded(self, result: object, number: int) -> None:
        self.send({"reloaded": number, "done": result is not False})

    def _count(self) -> dict[str, float]:
        return {"connections": len(self._factory.connections)}

    def drain(self, timeout: float | None) -> None:
        self._draining = True
        if self._share is not None:
            self._share.end()
        ports, self._ports = self._ports, []
        for port in ports:
            port.stopListening()
        self._factory.drain(timeout).addCallback(self._end)

    def _hurry_if_twice(self) -> None:
        if self._draining:
            self._end_within(AT_ONCE)

    def _end_within(self, seconds: float) -> None:
        # A reactor that only stands for one is not a process's own.
        if isinstance(self._reactor, ReactorBase):
            end_within(seconds)

    def _end(self, _: object) -> None:
        self._end_within(LONGEST)
        # Who drains twice, since it is told to hurry, comes to its end twice.
        with suppress(ReactorNotRunning):
            self._reactor.stop()

    def connectionLost(self, reason: Any = None) -> None:
        if self.status:
            # Nothing has begun that would have to come to an end.
            self._end(None)
        else:
            # The supervisor is gone: nobody would ever tell us to end.
            self.drain(self._drain_timeout)


def _nothing(*_: object) -> None:
    """
    Reload a factory that does not know how to.
    """


def _not_reloaded(failure: Failure) -> bool:
    _log.failure("This worker could not reload", failure)
    return False


def work(start: str) -> None:
    """
    Be a worker.

    :param start: What `WorkerService` gives it, in JSON.
    """
    # A terminal's Ctrl-C goes to all processes; the supervisor passes it on. SIGHUP as well.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # Its log is its supervisor's, who opens a file anew.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    what = json.loads(start)
    install_module(what.get("reactor"))
    module, _, name = what["builder"].partition(":")
    factory = getattr(import_module(module), name)(*what["arguments"])
    from twisted.internet import reactor
    from twisted.internet.stdio import StandardIO

    reactor_: Any = reactor
    if isinstance(reactor_, ReactorBase):
        reactor_.addSystemEventTrigger("during", "shutdown", end_within, GRACE)
    specs, share = what["specs"], None
    if "share" in what:
        # Behind the sockets.
        share = Share(SOCKETS + len(specs), what["share"])
        os.close(SOCKETS + len(specs))
    orders = _Orders(reactor, factory, specs, what["drain_timeout"], share)
    # After the reactor's own signal handlers are there, one of which is replaced.
    reactor_.callLater(0, StandardIO, orders, stdin=TOLD, stdout=TELLING)
    reactor_.run()
    if orders.status:
        sys.exit(orders.status)
