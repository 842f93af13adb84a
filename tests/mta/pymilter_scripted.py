"""
A program written for pymilter that does at random what such programs do, and writes down what it
is called with: run on the real pymilter and on ours, with the same seed, it must do the same.

``pymilter_scripted.py SOCKET LOG KIND SEED``
"""

from __future__ import annotations

import faulthandler
import random
import sys
from pathlib import Path

import Milter
import milter

faulthandler.enable()
SOCKET, LOG, KIND, SEED = sys.argv[1:5]
log = open(LOG, "a", buffering=1)  # noqa: SIM115
made: dict[str, int] = {}

CODES = {
    "connect": (Milter.REJECT, Milter.TEMPFAIL, Milter.ACCEPT),
    "hello": (Milter.REJECT, Milter.TEMPFAIL, Milter.ACCEPT),
    "unknown": (Milter.REJECT, Milter.TEMPFAIL),
}
MESSAGE = (Milter.REJECT, Milter.TEMPFAIL, Milter.ACCEPT, Milter.DISCARD)


def write(*what: object) -> None:
    log.write(repr(what) + "\n")


def attempt(name: str, function, *arguments):
    try:
        write(name, function(*arguments))
    except Exception as error:
        # A reason stands behind ours.
        text = str(error)
        write(name, type(error).__name__, text.partition(":")[0] if "cannot" in text else "")


class Scripted(Milter.Base):
    def __init__(self):
        # Who plays the session says which one it is, and how many objects there were in it.
        seed = Path(LOG + ".seed").read_text()
        made[seed] = made.get(seed, 0) + 1
        self.random = random.Random(f"{SEED}/{seed}/{made[seed]}")

    def step(self, stage: str, *arguments: object) -> int:
        write(stage, *arguments)
        for name in ("i", "{client_addr}", "j", "{rcpt_addr}", "x", "client_addr"):
            if self.random.random() < 0.2:
                attempt(f"macro {name}", self.getsymval, name)
        if self.random.random() < 0.03:
            attempt("addheader", self._ctx.addheader, "X-Early", "x") if stage != "eom" else None
        # ACCEPT, which is a policy, is no answer to an unknown command: ours continues.
        if self.random.random() < 0.03 and stage != "unknown":
            raise RuntimeError(stage)
        if self.random.random() < 0.02:
            return None
        if self.random.random() < 0.9:
            return Milter.CONTINUE
        code = self.random.choice(CODES.get(stage, MESSAGE))
        if code in (Milter.REJECT, Milter.TEMPFAIL) and self.random.random() < 0.6:
            lines = ["one 100%%", "two", "three"][: self.random.randint(1, 3)]
            first = "5" if code == Milter.REJECT else "4"
            xcode = self.random.choice([f"{first}.7.1", None])
            attempt("setreply", self.setreply, f"{first}50", xcode, *lines)
        return code

    def connect(self, hostname, family, hostaddr):
        return self.step("connect", hostname, family, hostaddr)

    def hello(self, hostname):
        return self.step("hello", hostname)

    def envfrom(self, *argv):
        return self.step("envfrom", *argv)

    def envrcpt(self, *argv):
        return self.step("envrcpt", *argv)

    def data(self):
        return self.step("data")

    def unknown(self, cmd):
        return self.step("unknown", cmd)

    def header(self, name, value):
        return self.step("header", name, value)

    def eoh(self):
        return self.step("eoh")

    def body(self, chunk):
        code = self.step("body", len(chunk), chunk[:10])
        skips = self._protocol & Milter.P_SKIP and self.random.random() < 0.2
        return Milter.SKIP if skips and code == Milter.CONTINUE else code

    def eom(self):
        write("eom")
        pick = self.random
        edits = [
            ("addheader", "X-A", pick.choice(["v", "\u20ac", "a\n\tb", ""])),
            ("addheader", "X-B", "v", pick.randint(0, 3)),
            ("chgheader", "Subject", pick.randint(0, 2), pick.choice(["new", "", "x\n y"])),
            ("addrcpt", "<new@example.com>"),
            ("addrcpt", "<new@example.com>", "NOTIFY=NEVER"),
            ("delrcpt", "<one@example.com>"),
            ("chgfrom", "<changed@example.com>"),
            ("chgfrom", "<changed@example.com>", "SIZE=1"),
            ("quarantine", "for a while"),
            ("progress",),
            ("addheader", "X\u20ac\udc80", "v"),
            ("addheader", "X-C", b"bytes"),
            ("addheader", "X-C", "nul\0"),
            ("addrcpt", ""),
            ("delrcpt", None),
            ("replacebody", None),
            ("chgheader", "Subject", "1", "x"),
        ]
        for edit in pick.sample(edits, pick.randint(0, 4)):
            if edit[0] != "progress" or KIND != "edits":
                attempt(edit[0], getattr(self, edit[0]), *edit[1:])
        if pick.random() < 0.3:
            for piece in pick.sample([b"a\r\n" * 50, "text\r\n", b"x" * 70000, b""], 2):
                attempt("replacebody", self.replacebody, piece)
        return pick.choice([Milter.CONTINUE, Milter.CONTINUE, Milter.ACCEPT])

    def abort(self):
        write("abort")
        attempt("macro i", self.getsymval, "i")
        return Milter.CONTINUE

    def close(self):
        write("close")
        return Milter.CONTINUE


