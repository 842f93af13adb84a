"""
What a milter asks for, and that it sees what it would see alone.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from tests.contexts import member
from tests.conversation_helpers import (
    DATA,
    DECLINED,
    EOH,
    EOM,
    MAIL,
    RCPT,
    Conversation,
    full,
    milter,
    names,
    packet,
)
from tests.helpers import outcome
from yatxmilter import Milter
from yatxmilter import constants as c
from yatxmilter._engine.member import CALLBACKS, wanted_callbacks
from yatxmilter._wire.payloads import Offer
from yatxmilter.errors import NegotiationError, ReturnCodeError

OFFER = Offer(6, 0x3F, 0x1FFFFF)
LARGE = c.SMFIP_MDS_256K
LEADSPC = c.SMFIP_HDR_LEADSPC


class WantedTests(SynchronousTestCase):
    """
    `wanted_callbacks`.
    """

    def test_milter_wants_the_callbacks_that_differ_on_class_or_instance(self) -> None:
        """
        Of a `Milter` those that differ, on the class, on a parent or on the instance.
        """
        made = full(mta_connect=None)(None, None)
        self.assertEqual(
            wanted_callbacks(made, Milter), set(CALLBACKS) - {"xxfi_negotiate", "xxfi_mta_close"}
        )
        plain = Milter(None, None)
        self.assertEqual(wanted_callbacks(plain, Milter), set())
        plain.xxfi_helo = lambda helohost: None  # type: ignore[method-assign]
        self.assertEqual(wanted_callbacks(plain, Milter), {"xxfi_helo"})

    def test_of_anything_else_those_that_it_has(self) -> None:
        """
        Of anything else those that it has.
        """
        other = SimpleNamespace(xxfi_helo=1, xxfi_eom=1, xxfi_nonsense=1, helo=1)
        self.assertEqual(wanted_callbacks(other, Milter), {"xxfi_helo", "xxfi_eom"})

    def test_callback_of_an_instance_is_found_wherever_its_attributes_are(self) -> None:
        """
        A callback that an instance has is found, also where its attributes are in a dictionary
        that somebody has asked for, or of another kind; what cannot be called is no callback.
        """

        class Attributes(dict[str, Any]):
            pass

        for prepare in (
            lambda one: None,
            vars,
            lambda one: setattr(one, "__dict__", Attributes(vars(one))),
            lambda one: setattr(one, "seen", {}),
        ):
            one: Any = milter(helo=None)(None, None)
            usual = wanted_callbacks(one, Milter)
            prepare(one)
            self.assertEqual(wanted_callbacks(one, Milter), usual)
            one.xxfi_header = None
            self.assertEqual(wanted_callbacks(one, Milter), usual)
            one.xxfi_body = lambda body: None
            self.assertEqual(wanted_callbacks(one, Milter), usual | {"xxfi_body"})

    def test_called_on_the_instance(self) -> None:
        """
        A callback set on an instance is asked for and called.
        """
        seen: list[str] = []

        class Own(Milter):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                self.xxfi_helo = seen.append  # type: ignore[assignment, method-assign]

        conversation = Conversation(Own)
        self.assertEqual(conversation.agree()[2], DECLINED & ~c.SMFIP_NOHELO)
        self.assertEqual(conversation.letters(packet("H", b"x\0")), "c")
        self.assertEqual(seen, ["x"])


class RequestTests(SynchronousTestCase):
    """
    What a milter asks for.
    """

    def test_each_answer_of_xxfi_negotiate_is_request_refusal_or_nonsense(self) -> None:
        """
        Each answer of `xxfi_negotiate` is a request, a refusal, or nonsense.
        """
        one = member(milter(header=None)(None, None))
        steps = DECLINED & ~c.SMFIP_NOHDRS
        table: list[tuple[Any, Any]] = [
            (None, (0x3F, steps)),
            (0, (0x3F, steps)),
            ([None], (0x3F, steps)),
            ((0,), (0x3F, steps)),
            (10, (0x3F, steps | c.SMFIP_SKIP)),
            ((10,), (0x3F, steps | c.SMFIP_SKIP)),
            ((0, 1, 2), (1, 2)),
            ([0, 1, 2], (1, 2)),
            ([0, 6, 1, 2], (1, 2)),
            ((0, -1, 1 << 40), (0xFFFFFFFF, 0)),
            (1, NegotiationError),
            ((1, 2, 3), NegotiationError),
            ((0, 1), ReturnCodeError),
            ((0, 1, "x"), ReturnCodeError),
            ((0, True, 2), ReturnCodeError),
            ((), ReturnCodeError),
            ([], ReturnCodeError),
            ((0, 1, 2, 3, 4), ReturnCodeError),
            (False, ReturnCodeError),
            ("x", ReturnCodeError),
            (2, ReturnCodeError),
            ((4, 1, 2), ReturnCodeError),
        ]
        for answer, expected in table:
            found = outcome(one.read_request, answer, OFFER)
            self.assertEqual(found if isinstance(found, type) else found[:2], expected, answer)

    def test_flags_of_an_instance(self) -> None:
        """
        Flags set on an instance count, and are refused when they are no number.
        """
        made = milter()(None, None)
        made.xxfi_flags = 5
        self.assertEqual(member(made).computed_request(OFFER).actions, 5)
        made.xxfi_flags = "5"
        with self.assertRaises(NegotiationError) as caught:
            member(made).computed_request(OFFER)
        self.assertIn("'5'", str(caught.exception))

    def test_name_of_the_factory_comes_before_those_of_milter_and_class(self) -> None:
        """
        The factory's name comes before the milter's, and that before its class's.
        """
        made: Any = SimpleNamespace(xxfi_name="own", factory=SimpleNamespace(name="given"))
        self.assertEqual(member(made).name, "given")
        made.factory.name = None
        self.assertEqual(member(made).name, "own")
        made.xxfi_name = ""
        self.assertEqual(member(made).name, "SimpleNamespace")


class PiecesTests(SynchronousTestCase):
    """
    Body chunks larger than a milter agreed to see, because a fellow did.
    """

    def conversation(self, answer: Any) -> tuple[Any, Conversation]:
        """
        Make one of two milters, of which the second wants small chunks.
        """
        large = full("Large", negotiate=(c.SMFIS_CONTINUE, 0, LARGE))
        small = full("Small", negotiate=(c.SMFIS_CONTINUE, 0, 0), body=answer)
        conversation = Conversation(large, small)
        conversation.agree(steps=0x1FFFFF | LARGE)
        conversation.send(MAIL, RCPT, DATA, EOH)
        return small, conversation

    def sizes(self, cls: Any) -> list[int]:
        """
        Give the sizes of the chunks that a milter saw.
        """
        return [len(call[1]) for call in cls.calls if call[0] == "body"]

    def test_milter_sees_pieces_and_is_waited_for_between_them(self) -> None:
        """
        It sees them in pieces, and is waited for between them.
        """

        async def coroutine(*_: Any) -> Any:
            return await succeed(None)

        for answer in (None, c.SMFIS_CONTINUE, lambda *_: succeed(None), coroutine):
            small, conversation = self.conversation(answer)
            self.assertEqual(conversation.letters(packet("B", 150000 * b"x")), "c")
            self.assertEqual(self.sizes(small), [65535, 65535, 18930])

    def test_chunk_that_is_small_enough_stays_in_one_piece(self) -> None:
        """
        A chunk that is small enough stays in one piece.
        """
        small, conversation = self.conversation(None)
        self.assertEqual(conversation.letters(packet("B", 65535 * b"x")), "c")
        self.assertEqual(self.sizes(small), [65535])

    def test_answer_in_between(self) -> None:
        """
        A final answer to one piece is the answer; the rest is not shown.
        """
        for code, letter in ((c.SMFIS_REJECT, "r"), (c.SMFIS_ACCEPT, "a"), (c.SMFIS_SKIP, "c")):
            small, conversation = self.conversation(lambda *_, code=code: code)
            self.assertEqual(conversation.letters(packet("B", 150000 * b"x")), letter)
            self.assertEqual(self.sizes(small), [65535])

    def test_next_piece_comes_when_the_last_is_answered(self) -> None:
        """
        The next piece comes when the last is answered; when the MTA goes, none comes.
        """
        waits: list[Deferred[Any]] = []

        def slow(*_: Any) -> Any:
            waits.append(Deferred())
            return waits[-1]

        small, conversation = self.conversation(slow)
        conversation.send(packet("B", 150000 * b"x"))
        self.assertEqual(self.sizes(small), [65535])
        waits[0].callback(None)
        self.assertEqual(self.sizes(small), [65535, 65535])
        conversation.drop()
        self.assertEqual(self.sizes(small), [65535, 65535])
        self.assertEqual(names(small.calls)[-2:], ["abort", "close"])
        self.assertEqual(self.flushLoggedErrors(), [])


class RetiredTests(SynchronousTestCase):
    """
    `Member.retire`.
    """

    def test_only_the_end(self) -> None:
        """
        One that is taken out wants only to be told of the end.
        """
        one = member(full(mta_close=None, mta_connect=None)(None, None))
        one.retire()
        self.assertEqual(one.wanted, {"xxfi_close", "xxfi_mta_close"})
        self.assertEqual((one.request.actions, one.request.steps), (0, DECLINED))
        self.assertIs(one.callback("xxfi_eom"), None)


class LeadingSpaceTests(SynchronousTestCase):
    """
    Header values with and without their first blank.
    """

    def test_end_of_message_after_eoh(self) -> None:
        """
        Alone, a milter that asked for blanks sees them and writes its values as they are.
        """

        def eom(self: Any) -> None:
            self.smfi_addheader("X", " y")

        cls = full(negotiate=(c.SMFIS_CONTINUE, 1, LEADSPC), eom=eom)
        conversation = Conversation(cls)
        conversation.agree()
        conversation.send(MAIL, RCPT, DATA, packet("L", b"X\0 v\0"), EOH)
        self.assertIn(("header", "X", " v"), cls.calls)
        self.assertEqual(conversation.packets(EOM), [("h", b"X\0 y\0"), ("c", b"")])
