"""
Tests of metrics: what is counted is compared with what a client in memory has seen.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from yatxmilter import Milter, MilterFactory, MilterProtocolFactory, __version__, noreply
from yatxmilter import constants as c
from yatxmilter.client import MilterClient
from yatxmilter.client._in_memory import InMemoryConnection, connect_in_memory
from yatxmilter.conditions import sender_matches
from yatxmilter.metrics import MilterMetrics, merge
from yatxmilter.metrics_page import metrics_text
from yatxmilter.service._metrics_families import BUCKETS, FAMILIES

MESSAGE = b"From: a\n\nbody\n"


class Server:
    """
    Milters with metrics, and clients of theirs in memory.
    """

    def __init__(self, *milters: Any, **options: Any) -> None:
        self.clock = Clock()
        self.metrics = MilterMetrics(self.clock.seconds)
        self.factory = MilterProtocolFactory(
            [one if isinstance(one, MilterFactory) else MilterFactory(one) for one in milters],
            reactor=self.clock,
            **options,
        )
        self.metrics.watch(self.factory)
        self.connections: list[InMemoryConnection] = []

    def connect(self) -> MilterClient:
        """
        Connect a client.
        """
        client = MilterClient(clock=self.clock, timeout=None)
        peer = IPv4Address("TCP", "192.0.2.9", 9)
        connection = connect_in_memory(client, self.factory, mta_address=peer)
        self.connections.append(connection)
        return client

    def talk(self, client: MilterClient) -> None:
        """
        Say what comes before a message.
        """
        client.negotiate()
        client.connect("h.example.org", IPv4Address("TCP", "192.0.2.1", 25))
        client.helo("h.example.org")

    def flush(self) -> None:
        """
        Carry what is on its way.
        """
        for connection in self.connections:
            connection.flush()

    def values(self, name: str) -> dict[Any, Any]:
        """
        Give a metric's values, by the values of its labels: one by itself, several as a tuple.
        """
        values = self.metrics.snapshot()["yatxmilter_" + name]
        return {
            tuple(labels) if len(labels) > 1 else "".join(labels): value for labels, value in values
        }


class Judge(Milter):
    """
    Answers the end of each message as its sender's local part says.
    """

    def xxfi_envfrom(self, argv: list[str]) -> Any:
        self.wanted = argv[0].strip("<>").partition("@")[0]
        return c.SMFIS_REJECT if self.wanted == "early" else None

    def xxfi_eom(self) -> Any:
        wanted = self.wanted
        if wanted == "edits":
            self.smfi_addheader("X-A", "1")
            self.smfi_addheader("X-B", "2")
            self.smfi_quarantine("why")
        if wanted == "raises":
            raise RuntimeError("a fault")
        if wanted == "nonsense":
            return "no"
        if wanted == "number":
            return 99
        if wanted == "worded":
            self.smfi_setreply("550", "5.7.1", "no")
            return c.SMFIS_REJECT
        if wanted == "later":
            self.smfi_setreply("451", "4.7.1", "later")
            return succeed(c.SMFIS_TEMPFAIL)
        if wanted == "coroutine":
            return self.soon()
        if wanted == "both":
            return self.soon_later()
        if wanted == "failing":
            return self.failing()
        return getattr(c, "SMFIS_" + wanted.upper(), None)

    async def soon(self) -> int:
        return int(c.SMFIS_DISCARD)

    async def soon_later(self) -> Any:
        return succeed(c.SMFIS_ACCEPT)

    async def failing(self) -> None:
        raise RuntimeError("a fault")


#: What is told to the MTA, and what the callback is said to have answered, by local part.
EXPECTED = {
    "plain": ("continue", "continue"),
    "edits": ("continue", "continue"),
    "accept": ("accept", "accept"),
    "reject": ("reject", "reject"),
    "tempfail": ("tempfail", "tempfail"),
    "discard": ("discard", "discard"),
    "worded": ("reject", "reject"),
    "later": ("tempfail", "tempfail"),
    "coroutine": ("discard", "discard"),
    "both": ("accept", "accept"),
    "raises": ("tempfail", "error"),
    "nonsense": ("tempfail", "error"),
    "number": ("tempfail", "error"),
    "failing": ("tempfail", "error"),
}


class CountTests(SynchronousTestCase):
    """
    What is counted is what was done.
    """

    def test_verdicts_edits_and_failures_of_many_messages_are_counted(self) -> None:
        """
        Verdicts, answers, edits and failures of many messages, each kind a different number.
        """
        for merge_name in ("first", "strictest", "chain"):
            with self.subTest(merge=merge_name):
                self.check_messages(merge_name)

    def check_messages(self, merge_name: str) -> None:
        server = Server(Judge, merge=merge_name)
        client = server.connect()
        server.talk(client)
        verdicts: Counter[str] = Counter()
        answers: Counter[tuple[str, str, str]] = Counter()
        for number, (sender, (verdict, answer)) in enumerate(EXPECTED.items(), 1):
            for _ in range(number):
                client.send_message(MESSAGE, f"<{sender}@example.org>", ["<b@example.net>"])
            verdicts[verdict] += number
            answers["Judge", "xxfi_eom", answer] += number
            answers["Judge", "xxfi_envfrom", "continue"] += number
        client.send_message(MESSAGE, "<early@example.org>", ["<b@example.net>"])
        verdicts["reject"] += 1
        answers["Judge", "xxfi_envfrom", "reject"] += 1
        server.flush()
        self.assertEqual(server.values("messages"), verdicts)
        self.assertEqual(server.values("callbacks"), answers)
        self.assertEqual(server.values("edits"), {"addheader": 4, "quarantine": 2})
        failed = answers["Judge", "xxfi_eom", "error"]
        self.assertEqual(server.values("errors"), {("Judge", "xxfi_eom", "error"): failed})
        self.assertEqual(len(self.flushLoggedErrors()), failed)

    def test_bytes_are_those_that_the_two_ends_wrote(self) -> None:
        """
        Bytes are those that the two ends wrote.
        """
        server = Server(Judge)
        client = server.connect()
        ends = server.connections[0]
        written: Counter[str] = Counter()
        for name, end in (("received", ends.mta), ("sent", ends.milter)):

            def write(data: bytes, name: str = name, write: Any = end.write) -> None:
                written[name] += len(data)
                write(data)

            self.patch(end, "write", write)
        server.talk(client)
        client.send_message(MESSAGE, "<edits@example.org>", ["<b@example.net>"])
        server.flush()
        self.assertGreater(written["sent"], 0)
        self.assertEqual(server.values("bytes_received"), {"": written["received"]})
        self.assertEqual(server.values("bytes_sent"), {"": written["sent"]})

    def test_all_at_once(self) -> None:
        """
        Messages that come in one read, answers and all in one write, count as those that do not.
        """
        server = Server(Judge)
        client = server.connect()
        said: list[bytes] = []
        ends = server.connections[0]
        write = ends.mta.write
        self.patch(ends.mta, "write", lambda data: (said.append(data), write(data)))
        server.talk(client)
        for sender in ("edits", "plain", "edits"):
            client.send_message(MESSAGE, f"<{sender}@example.org>", ["<b@example.net>"])
        server.flush()
        once = {name: server.values(name) for name in ("messages", "edits", "callbacks")}
        self.assertEqual(once["edits"], {"addheader": 4, "quarantine": 2})
        server.connect()
        server.connections[1].mta.write(b"".join(said))
        server.flush()
        for name, values in once.items():
            twice = {labels: 2 * value for labels, value in values.items()}
            self.assertEqual(server.values(name), twice, name)

    def test_message_that_the_mta_aborts_or_vanishes_in_is_aborted_once(self) -> None:
        """
        A message that the MTA aborts or vanishes in is aborted, once; QUIT_NC outside of one none.
        """
        server = Server(Judge)
        for end in ("abort", "quit", "vanish"):
            client = server.connect()
            server.talk(client)
            client.mail("<plain@example.org>")
            server.flush()
            if end == "vanish":
                server.connections[-1].mta.abortConnection()
            else:
                getattr(client, end)()
            server.flush()
        client = server.connect()
        server.talk(client)
        client.quit_nc()
        server.flush()
        self.assertEqual(server.values("messages"), {"aborted": 3})

    def test_connections_are_counted_as_they_come_stay_go_and_are_refused(self) -> None:
        """
        Connections are counted as they come, stay, go and are refused.
        """
        server = Server(Judge, max_connections=2)
        clients = [server.connect() for _ in range(5)]
        server.flush()
        self.assertEqual(server.values("connections"), {"": 2})
        self.assertEqual(server.values("connections_refused"), {"": 3})
        self.assertEqual(server.values("connections_open"), {"": 2})
        clients[0].quit()
        server.flush()
        self.assertEqual(server.values("connections_open"), {"": 1})
        self.assertEqual(server.values("connections"), {"": 2})


class WaitingTests(SynchronousTestCase):
    """
    Milters that take their time, and MTAs that do.
    """

    def test_time_of_callback_is_that_from_call_to_answer(self) -> None:
        """
        The time of a callback is that from the call to the answer, and is in its bucket.
        """
        waiting: list[Deferred[Any]] = []

        class Slow(Milter):
            def xxfi_eom(self) -> Any:
                waiting.append(Deferred())
                return waiting[-1]

        server = Server(Slow)
        client = server.connect()
        server.talk(client)
        for seconds in (0.002, 0.3, 100):
            client.send_message(MESSAGE, "<a@example.org>", ["<b@example.net>"])
            server.flush()
            server.clock.advance(seconds)
            waiting.pop().callback(None)
            server.flush()
        *counts, total = server.values("callback_seconds")["Slow", "xxfi_eom"]
        self.assertEqual([place for place, count in enumerate(counts) if count], [4, 11, 18])
        self.assertAlmostEqual(total, 100.302)

    def test_latency_at_once(self) -> None:
        """
        Callbacks that block are counted by their time, over more messages than are kept apart.
        """

        class Slow(Milter):
            def xxfi_envfrom(self, argv: list[str]) -> None:
                server.clock.advance(0.3 if argv[0] == "<slow@x>" else 0)

        server = Server(Slow)
        client = server.connect()
        server.talk(client)
        for number in range(40):
            sender = "<slow@x>" if number % 4 else "<a@x>"
            sent = client.send_message(MESSAGE, sender, ["<b@x>"])
            server.flush()
            self.successResultOf(sent)
        *buckets, total = server.values("callback_seconds")["Slow", "xxfi_envfrom"]
        self.assertEqual((buckets[0], buckets[BUCKETS.index(0.5)], sum(buckets)), (10, 30, 40))
        self.assertAlmostEqual(total, 9)
        self.assertEqual(server.values("callbacks")["Slow", "xxfi_envfrom", "continue"], 40)

    def test_milter_that_is_late_has_a_time_out(self) -> None:
        """
        A milter that is late has a time-out, and its callback was cancelled.
        """

        class Late(Milter):
            def xxfi_eom(self) -> Any:
                return Deferred()

        server = Server(MilterFactory(Late, timeout=2))
        client = server.connect()
        server.talk(client)
        client.send_message(MESSAGE, "<a@example.org>", ["<b@example.net>"])
        server.flush()
        server.clock.advance(2)
        server.flush()
        self.assertEqual(server.values("errors"), {("Late", "xxfi_eom", "timeout"): 1})
        self.assertEqual(server.values("callbacks"), {("Late", "xxfi_eom", "cancelled"): 1})
        self.assertEqual(server.values("messages"), {"tempfail": 1})
        self.flushLoggedErrors(TimeoutError)

    def test_kept_promise_not_to_answer_is_seen_as_such(self) -> None:
        """
        A promise not to answer that is kept is seen as such, and a failing close is an error.
        """

        class Quiet(Milter):
            @noreply
            def xxfi_helo(self, helohost: str) -> Any:
                return c.SMFIS_NOREPLY

            def xxfi_close(self) -> None:
                raise RuntimeError("a fault")

        server = Server(Quiet)
        client = server.connect()
        server.talk(client)
        client.quit()
        server.flush()
        self.assertEqual(server.values("callbacks"), {("Quiet", "xxfi_helo", "noreply"): 1})
        self.assertEqual(server.values("errors"), {("Quiet", "xxfi_close", "error"): 1})
        self.flushLoggedErrors(RuntimeError)

    def test_connections_that_wait_are_counted_by_what_they_wait_for(self) -> None:
        """
        Connections that wait are counted by what they wait for, as long as they do.
        """

        class Slow(Milter):
            def xxfi_helo(self, helohost: str) -> Any:
                return Deferred()

        server = Server(Slow, max_buffered=100)
        client = server.connect()
        server.talk(client)
        server.flush()
        self.assertEqual(
            server.values("connections_paused"), {"mta_not_reading": 0, "milter_busy": 0}
        )
        server.connections[0].mta.write(b"\0\0\1\0U" + b"x" * 255)
        server.flush()
        (protocol,) = server.factory.connections
        protocol.pauseProducing()
        self.assertEqual(
            server.values("connections_paused"), {"mta_not_reading": 1, "milter_busy": 1}
        )

    def test_mta_that_is_silent_or_breaks_the_protocol_is_at_fault(self) -> None:
        """
        An MTA that is silent, that breaks the protocol, or sends too many macros is at fault.
        """
        server = Server(Judge, timeout=10, max_macros=1)
        server.connect()
        server.connections[-1].mta.write(b"\xff\xff\xff\xffM")
        server.connect()
        server.connections[-1].mta.write(b"\0\0\0\x0aDCa\0b\0c\0d\0")
        server.connect()
        server.flush()
        server.clock.advance(11)
        server.flush()
        self.assertEqual(server.values("mta_faults"), {"silent": 1, "macros": 1, "protocol": 1})


class ManyTests(SynchronousTestCase):
    """
    Several factories, several processes, several kinds of milters.
    """

    def test_milter_with_a_condition_is_counted_for_what_it_was_shown(self) -> None:
        """
        A milter with a condition is counted for what it was shown.
        """
        factory = MilterFactory(Judge, when=sender_matches("plain@example.org"))
        server = Server(factory)
        client = server.connect()
        server.talk(client)
        for sender in ("plain", "reject", "reject"):
            client.send_message(MESSAGE, f"<{sender}@example.org>", ["<b@example.net>"])
        server.flush()
        self.assertEqual(
            server.values("callbacks"),
            {("Judge", name, "continue"): 1 for name in ("xxfi_envfrom", "xxfi_eom")},
        )
        self.assertEqual(server.values("messages"), {"continue": 3})

    def test_shadow_and_reload(self) -> None:
        """
        What milters in shadow would have done is shown, and stays when their factory is forgotten.
        """
        server = Server(MilterFactory(Judge, shadow=True, name="tried"))
        client = server.connect()
        server.talk(client)
        client.send_message(MESSAGE, "<reject@example.org>", ["<b@example.net>"])
        server.flush()
        server.clock.advance(1)
        server.flush()
        before = server.values("shadow_messages")
        self.assertEqual(before["tried", "reject"], 1)
        self.assertRaises(ValueError, server.metrics.watch, server.factory)
        self.assertRaises(ValueError, MilterMetrics().forget, server.factory)
        client.quit()
        server.flush()
        server.metrics.forget(server.factory)
        self.assertEqual(server.values("shadow_messages"), before)
        self.assertEqual(server.values("connections_open"), {"": 0})

    def test_snapshots_of_several_processes_carried_as_json_are_added_up(self) -> None:
        """
        Snapshots of several processes, carried as JSON, are added up.
        """
        snapshots = []
        for sender in ("plain", "reject"):
            server = Server(Judge)
            client = server.connect()
            server.talk(client)
            client.send_message(MESSAGE, f"<{sender}@example.org>", ["<b@example.net>"])
            server.flush()
            snapshots.append(json.loads(json.dumps(server.metrics.snapshot())))
        both = merge(snapshots)
        self.assertEqual(both["yatxmilter_connections_open"], [[[], 2]])
        self.assertEqual(sorted(both["yatxmilter_messages"]), [[["continue"], 1], [["reject"], 1]])
        latencies = {tuple(labels): value for labels, value in both["yatxmilter_callback_seconds"]}
        self.assertEqual(sum(latencies["Judge", "xxfi_eom"][:-1]), 2)

    def test_prometheus_own_parser_reads_all_metrics_out_of_the_text(self) -> None:
        """
        Prometheus' own parser reads all metrics out of the text, with the values they have.
        """
        server = Server(Judge)
        client = server.connect()
        server.talk(client)
        client.send_message(MESSAGE, "<edits@example.org>", ["<b@example.net>"])
        server.flush()
        text = metrics_text(server.metrics.snapshot()).decode()
        families = {one.name: one for one in text_string_to_metric_families(text)}
        self.assertEqual(families.keys(), FAMILIES.keys())
        self.assertEqual(families["yatxmilter_messages"].samples[0].value, 1)
        edits = {one.labels["kind"]: one.value for one in families["yatxmilter_edits"].samples}
        self.assertEqual(edits, {"addheader": 2, "quarantine": 1})
        buckets = [
            one.value
            for one in families["yatxmilter_callback_seconds"].samples
            if one.labels == {"milter": "Judge", "callback": "xxfi_eom", "le": "+Inf"}
        ]
        self.assertEqual(buckets, [1])


class Greylisting(Milter):
    """
    Puts every recipient off.
    """

    def xxfi_envrcpt(self, argv: list[str]) -> Any:
        return c.SMFIS_TEMPFAIL


ALERTS = Path(__file__).parent.parent.parent / "examples" / "deploy" / "alerts.yml"


class AlertTests(SynchronousTestCase):
    """
    The alerts see what they are for, in metrics of real conversations.
    """

    def values(self, milter: Any, verdict: str) -> dict[str, tuple[float, float]]:
        """
        Let a milter have twenty messages, of which the MTA gives up those without recipients; give
        each series before and after.
        """
        server = Server(milter)
        client = server.connect()
        server.talk(client)
        server.flush()
        before = _series(server.metrics)
        for _ in range(20):
            client.mail("<a@example.org>")
            client.rcpt("<b@example.net>")
            if verdict == "rcpt":
                client.abort()
            else:
                client.data()
                client.end_of_message()
            server.flush()
        after = _series(server.metrics)
        return {name: (before.get(name, 0), value) for name, value in after.items()}

    def firing(self, values: dict[str, tuple[float, float]]) -> bool:
        """
        Tell whether MilterDefersMail would fire, if that had gone on for a while: by hand, since
        Prometheus need not be here.
        """
        _, _, text = ALERTS.read_text().partition("alert: MilterDefersMail")
        expression = " ".join(text.partition("for:")[0].split())
        found = re.findall(
            r"(?:sum by \(([^)]*)\)|sum)\s?\(rate\((\w+)(?:{(\w+)=\"(\w+)\"})?\[10m\]\)\)"
            r" (?:/|> ([\d.]+))",
            expression,
        )
        self.assertEqual(len(found), 4, expression)
        for above, below in (found[:2], found[2:]):
            sums: list[Any] = [{}, {}]
            for place, (by, name, label, wanted, _) in enumerate((above, below)):
                for series, (before, after) in values.items():
                    labels = dict(re.findall(r'(\w+)="([^"]*)"', series))
                    if series.partition("{")[0] != name or (label and labels[label] != wanted):
                        continue
                    key = tuple(labels[one] for one in by.split(", ") if one)
                    sums[place][key] = sums[place].get(key, 0) + after - before
            least = float(below[4])
            if any(part / sums[1][key] > least for key, part in sums[0].items() if sums[1][key]):
                return True
        return False

    def test_deferral_at_recipients(self) -> None:
        """
        MilterDefersMail sees a milter that puts off at RCPT, though its messages end as aborted.
        """
        values = self.values(Greylisting, "rcpt")
        self.assertEqual(values['yatxmilter_messages_total{verdict="aborted"}'], (0, 20))
        self.assertTrue(self.firing(values))

    def test_deferral_of_messages(self) -> None:
        """
        It sees one that puts messages off, and none that lets them pass.
        """

        class Later(Milter):
            def xxfi_eom(self) -> Any:
                return c.SMFIS_TEMPFAIL

        class Fine(Milter):
            def xxfi_envrcpt(self, argv: list[str]) -> Any:
                return c.SMFIS_CONTINUE

        self.assertTrue(self.firing(self.values(Later, "eom")))
        self.assertFalse(self.firing(self.values(Fine, "eom")))
        self.assertFalse(self.firing(self.values(Fine, "rcpt")))

    def test_prometheus_itself_agrees_where_its_promtool_is_installed(self) -> None:
        """
        Prometheus itself agrees, where its promtool is installed.
        """
        promtool = shutil.which("promtool")
        if promtool is None:
            raise SkipTest("promtool is not installed")
        values = self.values(Greylisting, "rcpt")
        series = [
            {"series": name, "values": f"{before:g}+{(after - before) / 20:g}x60"}
            for name, (before, after) in values.items()
            if name.startswith(("yatxmilter_messages", "yatxmilter_callbacks"))
        ]
        expected = {"exp_labels": {"milter": "Greylisting", "callback": "xxfi_envrcpt"}}
        test = {
            "interval": "1m",
            "input_series": series,
            "alert_rule_test": [
                {"eval_time": "40m", "alertname": "MilterDefersMail", "exp_alerts": [expected]}
            ],
        }
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "test.yml")
            path.write_text(json.dumps({"rule_files": [str(ALERTS)], "tests": [test]}))
            done = subprocess.run(
                [promtool, "test", "rules", str(path)], capture_output=True, text=True, check=False
            )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)


def _series(metrics: MilterMetrics) -> dict[str, float]:
    """
    Give all series of the page that Prometheus reads.
    """
    lines = metrics_text(metrics.snapshot()).decode().splitlines()
    return {
        name: float(value)
        for name, _, value in (one.rpartition(" ") for one in lines if not one.startswith("#"))
    }


class ProcessMetricsTests(SynchronousTestCase):
    """
    What a process tells of itself.
    """

    def test_start_and_reloads(self) -> None:
        """
        Version, start, and when the configuration in force was loaded.
        """
        now = [1000.0]
        metrics = MilterMetrics(now=lambda: now[0])
        now[0] = 2000.0
        metrics.reloaded(True)
        now[0] = 3000.0
        metrics.reloaded(False)
        series = _series(metrics)
        for name, value in (
            (f'yatxmilter_build_info{{version="{__version__}"}}', 1),
            ("yatxmilter_start_time_seconds", 1000),
            ("yatxmilter_last_reload_successful", 0),
            ("yatxmilter_last_reload_success_seconds", 2000),
        ):
            self.assertEqual(series[name], value)

    def test_of_several_processes(self) -> None:
        """
        Of several processes the first start, the oldest load and the worst reload are told.
        """
        several = []
        for start, done in ((1000.0, True), (500.0, False), (2000.0, True)):
            metrics = MilterMetrics(now=lambda start=start: start)
            metrics.reloaded(done)
            metrics._lag.add(0.3)
            several.append(metrics.snapshot())
        merged = merge(several)
        for name, value in (
            ("build_info", 1),
            ("start_time_seconds", 500),
            ("last_reload_successful", 0),
            ("last_reload_success_seconds", 500),
            ("processes", 3),
        ):
            self.assertEqual(merged[f"yatxmilter_{name}"][0][1], value, name)
        self.assertEqual(sum(merged["yatxmilter_reactor_lag_seconds"][0][1][:-1]), 3)

    def test_reactors_lag_is_looked_at_each_second_until_that_is_ended(self) -> None:
        """
        The reactor's lag is looked at each second, until that is ended.
        """
        clock = Clock()
        metrics = MilterMetrics()
        end = metrics.watch_reactor(clock)
        for late in (0.0, 0.2, 3.0):
            clock.advance(1 + late)
        series = _series(metrics)
        self.assertEqual(series["yatxmilter_reactor_lag_seconds_count"], 3)
        self.assertAlmostEqual(series["yatxmilter_reactor_lag_seconds_sum"], 3.2)
        self.assertEqual(series['yatxmilter_reactor_lag_seconds_bucket{le="0.1"}'], 1)
        end()
        end()
        self.assertEqual(clock.getDelayedCalls(), [])
