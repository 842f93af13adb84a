"""
Tests of log observers: what they write of events, and what they leave out.
"""

from __future__ import annotations

import io
import json
import re
import sys
from functools import partial
from typing import Any

from twisted.logger import Logger, LogLevel, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tests.growth import assert_linear
from yatxmilter._records import record_redaction
from yatxmilter.logs import JournalLog, JsonLog, Redactor, TextLog
from yatxmilter.service import _logs


class LogTests(SynchronousTestCase):
    """
    Events as lines.
    """

    def lines(self, make: Any, redact: Any = None) -> tuple[Logger, Any]:
        """
        Make a logger, and what gives the lines that it has written.
        """
        out = io.StringIO()
        observer = make(out, redact) if redact else make(out)
        logger = Logger(namespace="yatxmilter.test", observer=observer)
        return logger, lambda: out.getvalue().splitlines()

    def test_line_is_one_json_object_with_events_fields_by_their_names(self) -> None:
        """
        A line is one JSON object, with the event's fields by their names, whatever they contain.
        """
        logger, lines = self.lines(JsonLog)
        logger.warn("{milter} in {stage}\n", milter="tést", stage="eom", count=3, other=object())
        (line,) = lines()
        self.assertTrue(line.isascii())
        record = json.loads(line)
        self.assertRegex(record.pop("time"), r"^20\d\d-\d\d-\d\dT[\d:.]+\+00:00$")
        self.assertEqual(
            record,
            {
                "level": "warn",
                "namespace": "yatxmilter.test",
                "message": "tést in eom\n",
                "milter": "tést",
                "stage": "eom",
                "count": 3,
            },
        )

    def test_events_of_ours_are_formatted_as_twisted_does_it(self) -> None:
        """
        An event of ours is formatted as Twisted formats it: values, their parts, what a call gives,
        what cannot be formatted, and what was made a text before.
        """
        events: list[dict[str, Any]] = [
            {"log_format": "{a} {b:.1f} {c!r} {d[k]} {e.real}", "a": 1, "b": 2.34, "c": "x"},
            {"log_format": "{a()} of {b}", "a": lambda: 7, "b": 8},
            {"log_format": "{missing}"},
            {"log_format": "{a", "a": 1},
            {"log_format": b"{a}", "a": 1},
            {"log_text": "made before", "log_format": "{a}", "a": 1},
            {},
        ]
        for event in events:
            event.update(d={"k": 5}, e=6, log_namespace="yatxmilter.test", log_level=LogLevel.info)
            out = io.StringIO()
            TextLog(out)(event)
            words = out.getvalue().split("] ", 1)[1].rstrip("\n")
            expected = formatEvent(event)
            if "nable to format" in expected:
                # It goes on with the values, which are wrapped in ours.
                self.assertIn("nable to format event", words)
            else:
                self.assertEqual(words, expected)

    def test_failure_is_written_with_its_traceback_in_either_form(self) -> None:
        """
        A failure is written with its traceback, in either form.
        """
        for make in (JsonLog, TextLog):
            logger, lines = self.lines(make)
            logger.failure("oh", Failure(ValueError("a fault")))
            self.assertIn("ValueError", "".join(lines()))

    def test_no_line_of_a_message_passes_for_another_event(self) -> None:
        """
        No line of a message passes for another event.
        """
        logger, lines = self.lines(TextLog)
        logger.info("one\n2026-11-23 [forged] {x}", x="two")
        first, second = lines()
        self.assertRegex(first, r"^20\S+ \[yatxmilter.test#info\] one$")
        self.assertTrue(second.startswith("\t"))

    def test_event_without_time_level_and_name_is_written_as_well(self) -> None:
        """
        An event without time, level and name is written as well.
        """
        out = io.StringIO()
        JsonLog(out)({"log_format": "x"})
        record = json.loads(out.getvalue())
        self.assertEqual(
            (record["level"], record["namespace"], record["message"]), ("info", "-", "x")
        )

    def test_nothing_of_addresses_and_hosts_is_left_in_message_fields_or_traceback(self) -> None:
        """
        Nothing of addresses and hosts is left, in message, fields or traceback.
        """
        secrets = ("alice", "example", "192.0.2.1", "2001:db8", "xn--")
        for make in (JsonLog, TextLog):
            logger, lines = self.lines(make, Redactor())
            text = (
                "<alice@example.org> 'alice+x@[192.0.2.1]' IPv4 192.0.2.1 IPv6 2001:db8::7"
                " mail.example.org:25 alice@xn--bcher-kva.example ::ffff:192.0.2.1"
                " [IPv6:2001:db8::7]"
            )
            logger.failure("{mta}", Failure(ValueError(text)), mta=text, error=ValueError(text))
            written = "".join(lines())
            self.assertEqual([one for one in secrets if one in written], [])


