"""
Metrics and health over HTTP, on an endpoint of its own; needs the extra ``[metrics]``.

``/metrics`` is what Prometheus reads, ``/healthz`` says that the process runs, and ``/readyz``
whether it takes mail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, cast

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from yatxmilter.protocol._endpoints import server_endpoint
from yatxmilter.service._metrics_families import BUCKETS, FAMILIES, Family

__all__ = ["listen_metrics", "metrics_site", "metrics_text"]

_log = Logger()

_TOO_LARGE: Final = (
    b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
)
#: More than all who may want to know ask at a time.
_MOST_OPEN: Final = 50
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


class _Request(Request):
    """
    A request without a body: nobody has to send one, and one of any size would be read, and parsed
    if it is a form. It is the only one of its connection: of those that come in a row, thousands
    would be answered before the process has time for anything else.
    """

    def gotLength(self, length: int | None) -> None:
        """
        Refuse a body when the headers have come; its size is not known where it comes in chunks.
        """
        self.channel.persistent = False
        self.responseHeaders.setRawHeaders(b"connection", [b"close"])
        if length == 0:
            super().gotLength(length)  # type: ignore[no-untyped-call]
            return
        # From a connection that is being closed nothing more is read.
        transport: Any = self.channel.transport
        transport.write(_TOO_LARGE)
        transport.loseConnection()


class _QuietSite(Site):
    """
    A site that says little, and leaves the process's descriptors to the MTAs: of connections to it
    there are `_MOST_OPEN` at most. For another one the oldest is closed, which has been answered
    long ago if it has asked for something.
    """

    noisy = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        Site.__init__(self, *args, **kwargs)
        self._open: dict[ProtocolWrapper, None] = {}

    def buildProtocol(self, addr: Any) -> Any:
        """
        Build a connection that tells when it is there, and when it is gone.
        """
        channel = Site.buildProtocol(self, addr)
        return ProtocolWrapper(cast(WrappingFactory, self), channel)

    def registerProtocol(self, connection: ProtocolWrapper) -> None:
        """
        Take note of a connection.
        """
        if len(self._open) >= _MOST_OPEN:
            oldest = next(iter(self._open))
            # It is gone in a later turn only.
            del self._open[oldest]
            oldest.abortConnection()
        self._open[connection] = None

    def unregisterProtocol(self, connection: ProtocolWrapper) -> None:
        """
        Take note that it is gone.
        """
        self._open.pop(connection, None)

    def log(self, request: Any) -> None:
        """
        Log nothing: a page that is read every few seconds is not worth a line each.
        """


class _Page(Resource):
    isLeaf = True

    def __init__(self, make: Callable[[], Any], kind: bytes = b"text/plain") -> None:
        Resource.__init__(self)
        self._make = make
        self._kind = kind

    def render_GET(self, request: Any) -> int:
        # Who asks may be gone before there is an answer.
        gone: list[Failure] = []
        request.notifyFinish().addErrback(gone.append)
        made: Deferred[tuple[int, bytes]] = maybeDeferred(self._make)
        made.addErrback(_failed).addCallback(self._give, request, gone)
        return NOT_DONE_YET

    def _give(self, page: tuple[int, bytes], request: Any, gone: list[Failure]) -> None:
        if gone:
            return
        code, text = page
        request.setResponseCode(code)
        request.setHeader(b"content-length", b"%d" % len(text))
        request.setHeader(b"content-type", self._kind)
        request.write(text)
        request.finish()


def _failed(failure: Failure) -> tuple[int, bytes]:
    _log.failure("A page of metrics could not be made", failure)
    return 500, b"failed\n"


def metrics_site(snapshot: Callable[[], Any], ready: Callable[[], bool] = lambda: True) -> Site:
    """
    Make the site with the three pages.

    :param snapshot: Gives what is shown, or a Deferred of it: `MilterMetrics.snapshot`, or what
        `yatxmilter.metrics.merge` makes of several.
    :param ready: Tells whether mail is taken; false, and the page's status is 503.
    """

    def metrics() -> Deferred[tuple[int, bytes]]:
        return maybeDeferred(snapshot).addCallback(lambda one: (200, metrics_text(one)))

    root = Resource()
    kind = b"text/plain; version=0.0.4; charset=utf-8"
    root.putChild(b"metrics", _Page(metrics, kind))
    root.putChild(b"healthz", _Page(lambda: (200, b"ok\n")))
    root.putChild(b"readyz", _Page(lambda: (200, b"ready\n") if ready() else (503, b"not ready\n")))
    return _QuietSite(root, requestFactory=_Request)


def listen_metrics(
    reactor: Any,
    spec: str,
    snapshot: Callable[[], Any],
    ready: Callable[[], bool] = lambda: True,
) -> Deferred[Any]:
    """
    Serve the pages.

    :param spec: Where, as for `yatxmilter.protocol._endpoints.server_endpoint`.
    :return: A Deferred of the port.
    :raises ValueError: if it is not an address.
    """
    return server_endpoint(reactor, spec).listen(metrics_site(snapshot, ready))
