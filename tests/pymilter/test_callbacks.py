"""
A class written for pymilter in the test kit: what it is given, and what becomes of its answers.
"""

from __future__ import annotations

import socket
from typing import Any

import Milter
import milter
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.trial.unittest import SynchronousTestCase

from yatxmilter import constants as c
from yatxmilter.defaults import Milter as Native
from yatxmilter.pymilter import factory
from yatxmilter.pymilter._adapter import AdapterFactory
from yatxmilter.pymilter._callbacks import Callbacks
from yatxmilter.pymilter._program import PROGRAM
from yatxmilter.testing import InMemoryMTA, MilterTestFailure

MESSAGE = b"Subject: hello\nX-Raw: \xff\n\nbody\n"


class Case(SynchronousTestCase):
    """
    An MTA in memory, with a class.
    """

    def setUp(self) -> None:
        self.patch(PROGRAM, "policy", PROGRAM.policy)

    def mta(self, milters: Any, **options: Any) -> InMemoryMTA:
        """
        Make an MTA whose milters may fail.
        """
        several = milters if isinstance(milters, list) else [milters]
        made = InMemoryMTA(
            [factory(one) if issubclass(one, Milter.Base) else one for one in several]
            if all(isinstance(one, type) for one in several)
            else several,
            **options,
        )

        def finish() -> None:
            try:
                made.finish()
            except MilterTestFailure as failure:
                self.failures = str(failure)
            # Failures are logged, too, which is what the kit has found.
            self.flushLoggedErrors()

        self.failures = ""
        self.addCleanup(finish)
        return made

    def end(self, **methods: Any) -> Any:
        """
        Send a message to a class with these methods, and give what came of it.
        """
        return self.mta(type("Mine", (Milter.Base,), methods)).send(MESSAGE)


class GivenTests(Case):
    """
    What callbacks are called with.
    """

    def test_everything_in_order(self) -> None:
        """
        All callbacks are called, with text where pymilter has text and bytes where it has bytes.
        """
        calls: list[tuple[Any, ...]] = []

        class Mine(Milter.Base):
            def noted(self, *what: Any) -> Any:
                calls.append(what)
                return Milter.CONTINUE

            def connect(self, *arguments: Any) -> Any:
                return self.noted("connect", *arguments)

            def hello(self, *arguments: Any) -> Any:
                return self.noted("hello", *arguments)

            def envfrom(self, *arguments: Any) -> Any:
                return self.noted("envfrom", *arguments, self.getsymval("mail_addr"))

            def envrcpt(self, *arguments: Any) -> Any:
                return self.noted("envrcpt", *arguments, self.getsymval("{rcpt_addr}"))

            def data(self) -> Any:
                return self.noted("data", self.getsymval("j"), self.getsymval("{j}"))

            def header(self, *arguments: Any) -> Any:
                return self.noted("header", *arguments)

            def eoh(self) -> Any:
                return self.noted("eoh")

            def body(self, chunk: bytes) -> Any:
                return self.noted("body", chunk)

            def eom(self) -> Any:
                return self.noted("eom")

            def unknown(self, cmd: str) -> Any:
                return self.noted("unknown", cmd)

            def abort(self) -> Any:
                return self.noted("abort")

            def close(self) -> Any:
                return self.noted("close")

        mta = self.mta(Mine)
        session = mta.session()
        mta.send(MESSAGE, "<a@example.com>", ["<b@example.com>"], session=session)
        session.unknown("WHAT")
        session.mail("<c@example.com>")
        session.vanish()
        self.assertEqual(
            calls,
            [
                ("connect", "client.example", socket.AF_INET, ("192.0.2.25", 40025)),
                ("hello", "client.example"),
                ("envfrom", "<a@example.com>", None),
                ("envrcpt", "<b@example.com>", "b@example.com"),
                ("data", "mta.example.com", "mta.example.com"),
                ("header", "Subject", "hello"),
                ("header", "X-Raw", "\udcff"),
                ("eoh",),
                ("body", b"body\r\n"),
                ("eom",),
                ("unknown", "WHAT"),
                ("envfrom", "<c@example.com>", None),
                ("abort",),
                ("close",),
            ],
        )

    def test_address_of_a_client_is_what_the_module_socket_would_say(self) -> None:
        """
        The address of a client is what the module ``socket`` would say.
        """
        given: list[Any] = []

        class Mine(Milter.Base):
            def connect(self, hostname: str, family: int, hostaddr: Any) -> Any:
                given.append((family, hostaddr))
                return Milter.CONTINUE

        mta = self.mta(Mine)
        for address in (
            IPv4Address("TCP", "192.0.2.1", 1),
            IPv6Address("TCP", "2001:db8::1", 2),
            UNIXAddress(b"/run/client"),
            None,
        ):
            mta.session(address=address).quit()
        self.assertEqual(
            given,
            [
                (socket.AF_INET, ("192.0.2.1", 1)),
                (socket.AF_INET6, ("2001:db8::1", 2, 0, 0)),
                (socket.AF_UNIX, "/run/client"),
                (0, None),
            ],
        )

    def test_one_object_for_a_connection(self) -> None:
        """
        An object is made for each connection, and is what its context keeps.
        """
        made: list[Any] = []

        class Mine(Milter.Base):
            def __init__(self) -> None:
                made.append(self)

            def envfrom(self, *arguments: Any) -> Any:
                assert self._ctx.getpriv() is self
                assert self._ctx.setpriv(5) is self
                assert self._ctx.setpriv(self) == 5
                return Milter.CONTINUE

        mta = self.mta(Mine)
        for _ in range(2):
            session = mta.session()
            mta.send(MESSAGE, session=session)
            mta.send(MESSAGE, session=session)
            session.quit()
        self.assertEqual(len(made), 2)
        self.assertEqual([one._ctx for one in made], [None, None])

    def test_functions_on_context_as_without_package(self) -> None:
        """
        Functions on a context, as without the package; those that are missing continue.
        """
        calls: list[Any] = []
        callbacks = Callbacks(
            helo=lambda ctx, name: calls.append((ctx.getpriv(), name)) or milter.CONTINUE,
            eom=lambda ctx: ctx.addheader("X-Low", "level") or milter.ACCEPT,
        )
        mta = self.mta([AdapterFactory(callbacks, lambda: milter.TEMPFAIL, name="low")])
        session = mta.session()
        session.unknown("WHAT")
        sent = mta.send(MESSAGE, session=session)
        session.mail("<a@example.com>")
        session.rset()
        session.quit()
        self.assertEqual(calls, [(None, "client.example")])
        self.assertEqual(sent.delivered.message["X-Low"], "level")


