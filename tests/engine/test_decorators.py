"""
Tests of what authors say in a line above a callback: what is negotiated for it, and where it may
stand.
"""

from __future__ import annotations

from functools import partial, wraps
from typing import Any

from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from tests.conversation_helpers import (
    CONNECT,
    DATA,
    DECLINED,
    HELO,
    MAIL,
    RCPT,
    Conversation,
    ConversationTestCase,
    full,
    macros,
    offer,
    packet,
    started,
)
from yatxmilter import (
    Milter,
    MilterFactory,
    leading_space,
    noreply,
    rejected_recipients,
    symlist,
    threaded,
)
from yatxmilter import constants as c
from yatxmilter.interfaces import IMilter
from yatxmilter.message import Client, Message, MessageMilter, Recipient
from yatxmilter.testing import InMemoryMTA

MERGES = ("first", "strictest", "chain")
REFUSED = macros("R", b"{rcpt_mailer}", b"error", b"{rcpt_addr}", b"no such user")
MESSAGE = b"From: a\nSubject: hi\n\nbody\n"


class Rejected(Milter):
    """
    Look at recipients that the MTA has refused, too.
    """

    seen: list[str]

    def __init__(self, factory: Any, protocol: Any) -> None:
        super().__init__(factory, protocol)
        type(self).seen = []

    @rejected_recipients
    def xxfi_envrcpt(self, argv: list[str]) -> None:
        """
        Note it, and whether it is refused.
        """
        self.seen.append(f"{argv[0]} {self.smfi_getsymval('{rcpt_mailer}')}")


class Accepted(Rejected):
    """
    Have its own callback, without the decorator.
    """

    def xxfi_envrcpt(self, argv: list[str]) -> None:
        """
        Note it.
        """
        self.seen.append(argv[0])


