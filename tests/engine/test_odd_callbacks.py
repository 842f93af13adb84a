"""
Tests with callbacks that do what no callback should: whatever it is, the MTA has its answer.

What is raised need not be an `Exception`, and what is returned need not let itself be looked at.
Each odd thing is done at each stage, in each of the ways in which a callback can answer, for each
merge: ``on_error`` is the answer, there is one line in the log, and the other milter hears of each
end once.
"""

from __future__ import annotations

import asyncio
import builtins
import sys
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tests.conversation_helpers import (
    CONNECT,
    DATA,
    EOH,
    HEADER,
    HELO,
    MAIL,
    MESSAGE,
    QUIT,
    RCPT,
    STAGES,
    UNKNOWN,
    Conversation,
    ConversationTestCase,
    full,
    macros,
    milter,
    names,
    offer,
    parse,
    started,
)
from yatxmilter import DISCONNECT, MilterFactory, Reply
from yatxmilter import constants as c
from yatxmilter._describing import described
from yatxmilter.conditions import known_at
from yatxmilter.metrics import MilterMetrics

MERGES = ("first", "strictest", "chain")


class Broken(BaseException):
    """
    An exception that is no `Exception`, and cannot be told either.
    """

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class NoClass:
    """
    An object that does not say what it is.
    """

    @property
    def __class__(self) -> Any:
        raise SystemExit("no class")


class NoRepr:
    """
    An object that cannot be shown.
    """

    def __repr__(self) -> str:
        raise SystemExit("no repr")


class NoNumber(int):
    """
    A number that cannot be compared.
    """

    def __eq__(self, other: object) -> bool:
        raise SystemExit("no comparison")

    __ne__ = __lt__ = __eq__

    def __hash__(self) -> int:
        raise SystemExit("no hash")

    def __bool__(self) -> bool:
        raise SystemExit("no truth")

    def __repr__(self) -> str:
        raise SystemExit("no repr")


class NoWait:
    """
    An object that says it can be awaited.
    """

    def __await__(self) -> Any:
        raise SystemExit("no waiting")

    def __bool__(self) -> bool:
        raise SystemExit("no truth")


def _group() -> BaseException:
    # Python 3.10 has none.
    kind: Any = getattr(builtins, "BaseExceptionGroup", lambda _, errors: errors[0])
    group: BaseException = kind("two", [SystemExit("a"), KeyboardInterrupt()])
    return group


#: What makes each exception anew: one that is raised twice has both tracebacks.
RAISED: list[Callable[[], BaseException]] = [
    SystemExit,
    KeyboardInterrupt,
    GeneratorExit,
    asyncio.CancelledError,
    CancelledError,
    Broken,
    ValueError,
    _group,
]
RETURNED = [NoClass(), NoRepr(), NoNumber(7), NoNumber(99), NoWait(), "text", object(), [1], True]


def odd_answers() -> list[tuple[str, Callable[..., Any], Callable[[], None]]]:
    """
    Give all odd ways to answer: what it is, the callback's doing, and what brings it about.
    """
    ways: list[tuple[str, Callable[..., Any], Callable[[], None]]] = []

    def way(what: str, do: Callable[..., Any], later: Callable[[], None] = lambda: None) -> None:
        ways.append((what, do, later))

    for error in RAISED:
        name = type(error()).__name__

        def plain(*_: Any, error: Any = error) -> None:
            raise error()

        async def coroutine(*_: Any, error: Any = error) -> None:
            raise error()

        way(f"raises {name}", plain)
        way(f"coroutine raises {name}", coroutine)
        way(f"failed Deferred of {name}", lambda *_, e=error: fail(e()))
        awaited: list[Deferred[Any]] = []

        async def waits(*_: Any, e: Any = error, awaited: list[Deferred[Any]] = awaited) -> None:
            awaited.append(Deferred())
            await awaited[-1]
            raise e()

        way(f"coroutine waits, raises {name}", waits, lambda a=awaited: a.pop().callback(None))
        failing: list[Deferred[Any]] = []

        def later(*_: Any, failing: list[Deferred[Any]] = failing) -> Any:
            failing.append(Deferred())
            return failing[-1]

        way(f"Deferred of {name}", later, lambda f=failing, e=error: f.pop().errback(Failure(e())))

        async def passes_on(*_: Any, failing: list[Deferred[Any]] = failing) -> Any:
            failing.append(Deferred())
            return await failing[-1]

        way(
            f"coroutine awaits a Deferred of {name}",
            passes_on,
            lambda f=failing, e=error: f.pop().errback(Failure(e())),
        )
    for number, value in enumerate(RETURNED):
        what = f"{type(value).__name__} ({number})"

        async def gives(*_: Any, value: object = value) -> Any:
            return value

        way(f"returns {what}", lambda *_, v=value: v)
        way(f"coroutine returns {what}", gives)
        way(f"fired Deferred of {what}", lambda *_, v=value: succeed(v))
        if type(value) is NoClass:
            # Twisted does not let it through a Deferred.
            continue
        firing: list[Deferred[Any]] = []

        def fires(*_: Any, firing: list[Deferred[Any]] = firing) -> Any:
            firing.append(Deferred())
            return firing[-1]

        way(f"Deferred of {what}", fires, lambda f=firing, v=value: f.pop().callback(v))
    return ways


