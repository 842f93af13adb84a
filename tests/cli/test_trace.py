"""
Tests of `yatxmilter._cli.trace`, its view and its output: real sockets, and reactors of its own.
"""

from __future__ import annotations

import errno
import io
import json
import os
import socket
import tempfile
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Coroutine
from pathlib import Path
from threading import Event
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.selectreactor import SelectReactor
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tests.growth import assert_linear
from tests.helpers import byte_by_byte
from yatxmilter import Milter, MilterFactory, MilterProtocolFactory
from yatxmilter import constants as c
from yatxmilter._cli import trace, trace_output
from yatxmilter._cli.terminal import Page
from yatxmilter._cli.trace_output import Outlet
from yatxmilter._cli.trace_view import TraceView
from yatxmilter._records.record import Recorder, read_sessions
from yatxmilter._records.record_redaction import KINDS
from yatxmilter._wire.payloads import encode_packet
from yatxmilter.client import connect_milter
from yatxmilter.protocol._refusals import cannot_listen


class Adder(Milter):
    """
    Adds a field.
    """

    xxfi_flags = c.SMFIF_ADDHDRS

    def xxfi_envrcpt(self, argv: list[str]) -> c.ReturnCode:
        return c.SMFIS_REJECT if "nobody" in argv[0] else c.SMFIS_CONTINUE

    def xxfi_body(self, bodyp: bytes) -> None:
        """
        Want it.
        """

    def xxfi_eom(self) -> None:
        self.smfi_addheader("X-Seen", "yes")


Play = Callable[[Any], Coroutine[Any, Any, None]]


class TraceCase(SynchronousTestCase):
    """
    A folder, and the command run in it.
    """

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.listen = str(self.folder / "trace")
        self.milter = str(self.folder / "milter")
        self.record = self.folder / "record"

    def run_trace(
        self, *options: str, play: Play | None = None, listen: str = "", out: Any = None
    ) -> tuple[int, str, str]:
        """
        Run the command with a milter behind it until a coroutine is done.
        """
        parser = ArgumentParser()
        trace.add_arguments(parser)
        arguments = parser.parse_args(
            ["--listen", listen or self.listen, "--to", self.milter, *options]
        )
        reactor: Any = SelectReactor()
        results: list[object] = []

        def begin() -> None:
            port = reactor.listenUNIX(self.milter, MilterProtocolFactory(MilterFactory(Adder)))
            reactor.addSystemEventTrigger("before", "shutdown", port.stopListening)
            if play is not None:
                done = Deferred.fromCoroutine(play(reactor)).addBoth(results.append)
                done.addCallback(lambda _: reactor.stop())

        reactor.callWhenRunning(lambda: reactor.callLater(0, begin))
        out, err = out or io.StringIO(), io.StringIO()
        status = trace.run(arguments, reactor=reactor, out=out, err=err)
        for result in results:
            if isinstance(result, Failure):
                result.raiseException()
        return status, out.getvalue(), err.getvalue()

    async def converse(self, reactor: Any) -> None:
        """
        Play an MTA through the trace.
        """
        client = await connect_milter(self.listen, reactor=reactor, clock=reactor)
        await client.negotiate()
        await client.mail("<a@example.org>", macros={"i": "Q1"})
        await client.rcpt("<nobody@example.net>")
        await client.rcpt("<b@example.net>")
        await client.body(b"first\r\n\xff\r\n")
        await client.end_of_message()
        await client.abort()
        await client.quit()


