"""
The names of the metrics, what each means, and how what several processes have counted is added up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from operator import add
from typing import Any, Final, NamedTuple

__all__ = ["BUCKETS", "FAMILIES", "Family", "Labels", "listed", "merge"]

Labels = tuple[str, ...]

#: The upper bounds of the latency histogram's buckets, in seconds; the last one has none.
BUCKETS: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)


class Family(NamedTuple):
    """
    One metric: ``counter``, ``gauge`` or ``histogram``, what it means, and its labels.

    :ivar combine: Makes one value of those of two processes.
    """

    kind: str
    help: str
    labels: tuple[str, ...] = ()
    combine: Callable[[Any, Any], Any] = add


#: All metrics, by their names; those of counters are given without ``_total``.
FAMILIES: Final[dict[str, Family]] = {
    "yatxmilter_connections": Family("counter", "Connections taken from MTAs."),
    "yatxmilter_connections_refused": Family("counter", "Connections from MTAs not taken."),
    "yatxmilter_connections_open": Family("gauge", "Connections from MTAs there are."),
    "yatxmilter_processes": Family("gauge", "Processes whose counts these are."),
    "yatxmilter_connections_paused": Family(
        "gauge",
        "Connections that are paused: the MTA does not read, or too much waits for a milter.",
        ("reason",),
    ),
    "yatxmilter_messages": Family("counter", "Messages, by what the MTA was told.", ("verdict",)),
    "yatxmilter_callbacks": Family(
        "counter", "Callbacks, by what they answered.", ("milter", "callback", "answer")
    ),
    "yatxmilter_callback_seconds": Family(
        "histogram", "Time from a callback's call to its answer.", ("milter", "callback")
    ),
    "yatxmilter_edits": Family("counter", "Edits of messages sent to MTAs.", ("kind",)),
    "yatxmilter_errors": Family(
        "counter", "Failures of milters, time-outs among them.", ("milter", "stage", "kind")
    ),
    "yatxmilter_mta_faults": Family(
        "counter", "Connections ended because of what the MTA did or left undone.", ("kind",)
    ),
    "yatxmilter_bytes_received": Family("counter", "Bytes from MTAs."),
    "yatxmilter_bytes_sent": Family("counter", "Bytes for MTAs."),
    "yatxmilter_shadow_messages": Family(
        "counter", "Messages, by what a milter in shadow would have done.", ("milter", "outcome")
    ),
    "yatxmilter_build_info": Family(
        "gauge", "Which version this is; the value is 1.", ("version",), max
    ),
    "yatxmilter_start_time_seconds": Family(
        "gauge", "When the process was started, in seconds since 1970.", (), min
    ),
    "yatxmilter_last_reload_successful": Family(
        "gauge", "Whether the last reload was done; 1 before there is one.", (), min
    ),
    "yatxmilter_last_reload_success_seconds": Family(
        "gauge", "When the configuration in force was loaded, in seconds since 1970.", (), min
    ),
    "yatxmilter_reactor_lag_seconds": Family(
        "histogram", "How late the reactor was, looked at each second."
    ),
    "yatxmilter_remote_up": Family(
        "gauge",
        "Processes for which an address of a remote milter is not left out.",
        ("milter", "address"),
    ),
    "yatxmilter_remote_connections_open": Family(
        "gauge",
        "Connections from MTAs that use an address of a remote milter.",
        ("milter", "address"),
    ),
    "yatxmilter_remote_connections": Family(
        "counter", "Connections made to an address of a remote milter.", ("milter", "address")
    ),
    "yatxmilter_remote_failures": Family(
        "counter",
        "Connections to an address of a remote milter that could not be made, or failed later.",
        ("milter", "address"),
    ),
}


def listed(values: Mapping[Labels, float]) -> list[list[Any]]:
    """
    Write values as JSON can carry them.
    """
    return [[list(labels), value] for labels, value in values.items()]


def merge(snapshots: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """
    Add up what several processes have counted; an empty list gives metrics without values.

    :param snapshots: What `MilterMetrics.snapshot` gave in each, as it is or out of JSON.
    """
    sums: dict[str, dict[Labels, Any]] = {name: {} for name in FAMILIES}
    for snapshot in snapshots:
        for name, values in snapshot.items():
            known = sums[name]
            for labels, value in values:
                before = known.get(tuple(labels))
                if before is None:
                    known[tuple(labels)] = value
                elif isinstance(value, list):
                    both = zip(before, value, strict=True)
                    known[tuple(labels)] = [one + other for one, other in both]
                else:
                    known[tuple(labels)] = FAMILIES[name].combine(before, value)
    return {name: listed(values) for name, values in sums.items()}
