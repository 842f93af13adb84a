"""
Programs whole: what ``main`` does, in this process and by the command.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from typing import Any

import Milter
import milter

from tests.ports import free_port
from tests.pymilter.programs import ProgramCase, wait_for
from yatxmilter.__main__ import main as command
from yatxmilter.pymilter import _forked
from yatxmilter.pymilter._adapter import AdapterFactory
from yatxmilter.pymilter._callbacks import Callbacks
from yatxmilter.pymilter._forked import Family
from yatxmilter.pymilter._leading import Leading
from yatxmilter.pymilter._program import PROGRAM, RunOptions
from yatxmilter.pymilter._serving import heeding, make_leading, make_reactor
from yatxmilter.pymilter._threads import Threads

CONNECT = b"host\x004\x00\x19192.0.2.1\0"


class RunTests(ProgramCase):
    """
    ``runmilter`` in this process.
    """

    def setUp(self) -> None:
        super().setUp()
        self.patch(Milter, "factory", Milter.factory)

    def program(self, **methods: Any) -> Any:
        """
        Run a class of these methods.
        """
        Milter.factory = type("Mine", (Milter.Base,), methods)
        return self.run_in_thread(lambda: Milter.runmilter("test", self.path, 60))

    def test_serves_and_stops(self) -> None:
        """
        A program serves in whatever thread it asks for that, and returns when it is stopped.
        """
        for _ in range(2):
            end = self.program(hello=lambda self, name: Milter.REJECT)
            mta = self.mta()
            self.assertEqual(mta.negotiate()[:1], b"O")
            self.assertEqual(mta.ask(b"H", b"name\0"), b"r")
            self.assertRaises(milter.error, milter.main)
            milter.stop()
            end()
            self.assertEqual(mta.packet(), b"")
        milter.stop()

    def test_inline_callbacks_run_where_the_loop_is(self) -> None:
        """
        Inline callbacks run where the loop is.
        """
        PROGRAM.options = RunOptions(inline=True)
        threads: set[int] = set()

        def hello(self: Any, name: str) -> int:
            threads.add(threading.get_ident())
            return Milter.CONTINUE

        end = self.program(hello=hello)
        mta = self.mta()
        mta.negotiate()
        self.assertEqual(mta.ask(b"H", b"name\0"), b"c")
        milter.stop()
        milter.stop()
        end()
        self.assertEqual(len(threads), 1)

    def test_waiting_callbacks_hold_nobody_up(self) -> None:
        """
        While callbacks wait others are served; what they say comes behind them.
        """
        gate = threading.Event()
        calls: list[str] = []

        def hello(self: Any, name: str) -> int:
            if name.startswith("slow"):
                self.progress()
                gate.wait(60)
            calls.append(name)
            return Milter.CONTINUE

        def close(self: Any) -> int:
            calls.append("close")
            return Milter.CONTINUE

        end = self.program(hello=hello, close=close)
        slow = [self.mta() for _ in range(5)]
        for number, mta in enumerate(slow):
            mta.negotiate()
            mta.send(b"H", b"slow%d\0" % number)
            self.assertEqual(mta.packet(), b"p")
        quick = self.mta()
        quick.negotiate()
        self.assertEqual(quick.ask(b"H", b"quick\0"), b"c")
        self.assertEqual(calls, ["quick"])
        # What comes while its callback runs waits; so does the end of its connection.
        slow[0].send(b"H", b"again\0")
        slow[1].close()
        gate.set()
        self.assertEqual([mta.packet() for mta in (slow[0], slow[2], slow[3], slow[4])], [b"c"] * 4)
        self.assertEqual(slow[0].packet(), b"c")
        wait_for(lambda: "close" in calls)
        self.assertIn("slow1", calls[: calls.index("close")])
        milter.stop()
        end()
        self.assertEqual(calls.count("close"), 6)

    def test_one_connection_waits_at_first(self) -> None:
        """
        A callback that is left behind is answered in the end, and its stage is slow from then on.
        """
        begun, gate = threading.Event(), threading.Event()

        def hello(self: Any, name: str) -> int:
            begun.set()
            gate.wait(60)
            return Milter.REJECT

        end = self.program(hello=hello)
        mta = self.mta()
        mta.negotiate()
        mta.send(b"H", b"one\0")
        self.assertTrue(begun.wait(60))
        wait_for(lambda: any("yatxmilter" in one.name for one in threading.enumerate()))
        time.sleep(0.05)
        gate.set()
        self.assertEqual(mta.packet(), b"r")
        milter.stop()
        end()

    def test_when_stopped_message_in_progress_comes_to_its_end(self) -> None:
        """
        When stopped a message in progress comes to its end; the second time all ends at once.
        """
        PROGRAM.options = RunOptions(drain_timeout=60)
        end = self.program(eom=lambda self: Milter.ACCEPT)
        mta = self.mta()
        mta.negotiate()
        mta.ask(b"M", b"<a@example.com>\0")
        self.assertEqual(mta.ask(b"E"), b"a")
        mta.ask(b"M", b"<a@example.com>\0")
        milter.stop()
        self.assertEqual(mta.ask(b"E"), b"a")
        end()
        end = self.program(envfrom=lambda self, *arguments: Milter.CONTINUE)
        mta = self.mta()
        mta.negotiate()
        self.assertEqual(mta.ask(b"M", b"<a@example.com>\0"), b"c")
        milter.stop()
        milter.stop()
        end()
        self.assertEqual(mta.packet(), b"")

    def test_callback_that_does_not_come_back(self) -> None:
        """
        A program ends in time though a callback waits; when that comes back nothing is left to do.
        """
        PROGRAM.options = RunOptions(drain_timeout=0.05)
        gate, back = threading.Event(), threading.Event()

        def hello(self: Any, name: str) -> int:
            gate.wait(60)
            back.set()
            return Milter.CONTINUE

        end = self.program(hello=hello)
        mta = self.mta()
        mta.negotiate()
        mta.send(b"H", b"name\0")
        time.sleep(0.1)
        milter.stop()
        end()
        self.assertEqual(mta.packet(), b"")
        gate.set()
        self.assertTrue(back.wait(60))

    def test_stop_before_it_runs(self) -> None:
        """
        A program that is stopped when its socket is open ends as soon as it runs.
        """
        milter.setconn(self.path)
        milter.register("test")
        milter.opensocket(True)
        milter.stop()
        self.run_in_thread(milter.main)()

    def test_cannot_listen_for_metrics(self) -> None:
        """
        An address of metrics that is taken is an error of the main loop.
        """
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            PROGRAM.options = RunOptions(metrics=f"inet:{port}@127.0.0.1")
            milter.setconn(self.path)
            milter.register("test")
            end = self.run_in_thread(milter.main)
            self.assertIn("cannot run main", str(self.assertRaises(milter.error, end)))

    def test_without_time_out(self) -> None:
        """
        A time-out of 0 is for any time; so programs have it for libmilter.
        """
        for seconds in (0, -1):
            milter.settimeout(seconds)
            Milter.factory = Milter.Base
            end = self.run_in_thread(lambda: Milter.runmilter("test", self.path))
            self.mta().negotiate()
            milter.stop()
            end()


class LoopTests(ProgramCase):
    """
    Reactors, signals and the moving loop by themselves.
    """

    def test_best_reactor_there_is_is_made(self) -> None:
        """
        The best reactor there is is made; where there is no epoll there is no moving loop.
        """
        kinds = (("no.such.module", "Any"), ("twisted.internet.selectreactor", "SelectReactor"))
        self.assertEqual(type(make_reactor(kinds)).__name__, "SelectReactor")
        import select

        self.patch(select, "epoll", None)
        del select.epoll
        self.assertIs(make_leading(), None)

    def test_signals_are_heeded_in_main_thread_and_as_before_when_it_is_over(self) -> None:
        """
        Signals are heeded in the main thread, and as before when it is over.
        """
        heard: list[bool] = []
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self.addCleanup(signal.signal, signal.SIGHUP, before)
        with heeding(lambda: heard.append(True)):
            os.kill(os.getpid(), signal.SIGHUP)
            wait_for(lambda: heard)
        self.assertIs(signal.getsignal(signal.SIGHUP), signal.SIG_IGN)
        self.patch(signal, "signal", lambda number, handler: None)
        with heeding(lambda: None):
            pass

    def test_without_moving_loop_every_callback_is_handed_to_thread(self) -> None:
        """
        Without a moving loop every callback is handed to a thread.
        """
        self.patch(sys.modules["yatxmilter.pymilter._program"], "make_leading", lambda: None)
        self.patch(
            Milter,
            "factory",
            type(
                "Mine",
                (Milter.Base,),
                {
                    "hello": lambda self, name: self.progress() or Milter.REJECT,
                },
            ),
        )
        end = self.run_in_thread(lambda: Milter.runmilter("test", self.path))
        mta = self.mta()
        mta.negotiate()
        self.assertEqual(mta.ask(b"H", b"name\0"), b"p")
        self.assertEqual(mta.packet(), b"r")
        milter.stop()
        end()

    def test_failures_in_the_loop(self) -> None:
        """
        What fails in the loop is logged, and the loop goes on.
        """
        leading = Leading(Threads())
        done: list[str] = []

        def fail() -> None:
            done.append("failed")
            raise RuntimeError("in the loop")

        leading.hop(fail)
        leading.hop(done.append, "next")
        leading.reactor.callWhenRunning(leading.reactor.callLater, 0.01, leading.reactor.stop)
        leading.run()
        self.assertEqual(done, ["failed", "next"])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        leading.hop(done.append, "never")
        self.assertEqual(len(done), 2)

    def test_no_thread_for_the_loop(self) -> None:
        """
        Where there are no more threads the one that looks on has the loop until a callback is back.
        """
        leading = Leading(Threads(), tick=0.001)
        gate = threading.Event()
        events: list[str] = []

        class Connection:
            def left_behind(self) -> None:
                events.append("left")
                leading._threads_fail = True  # type: ignore[attr-defined]
                raise RuntimeError("cannot rest")

            def back(self) -> None:
                events.append("back")

        real = leading.threads.give

        def give(work: Any) -> None:
            if "left" in events and "led" not in events:
                events.append("led")
                leading.hop(gate.set)
                raise RuntimeError("no threads")
            real(work)

        self.patch(leading.threads, "give", give)

        def call() -> None:
            leading.call(Connection(), gate.wait, 60)
            leading.reactor.callLater(0, leading.reactor.stop)

        leading.reactor.callWhenRunning(leading.hop, call)
        leading.run()
        self.assertEqual(events, ["left", "led", "back"])
        self.flushLoggedErrors(RuntimeError)


class FamilyTests(ProgramCase):
    """
    Child processes, without any.
    """

    def test_child_works_and_leaves_with_status_that_says_how_that_ended(self) -> None:
        """
        A child works, and leaves with a status that says how that ended.
        """
        left: list[int] = []

        class Left(Exception):
            pass

        def leave(status: int) -> None:
            left.append(status)
            raise Left

        def fails() -> None:
            raise RuntimeError("no")

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            self.addCleanup(signal.signal, number, signal.getsignal(number))
        family = Family(fork=lambda: 0, leave=leave, watch=lambda descriptor: None)
        self.assertRaises(Left, family.run, [lambda: None])
        self.patch(sys, "stderr", open(os.devnull, "w"))  # noqa: SIM115
        self.addCleanup(sys.stderr.close)
        self.assertRaises(Left, family.run, [fails])
        self.assertEqual(left, [0, 1])

    def test_child_whose_parent_is_gone_is_told_to_end(self) -> None:
        """
        A child whose parent is gone, and with it the other end of a pipe, is told to end.
        """
        told: list[tuple[int, int]] = []
        self.patch(os, "kill", lambda *arguments: told.append(arguments))
        reading, writing = os.pipe()
        self.addCleanup(os.close, writing)
        os.close(reading)
        _forked._watch(writing)
        wait_for(lambda: told)
        self.assertEqual(told, [(os.getpid(), signal.SIGTERM)])


class CommandTests(ProgramCase):
    """
    ``yatxmilter pymilter``.
    """

    PROGRAM = """\