class CommandTests(TraceCase):
    """
    The whole command.
    """

    def test_each_packet_has_its_line_with_the_queue_id(self) -> None:
        """
        Each packet has its line, with the queue id as soon as it is known.
        """
        status, out, err = self.run_trace("--bodies", play=self.converse)
        self.assertEqual(status, 0)
        self.assertIn(f"between {self.listen} and {self.milter}", err)
        lines = [line.partition(" ")[2] for line in out.splitlines()]
        for expected in (
            "#1 -            -> (the MTA connected)",
            "#1 Q1           -> MACRO       for MAIL: i=Q1",
            "#1 Q1           -> RCPT        <nobody@example.net>",
            "#1 Q1           <- REJECT",
            "#1 Q1           <- CONTINUE",
            "#1 Q1           -> BODY        10 bytes",
            "#1 Q1           <- ADDHEADER   X-Seen: yes",
            "#1 Q1           -> ABORT",
            "#1 -            -> QUIT",
        ):
            self.assertIn(expected, lines)
        self.assertIn("    | first\n    | \\xff\n", out)

    def test_json_and_record(self) -> None:
        """
        With --json each line is an object; the record has all packets.
        """
        options = ("--json", "--bodies", "--record", str(self.record))
        status, out, _ = self.run_trace(*options, play=self.converse)
        self.assertEqual(status, 0)
        items = [json.loads(line) for line in out.splitlines()]
        packets = [item for item in items if "name" in item]
        self.assertIn(
            {"size": 10, "text": "first\r\n\udcff\r\n"}, [p["arguments"] for p in packets]
        )
        with self.record.open("rb") as file:
            (session,) = read_sessions(file)
        self.assertEqual(len(session.packets), len(packets))
        self.assertEqual(self.record.stat().st_mode & 0o777, 0o600)

    def test_file_that_is_there_is_not_overwritten(self) -> None:
        """
        A file that is there is not overwritten, added to if it is a record, and lost with --force.
        """
        options = ("--quiet", "--record", str(self.record))
        self.assertEqual(self.run_trace(*options, play=self.converse)[:2], (0, ""))
        status, _, err = self.run_trace(*options)
        self.assertEqual(status, 2)
        self.assertIn("--append", err)
        self.assertEqual(self.run_trace(*options, "--append", play=self.converse)[0], 0)
        with self.record.open("rb") as file:
            self.assertEqual(len(list(read_sessions(file))), 2)
        self.assertEqual(self.run_trace(*options, "--force", play=self.converse)[0], 0)
        with self.record.open("rb") as file:
            self.assertEqual(len(list(read_sessions(file))), 1)
        self.record.write_bytes(b"something else\n")
        status, _, err = self.run_trace(*options, "--append")
        self.assertEqual(status, 2)
        self.assertIn("cannot add to", err)
        self.assertEqual(self.record.read_bytes(), b"something else\n")
        status, _, err = self.run_trace("--record", str(self.folder / "no" / "where"))
        self.assertEqual(status, 2)
        self.assertIn("cannot write", err)

    def test_append_to_nothing(self) -> None:
        """
        --append makes a record that is not there, and takes an empty file for one.
        """
        for _ in range(2):
            options = ("--quiet", "--record", str(self.record), "--append")
            self.assertEqual(self.run_trace(*options, play=self.converse)[0], 0)
            self.record.write_bytes(b"")

    def test_record_is_the_owners_alone(self) -> None:
        """
        A record that is overwritten or added to becomes readable by its owner alone, and a
        symbolic link does not say where it is.
        """
        for option in ("--force", "--append"):
            self.record.write_text("")
            self.record.chmod(0o666)
            status, *_ = self.run_trace("--record", str(self.record), option, play=self.converse)
            self.assertEqual((status, self.record.stat().st_mode & 0o777), (0, 0o600))
            self.record.unlink()
            other = self.folder / "other"
            other.write_text("")
            self.record.symlink_to(other)
            status, _, err = self.run_trace("--record", str(self.record), option)
            self.assertEqual((status, other.read_text()), (2, ""))
            self.assertIn("it is a symbolic link", err)
            self.record.unlink()

    def test_append_to_what_is_no_record(self) -> None:
        """
        What is added to must end as a record does, however long its last line is.
        """
        self.run_trace("--record", str(self.record), "--quiet", play=self.converse)
        whole = self.record.read_bytes()
        self.record.write_bytes(b"x" * 100_000 + b"\n" + whole)
        status, *_ = self.run_trace("--record", str(self.record), "--append", play=self.converse)
        self.assertEqual(status, 0)
        for end in (
            b"{",
            b"x" * 100_000 + b"\n",
            b'{"type": "end", "x": "' + b"x" * 9000 + b'"}\n',
        ):
            self.record.write_bytes(whole + end)
            status, _, err = self.run_trace("--record", str(self.record), "--append")
            self.assertEqual(status, 2)
            self.assertIn("it does not end as a record does", err)

    def test_append_to_pipe(self) -> None:
        """
        A pipe is not read, which would wait for who writes to it; nor is it waited for a reader.
        """
        os.mkfifo(self.record)
        status, _, err = self.run_trace("--record", str(self.record), "--append")
        self.assertEqual(status, 2)
        self.assertIn(f"cannot write {self.record}: ", err)

    def test_record_that_cannot_be_written_is_complained_of_and_mail_goes_on(self) -> None:
        """
        A record that cannot be written is complained of, and mail goes on.
        """
        options = ("--quiet", "--record", "/dev/full", "--force")
        status, _, err = self.run_trace(*options, play=self.converse)
        self.assertEqual(status, 1)
        self.assertIn("not complete: No space left", err)

    def test_addresses_that_are_none_or_the_same_are_refused(self) -> None:
        """
        Addresses that are none, or the same, are refused; so is a kind that cannot be redacted.
        """
        for listen, word in (("nonsense", "not a milter's address"), (self.milter, "to itself")):
            status, _, err = self.run_trace(listen=listen)
            self.assertEqual(status, 2)
            self.assertIn(word, err)
        error = self.assertRaises(ArgumentTypeError, trace.redact_kinds, "body,everything")
        self.assertIn("'body,everything' is not body or addresses", str(error))
        self.assertEqual(trace.redact_kinds("body, addresses"), ("body", "addresses"))

    def test_why_it_cannot_listen_is_said_and_the_status_is_3(self) -> None:
        """
        Why it cannot listen is said, and the status is 3.
        """
        taken = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(taken.close)
        left = socket.socket(socket.AF_UNIX)
        left.bind(str(self.folder / "left"))
        left.close()
        busy = socket.socket(socket.AF_UNIX)
        self.addCleanup(busy.close)
        busy.bind(str(self.folder / "busy"))
        busy.listen()
        (self.folder / "file").write_text("")
        port = taken.getsockname()[1]
        for listen, word in (
            (f"inet:{port}@127.0.0.1", "another program listens"),
            ("inet:1@192.0.2.1", "does not have that address"),
            (str(self.folder / "left"), "remove it: rm"),
            (str(self.folder / "busy"), "another program listens"),
            (str(self.folder / "file"), "a file of that name"),
            (str(self.folder / "no" / "where"), "cannot listen on"),
        ):
            status, _, err = self.run_trace(listen=listen)
            self.assertEqual((status, listen in err), (3, True), err)
            self.assertIn(word, err)

    def test_socket_of_another_twisted_program_is_in_use(self) -> None:
        """
        A socket that another Twisted program listens on is one that is in use.
        """
        error = CannotListenError(None, self.listen, "Cannot acquire lock")
        self.assertIn("another program listens", cannot_listen(self.listen, error))
        error = CannotListenError(None, self.listen, OSError(errno.EACCES, "no"))
        self.assertIn("may not make a socket in", cannot_listen(self.listen, error))

    def test_when_nobody_reads_the_output_any_more_the_trace_ends(self) -> None:
        """
        When nobody reads the output any more the trace ends.
        """
        reading, writing = os.pipe()
        os.close(reading)
        with os.fdopen(writing, "w") as stream:
            self.assertRaises(BrokenPipeError, self.run_trace, play=self.wait, out=stream)

    def test_output_that_fails_ends_the_trace_with_a_word_why(self) -> None:
        """
        Output that fails ends the trace, with a word why.
        """

        class Full(io.StringIO):
            def write(self, text: str) -> int:
                raise OSError(errno.ENOSPC, "No space left on device")

        status, _, err = self.run_trace(play=self.wait, out=Full())
        self.assertEqual(status, 1)
        self.assertIn("cannot print: No space left", err)

    async def wait(self, reactor: Any) -> None:
        """
        Say something, and wait for ever.
        """
        await connect_milter(self.listen, reactor=reactor, clock=reactor)
        await Deferred()


