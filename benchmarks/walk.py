"""
How far one packet walks: ``python -m benchmarks.walk``.

It counts the calls of functions of ours, and the files they are in, from the bytes that come in to
the bytes that go out. Only the public API and bytes are used, so that it measures any version
alike; what is private may be moved and named as one likes. ``-v`` prints each call. With
``--check`` the exit status is 1 when a way is longer than is wanted; it is 2 when nothing could be
followed.
"""

# ruff: noqa: D102

from __future__ import annotations

import argparse
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

import yatxmilter
from yatxmilter import Milter, MilterFactory, MilterProtocolFactory
from yatxmilter.constants import SMFIS_CONTINUE, SMFIS_REJECT

#: What counts as ours.
ROOT = Path(yatxmilter.__file__).resolve().parent


def packet(letter: str, payload: bytes = b"") -> bytes:
    """
    Make a packet.
    """
    return struct.pack("!IB", len(payload) + 1, ord(letter)) + payload


class Passes(Milter):
    """
    Lets everything pass, and adds a field.
    """

    def xxfi_envrcpt(self, argv: list[str]) -> Any:
        return SMFIS_CONTINUE

    def xxfi_header(self, headerf: str, headerv: str) -> Any:
        return SMFIS_CONTINUE

    def xxfi_eom(self) -> None:
        self.smfi_addheader("X-Walk", "1")


class Refuses(Passes):
    """
    Refuses recipients, with a text.
    """

    def xxfi_envrcpt(self, argv: list[str]) -> Any:
        self.smfi_setreply("550", "5.7.1", "no")
        return SMFIS_REJECT


class Coroutine(Passes):
    """
    Lets recipients pass in a coroutine that does not wait.
    """

    async def xxfi_envrcpt(self, argv: list[str]) -> Any:
        return SMFIS_CONTINUE


_OFFER = packet("O", struct.pack("!III", 6, 0x1FF, 0x1FFFFF))
_CONNECT = packet("C", b"mail.example.org\x004\x10\xe1192.0.2.1\0")
_MAIL = packet("M", b"<alice@example.org>\0")
_RCPT = packet("R", b"<bob@example.net>\0")
_HEADER = packet("L", b"Subject\0hello\0")
_MESSAGE = (_MAIL, _RCPT, _HEADER, packet("N"), packet("B", b"text\r\n"), packet("E"))


@dataclass(frozen=True)
class Case:
    """
    One packet whose way is counted.

    :ivar milters: Their classes.
    :ivar before: The packets before it on its connection, after the offer.
    :ivar wanted: The calls and files that are wanted at most, where somebody has said so.
    """

    name: str
    milters: tuple[type[Milter], ...]
    packet: bytes
    before: tuple[bytes, ...]
    answer: bytes
    wanted: tuple[int, int] | None = None

    @property
    def merge(self) -> str:
        """
        How the milters are merged.
        """
        return "chain" if len(self.milters) > 1 else "first"


_CONTINUE = packet("c")
_ADDED = packet("h", b"X-Walk\x001\0")

CASES = (
    Case("RCPT, one milter", (Passes,), _RCPT, (_MAIL,), _CONTINUE, (6, 4)),
    Case(
        "RCPT refused with a text",
        (Refuses,),
        _RCPT,
        (_MAIL,),
        packet("y", b"550 5.7.1 no\0"),
        (15, 6),
    ),
    Case("RCPT, a coroutine", (Coroutine,), _RCPT, (_MAIL,), _CONTINUE),
    Case("RCPT, chain of three", (Passes,) * 3, _RCPT, (_MAIL,), _CONTINUE, (20, 6)),
    Case("header field, one milter", (Passes,), _HEADER, (_MAIL, _RCPT), _CONTINUE),
    Case("header field, chain of three", (Passes,) * 3, _HEADER, (_MAIL, _RCPT), _CONTINUE),
    Case(
        "end of message with an edit, one milter",
        (Passes,),
        _MESSAGE[-1],
        _MESSAGE[:-1],
        _ADDED + _CONTINUE,
    ),
    Case(
        "end of message with edits, chain of three",
        (Passes,) * 3,
        _MESSAGE[-1],
        _MESSAGE[:-1],
        _ADDED * 3 + _CONTINUE,
        (100, 8),
    ),
    Case("negotiation", (Passes,), _OFFER, (), b""),
    Case("QUIT", (Passes,), packet("Q"), _MESSAGE, b""),
)


@dataclass(frozen=True)
class Walk:
    """
    What was counted.

    :ivar calls: The functions called, in order: file below the package, line and name.
    """

    case: Case
    calls: tuple[tuple[str, int, str], ...]

    @property
    def files(self) -> int:
        """
        How many files these are in.
        """
        return len({file for file, _, _ in self.calls})

    @property
    def too_long(self) -> bool:
        """
        Whether it is more than is wanted.
        """
        wanted = self.case.wanted
        return wanted is not None and (len(self.calls) > wanted[0] or self.files > wanted[1])


class WrongAnswer(Exception):
    """
    A packet was not answered as it has to be, so that its way says nothing.
    """


def walk(case: Case) -> Walk:
    """
    Follow one packet.

    :raises WrongAnswer: when it is not answered as it has to be.
    """
    factories = [MilterFactory(milter) for milter in case.milters]
    factory = MilterProtocolFactory(factories, merge=case.merge, reactor=Clock())
    protocol: Any = factory.buildProtocol(None)
    transport = StringTransport()
    protocol.makeConnection(transport)
    before = () if case.packet is _OFFER else (_OFFER, *case.before)
    # Each by itself, as an MTA that waits for the answer sends them.
    for data in before:
        protocol.dataReceived(data)
    transport.clear()
    calls: list[tuple[str, int, str]] = []
    root = f"{ROOT}/"

    def profile(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(root):
            calls.append((code.co_filename[len(root) :], code.co_firstlineno, code.co_name))

    former = sys.getprofile()
    sys.setprofile(profile)
    try:
        protocol.dataReceived(case.packet)
    finally:
        sys.setprofile(former)
    answer = transport.value()
    if case.answer and answer != case.answer:
        raise WrongAnswer(f"{case.name}: answered {answer!r}, not {case.answer!r}")
    return Walk(case, tuple(calls))


def table(walks: Sequence[Walk]) -> str:
    """
    Write what was counted as Markdown.
    """
    lines = [
        "| one packet's way | calls | functions | files | wanted: calls, files |",
        "|---|--:|--:|--:|--:|",
    ]
    for each in walks:
        wanted = each.case.wanted
        shown = f"{wanted[0]}, {wanted[1]}" if wanted else ""
        functions = len(set(each.calls))
        name = each.case.name
        lines.append(f"| {name} | {len(each.calls)} | {functions} | {each.files} | {shown} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Count, and print the table; give the exit status.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.walk", description=(__doc__ or "").strip().splitlines()[0]
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="print each call")
    parser.add_argument("--check", action="store_true", help="fail when a way is too long")
    options = parser.parse_args(arguments)
    walks = [walk(case) for case in CASES]
    print(table(walks))
    if not any(each.calls for each in walks):
        print("no calls were seen: compiled functions cannot be followed")
        return 2
    for each in walks if options.verbose else ():
        print(f"\n{each.case.name}:")
        for file, line, name in each.calls:
            print(f"    {file}:{line} {name}")
    longer = [each.case.name for each in walks if each.too_long]
    if longer and options.check:
        print(f"longer than wanted: {'; '.join(longer)}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
