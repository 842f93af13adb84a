"""
Tests of milters: an MTA in memory, which shows what Postfix or Sendmail would make of a message.

`InMemoryMTA` is for any test framework; with pytest there is the fixture ``milter_mta``, with trial
the mixin `MilterTestMixin`.
"""

from yatxmilter.client._profiles import Reply
from yatxmilter.testing._answers import Answer, Sent
from yatxmilter.testing._mta import InMemoryMTA
from yatxmilter.testing._replaying import Replayed
from yatxmilter.testing._session import Session
from yatxmilter.testing._trial import MilterTestMixin
from yatxmilter.testing._values import Call, Delivered, Path
from yatxmilter.testing._watching import MilterTestFailure

__all__ = [
    "Answer",
    "Call",
    "Delivered",
    "InMemoryMTA",
    "MilterTestFailure",
    "MilterTestMixin",
    "Path",
    "Replayed",
    "Reply",
    "Sent",
    "Session",
]
