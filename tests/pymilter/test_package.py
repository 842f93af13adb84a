"""
The package ``Milter``: what a class is marked with, what it negotiates, and the helpers.
"""

from __future__ import annotations

import io
import sys
from typing import Any

import Milter
from twisted.trial.unittest import SynchronousTestCase


class MarkTests(SynchronousTestCase):
    """
    Decorators.
    """

    def test_mask_follows_the_callbacks(self) -> None:
        """
        What a class does not override is declined; what it marks as silent promises no reply.
        """

        class Mine(Milter.Base):
            def header(self, field: str, value: str) -> Any:
                return Milter.CONTINUE

            @Milter.noreply
            def envrcpt(self, to: str, *params: str) -> Any:
                return Milter.CONTINUE

        mine = Mine()
        mine._setctx(None)
        options = [Milter.CURR_ACTS, 0x1FFFFF, 0, 0]
        self.assertEqual(mine.negotiate(options), Milter.CONTINUE)
        steps = options[1]
        self.assertFalse(steps & (Milter.P_NOHDRS | Milter.P_NR_HDR | Milter.P_NORCPT))
        self.assertTrue(steps & Milter.P_NR_RCPT and steps & Milter.P_NOHELO)
        self.assertTrue(steps & Milter.P_SKIP)
        self.assertFalse(steps & (Milter.P_RCPT_REJ | Milter.P_HDR_LEADSPC))
        self.assertEqual(mine._protocol, steps)

    def test_subclass_has_a_mask_of_its_own(self) -> None:
        """
        A class whose parent was asked before is asked itself; steps that the parent enables stay.
        """

        @Milter.rejected_recipients
        class Parent(Milter.Base):
            pass

        class Child(Parent):
            def hello(self, hostname: str) -> Any:
                return Milter.CONTINUE

        Parent.protocol_mask()
        self.assertTrue(Child.protocol_mask() & Milter.P_NOHELO)
        self.assertFalse(Child.protocol_mask() & Milter.P_RCPT_REJ)
        self.assertEqual(Child.protocol_mask(), Child.protocol_mask())

    def test_class_says_its_mask(self) -> None:
        """
        A mask that a class has written down itself is taken as it is.
        """
        self.assertEqual(type("Own", (Milter.Base,), {"_protocol_mask": 7}).protocol_mask(), 7)

    def test_class_may_ask_for_header_values_with_their_leading_blanks(self) -> None:
        """
        A class may ask for header values with their leading blanks.
        """
        asks = Milter.header_leading_space(type("Asks", (Milter.Base,), {}))
        self.assertFalse(asks.protocol_mask() & Milter.P_HDR_LEADSPC)

    def test_what_is_promised_is_held(self) -> None:
        """
        A silent callback gives NOREPLY where that was agreed on, and may say CONTINUE only.
        """

        class Mine(Milter.Base):
            answer = Milter.CONTINUE

            @Milter.noreply
            def hello(self, hostname: str) -> Any:
                return self.answer

            @Milter.nocallback
            def eoh(self) -> Any:
                return self.answer

        mine = Mine()
        mine._protocol = 0
        self.assertEqual(mine.hello("x"), Milter.CONTINUE)
        mine._protocol = Milter.P_NR_HELO
        self.assertEqual(mine.hello("x"), Milter.NOREPLY)
        self.assertEqual(mine.eoh(), Milter.CONTINUE)
        mine.answer = Milter.REJECT
        self.assertRaises(RuntimeError, mine.hello, "x")
        self.assertRaises(RuntimeError, mine.eoh)

    def test_marks_for_other_methods(self) -> None:
        """
        What is no optional callback cannot be marked as one; five macros can be asked for.
        """

        def eom(self: Any) -> int:
            return 0

        def header(self: Any) -> int:
            return 0

        self.assertRaises(ValueError, Milter.noreply, eom)
        self.assertRaises(ValueError, Milter.nocallback, eom)
        self.assertRaises(ValueError, Milter.symlist("i"), header)
        self.assertRaises(ValueError, Milter.symlist(*"abcdef"), eom)
        self.assertIs(Milter.symlist("i")(eom), eom)

    def test_names_for_a_star(self) -> None:
        """
        A program that imports everything finds everything, but not the factory.
        """
        self.assertEqual([name for name in Milter.__all__ if not hasattr(Milter, name)], [])
        self.assertNotIn("factory", Milter.__all__)


