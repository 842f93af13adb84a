"""
Two milter hosts behind a real HAProxy: one is killed under load, one leaves.

The configuration is that of the examples, with other addresses and less time between the checks.
One of the hosts has version 1 of the PROXY protocol, the other version 2. What plays the MTA tries
again, as an MTA's clients do, what was put off, and what broke.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectError
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from tests.ports import free_ports
from yatxmilter.client import PeerError, connect_milter

from .control import ROOT
from .hosting import HostCase
from .postfix import Postfix
from .processes import LOOPBACK, is_listening, require_program, start, stop, wait_until

EXAMPLE = ROOT / "examples" / "behind_haproxy.py"
CONFIGURATION = ROOT / "examples" / "deploy" / "haproxy.cfg"

#: The example with a milter that takes its time, so that there is something to disturb.
_HOST = """
import runpy, sys
from twisted.internet import reactor
from twisted.internet.task import deferLater
example = runpy.run_path(sys.argv[1])
class Slow(example["Mark"]):
    async def xxfi_eom(self):
        await deferLater(reactor, 0.03)
        super().xxfi_eom()
example["main"](sys.argv[2:], Slow)
"""

#: Where the MTA connects from; HAProxy's own connections come from 127.0.0.1.
MTA = "127.0.0.9"
MESSAGE = b"Subject: hello\r\n\r\nA letter.\r\n"
MESSAGES = 300
AT_ONCE = 12


class Hosts:
    """
    HAProxy and two hosts.
    """

    def __init__(self, folder: Path, ports: list[int]) -> None:
        self.folder = folder
        self.port, *self.ports = ports
        text = CONFIGURATION.read_text()
        wanted = [
            ("/run/haproxy/admin.sock", f"{folder}/admin.sock"),
            ("bind 127.0.0.1:9999", f"bind {LOOPBACK}:{self.port}"),
            (" inter 2s ", " inter 200ms "),
            ("agent-inter 1s", "agent-inter 100ms"),
            ("192.0.2.11:9900 send-proxy-v2", f"{LOOPBACK}:{self.ports[0]} send-proxy"),
            ("192.0.2.12:9900 ", f"{LOOPBACK}:{self.ports[1]} "),
        ]
        for old, new in wanted:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        assert text.count("agent-port 9901") == 2
        for port in self.ports[2:]:
            text = text.replace("agent-port 9901", f"agent-port {port}", 1)
        (folder / "haproxy.cfg").write_text(text)
        self.processes: list[subprocess.Popen[bytes]] = []

    def start_host(self, number: int, milter: bool = True) -> subprocess.Popen[bytes]:
        """
        Start one of the hosts, and wait until it listens.
        """
        port = self.ports[number]
        program = ("-c", _HOST, EXAMPLE) if milter else (EXAMPLE,)
        process = start(
            [
                *(sys.executable, *program),
                f"haproxy:tcp:{port}:interface={LOOPBACK}",
                f"tcp:{self.ports[2 + number]}:interface={LOOPBACK}",
            ],
            self.log(number),
            {"PYTHONPATH": str(ROOT)},
        )
        self.processes.append(process)
        wait_until(lambda: is_listening(port) or process.poll() is not None, "the host")
        if process.poll() is not None:
            raise AssertionError(f"the host did not start: {self.log(number).read_text()}")
        return process

    def start_haproxy(self) -> None:
        """
        Start HAProxy.
        """
        log = self.folder / "haproxy.log"
        command = [require_program("haproxy"), "-db", "-f", self.folder / "haproxy.cfg"]
        process = start(command, log)
        self.processes.append(process)
        wait_until(lambda: is_listening(self.port) or process.poll() is not None, "HAProxy")
        if process.poll() is not None:
            raise AssertionError(f"HAProxy did not start: {log.read_text()}")

    def log(self, number: int) -> Path:
        """
        Give the log of a host.
        """
        return self.folder / f"host{number}.log"

    def seen(self, number: int) -> Counter[str]:
        """
        Count the messages that a host has seen to their end, each with the MTA's address.
        """
        text = self.log(number).read_text()
        return Counter(re.findall(r"#info\] (\S+ from the MTA at \S+)", text))

    def stop(self) -> None:
        """
        Stop all.
        """
        for process in self.processes:
            stop(process, patience=0)


def make_hosts(case: Any) -> Hosts:
    """
    Start HAProxy and two hosts for a test.
    """
    require_program("haproxy")
    folder = tempfile.TemporaryDirectory(prefix="yatxmilter-haproxy-")
    case.addCleanup(folder.cleanup)
    hosts = Hosts(Path(folder.name), free_ports(5))
    case.addCleanup(hosts.stop)
    return hosts


class HaproxyTests(TestCase):
    """
    Under load.
    """

    timeout = 300

    def setUp(self) -> None:
        """
        Start the hosts and HAProxy.
        """
        self.hosts = make_hosts(self)
        self.pair = [self.hosts.start_host(0), self.hosts.start_host(1)]
        self.hosts.start_haproxy()
        self.accepted: Counter[str] = Counter()
        self.retried: list[str] = []

    async def attempt(self, name: str) -> bool:
        """
        Send a message over a connection of its own; tell whether it is accepted.
        """
        endpoint = TCP4ClientEndpoint(reactor, LOOPBACK, self.hosts.port, bindAddress=(MTA, 0))
        try:
            mta = await connect_milter(endpoint)
            await mta.negotiate()
            await mta.connect("client.example")
            await mta.helo("client.example")
            outcome = await mta.send_message(
                MESSAGE, "<a@client.example>", ["<b@example.com>"], macros={"i": name}
            )
            await mta.quit()
        except (PeerError, ConnectError):
            return False
        return outcome.accepted

    async def load(self, half: Callable[[], Awaitable[None]]) -> None:
        """
        Send all messages, several at once, each until it is accepted.

        :param half: Called when half of them are.
        """
        waiting = [f"M{number}" for number in range(MESSAGES)]

        async def work() -> None:
            while waiting:
                name = waiting.pop(0)
                if await self.attempt(name):
                    self.accepted[name] += 1
                else:
                    self.retried.append(name)
                    self.assertLess(len(self.retried), MESSAGES, "nothing passes")
                    waiting.append(name)
                    # An MTA's clients do not come back at once.
                    await deferLater(reactor, 0.05)
                if len(waiting) == MESSAGES // 2 and self.half is not None:
                    then, self.half = self.half, None
                    await then()

        self.half: Callable[[], Awaitable[None]] | None = half
        await gatherResults([Deferred.fromCoroutine(work()) for _ in range(AT_ONCE)])
        self.assertIsNone(self.half)

    def check(self) -> Counter[str]:
        """
        Check that each message was accepted once, seen by a milter, and from the real MTA; count
        how often each was seen.
        """
        names = {f"M{number}" for number in range(MESSAGES)}
        self.assertEqual(self.accepted, Counter(dict.fromkeys(names, 1)))
        seen: Counter[str] = Counter()
        for number in range(2):
            for line, count in self.hosts.seen(number).items():
                name, _, mta = line.partition(" from the MTA at ")
                self.assertEqual(mta, MTA)
                seen[name] += count
            self.assertNotIn("Traceback", self.hosts.log(number).read_text())
        self.assertEqual(set(seen), names)
        return seen

    async def test_when_host_is_killed_no_message_is_lost_accepted_unseen(self) -> None:
        """
        When a host is killed no message is lost, accepted unseen, or accepted twice: those it had
        at that moment break off, and are tried again.
        """

        async def kill() -> None:
            self.pair[0].kill()

        await self.load(kill)
        seen = self.check()
        self.assertTrue(self.hosts.seen(0))
        self.assertGreater(len(self.retried), 0)
        # Never more than were under way; a host may have judged what it could not answer any more.
        self.assertLessEqual(len(set(self.retried)), AT_ONCE)
        twice = {name for name, count in seen.items() if count > 1}
        self.assertLessEqual(twice, set(self.retried))
        print(f"killed: {MESSAGES} messages, {len(self.retried)} retried, {len(twice)} seen twice")

    async def test_leaves_and_comes_back(self) -> None:
        """
        When a host leaves on SIGTERM no message notices: all are accepted at their first attempt.
        Started again, it is given messages again.
        """

        async def leave() -> None:
            self.pair[0].send_signal(signal.SIGTERM)

        await self.load(leave)
        self.assertEqual(self.retried, [])
        self.assertEqual(set(self.check().values()), {1})
        before = sum(self.hosts.seen(0).values())
        # Most of the second half went elsewhere.
        self.assertGreater(before, 0)
        self.assertLess(before, MESSAGES // 2)
        while self.pair[0].poll() is None:
            await deferLater(reactor, 0.05)
        self.assertEqual(self.pair[0].returncode, 0)
        self.hosts.start_host(0)
        number = 0
        while sum(self.hosts.seen(0).values()) == before:
            self.assertTrue(await self.attempt(f"again{number}"))
            number += 1


class BehindPostfixTests(HostCase):
    """
    Between Postfix and the example.
    """

    mta_class = Postfix

    def test_mail_passes_postfix_haproxy_and_host(self) -> None:
        """
        Mail passes Postfix, HAProxy and a host, which marks it, also when the other one is away.
        """
        hosts = make_hosts(self)
        hosts.port = self.mta.addresses.example_port
        configuration = hosts.folder / "haproxy.cfg"
        configuration.write_text(
            re.sub(r"bind \S+", f"bind {LOOPBACK}:{hosts.port}", configuration.read_text())
        )
        hosts.start_host(1, milter=False)
        hosts.start_haproxy()
        for _ in range(2):
            self.sink.clear()
            delivery = self.deliver(door="example")
            self.assertEqual(len(delivery.values("X-Filtered-By")), 1)
        self.assertEqual(sum(hosts.seen(1).values()), 2)
