"""
What ``yatxmilter serve``, ``twist yatxmilter`` and ``twistd yatxmilter`` run.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import signal
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger
from twisted.python.usage import Options as TwistedOptions
from twisted.python.usage import UsageError
from twisted.python.util import switchUID

from yatxmilter._cli.serve_log import begin_log
from yatxmilter._cli.serve_milters import Reloadable, build_factory
from yatxmilter._cli.serve_options import ConfigurationError, add_arguments, read_settings
from yatxmilter.protocol._steady_clock import steady
from yatxmilter.service._listening import close_port, open_port
from yatxmilter.service._metrics_families import merge
from yatxmilter.service._notify import Notifier
from yatxmilter.workers import WorkerService

__all__ = ["Options", "ServeService", "makeService", "make_worker"]

_log = Logger()


def parse(words: Sequence[str]) -> dict[str, Any]:
    """
    Read the options.

    :raises ConfigurationError: for wrong ones.
    """
    parser = ArgumentParser(prog="yatxmilter serve")
    add_arguments(parser)
    arguments = parser.parse_args(words)
    return {**read_settings(arguments), "check_config": arguments.check_config}


def make_worker(settings: dict[str, Any]) -> Reloadable:
    """
    Build what a worker serves.

    :param settings: What `parse` gave.
    """
    begin_log(settings)
    try:
        return Reloadable(settings)
    except ConfigurationError as error:
        sys.exit(f"yatxmilter serve: {error}")


def _account(settings: dict[str, Any]) -> tuple[int, int] | None:
    """
    Look up whom to become.
    """
    user, group = settings["user"], settings["group"]
    try:
        entry = pwd.getpwnam(user) if user else None
        gid = grp.getgrnam(group).gr_gid if group else entry.pw_gid if entry else None
    except KeyError as error:
        raise ConfigurationError(f"user {user!r}, group {group!r}: {error.args[0]}") from None
    if gid is None:
        return None
    return entry.pw_uid if entry else os.getuid(), gid


class ServeService(Service):
    """
    Listens, reloads and drains.

    :param words: The command line, read again for SIGHUP.
    """

    def __init__(self, words: Sequence[str], settings: dict[str, Any], reactor: Any = None) -> None:
        if reactor is None:
            from twisted.internet import reactor
        self.reactor: Any = reactor
        self.words = list(words)
        self.settings = settings
        self.notifier = Notifier()
        self._account = _account(settings)
        self._ports: list[Any] = []
        self._opened = False
        self._stopping = self._ready = False
        self._timer: Any = None
        self._metrics: Any = None
        self._workers: WorkerService | None = None
        if settings["workers"] is not None:
            build_factory(settings)
            self._workers = self._make_workers()
        else:
            self.factory = Reloadable(settings)

    def _make_workers(self) -> WorkerService:
        return WorkerService(
            self.settings["listen"],
            "yatxmilter._cli.serve_service:make_worker",
            [self.settings],
            count=self.settings["workers"],
            drain_timeout=self.settings["drain_timeout"],
            mode=self.settings["mode"],
            said=_pass_on,
            ready=self._is_ready,
            reactor=self.reactor,
        )

    def privilegedStartService(self) -> None:
        """
        Open the sockets; what is theirs alone to open is opened before privileges are dropped.
        """
        if self._opened:
            return
        if self.settings["umask"] is not None:
            os.umask(self.settings["umask"])
        if self._workers is not None:
            self._workers.privilegedStartService()
        else:
            for spec in self.settings["listen"]:
                port = open_port(self.reactor, spec, self.factory, mode=self.settings["mode"])
                self._ports.append(port)
        if self.settings["metrics"]:
            self._metrics = self._open_metrics()
        self._opened = True
        if self.settings["pidfile"]:
            with open(self.settings["pidfile"], "w", encoding="ascii") as file:
                file.write(f"{os.getpid()}\n")
                if self._account is not None:
                    os.fchown(file.fileno(), *self._account)
        if self._account is not None:
            switchUID(*self._account)

    def _open_metrics(self) -> Any:
        # It needs what not everybody has.
        from yatxmilter.metrics_page import metrics_site

        site = metrics_site(self._snapshot, lambda: self._ready)
        return open_port(self.reactor, self.settings["metrics"], site)

    def _snapshot(self) -> Any:
        if self._workers is None:
            return self.factory.snapshot()
        return self._workers.ask("snapshot").addCallback(merge)

    def startService(self) -> None:
        """
        Serve.
        """
        self.privilegedStartService()
        Service.startService(self)
        # When the reactor's own handlers are there, which know no reload and no second SIGTERM.
        self.reactor.callLater(0, self._handle_signals)
        if self._workers is not None:
            self._workers.startService()
        else:
            self.reactor.callLater(0, self._is_ready)
        if self.notifier.watchdog is not None:
            self._watch()

    def _watch(self) -> None:
        self.notifier.alive()
        self._timer = steady(self.reactor).callLater(self.notifier.watchdog, self._watch)

    def _handle_signals(self) -> None:
        for number, act in (
            (signal.SIGTERM, self.terminate),
            (signal.SIGINT, self.terminate),
            (signal.SIGHUP, self.reload),
        ):
            signal.signal(number, self._later(act))

    def _later(self, act: Callable[[], None]) -> Callable[..., None]:
        return lambda *_: self.reactor.callFromThread(act)

    def _is_ready(self) -> None:
        if not self._stopping:
            where = ", ".join(self.settings["listen"])
            _log.info("Ready, listening on {where}", where=where)
            self._ready = True
            self.notifier.ready(f"listening on {where}")

    def reload(self) -> None:
        """
        Read the configuration and the milters again; what is broken changes nothing.
        """
        if self._stopping:
            return
        self.notifier.reloading()
        try:
            settings = parse(self.words)
        except ConfigurationError as error:
            _log.error("Nothing is reloaded: {error}", error=error)
        else:
            if self._workers is None:
                self.factory.reload(settings)
            else:
                self._workers.reload([settings])
        self._is_ready()

    def terminate(self) -> None:
        """
        Drain and end; the second time, end now.
        """
        if not self._stopping:
            self.reactor.stop()
        elif self._workers is not None:
            self._workers.hurry()
        else:
            self.factory.drain(0.001)

    def stopService(self) -> Deferred[Any]:
        """
        Drain.
        """
        Service.stopService(self)
        self._stopping, self._ready = True, False
        self.notifier.stopping()
        _log.info("Stopping: messages in progress come to their end")
        waiting: list[Deferred[Any]] = []
        if self._workers is not None:
            waiting.append(self._workers.stopService())
        else:
            waiting += map(close_port, self._ports)
            waiting.append(self.factory.drain(self.settings["drain_timeout"]))
        return gatherResults(waiting).addBoth(self._ended)

    def _ended(self, result: Any) -> Any:
        if self._timer is not None:
            self._timer.cancel()
        if self.settings["pidfile"]:
            _remove(self.settings["pidfile"])
        # Until now: somebody may want to see how the end goes.
        return result if self._metrics is None else close_port(self._metrics)


def _remove(pidfile: str) -> None:
    try:
        os.unlink(pidfile)
    except OSError:
        # Who has dropped privileges cannot remove it from a folder of root's, but may empty it.
        with contextlib.suppress(OSError):
            os.truncate(pidfile, 0)


def _pass_on(number: int, line: str) -> None:
    # It is a line of the log already.
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


class Options(TwistedOptions):
    """
    The options, for ``twist`` and ``twistd``; all is in `serve_options`.
    """

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """
        Read the options.
        """
        self.words = list(options or ())
        try:
            self.settings = parse(self.words)
        except ConfigurationError as error:
            raise UsageError(str(error)) from None
        if self.settings["check_config"]:
            raise UsageError("--check-config is for yatxmilter serve")


def makeService(options: Options) -> ServeService:
    """
    Make the service for ``twist`` and ``twistd``.
    """
    try:
        return ServeService(options.words, options.settings)
    except ConfigurationError as error:
        sys.exit(f"yatxmilter: {error}")