class OddTestCase(ConversationTestCase):
    """
    What all have in common: to look at the log, and at what is left.
    """

    def assert_gone(self, conversation: Conversation, *classes: Any) -> None:
        """
        Check that nothing is left of a connection, and that each milter has heard of its end.
        """
        if not conversation.closed:
            conversation.drop()
        for cls in classes:
            heard = names(cls.calls)
            self.assertEqual(heard.count("close"), 1, heard)
            self.assertEqual(heard.count("mta_close"), 1, heard)
            self.assertEqual(heard[-2:], ["close", "mta_close"])
        self.assertEqual(conversation.factory.connections, set())
        self.assertEqual(conversation.factory.admission.count, 0)
        self.assertEqual(conversation.clock.getDelayedCalls(), [])

    def assert_one_line(self, stage: str, what: object) -> None:
        """
        Check that one failure was logged, with all that is to be known, and forgive it.
        """
        events = [event for event in self.events if "log_failure" in event]
        self.assertEqual(len(events), 1, (what, self.log_text()))
        (event,) = events
        self.assertEqual(
            (event["milter"], event["stage"], event["queue_id"]),
            ("Odd", f"xxfi_{stage}", "4Id"),
            what,
        )
        self.assertEqual(len([e for e in self.events if e.get("milter") == "Odd"]), 1, what)
        self.flushLoggedErrors()
        self.events.clear()


class StageTests(OddTestCase):
    """
    Each odd thing, at each stage, in each merge.
    """

    def test_on_error_is_the_answer_with_one_line_in_the_log(self) -> None:
        """
        ``on_error`` is the answer, with one line in the log; the next command is answered too.
        """
        stages = [stage for stage in STAGES if stage not in ("connect", "helo")]
        ways = odd_answers()
        for merge in MERGES:
            for stage in stages:
                for what, do, later in ways:
                    self.play(merge, stage, what, do, later)

    def play(
        self, merge: str, stage: str, what: str, do: Callable[..., Any], later: Callable[[], None]
    ) -> None:
        """
        Do one odd thing, and look at what comes of it.
        """
        about = (merge, stage, what)
        one, two = full("Odd", mta_close=None, **{stage: do}), full("Other", mta_close=None)
        conversation = started(one, two, merge=merge)
        before, last = STAGES[stage]
        if merge == "chain" and stage in ("header", "eoh", "body"):
            # There they are called at the end of the message.
            before, last = STAGES["eom"]
        conversation.send(macros("C", b"i", b"4Id") + before)
        said = conversation.letters(last)
        later()
        said += "".join(letter for letter, _ in parse(conversation.written()))
        self.assertEqual(said, "t", about)
        self.assert_one_line(stage, about)
        following = MAIL if stage == "unknown" else UNKNOWN
        self.assertEqual(conversation.letters(following), "c", about)
        self.flushLoggedErrors()
        self.events.clear()
        self.assert_gone(conversation, one, two)

    def test_connect_and_helo(self) -> None:
        """
        The same where there is no message yet.
        """
        for merge in MERGES:
            for stage in ("connect", "helo"):
                for what, do, later in odd_answers():
                    self.play(merge, stage, what, do, later)

    def test_called_late(self) -> None:
        """
        A callback that a condition has called late fails like one that is called in time.
        """
        for merge in MERGES:
            for what, do, later in odd_answers():
                if "CancelledError" in what or "GeneratorExit" in what:
                    # It is no longer waited for, as far as can be told.
                    continue
                self.events.clear()
                one, two = full("Odd", mta_close=None, helo=do), full("Other", mta_close=None)
                behind = MilterFactory(one, when=known_at("envfrom")(lambda view: True))
                conversation = started(behind, two, merge=merge)
                conversation.send(macros("C", b"i", b"4Id") + CONNECT + HELO)
                said = conversation.letters(MAIL)
                later()
                said += "".join(letter for letter, _ in parse(conversation.written()))
                self.assertEqual(said, "t", (merge, what))
                self.assert_one_line("helo", (merge, what))
                self.assert_gone(conversation, one, two)


