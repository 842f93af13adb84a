"""
One milter run under one load, and what it cost.

The milter is a process of its own on one core, the load generator another one on the other. What
the milter used is read from the kernel before and after: the clock of its process to the
nanosecond, with all threads and children, so that a short run is enough.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.mta.processes import descendants, free_ports, is_listening

from .build import Unavailable, c_program
from .milters import PEERS, PYTHONPATH
from .scenarios import Scenario, Variant

#: Seconds within which a milter has to listen.
_PATIENCE = 20
_CHUNK = 65_535
#: The core of the milter, and that of the generator; the same where there is only one.
MILTER_CORE, LOAD_CORE = (sorted(os.sched_getaffinity(0)) * 2)[:2]
#: Protocol steps by which a milter declines what every one here has to be shown.
DECLINED = 0x01 | 0x02 | 0x04 | 0x08 | 0x10 | 0x20 | 0x40 | 0x200
NR_HDR = 0x80


class Wrong(Exception):
    """
    A milter that did not answer as it has to.
    """


@dataclass(frozen=True)
class Result:
    """
    What one run showed.

    :ivar cpu: Microseconds of the milter's process for one message.
    :ivar load_cpu: The same of the generator.
    :ivar rate: Messages a second.
    :ivar p50: Milliseconds from the beginning of a message to its last answer, the median.
    :ivar p99: The same, of which one message in a hundred took more.
    :ivar memory: MiB, the most that was resident.
    :ivar pss: MiB at the end, what is shared counted in part.
    :ivar threads: The most that were seen.
    :ivar busy: The part of the time for which the milter was at work.
    :ivar load_busy: The same of the generator.
    :ivar each: KiB for each idle connection, in the scenario that has them.
    """

    cpu: float
    load_cpu: float
    rate: float
    p50: float
    p99: float
    memory: float
    pss: float
    threads: int
    busy: float
    load_busy: float
    each: float = 0


# ---- processes


def _pinned(core: int) -> Any:
    return lambda: os.sched_setaffinity(0, {core})


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


def status(pid: int, name: str) -> int:
    """
    Read a number of ``/proc/PID/status``, of a process and those it has started.
    """
    total = 0
    for each in [pid, *descendants(pid)]:
        lines = Path(f"/proc/{each}/status").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
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


@contextlib.contextmanager
def running(
    variant: Variant, settings: Mapping[str, str], *, tcp: bool = False
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """
    Run a milter.

    :param settings: What ``peers/settings.py`` describes.
    :return: The process, and where it listens.
    :raises Unavailable: when it cannot be run here.
    """
    peer = PEERS[variant.peer]
    settings = {**settings, **variant.settings}
    for name in sorted(peer.lacks & settings.keys()):
        raise Unavailable(f"it cannot do {name}={settings[name]}")
    command = peer.make()
    with tempfile.TemporaryDirectory(prefix="yatxmilter-") as folder:
        port = free_ports(1)[0] if tcp else 0
        where = f"inet:{port}@127.0.0.1" if tcp else f"unix:{folder}/socket"
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
                preexec_fn=_pinned(MILTER_CORE),
            )
        try:
            _wait_until_listening(process, log, where, port)
            yield process, where
        finally:
            for pid in [*descendants(process.pid), process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
            process.wait()


def _wait_until_listening(
    process: subprocess.Popen[bytes], log: Path, where: str, port: int
) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not (is_listening(port) if port else _unix_listening(where[5:])):
        if process.poll() is not None or time.monotonic() > deadline:
            lines = log.read_text(errors="replace").split("\n")
            raise Unavailable(f"it does not listen: {' '.join(lines[-3:]).strip()}")
        time.sleep(0.02)


# ---- load


def load_command(where: str, options: Mapping[str, object]) -> list[str]:
    """
    Give the command that runs the load generator; an option that is true is a switch.
    """
    words = [str(c_program("load.c")), "--target", where]
    for name, value in options.items():
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return words


def run_load(where: str, options: Mapping[str, object], pid: int) -> tuple[dict[str, Any], int]:
    """
    Run the load generator to its end.

    :return: What it reported, and the most threads that the milter was seen to have.
    :raises Wrong: when an answer was not what it has to be.
    """
    threads = 0
    with subprocess.Popen(
        load_command(where, options), stdout=subprocess.PIPE, preexec_fn=_pinned(LOAD_CORE)
    ) as load:
        try:
            while True:
                threads = max(threads, status(pid, "Threads"))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    output, _ = load.communicate(timeout=0.2)
                    break
        finally:
            load.kill()
    return judged(output.splitlines()[-1], options), threads


def judged(line: bytes, options: Mapping[str, object]) -> dict[str, Any]:
    """
    Read the generator's report, and count what it counted anew.

    :raises Wrong: when that is not what such a run has to give.
    """
    report: dict[str, Any] = json.loads(line)
    if "fault" in report:
        raise Wrong(report["fault"])
    if report["steps"] & DECLINED:
        raise Wrong(f"it declined steps: {report['steps'] & DECLINED:#x}")
    expected = expected_answers(report, options)
    if report["answers"] != expected:
        raise Wrong(f"{report['answers']} answers, not {expected}")
    if report["added"] != report["messages"] * int(str(options.get("added", 1))):
        raise Wrong(f"{report['added']} header fields for {report['messages']} messages")
    return report


def expected_answers(report: Mapping[str, int], options: Mapping[str, object]) -> int:
    """
    Count the packets that a milter has to have sent.
    """
    headers, body = (int(str(options.get(name, 0))) for name in ("headers", "body"))
    # Offer, CONNECT and HELO; MAIL, RCPT, DATA, end of headers and end of message.
    each = 5 + (0 if report["steps"] & NR_HDR else headers) + -(-body // _CHUNK)
    return report["connections"] * 3 + report["messages"] * each + report["added"]


def measure(scenario: Scenario, variant: Variant, seconds: float) -> Result:
    """
    Run one milter under a scenario's load.
    """
    with running(variant, scenario.settings, tcp=scenario.tcp) as (process, where):
        pid = process.pid
        options = {**scenario.load, "seconds": seconds}
        run_load(where, {**options, "seconds": min(0.5, seconds / 4)}, pid)
        cpu, began = cpu_seconds(pid), time.monotonic()
        report, threads = run_load(where, options, pid)
        elapsed = time.monotonic() - began
        # What it does about the last connections that have gone.
        time.sleep(0.1)
        used = cpu_seconds(pid) - cpu
        messages = report["messages"]
        return Result(
            cpu=used / messages * 1e6,
            load_cpu=report["cpu"] / messages * 1e6,
            rate=report["rate"],
            p50=report["p50"] * 1e3,
            p99=report["p99"] * 1e3,
            memory=status(pid, "VmHWM") / 1024,
            pss=pss(pid) / 1024,
            threads=threads,
            busy=used / elapsed,
            load_busy=report["cpu"] / elapsed,
        )
