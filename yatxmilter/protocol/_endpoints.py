"""
Where a milter listens, written as libmilter, the MTAs or Twisted write it.

`client_endpoint` and `server_endpoint` read the same addresses for the two ends. Words that are
libmilter's (``inet``, ``inet6``, ``local``, a bare path) are read here; everything else is an
endpoint string of Twisted. What can be said of an address without a reactor is said when it is
read, by a ValueError that names it.
"""

from __future__ import annotations

import difflib
import os
import re
import socket
from typing import Any, Final, NamedTuple

from twisted.internet import endpoints
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred, execute
from twisted.internet.interfaces import (
    IReactorPluggableNameResolver,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from twisted.internet.protocol import Factory, Protocol
from zope.interface import implementer

from yatxmilter.protocol._socket_file import SocketFile, find_group, find_user, open_socket_file

__all__ = [
    "check_client_spec",
    "client_endpoint",
    "parse_address",
    "refusing_endpoint",
    "server_endpoint",
]

# What the system calls an int.
_MAX_BACKLOG: Final = 0x7FFFFFFF

# Twisted's endpoints are not annotated.
_make: Final[Any] = endpoints

_EXPECTED: Final = (
    "expected inet:port@host, inet6:port@host, unix:/path, local:/path, /path or a Twisted endpoint"
)
# How Postfix writes it, with the host first.
_POSTFIX: Final = re.compile(r"(\[[^\]@]*\]|[^\[\]:@]+):([^:@]+)")
# sizeof(sun_path) less the closing NUL.
_MAX_UNIX_PATH: Final = 107


class _Inet(NamedTuple):
    """
    An address of libmilter's ``inet`` or ``inet6``; without a host it is empty.
    """

    kind: str
    host: str
    port: int


class _Path(NamedTuple):
    """
    A UNIX socket.
    """

    path: str


def client_endpoint(reactor: Any, spec: str, *, timeout: float = 30) -> IStreamClientEndpoint:
    """
    Make the endpoint by which to connect to a milter; without a host, on this machine.

    :param spec: ``inet:port@host``, ``inet6:port@host``, ``unix:/path``, ``local:/path``, ``/path``
        or a client endpoint of Twisted, such as ``tcp:host:port``.
    :param timeout: Seconds after which a connection that is not there will not come; a Twisted
        endpoint says so by itself.
    :raises ValueError: when it is none of these.
    """
    address = _read(spec)
    endpoint: IStreamClientEndpoint
    if isinstance(address, _Path):
        endpoint = _make.UNIXClientEndpoint(reactor, address.path, timeout=timeout)
    elif isinstance(address, _Inet):
        if not address.port:
            raise ValueError(f"{spec!r} is not an address to connect to: port 0")
        inet = address.kind == "inet"
        kind = _make.TCP4ClientEndpoint if inet else _make.TCP6ClientEndpoint
        host = address.host or ("127.0.0.1" if inet else "::1")
        endpoint = kind(reactor, host, address.port, timeout=timeout)
    else:
        endpoint = _from_twisted(_make.clientFromString, reactor, spec)
    return endpoint


def server_endpoint(reactor: Any, spec: str, *, backlog: int = 50) -> IStreamServerEndpoint:
    """
    Make the endpoint on which a milter listens; without a host, on all addresses.

    A UNIX socket that a dead process has left behind is taken over. Its owner and group may
    connect, unless the address says otherwise.

    :param spec: As for `client_endpoint`; ``unix:/path:mode=660:owner=milter:group=postfix``, any
        of these options; or a server endpoint of Twisted, such as
        ``tcp:8891:interface=127.0.0.1``.
    :param backlog: How many connections may wait; a Twisted endpoint says so by itself.
    :raises ValueError: when it is none of these.
    """
    address = _read(spec)
    endpoint: IStreamServerEndpoint
    if isinstance(address, _Path):
        endpoint = _SocketFileEndpoint(reactor, SocketFile(address.path, backlog))
    elif address is None and spec.startswith("unix:"):
        endpoint = _SocketFileEndpoint(reactor, _read_socket_file(spec))
    elif isinstance(address, _Inet):
        inet = address.kind == "inet"
        kind = _make.TCP4ServerEndpoint if inet else _make.TCP6ServerEndpoint
        host = address.host or ("" if inet else "::")
        endpoint = kind(reactor, address.port, backlog, host)
    else:
        endpoint = refusing_endpoint(_from_twisted(_make.serverFromString, reactor, spec))
    return endpoint


def refusing_endpoint(endpoint: IStreamServerEndpoint) -> IStreamServerEndpoint:
    """
    Have an endpoint close the connections that a factory refuses, whatever is between the two.

    What Twisted puts around a factory, for TLS or HAProxy's protocol, takes a refusal for a
    protocol: it fails, and the connection stays open for as long as the peer likes.
    """
    return endpoint if isinstance(endpoint, _PLAIN) else _WrappingEndpoint(endpoint)


class _Refused(Protocol):
    """
    A connection that is refused.
    """

    transport: Any

    def connectionMade(self) -> None:
        """
        End it.
        """
        self.transport.abortConnection()


class _Refusing(Factory):
    """
    Builds what another factory builds, and for those that it refuses what closes them.
    """

    noisy = False

    def __init__(self, factory: Any) -> None:
        self._factory = factory

    def doStart(self) -> None:
        """
        Begin.
        """
        self._factory.doStart()

    def doStop(self) -> None:
        """
        Come to an end.
        """
        self._factory.doStop()

    def buildProtocol(self, addr: Any) -> Any:
        """
        Build a connection.
        """
        protocol = self._factory.buildProtocol(addr)
        return _Refused() if protocol is None else protocol


@implementer(IStreamServerEndpoint)
class _WrappingEndpoint:
    """
    Listens on an endpoint that may have something around the factory.
    """

    def __init__(self, endpoint: IStreamServerEndpoint) -> None:
        self._endpoint = endpoint

    def listen(self, protocolFactory: Any) -> Deferred[Any]:
        """
        Listen.
        """
        listening: Deferred[Any] = self._endpoint.listen(_Refusing(protocolFactory))
        return listening


@implementer(IStreamServerEndpoint)
class _SocketFileEndpoint:
    """
    Listens on a UNIX socket.
    """

    def __init__(self, reactor: Any, file: SocketFile) -> None:
        self._reactor = reactor
        self._file = file

    def listen(self, protocolFactory: Any) -> Deferred[Any]:
        """
        Listen.
        """
        # Where sockets are shared, or their owners are known, somebody else opens them.
        own = getattr(self._reactor, "open_socket_file", None)
        if own is not None:
            return execute(own, self._file, protocolFactory)
        return execute(open_socket_file, self._reactor, self._file, protocolFactory)


#: Those that give the factory to a port as it is.
_PLAIN: Final = (
    *(_make.TCP4ServerEndpoint, _make.TCP6ServerEndpoint, _make.UNIXServerEndpoint),
    *(_make.AdoptedStreamServerEndpoint, _SocketFileEndpoint, _WrappingEndpoint),
)


def check_client_spec(spec: str) -> None:
    """
    Check what `client_endpoint` would be given, before there is a reactor.

    :raises TypeError: for what is no text.
    :raises ValueError: for what is no address.
    """
    client_endpoint(_NoReactor(), spec)


def parse_address(spec: str) -> tuple[int, str | tuple[str, int]]:
    """
    Read an address that is to be listened on without an endpoint.

    :param spec: As for `server_endpoint`, but for the endpoints of Twisted.
    :return: The family of the socket, and what ``bind`` takes.
    :raises ValueError: for what is no such address.
    """
    address = _read(spec)
    if isinstance(address, _Path):
        return socket.AF_UNIX, address.path
    if isinstance(address, _Inet):
        if address.kind == "inet":
            return socket.AF_INET, (address.host, address.port)
        return socket.AF_INET6, (address.host or "::", address.port)
    raise _bad(spec, "")


@implementer(IReactorPluggableNameResolver)
class _NoReactor:
    """
    Stands where endpoints keep their reactor until they connect.
    """

    nameResolver: Any = None

    def installNameResolver(self, resolver: Any) -> Any:
        """
        Do nothing: no name is looked up before there is a reactor.
        """


def _read(spec: str) -> _Inet | _Path | None:
    """
    Read an address; ``None`` for one that is Twisted's.
    """
    if not isinstance(spec, str):
        raise TypeError(f"{spec!r} is not a text; {_EXPECTED}")
    if "\0" in spec:
        raise _bad(spec, ": it has a NUL")
    kind, colon, rest = spec.partition(":")
    if kind in ("inet", "inet6") and colon:
        as_postfix = _POSTFIX.fullmatch(rest)
        if as_postfix is not None:
            host, port = as_postfix.groups()
            # Postfix's inet is for either kind of address.
            if isIPv6Address(host.strip("[]")):
                kind = "inet6"
            return _read_inet(spec, kind, f"{port}@{host}")
        return _read_inet(spec, kind, rest)
    if spec.startswith("/"):
        return _read_path(spec, spec)
    # With options behind it, and so a colon, "unix:" is Twisted's.
    if colon and (kind in ("", "local") or (kind == "unix" and not _has_options(rest))):
        return _read_path(spec, rest)
    return None


def _bad(spec: str, why: str) -> ValueError:
    return ValueError(f"{spec!r} is not a milter's address{why}; {_EXPECTED}")


def _has_options(rest: str) -> bool:
    return ":" in rest or "=" in rest or "\\" in rest


def _read_path(spec: str, path: str) -> _Path:
    if not path:
        raise _bad(spec, ": no path")
    size = len(path.encode("utf-8", "surrogateescape"))
    if size > _MAX_UNIX_PATH:
        raise ValueError(f"{spec!r}: a path of {size} bytes, at most {_MAX_UNIX_PATH} are possible")
    return _Path(path)


_OPTIONS: Final = ("mode", "backlog", "lockfile", "owner", "group")


def _read_socket_file(spec: str) -> SocketFile:
    """
    Read ``unix:`` with options behind the path; a backslash takes a colon's meaning away.
    """
    parts = [re.sub(r"\\(.)", r"\1", part) for part in re.findall(r"(?:[^:\\]|\\.)+", spec)[1:]]
    if not parts:
        raise _bad(spec, ": no path")
    path = _read_path(spec, parts[0].removeprefix("address=")).path
    options: dict[str, Any] = {}
    for part in parts[1:]:
        name, equals, value = part.partition("=")
        if name not in _OPTIONS or not equals or name in options:
            raise _bad(spec, f": {part!r}, expected each of {', '.join(_OPTIONS)} once at most")
        options[name] = value
    mode, backlog = options.get("mode", "666"), options.get("backlog", "50")
    if not re.fullmatch("0?[0-7]{3}", mode, re.ASCII):
        raise _bad(spec, f": mode {mode!r} is not an octal number such as 660")
    if not re.fullmatch("[0-9]{1,9}", backlog) or options.get("lockfile", "1") not in ("0", "1"):
        raise _bad(spec, ": backlog has to be a number, lockfile 0 or 1")
    return SocketFile(
        path,
        int(backlog),
        int(mode, 8) if "mode" in options else None,
        options.get("lockfile", "1") == "1",
        find_user(f"{spec!r}: owner", options["owner"]).pw_uid if "owner" in options else None,
        find_group(f"{spec!r}: group", options["group"]) if "group" in options else None,
    )


def _read_inet(spec: str, kind: str, rest: str) -> _Inet:
    port, at, host = rest.partition("@")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if isIPv6Address(host) if kind == "inet" else isIPAddress(host):
        right = "inet6" if kind == "inet" else "inet"
        raise _bad(spec, f": {host} is an address for {right}, as in {right}:{port}@{host}")
    if (at and not host) or set(host) & set(" \t@[]/"):
        raise _bad(spec, f": no host of {kind}")
    _check_host(spec, host)
    return _Inet(kind, host, _read_port(spec, port))


def _check_host(spec: str, host: str) -> None:
    try:
        host.encode("idna")
    except UnicodeError:
        # Twisted's resolver would leave whoever connects waiting for the time-out.
        raise _bad(spec, f": {host!r} cannot be the name of a host") from None


def _read_port(spec: str, port: str) -> int:
    if port.isascii() and port.isdigit():
        return _check_port(spec, int(port))
    try:
        return socket.getservbyname(port, "tcp")
    except (OSError, UnicodeError):
        raise _bad(spec, f": no port {port!r}") from None


def _check_port(spec: str, port: int) -> int:
    if not 0 <= port <= 0xFFFF:
        raise _bad(spec, f": port {port} is {'below 0' if port < 0 else 'above 65535'}")
    return port


def _check_backlog(spec: str, backlog: int) -> None:
    if not 0 <= backlog <= _MAX_BACKLOG:
        raise _bad(spec, f": backlog {backlog} is not between 0 and {_MAX_BACKLOG}")


def _from_twisted(make: Any, reactor: Any, spec: str) -> Any:
    # The parsers of Twisted raise whatever their constructors do.
    try:
        endpoint = make(reactor, spec)
    except Exception as error:
        raise _bad(spec, _why_not_twisted(spec, error, make is _make.serverFromString)) from error
    # They do not look at these; the system's own complaint comes late, and not as a failure.
    inner = getattr(endpoint, "_wrappedEndpoint", endpoint)
    for name, kind, check in _UNCHECKED:
        value = getattr(inner, name, None)
        if isinstance(value, kind):
            check(spec, value)
    return endpoint


#: What Twisted's endpoints keep as it was given.
_UNCHECKED: Final[Any] = (
    ("_port", int, _check_port),
    ("_backlog", int, _check_backlog),
    ("_host", str, _check_host),
    ("_interface", str, _check_host),
)


def _why_not_twisted(spec: str, error: Exception, serves: bool) -> str:
    kind = spec.partition(":")[0]
    text = str(error)
    if text.startswith("Unknown endpoint type"):
        return _why_not_kind(spec, kind, serves)
    if kind == "systemd":
        return _why_not_systemd(text)
    unexpected = re.search(r"unexpected keyword argument '([^']*)'", text)
    if unexpected is not None:
        name, known = unexpected[1], _OPTIONS_OF.get((kind.lower(), serves), ())
        nearest = difflib.get_close_matches(name, known, 1)
        guess = f", did you mean {nearest[0]!r}?" if nearest else ""
        has = f"; it has {', '.join(known)}" if known and not nearest else ""
        return f": {kind} has no option {name!r}{guess}{has}"
    number = re.search(r"invalid literal for int\(\) with base 10: (.*)", text)
    if number is not None:
        return f": {number[1]} is not a number"
    missing = re.search(r"missing \d+ required positional arguments?: (.*)", text)
    if missing is not None:
        return f": {kind} needs {missing[1]}"
    return f" ({text})"


#: What Twisted's own endpoints take, as their documentation has it.
_OPTIONS_OF: Final = {
    ("tcp", True): ("port", "interface", "backlog"),
    ("tcp", False): ("host", "port", "timeout", "bindAddress"),
    ("unix", False): ("path", "timeout", "lockfile"),
    ("ssl", True): (
        *("port", "interface", "backlog", "privateKey", "certKey", "extraCertChain"),
        *("sslmethod", "dhParameters"),
    ),
}
_KINDS: Final = ("inet", "inet6", "unix", "local", "tcp", "tcp6", "ssl", "tls", "systemd", "fd")


def _why_not_kind(spec: str, kind: str, serves: bool) -> str:
    if kind == "systemd":
        return ": systemd's sockets are listened on, not connected to"
    if spec.isascii() and spec.isdigit():
        return f"; did you mean 'inet:{spec}@127.0.0.1'?"
    nearest = difflib.get_close_matches(kind.lower(), _KINDS, 1)
    if nearest:
        return f": there is no {kind!r}, did you mean {nearest[0]!r}?"
    host, _, port = spec.rpartition(":")
    if port.isascii() and port.isdigit() and host and not set(host) & set(":/@ "):
        return f"; did you mean 'inet:{port}@{host}'?"
    if "/" in spec:
        return "; a path begins with /"
    return f": there is no {kind!r}"


def _why_not_systemd(text: str) -> str:
    if text.startswith("Specify exactly one"):
        return ": say which socket, as systemd:domain=UNIX:index=0 or systemd:domain=UNIX:name=NAME"
    if "has no attribute 'AF_" in text:
        return ": domain has to be UNIX, INET or INET6"
    if "positional argument: 'domain'" in text:
        return ": domain is missing, as in systemd:domain=UNIX:index=0"
    if "unexpected keyword" in text or "invalid literal" in text:
        return ": systemd has the options domain, index (a number) and name"
    if "LISTEN_FDS" not in os.environ:
        return (
            ": systemd gave this process no sockets. Have it started by its .socket unit (systemctl"
            " start NAME.socket), or listen elsewhere"
        )
    return (
        f": systemd gave this process {os.environ['LISTEN_FDS']} sockets, and not that one"
        " (FileDescriptorName= in the .socket unit gives it its name)"
    )
