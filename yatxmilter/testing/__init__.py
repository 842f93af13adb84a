"""
Tests of milters: an MTA in memory, which shows what Postfix or Sendmail would make of a message.

`InMemoryMTA` is for any test framework; with pytest there is the fixture ``milter_mta``, with trial
the mixin `MilterTestMixin`.
"""

from yatxmilter.flavours import Reply
from yatxmilter.testing.answers import Answer, Sent
from yatxmilter.testing.mta import InMemoryMTA
from yatxmilter.testing.session import Session
from yatxmilter.testing.trial import MilterTestMixin
from yatxmilter.testing.values import Call, Delivered, Path
from yatxmilter.testing.watching import MilterTestFailure

__all__ = [
    "Answer",
    "Call",
    "Delivered",
    "InMemoryMTA",
    "MilterTestFailure",
    "MilterTestMixin",
    "Path",
    "Reply",
    "Sent",
    "Session",
]
