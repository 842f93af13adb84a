"""
Tests of what connections have in common: what was settled for one counts for the next, and only
where it may.
"""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.conversation_helpers import (
    DECLINED,
    HEADER,
    HELO,
    MAIL,
    RCPT,
    Conversation,
    Waiting,
    full,
    milter,
    names,
    packet,
    started,
)
from tests.helpers import elsewhere
from yatxmilter import Milter, MilterFactory
from yatxmilter import constants as c
from yatxmilter._engine import connection, member
from yatxmilter.conditions import client_in
from yatxmilter.errors import WrongThread


class SettledTests(SynchronousTestCase):
    """
    The second connection with the same offer and the same milters.
    """

    def test_is_answered_as_first_one_and_its_milter_may_do_the_same(self) -> None:
        """
        It is answered as the first one, and its milter may do the same.
        """

        def eom(self: Any) -> None:
            self.smfi_addheader("X", "y")

        cls = milter(eom=eom, helo=None, xxfi_flags=c.SMFIF_ADDHDRS)
        agreed = []
        for _ in range(3):
            conversation = Conversation(cls)
            agreed.append(conversation.agree())
            self.assertEqual(conversation.letters(HELO, MAIL, RCPT, packet("E")), "ccchc")
        self.assertEqual(agreed, 3 * [(6, c.SMFIF_ADDHDRS, DECLINED & ~c.SMFIP_NOHELO)])

    def test_another_offer_is_settled_by_itself(self) -> None:
        """
        Another offer is settled by itself.
        """
        cls = full()
        self.assertEqual(Conversation(cls).agree()[:2], (6, 0x1FF))
        self.assertEqual(Conversation(cls).agree(version=2, steps=0x7F, actions=1), (2, 1, 0))
        self.assertEqual(Conversation(cls).agree(actions=0x3F)[1], 0x3F)

    def test_flags_of_the_instance(self) -> None:
        """
        What one milter of a class asks for by flags of its own counts for it alone.
        """
        flags = iter([1, 0x10, None])

        class Varying(Milter):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                self.xxfi_flags = next(flags)

            def xxfi_helo(self, helohost: str) -> None:
                pass

        actions = [Conversation(Varying).agree()[1] for _ in range(3)]
        self.assertEqual(actions, [1, 0x10, 0x1FF])

    def test_callback_that_class_is_given_later_is_asked_for_from_then_on(self) -> None:
        """
        A callback that a class is given later is asked for from then on; one that it loses is not.
        """
        cls = milter(helo=None)
        self.assertEqual(Conversation(cls).agree()[2], DECLINED & ~c.SMFIP_NOHELO)
        self.patch(cls, "xxfi_envrcpt", lambda self, argv: c.SMFIS_REJECT)
        conversation = Conversation(cls)
        self.assertEqual(conversation.agree()[2], DECLINED & ~c.SMFIP_NOHELO & ~c.SMFIP_NORCPT)
        self.assertEqual(conversation.letters(MAIL, RCPT), "cr")

    def test_callback_given_in_the_middle_of_a_connection_is_called(self) -> None:
        """
        A callback that a class or a milter is given in the middle of a connection is the one that
        is called.
        """
        cls = full()
        conversation = started(cls)
        (made,) = conversation.protocol.milters
        self.assertEqual(conversation.letters(MAIL, RCPT), "cc")
        self.patch(cls, "xxfi_envrcpt", lambda self, argv: c.SMFIS_REJECT)
        self.assertEqual(conversation.letters(RCPT), "r")
        made.xxfi_envrcpt = lambda argv: c.SMFIS_TEMPFAIL
        self.assertEqual(conversation.letters(RCPT), "t")
        self.patch(cls, "xxfi_header", lambda self, name, value: c.SMFIS_DISCARD)
        self.assertEqual(conversation.letters(HEADER), "d")

    def test_conditions_are_asked_for_each_time(self) -> None:
        """
        A condition has the commands that it looks at asked for, on the second connection too.
        """
        cls = milter(eom=None)
        plain = MilterFactory(cls)
        gated = MilterFactory(cls, when=client_in("192.0.2.0/24"))
        for factory, wanted in ((plain, 0), (gated, c.SMFIP_NOCONNECT)) * 2:
            self.assertEqual(Conversation(factory).agree()[2] & DECLINED, DECLINED & ~wanted)

    def test_negotiates_by_itself(self) -> None:
        """
        A milter with an xxfi_negotiate of its own is asked on each connection.
        """
        cls = milter(negotiate=(c.SMFIS_CONTINUE, 1, DECLINED))
        for _ in range(2):
            Conversation(cls).agree()
        self.assertEqual(names(cls.calls), ["negotiate", "negotiate"])

    def test_offer_that_is_too_short_closes_connection_whatever_was_settled_before(self) -> None:
        """
        An offer that is too short closes the connection, whatever was settled before.
        """
        cls = full()
        started(cls)
        conversation = Conversation(cls)
        conversation.send(packet("O", b"\0\0\0\6\0\0\1\xff"))
        self.assertTrue(conversation.closed)

    def test_mta_that_offers_something_else_each_time_fills_no_memory(self) -> None:
        """
        An MTA that offers something else each time, or at great length, does not fill the memory.
        """
        cls = full()
        for actions in range(300):
            Conversation(cls).agree(actions=actions | 0x100)
        self.assertLessEqual(len(connection._settled), 256)
        before = len(connection._settled)
        for tail in range(20):
            payload = b"\0\0\0\6\0\0\1\xff\0\x1f\xff\xff" + b"x" * 1000 + bytes([tail])
            Conversation(cls).send(packet("O", payload))
        self.assertLessEqual(len(connection._settled), before + 1)

    def test_classes_are_bounded(self) -> None:
        """
        Classes that are made all the time are not kept for ever.
        """
        for _ in range(300):
            Conversation(milter(helo=None)).agree()
        self.assertLessEqual(len(member._shapes), 256)