class NegotiatedTests(ConversationTestCase):
    """
    A decorator negotiates what its callback needs.
    """

    def steps(self, *milters: Any, offered: int = 0x1FFFFF) -> int:
        """
        Give the steps agreed on, apart from what is declined.
        """
        return Conversation(*milters).agree(steps=offered)[2] & ~DECLINED

    def test_smfip_rcpt_rej_is_asked_for_where_it_is_offered(self) -> None:
        """
        SMFIP_RCPT_REJ is asked for where it is offered; the class, and those that inherit the
        callback, are shown refused recipients; others are not.
        """
        inheriting = type("Inheriting", (Rejected,), {})
        for merge in MERGES:
            for asks in (Rejected, inheriting):
                conversation = Conversation(asks, Accepted, merge=merge)
                _, _, steps = conversation.agree()
                self.assertEqual(steps & ~DECLINED, c.SMFIP_RCPT_REJ)
                conversation.send(MAIL, REFUSED + RCPT, macros("R", b"x", b"y") + RCPT)
                seen = ["<r@example.net> error", "<r@example.net> None"]
                self.assertEqual((asks.seen, Accepted.seen), (seen, ["<r@example.net>"]))
        self.assertEqual(self.steps(Accepted), 0)
        self.assertEqual(self.steps(Rejected, offered=0x7F), 0)

    def test_smfip_hdr_leadspc_is_asked_for_where_it_is_offered(self) -> None:
        """
        SMFIP_HDR_LEADSPC is asked for where it is offered, and values come as they are.
        """
        values: list[str] = []

        class Exact(Milter):
            @leading_space
            def xxfi_header(self, headerf: str, headerv: str) -> None:
                values.append(headerv)

        for merge in MERGES:
            conversation = started(Exact, full(), merge=merge)
            conversation.send(MAIL, RCPT, DATA, packet("L", b"A\0  b\0"))
            conversation.send(packet("N"), packet("E"))
            self.assertEqual(values.pop(), "  b", merge)
        self.assertEqual(self.steps(Exact), c.SMFIP_HDR_LEADSPC)
        self.assertEqual(self.steps(Exact, offered=0xFFFFF), 0)

    def lists(self, *milters: Any) -> bytes:
        """
        Give the symbol lists asked for, as they stand on the wire.
        """
        ((_, payload),) = Conversation(*milters).packets(offer())
        return payload[12:]

    def test_macros_of_the_stage_are_asked_for(self) -> None:
        """
        The macros of the stage are asked for; names that stand there twice are asked for once.
        """

        class Listing(Milter):
            @symlist("i", "{auth_authen}", "i")
            def xxfi_envfrom(self, argv: list[str]) -> None:
                pass

            @symlist()
            def xxfi_helo(self, helohost: str) -> None:
                pass

        envfrom = b"\0\0\0\2i {auth_authen}\0"
        self.assertEqual(self.lists(Listing), b"\0\0\0\1\0" + envfrom)
        self.assertEqual(self.lists(type("Inheriting", (Listing,), {})), self.lists(Listing))
        other = type("Other", (Listing,), {"xxfi_helo": lambda self, helohost: None})
        self.assertEqual(self.lists(other), envfrom)

    def test_symlist_with_negotiation(self) -> None:
        """
        A milter that negotiates by itself keeps its lists, whatever it answers; one that it sets
        for a stage counts more.
        """

        def negotiating(answer: Any, *sets: Any) -> Any:
            def negotiate(self: Milter, actions: int, steps: int) -> Any:
                for stage, names in sets:
                    self.smfi_setsymlist(stage, names)
                return answer

            helo = symlist("{a}")(lambda self, helohost: None)
            return type("N", (Milter,), {"xxfi_negotiate": negotiate, "xxfi_helo": helo})

        for answer in (None, c.SMFIS_ALL_OPTS, (c.SMFIS_CONTINUE, 0, 0)):
            self.assertEqual(self.lists(negotiating(answer)), b"\0\0\0\1{a}\0")
        own = negotiating(None, (c.SMFIM_HELO, "{b}"), (c.SMFIM_CONNECT, "j"))
        self.assertEqual(self.lists(own), b"\0\0\0\0j\0\0\0\0\1{b}\0")

    def test_smfis_all_opts_asks_for_what_the_decorators_need_as_well(self) -> None:
        """
        SMFIS_ALL_OPTS asks for what the decorators need as well; an explicit answer is exact.
        """
        for answer, steps in (
            (c.SMFIS_ALL_OPTS, c.SMFIP_RCPT_REJ | c.SMFIP_SKIP),
            ((c.SMFIS_CONTINUE, 0, c.SMFIP_SKIP), c.SMFIP_SKIP),
        ):
            negotiate = {"xxfi_negotiate": lambda *_, answer=answer: answer}
            self.assertEqual(self.steps(type("All", (Rejected,), negotiate)), steps)

    def test_decorators_stand_above_each_other_in_any_order_and_on_static_methods(self) -> None:
        """
        Decorators stand above each other in any order, and on static methods.
        """
        for decorators in (
            (noreply, rejected_recipients, symlist("i"), threaded),
            (threaded, symlist("i"), rejected_recipients, noreply),
        ):

            def envrcpt(self: Milter, argv: list[str]) -> None:
                pass

            marked: Any = envrcpt
            for decorator in decorators:
                marked = decorator(marked)
            ((_, payload),) = Conversation(
                type("Together", (Milter,), {"xxfi_envrcpt": marked})
            ).packets(offer())
            steps = int.from_bytes(payload[8:12], "big") & ~DECLINED
            self.assertEqual(steps, c.SMFIP_RCPT_REJ | c.SMFIP_NR_RCPT)
            self.assertEqual(payload[12:], b"\0\0\0\3i\0")
        silent = noreply(staticmethod(lambda helohost: None))
        self.assertEqual(self.steps(type("Static", (Milter,), {"xxfi_helo": silent})), 0x2000)

    def test_not_a_milter(self) -> None:
        """
        Decorators count for milters of any class, and for callbacks that an instance has.
        """

        @implementer(IMilter)
        class Plain:
            @rejected_recipients
            def xxfi_envrcpt(self, argv: list[str]) -> None:
                pass

        class Late(Milter):
            def __init__(self, factory: Any, protocol: Any) -> None:
                super().__init__(factory, protocol)
                self.xxfi_header = leading_space(lambda headerf, headerv: None)  # type: ignore

        plain = MilterFactory(lambda factory, protocol: Plain())
        self.assertEqual(self.steps(plain), c.SMFIP_RCPT_REJ)
        self.assertEqual(self.steps(Late), c.SMFIP_HDR_LEADSPC)

    def test_more_than_50_macros_of_a_stage_are_told(self) -> None:
        """
        What goes beyond the 50 macros of a stage that Sendmail sends is told, once, and asked for.
        """
        names = [f"{{macro_{number}}}" for number in range(52)]

        class Curious(Milter):
            @symlist(*names)
            def xxfi_helo(self, helohost: str) -> None:
                pass

        for _ in range(2):
            self.assertEqual(self.lists(Curious), b"\0\0\0\1" + " ".join(names).encode() + b"\0")
        told = "The milters ask for 52 macros at SMFIM_HELO; Sendmail sends 50 of them, and not: "
        self.assertEqual(self.log_text().count(told + "{macro_50} {macro_51}"), 1)


