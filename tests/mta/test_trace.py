"""
``yatxmilter trace`` between a real MTA and a milter, and ``yatxmilter replay`` of what it kept.

The MTA's door "example" leads to the trace, the trace to the milter process of all tests. What the
trace is for must hold: mail comes out as without it, the record played to the same milter shows no
difference, and played to one that was changed it shows what was changed, and no more.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from .bench import MESSAGE, MtaTestCase
from .control import ROOT, script
from .postfix import Postfix
from .processes import LOOPBACK, is_listening, start, stop, wait_until
from .sendmail import Sendmail

_REFUSED = [("smfi_setreply", "550", "5.7.1", "not here"), "REJECT"]
_RECIPIENTS = ("<rcpt@sink.example>", "<no@sink.example>")


class TraceCase(MtaTestCase):
    """
    The tests, for each MTA.
    """

    def setUp(self) -> None:
        """
        Make a folder.
        """
        super().setUp()
        folder = tempfile.TemporaryDirectory(prefix="yatxmilter-trace-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.record = self.folder / "record.jsonl"
        self.output = self.folder / "output"

    @property
    def to(self) -> str:
        """
        Where the milter is.
        """
        return f"unix:{self.mta.addresses.milter_socket}"

    def trace(self, *options: str) -> subprocess.Popen[bytes]:
        """
        Start a trace.
        """
        port = self.mta.addresses.example_port
        command = [sys.executable, "-m", "yatxmilter", "trace", "--to", self.to]
        command += ["--listen", f"inet:{port}@{LOOPBACK}", "--record", str(self.record), *options]
        process = start(command, self.output, {"PYTHONPATH": str(ROOT)})
        self.addCleanup(stop, process)
        wait_until(lambda: is_listening(port) or process.poll() is not None, "the trace")
        self.assertIsNone(process.poll(), self.output.read_text())
        return process

    def play_again(self, *options: str) -> tuple[int, str]:
        """
        Replay the record; give the status and what was printed.
        """
        command = [sys.executable, "-m", "yatxmilter", "replay", str(self.record), "--to", self.to]
        result = subprocess.run(
            [*command, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            text=True,
            timeout=60,
            check=False,
        )
        return result.returncode, result.stdout

    def send_through(self, *options: str) -> str:
        """
        Have mail of all sorts go through a trace, and end it; give what it printed.
        """
        process = self.trace(*options)
        delivery = self.deliver(MESSAGE, recipients=_RECIPIENTS[:1], door="example")
        self.assertEqual(delivery.values("X-Seen"), [b"before"])
        self.assertEqual(delivery.body, MESSAGE.partition(b"\r\n\r\n")[2])
        client = self.connect("example")
        self.assertReply(client.command("MAIL FROM:<sender@client.example>"), 250)
        self.assertEqual(client.command(f"RCPT TO:{_RECIPIENTS[1]}").code, 550)
        self.assertEqual(client.command(f"RCPT TO:{_RECIPIENTS[0]}").code, 250)
        self.assertEqual(client.command("RSET").code, 250)
        self.assertEqual(client.message(MESSAGE, recipients=_RECIPIENTS[:1]).code, 250)
        client.quit()
        self.sink.wait(2)
        stop(process)
        self.assertEqual(process.returncode, 0, self.output.read_text())
        return self.output.read_text()

    def load_milter(self, value: str, reply: object = None) -> None:
        """
        Have the milter add this value, and refuse a recipient with these steps.
        """
        self.load(
            script(
                xxfi_envrcpt={_RECIPIENTS[1]: reply or _REFUSED},
                xxfi_eom=[("smfi_addheader", "X-Seen", value)],
            )
        )


class _Scenarios(TraceCase):
    def test_mail_is_delivered_as_without_trace_same_milter_answers_same(self) -> None:
        """
        Mail is delivered as without a trace; the same milter answers the same, and of a changed one
        the difference is named.
        """
        self.load_milter("before")
        printed = self.send_through()
        for expected in ("RCPT        <no@sink.example>", "REPLYCODE   550 5.7.1 not here"):
            self.assertIn(expected, printed)
        self.assertIn("ADDHEADER   X-Seen: before", printed)
        status, text = self.play_again()
        self.assertEqual((status, text), (0, "2 sessions, 3 messages, no difference\n"))
        self.load_milter("after")
        status, text = self.play_again()
        self.assertEqual(status, 1, text)
        self.assertIn("    was ADDHEADER X-Seen: before\n    now ADDHEADER X-Seen: after\n", text)
        self.assertIn("2 sessions, 3 messages, 2 differences in 2 sessions\n", text)
        self.assertEqual(self.play_again("--ignore", "x-seen")[0], 0)
        self.load_milter("before", ["TEMPFAIL"])
        status, text = self.play_again("--json")
        lines = [json.loads(line) for line in text.splitlines()]
        found = [difference for part in lines[:-1] for difference in part["differences"]]
        self.assertEqual(
            [(one["was"], one["now"]) for one in found],
            [(["REPLYCODE 550 5.7.1 not here"], ["TEMPFAIL"])],
        )

    def test_record_without_bodies_and_addresses_has_none_of_them(self) -> None:
        """
        A record without bodies and addresses has none of them, and can be played all the same.
        """
        self.load_milter("before")
        self.send_through("--redact", "body,addresses", "--quiet")
        record = self.record.read_text()
        private = ("sender@", "@client", "rcpt@", "@sink", "two dots")
        self.assertEqual([text for text in private if text in record], [])
        # Whom the milter refused it does not know any more.
        status, text = self.play_again()
        self.assertEqual(status, 1, text)
        self.assertIn("2 sessions, 3 messages, 1 difference in 1 session\n", text)
        self.assertIn("    was REPLYCODE 550 5.7.1 not here\n    now CONTINUE\n", text)


class PostfixTraceTests(_Scenarios):
    """
    With Postfix.
    """

    mta_class = Postfix


class SendmailTraceTests(_Scenarios):
    """
    With Sendmail.
    """

    mta_class = Sendmail


del _Scenarios, TraceCase
