"""
What holds for each message, whatever is in it: a corpus of odd mail, and mail made at random.
"""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from examples.disclaimer import DisclaimerFactory
from examples.message_milter import ExternalTagger
from tests.client.test_both_ends import Pair
from tests.corpus import messages, random_message
from tests.helpers import STEADY
from tests.message.test_content import message as make_message
from yatxmilter import Milter, MilterFactory
from yatxmilter._mail.rfc5322 import Mail, split_mail, wire_body
from yatxmilter._wire.payloads import from_text, to_text
from yatxmilter.client import apply_edits
from yatxmilter.message import Message, MessageMilter
from yatxmilter.testing import InMemoryMTA, MilterTestMixin, Sent

SEEDS = st.integers(0, 1 << 30)
FLAVOURS = st.sampled_from(["postfix", "sendmail"])
#: What an author may do to a header: a kind of edit, and a number that says to which field.
STEPS = st.lists(st.tuples(st.sampled_from("stdaivr"), st.integers(0, 30)), max_size=8)
NAMES = ("Subject", "X-A", "X-New", "Received", "From", "Date", "List-Id", "To")


def edit(msg: Message, kind: str, number: int) -> None:
    """
    Edit a header in some way.
    """
    headers = msg.headers
    fields = list(headers)
    name = NAMES[number % len(NAMES)]
    field = fields[number % len(fields)] if fields else None
    if kind == "s" and name not in ("Date", "From", "To", "Received"):
        headers[name] = f"set {number} é"
    elif kind == "t":
        headers["Subject"] = f"[list] {headers.get('Subject', '')}"
    elif kind == "d":
        del headers[name]
    elif kind == "a":
        headers.add("X-A", f"added\n\t{number}", raw=True)
    elif kind == "i":
        headers.insert(number % (len(fields) + 1), "X-New", str(number))
    elif kind == "v" and field is not None:
        field.value = f"x {field.value}"
    elif kind == "r" and field is not None:
        field.remove()


class LawTests(MilterTestMixin, SynchronousTestCase):
    """
    Milters and any message.
    """

    def play(self, hook: Any, message: bytes, flavour: str = "postfix", **options: Any) -> Sent:
        """
        Send a message to a milter that does this with it.
        """

        class Author(MessageMilter):
            message = hook

        mta = InMemoryMTA(Author, flavour=flavour, **options)
        sent = mta.send(message)
        mta.finish()
        return sent

    def test_each_value_of_any_message_is_read_and_each_part(self) -> None:
        """
        Each value of any message is read, and each part.
        """

        def read(self: Any, msg: Message) -> None:
            for field in msg.headers:
                str(field.value), field.value.defects
            for part in msg.walk():
                str((part.filename, part.text, part.content_type))

        for message in messages():
            self.assertTrue(self.play(read, message).accepted, message)

    @STEADY
    @given(SEEDS, st.sampled_from(["[list] ", "ő ", "x"]))
    def test_text_in_front_of_any_field_can_be_set_is_one_field(
        self, seed: int, prefix: str
    ) -> None:
        """
        A text in front of any field can be set, is one field, and is shown so (law 2).
        """
        expected: list[tuple[str, str]] = []
        got: list[tuple[str, str]] = []

        def tag(self: Any, msg: Message) -> None:
            for field in msg.headers:
                text = prefix + field.value
                field.value = text
                expected.append((field.name, text))

        def look(self: Any, msg: Message) -> None:
            got.extend((field.name, str(field.value)) for field in msg.headers)

        sent = self.play(tag, random_message(seed))
        self.play(look, sent.delivered.data)
        self.assertEqual(len(got), len(expected))
        bare = str.maketrans("", "", ' "\t\\')
        for (name, text), (other, value) in zip(expected, got, strict=True):
            self.assertEqual((name, text.translate(bare)), (other, value.translate(bare)))

    def test_replaced_without_a_change(self) -> None:
        """
        ``replace(email())`` sends nothing (law 5).
        """

        def nothing(self: Any, msg: Message) -> None:
            msg.replace(msg.email())

        for message in messages():
            sent = self.play(nothing, message)
            self.assertEqual(sent.edits, (), message)

    @STEADY
    @given(SEEDS, FLAVOURS)
    def test_replaced_with_a_field(self, seed: int, flavour: str) -> None:
        """
        With one field set, that is the one edit (law 5).
        """

        def one(self: Any, msg: Message) -> None:
            mail = msg.email()
            mail["X-One"] = "é"
            msg.replace(mail)

        sent = self.play(one, random_message(seed), flavour)
        self.assertEqual(
            [(edit.name, edit.value) for edit in sent.edits], [("X-One", " =?utf-8?q?=C3=A9?=")]
        )  # type: ignore[union-attr]

    @STEADY
    @given(SEEDS)
    def test_replaced_with_a_part(self, seed: int) -> None:
        """
        With one part changed, all others are as they were, to the octet, with what stands between.
        """
        body = random_message(seed).partition(b"\r\n\r\n")[2]
        whole = b"top\r\n--z\r\nX: 1\r\n\r\nold\r\n--z\r\nX:2\r\n\r\n" + body + b"\r\n--z-- \r\nend"

        def change(self: Any, msg: Message) -> None:
            mail = msg.email()
            mail.get_payload()[0].set_payload("new\n")
            msg.replace(mail)

        head = b"From: a@example.org\r\nContent-Type: multipart/mixed; boundary=z\r\n\r\n"
        sent = self.play(change, head + whole)
        self.assertEqual(sent.delivered.body, wire_body(whole).replace(b"old", b"new\r\n", 1))
        self.assertEqual(len(sent.edits), 1)

    @STEADY
    @given(SEEDS, STEPS, FLAVOURS)
    def test_delivered_as_seen(self, seed: int, steps: list[tuple[str, int]], flavour: str) -> None:
        """
        What the MTA delivers is the message that the author sees, to the octet (law 7, by the
        models of both MTAs).
        """
        seen: list[bytes] = []

        def edits(self: Any, msg: Message) -> None:
            for kind, number in steps:
                edit(msg, kind, number)
            seen.append(msg.header_bytes())

        sent = self.play(edits, random_message(seed), flavour)
        header, _, _ = b"\r\n".join((b"", sent.delivered.data)).partition(b"\r\n\r\n")
        self.assertEqual((header + b"\r\n")[2:], seen[0])

    @STEADY
    @given(SEEDS, STEPS, FLAVOURS)
    def test_delivered_without_blanks(
        self, seed: int, steps: list[tuple[str, int]], flavour: str
    ) -> None:
        """
        So it is where the MTA does not tell the white space behind the colon, but for that.
        """
        mail = split_mail(random_message(seed))
        fields = [(to_text(field.name), to_text(field.bare_value())) for field in mail.fields]
        msg = make_message([(name, raw.replace("\r", "")) for name, raw in fields])
        for kind, number in steps:
            edit(msg, kind, number)
        edits = msg.edits(flavour)
        got = apply_edits(Mail(mail.fields, True, b"", b"\r\n").join(), edits, flavour=flavour)
        values = [(field.name, field.bare_value()) for field in split_mail(got).fields]
        wanted = [(from_text(f.name), from_text(f.raw)) for f in msg.headers]
        for (name, value), (other, raw) in zip(values, wanted, strict=True):
            self.assertEqual((name, value.replace(b"\r", b"")), (other, raw))

    def test_examples_that_rewrite_mail_take_all_of_it(self) -> None:
        """
        The examples that rewrite mail take all of it: none is put off.
        """
        for factory in (DisclaimerFactory("Für alle."), MilterFactory(ExternalTagger)):
            mta = self.milter_mta(factory, macros={})
            for message in (*messages(), *map(random_message, range(150))):
                inside = isinstance(factory, DisclaimerFactory)
                macros = {"{auth_authen}": "user"} if inside else {}
                with mta.session(macros=macros) as session:
                    self.assertTrue(mta.send(message, session=session).accepted, message)


