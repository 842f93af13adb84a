"""
The test's end of the milter process: say what it shall do, and see what it did.

A scenario is one milter or several.  ``script(xxfi_helo=[("smfi_setreply", "550"), "REJECT"])``
is a milter that overrides all callbacks, to report them, and does nothing but continue, save in
``xxfi_helo``.  A callback's value is a list of steps, or a dict of such lists by the callback's
first argument.  A step is

- ``"REJECT"`` and so on: the return code;
- ``("smfi_...", argument, ...)``: a call;
- ``("wait", seconds)``, ``("hang",)``: return a Deferred that fires later, or never;
- ``("raise", text)``: fail;
- ``("agree", actions, steps)``: what ``xxfi_negotiate`` returns.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .processes import PATIENCE, is_listening, wait_until

ROOT = Path(__file__).resolve().parents[2]

#: All callbacks in the order in which they come, ``xxfi_negotiate`` and the end left out.
CALLBACKS = (
    "xxfi_connect",
    "xxfi_helo",
    "xxfi_envfrom",
    "xxfi_envrcpt",
    "xxfi_data",
    "xxfi_header",
    "xxfi_eoh",
    "xxfi_body",
    "xxfi_eom",
    "xxfi_unknown",
)
ENDINGS = ("xxfi_abort", "xxfi_close")

Script = dict[str, Any]


def _jsonable(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    return value


def script(
    name: str = "milter",
    *,
    how: str = "plain",
    only: Iterable[str] = (*CALLBACKS, *ENDINGS),
    flags: int | None = None,
    noreply: Iterable[str] = (),
    options: dict[str, Any] | None = None,
    **callbacks: Any,
) -> Script:
    """
    Say what a milter does in its callbacks.

    :param how: ``"plain"``, or what the callbacks with steps return: ``"deferred"`` or
        ``"coroutine"``
    :param only: the callbacks that are overridden beside those with steps
    :param noreply: the callbacks decorated with ``@noreply``
    :param options: keyword arguments of the ``MilterFactory``
    """
    return {
        "name": name,
        "how": how,
        "flags": flags,
        "noreply": list(noreply),
        "options": options or {},
        "callbacks": {**dict.fromkeys(only, []), **_jsonable(callbacks)},
    }


@dataclass(frozen=True)
class Event:
    """
    A callback that a milter got, or another thing it reported (``smfi_getsymval``).
    """

    callback: str
    args: tuple[Any, ...]
    milter: str
    connection: int


class MilterProcess:
    """
    The process of :mod:`tests.mta.scripted`.
    """

    def __init__(self, path: Path, port: int, log: Path) -> None:
        self.path = path
        self.port = port
        self._log = log
        self._number = 0
        self._events: list[Event] = []
        self._logged: list[str] = []
        #: Whether the process has ended and nothing more can come.
        self._ended = False
        self._pinged = self._ponged = 0
        self._news = threading.Condition()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """
        Start the process unless it runs, and wait until it listens.
        """
        if self._process is not None and self._process.poll() is None:
            return
        with self._log.open("ab") as log:
            self._process = process = subprocess.Popen(
                [sys.executable, "-m", "tests.mta.scripted", str(self.path), str(self.port)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        self._ended = False
        threading.Thread(target=self._read, args=(process,), daemon=True).start()
        wait_until(
            lambda: is_listening(self.port) or process.poll() is not None, "the milter to listen"
        )
        if process.poll() is not None:
            raise AssertionError(f"the milter did not start: {self._log.read_text()}")

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            with self._news:
                if event["callback"] == "pong":
                    [self._ponged] = event["args"]
                elif event["callback"] == "log":
                    self._logged += event["args"]
                elif event["scenario"] == self._number:
                    # What comes later from a connection of an earlier scenario is not ours.
                    milter = event.get("milter", "")
                    args = tuple(event["args"])
                    connection = event.get("connection", 0)
                    self._events.append(Event(event["callback"], args, milter, connection))
                self._news.notify_all()
        process.stdout.close()
        with self._news:
            self._ended = self._process is process
            self._news.notify_all()

    def load(self, milters: Sequence[Script], options: dict[str, Any]) -> None:
        """
        Make a scenario the current one, and forget the events of the one before.

        :param options: keyword arguments of the ``MilterProtocolFactory``
        """
        self.start()
        with self._news:
            self._number += 1
            self._events.clear()
            self._logged.clear()
        self._tell({"number": self._number, "milters": list(milters), "options": options})
        self.wait("loaded")
        with self._news:
            problems = self._events[0].args
            self._events.clear()
        if problems:
            raise AssertionError(f"the scenario is impossible: {problems[0]}")

    def _tell(self, order: dict[str, Any]) -> None:
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()

    def catch_up(self) -> None:
        """
        Wait until all has arrived that the process has reported so far.
        """
        with self._news:
            self._pinged += 1
            with contextlib.suppress(BrokenPipeError):
                self._tell({"ping": self._pinged})
            if not self._news.wait_for(
                lambda: self._ended or self._ponged == self._pinged, PATIENCE
            ):
                raise AssertionError("the milter's process does not answer")

    def events(self, *, milter: str | None = None) -> list[Event]:
        """
        Give what has been reported so far, of all milters or of one.
        """
        self.catch_up()
        return self._received(milter)

    def _received(self, milter: str | None) -> list[Event]:
        with self._news:
            return [e for e in self._events if milter is None or e.milter == milter]

    def arguments(self, callback: str, *, milter: str | None = None) -> list[tuple[Any, ...]]:
        """
        Give the arguments of each call of one callback so far.
        """
        return [e.args for e in self.events(milter=milter) if e.callback == callback]

    def order(self, *, milter: str | None = None) -> list[str]:
        """
        Give the names of the callbacks so far, without ``xxfi_``; repeats in a row are shown once.
        """
        names = [e.callback.removeprefix("xxfi_") for e in self.events(milter=milter)]
        return [name for i, name in enumerate(names) if i == 0 or names[i - 1] != name]

    def wait(self, callback: str, count: int = 1, *, milter: str | None = None) -> None:
        """
        Wait until a callback was called that many times.
        """

        def seen() -> bool:
            return [event.callback for event in self._received(milter)].count(callback) >= count

        with self._news:
            self._news.wait_for(lambda: self._ended or seen(), PATIENCE)
            if not seen():
                raise AssertionError(f"no {callback} ({count}) in {self._events}, {self._logged}")

    def wait_log(self, text: str) -> str:
        """
        Wait for a warning or error in the log that has a text in it, and take it out.
        """
        with self._news:
            if not self._news.wait_for(lambda: any(text in m for m in self._logged), PATIENCE):
                raise AssertionError(f"not logged: {text!r}, but: {self._logged}")
            message = next(m for m in self._logged if text in m)
            self._logged.remove(message)
            return message

    def take_log(self) -> list[str]:
        """
        Give the warnings and errors that no test has waited for, and forget them.
        """
        self.catch_up()
        with self._news:
            messages, self._logged = self._logged, []
            return messages

    def kill(self) -> None:
        """
        Kill the process, as a crash would.
        """
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """
        Let the process end in order.
        """
        if self._process is None:
            return
        assert self._process.stdin is not None
        # One that has been killed did not read all it was told.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None
