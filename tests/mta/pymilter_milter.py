"""
A program written for pymilter that does what a scenario says: ``SCENARIO LOG SPEC``.

The scenario (`tests.mta.control`) is read from its file for each connection; a line of JSON is
written for each callback and for each macro asked for. It runs on the real pymilter and on ours.
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

import Milter

SCENARIO, LOG, SPEC = sys.argv[1:4]
log = open(LOG, "a", buffering=1)  # noqa: SIM115
NAMES = {"xxfi_helo": "hello"}


def plain(value):
    if isinstance(value, dict):
        return base64.b64decode(value["base64"])
    return value


def shown(value):
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return list(value) if isinstance(value, tuple) else value


class Base(Milter.Base):
    def note(self, what, *args):
        log.write(json.dumps([what, *map(shown, args)]) + "\n")

    def play(self, name, steps, args):
        self.note(name, *args)
        if isinstance(steps, dict):
            steps = steps.get(args[0], [])
        code = Milter.CONTINUE
        for step in steps:
            if isinstance(step, str):
                code = getattr(Milter, step)
                continue
            what, *rest = step
            rest = [plain(one) for one in rest]
            if what == "raise":
                raise RuntimeError(*rest)
            getattr(self, f"do_{what.removeprefix('smfi_')}")(*rest)
        return code

    def do_getsymval(self, name):
        self.note("macro", name, self.getsymval(name))

    def do_setreply(self, code, status=None, *lines):
        self._ctx.setreply(code, status, *lines)

    do_setmlreply = do_setreply

    def do_insheader(self, index, name, value):
        self.addheader(name, value, index)

    def do_addheader(self, *args):
        self.addheader(*args)

    def do_chgheader(self, *args):
        self.chgheader(*args)

    def do_chgfrom(self, *args):
        self.chgfrom(*args)

    def do_addrcpt(self, *args):
        self.addrcpt(*args)

    do_addrcpt_par = do_addrcpt

    def do_delrcpt(self, *args):
        self.delrcpt(*args)

    def do_replacebody(self, *args):
        self.replacebody(*args)

    def do_quarantine(self, *args):
        self.quarantine(*args)

    def do_progress(self):
        self.progress()


def callback(name, steps):
    def method(self, *args):
        return self.play(name, steps, args)

    method.__name__ = NAMES.get(name, name.removeprefix("xxfi_"))
    return method


def negotiate(agreed):
    def method(self, opts):
        Milter.Base.negotiate(self, opts)
        opts[0] &= agreed[0]
        opts[1] = opts[1] | agreed[1]
        return Milter.CONTINUE

    return method


def build():
    scenario = json.loads(Path(SCENARIO).read_text())
    members = {}
    for name, steps in scenario["callbacks"].items():
        if name == "xxfi_negotiate":
            members["negotiate"] = negotiate(steps[0][1:])
            continue
        made = callback(name, steps)
        if name in scenario["noreply"]:
            made = Milter.noreply(made)
        members[made.__name__] = made
    return type("Scripted", (Base,), members)()


if __name__ == "__main__":
    Milter.factory = build
    Milter.runmilter("scripted", SPEC, 240)
