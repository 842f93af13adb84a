"""
A milter as a service of ``twisted.application``, and as a program: it listens, and when it is
stopped it drains.
"""

from yatxmilter.service._service import (
    MilterService,
    run_milters,
)

__all__ = [
    "MilterService",
    "run_milters",
]
