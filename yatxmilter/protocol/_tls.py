"""
What is different about a connection over TLS: it begins with a handshake, and it can fail.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.error import ConnectionClosed
from twisted.internet.interfaces import INegotiated, ISSLTransport
from twisted.python.failure import Failure

from yatxmilter._escaping import printable

__all__ = ["announces_handshake", "is_tls", "tls_failure"]


def is_tls(transport: Any) -> bool:
    """
    Tell whether a connection is one over TLS, also where a wrapper is around it.
    """
    return bool(ISSLTransport.providedBy(transport))


def announces_handshake(transport: Any) -> bool:
    """
    Tell whether a connection says when its handshake is over; where a wrapper is around it, it
    tells that to the wrapper.
    """
    return bool(INegotiated.implementedBy(type(transport)))


def tls_failure(transport: Any, reason: Failure) -> str | None:
    """
    Say what has failed in TLS; ``None`` for a connection that was closed, or simply lost.

    :param reason: As ``connectionLost`` gets it.
    """
    if not is_tls(transport):
        return None
    error: Any = reason.value
    if isinstance(error, ConnectionClosed):
        return None
    # OpenSSL's has a list of library, function and reason each; that of a wrong name has another.
    details = error.args[0] if error.args and isinstance(error.args[0], list) else []
    reasons = [str(one[-1]) for one in details if isinstance(one, tuple)]
    return printable("; ".join(reasons) or str(error)) or type(error).__name__
