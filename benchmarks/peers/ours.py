"""
The benchmark's milter on yatxmilter: every callback overridden, each reads its arguments.

It listens with a plain ``reactor.listenUNIX`` or ``listenTCP``. ``BENCH_STYLE`` chooses what the
callbacks return: nothing, a Deferred that has fired, or a coroutine; none of them waits.
"""

# ruff: noqa: D101, D102, D103

from __future__ import annotations

from typing import Any

import settings
from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import deferLater

from yatxmilter import Milter, MilterFactory, MilterProtocolFactory, noreply
from yatxmilter.constants import SMFIS_CONTINUE


class Bench(Milter):
    seen = 0

    def xxfi_connect(self, hostname: str, hostaddr: object) -> Any:
        self.seen += len(hostname) + (hostaddr is not None)

    def xxfi_helo(self, helohost: str) -> Any:
        self.seen += len(helohost)

    def xxfi_envfrom(self, argv: list[str]) -> Any:
        for each in argv:
            self.seen += len(each)

    def xxfi_envrcpt(self, argv: list[str]) -> Any:
        for each in argv:
            self.seen += len(each)

    def xxfi_data(self) -> Any:
        pass

    def xxfi_unknown(self, arg: str) -> Any:
        self.seen += len(arg)

    def xxfi_header(self, headerf: str, headerv: str) -> Any:
        self.seen += len(headerf) + len(headerv)

    def xxfi_eoh(self) -> Any:
        pass

    def xxfi_body(self, bodyp: bytes) -> Any:
        self.seen += len(bodyp) + bodyp[0]

    def xxfi_eom(self) -> Any:
        if settings.WAIT:
            return self.wait_and_add()
        self.add()
        return None

    def xxfi_abort(self) -> None:
        pass

    def xxfi_close(self) -> None:
        pass

    def add(self) -> None:
        if settings.ADD:
            self.smfi_addheader("X-Bench", "seen")

    def wait_and_add(self) -> Deferred[Any]:
        waited: Deferred[None] = deferLater(reactor, settings.WAIT)
        return waited.addCallback(lambda _: self.add())


class BenchNoReply(Bench):
    @noreply
    def xxfi_header(self, headerf: str, headerv: str) -> Any:
        self.seen += len(headerf) + len(headerv)


class BenchDeferred(Bench):
    """
    The same, and each callback returns a Deferred that has fired.
    """


class BenchCoroutine(Bench):
    """
    The same with coroutines that do not wait.
    """

    async def xxfi_connect(self, hostname: str, hostaddr: object) -> None:
        self.seen += len(hostname) + (hostaddr is not None)

    async def xxfi_helo(self, helohost: str) -> None:
        self.seen += len(helohost)

    async def xxfi_envfrom(self, argv: list[str]) -> None:
        for each in argv:
            self.seen += len(each)

    async def xxfi_envrcpt(self, argv: list[str]) -> None:
        for each in argv:
            self.seen += len(each)

    async def xxfi_data(self) -> None:
        pass

    async def xxfi_unknown(self, arg: str) -> None:
        self.seen += len(arg)

    async def xxfi_header(self, headerf: str, headerv: str) -> None:
        self.seen += len(headerf) + len(headerv)

    async def xxfi_eoh(self) -> None:
        pass

    async def xxfi_body(self, bodyp: bytes) -> None:
        self.seen += len(bodyp) + bodyp[0]

    async def xxfi_eom(self) -> None:
        self.add()


def _returning_deferred(name: str) -> Any:
    plain = getattr(Bench, name)

    def callback(self: Bench, *arguments: Any) -> Deferred[Any]:
        plain(self, *arguments)
        return succeed(SMFIS_CONTINUE)

    return callback


for _name in ("connect", "helo", "envfrom", "envrcpt", "data", "unknown", "header", "eoh", "body"):
    setattr(BenchDeferred, f"xxfi_{_name}", _returning_deferred(f"xxfi_{_name}"))
BenchDeferred.xxfi_eom = _returning_deferred("xxfi_eom")  # type: ignore[method-assign]

STYLES = {"sync": Bench, "deferred": BenchDeferred, "coroutine": BenchCoroutine}


def milter_class() -> type[Bench]:
    """
    Give the class of the milter that does the work.
    """
    return BenchNoReply if settings.NOREPLY else STYLES[settings.STYLE]


def make_factory() -> MilterProtocolFactory:
    first = milter_class()
    # Each of several milters does the work; the header field is added once.
    rest = type("BenchSilent", (first,), {"add": lambda self: None})
    classes = [first] + [rest] * (settings.MILTERS - 1)
    return MilterProtocolFactory([MilterFactory(each) for each in classes], merge=settings.MERGE)


def main() -> None:
    factory = make_factory()
    if settings.PATH:
        reactor.listenUNIX(settings.PATH, factory, backlog=4096)
    else:
        reactor.listenTCP(settings.PORT, factory, backlog=4096, interface="127.0.0.1")
    reactor.run()


if __name__ == "__main__":
    main()
