"""
Starting and stopping programs for the tests, and waiting for them without guessing times.

Whether a port is served is read from /proc and not found out by connecting: on an MTA the
connection would reach the milter, and on a milter it would be an MTA that goes away.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
import unittest
from collections.abc import Callable, Iterable
from pathlib import Path

LOOPBACK = "127.0.0.1"

#: Seconds after which something that has not happened is taken to never happen.
PATIENCE = 120.0

#: For each program, the shell that ends it when its input, a pipe from us, is closed.
_watchers: dict[int, subprocess.Popen[bytes]] = {}


def require(present: bool, what: str) -> None:
    """
    Skip the test, or fail it where ``YATXMILTER_REQUIRE_MTA=1``, if something is not present.
    """
    if present:
        return
    reason = f"{what} (tests/mta/install.sh installs what these tests need, as root)"
    if os.environ.get("YATXMILTER_REQUIRE_MTA") == "1":
        raise AssertionError(reason)
    raise unittest.SkipTest(reason)


def require_program(name: str) -> str:
    """
    Give the path of a program, or skip the test if it is not installed.
    """
    path = shutil.which(name, path=f"/usr/sbin:/sbin:{os.environ.get('PATH', os.defpath)}")
    require(path is not None, f"{name} is not installed")
    assert path is not None
    return path


def require_root() -> None:
    """
    Skip the test if it is not run by root: MTAs change users, and namespaces are made.
    """
    require(os.geteuid() == 0, "an MTA has to be started by root")


def wait_until(condition: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    """
    Wait until a condition holds, and fail saying what was awaited if it never does.

    :param what: completes the sentence "waited in vain for ..."
    """
    deadline = time.monotonic() + patience
    pause = 0.002
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited in vain for {what}")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)


def is_listening(port: int) -> bool:
    """
    Tell whether some process listens on a TCP port of the loopback interface.
    """
    address = f"0100007F:{port:04X}"
    with open("/proc/net/tcp") as table:
        next(table)
        fields = (line.split() for line in table)
        return any(field[1] == address and field[3] == "0A" for field in fields)


def descendants(pid: int) -> list[int]:
    """
    List the processes started by a process and, in turn, by those.
    """
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            stat = (folder / "stat").read_text()
        except OSError:
            continue
        parent = int(stat.rpartition(")")[2].split()[1])
        children.setdefault(parent, []).append(int(folder.name))
    found: list[int] = []
    pending = [pid]
    while pending:
        for child in children.get(pending.pop(), []):
            found.append(child)
            pending.append(child)
    return found


def stop(process: subprocess.Popen[bytes], patience: float = 10.0) -> None:
    """
    Stop a process that we started, and all it has started.
    """
    watcher = _watchers.pop(process.pid, None)
    if watcher is not None:
        watcher.kill()
        watcher.communicate()
    # Connection and delivery children outlive an MTA's daemon: they have to be known before.
    family = descendants(process.pid)
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for pid in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def start(
    command: Iterable[str | Path], output: Path, environment: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """
    Start a program that ends with the test run, even if that is killed.

    :param output: the file to which it writes what it has to say
    """
    with output.open("ab") as log:
        process = subprocess.Popen(
            [*map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **(environment or {})},
        )
    # Postfix changes its user, and so loses the signal that prctl(2) has for a parent's death.
    watch = ["sh", "-c", 'read _; kill "$1"', "sh", str(process.pid)]
    _watchers[process.pid] = subprocess.Popen(watch, stdin=subprocess.PIPE)
    return process
