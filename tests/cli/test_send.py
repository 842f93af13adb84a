"""
Tests of ``yatxmilter send``: whole runs, with milters that behave and milters that do not.
"""

from __future__ import annotations

import io
import os
import signal
import stat
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.task import deferLater

from tests.helpers import InterruptedInput
from tests.sending import ScriptFactory, SendCase, Terminal
from yatxmilter import Milter
from yatxmilter import constants as c
from yatxmilter._cli import send, send_play
from yatxmilter._wire.payloads import Offer, encode_offer, encode_packet


class Editor(Milter):
    """
    Make every kind of edit.
    """

    def xxfi_eom(self) -> None:
        self.smfi_insheader(0, "X-Top", "first\n second")
        self.smfi_chgheader("Subject", 1, "caf\udce9")
        self.smfi_replacebody(b"Another \xff letter.\r\n")
        self.smfi_chgfrom("<other@example.org>", "SIZE=9")
        self.smfi_addrcpt("<more@example.com>")
        self.smfi_addrcpt("reader@example.com")
        self.smfi_delrcpt("<gone@example.com>")
        self.smfi_progress()


class Holder(Milter):
    """
    Put every message in quarantine.
    """

    def xxfi_eom(self) -> None:
        self.smfi_quarantine("looks odd")


class BySubject(Milter):
    """
    Do what the subject says.
    """

    code = c.SMFIS_CONTINUE

    def xxfi_envfrom(self, argv: list[str]) -> None:
        self.code = c.SMFIS_CONTINUE

    def xxfi_header(self, headerf: str, headerv: str) -> None:
        if headerf == "Subject":
            self.code = getattr(c, f"SMFIS_{headerv.upper()}", c.SMFIS_CONTINUE)

    def xxfi_eom(self) -> c.ReturnCode:
        if self.code == c.SMFIS_REJECT:
            self.smfi_setmlreply("550", "5.7.1", "no", "and no")
        return self.code


class Picky(Milter):
    """
    Refuse a recipient.
    """

    def xxfi_envrcpt(self, argv: list[str]) -> c.ReturnCode:
        return c.SMFIS_TEMPFAIL if argv[0].startswith("<busy@") else c.SMFIS_CONTINUE


class Busy(Milter):
    """
    Hang up on the client.
    """

    def xxfi_eom(self) -> c.ReturnCode:
        self.smfi_setreply("421", "4.3.2", "not now")
        return c.SMFIS_TEMPFAIL


