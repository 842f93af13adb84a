"""
How the cost of work grows with its size: the measure of every entry that takes a stranger's text.

CPU time of this process is measured, never compared with a limit: the time of ``4 * n`` is compared
with the time of ``n``. Linear work gives 4, quadratic work 16.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable

#: How many times dearer four times the work may be.
MOST = 8.0

# Below this, the clock and the rest of the machine decide.
_WORTH_MEASURING = 0.01


def cost(work: Callable[[], object], rounds: int = 2) -> float:
    """
    Measure the CPU seconds of a piece of work: the least of some rounds.
    """
    least = float("inf")
    for _ in range(rounds):
        gc.collect()
        gc.disable()
        try:
            start = time.process_time()
            work()
            least = min(least, time.process_time() - start)
        finally:
            gc.enable()
    return least


def traced() -> bool:
    """
    Tell whether something looks on at each line.
    """
    # From Python 3.12 on there is another way for it.
    monitoring = getattr(sys, "monitoring", None)
    return sys.gettrace() is not None or (
        monitoring is not None and monitoring.get_tool(monitoring.COVERAGE_ID) is not None
    )


def growth(prepare: Callable[[int], Callable[[], object]], size: int) -> float:
    """
    Tell how many times dearer four times the size is.

    :param prepare: Makes the work for a size; only the work that it gives is measured. It must be
        good for several calls.
    :param size: The size to begin with. It grows, to a thousand times itself at most, until the
        work takes long enough to be measured: choose one that a fault would make slow, not
        unbearable.
    """
    # Else each collection looks at all that the other tests have imported, which takes far longer
    # than the work.
    gc.freeze()
    try:
        return _growth(prepare, size)
    finally:
        gc.unfreeze()


def _growth(prepare: Callable[[int], Callable[[], object]], size: int) -> float:
    small = cost(prepare(size))
    largest = size * 1024
    while small < _WORTH_MEASURING and size < largest:
        size *= 4 if small < _WORTH_MEASURING / 16 else 2
        small = cost(prepare(size))
    # It may be a busy machine, or a step where memory is had in another way: what is linear is so
    # at some size, what is not is so at none.
    ratio = float("inf")
    for attempt in range(5):
        ratio = min(ratio, cost(prepare(4 * size), 1 + attempt) / max(small, 1e-6))
        if ratio <= MOST or (attempt > 1 and ratio > 1.7 * MOST):
            break
        size *= 4 if attempt in (1, 2) else 1
        small = cost(prepare(size), 1)
    return ratio


def assert_linear(prepare: Callable[[int], Callable[[], object]], size: int = 1000) -> None:
    """
    Fail unless the work grows with its size, and not with its square.

    Where each line is traced, as for coverage, the tracer would be measured: the work is only done.
    """
    if traced():
        prepare(size)()
        return
    ratio = growth(prepare, size)
    if ratio > MOST:
        raise AssertionError(
            f"four times the size costs {ratio:.1f} times as much, at most {MOST:.0f}"
        )
