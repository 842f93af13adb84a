"""
A milter under load for minutes, with thousands of connections, while its milters fail at random.

Two processes: this one plays the MTA on every connection, the other one is the milter (this same
file with ``--serve``). The MTA's side compares each answer with `tests.fuzz.model`, so that one
lost or doubled is noticed at once; it also resets, sends commands in one go, says QUIT, and
vanishes in mid-command. The milters raise, answer nonsense, are late, and count what is done to
them. At the end the milter drains and reports; memory is read from ``/proc``. The exit status is 1
when a promise was broken.

    python benchmarks/soak.py --connections 2000 --seconds 180
"""

# ruff: noqa: D102, D103

from __future__ import annotations

import argparse
import gc
import json
import random
import resource
import struct
import subprocess
import sys
import tempfile
import weakref
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint, serverFromString
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import globalLogBeginner
from twisted.python.failure import Failure

from tests.fuzz.model import Model, Packet
from yatxmilter import Milter, MilterFactory, MilterProtocolFactory
from yatxmilter import constants as c
from yatxmilter.service import MilterService

OFFER = ("O", struct.pack("!III", 6, c.SMFI_CURR_ACTS, c.SMFI_CURR_PROT))
BODY = b"0123456789abcdef" * 256
CONNECT = [("C", b"mail.example.org\x004\x10\xe1192.0.2.1\x00"), ("H", b"mail.example.org\x00")]
MESSAGE = [
    ("D", b"Mi\x004Xyz\x00{mail_addr}\x00s@example.org\x00"),
    ("M", b"<s@example.org>\x00SIZE=1\x00"),
    ("R", b"<r@example.net>\x00"),
    ("R", b"<q@example.net>\x00"),
    ("T", b""),
    *(("L", b"X-Field-%d\x00some value or other\x00" % number) for number in range(8)),
    ("N", b""),
    ("B", BODY),
    ("E", b""),
]
#: How much memory may grow while nothing but messages come and go: bytes, and a part of it.
GROWTH = 6 << 20, 0.08


# ---- the milter's process


class Faulty(Milter):
    """
    A milter that fails at random.
    """

    counts: ClassVar[Counter[str]] = Counter()
    alive: ClassVar[weakref.WeakSet[Any]] = weakref.WeakSet()
    closed = gone = 0

    def __init__(self, factory: Any, protocol: Any) -> None:
        super().__init__(factory, protocol)
        self.counts["built"] += 1
        self.alive.add(self)

    def answer(self) -> Any:
        """
        Choose what a callback does.
        """
        what = random.random()
        if what > 0.12:
            return None
        for limit, name in ((0.01, "raised"), (0.02, "nonsense"), (0.03, "verdict")):
            if what < limit:
                self.counts[name] += 1
                return getattr(self, name)()
        if what < 0.032:
            self.counts["late"] += 1
            return Deferred(self.cancelled)
        return self.soon() if what < 0.08 else deferLater(reactor, random.random() / 10)

    def raised(self) -> None:
        raise RuntimeError("a fault")

    def nonsense(self) -> object:
        return random.choice((99, "no", c.SMFIS_ALL_OPTS, object()))

    def verdict(self) -> int:
        self.smfi_setreply("550", "5.7.1", "no")
        return random.choice((c.SMFIS_REJECT, c.SMFIS_TEMPFAIL, c.SMFIS_ACCEPT))

    def cancelled(self, deferred: Deferred[Any]) -> None:
        self.counts["cancelled"] += 1

    async def soon(self) -> None:
        pause: Deferred[None] = deferLater(reactor, random.random() / 20)
        await pause

    def xxfi_connect(self, hostname: str, hostaddr: object) -> Any:
        return None

    def xxfi_envfrom(self, argv: list[str]) -> Any:
        return self.answer()

    def xxfi_envrcpt(self, argv: list[str]) -> Any:
        return self.answer()

    def xxfi_header(self, headerf: str, headerv: str) -> Any:
        return self.answer()

    def xxfi_body(self, bodyp: bytes) -> Any:
        return self.answer()

    def xxfi_eom(self) -> Any:
        self.smfi_addheader("X-Soak", "seen")
        return self.answer()

    def xxfi_abort(self) -> None:
        self.counts["aborts"] += 1

    def xxfi_close(self) -> None:
        self.closed += 1
        self.counts["closed"] += 1
        self.counts["closed twice"] += self.closed > 1

    def xxfi_mta_close(self, reason: Failure) -> None:
        self.gone += 1
        self.counts["gone"] += 1
        self.counts["gone twice or early"] += self.gone > 1 or not self.closed