class ReportTests(SendCase):
    """
    What is printed.
    """

    def test_of_one_message_everything_is_told(self) -> None:
        """
        Of one message everything is told: edits, verdict, recipients, and what is different.
        """
        run = self.send(Editor, "--rcpt", "reader@example.com", "--rcpt", "gone@example.com")
        self.assertEqual((run.status, run.err), (0, ""))
        lines = run.out.splitlines()
        for expected in (
            f"{self.message}: from <sender@example.org> to <reader@example.com> <gone@example.com>",
            "  InsertHeader  0 'X-Top' 'first\\n second'",
            "  and signs of progress: 1",
            "  CONTINUE at eom: the message is delivered",
            "  accepted  <reader@example.com>",
            "+X-Top: first",
            "+ second",
            "-Subject: hello",
            "+Subject: caf\\xe9",
            "-A letter.",
            "+Another \\xff letter.",
            "The envelope before and after",
            "-MAIL FROM:<sender@example.org>",
            "+MAIL FROM:<other@example.org> SIZE=9",
            " RCPT TO:<reader@example.com>",
            "-RCPT TO:<gone@example.com>",
            "+RCPT TO:<more@example.com>",
        ):
            self.assertIn(expected, lines)
        self.assertNotIn("Summary", lines)

    def test_where_nothing_is_changed_that_is_said_and_envelope_is_not_compared(self) -> None:
        """
        Where nothing is changed, that is said, and the envelope is not compared.
        """
        run = self.send(Milter)
        self.assertIn("The message before and after\n  no difference\n", run.out)
        self.assertNotIn("The envelope", run.out)

    def test_refused_message_has_its_reply_each_line_of_it_and_no_difference(self) -> None:
        """
        A refused message has its reply, each line of it, and no difference.
        """
        path = self.write("r.eml", b"Subject: reject\n\n")
        run = self.send(BySubject, path, "--expect", "accept")
        self.assertEqual(run.status, 1)
        self.assertIn("  550-5.7.1 no\n  550 5.7.1 and no\n", run.out)
        self.assertIn("  not what was expected\n", run.out)
        self.assertNotIn("before and after", run.out)
        self.assertIn("  as expected\n", self.send(BySubject, path, "--expect", "reject").out)

    def test_message_that_is_held_says_why(self) -> None:
        """
        A message that is held says why; it is not what "accept" expects.
        """
        run = self.send(Holder, "--expect", "accept")
        self.assertEqual(run.status, 1)
        self.assertIn("  held in quarantine: looks odd\n", run.out)
        self.assertEqual(self.send(Holder, "--expect", "accept,quarantine").status, 0)
        brief = self.send(Holder, "--brief").out
        self.assertEqual(brief, f"{self.message}: quarantine at eom, 1 edit looks odd\n")

    def test_recipient_that_was_refused_is_told_apart(self) -> None:
        """
        A recipient that was refused is told apart.
        """
        run = self.send(Picky, "--rcpt", "busy@example.com", "--rcpt", "b@example.com")
        self.assertIn("  refused   <busy@example.com>\n  accepted  <b@example.com>\n", run.out)

    def test_in_brief_a_message_has_one_line(self) -> None:
        """
        In brief a message has one line; several have a summary too, sorted by what they met.
        """
        names = ("accept", "continue", "reject", "tempfail", "discard")
        paths = [self.write(name, b"Subject: %s\n\n" % name.encode()) for name in names]
        run = self.send(BySubject, *paths, "--brief", "--expect", "accept,tempfail")
        self.assertEqual(run.status, 1)
        lines = run.out.splitlines()
        self.assertEqual(
            lines[:6],
            [
                f"{paths[0]}: accept at eom",
                f"{paths[1]}: accept at eom",
                f"{paths[2]}: reject at eom 550-5.7.1 no 550 5.7.1 and no (unexpected)",
                f"{paths[3]}: tempfail at eom",
                f"{paths[4]}: discard at eom (unexpected)",
                "",
            ],
        )
        self.assertEqual(
            lines[6:10],
            [
                "Summary",
                "  messages     5: accept 2, reject 1, tempfail 1, discard 1",
                "  unexpected   2 (expected: accept or tempfail)",
                "  errors       0 of the milter, 0 unusable messages",
            ],
        )
        self.assertRegex(lines[10], r"^  latency      p50 [\d.]+ ms, p99 [\d.]+ ms, max [\d.]+ ms$")
        self.assertRegex(lines[11], r"^  rate         [\d.]+ messages/s$")

    def test_quiet_leaves_one_line_for_all(self) -> None:
        """
        Quiet, all of it has one line, which begins with how it is.
        """
        run = self.send(BySubject, "--quiet", "--expect", "reject")
        self.assertEqual((run.status, run.out.count("\n")), (1, 1))
        self.assertRegex(
            run.out,
            r"^UNEXPECTED: messages 1: accept 1; unexpected 1 \(expected: reject\); errors 0 of the"
            r" milter, 0 unusable messages; latency p50 [\d.]+ ms, p99 [\d.]+ ms, max [\d.]+ ms$",
        )
        self.assertTrue(self.send(Milter, "-q").out.startswith("OK: messages 1: accept 1; errors"))

    def test_with_json_each_message_is_an_object_on_a_line(self) -> None:
        """
        With --json each message is an object on a line; a summary goes to standard error.
        """
        run = self.send(Editor, self.message, self.write("none", b""), "--json")
        good, bad = run.rows
        self.assertGreater(good.pop("seconds"), 0)
        self.assertEqual(
            good,
            {
                "number": 1,
                "message": self.message,
                "result": "accept",
                "error": None,
                "expected": None,
                "verdict": "CONTINUE",
                "stage": "eom",
                "reply": None,
                "sender": "<sender@example.org>",
                "recipients": [
                    {"address": "<reader@example.com>", "accepted": True, "reply": None}
                ],
                "quarantine": None,
                "progress": 1,
                "edits": [
                    {
                        "action": "InsertHeader",
                        "index": 0,
                        "name": "X-Top",
                        "value": "first\n second",
                    },
                    {
                        "action": "ChangeHeader",
                        "index": 1,
                        "name": "Subject",
                        "value": {"base64": "Y2Fm6Q=="},
                    },
                    {"action": "ChangeSender", "address": "<other@example.org>", "args": "SIZE=9"},
                    {"action": "AddRecipient", "address": "<more@example.com>", "args": None},
                    {"action": "AddRecipient", "address": "reader@example.com", "args": None},
                    {"action": "DeleteRecipient", "address": "<gone@example.com>"},
                    {"action": "ReplaceBody", "chunk": {"base64": "QW5vdGhlciD/IGxldHRlci4NCg=="}},
                ],
                "delivered": {
                    "sender": "<other@example.org> SIZE=9",
                    "recipients": ["<reader@example.com>", "<more@example.com>"],
                },
            },
        )
        self.assertEqual((bad["result"], bad["number"]), ("error", 2))
        self.assertIn("is not a message", bad["error"])
        self.assertIn("Summary", run.err)
        (held,) = self.send(Holder, "--json", "--expect", "reject").rows
        self.assertEqual((held["quarantine"], held["expected"]), ("looks odd", False))

    def test_delivered_messages_are_written_as_they_are_delivered(self) -> None:
        """
        Delivered messages are written as they are delivered; others are not.
        """
        refused = self.write("r.eml", b"Subject: reject\n\n")
        folder = self.folder / "a" / "b"
        self.send([BySubject, Editor], refused, self.message, "--save", str(folder), "-q")
        self.assertEqual([path.name for path in folder.iterdir()], ["000002.eml"])
        saved = (folder / "000002.eml").read_bytes()
        self.assertTrue(saved.startswith(b"X-Top: first\n second\nReturn-Path:"), saved)
        self.assertTrue(saved.endswith(b"\n\nAnother \xff letter.\n"), saved)

    def test_saved_for_the_owner_alone(self) -> None:
        """
        What is saved nobody else may read, and no symbolic link says where it is written.
        """
        folder = self.folder / "saved"
        self.send(Milter, self.message, "--save", str(folder), "-q")
        saved = folder / "000001.eml"
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (folder, saved)]
        self.assertEqual(modes, [0o700, 0o600])
        saved.chmod(0o644)
        self.send(Milter, self.message, "--save", str(folder), "-q")
        self.assertEqual(stat.S_IMODE(saved.stat().st_mode), 0o600)
        other = self.folder / "other"
        other.write_text("kept")
        saved.unlink()
        saved.symlink_to(other)
        run = self.send(Milter, self.message, "--save", str(folder), "-q")
        self.assertEqual(run.status, 2)
        self.assertIn(f"cannot write {saved}: it is a symbolic link", run.err)
        self.assertEqual(other.read_text(), "kept")

    def test_folder_that_cannot_be_made_is_named_and_status_is_2(self) -> None:
        """
        A folder that cannot be made is named, and the status is 2.
        """
        run = self.send(Milter, "--save", self.message)
        self.assertEqual(
            run, (2, "", f"yatxmilter send: cannot write {self.message}: File exists\n")
        )