import os, sys
import Milter

class Mine(Milter.Base):
    def hello(self, name):
        if name == "exit":
            os._exit(7)
        if name == "stop":
            Milter.stop()
        self.setreply("550", "5.7.1", f"pid {os.getpid()}")
        return Milter.REJECT

Milter.factory = Mine
Milter.runmilter("mine", "unix:" + sys.argv[1], 60)
print("returned", sys.argv[0].endswith("program.py"), __name__)
"""

    def hello(self, name: bytes = b"name") -> bytes:
        """
        Ask one thing on a new connection.
        """
        mta = self.mta()
        mta.negotiate()
        return mta.ask(b"H", name + b"\0")

    def test_in_this_process(self) -> None:
        """
        A script, a command on the path, a module, a folder, and what is no file are run as
        ``__main__``, with their arguments.
        """
        text = "import sys, Milter\nseen.append((__name__, sys.argv[1:]))\n"
        seen: list[Any] = []
        self.patch(sys, "argv", list(sys.argv))
        self.patch(sys, "path", list(sys.path))
        self.patch(sys.modules["builtins"], "seen", seen) if hasattr(
            sys.modules["builtins"], "seen"
        ) else setattr(sys.modules["builtins"], "seen", seen)
        self.addCleanup(delattr, sys.modules["builtins"], "seen")
        log = sys.modules["yatxmilter._cli.pymilter"]
        self.patch(log, "begin_log", lambda settings: None)
        script = self.folder / "mycommand"
        script.write_text(text)
        script.chmod(0o755)
        self.assertEqual(command(["pymilter", str(script), "--inline", "x"]), 0)
        self.patch(os, "environ", {**os.environ, "PATH": str(self.folder)})
        self.assertEqual(command(["pymilter", "mycommand"]), 0)
        (self.folder / "mymodule.py").write_text(text)
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.folder)
        self.assertEqual(command(["pymilter", "-m", "mymodule", "y"]), 0)
        (self.folder / "__main__.py").write_text(text)
        self.assertEqual(command(["pymilter", str(self.folder)]), 0)
        self.assertEqual(command(["pymilter", os.devnull]), 0)
        self.assertEqual(
            seen,
            [("__main__", words) for words in (["--inline", "x"], [], ["y"], [])],
        )

    def test_nothing_is_begun_before_main(self) -> None:
        """
        When a program begins there is no reactor and no other thread, so it may fork.
        """
        process = self.start(
            "import sys, threading\n"
            "print('twisted.internet.reactor' in sys.modules, threading.active_count())\n"
            "sys.exit(5)\n"
        )
        self.assertEqual(process.communicate()[0], "False 1\n")
        self.assertEqual(process.returncode, 5)

    def test_wrong_options_and_program_that_is_not_there_are_told(self) -> None:
        """
        Wrong options, and a program that is not there, or is none, are told; nothing is run.
        """
        machine_code = self.folder / "machine-code"
        machine_code.write_bytes(b"\x7fELF\2\1\1\0")
        for words, text in (
            (["/nowhere"], "there is no file '/nowhere'"),
            ([str(self.folder)], "is a folder without a __main__.py"),
            ([str(machine_code)], "is no Python program, but one of machine code"),
            (["/proc/self/mem"], "cannot read '/proc/self/mem': "),
            (["-m", "no_such_module.milter"], "there is no module 'no_such_module.milter'"),
            (["-m", ""], "there is no module ''"),
            (["--workers", "none-at-all", "x"], "--workers"),
        ):
            self.assertEqual(self.complaint(words)[0], 2)
            self.assertIn(text, self.complaint(words)[1])

    def complaint(self, words: list[str]) -> tuple[int, str]:
        import io

        told = io.StringIO()
        self.patch(sys, "stderr", told)
        return command(["pymilter", *words]), told.getvalue()

    def test_signals_end_it(self) -> None:
        """
        SIGTERM and SIGHUP have ``runmilter`` return, and the program goes on behind it.
        """
        for number in (signal.SIGTERM, signal.SIGHUP):
            process = self.start(self.PROGRAM)
            self.assertIn(b"550 5.7.1 pid", self.hello())
            process.send_signal(number)
            out, log = process.communicate()
            self.assertEqual((out, process.returncode), ("returned True __main__\n", 0), log)
            self.assertIn("Ready, listening on unix:", log)
            self.assertIn("Stopping", log)

    def test_workers_and_metrics(self) -> None:
        """
        Workers share the socket; one that dies is started anew; one page shows what all count.
        """
        port = free_port()
        process = self.start(self.PROGRAM, "--workers", "2", "--metrics", f"inet:{port}@127.0.0.1")
        first = self.hello()
        self.assertIn(b"550 5.7.1 pid", first)
        self.assertEqual(self.hello(b"exit"), b"")
        wait_for(lambda: self.hello().startswith(b"y550"))
        from urllib.request import urlopen

        pages: list[str] = []

        def shown() -> bool:
            try:
                with urlopen(f"http://127.0.0.1:{port}/metrics") as page:
                    pages.append(page.read().decode())
            except OSError:
                return False
            return "yatxmilter_processes 2.0" in pages[-1]

        wait_for(shown)
        self.assertIn('yatxmilter_callbacks_total{answer="reject"', pages[-1])
        process.send_signal(signal.SIGTERM)
        out, log = process.communicate()
        self.assertEqual((out, process.returncode), ("returned True __main__\n", 0), log)
        self.assertIn("starting another", log)

    def test_workers_end_when_the_process_that_started_them_is_killed(self) -> None:
        """
        Workers end when the process that started them is killed: nobody else would stop them.
        """
        process = self.start(self.PROGRAM, "--workers", "2")
        self.hello()
        process.kill()
        # They have its standard output, too.
        self.assertEqual(process.communicate(timeout=60)[0], "")

    def test_worker_stops_all(self) -> None:
        """
        A program that stops itself in one worker is over.
        """
        process = self.start(self.PROGRAM, "--workers", "2")
        self.hello(b"stop")
        out, log = process.communicate()
        self.assertEqual((out, process.returncode), ("returned True __main__\n", 0), log)

    def test_workers_cannot_show_metrics(self) -> None:
        """
        Where metrics cannot be shown the workers end, and the program is told.
        """
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            process = self.start(
                self.PROGRAM, "--workers", "1", "--metrics", f"inet:{port}@127.0.0.1"
            )
            _, log = process.communicate()
        self.assertIn("milter.error: cannot run main: metrics cannot be shown", log)
        self.assertEqual(process.returncode, 1)

    def test_one_process_shows_metrics(self) -> None:
        """
        Without workers the process shows its own metrics.
        """
        port = free_port()
        self.start(self.PROGRAM, "--metrics", f"inet:{port}@127.0.0.1")
        self.assertIn(b"550 5.7.1 pid", self.hello())
        from urllib.request import urlopen

        with urlopen(f"http://127.0.0.1:{port}/metrics") as page:
            self.assertIn('callback="xxfi_helo",milter="mine"', page.read().decode())

    def test_program_that_becomes_daemon(self) -> None:
        """
        A program that becomes a daemon, and one that serves on a descriptor of systemd's, work.
        """
        daemon = self.PROGRAM.replace(
            "Milter.factory = Mine",
            "Milter.factory = Mine\nif os.fork():\n    os._exit(0)\nos.setsid()\n"
            "open(sys.argv[1] + '.pid', 'w').write(str(os.getpid()))",
        )
        process = self.start(daemon)
        answer = self.hello()
        pid = (self.folder / "socket.pid").read_text()
        self.assertIn(f"pid {pid}".encode(), answer)
        os.kill(int(pid), signal.SIGTERM)
        self.assertIn("returned True __main__", process.communicate()[0])

    def test_descriptor_that_was_opened_before_program_was_started_is_served(self) -> None:
        """
        A descriptor that was opened before the program was started is served.
        """
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(self.path)
            listening.listen()
            os.set_inheritable(listening.fileno(), True)
            program = self.PROGRAM.replace('"unix:" + sys.argv[1]', f'"fd:{listening.fileno()}"')
            self.start(program, "--inline", pass_fds=[listening.fileno()])
            self.assertIn(b"550 5.7.1 pid", self.hello())


class AdapterTests(ProgramCase):
    """
    A factory by itself.
    """

    def test_factory_can_be_started_and_stopped_also_when_nothing_ever_ran(self) -> None:
        """
        A factory can be started and stopped, also when nothing ever ran.
        """
        one = AdapterFactory(Callbacks(), lambda: milter.TEMPFAIL)
        one.start()
        one.stop()