class NeededTests(SynchronousTestCase):
    """
    What is made when it is needed is as if it had been there.
    """

    def test_first_call_from_another_thread(self) -> None:
        """
        A function that is called in another thread first of all is refused there, and works where
        the connection is served.
        """
        conversation = started(full())
        (made,) = conversation.protocol.milters
        (error,) = elsewhere(lambda: made.smfi_getsymval("i"))
        self.assertIsInstance(error, WrongThread)
        self.assertIs(made.smfi_getsymval("i"), None)

    def test_end_of_message_without_the_other(self) -> None:
        """
        A milter that has no xxfi_eom needs nothing while the other one is waited for there.
        """
        waiting = Waiting()
        for merge in ("first", "strictest"):
            conversation = started(milter("Silent", helo=None), full(eom=waiting), merge=merge)
            conversation.send(MAIL, RCPT, packet("E"))
            waiting.fire()
            self.assertEqual(conversation.written(), b"\0\0\0\1c")

    def test_helo_without_its_nul_is_dropped_without_an_answer(self) -> None:
        """
        A HELO without its NUL is dropped without an answer, however many milters there are.
        """
        for classes in ((full(),), (full("One"), full("Other"))):
            conversation = started(*classes)
            self.assertEqual(conversation.letters(packet("H", b"no end"), MAIL), "c")
            self.assertNotIn("helo", names(classes[0].calls))

    def test_context_of_all(self) -> None:
        """
        `contextOf` gives the same one each time, and what it may do is what was agreed on.
        """
        conversation = started(milter(eom=None, xxfi_flags=1))
        (made,) = conversation.protocol.milters
        context = conversation.protocol.contextOf(made)
        self.assertIs(conversation.protocol.contextOf(made), context)
        self.assertEqual(context.actions, 1)
