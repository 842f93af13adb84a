"""
Reactors that come to an end while threads still want to wake them up.
"""

from __future__ import annotations

import threading
from typing import Any

__all__ = ["close_reactor", "guard"]


def guard(reactor: Any) -> Any:
    """
    Have a reactor not woken up any more once it is closed.

    To wake it is to write to a descriptor, which may be another file's by then.
    """
    wake = reactor.wakeUp
    # A signal may come, and want to wake it, while that is being done in the same thread.
    reactor.closing = threading.RLock()

    def wake_up() -> None:
        with reactor.closing:
            if reactor.waker is not None:
                wake()

    reactor.wakeUp = wake_up
    return reactor


def close_reactor(reactor: Any) -> None:
    """
    Give back the descriptors of a guarded reactor that runs no more.
    """
    with reactor.closing:
        reactor.waker = None
    for reader in list(reactor._internalReaders):
        reactor._internalReaders.discard(reader)
        reactor.removeReader(reader)
        reader.connectionLost(None)
    # An ``epoll`` is a descriptor, too; the other reactors have none.
    close: Any = getattr(getattr(reactor, "_poller", None), "close", None)
    if close is not None:
        close()
