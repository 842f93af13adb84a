"""
A milter on several hosts behind a real Postfix, of which one is killed while mail flows.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.ports import free_ports

from .control import ROOT
from .load import CLIENTS, Load, LoadCase
from .processes import LOOPBACK, is_listening, start, stop, wait_until


class HostsTests(LoadCase):
    """
    Three processes that serve the same milter, as one remote milter.
    """

    def host(self, port: int) -> subprocess.Popen[bytes]:
        """
        Start one.
        """
        command: list[str | Path] = [sys.executable, "-m", "yatxmilter", "serve"]
        command += [f"--listen=inet:{port}@{LOOPBACK}", "--milter=marking:Marking"]
        path = {"PYTHONPATH": f"{self.folder}:{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}
        process = start(command, self.folder / f"{port}.log", path)
        self.addCleanup(stop, process)
        return process

    def test_one_is_killed(self) -> None:
        """
        When a host is killed in the middle of messages these are put off, and come again; no other
        message is, none is lost, doubled or let through. When it runs again it has its share.
        """
        ports = free_ports(3)
        hosts = [self.host(port) for port in ports]
        wait_until(lambda: all(map(is_listening, ports)), "the hosts to listen")
        addresses = " ".join(f"inet:{port}@{LOOPBACK}" for port in ports)
        self.run_remote(addresses, name="marking")

        def marked(process: subprocess.Popen[bytes]) -> bool:
            return any(mark.split()[1] == str(process.pid) for mark in self.marks())

        def act(load: Load) -> None:
            wait_until(lambda: all(map(marked, hosts)), "mail through each host")
            victim = hosts[0]
            hold = self.folder / "hold"
            hold.touch()
            held = self.folder / f"held.{victim.pid}"
            wait_until(held.exists, "a message to be held")
            victim.kill()
            victim.wait()
            hold.unlink()
            load.after(15)
            again = self.host(ports[0])
            wait_until(lambda: marked(again), "mail through the host that is back")

        load = self.under_load(act)
        self.assertIn(load.put_off, range(1, CLIENTS + 1))
        log = self.log.read_text()
        self.assertEqual(log.count("is left out"), 1, log)
        self.assertEqual(log.count("can be had again"), 1, log)
        self.assertEqual(log.count("Milter marking failed in xxfi_eom"), load.put_off, log)
