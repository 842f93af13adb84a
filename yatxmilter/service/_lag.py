"""
How late a reactor is: whatever holds it up holds up every connection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from yatxmilter.protocol._steady_clock import steady

__all__ = ["watch_lag"]

# Seconds between two looks.
_INTERVAL: Final = 1.0


def watch_lag(reactor: Any, told: Callable[[float], None]) -> Callable[[], None]:
    """
    Look each second how much later than asked for a reactor calls.

    :param told: Called with the seconds, each time.
    :return: What ends it.
    """
    clock = steady(reactor)
    timer: Any = None
    due = 0.0

    def look() -> None:
        told(max(clock.seconds() - due, 0.0))
        wait()

    def wait() -> None:
        nonlocal timer, due
        due = clock.seconds() + _INTERVAL
        timer = clock.callLater(_INTERVAL, look)

    def end() -> None:
        if timer.active():
            timer.cancel()

    wait()
    return end
