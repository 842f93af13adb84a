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

from yatxmilter import DISCONNECT, MilterFactory, Reply
from yatxmilter import constants as c
from yatxmilter._cli import serve, serve_log, serve_milters, serve_service
from yatxmilter._cli.serve_milters import Reloadable, build_factory, may_import_from_here
from yatxmilter._cli.serve_options import ConfigurationError
from yatxmilter._cli.serve_service import Options, ServeService, make_worker, makeService
from yatxmilter.conditions import Condition
from yatxmilter.remote import RemoteMilterFactory
from yatxmilter.service._log_outlets import LogFile
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
        # The command handles them from its beginning.
        for number in (signal.SIGHUP, signal.SIGUSR1):
            self.addCleanup(signal.signal, number, signal.getsignal(number))

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

    def test_each_kind_of_value_is_read_from_the_command_line(self) -> None:
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

    def test_each_wrong_value_is_told_all_at_once_by_the_options_name(self) -> None:
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

    def test_missing_address_or_milter_option_is_named(self) -> None:
        """
        Without an address, or without a milter, the option that is missing is named.
        """
        self.assertIn("give --listen", self.complaint("--milter=served_mine:Mine"))
        self.assertIn("give --milter", self.complaint("--listen=unix:sock"))

    def test_file_says_all_that_command_line_can_say_which_counts_more(self) -> None:
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

    def test_what_is_wrong_with_a_file_is_told_with_its_line(self) -> None:
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

    def test_file_that_is_not_there_is_named(self) -> None:
        """
        A file that is not there is named.
        """
        self.assertEqual(
            self.complaint("--config=none.toml"), "none.toml: No such file or directory"
        )

    def test_python_without_a_parser_for_toml_says_what_to_install(self) -> None:
        """
        A Python without a parser for TOML says what to install.
        """
        self.write("good.toml", "")
        with mock.patch.dict(sys.modules, {"tomllib": None, "tomli": None}):
            self.assertIn("pip install tomli", self.complaint("--config=good.toml"))

    def test_what_a_worker_is_given_reads_the_same_once_more(self) -> None:
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

    def test_milter_may_be_a_class_a_factory_or_a_function_that_makes_one(self) -> None:
        """
        A class, a factory, and a function that makes one; with a colon, or a dotted path.
        """
        for spec in ("Mine", "make", "made"):
            (factory,) = self.build(milter=f"served_mine:{spec}")
            self.assertIsInstance(factory, MilterFactory)
        (factory,) = self.build(milter="served_mine.Mine")
        self.assertEqual(factory.milter.__name__, "Mine")

    def test_module_in_the_current_folder_is_found_as_with_python_m(self) -> None:
        """
        A module in the current folder is found, as with C{python -m}.
        """
        self.patch(sys, "path", [one for one in sys.path if one not in ("", str(self.folder))])
        self.assertEqual(len(self.build()), 1)

    def test_ctrl_c_while_milters_are_loaded_ends_the_program(self) -> None:
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

    def test_class_takes_options_of_milterfactory_condition_by_its_name_among_them(self) -> None:
        """
        A class takes the options of `MilterFactory`, a condition by its name among them.
        """
        settings = self.usual()
        settings["milters"][0].update(name="mine", when="served_mine:small")
        (factory,) = build_factory(settings).milter_factories
        self.assertEqual(factory.name, "mine")
        self.assertIsNotNone(factory.when)

    def test_what_is_no_milter_is_told_with_its_reason(self) -> None:
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

    def test_after_a_reload_new_connections_have_new_milters(self) -> None:
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

    def test_when_the_module_has_become_broken_nothing_changes(self) -> None:
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
        self.assertEqual(
            [str(formatEvent(event)) for event in logs],
            [
                "Draining: 0 connections have any time to come to their end (server)",
                "Stopped (server)",
            ],
        )
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

    def test_service_manager_is_told_of_ready_alive_and_ending(self) -> None:
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

    def test_sighup_reloads_and_sigterm_ends(self) -> None:
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

    def test_reload_before_it_is_ready(self) -> None:
        """
        A reload while the workers are started does not make it ready.
        """
        service = self.service("--workers=2")
        service.startService()
        self.told()
        with capturedLogs() as logs:
            service.reload()
        (event,) = logs
        self.assertIn("(supervisor of 2 workers)", str(formatEvent(event)))
        self.assertEqual(self.told(), ["RELOADING=1"])
        service._workers.options["ready"]()
        service.reload()
        self.assertEqual(self.told(), ["READY=1", "RELOADING=1", "READY=1"])
        self.successResultOf(service.stopService())
        self.told()

    def test_lines_of_its_life(self) -> None:
        """
        Ready, a reload, draining and the end are one line each, with what the process is.
        """
        for words, role, reloads in (
            ((), "server", ["Reloading the", "Reloaded, for"]),
            (("--workers=2",), "supervisor of 2 workers", ["Reloading: each worker"]),
        ):
            with capturedLogs() as logs:
                service = self.service(*words)
                service.startService()
                self.reactor.advance(0)
                if words:
                    service._workers.options["ready"]()
                service.reload()
                self.successResultOf(service.stopService())
            said = [str(formatEvent(event)) for event in logs]
            expected = ["Ready, listening on unix:sock", *reloads, "Draining: ", "Stopped"]
            self.assertEqual(len(said), len(expected), said)
            for line, start in zip(said, expected, strict=True):
                self.assertTrue(line.startswith(start) and line.endswith(f"({role})"), line)
        self.told()

    def test_configuration_that_has_become_broken(self) -> None:
        """
        A configuration that cannot be read any more changes nothing, and is told.
        """
        service = self.service()
        before = service.factory.current
        with capturedLogs() as logs:
            self.patch(serve_service, "parse", mock.Mock(side_effect=ConfigurationError("a\nb")))
            service.reload()
        said = [str(formatEvent(event)) for event in logs]
        self.assertEqual(said, ["Nothing is reloaded: a", "Nothing is reloaded: b"])
        self.assertIs(service.factory.current, before)

    def test_reopens_its_log(self) -> None:
        """
        SIGUSR1 opens the log file anew.
        """
        service = self.service()
        service.startService()
        self.reactor.advance(0)
        with capturedLogs() as logs:
            self.handlers[signal.SIGUSR1](signal.SIGUSR1, None)
        self.assertIn("SIGUSR1", str(formatEvent(logs[0])))
        self.successResultOf(service.stopService())

    def test_reloads_of_a_supervisor(self) -> None:
        """
        A configuration that a supervisor cannot read is in the metrics of all, until it can.
        """
        service = self.service("--workers=2")

        def reloaded() -> Any:
            found = self.successResultOf(service._snapshot())
            return found["yatxmilter_last_reload_successful"][0][1]

        self.assertEqual(reloaded(), 1)
        with mock.patch.object(serve_service, "parse", side_effect=ConfigurationError("broken")):
            service.reload()
        self.assertEqual(reloaded(), 0)
        service.reload()
        self.assertEqual(reloaded(), 1)

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

    def test_unix_sockets_are_the_users_and_the_groups_that_are_named(self) -> None:
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

    def test_what_the_service_is_told_goes_to_the_workers(self) -> None:
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

    def test_counts_are_shown_for_one_process_and_for_several(self) -> None:
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

    def test_without_prometheus_client_it_is_told_what_to_install(self) -> None:
        """
        Without prometheus-client it is told what to install; what is no address is named.
        """
        self.assertIn(
            "--metrics: 'nowhere at all' is not", self.complaint("--metrics=nowhere at all")
        )
        with mock.patch.object(importlib.util, "find_spec", lambda name: None):
            self.assertIn(
                "pip install prometheus-client", self.complaint("--metrics=inet:0@127.0.0.1")
            )

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

    def test_privileges_are_dropped_once_the_sockets_are_open(self) -> None:
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

    def test_worker_is_made_from_settings_that_json_has_carried(self) -> None:
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

    def test_what_a_worker_says_is_in_the_log_as_it_said_it(self) -> None:
        """
        What a worker says is in the log as it said it.
        """
        self.patch(sys, "stderr", io.StringIO())
        serve_log.Outlet().pass_on(1, "info: hello")
        self.assertEqual(sys.stderr.getvalue(), "info: hello\n")

    def test_plugins_options_are_those_of_command_and_so_are_its_complaints(self) -> None:
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

    def test_check_config_says_whether_all_is_good(self) -> None:
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

    def test_file_that_cannot_be_written_ends_it_before_it_serves(self) -> None:
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

    def test_line_of_text_has_time_and_level(self) -> None:
        """
        A line of text has time and level; the journal knows the time, and gets a number.
        """
        self.assertEqual(
            self.begun(), "1970-01-01T00:00:00.000+00:00 [here#warn] Mail of joe@example.com\n"
        )
        self.assertEqual(self.begun(JOURNAL_STREAM="8:1"), "<4>Mail of joe@example.com\n")
        told = json.loads(self.begun("--json-log"))
        self.assertEqual((told["message"], told["connection"]), ("Mail of joe@example.com", 7))

    def test_processes_that_have_the_same_key_replace_the_same_by_the_same(self) -> None:
        """
        Processes that have the same key replace the same by the same.
        """
        key = {"YATXMILTER_REDACTION_KEY": "not a secret", "JOURNAL_STREAM": "8:1"}
        first, second = self.begun("--redact", **key), self.begun("--redact", **key)
        self.assertRegex(first, "^<4>Mail of address-[0-9a-f]{10}\n$")
        self.assertEqual(first, second)
        self.assertNotEqual(first, self.begun("--redact", JOURNAL_STREAM="8:1"))

    def test_connections_that_could_not_be_taken_are_told_at_once(self) -> None:
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


