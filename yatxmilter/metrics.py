"""
What a server of milters counts: `MilterMetrics`.
"""

from yatxmilter.service._metrics import (
    MilterMetrics,
    merge,
)

__all__ = [
    "MilterMetrics",
    "merge",
]