class PlacesTests(SynchronousTestCase):
    """
    A decorator above what it is not for is an error when the class is made.
    """

    def refusal(self, base: type = Milter, **members: Any) -> str:
        """
        Give the words with which a class is refused.
        """
        with self.assertRaises(TypeError) as caught:
            type("Wrong", (base,), members)
        return str(caught.exception)

    def test_each_decorator_is_for_its_own_callbacks(self) -> None:
        """
        Each decorator is for its own callbacks; the error names both, and what it is for.
        """

        def callback(*_: Any) -> None:
            pass

        for decorator, wrong, right in (
            (rejected_recipients, "xxfi_envfrom", "xxfi_envrcpt"),
            (leading_space, "xxfi_body", "xxfi_header"),
            (symlist("i"), "xxfi_header", "xxfi_eoh, xxfi_eom"),
            (noreply, "xxfi_eom", "cannot be @noreply"),
            (rejected_recipients, "look_up", "xxfi_envrcpt"),
            (noreply, "look_up", "xxfi_helo"),
            (threaded, "look_up", "callbacks"),
        ):
            marked = decorator(lambda *_: None)
            words = self.refusal(**{"xxfi_helo": callback, wrong: marked})
            self.assertIn(f"Wrong.{wrong} ", words)
            self.assertIn(right, words)
            word = getattr(decorator, "__name__", "").replace("mark", "symlist")
            self.assertIn(f"@{word}", words)

    def test_what_can_keep_no_mark_is_refused_where_the_decorator_stands(self) -> None:
        """
        What can keep no mark is refused where the decorator stands.
        """
        self.assertIn("expected a function", str(self.assertRaises(TypeError, noreply, len)))
        self.assertIn("", str(self.assertRaises(TypeError, leading_space, None)))

    def test_each_macro_is_one_letter_or_a_name_in_braces(self) -> None:
        """
        Each macro is one letter, or a name in braces, in a text of its own.
        """
        symlist("i", "_", "{daemon_name}", "{x}")
        for wrong in ("daemon_name", "", "i j", "{a b}", "{}", "a,b", "{a", "\0x"):
            error = self.assertRaises(ValueError, symlist, wrong)
            self.assertIn(repr(wrong), str(error))
        for wrong_type in (5, ["i"], lambda self: None):
            error = self.assertRaises(TypeError, symlist, wrong_type)
            self.assertIn("expected names of macros", str(error))

    def test_in_messagemilter_they_stand_above_hooks_where_that_makes_sense(self) -> None:
        """
        In a `MessageMilter` they stand above hooks, where that makes sense.
        """
        for hook, decorator in (
            ("message", noreply),
            ("headers", leading_space),
            ("sender", rejected_recipients),
        ):
            words = self.refusal(MessageMilter, **{hook: decorator(lambda self, *_: None)})
            self.assertIn(f"Wrong.{hook} cannot be @{decorator.__name__}", words)


class HookTests(ConversationTestCase):
    """
    The hooks of a `MessageMilter`.
    """

    def test_macros_are_asked_for_at_the_stage_of_the_hook(self) -> None:
        """
        Macros are asked for at the hook's stage, and the hook is shown refused recipients, which
        are no recipients of the message.
        """
        seen: list[object] = []

        class Hooked(MessageMilter):
            @symlist("{tls_version}")
            def greeted(self, client: Client) -> None:
                pass

            @rejected_recipients
            def recipient(self, msg: Message, rcpt: Recipient) -> None:
                seen.append((rcpt.address, self.smfi_getsymval("{rcpt_addr}")))

            def message(self, msg: Message) -> int:
                seen.append([rcpt.address for rcpt in msg.recipients])
                return msg.reject(550, text="no")

        conversation = Conversation(Hooked)
        ((_, payload),) = conversation.packets(offer())
        self.assertTrue(int.from_bytes(payload[8:12], "big") & c.SMFIP_RCPT_REJ)
        self.assertEqual(payload[12:], b"\0\0\0\1{tls_version}\0")
        other = packet("R", b"<b@example.net>\0")
        conversation.send(CONNECT, HELO, MAIL, REFUSED + RCPT, macros("R", b"i", b"1") + other)
        last = conversation.packets(DATA, packet("N"), packet("E"))[-1]
        self.assertEqual(last, ("y", b"550 5.7.1 no\0"))
        recipients = [("r@example.net", "no such user"), ("b@example.net", None)]
        self.assertEqual(seen, [*recipients, ["b@example.net"]])


