"""
Tests of the two halves of a worker: the worker's run in this process, with pipes of its own, and
its supervisor's with real processes, and a clock for the time that it waits.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from twisted import internet
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred, succeed
from twisted.internet.error import ReactorNotRunning
from twisted.internet.protocol import ServerFactory
from twisted.internet.task import Clock, deferLater
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase, TestCase

from yatxmilter.service import _worker as worker
from yatxmilter.service import _workers as workers
from yatxmilter.service._worker import work
from yatxmilter.workers import WorkerService

#: What a supervised worker serves: it says something, and does not come to its end unless hurried.
STUBBORN = """
import os
from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import ServerFactory

class Stubborn(ServerFactory):
    connections = ()
    def drain(self, timeout):
        return succeed(None) if timeout == 0.001 else Deferred()
    def reload(self, word):
        if word == "hang":
            return Deferred()
        print("reloaded with", word, flush=True)
        return word != "bad"

def make(dies):
    print("made with", dies, flush=True)
    if dies is True:
        os._exit(3)
    print("a word", flush=True)
    return Stubborn()
"""


#: What leaves a program of its own behind, which has its output.
LEAVES = """
import subprocess, sys
left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("left", left.pid, flush=True)
"""


#: What makes it fail to start.
FAILS = """
def start(self):
    raise ValueError("no database")
