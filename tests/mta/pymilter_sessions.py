"""
Sessions of an MTA with a milter, made at random, and played to two programs.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.programs import ROOT

__all__ = ["KINDS", "OURS", "REAL", "Running", "play", "running"]

#: The real pymilter's Python, Debian's; and ours.
REAL = ("/usr/bin/python3",)
OURS = (sys.executable, "-m", "yatxmilter", "pymilter", "--log-level", "critical")
KINDS = (
    *("plain", "edits", "few", "silent", "decoding", "negotiating", "rejected", "leading", "low"),
)

_NO = {b"C": 1, b"H": 2, b"M": 4, b"R": 8, b"B": 0x10, b"L": 0x20, b"N": 0x40, b"U": 0x100}
_NO |= {b"T": 0x200}
_NR = {b"L": 0x80, b"C": 0x1000, b"H": 0x2000, b"M": 0x4000, b"R": 0x8000, b"T": 0x10000}
_NR |= {b"U": 0x20000, b"N": 0x40000, b"B": 0x80000}
_FINAL = b"crdatysO"


class Running(NamedTuple):
    """
    A program that runs.
    """

    process: subprocess.Popen[bytes]
    socket: str
    log: Path


@contextlib.contextmanager
def running(command: tuple[str, ...], kind: str, seed: str) -> Iterator[Running]:
    """
    Run the scripted program.
    """
    with tempfile.TemporaryDirectory() as folder:
        path, log = f"{folder}/socket", Path(folder, "log")
        script = str(Path(__file__).with_name("pymilter_scripted.py"))
        process = subprocess.Popen(
            [*command, script, f"unix:{path}", str(log), kind, seed],
            env={**os.environ, "PYTHONPATH": str(ROOT) if command is OURS else ""},
            stderr=subprocess.DEVNULL,
        )
        try:
            while not os.path.exists(path):
                assert process.poll() is None, "the program has ended"
                time.sleep(0.02)
            yield Running(process, path, log)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


class _MTA:
    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        # A program that has bound its socket may not listen yet.
        for _ in range(200):
            try:
                self._socket.connect(path)
                break
            except ConnectionRefusedError:
                time.sleep(0.02)
        self._socket.settimeout(5)
        self._steps = 0
        self.heard: list[bytes] = []
        self.open = True

    def send(self, letter: bytes, payload: bytes = b"") -> None:
        if self.open:
            with contextlib.suppress(OSError):
                self._socket.sendall(struct.pack("!I", len(payload) + 1) + letter + payload)

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._socket.recv(size - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def answer(self) -> bytes:
        """
        Read up to an answer that ends a command; its letter.
        """
        while self.open:
            try:
                packet = self._read(struct.unpack("!I", self._read(4))[0])
            except (EOFError, OSError) as error:
                self.heard.append(b"(" + type(error).__name__.encode() + b")")
                self.open = False
                break
            self.heard.append(packet)
            if packet[:1] in _FINAL:
                if packet[:1] == b"O":
                    self._steps = struct.unpack("!I", packet[9:13])[0]
                return packet[:1]
        return b""

    def command(self, letter: bytes, payload: bytes = b"", *, macros: bytes = b"") -> bytes:
        """
        Send a command that the milter wants, and read its answer where one was promised.
        """
        if self._steps & _NO.get(letter, 0):
            return b"c"
        if macros:
            self.send(b"D", letter + macros)
        self.send(letter, payload)
        if self._steps & _NR.get(letter, 0):
            return b"c"
        return self.answer()

    def close(self) -> None:
        self._socket.close()


_CLIENTS = (
    b"client.example\x004\x9c\x41192.0.2.25\0",
    b"client.example\x006\x9c\x41IPv6:2001:DB8::1\0",
    b"[unknown]\0U",
    b"localhost\0L\0\0/run/client\0",
    b"h\xc3\xb6st\x004\x00\x19192.0.2.1\0",
)


def play(running: Running, seed: str) -> tuple[list[bytes], list[str]]:
    """
    Play a session.

    :return: What the milter has sent, and what the program has written. Signs of progress stand
        first: ours go out at once, edits with the answer.
    """
    pick = random.Random(seed)
    running.log.with_name("log.seed").write_text(seed)
    before = len(_lines(running.log))
    mta = _MTA(running.socket)
    offer = pick.choice([0x1FFFFF, 0x1FFFFF, 0x1FFBFF])
    mta.send(b"O", struct.pack("!III", 6, 0x1FF, offer))
    if mta.answer() == b"O":
        # In other states than after an accepted message libmilter loses the next command.
        while _connection(mta, pick) and pick.random() < 0.3:
            mta.send(b"K")
    # libmilter does not read what came right before the end of a connection.
    time.sleep(0.03)
    if pick.random() < 0.8:
        mta.send(b"Q")
    mta.close()
    deadline = time.monotonic() + 8
    # Whatever happened, it ends with this, where there was anything at all.
    while (lines := _lines(running.log)[before:]) and "('close'" not in lines[-1]:
        assert time.monotonic() < deadline, lines
        time.sleep(0.002)
    if not lines:
        time.sleep(0.05)
        lines = _lines(running.log)[before:]
    progress = [packet for packet in mta.heard if packet == b"p"]
    return progress + [packet for packet in mta.heard if packet != b"p"], lines


def _lines(log: Path) -> list[str]:
    return log.read_text().splitlines(keepends=True) if log.exists() else []


def _connection(mta: _MTA, pick: random.Random) -> bool:
    """
    Be one SMTP client.

    :return: Whether its last message was accepted.
    """
    answer = mta.command(
        b"C", pick.choice(_CLIENTS), macros=b"j\0mta.example.com\0{client_addr}\x00192.0.2.25\0"
    )
    if answer != b"c":
        return False
    if mta.command(b"H", b"client.example\0") != b"c":
        return False
    accepted = False
    for _ in range(pick.randint(0, 3)):
        if mta.open and pick.random() < 0.2:
            mta.command(b"U", b"WHAT ever\0")
        accepted = _message(mta, pick)
    return accepted and mta.open


def _message(mta: _MTA, pick: random.Random) -> bool:
    sender = pick.choice([b"<one@example.com>\0SIZE=7\0", b"<>\0", b"<\xff@example.com>\0"])
    if mta.command(b"M", sender, macros=b"i\0QUEUE%d\0" % pick.randint(1, 9)) != b"c":
        return False
    for _ in range(pick.randint(1, 3)):
        name = pick.choice([b"<one@example.com>\0", b"<t\xc3\xb6@example.com>\0NOTIFY=NEVER\0"])
        if mta.command(b"R", name, macros=b"{rcpt_addr}\0one@example.com\0") in b"ad" or (
            not mta.open
        ):
            # Discarded or accepted: the MTA asks no more about this message.
            mta.send(b"A")
            return False
    if pick.random() < 0.1:
        mta.send(b"A")
        return False
    text: list[tuple[bytes, bytes]] = [(b"T", b"")]
    for _ in range(pick.randint(1, 4)):
        text.append((b"L", pick.choice([b"Subject\0x\0", b"X-B\0\xff\0", b"To\0a,\n b\0"])))
    text.append((b"N", b""))
    for _ in range(pick.randint(0, 3)):
        text.append((b"B", b"line\r\n" * pick.choice([1, 1000])))
    for letter, payload in text:
        if pick.random() < 0.02 or not mta.open:
            mta.send(b"A")
            return False
        answer = mta.command(letter, payload)
        if answer == b"s":
            break
        if answer != b"c":
            return False
    return mta.command(b"E") == b"c"
