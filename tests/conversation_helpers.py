"""
One end of a conversation for tests: the MTA, written by hand in bytes, and milters made to measure.

A `Conversation` holds the milter side of one connection: a protocol built by its factory, an
in-memory transport and a clock. `milter` makes a `Milter` class of a few answers; what it is called
with is noted in the class's ``calls``. `Waiting` is an answer that comes later, on demand.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransportWithDisconnection
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from yatxmilter import Milter, MilterFactory, MilterProtocolFactory, noreply
from yatxmilter.constants import SMFIS_CONTINUE

PEER = IPv4Address("TCP", "192.0.2.25", 4242)

STEPS = ("connect", "helo", "envfrom", "envrcpt", "data", "unknown", "header", "eoh", "body", "eom")
CALLBACKS = (*STEPS, "negotiate", "abort", "close", "mta_connect", "mta_close")
#: All SMFIP_NO* flags.
DECLINED = 0x37F


def packet(letter: str, payload: bytes = b"") -> bytes:
    """
    Frame a packet.
    """
    return struct.pack("!I", len(payload) + 1) + letter.encode("ascii") + payload


def strings(*values: bytes) -> bytes:
    """
    Join strings as they stand on the wire.
    """
    return b"".join(value + b"\0" for value in values)


def offer(steps: int = 0x1FFFFF, actions: int = 0x1FF, version: int = 6) -> bytes:
    """
    Make the packet of an MTA that offers this.
    """
    return packet("O", struct.pack("!III", version, actions, steps))


def macros(letter: str, *pairs: bytes) -> bytes:
    """
    Make the packet that defines macros for a command.
    """
    return packet("D", letter.encode("ascii") + strings(*pairs))


CONNECT = packet("C", b"mail.example.org\x004\x10\xe1192.0.2.1\0")
HELO = packet("H", b"mail.example.org\0")
MAIL = packet("M", b"<s@example.org>\0")
RCPT = packet("R", b"<r@example.net>\0")
DATA = packet("T")
HEADER = packet("L", b"Subject\0hi\0")
EOH = packet("N")
BODY = packet("B", b"Hello\r\n")
EOM = packet("E")
ABORT = packet("A")
QUIT = packet("Q")
QUIT_NC = packet("K")
UNKNOWN = packet("U", b"XYZZY\0")

#: Callback -> what must have been sent before it, and its own packet.
STAGES: dict[str, tuple[bytes, bytes]] = {
    "connect": (b"", CONNECT),
    "helo": (CONNECT, HELO),
    "envfrom": (CONNECT + HELO, MAIL),
    "envrcpt": (MAIL, RCPT),
    "data": (MAIL + RCPT, DATA),
    "unknown": (MAIL + RCPT, UNKNOWN),
    "header": (MAIL + RCPT + DATA, HEADER),
    "eoh": (MAIL + RCPT + DATA + HEADER, EOH),
    "body": (MAIL + RCPT + DATA + HEADER + EOH, BODY),
    "eom": (MAIL + RCPT + DATA + HEADER + EOH + BODY, EOM),
}
#: A whole message, and how many responses it takes when every step is asked for.
MESSAGE = MAIL + RCPT + DATA + HEADER + EOH + BODY + EOM


def parse(data: bytes) -> list[tuple[str, bytes]]:
    """
    Cut bytes into packets: letter and payload.
    """
    found = []
    while data:
        (length,) = struct.unpack_from("!I", data)
        found.append((chr(data[4]), data[5 : 4 + length]))
        data = data[4 + length :]
    return found


class Waiting:
    """
    Answer with Deferreds, and keep them.
    """

    def __init__(self) -> None:
        self.deferreds: list[Deferred[Any]] = []
        self.cancelled = 0

    def __call__(self, *_: Any) -> Deferred[Any]:
        deferred: Deferred[Any] = Deferred(self._count)
        self.deferreds.append(deferred)
        return deferred

    def _count(self, deferred: Deferred[Any]) -> None:
        self.cancelled += 1
        deferred.errback(Failure(CancelledError()))

    def fire(self, result: Any = SMFIS_CONTINUE) -> None:
        """
        Give the oldest result that is still owed.
        """
        self.deferreds.pop(0).callback(result)


def _recorded(name: str, answer: Any) -> Callable[..., Any]:
    def callback(self: Any, *args: Any) -> Any:
        self.calls.append((name, *args))
        return answer(self, *args) if callable(answer) else answer

    callback.__name__ = f"xxfi_{name}"
    return callback


def milter(title: str = "Tester", *, quiet: tuple[str, ...] = (), **members: Any) -> Any:
    """
    Make a Milter class.

    :param quiet: The callbacks that promise not to answer.
    :param members: The answer of a callback (a value, or what gives it when called), under the
        callback's name without its ``xxfi_``; anything else is a class attribute.
    :return: The class; ``calls`` is what its callbacks were called with, ``made`` its instances.
    """
    made: list[Milter] = []

    def build(self: Any, *args: Any) -> None:
        Milter.__init__(self, *args)
        made.append(self)

    namespace: dict[str, Any] = {"calls": [], "made": made, "__init__": build}
    for name, value in {"abort": None, "close": None, **members}.items():
        if name in CALLBACKS:
            function = _recorded(name, value)
            namespace[f"xxfi_{name}"] = noreply(function) if name in quiet else function
        else:
            namespace[name] = value
    return type(title, (Milter,), namespace)


def full(title: str = "Tester", **members: Any) -> Any:
    """
    Make a Milter class that wants every step, and answers CONTINUE where nothing else is said.
    """
    return milter(title, **{**dict.fromkeys(STEPS), **members})


class Conversation:
    """
    The milter side of one connection.

    :param milters: Milter classes, or factories.
    :param options: Options of the factory.
    """

    def __init__(self, *milters: Any, **options: Any) -> None:
        self.clock = Clock()
        factories = [MilterFactory(made) if isinstance(made, type) else made for made in milters]
        self.factory = MilterProtocolFactory(factories, reactor=self.clock, **options)
        self.connect()

    def connect(self) -> None:
        """
        Make a connection.
        """
        self.transport = StringTransportWithDisconnection(peerAddress=PEER)
        self.protocol: Any = self.factory.buildProtocol(PEER)
        self.transport.protocol = self.protocol
        self.protocol.makeConnection(self.transport)

    def send(self, *pieces: bytes) -> bytes:
        """
        Say this, each piece as a read of its own, and give the bytes that came back.
        """
        for piece in pieces:
            if self.closed:
                break
            self.protocol.dataReceived(piece)
        self.clock.advance(0)
        return self.written()

    def written(self) -> bytes:
        """
        Give the bytes written since the last look.
        """
        data: bytes = self.transport.value()
        self.transport.clear()
        return data

    def letters(self, *pieces: bytes) -> str:
        """
        Say this, and give the letters of the packets that came back.
        """
        return "".join(letter for letter, _ in parse(self.send(*pieces)))

    def packets(self, *pieces: bytes) -> list[tuple[str, bytes]]:
        """
        Say this, and give the packets that came back.
        """
        return parse(self.send(*pieces))

    def agree(
        self, steps: int = 0x1FFFFF, actions: int = 0x1FF, version: int = 6
    ) -> tuple[int, int, int]:
        """
        Negotiate; give the version, actions and steps agreed upon.
        """
        ((letter, payload),) = self.packets(offer(steps, actions, version))
        assert letter == "O"
        version, actions, steps = struct.unpack_from("!III", payload)
        return version, actions, steps

    def drop(self) -> None:
        """
        Let the MTA vanish.
        """
        self.transport.connected = False
        self.protocol.connectionLost(Failure(ConnectionDone()))

    @property
    def closed(self) -> bool:
        """
        Tell whether the connection was closed.
        """
        return not self.transport.connected


def started(*milters: Any, **options: Any) -> Conversation:
    """
    Make a conversation that has negotiated already.
    """
    conversation = Conversation(*milters, **options)
    conversation.agree()
    return conversation


def names(calls: list[tuple[Any, ...]]) -> list[str]:
    """
    Give the names of calls.
    """
    return [call[0] for call in calls]


class ConversationTestCase(SynchronousTestCase):
    """
    Tests that look at the log too.
    """

    def setUp(self) -> None:
        self.events: list[LogEvent] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def log_text(self) -> str:
        """
        Give what has been logged.
        """
        return "\n".join(formatEvent(event) for event in self.events)

    def failures(self) -> list[Failure]:
        """
        Give the failures logged, and forgive them.
        """
        self.flushLoggedErrors()
        return [event["log_failure"] for event in self.events if "log_failure" in event]
