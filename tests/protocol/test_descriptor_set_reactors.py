"""
Tests of the fast path that need a process of their own: other reactors, and the end of a reactor.

The process listens with a milter, is its own MTA on plain sockets, ends its reactor while
connections are open and prints what became of them. Both paths must print the same.
"""

from __future__ import annotations

import json
import select
import sys
import tempfile
from pathlib import Path
from subprocess import run
from typing import Any
from unittest import skipIf

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).resolve().parent.parent.parent

PROGRAM = """
import importlib, json, socket, sys

reactor_module, fast_path, path = sys.argv[1:]
importlib.import_module(f"twisted.internet.{reactor_module}").install()
from twisted.internet import reactor
from yatxmilter import Milter, MilterFactory, MilterProtocolFactory
from tests.conversation_helpers import HELO, MAIL, QUIT, offer, parse

events, ends, found = [], [], {}

class Noting(Milter):
    def xxfi_helo(self, helohost):
        events.append("helo")
    def xxfi_envfrom(self, argv):
        events.append("envfrom")
    def xxfi_mta_close(self, reason):
        events.append(type(reason.value).__name__)

factory = MilterProtocolFactory(MilterFactory(Noting))
factory.fast_path = fast_path == "fast"
port = reactor.listenUNIX(path, factory)

def connect():
    for _ in range(3):
        mta = socket.socket(socket.AF_UNIX)
        mta.connect(path)
        mta.setblocking(False)
        mta.sendall(offer() + HELO + MAIL)
        ends.append((mta, []))
    ends[0][0].sendall(QUIT)
    look()

def look():
    for mta, received in ends:
        try:
            received.append(mta.recv(65536))
        except BlockingIOError:
            pass
    answered = all(b"".join(said).count(b"\\0\\0\\0\\1c") == 2 for _, said in ends)
    if answered and "ConnectionDone" in events:
        found["fast"] = sorted(protocol._served is not None for protocol in factory.connections)
        reactor.stop()
    else:
        reactor.callLater(0, look)

reactor.callWhenRunning(connect)
reactor.run()
found["letters"] = ["".join(l for l, _ in parse(b"".join(received))) for _, received in ends]
found["events"] = sorted(events)
found["connections"] = len(factory.connections)
print(json.dumps(found))
"""


class ReactorTests(SynchronousTestCase):
    """
    Each reactor, on both paths.
    """

    def setUp(self) -> None:
        # Not below the folder of the tests, whose path may be too long for a socket.
        folder = tempfile.TemporaryDirectory(prefix="yatx")
        self.addCleanup(folder.cleanup)
        self.path = str(Path(folder.name) / "s")

    def outcome(self, reactor: str, path: str) -> dict[str, Any]:
        """
        Run the program.
        """
        finished = run(
            [sys.executable, "-c", PROGRAM, reactor, path, self.path],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.assertEqual((finished.returncode, finished.stderr), (0, ""))
        found: dict[str, Any] = json.loads(finished.stdout)
        return found

    def check(self, reactor: str) -> None:
        """
        Sessions are served, and when the reactor ends each connection is lost, once.
        """
        for path in ("fast", "ordinary"):
            fast = path == "fast" and hasattr(select, "epoll")
            expected = {
                "fast": [fast] * 2,
                "letters": ["Occ"] * 3,
                "events": [
                    *("ConnectionDone", "ConnectionLost", "ConnectionLost"),
                    *["envfrom"] * 3,
                    *["helo"] * 3,
                ],
                "connections": 0,
            }
            self.assertEqual(self.outcome(reactor, path), expected, path)

    @skipIf(not hasattr(select, "epoll"), "there is no epoll here")
    def test_set_works_on_the_reactor_that_is_twisteds_own_choice(self) -> None:
        """
        On the reactor that is Twisted's own choice on Linux.
        """
        self.check("epollreactor")

    def test_set_works_on_a_reactor_that_uses_poll(self) -> None:
        """
        On one that uses poll.
        """
        self.check("pollreactor")

    def test_set_works_on_a_reactor_that_uses_select(self) -> None:
        """
        On one that uses select.
        """
        self.check("selectreactor")

    def test_set_works_on_the_event_loop_of_asyncio(self) -> None:
        """
        On asyncio's event loop.
        """
        self.check("asyncioreactor")