class StateTests(SynchronousTestCase):
    """
    ``message_state`` is a message's.
    """

    def test_new_for_each(self) -> None:
        """
        It is new where a message begins, whoever is called first, and still there at its end.
        """
        seen: list[object] = []

        class Stateful(Milter):
            def xxfi_connect(self, hostname: str, hostaddr: object) -> None:
                self.message_state.connected = True
                self.message_state.connected = self.message_state.connected and "kept"

            def xxfi_envrcpt(self, argv: list[str]) -> None:
                state = self.message_state
                seen.append(sorted(vars(state)))
                state.recipients = [*getattr(state, "recipients", []), argv[0]]

            def xxfi_eom(self) -> int:
                seen.append(self.message_state.recipients)
                return c.SMFIS_ACCEPT

            def xxfi_abort(self) -> None:
                seen.append(("abort", self.message_state.recipients))

            def xxfi_close(self) -> None:
                seen.append(("close", self.message_state.recipients))

        for merge in MERGES:
            mta = InMemoryMTA([Stateful, Milter], merge=merge)
            with mta.session() as session:
                mta.send(MESSAGE, recipients=["<a@x.example>", "<b@x.example>"], session=session)
                mta.send(MESSAGE, recipients=["<c@x.example>"], session=session)
                session.mail("<s@x.example>")
                session.rcpt("<d@x.example>")
                session.rset()
            mta.finish()
            self.assertEqual(
                seen,
                [
                    [], ["recipients"], ["<a@x.example>", "<b@x.example>"],
                    [], ["<c@x.example>"],
                    [], ("abort", ["<d@x.example>"]), ("close", ["<d@x.example>"]),
                ],
                merge,
            )  # fmt: skip
            seen.clear()

    def test_each_milters_own(self) -> None:
        """
        Two milters on one connection do not share it.
        """

        class Numbered(Milter):
            def xxfi_envfrom(self, argv: list[str]) -> None:
                self.message_state.number = id(self)

            def xxfi_eom(self) -> None:
                self.smfi_addheader("X-Own", str(self.message_state.number == id(self)))

        mta = InMemoryMTA([Numbered, Numbered])
        self.assertEqual(mta.send(MESSAGE).delivered.values("X-Own"), ["True", "True"])
        mta.finish()


class IndexTests(SynchronousTestCase):
    """
    Header fields of a name are counted from 1.
    """

    def test_to_change_field_0_is_an_error(self) -> None:
        """
        To change field 0 is an error; to insert at place 0 is not.
        """

        class Zero(Milter):
            def xxfi_eom(self) -> None:
                self.smfi_insheader(0, "X-Top", "1")
                try:
                    self.smfi_chgheader("Subject", 0, "changed")
                except ValueError as error:
                    self.smfi_addheader("X-Error", str(error))

        mta = InMemoryMTA(Zero)
        delivered = mta.send(MESSAGE).delivered
        self.assertEqual(delivered.values("Subject"), ["hi"])
        self.assertEqual(delivered.values("X-Top"), ["1"])
        self.assertIn("counted from 1", delivered.values("X-Error")[0])
        mta.finish()