class FailureTests(SendCase):
    """
    Milters, messages and users that do not do as they should.
    """

    def test_when_nobody_listens_nothing_more_is_tried_and_the_status_is_3(self) -> None:
        """
        When nobody listens nothing more is tried, and the status is 3.
        """
        run = self.send(None, "--repeat", "5", "--brief")
        self.assertEqual(run.status, 3)
        (line,) = run.out.splitlines()
        self.assertIn(f"cannot connect to unix:{self.folder}/milter.sock: ", line)

    def test_message_that_cannot_be_used_is_told_of_the_others_are_sent(self) -> None:
        """
        A message that cannot be used is told of, the others are sent, and the status is 2.
        """
        long = self.write("long", b"X: " + b"y" * 70000 + b"\n\n")
        paths = [str(self.folder / "missing"), long, self.message]
        run = self.send(BySubject, *paths, "--brief", "--expect", "accept")
        self.assertEqual(run.status, 2)
        lines = run.out.splitlines()
        self.assertEqual(lines[0], f"{paths[0]}: cannot be read: No such file or directory")
        self.assertTrue(lines[1].startswith(f"{long}: payload of HEADER: 70003 bytes"), lines)
        self.assertEqual(lines[2], f"{self.message}: accept at eom")
        self.assertIn("  errors       0 of the milter, 2 unusable messages", lines)

    def test_quiet_the_first_error_is_in_the_line(self) -> None:
        """
        Quiet, the first error is in the line.
        """
        run = self.send(Milter, self.message, self.write("none", b""), "-q")
        self.assertTrue(run.out.startswith("UNUSABLE: messages 1"), run.out)
        self.assertIn(f"; first error: {self.folder}/none: is not a message", run.out)

    def test_milter_that_hangs_up_at_any_command_is_told(self) -> None:
        """
        Whatever command a milter hangs up at, that is said of the message, and the status is 3.
        """
        for letter in "OCHMRTLNBE":
            run = self.send(ScriptFactory({letter: None}), "--brief")
            self.assertEqual(run.status, 3, letter)
            self.assertIn(": the milter closed the connection, awaited: ", run.out)

    def test_answer_that_is_none_is_told_whatever_command_it_follows(self) -> None:
        """
        What is no answer is said so, whatever command it follows; the status is 3.
        """
        garbage = (b"\0\0\0\0c", b"HTTP/1.1 400 Bad Request\r\n\r\n", encode_packet(ord("?")))
        for letter in "OCHMRTLNBE":
            for answer in garbage:
                run = self.send(ScriptFactory({letter: answer}), "--brief")
                self.assertEqual(run.status, 3, (letter, answer))
                self.assertRegex(run.out, ": the milter (sent|answered) ")

    def test_milter_that_fails_is_tried_again_for_the_next_message(self) -> None:
        """
        A milter that fails is tried again for the next message.
        """
        factory = ScriptFactory({"E": None})
        run = self.send(factory, "--repeat", "3", "--brief", "--reuse")
        self.assertEqual((run.status, factory.connections), (3, 3))
        self.assertIn("  errors       3 of the milter, 0 unusable messages\n", run.out)

    def test_milter_that_does_not_answer_in_time_has_failed(self) -> None:
        """
        A milter that does not answer in time has failed.
        """
        run = self.send(ScriptFactory({"M": ...}), "--timeout", "0.05", "--brief")
        self.assertEqual(run.status, 3)
        self.assertIn(": the milter was silent for 0.05 s, awaited: MAIL\n", run.out)

    def test_when_time_is_over_what_is_being_done_is_given_up(self) -> None:
        """
        When the time is over what is being done is given up, and nothing more is begun.
        """
        factory = ScriptFactory({"E": ...})
        words = ("--max-time", "0.05", "--repeat", "9", "--concurrency", "2", "--brief")
        run = self.send(factory, *words)
        self.assertEqual((run.status, factory.connections), (3, 2))
        line = f"{self.message}: not done when 0.05 s were over"
        self.assertEqual(run.out.splitlines()[:2], [line, line])

    def test_time_is_over_while_the_milter_is_connected_to(self) -> None:
        """
        A milter that has not been connected to when the time is over is told as one that is late.
        """

        class Unanswered:
            def connect(self, factory: Any) -> Deferred[Any]:
                # As Twisted's endpoints do it.
                error = ConnectingCancelledError(IPv4Address("TCP", "192.0.2.1", 25))
                return Deferred(lambda connecting: connecting.errback(error))

        self.patch(send_play, "client_endpoint", lambda *args, **kwargs: Unanswered())
        run = self.send(Milter, "--max-time", "0.01", "--brief")
        self.assertEqual(run.status, 3)
        self.assertIn(f"{self.message}: not done when 0.01 s were over\n", run.out)

    def test_time_is_over_in_quit(self) -> None:
        """
        A message that is done when the time is over, but for the milter's good-bye, is done.
        """
        run = self.send(ScriptFactory({"Q": ...}), "--max-time", "0.1", "--brief")
        self.assertEqual((run.status, run.out), (0, f"{self.message}: accept at eom\n"))

    def test_who_is_done_in_time_leaves_no_timer_behind(self) -> None:
        """
        Who is done in time leaves no timer behind.
        """
        self.assertEqual(self.send(Milter, "--max-time", "60", "-b").status, 0)

    def test_ctrl_c_prints_summary_of_what_was_done_and_status_is_130(self) -> None:
        """
        Ctrl-C prints the summary of what was done, and the status is 130.
        """

        class Slow(Milter):
            count = 0

            def xxfi_eom(self) -> Any:
                Slow.count += 1
                if Slow.count < 3:
                    return None
                reactor.callLater(0, os.kill, os.getpid(), signal.SIGINT)
                return Deferred()

        reactor: Any = SelectReactor()
        # Reactors leave another's handler alone, the test runner's too.
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.addCleanup(signal.signal, signal.SIGINT, handler)
        run = self.send(Slow, "--repeat", "5", "--brief", reactor=reactor)
        self.assertEqual(run.status, 130)
        self.assertEqual(run.out.count(f"{self.message}: accept at eom\n"), 2)
        self.assertNotIn("closed the connection", run.out)
        self.assertIn("  messages     2: accept 2\n", run.out)
        self.assertIn("  interrupted  what was not done by then is not counted\n", run.out)

    def test_quiet_line_begins_with_the_interruption(self) -> None:
        """
        Quiet, the line begins with it.
        """

        class Stopping(Milter):
            def xxfi_eom(self) -> Any:
                reactor.callLater(0, reactor.stop)
                return Deferred()

        reactor: Any = SelectReactor()
        run = self.send(Stopping, "-q", reactor=reactor)
        self.assertEqual(run.status, 130)
        self.assertTrue(run.out.startswith("INTERRUPTED: messages 0; "), run.out)

    def test_answer_after_interrupt(self) -> None:
        """
        An answer that comes while the reactor is stopping is not counted any more.
        """

        class Late(Milter):
            def xxfi_eom(self) -> Any:
                reactor.addSystemEventTrigger("before", "shutdown", lambda: closed)
                reactor.callLater(0, reactor.stop)
                return deferLater(reactor, 0.01)

            def xxfi_close(self) -> None:
                closed.callback(None)

        closed: Deferred[None] = Deferred()
        reactor: Any = SelectReactor()
        run = self.send(Late, "-q", reactor=reactor)
        self.assertEqual(run.status, 130)
        self.assertTrue(run.out.startswith("INTERRUPTED: messages 0; "), run.out)

    def test_when_nobody_reads_output_any_more_command_ends_with_that_error(self) -> None:
        """
        When nobody reads the output any more, the command ends with that error.
        """

        class Closed(io.StringIO):
            def write(self, text: str) -> int:
                raise BrokenPipeError(32, "Broken pipe")

        for words in (("--json",), ("--brief",), ("--quiet",)):
            self.assertRaises(BrokenPipeError, self.send, Milter, *words, out=Closed())

    def test_output_that_cannot_be_written_is_said_on_standard_error(self) -> None:
        """
        Output that cannot be written is said on standard error, and the status is 2.
        """

        class Full(io.StringIO):
            def write(self, text: str) -> int:
                raise OSError(28, "No space left on device")

        words = "yatxmilter send: cannot write the output: No space left on device\n"
        for option in ("--brief", "--quiet"):
            run = self.send(Milter, option, "--repeat", "2", "--concurrency", "2", out=Full())
            self.assertEqual((run.status, run.err), (2, words))

    def test_interrupt_while_reading(self) -> None:
        """
        Ctrl-C ends the reading of standard input, too, also behind another message.
        """
        buffer = InterruptedInput()
        self.patch(sys, "stdin", SimpleNamespace(buffer=buffer))
        for words, count in ((["-"], 0), ([self.write("p.eml", b"Subject: a\n\n"), "-"], 1)):
            run = self.send(Milter, *words, "-q")
            self.assertEqual((run.status, buffer.read_whole), (130, 0))
            self.assertTrue(run.out.startswith(f"INTERRUPTED: messages {count}"), run.out)


