"""
Mail that flows while something is done to the milters.

Clients try again, as mail servers do, what was put off.  Each message has to arrive once, with the
mark of the milters: none lost, none doubled, none let through without having been looked at.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

from .hosting import HostCase
from .postfix import Postfix
from .processes import wait_until
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


class LoadCase(HostCase):
    """
    A test with mail that flows through milters that mark it.
    """

    mta_class = Postfix

    def setUp(self) -> None:
        """
        Write the milter's module.
        """
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
