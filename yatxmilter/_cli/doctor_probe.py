"""
Does a milter answer? Asked as the MTA would ask it: connect, negotiate, and go.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Any, Final, NamedTuple, NoReturn

from twisted.internet import error as errors
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, UNIXClientEndpoint
from twisted.internet.interfaces import IResolutionReceiver
from zope.interface import implementer

from yatxmilter._cli.doctor_findings import MAX_UNIX_PATH, InetAddress
from yatxmilter._wire.payloads import Offer
from yatxmilter.client import Agreement, MilterClient, PeerError, connect_milter

__all__ = ["Answer", "Target", "probe"]

#: Seconds for a milter to close the connection once it was told QUIT.
_GRACE: Final = 0.5

#: A TCP address or the path of a socket, and what the MTA offers there.
Target = tuple[InetAddress | str, Offer]


class Answer(NamedTuple):
    """
    What came of it.

    :ivar agreement: What was negotiated, if it was.
    :ivar kind: If not: ``refused``, ``denied``, ``absent``, ``unknown-host``, ``late``,
        ``unreachable``, ``silent``, ``closed`` or ``foreign``.
    :ivar text: What was said of it.
    """

    agreement: Agreement | None
    kind: str = ""
    text: str = ""


async def probe(reactor: Any, target: Target, seconds: float) -> Answer:
    """
    Connect to a milter, negotiate, and leave.

    :param seconds: How long to wait for the connection, and then for the answer.
    """
    address, offer = target
    try:
        connecting = Deferred.fromCoroutine(_connect(reactor, address, seconds))
        client = await connecting.addTimeout(seconds, reactor, _give_up)
    except Exception as error:
        return _unreachable(error, seconds)
    try:
        agreement = await client.negotiate(*offer).addTimeout(seconds, reactor, _give_up)
    except errors.TimeoutError:
        return Answer(None, "silent", f"no answer within {seconds:g} s")
    except PeerError as error:
        closed = isinstance(error.__cause__, errors.ConnectionClosed)
        return Answer(None, "closed" if closed else "foreign", str(error))
    # Whether it closes the connection, and how, is of no interest.
    await client.quit().addTimeout(_GRACE, reactor).addErrback(lambda _: None)
    return Answer(agreement)


def _give_up(_: object, seconds: float) -> NoReturn:
    raise errors.TimeoutError


async def _connect(reactor: Any, address: InetAddress | str, seconds: float) -> MilterClient:
    """
    Connect to the first address that takes the connection.
    """
    if isinstance(address, str):
        with _short(address) as path:
            return await connect_milter(UNIXClientEndpoint(reactor, path, seconds), timeout=None)
    failure: Exception = errors.DNSLookupError(f"no address of {address.host} was found")
    for found in await _resolve(reactor, address):
        kind = TCP6ClientEndpoint if isinstance(found, IPv6Address) else TCP4ClientEndpoint
        try:
            endpoint = kind(reactor, found.host, found.port, seconds)
            return await connect_milter(endpoint, timeout=None)
        except errors.ConnectError as error:
            failure = error
    raise failure


@contextlib.contextmanager
def _short(path: str) -> Iterator[str]:
    """
    Give a path that a socket may have: inside a chroot it is shorter than for us.
    """
    if len(os.fsencode(path)) <= MAX_UNIX_PATH:
        yield path
        return
    folder = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{os.path.basename(path)}"
    finally:
        os.close(folder)


def _resolve(reactor: Any, address: InetAddress) -> Deferred[list[Any]]:
    """
    Look a host up, in the families that the MTA uses.
    """
    done: Deferred[list[Any]] = Deferred()
    families = {"inet": [IPv4Address], "inet6": [IPv6Address]}.get(address.family)
    reactor.nameResolver.resolveHostName(
        _Receiver(done), address.host or "localhost", address.port, families
    )
    return done


@implementer(IResolutionReceiver)
class _Receiver:
    """
    Collects addresses.
    """

    def __init__(self, done: Deferred[list[Any]]) -> None:
        self._found: list[Any] = []
        self._done = done

    def resolutionBegan(self, resolution: object) -> None:
        """
        Do nothing: the addresses follow.
        """

    def addressResolved(self, address: object) -> None:
        """
        Take one of the addresses.
        """
        self._found.append(address)

    def resolutionComplete(self) -> None:
        """
        Give all addresses, unless the wait is over.
        """
        if not self._done.called:
            self._done.callback(self._found)


def _unreachable(error: Exception, seconds: float) -> Answer:
    number = getattr(error, "osError", None)
    kind = "unreachable"
    if isinstance(error, errors.TimeoutError):
        return Answer(None, "late", f"no connection within {seconds:g} s")
    if isinstance(error, errors.DNSLookupError):
        kind = "unknown-host"
    elif isinstance(error, errors.ConnectionRefusedError) or number == errno.ECONNREFUSED:
        kind = "refused"
    elif number == errno.EACCES:
        kind = "denied"
    elif number == errno.ENOENT:
        kind = "absent"
    return Answer(None, kind, str(error))
