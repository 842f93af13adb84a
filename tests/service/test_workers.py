"""
Tests of running milters: real processes, told by real signals, with a client's traffic.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.error import ConnectError
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from yatxmilter.client import connect_milter
from yatxmilter.workers import WorkerService

ROOT = Path(__file__).resolve().parent.parent.parent

#: Counts each message whose end it has seen, by its sender, in a file: one line each.
MILTER = """
import os
from yatxmilter import Milter

class Counting(Milter):
    VERSION = "1"
    def xxfi_envfrom(self, argv):
        self.sender = argv[0]
    def xxfi_eom(self):
        with open("seen", "a") as seen:
            seen.write(f"{self.sender} {os.getpid()}\\n")
        self.smfi_addheader("X-Version", self.VERSION)
"""


def pause(seconds: float = 0.02) -> Deferred[None]:
    return deferLater(reactor, seconds)


def fetch(path: Path, page: str) -> str:
    """
    Get a page by HTTP.
    """
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(f"GET /{page} HTTP/1.0\r\n\r\n".encode())
        with client.makefile() as answer:
            return answer.read()


class ServeCase(TestCase):
    """
    A folder with a milter and a socket for the service manager.
    """

    timeout = 120

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.spec = f"unix:{self.folder}/socket"
        (self.folder / "counting.py").write_text(MILTER)
        (self.folder / "seen").touch()
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.manager.close)
        self.manager.bind(f"{self.folder}/notify")
        self.manager.setblocking(False)
        self.told = ""

    def start(self, *words: str, milter: str = "counting:Counting") -> subprocess.Popen[bytes]:
        """
        Start ``serve``.
        """
        serve = [sys.executable, "-m", "yatxmilter", "serve"]
        return self.run_program([*serve, "--listen", self.spec, "--milter", milter, *words])

    def run_program(self, command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        """
        Start a program that serves.

        :param options: For `subprocess.Popen`.
        """
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "PYTHONDONTWRITEBYTECODE": "1",
                    "NOTIFY_SOCKET": f"{self.folder}/notify",
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **options,
            )
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    async def hear(self, word: str) -> None:
        """
        Wait until the service manager is told.
        """
        while word not in self.told:
            try:
                self.told += self.manager.recv(4096).decode() + "\n"
            except BlockingIOError:
                await pause()
        self.told = self.told.partition(word)[2]

    async def hear_ready(self) -> None:
        await self.hear("READY=1")

    async def ended(self, process: subprocess.Popen[bytes]) -> int:
        """
        Wait until a process has ended.
        """
        while process.poll() is None:
            await pause()
        return int(process.returncode)

    async def send(self, sender: str) -> str | None:
        """
        Send one message on a connection of its own; tell the version that took it, or None when
        it was not taken.
        """
        try:
            client: Any = await connect_milter(self.spec)
        except ConnectError:
            return None
        try:
            await client.negotiate()
            outcome = await client.send_message(
                b"Subject: one\r\n\r\nbody\r\n", sender=sender, recipients=["<b@example.com>"]
            )
        except Exception:
            return None
        finally:
            client.transport.loseConnection()
        if not outcome.accepted:
            return None
        return str(next((edit.value for edit in outcome.edits), ""))

    async def load(self, stop: Any, results: dict[str, str | None], name: str) -> None:
        """
        Send messages one after the other until told to stop.
        """
        number = 0
        while not stop.is_set():
            sender = f"<{name}.{number}@example.org>"
            results[sender] = await self.send(sender)
            number += 1
            await pause(0.005)

    def seen(self) -> Counter[str]:
        """
        Count the messages that the milters have seen the end of, by sender.
        """
        return Counter(line.split()[0] for line in (self.folder / "seen").read_text().splitlines())

    def check_none_lost(self, results: dict[str, str | None]) -> None:
        """
        Each message that was taken was seen once, and no other.
        """
        taken = Counter(sender for sender, version in results.items() if version is not None)
        self.assertGreater(len(taken), 10)
        self.assertEqual(self.seen(), taken, self.log)


class ServeTests(ServeCase):
    """
    One process.
    """

    workers: tuple[str, ...] = ()

    async def under_load(self, during: Any) -> dict[str, str | None]:
        """
        Do something while four connections at once bring mail.
        """
        stop = threading.Event()
        results: dict[str, str | None] = {}
        loads = [
            Deferred.fromCoroutine(self.load(stop, results, f"{self.id()[-9:]}{n}"))
            for n in range(4)
        ]
        await pause(0.2)
        await during()
        await pause(0.2)
        stop.set()
        await gatherResults(loads)
        return results

    async def test_terminate_under_load(self) -> None:
        """
        SIGTERM, and a start anew, lose no message and double none.
        """
        process = self.start(*self.workers)
        await self.hear_ready()

        async def restart() -> None:
            process.send_signal(signal.SIGTERM)
            self.assertEqual(await self.ended(process), 0, self.log)
            self.again = self.start(*self.workers)
            await self.hear_ready()

        results = await self.under_load(restart)
        self.check_none_lost(results)
        self.again.send_signal(signal.SIGTERM)
        self.assertEqual(await self.ended(self.again), 0, self.log)
        self.assertNotIn("Traceback", self.log)
        self.assertFalse((self.folder / "socket").exists())

    async def test_reload_under_load(self) -> None:
        """
        SIGHUP loads the milter anew for new connections; every message is taken, once.
        """
        process = self.start(*self.workers)
        await self.hear_ready()

        async def change() -> None:
            text = MILTER.replace('VERSION = "1"', 'VERSION = "2"')
            (self.folder / "counting.py").write_text(text)
            process.send_signal(signal.SIGHUP)
            await self.hear("RELOADING=1")
            await self.hear_ready()

        results = await self.under_load(change)
        self.check_none_lost(results)
        self.assertNotIn(None, results.values())
        self.assertEqual(set(results.values()), {"1", "2"}, self.log)
        process.send_signal(signal.SIGTERM)
        self.assertEqual(await self.ended(process), 0)

    async def test_milter_that_cannot_be_loaded_any_more_is_logged(self) -> None:
        """
        A milter that cannot be loaded any more is logged, and the old one stays in force.
        """
        process = self.start(*self.workers)
        await self.hear_ready()
        (self.folder / "counting.py").write_text("nonsense (")
        process.send_signal(signal.SIGHUP)
        await self.hear("RELOADING=1")
        await self.hear_ready()
        while "Nothing is reloaded" not in self.log:
            await pause()
        self.assertEqual(await self.send("<a@example.org>"), "1")
        process.send_signal(signal.SIGTERM)
        self.assertEqual(await self.ended(process), 0)


class ServeWorkersTests(ServeTests):
    """
    The same with two workers.
    """

    workers = ("--workers", "2")

    async def test_worker_that_is_killed_is_replaced(self) -> None:
        """
        A worker that is killed is replaced, and messages go on.
        """
        process = self.start(*self.workers)
        await self.hear_ready()
        while len({line.split()[1] for line in self.lines()}) < 2:
            await gatherResults(
                [Deferred.fromCoroutine(self.send(f"<{n}@example.org>")) for n in range(8)]
            )
        victim = int(self.lines()[0].split()[1])
        os.kill(victim, signal.SIGKILL)
        await self.hear_ready()
        self.assertIn(f"(process {victim}) has ended (killed by SIGKILL)", self.log)
        self.assertEqual(await self.send("<after@example.org>"), "1")
        self.assertEqual(self.seen()["<after@example.org>"], 1)
        process.send_signal(signal.SIGTERM)
        self.assertEqual(await self.ended(process), 0)

    async def test_worker_that_is_started_anew_has_configuration_that_service_began_with(
        self,
    ) -> None:
        """
        A worker that is started anew has the configuration that the service began with, or was
        given by the last reload, whatever has become of the file since.
        """
        (self.folder / "conf.toml").write_text("timeout = 5\n")
        process = self.start(*self.workers, "--config=conf.toml")
        await self.hear_ready()
        (self.folder / "conf.toml").write_text("timeout = \n")
        self.assertEqual(await self.send("<one@example.org>"), "1")
        os.kill(int(self.lines()[0].split()[1]), signal.SIGKILL)
        await self.hear_ready()
        for number in range(4):
            self.assertEqual(await self.send(f"<{number}@example.org>"), "1")
        process.send_signal(signal.SIGHUP)
        await self.hear_ready()
        self.assertIn("Nothing is reloaded: conf.toml:1: ", self.log)
        process.send_signal(signal.SIGTERM)
        self.assertEqual(await self.ended(process), 0)
        self.assertNotIn("Traceback", self.log)

    async def test_metrics_of_all_workers_are_added_up_on_one_page(self) -> None:
        """
        The metrics of all workers are added up on one page.
        """
        page = self.folder / "page"
        process = self.start(*self.workers, f"--metrics=unix:{page}")
        await self.hear_ready()
        for number in range(6):
            self.assertEqual(await self.send(f"<{number}@example.org>"), "1")
        text = await deferToThread(fetch, page, "metrics")
        self.assertIn("yatxmilter_processes 2.0\n", text)
        self.assertIn('yatxmilter_messages_total{verdict="continue"} 6.0\n', text)
        self.assertIn(" 200 ", (await deferToThread(fetch, page, "readyz")).splitlines()[0])
        process.send_signal(signal.SIGTERM)
        self.assertEqual(await self.ended(process), 0)
        self.assertFalse(page.exists())

    async def test_without_a_worker_it_is_not_ready(self) -> None:
        """
        While there is no worker, and none can be started, it is not ready.
        """
        page = self.folder / "page"
        process = self.start(*self.workers, f"--metrics=unix:{page}")
        await self.hear_ready()

        async def status(code: str) -> None:
            while f" {code} " not in (await deferToThread(fetch, page, "readyz")).splitlines()[0]:
                await pause()

        await status("200")
        (self.folder / "counting.py").write_text("nonsense (")
        for pid in map(int, re.findall(r"Ready \(worker \d, process (\d+)\)", self.log)):
            os.kill(pid, signal.SIGKILL)
        await status("503")
        (self.folder / "counting.py").write_text(MILTER)
        await status("200")
        self.assertEqual(await self.send("<one@example.org>"), "1")
        process.send_signal(signal.SIGTERM)
        self.assertEqual(await self.ended(process), 0)

    def lines(self) -> list[str]:
        return (self.folder / "seen").read_text().splitlines()


class LibraryTests(ServeCase):
    """
    Workers without the command.
    """

    async def test_what_workers_count_is_added_up_and_each_stops_with_service(self) -> None:
        """
        What the workers count is added up, and each stops with the service.
        """
        ready: Deferred[None] = Deferred()
        (self.folder / "building.py").write_text(
            "from yatxmilter import *\ndef make(): return MilterProtocolFactory(MilterFactory())\n"
        )
        self.patch(sys, "path", [*sys.path, str(self.folder)])
        service = WorkerService(self.spec, "building:make", ready=lambda: ready.callback(None))
        service.startService()
        await ready
        client: Any = await connect_milter(self.spec)
        while (await service.numbers()) != {"connections": 1}:
            await pause()
        self.assertEqual(len(service.pids), 2)
        client.transport.loseConnection()
        await service.stopService()
        self.assertEqual(service.pids, [])

    async def test_service_that_was_never_started_can_be_stopped(self) -> None:
        """
        A service that was never started can be stopped, and there is nothing to stop.
        """
        service = WorkerService(self.spec, "building:make")
        await service.stopService()
        self.assertEqual(service.pids, [])

    def test_bad_options_are_refused_naming_value(self) -> None:
        """
        Bad options are refused, naming the value.
        """
        with self.assertRaisesRegex(ValueError, "'nothing'"):
            WorkerService([], "nothing")
        with self.assertRaisesRegex(ValueError, "count is 0"):
            WorkerService([], "a:b", count=0)
