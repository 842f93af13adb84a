"""
Tests of ``serve`` as others start it: twist, twistd, systemd, and root.
"""

from __future__ import annotations

import os
import pwd
import signal
import socket
import subprocess
import sys
import unittest
from pathlib import Path

from tests.cli.test_serve import TWIST
from tests.service.test_workers import MILTER, ROOT, ServeCase, pause

#: As `TWIST`.
TWISTD = TWIST.replace("twist", "twistd")

#: Starts a program as systemd does: sockets from descriptor 3 on, for the process that is named.
SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_FDNAMES="milter", LISTEN_PID=str(os.getpid()))
os.environ["WATCHDOG_USEC"] = "1000000"
os.execv(sys.argv[2], sys.argv[2:])
"""


#: Factories that do not come to their end, or to their beginning.
FORGETFUL = """
import threading, time
from twisted.internet.defer import Deferred
from yatxmilter import MilterFactory

class Forgetful(MilterFactory):
    def __init__(self):
        super().__init__(Counting)
        threading.Thread(target=time.sleep, args=[1000], name="forgotten").start()

class Endless(MilterFactory):
    def __init__(self):
        super().__init__(Counting)
    def stop(self):
        return Deferred()

class Blocking(Endless):
    def stop(self):
        time.sleep(1000)

class Broken(Endless):
    def start(self):
        raise SystemExit("no database")
