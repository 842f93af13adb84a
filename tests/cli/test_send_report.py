"""
Tests of `yatxmilter._cli.report`: the message before and after.
"""

from __future__ import annotations

import io

from twisted.trial.unittest import SynchronousTestCase

from yatxmilter._cli.report import edited_envelope, shortened, tell_difference
from yatxmilter._cli.terminal import Page
from yatxmilter._wire.actions import AddRecipient, ChangeSender, DeleteRecipient


class DifferenceTests(SynchronousTestCase):
    """
    What is different.
    """

    def difference(self, before: bytes, after: bytes) -> list[str]:
        """
        Give the lines about two messages, the heading left out.
        """
        stream = io.StringIO()
        tell_difference(Page(stream, {}), before, after)
        return stream.getvalue().splitlines()[2:]

    def test_where_header_alone_is_different_body_is_not_looked_at(self) -> None:
        """
        Where the header alone is different the body is not looked at, however long it is.
        """
        body = b"\r\n" + b"line\r\n" * 100_000
        lines = self.difference(b"A: 1\r\n" + body, b"A: 2\r\n" + body)
        self.assertEqual(lines[3:5], ["-A: 1", "+A: 2"])
        self.assertNotIn("line", "".join(lines[5:]))

    def test_another_body_is_compared_line_by_line(self) -> None:
        """
        Another body is compared line by line.
        """
        lines = self.difference(b"A: 1\n\none\ntwo\n", b"A: 1\n\none\n2\n")
        self.assertEqual(lines[2:], ["@@ -1,4 +1,4 @@", " A: 1", "", " one", "-two", "+2"])

    def test_line_end_that_is_missing_at_end_of_one_is_difference(self) -> None:
        """
        A line end that is missing at the end of one is a difference.
        """
        lines = self.difference(b"A: 1\n\none\n", b"A: 1\n\none")
        self.assertEqual(lines[2:], ["@@ -1,4 +1,3 @@", " A: 1", "", " one", "-"])

    def test_message_of_which_nothing_is_left_is_compared_as_well(self) -> None:
        """
        A message of which nothing is left is compared as well.
        """
        self.assertEqual(self.difference(b"A: 1\n\n", b"\n")[2:], ["@@ -1 +0,0 @@", "-A: 1"])

    def test_long_bodies_are_not_their_sizes_are_told(self) -> None:
        """
        Long bodies are not: their sizes are told, and what is different in the header.
        """
        old, new = b"\none\n" * 10_000, b"\ntwo\n" * 10_001
        lines = self.difference(b"A: 1\n" + old, b"A: 2\n" + new)
        sizes = (
            "  the bodies, 49999 bytes and 50004 bytes, are too long to be compared line by line"
        )
        self.assertEqual([lines[0], *lines[4:6]], [sizes, "-A: 1", "+A: 2"])

    def test_text_that_is_too_long_for_line_ends_in_dots(self) -> None:
        """
        A text that is too long for a line ends in dots.
        """
        self.assertEqual(shortened("x" * 80), "x" * 80)
        self.assertEqual(shortened("x" * 81), "x" * 77 + "...")


class EnvelopeTests(SynchronousTestCase):
    """
    The envelope as edits make it.
    """

    def test_last_sender_counts_with_its_arguments_recipient_is_added_once(self) -> None:
        """
        The last sender counts, with its arguments; a recipient is added once, and deleted with or
        without brackets.
        """
        edits = [
            ChangeSender("<a@example.org>"),
            ChangeSender("b@example.org", "SIZE=1"),
            AddRecipient("<c@example.com>", "NOTIFY=NEVER"),
            AddRecipient("d@example.com"),
            DeleteRecipient("<e@example.com>"),
            DeleteRecipient("nobody@example.com"),
        ]
        self.assertEqual(
            edited_envelope("<>", ["<d@example.com>", "e@example.com"], edits),
            ("<b@example.org> SIZE=1", ["<d@example.com>", "<c@example.com> NOTIFY=NEVER"]),
        )