Stubborn.start = start
"""


def pause() -> Deferred[None]:
    return deferLater(reactor, 0.01)


class Told(ServerFactory):
    """
    Writes down what it is told.
    """

    connections = ("one", "two")

    def __init__(self) -> None:
        self.drains: list[float | None] = []

    def drain(self, timeout: float | None) -> Deferred[None]:
        self.drains.append(timeout)
        return succeed(None)


class Starting(Told):
    """
    Starts when the test says so.
    """

    def __init__(self) -> None:
        super().__init__()
        self.started: Deferred[None] = Deferred()

    def start(self) -> Deferred[None]:
        return self.started


class Counting(Told):
    """
    Has all that a factory may have besides; what it cannot reload it raises.
    """

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[str, ...]] = []

    def reload(self, *arguments: Any) -> Any:
        self.told.append(arguments)
        if arguments == ("broken",):
            raise ZeroDivisionError
        return succeed(False) if arguments == ("bad",) else None

    def numbers(self) -> dict[str, float]:
        return {"reloads": len(self.told)}

    def fails(self) -> None:
        raise ZeroDivisionError

    object = object


made: list[Told] = []


def make(kind: str) -> Told:
    made.append(globals()[kind]())
    return made[-1]


class Standing:
    """
    The real reactor, but that it runs already and does not stop.
    """

    def __init__(self, stop: Callable[[], None]) -> None:
        self.stop = stop

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)

    def run(self) -> None:
        """
        Be running.
        """


class WorkTests(TestCase):
    """
    The worker's half.
    """

    timeout = 120

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = f"{folder.name}/socket"
        self.shared = socket.socket(socket.AF_UNIX)
        self.shared.bind(self.path)
        self.shared.listen()
        self.inherited = os.dup(self.shared.fileno())
        self.addCleanup(self.close_shared)
        orders, self.orders = os.pipe()
        answers, telling = os.pipe()
        os.set_blocking(answers, False)
        self.answers = answers
        # Twisted leaves open what it was told to speak through.
        for descriptor in (orders, telling, answers):
            self.addCleanup(os.close, descriptor)
        self.rest = b""
        self.patch(worker, "TOLD", orders)
        self.patch(worker, "TELLING", telling)
        self.patch(worker, "SOCKETS", self.inherited)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            self.addCleanup(signal.signal, number, signal.getsignal(number))
        self.before = signal.getsignal(signal.SIGTERM)
        # It runs already, and is not ours to stop.
        self.stops = 0
        # Before the descriptors are closed; tearDown would come after that.
        self.addCleanup(lambda: ensureDeferred(self.end()))

    def close_shared(self) -> None:
        # A worker that has begun to listen has closed it, and it may be something else by now.
        with contextlib.suppress(OSError):
            if os.path.sameopenfile(self.inherited, self.shared.fileno()):
                os.close(self.inherited)
        self.shared.close()

    async def end(self) -> None:
        if self.orders is not None:
            await self.leave()

    def stop(self) -> None:
        self.stops += 1
        if self.stops > 1:
            raise ReactorNotRunning

    async def leave(self) -> None:
        """
        Be a supervisor that dies, and wait until the worker has come to its end.
        """
        before = self.stops
        os.close(self.orders)
        self.orders: Any = None
        while self.stops == before:
            await pause()

    async def answer(self) -> Any:
        """
        Wait for a line.
        """
        while b"\n" not in self.rest:
            with contextlib.suppress(BlockingIOError):
                self.rest += os.read(self.answers, 4096)
            await pause()
        line, _, self.rest = self.rest.partition(b"\n")
        return json.loads(line)

    def tell(self, **message: Any) -> None:
        os.write(self.orders, json.dumps(message).encode() + b"\n")

    async def begin(
        self, kind: str = "Told", drain_timeout: float | None = 7, spec: str | None = None
    ) -> Any:
        """
        Be a worker, and wait until it is ready.
        """
        start = {
            "builder": f"{__name__}:make",
            "arguments": [kind],
            "specs": [spec or f"unix:{self.path}"],
            "drain_timeout": drain_timeout,
        }
        # trial needs the real one.
        with mock.patch.object(internet, "reactor", Standing(self.stop)):
            work(json.dumps(start))
        if kind == "Starting":
            while signal.getsignal(signal.SIGTERM) == self.before:
                await pause()
        else:
            self.assertEqual(await self.answer(), {"ready": os.getpid()})
        return made.pop()

    async def test_worker_whose_pipe_closes_drains_at_once(self) -> None:
        """
        A worker whose pipe closes drains at once, for as long as the service would.
        """
        factory = await self.begin()
        await self.leave()
        self.assertEqual(factory.drains, [7])

    async def test_worker_that_has_lost_its_supervisor_keeps_nobody_from_listening(self) -> None:
        """
        A worker that drains, whose supervisor is gone, keeps nobody from listening there, and no
        connection waiting.
        """
        await self.begin()
        self.shared.close()
        await self.leave()
        with socket.socket(socket.AF_UNIX) as mta:
            self.assertRaises(ConnectionRefusedError, mta.connect, self.path)

    async def test_sigterm_drains_for_as_long_as_service_would(self) -> None:
        """
        SIGTERM drains, for as long as the service would; those of a terminal are not for a worker.
        """
        factory = await self.begin(drain_timeout=None)
        self.assertEqual(signal.getsignal(signal.SIGINT), signal.SIG_IGN)
        self.assertEqual(signal.getsignal(signal.SIGHUP), signal.SIG_IGN)
        os.kill(os.getpid(), signal.SIGTERM)
        while not self.stops:
            await pause()
        self.assertEqual(factory.drains, [None])

    async def test_worker_that_is_told_twice_to_drain_second_time_in_hurry_ends_once(self) -> None:
        """
        A worker that is told twice to drain, the second time in a hurry, ends once.
        """
        factory = await self.begin()
        self.tell(do="drain", timeout=5)
        self.tell(do="drain", timeout=0.001)
        while self.stops < 2:
            await pause()
        self.assertEqual(factory.drains, [5, 0.001])

    async def test_ready_when_started(self) -> None:
        """
        A worker listens, and says that it is ready, when what it serves has started.
        """
        factory = await self.begin("Starting")
        self.assertRaises(BlockingIOError, os.read, self.answers, 1)
        factory.started.callback(None)
        self.assertEqual(await self.answer(), {"ready": os.getpid()})

    async def test_failure_to_start(self) -> None:
        """
        A worker whose factory does not start says why, and ends.
        """
        factory = await self.begin("Starting")
        with capturedLogs() as logs:
            factory.started.errback(ValueError("no database"))
        self.assertEqual(await self.answer(), {"failed": "no database"})
        self.assertIn("no database", str(formatEvent(logs[0])))
        while not self.stops:
            await pause()
        self.assertEqual(factory.drains, [])
        os.close(self.orders)
        self.orders = None

    async def told_before_it_has_started(self) -> Any:
        factory = await self.begin("Starting")
        self.tell(do="drain", timeout=5)
        while not self.stops:
            await pause()
        return factory

    async def test_told_to_end_before_it_has_started(self) -> None:
        """
        A worker that is told to end while it starts never listens.
        """
        (await self.told_before_it_has_started()).started.callback(None)
        self.assertRaises(BlockingIOError, os.read, self.answers, 1)

    async def test_told_to_end_before_it_has_failed(self) -> None:
        """
        Nor does it tell of a failure then.
        """
        (await self.told_before_it_has_started()).started.errback(ValueError("no"))
        self.assertRaises(BlockingIOError, os.read, self.answers, 1)

    async def test_factory_that_reloads_and_counts_is_asked_to(self) -> None:
        """
        A factory that reloads and counts is asked to, and the supervisor told how it went.
        """
        factory = await self.begin("Counting")
        outcomes = []
        for number, arguments in enumerate(([], ["anew"], ["bad"], ["broken"])):
            self.tell(do="reload", number=number, arguments=arguments)
            outcomes.append(await self.answer())
        expected = [{"reloaded": number, "done": number < 2} for number in range(4)]
        self.assertEqual(outcomes, expected)
        self.tell(do="ask", what="numbers")
        self.assertEqual(await self.answer(), {"answer": {"reloads": 4}})
        self.assertEqual(factory.told, [(), ("anew",), ("bad",), ("broken",)])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    async def test_question_that_has_no_answer_is_logged(self) -> None:
        """
        A question whose answer fails, or is nothing that JSON carries, is logged, and answered by
        nothing; the worker goes on.
        """
        await self.begin("Counting")
        for what in ("fails", "object", "numbers"):
            self.tell(do="ask", what=what)
        answers = [(await self.answer())["answer"] for _ in range(3)]
        self.assertEqual(answers, [None, None, {"reloads": 0}])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError, TypeError)), 2)

    async def test_of_any_other_factory_connections_are_counted(self) -> None:
        """
        Of any other factory the connections are counted, and it does not mind a reload.
        """
        await self.begin()
        self.tell(do="reload", number=1, arguments=["anew"])
        self.assertEqual(await self.answer(), {"reloaded": 1, "done": True})
        self.tell(do="ask", what="numbers")
        self.assertEqual(await self.answer(), {"answer": {"connections": 2}})

    async def test_socket_that_systemd_gave_supervisor_is_workers_too(self) -> None:
        """
        A socket that systemd gave the supervisor is the worker's too.
        """
        await self.begin(spec="systemd:domain=UNIX:index=0")

    async def test_workers_take_a_systemd_socket_behind_haproxy(self) -> None:
        """
        So it is behind another endpoint.
        """
        await self.begin(spec="haproxy:systemd:domain=INET:name=milter")


class Timed(Clock):
    """
    The real reactor, but for the time.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)


