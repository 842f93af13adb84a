"""
The octets of a message, as they came: for those that sign, scan and archive.
"""

from __future__ import annotations

import tempfile
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from yatxmilter import constants as c
from yatxmilter.client import apply_edits
from yatxmilter.errors import NotOnce, WrongStage
from yatxmilter.message import Message, MessageMilter
from yatxmilter.testing import InMemoryMTA

from .test_message import MessageTestCase

BLANKS = (
    b"From:a@example.org\r\nSubject:x\r\n",
    b"From: a@example.org\r\nSubject:\tx\r\n",
    b"From: a@example.org\r\nSubject:\r\n x\r\n",
    b"From:  a@example.org\r\nSubject:   x \r\n",
    b"From: a@example.org\r\nSubject:\r\n",
    b"From: a@example.org\r\nSubject: \xe9\r\n\t\xff\r\n",
)


class OctetsTests(SynchronousTestCase):
    """
    ``msg.bytes()`` and what belongs to it.
    """

    def octets(self, hook: Any, message: bytes) -> None:
        """
        Send a message to a milter that does this with it.
        """

        class Author(MessageMilter):
            message = hook
            spool_memory = 100

        mta = InMemoryMTA(Author)
        self.assertTrue(mta.send(message).accepted)
        mta.finish()

    def test_as_it_came(self) -> None:
        """
        Header and message are there to the octet, white space behind the colon included, in memory
        and as a file.
        """
        seen: list[bytes] = []

        def look(self: Any, msg: Message) -> None:
            seen.extend((msg.header_bytes(), msg.bytes()))
            with msg.open_bytes() as file:
                seen.append(file.read())
                file.seek(3)
                seen.append(file.read(4))
            seen.append(b"".join(field.octets for field in msg.headers))

        for header in BLANKS:
            for body in (b"text\r\n", b"text\r\n" * 100):
                seen.clear()
                message = header + b"\r\n" + body
                self.octets(look, message)
                self.assertEqual(seen, [header, message, message, message[3:7], header])

    def test_edits_are_in_the_octets(self) -> None:
        """
        Edits are in it. A field that is set back to what it was has its white space again.
        """
        seen: list[bytes] = []

        def change(self: Any, msg: Message) -> None:
            msg.headers["Subject"] = "y"
            msg.headers.insert(0, "X-Top", "1")
            msg.body = b"new"
            seen.append(msg.bytes())
            with msg.open_bytes() as file:
                seen.append(file.read())
            msg.headers["Subject"] = "x"
            seen.append(msg.header_bytes())

        self.octets(change, BLANKS[0] + b"\r\ntext\r\n")
        new = b"X-Top: 1\r\nFrom:a@example.org\r\nSubject: y\r\n\r\nnew\r\n"
        self.assertEqual(seen, [new, new, b"X-Top: 1\r\n" + BLANKS[0]])

    def test_before_there_is_body(self) -> None:
        """
        Before there is a body, the header is there and the message is not.
        """
        errors: list[Any] = []

        class Early(MessageMilter):
            wants_body = False

            def message(self, msg: Message) -> None:
                errors.append(msg.header_bytes())
                for attempt in (msg.bytes, msg.open_bytes, msg.parsed, lambda: list(msg.walk())):
                    try:
                        attempt()
                    except WrongStage as error:
                        errors.append(str(error))

        InMemoryMTA(Early).send(b"A: b\r\n\r\ntext\r\n")
        self.assertEqual(errors[0], b"A: b\r\n")
        self.assertEqual(len(errors), 5)

    def test_message_that_is_over_does_not_look_like_one_without_the_rest_of_it(self) -> None:
        """
        Who reads when the message is over, as a thread that archives it, is told so: it does not
        seem to be one that ends there. That is so for a body in one chunk, too.
        """
        opened: list[Any] = []

        class Keeper(MessageMilter):
            def message(self, msg: Message) -> None:
                opened.extend((msg.open_bytes(), msg.open()))

        for lines in (1, 20_000):
            opened.clear()
            mta = InMemoryMTA(Keeper)
            mta.send(b"A: b\r\n\r\n" + lines * b"text\r\n")
            mta.finish()
            for file in opened:
                self.assertRaises(ValueError, file.read)

    def test_in_a_temporary_file(self) -> None:
        """
        A reader of a large message holds a piece of it, and can be handed to what copies files.
        """

        def copy(self: Any, msg: Message) -> None:
            with msg.open_bytes() as source, tempfile.TemporaryFile() as target:
                while piece := source.read(1000):
                    target.write(piece)
                target.seek(0)
                assert target.read() == msg.bytes()

        self.octets(copy, BLANKS[0] + b"\r\n" + b"0123456789\r\n" * 50_000)


class OnlyTests(SynchronousTestCase):
    """
    Fields that are there once.
    """

    def test_one_field_of_name_is_given_none_or_several(self) -> None:
        """
        The one field of a name is given; none, or several, are an error that says how many.
        """
        seen: list[str] = []

        class Asks(MessageMilter):
            def message(self, msg: Message) -> None:
                seen.append(msg.headers.only("from").addresses[0].domain)
                for name in ("To", "Subject"):
                    try:
                        msg.headers.only(name)
                    except NotOnce as error:
                        seen.append(str(error))

        mta = InMemoryMTA(Asks)
        mta.send(b"From: a@b.test\r\nSubject: 1\r\nsubject : 2\r\n\r\n")
        mta.finish()
        self.assertEqual(
            seen,
            [
                "b.test",
                "header To: there is none in the message, expected one",
                "header Subject: there are 2 in the message, expected one",
            ],
        )


class AskedForTests(MessageTestCase):
    """
    What is asked of the MTA.
    """

    def test_white_space_behind_the_colon_is_asked_for_where_it_is_offered(self) -> None:
        """
        White space behind the colon is asked for where it is offered and header fields are wanted.
        """

        class Looks(MessageMilter):
            def message(self, msg: Message) -> None:
                pass

        class Envelope(MessageMilter):
            def sender(self, msg: Message) -> None:
                pass

        for milter, offered, asked in (
            (Looks, c.SMFI_CURR_PROT, True),
            (Looks, c.SMFI_CURR_PROT & ~c.SMFIP_HDR_LEADSPC, False),
            (Envelope, c.SMFI_CURR_PROT, False),
        ):
            from tests.client.test_both_ends import Pair

            pair = Pair(milter)
            agreement = self.answer(pair, pair.client.negotiate(steps=offered))
            self.assertEqual(bool(agreement.steps & c.SMFIP_HDR_LEADSPC), asked)

    def test_what_client_has_of_its_edits_is_applied_right(self) -> None:
        """
        What a client has of its edits is applied right, whether or not they bring their blank.
        """

        class Sets(MessageMilter):
            def message(self, msg: Message) -> None:
                msg.headers["Subject"] = "new"

        for steps in (c.SMFI_CURR_PROT, c.SMFI_CURR_PROT & ~c.SMFIP_HDR_LEADSPC):
            outcome = self.play(self.begin(Sets, steps=steps), b"Subject:old\n\ntext\n")
            delivered = apply_edits(b"Subject:old\n\ntext\n", outcome.edits)
            self.assertEqual(delivered, b"Subject: new\n\ntext\n")
