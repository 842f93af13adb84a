"""
Headers and body of a message as objects: what is read is what came, what is set is what was meant,
and what nobody touches stays as it is, to the last byte.
"""

from __future__ import annotations

import io
from email.message import EmailMessage
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.helpers import STEADY
from yatxmilter._wire.payloads import to_text
from yatxmilter.errors import ValueNotSendable, WrongStage
from yatxmilter.message import Headers, Message
from yatxmilter.message._body import Body
from yatxmilter.message._envelope import Client
from yatxmilter.message._mail import Macros, Received
from yatxmilter.message._values import decode_value, encode_value

Fields = list[tuple[str, str]]

NAMES = st.sampled_from(
    ["From", "To", "Subject", "Date", "Received", "Message-ID", "Content-Type", "MIME-Version"]
    + ["Content-Transfer-Encoding", "Content-Disposition", "DKIM-Signature", "X-A", "x-a"]
)
#: What stands on one line of a raw value: any byte that the wire carries.
LINES = st.one_of(
    st.binary(max_size=30).map(lambda data: to_text(data.translate(None, b"\0\r\n"))),
    st.sampled_from(
        [
            "a@example.com",
            '"=?utf-8?q?',
            "<",
            "multipart/mixed; boundary=b",
            "base64",
            "\x0b\x85\x1c",
        ]
    ),
)
RAWS = st.lists(LINES, min_size=1, max_size=3).map("\n ".join)
FIELDS = st.lists(st.tuples(NAMES, RAWS), max_size=5)
BODIES = st.one_of(
    st.binary(max_size=60),
    st.just(b"--b\r\n\r\npart\r\n--b\r\nContent-Type: text/html\r\n\r\n<p>\r\n--b--\r\nend\r\n"),
).map(lambda body: body.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=60)


def allow(what: str, flags: int, size: int) -> None:
    """
    Allow everything.
    """


def headers(*fields: tuple[str, str]) -> Headers:
    """
    Make a header.
    """
    return Headers(((name, f" {raw}") for name, raw in fields), allow)


def listed(header: Headers) -> Fields:
    """
    Give names and raw values.
    """
    return [(field.name, field.raw) for field in header]


def message(fields: Fields, body: bytes = b"", *, whole: bool = True) -> Message:
    """
    Make a message as it is at its end.
    """
    received = Received(["<a@example.com>"], 64)
    received.fields = [(name, f" {raw}") for name, raw in fields]
    received.headers = Headers(received.fields, allow)
    received.whole = whole
    received.body.write(body)
    client = Client(lambda *reply: None, "c", None)
    return Message(received, client, Macros({}.get), lambda *reply: None, allow)


