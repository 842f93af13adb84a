"""
Tests of what ``serve`` is made of: options, milters, the service, its log, the service manager.

The daemon as a process is in `tests.cli.test_serve` and `tests.service.test_workers`.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import pwd
import signal
import socket
import sys
import tempfile
from argparse import ArgumentParser
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import LogLevel, capturedLogs, formatEvent, globalLogBeginner
from twisted.python.failure import Failure
from twisted.python.usage import UsageError
from twisted.trial.unittest import SynchronousTestCase

from yatxmilter import MilterFactory
from yatxmilter._cli import serve, serve_log, serve_service
from yatxmilter._cli.serve_milters import Reloadable, build_factory, may_import_from_here
from yatxmilter._cli.serve_options import ConfigurationError
from yatxmilter._cli.serve_service import Options, ServeService, make_worker, makeService
from yatxmilter.service._notify import Notifier

MODULE = """
from yatxmilter import Milter, MilterFactory

class Mine(Milter):
    version = 1

class Raising(Milter):
    def __init__(self, factory, protocol):
        raise KeyError("no store")

def nobody(factory, protocol):
    return None

nothing = MilterFactory(nobody)

class Starting(MilterFactory):
    def __init__(self):
        super().__init__(Raising)

    def start(self):
        pass

def make():
    return MilterFactory(Mine)

made = make()

def fails():
    raise KeyError("nothing")

def leaves():
    raise SystemExit(3)

class Mumble(BaseException):
    def __str__(self):
        raise ValueError

def mumbles():
    raise Mumble

def interrupted():
    raise KeyboardInterrupt

class Starting(MilterFactory):
    told = []
    started = None
    def __init__(self):
        super().__init__(Mine)
    def start(self):
        self.told.append("start")
        if isinstance(self.started, Exception):
            raise self.started
        return self.started
    def stop(self):
        self.told.append("stop")

def small(mail):
    return True
