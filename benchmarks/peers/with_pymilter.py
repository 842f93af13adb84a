"""
The benchmark's milter on pymilter: every callback defined, each reads its arguments.
"""

# ruff: noqa: D101, D102, D103

from __future__ import annotations

import time

import Milter
import settings
from Milter import CONTINUE


class Bench(Milter.Base):
    seen = 0

    def connect(self, hostname, family, hostaddr):
        self.seen += len(hostname) + (hostaddr is not None)
        return CONTINUE

    def hello(self, hostname):
        self.seen += len(hostname)
        return CONTINUE

    def envfrom(self, *argv):
        for each in argv:
            self.seen += len(each)
        return CONTINUE

    def envrcpt(self, *argv):
        for each in argv:
            self.seen += len(each)
        return CONTINUE

    def data(self):
        return CONTINUE

    def unknown(self, arg):
        self.seen += len(arg)
        return CONTINUE

    def header(self, name, value):
        self.seen += len(name) + len(value)
        return CONTINUE

    def eoh(self):
        return CONTINUE

    def body(self, chunk):
        self.seen += len(chunk) + chunk[0]
        return CONTINUE

    def eom(self):
        if settings.WAIT:
            time.sleep(settings.WAIT)
        if settings.ADD:
            self.addheader("X-Bench", "seen")
        return CONTINUE

    def abort(self):
        return CONTINUE

    def close(self):
        return CONTINUE


class BenchNoReply(Bench):
    @Milter.noreply
    def header(self, name, value):
        self.seen += len(name) + len(value)
        return CONTINUE


def main() -> None:
    Milter.factory = BenchNoReply if settings.NOREPLY else Bench
    Milter.set_flags(Milter.ADDHDRS)
    import milter

    milter.setbacklog(4096)
    Milter.runmilter("bench", settings.LISTEN, timeout=7210)


if __name__ == "__main__":
    main()
