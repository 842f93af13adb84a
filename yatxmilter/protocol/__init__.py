"""
The milter's side as Twisted protocol and factory.
"""

from yatxmilter.protocol._factory import (
    MilterProtocol,
    MilterProtocolFactory,
)

__all__ = [
    "MilterProtocol",
    "MilterProtocolFactory",
]