class SessionTests(SendCase):
    """
    What the milter is told.
    """

    def heard(self, *words: str, **answers: Any) -> ScriptFactory:
        """
        Send to a milter that agrees to everything; give it.
        """
        factory = ScriptFactory(answers)
        run = self.send(factory, *words, "--brief")
        self.assertEqual(run.status, 0, run)
        return factory

    def payloads(self, factory: ScriptFactory, letter: str) -> list[bytes]:
        """
        Give the payloads of a command.
        """
        return [payload for each, payload in factory.heard if each == letter]

    def macros(self, factory: ScriptFactory, letter: str) -> dict[bytes, bytes]:
        """
        Give the macros of a command.
        """
        (strings,) = [
            payload[1:].split(b"\0")[:-1]
            for payload in self.payloads(factory, "D")
            if payload.startswith(letter.encode())
        ]
        return dict(zip(strings[::2], strings[1::2], strict=True))

    def test_without_options_there_is_outsider_and_message_has_its_own_envelope(self) -> None:
        """
        Without options there is an outsider, and the message has its own envelope.
        """
        factory = self.heard()
        self.assertEqual(factory.letters, "OCHMRTLLLLNBEAQ")
        self.assertEqual(
            [self.payloads(factory, letter)[0] for letter in "CHMR"],
            [
                b"mail.example.net\x004\x9cY192.0.2.25\0",
                b"mail.example.net\0",
                b"<sender@example.org>\0",
                b"<reader@example.com>\0",
            ],
        )
        connect = self.macros(factory, "C")
        self.assertEqual(connect[b"_"], b"mail.example.net [192.0.2.25]")
        self.assertEqual(self.macros(factory, "H"), {})
        self.assertEqual(
            self.macros(factory, "M"),
            {b"{mail_addr}": b"sender@example.org", b"{mail_mailer}": b"smtp"},
        )
        self.assertEqual(
            self.macros(factory, "R"),
            {b"{rcpt_addr}": b"reader@example.com", b"{rcpt_mailer}": b"smtp"},
        )
        for letter in "TNBE":
            self.assertEqual(self.macros(factory, letter), {b"i": b"SEND000001"})

    def test_as_with_postfix_queue_id_is_there_when_recipient_has_been_accepted(self) -> None:
        """
        As with Postfix, the queue id is there when a recipient has been accepted, not before.
        """
        seen = []

        class Curious(Picky):
            def xxfi_envfrom(self, argv: list[str]) -> None:
                seen.append(self.smfi_getsymval("i"))

            def xxfi_envrcpt(self, argv: list[str]) -> c.ReturnCode:
                seen.append(self.smfi_getsymval("i"))
                return super().xxfi_envrcpt(argv)

        people = [word for name in ("busy@b", "b@b", "c@b") for word in ("--rcpt", name)]
        self.send(Curious, *people, "--repeat", "2", "--reuse", "-q")
        self.assertEqual(seen, [None, None, None, "SEND000001", None, None, None, "SEND000002"])

    def test_sendmails_session_has_other_macros(self) -> None:
        """
        Sendmail's session has other macros, and no ABORT behind a message that came to its end.
        """
        factory = self.heard("--flavour", "sendmail", "--repeat", "2", "--reuse")
        self.assertEqual(factory.letters, "OCH" + 2 * "MRTLLLLNBE" + "Q")
        macros = [payload[:2] for payload in self.payloads(factory, "D")]
        self.assertEqual(macros, [b"Cj", b"H", *2 * [b"Mi", b"R{", b"E{"]])
        refusing = ScriptFactory({"M": encode_packet(c.SMFIR_REJECT)})
        self.send(refusing, "--flavour", "sendmail", "-q")
        self.assertEqual(refusing.letters, "OCHMAQ")

    def test_no_message_id(self) -> None:
        """
        A message without Message-Id has an empty {msg_id}.
        """
        factory = self.heard(self.write("m", b"A: b\n\n"), "--flavour", "sendmail")
        self.assertEqual(self.macros(factory, "E")[b"{msg_id}"], b"")

    def test_client_has_an_address_of_any_family_or_none(self) -> None:
        """
        The client has an address of either version, a UNIX socket's, or none that is known.
        """
        table = {
            "198.51.100.7": b"4\x9cY198.51.100.7\0",
            "2001:db8::25": b"6\x9cY2001:db8::25\0",
            "[2001:db8::25]": b"6\x9cY2001:db8::25\0",
            "unix:/run/x": b"L\0\0/run/x\0",
            "unknown": b"U",
        }
        for client, expected in table.items():
            factory = self.heard("--client", client, "--client-name", "host")
            self.assertEqual(self.payloads(factory, "C"), [b"host\0" + expected], client)
        factory = self.heard("--client-port", "25", "--helo", "me", "--client-name", "host")
        self.assertEqual(self.payloads(factory, "C"), [b"host\x004\0\x19192.0.2.25\0"])
        self.assertEqual(self.payloads(factory, "H"), [b"me\0"])

    def test_sender_recipients_and_esmtp_arguments_may_be_given(self) -> None:
        """
        Sender, recipients and ESMTP arguments may be given; brackets are added.
        """
        words = "--from a@b --rcpt c@d --rcpt <e@f> --mail-arg SIZE=5 --mail-arg BODY=8BITMIME"
        factory = self.heard(*words.split(), "--rcpt-arg", "NOTIFY=NEVER")
        self.assertEqual(self.payloads(factory, "M"), [b"<a@b>\0SIZE=5\0BODY=8BITMIME\0"])
        self.assertEqual(
            self.payloads(factory, "R"), [b"<c@d>\0NOTIFY=NEVER\0", b"<e@f>\0NOTIFY=NEVER\0"]
        )

    def test_empty_sender_is_the_null_sender(self) -> None:
        """
        An empty sender is the null sender.
        """
        self.assertEqual(self.payloads(self.heard("--from", ""), "M"), [b"<>\0"])

    def test_tls_and_auth(self) -> None:
        """
        A session over TLS and a user who has logged in have their macros.
        """
        factory = self.heard("--tls", "--auth", "joe")
        self.assertEqual(
            self.macros(factory, "H"),
            {
                b"{tls_version}": b"TLSv1.3",
                b"{cipher}": b"TLS_AES_256_GCM_SHA384",
                b"{cipher_bits}": b"256",
            },
        )
        mail = self.macros(factory, "M")
        self.assertEqual((mail[b"{auth_type}"], mail[b"{auth_authen}"]), (b"PLAIN", b"joe"))

    def test_macro_is_sent_where_it_is_asked_for(self) -> None:
        """
        A macro is sent where it is asked for; one for a stage is sent there, in any case.
        """
        lists = encode_offer(Offer(6, c.SMFI_CURR_ACTS, 0), {c.SMFIM_CONNECT: b"j {mine}"})
        words = "--macro j=me --macro {mine}=1 --macro i=ID --macro other=2 --macro helo:{own}=3"
        more = "--macro helo:x=4 --macro eom:i=END --macro header:own=5 --macro mine=a=b"
        factory = self.heard(*words.split(), *more.split(), O=lists)
        self.assertEqual(self.macros(factory, "C"), {b"j": b"me", b"{mine}": b"a=b"})
        self.assertEqual(self.macros(factory, "H"), {b"{own}": b"3", b"x": b"4"})
        self.assertEqual(self.macros(factory, "T"), {b"i": b"ID"})
        self.assertEqual(self.macros(factory, "E"), {b"i": b"END"})
        self.assertIn(b"Li\0ID\0{own}\x005\0", self.payloads(factory, "D"))

    def test_where_leading_space_was_agreed_milters_own_is_not_doubled(self) -> None:
        """
        Where the leading space was agreed, the milter's own is not doubled.
        """

        class Spaced(Milter):
            def xxfi_negotiate(self, actions: int, steps: int) -> Any:
                return c.SMFIS_CONTINUE, c.SMFIF_ADDHDRS, c.SMFIP_HDR_LEADSPC

            def xxfi_eom(self) -> None:
                self.smfi_addheader("X-One", " 1")
                self.smfi_addheader("X-Two", "2")

        out = self.send(Spaced).out
        self.assertIn("+X-One: 1\n+X-Two:2\n", out)

    def test_edits_are_made_by_the_rules_of_the_mta_that_is_played(self) -> None:
        """
        Edits are made by the rules of the MTA that is played: a field that is added goes to the end
        of Postfix's header, and in front of the first of its name in Sendmail's.
        """

        class Second(Milter):
            def xxfi_eom(self) -> None:
                self.smfi_addheader("Subject", "two")

        ends = {}
        for flavour in ("postfix", "sendmail"):
            folder = self.folder / flavour
            self.send(Second, "--flavour", flavour, "--save", str(folder), "-q")
            header = (folder / "000001.eml").read_bytes().partition(b"\n\n")[0]
            ends[flavour] = header.splitlines()[2:]
        hello, two, end = b"Subject: hello", b"Subject: two", b"Message-Id: <1@example.org>"
        self.assertEqual(ends, {"postfix": [hello, end, two], "sendmail": [two, hello, end]})