class TableTests(ServeTestCase):
    """
    What the tables of a file may say of a milter.
    """

    def milters(self, text: str) -> Any:
        """
        Build the milters of a file.
        """
        self.write("good.toml", f'listen = ["unix:sock"]\n{text}')
        return build_factory(self.settings("--config=good.toml")).milter_factories

    def mistakes(self, text: str) -> list[str]:
        """
        Give what is said of wrong tables, by serve as a whole.
        """
        self.write("bad.toml", f'listen = ["unix:sock"]\n{text}')
        self.patch(sys, "stderr", io.StringIO())
        parser = ArgumentParser()
        serve.add_arguments(parser)
        arguments = parser.parse_args(["--config=bad.toml", "--check-config"])
        self.assertEqual(serve.run(arguments), 2)
        prefix = "yatxmilter serve: bad.toml:"
        lines = sys.stderr.getvalue().splitlines()
        self.assertEqual([line for line in lines if not line.startswith(prefix)], [])
        return [line.removeprefix(prefix) for line in lines]

    def test_remote_milter_is_a_table_with_its_addresses(self) -> None:
        """
        A milter that runs elsewhere is a table with its address, or several, and its options.
        """
        (one, two) = self.milters(
            '[[milter]]\nremote = "inet:8891@127.0.0.1"\nname = "OpenDKIM"\ntimeout = 20\n'
            'connect_timeout = 2\nmax_body = "none"\non_error = "accept"\nshadow = true\n'
            '[[milter]]\nremote = ["unix:/a", "unix:/b"]\nreuse = true\ntimeout = "none"\n'
        )
        self.assertIsInstance(one, RemoteMilterFactory)
        self.assertEqual((one.name, one.on_error), ("OpenDKIM", c.SMFIS_ACCEPT))
        self.assertIsNotNone(one.shadow)
        self.assertEqual(
            [state.address for state in two.remote_addresses()], ["unix:/a", "unix:/b"]
        )

    def test_options_in_table_go_to_function_factory_or_class_that_is_named(self) -> None:
        """
        The options in a table go to the function, the factory or the class that is named.
        """
        self.write(
            "served_options.py",
            "from yatxmilter import Milter, MilterFactory\n"
            "class Mine(Milter):\n"
            "    def __init__(self, factory, protocol, *, store='x'):\n"
            "        super().__init__(factory, protocol)\n"
            "        self.store = store\n"
            "def make(store, delay=3):\n"
            "    made = MilterFactory(Mine)\n"
            "    made.given = store, delay\n"
            "    return made\n"
            "def any(**options):\n"
            "    return make(**options)\n",
        )
        self.addCleanup(sys.modules.pop, "served_options", None)
        one, two, three = self.milters(
            '[[milter]]\nobject = "served_options:make"\n[milter.options]\nstore = "s"\n'
            '[[milter]]\nobject = "served_options:Mine"\noptions = { store = "t" }\n'
            '[[milter]]\nobject = "served_options:any"\noptions = { store = "u", delay = 4 }\n'
        )
        self.assertEqual((one.given, three.given), (("s", 3), ("u", 4)))
        self.assertEqual((two.name, two.build_milter(None).store), ("Mine", "t"))
        self.assertEqual(
            self.mistakes(
                '[[milter]]\nobject = "served_options:make"\noptions = { stroe = 1 }\n'
                '[[milter]]\nobject = "served_mine:make"\noptions = { a = 1 }\n'
                '[[milter]]\nobject = "served_mine:made"\noptions = { a = 1 }\n'
                '[[milter]]\nobject = "served_mine:Mine"\noptions = { a = 1 }\n'
                '[[milter]]\nobject = "served_mine:Mine"\noptions = 3\n'
                '[[milter]]\nobject = "yatxmilter.pymilter:served_mine:Mine"\noptions = {a = 1}\n'
            ),
            [
                "3: served_options:make has no option 'stroe', did you mean 'store'?",
                "3: served_options:make needs the option 'store'; write it below [milter.options]",
                "6: served_mine:make has no option 'a', it takes none",
                "9: served_mine:made is not called, so it takes no options",
                "12: served_mine:Mine has no option 'a', it takes none",
                "16: options is 3, expected a table such as { store = 'x' }",
                "18: yatxmilter.pymilter:served_mine:Mine is a class for pymilter, which has no"
                " options",
            ],
        )

    def test_options_of_what_says_nothing_of_them(self) -> None:
        """
        What does not say which options it takes is called with them.
        """
        (said,) = self.mistakes('[[milter]]\nobject = "builtins:dict"\noptions = { a = 1 }\n')
        self.assertTrue(said.startswith("3: builtins:dict is {'a': 1}, expected a Milter"), said)

    def test_which_mail_a_milter_is_for_can_be_said_in_a_table(self) -> None:
        """
        Which mail a milter is for can be said in a table: kinds of condition, joined.
        """
        for when, expected in (
            ("{ client_in = ['192.0.2.0/24'] }", "client"),
            ("{ sender_matches = 'example.com', authenticated = false }", "both"),
            ("{ recipient_matches = ['a@example.com'] }", "one"),
            ("{ not = { over_tls = true } }", "not"),
            (
                "{ any = [{ over_tls = true }, { macro_is = { j = ['a', 'b'], i = 'c' } }] }",
                "any",
            ),
            ("{ all = ['served_mine:small', { over_tls = true }] }", "all"),
            ("'served_mine:small'", "function"),
        ):
            (milter,) = self.milters(f'[[milter]]\nobject = "served_mine:Mine"\nwhen = {when}\n')
            self.assertIsInstance(milter.when, Condition, expected)

    def test_each_mistake_in_a_condition_is_told(self) -> None:
        """
        Each mistake in a condition is told, with the nearest spelling and what was expected.
        """
        self.assertEqual(
            self.mistakes(
                '[[milter]]\nobject = "served_mine:Mine"\n'
                "when = { client_inn = 1, over_tls = 3, sender_matches = [], zzz = 1,"
                " any = [{ client_in = ['x'] }, 7], all = 3, macro_is = [], not = {} }\n"
                '[[milter]]\nobject = "served_mine:Mine"\nwhen = { macro_is = { j = 3 } }\n'
                '[[milter]]\nobject = "served_mine:Mine"\nwhen = "served_mine:smal"\n'
            ),
            [
                "4: when has 'client_inn', did you mean 'client_in'?",
                "4: when.over_tls is 3, expected true or false",
                "4: when.sender_matches is [], expected a list of texts",
                "4: when has 'zzz', expected one of client_in, sender_matches, recipient_matches,"
                " authenticated, over_tls, macro_is, not, any, all",
                "4: when.any.1.client_in: 'x' does not appear to be an IPv4 or IPv6 network",
                "4: when.any.2 is 7, expected a table such as { client_in = ['192.0.2.0/24'] }, or"
                " module:name",
                "4: when.all is 3, expected a list of tables",
                "4: when.macro_is is [], expected a table such as { j = ['mx'] }",
                "4: when.not is {}, expected a table such as { client_in = ['192.0.2.0/24'] }, or"
                " module:name",
                "7: when.macro_is.j is 3, expected a list of texts",
                "9: served_mine:smal: served_mine has no 'smal', did you mean 'small'?",
            ],
        )

    def test_every_mistake_at_once(self) -> None:
        """
        Mistakes of all kinds are told together, in the order of the file.
        """
        said = self.mistakes(
            'merge = "chian"\non_error = "accept"\n\n'
            '[[milter]]\nremote = ["unix:", "inet:0@127.0.0.1"]\nconnect_timeout = "none"\n'
            "[milter.on_error]\nemo = 'accept'\neom = 'acept'\nhelo = ''\n\n"
            '[[milter]]\nobject = "served_none:X"\nreuse = true\ntimeout = -1\nmerge = "chain"\n'
            '[[milter]]\nobject = "served_mne:Mine"\n'
            '[[milter]]\nobject = "served_mine.py:Mine"\n'
            '[[milter]]\nobject = "a:b"\nremote = "unix:/c"\n'
            '[[milter]]\nremote = "unix:/c"\noptions = {}\n[[milter]]\nremote = []\n'
            "[[milter]]\n"
        )
        for number, (start, words) in enumerate(
            (
                ("2: merge is 'chian'", "did you mean 'chain'?"),
                ("3: on_error is an option of a milter", "below [[milter]]"),
                ("6: remote: 'unix:' is not a milter's address", "no path"),
                ("6: remote: 'inet:0@127.0.0.1' is not an address to connect to", "port 0"),
                ("7: connect_timeout is 'none'", "expected seconds"),
                ("8: on_error has the stage 'emo'", "did you mean 'eom'?"),
                ("8: on_error.eom is 'acept'", "did you mean 'accept'?"),
                ("8: on_error.helo is ''", "expected tempfail, "),
                ("15: reuse is for a remote milter", ""),
                ("16: timeout is -1", "expected more than 0 seconds"),
                ("17: merge is not a milter's option", "above the first [[milter]]"),
                ("19: served_mne:Mine: there is no module", "did you mean 'served_mine'?"),
                ("21: served_mine.py:Mine: there is no module", "write it without .py"),
                ("22: [[milter]] has both object and remote", "expected object = "),
                ("27: options are for an object", ""),
                ("29: remote is empty", "expected an address"),
                ("30: [[milter]] has no object and no remote", "expected object = "),
            )
        ):
            self.assertTrue(said[number].startswith(start), said[number])
            self.assertIn(words, said[number])
        self.assertEqual(len(said), number + 1)

    def test_values_of_wrong_kind_in_table_are_told_with_what_was_expected(self) -> None:
        """
        Values of the wrong kind, in a table, are told with what was expected.
        """
        said = self.mistakes(
            '[[milter]]\nobject = 3\n[[milter]]\nremote = "unix:/x"\nconnect_timeout = "none"\n'
            'on_eror = 3\n[[milter]]\nremote = "inet:8891@127.0.0.1"\nreuse = 1\nshadow = "x"\n'
        )
        for line, start in zip(
            said,
            (
                "3: object is 3, expected a text",
                "6: connect_timeout is 'none', expected seconds",
                "7: unknown option 'on_eror', did you mean 'on_error'?",
                "10: reuse is 1, expected true or false",
                "11: shadow is 'x', expected true or false",
            ),
            strict=True,
        ):
            self.assertEqual(line, start)

    def test_answers_for_failures(self) -> None:
        """
        What is answered for a milter that has failed is a word, a reply, or a table of stages.
        """
        for word, expected in (
            ('"disconnect"', DISCONNECT),
            ('"451 4.3.0 Later"', Reply("451", "4.3.0", "Later")),
            ("{ eom = 'accept', default = '451' }", c.SMFIS_ACCEPT),
        ):
            (milter,) = self.milters(
                f'[[milter]]\nobject = "served_mine:Mine"\non_error = {word}\n'
            )
            found = milter.on_error
            self.assertEqual(found["xxfi_eom"] if isinstance(found, dict) else found, expected)

    def test_what_no_option_says_alone(self) -> None:
        """
        What is wrong only when a remote milter is made is told with its place.
        """
        self.patch(serve_milters, "RemoteMilterFactory", mock.Mock(side_effect=ValueError("no")))
        self.assertEqual(self.mistakes('[[milter]]\nremote = "unix:/x"\n'), ["3: no"])

    def test_class_for_pymilter(self) -> None:
        """
        A class that is written for pymilter may be named in a table.
        """
        self.write("served_pymilter.py", "import Milter\nclass Mine(Milter.Base):\n    pass\n")
        self.addCleanup(sys.modules.pop, "served_pymilter", None)
        (made,) = self.milters(
            '[[milter]]\nobject = "yatxmilter.pymilter:served_pymilter:Mine"\ntimeout = 5\n'
        )
        self.assertEqual(made.timeout, 5)

    def test_module_that_a_milter_imports(self) -> None:
        """
        A module that is missing to a milter's own is told as that.
        """
        self.write("served_wanting.py", "import served_nowhere\n")
        (said,) = self.mistakes('[[milter]]\nobject = "served_wanting:X"\n')
        self.assertIn("there is no module 'served_nowhere', which it imports", said)

    def test_options_that_do_not_fit(self) -> None:
        """
        What only the factory of all can find wrong is told as well.
        """
        self.patch(serve_milters, "MilterProtocolFactory", mock.Mock(side_effect=ValueError("no")))
        self.assertRaises(ConfigurationError, build_factory, self.usual())

    def test_milters_are_not_roots_to_load(self) -> None:
        """
        Where root is to serve, a mistake in the options does not have it load milters.
        """
        self.write("bad.toml", 'merge = "x"\n[[milter]]\nobject = "served_mine:Mine"\n')
        self.patch(sys, "stderr", io.StringIO())
        parser = ArgumentParser()
        serve.add_arguments(parser)
        for uid, loaded in ((0, False), (1, True)):
            sys.modules.pop("served_mine", None)
            with mock.patch.object(os, "geteuid", lambda uid=uid: uid):
                self.assertEqual(serve.run(parser.parse_args(["--config=bad.toml"])), 2)
            self.assertEqual("served_mine" in sys.modules, loaded)

    def test_help_has_groups_and_defaults(self) -> None:
        """
        The help lists the options in groups, with what holds without them.
        """
        parser = ArgumentParser()
        serve.add_arguments(parser)
        text = " ".join(parser.format_help().split())
        for words in (
            "milters: --milter", "who may connect, and where: --listen", "the process:",
            "seconds that an MTA may be silent (default: 7210)", "IP address (default: none)",
            "permissions of UNIX sockets (default: 660)", "error or critical (default: info)",
        ):  # fmt: skip
            self.assertIn(words, text)


