"""
Fields by their kinds: dates, ids, types with parameters, and what is for machines alone.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from email.message import Message
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.growth import assert_linear
from tests.helpers import STEADY, table_of
from tests.rfc2047 import shown, unfolded
from yatxmilter._mail.dates import read_date
from yatxmilter._mail.fields import read_field, write_field

NAMES = st.sampled_from(
    ["Subject", "From", "Date", "Message-ID", "References", "Content-Type", "Content-Disposition"]
    + ["MIME-Version", "Content-Transfer-Encoding", "List-Id", "Received", "X-Any"]
)
ODD = st.lists(
    st.one_of(
        st.sampled_from(
            ["=?utf-8?q?=0A?=", "=?x?b?/?=", '"', "(", ")", "<", ">", ";", "=", "*", "'", "%", ","]
            + [
                "name*0*",
                "charset",
                "@",
                ":",
                "\\",
                " ",
                "\t",
                "\n ",
                "é",
                "\udcff",
                "0",
                "multipart/",
            ]
            + ["Thu, 26 Nov 2026", "99999999999999999999"]
        ),
        st.binary(max_size=6).map(
            lambda data: data.translate(None, b"\r\n\0").decode("utf-8", "surrogateescape")
        ),
    ),
    max_size=20,
).map("".join)


def params(raw: str) -> dict[str, str]:
    """
    Read the parameters of a type.
    """
    value: Any = read_field("Content-Type", raw)
    return dict(value.params)


class AnyFieldTests(SynchronousTestCase):
    """
    What all kinds have in common.
    """

    @STEADY
    @given(NAMES, ODD, st.sampled_from(["", "[list] ", "é "]))
    def test_read_and_set(self, name: str, raw: str, prefix: str) -> None:
        """
        Any field is read, and can be set with a text in front, as one field (law 2).
        """
        value = read_field(name, raw)
        for attribute in ("addresses", "groups", "datetime", "ids", "params", "content_type"):
            getattr(value, attribute, None)
        for attribute in ("maintype", "subtype", "cte", "version", "content_disposition"):
            getattr(value, attribute, None)
        self.assertEqual(value.octets, raw.encode("utf-8", "surrogateescape"))
        self.assertIsInstance(value.defects, tuple)
        again = write_field(name, prefix + value, raw)
        self.assertNotRegex(again, "\n(?![ \t])|[\r\0]")

    @STEADY
    @given(NAMES, st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=200))
    def test_ascii_is_encoded_in_no_field(self, name: str, text: str) -> None:
        """
        In no field ASCII is encoded, but for text without structure that looks encoded (law 4).
        """
        if "=?" not in text and not name.endswith("ate"):
            self.assertEqual(write_field(name, text).replace("\n", ""), text)

    def test_ids_addresses_of_web_tokens_and_results_are_shown_as_they_are(self) -> None:
        """
        Ids, addresses of the web, tokens and results are shown as they are, and never encoded.
        """
        for name, value in (
            ("List-Unsubscribe", "<https://lists.example.org/leave?token=" + "a1b2" * 30 + ">"),
            ("In-Reply-To", "<" + "0123456789" * 9 + "@example.org>"),
            ("X-Scan-Token", "t" * 90),
            ("Authentication-Results", "mx.example.com; dkim=pass header.b=" + "b" * 80),
            ("Message-ID", "<=?utf-8?q?a?=@example.org>"),
        ):
            raw = write_field(name, value)
            self.assertEqual(unfolded(raw), value)
            self.assertEqual(read_field(name, raw), value)

    def test_comment_may_be_in_any_language_what_is_around_it_not(self) -> None:
        """
        A comment may be in any language, what is around it not.
        """
        raw = write_field("Received", "from a.test (é) by b.test")
        self.assertEqual(raw, "from a.test (=?utf-8?q?=C3=A9?=) by b.test")
        for name, text in (("Received", "from é"), ("Message-ID", "<é@b>"), ("MIME-Version", "é")):
            error = self.assertRaises(ValueError, write_field, name, text)
            self.assertIn(f"header {name}: value", str(error))
            self.assertEqual(write_field(name, f"x {text}", text), f"x {text}")
        self.assertEqual(
            write_field("List-Id", "Größe <a.example>"), "=?utf-8?q?Gr=C3=B6=C3=9Fe?= <a.example>"
        )
        self.assertEqual(read_field("List-Id", "=?utf-8?q?Gr=C3=B6=C3=9Fe?= <a>"), "Größe <a>")

    def test_values_that_no_field_can_carry_are_refused_by_its_name(self) -> None:
        """
        Line ends, NUL, surrogates and what is no text are refused by the name of the field.
        """
        for name, value in (
            ("Subject", "a\nb"),
            ("Subject", "a\rb"),
            ("To", "a\0b"),
            ("Subject", "a\ud800"),
            ("Subject", 1),
            ("Date", "yesterday"),
            ("Date", ""),
            ("Date", 1),
            ("Resent-Date", "Thu, 26 Nov 2026 25:00:00 +0000"),
        ):
            error = self.assertRaises(ValueError, write_field, name, value)
            self.assertIn(f"header {name}: value", str(error))

    def test_values_of_the_message(self) -> None:
        """
        A value that was read of another field keeps its raw words.
        """
        value = read_field("Subject", "árvíz")
        self.assertEqual(write_field("X-Old", value), "árvíz")
        self.assertEqual(write_field("X-Old", str(value)), "=?utf-8?q?=C3=A1rv=C3=ADz?=")
        self.assertEqual(shown("=?utf-8?q?=C3=A1rv=C3=ADz?="), "árvíz")

    def test_takes_time_linear_in_the_length_for_each_kind(self) -> None:
        """
        It takes time linear in the length, for each kind.
        """
        names = ("Date", "Message-ID", "Content-Type", "MIME-Version", "Content-Transfer-Encoding")

        def read(name: str, text: str) -> None:
            value = read_field(name, text)
            assert value.defects is not None
            str(getattr(value, "params", ""))

        def work(size: int) -> Any:
            texts = [text * size for text in ("(", "<", ";", "a=b;", 'x="', "*0*=;", "1 ", "\\(")]
            return lambda: [read(name, text) for name in names for text in texts]

        assert_linear(work, 50)

    def test_writing_takes_time_and_room_linear_in_the_length(self) -> None:
        """
        To write a long value under a long name takes time linear in both, and no more room.
        """

        def work(size: int) -> Any:
            text = "attachment; " + "x" * size + '="' + "\u00e9" * size + '"'
            return lambda: write_field("Content-Disposition", text)

        assert_linear(work, 200)
        written = work(3000)()
        self.assertLess(len(written), 10 * 6000)
        value = read_field("Content-Disposition", written.replace("\n", ""))
        self.assertEqual(value.params["x" * 3000], "\u00e9" * 3000)


class DateTests(SynchronousTestCase):
    """
    Dates.
    """

    def test_dates_are_read_in_all_forms_of_rfc_5322(self) -> None:
        """
        Dates are read in all forms of RFC 5322; what is none is none.
        """
        utc = timezone.utc
        when = datetime(2026, 11, 26, 10, 0, 0, tzinfo=utc)
        table = {
            "Thu, 26 Nov 2026 10:00:00 +0000": when,
            "26 Nov 2026 10:00 GMT": when,
            "thu,  26 NOV 26 10:00:00 (comment) UT": when,
            "26 November 126 10:00:00 Z": when,
            "Thu, 26 Nov 2026 05:00:00 EST": when.astimezone(timezone(timedelta(hours=-5))),
            "Thu, 26 Nov 2026 10:00:00 -0130": datetime(
                2026, 11, 26, 10, tzinfo=timezone(timedelta(minutes=-90))
            ),
            "Thu, 26 Nov 2026 10:00:60 -0000": datetime(2026, 11, 26, 10, 0, 59),
            "Thu, 26 Nov 2026 10:00:00": datetime(2026, 11, 26, 10),
            "Thu, 26 Nov 2026 10:00:00 XYZ": datetime(2026, 11, 26, 10),
            "26 Nov 75 10:00:00 +0000": datetime(1975, 11, 26, 10, tzinfo=utc),
            "": None,
            "yesterday": None,
            "Thu, 26 Xyz 2026 10:00:00 +0000": None,
            "Thu, 31 Nov 2026 10:00:00 +0000": None,
            "Thu, 26 Nov 2026 10:00:00 +9999": None,
            "Thu, 26 Nov 2026 10:00:00 +0000" + " x" * 60: None,
        }
        self.assertEqual(table_of(read_date, table), table)

    def test_datetime_can_be_set_and_date_that_was_read_in_whatever_form(self) -> None:
        """
        A ``datetime`` can be set, and a date that was read in whatever form.
        """
        when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=-3, minutes=-30)))
        raw = write_field("Date", when)
        self.assertEqual(raw, "Fri, 02 Jan 2026 03:04:05 -0330")
        self.assertEqual(read_date(raw), when)
        self.assertEqual(
            write_field("Date", datetime(2026, 1, 2)), "Fri, 02 Jan 2026 00:00:00 -0000"
        )
        for old in ("yesterday", ""):
            self.assertEqual(write_field("Date", f"not {old}", old), f"not {old}")
        value: Any = read_field("Date", "yesterday")
        self.assertEqual((value.datetime, value.defects), (None, ("it is not a date",)))
        self.assertEqual(write_field("Resent-Date", value), "yesterday")
        self.assertEqual(read_field("Date", "26 Nov 2026 10:00 GMT").defects, ())


class ParameterTests(SynchronousTestCase):
    """
    Parameters.
    """

    def test_quotes_comments_rfc_2231_and_what_is_broken(self) -> None:
        """
        Quotes, comments, RFC 2231, and what is broken.
        """
        table = {
            "text/plain; charset=us-ascii (Plain text)": {"charset": "us-ascii"},
            'text/plain; charset="a\\"b;c" ; X = y z': {"charset": 'a"b;c', "x": "y z"},
            "a/b; name*=utf-8''caf%C3%A9": {"name": "café"},
            "a/b; name*0*=utf-8'de'caf%C3; name*1*=%A9; name*2=\" x\"": {"name": "café x"},
            "a/b; name*1=b; name*0=a; name=c": {"name": "ab"},
            "a/b; name*2=b": {"name": "b"},
            "a/b; name*0=a; name*2=b": {"name": "a"},
            "a/b; name*=caf%C3%A9": {"name": "café"},
            "a/b; name*=nobody''caf%E9": {"name": "caf\ufffd"},
            "a/b; name*=utf-8''%FF": {"name": "\ufffd"},
            "a/b; name*=utf-8''%00": {"name": "\ufffd"},
            "a/b; name==?utf-8?q?x=2Ey?=": {"name": "x.y"},
            "a/b; name*": {},
            "a/b; =x; y": {},
            'a/b; name="open': {"name": "open"},
            "a/b; a=1; a=2": {"a": "1"},
            "a/b;;;; (x;y=z) a=1": {"a": "1"},
            'a/b "x"': {},
            "a/b; *=1": {"*": "1"},
            "a/b; x*99999=1": {"x*99999": "1"},
        }
        self.assertEqual(table_of(params, table), table)

    def test_type_that_cannot_be_read_counts_as_text_plain(self) -> None:
        """
        A type is one, or counts as text/plain (RFC 2045, section 5.2), with a defect.
        """
        value: Any = read_field("Content-Type", "Text/HTML; x=y")
        self.assertEqual(
            (value.content_type, value.maintype, value.subtype), ("text/html", "text", "html")
        )
        self.assertEqual(value.defects, ())
        for raw in ("", "text", "text/plain/x", "; a=b", "text /plain", "name*"):
            value = read_field("Content-Type", raw)
            self.assertEqual(
                (value.content_type, "it is not a content type" in value.defects),
                ("text/plain", True),
            )
        value = read_field("Content-Disposition", 'Attachment; filename="a b"')
        self.assertEqual(
            (value.content_disposition, value.params["filename"]), ("attachment", "a b")
        )
        self.assertEqual(value.params, value.params)

    def test_ids_transfer_encodings_and_versions_are_read(self) -> None:
        """
        Ids, transfer encodings and versions.
        """
        ids: Any = read_field("References", "<a@b> (<x@y>) <c@d>\n <e>")
        self.assertEqual(ids.ids, ("<a@b>", "<c@d>", "<e>"))
        self.assertEqual(read_field("Message-ID", "none").defects, ("there is no id",))
        self.assertEqual(ids.defects, ())
        encoding: Any = read_field("Content-Transfer-Encoding", "Base64 (x)")
        self.assertEqual(encoding.cte, "base64")
        encoding = read_field("Content-Transfer-Encoding", "")
        self.assertEqual(encoding.cte, "7bit")
        version: Any = read_field("MIME-Version", "1 (x) .0")
        self.assertEqual(version.version, "1.0")
        version = read_field("MIME-Version", "x")
        self.assertIsNone(version.version)

    @STEADY
    @given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=120))
    def test_files_name_in_any_language_is_read_back_also_by_standard_library(
        self, name: str
    ) -> None:
        """
        A file's name in any language is read back, also by the standard library.
        """
        quoted = name.replace("\\", "\\\\").replace('"', '\\"')
        raw = write_field("Content-Disposition", f'attachment; filename="{quoted}"; size=1')
        value: Any = read_field("Content-Disposition", raw)
        if "=?" not in name:
            self.assertEqual(dict(value.params), {"filename": name, "size": "1"})
        self.assertTrue(raw.isascii())
        if not name.isascii() and name.strip() == name:
            theirs = Message()
            theirs["Content-Disposition"] = unfolded(raw)
            self.assertEqual(theirs.get_filename(), name)

    def test_value_need_not_be_in_quotes_to_be_written(self) -> None:
        """
        A value need not be in quotes to be written.
        """
        self.assertEqual(write_field("Content-Type", "a/b; x= é"), "a/b; x*=utf-8''%C3%A9")

    def test_what_is_not_ascii_and_no_parameter_is_refused(self) -> None:
        """
        What is not ASCII and no parameter is refused, unless it was read.
        """
        for text in ("é/plain", "a/b; é", "a/b; é=x", "a/b; x*=é"):
            self.assertRaises(ValueError, write_field, "Content-Type", text)
            self.assertEqual(write_field("Content-Type", f"x{text}", text), f"x{text}")
        self.assertEqual(
            write_field("Content-Type", 'a/b; x=" ;é"; y=\udce9'),
            "a/b; x*=utf-8''%20%3B%C3%A9; y=\udce9",
        )
