"""
Tests of `yatxmilter.parse_esmtp`: the ESMTP arguments of MAIL and RCPT.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.growth import assert_linear
from tests.helpers import table_of
from yatxmilter import parse_esmtp


class ParsingTests(SynchronousTestCase):
    """
    A mapping of keywords to values.
    """

    def test_keywords_are_in_capitals_in_order(self) -> None:
        """
        Keywords are in capitals, in order; one without a value has None; the first of two counts.
        """
        table: dict[tuple[str, ...], object] = {
            (): {},
            ("<a@example.com>",): {},
            ("<a=b@example.com>", "SIZE=42"): {"SIZE": "42"},
            ("<>", "size=1", "Body=8BitMIME", "SMTPUTF8"): {
                "SIZE": "1", "BODY": "8BitMIME", "SMTPUTF8": None,
            },
            ("<a>", "ORCPT=rfc822;a+2Bb@x=y", "X="): {"ORCPT": "rfc822;a+2Bb@x=y", "X": ""},
            ("<a>", "SIZE=1", "SIZE=2", "SIZE"): {"SIZE": "1"},
            ("<a>", "", "=x", "\udcff=\udcfe"): {"": None, "\udcff": "\udcfe"},
        }  # fmt: skip
        self.assertEqual(table_of(parse_esmtp, table), table)
        self.assertEqual(list(parse_esmtp(["<>", "b", "A"])), ["B", "A"])

    def test_text_whose_letters_would_be_taken_for_arguments_is_refused(self) -> None:
        """
        A text, whose letters would be taken for arguments, is refused.
        """
        error = self.assertRaises(TypeError, parse_esmtp, "SIZE=1")
        self.assertIn("expected the list", str(error))

    def test_what_a_client_sends_takes_time_linear_in_its_size(self) -> None:
        """
        What a client sends takes time linear in its size.
        """
        assert_linear(lambda size: lambda: parse_esmtp(["<a>", *[f"K{n}=v" for n in range(size)]]))
