"""
Tests of log observers: what they write of events, and what they leave out.
"""

from __future__ import annotations

import io
import json
from typing import Any

from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from yatxmilter.logs import JsonLog, Redactor, TextLog


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

    def test_json(self) -> None:
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

    def test_failure(self) -> None:
        """
        A failure is written with its traceback, in either form.
        """
        for make in (JsonLog, TextLog):
            logger, lines = self.lines(make)
            logger.failure("oh", Failure(ValueError("a fault")))
            self.assertIn("ValueError", "".join(lines()))

    def test_text(self) -> None:
        """
        No line of a message passes for another event.
        """
        logger, lines = self.lines(TextLog)
        logger.info("one\n2026-11-23 [forged] {x}", x="two")
        first, second = lines()
        self.assertRegex(first, r"^20\S+ \[yatxmilter.test#info\] one$")
        self.assertTrue(second.startswith("\t"))

    def test_bare_event(self) -> None:
        """
        An event without time, level and name is written as well.
        """
        out = io.StringIO()
        JsonLog(out)({"log_format": "x"})
        record = json.loads(out.getvalue())
        self.assertEqual(
            (record["level"], record["namespace"], record["message"]), ("info", "-", "x")
        )

    def test_redacted(self) -> None:
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


class RedactorTests(SynchronousTestCase):
    """
    The same by the same.
    """

    def test_consistent(self) -> None:
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

    def test_rest(self) -> None:
        """
        What is no address stays: times, queue ids, codes, version numbers in words.
        """
        text = "at 12:34, 4Xyz12 SMFIS_TEMPFAIL xxfi_eom 550 5.7.1 no; see {i}"
        self.assertEqual(Redactor()(text), text)
