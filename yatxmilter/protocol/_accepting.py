"""
Accepting connections: what Twisted's ports do, for the connections of a `ConnectionSet`.

Twisted makes a transport, some addresses and a log context for each connection, and registers it
with the reactor. Here the set tells a `Listener` when there are connections to accept. It gives
each that is for us to its protocol as a `Served`, which makes a transport when somebody asks for
one. The port stays what it was for everybody else: it knows where it listens, and it is closed as
always. What it has for its reactor (`PortReactor`) is in between.

Whatever is out of the ordinary - the process has no descriptor left, the system reports an error -
is left to the port, which knows what to do and how to log it.
"""

from __future__ import annotations

import select
import socket
from typing import Any, Final
from typing import Protocol as Shape

from twisted.internet import error, main, tcp
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Protocol
from twisted.python import log
from twisted.python.failure import Failure

from yatxmilter.protocol._descriptor_set import (
    TRANSPORTS,
    ConnectionSet,
    Served,
    TransportReactor,
)

__all__ = ["Listener", "adopt_port"]

_IN: Final[int] = getattr(select, "EPOLLIN", 1)

# How many connections are accepted before others have their turn.
_MOST_AT_ONCE: Final = 64
# By how many more are tried next time, where all that were tried were there; as in Twisted's ports.
_MORE: Final = 20

# Seconds for which a connection is left to other processes.
_MOMENT: Final = 0.005

# The class below `socket.socket`: without what only `socket.socket.makefile` needs.
_SOCKET: Final[Any] = socket.SocketType
_STREAM: Final = int(socket.SOCK_STREAM)

# A UNIX socket that is not bound to a name, as an MTA's: as Twisted's ports and transports show it.
_UNNAMED: Final = (UNIXAddress(""), UNIXAddress(None))


def adopt_port(connections: ConnectionSet, port: Any) -> None:
    """
    Accept a port's connections from now on, if it is a plain TCP or UNIX port of Twisted's.

    :param port: What a transport was accepted by; ``None`` for one that was adopted.
    """
    kind = type(port)
    if (
        issubclass(kind, tcp.Port)
        and kind.doRead is tcp.Port.doRead
        and port.transport in TRANSPORTS
        and port.reactor is connections.reactor
        and port.connected
        and not port.disconnecting
    ):
        port.stopReading()
        port.reactor = PortReactor(Listener(port, connections))
        port.startReading()


class Shares(Shape):
    """
    Shares connections out between processes that listen on one socket.
    """

    def leaves(self, connections: int) -> bool:
        """
        Tell whether a connection that has come is to be left to others for a moment.

        :param connections: How many there are here.
        """

    def took(self) -> None:
        """
        Take note that a connection was taken.
        """