class OtherTests(OddTestCase):
    """
    Odd things done elsewhere than where the MTA waits for an answer.
    """

    def test_where_the_answer_is_ignored_there_is_one_line(self) -> None:
        """
        Where the answer is ignored there is one line, and the other milter is told all the same;
        what an ignored answer is does not matter.
        """
        for merge in MERGES:
            for stage, sent in (("abort", MAIL), ("close", b""), ("mta_close", b"")):
                for what, do, later in odd_answers():
                    self.events.clear()
                    one = full("Odd", **{"mta_close": None, stage: do})
                    two = full("Other", mta_close=None)
                    conversation = started(one, two, merge=merge)
                    conversation.send(macros("C", b"i", b"4Id") + sent)
                    conversation.drop()
                    later()
                    lines = [event for event in self.events if "log_failure" in event]
                    most = 0 if "returns" in what or "Deferred of" in what else 1
                    self.assertGreaterEqual(len(lines), most, (stage, what))
                    self.assertLessEqual(len(lines), 1, (stage, what))
                    self.flushLoggedErrors()
                    self.assert_gone(conversation, one, two)

    def test_connection_that_milter_fails_to_welcome_or_to_negotiate_is_closed(self) -> None:
        """
        A connection that a milter fails to welcome, or to negotiate, is closed: with one line, and
        the other milter is told of its end.
        """
        for stage in ("mta_connect", "negotiate"):
            for what, do, later in odd_answers():
                if stage == "negotiate" and what.endswith("list (7)"):
                    # [1] is SMFIS_REJECT in the spelling of 0.1.1.
                    continue
                self.events.clear()
                one = full("Odd", mta_close=None, **{stage: do})
                two = full("Other", mta_close=None)
                conversation = Conversation(one, two)
                conversation.send(offer())
                later()
                self.assertTrue(conversation.closed, (stage, what))
                lines = [event for event in self.events if "milter" in event]
                self.assertEqual(len(lines), 1, (stage, what, self.log_text()))
                self.assertIn("log_failure", lines[0])
                self.flushLoggedErrors()
                self.assert_gone(conversation, one, two)

    def test_condition_that_raises_is_the_milters_failure(self) -> None:
        """
        A condition that raises, or gives what cannot be looked at, is the milter's failure: one
        line, and ``on_error``.
        """
        for merge in MERGES:
            for stage in ("connect", "helo", "envfrom", "envrcpt", "data"):
                for what, do, _ in odd_answers():
                    if not what.startswith(("raises", "returns NoClass", "returns NoWait")):
                        continue
                    self.events.clear()
                    one, two = full("Odd", mta_close=None), full("Other", mta_close=None)
                    behind = MilterFactory(one, when=known_at(stage)(do))
                    conversation = started(behind, two, merge=merge)
                    before, last = STAGES[stage]
                    conversation.send(macros("C", b"i", b"4Id") + before)
                    self.assertEqual(conversation.letters(last), "t", (merge, stage, what))
                    self.assert_one_line(stage, (merge, stage, what))
                    conversation.drop()
                    self.flushLoggedErrors()
                    self.events.clear()
                    self.assert_gone(conversation, two)

    def test_late_and_cancelled(self) -> None:
        """
        A callback that was called late and raises what a cancelled Deferred raises is answered for
        at the present step.
        """
        one = full("Odd", helo=lambda *_: fail(CancelledError()))
        conversation = started(MilterFactory(one, when=known_at("envfrom")(lambda view: True)))
        conversation.send(CONNECT + HELO)
        self.assertEqual(conversation.letters(MAIL), "t")
        self.assertEqual(len(self.failures()), 1)

    def test_milter_that_cannot_be_built_whatever_that_raises_is_answered_for(self) -> None:
        """
        A milter that cannot be built, whatever that raises, is answered for; what its factory is
        called does not matter.
        """
        for error in RAISED:

            class Never(MilterFactory):
                name = property(lambda self: NoRepr())  # type: ignore[assignment]

                def build_milter(self, protocol: Any, error: Any = error) -> Any:
                    raise error()

                def __init__(self) -> None:
                    self.on_error = c.SMFIS_REJECT

                def __repr__(self) -> str:
                    raise SystemExit

            other = full("Other", mta_close=None)
            conversation = started(Never(), other)
            self.assertEqual(conversation.letters(CONNECT), "r")
            self.assertEqual(len(self.failures()), 1)
            self.events.clear()
            self.assert_gone(conversation, other)

    def test_factories_without_their_word(self) -> None:
        """
        A factory whose ``on_error`` is none, or cannot be had, has its milters answered for with
        TEMPFAIL.
        """
        for value in (99, "perhaps", NoClass(), property(lambda self: sys.exit())):

            class Odd(MilterFactory):
                def __init__(self) -> None:
                    pass

            Odd.on_error = value
            conversation = started(Odd())
            self.assertEqual(conversation.letters(CONNECT), "t")
            self.assertEqual(len(self.failures()), 1)
            self.events.clear()

    def test_name_that_is_no_text_is_left_out_of_account(self) -> None:
        """
        A name that is no text, or cannot be had, is left out of account: the class's counts.
        """

        class Text(str):
            def __str__(self) -> str:
                raise SystemExit

            __repr__ = __format__ = __str__  # type: ignore[assignment]

        for value, name in (
            (NoClass(), "Odd"),
            (property(lambda self: sys.exit()), "Odd"),
            (5, "Odd"),
            (Text("mine"), "mine"),
        ):
            cls = full("Odd", helo=lambda *_: 1 / 0)
            cls.xxfi_name = value
            conversation = started(cls)
            self.assertEqual(conversation.letters(HELO), "t")
            found = [event["milter"] for event in self.events if "log_failure" in event]
            self.assertEqual(found, [name])
            self.assertIn(name, self.log_text())
            self.flushLoggedErrors()
            self.events.clear()

    def test_flags_that_cannot_be_had_fail_the_negotiation(self) -> None:
        """
        Flags that cannot be had fail the negotiation; with CONTINUE, and nothing else to go by, it
        goes on without the milter.
        """
        for on_error, agreed in ((c.SMFIS_TEMPFAIL, False), (c.SMFIS_CONTINUE, True)):
            cls = milter("Odd", helo=None)
            cls.xxfi_flags = property(lambda self: sys.exit())
            conversation = Conversation(MilterFactory(cls, on_error=on_error))
            self.assertEqual(conversation.letters(offer()), "O" if agreed else "")
            self.assertEqual(len(self.failures()), 1)
            self.events.clear()

    def test_looking_a_callback_up(self) -> None:
        """
        A callback that is a property which raises fails like one that is called.
        """
        for stage in ("abort", "close", "mta_close", "mta_connect", "negotiate", "helo"):
            cls = milter("Odd", helo=None, mta_close=None)
            setattr(cls, f"xxfi_{stage}", property(lambda self: sys.exit()))
            conversation = Conversation(MilterFactory(cls, on_error=c.SMFIS_CONTINUE))
            conversation.send(offer() + HELO + MAIL)
            conversation.drop()
            self.assertEqual(len(self.failures()), 1, stage)
            self.events.clear()
            self.assertEqual(conversation.factory.connections, set())

    def test_deferred_whose_canceller_raises_is_given_up_like_any_other(self) -> None:
        """
        A Deferred whose canceller raises is given up like any other.
        """
        for error in RAISED:

            def canceller(_: Any, error: Any = error) -> None:
                raise error()

            other = full("Other", mta_close=None)
            cls = full("Odd", envfrom=lambda *_, d=canceller: Deferred(d))
            conversation = started(cls, other)
            conversation.send(MAIL)
            conversation.drop()
            self.assertEqual(len(self.failures()), 1)
            self.events.clear()
            self.assert_gone(conversation, other)

    def test_milter_in_shadow_fails_by_itself(self) -> None:
        """
        A milter in shadow fails by itself.
        """
        for what, do, later in odd_answers():
            self.events.clear()
            one, two = full("Odd", mta_close=None, eom=do), full("Other", mta_close=None)
            conversation = started(MilterFactory(one, shadow=True, on_error=DISCONNECT), two)
            self.assertEqual(conversation.letters(MESSAGE), "c" * 7)
            for _ in range(4):
                conversation.clock.advance(0)
            later()
            conversation.drop()
            conversation.clock.advance(0)
            conversation.clock.advance(0)
            failed = [event for event in self.events if "log_failure" in event]
            self.assertEqual(len(failed), 1, what)
            self.flushLoggedErrors()
            self.assert_gone(conversation, one, two)

    def test_with_metrics_each_is_counted_and_answered_all_the_same(self) -> None:
        """
        With metrics each is counted, and answered, all the same.
        """
        for what, do, later in odd_answers():
            self.events.clear()
            metrics = MilterMetrics()
            conversation = Conversation(full("Odd", helo=do))
            metrics.watch(conversation.factory)
            conversation.connect()
            conversation.send(offer())
            said = conversation.letters(HELO)
            later()
            said += "".join(letter for letter, _ in parse(conversation.written()))
            self.assertEqual(said, "t", what)
            self.assertEqual(
                metrics.snapshot()["yatxmilter_errors"], [[["Odd", "xxfi_helo", "error"], 1]], what
            )
            self.flushLoggedErrors()


