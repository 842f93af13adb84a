"""
The example of the README, run as the file it is, behind a real Postfix.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from .bench import MESSAGE, MtaTestCase
from .control import ROOT
from .postfix import Postfix
from .processes import is_listening, stop, wait_until

EXAMPLE = ROOT / "examples" / "milter_twisted_simple.py"

#: Runs the file's main() with another port in the place of its 1234.
RUNNER = """
import runpy, sys
from twisted.internet import reactor
listen = reactor.listenTCP
def listen_elsewhere(port, *args, **kwargs):
    assert port == 1234, port
    return listen(int(sys.argv[2]), *args, interface="127.0.0.1", **kwargs)
reactor.listenTCP = listen_elsewhere
runpy.run_path(sys.argv[1], run_name="example")["main"]()
"""


class ExampleTests(MtaTestCase):
    """
    ``examples/milter_twisted_simple.py``.
    """

    mta_class = Postfix

    def start_example(self, log: Path) -> None:
        """
        Start the example where the door "example" leads.
        """
        port = self.mta.addresses.example_port
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", RUNNER, str(EXAMPLE), str(port)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=ROOT,
            )
        self.addCleanup(stop, process)
        wait_until(lambda: is_listening(port) or process.poll() is not None, "the example")
        self.assertIsNone(process.poll(), log.read_text())

    def test_mail_passes_example_untouched_and_does_not_where_it_is_not_running(self) -> None:
        """
        Mail passes the example untouched, and does not where it is not running.
        """
        self.assertReply(self.send(door="example"), 451)
        log = self.bench.folder / "example.log"
        self.start_example(log)
        for _ in range(2):
            self.sink.clear()
            self.assertEqual(self.deliver(door="example").without_trace(), MESSAGE)
        self.assertEqual(log.read_text(), "")
