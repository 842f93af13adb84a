"""
Tests of `yatxmilter.defaults`: the milter that does nothing, and the factory of milters.
"""

from __future__ import annotations

import inspect
from typing import Any

from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyClass, verifyObject

from tests.conversation_helpers import CONNECT, EOM, HELO, MESSAGE, Conversation, started
from yatxmilter import Milter, MilterFactory, noreply
from yatxmilter import constants as c
from yatxmilter._engine.context import Context
from yatxmilter._engine.member import CALLBACKS
from yatxmilter._wire.commands import CALLBACK_STEPS
from yatxmilter.errors import UsageError, WrongStage
from yatxmilter.interfaces import IMilter, IMilterFactory


class MilterTests(SynchronousTestCase):
    """
    `Milter` by itself.
    """

    def setUp(self) -> None:
        self.milter = Milter("factory", "protocol")

    def test_milter_keeps_the_interface_with_docstrings(self) -> None:
        """
        It keeps the interface, with a docstring on every callback.
        """
        verifyClass(IMilter, Milter)
        verifyObject(IMilter, self.milter)
        for name in CALLBACKS:
            self.assertTrue(inspect.getdoc(getattr(Milter, name)), name)

    def test_every_callback_that_has_result_says_continue_the_others_nothing(self) -> None:
        """
        Every callback that has a result says CONTINUE, the others nothing.
        """
        for name in CALLBACKS:
            callback = getattr(self.milter, name)
            arguments = [None] * len(inspect.signature(callback).parameters)
            result = callback(*arguments)
            ignored = name in ("xxfi_abort", "xxfi_close", "xxfi_mta_close")
            self.assertIs(result, None if ignored else c.SMFIS_CONTINUE, name)

    def test_serves_nobody_forced_to(self) -> None:
        """
        To an MTA that sends everything all the same it says CONTINUE.
        """
        conversation = started(Milter)
        self.assertEqual(conversation.letters(CONNECT, HELO, MESSAGE), 9 * "c")

    def test_not_on_a_connection(self) -> None:
        """
        A function called on a milter that is on no connection says so.
        """
        with self.assertRaises(WrongStage) as caught:
            self.milter.smfi_getsymval("i")
        self.assertIsInstance(caught.exception, UsageError)
        self.assertIn("Milter", str(caught.exception))

    def test_functions_are_the_contexts(self) -> None:
        """
        Each function but `smfi_version` has its counterpart in the context, with its arguments.
        """
        for name, function in vars(Milter).items():
            if name.startswith("smfi_") and name != "smfi_version":
                counterpart = getattr(Context, name.removeprefix("smfi_"))
                self.assertEqual(
                    list(inspect.signature(function).parameters),
                    list(inspect.signature(counterpart).parameters),
                    name,
                )

    def test_class_is_named_after_itself_unless_it_or_parent_has_been_named(self) -> None:
        """
        A class is named after itself, unless it or a parent has been named.
        """
        plain = type("Plain", (Milter,), {})
        named = type("Named", (plain,), {"xxfi_name": "special"})
        child = type("Child", (named,), {})
        self.assertEqual(
            [cls.xxfi_name for cls in (Milter, plain, named, child)],
            ["Milter", "Plain", "special", "special"],
        )

    def test_subclass_that_does_not_call_its_parents_constructor_works(self) -> None:
        """
        A subclass that does not call its parent's constructor works.
        """

        class Own(Milter):
            def __init__(self, *args: Any) -> None:
                self.mine = args

            def xxfi_eom(self) -> Any:
                self.smfi_addheader("X", "y")

        self.assertEqual(started(Own).letters(EOM), "hc")


class NoReplyTests(SynchronousTestCase):
    """
    The mark of `noreply`.
    """

    def test_function_itself_is_marked_and_given_back(self) -> None:
        """
        The function itself is marked and given back; no other is.
        """

        def callback(self: Any) -> None:
            pass

        self.assertIs(noreply(callback), callback)
        for row in CALLBACK_STEPS:
            self.assertFalse(hasattr(getattr(Milter, row.callback), "smfip_noreply"))


class MilterFactoryTests(SynchronousTestCase):
    """
    `MilterFactory`.
    """

    def test_factory_keeps_the_interface(self) -> None:
        """
        It keeps the interface.
        """
        verifyClass(IMilterFactory, MilterFactory)
        verifyObject(IMilterFactory, MilterFactory())

    def test_options_are_what_they_were_given_or_the_defaults(self) -> None:
        """
        Options are what they were given, or the defaults.
        """
        default = MilterFactory()
        self.assertEqual(
            (default.milter, default.on_error, default.timeout, default.name),
            (Milter, c.SMFIS_TEMPFAIL, 600, None),
        )
        given = MilterFactory(Milter, on_error=1, timeout=2.5, name="x")
        self.assertEqual((given.on_error, given.timeout, given.name), (c.SMFIS_REJECT, 2.5, "x"))

    def test_subclass_without_constructor(self) -> None:
        """
        A subclass that does not call its parent's constructor has the defaults.
        """

        class Own(MilterFactory):
            def __init__(self) -> None:
                pass

        self.assertEqual(started(Own()).letters(EOM), "c")

    def test_what_takes_factory_and_protocol_and_gives_a_milter_will_do(self) -> None:
        """
        What takes factory and protocol and gives a milter will do.
        """
        built: list[Any] = []

        def build(factory: Any, protocol: Any) -> Any:
            built.append((factory, protocol))
            return Milter(factory, protocol)

        factory = MilterFactory(build)
        conversation = Conversation(factory)
        self.assertEqual(built, [(factory, conversation.protocol)])

    def test_builds_no_milter(self) -> None:
        """
        A callable that gives no milter has its `on_error` answered.
        """
        conversation = started(MilterFactory(lambda *_: "x"))
        self.assertEqual(conversation.letters(CONNECT), "t")
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)


@implementer(IMilter)
class Duck:
    """
    A milter that is no `Milter`: two callbacks, no attributes.
    """

    def __init__(self, factory: Any, protocol: Any) -> None:
        self.protocol = protocol
        self.calls: list[Any] = []

    def xxfi_helo(self, helohost: str) -> int:
        """
        Note it.
        """
        self.calls.append(helohost)
        return 0

    def xxfi_eom(self) -> None:
        """
        Add a header, by the protocol's help.
        """
        self.protocol.contextOf(self).addheader("X", "y")


class DuckTests(SynchronousTestCase):
    """
    A milter that only provides `IMilter`.
    """

    def test_milter_is_asked_for_what_it_has_and_gets_the_functions(self) -> None:
        """
        It is asked for what it has, and gets libmilter's functions from the protocol.
        """
        conversation = Conversation(MilterFactory(Duck))
        self.assertEqual(conversation.agree(), (6, 0x1FF, 0x37F & ~c.SMFIP_NOHELO))
        self.assertEqual(conversation.letters(HELO, EOM), "chc")
        self.assertEqual(conversation.protocol.milters[0].calls, ["mail.example.org"])

    def test_context_of_a_stranger(self) -> None:
        """
        A milter that is not on the connection has no context there.
        """
        with self.assertRaises(ValueError):
            Conversation(Milter).protocol.contextOf(Milter(None, None))
