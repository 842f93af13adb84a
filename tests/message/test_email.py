"""
The message as an object of the email package: bounded, for any octets, and put back as it was.
"""

from __future__ import annotations

import copy
import encodings
from collections.abc import Callable
from email import message_from_bytes, policy
from email.generator import BytesGenerator, Generator
from email.header import Header
from email.message import EmailMessage
from email.message import Message as OldMessage
from functools import partial
from io import BytesIO, StringIO
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.corpus import messages, random_message
from tests.growth import assert_linear
from tests.helpers import STEADY
from tests.mail.test_mime import BODIES
from yatxmilter._mail.rfc5322 import split_mail
from yatxmilter._wire.payloads import to_text
from yatxmilter.errors import LimitExceeded, ValueNotSendable
from yatxmilter.message import Message
from yatxmilter.message._email import ParsedMessage, build_email, write_email

from .test_content import message


def parsed(octets: bytes) -> Any:
    """
    Make the object of a message.
    """
    mail = split_mail(octets)
    return build_email(mail.body, [(to_text(f.name), to_text(f.value)) for f in mail.fields])


def ask(mail: Any) -> None:
    """
    Call the methods that read.
    """
    for part in mail.walk():
        part.get_content_type(), part.get_content_charset(), part.get_filename()
        part.get_boundary(), part.get_content_disposition(), part.get_params(), part.keys()
        part.values(), part.get_payload(decode=True), part.is_attachment()
        list(part.iter_attachments()), part.get_body(("plain", "html", "related"))
    mail.as_bytes(), mail.as_string()


