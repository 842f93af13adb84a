"""
Milters that run elsewhere, as members of the list of milters.
"""

from yatxmilter.remote._factory import (
    RemoteMilter,
    RemoteMilterFactory,
)

__all__ = [
    "RemoteMilter",
    "RemoteMilterFactory",
]
