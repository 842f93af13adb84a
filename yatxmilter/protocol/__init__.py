"""
The milter's side as Twisted protocol and factory.
"""

from yatxmilter._engine.context import Context
from yatxmilter.protocol._factory import (
    MilterProtocol,
    MilterProtocolFactory,
)

__all__ = [
    "Context",
    "MilterProtocol",
    "MilterProtocolFactory",
]