class NeighbourTests(MilterTestMixin, SynchronousTestCase):
    """
    A milter in messages beside one in callbacks.
    """

    def test_one_that_did_not_ask_for_blanks(self) -> None:
        """
        A milter that did not ask for the white space behind the colon is not shown it, and what it
        sets gets its blank all the same.
        """
        seen: list[str] = []

        class Plain(Milter):
            def xxfi_header(self, headerf: str, headerv: str) -> None:
                seen.append(headerv)

            def xxfi_eom(self) -> None:
                self.smfi_addheader("X-Plain", "1")

        class Looks(MessageMilter):
            def message(self, msg: Message) -> None:
                msg.headers.add("X-Octets", repr(msg.header_bytes()))

        for merge in ("first", "strictest", "chain"):
            mta = self.milter_mta([Looks, Plain], merge=merge)
            sent = mta.send(b"A:1\r\nB:  2\r\n\r\ntext\r\n")
            octets = repr(b"A:1\r\nB:  2\r\n")
            self.assertIn(f"\r\nX-Octets: {octets}\r\nX-Plain: 1\r\n".encode(), sent.delivered.data)
        self.assertEqual(seen, ["1", " 2"] * 2 + ["1", " 2", octets])

    def test_in_shadow_nothing_is_asked_of_mta_for_its_sake(self) -> None:
        """
        In shadow nothing is asked of the MTA for its sake: the milter sees what the others see.
        """
        seen: list[bytes] = []

        class Looks(MessageMilter):
            def message(self, msg: Message) -> None:
                seen.append(msg.header_bytes())

        class Fellow(MessageMilter):
            def message(self, msg: Message) -> None:
                pass

        for fellows, header in (((), b"A: 1\r\nB:  2\r\n"), ((Fellow,), b"A:1\r\nB:  2\r\n")):
            pair = Pair(MilterFactory(Looks, shadow=True), *fellows)
            pair.client.negotiate()
            pair.client.connect("client.example", None)
            pair.client.helo("client.example")
            pair.client.send_message(b"A:1\nB:  2\n\ntext\n", "<a@b.test>", ["<c@d.test>"])
            pair.flush()
            pair.clock.pump([0, 0, 0])
            self.assertEqual(seen.pop(), header)