class DisconnectTests(StageTests):
    """
    With ``on_error=DISCONNECT`` the connection is closed in the place of an answer.
    """

    def play(
        self, merge: str, stage: str, what: str, do: Callable[..., Any], later: Callable[[], None]
    ) -> None:
        """
        Do one odd thing, and look at what comes of it.
        """
        about = (merge, stage, what)
        first, last = full("First", mta_close=None), full("Last", mta_close=None)
        one = full("Odd", mta_close=None, **{stage: do})
        failing = MilterFactory(one, on_error=DISCONNECT)
        conversation = started(first, failing, last, merge=merge)
        before, packet = STAGES[stage]
        if merge == "chain" and stage in ("header", "eoh", "body"):
            before, packet = STAGES["eom"]
        conversation.send(macros("C", b"i", b"4Id") + before)
        said = conversation.letters(packet)
        later()
        said += "".join(letter for letter, _ in parse(conversation.written()))
        self.assertEqual((said, conversation.closed), ("", True), about)
        self.assert_one_line(stage, about)
        self.assert_gone(conversation, first, one, last)
        for cls in (first, last):
            heard = names(cls.calls)
            self.assertEqual(heard.count("abort"), "envfrom" in heard, (about, heard))

    def test_called_late(self) -> None:
        """
        So it is with a callback that was called late.
        """
        one, two = full("Odd", mta_close=None, helo=lambda *_: 1 / 0), full(mta_close=None)
        when = known_at("envfrom")(lambda view: True)
        conversation = started(MilterFactory(one, when=when, on_error=DISCONNECT), two)
        conversation.send(macros("C", b"i", b"4Id") + CONNECT + HELO)
        self.assertEqual(conversation.letters(MAIL), "")
        self.assertTrue(conversation.closed)
        self.assertNotIn("envfrom", names(one.calls))
        self.assert_one_line("helo", "late")
        self.assert_gone(conversation, one, two)