class AnswerTests(Case):
    """
    What becomes of a result.
    """

    def test_codes_mean_what_they_mean_also_as_other_kinds_of_whole_numbers(self) -> None:
        """
        Codes mean what they mean, also as other kinds of whole numbers.
        """
        for code, verdict in (
            (Milter.CONTINUE, c.SMFIS_CONTINUE),
            (Milter.ACCEPT, c.SMFIS_ACCEPT),
            (Milter.REJECT, c.SMFIS_REJECT),
            (True, c.SMFIS_REJECT),
            (False, c.SMFIS_CONTINUE),
            (Milter.TEMPFAIL, c.SMFIS_TEMPFAIL),
            (Milter.DISCARD, c.SMFIS_DISCARD),
        ):
            sent = self.end(eom=lambda self, code=code: code)
            self.assertEqual(sent.verdict, verdict, code)

    def test_skip_ends_body_elsewhere_it_continues(self) -> None:
        """
        SKIP ends the body; elsewhere it continues.
        """
        sent = self.end(
            envfrom=lambda self, *arguments: Milter.SKIP,
            body=lambda self, chunk: Milter.SKIP,
        )
        self.assertEqual(sent.verdict, c.SMFIS_CONTINUE)

    def test_no_whole_number(self) -> None:
        """
        A result that is no whole number, None included, fails the callback.
        """
        for nonsense in (None, "x", 1.0, object()):
            sent = self.end(eom=lambda self, nonsense=nonsense: nonsense)
            self.assertEqual(
                str(sent.reply), "451 4.3.0 pymilter: untrapped exception in Mine", nonsense
            )

    def test_results_of_abort_and_close(self) -> None:
        """
        What abort and close return is nobody's business.
        """
        self.end(close=lambda self: None, abort=lambda self: "x")
        self.doCleanups()
        self.assertEqual(self.failures, "")

    def test_reply_has_one_line_or_several_with_code_of_answer(self) -> None:
        """
        A reply has one line or several, with the code of the answer.
        """

        def eom(self: Any) -> int:
            self.setreply("550", "5.7.1", "one 100%%", "two")
            return Milter.REJECT

        self.assertEqual(self.end(eom=eom).reply.lines, ("5.7.1 one 100%", "5.7.1 two"))

        def bare(self: Any) -> int:
            self._ctx.setreply("450", None)
            return Milter.TEMPFAIL

        self.assertEqual(self.end(eom=bare).reply.code, 450)

    def test_whatever_is_raised_is_answered_as_the_policy_says(self) -> None:
        """
        What is raised, whatever it is, is answered as the policy says, and logged.
        """

        def eom(self: Any) -> int:
            raise SystemExit(3)

        for policy, reply in (
            (milter.TEMPFAIL, "451 4.3.0 pymilter: untrapped exception in Mine"),
            (milter.REJECT, "554 5.3.0 pymilter: untrapped exception in Mine"),
        ):
            milter.set_exception_policy(policy)
            self.assertEqual(str(self.end(eom=eom).reply), reply)
        for policy in (milter.ACCEPT, milter.CONTINUE):
            milter.set_exception_policy(policy)
            self.assertEqual(self.end(eom=eom).verdict, policy)

    def test_where_factory_says_what_failure_is_answered_with_that_counts(self) -> None:
        """
        Where a factory says what a failure is answered with, that counts, and no text is made.
        """

        class Mine(Milter.Base):
            def eom(self) -> Any:
                raise RuntimeError

        sent = self.mta([factory(Mine, on_error=c.SMFIS_REJECT)]).send(MESSAGE)
        self.assertEqual(sent.verdict, c.SMFIS_REJECT)
        self.assertNotIn("untrapped", str(sent.reply))

    def test_class_may_refuse_connection_ask_for_all_there_is_or_ask_for_less(self) -> None:
        """
        A class may refuse the connection, ask for all there is, or ask for less.
        """

        def refuses(self: Any, options: list[int]) -> int:
            return Milter.REJECT

        mta = self.mta(type("Mine", (Milter.Base,), {"negotiate": refuses}))
        session = mta.session()
        self.assertRaises(MilterTestFailure, lambda: session.agreement)

        def takes_all(self: Any, options: list[int]) -> int:
            return Milter.ALL_OPTS

        sent = self.mta(type("Mine", (Milter.Base,), {"negotiate": takes_all})).send(MESSAGE)
        self.assertEqual(sent.verdict, c.SMFIS_CONTINUE)

        class Less(Milter.Base):
            def negotiate(self, opts: list[int]) -> int:
                code = super().negotiate(opts)
                opts[0] = Milter.ADDHDRS
                return code

            def eom(self) -> int:
                self.addheader("X-A", "b")
                try:
                    self.replacebody(b"x")
                except milter.error as error:
                    self.addheader("X-Error", str(error).split(":")[0])
                return Milter.CONTINUE

        sent = self.mta(Less).send(MESSAGE)
        self.assertEqual(sent.delivered.message["X-Error"], "cannot replace message body")

    def test_callback_asks_for_its_macros(self) -> None:
        """
        A callback asks for its macros, which pymilter's own does not on Python 3.
        """

        class Mine(Milter.Base):
            @Milter.symlist("j", "{daemon_name}")
            def hello(self, hostname: str) -> int:
                return Milter.CONTINUE

            def negotiate(self, opts: list[int]) -> int:
                self._ctx.setsymlist(Milter.M_EOH, b"i")
                return super().negotiate(opts)

        session = self.mta(Mine).session()
        self.assertEqual(session.agreement.symbol_lists[c.SMFIM_HELO], ["j", "{daemon_name}"])
        self.assertEqual(session.agreement.symbol_lists[c.SMFIM_EOH], ["i"])
        session.quit()