class NegotiationTests(SynchronousTestCase):
    """
    What goes wrong while negotiating.
    """

    def test_failure_asks_for_all(self) -> None:
        """
        Where it fails, all that the MTA offers is taken.
        """

        class Mine(Milter.Base):
            @Milter.symlist("i")
            def hello(self, hostname: str) -> Any:
                return Milter.CONTINUE

        mine = Mine()
        mine._setctx(None)
        # There is no context that could ask for macros.
        self.assertEqual(mine.negotiate([Milter.CURR_ACTS, 0, 0, 0]), Milter.ALL_OPTS)


class DecodingTests(SynchronousTestCase):
    """
    Bytes of envelope and header.
    """

    def given(self, strategy: str | None, *values: bytes) -> tuple[Any, ...]:
        given: list[tuple[Any, ...]] = []

        class Mine(Milter.Base):
            def envfrom(self, mailfrom: str, *params: str) -> Any:
                given.append((mailfrom, *params))

            def envrcpt(self, to: str, *params: str) -> Any:
                given.append((to, *params))

            def header(self, field: str, value: str) -> Any:
                given.append((value,))

            if strategy is not None:
                envfrom = Milter.decode(strategy)(envfrom)
                envrcpt = Milter.decode(strategy)(envrcpt)
                header = Milter.decode(strategy)(header)

        mine = Mine()
        mine.envfrom_bytes(*values)
        mine.envrcpt_bytes(*values)
        mine.header_bytes("X", values[0])
        self.assertEqual(given[0], given[1])
        self.assertEqual(given[0][:1], given[2])
        return given[0]

    def test_strategy_of_callback_decides_default_keeps_every_byte(self) -> None:
        """
        The strategy of the callback decides; the default keeps every byte.
        """
        self.assertEqual(self.given(None, b"<\xff>", b"A=1"), ("<\udcff>", "A=1"))
        self.assertEqual(self.given("bytes", b"<a>"), (b"<a>",))
        self.assertEqual(self.given("strict", b"<\xff>"), (b"<\xff>",))
        self.assertEqual(self.given("strict", b"<a>"), ("<a>",))
        self.assertEqual(self.given("ignore", b"<\xff>"), ("<>",))
        self.assertEqual(self.given("replace", b"<\xff>"), ("<\ufffd>",))

    def test_strategy_of_what_is_no_method(self) -> None:
        """
        So does the strategy of a callback that is no method: a function, or an object that can be
        called.
        """
        given: list[tuple[Any, ...]] = []

        class Taking:
            error_strategy = "ignore"

            def __call__(self, *strings: Any) -> None:
                given.append(strings)

        @Milter.decode("bytes")
        def take(*strings: Any) -> None:
            given.append(strings)

        class Mine(Milter.Base):
            envfrom = staticmethod(take)  # type: ignore[assignment]
            envrcpt = Taking()  # type: ignore[assignment]

        mine = Mine()
        mine.envfrom_bytes(b"<\xff>", b"A=1")
        mine.envrcpt_bytes(b"<\xff>")
        self.assertEqual(given, [(b"<\xff>", b"A=1"), ("<>",)])


