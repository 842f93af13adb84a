"""
Milters as processes of their own, and what the kernel knows of them.

The milter runs on one core, the load generator and all else on the other. What a milter used is
read from the clock of its process, to the nanosecond, with all its threads and children, so that
a short run is enough.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from tests.mta.processes import descendants, is_listening
from tests.ports import free_ports

from .build import Unavailable
from .milters import PEERS, PYTHONPATH
from .scenarios import Scenario, Variant

#: Seconds within which a milter has to listen.
_PATIENCE = 60
#: The core of the milter, and that of all else; the same where there is only one.
MILTER_CORE, OTHER_CORE = (sorted(getattr(os, "sched_getaffinity", lambda _: [0])(0)) * 2)[:2]


def pin(core: int, everywhere: bool = False) -> Callable[[], None]:
    """
    Give a function that binds the process that calls it to a core, or to both.
    """
    return lambda: os.sched_setaffinity(0, {MILTER_CORE, OTHER_CORE} if everywhere else {core})


def end_well() -> None:
    """
    Have this process stop what it has started when it is told to end.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def unoptimised() -> str | None:
    """
    Say what is wrong with measuring on this Python, if something is.

    One that was built without profile-guided optimisation is 15 to 20 percent slower than those
    that people have, and not alike in all it does. Distributions optimise theirs by rules of their
    own, which cannot be seen here; they are the ones below ``/usr``.
    """
    arguments = str(sysconfig.get_config_var("CONFIG_ARGS") or "")
    if "--enable-optimizations" in arguments or sys.base_prefix == "/usr":
        return None
    return (
        f"Python in {sys.base_prefix} was built without --enable-optimizations: it is slower than"
        " those that people have. Measure with Debian's, /usr/bin/python3, or an environment made"
        " with it"
    )


def allow_files(count: int) -> None:
    """
    Let this process and those it starts have so many files open.

    :raises Unavailable: when it may not.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= count:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, max(hard, count)))
    except (OSError, ValueError) as error:
        raise Unavailable(f"only {hard} files may be open here, not {count}") from error


def _unix_listening(path: str) -> bool:
    with open("/proc/net/unix") as table:
        next(table)
        # The flag of a socket that accepts connections.
        return any(
            fields[-1] == path and int(fields[3], 16) & 0x10000 for fields in map(str.split, table)
        )


def cpu_seconds(pid: int) -> float:
    """
    Read the clock of a process, and those of the processes it has started.
    """
    # Linux makes the number of another process's clock like this: clock_getcpuclockid(3).
    return sum(time.clock_gettime((~each << 3) | 2) for each in [pid, *descendants(pid)])


def idle_seconds(cores: Iterable[int]) -> float:
    """
    Read for how long these cores had nothing to do since the machine has started.
    """
    lines = Path("/proc/stat").read_text().splitlines()
    names = {f"cpu{core}" for core in cores}
    # After user, nice and system: idle, and waiting for a disk.
    found = (words[4:6] for words in map(str.split, lines) if words[0] in names)
    return sum(int(ticks) for pair in found for ticks in pair) / os.sysconf("SC_CLK_TCK")


def status(pid: int, name: str) -> int:
    """
    Read a number of ``/proc/PID/status``, of a process and those it has started.
    """
    total = 0
    for each in [pid, *descendants(pid)]:
        lines = Path(f"/proc/{each}/status").read_text().splitlines()
        # One that has just ended has no memory any more.
        total += next((int(s.split()[1]) for s in lines if s.startswith(f"{name}:")), 0)
    return total


def pss(pid: int) -> float:
    """
    Read how much memory a process and those it has started use, in KiB.
    """
    total = 0
    for each in [pid, *descendants(pid)]:
        lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def sockets(pid: int) -> dict[int, int]:
    """
    Count the sockets that a process and each of those it has started have open.
    """
    found = {}
    for each in [pid, *descendants(pid)]:
        names = (os.readlink(path) for path in Path(f"/proc/{each}/fd").iterdir())
        found[each] = sum(name.startswith("socket:") for name in names)
    return found


@contextlib.contextmanager
def running(
    variant: Variant, scenario: Scenario, port: int | None = None, wrap: Sequence[str] = ()
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """
    Run a milter.

    :param port: Where it listens in a scenario over TCP, if not at any free port.
    :param wrap: A command that runs the milter's.
    :return: The process, and where it listens.
    :raises Unavailable: when it cannot be run here.
    """
    peer = PEERS[variant.peer]
    settings = {**scenario.settings, **variant.settings}
    for name in sorted(peer.lacks & settings.keys()):
        raise Unavailable(f"it cannot do {name}={settings[name]}")
    command = [*wrap, *peer.make()]
    with tempfile.TemporaryDirectory(prefix="yatxmilter-") as folder:
        port = (port or free_ports(1)[0]) if scenario.tcp else 0
        where = f"inet:{port}@127.0.0.1" if scenario.tcp else f"unix:{folder}/socket"
        environment = {
            **os.environ,
            **{"BENCH_ADD": "1", "BENCH_WAIT": "0", "BENCH_NOREPLY": "0"},
            **settings,
            "BENCH_LISTEN": where,
            "PYTHONPATH": PYTHONPATH,
        }
        log = Path(folder, "log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                env=environment,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=pin(MILTER_CORE, variant.everywhere),
            )
        try:
            _wait_until_listening(process, log, where, port)
            if "BENCH_WORKERS" in settings:
                # Their socket is there before they are.
                _wait_until(lambda: b"ready" in log.read_bytes(), process, log)
            yield process, where
        finally:
            for pid in [*descendants(process.pid), process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
            process.wait()


def _wait_until_listening(
    process: subprocess.Popen[bytes], log: Path, where: str, port: int
) -> None:
    _wait_until(lambda: is_listening(port) if port else _unix_listening(where[5:]), process, log)


def _wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            lines = log.read_text(errors="replace").split("\n")
            raise Unavailable(f"it does not listen: {' '.join(lines[-3:]).strip()}")
        time.sleep(0.02)