class ReloadTests(ServeTestCase):
    """
    What a reload tells.
    """

    def reloaded(self, before: str, after: str, *, rewrite: bool = False) -> str:
        """
        Reload, with another file; give the line that is logged.
        """
        lines = 'listen = ["unix:sock"]\n'
        self.write("conf.toml", lines + before)
        reloadable = Reloadable(self.settings("--config=conf.toml"))
        self.write("conf.toml", lines + after)
        if rewrite:
            self.write("served_mine.py", MODULE + "more = 1\n")
        with capturedLogs() as logs:
            done = self.successResultOf(reloadable.reload(self.settings("--config=conf.toml")))
        self.assertTrue(done)
        first, last = [str(formatEvent(event)) for event in logs]
        self.assertEqual(first, "Reloading the configuration and the milters (server)")
        return last.removeprefix("Reloaded, for new connections: ").removesuffix(" (server)")

    def test_names_what_has_changed(self) -> None:
        """
        It names what has changed: options, milters, their options and their modules.
        """
        mine = '[[milter]]\nobject = "served_mine:Mine"\n'
        make = '[[milter]]\nobject = "served_mine:make"\n'
        for before, after, expected in (
            (mine, mine, "nothing has changed"),
            (mine, f"timeout = 60\n{mine}", "timeout = 60 (was 7210)"),
            (f"max_connections = 5\n{mine}", mine, "max_connections = none (was 5)"),
            (mine, make, "milter served_mine:Mine is gone; milter served_mine:make is new"),
            (mine + make, make + mine, "the order of the milters"),
            (mine, f"{mine}timeout = 5\n", "milter served_mine:Mine: timeout = 5 (was none)"),
            (f"{mine}timeout = 5\n", mine, "milter served_mine:Mine: timeout = none (was 5)"),
            (
                f'{mine}when = "served_mine.small"\n',
                f"{mine}when = {{ over_tls = true }}\n",
                "milter served_mine:Mine: when = {'over_tls': True} (was served_mine.small)",
            ),
        ):
            self.assertEqual(self.reloaded(before, after), expected)
        self.assertEqual(self.reloaded(mine, mine, rewrite=True), "module served_mine")

    def test_module_without_a_file(self) -> None:
        """
        A module that has no file is no matter.
        """
        before = sys.modules["builtins"]
        builtin = '[[milter]]\nremote = "unix:/x"\nwhen = "builtins:callable"\n'
        self.assertEqual(self.reloaded(builtin, builtin), "nothing has changed")
        self.assertIs(sys.modules["builtins"], before)

    def test_names_what_has_changed_and_needs_a_restart(self) -> None:
        """
        It names what has changed and needs a restart.
        """
        mine = '[[milter]]\nobject = "served_mine:Mine"\n'
        self.assertEqual(
            self.reloaded(mine, f'workers = 3\nlog_level = "warn"\n{mine}'),
            "nothing has changed; a restart is needed for workers, log_level",
        )

    def test_reload_that_cannot_be_is_metric_until_there_is_one_that_can(self) -> None:
        """
        A reload that cannot be is a metric, until there is one that can.
        """
        settings = self.usual("--metrics=inet:0@127.0.0.1")
        reactor = Clock()
        reloadable = Reloadable(settings, reactor=reactor)
        self.successResultOf(reloadable.start())

        def value(name: str) -> Any:
            return reloadable.snapshot()[f"yatxmilter_{name}"][0][1]

        self.assertEqual(value("last_reload_successful"), 1)
        loaded = value("last_reload_success_seconds")
        reloadable.not_reloaded("broken")
        self.assertEqual(value("last_reload_successful"), 0)
        self.successResultOf(reloadable.reload(settings))
        self.assertEqual(value("last_reload_successful"), 1)
        self.assertGreaterEqual(value("last_reload_success_seconds"), loaded)
        reactor.advance(1)
        reactor.advance(1.5)
        self.assertEqual(value("reactor_lag_seconds")[-1], 0.5)
        self.successResultOf(reloadable.drain())
        self.assertEqual(reactor.getDelayedCalls(), [])
        self.successResultOf(reloadable.drain())


