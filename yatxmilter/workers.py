"""
Several processes that share listening sockets, and one that watches over them.
"""

from yatxmilter.service._workers import (
    WorkerService,
)

__all__ = [
    "WorkerService",
]