def serve(options: argparse.Namespace) -> None:
    """
    Be the milter until told to end; then drain, and print what was counted.
    """
    random.seed(options.seed)
    factories = [MilterFactory(Faulty, timeout=1, name=name) for name in ("one", "two")]
    factory = MilterProtocolFactory(factories, merge=options.merge)
    endpoint = serverFromString(reactor, f"unix:{options.serve}:backlog=1024")
    service = MilterService(endpoint, factory, drain_timeout=10)
    service.startService()
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    # Otherwise memory would show when the collector comes round, rather than what is kept.
    LoopingCall(gc.collect).start(5, now=False)
    reactor.run()
    gc.collect()
    print(json.dumps({**Faulty.counts, "alive": len(Faulty.alive)}))


# ---- the MTA's process


class Mta(Protocol):
    """
    One connection to the milter.
    """

    def __init__(self, soak: Soak) -> None:
        self.soak = soak
        self.answers: list[Packet] = []
        # Every step but these is wanted: NOEOH, NODATA, NOUNKNOWN, NOHELO.
        self.model = Model(0x342, self.answers)
        self.buffer = b""
        self.script: list[list[Packet]] = []
        self.cut: int | None = None
        self.leaving = False

    def connectionMade(self) -> None:
        self.soak.open.add(self)
        self.play([[OFFER], *([one] for one in CONNECT)])

    def play(self, script: list[list[Packet]]) -> None:
        """
        Send these packets, each group in one go when the one before is answered.
        """
        self.script = script
        self.next()

    def next(self) -> None:
        if not self.script:
            self.soak.idle.append(self)
            return
        group = self.script.pop(0)
        data = b"".join(
            struct.pack("!I", len(payload) + 1) + letter.encode() + payload
            for letter, payload in group
        )
        if self.cut is not None and not self.script:
            self.vanish(data)
            return
        self.transport.write(data)
        self.model.run(group)
        self.check()

    def vanish(self, data: bytes) -> None:
        """
        Go away in mid-command.
        """
        self.leaving = True
        self.soak.counts["vanished"] += 1
        self.transport.write(data[: self.cut])
        if random.random() < 0.5:
            self.transport.abortConnection()
        else:
            self.transport.loseConnection()

    def dataReceived(self, data: bytes) -> None:
        self.buffer += data
        while len(self.buffer) >= 4:
            (length,) = struct.unpack_from("!I", self.buffer)
            if len(self.buffer) < 4 + length:
                break
            self.answers.append((chr(self.buffer[4]), self.buffer[5 : 4 + length]))
            self.buffer = self.buffer[4 + length :]
            self.soak.counts["packets back"] += 1
        if self.leaving:
            return
        try:
            self.model.run()
        except AssertionError as error:
            self.soak.broken(str(error))
        self.check()

    def check(self) -> None:
        if self.model.over or self.model.unanswered:
            return
        if self.model.left:
            self.soak.broken(f"too many answers: {self.model.left}")
        self.next()

    def leave(self) -> None:
        """
        Say QUIT.
        """
        self.leaving = True
        self.transport.write(b"\0\0\0\1Q")

    def connectionLost(self, reason: Failure) -> None:
        self.soak.lost(self)


