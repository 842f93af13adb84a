"""
The end of a process, whatever is still at work in it.

A thread that nobody has stopped keeps a Python process alive after all is done. Who has been told
to end, and has done what there was to do, ends all the same.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress
from typing import Final

from twisted.logger import Logger

__all__ = ["AT_ONCE", "GRACE", "LONGEST", "end_behind_main", "end_within"]

_log = Logger()

#: Seconds that threads have when the reactor has stopped; when a signal has said so twice; and
#: that the reactor has, when all that is ours has ended, for what is others'.
GRACE: Final = 3.0
AT_ONCE: Final = 1.0
LONGEST: Final = 30.0


def end_within(seconds: float, status: int = 0) -> None:
    """
    See to it that this process ends, after so many seconds at the latest.

    :param status: The exit status of a process that has to be ended so.
    """
    threading.Thread(target=_end, args=(seconds, status), name="ending", daemon=True).start()


def end_behind_main(seconds: float, status: int = 0) -> None:
    """
    See to it that this process ends so many seconds after its main thread at the latest.

    :param status: The exit status of a process that has to be ended so.
    """
    threading.Thread(target=_follow, args=(seconds, status), name="ending", daemon=True).start()


def _follow(seconds: float, status: int) -> None:
    threading.main_thread().join()
    _end(seconds, status)


def _end(seconds: float, status: int) -> None:
    time.sleep(seconds)
    with suppress(Exception):
        own = (threading.current_thread(), threading.main_thread())
        left = [one for one in threading.enumerate() if not one.daemon and one not in own]
        names = ", ".join(one.name for one in left) or "its main thread"
        _log.warn("Ending without waiting any longer for what is still at work: {left}", left=names)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    os._exit(status)