class Listener:
    """
    A port in a set.

    A port that processes share has an attribute ``share``: `Shares`, or ``None``. It takes one
    connection at a time, so that all have theirs.

    :ivar events: What the port is watched for.
    :ivar port: The port.
    :ivar reactor: The set's.
    """

    __slots__ = (
        "_family",
        "_moment",
        "_most",
        "_set",
        "_share",
        "_tries",
        "events",
        "port",
        "reactor",
    )

    def __init__(self, port: Any, connections: ConnectionSet) -> None:
        self.events = 0
        self.port = port
        self.reactor = connections.reactor
        self._set = connections
        self._family = int(port.socket.family)
        self._tries = 1
        self._most = 1 if hasattr(port, "share") else _MOST_AT_ONCE
        self._share: Shares | None = getattr(port, "share", None)
        self._moment: IDelayedCall | None = None
        if self._share is not None:
            # The first one, by which we came to the port.
            self._share.took()

    @property
    def socket(self) -> Any:
        """
        The port's.
        """
        return self.port.socket

    # ---- when it is told of connections

    def begin(self) -> None:
        """
        Be told when there are connections.
        """
        if self._moment is None:
            self._set.watch(self, _IN)

    def end(self) -> None:
        """
        Be told no more.
        """
        self._set.watch(self, 0)
        if self._moment is not None:
            self._moment.cancel()
            self._moment = None

    def _leave(self) -> None:
        # What is not taken would be told at each turn.
        self._set.watch(self, 0)
        self._moment = self.reactor.callLater(_MOMENT, self._come_back)

    def _come_back(self) -> None:
        self._moment = None
        self._set.watch(self, _IN)

    # ---- connections

    def accept(self) -> None:
        """
        Accept connections that are there.
        """
        share = self._share
        if share is not None and share.leaves(self._set.size):
            self._leave()
            return
        accept = self.port.socket._accept
        turn = self._set.turn
        tries = self._tries
        for number in range(tries):
            try:
                descriptor, client = accept()
            except BlockingIOError:
                self._tries = max(1, number)
                return
            except OSError:
                # It tries again, and meets the same.
                self.port.doRead()
                return
            if share is not None:
                share.took()
            self._take(_SOCKET(self._family, _STREAM, 0, descriptor), client)
            # Whoever was told of it may have closed the port, or the reactor may have gone on
            # without a callback.
            if not self.events or self._set.turn != turn:
                return
        self._tries = min(tries + _MORE, self._most)

    def _take(self, connection: Any, client: Any) -> None:
        served = Served(self._set, connection)
        served.client, served.listener = client, self
        try:
            connection.setblocking(False)
            address, peer = self._addresses(served)
            protocol = self.port.factory.buildProtocol(address)
            if protocol is None:
                connection.close()
                return
            accepted = getattr(type(protocol), "accepted", None)
            if accepted is None or not accepted(protocol, served, peer):
                whole = socket.socket(fileno=connection.detach())
                transport = self.transport(whole, protocol, served.client, self.reactor)
                protocol.makeConnection(transport)
        except BaseException:
            # As Twisted's ports do; but a connection that failed to begin is not left open.
            log.err()
            if served.events:
                self._set.disconnect(served, main.CONNECTION_LOST)
            else:
                connection.close()

    def _addresses(self, served: Served) -> tuple[Any, Any]:
        # That for the factory, and that of the peer; Twisted's differ where there is no name.
        client = served.client
        if self._family == socket.AF_INET:
            address: Any = IPv4Address("TCP", *client)
        elif self._family == socket.AF_UNIX:
            return (UNIXAddress(client), UNIXAddress(client)) if client else _UNNAMED
        else:
            # The scope of an address is a part of its text.
            flags = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
            host = socket.getnameinfo(client, flags)[0]
            served.client = (host, *client[1:])
            address = IPv6Address("TCP", *served.client)
        return address, address

    # ---- transports

    def transport(self, connection: Any, protocol: Any, client: Any, reactor: Any) -> Any:
        """
        Make the transport of a connection, as the port does.

        :param reactor: What it asks to be told of what it can read and write.
        """
        port = self.port
        number = port.sessionno
        port.sessionno = number + 1
        return port.transport(connection, protocol, client, port, number, reactor)

    def lost_transport(self, served: Served) -> Any:
        """
        Make the transport of a connection that is over: it knows where that had come from.
        """
        unconnected = socket.socket(self._family)
        transport = self.transport(unconnected, Protocol(), served.client, TransportReactor(served))
        transport.connectionLost(Failure(error.ConnectionAborted()))
        transport.reactor = self.reactor
        return transport

    def lose(self, reason: Failure) -> None:
        """
        Close the port: the reactor ends.
        """
        self.port.connectionLost(reason)


class PortReactor:
    """
    What the port of a `Listener` has for its reactor.

    Not the `Listener` itself: a class that has a `__getattr__` finds nothing fast.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def __getattr__(self, name: str) -> Any:
        return getattr(self._listener.reactor, name)

    def addReader(self, reader: Any) -> None:
        """
        Tell the port when there are connections.
        """
        if reader is self._listener.port:
            self._listener.begin()
        else:
            # A transport that the port has made itself: it is no business of ours any more.
            reader.reactor = self._listener.reactor
            reader.reactor.addReader(reader)

    def removeReader(self, reader: Any) -> None:
        """
        Tell the port no more.
        """
        self._listener.end()
