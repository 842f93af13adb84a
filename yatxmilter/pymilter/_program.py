"""
A program written for pymilter, as its calls of ``milter`` describe it, and its main loop.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from twisted.internet.error import CannotListenError

from yatxmilter import constants as c
from yatxmilter.pymilter._adapter import AdapterFactory
from yatxmilter.pymilter._callbacks import Callbacks
from yatxmilter.pymilter._context import Error
from yatxmilter.pymilter._forked import Family, serve_in_processes
from yatxmilter.pymilter._serving import Serving, make_leading
from yatxmilter.pymilter._sockets import Listening

__all__ = ["PROGRAM", "Program", "RunOptions"]

#: More than libmilter's 20: here it is not a thread of its own that takes connections.
_BACKLOG: Final = 128
#: libmilter's ``MI_TIMEOUT``.
_TIMEOUT: Final = 7210


@dataclass
class RunOptions:
    """
    What the command line says about how a program is run.

    :ivar inline: Whether callbacks run where the reactor is.
    :ivar workers: How many processes share the socket; ``None`` for this one alone.
    :ivar metrics: Where to serve metrics and health.
    :ivar drain_timeout: Seconds that messages in progress may take to come to their end.
    :ivar factory: Options of `MilterProtocolFactory`.
    """

    inline: bool = False
    workers: int | None = None
    metrics: str | None = None
    drain_timeout: float | None = 30
    factory: Mapping[str, Any] = field(default_factory=dict)


class Program:
    """
    What a program has said about itself, and its main loop.
    """

    def __init__(self) -> None:
        self.callbacks = Callbacks()
        self.policy: int = int(c.SMFIS_TEMPFAIL)
        self.flags: int = int(c.SMFI_CURR_ACTS)
        self.name: str | None = None
        self.spec: str | None = None
        self.timeout = _TIMEOUT
        self.backlog = _BACKLOG
        self.options = RunOptions()
        self._lock = threading.Lock()
        self._listening: Listening | None = None
        self._serving: Serving | Family | None = None
        self._in_use = self._stop_asked = False

    def open(self, remove: bool) -> None:
        """
        Listen, unless that was done already.

        :raises milter.error: when that cannot be.
        """
        if self._listening is None:
            self._listening = self._listen("cannot opensocket", remove)

    def _listen(self, what: str, remove: bool) -> Listening:
        if self.name is None:
            raise Error(f"{what}: call register() before")
        if self.spec is None:
            raise Error(f"{what}: call setconn() before")
        try:
            return Listening(self.spec, self.backlog, remove=remove)
        except OSError as error:
            raise Error(f"{what}: {self.spec}: {error.strerror or error}") from error
        except ValueError as error:
            raise Error(f"{what}: {error}") from error

    def main(self) -> None:
        """
        Serve until `stop` is called or a signal says so.

        :raises milter.error: when that cannot be.
        """
        with self._lock:
            if self._in_use:
                raise Error("milter module in use")
            self._in_use = True
        try:
            if self._listening is None:
                self._listening = self._listen("cannot run main", False)
            self._serve(self._listening)
        except (CannotListenError, OSError) as error:
            raise Error(f"cannot run main: {error}") from error
        finally:
            listening, self._listening = self._listening, None
            if listening is not None:
                listening.close()
            with self._lock:
                self._serving = None
                self._in_use = self._stop_asked = False

    def _serve(self, listening: Listening) -> None:
        workers = self.options.workers
        if workers is None:
            self._serve_here(listening, self.options.metrics)
        else:
            family = Family()
            self._began(family)
            serve_in_processes(
                workers,
                lambda started: self._serve_here(listening, None, started),
                family,
                metrics=self.options.metrics,
            )

    def _began(self, running: Serving | Family) -> None:
        with self._lock:
            self._serving = running
            if self._stop_asked:
                running.stop()

    def _serve_here(self, listening: Listening, metrics: str | None, started: Any = None) -> None:
        options = self.options
        milter = AdapterFactory(
            self.callbacks,
            lambda: self.policy,
            inline=options.inline,
            leading=None if options.inline else make_leading(),
            name=self.name,
        )
        # 0, or less, is for any time.
        limits = {"timeout": self.timeout if self.timeout > 0 else None, **options.factory}
        serving = Serving(
            listening, milter, limits, metrics=metrics, drain_timeout=options.drain_timeout
        )
        if started is not None:
            serving.watch()
        self._began(serving)
        serving.run(started)

    def stop(self) -> None:
        """
        Have `main` return; from any thread, and from a signal's handler.
        """
        serving = self._serving
        if serving is not None:
            serving.stop()
        elif self._listening is not None or self._in_use:
            # It is about to begin.
            self._stop_asked = True


#: The program that runs in this process.
PROGRAM: Final = Program()