class OutletTests(ServeTestCase):
    """
    Where the log goes.
    """

    def begin(self, *words: str, worker: bool = False) -> Any:
        """
        Begin a log; give what writes an event.
        """
        begun: list[Any] = []
        self.patch(globalLogBeginner, "beginLoggingTo", lambda o, **_: begun.extend(o))
        self.patch(serve_log, "OUTLET", serve_log.Outlet())
        serve_log.begin_log(self.usual(*words), worker=worker)
        self.addCleanup(self.close, serve_log.OUTLET)

        def write(text: str, level: Any = LogLevel.warn) -> None:
            event = {"log_format": text, "log_time": 0.0, "log_level": level}
            begun[0]({**event, "log_namespace": "here"})

        return write

    def close(self, outlet: Any) -> None:
        """
        Close what was opened.
        """
        if outlet._out is not None:
            outlet._out.close()

    def said(self, act: Any) -> str:
        """
        Give the one line that is logged meanwhile.
        """
        with capturedLogs() as logs:
            act()
        (event,) = logs
        return str(formatEvent(event))

    def test_log_file_is_written_at_its_end(self) -> None:
        """
        A log file is written at its end, and opened anew by its name when a signal says so.
        """
        self.write("my.log", "before\n")
        write = self.begin("--log-file=my.log")
        write("one")
        Path("my.log").rename("my.log.1")
        write("two")
        self.assertEqual(self.said(serve_log.OUTLET.reopen), "Opened my.log anew")
        write("three")
        serve_log.OUTLET.pass_on(1, "of a worker")
        old, new = Path("my.log.1").read_text(), Path("my.log").read_text()
        self.assertEqual([line.split()[-1] for line in old.splitlines()], ["before", "one", "two"])
        self.assertEqual(new.splitlines()[0].split()[-1], "three")
        self.assertEqual(new.splitlines()[1], "of a worker")
        self.assertEqual(Path("my.log").stat().st_mode & 0o7777, 0o640)

    def test_file_that_cannot_be_opened_anew(self) -> None:
        """
        When a log file cannot be opened anew the old one is written to, and told of it.
        """
        write = self.begin("--log-file=my.log")
        Path("my.log").rename("my.log.1")
        Path("my.log").symlink_to("elsewhere")
        self.assertIn("my.log cannot be opened anew", self.said(serve_log.OUTLET.reopen))
        write("still")
        self.assertIn("still", Path("my.log.1").read_text())

    def test_log_file_that_cannot_be_written_is_told_with_what_to_do(self) -> None:
        """
        A log file that cannot be written is told, with what to do.
        """
        Path("fifo").mkdir()
        os.mkfifo("pipe")
        os.mkfifo("unread")
        descriptor = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, descriptor)
        for path, words in (
            ("none/my.log", "No such file or directory"),
            ("fifo", "Is a directory"),
            ("pipe", "it is not a regular file"),
            # It is not waited for somebody who reads it.
            ("unread", "No such device or address"),
        ):
            error = self.assertRaises(ConfigurationError, self.begin, f"--log-file={path}")
            self.assertIn(f"cannot write the log to {path}: {words}; the folder", str(error))

    def test_log_file_that_root_makes_is_given_to_user_that_it_becomes(self) -> None:
        """
        A log file that root makes is given to the user that it becomes; one that is there is left.
        """
        given: list[Any] = []
        self.patch(os, "fchown", lambda descriptor, *owner: given.append(owner))
        for uid, expected in ((0, [(5, 6)]), (1, [])):
            self.patch(os, "geteuid", lambda uid=uid: uid)
            for _ in range(2):
                LogFile(f"log-{uid}", (5, 6)).close()
            self.assertEqual(given, expected)
            given.clear()

    def test_without_a_file_there_is_nothing_to_open_anew_which_is_said(self) -> None:
        """
        Without a file there is nothing to open anew, which is said.
        """
        self.begin()
        self.assertIn("nothing to open anew", self.said(serve_log.OUTLET.reopen))

    def syslog(self) -> socket.socket:
        """
        Stand for syslog.
        """
        daemon = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(daemon.close)
        daemon.bind("syslog")
        daemon.setblocking(False)
        return daemon

    def test_each_line_goes_to_syslog_with_facility_and_severity(self) -> None:
        """
        Each line goes to syslog with its facility and severity; so do those of workers, whatever
        their form.
        """
        daemon = self.syslog()
        for words, text in (((), "hello"), (("--json-log",), '"message": "hello"')):
            write = self.begin("--syslog=mail", "--syslog-socket=syslog", *words)
            write("hello", LogLevel.error)
            line = daemon.recv(9000).decode()
            self.assertRegex(
                line, rf"^<19>\w\w\w [ \d]\d \d\d:\d\d:\d\d yatxmilter\[{os.getpid()}\]: "
            )
            self.assertIn(text, line)
            serve_log.OUTLET.pass_on(1, "<4>of a worker")
            serve_log.OUTLET.pass_on(1, "printed")
            self.assertRegex(daemon.recv(9000).decode(), r"^<20>.*\]: of a worker$")
            self.assertRegex(daemon.recv(9000).decode(), r"^<22>.*\]: printed$")
            self.assertEqual(self.said(serve_log.OUTLET.reopen), "Opened syslog anew")

    def test_without_syslog_daemon_as_in_container_it_is_said_what_to_do(self) -> None:
        """
        Without a syslog daemon, as in a container, it is said what to do.
        """
        error = self.assertRaises(
            ConfigurationError, self.begin, "--syslog=mail", "--syslog-socket=nowhere"
        )
        self.assertIn("at nowhere: No such file or directory; no syslog daemon", str(error))
        self.assertIn("leave out --syslog", str(error))
        longest = f"--syslog-socket={'x' * 200}"
        error = self.assertRaises(ConfigurationError, self.begin, "--syslog=mail", longest)
        self.assertIn("x: AF_UNIX path too long; no syslog daemon", str(error))
        self.assertIn("did you mean 'mail'?", self.complaint("--listen=unix:s", "--syslog=mial"))
        self.assertIn(
            "log_file and syslog are both given", self.complaint("--log-file=x", "--syslog=mail")
        )

    def test_syslog_that_starts_anew(self) -> None:
        """
        When the syslog daemon is started anew the log goes there; what was lost meanwhile is told.
        """
        daemon = self.syslog()
        write = self.begin("--syslog=daemon", "--syslog-socket=syslog")
        daemon.close()
        write("lost")
        write("lost")
        Path("syslog").unlink()
        daemon = self.syslog()
        write("found")
        self.assertIn("2 lines of the log were lost", daemon.recv(9000).decode())
        self.assertRegex(daemon.recv(9000).decode(), "^<28>.*found$")

    def test_syslog_that_does_not_read(self) -> None:
        """
        A syslog daemon that takes nothing holds nothing up.
        """
        daemon = self.syslog()
        write = self.begin("--syslog=daemon", "--syslog-socket=syslog")
        for _ in range(2000):
            write("x" * 4000)
        try:
            while True:
                daemon.recv(9000)
        except BlockingIOError:
            pass
        write("at last")
        self.assertRegex(daemon.recv(9000).decode(), "[0-9]+ lines of the log were lost")
        self.assertIn("at last", daemon.recv(9000).decode())

    def test_worker_writes_to_standard_error_in_form_that_its_supervisor_passes_on(self) -> None:
        """
        A worker writes to standard error, in the form that its supervisor passes on.
        """
        for words, expected in (
            (["--syslog=mail", "--syslog-socket=nowhere"], "<4>of me\n"),
            (["--log-file=none/x"], "1970-01-01T00:00:00.000+00:00 [here#warn] of me\n"),
        ):
            self.patch(sys, "stderr", io.StringIO())
            self.begin(*words, worker=True)("of me")
            self.assertEqual(sys.stderr.getvalue(), expected)

    def test_under_twist_which_has_log_of_its_own_these_options_are_refused(self) -> None:
        """
        Under twist, which has a log of its own, these options are refused.
        """
        for words in ("--log-file=x", "--syslog=mail"):
            error = self.assertRaises(
                UsageError,
                Options().parseOptions,
                ["--listen=unix:sock", "--milter=served_mine:Mine", words],
            )
            self.assertIn("twist has a log of its own", str(error))


class NotifierTests(SynchronousTestCase):
    """
    The service manager.
    """

    def test_abstract_socket_is_spoken_to_by_its_name(self) -> None:
        """
        An abstract socket is spoken to by its name.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind("")
            name = manager.getsockname()[1:].decode()
            Notifier({"NOTIFY_SOCKET": f"@{name}"}).ready("well")
            self.assertEqual(manager.recv(100), b"READY=1\nSTATUS=well")

    def test_without_a_manager_or_with_one_that_is_gone_nothing_happens(self) -> None:
        """
        Without a manager, or with one that is gone, nothing happens.
        """
        self.assertIsNone(Notifier({}).watchdog)
        Notifier({}).stopping()
        Notifier({"NOTIFY_SOCKET": "/nowhere/at/all"}).alive()
