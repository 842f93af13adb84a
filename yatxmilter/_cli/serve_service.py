"""
What ``yatxmilter serve``, ``twist yatxmilter`` and ``twistd yatxmilter`` run.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from twisted.application.service import Service
from twisted.internet.base import ReactorBase
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.error import CannotListenError, ReactorNotRunning
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.usage import Options as TwistedOptions
from twisted.python.usage import UsageError
from twisted.python.util import switchUID

from yatxmilter._cli.pidfile import PidFile
from yatxmilter._cli.serve_changes import needing_restart
from yatxmilter._cli.serve_log import OUTLET, begin_log
from yatxmilter._cli.serve_milters import Reloadable, build_factory, may_import_from_here
from yatxmilter._cli.serve_options import ConfigurationError, add_arguments, read_settings
from yatxmilter.metrics import MilterMetrics
from yatxmilter.protocol._refusals import cannot_become, cannot_listen, me
from yatxmilter.protocol._socket_file import find_group, find_user
from yatxmilter.protocol._steady_clock import steady
from yatxmilter.service._ending import AT_ONCE, GRACE, LONGEST, end_within
from yatxmilter.service._listening import close_port, open_port
from yatxmilter.service._metrics_families import merge
from yatxmilter.service._notify import Notifier
from yatxmilter.service._reactors import install_reactor
from yatxmilter.service._worker import WORKER
from yatxmilter.workers import WorkerService

__all__ = [
    "NOT_STARTED",
    "Options",
    "ServeService",
    "choose_reactor",
    "makeService",
    "make_worker",
]

_log = Logger()

#: The exit status when a milter factory does not start.
NOT_STARTED: Final = 4

# What a supervisor knows of itself, and its workers of themselves.
_SUPERVISED: Final = (
    "yatxmilter_build_info",
    "yatxmilter_start_time_seconds",
    "yatxmilter_last_reload_successful",
    "yatxmilter_last_reload_success_seconds",
)

# Seconds that a supervisor has whose workers are to end at once.
_HURRY: Final = 5.0


def parse(words: Sequence[str]) -> dict[str, Any]:
    """
    Read the options.

    :raises ConfigurationError: for wrong ones.
    """
    parser = ArgumentParser(prog="yatxmilter serve")
    add_arguments(parser)
    arguments = parser.parse_args(words)
    settings = read_settings(arguments)
    return {**settings, "check_config": arguments.check_config, "config": arguments.config}


def choose_reactor(settings: dict[str, Any]) -> None:
    """
    Have the reactor that is asked for.

    :raises ConfigurationError: when there is another one already.
    """
    try:
        install_reactor(settings["reactor"])
    except RuntimeError as error:
        raise ConfigurationError(str(error)) from None


def make_worker(settings: dict[str, Any]) -> Reloadable:
    """
    Build what a worker serves.

    :param settings: What `parse` gave.
    """
    from twisted.internet import reactor

    begin_log(settings, worker=True)
    try:
        return Reloadable(settings, role=f"worker {os.environ.get(WORKER, '?')}", reactor=reactor)
    except ConfigurationError as error:
        sys.exit(f"yatxmilter serve: {error}")


def _account(settings: dict[str, Any]) -> tuple[int, int] | None:
    """
    Look up whom to become.
    """
    user, group = settings["user"], settings["group"]
    entry = find_user("user", user) if user else None
    gid = find_group("group", group) if group else entry.pw_gid if entry else None
    if gid is None:
        return None
    return entry.pw_uid if entry else os.getuid(), gid


def _permissions(settings: dict[str, Any]) -> dict[str, int | None]:
    """
    Tell which user UNIX sockets belong to, and which may connect.
    """
    account = _account(settings)
    uid, gid = (None, None) if account is None else account
    owner, group = settings["owner"], settings["socket_group"]
    if owner:
        uid = find_user("owner", owner).pw_uid
    elif not settings["user"]:
        uid = None
    if group:
        gid = find_group("socket_group", group)
    return {"mode": settings["mode"], "owner": uid, "group": gid}


def _warn_of_others(path: str) -> None:
    """
    Tell of a file that decides what we do, and that everybody may write.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return
    if mode & stat.S_IWOTH:
        _log.warn(
            "Every user of this machine may write {path}, which says what is run here", path=path
        )


