"""
How long one message keeps the others waiting: ``python -m tests.mta.chain_wait --fields 8500``.

A chain of three milters in one process serves a real Postfix. One client sends a message with many
fields of one name, which the first milter deletes, all but one; the second changes that and puts
fields in; the third looks at all. Meanwhile another client sends small messages through the same
milters, one after the other. Told are the longest times that the other client waited for a reply,
before and while the large message was there, the longest time of the processor that the milters'
process worked without a look at other connections, and how long the large message took.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.task import LoopingCall

from tests.ports import free_ports
from yatxmilter import Milter, MilterFactory, MilterProtocolFactory

from .control import ROOT
from .mta import Addresses
from .postfix import Postfix
from .processes import stop, wait_until
from .sink import Sink
from .smtp import SmtpClient

NAME = "X-Spam-Status"
_SMALL = b"From: a@client.example\r\nSubject: small\r\n\r\nbody\r\n"


class _Counting(Milter):
    def xxfi_envfrom(self, argv: list[str]) -> None:
        self.count = 0

    def xxfi_header(self, headerf: str, headerv: str) -> None:
        self.count += headerf.lower() == NAME.lower()


class Strip(_Counting):
    """
    Deletes all fields of the name but the first.
    """

    def xxfi_eom(self) -> None:
        for number in range(self.count, 1, -1):
            self.smfi_chgheader(NAME, number, None)


class Insert(_Counting):
    """
    Changes the one that is left, and inserts one on top.
    """

    def xxfi_eom(self) -> None:
        if self.count:
            self.smfi_chgheader(NAME, 1, f"{self.count} left")
        self.smfi_insheader(0, "X-Seen", "yes")


class Look(_Counting):
    """
    Sees what is left.
    """

    def xxfi_eom(self) -> None:
        self.smfi_addheader("X-Left", str(self.count))


def _serve(path: str) -> None:
    os.umask(0)
    milters = [MilterFactory(cls) for cls in (Strip, Insert, Look)]
    reactor.listenUNIX(path, MilterProtocolFactory(milters, merge="chain"))  # type: ignore[attr-defined]
    longest = last = 0.0

    def tick() -> None:
        # What the processor has done since the last tick is what another connection waits for,
        # however busy the machine is.
        nonlocal longest, last
        now = time.process_time()
        longest, last = max(longest, now - (last or now)), now

    LoopingCall(tick).start(0.002)
    reactor.run()  # type: ignore[attr-defined]
    print(longest)


def _patient(port: int) -> SmtpClient:
    client = SmtpClient(port)
    client._socket.settimeout(600)
    client.ehlo()
    return client


class _Other:
    """
    The other client.
    """

    def __init__(self, port: int) -> None:
        self._client = _patient(port)
        self._stopped = False
        self._longest = 0.0
        self.messages = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped:
            for line in ("MAIL FROM:<b@client.example>", "RCPT TO:<rcpt@sink.example>", "DATA"):
                self._timed(lambda line=line: self._client.command(line))
            self._timed(lambda: self._client.content(_SMALL))
            self.messages += 1

    def _timed(self, work: object) -> None:
        begin = time.monotonic()
        work()  # type: ignore[operator]
        self._longest = max(self._longest, time.monotonic() - begin)

    def longest(self) -> float:
        """
        Give the longest wait since the last look.
        """
        longest, self._longest = self._longest, 0.0
        return longest

    def stop(self) -> None:
        """
        Send no more.
        """
        self._stopped = True
        self._thread.join()
        self._client.close()


def measure(fields: int, times: int) -> dict[str, float]:
    """
    Send the large message some times.

    :return: Seconds: the longest wait before, and meanwhile; the large message, the longest time.
    """
    folder = Path(tempfile.mkdtemp(prefix="yatxmilter-"))
    folder.chmod(0o755)
    sink = Sink()
    [milter_port, example_port] = free_ports(2)
    socket = folder / "chain.sock"
    mta = Postfix(folder, Addresses(socket, milter_port, sink.port, example_port))
    milters = subprocess.Popen(
        [sys.executable, "-m", "tests.mta.chain_wait", "--serve", str(socket)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    try:
        wait_until(socket.exists, "the milters")
        mta.start()
        client = _patient(mta.ports["unix"])
        large = fields * f"{NAME}: yes\r\n".encode() + _SMALL
        other = _Other(mta.ports["unix"])
        try:
            time.sleep(3)
            before = other.longest()
            longest = 0.0
            for _ in range(times):
                begin = time.monotonic()
                reply = client.message(large)
                longest = max(longest, time.monotonic() - begin)
                if reply.code != 250:
                    raise AssertionError(f"the large message was answered {reply}")
            meanwhile = other.longest()
        finally:
            other.stop()
        client.close()
        mta.settle()
        found = [each for each in sink.deliveries if b"X-Left: 1\r\n" in each.data]
        if len(found) != times:
            raise AssertionError(f"{len(found)} of {times} large messages are as they should be")
        milters.terminate()
        turn = float(milters.communicate()[0])
        return {
            "before: longest wait of another client": before,
            "meanwhile: longest wait of another client": meanwhile,
            "meanwhile: longest turn of the milters' process": turn,
            "the large message": longest,
        }
    finally:
        mta.stop()
        stop(milters)
        sink.stop()
        shutil.rmtree(folder)


def main(arguments: list[str]) -> None:
    """
    Print the figures.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.mta.chain_wait")
    parser.add_argument("--fields", type=int, default=8500)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--serve", help="be the milters, on this socket")
    options = parser.parse_args(arguments)
    if options.serve:
        _serve(options.serve)
        return
    print(f"{options.fields} fields of one name, {options.times} times, a chain of three:")
    for what, seconds in measure(options.fields, options.times).items():
        print(f"  {what:<50} {1000 * seconds:8.0f} ms")


if __name__ == "__main__":
    main(sys.argv[1:])
