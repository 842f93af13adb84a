"""
A program written for pymilter behind real MTAs: on the real pymilter, and unchanged on ours.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from .bench import Bench, bench_for
from .control import ROOT, script
from .fidelity import SCENARIOS, Scenario, Seen, _comparable, _speak, differences
from .fidelity import Path as Address
from .mta import Mta
from .postfix import Postfix
from .processes import is_listening, wait_until
from .pymilter_sessions import OURS, REAL
from .sendmail import Sendmail
from .smtp import SmtpClient

STAGES = ("connect", "helo", "envfrom", "envrcpt", "data", "header", "eoh", "body", "eom")


def scenarios() -> dict[str, Scenario]:
    """
    Give all scenarios: those of the kit, and what raises at each stage.
    """
    raising = {
        f"raises at {stage}": Scenario(script(**{f"xxfi_{stage}": [("raise", "no")]}))
        for stage in STAGES
    }
    progress = {"progress": Scenario(script(xxfi_eom=[("smfi_progress",), "ACCEPT"]))}
    return {**SCENARIOS, **raising, **progress}


class Program:
    """
    The program, while it runs.
    """

    def __init__(self, bench: Bench, folder: Path) -> None:
        self._bench = bench
        self.scenario = folder / "scenario.json"
        self.log = folder / "log"
        self.port = bench.mta.addresses.example_port

    @contextlib.contextmanager
    def running(self, command: tuple[str, ...]) -> Iterator[None]:
        """
        Run it.
        """
        program = str(Path(__file__).with_name("pymilter_milter.py"))
        arguments = [str(self.scenario), str(self.log), f"inet:{self.port}@127.0.0.1"]
        process = subprocess.Popen(
            [*command, program, *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT) if command is OURS else ""},
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_until(lambda: process.poll() is None and is_listening(self.port), "the program")
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()

    def events(self) -> list[list[object]]:
        """
        Read what it has written.
        """
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def play(self, scenario: Scenario) -> Seen:
        """
        Play a scenario.
        """
        bench = self._bench
        bench.mta.settle()
        bench.sink.clear()
        self.scenario.write_text(json.dumps(scenario.script))
        self.log.write_text("")
        client = SmtpClient(bench.mta.ports["example"])
        seen = Seen()
        with contextlib.closing(client):
            client.ehlo()
            _speak(seen, scenario, client)
            client.quit()
        wait_until(lambda: ["xxfi_close"] in self.events(), "the end of the connection")
        bench.mta.settle()
        seen.held = bool(bench.mta.held())
        bench.mta.release()
        for delivery in bench.sink.deliveries:
            sender = Address(delivery.sender.address, delivery.sender.args)
            paths = [Address(path.address, path.args) for path in delivery.recipients]
            seen.delivered.append(_comparable(sender, paths, delivery.data))
        seen.delivered.sort()
        seen.calls = [_known(event) for event in self.events()]
        return seen


def _known(event: list[object]) -> list[object]:
    # Queue ids, ports and times are other ones each time.
    name, *args = event
    if name == "macro":
        return [name, args[0], args[1] is not None]
    return [name] if name == "xxfi_connect" else event


class MtaTests(SynchronousTestCase):
    """
    The same replies, callbacks, macros and delivered messages.
    """

    def check(self, mta: type[Mta]) -> None:
        """
        Play all scenarios to both.
        """
        if subprocess.run([*REAL, "-c", "import milter"], capture_output=True).returncode:
            raise SkipTest("no pymilter for /usr/bin/python3; see tests/mta/install.sh")
        bench = bench_for(mta)
        # The MTA's own mail passes by this one.
        bench.milter.load([script()], {})
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        program = Program(bench, Path(folder.name))
        seen: list[dict[str, Seen]] = []
        for command in (REAL, OURS):
            with program.running(command):
                seen.append({name: program.play(one) for name, one in scenarios().items()})
        real, ours = seen
        self.assertGreaterEqual(len(real), 60)
        found = {name: differences(real[name], ours[name]) for name in real}
        self.assertEqual({name: lines for name, lines in found.items() if lines}, {})
        bench.milter.take_log()

    def test_behind_postfix_it_does_the_same_on_both(self) -> None:
        """
        Behind Postfix it does the same on both.
        """
        self.check(Postfix)

    def test_behind_sendmail_it_does_the_same_on_both(self) -> None:
        """
        Behind Sendmail it does the same on both.
        """
        self.check(Sendmail)