class ServeService(Service):
    """
    Listens, reloads and drains.

    While it is root it opens sockets and writes its pid file, and loads no milter that can as well
    be loaded by the user that it becomes.

    :param words: The command line, read again for SIGHUP.
    :ivar status: The exit status that the process should have.
    """

    def __init__(self, words: Sequence[str], settings: dict[str, Any], reactor: Any = None) -> None:
        if reactor is None:
            from twisted.internet import reactor
        self.reactor: Any = reactor
        self.words = list(words)
        self.settings = settings
        self.status = 0
        self.notifier = Notifier()
        #: The user and the group that it becomes; ``None`` to stay as it is.
        self.account = _account(settings)
        self._permissions = _permissions(settings)
        self._ports: list[Any] = []
        self._opened = False
        self._stopping = self._ready = self._was_ready = False
        self._terms = 0
        self._timer: Any = None
        self._metrics: Any = None
        self._pidfile = PidFile(settings["pidfile"]) if settings["pidfile"] else None
        self._workers: WorkerService | None = None
        self.role = f"supervisor of {settings['workers']} workers"
        if settings["workers"] is None:
            self.role = "server"
        self._began = settings
        # For metrics of workers: when it began, and how the last reload went.
        self._metrics_of_ours = MilterMetrics()
        may_import_from_here()
        later = self.account is not None and os.geteuid() == 0 != self.account[0]
        if settings["workers"] is not None:
            self._workers = self._make_workers()
        else:
            self.factory = Reloadable(settings, build=False, reactor=self.reactor)
        self._built = False
        if not later:
            self._build()

    def _build(self) -> None:
        if self._built:
            return
        self._built = True
        if self._workers is None:
            self.factory.build()
        else:
            # Each worker builds its own; this one tells what is wrong before there are any.
            build_factory(self.settings)

    def _make_workers(self) -> WorkerService:
        return WorkerService(
            self.settings["listen"],
            "yatxmilter._cli.serve_service:make_worker",
            [self.settings],
            count=self.settings["workers"],
            drain_timeout=self.settings["drain_timeout"],
            said=OUTLET.pass_on,
            ready=self._is_ready,
            failed=self._worker_failed,
            reactor=self.reactor,
            **self._permissions,
        )

    def privilegedStartService(self) -> None:
        """
        Open the sockets; what is theirs alone to open is opened before privileges are dropped.
        """
        if self._opened:
            return
        if self.settings["config"] is not None:
            _warn_of_others(self.settings["config"])
        if self.settings["umask"] is not None:
            os.umask(self.settings["umask"])
        if self._workers is not None:
            self._workers.privilegedStartService()
        else:
            for spec in self.settings["listen"]:
                port = open_port(self.reactor, spec, self.factory, **self._permissions)
                self._ports.append(port)
        if self.settings["metrics"]:
            self._metrics = self._open_metrics()
        self._opened = True
        self._write_pidfile()
        try:
            self._become()
            self._build()
        except ConfigurationError:
            self._remove_pidfile()
            raise

    def _write_pidfile(self) -> None:
        if self._pidfile is None:
            return
        try:
            self._pidfile.write()
        except OSError as error:
            raise OSError(
                f"cannot write the pid file {self.settings['pidfile']}: {error.strerror}; its"
                f" folder has to be there, and {me()} has to be allowed to write to it"
            ) from None

    def _become(self) -> None:
        if self.account is None:
            return
        try:
            switchUID(*self.account)
        except OSError as error:
            user, group = self.settings["user"], self.settings["group"]
            raise ConfigurationError(cannot_become(user, group, error)) from None

    def _open_metrics(self) -> Any:
        # It needs what not everybody has.
        from yatxmilter.metrics_page import metrics_site

        site = metrics_site(self._snapshot, self._takes_mail)
        return open_port(self.reactor, self.settings["metrics"], site, **self._permissions)

    def _takes_mail(self) -> bool:
        # All workers may be gone, and not come up again.
        return self._ready and (self._workers is None or self._workers.takes_connections)

    def _snapshot(self) -> Any:
        if self._workers is None:
            return self.factory.snapshot()
        return self._workers.ask("snapshot").addCallback(self._merged)

    def _merged(self, found: list[Any]) -> Any:
        ours = self._metrics_of_ours.snapshot()
        return merge([*found, {name: ours[name] for name in _SUPERVISED}])

    def startService(self) -> None:
        """
        Begin to serve: start the workers, or else the milters of this process.
        """
        self.privilegedStartService()
        Service.startService(self)
        if isinstance(self.reactor, ReactorBase):
            self.reactor.addSystemEventTrigger("during", "shutdown", self._end_within, GRACE)
        # When the reactor's own handlers are there, which know no reload and no second SIGTERM.
        self.reactor.callLater(0, self._handle_signals)
        if self._workers is not None:
            self._workers.startService()
        else:
            self.reactor.callLater(0, self._start_milters)
        if self.notifier.watchdog is not None:
            self._watch()

    def _start_milters(self) -> None:
        if not self._stopping:
            self.factory.start().addCallbacks(lambda _: self._is_ready(), self._not_started)

    def _not_started(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._fail(failure.getErrorMessage())

    def _worker_failed(self, number: int, reason: str) -> None:
        # One that fails when all have once been there is started again, until it does not fail.
        if not self._was_ready:
            self._fail(f"worker {number}: {reason}")

    def _fail(self, reason: str) -> None:
        if not self._stopping and not self.status:
            _log.critical("Cannot serve: {error}", error=reason)
            self.status = NOT_STARTED
            self.reactor.stop()

    def _end_within(self, seconds: float) -> None:
        # A reactor that only stands for one is not a process's own.
        if isinstance(self.reactor, ReactorBase):
            end_within(seconds, self.status)

    def _watch(self) -> None:
        self.notifier.alive()
        self._timer = steady(self.reactor).callLater(self.notifier.watchdog, self._watch)

    def _handle_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._told_to_end)
        signal.signal(signal.SIGHUP, lambda *_: self.reactor.callFromThread(self.reload))
        signal.signal(signal.SIGUSR1, lambda *_: self.reactor.callFromThread(OUTLET.reopen))

    def _told_to_end(self, *_: object) -> None:
        self._terms += 1
        if self._terms > 1:
            # Here, and not in the reactor, which may be held up.
            self._end_within(_HURRY if self._workers is not None else AT_ONCE)
        self.reactor.callFromThread(self.terminate)

    def _is_ready(self) -> None:
        if not self._stopping:
            where = ", ".join(self.settings["listen"])
            if not self._ready:
                _log.info("Ready, listening on {where} ({role})", where=where, role=self.role)
            self._ready = self._was_ready = True
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
            if self._workers is None:
                self.factory.not_reloaded(str(error))
            else:
                self._not_reloaded(str(error))
        else:
            if self._workers is None:
                self.factory.reload(settings).addCallback(lambda _: self._still_ready())
                return
            self._reload_workers(self._workers, settings)
        self._still_ready()

    def _still_ready(self) -> None:
        """
        Tell the service manager that reading is over, unless it was never ready yet.
        """
        if self._ready:
            self._is_ready()

    def _not_reloaded(self, why: str) -> None:
        for line in why.splitlines():
            _log.error("Nothing is reloaded: {error}", error=line, role=self.role)
        self._metrics_of_ours.reloaded(False)

    def _reload_workers(self, workers: WorkerService, settings: dict[str, Any]) -> None:
        restart = needing_restart(self._began, settings)
        _log.info(
            "Reloading: each worker reads the configuration and tells what has changed{restart}"
            " ({role})",
            restart=f"; a restart is needed for {', '.join(restart)}" if restart else "",
            role=self.role,
        )
        # Workers keep what takes a restart as it was, those that are started later included.
        workers.reload([settings])
        self._metrics_of_ours.reloaded(True)

    def terminate(self) -> None:
        """
        Drain and end; the second time, end now.
        """
        if not self._stopping:
            # Two signals may come before the first has had its effect.
            with suppress(ReactorNotRunning):
                self.reactor.stop()
        elif self._workers is not None:
            self._workers.hurry()
        else:
            self.factory.drain(0.001)

    def stopService(self) -> Deferred[Any]:
        """
        Close the ports, and let messages that are open come to their end.
        """
        Service.stopService(self)
        self._stopping, self._ready = True, False
        self.notifier.stopping()
        if self._workers is not None:
            _log.info("Draining: the workers come to their end ({role})", role=self.role)
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
            self._timer = None
        self._remove_pidfile()
        if self._workers is not None:
            _log.info("Stopped ({role})", role=self.role)
        self._end_within(LONGEST)
        # Until now: somebody may want to see how the end goes.
        return result if self._metrics is None else close_port(self._metrics)

    def _remove_pidfile(self) -> None:
        if self._pidfile is not None:
            self._pidfile.remove()


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
        for name in ("log_file", "syslog"):
            if self.settings[name]:
                flag = name.replace("_", "-")
                raise UsageError(f"--{flag} is for yatxmilter serve; twist has a log of its own")


class _TwistService(ServeService):
    """
    The same for ``twist`` and ``twistd``, which have a traceback for what cannot be, and no words.
    """

    def privilegedStartService(self) -> None:
        """
        Open the sockets, or end with the reason why not.
        """
        try:
            super().privilegedStartService()
        except ConfigurationError as error:
            sys.exit(f"yatxmilter: {error}")
        except (CannotListenError, OSError) as error:
            sys.exit(f"yatxmilter: {cannot_listen(None, error)}")


def makeService(options: Options) -> ServeService:
    """
    Make the service for ``twist`` and ``twistd``.
    """
    try:
        choose_reactor(options.settings)
        return _TwistService(options.words, options.settings)
    except ConfigurationError as error:
        sys.exit(f"yatxmilter: {error}")
