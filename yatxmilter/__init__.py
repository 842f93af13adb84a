"""
The milter protocol of Sendmail and Postfix in pure Python, as a Twisted protocol.

Subclass `Milter`, and listen with a `MilterProtocolFactory`.
"""

from yatxmilter._engine.on_error import DISCONNECT, Reply
from yatxmilter.defaults import Milter, MilterFactory, noreply
from yatxmilter.protocol import MilterProtocol, MilterProtocolFactory

__version__ = "1.0.0"

__all__ = [
    "DISCONNECT",
    "Milter",
    "MilterFactory",
    "MilterProtocol",
    "MilterProtocolFactory",
    "Reply",
    "noreply",
]
