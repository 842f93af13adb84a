"""
Which callbacks take long: those go to a thread at once, the others are called where the loop is.
"""

from __future__ import annotations

from typing import Final

__all__ = ["Pace"]

#: Seconds: what takes less is cheaper to wait for than to hand to a thread.
_QUICK: Final = 0.001
#: So many quick calls in a row make a callback that was slow a quick one.
_PROBATION: Final = 50


class Pace:
    """
    What has been seen of the callbacks of one program.

    :ivar slow: The stages whose callbacks take long, with how many quick calls they have to go.
    """

    def __init__(self) -> None:
        self.slow: dict[str, int] = {}

    def note(self, stage: str, seconds: float | None) -> None:
        """
        Take note of a call.

        :param seconds: How long it took; ``None`` when it was too long to wait for.
        """
        if seconds is None or seconds > _QUICK:
            self.slow[stage] = _PROBATION
            return
        left = self.slow.get(stage, 1) - 1
        if left > 0:
            self.slow[stage] = left
        else:
            self.slow.pop(stage, None)