"""


class ServeTestCase(SynchronousTestCase):
    """
    Tests in a folder of their own, with a module of milters in it.
    """

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.folder)
        self.patch(sys, "path", [str(self.folder), *sys.path])
        self.write("served_mine.py", MODULE)
        self.addCleanup(sys.modules.pop, "served_mine", None)
        self.patch(sys, "dont_write_bytecode", True)

    def write(self, name: str, text: str) -> str:
        """
        Write a file; give its name.
        """
        (self.folder / name).write_text(text, encoding="utf-8")
        return name

    def settings(self, *words: str) -> dict[str, Any]:
        """
        Read options.
        """
        return serve_service.parse(words)

    def complaint(self, *words: str) -> str:
        """
        Read wrong options; give what is said of them.
        """
        return str(self.assertRaises(ConfigurationError, self.settings, *words))

    def usual(self, *words: str, milter: str = "served_mine:Mine") -> dict[str, Any]:
        """
        Read options that have all that is needed.
        """
        return self.settings("--listen=unix:sock", f"--milter={milter}", *words)


class OptionTests(ServeTestCase):
    """
    The command line and the file.
    """

    def test_values(self) -> None:
        """
        Each kind of value is read from the command line, and C{none} means no limit.
        """
        settings = self.usual(
            "--timeout=1.5", "--max-macros=7", "--write-timeout=none", "--mode=660",
            "--merge=chain", "--log-level=warn", "--allow=127.0.0.0/8", "--user=root", "--json-log",
        )  # fmt: skip
        expected = {
            "timeout": 1.5, "max_macros": 7, "write_timeout": None, "mode": 0o660,
            "merge": "chain", "log_level": "warn", "allow": ["127.0.0.0/8"], "user": "root",
            "json_log": True, "redact": False, "listen": ["unix:sock"],
        }  # fmt: skip
        self.assertEqual({name: settings[name] for name in expected}, expected)

    def test_wrong_values(self) -> None:
        """
        Each wrong value is told, all at once, by the option's name.
        """
        said = self.complaint(
            "--listen=unix:sock", "--mode=rw", "--merge=last", "--timeout=soon", "--allow=here",
            "--log-level=loud", "--user=",
        )  # fmt: skip
        for words in (
            "mode is 'rw'",
            "merge",
            "timeout is 'soon'",
            "allow",
            "--log-level is",
            "user is ''",
        ):
            self.assertIn(words, said)
        self.assertEqual(len(said.splitlines()), 6)

    def test_missing(self) -> None:
        """
        Without an address, or without a milter, the option that is missing is named.
        """
        self.assertIn("give --listen", self.complaint("--milter=served_mine:Mine"))
        self.assertIn("give --milter", self.complaint("--listen=unix:sock"))

    def test_file(self) -> None:
        """
        A file says all that the command line can say, which counts more; milters have options.
        """
        self.write(
            "good.toml",
            'listen = ["unix:one"]\ntimeout = "none"\nredact = true\nworkers = 2\n\n[[milter]]\n'
            'object = "served_mine:Mine"\non_error = "accept"\ntimeout = 5\nshadow = false\n',
        )
        settings = self.settings("--config=good.toml", "--listen=unix:two")
        self.assertEqual(settings["listen"], ["unix:two"])
        self.assertEqual((settings["timeout"], settings["redact"]), (None, True))
        (milter,) = settings["milters"]
        self.assertEqual((milter["on_error"], milter["timeout"]), ("accept", 5))
        self.assertEqual(milter["place"], "good.toml:7")

    def test_bad_files(self) -> None:
        """
        What is wrong with a file is told with its line.
        """
        for text, said in (
            ("timeout = \n", "bad.toml:1: "),
            ('\nlisten = "inet:1"\n', "bad.toml:2: listen is 'inet:1', expected a list of texts"),
            ("\n\njson_log = 1\n", "bad.toml:3: json_log is 1, expected true or false"),
            ("milter = 3\n", "bad.toml:1: milter must be tables"),
            ("[[milter]]\nname = 'x'\n", "bad.toml:1: [[milter]] has no object"),
            ("[[milter]]\nobject = 'a:b'\non_error = 'perhaps'\n", "bad.toml:3: on_error is"),
            ("zzzzzz = 1\n", "bad.toml:1: unknown option 'zzzzzz'"),
        ):
            self.write("bad.toml", text)
            self.assertIn(said, self.complaint("--config=bad.toml"))

    def test_no_file(self) -> None:
        """
        A file that is not there is named.
        """
        self.assertEqual(
            self.complaint("--config=none.toml"), "none.toml: No such file or directory"
        )

    def test_no_parser(self) -> None:
        """
        A Python without a parser for TOML says what to install.
        """
        self.write("good.toml", "")
        with mock.patch.dict(sys.modules, {"tomllib": None, "tomli": None}):
            self.assertIn("pip install yatxmilter[serve]", self.complaint("--config=good.toml"))

    def test_words_again(self) -> None:
        """
        What a worker is given reads the same once more.
        """
        parser = ArgumentParser()
        serve.add_arguments(parser)
        words = ["--milter=a:b", "--milter=d:e", "--listen=unix:x", "--json-log", "--timeout=3"]
        self.assertEqual(sorted(serve._words(parser.parse_args(words))), sorted(words))


class MilterTests(ServeTestCase):
    """
    Milters by their names.
    """

    def build(self, *words: str, **options: Any) -> Any:
        """
        Make the factory of one milter.
        """
        return build_factory(self.usual(*words, **options)).milter_factories

    def refused(self, spec: str, **more: Any) -> str:
        """
        Give what is said of a milter that cannot be had.
        """
        settings = self.usual(milter=spec)
        settings["milters"][0].update(more)
        return str(self.assertRaises(ConfigurationError, build_factory, settings))

    def test_kinds(self) -> None:
        """
        A class, a factory, and a function that makes one; with a colon, or a dotted path.
        """
        for spec in ("Mine", "make", "made"):
            (factory,) = self.build(milter=f"served_mine:{spec}")
            self.assertIsInstance(factory, MilterFactory)
        (factory,) = self.build(milter="served_mine.Mine")
        self.assertEqual(factory.milter.__name__, "Mine")

    def test_current_folder(self) -> None:
        """
        A module in the current folder is found, as with C{python -m}.
        """
        self.patch(sys, "path", [one for one in sys.path if one not in ("", str(self.folder))])
        self.assertEqual(len(self.build()), 1)

    def test_interrupted(self) -> None:
        """
        Ctrl-C while milters are loaded ends the program.
        """
        self.assertRaises(KeyboardInterrupt, self.build, milter="served_mine:interrupted")
        self.write("served_interrupted.py", "raise KeyboardInterrupt\n")
        self.assertRaises(KeyboardInterrupt, self.build, milter="served_interrupted:X")

    def test_current_folder_of_root(self) -> None:
        """
        While it is root the current folder is the last in which modules are looked for, even where
        Python has put it first; for others it is the first, unless it has its place.
        """
        here = os.getcwd()
        for uid, before, after in (
            (0, ["", "/lib"], ["/lib", here]),
            (0, [here, "/lib"], ["/lib", here]),
            (0, ["/lib", here], ["/lib", here]),
            (0, ["/lib"], ["/lib", here]),
            (1, ["/lib"], [here, "/lib"]),
            (1, ["", "/lib"], ["", "/lib"]),
            (1, ["/lib", here], ["/lib", here]),
        ):
            with mock.patch.object(os, "geteuid", lambda uid=uid: uid):
                self.patch(sys, "path", before)
                may_import_from_here()
                self.assertEqual(sys.path, after)

    def test_options(self) -> None:
        """
        A class takes the options of `MilterFactory`, a condition by its name among them.
        """
        settings = self.usual()
        settings["milters"][0].update(name="mine", when="served_mine:small")
        (factory,) = build_factory(settings).milter_factories
        self.assertEqual(factory.name, "mine")
        self.assertIsNotNone(factory.when)

    def test_refused(self) -> None:
        """
        What is no milter is told with its reason.
        """
        self.write("served_broken.py", "1 / 0\n")
        self.write("served_leaving.py", "raise SystemExit('goodbye')\n")
        for spec, said in (
            ("nothing", "names no milter, expected module:name"),
            ("served_none:X", "there is no module 'served_none'"),
            ("served_broken:X", "ZeroDivisionError"),
            ("served_mine:Other", "served_mine has no 'Other'"),
            ("served_mine:fails", "failed: KeyError"),
            ("served_mine:leaves", "served_mine:leaves failed: SystemExit: 3"),
            ("served_mine:mumbles", "served_mine:mumbles failed: Mumble: it cannot say why"),
            ("served_leaving:X", "served_leaving:X: SystemExit: goodbye"),
            ("served_mine:MODULE", "has no 'MODULE'"),
        ):
            self.assertIn(said, self.refused(spec))
        self.assertIn("has its own on_error", self.refused("served_mine:made", on_error="accept"))

    def test_reload(self) -> None:
        """
        After a reload new connections have the new milters, those that are there keep theirs.
        """
        settings = self.usual()
        reloadable = Reloadable(settings)
        first = reloadable.buildProtocol(None)
        self.write("served_mine.py", MODULE.replace("version = 1", "version = 2"))
        self.assertTrue(self.successResultOf(reloadable.reload(settings)))
        second = reloadable.buildProtocol(None)
        self.assertEqual([one.milters[0].version for one in (first, second)], [1, 2])
        self.assertEqual(reloadable.connections, set())
        self.assertEqual(self.successResultOf(reloadable.drain(1)), [None])

    def test_broken_reload(self) -> None:
        """
        When the module has become broken, nothing changes.
        """
        settings = self.usual()
        reloadable = Reloadable(settings)
        before = reloadable.current
        for text in ("1 / 0\n", "Mine = 3\n"):
            self.write("served_mine.py", text)
            self.assertFalse(self.successResultOf(reloadable.reload(settings)))
            self.assertIs(reloadable.current, before)


class LifeTests(ServeTestCase):
    """
    Milters that start and stop, over a reload.
    """

    def setUp(self) -> None:
        super().setUp()
        self.config = self.usual("--metrics=inet:0@127.0.0.1", milter="served_mine:Starting")
        self.reloadable = Reloadable(self.config)
        self.first = self.factory()
        self.successResultOf(self.reloadable.start())

    def factory(self) -> Any:
        return self.reloadable.current.milter_factories[0]

    def connect(self) -> Any:
        connection = self.reloadable.buildProtocol(None)
        connection.makeConnection(StringTransport())
        return connection

    def starting(self, value: str) -> None:
        """
        Have factories start otherwise from the next reload on.
        """
        self.write("served_mine.py", MODULE.replace("started = None", f"started = {value}"))

    def test_replaced_ones_stop_behind_their_connections(self) -> None:
        """
        After a reload the new factory has started, and the old one stops when its last connection
        has gone.
        """
        old = self.connect()
        self.assertTrue(self.successResultOf(self.reloadable.reload(self.config)))
        self.assertEqual((self.first.told, self.factory().told), (["start"], ["start"]))
        new = self.connect()
        old.connectionLost(Failure(ConnectionDone()))
        self.assertEqual((self.first.told, self.factory().told), (["start", "stop"], ["start"]))
        new.connectionLost(Failure(ConnectionDone()))
        self.successResultOf(self.reloadable.drain())
        self.assertEqual(self.factory().told, ["start", "stop"])

    def test_failure_to_start_changes_nothing(self) -> None:
        """
        When the new factory does not start, the old one stays in force, and the log says why.
        """
        self.starting("ValueError('no database')")
        with capturedLogs() as logs:
            self.assertFalse(self.successResultOf(self.reloadable.reload(self.config)))
        self.assertIs(self.factory(), self.first)
        self.assertEqual(self.first.told, ["start"])
        self.assertEqual(
            str(formatEvent(logs[-1])),
            "Nothing is reloaded: milter Mine could not start: ValueError: no database",
        )

    def test_failure_without_metrics(self) -> None:
        """
        So it is without metrics.
        """
        self.reloadable = Reloadable(self.usual(milter="served_mine:Starting"))
        self.starting("ValueError('no database')")
        self.assertFalse(self.successResultOf(self.reloadable.reload(self.config)))

    def test_connections_go_to_the_old_one_until_then(self) -> None:
        """
        While the new factory starts connections have the old one; one reload follows the other.
        """
        self.starting("__import__('twisted.internet.defer').internet.defer.Deferred()")
        reloads = [self.reloadable.reload(self.config), self.reloadable.reload(self.config)]
        self.assertIs(self.factory(), self.first)
        module = sys.modules["served_mine"]
        module.Starting.started.callback(None)
        self.assertTrue(self.successResultOf(reloads[0]))
        self.assertNoResult(reloads[1])
        sys.modules["served_mine"].Starting.started.callback(None)
        self.assertTrue(self.successResultOf(reloads[1]))
        self.assertEqual(module.Starting.told, ["start", "stop"])

    def test_end_in_the_middle(self) -> None:
        """
        Who drains while a reload is under way gives it up; later ones do nothing.
        """
        self.starting("__import__('twisted.internet.defer').internet.defer.Deferred()")
        reloaded = self.reloadable.reload(self.config)
        with capturedLogs() as logs:
            self.successResultOf(self.reloadable.drain())
        self.assertFalse(self.successResultOf(reloaded))
        self.assertFalse(self.successResultOf(self.reloadable.reload(self.config)))
        self.assertEqual([str(formatEvent(event)) for event in logs], [])
        self.assertEqual(self.first.told, ["start", "stop"])


class FakeWorkers:
    """
    Stands for a `WorkerService` in tests of what is asked of it.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.options = options
        self.asked: list[str] = []

    def privilegedStartService(self) -> None:
        self.asked.append("open")

    def startService(self) -> None:
        self.asked.append("start")

    def stopService(self) -> Deferred[None]:
        self.asked.append("stop")
        return succeed(None)

    def reload(self, arguments: Any) -> None:
        self.asked.append("reload")
        self.arguments = arguments

    def ask(self, what: str) -> Deferred[list[Any]]:
        return succeed([{"yatxmilter_processes": [[[], 1]]}] * 2)

    def hurry(self) -> None:
        self.asked.append("hurry")


