"""
A guard against getting slower: ``python -m benchmarks.guard``.

It counts instead of timing, so that a busy machine does not matter: the instructions of the
milter's process for one message, by valgrind, over those of a fixed loop on the same Python; and
its system calls for one message, by strace, over those of the milter in C that does nothing else.
One connection is open at a time and in lock step, which makes both counts repeatable. The exit
status is 1 when a ratio is above its bound, and 2 when something could not be counted.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .build import Unavailable, tool
from .generator import Wrong, finish, generating
from .processes import end_well, running
from .scenarios import Scenario, Variant

_MESSAGES = 50
_LOAD = {"connections": 1, "headers": 20, "body": 4096, "messages": _MESSAGES}
#: No two runs of the same program may differ: sets and dicts are laid out by these.
_SEED = {"PYTHONHASHSEED": "0"}

_LOOP = "the loop"
#: What the instructions are compared with: the packets of one message cut, looked up and called,
#: in the plainest Python there is.
_REFERENCE = """
import sys
packets = [b"\\0\\0\\0\\x0dLname\\0value\\0"] * 27
class Reference:
    seen = 0
    def header(self, name, value):
        self.seen += len(name) + len(value)
def one(reference, table):
    for packet in packets:
        length = int.from_bytes(packet[:4], "big")
        name, _, value = packet[5:4 + length].partition(b"\\0")
        table[packet[4]](name.decode(), value[:-1].decode())
reference = Reference()
table = {76: reference.header}
for _ in range(int(sys.argv[1])):
    one(reference, table)
