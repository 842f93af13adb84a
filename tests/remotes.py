"""
A remote milter for tests: an endpoint that leads, in memory, to a milter of this library or to
one that follows a script.

The MTA is written by hand in bytes, as in `tests.conversation_helpers`; `RemoteConversation`
carries the bytes on both sides of the stand-in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.test import iosim
from zope.interface import implementer

from yatxmilter import MilterFactory, MilterProtocolFactory
from yatxmilter._wire.payloads import Offer, PacketSplitter, encode_offer
from yatxmilter.remote import RemoteMilterFactory

from .conversation_helpers import (
    BODY,
    DATA,
    EOH,
    EOM,
    HEADER,
    MAIL,
    PEER,
    RCPT,
    Conversation,
    packet,
)

#: The commands of a message, each as a read of its own.
COMMANDS = (MAIL, RCPT, DATA, HEADER, EOH, BODY, EOM)
CONTINUE = packet("c")
#: The answer to an offer of one who wants everything and may do everything.
AGREED = encode_offer(Offer(6, 0x1FF, 0))


class Scripted(Protocol):
    """
    A milter that follows a script: by the letter of a command, what it sends at each time.

    :param script: The last answer of a list serves for ever; ``None`` closes the connection; a
        command that is not in it gets nothing.
    :ivar heard: The packets that came.
    """

    def __init__(self, script: dict[str, list[bytes | None]]) -> None:
        self.script = {letter: list(answers) for letter, answers in script.items()}
        self.heard: list[tuple[str, bytes]] = []
        self._splitter = PacketSplitter(1 << 20)

    def dataReceived(self, data: bytes) -> None:
        self._splitter.feed(data)
        while (packet := self._splitter.next_packet()) is not None:
            letter = chr(packet[0])
            self.heard.append((letter, packet[1]))
            answers = self.script.get(letter, [b""])
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            assert self.transport is not None
            if answer is None:
                self.transport.loseConnection()
            else:
                self.transport.write(answer)

    @property
    def letters(self) -> str:
        """
        The letters of the packets that came.
        """
        return "".join(letter for letter, _ in self.heard)


@implementer(IStreamClientEndpoint)
class Remote:
    """
    Where a remote milter listens.

    :param serve: Builds its side of a connection.
    :ivar servers: The connections there were, its side.
    :ivar refusing: Whether connections are refused; ``hanging``: whether they never come.
    """

    def __init__(self, serve: Callable[[], Any]) -> None:
        self._serve = serve
        self.servers: list[Any] = []
        self.refusing = False
        self.hanging = False
        self.cancelled = 0
        self._pumps: list[Any] = []
        self._transports: list[Any] = []

    def connect(self, protocolFactory: Any) -> Deferred[Any]:
        if self.refusing:
            return fail(ConnectionRefusedError())
        if self.hanging:
            return Deferred(self._cancel)
        server, client = self._serve(), protocolFactory.buildProtocol(None)
        transport = iosim.FakeTransport(server, isServer=True, peerAddress=PEER)
        pump = iosim.connect(server, transport, client, iosim.makeFakeClient(client))
        self.servers.append(server)
        self._transports.append(transport)
        self._pumps.append(pump)
        connected: Deferred[Any] = Deferred()
        connected.callback(client)
        return connected

    def _cancel(self, _: object) -> None:
        self.cancelled += 1

    def pump(self) -> bool:
        """
        Carry bytes; tell whether there were any.
        """
        # All of them, not only the first that has some.
        return sum(pump.pump() for pump in self._pumps) > 0

    def crash(self) -> None:
        """
        Close all connections.
        """
        for transport in self._transports:
            transport.loseConnection()

    @property
    def open(self) -> int:
        """
        How many connections are open.
        """
        return sum(not transport.disconnected for transport in self._transports)


def serving(*milters: Any) -> Remote:
    """
    Make a remote milter of this library's own milters.
    """
    factories = [MilterFactory(milter) for milter in milters]
    factory = MilterProtocolFactory(factories, reactor=Clock())
    return Remote(lambda: factory.buildProtocol(PEER))


def scripted(script: dict[str, list[bytes | None]]) -> Remote:
    """
    Make a remote milter that follows a script.
    """
    return Remote(lambda: Scripted(script))


class RemoteConversation(Conversation):
    """
    The MTA's conversation with milters of which one is remote.

    :param remote: The remote milter.
    :param before: Milters in front of it; ``after``: behind it.
    :param options: Those of `RemoteMilterFactory`.
    """

    def __init__(
        self,
        remote: Remote,
        *,
        before: tuple[Any, ...] = (),
        after: tuple[Any, ...] = (),
        merge: str = "first",
        **options: Any,
    ) -> None:
        self.remote = remote
        self.reactor = Clock()
        self.standing = RemoteMilterFactory(
            remote,
            **{"name": "afar", "reactor": self.reactor, **options},  # type: ignore[arg-type]
        )
        super().__init__(*before, self.standing, *after, merge=merge)

    def send(self, *pieces: bytes) -> bytes:
        super_send = super().send
        data = b""
        for piece in pieces:
            data += super_send(piece)
            data += self.carry()
        return data

    def carry(self) -> bytes:
        """
        Carry bytes to and from the remote milter until there are none, and give what was written
        to the MTA.
        """
        while self.remote.pump():
            pass
        return self.written()


def started(remote: Remote, **options: Any) -> RemoteConversation:
    """
    Make a conversation that has negotiated.
    """
    conversation = RemoteConversation(remote, **options)
    conversation.agree()
    return conversation


def breaking(**answers: list[bytes | None]) -> Remote:
    """
    Make a remote milter that answers CONTINUE, but for these.
    """
    usual: dict[str, list[bytes | None]] = {letter: [CONTINUE] for letter in "CHMRTLNBEU"}
    return scripted({"O": [AGREED], **usual, **answers})