class EditTests(Case):
    """
    Edits at the end of a message, and when they cannot be.
    """

    def test_every_edit_reaches_message(self) -> None:
        """
        Every edit reaches the message.
        """

        def eom(self: Any) -> int:
            self.addheader("X-Last", "a\r\nb")
            self.addheader("X-First", "c", 0)
            self.chgheader("Subject", 1, "changed")
            self.chgheader("X-Raw", 1, None)
            self.addrcpt("<new@example.com>")
            self.addrcpt("<args@example.com>", "NOTIFY=NEVER")
            self.delrcpt("<reader@example.com>")
            self.chgfrom("<from@example.com>")
            self.replacebody("text\r\n")
            self.replacebody(b"bytes\r\n")
            self.quarantine("held")
            self.progress()
            return Milter.CONTINUE

        delivered = self.end(eom=eom).delivered
        message = delivered.message
        self.assertEqual(message["X-Last"].split(), ["a", "b"])
        self.assertEqual((message.keys()[0], message["Subject"]), ("X-First", "changed"))
        self.assertIs(message["X-Raw"], None)
        self.assertEqual(
            [path.address for path in delivered.recipients],
            ["<new@example.com>", "<args@example.com>"],
        )
        self.assertEqual(delivered.sender.address, "<from@example.com>")
        self.assertEqual(message.get_payload().split(), ["text", "bytes"])

    def test_wrong_arguments_raise_what_c_extension_raises(self) -> None:
        """
        Wrong arguments raise what the C extension raises.
        """
        raised: list[str] = []

        def attempt(function: Any, *arguments: Any) -> None:
            try:
                function(*arguments)
            except Exception as error:
                raised.append(type(error).__name__)

        def eom(self: Any) -> int:
            ctx = self._ctx
            for arguments in (
                (ctx.addheader, "A", b"x"),
                (ctx.addheader, "A", "x\0"),
                (ctx.addheader, "A", "\udcff"),
                (ctx.addheader, "A", "x", "0"),
                (ctx.addheader, "A", "x", 2**40),
                (ctx.addheader, "", "x"),
                (ctx.chgheader, "A", 1, 5),
                (ctx.delrcpt, None),
                (ctx.replacebody, None),
                (ctx.replacebody, bytearray(b"x")),
                (ctx.getsymval, 1),
                (ctx.setreply, "550", 5),
                (ctx.setreply, "250", None, "x"),
                (ctx.setreply, "550", None, *["x"] * 33),
                (ctx.setsymlist, 1, "i"),
            ):
                attempt(*arguments)
            return Milter.CONTINUE

        self.end(eom=eom)
        self.assertEqual(
            raised,
            [
                *("TypeError", "ValueError", "UnicodeEncodeError", "TypeError", "OverflowError"),
                *("error", "TypeError", "TypeError", "TypeError", "TypeError", "TypeError"),
                *("TypeError", "error", "TypeError", "error"),
            ],
        )

    def test_edit_before_end_of_message_raises_with_reason(self) -> None:
        """
        An edit before the end of a message raises, with the reason; progress can be told of.
        """
        raised: list[str] = []

        def envfrom(self: Any, *arguments: Any) -> int:
            self.progress()
            try:
                self.addheader("A", "x")
            except milter.error as error:
                raised.append(str(error))
            return Milter.CONTINUE

        self.end(envfrom=envfrom)
        self.assertIn("cannot add header: smfi_addheader() works in xxfi_eom only", raised[0])

    def test_after_the_connection(self) -> None:
        """
        A context that is kept after its connection is of no use.
        """
        kept: list[Any] = []

        def close(self: Any) -> int:
            kept.append(self._ctx)
            return Milter.CONTINUE

        mta = self.mta(type("Mine", (Milter.Base,), {"close": close}))
        mta.session().quit()
        self.assertEqual(str(self.assertRaises(milter.error, kept[0].progress)), "bad context")
        self.assertIsInstance(kept[0].getpriv(), Milter.Base)


