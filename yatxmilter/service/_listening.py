"""
Opening sockets, and sharing them with other processes.

Endpoints ask their reactor for ports. `Opener` and `Adopter` stand where the reactor is, so all
endpoints - those of TLS, of systemd and of HAProxy's protocol included - work unchanged with
permissions of ours, and with descriptors that another process has opened.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import suppress
from functools import partial
from typing import Any, Final

from twisted.internet import tcp, unix
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import ServerFactory
from twisted.logger import Logger
from twisted.python.failure import Failure

from yatxmilter.protocol._endpoints import server_endpoint
from yatxmilter.protocol._socket_file import SocketFile, keep_a_descriptor, open_socket_file
from yatxmilter.service._worker_shares import Share

__all__ = ["Adopter", "Opener", "adopt", "close_port", "open_port"]

_log = Logger()

# Parts of Twisted that are not annotated.
_TCP_PORT: Final[Any] = tcp.Port
_UNIX_PORT: Final[Any] = unix.Port


class _Fair:
    """
    A port that takes one connection at a time, so the other processes have theirs.

    :ivar share: What this process has of all connections, where that is known.
    """

    share: Share | None = None
    numberAccepts = property(lambda self: 1, lambda self, number: None)
    # A shutdown would end the listening of all who share the socket.
    _shouldShutdown = False


class _TCPPort(_Fair, _TCP_PORT):  # type: ignore[misc]
    pass


class _UNIXPort(_Fair, _UNIX_PORT):  # type: ignore[misc]
    """
    A UNIX socket that is another's: its file is neither changed nor removed.
    """

    _preexistingSocket: Any

    def startListening(self) -> None:
        """
        Take connections.
        """
        keep_a_descriptor()
        self.factory.doStart()
        self.socket, self._preexistingSocket = self._preexistingSocket, None
        self.fileno = self.socket.fileno
        self.connected = True
        self.startReading()

    def connectionLost(self, reason: Any) -> None:
        """
        Close our descriptor only.
        """
        tcp.Port.connectionLost(self, reason)


def adopt(reactor: Any, descriptor: int, factory: Any, share: Share | None = None) -> Any:
    """
    Listen on a descriptor that was opened, and is shared, by another process.

    :param share: What this process is to have of the connections; ``None`` for what it gets.
    :return: The port.
    """
    with socket.socket(fileno=os.dup(descriptor)) as probe:
        family = probe.family
    port: Any
    if family == socket.AF_UNIX:
        port = _UNIXPort._fromListeningDescriptor(reactor, descriptor, factory)
    else:
        port = _TCPPort._fromListeningDescriptor(reactor, descriptor, family, factory)
    port.share = share
    port.startListening()
    return port


class Opener:
    """
    Opens ports; else it is the reactor.

    :param mode: Permissions of UNIX sockets, where the endpoint has no others.
    :param owner: The user whom they are given to, likewise.
    :param group: The group that they are given to, likewise.
    """

    def __init__(
        self,
        reactor: Any,
        mode: int | None = None,
        owner: int | None = None,
        group: int | None = None,
    ) -> None:
        self._reactor = reactor
        self._usual = {"mode": mode, "owner": owner, "group": group}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def listenUNIX(
        self, address: str, factory: Any, backlog: int = 50, mode: int = 0o666, wantPID: Any = 0
    ) -> Any:
        """
        Open a UNIX socket for an endpoint of Twisted's, whose own default lets everybody in.
        """
        own = None if mode == 0o666 else mode
        return self.open_socket_file(SocketFile(address, backlog, own, bool(wantPID)), factory)

    def open_socket_file(self, file: SocketFile, factory: Any) -> Any:
        """
        Open a UNIX socket, in the place of one that nobody listens on any more.
        """
        _remove_stale(file.path)
        usual: Any = {n: v for n, v in self._usual.items() if getattr(file, n) is None}
        return open_socket_file(self._reactor, file._replace(**usual), factory)

    def adoptStreamPort(self, descriptor: int, family: int, factory: Any) -> Any:
        """
        Take a socket over that systemd has opened, and leave its file alone.

        :raises OSError: when it is not one that is listened on.
        """
        listens = 0
        with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as probe:
            listens = probe.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if not listens:
            # To accept connections there would fail again and again.
            raise OSError(
                f"descriptor {descriptor} is no socket to which connections come; if systemd has"
                " opened it, the .socket unit needs ListenStream=, and not Accept=yes"
            )
        return adopt(self._reactor, descriptor, factory)


class Adopter:
    """
    Gives a descriptor to an endpoint that wants to listen; else it is the reactor.

    :param share: As for `adopt`.
    """

    def __init__(self, reactor: Any, descriptor: int, share: Share | None = None) -> None:
        self._reactor = reactor
        self._descriptor = descriptor
        self._share = share

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def _adopt(self, factory: Any) -> Any:
        return adopt(self._reactor, self._descriptor, factory, self._share)

    def listenTCP(self, port: int, factory: Any, *options: Any, **named: Any) -> Any:
        """
        Listen on the descriptor.
        """
        return self._adopt(factory)

    def listenUNIX(self, address: str, factory: Any, *options: Any, **named: Any) -> Any:
        """
        Listen on the descriptor.
        """
        return self._adopt(factory)

    def open_socket_file(self, file: SocketFile, factory: Any) -> Any:
        """
        Listen on the descriptor.
        """
        return self._adopt(factory)

    def listenSSL(
        self, port: int, factory: Any, contextFactory: Any, *options: Any, **named: Any
    ) -> Any:
        """
        Listen on the descriptor, with TLS.
        """
        # Not at the top: pyOpenSSL is there for those who use TLS alone.
        from twisted.protocols.tls import TLSMemoryBIOFactory

        return self._adopt(TLSMemoryBIOFactory(contextFactory, False, factory))

    def adoptStreamPort(self, descriptor: int, family: int, factory: Any) -> Any:
        """
        Listen on the descriptor.
        """
        return self._adopt(factory)


def open_port(
    reactor: Any,
    spec: str,
    factory: Any = None,
    *,
    mode: int | None = None,
    owner: int | None = None,
    group: int | None = None,
) -> Any:
    """
    Listen where an address says, as `server_endpoint` reads it.

    :param factory: Builds the connections; without one none is taken, as for a socket that other
        processes share.
    :param mode: Permissions of a UNIX socket, where the address says nothing of them.
    :param owner: Its owner, likewise; ``None`` to leave it.
    :param group: Its group, likewise.
    :return: The port.
    :raises CannotListenError: when that cannot be.
    :raises ValueError: if it is not an address.
    """
    endpoint = server_endpoint(Opener(reactor, mode, owner, group), spec)
    results: list[Any] = []
    endpoint.listen(ServerFactory() if factory is None else factory).addBoth(results.append)
    if not results:
        raise ValueError(f"{spec!r} cannot be listened on at once, expected a port or a path")
    if hasattr(results[0], "raiseException"):
        results[0].raiseException()
    port = results[0]
    if factory is None:
        port.stopReading()
    return port


def close_port(port: Any) -> Deferred[None]:
    """
    Take no more connections.

    :return: A Deferred that fires when the port is closed. It does not fail: a socket that cannot
        be removed, for one, is logged, and keeps nobody from coming to an end.
    """
    # A port that is closed does not know any more where it was.
    where = port.getHost() if hasattr(port, "getHost") else port
    closed: Deferred[Any] = maybeDeferred(port.stopListening)
    return closed.addCallbacks(lambda _: None, partial(_not_closed, where))


def _not_closed(where: object, failure: Failure) -> None:
    _log.warn(
        "{where} could not be closed: {error}",
        where=where,
        error=failure.getErrorMessage(),
    )


def _system_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def _taken(path: str) -> CannotListenError:
    return CannotListenError(None, path, _system_error(errno.EADDRINUSE))


def _remove_stale(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise _taken(path)
    except FileNotFoundError:
        folder = os.path.dirname(path) or "."
        if not os.path.isdir(folder):
            raise CannotListenError(None, path, _system_error(errno.ENOENT)) from None
        return
    except OSError as error:
        raise CannotListenError(None, path, error) from None
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.settimeout(1)
            probe.connect(path)
        except ConnectionRefusedError:
            _log.info("Removing {path}, on which no process listens", path=path)
            os.unlink(path)
        except OSError as error:
            raise CannotListenError(None, path, error) from None
        else:
            raise _taken(path)