class ValueTests(SynchronousTestCase):
    """
    Values decoded and encoded.
    """

    def test_values_are_those_of_email_headerregistry(self) -> None:
        """
        Values are those of ``email.headerregistry``, with the raw text beside them.
        """
        header = headers(
            ("Subject", "=?utf-8?q?caf=C3=A9?=\n and more"),
            ("To", "Reader <reader@example.com>, b@example.net"),
            ("Date", "Mon, 23 Nov 2026 01:00:00 +0000"),
        )
        self.assertEqual(header["SUBJECT"], "café and more")
        self.assertEqual(header.fields("subject")[0].raw, "=?utf-8?q?caf=C3=A9?=\n and more")
        self.assertEqual(header["to"].addresses[1].domain, "example.net")
        self.assertEqual(header["date"].datetime.year, 2026)
        self.assertIsNone(header["Cc"])
        self.assertEqual(header.get("Cc", "none"), "none")

    @STEADY
    @given(NAMES, RAWS)
    def test_there_is_value_for_whatever_comes_and_it_is_text(self, name: str, raw: str) -> None:
        """
        There is a value for whatever comes, and it is text.
        """
        self.assertIsInstance(decode_value(name, raw), str)

    def test_what_email_package_cannot_parse_is_read_as_plain_text(self) -> None:
        """
        What the email package cannot parse is read as plain text.
        """

        for name, raw in (
            ("Date", "Mon, 23 Nov 99999999999999 00:00:00 +0000"),
            ("Message-ID", "<a@"),
            ("To", "a@["),
            ("Content-Type", "a/b; x*"),
        ):
            self.assertEqual("".join(decode_value(name, raw).split()), "".join(raw.split()))

    @STEADY
    @given(st.sampled_from(["Subject", "X-A", "Comments"]), TEXTS)
    def test_any_text_once_set_is_read_back(self, name: str, text: str) -> None:
        """
        Any text, once set, is read back, but for its blanks at folds and ends, and is ASCII on the
        wire in lines that an MTA takes.
        """
        raw = encode_value(name, text)
        self.assertTrue(raw.isascii())
        self.assertLess(max(map(len, raw.split("\n"))), 998)
        if "=?" not in text:
            value = str(decode_value(name, raw))
            self.assertEqual("".join(value.split()), "".join(text.split()))

    def test_bytes_of_no_encoding_go_as_they_are_text_beside_them_is_encoded(self) -> None:
        """
        Bytes of no encoding go as they are; the text beside them is encoded.
        """
        raw = encode_value("Subject", "caf\udce9 ü")
        self.assertEqual(raw, "caf\udce9 =?utf-8?q?=C3=BC?=")

    def test_long_values_are_folded_not_right_behind_name(self) -> None:
        """
        Long values are folded, not right behind the name.
        """
        raw = encode_value("Subject", "word " * 30 + "end")
        self.assertTrue(all(len(line) < 80 for line in raw.split("\n")))
        self.assertIn("\n ", raw)
        raw = encode_value("A-Name-That-Is-Long", "<" + "x" * 61 + "@example.com>")
        self.assertFalse(raw.startswith("\n"))
        self.assertEqual(encode_value("X", ""), "")

    def test_what_would_be_another_field_or_none_is_refused(self) -> None:
        """
        What would be another field, or none, is refused by name and value.
        """
        header = headers(("Subject", "hi"))
        field = header.fields("Subject")[0]
        for attempt in (
            lambda: header.add("X", "a\nB: c"),
            lambda: header.add("X", "a\rb"),
            lambda: header.add("X", "a\0b"),
            lambda: header.add("X", 1),  # type: ignore[arg-type]
            lambda: header.add("X", "a\nB: c", raw=True),
            lambda: header.add("X", "a\r\n b", raw=True),
            lambda: header.add("X", b"a", raw=True),  # type: ignore[arg-type]
            lambda: header.add("X", "\ud800", raw=True),
            lambda: header.add("X", "\ud800"),
            lambda: header.add("X Y", "a"),
            lambda: header.add("X:", "a"),
            lambda: header.add("", "a"),
            lambda: header.add("Ü", "a"),
            lambda: header.insert(-1, "X", "a"),
            lambda: header.insert("1", "X", "a"),  # type: ignore[arg-type]
            lambda: header.replace("Subject", "x", 2),
            lambda: header.replace("Subject", "x", 0),
            lambda: header.__setitem__("Subject", "a\nb"),
            lambda: setattr(field, "raw", "a\nb"),
            lambda: setattr(field, "value", "a\nb"),
        ):
            error = self.assertRaises(ValueNotSendable, attempt)
            self.assertIn("header", str(error))
        self.assertEqual(listed(header), [("Subject", "hi")])


