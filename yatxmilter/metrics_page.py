"""
Metrics and health over HTTP, on an endpoint of its own; needs the extra ``[metrics]``.

``/metrics`` is what Prometheus reads, ``/healthz`` says that the process runs, and ``/readyz``
whether it takes mail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from twisted.internet.defer import Deferred
from twisted.web.resource import Resource
from twisted.web.server import Site

from yatxmilter.connspec import server_endpoint
from yatxmilter.metrics_families import BUCKETS, FAMILIES, Family

__all__ = ["listen_metrics", "metrics_site", "metrics_text"]

_BOUNDS: Final = [*map(str, BUCKETS), "+Inf"]


class _Collector(Collector):
    """
    Hands a snapshot to prometheus-client.
    """

    def __init__(self, snapshot: Mapping[str, Any]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        for name, family in FAMILIES.items():
            yield _metric(name, family, self._snapshot.get(name, []))


def _metric(name: str, family: Family, values: list[list[Any]]) -> Metric:
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(name, family.help, labels=family.labels)
        for labels, (*counts, total) in values:
            sums = [sum(counts[: place + 1]) for place in range(len(counts))]
            histogram.add_metric(labels, list(zip(_BOUNDS, sums, strict=True)), total)
        return histogram
    make = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = make(name, family.help, labels=family.labels)
    for labels, value in values:
        metric.add_metric(labels, value)
    return metric


def metrics_text(snapshot: Mapping[str, Any]) -> bytes:
    """
    Write a snapshot, or what `yatxmilter.metrics.merge` made of several, as Prometheus reads it.
    """
    registry = CollectorRegistry()
    registry.register(_Collector(snapshot))
    return generate_latest(registry)


class _QuietSite(Site):
    noisy = False

    def log(self, request: Any) -> None:
        """
        Log nothing: a page that is read every few seconds is not worth a line each.
        """


class _Page(Resource):
    isLeaf = True

    def __init__(self, make: Callable[[], tuple[int, bytes]], kind: bytes = b"text/plain") -> None:
        Resource.__init__(self)
        self._make = make
        self._kind = kind

    def render_GET(self, request: Any) -> bytes:
        code, text = self._make()
        request.setResponseCode(code)
        request.setHeader(b"content-type", self._kind)
        return text


def metrics_site(
    snapshot: Callable[[], Mapping[str, Any]], ready: Callable[[], bool] = lambda: True
) -> Site:
    """
    Make the site with the three pages.

    :param snapshot: Gives what is shown, such as `MilterMetrics.snapshot`.
    :param ready: Tells whether mail is taken; false, and the page's status is 503.
    """
    root = Resource()
    kind = b"text/plain; version=0.0.4; charset=utf-8"
    root.putChild(b"metrics", _Page(lambda: (200, metrics_text(snapshot())), kind))
    root.putChild(b"healthz", _Page(lambda: (200, b"ok\n")))
    root.putChild(b"readyz", _Page(lambda: (200, b"ready\n") if ready() else (503, b"not ready\n")))
    return _QuietSite(root)  # type: ignore[no-untyped-call]


def listen_metrics(
    reactor: Any,
    spec: str,
    snapshot: Callable[[], Mapping[str, Any]],
    ready: Callable[[], bool] = lambda: True,
) -> Deferred[Any]:
    """
    Serve the pages.

    :param spec: Where, as for `yatxmilter.connspec.server_endpoint`.
    :return: A Deferred of the port.
    :raises ValueError: for what is no address.
    """
    return server_endpoint(reactor, spec).listen(metrics_site(snapshot, ready))
