"""
One milter run once in a scenario, and what that showed.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from .generator import finish, generating, judged
from .processes import (
    MILTER_CORE,
    OTHER_CORE,
    allow_files,
    cpu_seconds,
    idle_seconds,
    pss,
    running,
    sockets,
    status,
)
from .scenarios import Scenario, Variant
from .sendmail import sendmail


@dataclass(frozen=True)
class Result:
    """
    What one run showed.

    :ivar cpu: Microseconds of the milter's process for one message.
    :ivar rate: Messages a second.
    :ivar p50: Milliseconds from the beginning of a message to its last answer, the median.
    :ivar p99: The same, of which one message in a hundred took more.
    :ivar memory: MiB, the most that was resident.
    :ivar pss: MiB at the end, what is shared counted in part.
    :ivar threads: The most that were seen.
    :ivar busy: The part of the time for which the milter was at work.
    :ivar load_busy: The same of the load generator.
    :ivar megabytes: MB of bodies a second.
    :ivar each: KiB for each idle connection, in the scenario that has them: after HELO.
    :ivar after: The same when each has had a message, and is open still.
    :ivar most: The part of the connections that the busiest worker has, times the number of
        workers: 1 where all have the same.
    :ivar whole: Messages a second that the milter's cores carry when nobody else, nor the
        generator, takes a part of them.
    """

    cpu: float
    rate: float
    p50: float
    p99: float
    memory: float
    pss: float
    threads: int
    busy: float
    load_busy: float = 0
    megabytes: float = 0
    each: float = 0
    after: float = 0
    most: float = 0
    whole: float = 0


class Meter:
    """
    What a milter's process uses from now on.

    :param everywhere: Whether it may use every core, and not only its own.
    """

    def __init__(self, pid: int, everywhere: bool = False) -> None:
        self._pid = pid
        self._cores = {MILTER_CORE, OTHER_CORE} if everywhere else {MILTER_CORE}
        self._idle = idle_seconds(self._cores)
        self._cpu = cpu_seconds(pid)
        self._began = time.monotonic()

    def result(
        self,
        report: Mapping[str, Any],
        threads: int,
        body: int,
        each: float = 0,
        after: float = 0,
        most: float = 0,
    ) -> Result:
        """
        Say what it was.

        :param report: Of the load generator, or made like it.
        :param body: Bytes of a message's body.
        """
        elapsed = time.monotonic() - self._began
        idle = idle_seconds(self._cores) - self._idle
        # What the milter does about the last connections that have gone.
        time.sleep(0.1)
        used = cpu_seconds(self._pid) - self._cpu
        return Result(
            cpu=used / report["messages"] * 1e6,
            rate=report["rate"],
            p50=report["p50"] * 1e3,
            p99=report["p99"] * 1e3,
            memory=status(self._pid, "VmHWM") / 1024,
            pss=pss(self._pid) / 1024,
            threads=threads,
            busy=used / elapsed,
            load_busy=report["cpu"] / elapsed,
            megabytes=report["rate"] * body / 1e6,
            each=each,
            after=after,
            most=most,
            whole=capacity(report["rate"], len(self._cores) * elapsed, used + idle),
        )


def capacity(rate: float, total: float, own: float) -> float:
    """
    Say how many messages a second a milter carries when its cores are its own.

    :param total: Seconds that its cores had.
    :param own: Those of them in which it ran, or could have run since nobody else did: a core that
        a milter leaves idle counts against it.
    """
    return rate * total / min(own, total)


def _load(
    where: str,
    options: Mapping[str, object],
    process: subprocess.Popen[bytes],
    everywhere: bool = False,
) -> tuple[dict[str, Any], int]:
    with generating(where, options, everywhere) as load:
        return finish(load, options, process.pid)


def under_load(scenario: Scenario, variant: Variant, seconds: float) -> Result:
    """
    Run one milter under a scenario's load.
    """
    options = dict(scenario.load)
    allow_files(int(str(options["connections"])) + 200)
    with running(variant, scenario) as (process, where):
        few = {**options, "connections": min(20, int(str(options["connections"])))}
        everywhere = variant.everywhere
        _load(where, {**few, "seconds": min(0.5, seconds / 4)}, process, everywhere)
        meter = Meter(process.pid, everywhere)
        report, threads = _load(where, {**options, "seconds": seconds}, process, everywhere)
        return meter.result(report, threads, int(str(options["body"])))


def idle(scenario: Scenario, variant: Variant, seconds: float) -> Result:
    """
    Have many connections do nothing, then a message on each, then nothing again.

    :param seconds: For a short run there are fewer connections.
    """
    options = dict(scenario.load)
    count = int(str(options["connections"]))
    if seconds < scenario.seconds:
        count = options["connections"] = count // 5
    allow_files(count + 200)
    with running(variant, scenario) as (process, where):
        _few(where, options, process)
        options |= {"idle": True, "stay": True}
        before = pss(process.pid)
        with generating(where, options) as load:
            _said(load, b"idle", options)
            each = (pss(process.pid) - before) / count
            meter = Meter(process.pid)
            _go_on(load)
            _said(load, b"stayed", options)
            after = (pss(process.pid) - before) / count
            _go_on(load)
            report, threads = finish(load, options, process.pid)
            return meter.result(report, threads, int(str(options["body"])), each, after)


def shares(scenario: Scenario, variant: Variant, seconds: float) -> Result:
    """
    Hold connections, and see how workers have shared them.
    """
    options = {**scenario.load, "idle": True}
    with running(variant, scenario) as (process, where):
        _few(where, options, process)
        before = sockets(process.pid)
        with generating(where, options) as load:
            _said(load, b"idle", options)
            held = [count - before.get(pid, 0) for pid, count in sockets(process.pid).items()]
            meter = Meter(process.pid, variant.everywhere)
            _go_on(load)
            report, threads = finish(load, options, process.pid)
            body = int(str(options["body"]))
            return meter.result(report, threads, body, most=share(held, variant))


def share(held: Sequence[int], variant: Variant) -> float:
    """
    Say how much more than its share the busiest worker has.

    :param held: The connections of each process; the supervisor has none.
    """
    workers = int(variant.settings["BENCH_WORKERS"])
    return max(held) * workers / max(sum(held), 1)


def _few(where: str, options: Mapping[str, object], process: subprocess.Popen[bytes]) -> None:
    # What is done once, and memory that is needed once, is no part of a connection.
    few = {name: options[name] for name in options if name in ("headers", "body")}
    _load(where, {**few, "connections": 20, "messages": 200}, process)
    # Until the last of them has gone.
    time.sleep(0.2)


def _said(load: subprocess.Popen[bytes], word: bytes, options: Mapping[str, object]) -> None:
    """
    Wait until the load generator is so far.
    """
    assert load.stdout is not None
    line = load.stdout.readline()
    if line != word + b"\n":
        judged(line, options)
    time.sleep(0.2)


def _go_on(load: subprocess.Popen[bytes]) -> None:
    assert load.stdin is not None
    load.stdin.write(b"go\n")
    load.stdin.flush()


def behind_sendmail(scenario: Scenario, variant: Variant, seconds: float) -> Result:
    """
    Send messages through a real Sendmail that asks the milter.
    """
    with sendmail() as mail, running(variant, scenario, mail.milter_port) as (process, _):
        headers = int(str(scenario.load["headers"]))
        mail.send(headers, 0.5)
        meter = Meter(process.pid)
        times = sorted(mail.send(headers, seconds))
        report = {
            "messages": len(times),
            "rate": len(times) / sum(times),
            "p50": median(times),
            "p99": times[(len(times) - 1) * 99 // 100],
            "cpu": 0,
        }
        return meter.result(report, status(process.pid, "Threads"), 0)


WAYS: dict[str, Callable[[Scenario, Variant, float], Result]] = {
    "load": under_load,
    "idle": idle,
    "shares": shares,
    "sendmail": behind_sendmail,
}


def measure(scenario: Scenario, variant: Variant, seconds: float) -> Result:
    """
    Run one milter in a scenario.
    """
    return WAYS[scenario.kind](scenario, variant, seconds)
