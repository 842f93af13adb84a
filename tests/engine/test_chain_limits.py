"""
What a chain keeps of a message has limits, and what is beyond them, or cannot be kept at all, is a
failure of the milters that need it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from tests.conversation_helpers import (
    BODY,
    DATA,
    EOH,
    EOM,
    HEADER,
    MAIL,
    MESSAGE,
    RCPT,
    Conversation,
    ConversationTestCase,
    full,
    macros,
    milter,
    names,
    packet,
    started,
)
from tests.growth import assert_linear
from yatxmilter import MilterFactory
from yatxmilter import constants as c
from yatxmilter._engine import merge_chain as chain_module
from yatxmilter._mail.body_spool import BodySpool
from yatxmilter.errors import LimitExceeded
from yatxmilter.protocol import MilterProtocolFactory

CODES = {
    c.SMFIS_REJECT: "r",
    c.SMFIS_TEMPFAIL: "t",
    c.SMFIS_DISCARD: "d",
    c.SMFIS_ACCEPT: "c",
    c.SMFIS_CONTINUE: "c",
}


def chain(*milters: Any, **options: Any) -> Conversation:
    """
    Make a conversation of a chain that has negotiated.
    """
    return started(*milters, merge="chain", **options)


def field(size: int) -> bytes:
    """
    Make the packet of a header field of so many bytes, as it stands in a message.
    """
    return packet("L", b"X\0" + (size - 5) * b"x" + b"\0")


def seen(cls: Any) -> list[str]:
    """
    Give the names of the callbacks of the content and of its end, once each.
    """
    return [name for name in dict.fromkeys(names(cls.calls)) if name[:3] not in ("env", "dat")]


class KeptTests(ConversationTestCase):
    """
    Header fields, recipients and bodies.
    """

    def failed(self, option: str, count: int = 1) -> None:
        """
        Expect that failures were logged, and that they name an option.
        """
        failures = self.failures()
        self.assertEqual([failure.type for failure in failures], count * [LimitExceeded])
        for failure in failures:
            self.assertIn(option, str(failure.value))
        self.events.clear()

    def test_milter_is_shown_no_fields_of_a_message_with_too_many_bytes_of_them(self) -> None:
        """
        Of a message with more bytes of header fields than allowed, a milter that wants them is
        shown none: its ``on_error`` is its answer, at the end of the message.
        """
        for code, letter in CODES.items():
            cls = full()
            conversation = chain(MilterFactory(cls, on_error=code), max_header_bytes=100)
            conversation.send(MAIL, RCPT, DATA, field(50), field(50), EOH)
            self.assertEqual(conversation.letters(BODY, EOM), "cc")
            self.assertEqual(seen(cls), ["header", "eoh", "body", "eom"])
            cls.calls.clear()
            conversation.send(MAIL, RCPT, DATA)
            self.assertEqual(conversation.letters(field(50), field(51), field(9), EOH), "cccc")
            answer = conversation.letters(EOM)
            self.assertEqual(answer, "a" if letter == "c" else letter)
            self.assertEqual(seen(cls), ["abort"] if letter == "c" else [])
            self.failed("max_header_bytes")
            # The next message is another one.
            self.assertEqual(conversation.letters(MESSAGE), "ccccccc")

    def test_only_those_that_need_it(self) -> None:
        """
        A milter that wants no header fields goes on, and its edits are sent as they were made; so
        do those of a milter before the one that fails, if that lets the message pass.
        """

        def eom(self: Any) -> None:
            self.smfi_chgheader("X", 1, "changed")
            self.smfi_addheader("Y", "y")

        blind = milter("Blind", body=None, eom=eom)
        seeing = full("Seeing")
        failing = MilterFactory(seeing, on_error=c.SMFIS_ACCEPT)
        conversation = chain(blind, failing, max_header_bytes=10)
        self.assertEqual(conversation.letters(MAIL, RCPT, DATA, HEADER, EOH, BODY), "cccccc")
        self.assertEqual(conversation.letters(EOM), "mhc")
        self.assertEqual(seen(blind), ["body", "eom"])
        self.assertEqual(seen(seeing), ["abort"])
        self.assertIn("Milter Seeing failed in xxfi_header", self.log_text())
        self.failed("max_header_bytes")

    def test_nobody_needs_it(self) -> None:
        """
        Where nobody wants header fields or a body there is no limit for them.
        """
        conversation = chain(milter(eom=None), max_header_bytes=1, max_body=1)
        conversation.send(MAIL, RCPT, DATA, HEADER, EOH, BODY)
        self.assertEqual(conversation.letters(EOM), "c")

    def test_of_body_larger_than_allowed_milter_that_wants_it_is_shown_none(self) -> None:
        """
        Of a body larger than allowed, a milter that wants it is shown none.
        """
        for code, letter in CODES.items():
            cls, other = full(), milter("Other", header=None, eom=None)
            conversation = chain(other, MilterFactory(cls, on_error=code), max_body=10)
            conversation.send(MAIL, RCPT, DATA, HEADER, EOH)
            self.assertEqual(conversation.letters(BODY, packet("B", b"xyz"), EOM), "ccc")
            self.assertEqual(seen(cls), ["header", "eoh", "body", "eom"])
            cls.calls.clear()
            other.calls.clear()
            conversation.send(MAIL, RCPT, DATA, HEADER, EOH)
            self.assertEqual(conversation.letters(BODY, packet("B", b"xyza"), BODY), "ccc")
            self.assertEqual(conversation.letters(EOM), letter)
            self.assertEqual(seen(cls), ["header", "eoh", *(["abort"] if letter == "c" else [])])
            self.assertEqual(seen(other), ["header", "eom"])
            self.failed("max_body")

    def test_next_milter_is_shown_a_body_put_in_that_can_be_kept(self) -> None:
        """
        Where an earlier milter puts in a body that can be kept, the next one is shown that.
        """

        def eom(self: Any) -> None:
            self.smfi_replacebody("new\r\n")

        two = full("Two")
        conversation = chain(milter("One", eom=eom), two, max_body=6)
        conversation.send(MAIL, RCPT, DATA, HEADER, EOH, BODY)
        self.assertEqual(conversation.letters(EOM), "bc")
        self.assertIn(("body", b"new\r\n"), two.calls)

    def test_recipient_beyond_number_allowed_is_answered_with_milters_on_error(self) -> None:
        """
        A recipient beyond the number allowed is answered with the milter's ``on_error``, which is
        told once for each message; one that was refused does not count.
        """
        for code, letter in CODES.items():
            expected = letter if code is not c.SMFIS_ACCEPT else "a"
            cls = full(envrcpt=lambda self, argv: c.SMFIS_REJECT if argv[0] == "<no>" else None)
            conversation = chain(MilterFactory(cls, on_error=code), max_recipients=2)
            refused = packet("R", b"<no>\0")
            for _ in range(2):
                cls.calls.clear()
                self.assertEqual(conversation.letters(MAIL, refused, RCPT, RCPT), "crcc")
                self.assertEqual(conversation.letters(RCPT), expected)
                self.assertEqual(names(cls.calls).count("envrcpt"), 3)
                if expected in "crt":
                    self.assertEqual(conversation.letters(RCPT), expected)
                    self.assertEqual(names(cls.calls).count("envrcpt"), 3)
                conversation.send(packet("A"))
                self.failed("max_recipients")

    def test_none_is_no_limit(self) -> None:
        """
        None is no limit.
        """
        options = ("max_header_bytes", "max_recipients", "max_edit_bytes", "max_body")
        cls = full(eom=lambda self: self.smfi_addheader("X", 1000 * "x"))
        conversation = chain(cls, **dict.fromkeys(options))
        conversation.send(MAIL, RCPT, RCPT, DATA, *(20 * [field(60_000)]), EOH, BODY)
        self.assertEqual(conversation.letters(EOM), "hc")

    def test_options_are_checked_as_the_others_are(self) -> None:
        """
        The options are checked as the others are, and what they are is told.
        """
        for name in ("max_header_bytes", "max_recipients", "max_edit_bytes", "max_body"):
            for value, error in ((0, ValueError), ("1", TypeError), (True, TypeError)):
                with self.assertRaisesRegex(error, f"{name} is {value!r}"):
                    MilterProtocolFactory((), **{name: value})
            factory = MilterProtocolFactory((), **{name: 7})
            self.assertEqual((getattr(factory, name), getattr(factory.limits, name)), (7, 7))


class _Full(BodySpool):
    """
    A spool on a disk that is full.
    """

    def write(self, chunk: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


class _Unreadable(BodySpool):
    """
    A spool on a disk that cannot be read.
    """

    def chunks(self, size: int) -> Any:
        yield from ()
        raise OSError(errno.EIO, "Input/output error")


class DiskTests(ConversationTestCase):
    """
    A body that the disk does not take, or give back.
    """

    def test_milter_that_needs_the_body_fails_when_the_disk_is_full(self) -> None:
        """
        A milter that needs the body fails when the disk is full; the connection goes on.
        """
        for code, letter in CODES.items():
            for spool in (_Full, _Unreadable):
                with self.subTest(code=code, spool=spool):
                    self.patch(chain_module, "BodySpool", spool)
                    cls, other = full(), milter("Other", header=None, eom=None)
                    conversation = chain(other, MilterFactory(cls, on_error=code))
                    self.assertEqual(conversation.letters(MESSAGE), "cccccc" + letter)
                    self.assertEqual(conversation.letters(MESSAGE), "cccccc" + letter)
                    self.assertEqual(names(cls.calls).count("eom"), 0)
                    self.assertEqual(names(other.calls).count("eom"), 2)
                    self.assertEqual([one.type for one in self.failures()], 2 * [OSError])
                    self.events.clear()

    def test_nobody_needs_the_body(self) -> None:
        """
        Milters that do not want the body do not fail.
        """
        self.patch(chain_module, "BodySpool", _Full)
        conversation = chain(milter(eom=lambda self: self.smfi_replacebody("new")))
        conversation.send(MAIL, RCPT, DATA, HEADER, EOH, BODY)
        self.assertEqual(conversation.letters(EOM), "bc")

    def test_no_place_for_a_new_body(self) -> None:
        """
        A milter that would be shown another one's new body fails where that cannot be kept.
        """

        class Small(BodySpool):
            def replace(self, chunks: Any) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

        self.patch(chain_module, "BodySpool", Small)
        one = milter("One", eom=lambda self: self.smfi_replacebody("new"))
        conversation = chain(one, full("Two"))
        self.assertEqual(conversation.letters(MESSAGE), "cccccct")
        self.assertIn("Milter Two failed in xxfi_body", self.log_text())
        self.assertEqual([one.type for one in self.failures()], [OSError])


class EditTests(ConversationTestCase):
    """
    The edits of one milter.
    """

    def test_milter_whose_edits_of_one_message_have_more_bytes_than_allowed_fails(self) -> None:
        """
        A milter whose edits of one message have more bytes than allowed fails, in every merge; a
        new body does not count.
        """

        def eom(self: Any) -> None:
            self.smfi_replacebody(2000 * b"x")
            for number in range(self.count):
                self.smfi_addheader("X", f"{number:90}")

        for merge in ("first", "strictest", "chain"):
            for count, letters in ((10, "b" + 10 * "h" + "c"), (11, "t")):
                cls = milter(eom=eom, count=count)
                conversation = started(cls, merge=merge, max_edit_bytes=980)
                for _ in range(2):
                    conversation.send(MAIL, RCPT, DATA, HEADER, EOH)
                    found = sorted(conversation.letters(EOM))
                    self.assertEqual(found, sorted(letters), (merge, count))
                failures = self.failures()
                self.assertEqual(len(failures), 2 * (count == 11))
                for failure in failures:
                    self.assertIn("max_edit_bytes", str(failure.check(LimitExceeded) and failure))
                self.events.clear()

    def test_milter_that_puts_in_too_large_a_body_fails(self) -> None:
        """
        So does one that puts in a body larger than allowed, in pieces or not.
        """

        def eom(self: Any) -> None:
            for piece in self.pieces:
                self.smfi_replacebody(piece)

        for merge in ("first", "strictest", "chain"):
            for pieces, letters in (((7 * b"x", b"xyz"), "bbc"), ((7 * b"x", b"wxyz"), "t")):
                cls = milter(eom=eom, pieces=pieces)
                conversation = started(cls, merge=merge, max_body=10)
                for _ in range(2):
                    conversation.send(MAIL, RCPT, DATA, HEADER, EOH)
                    self.assertEqual(conversation.letters(EOM), letters)
                failures = self.failures()
                self.assertEqual(len(failures), 2 * (letters == "t"))
                for failure in failures:
                    self.assertIn("max_body", str(failure.value))
                self.events.clear()


class AloneTests(ConversationTestCase):
    """
    What a milter learns in a chain is what it would learn if it were a filter by itself.
    """

    def test_quarantine_with_any_name(self) -> None:
        """
        Whatever Postfix calls itself, nobody behind a milter that quarantines is shown the message.
        """

        def eom(self: Any) -> None:
            self.smfi_quarantine("why")

        for version, asked in (
            (b"Postfix 3.12", False),
            (b"Example mail system", False),
            (b"3.7.11", False),
            (b"8.17.1.9", True),
            (b"8.18.1/8.18.1", True),
        ):
            two = full("Two")
            conversation = chain(full("One", eom=eom), two)
            connect = macros("C", b"v", version, b"j", b"mta.example.com")
            self.assertEqual(conversation.letters(connect + MESSAGE), "ccccccqc")
            self.assertEqual("eom" in names(two.calls), asked, version)

    def test_macros_of_recipients(self) -> None:
        """
        A milter that was not shown a recipient does not see its macros, but those of the last one
        that it was shown.
        """

        def look(self: Any, *_: Any) -> None:
            self.found.append(self.smfi_getsymval("{rcpt_addr}"))

        def envrcpt(self: Any, argv: list[str]) -> Any:
            look(self)
            return c.SMFIS_REJECT if "no" in argv[0] else None

        one = full("One", envrcpt=envrcpt, data=look, found=[])
        two = full("Two", envrcpt=look, data=look, eom=look, found=[])
        conversation = chain(one, two)
        for order, expected in (
            (b"no1 no2", ["no1", "no2", "no2"]),
            (b"a no1 no2 b", ["a", "no1", "no2", "b", "b"]),
            (b"a no1 no2", ["a", "no1", "no2", "no2"]),
        ):
            conversation.send(MAIL)
            for name in order.split():
                conversation.send(macros("R", b"{rcpt_addr}", name), packet("R", name + b"\0"))
            conversation.send(macros("T", b"i", b"ID"), DATA, EOH, EOM)
            self.assertEqual(one.found, expected)
            passed = [name for name in expected[:-1] if "no" not in name]
            last = passed[-1] if passed else None
            self.assertEqual(two.found, [*passed, last, last])
            one.found.clear()
            two.found.clear()

    def test_macros_of_a_recipient_refused_by_the_mta(self) -> None:
        """
        Nor does one see those of a recipient that the MTA has refused, if it did not ask for such.
        """

        def look(self: Any) -> None:
            self.found.append(self.smfi_getsymval("{rcpt_addr}"))
            self.found.append(self.smfi_getsymval("i"))

        plain = full("Plain", data=look, found=[])
        negotiates = milter(
            "Negotiates",
            negotiate=lambda self, actions, steps: (c.SMFIS_CONTINUE, 0, c.SMFIP_RCPT_REJ),
            data=look,
            envrcpt=None,
            found=[],
        )
        conversation = chain(negotiates, plain, max_recipients=1)
        refused = macros("R", b"{rcpt_addr}", b"User unknown", b"{rcpt_mailer}", b"error")
        accepted = macros("R", b"{rcpt_addr}", b"a", b"{rcpt_mailer}", b"smtp")
        # Such do not count as recipients either.
        self.assertEqual(conversation.letters(MAIL, refused, RCPT, accepted, RCPT), "ccc")
        conversation.send(refused, RCPT, macros("T", b"i", b"ID"), DATA)
        self.assertEqual(negotiates.found, ["User unknown", "ID"])
        self.assertEqual(plain.found, ["a", "ID"])

    def test_abort_of_those_that_declined(self) -> None:
        """
        A milter that has been shown nothing of a message is not told that it is over.
        """
        declines = milter("Declines", header=None, eom=None)
        for stage, ending in (("envfrom", MAIL), ("envrcpt", MAIL + RCPT + packet("A"))):
            other = full("Other", **{stage: c.SMFIS_REJECT})
            for milters in ((other, declines), (declines, other)):
                conversation = chain(*milters)
                conversation.send(ending)
                self.assertEqual(names(declines.calls), [])
        other = full("Other", eom=c.SMFIS_REJECT)
        chain(other, declines).send(MESSAGE)
        self.assertEqual(names(declines.calls), [])
        conversation = chain(declines, other)
        conversation.send(MAIL, RCPT, DATA, HEADER, packet("A"))
        self.assertEqual(names(declines.calls), [])
        conversation.send(MESSAGE)
        self.assertEqual(names(declines.calls), ["header", "eom"])


@implementer(IReactorTime)
class Turns:
    """
    A clock that, as a reactor does, has others waiting for their turn.
    """

    def __init__(self, clock: Any) -> None:
        self.seconds = clock.seconds
        self.getDelayedCalls = clock.getDelayedCalls
        self._clock = clock
        self.turns = 0

    def callLater(self, delay: float, *call: Any, **options: Any) -> Any:
        """
        Count what waits for its turn.
        """
        self.turns += not delay
        return self._clock.callLater(delay, *call, **options)


class PiecesTests(ConversationTestCase):
    """
    Many fields and edits.
    """

    def stripped(self, count: int, *, keeps_turning: bool) -> Conversation:
        """
        Send a message whose fields a milter deletes, up to its end.
        """

        def eom(self: Any) -> None:
            for number in range(count, 0, -1):
                self.smfi_chgheader("X", number, None)

        conversation = Conversation(
            milter("One", eom=eom, header=None),
            milter("Two", header=None),
            merge="chain",
            timeout=None,
        )
        if keeps_turning:
            self.turning = conversation.factory._clock = Turns(conversation.clock)
            conversation.connect()
        conversation.agree()
        conversation.send(MAIL, RCPT, DATA, *(count * [packet("L", b"X\0y\0")]), EOH)
        return conversation

    def test_other_connections_have_their_turn_during_many_edits(self) -> None:
        """
        Other connections have their turn while one message with many edits is worked on.
        """
        conversation = self.stripped(1000, keeps_turning=True)
        conversation.protocol.dataReceived(EOM)
        self.assertEqual(conversation.written(), b"")
        self.assertEqual(conversation.letters(), 1000 * "m" + "c")
        self.assertGreater(self.turning.turns, 5)
        self.assertEqual(conversation.clock.getDelayedCalls(), [])

    def test_goes_in_between(self) -> None:
        """
        The MTA may go in between.
        """
        conversation = self.stripped(1000, keeps_turning=True)
        conversation.protocol.dataReceived(EOM)
        conversation.clock.advance(0)
        conversation.drop()
        conversation.clock.advance(1)
        self.assertEqual(conversation.clock.getDelayedCalls(), [])

    def test_as_many_edits_as_there_are_fields_cost_no_more_each(self) -> None:
        """
        As many edits as there are fields cost no more each when there are many.
        """

        def prepare(size: int) -> Callable[[], object]:
            conversation = self.stripped(0, keeps_turning=False)
            fields = b"".join(size * [packet("L", b"X\0y\0")])

            def work() -> None:
                [one, _] = conversation.protocol.milters
                one.xxfi_eom = lambda: (
                    [one.smfi_chgheader("X", number, None) for number in range(size, 0, -1)]
                    and None
                )
                conversation.send(MAIL, RCPT, DATA, fields, EOH, EOM)

            return work

        assert_linear(prepare, 300)

    def test_growth_of_recipients(self) -> None:
        """
        Nor do as many edits of the envelope.
        """

        def eom(self: Any) -> None:
            for number in range(self.size):
                self.smfi_addrcpt(f"<p{number}@example.com>")
                self.smfi_delrcpt(f"p{number // 2}@example.com")
                self.smfi_chgfrom(f"<s{number}@example.com>")

        def prepare(size: int) -> Callable[[], object]:
            conversation = chain(milter(eom=eom, size=size), milter(eom=eom, size=size))
            return lambda: conversation.send(MAIL, RCPT, DATA, EOH, EOM)

        assert_linear(prepare, 300)