"""


@dataclass(frozen=True)
class Case:
    """
    One thing that is guarded.

    :ivar load: Options of the load generator, besides those that all have.
    :ivar settings: What the milter is told.
    :ivar instructions: The most instructions for a message, in those of the reference.
    :ivar calls: The most system calls for a message, in those of the milter in C.
    :ivar reference: The case with whose instructions they are compared; by default the loop.
    """

    name: str
    load: Mapping[str, object]
    settings: Mapping[str, str]
    instructions: float
    calls: float
    reference: str = _LOOP


_REUSE = {"reuse": _MESSAGES}
_ONE = "one connection"
_THREE = "three milters"

#: A bound is a tenth above the most that Python 3.10 to 3.13 need; the loop's share differs there.
CASES = (
    Case(_ONE, _REUSE, {}, 9.0, 1.36),
    Case("a connection for each message", {}, {}, 11.2, 1.45),
    # What all cases have in common has become less, so that three weigh more beside one.
    Case(_THREE, _REUSE, {"BENCH_MILTERS": "3"}, 1.31, 1.36, _ONE),
    Case(
        "a chain of three",
        _REUSE,
        {"BENCH_MILTERS": "3", "BENCH_MERGE": "chain"},
        1.45,
        1.36,
        _THREE,
    ),
    # Each coroutine has a context of its own, which costs what it did.
    Case("coroutines", _REUSE, {"BENCH_STYLE": "coroutine"}, 1.24, 1.36, _ONE),
)


@dataclass(frozen=True)
class Finding:
    """
    One ratio.
    """

    case: str
    what: str
    count: float
    reference: float
    bound: float

    @property
    def ratio(self) -> float:
        """
        What is held against the bound.
        """
        return self.count / self.reference


def _send(where: str, case: Case, pid: int) -> None:
    options = {**_LOAD, **case.load}
    with generating(where, options) as load:
        finish(load, options, pid)


def _scenario(case: Case) -> Scenario:
    return Scenario("guard", case.name, _LOAD, (), {**_SEED, **case.settings})


# ---- instructions


def _collected(text: str) -> int:
    found = re.search(r"Collected : (\d+)", text)
    if not found:
        raise Unavailable(f"valgrind counted nothing: {text.strip().splitlines()[-1:]}")
    return int(found[1])


def _callgrind(*options: str) -> list[str]:
    program = tool("valgrind", "valgrind")
    return [program, "--tool=callgrind", "--callgrind-out-file=/dev/null", *options]


def instructions(case: Case) -> float:
    """
    Count the instructions of our milter for one message.
    """
    wrap = _callgrind("--instr-atstart=no")
    vgdb = tool("vgdb", "valgrind")
    with running(Variant("yatxmilter"), _scenario(case), wrap=wrap) as (process, where):
        folder = Path(f"/proc/{process.pid}/cwd").resolve()
        # What is done only once has been done before it is counted.
        _send(where, case, process.pid)
        _quiet(process.pid)
        for switch in ("on", "off"):
            command = [vgdb, f"--pid={process.pid}", "instrumentation", switch]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            if done.returncode:
                raise Unavailable(f"vgdb: {done.stderr.strip()}")
            if switch == "on":
                _send(where, case, process.pid)
                _quiet(process.pid)
        process.terminate()
        process.wait(60)
        return _collected((folder / "log").read_text(errors="replace")) / _MESSAGES


def reference_instructions() -> float:
    """
    Count the instructions of the reference loop for one message.
    """
    counts = [_loop(messages) for messages in (10, 10 + _MESSAGES)]
    return (counts[1] - counts[0]) / _MESSAGES


def _loop(messages: int) -> int:
    done = subprocess.run(
        [*_callgrind(), sys.executable, "-I", "-S", "-c", _REFERENCE, str(messages)],
        env=_SEED,
        capture_output=True,
        text=True,
        check=True,
    )
    return _collected(done.stderr)


def _quiet(pid: int) -> None:
    """
    Wait until a process has done what there was to do: until it sleeps, and went on sleeping.
    """
    asleep = 0
    while asleep < 10:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state in "ZX":
            raise Unavailable("the milter died")
        asleep = asleep + 1 if state == "S" else 0
        time.sleep(0.01)


# ---- system calls


def system_calls(case: Case, peer: str) -> float:
    """
    Count the system calls of a milter for one message.
    """
    strace = tool("strace", "strace")
    settings = {} if peer == "limit" else case.settings
    scenario = Scenario("guard", case.name, _LOAD, (), {**_SEED, **settings})
    with running(Variant(peer), scenario) as (process, where):
        _send(where, case, process.pid)
        _quiet(process.pid)
        with subprocess.Popen(
            [strace, "-f", "-c", "-U", "calls,name", "-p", str(process.pid)],
            stderr=subprocess.PIPE,
            text=True,
        ) as tracer:
            assert tracer.stderr is not None
            attached = tracer.stderr.readline()
            if "attached" not in attached:
                raise Unavailable(f"strace: {attached.strip()}")
            _send(where, case, process.pid)
            _quiet(process.pid)
            tracer.send_signal(signal.SIGINT)
            text = tracer.stderr.read()
    return total_calls(text) / _MESSAGES


def total_calls(text: str) -> int:
    """
    Read the sum that ``strace -c -U calls,name`` prints last.
    """
    found = re.search(r"^\s*(\d+)\s+total$", text, re.MULTILINE)
    if not found:
        raise Unavailable(f"strace printed no total: {text.strip()[-200:]}")
    return int(found[1])


# ---- the command


def findings() -> list[Finding]:
    """
    Count everything once.
    """
    found: list[Finding] = []
    counts = {_LOOP: reference_instructions()}
    for case in CASES:
        print(f"counting: {case.name}", file=sys.stderr, flush=True)
        count = counts[case.name] = instructions(case)
        reference = counts[case.reference]
        found.append(Finding(case.name, "instructions", count, reference, case.instructions))
        ours, limit = (system_calls(case, peer) for peer in ("yatxmilter", "limit"))
        found.append(Finding(case.name, "system calls", ours, limit, case.calls))
    return found


def table(runs: Sequence[Sequence[Finding]]) -> str:
    """
    Write the findings of some runs as Markdown.
    """
    lines = [
        "| case | counted | for a message | reference | ratio, least to most | bound |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for same in zip(*runs, strict=True):
        first = same[0]
        ratios = sorted(finding.ratio for finding in same)
        lines.append(
            f"| {first.case} | {first.what} | {first.count:,.1f} | {first.reference:,.1f}"
            f" | {ratios[0]:.3f} to {ratios[-1]:.3f} | {first.bound} |"
        )
    return "\n".join(lines)


def exceeded(found: Sequence[Finding]) -> list[str]:
    """
    Say which ratios are above their bounds.
    """
    return [
        f"{each.case}: {each.what} for a message are {each.ratio:.3f} of the reference,"
        f" more than {each.bound}"
        for each in found
        if each.ratio > each.bound
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Count, and hold the ratios against their bounds; give the exit status.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.guard", description=(__doc__ or "").strip().splitlines()[0]
    )
    parser.add_argument("--runs", type=int, default=1, help="count so often, to see the spread")
    options = parser.parse_args(arguments)
    try:
        runs = [findings() for _ in range(max(1, options.runs))]
    except (Unavailable, Wrong, subprocess.SubprocessError) as reason:
        print(f"cannot count: {reason}", file=sys.stderr)
        return 2
    print(table(runs))
    problems = [problem for found in runs for problem in exceeded(found)]
    print("\n".join(problems) or "all within their bounds")
    return int(bool(problems))


if __name__ == "__main__":
    end_well()
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
