"""
The macros that an SMTP server has for milters, by the names that MTAs give them.
"""

from __future__ import annotations

from typing import Any, Final

from yatxmilter._mail.controls import CONTROLS
from yatxmilter._wire.payloads import from_text, to_text

__all__ = ["AUTH_NAMES", "auth_values", "connect_values", "tls_values"]

#: What it says it is; `Chain` takes what does not begin with a number for a server like Postfix.
_SOFTWARE: Final = "yatxmilter"

#: The macros of a client that has logged in.
AUTH_NAMES: Final = ("auth_type", "auth_authen")


def connect_values(transport: Any, host: str, name: str, daemon_name: str) -> dict[str, str]:
    """
    Give what is known from the beginning of a connection.

    :param host: This server's name.
    :param name: The client's name.
    :param daemon_name: What this service is called.
    """
    peer, here = transport.getPeer(), transport.getHost()
    address = getattr(peer, "host", "unknown")
    values = {
        "j": host,
        "v": _SOFTWARE,
        "_": f"{name} [{address}]",
        "daemon_name": daemon_name,
        "client_name": name,
        "client_addr": address,
    }
    for key, value in (
        ("client_port", getattr(peer, "port", None)),
        ("daemon_addr", getattr(here, "host", None)),
        ("daemon_port", getattr(here, "port", None)),
    ):
        if value is not None:
            values[key] = str(value)
    return values


def auth_values(mechanism: bytes, credentials: Any) -> dict[str, str]:
    """
    Give what is known of a client that has logged in.

    :param credentials: What `twisted.cred` was given; those of ESMTP's mechanisms have a name.
    """
    values = {"auth_type": to_text(mechanism.upper())}
    username = getattr(credentials, "username", None)
    if username is not None:
        raw = from_text(username) if isinstance(username, str) else username
        # A client chooses it, where the portal lets it in.
        values["auth_authen"] = to_text(CONTROLS.sub(b"?", raw))
    return values


def tls_values(transport: Any) -> dict[str, str]:
    """
    Give what is known of a TLS connection: nothing of one in the clear.
    """
    # A connection that began in the clear has TLS between itself and its protocol.
    layer: Any
    for layer in (transport, getattr(transport, "protocol", None)):
        handle: Any = layer.getHandle() if hasattr(layer, "getHandle") else None
        if hasattr(handle, "get_cipher_name"):
            return {
                "tls_version": handle.get_protocol_version_name(),
                "cipher": handle.get_cipher_name() or "",
                "cipher_bits": str(handle.get_cipher_bits() or ""),
            }
    return {}