class RedactionTests(SynchronousTestCase):
    """
    What is replaced, and what has to stay for a log to be of use.
    """

    def written(self, namespace: str, text: str, **values: Any) -> tuple[str, Any]:
        """
        Write an event as text, and as JSON.
        """
        texts, records = io.StringIO(), io.StringIO()
        redact = Redactor(b"key")
        for observer in (TextLog(texts, redact), JsonLog(records, redact)):
            Logger(namespace=namespace, observer=observer).warn(text, **values)
        return texts.getvalue().partition("] ")[2].rstrip(), json.loads(records.getvalue())

    def test_names_of_strangers_are_replaced_whatever_they_look_like(self) -> None:
        """
        Of client and sender nothing is left, be it no address and no name with dots, or the name of
        a module of ours; that nobody knows them may be read.
        """
        hidden = "(?:host|ip|address)-[0-9a-f]{10}"
        for value, expected in (
            ("johnspc [192.0.2.1]", rf"{hidden} \[{hidden}\]"),
            ("a.b.c", hidden),
            ("twisted.internet", hidden),
            ("<john>", f"<{hidden}>"),
            ("<john@example.com>", f"<{hidden}>"),
            ("evil\\nhost.example", f"{hidden}{hidden}"),
            ("<>", "<>"),
            ("unknown", "unknown"),
        ):
            for name in ("client", "sender"):
                text, record = self.written("yatxmilter.protocol", f"x {{{name}}}", **{name: value})
                self.assertRegex(text, f"^x {expected}$")
                self.assertRegex(record[name], f"^{expected}$")
        # Of others, whatever is called so may be anything.
        text, _ = self.written("elsewhere", "x {client}", client="curl 8")
        self.assertEqual(text, "x curl 8")

    def test_our_own_stays(self) -> None:
        """
        Of our own events the addresses, files, classes and roles stay.
        """
        text, record = self.written(
            "yatxmilter.service",
            "From {mta}: {milter} at {where}, {path}: see docs.example.com ({role})",
            mta="192.0.2.1:4711",
            milter="greylist.Greylist",
            where="inet:8891@mx.example.com",
            path="/etc/milter.example.com/x.toml",
            role="worker 1",
        )
        self.assertEqual(
            text,
            "From 192.0.2.1:4711: greylist.Greylist at inet:8891@mx.example.com,"
            " /etc/milter.example.com/x.toml: see docs.example.com (worker 1)",
        )
        self.assertEqual((record["message"], record["mta"]), (text, "192.0.2.1:4711"))

    def test_strangers_text_in_other_fields_is_replaced(self) -> None:
        """
        What the other fields hold of strangers is replaced, the same by the same.
        """
        text, record = self.written(
            "yatxmilter.engine",
            "{sender} to {recipients} by {client}: {error}",
            sender="<a@example.org>",
            recipients=["<b@example.net>"],
            client="MX.EXAMPLE.ORG [192.0.2.7]",
            error=ValueError("no mail for a@example.org from [192.0.2.7]"),
        )
        self.assertRegex(
            text,
            r"^<address-\w+> to \['<address-\w+>'\] by host-\w+ \[ip-\w+\]: no mail for"
            r" address-\w+ from \[ip-\w+\]$",
        )
        first, *_, again = re.findall(r"address-\w+", text)
        self.assertEqual(first, again)
        for part in ("example", "EXAMPLE", "192.0.2"):
            self.assertNotIn(part, json.dumps(record))

    def test_names_of_programs_stay(self) -> None:
        """
        Modules, classes, functions and files are not taken for host names, hosts are.
        """
        for name in (
            "twisted.internet.error.ConnectionLost", "json.decoder", "json.dumps", "settings.toml",
            "json.py", "/etc/postfix/main.cf",
        ):  # fmt: skip
            self.assertEqual(Redactor()(f"x {name} y"), f"x {name} y")
        for name in ("mx.example.com", "json.example", "nothing.py", "Mx.Example.Com"):
            self.assertRegex(Redactor()(f"x {name} y"), r"^x host-\w+ y$")

    def test_traceback_keeps_its_files_lines_and_classes(self) -> None:
        """
        A traceback keeps its files, lines and classes; what the error says is redacted.
        """
        out = io.StringIO()
        logger = Logger(namespace="yatxmilter.x", observer=TextLog(out, Redactor()))
        for text in ("no such user: a@example.org", ""):
            try:
                raise ConnectionError(text)
            except ConnectionError:
                logger.failure("It failed")
            written = out.getvalue()
            self.assertIn(f'File "{__file__}", line', written)
            self.assertIn("builtins.ConnectionError", written)
            self.assertNotIn("example.org", written)

    def test_words_of_a_milter(self) -> None:
        """
        What a milter's author has put into the text itself is redacted, not the fields' names.
        """
        text, _ = self.written("greylist", "from a@example.org: {obj.real.imag}", obj=7)
        self.assertRegex(text, r"^from address-\w+: 0$")
        text, _ = self.written("greylist", "{mta}", mta="192.0.2.1")
        self.assertRegex(text, r"^ip-\w+$")

    def test_texts_of_the_old_log(self) -> None:
        """
        So is what was printed, or logged by Twisted's old way.
        """
        for event in (
            {"log_format": "{log_text}", "log_text": "to a@example.org"},
            {"log_format": "{x}", "log_flattened": {"x!s:": "to a@example.org"}},
        ):
            out = io.StringIO()
            TextLog(out, Redactor())({"log_time": 0.0, "log_namespace": "-", **event})
            self.assertIn("to address-", out.getvalue())