class ViewTests(SynchronousTestCase):
    """
    What is shown of odd things.
    """

    def setUp(self) -> None:
        self.out, self.kept = io.StringIO(), io.StringIO()
        recorder = Recorder(self.kept)
        self.view = TraceView(Page(self.out, {}), recorder=recorder, clock=lambda: 0.0)
        self.view.opened(1)

    def test_byte_by_byte(self) -> None:
        """
        A packet is shown when it is whole.
        """
        for byte in byte_by_byte(b"\0\0\0\1N\0\0\0\1E"):
            self.view.passed(1, True, byte)
        self.assertEqual(self.out.getvalue().count("EOH"), 1)
        self.assertIn("BODYEOB", self.out.getvalue())

    def test_bytes_that_are_not_milter_protocol_are_reported_once(self) -> None:
        """
        Bytes that are not milter protocol are reported once, and the other side is still decoded.
        """
        for data in (b"EHLO example.org\r\n", b"more"):
            self.view.passed(1, True, data)
        self.view.passed(1, False, b"\0\0\0\1Z")
        self.view.ended(1, True, "reset")
        text = self.out.getvalue()
        self.assertEqual(text.count("not milter protocol"), 1)
        self.assertIn("'Z' is not a letter of the milter", text)
        self.assertIn("(the MTA reset)", text)
        self.assertEqual(self.kept.getvalue().count('"type": "undecoded"'), 1)

    def test_packet_that_breaks_off_is_noted_with_a_record_or_without(self) -> None:
        """
        A packet that breaks off is noted, with a record or without.
        """
        view = TraceView(Page(self.out, {}))
        view.opened(1)
        view.passed(1, True, b"\0\0\0\7M")
        view.ended(1, True, "reset")
        self.view.passed(1, False, b"\0\0\0\7c")
        self.view.ended(1, False, "closed")
        self.view.closed(1, "milter")
        self.assertEqual(self.out.getvalue().count("then the end"), 2)

    def test_packet_above_the_longest_of_the_protocol_is_none(self) -> None:
        """
        A packet of more than the protocol's longest is none, and is not waited for.
        """
        self.view.passed(1, True, b"\0\x10\0\0B" + bytes(0xFFFFF))
        self.assertIn("BODY        1048575 bytes", self.out.getvalue())
        self.view.passed(1, True, b"\0\x10\0\1B")
        self.assertIn("not milter protocol: packet length 1048577", self.out.getvalue())

    def test_printing_and_recording_take_time_that_grows_with_the_size(self) -> None:
        """
        What is printed and recorded of a conversation takes a time that grows with its size: of
        many packets, behind a long queue id, too, and of one that comes in many pieces.
        """

        def view(size: int) -> TraceView:
            made = TraceView(
                Page(io.StringIO(), {}),
                io.StringIO().write,
                recorder=Recorder(io.StringIO(), KINDS),
                clock=lambda: 0.0,
            )
            made.opened(1)
            return made

        def packets(size: int) -> Callable[[], None]:
            identity = encode_packet(ord("D"), b"Mi\0" + b"q" * size + b"\0")
            return lambda: view(size).passed(1, True, identity + b"\0\0\0\1N" * size)

        def one(letter: str, text: str) -> Callable[[int], Callable[[], None]]:
            def prepare(size: int) -> Callable[[], None]:
                payload = text.encode() * (size * 20 // len(text))
                packet = encode_packet(ord(letter), b"X\0" + payload + b"\0")
                return lambda: view(size).passed(1, True, packet)

            return prepare

        assert_linear(packets, 200)
        for text in ("a", '\\"', "a@["):
            assert_linear(one("L", text), 2000)

    def test_missing_milter_is_shown_with_the_reason(self) -> None:
        """
        That the milter is not there is shown, with the reason.
        """
        self.view.unreachable(1, Failure(OSError("gone")))
        self.assertIn("(the milter cannot be reached: gone)", self.out.getvalue())


class OutletTests(SynchronousTestCase):
    """
    Printing in a thread.
    """

    def test_output_that_is_not_read_does_not_hold_anybody_up(self) -> None:
        """
        Output that is not read does not hold anybody up: it is dropped, and counted.
        """
        self.patch(trace_output, "_MOST_WAITING", 3)
        self.patch(trace_output, "_LAST_GRACE", 5.0)
        begun, go = Event(), Event()

        class Slow(io.StringIO):
            def write(self, text: str) -> int:
                begun.set()
                go.wait(10)
                return super().write(text)

        slow = Slow()
        outlet = Outlet(slow, lambda: None)
        outlet.write("1")
        begun.wait(10)
        for number in "23456":
            outlet.write(number)
        go.set()
        while "4" not in slow.getvalue():
            pass
        outlet.write("7")
        outlet.finish()
        self.assertEqual(slow.getvalue(), "1234... 2 lines were not printed in time\n7")

    def test_much_at_once(self) -> None:
        """
        What waits for a reader has a bound in characters, too.
        """
        self.patch(trace_output, "_MOST_CHARACTERS", 10)
        go = Event()

        class Slow(io.StringIO):
            def write(self, text: str) -> int:
                go.wait(10)
                return super().write(text)

        slow = Slow()
        outlet = Outlet(slow, lambda: None)
        for _ in range(4):
            outlet.write("123456")
        go.set()
        while "123456" not in slow.getvalue():
            pass
        while outlet.write(""):
            pass
        outlet.finish()
        self.assertIn(slow.getvalue().count("123456"), (1, 2))
        self.assertIn("lines were not printed in time", slow.getvalue())

    def test_stream_with_descriptor_is_written_to_by_that_in_its_encoding(self) -> None:
        """
        A stream with a descriptor is written to by that, in its encoding.
        """
        with tempfile.TemporaryFile("w+", encoding="latin-1") as file:
            outlet = Outlet(file, lambda: None)
            self.assertFalse(outlet.isatty())
            self.assertEqual(outlet.encoding, "latin-1")
            outlet.write("ä€")
            outlet.finish()
            file.seek(0)
            self.assertEqual(file.read(), "ä\\u20ac")
