"""
The benchmark's milter on python-libmilter, in threads: every callback overridden.

Threads, because a milter that waits would stop all others of its asynchronous factory.
"""

# ruff: noqa: D101, D102, D103

from __future__ import annotations

import time

import libmilter as lm
import settings


def _noreply_if_asked(callback):
    return lm.noReply(callback) if settings.NOREPLY else callback


class Bench(lm.ThreadMixin, lm.MilterProtocol):
    seen = 0

    def __init__(self, opts=0, protos=0):
        lm.MilterProtocol.__init__(self, opts, protos)
        lm.ThreadMixin.__init__(self)

    def connect(self, hostname, family, ip, port, macros):
        self.seen += len(hostname) + len(ip)
        return lm.CONTINUE

    def helo(self, name):
        self.seen += len(name)
        return lm.CONTINUE

    def mailFrom(self, address, macros):
        self.seen += len(address)
        return lm.CONTINUE

    def rcpt(self, address, macros):
        self.seen += len(address)
        return lm.CONTINUE

    def data(self, macros):
        return lm.CONTINUE

    def unknown(self, macros, data):
        self.seen += len(data)
        return lm.CONTINUE

    def header(self, name, value, macros):
        self.seen += len(name) + len(value)
        return lm.CONTINUE

    header = _noreply_if_asked(header)

    def eoh(self, macros):
        return lm.CONTINUE

    def body(self, chunk, macros):
        self.seen += len(chunk) + chunk[0]
        return lm.CONTINUE

    def eob(self, macros):
        if settings.WAIT:
            time.sleep(settings.WAIT)
        if settings.ADD:
            self.addHeader(b"X-Bench", b"seen")
        return lm.CONTINUE

    def abort(self):
        pass

    def close(self):
        pass


def main() -> None:
    where = settings.PATH or f"inet:127.0.0.1:{settings.PORT}"
    lm.ThreadFactory(where, Bench, lm.SMFIF_ADDHDRS, listenq=4096).run()


if __name__ == "__main__":
    main()
