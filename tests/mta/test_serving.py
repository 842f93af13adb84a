"""
``yatxmilter serve`` behind a real Postfix: told to reload, restarted and robbed of a worker while
mail flows.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from .control import ROOT
from .load import CLIENTS, MILTER, Load, LoadCase
from .processes import LOOPBACK, wait_until


class ServedTests(LoadCase):
    """
    The daemon, told things under load.
    """

    def serve(self, *words: str) -> subprocess.Popen[bytes]:
        """
        Start it behind the door "example".
        """
        port = self.mta.addresses.example_port
        return self.run_command(
            *("env", f"PYTHONPATH={self.folder}:{ROOT}", "PYTHONDONTWRITEBYTECODE=1"),
            *(sys.executable, "-m", "yatxmilter", "serve", f"--listen=inet:{port}@{LOOPBACK}"),
            *("--milter=marking:Marking", *words),
        )

    def test_sighup_puts_nothing_off(self) -> None:
        """
        SIGHUP puts nothing off: messages come through the old milter, then through the new one.
        """
        process = self.serve("--workers=2")

        def act(load: Load) -> None:
            self.module.write_text(MILTER.replace('"one"', '"two"'))
            process.send_signal(signal.SIGHUP)
            load.after(10)

        self.assertEqual(self.under_load(act).put_off, 0)
        self.assertEqual({mark.split()[0] for mark in self.marks()}, {"one", "two"})

    def test_sigterm_lets_messages_in_progress_end(self) -> None:
        """
        SIGTERM lets messages in progress end, those in between are put off by Postfix, and all
        come through once it runs again.
        """
        process = self.serve()

        def act(load: Load) -> None:
            process.send_signal(signal.SIGTERM)
            self.assertEqual(process.wait(120), 0, self.log.read_text())
            self.assertNotIn("Traceback", self.log.read_text())
            self.serve()

        self.under_load(act)
        self.assertEqual(len({mark.split()[1] for mark in self.marks()}), 2)

    def test_mail_of_a_killed_worker_is_put_off_to_the_next_worker(self) -> None:
        """
        When a worker is killed in the middle of messages Postfix puts those off, the next worker
        has them, and nobody else notices.
        """
        self.serve("--workers=2")

        def act(load: Load) -> None:
            hold = self.folder / "hold"
            hold.touch()
            wait_until(lambda: list(self.folder.glob("held.*")), "a message to be held")
            [held, *_] = self.folder.glob("held.*")
            os.kill(int(held.suffix[1:]), signal.SIGKILL)
            hold.unlink()
            load.after(15)

        load = self.under_load(act)
        self.assertIn(load.put_off, range(1, CLIENTS + 1))
        self.assertIn("(killed by SIGKILL)", self.log.read_text())
