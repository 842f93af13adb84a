"""
What a server of milters counts: `MilterMetrics`.

It is an observer of factories, so a server that counts nothing pays nothing. Processes add theirs
up with `merge`: that needs no files in common, and a worker that is gone leaves no gauges behind.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from twisted.python.failure import Failure

from yatxmilter import __version__
from yatxmilter._wire.commands import CALLBACK_STEPS
from yatxmilter.defaults import MilterObserver
from yatxmilter.protocol import MilterProtocol, MilterProtocolFactory
from yatxmilter.service._lag import watch_lag
from yatxmilter.service._metrics_families import BUCKETS, FAMILIES, Labels, listed, merge

__all__ = ["MilterMetrics", "merge"]

#: The callbacks that are counted and timed: those that answer the MTA.
_TIMED: Final = frozenset(command.callback for command in CALLBACK_STEPS)


#: After so many messages the times of callbacks are counted.
_COUNTED_AT_ONCE: Final = 16


class _Callback:
    """
    What is counted of one callback of one milter.

    :ivar continued: How often it answered with a continue, which is the usual answer.
    :ivar counts: How many calls took up to each bound, each counted once.
    :ivar sum: How long all of them took.
    :ivar times: How long those took that have answered with a continue and are not counted yet: to
        count them together costs less.
    """

    __slots__ = ("continued", "counts", "sum", "times")

    def __init__(self) -> None:
        self.continued = 0
        self.counts = [0] * (len(BUCKETS) + 1)
        self.sum = 0.0
        self.times: list[float] = []

    def add(self, seconds: float) -> None:
        """
        Put the time of one where it belongs.
        """
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.sum += seconds

    def count(self) -> None:
        """
        Count those that are not counted yet.
        """
        times = self.times
        if not times:
            return
        self.continued += len(times)
        self.sum += sum(times)
        # Nearly all are in the first one.
        most = BUCKETS[0]
        slow = [seconds for seconds in times if seconds > most] if max(times) > most else ()
        self.counts[0] += len(times) - len(slow)
        for seconds in slow:
            self.counts[bisect_left(BUCKETS, seconds)] += 1
        times.clear()


def _remotes(factory: MilterProtocolFactory) -> Iterator[tuple[Labels, Any]]:
    """
    Find the addresses of remote milters, and how each does: what has them is a layer above us.
    """
    one: Any
    for one in factory.milter_factories:
        tell = getattr(one, "remote_addresses", None)
        for state in () if tell is None else tell():
            yield (str(getattr(one, "name", "")), state.address), state


class MilterMetrics(MilterObserver):
    """
    The metrics of one process.

    :param clock: Of no effect any more: how long a callback took is told by the factory, whose
        ``reactor`` tells the time.
    :param now: Tells the seconds since 1970.
    """

    def __init__(
        self,
        clock: Callable[[], float] | None = None,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._now = now
        self._started = self._loaded = now()
        self._reload_done = True
        self._lag = _Callback()
        self._counts: dict[str, Counter[Labels]] = {
            name: Counter() for name, family in FAMILIES.items() if family.kind == "counter"
        }
        self._callbacks: dict[tuple[str, str], _Callback] = {}
        self._received = self._sent = self._messages = 0
        self._open: set[MilterProtocol] = set()
        self._factories: list[MilterProtocolFactory] = []

    def watch(self, factory: MilterProtocolFactory) -> None:
        """
        Count what happens on the connections that a factory builds from now on.

        Several factories may be watched, such as the one before a reload and the one after it.

        :raises ValueError: for one that is watched already.
        """
        if self in factory.observers:
            raise ValueError(f"{factory!r} is watched already")
        factory.addObserver(self)
        self._factories.append(factory)
        for one in factory.milter_factories:
            if getattr(one, "shadow", None) is not None:
                # So that a rate is known from the first one on.
                for outcome in ("undecided", "cut_off"):
                    self._add(
                        "yatxmilter_shadow_messages", (str(getattr(one, "name", None)), outcome), 0
                    )

    def forget(self, factory: MilterProtocolFactory) -> None:
        """
        Take note that a factory is used no more; what was counted stays.

        :raises ValueError: for one that is not watched.
        """
        if self not in factory.observers:
            raise ValueError(f"{factory!r} is not watched")
        if factory in self._factories:
            self._factories.remove(factory)
            self._count_remotes(self._counts, factory)

    def _add(self, name: str, labels: Labels = (), count: int = 1) -> None:
        self._counts[name][labels] += count

    # ---- what is told

    def connection_refused(self, address: object, reason: str) -> None:
        """
        Count it.
        """
        self._add("yatxmilter_connections_refused")

    def connection_taken(self, connection: object) -> None:
        """
        Count it.
        """
        self._add("yatxmilter_connections")

    def connection_made(self, connection: Any) -> None:
        """
        Keep it while it is there.
        """
        self._open.add(connection)

    def connection_lost(self, connection: Any, reason: Failure) -> None:
        """
        Forget it, but for its bytes.
        """
        self._open.discard(connection)
        self._received, self._sent = self._traffic([connection])

    def message_ended(self, connection: object, outcome: str) -> None:
        """
        Count it by what the MTA was told.
        """
        self._add("yatxmilter_messages", (outcome,))
        # So that what is kept of the times of callbacks is bounded by what one message has.
        self._messages += 1
        if self._messages >= _COUNTED_AT_ONCE:
            self._count()

    def _count(self) -> None:
        self._messages = 0
        for one in self._callbacks.values():
            one.count()

    def usual_answers(self, milter: str, stage: str) -> Callable[[float], None] | None:
        """
        Give what is called with the seconds of each callback that answers with a continue.

        :return: ``None`` for one that is not counted.
        """
        one = self._callback(milter, stage)
        return None if one is None else one.times.append

    def _callback(self, milter: str, stage: str) -> _Callback | None:
        one = self._callbacks.get((milter, stage))
        if one is None and stage in _TIMED:
            one = self._callbacks[milter, stage] = _Callback()
        return one

    def callback_answered(
        self, connection: object, milter: str, stage: str, answer: str, seconds: float
    ) -> None:
        """
        Count it by its answer, and put its time where it belongs.
        """
        one = self._callback(milter, stage)
        if one is None:
            return
        one.add(seconds)
        if answer == "continue":
            one.continued += 1
        else:
            self._add("yatxmilter_callbacks", (milter, stage, answer))

    def edit_sent(self, connection: object, function: str, arguments: tuple[object, ...]) -> None:
        """
        Count it by its function.
        """
        self._add("yatxmilter_edits", (function.removeprefix("smfi_"),))

    def milter_failed(
        self, connection: object, milter: str, stage: str, kind: str, failure: Failure
    ) -> None:
        """
        Count it: as a time-out, or as an error.
        """
        kind = "timeout" if kind == "timeout" else "error"
        self._add("yatxmilter_errors", (milter, stage, kind))

    def mta_failed(self, connection: object, kind: str, description: str) -> None:
        """
        Count it by its kind.
        """
        self._add("yatxmilter_mta_faults", (kind,))

    def shadow_message_ended(self, connection: object, milter: str, outcome: str) -> None:
        """
        Count it by what the milter would have answered.
        """
        self._add("yatxmilter_shadow_messages", (milter, outcome))

    def watch_reactor(self, reactor: Any) -> Callable[[], None]:
        """
        Measure each second how late a reactor is.

        :return: What ends it.
        """
        return watch_lag(reactor, self._lag.add)

    def reloaded(self, done: bool) -> None:
        """
        Take note of a reload.

        :param done: Whether there is a new configuration in force.
        """
        self._reload_done = done
        if done:
            self._loaded = self._now()

    # ---- what was counted

    def _count_remotes(
        self, counts: dict[str, Counter[Labels]], factory: MilterProtocolFactory
    ) -> None:
        """
        Add what the remote milters of a factory have counted, each of its addresses by itself.
        """
        for labels, state in _remotes(factory):
            counts["yatxmilter_remote_connections"][labels] += state.connections
            counts["yatxmilter_remote_failures"][labels] += state.failures

    def _traffic(self, connections: Iterable[MilterProtocol]) -> tuple[int, int]:
        received, sent = self._received, self._sent
        for connection in connections:
            received += connection.traffic[0]
            sent += connection.traffic[1]
        return received, sent

    def snapshot(self) -> dict[str, Any]:
        """
        Give all that was counted, in a form that JSON can carry to another process.

        :return: For each metric a list of its labels' values and its value: a number, or for the
            histogram how many there were in each bucket, and their sum.
        """
        self._count()
        counts = {name: Counter(values) for name, values in self._counts.items()}
        received, sent = self._traffic(self._open)
        counts["yatxmilter_bytes_received"][()] = received
        counts["yatxmilter_bytes_sent"][()] = sent
        up: Counter[Labels] = Counter()
        used: Counter[Labels] = Counter()
        for factory in self._factories:
            self._count_remotes(counts, factory)
            for labels, state in _remotes(factory):
                # What the latest one says counts: the one before a reload may know nothing new.
                up[labels] = int(state.up)
                used[labels] += state.open
        for (milter, stage), one in self._callbacks.items():
            if one.continued:
                counts["yatxmilter_callbacks"][milter, stage, "continue"] = one.continued
        paused: Counter[Labels] = Counter({("mta_not_reading",): 0, ("milter_busy",): 0})
        for connection in self._open:
            paused.update((reason,) for reason in connection.paused)
        for name, family in FAMILIES.items():
            if family.kind == "counter" and not family.labels:
                # So that a rate is known from the first one on.
                counts[name].setdefault((), 0)
        result: dict[str, Any] = {name: listed(values) for name, values in counts.items()}
        result["yatxmilter_connections_open"] = [[[], len(self._open)]]
        result["yatxmilter_processes"] = [[[], 1]]
        result["yatxmilter_build_info"] = [[[__version__], 1]]
        result["yatxmilter_start_time_seconds"] = [[[], self._started]]
        result["yatxmilter_last_reload_successful"] = [[[], int(self._reload_done)]]
        result["yatxmilter_last_reload_success_seconds"] = [[[], self._loaded]]
        result["yatxmilter_reactor_lag_seconds"] = [[[], [*self._lag.counts, self._lag.sum]]]
        result["yatxmilter_remote_up"] = listed(up)
        result["yatxmilter_remote_connections_open"] = listed(used)
        result["yatxmilter_connections_paused"] = listed(paused)
        result["yatxmilter_callback_seconds"] = [
            [list(labels), [*one.counts, one.sum]]
            for labels, one in self._callbacks.items()
            if any(one.counts)
        ]
        return result