class SilentRecipientTests(ConversationTestCase):
    """
    A refusal of one recipient, where no answer was promised.
    """

    def refusing(self, merge: str, on_error: Any = c.SMFIS_TEMPFAIL, **options: Any) -> Any:
        """
        Make a conversation with a milter that refuses a recipient it promised to be silent about.
        """

        def envrcpt(self: Any, argv: list[str]) -> int:
            self.smfi_setreply("550", "5.1.1", "no such user")
            return c.SMFIS_REJECT

        cls = full("Odd", quiet=("envrcpt",), envrcpt=envrcpt)
        return started(MilterFactory(cls, on_error=on_error), merge=merge, **options)

    def test_is_a_bug(self) -> None:
        """
        ``on_error`` is given at the next step that is answered, without the recipient's text; the
        refusal is logged as the milter's bug.
        """
        for merge in MERGES:
            for on_error, answer in (
                (c.SMFIS_TEMPFAIL, [("t", b"")]),
                (c.SMFIS_REJECT, [("r", b"")]),
                (c.SMFIS_CONTINUE, [("c", b"")]),
                (Reply("451", "4.3.0", "broken"), [("y", b"451 4.3.0 broken\0")]),
            ):
                conversation = self.refusing(merge, on_error)
                conversation.send(MAIL)
                self.assertEqual(conversation.packets(RCPT), [], merge)
                self.assertEqual(conversation.packets(DATA), answer, merge)
                self.assertEqual(len(self.failures()), 1)
                self.assertIn("SMFIP_NR_RCPT", self.failures()[0].getErrorMessage())
                self.events.clear()

    def test_where_the_mta_waits(self) -> None:
        """
        Where the MTA waits for an answer all the same, the recipient is refused, and that one
        alone.
        """
        for merge in MERGES:
            cls = full("Odd", quiet=("envrcpt",), envrcpt=c.SMFIS_REJECT)
            conversation = Conversation(cls, merge=merge)
            conversation.agree(steps=0x7F)
            conversation.send(MAIL)
            self.assertEqual(conversation.letters(RCPT + HEADER + EOH), "rcc", merge)
        self.assertEqual(self.failures(), [])

    def test_failure_with_a_text(self) -> None:
        """
        A callback that fails there leaves no text about its recipient.
        """

        def envrcpt(self: Any, argv: list[str]) -> None:
            self.smfi_setreply("451", "4.1.1", "busy mailbox")
            raise ValueError("bug")

        for merge in MERGES:
            conversation = started(full(quiet=("envrcpt",), envrcpt=envrcpt), merge=merge)
            conversation.send(MAIL + RCPT)
            self.assertEqual(conversation.packets(DATA), [("t", b"")], merge)
        self.flushLoggedErrors(ValueError)