class HeadersTests(SynchronousTestCase):
    """
    The list of fields.
    """

    def setUp(self) -> None:
        self.header = headers(("A", "1"), ("B", "2"), ("a", "3"))

    def test_fields_are_found_by_name_in_any_case_all_in_order(self) -> None:
        """
        Fields are found by name in any case, all in order.
        """
        self.assertEqual(self.header.get_all("A"), ["1", "3"])
        self.assertEqual(len(self.header), 3)
        self.assertTrue("b" in self.header and "C" not in self.header and 1 not in self.header)
        self.assertEqual(repr(self.header.fields("B")), "[<HeaderField B: '2'>]")

    def test_what_is_set_by_name_is_one_field_of_that_name(self) -> None:
        """
        What is set by name is the one field of that name, spelled as it was.
        """
        self.header["a"] = "new"
        self.header["C"] = "c"
        self.assertEqual(listed(self.header), [("A", "new"), ("B", "2"), ("C", "c")])

    def test_field_set_to_value_that_it_has_stays_encoded_as_it_is(self) -> None:
        """
        A field set to the value that it has stays encoded as it is.
        """
        header = headers(("Subject", "=?UTF-8?B?w7w=?="))
        header["Subject"] = "ü"
        self.assertEqual(listed(header), [("Subject", "=?UTF-8?B?w7w=?=")])
        header["Subject"] = header["Subject"] + "!"
        self.assertEqual(header["subject"], "ü!")

    def test_all_of_name_are_deleted_of_which_there_may_be_none(self) -> None:
        """
        All of a name are deleted, of which there may be none, or one by itself.
        """
        del self.header["A"]
        del self.header["None"]
        self.assertEqual(listed(self.header), [("B", "2")])
        field = self.header.fields("B")[0]
        field.remove()
        field.remove()
        self.assertEqual(len(self.header), 0)

    def test_fields_are_put_in_where_they_are_wanted(self) -> None:
        """
        Fields are put in where they are wanted; one of several gets another value by its number.
        """
        self.header.insert(0, "Top", "t")
        self.header.insert(2, "Middle", "m")
        self.header.insert(99, "End", "e")
        self.header.add("Raw", "a\n\tb", raw=True)
        self.header.replace("a", "last", 2)
        self.assertEqual(
            listed(self.header),
            [("Top", "t"), ("A", "1"), ("Middle", "m"), ("B", "2"), ("a", "last"), ("End", "e")]
            + [("Raw", "a\n\tb")],
        )

    def test_raw_value_can_be_set_to_any_bytes(self) -> None:
        """
        The raw value can be set to any bytes.
        """
        for _ in range(2):
            self.header.fields("B")[0].raw = "[x] caf\udce9"
        self.assertEqual(listed(self.header)[1], ("B", "[x] caf\udce9"))


class BodyTests(SynchronousTestCase):
    """
    The body, read like a file.
    """

    def test_beyond_its_size_in_memory_body_is_in_file(self) -> None:
        """
        Beyond its size in memory a body is in a file, of which two readers read on their own.
        """
        body = Body(10)
        self.addCleanup(body.close)
        for _ in range(100):
            body.write(b"0123456789\r\n")
        self.assertTrue(body._file._rolled)  # type: ignore[union-attr]
        one, two = body.open(), body.open()
        self.assertTrue(one.readable() and one.seekable())
        self.assertEqual(one.read(3), b"012")
        self.assertEqual(len(list(two)), 100)
        self.assertEqual(one.read(3), b"345")
        body.write(b"more")
        self.assertEqual(one.seek(-4, io.SEEK_END), 1200)
        self.assertEqual(one.read(), b"more")
        one.seek(2)
        one.seek(2, io.SEEK_CUR)
        self.assertEqual((one.tell(), one.read(2)), (4, b"45"))
        self.assertRaises(ValueError, one.seek, -1)
        raw: Any = one
        self.assertRaises(ValueError, raw.raw.seek, -1)

    def test_large_body_is_read_in_pieces(self) -> None:
        """
        A large body is read in pieces, and parsed only when that is asked for.
        """
        msg = message([], b"x" * 300_000)
        with msg.open() as reader:
            self.assertEqual(
                sum(len(piece) for piece in iter(lambda: reader.read(5000), b"")), 300_000
            )

    def test_body_that_is_not_there_is_missed_by_name_one_that_was_set_is_there(self) -> None:
        """
        A body that is not there is missed by name; one that was set is there.
        """
        msg = message([], whole=False)
        for attempt in (lambda: msg.body, lambda: msg.size, msg.open, msg.email):
            self.assertIn("wants_body", str(self.assertRaises(WrongStage, attempt)))
        msg.body = b"new\n"
        self.assertEqual(msg.body, b"new\r\n")

    def test_headers_not_there(self) -> None:
        """
        A header that is not there yet is missed by name.
        """
        received = Received(["<>"], 64)
        msg = Message(
            received,
            Client(lambda *reply: None, "c", None),
            Macros({}.get),
            allow,
            allow,  # type: ignore[arg-type]
        )
        self.addCleanup(received.forget)
        self.assertIn("hook headers", str(self.assertRaises(WrongStage, lambda: msg.headers)))
        self.assertEqual(msg.edits("postfix"), [])

    def test_sender_set_to_what_it_is_is_left_alone(self) -> None:
        """
        The sender set to what it is is left alone.
        """
        msg = message([])
        msg.sender = "<a@example.com>"
        self.assertEqual(msg.edits("postfix"), [])

    def test_what_is_no_body_message_address_or_reason_is_refused(self) -> None:
        """
        What is no body, no message, no address and no reason is refused.
        """
        msg = message([("A", "1")], b"x\r\n")
        for attempt in (
            lambda: setattr(msg, "body", "text"),
            lambda: msg.replace(b"text"),  # type: ignore[arg-type]
            lambda: msg.set_sender("a\n@example.com"),
            lambda: msg.set_sender("a@example.com> <b"),
            lambda: msg.set_sender(None),  # type: ignore[arg-type]
            lambda: msg.set_sender("a@example.com", "SIZE=1\r\n"),
            lambda: msg.recipients.add(""),
            lambda: msg.recipients.add("a\0"),
            lambda: msg.recipients.add("\ud800"),
            lambda: msg.recipients.add("a@example.com", "X\0"),
            lambda: msg.recipients.remove("a@example.com"),
            lambda: msg.quarantine(""),
            lambda: msg.quarantine("a\nb"),
            lambda: msg.quarantine(None),  # type: ignore[arg-type]
        ):
            self.assertRaises(ValueNotSendable, attempt)
        self.assertEqual(msg.edits("postfix"), [])