class UsualLogTests(SynchronousTestCase):
    """
    The log of a program that has said nothing of one.
    """

    def begun(self, *observers: Any, waiting: Any = "waiting") -> list[Any]:
        """
        Begin it, where these observers are there; give what it begins with.
        """
        begun: list[Any] = []
        self.patch(_logs.globalLogBeginner, "_temporaryObserver", waiting)
        self.patch(_logs.globalLogBeginner, "beginLoggingTo", lambda o, **_: begun.extend(o))
        self.patch(_logs.globalLogPublisher, "_observers", [waiting, *observers])
        self.patch(sys, "stderr", io.StringIO())
        _logs.begin_usual_log()
        return begun

    def test_log_is_lines_of_text_on_standard_error(self) -> None:
        """
        It is lines of text on standard error, without what Twisted says of itself.
        """
        (write,) = self.begun()
        for namespace in ("yatxmilter.service", "twisted.web"):
            level = LogLevel.info
            write({"log_format": "hello", "log_level": level, "log_namespace": namespace})
        self.assertEqual(sys.stderr.getvalue().count("hello"), 1)

    def test_program_that_logs_already_keeps_what_it_has(self) -> None:
        """
        A program that has begun a log, or has an observer, keeps what it has.
        """
        self.assertEqual(self.begun(waiting=None), [])
        self.assertEqual(self.begun(print), [])


#: What moves a cursor, ends a line somewhere, or turns the direction of text.
HOSTILE = (
    "\r", "\n", "\x0b", "\x0c", "\x1b[2J", "\x00", "\x07", "\x08", "\x7f", "\x85", "\x9b1A",
    "\u2028", "\u2029", "\u202a", "\u202b", "\u202c", "\u202d", "\u202e", "\u2066", "\u2067",
    "\u2068", "\u2069", "\u200e", "\u200f", "\ud800", "\udcff", "\ufeff",
)  # fmt: skip


