"""
The floor of the ordinary Twisted way: ``transport.write`` of constants, and nothing decoded.

A milter that is written as a plain Twisted protocol cannot need less than this.
"""

# ruff: noqa: D101, D102, D103

from __future__ import annotations

import settings
from twisted.internet import reactor
from twisted.internet.protocol import Factory, Protocol

CONTINUE = b"\0\0\0\1c"
ANSWERS = dict.fromkeys(b"CHMRTUNB", CONTINUE)
ANSWERS[ord("O")] = b"\0\0\0\x0dO\0\0\0\6\0\0\0\1\0\0\0" + (b"\x80" if settings.NOREPLY else b"\0")
ANSWERS[ord("L")] = b"" if settings.NOREPLY else CONTINUE
ANSWERS[ord("E")] = (b"\0\0\0\x0ehX-Bench\0seen\0" if settings.ADD else b"") + CONTINUE


class Constant(Protocol):
    def __init__(self) -> None:
        self.waiting = b""

    def dataReceived(self, data: bytes) -> None:
        if self.waiting:
            data = self.waiting + data
        at, size, answer = 0, len(data), b""
        while size - at >= 5:
            end = at + 4 + int.from_bytes(data[at : at + 4], "big")
            if end > size:
                break
            letter = data[at + 4]
            if letter == 81:
                self.transport.loseConnection()
                return
            answer += ANSWERS.get(letter, b"")
            at = end
        self.waiting = data[at:]
        if answer:
            self.transport.write(answer)


def main() -> None:
    factory = Factory.forProtocol(Constant)
    factory.noisy = False
    if settings.PATH:
        reactor.listenUNIX(settings.PATH, factory, backlog=4096)
    else:
        reactor.listenTCP(settings.PORT, factory, backlog=4096, interface="127.0.0.1")
    reactor.run()


if __name__ == "__main__":
    main()
