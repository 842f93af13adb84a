"""
One MTA with its sink and its milter process, kept for all tests, and the test case around it.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path
from typing import Any, ClassVar

from twisted.trial.unittest import SynchronousTestCase

from tests.ports import free_ports

from .control import MilterProcess, Script
from .mta import Addresses, Mta, Traits
from .sink import Delivery, Sink
from .smtp import Reply, SmtpClient

#: A message with all that is easily changed on the way: 8-bit text, folds, blanks, dots.
MESSAGE = (
    b"From: Sender <sender@client.example>\r\n"
    b"To: rcpt@sink.example\r\n"
    b"Subject: A test\r\n"
    b"Date: Thu, 02 Jan 2025 03:04:05 +0000\r\n"
    b"Message-Id: <1@client.example>\r\n"
    b"X-Folded: one\r\n\ttwo\r\n  three\r\n"
    b"X-Blanks:   three before\r\n"
    b"X-Octets: \xe4\xf6\xff\r\n"
    b"\r\n"
    b"First line\r\n"
    b".\r\n"
    b"..two dots, 8 bits: \xc3\xa4 \xff \r\n"
    b"\r\n"
    b"last line\r\n"
)


class Bench:
    """
    An MTA, the sink to which it delivers, and the milter that it asks.
    """

    def __init__(self, mta: type[Mta]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="yatxmilter-"))
        # The daemons' own users have to pass.
        self.folder.chmod(0o755)
        self.sink = Sink()
        milter_port, example_port = free_ports(2)
        addresses = Addresses(
            self.folder / "milter.sock", milter_port, self.sink.port, example_port
        )
        self.mta = mta(self.folder, addresses)
        self.milter = MilterProcess(
            addresses.milter_socket, milter_port, self.folder / "milter.log"
        )

    def start(self) -> None:
        """
        Start the processes.
        """
        self.milter.start()
        self.mta.start()

    def stop(self) -> None:
        """
        Stop the processes and remove what they left.
        """
        self.mta.stop()
        self.milter.stop()
        self.sink.stop()
        shutil.rmtree(self.folder)


_benches: dict[type[Mta], Bench] = {}


def bench_for(mta: type[Mta]) -> Bench:
    """
    Give the running bench of an MTA, which lasts until the test run ends.

    Starting is not left to ``setUpClass`` because trial does not call it for a class on its own.
    """
    if mta not in _benches:
        mta.require_installed()
        bench = Bench(mta)
        try:
            bench.start()
        except BaseException:
            bench.stop()
            raise
        atexit.register(bench.stop)
        _benches[mta] = bench
    return _benches[mta]


class MtaTestCase(SynchronousTestCase):
    """
    A test with a real MTA.  The warnings and errors in the milter's log must all be expected.
    """

    mta_class: ClassVar[type[Mta]]

    def setUp(self) -> None:
        """
        Start what does not run yet, and forget what the test before left.
        """
        self.bench = bench = bench_for(self.mta_class)
        self.mta = bench.mta
        self.sink = bench.sink
        self.milter = bench.milter
        self.traits: Traits = bench.mta.traits
        self.mta.settle()
        self.sink.clear()

    def tearDown(self) -> None:
        """
        Check the milter's log.
        """
        self.assertEqual(self.milter.take_log(), [], "unexpected warnings or errors in the log")

    def load(self, *milters: Script, **options: Any) -> None:
        """
        Tell the milter process what to do from now on.
        """
        self.milter.load(milters, options)

    def connect(self, door: str = "unix") -> SmtpClient:
        """
        Connect to the MTA and say EHLO.
        """
        client = SmtpClient(self.mta.ports[door])
        self.addCleanup(client.close)
        client.ehlo()
        return client

    def send(
        self, message: bytes = MESSAGE, *args: Any, door: str = "unix", **kwargs: Any
    ) -> Reply:
        """
        Send one message in a session of its own, and give the last reply.
        """
        client = self.connect(door)
        reply = client.message(message, *args, **kwargs)
        client.quit()
        return reply

    def deliver(
        self, message: bytes = MESSAGE, *args: Any, door: str = "unix", **kwargs: Any
    ) -> Delivery:
        """
        Send one message, which has to be accepted, and give it as delivered.
        """
        reply = self.send(message, *args, door=door, **kwargs)
        self.assertEqual(reply.code, 250, reply)
        return self.sink.wait()[0]

    def assertNothingDelivered(self) -> None:
        """
        Wait until the MTA has nothing left to do, and check that the sink got nothing.
        """
        self.mta.settle()
        self.assertEqual(self.sink.deliveries, [])

    def assertReply(self, reply: Reply, code: int, *lines: str) -> None:
        """
        Check a reply's code and, if given, its lines.
        """
        self.assertEqual(reply.code, code, reply)
        if lines:
            self.assertEqual(reply.lines, lines)