class Soak:
    """
    All connections, and what is known of them.
    """

    def __init__(self, options: argparse.Namespace, process: subprocess.Popen[bytes]) -> None:
        self.options = options
        self.process = process
        self.counts: Counter[str] = Counter()
        self.problems: Counter[str] = Counter()
        self.open: set[Mta] = set()
        self.idle: list[Mta] = []
        self.asked = 0
        self.ending = False
        self.memory: list[int] = []

    def broken(self, what: str) -> None:
        self.problems[what] += 1

    def rss(self) -> int:
        """
        Read how much memory the milter's process has.
        """
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024

    def lost(self, mta: Mta) -> None:
        self.open.discard(mta)
        self.asked -= 1
        if not (mta.leaving or self.ending):
            self.broken(f"connection lost, awaited: {mta.model.unanswered or 'nothing'}")
            if mta in self.idle:
                self.idle.remove(mta)

    def _fill(self) -> None:
        endpoint = UNIXClientEndpoint(reactor, self.options.path)
        missing = min(self.options.connections - self.asked, 40)
        for _ in range(missing):
            self.asked += 1
            factory = Factory.forProtocol(lambda: Mta(self))
            factory.noisy = False
            endpoint.connect(factory).addErrback(self._refused)

    def _refused(self, failure: Failure) -> None:
        self.asked -= 1
        self.counts["connection attempts that failed"] += 1

    def _tick(self) -> None:
        self._fill()
        for _ in range(min(len(self.idle), self.options.rate // 20)):
            place = random.randrange(len(self.idle))
            self.idle[place], self.idle[-1] = self.idle[-1], self.idle[place]
            self._start(self.idle.pop())

    def _start(self, mta: Mta) -> None:
        self.counts["messages"] += 1
        what = random.random()
        packets = list(MESSAGE)
        if what < 0.01:
            mta.leave()
        elif what < 0.05:
            script = [[one] for one in packets[: random.randrange(1, len(packets))]]
            mta.cut = random.randrange(7)
            mta.play(script)
        elif what < 0.15:
            mta.play(
                [[one] for one in packets[: random.randrange(1, len(packets))]] + [[("A", b"")]]
            )
        elif what < 0.3:
            mta.play([packets])
        else:
            mta.play([[one] for one in packets])

    async def run(self) -> None:
        seconds = self.options.seconds
        ticks = LoopingCall(self._tick)
        ticks.start(0.05, now=True)
        while self.counts["ramp"] < 600 and len(self.open) < self.options.connections:
            await deferLater(reactor, 0.1)
            self.counts["ramp"] += 1
        # What is allocated once, by then has been.
        await deferLater(reactor, seconds * 0.4)
        for _ in range(10):
            self.memory.append(self.rss())
            await deferLater(reactor, seconds * 0.06)
        self.memory.append(self.rss())
        self.counts["open at the end"] = len(self.open)
        if len(self.open) < self.options.connections * 0.95:
            self.broken(f"only {len(self.open)} connections were held")
        ticks.stop()
        # Answers may take as long as a milter may be late.
        await deferLater(reactor, 4)
        for mta in self.open:
            if mta.model.unanswered and not mta.leaving:
                self.broken(f"no answer to {mta.model.unanswered}")
        self.ending = True
        for mta in list(self.open):
            mta.leave()


def judge(soak: Soak, report: dict[str, int]) -> None:
    """
    Compare what the milters counted.
    """
    for name in ("closed", "gone"):
        if report[name] != report["built"]:
            soak.broken(f"{report['built']} milters built, {report[name]} {name}")
    for name in ("closed twice", "gone twice or early", "alive"):
        if report.get(name):
            soak.broken(f"{name}: {report[name]}")
    before, after = soak.memory[0], soak.memory[-1]
    if after - before > GROWTH[0] + before * GROWTH[1]:
        soak.broken(f"memory grew from {before >> 20} to {after >> 20} MiB")


def table(soak: Soak, report: dict[str, int], base: int) -> None:
    """
    Print what happened.
    """
    before, after = soak.memory[0], soak.memory[-1]
    rows: list[tuple[str, object]] = [
        ("connections held", soak.counts["open at the end"]),
        ("memory without connections", f"{base / 2**20:.1f} MiB"),
        ("memory after warming up", f"{before / 2**20:.1f} MiB"),
        ("memory at the end", f"{after / 2**20:.1f} MiB ({(after - before) / 2**20:+.1f})"),
        ("memory in between, MiB", " ".join(str(size >> 20) for size in soak.memory)),
        ("memory for a connection", f"{(after - base) / soak.options.connections / 1024:.1f} KiB"),
        *soak.counts.items(),
        *((f"milters: {name}", count) for name, count in sorted(report.items())),
        *((f"BROKEN: {what}", count) for what, count in soak.problems.items()),
    ]
    for name, value in rows:
        print(f"{name:<40} {value}")
    print("broken promises" if soak.problems else "all promises kept")


async def drive(options: argparse.Namespace, folder: str) -> int:
    """
    Start the milter, load it, end it.
    """
    options.path = f"{folder}/socket"
    command = [sys.executable, __file__, "--serve", options.path, f"--seed={options.seed}"]
    process = subprocess.Popen([*command, f"--merge={options.merge}"], stdout=subprocess.PIPE)
    try:
        while not Path(options.path).exists():
            assert process.poll() is None
            await deferLater(reactor, 0.1)
        soak = Soak(options, process)
        base = soak.rss()
        await soak.run()
        process.terminate()
        while process.poll() is None:
            await deferLater(reactor, 0.1)
        assert process.stdout is not None
        report = json.loads(process.stdout.read())
        judge(soak, report)
        table(soak, report, base)
        return 1 if soak.problems else 0
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description="Load a milter for minutes.")
    parser.add_argument("--connections", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--rate", type=int, default=100, help="messages a second; default: 100")
    parser.add_argument("--merge", default="first", help='as in the factory; default: "first"')
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--serve", metavar="PATH", help=argparse.SUPPRESS)
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if options.connections + 100 > hard:
        parser.error(f"{options.connections} connections, but at most {hard} files may be open")
    globalLogBeginner.beginLoggingTo([lambda event: None], redirectStandardIO=False)
    if options.serve:
        serve(options)
        return 0
    random.seed(options.seed)
    status: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        done = Deferred.fromCoroutine(drive(options, folder)).addBoth(status.append)
        done.addBoth(lambda _: reactor.stop())
        reactor.run()
    if isinstance(status[0], Failure):
        status[0].printTraceback()
        return 1
    return int(status[0])


if __name__ == "__main__":
    sys.exit(main())