class SignatureTests(SynchronousTestCase):
    """
    A callback that cannot be called with its arguments is refused when the class is made.
    """

    def test_error_gives_signature_that_there_is_and_one_that_is_expected(self) -> None:
        """
        The error gives the signature that there is and the one that is expected.
        """
        for name, wrong, expected in (
            ("xxfi_eom", lambda: None, "xxfi_eom(self)"),
            ("xxfi_eom", lambda self, body: None, "xxfi_eom(self)"),
            ("xxfi_helo", lambda self: None, "xxfi_helo(self, helohost)"),
            ("xxfi_connect", lambda self, n, f, a: None, "xxfi_connect(self, hostname, hostaddr)"),
            ("xxfi_header", lambda self, field: None, "xxfi_header(self, headerf, headerv)"),
            ("xxfi_envfrom", lambda self, argv, *, size: None, "xxfi_envfrom(self, argv)"),
            ("xxfi_body", staticmethod(lambda: None), "xxfi_body(self, bodyp)"),
            ("xxfi_unknown", classmethod(lambda cls: None), "xxfi_unknown(self, arg)"),
            # From Python 3.14 on a partial function is a method. This one fits in neither case.
            ("xxfi_data", partial(lambda one, two: None), "xxfi_data(self)"),
            ("xxfi_eoh", threaded(lambda self, more: None), "xxfi_eoh(self)"),
            ("xxfi_env_rcpt", lambda self: None, "xxfi_env_rcpt(self, argv)"),
        ):
            error = self.assertRaises(TypeError, type, "Wrong", (Milter,), {name: wrong})
            self.assertIn(f"Wrong.{name}(", str(error))
            self.assertIn(f"expected {expected}", str(error))
        error = self.assertRaises(
            TypeError, type, "Wrong", (MessageMilter,), {"recipient": lambda self, msg: None}
        )
        self.assertIn("expected recipient(self, msg, rcpt)", str(error))

    def test_whatever_can_be_called_is_taken(self) -> None:
        """
        Whatever can be called is taken: more arguments with defaults, any arguments, wrappers that
        change them, partial functions, methods of every kind, and what does not tell.
        """

        def decorated(callback: Any) -> Any:
            @wraps(callback)
            def call(*args: Any) -> Any:
                return callback(args[0])

            return call

        class Object:
            def __call__(self, argv: list[str]) -> None:
                pass

        for name, right in (
            ("xxfi_eom", lambda self, more=1: None),
            ("xxfi_header", lambda *args: None),
            ("xxfi_header", lambda self, *args, **kw: None),
            ("xxfi_helo", decorated(lambda self: None)),
            ("xxfi_helo", staticmethod(partial(lambda one, two: None, 1))),
            ("xxfi_helo", partial(lambda *args: None, 1)),
            ("xxfi_body", staticmethod(lambda bodyp: None)),
            ("xxfi_body", classmethod(lambda cls, bodyp: None)),
            ("xxfi_envrcpt", Object()),
            ("xxfi_abort", dict),
            ("xxfi_eoh", property(lambda self: lambda: None)),
            ("xxfi_close", print),
        ):
            type("Right", (Milter,), {name: right})


class ForeignNameTests(SynchronousTestCase):
    """
    A class that is written for pymilter is refused, with the names that it should have.
    """

    NAMES = {
        "connect": (3, "xxfi_connect"), "hello": (1, "xxfi_helo"), "envfrom": (1, "xxfi_envfrom"),
        "envrcpt": (1, "xxfi_envrcpt"), "data": (0, "xxfi_data"), "unknown": (1, "xxfi_unknown"),
        "header": (2, "xxfi_header"), "eoh": (0, "xxfi_eoh"), "body": (1, "xxfi_body"),
        "eom": (0, "xxfi_eom"), "abort": (0, "xxfi_abort"), "close": (0, "xxfi_close"),
        "negotiate": (1, "xxfi_negotiate"),
    }  # fmt: skip

    def test_each_of_pymilters_names_is_told_with_libmilters(self) -> None:
        """
        Each of pymilter's names is told with libmilter's.
        """
        for name, (_, ours) in self.NAMES.items():
            members = {name: lambda self, *args: None}
            error = self.assertRaises(TypeError, type, "Old", (Milter,), members)
            self.assertIn(f"Here they are {ours} for {name}", str(error))
        members = {name: lambda self, *args: None for name in self.NAMES}
        error = self.assertRaises(TypeError, type, "Old", (Milter,), members)
        self.assertIn("xxfi_envfrom for envfrom, xxfi_envrcpt for envrcpt", str(error))

    def test_callbacks_of_pymilters_names_are_helpers_beside_ours(self) -> None:
        """
        In a class that has a callback of ours, its own or inherited, they are helpers; so are
        those that do not take pymilter's arguments, or are no functions.
        """
        helpers = {name: lambda self, *args: None for name in self.NAMES}
        right = type("Right", (Milter,), {**helpers, "xxfi_eom": lambda self: None})
        type("Inheriting", (right,), helpers)
        old = {"xxfi_env_from": lambda self, argv: None}
        type("Old", (Milter,), {**helpers, **old})
        self.assertEqual(len(self.flushWarnings()), 1)
        type("Base", (Milter,), {"connect": lambda self: None, "header": "X-Header"})
        type("Messages", (MessageMilter,), helpers)
