"""
Tests of `yatxmilter.rfc5322`: message files taken apart and put together.
"""

from __future__ import annotations

import itertools
import re
import tracemalloc
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.growth import assert_linear
from tests.helpers import STEADY, table_of
from yatxmilter._mail.rfc5322 import Field, Mail, split_mail, wire_body, with_line_ends


class SplitTests(SynchronousTestCase):
    """
    Header and body.
    """

    MAILS = {
        b"A: b\n\nbody\n": Mail([Field(b"A", b" b")], True, b"body\n", b"\n"),
        b"A: b\r\n\r\nbody\r\n": Mail([Field(b"A", b" b")], True, b"body\r\n", b"\r\n"),
        b"A:\tb\n  c\n\td\nE:f": Mail([Field(b"A", b"\tb\n  c\n\td"), Field(b"E", b"f")],
                                     False, b"", b"\n"),
        b"A: b\r\n\tc\r\n\r\n": Mail([Field(b"A", b" b\n\tc")], True, b"", b"\r\n"),
        b"A \t: b\nA:\n\n": Mail([Field(b"A", b" b"), Field(b"A", b"")], True, b"", b"\n"),
        b"A: b\nno field\nC: d\n": Mail([Field(b"A", b" b")], False,
                                        b"no field\nC: d\n", b"\n"),
        b" folded\nA: b\n": Mail([], False, b" folded\nA: b\n", b"\n"),
        b"\nA: b\n": Mail([], True, b"A: b\n", b"\n"),
        b"From a Mon Nov  2\nA: b\n\n": Mail([Field(b"A", b" b")], True, b"", b"\n"),
        b"From: a\n\n": Mail([Field(b"From", b" a")], True, b"", b"\n"),
        b"A: b\n\nFrom c\n\nd": Mail([Field(b"A", b" b")], True, b"From c\n\nd", b"\n"),
        b"A: \xff\0\rb\n\n": Mail([Field(b"A", b" \xff\0\rb")], True, b"", b"\n"),
        b"": Mail([], False, b"", b"\n"),
        b"From ": Mail([], False, b"From ", b"\n"),
    }  # fmt: skip

    def test_folded_fields_both_line_ends(self) -> None:
        """
        Folded fields, both line ends, cut headers and mailbox lines are told apart.
        """
        self.assertEqual(table_of(split_mail, self.MAILS), self.MAILS)

    def test_without_smfip_hdr_leadspc_milter_gets_one_space_less_and_every_tab(self) -> None:
        """
        Without SMFIP_HDR_LEADSPC a milter gets one space less, and every tab.
        """
        table = {b" v": b"v", b"  v": b" v", b"v": b"v", b"\tv": b"\tv", b"": b"", b"\n v": b"\n v"}
        self.assertEqual(table_of(lambda value: Field(b"A", value).bare_value(), table), table)

    def test_message_that_was_taken_apart_is_put_together_byte_for_byte(self) -> None:
        """
        A message that was taken apart is put together byte for byte.
        """
        for message in (
            b"A: b\n\nbody\n",
            b"A: b\r\n\tc\r\n\r\nbody\r\nwithout end",
            b"A: b\nC: d\n",
            b"\nonly a body\n",
        ):
            self.assertEqual(split_mail(message).join(), message)

    @STEADY
    @given(st.text("aA:- \t\n", max_size=60))
    def test_nothing_is_lost(self, text: str) -> None:
        """
        Whatever the file, each byte but those around colons and between the parts is kept.
        """
        message = text.encode("ascii")
        joined = split_mail(message).join()
        self.assertEqual(
            sorted(joined.replace(b"\n", b"").replace(b" ", b"").replace(b"\t", b"")),
            sorted(message.replace(b"\n", b"").replace(b" ", b"").replace(b"\t", b"")),
        )


class GrowthTests(SynchronousTestCase):
    """
    Work that grows with the message, and not with its square.
    """

    def test_many_lines_of_a_field_do_not_make_a_header_dear(self) -> None:
        """
        Neither many lines of one field nor many of anything else make a header dear.
        """
        for line in (b"\t\n", b"\ta\r\n", b"A:\n", b"\r"):

            def prepare(size: int, line: bytes = line) -> Callable[[], object]:
                message = b"A:\n" + line * size + b"\n\nbody"
                return lambda: split_mail(message)

            assert_linear(prepare, 2000)

    def test_line_ends_are_made_in_the_room_of_a_few_bodies(self) -> None:
        """
        To give a body of very short lines its line ends takes the room of a few bodies, not an
        object for each line; what comes out is what a regular expression would make.
        """
        body = b"a\r\n" * 100_000
        for make in (wire_body, Mail([], True, body, b"\n").join):
            tracemalloc.start()
            try:
                make(*[body] * (make is wire_body))
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            self.assertLess(peak, 6 * len(body))
        for size in range(6):
            for octets in itertools.product(b"\r\nx", repeat=size):
                data = bytes(octets)
                self.assertEqual(with_line_ends(data), re.sub(rb"\r?\n", b"\r\n", data), data)

    def test_lines_of_a_mailbox_do_not_make_a_header_dear(self) -> None:
        """
        Nor do lines of a mailbox, and names without end.
        """
        for text in (b"From a\n", b"A", b"A\t"):

            def prepare(size: int, text: bytes = text) -> Callable[[], object]:
                message = text * size
                return lambda: split_mail(message)

            assert_linear(prepare, 20_000)


class BodyTests(SynchronousTestCase):
    """
    Line ends of bodies.
    """

    def test_on_wire_every_line_ends_in_cr_lf_last_one_included(self) -> None:
        """
        On the wire every line ends in CR LF, the last one included; an empty body stays empty.
        """
        table = {
            b"": b"",
            b"a": b"a\r\n",
            b"a\nb\r\n\nc": b"a\r\nb\r\n\r\nc\r\n",
            b"\n": b"\r\n",
            b"a\rb\n": b"a\rb\r\n",
        }
        self.assertEqual(table_of(wire_body, table), table)
