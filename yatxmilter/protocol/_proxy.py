"""
Connections behind HAProxy, which says in front of the first bytes who has connected to it.

Twisted's wrapper, the endpoint ``haproxy:``, makes the connection before that line has come, when
it does not know the peer. Here the milter's protocol waits for what follows the line. Whoever can
reach the port can write that line: how many may take how long over it is bounded, and nothing is
taken from it that is not an address.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any, Final

from twisted.internet import address
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Protocol, connectionDone

# Twisted exports the function that wraps an endpoint only; the class tells such a connection.
from twisted.protocols.haproxy._wrapper import HAProxyProtocolWrapper
from twisted.python.failure import Failure

from yatxmilter.protocol._time_limits import TimeLimit

if TYPE_CHECKING:
    from yatxmilter.protocol._admission import Admission

__all__ = ["HAProxyProtocolWrapper", "Lobby", "Unannounced"]

#: How many connections may be there at once of which HAProxy has not said whose they are; and
#: for how many seconds, where the time for a command is longer.
MOST: Final = 1000
PATIENCE: Final = 30.0

#: With what the two versions of the protocol begin.
_V1: Final = b"PROXY "
_V2: Final = b"\r\n\r\n\0\r\nQUIT\n"
#: By so many bytes Twisted's wrapper decides which it is; it does not wait for them.
_ENOUGH: Final = 16

#: What HAProxy says of a client that has no address, as one that has come by a UNIX socket.
_UNKNOWN: Final = b"PROXY UNKNOWN\r\n"
_UNREADABLE: Final = "its PROXY line is missing, or cannot be read"
_FAMILIES: Final = {address.IPv4Address: IPv4Address, address.IPv6Address: IPv6Address}


def _is_beginning(data: bytes) -> bool:
    """
    Tell whether this may become a header, and is too short to be looked at.
    """
    if len(data) >= _ENOUGH:
        return False
    is_v1 = _V1.startswith(data[: len(_V1)])
    return (is_v1 and b"\n" not in data) or _V2.startswith(data[: len(_V2)])


def _is_address(peer: Any) -> bool:
    """
    Tell whether this is an address that a connection can come from.
    """
    family = _FAMILIES.get(type(peer))
    if family is None:
        # A UNIX socket's; or HAProxy's own address, where it names no other.
        return True
    try:
        # What stands behind a per cent sign is no part of it, and could be any text.
        return str(family(peer.host)).find("%") < 0 and 0 <= peer.port <= 0xFFFF
    except ValueError:
        return False


class Lobby:
    """
    Those of whom HAProxy has not said who they are.

    :param clock: Gives what keeps time.
    :param seconds: How long a command may take; ``None`` for any time.
    :param admission: Counts them among all connections.
    :param refused: Told of those who may not stay: where they came from, and why.
    :param left: Called when one is no more here.
    :ivar inside: Those who are here.
    """

    def __init__(
        self,
        clock: Callable[[], IReactorTime],
        seconds: float | None,
        admission: Admission,
        refused: Callable[[object, str], None],
        left: Callable[[], None],
    ) -> None:
        self._admission = admission
        self._left = left
        self.refused = refused
        self.inside: set[Unannounced] = set()
        self._patience: TimeLimit[Unannounced] = TimeLimit(
            clock, min(seconds or PATIENCE, PATIENCE), Unannounced.give_up
        )

    def enter(self, one: Unannounced) -> bool:
        """
        Take one more, if there is room.
        """
        if len(self.inside) >= MOST:
            return False
        self.inside.add(one)
        # Not by its address: that is HAProxy's.
        self._admission.enter(None)
        self._patience.start(one)
        return True

    def leave(self, one: Unannounced) -> None:
        """
        Let one go.
        """
        self.inside.remove(one)
        self._patience.stop(one)
        self._admission.leave(None)
        self._left()

    def close(self) -> None:
        """
        Send all away.
        """
        for one in self.inside.copy():
            one.give_up()


class Unannounced(Protocol):
    """
    Takes the place of a protocol in HAProxy's wrapper until the peer is known.

    A connection that is lost before has never been one.

    :param protocol: Whose place it takes.
    :param lobby: Where it waits.
    """

    transport: Any

    def __init__(self, protocol: Protocol, lobby: Lobby) -> None:
        self._protocol = protocol
        self._lobby = lobby
        self._announced = False
        # What has come, while it is too little to see what it is.
        self._beginning: bytes | None = b""

    def connectionMade(self) -> None:
        """
        Take the place.
        """
        transport = self.transport
        transport.wrappedProtocol = self
        if not self._lobby.enter(self):
            self._refuse(f"{MOST} connections have not said the PROXY line yet")
            return
        # What its parser cannot read it raises as it likes; the reactor would log all of it.
        transport.dataReceived = self._guarded

    def _guarded(self, data: bytes) -> None:
        transport = self.transport
        if self._beginning is not None:
            data = self._beginning + data
            if _is_beginning(data):
                self._beginning = data
                return
            self._beginning = None
        if data.startswith(_UNKNOWN):
            # Twisted's parser wants a blank where HAProxy writes none.
            data = data.replace(b"\r", b" \r", 1)
        try:
            type(transport).dataReceived(transport, data)
        except Exception:
            if self._announced:
                raise
            self._refuse(_UNREADABLE)
        else:
            # What it knows to be none it closes without a word.
            if transport.disconnecting and self in self._lobby.inside:
                self._refuse(_UNREADABLE)

    def dataReceived(self, data: bytes) -> None:
        """
        Give the place back: these are the first bytes of the MTA.
        """
        if self not in self._lobby.inside:
            return
        transport = self.transport
        if not _is_address(transport.getPeer()):
            self._refuse("its PROXY line names no address")
            return
        self._announced = True
        transport.wrappedProtocol = protocol = self._protocol
        Protocol.makeConnection(protocol, transport)
        self._leave()
        if not transport.disconnecting:
            protocol.dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        Wait no more.
        """
        self._leave()

    def _leave(self) -> None:
        if self in self._lobby.inside:
            del self.transport.dataReceived
            self._lobby.leave(self)

    def _refuse(self, why: str) -> None:
        self._lobby.refused(self.transport.transport.getPeer(), why)
        self._leave()
        self.transport.abortConnection()

    def give_up(self) -> None:
        """
        End the connection.
        """
        self._leave()
        self.transport.abortConnection()
