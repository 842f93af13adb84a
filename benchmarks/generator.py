"""
The load generator, ``load.c``, as a process; and whether its report is what it has to be.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

from .build import c_program
from .processes import OTHER_CORE, pin, status

_CHUNK = 65_535
#: Protocol steps by which a milter declines what every one here has to be shown.
_DECLINED = 0x01 | 0x02 | 0x04 | 0x08 | 0x10 | 0x20 | 0x40 | 0x200
_NR_HDR = 0x80


class Wrong(Exception):
    """
    A milter that did not answer as it has to.
    """


def load_command(where: str, options: Mapping[str, object]) -> list[str]:
    """
    Give the command that runs the load generator; an option that is true is a switch.
    """
    words = [str(c_program("load.c")), "--target", where]
    for name, value in options.items():
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return words


@contextlib.contextmanager
def generating(
    where: str, options: Mapping[str, object], everywhere: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """
    Start the load generator.

    :param everywhere: Whether it may use the milter's core, too.
    """
    with subprocess.Popen(
        load_command(where, options),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=pin(OTHER_CORE, everywhere),
    ) as load:
        try:
            yield load
        finally:
            load.kill()


def finish(
    load: subprocess.Popen[bytes], options: Mapping[str, object], pid: int
) -> tuple[dict[str, Any], int]:
    """
    Let the load generator run to its end.

    :param pid: The milter's process.
    :return: What it reported, and the most threads that the milter was seen to have.
    :raises Wrong: when an answer was not what it has to be.
    """
    threads = 0
    while True:
        threads = max(threads, status(pid, "Threads"))
        with contextlib.suppress(subprocess.TimeoutExpired):
            output, _ = load.communicate(timeout=0.2)
            return judged(output, options), threads


def judged(output: bytes, options: Mapping[str, object]) -> dict[str, Any]:
    """
    Read the generator's report, the last line of its output, and check what it counted.

    :raises Wrong: when that is not what such a run has to give.
    """
    lines = output.splitlines()
    if not lines:
        raise Wrong("the load generator died")
    report: dict[str, Any] = json.loads(lines[-1])
    if "fault" in report:
        raise Wrong(report["fault"])
    if report["steps"] & _DECLINED:
        raise Wrong(f"it declined steps: {report['steps'] & _DECLINED:#x}")
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
    each = 5 + (0 if report["steps"] & _NR_HDR else headers) + -(-body // _CHUNK)
    return report["connections"] * 3 + report["messages"] * each + report["added"]
