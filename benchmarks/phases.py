"""
Where the time of a message goes, phase by phase: ``python -m benchmarks.phases``.

Milter and MTA are in one process. On some connections at once the MTA sends one packet on each,
outside of what is measured; then the reactor has its turns, which are measured, until all are
answered; then the next packet. So the figures are those of our side alone: accepting connections,
reading, deciding, writing, and the reactor's part in it. The least of several rounds counts for
each packet, as it is disturbed the least.

With ``--instructions`` the same runs once more under valgrind, which counts what does not depend on
the machine. ``--by-function`` runs it under cProfile and prints which functions take the most of
the time by themselves; calls cost more under it, so that small functions look larger than they are.
Both together count the instructions of each function, from Python 3.12 on.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import ctypes
import gc
import importlib
import os
import pstats
import re
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .attribution import CALLERS, FunctionMap, attribute
from .build import HERE, Unavailable, c_library, tool
from .processes import MILTER_CORE, end_well, unoptimised

_FIELDS = 20
_BODY = 4096
#: How many rounds valgrind counts.
_COUNTED = 3


def packet(letter: str, payload: bytes = b"") -> bytes:
    """
    Make a packet.
    """
    return struct.pack("!IB", len(payload) + 1, ord(letter)) + payload


def _with_macros(letter: str, payload: bytes, *macros: bytes) -> bytes:
    return packet("D", letter.encode() + b"\0".join(macros) + b"\0") + packet(letter, payload)


@dataclass(frozen=True)
class Step:
    """
    One packet, with its macros, and what is answered; nothing for the connection itself.
    """

    phase: str
    data: bytes
    answer: bytes


_CONTINUE = packet("c")
#: The phases in order.
PHASES = (
    "accept",
    "negotiate",
    "connect",
    "commands",
    "header fields",
    "body",
    "end of message",
    "quit and close",
)
#: What each counts: for one of these.
EACH = {"commands": 5, "header fields": _FIELDS}


def steps() -> list[Step]:
    """
    Give what an MTA says for one message: as the load generator does, packet by packet.
    """
    offer = packet("O", struct.pack("!III", 6, 0x1FF, 0x1FFFFF))
    # The macros are those that Postfix sends.
    queued = (b"i", b"4XyzAb1CdE")
    said = [
        Step("negotiate", offer, b""),
        Step(
            "connect",
            _with_macros(
                "C",
                b"mail.example.org\x004\x10\xe1192.0.2.1\0",
                *(b"j", b"mta.example.net", b"{daemon_name}", b"mta.example.net"),
                *(b"v", b"Example 1.0", b"_", b"mail.example.org [192.0.2.1]"),
            ),
            _CONTINUE,
        ),
    ]
    commands = (
        _with_macros(
            "H",
            b"mail.example.org\0",
            *(b"{tls_version}", b"TLSv1.3", b"{cipher}", b"TLS_AES_256_GCM_SHA384"),
        ),
        _with_macros(
            "M",
            b"<sender@example.org>\0SIZE=12345\0BODY=8BITMIME\0",
            *(*queued, b"{mail_addr}", b"sender@example.org", b"{mail_host}", b"example.org"),
        ),
        _with_macros(
            "R",
            b"<rcpt@example.net>\0NOTIFY=NEVER\0",
            *(b"{rcpt_addr}", b"rcpt@example.net", b"{rcpt_host}", b"example.net"),
        ),
        _with_macros("T", b"", *queued),
    )
    said += [Step("commands", data, _CONTINUE) for data in commands]
    for number in range(_FIELDS):
        value = b"the value of field number %d, of some length or other" % number
        field = packet("L", b"X-Header-%d\0%s\0" % (number, value))
        said.append(Step("header fields", field, _CONTINUE))
    body = (b"abcdefghijklmnopqrstuvwxyz" * 3)[:62] + b"\r\n"
    added = packet("h", b"X-Bench\0seen\0")
    return [
        *said,
        Step("commands", packet("N"), _CONTINUE),
        Step("body", packet("B", body * (_BODY // 64)), _CONTINUE),
        Step("end of message", _with_macros("E", b"", *queued), added + _CONTINUE),
    ]


class Meter:
    """
    What is spent while it is told to count.
    """

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self._began = 0.0

    def begin(self) -> None:
        """
        Count from now on.
        """
        self._began = time.perf_counter()

    def end(self, phase: str) -> None:
        """
        Count no more; what was counted is a phase's.
        """
        self.spent[phase] += time.perf_counter() - self._began


class ProfileMeter(Meter):
    """
    The same by functions.
    """

    def __init__(self) -> None:
        super().__init__()
        self.profile = cProfile.Profile()

    def begin(self) -> None:
        """
        Profile from now on.
        """
        self.profile.enable()

    def end(self, phase: str) -> None:
        """
        Profile no more.
        """
        self.profile.disable()


class CallgrindMeter(Meter):
    """
    The same in instructions, which valgrind writes into files.
    """

    def __init__(self) -> None:
        super().__init__()
        self._library = ctypes.CDLL(str(c_library("phases.c", "valgrind")))

    def start(self) -> None:
        """
        Have valgrind look at the program, which makes it slow.
        """
        self._library.begin()

    def begin(self) -> None:
        """
        Count from now on.
        """
        self._library.toggle()

    def end(self, phase: str) -> None:
        """
        Write down what was counted.
        """
        self._library.toggle()
        self._library.dump(phase.encode())

    def stop(self) -> None:
        """
        Have it look no more.
        """
        self._library.end()


class Bench:
    """
    A milter that listens, and its MTA.

    :param count: How many connections there are at once.
    :param observed: By what the milter is observed: ``"metrics"``, ``"log"``, or nothing.
    """

    def __init__(self, count: int, observed: Sequence[str] = ()) -> None:
        sys.path.insert(0, str(HERE / "peers"))
        # Not at the top: to import the reactor is to install it.
        peer: Any = importlib.import_module("ours")
        self.count = count
        self._reactor: Any = importlib.import_module("twisted.internet.reactor")
        self._factory = peer.make_factory()
        if "metrics" in observed:
            importlib.import_module("yatxmilter.metrics").MilterMetrics().watch(self._factory)
        if "log" in observed:
            self._factory.begin_message_log()
        self._folder = tempfile.mkdtemp(prefix="yatx")
        self._path = os.path.join(self._folder, "s")
        self._port = self._reactor.listenUNIX(self._path, self._factory, backlog=4096)
        self._sockets: list[socket.socket] = []
        self._said = steps()

    def round(self, meter: Meter) -> None:
        """
        Send one message on each connection, all of them new.
        """
        for _ in range(self.count):
            mta = socket.socket(socket.AF_UNIX)
            mta.connect(self._path)
            self._sockets.append(mta)
        self._turns(meter, "accept", lambda: len(self._factory.connections) == self.count)
        for step in self._said:
            for mta in self._sockets:
                mta.sendall(step.data)
            self._turns(meter, step.phase, self._answered)
            for mta in self._sockets:
                answer = mta.recv(1000)
                assert answer.startswith(step.answer), (step.phase, answer)
        for mta in self._sockets:
            mta.sendall(packet("Q"))
        self._turns(meter, "quit and close", lambda: not self._factory.connections)
        for mta in self._sockets:
            mta.close()
        self._sockets.clear()

    def _turns(self, meter: Meter, phase: str, done: Callable[[], bool]) -> None:
        for _ in range(1000):
            meter.begin()
            self._reactor.iterate(0)
            meter.end(phase)
            if done():
                return
        raise AssertionError(f"{phase}: not done after a thousand turns of the reactor")

    def _answered(self) -> bool:
        readable, _, _ = select.select(self._sockets, [], [], 0)
        return len(readable) == self.count

    def close(self) -> None:
        """
        Listen no more.
        """
        self._port.stopListening()
        self._reactor.iterate(0)
        shutil.rmtree(self._folder)


def microseconds(bench: Bench, rounds: int) -> dict[str, float]:
    """
    Measure the phases of one message in microseconds: the least of some rounds for each.
    """
    found: dict[str, list[float]] = {phase: [] for phase in PHASES}
    for number in range(rounds + 3):
        meter = Meter()
        bench.round(meter)
        # What is done once, and what a warm processor saves, is no part of a message.
        if number >= 3:
            for phase in PHASES:
                found[phase].append(meter.spent[phase] / bench.count * 1e6)
    return {phase: min(values) for phase, values in found.items()}


def functions(bench: Bench, rounds: int, lines: int) -> str:
    """
    Write a table of the functions that take the most time by themselves.

    :param lines: How many.
    """
    meter = ProfileMeter()
    for _ in range(rounds):
        bench.round(meter)
    stats: Any = pstats.Stats(meter.profile)
    messages = rounds * bench.count
    rows = sorted(stats.stats.items(), key=lambda row: -row[1][2])[:lines]
    written = ["| function | calls a message | % by itself | % with what it calls |"]
    written.append("|---|--:|--:|--:|")
    for place, (_, calls, own, whole, _) in rows:
        parts = (calls / messages, own / stats.total_tt * 100, whole / stats.total_tt * 100)
        written.append("| {} | {:.1f} | {:.1f} | {:.1f} |".format(_named(*place), *parts))
    return "\n".join(written)


def _named(file: str, line: int, function: str) -> str:
    # Of a built-in function there is only the name.
    name = function.replace("|", "/")
    return name if file == "~" else f"{'/'.join(Path(file).parts[-2:])}:{line} {name}"


# ---- instructions


@contextlib.contextmanager
def _counted(count: int, observed: Sequence[str], *options: str) -> Iterator[tuple[Path, int]]:
    """
    Run some rounds under valgrind; give the folder with what it wrote, and the process's number.
    """
    valgrind = tool("valgrind", "valgrind")
    c_library("phases.c", "valgrind")
    with tempfile.TemporaryDirectory(prefix="yatxmilter-") as folder:
        with subprocess.Popen(
            [
                *(valgrind, "--tool=callgrind", "--instr-atstart=no", "--collect-atstart=no"),
                *options,
                f"--callgrind-out-file={folder}/out",
                *(sys.executable, "-m", "benchmarks.phases", "--count", str(count), "--inside"),
                *(f"--{each}" for each in observed),
            ],
            env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONPERFSUPPORT": "1" if options else "0"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            _, errors = process.communicate()
        if process.returncode:
            lines = errors.strip().splitlines()
            raise Unavailable(f"valgrind: {lines[-1] if lines else process.returncode}")
        yield Path(folder), process.pid


def _dumps(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in folder.glob("out.*"):
        with path.open(errors="replace") as lines:
            for line in lines:
                found = re.match(r"desc: Trigger: Client Request: (.*)", line)
                if found:
                    yield found[1], path
                    break


def total(path: Path) -> int:
    """
    Read how many instructions one of valgrind's files counts.

    :raises Unavailable: when it says nothing of it.
    """
    for line in path.read_text(errors="replace").splitlines():
        found = re.match(r"(?:totals|summary): (\d+)", line)
        if found:
            return int(found[1])
    raise Unavailable(f"valgrind counted nothing in {path.name}")


def instructions(count: int, observed: Sequence[str]) -> dict[str, float]:
    """
    Count the instructions of each phase of one message.
    """
    found: dict[str, float] = defaultdict(float)
    with _counted(count, observed) as (folder, _):
        for phase, path in _dumps(folder):
            found[phase] += total(path) / count / _COUNTED
    return dict(found)


def instructions_by_function(count: int, observed: Sequence[str], lines: int) -> str:
    """
    Write a table of the Python functions with the most instructions by themselves.

    :param lines: How many.
    :raises Unavailable: on a Python that cannot tell where its functions are.
    """
    if sys.version_info < (3, 12):
        raise Unavailable("instructions by function need Python 3.12 or newer")
    found: Counter[str] = Counter()
    with _counted(count, observed, f"--separate-callers={CALLERS}") as (folder, pid):
        written = Path(f"/tmp/perf-{pid}.map")
        try:
            functions = FunctionMap(written.read_text())
        finally:
            written.unlink(missing_ok=True)
        for _, path in _dumps(folder):
            found += attribute(path, functions)
    messages, whole = count * _COUNTED, sum(found.values())
    rows = ["| function | instructions a message | % |", "|---|--:|--:|"]
    for name, number in found.most_common(lines):
        rows.append(f"| {name} | {number / messages:,.0f} | {number / whole * 100:.1f} |")
    return "\n".join(rows)


def _inside(count: int, observed: Sequence[str]) -> None:
    """
    Be the program that valgrind looks at.
    """
    bench, meter = Bench(count, observed), CallgrindMeter()
    # What is done only once has been done before it is counted.
    bench.round(Meter())
    # It would be chance whether the collector looks at all that was made before in the few rounds
    # that are counted: it does so once in thousands of messages.
    gc.collect()
    gc.freeze()
    meter.start()
    bench.round(Meter())
    for _ in range(_COUNTED):
        bench.round(meter)
    meter.stop()
    bench.close()


# ---- the command


def table(times: dict[str, float], counts: dict[str, float]) -> str:
    """
    Write the phases as Markdown; the last row is their sum.

    :param counts: Instructions; may be empty.
    """
    headings = ["phase", "µs/message", "%", "µs each"] + (["instructions"] if counts else [])
    lines = [f"| {' | '.join(headings)} |", f"|---|{'--:|' * (len(headings) - 1)}"]
    whole = sum(times.values())
    for phase in PHASES:
        each = f"{times[phase] / EACH[phase]:.2f}" if phase in EACH else ""
        name = f"{phase}, {EACH[phase]}" if phase in EACH else phase
        cells = [name, f"{times[phase]:.1f}", f"{times[phase] / whole * 100:.0f}", each]
        cells += [f"{counts.get(phase, 0):,.0f}"] if counts else []
        lines.append(f"| {' | '.join(cells)} |")
    cells = ["a message", f"{whole:.1f}", "100", ""]
    cells += [f"{sum(counts.values()):,.0f}"] if counts else []
    lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.phases", description=(__doc__ or "").strip().splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=200, help="default: 200")
    parser.add_argument(
        "--count", type=int, default=20, help="so many connections at once (default: 20)"
    )
    parser.add_argument("--instructions", action="store_true", help="count them, with valgrind")
    parser.add_argument(
        "--by-function", type=int, default=0, metavar="N", help="list the N costliest functions"
    )
    parser.add_argument("--metrics", action="store_true", help="count the milter's metrics, too")
    parser.add_argument("--log", action="store_true", help="log each message, as serve does")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    for name in ("rounds", "count"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)}: 1 or more are needed")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Measure, and print the table; give the exit status.
    """
    options = _options(arguments)
    observed = [each for each in ("metrics", "log") if getattr(options, each)]
    if options.inside:
        _inside(options.count, observed)
        return 0
    warning = unoptimised()
    if warning:
        print(warning, file=sys.stderr)
    counts: dict[str, float] = {}
    listed = ""
    if options.instructions:
        try:
            counts = instructions(options.count, observed)
            if options.by_function:
                listed = instructions_by_function(options.count, observed, options.by_function)
        except Unavailable as reason:
            print(f"cannot count: {reason}", file=sys.stderr)
            return 2
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, {MILTER_CORE})
    bench = Bench(options.count, observed)
    times = microseconds(bench, options.rounds)
    if options.by_function and not listed:
        listed = functions(bench, options.rounds, options.by_function)
    bench.close()
    print(f"{options.count} connections at once, the least of {options.rounds} rounds:\n")
    print(table(times, counts))
    if listed:
        print(f"\n{listed}")
    return 0


if __name__ == "__main__":
    end_well()
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
