"""
The milter protocol of Sendmail and Postfix in pure Python, as a Twisted protocol.

Subclass `Milter`, and listen with a `MilterProtocolFactory`.
"""

from yatxmilter._engine.on_error import DISCONNECT, Reply
from yatxmilter._mail.esmtp import parse_esmtp
from yatxmilter.defaults import (
    Milter,
    MilterFactory,
    leading_space,
    noreply,
    rejected_recipients,
    symlist,
    threaded,
)
from yatxmilter.protocol import MilterProtocol, MilterProtocolFactory

__version__ = "1.0.0"

__all__ = [
    "DISCONNECT",
    "Milter",
    "MilterFactory",
    "MilterProtocol",
    "MilterProtocolFactory",
    "Reply",
    "leading_space",
    "noreply",
    "parse_esmtp",
    "rejected_recipients",
    "symlist",
    "threaded",
]
