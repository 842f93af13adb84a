"""
The benchmark's milter on yatxmilter in ``BENCH_WORKERS`` processes, which share one socket.

It says ``ready`` when all of them take connections.
"""

# ruff: noqa: D103

from __future__ import annotations

import sys

import settings
from twisted.internet import reactor

from yatxmilter.workers import WorkerService


def ready() -> None:
    print("ready", flush=True)


def said(number: int, line: str) -> None:
    print(f"worker {number}: {line}", file=sys.stderr, flush=True)


def main() -> None:
    service = WorkerService(
        settings.LISTEN, "ours:make_factory", count=settings.WORKERS, ready=ready, said=said
    )
    reactor.callWhenRunning(service.startService)
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    reactor.run()


if __name__ == "__main__":
    main()
