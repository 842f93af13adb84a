"""
``yatxmilter send`` run in this process, against milters that share its reactor.

Each run has a reactor of its own, on which the milter listens on a UNIX socket; when the command is
done the reactor has closed all of it.
"""

from __future__ import annotations

import io
import json
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from twisted.internet.protocol import Factory, Protocol
from twisted.internet.selectreactor import SelectReactor
from twisted.trial.unittest import SynchronousTestCase

from tests.helpers import close_reactor
from yatxmilter import Milter, MilterFactory, MilterProtocolFactory
from yatxmilter import constants as c
from yatxmilter._cli import send
from yatxmilter._wire.payloads import Offer, PacketSplitter, encode_offer, encode_packet

MESSAGE = (
    b"Return-Path: <sender@example.org>\n"
    b"To: reader@example.com\n"
    b"Subject: hello\n"
    b"Message-Id: <1@example.org>\n"
    b"\n"
    b"A letter.\n"
)


class Run(NamedTuple):
    """
    What a run came to.
    """

    status: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        """
        Give the objects of ``--json``.
        """
        return [json.loads(line) for line in self.out.splitlines()]


class Script(Protocol):
    """
    A milter that follows a script.

    :param answers: What it sends, by the letter of a command: bytes; ``None`` hangs up; ``...``
        keeps silent. To all others it says CONTINUE, where an answer is due.
    """

    def __init__(self, answers: dict[str, Any], heard: list[tuple[str, bytes]]) -> None:
        self._answers = answers
        self._heard = heard
        self._splitter = PacketSplitter(1 << 20)

    def dataReceived(self, data: bytes) -> None:
        self._splitter.feed(data)
        while (packet := self._splitter.next_packet()) is not None:
            letter = chr(packet[0])
            self._heard.append((letter, packet[1]))
            default: Any = encode_packet(c.SMFIR_CONTINUE)
            if letter == "O":
                default = encode_offer(Offer(6, c.SMFI_CURR_ACTS, 0))
            elif letter in "DAQ":
                default = None if letter == "Q" else ...
            answer = self._answers.get(letter, default)
            assert self.transport is not None
            if answer is None:
                self.transport.loseConnection()
            elif answer is not ...:
                self.transport.write(answer)


class ScriptFactory(Factory):
    """
    Follow a script on each connection.

    :ivar heard: The packets that came.
    :ivar connections: How many connections there were.
    """

    noisy = False

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers
        self.heard: list[tuple[str, bytes]] = []
        self.connections = 0

    def buildProtocol(self, addr: object) -> Script:
        self.connections += 1
        return Script(self.answers, self.heard)

    @property
    def letters(self) -> str:
        """
        Give the letters of the commands that came, macros left out.
        """
        return "".join(letter for letter, _ in self.heard if letter != "D")


class Terminal(io.StringIO):
    """
    A terminal.
    """

    def isatty(self) -> bool:
        return True


class SendCase(SynchronousTestCase):
    """
    A test that sends messages.
    """

    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.message = self.write("m.eml", MESSAGE)

    def write(self, name: str, data: bytes) -> str:
        """
        Write a file, and give its path.
        """
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        return str(path)

    def parse(self, *words: str) -> Any:
        """
        Read the command's arguments.
        """
        parser = ArgumentParser(prog="send")
        send.add_arguments(parser)
        return parser.parse_args(words)

    def send(
        self,
        milter: type[Milter] | Sequence[type[Milter]] | Factory | None,
        *words: str,
        reactor: Any = None,
        out: io.StringIO | None = None,
        err: io.StringIO | None = None,
    ) -> Run:
        """
        Run the command on messages, by default the one there is.

        :param milter: Who listens; ``None`` for nobody.
        """
        path = self.folder / "milter.sock"
        reactor = reactor or SelectReactor()
        if milter is not None:
            reactor.listenUNIX(str(path), self._factory(milter, reactor))
        if not words or words[0].startswith("-") and words[0] != "-":
            words = (self.message, *words)
        # Not for ever, whatever goes wrong.
        reactor.callLater(20, reactor.stop)
        arguments = self.parse(*words, "--to", f"unix:{path}")
        out, err = out or io.StringIO(), err or io.StringIO()
        status = send.run(arguments, reactor=reactor, out=out, err=err)
        close_reactor(reactor)
        return Run(status, out.getvalue(), err.getvalue())

    def _factory(
        self, milter: type[Milter] | Sequence[type[Milter]] | Factory, reactor: Any
    ) -> Any:
        if isinstance(milter, Factory):
            return milter
        classes = [milter] if isinstance(milter, type) else milter
        return MilterProtocolFactory([MilterFactory(each) for each in classes], reactor=reactor)
