"""
Header text without structure: encoded words as RFC 2047 has them, and as they come.
"""

from __future__ import annotations

import base64
import re
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.growth import assert_linear
from tests.helpers import STEADY, table_of
from tests.rfc2047 import shown
from yatxmilter._mail.words import decode_text, encode_text, has_octets, raw_words, unfold

CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0")
#: Words of all kinds, and the blanks between them.
WORDS = st.one_of(
    st.text(CHARACTERS, min_size=1, max_size=20).map(lambda text: text.replace(" ", "")),
    st.sampled_from(
        ["[list]", "plain", "zażółć", "третий", "日本語の件名", "a=b", "=?", "?=", "=?utf-8?q?x?="]
        + ["x" * 90, "é" * 90, "_", "=20", "e\u0301", "\U0001f600" * 20, "\x7f", "\x1b[2J"]
    ),
)
BLANKS = st.sampled_from([" ", " ", " ", "  ", "\t", " \t ", " " * 30])
TEXTS = st.lists(st.one_of(WORDS, BLANKS), max_size=25).map("".join)
ASCII = st.lists(
    st.one_of(
        st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=30).filter(
            lambda word: "=?" not in word
        ),
        st.sampled_from([" ", "  ", "\t", "y" * 200]),
    ),
    max_size=30,
).map("".join)


def decoded(text: str) -> str:
    """
    Show a raw value.
    """
    return decode_text(unfold(text))


class ReadingTests(SynchronousTestCase):
    """
    What is shown of a raw value.
    """

    def test_examples_of_rfc_2047_section_8(self) -> None:
        """
        The examples of RFC 2047, section 8, that a text without structure can have.
        """
        table = {
            "=?ISO-8859-1?Q?a?=": "a",
            "=?ISO-8859-1?Q?a?= b": "a b",
            "=?ISO-8859-1?Q?a?= =?ISO-8859-1?Q?b?=": "ab",
            "=?ISO-8859-1?Q?a?=  =?ISO-8859-1?Q?b?=": "ab",
            "=?ISO-8859-1?Q?a?=\n    =?ISO-8859-1?Q?b?=": "ab",
            "=?ISO-8859-1?Q?a_b?=": "a b",
            "=?ISO-8859-1?Q?a?= =?ISO-8859-2?Q?_b?=": "a b",
            "=?US-ASCII?Q?Keith_Moore?= <x>": "Keith Moore <x>",
        }
        self.assertEqual(table_of(decoded, table), table)

    def test_as_it_comes(self) -> None:
        """
        Broken words, unknown charsets, raw octets and line ends are shown as well as can be.
        """
        table = {
            "": "",
            "plain =? text": "plain =? text",
            "=?utf-8?q?B=C3=BCrgerb=C3?= =?utf-8?q?=BCro?=": "Bürgerbüro",
            "=?utf-8*en?q?caf=C3=A9?=": "café",
            "=?utf-8?b?Y2Fmw6k?=": "café",
            "=?utf-8?b?Y2Fm!w6k=?=": "café",
            "=?utf-8?b?Y2Fmw?=": "caf",
            "=?utf-8?b?*?=": "",
            "=?utf-8?q?=C3?=": "\ufffd",
            "=?utf-8?q?a=ZZ=?=": "a=ZZ",
            "=?x-nobody-knows?q?caf=E9?=": "caf\ufffd",
            "=?punycode?q?caf-dma?=": "caf-dma",
            "=?windows-1252?q?=80?=": "€",
            "=?x-sjis?b?k/o=?=": "日",
            "=?utf-7?q?+2D0-?=": "\ufffd",
            "=?utf-8?q?sale=0Atoday?=": "sale today",
            "=?utf-8?b?aGkNCg==?=": "hi",
            "=?utf-8?q?a=00b?=": "a\ufffdb",
            "a=?utf-8?q?b?=c": "abc",
            "=?utf-8?x?b?=": "=?utf-8?x?b?=",
            "=?utf-8?q?a b?=": "=?utf-8?q?a b?=",
            "caf\udce9 raw": "caf\udce9 raw",
            "stray\rCR": "stray CR",
            "no\nfold": "no fold",
            "nul\0": "nul\ufffd",
        }
        self.assertEqual(table_of(decoded, table), table)

    def test_what_is_wrong_with_encoded_words_is_told_each_thing_once(self) -> None:
        """
        What is wrong with encoded words is told, each thing once.
        """
        for text, defect in (
            ("x=?utf-8?q?a?=", "no blank"),
            ("=?utf-8?q?a?=x", "no blank"),
            ("=?utf-8?b?Y2Fmw?=", "is cut"),
            ("=?utf-8?b?Y2F!mw6k=?=", "base64 throughout"),
            ("=?nobody?q?a?= =?nobody?q?a?= b =?nobody?q?a?=", "unknown charset"),
            ("=?utf-8?q?=C3?=", "not what its charset says"),
            ("=?utf-8?q?=0A?=", "line end"),
            ("=?utf-8?q?=00?=", "no character"),
        ):
            defects: list[str] = []
            decode_text(text, defects)
            self.assertEqual(len(defects), 1, text)
            self.assertIn(defect, defects[0])

    @STEADY
    @given(st.binary(max_size=300), st.sampled_from(["%s", "=?utf-8?q?%s?=", "=?%s?b?%s?="]))
    def test_any_octets_are_shown_as_text_that_can_be_set(self, octets: bytes, frame: str) -> None:
        """
        Any octets are shown, as text that can be set.
        """
        text = octets.decode("utf-8", "surrogateescape")
        value = decoded(frame.replace("%s", text))
        self.assertNotRegex(value, "[\r\n\0]")
        encode_text(value, 10)

    def test_takes_time_linear_in_the_length_whatever_stands_in_it(self) -> None:
        """
        It takes time linear in the length, whatever stands in it.
        """
        texts = ("=?utf-8?q?=41?= ", "=?x1?q?a?=", "=?", "=?a?b?", "é ", "\n ", "\r", '"')
        assert_linear(lambda size: lambda: [decoded(text * size) for text in texts], 500)

    def test_strangers_choose_no_codec(self) -> None:
        """
        Names of charsets that nobody knows leave nothing behind in Python's table of codecs.
        """
        import encodings

        before = len(encodings._cache)  # type: ignore[attr-defined]
        for number in range(20):
            self.assertEqual(decoded(f"=?x-nobody-{number}?q?a?="), "a")
        self.assertEqual(len(encodings._cache), before)  # type: ignore[attr-defined]


