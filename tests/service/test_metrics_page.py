"""
Tests of the pages of metrics, over real sockets mostly, and of the dashboard that shows them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol
from twisted.internet.task import deferLater
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from yatxmilter import Milter, MilterFactory, MilterProtocolFactory
from yatxmilter.metrics import MilterMetrics
from yatxmilter.metrics_page import listen_metrics, metrics_site
from yatxmilter.service import _metrics_page
from yatxmilter.service._metrics_families import FAMILIES

DASHBOARD = Path(__file__).parent.parent.parent / "examples" / "deploy" / "grafana-dashboard.json"


class Get(Protocol):
    """
    Asks for a page, and has all of the answer when the connection is closed.

    :param more: What the request has besides its first line.
    """

    def __init__(self, path: str, method: str = "GET", more: str = "\r\n") -> None:
        self.request = f"{method} {path} HTTP/1.{int(method != 'GET')}\r\n{more}"
        self.data = b""
        self.done: Deferred[bytes] = Deferred()

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(self.request.encode())

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Any = None) -> None:
        self.done.callback(self.data)


class PageTests(TestCase):
    """
    Three pages.
    """

    async def get(self, port: Any, path: str, *more: str) -> str:
        """
        Get a page with its head.
        """
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
        client = await connectProtocol(endpoint, Get(path, *more))
        return (await client.done).decode()

    async def test_body_is_refused_when_the_headers_have_come(self) -> None:
        """
        A request with a body is refused before the body is read, however much there is of it; what
        has come of it already is passed over.
        """
        port = await listen_metrics(reactor, "inet:0@127.0.0.1", dict)
        self.addCleanup(port.stopListening)
        form = "Content-Type: application/x-www-form-urlencoded\r\n"
        for head, body in (
            ("Content-Length: 1000000000", ""),
            ("Transfer-Encoding: chunked", ""),
            ("Content-Length: 7", "a=b&c=d"),
        ):
            more = f"Host: x\r\n{form}{head}\r\n\r\n{body}"
            page = await self.get(port, "/metrics", "POST", more)
            self.assertEqual(page.partition("\r\n")[0], "HTTP/1.1 413 Content Too Large")
            self.assertEqual(page.count("HTTP/1.1"), 1)
        more = "Host: x\r\nConnection: close\r\n\r\n"
        self.assertIn(
            " 405 ", (await self.get(port, "/metrics", "POST", more)).partition("\r\n")[0]
        )

    async def test_connection_has_one_answer(self) -> None:
        """
        A connection has one answer, and is closed: of requests in a row the first is answered.
        """
        port = await listen_metrics(reactor, "inet:0@127.0.0.1", dict)
        self.addCleanup(port.stopListening)
        more = "Host: x\r\n\r\n"
        page = await self.get(
            port, "/metrics", "HEAD", more + f"HEAD /metrics HTTP/1.1\r\n{more}" * 100
        )
        self.assertEqual(page.count("HTTP/1.1 200 "), 1)
        self.assertIn("\r\nConnection: close\r\n", page)

    async def test_metrics_are_those_of_moment_and_readiness_is_told_by_status(self) -> None:
        """
        The metrics are those of the moment, and readiness is told by the status.
        """
        metrics = MilterMetrics()
        factory = MilterProtocolFactory(MilterFactory(Milter), max_connections=1)
        metrics.watch(factory)
        ready = [True]
        port = await listen_metrics(reactor, "inet:0@127.0.0.1", metrics.snapshot, lambda: ready[0])
        self.addCleanup(port.stopListening)
        page = await self.get(port, "/metrics")
        self.assertIn("version=0.0.4", page)
        self.assertIn("\nyatxmilter_connections_total 0.0\n", page)
        factory.buildProtocol(None)
        self.assertIn("\nyatxmilter_connections_total 1.0\n", await self.get(port, "/metrics"))
        self.assertTrue((await self.get(port, "/healthz")).endswith("\r\n\r\nok\n"))
        self.assertIn(" 200 ", (await self.get(port, "/readyz")).partition("\r\n")[0])
        ready[0] = False
        self.assertIn(" 503 ", (await self.get(port, "/readyz")).partition("\r\n")[0])
        self.assertIn(" 404 ", (await self.get(port, "/other")).partition("\r\n")[0])

    async def test_what_is_shown_may_come_later_who_has_gone_by_then_is_no_error(self) -> None:
        """
        What is shown may come later; who has gone by then is no error, and a failure is told.
        """
        asked: list[Deferred[Any]] = []

        def snapshot() -> Deferred[Any]:
            asked.append(Deferred())
            return asked[-1]

        port = await listen_metrics(reactor, "inet:0@127.0.0.1", snapshot)
        self.addCleanup(port.stopListening)
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
        leaver = await connectProtocol(endpoint, Get("/metrics"))
        while not asked:
            await deferLater(reactor, 0.01)
        leaver.transport.abortConnection()
        page = ensureDeferred(self.get(port, "/metrics"))
        while len(asked) < 2:
            await deferLater(reactor, 0.01)
        for one in asked:
            one.callback({"yatxmilter_connections": [[[], 3]]})
        self.assertIn("\nyatxmilter_connections_total 3.0\n", await page)
        page = ensureDeferred(self.get(port, "/metrics"))
        while len(asked) < 3:
            await deferLater(reactor, 0.01)
        asked[-1].errback(ValueError("no counts"))
        self.assertIn(" 500 ", (await page).partition("\r\n")[0])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_what_is_no_address_is_named(self) -> None:
        """
        What is no address is named.
        """
        error = self.assertRaises(ValueError, listen_metrics, reactor, "inet:x y", dict)
        self.assertIn("inet:x y", str(error))


class CrowdTests(SynchronousTestCase):
    """
    More connections than anybody needs.
    """

    def connect(self, site: Any) -> StringTransport:
        """
        Connect to the site, in memory.
        """
        protocol = site.buildProtocol(None)
        transport = StringTransport()
        transport.protocol = protocol
        protocol.makeConnection(transport)
        return transport

    def lose(self, transport: Any) -> None:
        """
        Lose a connection, as its transport does in a later turn.
        """
        transport.protocol.connectionLost(Failure(ConnectionDone()))

    def test_oldest_connection_makes_room_for_a_new_one(self) -> None:
        """
        The oldest connection is closed for one more than there may be; who has gone is not counted,
        and the new one has its answer.
        """
        self.patch(_metrics_page, "_MOST_OPEN", 3)
        site = metrics_site(dict)
        first, second, third, fourth = all_of_them = [self.connect(site) for _ in range(4)]
        self.assertEqual([one.disconnected for one in all_of_them], [True, False, False, False])
        self.lose(first)
        self.lose(third)
        fifth = self.connect(site)
        self.assertFalse(second.disconnected)
        sixth = self.connect(site)
        self.assertTrue(second.disconnected)
        sixth.protocol.dataReceived(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertIn(b"\r\n\r\nok\n", sixth.value())
        for one in (second, fourth, fifth, sixth):
            self.lose(one)


class DashboardTests(SynchronousTestCase):
    """
    The dashboard and the manual know the metrics.
    """

    def test_manual_explains_each_metric(self) -> None:
        """
        The manual explains each metric, and its alerts are about metrics there are.
        """
        text = (DASHBOARD.parent.parent.parent / "docs" / "monitoring.md").read_text("utf-8")
        suffixes = {"counter": "_total", "gauge": "", "histogram": ""}
        there = {name + suffixes[family.kind] for name, family in FAMILIES.items()}
        explained = set(re.findall(r"`(yatxmilter_\w+)`", text))
        self.assertEqual(explained, there)
        rules = (DASHBOARD.parent / "alerts.yml").read_text("utf-8")
        alerts = set(re.findall(r"yatxmilter_\w+", rules))
        self.assertTrue(alerts)
        self.assertLessEqual({one.removesuffix("_bucket") for one in alerts}, there)

    def test_each_metric_in_panel_exists_under_name_it_has_on_page(self) -> None:
        """
        Each metric in a panel exists under the name it has on the page, and each is in a panel.
        """
        dashboard = json.loads(DASHBOARD.read_text())
        shown = {
            name
            for panel in dashboard["panels"]
            for target in panel["targets"]
            for name in re.findall(r"yatxmilter_\w+", target["expr"])
        }
        suffixes = {"counter": "_total", "gauge": "", "histogram": "_bucket"}
        there = {name + suffixes[family.kind] for name, family in FAMILIES.items()}
        self.assertEqual(shown, there)

    def test_labels_that_panel_sums_by_are_those_of_its_metric(self) -> None:
        """
        The labels that a panel sums by are those of its metric.
        """
        for panel in json.loads(DASHBOARD.read_text())["panels"]:
            for target in panel["targets"]:
                name = re.findall(r"yatxmilter_\w+", target["expr"])[0]
                family = FAMILIES[re.sub("_(total|bucket)$", "", name)]
                by = re.findall(r"by \(([^)]*)\)", target["expr"])
                used = {label for one in by for label in one.split(", ")}
                self.assertLessEqual(used, {*family.labels, "le"}, target["expr"])
                named = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
                self.assertLessEqual(named, used, target["legendFormat"])