class ChainTests(Case):
    """
    In a list with others.
    """

    def test_behind_a_native_milter(self) -> None:
        """
        In a chain a class sees what a native milter has made of the message.
        """

        class Footer(Native):
            def xxfi_eom(self) -> Any:
                self.smfi_replacebody(b"with a footer\r\n")

        seen: list[bytes] = []

        class Mine(Milter.Base):
            def body(self, chunk: bytes) -> int:
                seen.append(chunk)
                return Milter.CONTINUE

            def eom(self) -> int:
                self.addheader("X-Seen", "yes")
                return Milter.CONTINUE

        sent = self.mta([Footer, Mine], merge="chain").send(MESSAGE)
        self.assertEqual(b"".join(seen), b"with a footer\r\n")
        self.assertEqual(sent.delivered.message["X-Seen"], "yes")


class FactoryTests(SynchronousTestCase):
    """
    What a factory is made of.
    """

    def test_what_is_no_milter(self) -> None:
        """
        What cannot make an object of pymilter's is refused, by name.
        """
        for nonsense in (5, int, Native):
            text = str(self.assertRaises(TypeError, factory, nonsense))
            self.assertIn(repr(nonsense), text)

    def test_factory_has_the_name_of_its_class_or_one_it_is_given(self) -> None:
        """
        A factory has the class's name, or the one it is given; a function will do for a class.
        """
        self.assertEqual(factory(Milter.Base).name, "Base")
        self.assertEqual(factory(Milter.Base, name="mine").name, "mine")
        self.assertEqual(factory(lambda: Milter.Base()).name, "<lambda>")
