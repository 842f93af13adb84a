"""
Milters that run elsewhere, as members of the list of milters.
"""

from yatxmilter.remote._factory import (
    AddressState,
    RemoteMilter,
    RemoteMilterFactory,
)

__all__ = [
    "AddressState",
    "RemoteMilter",
    "RemoteMilterFactory",
]