class WritingTests(SynchronousTestCase):
    """
    What is written for a text that is set.
    """

    @STEADY
    @given(TEXTS, st.integers(3, 70))
    @example("[list] членов: изменение устава", 9)
    @example("a =?utf-8?q?b?= c", 9)
    @example(" é ", 9)
    @example("é" + " " * 1200 + "é", 9)
    def test_shown_as_set(self, text: str, column: int) -> None:
        """
        Any reader that follows RFC 2047 shows the text that was set (law 3), and so does ours.
        """
        raw = encode_text(text, column)
        self.assertEqual(shown(raw), text)
        self.assertEqual(decoded(raw), text)
        self.assertTrue(raw.isascii())
        for line in raw.split("\n")[1:]:
            self.assertRegex(line, r"\A[ \t]+[^ \t]")
            if "=?utf-8?" in line and "=?utf-8?q?x" not in line:
                self.assertLessEqual(len(line), 76)

    @STEADY
    @given(ASCII, st.integers(3, 70))
    @example("x" * 2000, 9)
    @example("x" + " " * 2000 + "y", 9)
    def test_ascii_is_written_byte_for_byte_but_for_folds_at_its_blanks(
        self, text: str, column: int
    ) -> None:
        """
        ASCII is written byte for byte, but for folds at its blanks (law 4).
        """
        raw = encode_text(text, column)
        self.assertEqual(raw.replace("\n", ""), text)
        self.assertFalse(re.search(r"\n(?![ \t])|\A\s*\n|\n\s*\Z", raw), raw)

    @STEADY
    @given(st.lists(st.text(CHARACTERS, min_size=1, max_size=300), max_size=12).map(" ".join))
    def test_no_line_is_longer_than_998_octets(self, text: str) -> None:
        """
        No line is longer than 998 octets, unless one word is.
        """
        raw = encode_text(text, 9)
        for line in raw.split("\n"):
            self.assertTrue(len(line) <= 998 or " " not in line.strip())

    def test_only_words_that_need_it_are_encoded(self) -> None:
        """
        Only the words that need it are encoded; what can be read in part is left readable.
        """
        table = {
            "Größe": "=?utf-8?q?Gr=C3=B6=C3=9Fe?=",
            "a é b": "a =?utf-8?q?=C3=A9?= b",
            "a  é  ü  b": "a  =?utf-8?b?w6kgIMO8?=  b",
            "日本": "=?utf-8?b?5pel5pys?=",
            "=?utf-8?q?x?=": "=?utf-8?b?PT91dGYtOD9xP3g/PQ==?=",
        }
        self.assertEqual(table_of(lambda text: encode_text(text, 9), table), table)

    def test_raw_octets_that_were_read_go_out_again_as_they_were(self) -> None:
        """
        Raw octets that were read go out again as they were; so do words that were raw UTF-8.
        """
        raw = "\udce1rv\udced é"
        self.assertTrue(has_octets(raw))
        kept = raw_words(raw)
        self.assertEqual(
            encode_text(f"[list] {raw} ü", 9, kept), f"[list] {raw} =?utf-8?q?=C3=BC?="
        )
        self.assertEqual(raw_words(None), frozenset())

    def test_takes_time_linear_in_the_length(self) -> None:
        """
        It takes time linear in the length.
        """
        texts = ("é", "é ", "é a ", " ", "x ", "日", "=?utf-8?q?a?= ")
        assert_linear(lambda size: lambda: [encode_text(text * size, 9) for text in texts], 200)


class RoundTripTests(SynchronousTestCase):
    """
    A text in front of what is shown.
    """

    @STEADY
    @given(st.sampled_from(["[list] ", "é ", "x", "é"]), st.binary(max_size=120))
    def test_what_was_read_with_text_in_front_can_be_set(self, prefix: str, octets: bytes) -> None:
        """
        What was read, with a text in front, can be set, and is shown so (law 2).
        """
        clean = octets.translate(None, b"\r\n\0").decode("utf-8", "surrogateescape")
        word = base64.b64encode(octets).decode("ascii")
        for raw in (clean, f"=?utf-8?b?{word}?=", f"=?iso-8859-1?b?{word}?= {clean}"):
            value = decoded(raw)
            text = prefix + value
            again: Any = encode_text(text, 9, raw_words(raw))
            self.assertEqual(decoded(again), text)