class SupervisorTests(TestCase):
    """
    The supervisor's half.
    """

    timeout = 60

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.spec = f"unix:{folder.name}/socket"
        (Path(folder.name) / "stubborn.py").write_text(STUBBORN)
        self.patch(sys, "path", [*sys.path, folder.name])
        self.clock: Any = Timed()
        self.ready = False

    def service(self, dies: bool | str = False, **options: Any) -> WorkerService:
        service = WorkerService(
            self.spec, "stubborn:make", [dies], count=1, reactor=self.clock, **options
        )
        service.startService()
        self.served = service
        return service

    async def until_ready(self, service: WorkerService) -> None:
        while not service._workers[0].ready:
            await pause()

    async def restart_after(self, pause_expected: float) -> None:
        """
        Wait until a worker has died; check when another comes, and let it come.
        """
        while self.served.pids or not self.clock.getDelayedCalls():
            await pause()
        (call,) = self.clock.getDelayedCalls()
        self.assertEqual(call.getTime() - self.clock.seconds(), pause_expected)

    async def test_worker_that_dies_is_replaced_at_once_and_then_later(self) -> None:
        """
        A worker that dies is replaced, at once and then later; a service may stop in between.
        """
        with capturedLogs() as logs:
            service = self.service(dies=True)
            await self.restart_after(0)
            self.clock.advance(0)
            await self.restart_after(1)
        self.assertEqual([e["reason"] for e in logs if "reason" in e], ["status 3"] * 2)
        self.assertEqual(await service.numbers(), {})
        # Nobody is there to be told; and whoever is started does not do what nobody has tried.
        service.reload()
        service.reload(["word"])
        self.clock.advance(1)
        await self.until_ready(service)
        service.hurry()
        await service.stopService()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(service.pids, [])

    async def test_cannot_be_started(self) -> None:
        """
        A worker that cannot be started at all is tried again, ever later.
        """
        refused = PermissionError(13, "No")
        with (
            mock.patch.object(reactor, "spawnProcess", side_effect=refused),
            capturedLogs() as logs,
        ):
            service = self.service()
            for seconds in (0, 1, 2, 4):
                (call,) = self.clock.getDelayedCalls()
                self.assertEqual(call.getTime() - self.clock.seconds(), seconds)
                self.clock.advance(seconds)
        self.assertEqual([event["error"] for event in logs if "error" in event], [refused] * 5)
        await service.stopService()

    async def test_worker_that_has_lived_for_long_is_replaced_at_once(self) -> None:
        """
        A worker that has lived for long is replaced at once; what it was asked counts for nothing.
        """
        with capturedLogs() as logs:
            service = self.service()
            await self.until_ready(service)
            service._workers[0].failures = 5
            self.clock.advance(10)
            numbers = service.numbers()
            os.kill(service.pids[0], signal.SIGKILL)
            self.assertEqual(await numbers, {})
            await self.restart_after(0)
            await service.stopService()
        self.assertIn("killed by SIGKILL", [event.get("reason") for event in logs])
        self.assertIn("a word", [event.get("line") for event in logs])

    async def test_worker_is_gone_though_a_program_that_it_started_is_not(self) -> None:
        """
        A worker that dies is replaced, and one that ends is waited for, whatever programs that it
        has started have of its pipes; meanwhile nothing is told to it.
        """
        (Path(self.spec.removeprefix("unix:")).parent / "stubborn.py").write_text(STUBBORN + LEAVES)
        with capturedLogs() as logs:
            service = self.service(drain_timeout=None)
            await self.until_ready(service)
            os.kill(service.pids[0], signal.SIGKILL)
            while not self.clock.getDelayedCalls():
                await pause()
            service.reload()
            self.clock.advance(1)
            await self.restart_after(0)
            self.clock.advance(0)
            await self.until_ready(service)
            stopped = service.stopService()
            service._workers[0].kill()
            while not service._workers[0]._closing.active():
                await pause()
            service._workers[0].kill()
            self.clock.advance(1)
            await stopped
        self.assertIn("killed by SIGKILL", [event.get("reason") for event in logs])
        said = [str(event.get("line")).split() for event in logs]
        left = [int(words[1]) for words in said if words[0] == "left"]
        self.assertEqual(len(left), 2)
        for pid in left:
            os.kill(pid, signal.SIGKILL)

    async def test_what_a_worker_says_may_fail_to_be_passed_on(self) -> None:
        """
        What a worker says may fail to be passed on, as where the disk is full; that is logged, and
        what it says later is passed on.
        """
        said: list[str] = []

        def full(number: int, line: str) -> None:
            said.append(line)
            raise OSError(28, "No space left on device")

        service = self.service(said=full)
        await self.until_ready(service)
        for line in (b"one\n", b"two\n"):
            service._workers[0].childDataReceived(1, line)
        self.assertEqual(said[-2:], ["one", "two"])
        self.assertEqual(len(self.flushLoggedErrors(OSError)), len(said))
        service.hurry()
        await service.stopService()

    async def test_what_no_worker_could_reload_is_not_what_others_begin_with(self) -> None:
        """
        A worker that is started anew begins with what was last reloaded, not with what could not
        be; and it is told of a reload of which nobody has said yet how it went.
        """
        said: list[str] = []
        service = self.service(said=lambda number, line: said.append(line))

        async def until_said(line: str) -> None:
            while line not in said:
                await pause()

        await self.until_ready(service)
        for word in ("good", "bad", "hang"):
            service.reload([word])
        while list(service.untried.values()) != [["hang"]]:
            await pause()
        self.assertEqual(said[-2:], ["reloaded with good", "reloaded with bad"])
        service.untried = {3: ["later"]}
        os.kill(service.pids[0], signal.SIGKILL)
        await self.restart_after(0)
        self.clock.advance(0)
        await until_said("made with good")
        await until_said("reloaded with later")
        while service.untried:
            await pause()
        service.hurry()
        await service.stopService()

    async def test_what_it_is_started_with_is_no_part_of_its_command_line(self) -> None:
        """
        What a worker is started with, which may have passwords and be long, is no part of its
        command line, which every user can read.
        """
        service = self.service("secret" + 300_000 * "x")
        await self.until_ready(service)
        (pid,) = service.pids
        self.assertNotIn(b"secret", Path(f"/proc/{pid}/cmdline").read_bytes())
        service.hurry()
        await service.stopService()

    async def test_lines_of_the_log_are_not_put_into_what_is_printed(self) -> None:
        """
        Lines of the log are not put into what is printed, which comes in pieces that end anywhere;
        the last words are passed on without an end of line.
        """
        said: list[str] = []
        service = self.service(said=lambda number, line: said.append(line))
        await self.until_ready(service)
        worker = service._workers[0]
        for descriptor, data in ((1, b"pri"), (2, b"an event\n"), (1, b"nted\nlast words")):
            worker.childDataReceived(descriptor, data)
        service.hurry()
        await service.stopService()
        self.assertEqual(said[-3:], ["an event", "printed", "last words"])

    async def test_worker_that_cannot_start_is_told_of_by_its_number_and_with_reason(self) -> None:
        """
        A worker that cannot start is told of, by its number and with the reason, and tried again.
        """
        told: list[tuple[int, str]] = []
        (Path(self.spec.removeprefix("unix:")).parent / "stubborn.py").write_text(STUBBORN + FAILS)
        with capturedLogs() as logs:
            service = self.service(failed=lambda number, reason: told.append((number, reason)))
            await self.restart_after(0)
        self.assertEqual(told, [(1, "no database")])
        self.assertIn("status 1", [event.get("reason") for event in logs])
        await service.stopService()

    async def test_hurried_and_stuck(self) -> None:
        """
        A worker that does not even end in a hurry is killed soon.
        """
        service = self.service(drain_timeout=None)
        await self.until_ready(service)
        os.kill(service.pids[0], signal.SIGSTOP)
        stopped = service.stopService()
        service.hurry()
        self.clock.advance(3)
        await stopped
        self.assertEqual(self.clock.getDelayedCalls(), [])

    async def test_worker_that_does_not_answer_in_time_is_left_out(self) -> None:
        """
        A worker that does not answer in time is left out; its late answer is taken for no other.
        """
        service = self.service(drain_timeout=3)
        await self.until_ready(service)
        (pid,) = service.pids
        os.kill(pid, signal.SIGSTOP)
        answers = service.ask("numbers")
        self.clock.advance(5)
        self.assertEqual(await answers, [])
        os.kill(pid, signal.SIGCONT)
        self.assertEqual(await service.ask("numbers"), [{"connections": 0}])
        service.hurry()
        await service.stopService()

    async def test_worker_that_does_not_come_to_its_end_in_time_is_killed(self) -> None:
        """
        A worker that does not come to its end in time is killed.
        """
        service = self.service(drain_timeout=3)
        await self.until_ready(service)
        (pid,) = service.pids
        stopped = service.stopService()
        self.clock.advance(12.9)
        self.assertEqual(service.pids, [pid])
        with capturedLogs() as logs:
            self.clock.advance(0.1)
            await stopped
        said = f"Worker 1 (process {pid}) does not come to its end and is killed"
        self.assertTrue(any(said in str(formatEvent(event)) for event in logs))
        self.assertRaises(ProcessLookupError, os.kill, pid, 0)

    async def test_workers_may_drain_for_ever_until_they_are_hurried(self) -> None:
        """
        Workers may drain for ever, until they are hurried; then no time is kept any more.
        """
        for timeout in (None, 3):
            service = self.service(drain_timeout=timeout)
            service.privilegedStartService()
            await self.until_ready(service)
            stopped = service.stopService()
            service.hurry()
            await stopped
            self.assertEqual(self.clock.getDelayedCalls(), [])


class LinesTests(SynchronousTestCase):
    """
    What a worker writes.
    """

    def test_lines_are_put_together_from_pieces_and_one_without_end_is_cut(self) -> None:
        """
        Lines are put together from pieces, and one without an end is cut; what is left of it does
        not begin as a line does.
        """
        lines: list[bytes] = []
        cutter = workers._Lines(lines.append)
        cutter.add(b"a")
        cutter.add(b"b\nc\nd")
        self.assertEqual(lines, [b"ab", b"c"])
        cutter.add(b"x" * 2**20)
        self.assertEqual(lines[2:], [b"d" + b"x" * 2**20])
        cutter.add(b"y\nz\n")
        self.assertEqual(lines[3:], [b"\ty", b"z"])
        cutter.end()
        cutter.add(b"last")
        cutter.end()
        self.assertEqual(lines[5:], [b"last"])