class HostileTests(SynchronousTestCase):
    """
    Text that strangers have written.
    """

    def written(self, make: Any, text: str, **values: Any) -> str:
        """
        Write an event.
        """
        out = io.StringIO()
        observer = make(out)
        Logger(namespace="yatxmilter.test", observer=observer).warn(text, **values)
        return out.getvalue()

    def test_values_stay_on_their_line(self) -> None:
        """
        Whatever a value contains, its event is one line of printable text, in each log.
        """
        for make in (TextLog, JournalLog, JsonLog):
            for hostile in HOSTILE:
                value = f"4X{hostile}<2>forged"
                for event in (
                    {"text": "queue id {i}", "i": value},
                    {"text": "{e}", "e": ValueError(value)},
                    {"text": "{e!r}", "e": ValueError(value)},
                    {"text": "{e!s}", "e": ValueError(value)},
                    {"text": "{e.args[0]}", "e": ValueError(value)},
                    {"text": "{e()}", "e": lambda value=value: value},
                    {"text": "{e[0]}", "e": [value]},
                    {"text": "{e:>99}", "e": value},
                ):
                    written = self.written(make, **event)
                    self.assertTrue(written.endswith("\n"))
                    self.assertTrue(written[:-1].isprintable(), (event, written))
                    self.assertIn("forged", written)

    def test_lines_of_a_program_stay_lines(self) -> None:
        """
        What a program itself logs in several lines, or a traceback, is indented, and has the
        journal's mark on each line.
        """
        self.assertRegex(self.written(TextLog, "one\ntwo\r"), r"^20\S+ \S+ one\n\ttwo\\r\n$")
        self.assertEqual(self.written(JournalLog, "one\ntwo\x1b"), "<4>one\n<4>\ttwo\\x1b\n")

    def test_name_of_a_logger(self) -> None:
        """
        The name of a logger is escaped as well.
        """
        out = io.StringIO()
        TextLog(out)({"log_format": "x", "log_namespace": "a\x1bb"})
        self.assertIn("[a\\x1bb#info] x", out.getvalue())

    def test_text_that_the_stream_does_not_have(self) -> None:
        """
        What a stream cannot write is escaped, in place of failing.
        """
        out = io.TextIOWrapper(io.BytesIO(), "ascii")
        TextLog(out)({"log_format": "{x}", "x": "né"})
        out.seek(0)
        self.assertIn("n\\xe9", out.read())

    def test_readable_text_stays(self) -> None:
        """
        Letters of any script, and blanks, are written as they are.
        """
        text = "Grüße, 你好, κόσμε, \U0001f600"
        self.assertIn(text, self.written(TextLog, "{x}", x=text))


class LinearTests(SynchronousTestCase):
    """
    Redaction looks at each character a few times.
    """

    def test_time_for_a_text_of_a_log_grows_with_its_size(self) -> None:
        """
        The time for a text of a log grows with its size, whatever it is made of.
        """
        redact = Redactor()
        for piece in ("a@[", "a-."):
            for each in (redact, redact.stranger):
                assert_linear(lambda n, p=piece, r=each: partial(r, p * (n // len(p))), 2_000)

    def test_time_for_a_payload_of_a_record_grows_with_its_size(self) -> None:
        """
        So does that for a payload of a record.
        """
        redact = record_redaction.Redactor(["addresses"]).redact
        for piece in (b"a@[", b"a"):
            assert_linear(
                lambda n, p=piece: partial(redact, True, ord("L"), b"X\0" + p * (n // len(p))),
                2_000,
            )


class RedactorTests(SynchronousTestCase):
    """
    The same by the same.
    """

    def test_address_has_one_replacement_whatever_its_case(self) -> None:
        """
        An address has one replacement, whatever its case; another, or another key, has another.
        """
        redact = Redactor(b"key")
        one = redact("Bob@example.org")
        self.assertRegex(one, "^address-[0-9a-f]{10}$")
        self.assertEqual(redact("to <bob@EXAMPLE.org>, now"), f"to <{one}>, now")
        self.assertNotIn("a b", redact('<"a b"@example.org>'))
        self.assertNotEqual(redact("eve@example.org"), one)
        self.assertNotEqual(Redactor(b"other")("bob@example.org"), one)
        self.assertNotEqual(Redactor()("bob@example.org"), Redactor()("bob@example.org"))

    def test_what_is_no_address_stays(self) -> None:
        """
        What is no address stays: times, queue ids, codes, version numbers in words.
        """
        text = "at 12:34, 4Xyz12 SMFIS_TEMPFAIL xxfi_eom 550 5.7.1 no; see {i}"
        self.assertEqual(Redactor()(text), text)