"""


class StartedTests(ServeCase):
    """
    A process, from its start to its end.
    """

    timeout = 120

    async def check(self, process: subprocess.Popen[bytes], *signs: str) -> None:
        """
        Have it take a message, and end without a complaint.

        :param signs: What it tells the service manager once it is ready.
        """
        for sign in ("READY=1", *signs):
            await self.hear(sign)
        self.assertEqual(await self.send("<one@example.org>"), "1", self.log)
        process.send_signal(signal.SIGTERM)
        self.assertEqual(await self.ended(process), 0, self.log)
        self.assertNotIn("Traceback", self.log)

    async def test_twist_yatxmilter_serves_and_drains(self) -> None:
        """
        ``twist yatxmilter`` serves and drains.
        """
        words = [f"--listen={self.spec}", "--milter=counting:Counting"]
        await self.check(self.run_program([sys.executable, "-c", TWIST, "yatxmilter", *words]))

    async def test_twistd_n_yatxmilter_starts_it(self) -> None:
        """
        So does ``twistd -n yatxmilter``.
        """
        words = [f"--listen={self.spec}", "--milter=counting:Counting"]
        command = [sys.executable, "-c", TWISTD, "-n", "--pidfile=", "yatxmilter", *words]
        await self.check(self.run_program(command))

    async def by_systemd(self, *words: str) -> subprocess.Popen[bytes]:
        """
        Start it with a socket that somebody else has opened.
        """
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(str(self.folder / "socket"))
            opened.listen()
            command = [sys.executable, "-c", SYSTEMD, str(opened.fileno())]
            serve = [sys.executable, "-m", "yatxmilter", "serve", "--milter=counting:Counting"]
            return self.run_program(
                [*command, *serve, "--listen=systemd:domain=UNIX:index=0", *words],
                pass_fds=[opened.fileno()],
            )

    async def test_socket_of_systemds_is_served_and_watchdog_gets_its_signs_of_life(self) -> None:
        """
        A socket of systemd's is served, and the watchdog gets its signs of life.
        """
        await self.check(await self.by_systemd(), "WATCHDOG=1")
        await self.hear("STOPPING=1")

    async def test_workers_take_the_socket_of_systemd(self) -> None:
        """
        So it is by workers.
        """
        await self.check(await self.by_systemd("--workers=2"))

    async def test_signals_that_come_while_milters_are_loaded_are_for_later(self) -> None:
        """
        Signals that come while the milters are loaded do not end it: what they ask for is done when
        it serves.
        """
        os.mkfifo(self.folder / "gate")
        (self.folder / "counting.py").write_text("open('gate').read()\n" + MILTER)
        process = self.start()
        # It opens when the module is being loaded.
        with (self.folder / "gate").open("w"):
            process.send_signal(signal.SIGHUP)
            process.send_signal(signal.SIGUSR1)
            (self.folder / "counting.py").write_text(MILTER.replace('"1"', '"2"'))
        await self.hear_ready()
        while "SIGUSR1: the log is on standard error" not in self.log or "Reloaded" not in self.log:
            await pause()
        self.assertEqual(await self.send("<one@example.org>"), "2", self.log)
        process.send_signal(signal.SIGTERM)
        self.assertEqual(await self.ended(process), 0, self.log)

    async def test_what_is_never_stopped(self) -> None:
        """
        A thread that a milter's factory has never stopped keeps neither process nor workers.
        """
        (self.folder / "counting.py").write_text(MILTER + FORGETFUL)
        for words in ((), ("--workers=2",)):
            process = self.start(*words, milter="counting:Forgetful")
            await self.hear_ready()
            self.assertEqual(await self.send("<one@example.org>"), "1", self.log)
            process.send_signal(signal.SIGTERM)
            self.assertEqual(await self.ended(process), 0, self.log)
            self.assertNotIn("Traceback", self.log)
        self.assertIn("still at work: forgotten", self.log)

    async def test_second_sigterm_ends_process_at_once(self) -> None:
        """
        A second SIGTERM ends the process at once, though a factory does not come to its end; even
        one that blocks the process.
        """
        for milter in ("Endless", "Blocking"):
            (self.folder / "counting.py").write_text(MILTER + FORGETFUL)
            process = self.start(milter=f"counting:{milter}")
            await self.hear_ready()
            process.send_signal(signal.SIGTERM)
            await self.hear("STOPPING=1")
            process.send_signal(signal.SIGTERM)
            self.assertEqual(await self.ended(process), 0, self.log)

    async def test_factory_that_does_not_start(self) -> None:
        """
        A factory that does not start ends it with a status of its own and the reason, with workers
        too.
        """
        (self.folder / "counting.py").write_text(MILTER + FORGETFUL)
        for words in ((), ("--workers=2",)):
            process = self.start(*words, milter="counting:Broken")
            self.assertEqual(await self.ended(process), 4, self.log)
            self.assertIn("Counting could not start: SystemExit: no database", self.log)
            self.assertNotIn("Traceback", self.log)

    async def test_group_of_the_socket(self) -> None:
        """
        ``--mode 660 --group`` makes a socket of that group.
        """
        if os.getuid() != 0:
            raise unittest.SkipTest("only root can give files away")
        group = pwd.getpwnam("nobody").pw_gid
        process = self.start("--mode=660", f"--group={group}")
        await self.hear_ready()
        found = (self.folder / "socket").stat()
        self.assertEqual((found.st_mode & 0o777, found.st_uid, found.st_gid), (0o660, 0, group))
        process.send_signal(signal.SIGTERM)
        self.assertEqual(await self.ended(process), 0, self.log)

    async def drop(self, *words: str) -> None:
        """
        Start it as root, become nobody, and see who it is.
        """
        if os.getuid() != 0:
            raise unittest.SkipTest("only root can become another user")
        nobody = pwd.getpwnam("nobody")
        self.folder.chmod(0o755)
        # As systemd's.
        (self.folder / "notify").chmod(0o777)
        # Nobody could not write down what coverage measures.
        self.patch(os, "environ", {n: v for n, v in os.environ.items() if "COVERAGE" not in n})
        process = self.start(
            *("--user=nobody", f"--pidfile={self.folder}/pid", "--mode=666", *words),
            milter="yatxmilter:Milter",
        )
        await self.hear_ready()
        self.assertEqual((self.folder / "pid").read_text(), f"{process.pid}\n")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for pid in (process.pid, *children):
            status = Path(f"/proc/{pid}/status").read_text()
            self.assertIn("\nUid:" + f"\t{nobody.pw_uid}" * 4 + "\n", status)
            self.assertIn("\nGid:" + f"\t{nobody.pw_gid}" * 4 + "\n", status)
        self.assertEqual(await self.send("<one@example.org>"), "")
        process.send_signal(signal.SIGTERM)
        self.assertEqual(await self.ended(process), 0, self.log)
        # What is in root's folder stays, and keeps nobody from coming to an end.
        self.assertEqual((self.folder / "pid").read_text(), f"{process.pid}\n")
        self.assertEqual((self.folder / "pid").stat().st_uid, 0)
        self.assertEqual((self.folder / "socket").stat().st_uid, nobody.pw_uid)
        self.assertTrue((self.folder / "socket").is_socket())
        self.assertIn("could not be closed: [Errno 13] Permission denied", self.log)
        self.assertNotIn("Traceback", self.log)

    async def test_after_sockets_are_open_it_is_nobodys_groups_included(self) -> None:
        """
        After the sockets are open it is nobody's, groups included; the pid file stays root's.
        """
        await self.drop()

    async def test_workers_are_nobodys_too(self) -> None:
        """
        The workers are nobody's, too.
        """
        command = [sys.executable, "-c", "import yatxmilter, twisted"]
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        try:
            subprocess.run(command, user="nobody", env=environ, check=True, capture_output=True)
        except (OSError, subprocess.SubprocessError) as error:
            raise unittest.SkipTest(f"nobody cannot run this Python: {error}") from None
        await self.drop("--workers=2")
