"""
Two families of error: the MTA's fault and the milter's fault.

A `ProtocolError` ends the connection, as libmilter ends it. A `UsageError` is raised in the
milter's own stack, at the line that asked for something illegal, where libmilter's functions
answer ``MI_FAILURE``.
"""

from __future__ import annotations

__all__ = [
    "LimitExceeded",
    "MilterError",
    "NegotiationError",
    "NotNegotiated",
    "NotOnce",
    "PeerError",
    "ProtocolError",
    "ReturnCodeError",
    "StartError",
    "UsageError",
    "ValueNotSendable",
    "WrongReactor",
    "WrongStage",
    "WrongThread",
]


class MilterError(Exception):
    """
    Base of all errors of this package.

    :ivar kind: What kind of error it is, in a word, as `IMilterObserver` is told it.
    """

    kind: str = "error"


class ProtocolError(MilterError):
    """
    The peer sent something that the milter protocol does not allow.

    :param kind: ``"protocol"``, or ``"macros"`` for more macros than are taken.
    """

    def __init__(self, message: str = "", kind: str = "protocol") -> None:
        super().__init__(message)
        self.kind = kind


class PeerError(MilterError):
    """
    The milter that a client talks to answered wrongly, or went away before it had answered.
    """


class StartError(MilterError):
    """
    A milter factory's ``start()`` failed, or did not come to its end in time.
    """


class NegotiationError(MilterError):
    """
    A milter's request and the MTA's offer do not go together; the connection is closed.
    """

    kind = "negotiation"


class UsageError(MilterError):
    """
    A milter asked for something illegal; libmilter would answer ``MI_FAILURE``.
    """


class NotNegotiated(UsageError):
    """
    A modification action whose ``SMFIF_*`` flag is not in the agreement.
    """


class WrongReactor(UsageError, RuntimeError):
    """
    A milter used asyncio under a reactor that is not asyncio's.
    """


class WrongStage(UsageError):
    """
    A function was called in a callback, or at a time, where it has no effect.
    """


class WrongThread(UsageError):
    """
    A function was called in another thread than the connection's own, which is the reactor's.
    """


class ValueNotSendable(UsageError, ValueError):
    """
    An argument that the protocol, or SMTP behind it, cannot carry.
    """


class LimitExceeded(UsageError):
    """
    More than an option of the server allows: of what a milter makes, or of what is kept for it.
    """

    kind = "limit"


class ReturnCodeError(UsageError):
    """
    A callback returned something that is not legal at its stage.
    """

    kind = "return_code"


class NotOnce(UsageError, LookupError):
    """
    A header field that was to be in the message once is not there, or is there several times.
    """
