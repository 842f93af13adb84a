"""
A driver for the order of commands in tests: an MTA that says letters, and a milter that wants all.

The milter notes what it is called with, and lets everything pass. All of it is seen through the
protocol, in bytes; only the state is looked up inside.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.python.failure import Failure

from tests.conversation_helpers import Conversation, milter
from yatxmilter import constants as c
from yatxmilter._engine.command_order import state_of
from yatxmilter._wire.packets import encode_packet

#: A payload for each command, as an MTA would send it.
PAYLOADS = {
    "O": b"\x00\x00\x00\x06\x00\x00\x01\xff\x00\x1f\xff\xff",
    "C": b"mail.example.org\x004\x10\xe1192.0.2.1\x00",
    "H": b"mail.example.org\x00",
    "M": b"<s@example.org>\x00",
    "R": b"<r@example.net>\x00",
    "L": b"Subject\x00hi\x00",
    "B": b"Hello\r\n",
    "U": b"VRFY root\x00",
    "D": b"Ci\x001\x00",
}
#: What the callbacks are called with for these.
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "H": ("mail.example.org",),
    "M": (["<s@example.org>"],),
    "R": (["<r@example.net>"],),
    "L": ("Subject", "hi"),
    "B": (b"Hello\r\n",),
    "U": ("VRFY root",),
}

STATES = [
    "INIT", "OPTS", "CONN", "HELO", "MAIL", "RCPT", "DATA", "HDRS",
    "EOHS", "BODY", "ENDM", "QUIT", "ABRT", "UNKN", "Q_NC",
]  # fmt: skip

#: State -> the commands that lead to it.
WAYS = {
    "INIT": "", "OPTS": "O", "CONN": "OC", "HELO": "OCH", "MAIL": "OCHM", "RCPT": "OCHMR",
    "DATA": "OCHMRT", "HDRS": "OCHMRTL", "EOHS": "OCHMRTLN", "BODY": "OCHMRTLNB",
    "ENDM": "OCHMRTLNBE", "ABRT": "OCHMA", "Q_NC": "OCHMRTLNBEK",
}  # fmt: skip

_CALLBACKS = {
    "O": "negotiate", "C": "connect", "H": "helo", "M": "envfrom", "R": "envrcpt", "T": "data",
    "L": "header", "N": "eoh", "B": "body", "E": "eom", "U": "unknown", "A": "abort", "Q": "close",
}  # fmt: skip
_LETTERS = {name: letter for letter, name in _CALLBACKS.items()}

Call = tuple[str, tuple[Any, ...]]


def command_packet(letter: str, payload: bytes | None = None) -> bytes:
    return encode_packet(ord(letter), PAYLOADS.get(letter, b"") if payload is None else payload)


def command_packets(letters: str) -> bytes:
    return b"".join(map(command_packet, letters))


class Dialogue:
    """
    A conversation that has had these commands.

    :param letters: The commands.
    :param declined: The ``SMFIP_NO*`` steps that the milter asks for.
    :param answers: What the milter answers other than CONTINUE: by the callbacks' names.
    """

    def __init__(self, letters: str = "", *, declined: int = 0, **answers: Any) -> None:
        settled = (c.SMFIS_CONTINUE, 0, declined)
        steps = dict.fromkeys(_LETTERS)
        made = milter(**{**steps, "negotiate": settled, **answers})
        self.conversation = Conversation(made)
        self._noted = made.calls
        self.receive(command_packets(letters))
        self.calls()

    def receive(self, data: bytes) -> bytes:
        """
        Say something; give what came back.
        """
        return self.conversation.send(data)

    @property
    def milter(self) -> Any:
        """
        The milter.
        """
        (one,) = self.conversation.protocol.milters
        return one

    @property
    def state(self) -> str:
        """
        The name of the state.
        """
        return STATES[state_of(self.conversation.protocol._conversation.table)]

    @property
    def closed(self) -> bool:
        """
        Whether the connection was closed.
        """
        return self.conversation.closed

    def calls(self) -> list[Call]:
        """
        Give the callbacks that were called since the last look, by the letters of their commands,
        and their arguments. The close of QUIT_NC, which leaves the connection open, is a K.
        """
        noted = list(self._noted)
        self._noted.clear()
        calls = []
        for number, (name, *arguments) in enumerate(noted):
            letter = _LETTERS[name]
            if letter == "Q" and not (self.closed and number == len(noted) - 1):
                letter = "K"
            calls.append((letter, tuple(arguments)))
        return calls

    def called(self) -> str:
        """
        Give the letters of these calls.
        """
        return "".join(letter for letter, _ in self.calls())

    def told(self) -> str:
        """
        Have the connection lost; give the letters of what is called then.
        """
        self.calls()
        self.conversation.transport.connected = False
        self.conversation.protocol.connectionLost(Failure(ConnectionResetError()))
        return self.called()


def calls_after(letters: str, chunks: Iterable[bytes], *, declined: int = 0) -> list[Call]:
    """
    Give the calls of some bytes that arrive after these commands.
    """
    dialogue = Dialogue(letters, declined=declined)
    for chunk in chunks:
        dialogue.receive(chunk)
    return dialogue.calls()