class EmailTests(SynchronousTestCase):
    """
    The message as an object of the email package.
    """

    @STEADY
    @given(FIELDS, BODIES)
    def test_any_message_parsed_and_put_back_is_same_message(
        self, fields: Fields, body: bytes
    ) -> None:
        """
        Any message parsed and put back is the same message: there is nothing to edit.
        """
        msg = message(fields, body)
        mail = msg.email()
        self.assertEqual(len(mail.keys()), len(fields))
        msg.replace(mail)
        self.assertEqual(listed(msg.headers), fields)
        self.assertEqual(msg.body, body)
        self.assertEqual(msg.edits("postfix"), [])

    def test_cr_inside_field_which_parser_would_take_for_its_end(self) -> None:
        """
        A CR inside a field, which the parser would take for its end, is kept by a field left alone.
        """
        msg = message([("A", "1\r2"), ("B", "3"), ("Subject", "hi")], b"x\r\n")
        mail = msg.email()
        self.assertEqual(mail.keys(), ["A", "B", "Subject"])
        del mail["B"]
        msg.replace(mail)
        self.assertEqual(listed(msg.headers), [("A", "1\r2"), ("Subject", "hi")])
        self.assertEqual(len(msg.edits("postfix")), 1)

    def test_part_of_multipart_is_edited_and_only_body_is_sent(self) -> None:
        """
        A part of a multipart is edited, and only the body is sent.
        """
        body = (
            b"--b\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nletter \xc3\xa9\r\n"
            b"--b\r\nContent-Type: text/html\r\n\r\n<p>letter</p>\r\n--b--\r\n"
        )
        msg = message(
            [
                ("Subject", "=?UTF-8?B?w7w=?="),
                ("MIME-Version", "1.0"),
                ("Content-Type", "multipart/alternative;\n\tboundary=b"),
            ],
            body,
        )
        mail = msg.email()
        part: Any = mail.get_body(("plain",))
        part.set_content("banner\n" + part.get_content())
        msg.replace(mail)
        self.assertEqual(len(msg.edits("sendmail")), 1)
        msg.replace(msg.email())
        again = msg.email()
        self.assertEqual(again["Subject"], "ü")
        read: Any = again.get_body(("plain",))
        self.assertEqual(read.get_content(), "banner\nletter é\n")
        self.assertIn(b"<p>letter</p>", msg.body)

    def test_quite_another_message_takes_its_place(self) -> None:
        """
        Quite another message takes its place.
        """
        msg = message([("Subject", "hi"), ("X", "1")], b"x\r\n")
        other = EmailMessage()
        other["Subject"] = "ü"
        other.set_content("text é\n")
        msg.replace(other)
        self.assertEqual(msg.headers["Subject"], "ü")
        self.assertNotIn("X", msg.headers)
        again: Any = msg.email()
        self.assertEqual(again.get_content(), "text é\n")

    def test_message_that_email_package_cannot_write_is_refused(self) -> None:
        """
        A message that the email package cannot write is refused, and nothing has changed.
        """
        msg = message([("A", "1")])
        other = EmailMessage()
        other["Subject"] = "x"
        other.set_payload("\ud800")
        error = self.assertRaises(ValueNotSendable, msg.replace, other)
        self.assertIn("cannot write", str(error))
        self.assertEqual(msg.edits("postfix"), [])