class ActionTests(SynchronousTestCase):
    """
    What `Base` looks at before an edit.
    """

    def test_edit_that_was_not_negotiated_raises_with_its_name(self) -> None:
        """
        An edit that was not negotiated raises, with its name.
        """
        base = Milter.Base()
        base._setctx(None)
        base._actions = 0
        for call, action in (
            (lambda: base.addheader("A", "x"), "ADDHDRS"),
            (lambda: base.chgheader("A", 1, "x"), "CHGHDRS"),
            (lambda: base.addrcpt("<a>"), "ADDRCPT"),
            (lambda: base.delrcpt("<a>"), "DELRCPT"),
            (lambda: base.replacebody(b"x"), "MODBODY"),
            (lambda: base.chgfrom("<a>"), "CHGFROM"),
            (lambda: base.quarantine("x"), "QUARANTINE"),
            (lambda: base.setsymlist(1, "i"), "SETSYMLIST"),
        ):
            self.assertEqual(str(self.assertRaises(Milter.DisabledAction, call)), action)
        base._actions = Milter.ADDRCPT
        self.assertRaises(Milter.DisabledAction, base.addrcpt, "<a>", "A=1")

    def test_percent_sign_in_reply_must_be_doubled_reply_has_text(self) -> None:
        """
        A percent sign in a reply must be doubled; a reply has a text.
        """
        base = Milter.Base()
        self.assertRaises(ValueError, base.setreply, "550", None, "100%")
        self.assertRaises(ValueError, base.setreply, "550", None, "one", "%%%")
        self.assertRaises(TypeError, base.setreply, "550")

    def test_too_many_macros(self) -> None:
        """
        MTAs take five macros.
        """
        base = Milter.Base()
        base._setctx(None)
        self.assertRaises(ValueError, base.setsymlist, 1, *"abcdef")


class HelperTests(SynchronousTestCase):
    """
    Small functions.
    """

    def test_three_ways_to_read_esmtp_arguments(self) -> None:
        """
        Three ways to read ESMTP arguments.
        """
        arguments = ["SIZE=10", "8BITMIME", "body=a=b", "=x"]
        self.assertEqual(Milter.dictfromlist(arguments), {"SIZE": "10", "BODY": "a=b"})
        self.assertEqual(
            Milter.param2dict(arguments), {"SIZE": "10", "8BITMIME": None, "BODY": "a=b", "": "x"}
        )

        def called(*plain: str, **named: str) -> Any:
            return plain, named

        self.assertEqual(
            Milter.envcallback(called, ["<a>", *arguments]),
            (("<a>", "8BITMIME", "=x"), {"SIZE": "10", "BODY": "a=b"}),
        )

    def test_each_number_is_given_once(self) -> None:
        """
        Each number is given once.
        """
        self.assertNotEqual(Milter.uniqueID(), Milter.uniqueID())

    def test_mask_is_named_and_what_has_no_name_is_given_as_number(self) -> None:
        """
        A mask is named, and what has no name is given as a number.
        """
        names = ["ADDHDRS", "CHGBODY"]
        self.assertEqual(Milter.decode_mask(3, names), names)
        self.assertEqual(Milter.decode_mask(0x101, names), ["ADDHDRS", "0x100"])

    def test_milter_milter_prints_what_it_is_asked_and_continues(self) -> None:
        """
        `Milter.Milter` prints what it is asked, and continues.
        """
        printed = io.StringIO()
        one = Milter.Milter()
        one._setctx(None)
        self.patch(sys, "stdout", printed)
        answers = [
            one.connect("host", 2, ("192.0.2.1", 1)),
            one.hello("host"),
            one.envfrom("<a>", "SIZE=1"),
            one.envrcpt("<b>"),
            one.header("Subject", "x"),
            one.eoh(),
            one.eom(),
            one.abort(),
            one.close(),
        ]
        self.assertEqual(set(answers), {Milter.CONTINUE})
        lines = printed.getvalue().splitlines()
        self.assertEqual(len(lines), 9)
        self.assertEqual(lines[2], "Milter: mail from <a> ('SIZE=1',)")

    def test_base_is_quiet(self) -> None:
        """
        `Base` answers CONTINUE to everything, and logs nothing.
        """
        base = Milter.Base()
        base.log("x")
        for call in (base.connect, base.hello, base.envfrom, base.envrcpt, base.header):
            self.assertEqual(call("a", *"bc"[: call.__wrapped__.__code__.co_argcount - 2]), 0)
        for call in (base.data, base.eoh, base.eom, base.abort, base.close):
            self.assertEqual(call(), 0)
        self.assertEqual((base.body(b"x"), base.unknown("x")), (0, 0))
