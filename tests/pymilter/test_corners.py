"""
What happens seldom: at the edge of the moving loop, of processes, and of a connection.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from typing import Any
from urllib.request import urlopen

import Milter
import milter
from twisted.internet.error import CannotListenError

from tests.ports import free_port
from tests.pymilter.programs import ProgramCase, wait_for
from tests.pymilter.test_threads import HopClock
from yatxmilter.protocol import MilterProtocol
from yatxmilter.pymilter import factory
from yatxmilter.pymilter._adapter import AdapterFactory, _Job
from yatxmilter.pymilter._callbacks import Callbacks
from yatxmilter.pymilter._forked import Family, _Page, _status
from yatxmilter.pymilter._leading import Leading, MovingReactor
from yatxmilter.pymilter._program import PROGRAM
from yatxmilter.pymilter._serving import Serving, make_reactor
from yatxmilter.pymilter._sockets import Listening
from yatxmilter.pymilter._threads import Threads
from yatxmilter.pymilter._waking import close_reactor, guard
from yatxmilter.testing import InMemoryMTA, MilterTestFailure

SELECT = (("twisted.internet.selectreactor", "SelectReactor"),)


class ConnectionTests(ProgramCase):
    """
    Connections that do not go as usual.
    """

    def setUp(self) -> None:
        super().setUp()
        self.patch(Milter, "factory", Milter.factory)

    def test_new_smtp_connection_on_same_agreement_has_milter_of_its_own(self) -> None:
        """
        A new SMTP connection on the same agreement has a milter of its own, made at connect.
        """
        made: list[Any] = []

        class Mine(Milter.Base):
            def __init__(self) -> None:
                if len(made) == 2:
                    raise RuntimeError("no third one")
                made.append(self)

            def connect(self, *arguments: Any) -> int:
                return Milter.CONTINUE

            def eom(self) -> int:
                self.progress()
                return Milter.ACCEPT

        Milter.factory = Mine
        end = self.run_in_thread(lambda: Milter.runmilter("test", self.path))
        self.mta().close()
        mta = self.mta()
        mta.negotiate()
        self.assertEqual(mta.ask(b"C", b"host\0U"), b"c")
        mta.send(b"K")
        self.assertEqual(mta.ask(b"C", b"host\0U"), b"c")
        self.assertEqual([one._protocol for one in made][1], 0)
        mta.ask(b"M", b"<a@example.com>\0")
        self.assertEqual([mta.ask(b"E"), mta.packet()], [b"p", b"a"])
        mta.send(b"K")
        # Where none can be made the connection is answered for, and nobody is told of its end.
        self.assertIn(b"untrapped exception", mta.ask(b"C", b"host\0U"))
        mta.close()
        milter.stop()
        end()
        self.flushLoggedErrors(RuntimeError)

    def test_callback_given_up_as_it_begins(self) -> None:
        """
        A callback that nobody waits for any more the moment it begins can do nothing.
        """
        mta = InMemoryMTA(factory(Milter.Base), clock=HopClock())
        session = mta.session()
        adapter = mta.milters[0]
        context = adapter._context_of()
        job = _Job(adapter, "eom", len, (context,))
        job.over = True
        adapter.begun(job, None)
        self.assertRaises(milter.error, context.progress)
        adapter.ended(job, 0.0)
        session.vanish()
        with contextlib.suppress(MilterTestFailure):
            mta.finish()

    def test_callback_left_behind_after_a_command_in_two_pieces(self) -> None:
        """
        A command that came in two pieces has had its time: its callback may then take any time.
        """
        gate = threading.Event()

        class Mine(Milter.Base):
            def hello(self, name: str) -> int:
                gate.wait(20)
                return Milter.CONTINUE

        Milter.factory = Mine
        end = self.run_in_thread(lambda: Milter.runmilter("test", self.path))
        mta, other = self.mta(), self.mta()
        mta.negotiate()
        mta.socket.sendall(b"\0\0\0\5Hab")
        # The loop has seen the first piece.
        other.negotiate()
        mta.socket.sendall(b"c\0")
        # It goes on while the callback waits.
        self.assertEqual(other.ask(b"C", b"host\0U"), b"c")
        gate.set()
        self.assertEqual(mta.packet(), b"c")
        self.assertEqual(mta.ask(b"M", b"<a@example.com>\0"), b"c")
        mta.close()
        other.close()
        milter.stop()
        end()

    def test_mta_that_leaves_before_a_callback_left_behind_makes_progress(self) -> None:
        """
        A connection that turns out to have ended while its callback took long is not read again.
        """
        left, told, seen = threading.Event(), threading.Event(), threading.Event()
        calls: list[str] = []

        class Mine(Milter.Base):
            def eom(self) -> int:
                left.wait(20)
                with contextlib.suppress(milter.error):
                    self.progress()
                told.set()
                seen.wait(20)
                calls.append("eom")
                return Milter.CONTINUE

            def close(self) -> int:
                calls.append("close")
                return Milter.CONTINUE

        Milter.factory = Mine
        end = self.run_in_thread(lambda: Milter.runmilter("test", self.path))
        mta, other = self.mta(), self.mta()
        mta.negotiate()
        mta.ask(b"M", b"<a@example.com>\0")
        mta.send(b"E")
        other.negotiate()
        mta.close()
        self.assertEqual(other.ask(b"C", b"host\0U"), b"c")
        left.set()
        self.assertTrue(told.wait(20))
        # The loop has been round: it has found that the progress cannot be written.
        self.assertEqual(other.ask(b"H", b"host\0"), b"c")
        self.assertEqual(other.ask(b"H", b"host\0"), b"c")
        seen.set()
        wait_for(lambda: "close" in calls)
        self.assertEqual(calls, ["eom", "close"])
        self.assertEqual(other.ask(b"M", b"<a@example.com>\0"), b"c")
        other.close()
        milter.stop()
        end()

    def test_end_while_left_behind(self) -> None:
        """
        A connection that ends while its callback is left behind is told of behind that.
        """
        calls: list[str] = []
        clock = HopClock()

        class Loop:
            threads = Threads()
            hop = clock.callFromThread

            def call(self, connection: Any, callback: Any, *arguments: Any) -> Any:
                connection.left_behind()
                try:
                    return callback(*arguments)
                finally:
                    connection.back()

        class Mine(Milter.Base):
            def envfrom(self, *arguments: Any) -> int:
                calls.append("envfrom")
                mta.milters[0].xxfi_abort()
                calls.append("back")
                return Milter.CONTINUE

            def abort(self) -> int:
                calls.append("abort")
                return Milter.CONTINUE

            def close(self) -> int:
                calls.append("close")
                return Milter.CONTINUE

        self.patch(MilterProtocol, "rest", lambda protocol: None)
        self.patch(MilterProtocol, "go_on", lambda protocol: None)
        made = factory(Mine)
        made.leading = Loop()  # type: ignore[assignment]
        mta = InMemoryMTA(made, clock=clock)
        session = mta.session()
        session.mail("<a@example.com>")
        wait_for(lambda: "abort" in calls)
        self.assertEqual(calls, ["envfrom", "back", "abort"])
        clock.work()
        session.vanish()
        wait_for(lambda: "close" in calls)
        clock.work()
        try:
            mta.finish()
        except MilterTestFailure:
            self.flushLoggedErrors()

    def test_in_worker_what_is_counted_is_told(self) -> None:
        """
        In a worker what is counted is told, and who has started it is told of the start.
        """
        milter.setconn(self.path)
        milter.register("test")
        listening = Listening(self.path, 5, remove=True)
        self.addCleanup(listening.close)
        told: list[Any] = []

        def started(reactor: Any, serving: Serving) -> None:
            told.append(serving.metrics.snapshot()["yatxmilter_processes"])
            serving.stop()

        self.run_in_thread(lambda: PROGRAM._serve_here(listening, None, started))()
        self.assertEqual(told, [[[[], 1]]])

    def test_ready_too_late(self) -> None:
        """
        What is being stopped is not ready any more.
        """
        listening = Listening(self.path, 5, remove=True)
        self.addCleanup(listening.close)
        serving = Serving(
            listening, AdapterFactory(Callbacks(), lambda: milter.TEMPFAIL, inline=True), {}
        )
        self.addCleanup(close_reactor, serving.reactor)
        serving._stopping = True
        serving._is_ready(None)  # type: ignore[arg-type]
        self.assertFalse(serving._ready)
        # Not every reactor has a descriptor of its own.
        reactor = make_reactor(SELECT)
        close_reactor(reactor)
        # Nobody wakes it up any more.
        reactor.callFromThread(len)


class LoopTests(ProgramCase):
    """
    The moving loop, step by step.
    """

    def loop(self, **options: Any) -> Leading:
        """
        Make one, and have it closed.
        """
        made = Leading(Threads(), **options)
        self.addCleanup(close_reactor, made.reactor)
        return made

    def test_events_of_what_is_gone(self) -> None:
        """
        An event of a descriptor that nobody watches any more is nobody's.
        """
        make: Any = MovingReactor
        reactor = guard(make())
        self.addCleanup(close_reactor, reactor)
        real = reactor._poller

        class Poller:
            def poll(self, timeout: float, most: int) -> list[tuple[int, int]]:
                return [(12345, 1)]

        reactor._poller = Poller()
        reactor.doPoll(0)
        reactor._poller = real

    def test_callback_that_is_back_at_the_end(self) -> None:
        """
        A callback that comes back in the last moment does not wait for its turn for ever.
        """
        leading = self.loop()
        ticket = threading.Lock()
        ticket.acquire()

        def last() -> None:
            leading._returning.append(ticket)
            leading.reactor.crash()

        leading.reactor.callWhenRunning(leading.reactor.callLater, 0, last)
        leading.run()
        self.assertTrue(ticket.acquire(timeout=20))
        self.assertEqual(leading._returning, deque())

    def test_callback_that_ends_when_it_is_looked_at(self) -> None:
        """
        A callback that is over the moment it would be left behind is not.
        """
        leading = self.loop(tick=0.001)

        class Mark(list):  # type: ignore[type-arg]
            looked = threading.Event()

            def pop(self, *arguments: Any) -> Any:
                Mark.looked.set()
                raise IndexError

        leading.reactor.callWhenRunning(setattr, leading, "_running", Mark())

        def end() -> None:
            Mark.looked.wait(20)
            leading._running = None
            leading.hop(leading.reactor.stop)

        threading.Thread(target=end).start()
        leading.run()
        self.assertTrue(Mark.looked.is_set())
        # To rouse who is awake changes nothing.
        leading._look.acquire(blocking=False)
        leading._look.release()
        leading._rouse()

    def test_nobody_looks_at_nothing(self) -> None:
        """
        While no callback is called nobody looks, and the end is not missed.
        """
        leading = self.loop(tick=0.0001)

        class Connection:
            pass

        def end() -> None:
            wait_for(lambda: not leading._looking and leading._look.locked())
            leading.hop(leading.call, Connection(), lambda: None)
            leading.hop(leading.reactor.stop)

        threading.Thread(target=end).start()
        leading.run()
        self.assertTrue(leading._over.is_set())

    def test_callback_after_a_quiet_time(self) -> None:
        """
        A callback that begins when nobody has looked for long is looked at all the same.
        """
        leading = self.loop()
        answers: list[Any] = []

        def call() -> None:
            leading._looking = False
            answers.append(leading.call(object(), lambda: 5))  # type: ignore[arg-type]
            answers.append(leading._looking)
            leading.reactor.callLater(0, leading.reactor.stop)

        leading.reactor.callWhenRunning(leading.hop, call)
        leading.run()
        self.assertEqual(answers, [5, True])

    def test_callback_that_begins_when_nobody_looks(self) -> None:
        """
        A callback that begins the moment nobody looks any more is looked at.
        """
        begun = threading.Event()

        class Hurried(Leading):
            @property
            def _looking(self) -> bool:  # type: ignore[override]
                return True

            @_looking.setter
            def _looking(self, value: bool) -> None:
                if not value:
                    self._running = []
                    begun.set()

        leading = Hurried(Threads(), tick=0.0001)
        self.addCleanup(close_reactor, leading.reactor)

        def end() -> None:
            begun.wait(20)
            leading._running = None
            leading.hop(leading.reactor.stop)

        threading.Thread(target=end).start()
        leading.run()
        self.assertTrue(begun.is_set())


class FamilyTests(ProgramCase):
    """
    Child processes.
    """

    def family(self, *programs: str, **options: Any) -> Family:
        """
        Make a family whose children run these programs, one after the other.
        """
        left = list(programs)
        self.children: list[subprocess.Popen[bytes]] = []

        def fork() -> int:
            child = subprocess.Popen([sys.executable, "-c", left.pop(0)])
            self.children.append(child)
            return child.pid

        made = Family(fork=options.pop("fork", fork), **options)
        self.addCleanup(lambda: [child.poll() for child in self.children])
        return made

    def run_family(self, family: Family, *arguments: Any) -> Any:
        """
        Run it outside the main thread, whose signals are trial's.
        """
        return self.run_in_thread(lambda: family.run(*arguments))

    def test_another_after_a_crash(self) -> None:
        """
        A worker that dies soon is started anew after a while; one that says so is the end.
        """
        paused: list[float] = []
        family = self.family("raise SystemExit(7)", "", pause=paused.append)
        self.patch(sys.modules["yatxmilter.pymilter._forked"], "_TOO_SHORT", 1000.0)
        self.run_family(family, [lambda: None])()
        self.assertEqual(paused, [1000.0])
        self.assertEqual(len(self.children), 2)

    def test_stop_while_it_is_made_anew(self) -> None:
        """
        What is stopped while a worker is about to be made is over, or stops that one, too.
        """
        family = self.family("raise SystemExit(7)", pause=lambda seconds: family.stop())
        self.patch(sys.modules["yatxmilter.pymilter._forked"], "_TOO_SHORT", 1000.0)
        self.run_family(family, [lambda: None])()
        sleeping = "import time; time.sleep(60)"

        def fork() -> int:
            family.stop()
            child = subprocess.Popen([sys.executable, "-c", sleeping])
            self.children.append(child)
            return child.pid

        family = self.family(fork=fork)
        self.run_family(family, [lambda: None])()
        # One that has lived long is made anew at once.
        family = self.family("raise SystemExit(7)", "", pause=lambda seconds: self.fail("paused"))
        self.patch(sys.modules["yatxmilter.pymilter._forked"], "_TOO_SHORT", 0.0)
        self.run_family(family, [lambda: None])()
        self.assertEqual(len(self.children), 2)

    def test_page_that_cannot_be_shown(self) -> None:
        """
        A page that cannot listen ends all, with an error.
        """
        family = self.family("raise SystemExit(3)")
        end = self.run_family(family, [], lambda: None)
        self.assertIn("metrics cannot be shown", str(self.assertRaises(OSError, end)))

    def test_child_that_cannot_listen_says_so_by_its_status(self) -> None:
        """
        A child that cannot listen says so by its status, and has no descriptors of its parent's.
        """
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            self.addCleanup(signal.signal, number, signal.getsignal(number))

        def cannot() -> None:
            raise CannotListenError(None, 1, OSError("taken"))

        self.assertEqual(_status(cannot), 3)
        self.patch(sys, "stderr", open(os.devnull, "w"))  # noqa: SIM115
        sys.stderr.close()
        self.assertEqual(_status(lambda: None), 0)

        class Left(Exception):
            pass

        def leave(status: int) -> None:
            raise Left

        self.patch(sys, "stderr", sys.__stderr__)
        family = Family(fork=lambda: 0, leave=leave, watch=lambda descriptor: None)
        other, _ = pair = os.pipe()
        self.addCleanup(os.close, pair[1])
        family._children[other] = 1, cannot, False, 0.0
        self.assertRaises(Left, family._start, lambda: None, False)
        self.assertRaises(OSError, os.fstat, other)

    def test_page_adds_up_what_workers_tell_one_that_is_gone_is_left_out(self) -> None:
        """
        The page adds up what workers tell; one that is gone is left out.
        """
        port = free_port()
        page = _Page(f"inet:{port}@127.0.0.1", str(self.folder))

        class Counting:
            class metrics:
                @staticmethod
                def snapshot() -> Any:
                    return {"yatxmilter_processes": [[[], 1]]}

        worker = make_reactor()
        page.tell(worker, Counting())
        (self.folder / "gone").write_text("")
        ends = [
            self.run_in_thread(lambda: worker.run(installSignalHandlers=False)),
            self.run_in_thread(page.run),
        ]
        text: list[str] = []

        def shown() -> bool:
            try:
                with urlopen(f"http://127.0.0.1:{port}/metrics") as found:
                    text.append(found.read().decode())
            except OSError:
                return False
            return True

        wait_for(shown)
        for reactor in (page.reactor, worker):
            reactor.callFromThread(reactor.stop)
        for end in ends:
            end()
        close_reactor(worker)
        self.assertIn("yatxmilter_processes 1.0", text[0])