class Few(Scripted):
    @Milter.nocallback
    def hello(self, hostname):
        return Milter.CONTINUE

    @Milter.nocallback
    def eoh(self):
        return Milter.CONTINUE

    @Milter.nocallback
    def data(self):
        return Milter.CONTINUE

    @Milter.nocallback
    def unknown(self, cmd):
        return Milter.CONTINUE


class Silent(Scripted):
    # What is promised is kept: an answer that was not promised is lost in libmilter.
    @Milter.noreply
    def connect(self, hostname, family, hostaddr):
        write("connect", hostname, family, hostaddr)
        return Milter.CONTINUE

    @Milter.noreply
    def header(self, name, value):
        write("header", name, value)
        return Milter.CONTINUE

    @Milter.noreply
    def body(self, chunk):
        write("body", len(chunk))
        return Milter.CONTINUE


class Decoding(Scripted):
    @Milter.decode("bytes")
    def envfrom(self, *argv):
        return self.step("envfrom", *argv)

    @Milter.decode("strict")
    def envrcpt(self, *argv):
        return self.step("envrcpt", *argv)

    @Milter.decode("replace")
    def header(self, name, value):
        return self.step("header", name, value)


class Negotiating(Scripted):
    def negotiate(self, opts):
        write("negotiate", *opts)
        attempt("macro i", self.getsymval, "i")
        chance = self.random.random()
        if chance < 0.1:
            return Milter.REJECT
        if chance < 0.2:
            raise RuntimeError("negotiate")
        if chance < 0.4:
            self._setctx(self._ctx)
            return Milter.ALL_OPTS
        code = super().negotiate(opts)
        write("agreed", code, *opts)
        opts[0] &= Milter.ADDHDRS | Milter.CHGBODY
        if chance < 0.6:
            attempt("symbols", self._ctx.setsymlist, Milter.M_HELO, "j i")
        self._actions = opts[0]
        return code


KINDS = {
    "plain": Scripted,
    "edits": Scripted,
    "few": Few,
    "silent": Silent,
    "decoding": Decoding,
    "negotiating": Negotiating,
    "rejected": Milter.rejected_recipients(type("Rejected", (Scripted,), {})),
    "leading": Milter.header_leading_space(type("Leading", (Scripted,), {})),
}


def low_level() -> None:
    """
    Use the module alone, as programs did before there was a package.
    """

    def started(ctx, *arguments):
        write("connect", *arguments)
        write("priv", ctx.setpriv(len(arguments)), ctx.getpriv())
        return milter.CONTINUE

    def other(stage):
        return lambda ctx, *arguments: (write(stage, ctx.getpriv(), *arguments), milter.CONTINUE)[1]

    milter.set_connect_callback(started)
    for stage in ("helo", "envfrom", "header", "body", "eom", "abort", "close"):
        getattr(milter, f"set_{stage}_callback")(other(stage))
    milter.setconn(SOCKET)
    milter.register("low level", data=other("data"), negotiate=None)
    milter.opensocket(True)
    milter.main()


def run() -> None:
    if KIND == "low":
        low_level()
        return
    policies = {"few": Milter.REJECT, "decoding": Milter.CONTINUE, "rejected": Milter.ACCEPT}
    Milter.set_exception_policy(policies.get(KIND, Milter.TEMPFAIL))
    Milter.factory = KINDS[KIND]
    Milter.set_flags(Milter.CURR_ACTS)
    Milter.runmilter("scripted", SOCKET, 240)
    write("returned")


if __name__ == "__main__":
    run()
