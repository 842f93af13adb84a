"""
An SMTP session in memory: a client that writes lines, a server with milters, and deliveries that
keep what they are given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.mail.interfaces import IMessageDelivery, IMessageSMTP
from twisted.python.failure import Failure
from zope.interface import implementer

from yatxmilter import Milter, MilterFactory
from yatxmilter.smtp import MilterESMTP, MilterSMTPFactory, SMTPMilters

SENDER, RECIPIENT, OTHER = "<sender@client.example>", "<one@example.com>", "<two@example.com>"

#: What the deliveries put on top of each message.
RECEIVED = b"Received: from somewhere\n\tby mx.example.com"
RECEIVED_LINES = RECEIVED.split(b"\n")

#: What a server says of itself to HELO, and to EHLO.
HELLO = "250 mx.example.com Hello 192.168.1.1, nice to meet you"
GREETS = ["250-mx.example.com Hello 192.168.1.1, nice to meet you", "250 SIZE 52428800"]

MESSAGE = [b"From: Sender <sender@client.example>", b"Subject: hello", b"", b"A short letter."]


@implementer(IMessageSMTP)
class Kept:
    """
    A message object that keeps what it is given.

    :ivar end: How it ended: ``eom``, ``lost``, or empty while it has not.
    """

    def __init__(self, mailbox: Mailbox, user: Any) -> None:
        self.mailbox = mailbox
        self.user = user
        self.lines: list[bytes] = []
        self.end = ""

    def lineReceived(self, line: bytes) -> None:
        """
        Keep a line.
        """
        self.mailbox.check("line")
        self.lines.append(line)

    def eomReceived(self) -> Deferred[None]:
        """
        Keep the message; when that is done is the test's business.
        """
        self.end = "eom"
        self.mailbox.check("eom")
        return self.mailbox.answer()

    def connectionLost(self) -> None:
        """
        Note that the message will not be complete.
        """
        self.end = "lost"
        self.mailbox.check("lost")


@implementer(IMessageDelivery)
class Mailbox:
    """
    A delivery that keeps all messages.

    :ivar faults: What to raise, by occasion: ``from``, ``to``, ``make``, ``line``, ``eom``,
        ``lost``; or by address.
    :ivar answer: Makes what `eomReceived` answers.
    """

    def __init__(self) -> None:
        self.kept: list[Kept] = []
        self.senders: list[bytes] = []
        self.faults: dict[str, Exception] = {}
        self.answer: Callable[[], Deferred[None]] = lambda: succeed(None)

    def check(self, occasion: str) -> None:
        """
        Raise what the test wants to be raised.
        """
        if occasion in self.faults:
            raise self.faults[occasion]

    def receivedHeader(self, helo: Any, origin: Any, recipients: Any) -> bytes:
        """
        Make the server's own field.
        """
        return RECEIVED

    def validateFrom(self, helo: Any, origin: Any) -> Any:
        """
        Take any sender.
        """
        self.check("from")
        self.check(str(origin))
        self.senders.append(bytes(origin))
        return origin

    def validateTo(self, user: Any) -> Any:
        """
        Take any recipient.
        """
        self.check("to")
        self.check(str(user))

        def make() -> Kept:
            self.check("make")
            self.kept.append(Kept(self, user))
            return self.kept[-1]

        return make


class Session:
    """
    An SMTP client's session.

    :param milters: Milter classes.
    :ivar server: The server's side.
    """

    def __init__(
        self,
        *milters: type[Milter],
        delivery: Any = None,
        portal: Any = None,
        challengers: Any = None,
        clock: Clock | None = None,
        server: type[MilterESMTP] = MilterESMTP,
        transport: StringTransport | None = None,
        **options: Any,
    ) -> None:
        self.clock = clock or Clock()
        self.mailbox = Mailbox()
        factories = options.pop("factories", None) or [MilterFactory(milter) for milter in milters]
        factory = MilterSMTPFactory(
            SMTPMilters(factories, reactor=self.clock, **options),
            self.mailbox if delivery is None and portal is None else delivery,
            portal,
            challengers=challengers,
            domain=b"mx.example.com",
        )
        factory.protocol = server
        self.server: Any = factory.buildProtocol(None)
        self.server.callLater = self.clock.callLater
        self.server.noisy = False
        self.transport = transport or StringTransport()
        self.gone = False
        self.server.makeConnection(self.transport)
        self.settle()

    def settle(self) -> None:
        """
        Run what is due.
        """
        while any(call.getTime() <= self.clock.seconds() for call in self.clock.getDelayedCalls()):
            self.clock.advance(0)
        if self.transport.disconnecting:
            self.vanish(ConnectionDone())

    def replies(self) -> list[str]:
        """
        Give what the server has said since the last time.
        """
        said = self.transport.value().decode("latin-1").split("\r\n")
        self.transport.clear()
        return said[:-1]

    def write(self, data: bytes) -> list[str]:
        """
        Send bytes, and give what is said to them.
        """
        self.server.dataReceived(data)
        self.settle()
        return self.replies()

    def say(self, *lines: str | bytes) -> list[str]:
        """
        Send lines at once, and give what is said to them.
        """
        encoded = [line.encode() if isinstance(line, str) else line for line in lines]
        return self.write(b"".join(line + b"\r\n" for line in encoded))

    def begin(self, *recipients: str) -> list[str]:
        """
        Begin a message, up to the answer to DATA.

        :return: The last line of each reply.
        """
        self.replies()
        lines = [f"RCPT TO:{recipient}" for recipient in recipients or (RECIPIENT,)]
        said = self.say("EHLO client.example", f"MAIL FROM:{SENDER}", *lines, "DATA")
        return [line for line in said if line[3:4] != "-"]

    def send(self, *recipients: str, lines: list[bytes] | None = None) -> list[str]:
        """
        Send a message, and give what is said to its end.
        """
        self.begin(*recipients)
        return self.say(*(MESSAGE if lines is None else lines), ".")

    def vanish(self, reason: Exception | None = None) -> None:
        """
        Take the connection away.
        """
        if not self.gone:
            self.gone = True
            self.server.connectionLost(Failure(reason or ConnectionLost()))
            self.settle()

    @property
    def delivered(self) -> list[list[bytes]]:
        """
        The lines of each message that was delivered, but for the server's own field.
        """
        return [
            [line for line in kept.lines if line not in RECEIVED_LINES]
            for kept in self.mailbox.kept
            if kept.end == "eom"
        ]


def recorder(calls: list[tuple[Any, ...]], **answers: Any) -> type[Milter]:
    """
    Make a milter that notes its callbacks.

    :param answers: What callbacks answer, by their names without prefix; a callable is called with
        the milter.
    """

    def callback(name: str) -> Callable[..., Any]:
        def called(self: Milter, *arguments: Any) -> Any:
            calls.append((name, *arguments))
            answer = answers.get(name)
            return answer(self) if callable(answer) else answer

        return called

    names = ["connect", "helo", "envfrom", "envrcpt", "data", "unknown", "header", "eoh", "body"]
    names += ["eom", "abort", "close"]
    return type("Recorder", (Milter,), {f"xxfi_{name}": callback(name) for name in names})
