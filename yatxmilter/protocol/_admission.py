"""
Who may connect, and how often; and telling of those who may not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any, Final

from twisted.internet.address import UNIXAddress
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from yatxmilter._options import count_option

__all__ = ["Admission", "Refusals"]

_log = Logger()

# Seconds for which refusals are counted before they are told.
_PERIOD: Final = 60.0


def _host(address: object) -> str:
    # UNIX sockets have no host: who may connect there is the file's permissions' matter.
    host = getattr(address, "host", None) or ""
    # A socket for both kinds shows an IPv4 peer as ::ffff:192.0.2.1.
    mapped = host.lower().removeprefix("::ffff:")
    return mapped if "." in mapped else host


class Admission:
    """
    Decides about connections that come, and counts those that are there.

    :param allow: Networks, as ``ipaddress`` spells them, that TCP connections may come from;
        ``None`` for any. UNIX sockets are not concerned.
    :param max_connections: How many connections there may be at once.
    :param max_connections_per_peer: How many from one IP address.
    :raises ValueError: for a network that is none, or a number out of range.
    :ivar count: How many connections there are.
    """

    def __init__(
        self,
        allow: Iterable[str] | None,
        max_connections: int | None,
        max_connections_per_peer: int | None,
    ) -> None:
        if isinstance(allow, (str, bytes)) or not (allow is None or isinstance(allow, Iterable)):
            raise TypeError(f"allow is {allow!r}, expected a list of networks")
        self.networks = None if allow is None else [_network(one) for one in allow]
        self.most = count_option("max_connections", max_connections)
        self.most_per_peer = count_option("max_connections_per_peer", max_connections_per_peer)
        self.count = 0
        self._limited = (allow, max_connections, max_connections_per_peer) != (None, None, None)
        # Counted only where it matters.
        self._by_peer: Counter[str] = Counter()

    def refusal(self, address: object) -> str | None:
        """
        Tell why a connection from an address may not come; ``None`` if it may.
        """
        if not self._limited:
            return None
        host = _host(address)
        if self.networks is not None and not self._is_allowed(address, host):
            return "its address is not allowed"
        if self.most is not None and self.count >= self.most:
            return f"there are {self.most} connections already"
        if self.most_per_peer is not None and host and self._by_peer[host] >= self.most_per_peer:
            return f"there are {self.most_per_peer} connections from there already"
        return None

    def _is_allowed(self, address: object, host: str) -> bool:
        if not host:
            return isinstance(address, UNIXAddress)
        try:
            ip = ip_address(host.partition("%")[0])
        except ValueError:
            return False
        return any(ip in network for network in self.networks or ())

    def enter(self, address: object) -> None:
        """
        Count a connection that has come.
        """
        self.count += 1
        if self.most_per_peer is not None:
            self._by_peer[_host(address)] += 1

    def leave(self, address: object) -> None:
        """
        Count a connection that has gone.
        """
        self.count -= 1
        if self.most_per_peer is not None:
            host = _host(address)
            self._by_peer[host] -= 1
            if not self._by_peer[host]:
                del self._by_peer[host]


class Refusals:
    """
    Tells of refused connections: of the first at once, of those that follow how many there were,
    once a minute, so that nobody fills the log by knocking.

    :param clock: Gives what keeps time; not asked before there is something to count.
    """

    def __init__(self, clock: Callable[[], IReactorTime]) -> None:
        self._clock = clock
        self._timer: IDelayedCall | None = None
        self._since = 0.0
        # By reason, how many have not been told, and where the last came from.
        self._untold: dict[str, tuple[int, str]] = {}

    def add(self, mta: str, refusal: str) -> None:
        """
        Take note of one.

        :param mta: Where it came from.
        :param refusal: Why it is refused.
        """
        if refusal in self._untold:
            self._untold[refusal] = self._untold[refusal][0] + 1, mta
            return
        self._untold[refusal] = 0, mta
        _log.warn("Refusing the connection from {mta}: {refusal}", mta=mta, refusal=refusal)
        if self._timer is None:
            self._count_on()

    def _count_on(self) -> None:
        clock = self._clock()
        self._since = clock.seconds()
        self._timer = clock.callLater(_PERIOD, self._tell)

    def _tell(self) -> None:
        self._timer = None
        seconds = self._clock().seconds() - self._since
        untold, self._untold = self._untold, {}
        for refusal, (count, mta) in untold.items():
            if count:
                _log.warn(
                    "Refused {count} more connections in {seconds:.0f} seconds, the last from"
                    " {mta}: {refusal}",
                    count=count,
                    seconds=seconds,
                    mta=mta,
                    refusal=refusal,
                )
                self._untold[refusal] = 0, mta
        if self._untold:
            self._count_on()

    def flush(self) -> None:
        """
        Tell what has not been told, and begin anew.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._tell()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._untold.clear()


def _network(value: Any) -> IPv4Network | IPv6Network:
    if not isinstance(value, (str, IPv4Network, IPv6Network)):
        raise TypeError(f"allow has {value!r}, expected a network as a string")
    try:
        return ip_network(value)
    except ValueError as error:
        raise ValueError(f"allow has {value!r}, which is not a network: {error}") from None