class ManyTests(SendCase):
    """
    Many messages.
    """

    def test_one_connection_each(self) -> None:
        """
        By default each message has a connection, and an id, of its own.
        """
        factory = ScriptFactory({})
        self.send(factory, "--repeat", "3", "-q")
        self.assertEqual((factory.connections, factory.letters.count("O")), (3, 3))
        ids = {p[2:].split(b"\0")[1] for each, p in factory.heard if p.startswith(b"Ei\0")}
        self.assertEqual(len(ids), 3)

    def test_with_reuse_messages_share_one_connection(self) -> None:
        """
        With --reuse they share one.
        """
        factory = ScriptFactory({})
        run = self.send(factory, self.message, self.message, "--repeat", "2", "--reuse", "--json")
        self.assertEqual(factory.connections, 1)
        self.assertEqual(factory.letters, "OCH" + 4 * "MRTLLLLNBEA" + "Q")
        self.assertEqual([row["number"] for row in run.rows], [1, 2, 3, 4])

    def test_session_that_is_refused_at_beginning_refuses_each_of_its_messages(self) -> None:
        """
        A session that is refused at the beginning refuses each of its messages.
        """
        factory = ScriptFactory({"H": encode_packet(c.SMFIR_REJECT)})
        run = self.send(factory, "--repeat", "2", "--reuse", "--json", "--expect", "reject")
        self.assertEqual([row["stage"] for row in run.rows], ["helo", "helo"])
        self.assertEqual((run.status, factory.letters), (0, "OCHQ"))

    def test_after_421_with_which_mta_hangs_up_there_is_new_session(self) -> None:
        """
        After a 421, with which an MTA hangs up, there is a new session.
        """
        seen = []

        class Counted(Busy):
            def xxfi_connect(self, hostname: str, hostaddr: object) -> None:
                seen.append(hostname)

        run = self.send(Counted, "--repeat", "2", "--reuse", "--expect", "tempfail", "--brief")
        self.assertEqual((run.status, len(seen)), (0, 2))
        self.assertIn(": tempfail at eom 421 4.3.2 not now\n", run.out)

    def test_as_many_messages_are_played_at_once_as_was_asked_for(self) -> None:
        """
        As many messages are played at once as was asked for, and no more.
        """
        waiting: list[Deferred[None]] = []
        most = []

        class Together(Milter):
            def xxfi_eom(self) -> Deferred[None]:
                waiting.append(Deferred())
                mine = waiting[-1]
                most.append(len(waiting))
                if len(waiting) == 3:
                    reactor.callLater(0, release)
                return mine

        def release() -> None:
            for each in waiting[:]:
                waiting.remove(each)
                each.callback(None)

        reactor: Any = SelectReactor()
        words = ("--repeat", "6", "--concurrency", "3", "-q")
        run = self.send(Together, *words, reactor=reactor)
        self.assertTrue(run.out.startswith("OK: messages 6: accept 6; "), run.out)
        self.assertEqual(max(most), 3)

    def test_long_run_says_on_terminal_how_far_it_has_come(self) -> None:
        """
        A long run says on a terminal how far it has come, and takes that away at its end.
        """

        class Slow(Milter):
            def xxfi_eom(self) -> Any:
                return deferLater(reactor, 0.01)

        self.patch(send.Progress, "PAUSE", 0.02)
        reactor: Any = SelectReactor()
        err = Terminal()
        self.send(Slow, "--repeat", "5", "-q", err=err, reactor=reactor)
        text = err.getvalue()
        self.assertRegex(text, r"^\r\x1b\[K\d messages, 0 errors, [\d.]+/s\r\x1b\[K")
        self.assertTrue(text.endswith("\r\x1b[K"))

    def test_progress_is_not_shown_where_standard_error_is_no_terminal(self) -> None:
        """
        Nothing of the kind where standard error is no terminal, or results pass by on one.
        """
        self.patch(send.Progress, "PAUSE", 0.0)
        self.assertEqual(self.send(Milter, "--repeat", "2", "-q").err, "")
        err = Terminal()
        self.send(Milter, "--repeat", "2", "-b", out=Terminal(), err=err)
        self.assertEqual(err.getvalue(), "")