class ObjectTests(SynchronousTestCase):
    """
    What is made.
    """

    def test_there_is_object_for_each_message_of_corpus(self) -> None:
        """
        There is an object for each message of the corpus, and none of its methods fails.
        """
        for octets in (*messages(), *map(random_message, range(200))):
            mail = parsed(octets)
            ask(mail)
            ask(copy.deepcopy(mail))

    @STEADY
    @given(st.binary(max_size=200))
    def test_any_octets_too_as_header_and_as_body(self, octets: bytes) -> None:
        """
        Any octets, too, as the header and as the body.
        """
        ask(parsed(octets))
        ask(parsed(b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n" + octets))

    def test_as_the_standard_library(self) -> None:
        """
        For a message in order it is what the standard library makes.
        """
        source = (
            b"Subject: =?utf-8?q?caf=C3=A9?=\r\nTo: A <a@b.test>\r\nMIME-Version: 1.0\r\n"
            b"Content-Type: multipart/mixed; boundary=b\r\n\r\npre\r\n--b\r\n"
            b"Content-Type: text/plain; charset=utf-8\r\n\r\ntext \xc3\xa9\r\n--b\r\n"
            b'Content-Type: application/pdf; name="a b"\r\nContent-Disposition: attachment;\r\n'
            b" filename*=utf-8''%C3%A9.pdf\r\nContent-Transfer-Encoding: base64\r\n\r\nQQ==\r\n"
            b"--b\r\nContent-Type: message/rfc822\r\n\r\nSubject: in\r\n\r\ninner\r\n"
            b"--b--\r\npost\r\n"
        )
        mine = parsed(source)
        theirs: Any = message_from_bytes(source, policy=policy.default)
        self.assertIsInstance(mine, EmailMessage)
        for one, other in zip(mine.walk(), theirs.walk(), strict=True):
            self.assertEqual(one.get_content_type(), other.get_content_type())
            self.assertEqual(one.get_filename(), other.get_filename())
            self.assertEqual(one.get_payload(decode=True), other.get_payload(decode=True))
            self.assertEqual(str(one["Subject"]), str(other["Subject"]))
            self.assertEqual(one.keys(), other.keys())
        self.assertEqual(mine.preamble.strip(), theirs.preamble.strip())
        self.assertEqual(mine.epilogue.strip(), theirs.epilogue.strip())
        self.assertEqual(mine.get_body().get_content(), "text é")
        self.assertEqual(mine["to"].addresses[0].domain, "b.test")
        self.assertEqual(mine.as_bytes(), source)
        self.assertIn(b"text", mine.as_bytes(policy=policy.SMTP))
        self.assertIn("text", mine.as_string(policy=policy.SMTP))

    def test_parameters_can_be_set_and_deleted_and_boundary_changed(self) -> None:
        """
        Parameters can be set and deleted, and a boundary changed, whatever else stands there.
        """
        kind = b'Content-Type: multipart/mixed; name="a \\" b"; boundary=b\r\n\r\n'
        mail = parsed(kind + b"--b\r\n\r\nx\r\n--b--\r\n")
        mail.set_boundary("new")
        mail.set_param("x", "é")
        self.assertEqual(mail.get_param("name"), 'a " b')
        self.assertEqual(mail.get_param("x"), "é")
        mail.del_param("name")
        self.assertEqual(mail["Content-Type"].params, {"boundary": "new", "x": "é"})
        self.assertEqual(write_email(mail)[1], b"--new\r\n\r\nx\r\n--new--\r\n")
        self.assertIsNone(mail.get_param("y", header="X-None"))
        mail["X-Other"] = "a; y=1"
        self.assertEqual(mail.get_param("y", header="X-Other"), "1")

    def test_depth_and_number_of_parts_are_bounded_and_time_is_linear_in_length(self) -> None:
        """
        Depth and number of parts are bounded, and time is linear in the length.
        """
        nested = b"".join(
            b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n)
            for n in range(1000)
        )
        mail = parsed(nested)
        self.assertEqual(len(list(mail.walk())), 101)
        ask(mail)
        parts = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"
        assert_linear(
            lambda size: lambda: write_email(parsed(parts + b"--b\r\n\r\nx\r\n" * size)), 100
        )


#: What strangers write where a charset belongs; there are codecs for some that are none.
NO_CHARSETS = (
    *(b"x-unknown", b"zlib", b"idna", b"undefined", b"punycode", b"unicode_escape", b"rot13"),
    *("é".encode(), b"\xff", b'"a\\\x01b"', b'""', b"\0", b"x" * 5000),
)


def text_part(charset: bytes, content: bytes) -> Any:
    """
    Make the object of a text in a charset.
    """
    return parsed(b"Content-Type: text/plain; charset=" + charset + b"\r\n\r\n" + content)


class ContentTests(SynchronousTestCase):
    """
    What is read of a part, whatever its header says.
    """

    def test_charset_that_is_not_known_counts_as_utf_8(self) -> None:
        """
        A charset that is not known, or is none, counts as UTF-8; where an author asks for strict
        reading it is an error.
        """
        for charset in NO_CHARSETS:
            mail = text_part(charset, b"a-\xc3\xa9\xff")
            self.assertEqual(mail.get_content(), "a-é\ufffd", charset)
            self.assertEqual(mail.get_content("ignore"), "a-é")
            self.assertEqual(mail.get_payload(), "a-é\ufffd")
            self.assertRaises(LookupError, mail.get_content, errors="strict")

    def test_charset_that_is_known_is_read_as_ever(self) -> None:
        """
        A charset that is known is read as ever, and so is a text without one.
        """
        self.assertEqual(text_part(b"ISO-8859-1", b"\xe9").get_content(), "é")
        self.assertEqual(text_part(b"iso-8859-1", b"\xe9").get_payload(), "é")
        self.assertEqual(text_part(b"utf-8", b"\xe9").get_content(), "\ufffd")
        strict = text_part(b"utf-8", b"\xe9").get_content
        self.assertRaises(UnicodeDecodeError, strict, errors="strict")
        self.assertEqual(parsed(b"A: b\r\n\r\n\xe9").get_content(), "\ufffd")
        self.assertEqual(parsed(b"A: b\r\n\r\nx").get_payload(), "x")

    def test_what_is_no_text_and_not_known_is_octets(self) -> None:
        """
        What is no text is octets: types that nobody knows too, and messages that are not looked
        into. A multipart has parts.
        """
        for kind in (b"font/x", b"image/x", b"message/partial", b"message/delivery-status"):
            mail = parsed(b"Content-Type: " + kind + b"\r\n\r\n\xff")
            self.assertEqual(mail.get_content(), b"\xff", kind)
        head = b"Content-Type: message/rfc822\r\n"
        coded = parsed(head + b"Content-Transfer-Encoding: base64\r\n\r\nQQ==")
        self.assertEqual(coded.get_content(), b"A")
        self.assertEqual(parsed(head + b"\r\nA: b\r\n\r\n").get_content()["A"], "b")
        mixed = parsed(b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nx")
        self.assertRaises(KeyError, mixed.get_content)
        self.assertRaises(KeyError, parsed(b"Content-Type: multipart/mixed x\r\n\r\n").get_content)
        self.assertEqual(mixed.get_payload(0).get_content(), "x")

    def test_what_cannot_be_decoded_is_given_as_it_stands(self) -> None:
        """
        What cannot be decoded is given as it stands, also where Python would raise for it.
        """
        mail = parsed(b"Content-Transfer-Encoding: x-uuencode\r\n\r\nbegin 644 \xff\r\n~\xff")
        self.assertEqual(mail.get_payload(decode=True), b"begin 644 \xff\n~\xff")

        def fails(*_: object, **__: object) -> None:
            raise ValueError

        self.patch(OldMessage, "get_payload", fails)
        self.assertEqual(mail.get_payload(decode=True), b"begin 644 \xff\n~\xff")

    def test_message_is_written_with_any_charset_and_any_header(self) -> None:
        """
        A message is written, in all of the ways there are, whatever its header says.
        """
        for charset in NO_CHARSETS:
            source = b"Subject: \xff\r\nContent-Type: text/plain; charset=" + charset
            source += b"\r\n\r\n\xc3\xa9\r\n"
            mail = parsed(source)
            text = source.decode("utf-8", "replace")
            self.assertEqual(mail.as_bytes(policy=policy.SMTP), source)
            self.assertEqual(mail.as_bytes(policy=policy.default), source.replace(b"\r\n", b"\n"))
            self.assertEqual(mail.as_string(policy=policy.default), text.replace("\r\n", "\n"))
            self.assertEqual(mail.as_string(maxheaderlen=20), text)
            self.assertEqual(str(mail), text)
            self.assertEqual(bytes(mail), source)
        for writes, file in ((BytesGenerator, BytesIO()), (Generator, StringIO())):
            # Which ask the message's policy.
            writes(file).flatten(parsed(b"Subject: x\r\n\ty\r\n\r\nz\r\n"))
            self.assertIn(
                file.getvalue(),
                (b"Subject: x\r\n\ty\r\n\r\nz\r\n", "Subject: x\r\n\ty\r\n\r\nz\r\n"),
            )
        self.assertRegex(mail.as_string(unixfrom=True), r"^From nobody .*\r\nSubject: ")
        mail.set_unixfrom("From a@b.test x")
        self.assertTrue(mail.as_bytes(unixfrom=True).startswith(b"From a@b.test x\r\nSubject: "))

    def test_parameters_that_are_octets_are_kept_and_copied(self) -> None:
        """
        Parameters with octets that are no UTF-8 in them stay as they are where others are edited,
        and can be set.
        """
        mail = parsed(b'Content-Type: text/plain; name="\xff\\"\xe9"; x=1\r\n\r\n')
        mail.set_param("x", "2")
        mail.set_type("text/html")
        mail.set_param("y", mail.get_param("name"), replace=True)
        mail.del_param("x", "Content-Type")
        name = b'"\xff\\"\xe9"'
        self.assertEqual(
            mail.as_bytes(),
            b"MIME-Version: 1.0\r\nContent-Type: text/html; name=%b; y=%b\r\n\r\n" % (name, name),
        )

    def test_parameters_are_edited_as_by_the_standard_library(self) -> None:
        """
        Parameters are edited as by the standard library.
        """
        edits: Any = (
            ("set_param", ("a", "1"), {}),
            ("set_param", ("a", "x y"), {"header": "X-Other", "charset": "utf-8"}),
            ("set_param", ("A", "é"), {"charset": "utf-8"}),
            ("set_param", ("b", "1"), {"replace": True}),
            ("set_param", ("b", "1"), {}),
            ("del_param", ("none",), {"header": "X-None"}),
            ("set_type", ("text/html",), {}),
            ("set_type", ("image/png",), {"header": "X-Third"}),
            ("del_param", ("A",), {}),
            ("set_param", ("y", "1"), {"header": "X-Other"}),
            ("del_param", ("none",), {}),
        )
        mine: Any = ParsedMessage()
        theirs: Any = ParsedMessage()
        for name, args, options in edits:
            getattr(mine, name)(*args, **options)
            getattr(EmailMessage, name)(theirs, *args, **options)
            self.assertEqual(list(mine.raw_items()), list(theirs.raw_items()), (name, args))
        self.assertRaises(ValueError, mine.set_type, "html")
        self.assertEqual(list(mine.raw_items()), list(theirs.raw_items()))

    def test_charsets_of_strangers_are_not_remembered(self) -> None:
        """
        Python, which remembers each codec that it was asked for, is not asked for a stranger's.
        """
        for number in range(50):
            mail = text_part(b"stranger%d" % number, b"\xff")
            ask(mail)
            mail.get_content(), mail.get_payload(), str(mail), mail.as_string(maxheaderlen=20)
            self.assertRaises(LookupError, mail.get_content, errors="strict")
        known: Any = encodings._cache  # type: ignore[attr-defined]
        self.assertEqual([name for name in known if "stranger" in name], [])

    def test_time_is_linear(self) -> None:
        """
        Time is linear in the length of the content, and of the header.
        """
        assert_linear(
            lambda size: text_part(b"punycode", b"a" * size + b"-" + b"b" * size).get_content
        )
        assert_linear(lambda size: text_part(b"punycode", b"\xff" * size).__str__)
        assert_linear(
            lambda size: partial(parsed(b"To: " + b"(=?" * size).as_bytes, False, policy.SMTP)
        )
        edits: tuple[Callable[[Any], object], ...] = (
            lambda mail: mail.set_param("a1", "y"),
            lambda mail: mail.set_param("z", "y"),
            lambda mail: mail.del_param("a1"),
            lambda mail: mail.set_type("text/html"),
        )
        for edit in edits:

            def prepare(size: int, edit: Callable[[Any], object] = edit) -> Callable[[], object]:
                mail = text_part(b"a" + b"".join(b"; a%d=b" % n for n in range(size)), b"")
                return lambda: edit(copy.copy(mail))

            assert_linear(prepare, 300)


class WritingTests(SynchronousTestCase):
    """
    What is written of it.
    """

    def test_parts_are_added_taken_away_and_rewritten(self) -> None:
        """
        Parts are added, taken away and rewritten; those left alone are as they were.
        """
        odd = b"--b \r\nX:1\r\n\r\nodd \xe9\r\n"
        head = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"
        mail = parsed(head + odd + b"--b\r\n\r\nsecond\r\n--b--\r\n")
        del mail.get_payload()[1]
        self.assertEqual(write_email(mail)[1], b"--b\r\nX:1\r\n\r\nodd \xe9\r\n--b--\r\n")
        mail = parsed(head + odd + b"--b\r\nA: b\r\n--b--\r\nend")
        mail.get_payload()[1].set_payload("text")
        self.assertEqual(write_email(mail)[1], odd + b"--b\r\nA: b\r\n\r\ntext\r\n--b--\r\nend")
        mail = parsed(head + odd + b"--b\r\nA: b\r\n\r\n\r\n--b--\r\nend")
        mail.get_payload()[1]["X"] = "é"
        mail.epilogue = "other"
        mail.preamble = "top"
        self.assertEqual(
            write_email(mail)[1],
            b"top\r\n--b\r\nX:1\r\n\r\nodd \xe9\r\n--b\r\nA: b\r\nX: =?utf-8?q?=C3=A9?=\r\n\r\n\r\n"
            b"--b--\r\nother",
        )

    @STEADY
    @given(BODIES, st.sampled_from(["multipart/mixed; boundary=b", "message/rfc822", "text/plain"]))
    @example(
        b"--b\r\nContent-Type: multipart/y; boundary=c\r\n--c\r\nX: y\r\n--b\r\n",
        "multipart/mixed; boundary=b",
    )
    def test_any_body_with_its_parts_in_whatever_disorder(self, body: bytes, kind: str) -> None:
        """
        Any body, with its parts in whatever disorder, is written as it was, to the octet.
        """
        fields = [("Content-Type", f" {kind}")]
        mail = build_email(body, fields)
        self.assertEqual(write_email(mail), (fields, body))
        self.assertEqual(write_email(copy.deepcopy(mail)), (fields, body))

    def test_messages_of_authors_own_of_any_policy_are_written(self) -> None:
        """
        Messages of the author's own, of any policy, are written: what they show is set.
        """
        mail = EmailMessage()
        mail["Subject"] = "é, " * 30
        mail["To"] = "Jörg <a@b.test>"
        mail.set_content("text é\n")
        mail.add_attachment(b"\0\1", maintype="application", subtype="x", filename="é.bin")
        mail.add_attachment(EmailMessage())
        fields, body = write_email(mail)
        again: Any = build_email(body, fields)
        self.assertEqual(again["Subject"], "é, " * 30)
        self.assertEqual(again["To"].addresses[0].display_name, "Jörg")
        self.assertEqual(
            [part.get_filename() for part in again.iter_attachments()], ["é.bin", None]
        )
        self.assertEqual(again.get_body().get_content(), "text é\n")
        old = OldMessage()
        old["Subject"] = "old"
        old.set_payload("text")
        self.assertEqual(write_email(old), ([("Subject", " old")], b"text"))
        self.assertEqual(write_email(EmailMessage()), ([], b""))
        read = message_from_bytes(b"A:  b\n  c\n\ntext\n", policy=policy.default)
        self.assertEqual(write_email(read), ([("A", " b\n  c")], b"text\r\n"))
        old["X-Raw"] = "caf\udce9"
        old["X-Text"] = "café"
        old["X-Header"] = Header("café", "utf-8")
        self.assertEqual(
            write_email(old)[0][1:],
            [
                ("X-Raw", " caf\udce9"),
                ("X-Text", " =?utf-8?q?caf=C3=A9?="),
                ("X-Header", " =?utf-8?b?Y2Fmw6k=?="),
            ],
        )

    def test_by_the_email_package(self) -> None:
        """
        Where the email package writes the object itself, its fields are as they were set.
        """
        mail = parsed(b"X-Old:\ta\r\n\tb\r\n\r\nx\r\n")
        mail.set_content("text\n", headers=["X-New: a"])
        mail["Subject"] = "é"
        for text in (mail.as_bytes(unixfrom=True), mail.as_string(unixfrom=True).encode("ascii")):
            self.assertIn(b"\nX-Old:\ta\r\n\tb\r\n", text)
            self.assertIn(b"\nX-New: a\r\n", text)
            self.assertIn(b"\nSubject: =?utf-8?q?=C3=A9?=\r\n", text)

    def test_report_of_delivery_has_its_groups_of_fields_for_parts(self) -> None:
        """
        A report of delivery has its groups of fields for parts.
        """
        report = message_from_bytes(b"Content-Type: message/delivery-status\n\nA: 1\n\nB: 2\n\n")
        self.assertEqual(write_email(report)[1], b"A: 1\r\n\r\nB: 2\r\n\r\n")

    def test_what_is_several_fields_or_no_message_is_refused(self) -> None:
        """
        What is several fields, or no message that can be written, is refused.
        """
        endless = OldMessage()
        endless["Content-Type"] = "multipart/mixed; boundary=b"
        endless.set_payload([endless])
        listed = OldMessage()
        listed.set_payload([OldMessage()])
        odd: Any = OldMessage()
        odd.set_payload(b"x")
        odd._payload = 5
        injected: Any = OldMessage()
        injected._headers = [("A", "b\nX: y")]
        named: Any = OldMessage()
        named._headers = [("A b", "c")]
        for mail, words in (
            (b"x", "not an EmailMessage"),
            (endless, "more than 200 deep"),
            (listed, "list of parts"),
            (odd, "content is int"),
            (injected, "header"),
            (named, "header name"),
        ):
            error = self.assertRaises(ValueNotSendable, write_email, mail)
            self.assertIn(words, str(error))

    def test_encoded_line_end_that_was_kept_in_another_field_makes_no_field(self) -> None:
        """
        An encoded line end that was kept in another field makes no field.
        """
        msg = message([("Subject", "=?utf-8?q?hello=0AX-Spam-Status:_No?=")], b"x\r\n")
        mail: Any = msg.email()
        mail["X-Original-Subject"] = msg.headers.fields("Subject")[0].raw
        mail["X-Shown"] = mail["Subject"]
        msg.replace(mail)
        names = [field.name for field in msg.headers]
        self.assertEqual(names, ["Subject", "X-Original-Subject", "X-Shown"])
        self.assertEqual(msg.headers["X-Original-Subject"], msg.headers.fields("Subject")[0].raw)
        self.assertEqual(msg.headers["X-Shown"], "hello X-Spam-Status: No")

    def test_message_that_author_has_parsed_by_other_means_is_compared_too(self) -> None:
        """
        A message that the author has parsed by other means is compared, too: nothing is sent
        without a change.
        """
        long = "word " * 40 + "\n\tend"
        msg = message([("Subject", long), ("To", "a@b.test,c@d.test"), ("X", "\xe9")], b"text\r\n")
        for parse in (policy.default, policy.compat32):
            msg.replace(message_from_bytes(msg.bytes(), policy=parse))  # type: ignore[arg-type]
            self.assertEqual(msg.edits("postfix"), [])

    def test_body_that_author_has_not_ended_is_ended_one_that_came_so_stays(self) -> None:
        """
        A body that an author has not ended is ended; one that came so stays.
        """
        for body, expected in ((b"x\r\n", b"new\r\n"), (b"x", b"new"), (b"", b"new\r\n")):
            msg = message([], body)
            mail: Any = msg.email()
            mail.set_payload("new")
            msg.replace(mail)
            self.assertEqual(msg.body, expected)


class LargeTests(TestCase):
    """
    Large messages.
    """

    def large(self) -> Message:
        msg = message([("Subject", "hi")], b"0123456789\r\n" * 1000)
        msg._received.max_email = 10_000
        return msg

    def test_above_a_size_the_object_is_not_made_in_between(self) -> None:
        """
        Above a size the object is not made in between: the error says what to do.
        """
        error = self.assertRaises(LimitExceeded, self.large().email)
        self.assertIn("await msg.parsed()", str(error))

    async def test_in_a_thread(self) -> None:
        """
        ``parsed`` makes it in a thread, and a small one at once.
        """
        msg = self.large()
        mail: Any = await msg.parsed()
        self.assertEqual((mail["Subject"], len(mail.get_content())), ("hi", 11_000))
        msg.body = b"small\n"
        made: Deferred[Any] = msg.parsed()
        self.assertTrue(made.called)
        self.assertEqual((await made).get_content(), "small\n")
