"""
Has a file been saved? Looked at now and then, by time and size.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

__all__ = ["PAUSE", "Watch"]

#: Seconds between two looks.
PAUSE: Final = 0.25

_State = dict[Path, tuple[int, int, int] | None]


class Watch:
    """
    Tells when files have changed and were written to their end.

    :param paths: Gives the files and folders to look at; called for each look.
    """

    def __init__(self, clock: IReactorTime, paths: Callable[[], Iterable[Path]]) -> None:
        self._clock = clock
        self._paths = paths
        self._known: _State = {}
        self._last: _State = {}
        self._call: IDelayedCall | None = None

    def remember(self) -> None:
        """
        Take the files as they are for what is known.
        """
        self._known = self._last = self._look()

    def include(self) -> None:
        """
        Take files that were not looked at before for what is known; others stay as remembered.
        """
        self._last = self._look()
        self._known = {path: self._known.get(path, state) for path, state in self._last.items()}

    def changed(self) -> Deferred[list[Path]]:
        """
        Wait until something is not as it was when it was remembered.

        :return: Fires with the paths, once two looks in a row have seen the same.
        """
        done: Deferred[list[Path]] = Deferred(self._stop)
        self._call = self._clock.callLater(PAUSE, self._check, done)
        return done

    def _stop(self, _: Any) -> None:
        # As long as somebody waits there is a next look.
        assert self._call is not None
        self._call.cancel()

    def _check(self, done: Deferred[list[Path]]) -> None:
        state = self._look()
        settled = state == self._last
        self._last = state
        # What is gone may be about to come back: some editors save by renaming.
        names = {*state, *self._known}
        changed = sorted(path for path in names if state.get(path) != self._known.get(path))
        if changed and settled:
            self._known = state
            done.callback(changed)
            return
        self._call = self._clock.callLater(PAUSE, self._check, done)

    def _look(self) -> _State:
        state: _State = {}
        for path in self._paths():
            try:
                found = os.stat(path)
                state[path] = found.st_mtime_ns, found.st_size, found.st_ino
            except OSError:
                state[path] = None
        return state