class ArgumentTests(SendCase):
    """
    Arguments that are wrong.
    """

    def test_each_wrong_value_is_named_with_what_was_expected(self) -> None:
        """
        Each wrong value is named, with what was expected, and the status is 2.
        """
        table = {
            ("--to", "inet:x@y@z"): "'inet:x@y@z' is not a milter's address",
            ("--client", "host"): "'host' is not an IPv4 or IPv6 address",
            ("--client-port", "70000"): "'70000' is not a port",
            ("--client-port", "x"): "'x' is not a port",
            ("--macro", "i"): "'i' is not a macro",
            ("--macro", "=x"): "'=x' is not a macro",
            ("--macro", "nowhere:i=x"): "'nowhere:i=x' is not a macro",
            ("--macro", ":i=x"): "':i=x' is not a macro",
            ("--expect", "accept,ok"): "'ok' is none of accept, quarantine,",
            ("--repeat", "0"): "'0' is not a whole number above 0",
            ("--concurrency", "x"): "'x' is not a whole number above 0",
            ("--timeout", "x"): "'x' is not a number of seconds above 0",
            ("--timeout", "nan"): "'nan' is not a number of seconds above 0",
            ("--max-time", "-1"): "'-1' is not a number of seconds above 0",
        }
        for words, complaint in table.items():
            err = io.StringIO()
            self.patch(send.sys, "stderr", err)  # type: ignore[attr-defined]
            end = self.assertRaises(SystemExit, self.parse, "m", "--to", "inet:1@h", *words)
            self.assertEqual(end.code, 2)
            self.assertIn(complaint, err.getvalue())

    def test_by_default_the_streams_are_those_of_the_process(self) -> None:
        """
        By default the streams are the process's.
        """
        out = io.StringIO()
        self.patch(send.sys, "stdout", out)  # type: ignore[attr-defined]
        reactor: Any = SelectReactor()
        path = Path(self.folder, "milter.sock")
        reactor.listenUNIX(str(path), ScriptFactory({}))
        arguments = self.parse(self.message, "--to", str(path), "--brief")
        self.assertEqual(send.run(arguments, reactor=reactor), 0)
        self.assertEqual(out.getvalue(), f"{self.message}: accept at eom\n")
