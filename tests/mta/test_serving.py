"""
``yatxmilter serve`` behind a real Postfix: told to reload, restarted and robbed of a worker while
mail flows.

Clients try again, as mail servers do, what was put off.  Each message has to arrive once, with the
mark of the milters: none lost, none doubled, none let through without having been looked at.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable

from .control import ROOT
from .hosting import HostCase
from .postfix import Postfix
from .processes import LOOPBACK, wait_until
from .smtp import Disconnected, SmtpClient

#: Takes its time over each message, so that there is something to disturb, and more if it finds a
#: file there.
MILTER = """
import os
from pathlib import Path
from twisted.internet import reactor
from twisted.internet.task import deferLater
from yatxmilter import Milter

class Marking(Milter):
    VERSION = "one"
    async def xxfi_eom(self):
        await deferLater(reactor, 0.05)
        hold = Path(__file__).with_name("hold")
        while hold.exists():
            hold.with_name(f"held.{os.getpid()}").touch()
            await deferLater(reactor, 0.05)
        self.smfi_addheader("X-Marked", f"{self.VERSION} {os.getpid()}")
"""

CLIENTS = 3


class Load:
    """
    Clients that send one message after the other, each until it is taken.

    :ivar taken: The messages that Postfix has taken.
    :ivar put_off: How often one was not, the connection broken off among that.
    """

    def __init__(self, port: int) -> None:
        self.taken: list[str] = []
        self.put_off = 0
        self._port = port
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(n,)) for n in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """
        End with the messages that are being sent.
        """
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def after(self, count: int) -> None:
        """
        Wait until some more messages are taken.
        """
        goal = len(self.taken) + count
        wait_until(lambda: len(self.taken) >= goal, f"{count} more messages")

    def _send(self, client: int) -> None:
        number = 0
        while not self._stopping.is_set():
            number += 1
            name = f"{client}.{number}"
            while not self._taken(name):
                self.put_off += 1
            self.taken.append(name)

    def _taken(self, name: str) -> bool:
        session = SmtpClient(self._port)
        try:
            session.ehlo()
            reply = session.message(f"Subject: {name}\r\n\r\nbody\r\n".encode())
            session.quit()
        except Disconnected:
            return False
        finally:
            session.close()
        assert reply.code == 250 or reply.code // 100 == 4, reply
        return reply.code == 250


class ServedTests(HostCase):
    """
    The daemon, told things under load.
    """

    mta_class = Postfix

    def serve(self, *words: str) -> subprocess.Popen[bytes]:
        """
        Start it behind the door "example".
        """
        port = self.mta.addresses.example_port
        return self.run_command(
            *("env", f"PYTHONPATH={self.folder}:{ROOT}", "PYTHONDONTWRITEBYTECODE=1"),
            *(sys.executable, "-m", "yatxmilter", "serve", f"--listen=inet:{port}@{LOOPBACK}"),
            *("--milter=marking:Marking", *words),
        )

    def setUp(self) -> None:
        super().setUp()
        self.module = self.folder / "marking.py"
        self.module.write_text(MILTER)

    def under_load(self, act: Callable[[Load], None]) -> Load:
        """
        Do something while mail flows, and check that each message taken was delivered once, and
        marked once.
        """
        load = Load(self.mta.ports["example"])
        try:
            load.after(5)
            act(load)
            load.after(5)
        finally:
            load.stop()
        deliveries = self.sink.wait(len(load.taken))
        self.mta.settle()
        delivered = Counter(one.values("Subject")[0].decode().strip() for one in deliveries)
        self.assertEqual(delivered, Counter(load.taken))
        self.assertEqual({len(one.values("X-Marked")) for one in self.sink.deliveries}, {1})
        return load

    def marks(self) -> list[str]:
        """
        Give the marks of what was delivered.
        """
        return [one.values("X-Marked")[0].decode().strip() for one in self.sink.deliveries]

    def test_reload(self) -> None:
        """
        SIGHUP puts nothing off: messages come through the old milter, then through the new one.
        """
        process = self.serve("--workers=2")

        def act(load: Load) -> None:
            self.module.write_text(MILTER.replace('"one"', '"two"'))
            process.send_signal(signal.SIGHUP)
            load.after(10)

        self.assertEqual(self.under_load(act).put_off, 0)
        self.assertEqual({mark.split()[0] for mark in self.marks()}, {"one", "two"})

    def test_restart(self) -> None:
        """
        SIGTERM lets messages in progress end, those in between are put off by Postfix, and all
        come through once it runs again.
        """
        process = self.serve()

        def act(load: Load) -> None:
            process.send_signal(signal.SIGTERM)
            self.assertEqual(process.wait(120), 0, self.log.read_text())
            self.assertNotIn("Traceback", self.log.read_text())
            self.serve()

        self.under_load(act)
        self.assertEqual(len({mark.split()[1] for mark in self.marks()}), 2)

    def test_worker_killed(self) -> None:
        """
        When a worker is killed in the middle of messages Postfix puts those off, the next worker
        has them, and nobody else notices.
        """
        self.serve("--workers=2")

        def act(load: Load) -> None:
            hold = self.folder / "hold"
            hold.touch()
            wait_until(lambda: list(self.folder.glob("held.*")), "a message to be held")
            [held, *_] = self.folder.glob("held.*")
            os.kill(int(held.suffix[1:]), signal.SIGKILL)
            hold.unlink()
            load.after(15)

        load = self.under_load(act)
        self.assertIn(load.put_off, range(1, CLIENTS + 1))
        self.assertIn("(killed by SIGKILL)", self.log.read_text())
