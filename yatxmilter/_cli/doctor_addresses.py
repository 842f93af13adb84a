"""
The addresses of milters as the two MTAs spell them.

What is no address is told as the MTA takes it, and with the spelling that was meant, where that can
be seen. All of it was seen with Postfix 3.7 and Sendmail 8.17.
"""

from __future__ import annotations

import re
import socket
from typing import Final

from twisted.internet.abstract import isIPAddress, isIPv6Address

from yatxmilter._cli.doctor_findings import MAX_UNIX_PATH, InetAddress, Misspelt

__all__ = ["postfix_address", "sendmail_address"]

_NO_SMTPD: Final = "smtpd ends at the first connection, and no mail comes in"
_UNUSABLE: Final = "mail gets what milter_default_action says"
_NO_START: Final = "Sendmail does not start with it"


def postfix_address(text: str, protocols: frozenset[str] = frozenset({"all"})) -> InetAddress | str:
    """
    Read an address in Postfix's spelling: ``inet:host:port`` or ``unix:path``.

    :param protocols: The words of ``inet_protocols``.
    :return: A TCP address, or the path of a UNIX socket.
    :raises Misspelt: with what is wrong.
    """
    kind, _, endpoint = text.partition(":")
    if text[:1] in "\"'":
        raise Misspelt(
            f"{text} has quotes, which are part of the address for Postfix; {_UNUSABLE}",
            f"write {text.strip(chr(34) + chr(39))}",
        )
    if kind in ("unix", "local") and endpoint:
        return _socket_path(text, endpoint)
    if kind == "inet" and endpoint:
        return _postfix_inet(text, endpoint, protocols)
    if kind == "inet6":
        raise Misspelt(
            f"{text}: Postfix has no transport inet6; {_UNUSABLE}",
            f"write {_as_postfix(endpoint)}",
        )
    if not endpoint:
        meant = f"unix:{text}" if text.startswith("/") else "inet:host:port or unix:path"
        raise Misspelt(f"{text}: Postfix needs transport:endpoint; {_UNUSABLE}", f"write {meant}")
    raise Misspelt(
        f"{text}: Postfix knows the transports inet and unix, and not {kind}; {_UNUSABLE}",
        f"write {_as_postfix(text)}" if _is_port(endpoint) else "write inet:host:port or unix:path",
    )


def _postfix_inet(text: str, endpoint: str, protocols: frozenset[str]) -> InetAddress:
    matched = re.fullmatch(
        r"\[(?P<v6>[^\]]*)\]:(?P<p1>[^:]+)|(?:(?P<host>[^:]*):)?(?P<p2>[^:]+)", endpoint
    )
    if matched is None or "@" in endpoint:
        why = "is Sendmail's spelling" if "@" in endpoint else "has no host:port that can be read"
        raise Misspelt(f"{text} {why}; {_NO_SMTPD}", f"write {_as_postfix(endpoint)}")
    host = matched["v6"] if matched["v6"] is not None else (matched["host"] or "")
    port = matched["p1"] or matched["p2"]
    if matched["host"] is None and matched["v6"] is None and isIPAddress(port):
        raise Misspelt(f"{text} has no port; {_NO_SMTPD}", f"write {text}:port")
    if isIPv6Address(host) and not protocols & {"all", "ipv6"}:
        raise Misspelt(
            f"{text} is an IPv6 address, and inet_protocols has no ipv6; {_UNUSABLE}",
            "add ipv6 to inet_protocols, or let the milter listen on an IPv4 address",
        )
    if isIPAddress(host) and not protocols & {"all", "ipv4"}:
        raise Misspelt(
            f"{text} is an IPv4 address, and inet_protocols has no ipv4; {_UNUSABLE}",
            "add ipv4 to inet_protocols, or let the milter listen on an IPv6 address",
        )
    family = {frozenset({"ipv4"}): "inet", frozenset({"ipv6"}): "inet6"}.get(protocols, "")
    return InetAddress(host, _port(text, port), family)


def _as_postfix(endpoint: str) -> str:
    """
    Spell what may be an endpoint of libmilter, or one without transport, as Postfix would.
    """
    port, at, host = endpoint.partition("@")
    if not at and _is_port(endpoint.rpartition(":")[2]):
        host, _, port = endpoint.rpartition(":")
    if not _is_port(port) or not host:
        return "inet:host:port"
    host = host.strip("[]")
    return f"inet:[{host}]:{port}" if isIPv6Address(host) else f"inet:{host}:{port}"


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit()


def sendmail_address(text: str) -> InetAddress | str:
    """
    Read an address in Sendmail's spelling: ``inet:port@host``, ``inet6:port@host`` or a path.

    :return: A TCP address, or the path of a UNIX socket.
    :raises Misspelt: with what is wrong.
    """
    kind, colon, endpoint = text.partition(":")
    if not colon:
        # Without a type it is a path.
        kind, endpoint = "local", text
    if kind in ("unix", "local"):
        if not endpoint.startswith("/"):
            raise Misspelt(
                f"S={text}: the path of the socket does not begin with a slash, and Sendmail looks"
                " for it in whatever folder it is in",
                "write S=local:/path",
            )
        return _socket_path(text, endpoint)
    if kind not in ("inet", "inet6"):
        raise Misspelt(
            f"S={text}: Sendmail knows the socket types inet, inet6, local and unix, and not"
            f" {kind}; {_NO_START}",
            "write S=inet:port@host or S=local:/path",
        )
    port, at, host = endpoint.partition("@")
    if not at or not host:
        swapped = re.fullmatch(r"\[?(.+?)\]?:(\d+)", endpoint)
        meant = f"{swapped[2]}@{swapped[1]}" if swapped else "port@host"
        why = "is Postfix's spelling" if swapped else "has no port@host"
        raise Misspelt(f"S={text} {why}; {_NO_START}", f"write S={kind}:{meant}")
    if " " in host or "\t" in host:
        raise Misspelt(
            f"S={text}: a blank in the host, where a comma may be missing; {_NO_START}",
            "put a comma between S=, F= and T=",
        )
    host = host.removeprefix("[").removesuffix("]")
    other = isIPv6Address(host) if kind == "inet" else isIPAddress(host)
    if other:
        raise Misspelt(
            f"S={text}: {host} is not an address of {kind}; {_NO_START}",
            f"write S={'inet6' if kind == 'inet' else 'inet'}:{port}@{host}",
        )
    return InetAddress(host, _port(text, port), kind)


def _socket_path(text: str, path: str) -> str:
    size = len(path.encode("utf-8", "surrogateescape"))
    if size > MAX_UNIX_PATH:
        raise Misspelt(
            f"{text}: the path has {size} bytes, and a UNIX socket's can have {MAX_UNIX_PATH}",
            "let the milter listen at a shorter path",
        )
    return path


def _port(text: str, port: str) -> int:
    if _is_port(port):
        number = int(port)
        if not 0 < number <= 0xFFFF:
            raise Misspelt(
                f"{text}: port {port} is not between 1 and 65535, and some other port is taken",
                "write the port at which the milter listens",
            )
        return number
    try:
        return socket.getservbyname(port, "tcp")
    except (OSError, UnicodeError):
        raise Misspelt(
            f"{text}: {port} is not a port, and not the name of one on this machine",
            "write the port as a number",
        ) from None
