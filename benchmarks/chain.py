"""
What a chain of milters costs: ``python benchmarks/chain.py --megabytes 10 --milters 1 3 10``.

The milter is a process of its own for each row; this one plays the MTA, in lock step over a
loopback connection. The milters want all of the message, and add a field. Shown are the seconds
from the first command to the answer to the end of the message, and those of the end alone; the
longest time for which the reactor had no turn; and the highest memory of the process above what it
had before, with the body kept in memory and, at the default size, on disk.
"""

# ruff: noqa: D102, D103

from __future__ import annotations

import argparse
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from twisted.internet import reactor
from twisted.internet.task import LoopingCall

from yatxmilter import Milter, MilterFactory, MilterProtocolFactory
from yatxmilter import constants as c

CHUNK = 65_535


ENVELOPE = (
    (b"C", b"mail.example.org\x004\x10\xe1192.0.2.1\0"),
    (b"M", b"<sender@example.org>\0"),
    (b"R", b"<rcpt@example.net>\0"),
    (b"L", b"Subject\0a large message\0"),
)


class Reader(Milter):
    """
    Wants all of a message, and adds a field.
    """

    def xxfi_connect(self, hostname: str, hostaddr: object) -> None:
        pass

    def xxfi_envfrom(self, argv: list[str]) -> None:
        pass

    def xxfi_envrcpt(self, argv: list[str]) -> None:
        pass

    def xxfi_header(self, headerf: str, headerv: str) -> None:
        pass

    def xxfi_body(self, bodyp: bytes) -> None:
        pass

    def xxfi_eom(self) -> None:
        self.smfi_addheader("X-Read", "yes")


def serve(milters: int, spool_memory: int) -> None:
    factories = [MilterFactory(Reader) for _ in range(milters)]
    factory = MilterProtocolFactory(factories, merge="chain", spool_memory=spool_memory)
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    longest = 0.0
    last = time.monotonic()

    def tick() -> None:
        nonlocal longest, last
        now = time.monotonic()
        longest, last = max(longest, now - last), now

    LoopingCall(tick).start(0.001)
    before = _memory("VmRSS")
    # The peak, which a child inherits, starts anew.
    Path("/proc/self/clear_refs").write_text("5")
    print(port.getHost().port, flush=True)
    reactor.callInThread(_stop_at_the_end)
    reactor.run()
    used = _memory("VmHWM") - before
    print(f"{longest * 1000:.0f} {used / 1024:.1f}", flush=True)


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _stop_at_the_end() -> None:
    sys.stdin.read()
    reactor.callFromThread(reactor.stop)


class Mta:
    """
    One blocking connection to the milter.
    """

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")

    def tell(self, letter: bytes, payload: bytes = b"") -> None:
        self._socket.sendall(struct.pack("!I", len(payload) + 1) + letter + payload)

    def ask(self, letter: bytes, payload: bytes = b"") -> bytes:
        """
        Send a command, and give the letters of the answer.
        """
        self.tell(letter, payload)
        letters = b""
        while letters[-1:] in (b"", b"h"):
            (length,) = struct.unpack("!I", self._file.read(4))
            letters += self._file.read(length)[:1]
        return letters

    def send(self, megabytes: int) -> tuple[float, float]:
        self.ask(b"O", struct.pack("!III", 6, c.SMFI_CURR_ACTS, c.SMFI_CURR_PROT))
        begin = time.monotonic()
        for letter, payload in ENVELOPE:
            self.ask(letter, payload)
        left = megabytes * 1_000_000
        while left:
            size = min(left, CHUNK)
            self.ask(b"B", size * b"x")
            left -= size
        end = time.monotonic()
        letters = self.ask(b"E")
        assert letters.strip(b"h") == b"c" and letters.startswith(b"h"), letters
        done = time.monotonic()
        self._socket.close()
        return done - begin, done - end


def measure(milters: int, megabytes: int, spool_memory: int) -> tuple[float, float, str, str]:
    command = [sys.executable, __file__, "--serve", str(milters), str(spool_memory)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        whole, end = Mta(int(process.stdout.readline())).send(megabytes)
        process.stdin.close()
        longest, used = process.stdout.readline().split()
    return whole, end, longest, used


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=10)
    parser.add_argument("--milters", type=int, nargs="+", default=[1, 3, 10])
    parser.add_argument("--serve", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(*options.serve)
        return
    print("| milters | body kept | message s | its end s | longest turn ms | memory MB |")
    print("|---|---|---|---|---|---|")
    for milters in options.milters:
        for where, memory in (("on disk", 262_144), ("in memory", 100_000_000)):
            whole, end, longest, used = measure(milters, options.megabytes, memory)
            print(f"| {milters} | {where} | {whole:.2f} | {end:.2f} | {longest} | {used} |")


if __name__ == "__main__":
    main()
