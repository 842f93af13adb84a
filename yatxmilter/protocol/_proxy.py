"""
Connections behind HAProxy, which says in front of the first bytes who has connected to it.

Twisted's wrapper, the endpoint ``haproxy:``, makes the connection before that line has come, when
it does not know the peer. Here the milter's protocol waits for what follows the line.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Protocol, connectionDone

# Twisted exports the function that wraps an endpoint only; the class tells such a connection.
from twisted.protocols.haproxy._wrapper import HAProxyProtocolWrapper
from twisted.python.failure import Failure

from yatxmilter.protocol._time_limits import Deadline

__all__ = ["HAProxyProtocolWrapper", "Unannounced"]


class Unannounced(Protocol):
    """
    Takes the place of a protocol in HAProxy's wrapper until the peer is known.

    A connection that is lost before has never been one.

    :param protocol: Whose place it takes.
    :param seconds: How long HAProxy may take; ``None`` for any time.
    """

    transport: Any

    def __init__(self, protocol: Protocol, clock: IReactorTime, seconds: float | None) -> None:
        self._protocol = protocol
        self._waiting = Deadline(clock, seconds, self._late, "")

    def connectionMade(self) -> None:
        """
        Take the place.
        """
        self.transport.wrappedProtocol = self
        self._waiting.start()

    def dataReceived(self, data: bytes) -> None:
        """
        Give the place back: these are the first bytes of the MTA.
        """
        self._waiting.cancel()
        transport = self.transport
        transport.wrappedProtocol = protocol = self._protocol
        Protocol.makeConnection(protocol, transport)
        if not transport.disconnecting:
            protocol.dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        Wait no more.
        """
        self._waiting.cancel()

    def _late(self, fault: str) -> None:
        self.transport.abortConnection()