class Reactor(Clock):
    """
    A clock that can be stopped, and called from signal handlers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stops = 0

    def stop(self) -> None:
        """
        Count.
        """
        self.stops += 1

    def callFromThread(self, act: Any) -> None:
        """
        Call.
        """
        act()


class Port:
    """
    An open port.
    """

    def __init__(self, closed: Any) -> None:
        self.closed = closed

    def stopListening(self) -> Any:
        """
        Close.
        """
        return self.closed


class ServiceTests(ServeTestCase):
    """
    The service, without a process of its own.
    """

    def setUp(self) -> None:
        super().setUp()
        self.reactor = Reactor()
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.manager.close)
        self.manager.bind("manager")
        self.manager.setblocking(False)
        environ = {"NOTIFY_SOCKET": str(self.folder / "manager"), "WATCHDOG_USEC": "4000000"}
        environ["WATCHDOG_PID"] = str(os.getpid())
        self.patch(serve_service, "Notifier", lambda: Notifier(environ))
        self.patch(serve_service, "open_port", lambda *a, **k: Port(succeed(None)))
        self.patch(serve_service, "WorkerService", FakeWorkers)
        handlers: dict[int, Any] = {}
        self.handlers = handlers
        self.patch(signal, "signal", handlers.__setitem__)

    def service(self, *words: str) -> Any:
        """
        Make one.
        """
        words = ("--listen=unix:sock", "--milter=served_mine:Mine", *words)
        return ServeService(words, self.settings(*words), self.reactor)

    def told(self) -> list[str]:
        """
        Give what the service manager was told.
        """
        told = []
        while True:
            try:
                told.append(self.manager.recv(1000).decode().splitlines()[0])
            except BlockingIOError:
                return told

    def test_life(self) -> None:
        """
        It tells the service manager that it is ready, alive, and about to end; the pid file is
        there as long as it runs.
        """
        service = self.service("--pidfile=pid", "--umask=022")
        service.startService()
        self.reactor.advance(0)
        self.assertEqual(Path("pid").read_text(), f"{os.getpid()}\n")
        self.reactor.advance(2)
        self.assertEqual(self.told(), ["WATCHDOG=1", "READY=1", "WATCHDOG=1"])
        self.successResultOf(service.stopService())
        self.assertEqual(self.told(), ["STOPPING=1"])
        self.assertFalse(Path("pid").exists())
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_ports_that_close_at_once(self) -> None:
        """
        A port whose closing is no matter of waiting is not waited for.
        """
        self.patch(serve_service, "open_port", lambda *a, **k: Port(None))
        service = self.service()
        service.privilegedStartService()
        service.privilegedStartService()
        self.assertEqual(len(service._ports), 1)
        self.successResultOf(service.stopService())

    def test_signals(self) -> None:
        """
        SIGHUP reloads; the first SIGTERM ends the reactor, the second what is left; then SIGHUP
        and readiness mean nothing any more.
        """
        service = self.service()
        service.startService()
        self.reactor.advance(0)
        before = service.factory.current
        self.handlers[signal.SIGHUP](signal.SIGHUP, None)
        self.assertIsNot(service.factory.current, before)
        self.handlers[signal.SIGTERM](signal.SIGTERM, None)
        self.assertEqual(self.reactor.stops, 1)
        self.successResultOf(service.stopService())
        self.told()
        self.handlers[signal.SIGINT](signal.SIGINT, None)
        self.handlers[signal.SIGHUP](signal.SIGHUP, None)
        service._is_ready()
        self.assertEqual((self.reactor.stops, self.told()), (1, []))

    def test_milters_that_do_not_start(self) -> None:
        """
        A milter that does not start ends the service, with its reason in the log, and a status.
        """
        service = self.service("--milter=served_mine:Starting")
        sys.modules["served_mine"].Starting.started = ValueError("no database")
        service.startService()
        with capturedLogs() as logs:
            self.reactor.advance(0)
        self.assertEqual(
            str(formatEvent(logs[0])),
            "Cannot serve: milter Mine could not start: ValueError: no database",
        )
        self.assertEqual((self.reactor.stops, service.status), (1, 4))
        self.assertNotIn("READY=1", self.told())

    def test_told_to_end_while_they_start(self) -> None:
        """
        Milters that are being started when the end comes are given up; one that has not begun to
        does not begin.
        """
        waiting: Deferred[None] = Deferred()
        service = self.service("--milter=served_mine:Starting")
        factory = sys.modules["served_mine"].Starting
        factory.started = waiting
        service.startService()
        self.reactor.advance(0)
        self.successResultOf(service.stopService())
        self.assertTrue(waiting.called)
        self.assertEqual(service.status, 0)
        factory.told.clear()
        service = self.service("--milter=served_mine:Starting")
        service.startService()
        self.successResultOf(service.stopService())
        self.reactor.advance(0)
        self.assertEqual(factory.told, [])

    def test_workers_that_do_not_start(self) -> None:
        """
        A worker that cannot start ends the service, unless all had once been there.
        """
        service = self.service("--workers=2")
        service._workers.options["failed"](2, "no database")
        service._workers.options["failed"](1, "no database")
        self.assertEqual((self.reactor.stops, service.status), (1, 4))
        service = self.service("--workers=2")
        service._is_ready()
        service._workers.options["failed"](2, "no database")
        self.assertEqual((self.reactor.stops, service.status), (1, 0))

    def test_permissions(self) -> None:
        """
        UNIX sockets are the user's and the group's that are named; others may be named for them.
        """
        opened: list[Any] = []
        self.patch(serve_service, "open_port", lambda *a, **k: opened.append(k) or Port(None))
        self.patch(serve_service, "switchUID", lambda *account: None)
        nobody = pwd.getpwnam("nobody")
        for words, expected in (
            ([], (0o660, None, None)),
            (["--mode=600", f"--group={nobody.pw_gid}"], (0o600, None, nobody.pw_gid)),
            (["--user=root"], (0o660, 0, 0)),
            (["--user=root", "--owner=nobody"], (0o660, nobody.pw_uid, 0)),
            (["--user=root", f"--socket-group={nobody.pw_gid}"], (0o660, 0, nobody.pw_gid)),
        ):
            self.service(*words).privilegedStartService()
            self.assertEqual(tuple(opened.pop().values()), expected)

    def test_user_loads_the_milters(self) -> None:
        """
        Milters are loaded by the user that root becomes; what is wrong with them is told then, and
        no pid file stays.
        """
        became: list[Any] = []
        self.patch(serve_service, "switchUID", lambda *account: became.append(account))
        self.patch(os, "geteuid", lambda: 0)
        for workers in ([], ["--workers=2"]):
            became.clear()
            sys.modules.pop("served_mine", None)
            service = self.service("--user=nobody", *workers)
            self.assertNotIn("served_mine", sys.modules)
            service.privilegedStartService()
            self.assertEqual(len(became), 1)
            self.assertIn("served_mine", sys.modules)
            for pidfile in (["--pidfile=pid"], []):
                service = self.service(
                    "--user=nobody", "--milter=served_none:X", *workers, *pidfile
                )
                self.assertRaises(ConfigurationError, service.privilegedStartService)
                self.assertFalse(Path("pid").exists())

    def test_file_that_others_may_write(self) -> None:
        """
        A configuration that every user may write is told; one that has gone is no matter.
        """
        self.write("conf.toml", "timeout = 5\n")
        for mode, said in ((0o666, 1), (0o664, 0)):
            Path("conf.toml").chmod(mode)
            service = self.service("--config=conf.toml")
            with capturedLogs() as logs:
                service.privilegedStartService()
            self.assertEqual(sum("may write conf.toml" in str(formatEvent(e)) for e in logs), said)
        service = self.service("--config=conf.toml")
        Path("conf.toml").unlink()
        service.privilegedStartService()

    def test_workers(self) -> None:
        """
        What the service is told goes to the workers.
        """
        service = self.service("--workers=2")
        service.startService()
        self.reactor.advance(0)
        service.reload()
        self.patch(serve_service, "parse", mock.Mock(side_effect=ConfigurationError("broken")))
        service.reload()
        self.successResultOf(service.stopService())
        service.terminate()
        self.assertEqual(service._workers.asked, ["open", "start", "reload", "stop", "hurry"])
        self.assertEqual(service._workers.arguments[0]["milters"][0]["object"], "served_mine:Mine")
        service.notifier.tell("WATCHDOG=1")

    def test_metrics(self) -> None:
        """
        What is counted is shown for one process, for several, and after a reload.
        """
        opened: list[Any] = []

        def open_port(reactor: Any, spec: str, factory: Any, **_: Any) -> Port:
            opened.append((spec, factory))
            return Port(succeed(None))

        self.patch(serve_service, "open_port", open_port)
        service = self.service("--metrics=inet:0@127.0.0.1")
        service.privilegedStartService()
        self.assertEqual(opened[-1][0], "inet:0@127.0.0.1")
        self.assertEqual(service._snapshot()["yatxmilter_connections"], [[[], 0]])
        connection = service.factory.buildProtocol(None)
        service.reload()
        service.factory.buildProtocol(None)
        service.reload()
        self.assertEqual(service._snapshot()["yatxmilter_connections"], [[[], 2]])
        self.assertIsNotNone(connection)
        self.successResultOf(service.stopService())
        service = self.service("--metrics=inet:0@127.0.0.1", "--workers=2")
        summed = self.successResultOf(service._snapshot())
        self.assertEqual(summed["yatxmilter_processes"], [[[], 2]])

    def test_no_metrics(self) -> None:
        """
        Without prometheus-client it is told what to install; what is no address is named.
        """
        self.assertIn(
            "--metrics: 'nowhere at all' is no", self.complaint("--metrics=nowhere at all")
        )
        with mock.patch.object(importlib.util, "find_spec", lambda name: None):
            self.assertIn("yatxmilter[metrics]", self.complaint("--metrics=inet:0@127.0.0.1"))

    def test_pidfile_that_stays(self) -> None:
        """
        A pid file that cannot be removed any more is emptied; one that is gone is no matter.
        """
        service = self.service("--pidfile=pid", "--user=root")
        self.patch(serve_service, "switchUID", lambda *account: None)
        service.privilegedStartService()
        with mock.patch.object(os, "unlink", side_effect=PermissionError):
            self.successResultOf(service.stopService())
        self.assertEqual(Path("pid").read_text(), "")
        Path("pid").unlink()
        self.successResultOf(service.stopService())

    def test_account(self) -> None:
        """
        Privileges are dropped once the sockets are open; whom nobody knows is named.
        """
        became: list[Any] = []
        self.patch(serve_service, "switchUID", lambda *account: became.append(account))
        for words, account in (
            (["--user=root"], (0, 0)),
            (["--group=root"], (os.getuid(), 0)),
        ):
            self.service(*words).privilegedStartService()
            self.assertEqual(became.pop(), account)
        for option in ("user", "group", "owner", "socket-group"):
            said = self.complaint(f"--{option}=nobody-of-that-name")
            self.assertIn(f"--{option} is 'nobody-of-that-name', expected a", said)

    def test_worker(self) -> None:
        """
        A worker is made from settings that JSON has carried; what it cannot load ends it with a
        message.
        """
        self.patch(serve_service, "begin_log", lambda *_, **more: None)
        settings = json.loads(json.dumps(self.usual("--merge=strictest", "--mode=660")))
        worker = make_worker(settings)
        self.assertTrue(self.successResultOf(worker.reload(settings)))
        settings = self.usual(milter="served_mine:None")
        ending = self.assertRaises(SystemExit, make_worker, settings)
        self.assertIn("served_mine has no 'None'", str(ending.code))

    def test_passed_on(self) -> None:
        """
        What a worker says is in the log as it said it.
        """
        self.patch(sys, "stderr", io.StringIO())
        serve_log.Outlet().pass_on(1, "info: hello")
        self.assertEqual(sys.stderr.getvalue(), "info: hello\n")

    def test_plugin_options(self) -> None:
        """
        The plugin's options are those of the command, and so are its complaints.
        """
        words = ["--listen=unix:sock", "--milter=served_mine:Mine"]
        options = Options()
        options.parseOptions(words)
        self.assertIsInstance(makeService(options), ServeService)
        self.assertRaises(UsageError, Options().parseOptions, [*words, "--check-config"])
        self.assertRaises(UsageError, Options().parseOptions, [*words, "--mode=x"])
        options.settings["milters"][0]["object"] = "served_mine:None"
        self.assertRaises(SystemExit, makeService, options)


class CommandTests(ServeTestCase):
    """
    The command as far as it is not a process.
    """

    def run_command(self, *words: str) -> tuple[int, str]:
        """
        Run it; give its status, and what it says.
        """
        parser = ArgumentParser()
        serve.add_arguments(parser)
        self.patch(sys, "stdout", io.StringIO())
        self.patch(sys, "stderr", io.StringIO())
        status = serve.run(parser.parse_args(words))
        return status, sys.stdout.getvalue() + sys.stderr.getvalue()

    def test_check(self) -> None:
        """
        C{--check-config} says whether all is good.
        """
        words = ["--listen=unix:sock", "--milter=served_mine:Mine", "--check-config"]
        self.assertEqual(self.run_command(*words), (0, "the configuration is good\n"))
        status, said = self.run_command(*words, "--mode=x")
        self.assertEqual(status, 2)
        self.assertIn("yatxmilter serve: --mode is 'x'", said)

    def test_milter_that_cannot_be_built(self) -> None:
        """
        It says which class cannot be built, and why; a milter whose factory has to be started
        before is not tried.
        """
        names = ["Raising", "Mine", "nothing", "Starting"]
        words = [f"--milter=served_mine:{name}" for name in names]
        status, said = self.run_command("--listen=unix:sock", *words, "--check-config")
        self.assertEqual(status, 2)
        self.assertEqual(
            said.splitlines(),
            [
                "yatxmilter serve: --milter: Raising could not be built: KeyError: 'no store'",
                "yatxmilter serve: --milter: nobody could not be built:"
                " TypeError: None does not provide IMilter",
            ],
        )

    def test_no_pidfile(self) -> None:
        """
        A file that cannot be written ends it before it serves.
        """
        self.patch(serve_service, "open_port", lambda *a, **k: Port(None))
        self.patch(serve, "begin_log", lambda *_, **more: None)
        status, said = self.run_command(
            "--listen=unix:sock", "--milter=served_mine:Mine", "--pidfile=none/pid"
        )
        self.assertEqual(status, 3)
        self.assertIn("No such file or directory", said)


class LogTests(ServeTestCase):
    """
    What is logged, and how.
    """

    def begun(self, *words: str, **environ: str) -> str:
        """
        Begin a log, and give what an event looks like in it; one of no interest is left out.
        """
        begun: list[Any] = []
        self.patch(sys, "stderr", io.StringIO())
        self.patch(globalLogBeginner, "beginLoggingTo", lambda o, **_: begun.extend(o))
        with mock.patch.dict(os.environ, environ):
            serve_log.begin_log(self.usual(*words))
        for level, namespace in ((LogLevel.warn, "here"), (LogLevel.info, "twisted.web")):
            begun[0]({
                "log_format": "Mail of {sender}", "sender": "joe@example.com", "log_time": 0.0,
                "log_level": level, "log_namespace": namespace, "connection": 7,
            })  # fmt: skip
        return sys.stderr.getvalue()

    def test_kinds(self) -> None:
        """
        A line of text has time and level; the journal knows the time, and gets a number.
        """
        self.assertEqual(
            self.begun(), "1970-01-01T00:00:00.000+00:00 [here#warn] Mail of joe@example.com\n"
        )
        self.assertEqual(self.begun(JOURNAL_STREAM="8:1"), "<4>Mail of joe@example.com\n")
        told = json.loads(self.begun("--json-log"))
        self.assertEqual((told["message"], told["connection"]), ("Mail of joe@example.com", 7))

    def test_redacted(self) -> None:
        """
        Processes that have the same key replace the same by the same.
        """
        key = {"YATXMILTER_REDACTION_KEY": "not a secret", "JOURNAL_STREAM": "8:1"}
        first, second = self.begun("--redact", **key), self.begun("--redact", **key)
        self.assertRegex(first, "^<4>Mail of address-[0-9a-f]{10}\n$")
        self.assertEqual(first, second)
        self.assertNotEqual(first, self.begun("--redact", JOURNAL_STREAM="8:1"))

    def test_shortage(self) -> None:
        """
        Connections that could not be taken are told at once, and then once a minute how many.
        """
        written: list[Any] = []
        now = [100.0]
        shortage = serve_log.Shortage(written.append, lambda: now[0])
        short = {"log_format": "EMFILE recovery: Closed socket from {address}", "address": ""}
        full = {"log_format": "Could not accept ({acceptError})", "acceptError": "ENFILE"}
        full["log_format"] = "Could not accept new connection ({acceptError})"
        for event in (short, short, full, {"log_format": "EMFILE encountered; releasing"}):
            shortage(event)
        now[0] += 60
        shortage(full)
        shortage({"log_format": "another"})
        said = [str(formatEvent(event)) for event in written]
        self.assertEqual(len(said), 3)
        self.assertIn(
            "(1 since this was last said): this process may open no more files (EM", said[0]
        )
        self.assertIn(
            "(3 since this was last said): this process may open no more files (EN", said[1]
        )
        self.assertEqual(said[2], "another")


class NotifierTests(SynchronousTestCase):
    """
    The service manager.
    """

    def test_abstract(self) -> None:
        """
        An abstract socket is spoken to by its name.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind("")
            name = manager.getsockname()[1:].decode()
            Notifier({"NOTIFY_SOCKET": f"@{name}"}).ready("well")
            self.assertEqual(manager.recv(100), b"READY=1\nSTATUS=well")

    def test_nobody(self) -> None:
        """
        Without a manager, or with one that is gone, nothing happens.
        """
        self.assertIsNone(Notifier({}).watchdog)
        Notifier({}).stopping()
        Notifier({"NOTIFY_SOCKET": "/nowhere/at/all"}).alive()
