"""
What a server of milters counts: `MilterMetrics`.

It is put around a factory from outside, and changes connections when they are built: what is to be
counted is reached by methods of the one object that replace those of its class. So a server that
counts nothing pays nothing. What is there at the moment - connections, those paused, tallies of
milters in shadow - is looked at when somebody asks. Processes add theirs up with `merge`: that
needs no files in common, and a worker that is gone leaves no gauges behind.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from functools import partial
from time import perf_counter
from types import CoroutineType
from typing import Any, ClassVar, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from yatxmilter import constants as c
from yatxmilter._engine.callbacks import Caller
from yatxmilter._engine.member import Member
from yatxmilter._wire.commands import ACTIONS, CALLBACK_STEPS, Command
from yatxmilter.constants import ReturnCode
from yatxmilter.errors import ProtocolError
from yatxmilter.protocol import MilterProtocol, MilterProtocolFactory
from yatxmilter.service._metrics_families import BUCKETS, FAMILIES, Labels, listed, merge

__all__ = ["MilterMetrics", "merge"]

_STEPS: Final = {command.callback: command for command in CALLBACK_STEPS}

_VERDICTS: Final = {
    c.SMFIR_CONTINUE: "continue",
    c.SMFIR_ACCEPT: "accept",
    c.SMFIR_REJECT: "reject",
    c.SMFIR_TEMPFAIL: "tempfail",
    c.SMFIR_DISCARD: "discard",
}

#: Faults of the MTA, by how `yatxmilter.protocol._connection` words them.
_FAULTS: Final = {
    "was silent too long": "silent",
    "took too long to send one command": "slow_command",
    "did not read its answers": "not_reading",
    "did not let itself be closed": "not_closing",
}


class _Histogram:
    """
    How many values there were up to each bound, each counted once, and their sum.
    """

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.sum = 0.0


class MilterMetrics:
    """
    The metrics of one process.

    :param clock: Tells seconds, for the latencies.
    """

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self._counts: dict[str, Counter[Labels]] = {
            name: Counter() for name, family in FAMILIES.items() if family.kind == "counter"
        }
        self._latencies: dict[Labels, _Histogram] = {}
        self._factories: list[MilterProtocolFactory] = []
        # A class of its own, because a Caller has room for nothing else.
        own = {"__slots__": (), "count": self._failed}
        self._caller_class = type("ObservedCaller", (_ObservedCaller,), own)

    def watch(self, factory: MilterProtocolFactory) -> None:
        """
        Count what happens on the connections that a factory builds from now on.

        Several factories may be watched, such as the one before a reload and the one after it.

        :raises ValueError: for one that is watched already.
        """
        if "buildProtocol" in vars(factory):
            raise ValueError(f"{factory!r} is watched already")
        self._factories.append(factory)
        build = factory.buildProtocol

        def observed(addr: Any) -> Any:
            protocol = build(addr)
            if protocol is None:
                self._add("yatxmilter_connections_refused")
            elif isinstance(protocol, MilterProtocol):
                # One that waits for the milters to start is built once more.
                self._add("yatxmilter_connections")
                self._observe(protocol)
            return protocol

        factory.buildProtocol = observed  # type: ignore[method-assign]

    def forget(self, factory: MilterProtocolFactory) -> None:
        """
        Look no more at a factory whose connections are gone; what was counted stays.

        :raises ValueError: for one that is not watched.
        """
        self._factories.remove(factory)
        for labels, count in _tallied(factory).items():
            self._add("yatxmilter_shadow_messages", labels, count)

    def _add(self, name: str, labels: Labels = (), count: int = 1) -> None:
        self._counts[name][labels] += count

    def _failed(self, member: Member, command: Command, failure: Failure) -> None:
        kind = "timeout" if failure.check(TimeoutError) else "error"
        self._add("yatxmilter_errors", (member.name, command.callback, kind))

    # ---- one connection

    def _observe(self, protocol: MilterProtocol) -> None:
        conversation: Any = protocol._conversation
        line: Any = protocol
        received = self._counts["yatxmilter_bytes_received"]
        sent = self._counts["yatxmilter_bytes_sent"]
        receive, send = conversation.receive, line.send

        def observed_receive(data: bytes) -> bool:
            received[()] += len(data)
            return bool(receive(data))

        def observed_send(data: bytes) -> None:
            sent[()] += len(data)
            send(data)

        conversation.receive, line.send = observed_receive, observed_send
        line._log_fault = partial(self._fault, line._log_fault)
        conversation._break_off = partial(self._broken_off, conversation._break_off)
        conversation._caller.__class__ = self._caller_class
        self._observe_fanout(conversation._fanout)

    def _fault(self, log: Callable[[str], None], fault: str) -> None:
        self._add("yatxmilter_mta_faults", (_FAULTS[fault],))
        log(fault)

    def _broken_off(self, end: Callable[[ProtocolError], None], error: ProtocolError) -> None:
        kind = "macros" if "macros" in str(error) else "protocol"
        self._add("yatxmilter_mta_faults", (kind,))
        end(error)

    def _observe_fanout(self, fanout: Any) -> None:
        compile_, abort, end_message = fanout.compile, fanout.abort, fanout.end_message
        forget_connection = fanout.forget_connection
        out: list[bytes] = fanout._out
        # Why a message is being ended, where it is no answer that ends it.
        why: list[str | None] = []

        def observed_compile(steps: int, *, skip_offered: bool) -> None:
            own = [(member, member.milter) for member in fanout._members]
            for member, milter in own:
                member.milter = _Observed(self, member.name, milter)
            try:
                compile_(steps, skip_offered=skip_offered)
                for member, _ in own:
                    if member.adapted is None:
                        member.adapted = member._adapt(0, fanout._session.macros)
            finally:
                for member, milter in own:
                    member.milter = milter

        def observed_end_message(aborted: Any) -> None:
            if not why:
                self._message_over(out)
            elif why[-1] is not None:
                self._add("yatxmilter_messages", (why[-1],))
            end_message(aborted)

        def ending(call: Callable[[], None], verdict: str | None) -> None:
            why.append(verdict)
            try:
                call()
            finally:
                why.pop()

        fanout.compile, fanout.end_message = observed_compile, observed_end_message
        fanout.abort = partial(ending, abort, "aborted")
        fanout.forget_connection = partial(ending, forget_connection, None)

    def _message_over(self, out: list[bytes]) -> None:
        """
        Count a message by the answer that ends it, and the edits right before that.
        """
        answer = out[-1]
        letter = answer[4]
        # A reply with a text of its own starts with its code.
        verdict = _VERDICTS.get(letter) or ("reject" if answer[5:6] == b"5" else "tempfail")
        self._add("yatxmilter_messages", (verdict,))
        for packet in reversed(out[:-1]):
            action = ACTIONS.get(packet[4])
            if action is None:
                break
            self._add("yatxmilter_edits", (action.function.removeprefix("smfi_"),))

    # ---- one callback

    def timed(
        self, milter: str, command: Command, callback: Callable[..., object]
    ) -> Callable[..., object]:
        """
        Put a clock and a counter around a callback.
        """
        name = command.callback
        answers = self._counts["yatxmilter_callbacks"]
        histogram = self._latencies.setdefault((milter, name), _Histogram())
        clock, counts = self._clock, histogram.counts
        usual = (milter, name, "continue")

        def over(start: float, result: object) -> object:
            seconds = clock() - start
            counts[bisect_left(BUCKETS, seconds)] += 1
            histogram.sum += seconds
            if result is None or result is c.SMFIS_CONTINUE:
                answers[usual] += 1
            else:
                answers[milter, name, _answer(command, result)] += 1
            return result

        async def awaited(start: float, coroutine: CoroutineType[Any, Any, object]) -> object:
            try:
                result = await coroutine
            except BaseException:
                over(start, Failure())
                raise
            if isinstance(result, Deferred):
                return result.addBoth(partial(over, start))
            return over(start, result)

        def call(*arguments: object) -> object:
            start = clock()
            try:
                result = callback(*arguments)
            except BaseException:
                over(start, Failure())
                raise
            if isinstance(result, CoroutineType):
                return awaited(start, result)
            if isinstance(result, Deferred):
                return result.addBoth(partial(over, start))
            return over(start, result)

        return call

    # ---- what was counted

    def snapshot(self) -> dict[str, Any]:
        """
        Give all that was counted, in a form that JSON can carry to another process.

        :return: For each metric a list of its labels' values and its value: a number, or for the
            histogram how many there were in each bucket, and their sum.
        """
        counts = {name: Counter(values) for name, values in self._counts.items()}
        paused: Counter[Labels] = Counter({("mta_not_reading",): 0, ("milter_busy",): 0})
        connections = 0
        for factory in self._factories:
            connections += len(factory.connections)
            counts["yatxmilter_shadow_messages"].update(_tallied(factory))
            for protocol in factory.connections:
                paused["mta_not_reading",] += protocol._conversation.stalled
                paused["milter_busy",] += protocol._paused
        for name, family in FAMILIES.items():
            if family.kind == "counter" and not family.labels:
                # So that a rate is known from the first one on.
                counts[name].setdefault((), 0)
        result: dict[str, Any] = {name: listed(values) for name, values in counts.items()}
        result["yatxmilter_connections_open"] = [[[], connections]]
        result["yatxmilter_processes"] = [[[], 1]]
        result["yatxmilter_connections_paused"] = listed(paused)
        result["yatxmilter_callback_seconds"] = [
            [list(labels), [*one.counts, one.sum]] for labels, one in self._latencies.items()
        ]
        return result


class _Observed:
    """
    Stands for a milter while a connection's plan is made, and gives its callbacks with a clock.
    """

    def __init__(self, metrics: MilterMetrics, name: str, milter: object) -> None:
        self._metrics = metrics
        self._name = name
        self._milter = milter

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._milter, name)
        command = _STEPS.get(name)
        return value if command is None else self._metrics.timed(self._name, command, value)


class _ObservedCaller(Caller):
    """
    A caller that counts failures.
    """

    __slots__ = ()

    count: ClassVar[Callable[[Member, Command, Failure], None]]

    def failed(self, member: Member, command: Command, failure: Failure) -> ReturnCode:
        """
        Count it, and go on.
        """
        type(self).count(member, command, failure)
        return super().failed(member, command, failure)

    def _log_ignored(self, member: Member, command: Command, failure: Failure) -> None:
        type(self).count(member, command, failure)
        super()._log_ignored(member, command, failure)


def _answer(command: Command, result: object) -> str:
    if isinstance(result, Failure):
        return "cancelled" if result.check(CancelledError) else "error"
    if isinstance(result, int) and not isinstance(result, bool):
        if result in command.codes:
            return ReturnCode(result).name.removeprefix("SMFIS_").lower()
        if result == c.SMFIS_NOREPLY:
            return "noreply"
    return "error"


def _tallied(factory: MilterProtocolFactory) -> Counter[Labels]:
    counts: Counter[Labels] = Counter()
    for one in factory.milter_factories:
        tally = getattr(one, "shadow", None)
        if tally is not None:
            for code, count in tally.verdicts.items():
                counts[one.name, code.name.removeprefix("SMFIS_").lower()] += count
            counts[one.name, "undecided"] += tally.undecided
            counts[one.name, "cut_off"] += tally.cut_off
    return counts
