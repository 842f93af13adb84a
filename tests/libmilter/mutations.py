"""
Breaks rules of yatxmilter on purpose, one at a time, and shows that the comparison notices.

    python -m tests.libmilter.mutations [--cases 2000]

Each mutation is one replacement in a temporary copy of the package; nothing of the checkout is
changed. The cases are those of `python -m tests.libmilter` with the same number. The exit status is
0 when the package as it is passes and each mutation is caught.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from typing import NamedTuple

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Mutation(NamedTuple):
    """One rule, and the replacement that breaks it."""

    rule: str
    module: str
    old: str
    new: str


MUTATIONS = (
    Mutation(
        "an unknown command leaves the state as it is",
        "commands",
        'xxfi_unknown", 10, wire.decode_line, None,',
        'xxfi_unknown", 10, wire.decode_line, UNKN,',
    ),
    Mutation(
        "RCPT ends the macros of later stages only",
        "commands",
        "NR_RCPT, stale=4",
        "NR_RCPT, stale=3",
    ),
    Mutation("RCPT is not legal behind DATA", "commands", '"LNA", "LNA",', '"RLNA", "LNA",'),
    Mutation(
        "a declined state is passed over",
        "commands",
        "legal[state] |= legal[state + 1]",
        "legal[state] |= 0",
    ),
    Mutation(
        "the macros of the last stage are found first",
        "macros",
        "for stage in range(6, -1, -1):",
        "for stage in range(7):",
    ),
    Mutation(
        "x and {x} are one macro only if x is one letter",
        "macros",
        "if len(name) == 3 and",
        "if len(name) >= 3 and",
    ),
    Mutation("a reply line has 980 bytes at most", "constants", "LEN = 980", "LEN = 981"),
    Mutation(
        "a text is used with a code of its class only",
        "context",
        "if wanted is None or not reply.startswith(wanted):",
        "if wanted is None:",
    ),
    Mutation("ESMTP arguments may be empty", "context", "if args is not None:", "if args:"),
    Mutation(
        "an empty new body is sent", "context", "range(0, len(body) or 1,", "range(0, len(body),"
    ),
    Mutation("header index 0 is legal", "context", "not 0 <= index", "not 0 < index"),
    Mutation("edits need the flag of their own", "context", "& action.flag", "& 0x1FF"),
    Mutation(
        "the separator of a header is never its first byte",
        "wire",
        'payload.find(b"\\0", 1)',
        'payload.find(b"\\0", 0)',
    ),
    Mutation(
        "the longest payload has 65535 bytes",
        "packets",
        "if not 0 < length <= self.limit + 1:\n                    length = self._odd_length",
        "if not 0 < length <= self.limit:\n                    length = self._odd_length",
    ),
    Mutation(
        "version 6 is the highest answered",
        "negotiation",
        "min(version, c.SMFI_PROT_VERSION)",
        "version",
    ),
    Mutation(
        "no actions offered mean those of version 1",
        "negotiation",
        "actions or c.SMFI_V1_ACTS",
        "actions",
    ),
    Mutation(
        "ALL_OPTS asks for SKIP",
        "members",
        "self.steps | offer.steps & c.SMFIP_SKIP, lists",
        "self.steps, lists",
    ),
    Mutation(
        "a recipient's REJECT is about that recipient alone",
        "verdicts",
        "return code is c.SMFIS_ACCEPT",
        "return code is not c.SMFIS_TEMPFAIL",
    ),
    Mutation(
        "a command out of order ends the message",
        "session",
        "                if self.in_message:\n",
        "                if False:\n",
    ),
    Mutation(
        "an illegal command is looked at once more as if after HELO",
        "session",
        "self._again = packet\n",
        "self._again = None\n",
    ),
    Mutation(
        "edits of an xxfi_eom that failed stand where on_error lets the message pass",
        "calling",
        "member.failed = answer.disconnects or answer.code not in _PASSES",
        "member.failed = True",
    ),
    Mutation(
        "on_error may have a text",
        "onerror",
        "return Fallback(on_error.code, on_error.text)",
        "return Fallback(on_error.code)",
    ),
    Mutation(
        "of several milters none sends edits with a refusal",
        "merging",
        "if len(self._members) == 1 and not self._members[0].failed:",
        "if not self._members[0].failed:",
    ),
)


def _run(old: Mutation | None, cases: int) -> tuple[int, str]:
    """Run the comparison on a copy of the package, with or without a mutation."""
    with tempfile.TemporaryDirectory(prefix="yatxmutant") as folder:
        package = os.path.join(folder, "yatxmilter")
        shutil.copytree(
            os.path.join(_ROOT, "yatxmilter"), package, ignore=shutil.ignore_patterns("*.pyc")
        )
        os.symlink(os.path.join(_ROOT, "tests"), os.path.join(folder, "tests"))
        if old is not None:
            _break(os.path.join(package, old.module + ".py"), old)
        done = subprocess.run(
            [
                *(sys.executable, "-m", "tests.libmilter", "--raw", "--stop", "1"),
                *("--cases", str(cases)),
            ],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
        )
    return done.returncode, done.stdout + done.stderr


def _break(path: str, mutation: Mutation) -> None:
    with open(path, encoding="utf-8") as stream:
        text = stream.read()
    if text.count(mutation.old) != 1:
        count = text.count(mutation.old)
        raise SystemExit(f"{path}: {mutation.old!r} is there {count} times; mend the mutation")
    with open(path, "w", encoding="utf-8") as stream:
        stream.write(text.replace(mutation.old, mutation.new))


def _first_case(output: str) -> str:
    for line in output.splitlines():
        if line.startswith("DIFFERENCE 1: "):
            return line[len("DIFFERENCE 1: ") :]
    return output.strip().splitlines()[-1] if output.strip() else "?"


def main(arguments: list[str] | None = None) -> int:
    """Run all mutations and print the table; give the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.libmilter.mutations")
    parser.add_argument("--cases", type=int, default=2000, help="of each profile")
    cases = parser.parse_args(arguments).cases
    status, output = _run(None, cases)
    print(f"{'as it is':60} {'passes' if status == 0 else 'FAILS: ' + _first_case(output)}")
    missed = status != 0
    for mutation in MUTATIONS:
        status, output = _run(mutation, cases)
        caught = status == 1 and "DIFFERENCE" in output
        missed = missed or not caught
        verdict = "caught by" if caught else "MISSED:"
        print(f"not: {mutation.rule:55} {verdict} {_first_case(output)}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
