"""
Tests of `yatxmilter._records.record` and `yatxmilter._records.record_redaction`.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.growth import assert_linear
from tests.helpers import STEADY
from yatxmilter import constants as c
from yatxmilter._records import record as record_module
from yatxmilter._records.record import (
    Packet,
    Recorder,
    RecordError,
    Session,
    is_end,
    read_sessions,
    record_lines,
)
from yatxmilter._records.record_redaction import KINDS, Likeness, Redactor, find_addresses
from yatxmilter._records.replay_compare import Comparison, Rules

#: What an address looks like, in words that take a time with the square of some texts.
ATOM = r'[^\x00-\x20\x7f<>()\[\],;:\\"@]+'
ADDRESS = re.compile(rf'({ATOM}|"(?:[^"\\]|\\.)*")@(\[[^\]]*\]|{ATOM})', re.DOTALL)


class Kept(io.StringIO):
    """
    A file whose text can be had after it is closed.
    """

    text = ""

    def close(self) -> None:
        self.text = self.getvalue()
        super().close()


def record(*packets: tuple[bool, str, bytes], redact: tuple[str, ...] = ()) -> list[bytes]:
    """
    Record one session; give the lines.
    """
    stream = Kept()
    recorder = Recorder(stream, redact)
    recorder.begin(0)
    recorder.open(1, 1.5)
    for from_mta, letter, payload in packets:
        recorder.packet(1, 2, from_mta, ord(letter), payload)
    recorder.close(1, 3, "mta")
    recorder.end(4)
    return stream.text.encode("ascii").splitlines(True)


def read(lines: list[bytes], *, partial: bool = False) -> list[Session]:
    """
    Read all sessions.
    """
    return list(read_sessions(lines, partial=partial))


def changed(number: int, **changes: Any) -> list[bytes]:
    """
    Give a record in which one line has other values; ``None`` takes one away.
    """
    lines = record((True, "H", b"x\0"), (False, "c", b""))
    item = {**json.loads(lines[number - 1]), **changes}
    item = {key: value for key, value in item.items() if value is not None}
    lines[number - 1] = json.dumps(item).encode() + b"\n"
    return lines


class RecordTests(SynchronousTestCase):
    """
    What is written can be read.
    """

    @STEADY
    @given(st.lists(st.tuples(st.booleans(), st.integers(0, 255), st.binary(max_size=40))))
    def test_every_byte_survives_the_record(self, packets: list[tuple[bool, int, bytes]]) -> None:
        """
        Every byte survives.
        """
        lines = record(*((side, chr(letter), payload) for side, letter, payload in packets))
        (session,) = read(lines)
        self.assertEqual([packet[1:] for packet in session.packets], packets)
        self.assertEqual((session.connection, session.line, session.closed_by), (1, 2, "mta"))

    def test_lines_are_those_that_the_manual_describes(self) -> None:
        """
        The lines are those that the manual describes.
        """
        lines = [json.loads(line) for line in record((True, "H", b"\xffx\0"), redact=("body",))]
        self.assertEqual(
            lines[0],
            {
                "type": "record",
                "time": "1970-01-01T00:00:00.000000Z",
                "format": "yatxmilter-record",
                "version": 1,
                "redacted": ["body"],
            },
        )
        self.assertEqual(lines[2]["payload"], "\udcffx\0")
        self.assertEqual(
            [line["type"] for line in lines], ["record", "open", "packet", "close", "end"]
        )

    def test_recordings_may_stand_one_behind_the_other_each_with_its_own_numbers(self) -> None:
        """
        Recordings may stand one behind the other, each with its own numbers.
        """
        lines = record((True, "H", b"x\0")) + record((True, "H", b"y\0"), redact=("addresses",))
        first, second = read(lines)
        self.assertEqual(first.packets, [Packet(3, True, ord("H"), b"x\0")])
        self.assertEqual(second.packets, [Packet(8, True, ord("H"), b"y\0")])
        self.assertEqual(second.redacted, frozenset(["addresses"]))

    def test_side_that_spoke_another_language_is_kept(self) -> None:
        """
        That a side spoke another language is kept.
        """
        stream = Kept()
        recorder = Recorder(stream)
        recorder.begin(0)
        recorder.open(1, 0)
        recorder.undecoded(1, 0, True, "is SMTP")
        recorder.close(1, 0, "trace")
        recorder.end(0)
        (session,) = read(stream.text.encode().splitlines(True))
        self.assertEqual(session.undecoded, "line 3: is SMTP")

    def test_when_it_cannot_be_written_any_more_that_is_remembered(self) -> None:
        """
        When it cannot be written any more that is remembered, and nothing is raised.
        """

        class Full(io.StringIO):
            def write(self, text: str) -> int:
                raise OSError(28, "No space left on device")

            def close(self) -> None:
                raise OSError("cannot close")

        recorder = Recorder(Full())
        recorder.begin(0)
        recorder.open(1, 0)
        recorder.end(0)
        self.assertEqual(recorder.failure, "No space left on device")

    def test_record_that_was_cut_wherever_is_refused(self) -> None:
        """
        A record that was cut, wherever, is refused, and read as far as it goes on demand.
        """
        text = b"".join(record((True, "H", b"x\0"), (False, "c", b"")))
        for end in range(len(text) - 1):
            lines = text[:end].splitlines(True)
            self.assertRaises(RecordError, read, lines)
            if end:
                self.assertLessEqual(len(read(lines, partial=True)), 1)
        self.assertRaises(RecordError, read, [], partial=True)

    def test_badly_edited_record_is_named_with_the_number_of_its_line(self) -> None:
        """
        What was edited by hand, and badly, is named with the number of its line.
        """
        table = {
            "line 1 has the format 'x'": changed(1, format="x"),
            "line 1 has version 2": changed(1, version=2),
            "line 1 needs version, a number, which is True": changed(1, version=True),
            "line 1 has redacted ['all']": changed(1, redacted=["all"]),
            "line 1 is of type 'open'": changed(1, type="open"),
            "line 2 needs connection, a number, which is missing": changed(2, connection=None),
            "line 3 is of connection 7": changed(3, connection=7),
            "line 3 has from 'me', expected mta or milter": changed(3, **{"from": "me"}),
            "line 3 has the letter 'HH'": changed(3, letter="HH"),
            "line 3 has a payload that is not bytes": changed(3, payload="\ud800"),
            "line 3 needs payload, a text, which is 4": changed(3, payload=4),
            "line 3 is of an unknown type, 'letter'": changed(3, type="letter"),
            "line 4 opens connection 1 a second time": changed(4, type="open"),
            "line 5 has by 'me'": changed(5, by="me"),
            "line 6 counts 9 packets, but 2 are there": changed(6, packets=9),
            "line 5 ends the recording, but connection 1 is open": (
                changed(5, type="end", connections=1, packets=2)
            ),
            "line 3 is [], expected an object": [*changed(1)[:2], b"[]\n"],
            "line 3 is not JSON": [*changed(1)[:2], b"[" * 100_000],
            "line 4 begins a new recording before the end": [*changed(1)[:3], *changed(1)],
        }
        for expected, lines in table.items():
            with self.assertRaises(RecordError) as raised:
                read(lines)
            self.assertIn(expected, str(raised.exception))

    def test_line_that_is_too_long_for_any_packet_is_refused(self) -> None:
        """
        A line that is too long for any packet is refused, without being read to its end.
        """
        self.patch(record_module, "_LONGEST_LINE", 1000)
        whole = record((True, "H", b"x\0"))
        file = io.BytesIO(b"".join(whole[:2]) + b" " * 5000)
        for partial in (False, True):
            file.seek(0)
            with self.assertRaisesRegex(RecordError, "line 3 has more than 1000 bytes"):
                list(read_sessions(record_lines(file), partial=partial))
            self.assertLess(file.tell(), 2000)
        file = io.BytesIO(b"".join(whole))
        self.assertEqual(list(record_lines(file)), whole)

    def test_too_much_at_once(self) -> None:
        """
        What is in memory of open connections has a bound; what is closed does not count.
        """
        self.patch(record_module, "_MOST_KEPT", 3000)
        short = record(*[(True, "H", b"x\0")] * 5)
        self.assertEqual(len(read(short * 10)), 10)
        with self.assertRaisesRegex(RecordError, "line 17 brings what is kept .* than 3000 bytes"):
            read(record(*[(True, "H", b"x\0")] * 30))
        self.assertEqual(len(read(short[:-2] + short, partial=True)), 2)

    def test_record_is_read_in_a_time_that_grows_with_its_size(self) -> None:
        """
        A record is read in a time that grows with its size.
        """

        def many(size: int) -> Callable[[], object]:
            lines = record(*[(True, "H", b"x\0")] * size)
            return lambda: read(lines)

        assert_linear(many, 1000)

    def test_only_a_whole_line_of_type_end_is_one(self) -> None:
        """
        Only a whole line of type end is one.
        """
        last = record()[-1]
        self.assertTrue(is_end(last))
        for line in (last[:-1], last[:9], b"[]\n", record()[0], b"[" * 4000 + b"\n"):
            self.assertFalse(is_end(line))


class RedactionTests(SynchronousTestCase):
    """
    What is private is not kept.
    """

    def test_body_keeps_its_size_and_its_lines(self) -> None:
        """
        A body keeps its size and its lines.
        """
        redactor = Redactor(["body"])
        table = {
            (True, "B"): b"x\r\nxx\r\n",
            (True, "E"): b"x\r\nxx\r\n",
            (False, "b"): b"x\r\nxx\r\n",
        }
        for (side, letter), expected in table.items():
            self.assertEqual(redactor.redact(side, ord(letter), b"a\r\n\xff@\r\n"), expected)
        self.assertEqual(
            redactor.redact(True, ord("M"), b"<a@example.org>\0"), b"<a@example.org>\0"
        )
        self.assertEqual(Redactor([]).redact(True, ord("B"), b"text"), b"text")

    def test_no_part_of_an_address_is_left_wherever_it_stands(self) -> None:
        """
        No part of an address is left, wherever it stands, and nothing else is gone.
        """
        redactor = Redactor(["addresses"])
        for side, letter, payload, kept in (
            (True, "M", b"<ann@example.org>\0AUTH=ann@example.org\0SIZE=4\0", b"SIZE=4"),
            (True, "R", b'<"an n"@example.org>\0ORCPT=rfc822;ann@example.org\0', b"ORCPT=rfc822;"),
            (True, "L", b"To\0Reader <ann@example.org>, ann@[192.0.2.1]\0", b"To\0Reader <"),
            (True, "L", b"X\0bounce+ann=example.org@list.example\0", b"X\0"),
            (True, "D", b"Mi\0Q1\0{mail_addr}\0ann@example.org\0{mail_host}\0example.org\0", b"Q1"),
            (True, "D", b"M{auth_authen}\0ann\0{x}\0", b"{auth_authen}"),
            (False, "+", b"<ann@example.org>\0", b"<"),
            (False, "i", b"\0\0\0\1X\0ann@example.org\0", b"\0\0\0\1X\0"),
            (False, "y", b"550 5.1.1 <ann@example.org> is gone\0", b"550 5.1.1 <"),
        ):
            text = redactor.redact(side, ord(letter), payload)
            self.assertIn(kept, text)
            for private in (b"ann", b"an n", b"example.org", b"192.0.2.1", b"bounce"):
                self.assertNotIn(private, text)
        self.assertEqual(redactor.redact(False, ord("O"), b"a@b"), b"a@b")

    def test_address_of_a_client_stays_whatever_bytes_its_port_has(self) -> None:
        """
        The family and the port of a client are no text: one of their bytes may be an @.
        """
        redactor = Redactor(["addresses"])
        for port in (b"\x40\x31", b"\x31\x40", b"\x40\x40", b"\x00\x19"):
            client = b"4" + port + b"192.0.2.1\0"
            kept = redactor.redact(True, ord("C"), b"mail.example.org\0" + client)
            self.assertEqual(kept, b"mail.example.org\0" + client)
            kept = redactor.redact(True, ord("C"), b"ann@example.org\0" + client)
            self.assertTrue(kept.endswith(b".invalid\0" + client))
        for payload in (b"unknown\0U", b"unknown", b"unknown\0"):
            self.assertEqual(redactor.redact(True, ord("C"), payload), payload)

    def test_equal_stays_equal(self) -> None:
        """
        In a recording equal parts stay equal, in any case of the domain; in another they differ.
        """
        redactor = Redactor(KINDS)

        def once(address: bytes) -> tuple[bytes, ...]:
            return tuple(redactor.redact(True, ord("M"), address + b"\0").rstrip(b"\0").split(b"@"))

        ann, bob, other = map(once, (b"ann@example.org", b"bob@Example.ORG", b"ann@example.net"))
        self.assertEqual(once(b"ann@example.org"), ann)
        self.assertEqual(ann[1], bob[1])
        self.assertEqual(ann[0], other[0])
        self.assertNotEqual(ann[0], bob[0])
        self.assertEqual(once(b"@".join(ann)), ann)
        self.assertNotEqual(
            Redactor(KINDS).redact(True, ord("M"), b"ann@example.org\0"), b"@".join(ann)
        )

    def test_address_that_milter_was_not_given_is_like_any_other(self) -> None:
        """
        An address that the milter was not given is like any other, as long as it is the same one.
        """
        given_, own, second = "u0000000001@d0000000001.invalid", "u0000000002", "u0000000003"
        likeness = Likeness()
        likeness.learn(f"<{given_}>")
        self.assertEqual(likeness.alike("CONTINUE", "REJECT"), "REJECT")
        self.assertEqual(likeness.alike(f"+ <{given_}>", "+ <x@example.org>"), "+ <x@example.org>")
        was = f"+ <{own}@d0000000001.invalid>"
        same = "+ <x@d0000000001.invalid>"
        self.assertEqual(likeness.alike(was, same), was)
        self.assertEqual(likeness.alike(was, same), was)
        other = "+ <y@d0000000001.invalid>"
        self.assertEqual(likeness.alike(was, other), other)
        self.assertEqual(likeness.alike(f"+ <{second}@d0000000001.invalid>", other)[:5], "+ <u0")

    @given(st.text(st.sampled_from('ab"\\\\@@[] <'), max_size=20))
    @STEADY
    def test_addresses_in_any_text(self, text: str) -> None:
        """
        Addresses are found wherever the first one that fits begins.
        """
        expected = [(one.start(), one.end(1), one.end()) for one in ADDRESS.finditer(text)]
        self.assertEqual(list(find_addresses(text)), expected)

    def test_addresses_are_looked_for_in_a_time_that_grows_with_text(self) -> None:
        """
        Addresses are looked for in a time that grows with the text, whatever it is made of.
        """
        for text in ("a", '"', '\\"', 'a@[\\"', "a@", '"a" '):

            def prepare(size: int, text: str = text) -> Callable[[], object]:
                payload = b'"' + text.encode() * size + b"\0"
                return lambda: Redactor(KINDS).redact(True, ord("M"), payload)

            assert_linear(prepare, 8000)

    def test_many_lines_alike(self) -> None:
        """
        Many answers that differ in their addresses are compared in a time that grows with their
        number, and as well as few.
        """

        def prepare(size: int) -> Callable[[], object]:
            rows = [f"<{number:05}@example.org>\0".encode() for number in range(size)]
            redactor = Redactor(KINDS)
            now = [(c.SMFIR_DELRCPT, row) for row in rows]
            was = [(c.SMFIR_DELRCPT, redactor.redact(False, ord("-"), row)) for row in rows]

            def compare() -> None:
                old, new = Comparison(Rules(), KINDS).compare(was, now, (False, False))
                self.assertEqual(old, new)

            return compare

        assert_linear(prepare, 100)