class QuitTests(ConversationTestCase):
    """
    The end of a connection when milters fail.
    """

    def test_counted_no_more(self) -> None:
        """
        A connection is no longer counted when it has gone, even if the library itself fails.
        """
        conversation = started(full())

        def lost(*_: object) -> None:
            raise RuntimeError("bug of ours")

        self.patch(type(conversation.protocol._conversation), "lost", lost)
        conversation.transport.connected = False
        with self.assertRaises(RuntimeError):
            conversation.protocol.connectionLost(Failure(CancelledError()))
        self.assertEqual(conversation.factory.connections, set())

    def test_close_that_exits_does_not_keep_the_others_from_theirs(self) -> None:
        """
        A close that exits does not keep the others from theirs.
        """
        classes = [full(close=lambda *_: sys.exit()) for _ in range(3)]
        conversation = started(*classes)
        conversation.send(QUIT)
        self.assertEqual([names(cls.calls) for cls in classes], [["close"]] * 3)
        self.assertEqual(len(self.failures()), 3)


class DescribedTests(SynchronousTestCase):
    """
    What odd values look like in an error.
    """

    def test_value_is_told_on_one_line_of_bounded_length(self) -> None:
        """
        A value is told on one line of bounded length, or by its class.
        """

        class Lines:
            def __repr__(self) -> str:
                return "forged\nline\x1b"

        self.assertEqual(described("a\n"), "'a\\n'")
        self.assertEqual(described(NoRepr()), "<NoRepr object, whose repr() fails>")
        self.assertEqual(described(Lines()), "forged\\nline\\x1b")
        long = described("x" * 5000)
        self.assertTrue(long.endswith("... (5002 characters)"))
        self.assertLess(len(long), 250)
