"""
The same script run by a `Milter` on yatxmilter, over an in-memory transport.

The class that runs it overrides the callbacks of the case and no others, so what yatxmilter works
out from a class is part of what is compared. Every second call gives its text as `str`, the others
as `bytes`; callbacks answer plainly, with a fired Deferred, with one that fires when the transport
has been idle, or as coroutines, as the case says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

import yatxmilter
from yatxmilter import Reply
from yatxmilter.constants import ReturnCode
from yatxmilter.defaults import Milter, MilterFactory
from yatxmilter.errors import UsageError
from yatxmilter.protocol import MilterProtocolFactory

from .case import (
    DISCONNECT,
    Answer,
    Argument,
    Call,
    Case,
    Invocation,
    OnError,
    Reaction,
    Record,
)

_NO_REACTION = Reaction()
_DONE = Failure(ConnectionDone())


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _connect_args(hostname: str, address: object) -> tuple[Answer, ...]:
    host = _bytes(hostname)
    if address is None:
        return host, None, 0
    if isinstance(address, IPv4Address):
        return host, address.host.encode(), address.port, 4
    if isinstance(address, IPv6Address):
        return host, address.host.encode(), address.port, 6
    assert isinstance(address, UNIXAddress)
    name = address.name
    return host, _bytes(name) if isinstance(name, str) else name or b"", 1


class Runner:
    """What a scripted milter does: the counterpart of scripted_milter.c."""

    def __init__(self, case: Case, transport: StringTransport) -> None:
        self.case = case
        self.script: dict[str, Iterator[Reaction]] = {
            name: iter(reactions) for name, reactions in case.reactions
        }
        self.transport = transport
        self.invocations: list[Invocation] = []
        self.waiting: list[Deferred[None]] = []
        self.as_text = False

    def run(self, milter: Milter, callback: str, *args: Answer) -> Any:
        """Run one invocation of a callback; give what it returns."""
        invocation = Invocation(callback, args, [], self.transport.io.tell())
        self.invocations.append(invocation)
        reaction = next(self.script.get(callback, iter(())), _NO_REACTION)
        result = self._result(callback, reaction)
        calls = reaction.calls
        if reaction.how == "plain" or callback in ("abort", "close"):
            self._perform(milter, invocation, calls)
            return result
        half = len(calls) // 2
        self._perform(milter, invocation, calls[:half])
        if reaction.how == "async":
            return self._coroutine(milter, invocation, calls[half:], result)
        later: Deferred[None] = succeed(None)
        if reaction.how == "later":
            later = Deferred()
            self.waiting.append(later)

        def finish(_: None) -> object:
            self._perform(milter, invocation, calls[half:])
            return result

        return later.addCallback(finish)

    async def _coroutine(
        self, milter: Milter, invocation: Invocation, calls: tuple[Call, ...], result: object
    ) -> object:
        await succeed(None)
        self._perform(milter, invocation, calls)
        return result

    @staticmethod
    def _result(callback: str, reaction: Reaction) -> object:
        if reaction.actions is not None and reaction.steps is not None:
            return (reaction.result, reaction.actions, reaction.steps)
        result = reaction.result
        if isinstance(result, int) and not isinstance(result, bool) and callback != "negotiate":
            # Half of the milters in the world will write the name, half the number.
            return ReturnCode(result) if result in _NAMED and reaction.calls else result
        return result

    def _perform(self, milter: Milter, invocation: Invocation, calls: tuple[Call, ...]) -> None:
        for call in calls:
            invocation.answers.append(self._call(milter, call))

    def _call(self, milter: Milter, call: Call) -> Answer:
        self.as_text = not self.as_text
        args = [self._argument(arg) for arg in call.args]
        if call.function == "replacebody":
            args = list(call.args)
        try:
            answer = getattr(milter, "smfi_" + call.function)(*args)
        except UsageError:
            return None if call.function == "getsymval" else -1
        if call.function == "version":
            major, minor, level = answer
            return int(major * 1000000 + minor * 1000 + level)
        if call.function == "getsymval":
            return None if answer is None else _bytes(answer)
        assert answer is None, f"smfi_{call.function} returned {answer!r}"
        return 0

    def _argument(self, value: Argument) -> str | Argument:
        if self.as_text and isinstance(value, bytes):
            return value.decode("utf-8", "surrogateescape")
        return value

    def settle(self) -> None:
        """Fire what waits, until nothing does."""
        while self.waiting:
            self.waiting.pop(0).callback(None)


_NAMED = frozenset(int(code) for code in ReturnCode)


class Scripted(Milter):
    """A milter that does what a `Runner` says."""

    runner: Runner
    number = 0

    def xxfi_abort(self) -> object:
        """Record it, once for all milters."""
        return None if self.number else self.runner.run(self, "abort")

    def xxfi_close(self) -> object:
        """Record it, once for all milters."""
        return None if self.number else self.runner.run(self, "close")


def _negotiate(self: Scripted, actions: int, steps: int) -> Any:
    return self.runner.run(self, "negotiate", int(actions), int(steps), 0, 0)


def _connect(self: Scripted, hostname: str, hostaddr: object) -> Any:
    return self.runner.run(self, "connect", *_connect_args(hostname, hostaddr))


def _body(self: Scripted, bodyp: bytes) -> Any:
    return self.runner.run(self, "body", bytes(bodyp))


def _of_texts(name: str) -> Any:
    def callback(self: Scripted, *texts: str) -> Any:
        return self.runner.run(self, name, *map(_bytes, texts))

    return callback


def _of_argv(name: str) -> Any:
    def callback(self: Scripted, argv: list[str]) -> Any:
        return self.runner.run(self, name, *map(_bytes, argv))

    return callback


_CALLBACKS: dict[str, Any] = {
    "negotiate": _negotiate,
    "connect": _connect,
    "body": _body,
    **{name: _of_argv(name) for name in ("envfrom", "envrcpt")},
    **{name: _of_texts(name) for name in ("helo", "data", "unknown", "header", "eoh", "eom")},
}


@lru_cache(maxsize=4096)
def milter_class(registered: frozenset[str]) -> type[Scripted]:
    """Make the class of milters that have these callbacks and no others."""
    return type(
        "ScriptedMilter",
        (Scripted,),
        {"xxfi_" + name: _CALLBACKS[name] for name in registered},
    )


class _Factory(MilterFactory):
    """Builds a milter of a case."""

    milter: Any = None

    def build_milter(self, protocol: Any) -> Any:
        """Hand it out."""
        self.milter.factory, self.milter.protocol = self, protocol
        return self.milter


@dataclass
class OurRecord:
    """
    What came of a case on yatxmilter.

    :ivar closed: After how many bytes of the conversation the connection was closed by the milter:
        more than the first number, at most the second; None when it was still open at the end.
    """

    record: Record
    closed: tuple[int, int] | None


def _pieces(case: Case) -> Iterator[bytes]:
    if case.delivery == "packets":
        yield from case.conversation
        return
    stream = case.stream
    size = len(stream) or 1 if case.delivery == "whole" else int(case.delivery)
    for start in range(0, len(stream), size):
        yield stream[start : start + size]


def _on_error(value: OnError) -> Any:
    if isinstance(value, bytes):
        return Reply(*value.split(b" ", 2))
    return yatxmilter.DISCONNECT if value == DISCONNECT else ReturnCode(value)


def run(case: Case) -> OurRecord:
    """Run a case on yatxmilter."""
    transport = StringTransport()
    runner = Runner(case, transport)
    factories = []
    for number in range(case.members if case.several else 1):
        own = frozenset(name for name in case.registered if case.owner(name) == number)
        factory = _Factory(on_error=_on_error(case.on_error))
        factory.milter = milter = milter_class(own)(factory, None)
        milter.xxfi_flags = case.flags
        milter.runner, milter.number = runner, number
        factories.append(factory)
    clock = Clock()
    protocol = MilterProtocolFactory(factories, reactor=clock).buildProtocol(transport.getPeer())
    assert protocol is not None
    protocol.makeConnection(transport)
    fed = before = 0
    for piece in _pieces(case):
        if transport.disconnecting:
            break
        before = fed
        fed += len(piece)
        protocol.dataReceived(piece)
        runner.settle()
    closed = (before, fed) if transport.disconnecting else None
    protocol.connectionLost(_DONE)
    assert not clock.getDelayedCalls(), "a delayed call is left behind"
    assert not runner.waiting, "a callback was called after the connection was lost"
    return OurRecord(Record(runner.invocations, transport.value(), fed), closed)
