"""
What the library promises of ``merge="chain"``, through its public names only.

As if the MTA ran each milter by itself: each sees headers and body as the ones before it have left
them, ACCEPT takes a milter out, a negative answer ends the chain.
"""

from __future__ import annotations

from itertools import product
from typing import Any
from unittest import skipIf

from tests.conversation_helpers import (
    ABORT,
    BODY,
    CONNECT,
    DATA,
    EOH,
    EOM,
    HEADER,
    HELO,
    MAIL,
    MESSAGE,
    QUIT,
    RCPT,
    STAGES,
    STEPS,
    UNKNOWN,
    Conversation,
    ConversationTestCase,
    Waiting,
    full,
    macros,
    milter,
    names,
    offer,
    packet,
    parse,
    started,
)
from yatxmilter import MilterFactory
from yatxmilter import constants as c
from yatxmilter._engine.connection import COMPILED
from yatxmilter.errors import ReturnCodeError

CONTENT = ("header", "eoh", "body", "eom")
FINAL = {c.SMFIS_REJECT: "r", c.SMFIS_TEMPFAIL: "t", c.SMFIS_DISCARD: "d"}
POSTFIX = macros("C", b"v", b"Postfix 3.12")


def chain(*milters: Any, **options: Any) -> Conversation:
    """
    Make a conversation of a chain that has negotiated.
    """
    return started(*milters, merge="chain", **options)


def seen(cls: Any, name: str) -> list[Any]:
    """
    Give the arguments of a callback's calls.
    """
    return [call[1:] for call in cls.calls if call[0] == name]


class SequenceTests(ConversationTestCase):
    """
    Who is called when, and who decides.
    """

    def test_one_after_the_other(self) -> None:
        """
        From connect to DATA the next milter is called when the one before it has answered.
        """
        for stage in ("connect", "helo", "envfrom", "envrcpt", "data", "unknown"):
            waiting = Waiting()
            two = full("Two")
            conversation = chain(full("One", **{stage: waiting}), two)
            before, last = STAGES[stage]
            conversation.send(before)
            two.calls.clear()
            self.assertEqual(conversation.send(last), b"")
            self.assertEqual(two.calls, [])
            waiting.fire()
            self.assertEqual(names(two.calls), [stage])
            self.assertEqual(conversation.written(), packet("c"))

    def test_content_one_after_the_other(self) -> None:
        """
        A milter has got all of a message, and answered its end, before the next gets its header.
        """
        order: list[str] = []

        def note(self: Any, *_: Any) -> None:
            order.append(self.xxfi_name)

        both = [full(name, **dict.fromkeys(CONTENT, note)) for name in ("One", "Two")]
        self.assertEqual(chain(*both).letters(MESSAGE), 7 * "c")
        self.assertEqual(order, 4 * ["One"] + 4 * ["Two"])

    def test_negative_answer_ends_the_chain(self) -> None:
        """
        A negative answer ends the chain: those behind it are not called.
        """
        for stage, (code, letter) in product(STAGES, FINAL.items()):
            if code is c.SMFIS_DISCARD and stage in ("connect", "helo", "unknown"):
                continue
            two = full("Two")
            conversation = chain(full("One", **{stage: code}), two)
            before, last = STAGES[stage]
            conversation.send(before)
            said = conversation.letters(last)
            if stage in CONTENT[:-1]:
                self.assertEqual(said, "c", stage)
                said = conversation.letters(EOH * (stage == "header") + EOM)[-1]
            self.assertEqual(said, letter, stage)
            self.assertNotIn(stage, names(two.calls), stage)

    def test_accept_takes_its_own_milter_out_of_the_message(self) -> None:
        """
        ACCEPT takes its own milter out of the message; its fellows go on, and it is back next time.
        """
        for stage in ("envfrom", "envrcpt", "data", *CONTENT):
            one = full("One", **{stage: c.SMFIS_ACCEPT})
            two = full("Two", eom=c.SMFIS_REJECT)
            conversation = chain(one, two)
            self.assertEqual(conversation.letters(MESSAGE), "ccccccr", stage)
            self.assertEqual(names(one.calls)[-1], stage)
            conversation.send(MESSAGE)
            self.assertEqual(names(one.calls).count(stage), 2)

    def test_accept_of_the_connection(self) -> None:
        """
        ACCEPT at connect or HELO takes its own milter out of the connection.
        """
        for stage in ("connect", "helo"):
            one = full("One", **{stage: c.SMFIS_ACCEPT})
            conversation = chain(one, full("Two"))
            self.assertEqual(conversation.letters(CONNECT, HELO, MESSAGE, MESSAGE), 16 * "c")
            self.assertEqual(names(one.calls)[-1], stage)

    def test_when_all_have_accepted_the_mta_is_told_so(self) -> None:
        """
        When all have accepted the MTA is told so.
        """
        both = [full(envrcpt=c.SMFIS_ACCEPT) for _ in range(2)]
        self.assertEqual(chain(*both).letters(MAIL, RCPT), "ca")
        both = [full(eom=c.SMFIS_ACCEPT) for _ in range(2)]
        self.assertEqual(chain(*both).letters(MESSAGE), "cccccca")

    def test_recipient_that_one_refuses_is_not_shown_to_those_behind_it(self) -> None:
        """
        A recipient that one refuses is not shown to those behind it; the message goes on.
        """
        one, two = full("One", envrcpt=c.SMFIS_REJECT), full("Two")
        self.assertEqual(chain(one, two).letters(MAIL, RCPT, RCPT, EOM), "crrc")
        self.assertEqual(names(two.calls), ["envfrom", "eoh", "eom"])

    def test_abort_of_the_others(self) -> None:
        """
        When one ends the message, every other that was in it gets `xxfi_abort`, once.
        """
        for stage in ("data", *CONTENT):
            milters = [full("One"), full("Two", **{stage: c.SMFIS_REJECT}), full("Three")]
            conversation = chain(*milters)
            conversation.send(MESSAGE, ABORT, QUIT)
            counts = [names(cls.calls).count("abort") for cls in milters]
            # At the end of the message the first has finished with it.
            self.assertEqual(counts, [int(stage == "data"), 0, 1], stage)

    def test_what_is_awaited_is_cancelled_when_the_mta_goes(self) -> None:
        """
        When the MTA goes, what is awaited is cancelled; those in the message are told, once.
        """
        for stage in STEPS:
            waiting = Waiting()
            milters = [full("One", **{stage: waiting}, mta_close=None), full("Two", mta_close=None)]
            conversation = chain(*milters)
            conversation.send(CONNECT + HELO + MAIL + RCPT + UNKNOWN + DATA + HEADER + EOH)
            conversation.send(BODY + EOM)
            conversation.drop()
            self.assertEqual(waiting.cancelled, 1)
            for cls in milters:
                self.assertEqual(names(cls.calls)[-2:], ["close", "mta_close"])
                self.assertLessEqual(names(cls.calls).count("abort"), 1)
            in_message = stage not in ("connect", "helo")
            self.assertEqual("abort" in names(milters[0].calls), in_message, stage)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_milter_that_fails_is_answered_for_by_its_on_error(self) -> None:
        """
        A milter that fails is answered for by its `on_error`, and the rest of the chain goes on.
        """

        def broken(*_: Any) -> None:
            raise ValueError("bug")

        for stage in STEPS:
            two = full("Two")
            bad = MilterFactory(full("Bad", **{stage: broken}), on_error=c.SMFIS_CONTINUE)
            conversation = chain(bad, two)
            conversation.send(CONNECT + HELO + MAIL + RCPT + UNKNOWN + DATA + HEADER + EOH)
            self.assertEqual(conversation.letters(BODY, EOM), "cc", stage)
            self.assertIn(stage, names(two.calls))
            self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1, stage)

    def test_each_milter_has_its_own_time(self) -> None:
        """
        Each milter has its own time.
        """
        slow = MilterFactory(full("Slow", header=Waiting()), timeout=3, on_error=c.SMFIS_CONTINUE)
        two = full("Two")
        conversation = chain(slow, two, progress_interval=None)
        conversation.send(MESSAGE)
        conversation.clock.advance(4)
        self.assertEqual(conversation.written(), packet("c"))
        self.assertIn("eom", names(two.calls))
        self.flushLoggedErrors(TimeoutError)

    def test_skip_is_a_milters_own(self) -> None:
        """
        SKIP is a milter's own.
        """
        one, two = full("One", body=c.SMFIS_SKIP), full("Two")
        conversation = chain(one, two)
        conversation.send(MAIL, RCPT, DATA, EOH)
        body = 65535 * b"x"
        self.assertEqual(conversation.letters(packet("B", body), packet("B", body), EOM), "ccc")
        self.assertEqual(seen(one, "body"), [(body,)])
        self.assertEqual(b"".join(chunk for (chunk,) in seen(two, "body")), 2 * body)

    def test_text_is_the_deciders(self) -> None:
        """
        The text is the decider's.
        """

        def say(self: Any) -> Any:
            self.smfi_setreply("550", "5.7.1", self.xxfi_name)
            return c.SMFIS_REJECT

        conversation = chain(full("One"), full("Two", eom=say))
        self.assertEqual(parse(conversation.send(MESSAGE))[-1], ("y", b"550 5.7.1 Two\0"))


class EditTests(ConversationTestCase):
    """
    What the next milter sees.
    """

    def test_next_milter_sees_headers_as_one_before_it_has_left_them(self) -> None:
        """
        The next milter sees headers as the one before it has left them.
        """

        def eom(self: Any) -> None:
            self.smfi_addheader("X-New", "added")
            self.smfi_insheader(0, "X-Top", "inserted")
            self.smfi_chgheader("Subject", 1, "changed")
            self.smfi_chgheader("X-Old", 1, None)

        two = full("Two")
        conversation = chain(full("One", eom=eom), two)
        conversation.send(POSTFIX, MAIL, RCPT, DATA, HEADER, packet("L", b"X-Old\0o\0"))
        conversation.send(packet("L", b"To\0t\0"), EOH)
        letters = conversation.letters(EOM)
        self.assertEqual(sorted(letters[:-1]), sorted("himm"))
        self.assertEqual(letters[-1], "c")
        self.assertEqual(
            seen(two, "header"),
            [("X-Top", "inserted"), ("Subject", "changed"), ("To", "t"), ("X-New", "added")],
        )

    def test_next_milter_sees_body_of_one_before_it_and_may_replace_it(self) -> None:
        """
        The next milter sees the body of the one before it, and may replace it: no conflict.
        """

        def replace(text: bytes) -> Any:
            def eom(self: Any) -> None:
                self.smfi_replacebody(text)

            return eom

        two, three = full("Two", eom=replace(b"second\r\n")), full("Three")
        conversation = chain(full("One", eom=replace(b"first\r\n")), two, three)
        conversation.send(MESSAGE[: -len(EOM)])
        self.assertEqual(conversation.packets(EOM), [("b", b"second\r\n"), ("c", b"")])
        self.assertEqual(seen(two, "body"), [(b"first\r\n",)])
        self.assertEqual(seen(three, "body"), [(b"second\r\n",)])

    def test_body_that_is_replaced_by_nothing_is_no_body_for_next(self) -> None:
        """
        A body that is replaced by nothing is no body for the next, and one packet for the MTA.
        """

        def eom(self: Any) -> None:
            self.smfi_replacebody(b"")

        two = full("Two")
        conversation = chain(full("One", eom=eom), two)
        conversation.send(MESSAGE[: -len(EOM)])
        self.assertEqual(conversation.packets(EOM), [("b", b""), ("c", b"")])
        self.assertEqual(seen(two, "body"), [])

    def test_all_edits_go_out_in_one_write_with_the_answer(self) -> None:
        """
        All edits go out in one write, with the answer.
        """
        waits = [Waiting(), Waiting()]

        def editor(name: str, waiting: Waiting) -> Any:
            def eom(self: Any) -> Any:
                self.smfi_addheader(name, "x")
                return waiting()

            return full(eom=eom)

        conversation = chain(editor("A", waits[0]), editor("B", waits[1]))
        conversation.send(MESSAGE[: -len(EOM)])
        writes: list[bytes] = []
        self.patch(conversation.transport, "write", writes.append)
        conversation.send(EOM)
        waits[0].fire()
        self.assertEqual(writes, [])
        waits[1].fire()
        self.assertEqual(len(writes), 1)
        self.assertEqual(parse(writes[0]), [("h", b"A\0x\0"), ("h", b"B\0x\0"), ("c", b"")])

    def test_edits_and_rejection(self) -> None:
        """
        When one rejects, the edits of those before it are not sent, nor kept for the next message.
        """

        def eom(self: Any) -> None:
            self.smfi_addheader("X", "y")

        codes: list[Any] = [c.SMFIS_REJECT, c.SMFIS_CONTINUE]
        conversation = chain(full("One", eom=eom), full("Two", eom=lambda *_: codes.pop(0)))
        self.assertEqual(conversation.letters(MESSAGE), "ccccccr")
        self.assertEqual(conversation.letters(MESSAGE), "cccccchc")

    def test_edits_with_accept(self) -> None:
        """
        The edits of a milter that accepts at the end are made.
        """

        def eom(self: Any) -> Any:
            self.smfi_addheader("X", "y")
            return c.SMFIS_ACCEPT

        two = full("Two")
        conversation = chain(full("One", eom=eom), two)
        self.assertEqual(conversation.letters(MESSAGE), "cccccchc")
        self.assertIn(("X", "y"), seen(two, "header"))

    def test_edits_of_a_failed_milter(self) -> None:
        """
        The edits that a milter made before it failed stand where its ``on_error`` lets the message
        pass, and only there.
        """

        def eom(self: Any) -> Any:
            self.smfi_addheader("X", "y")
            raise ValueError("bug")

        for code, letters, shown in (
            (c.SMFIS_CONTINUE, "cccccchc", True),
            (c.SMFIS_ACCEPT, "cccccchc", True),
            (c.SMFIS_TEMPFAIL, "cccccct", False),
        ):
            two = full("Two")
            bad = MilterFactory(full("Bad", eom=eom), on_error=code)
            self.assertEqual(chain(bad, two).letters(MESSAGE), letters)
            self.assertEqual(("X", "y") in seen(two, "header"), shown)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 3)

    def test_messages_are_apart(self) -> None:
        """
        Nothing of a message is left for the next one, after its end or an abort.
        """
        two = milter("Two", header=None, body=None, eom=None)
        conversation = chain(full("One"), two)
        for end in (EOM, ABORT, EOM):
            two.calls.clear()
            conversation.send(MAIL + RCPT + DATA + HEADER + EOH + BODY + end)
            if end == EOM:
                self.assertEqual(len(seen(two, "header")), 1)
                self.assertEqual(seen(two, "body"), [(b"Hello\r\n",)])

    def test_chunk_at_the_end(self) -> None:
        """
        A last chunk in the end of message belongs to the body.
        """
        two = full("Two")
        conversation = chain(full("One"), two)
        conversation.send(MAIL, RCPT, DATA, EOH, BODY)
        self.assertEqual(conversation.letters(packet("E", b"more")), "c")
        self.assertEqual(b"".join(chunk for (chunk,) in seen(two, "body")), b"Hello\r\nmore")

    def test_body_larger_than_memory_comes_out_as_it_went_in(self) -> None:
        """
        A body larger than memory is meant for comes out as it went in.
        """
        two = full("Two")
        conversation = chain(full("One"), two)
        conversation.send(MAIL, RCPT, DATA, EOH)
        pieces = [bytes([number]) * 65535 for number in range(40)]
        conversation.send(*(packet("B", piece) for piece in pieces))
        self.assertEqual(conversation.letters(EOM), "c")
        found = b"".join(chunk for (chunk,) in seen(two, "body"))
        self.assertEqual(found, b"".join(pieces))
        self.assertLessEqual(max(len(chunk) for (chunk,) in seen(two, "body")), 65535)

    def test_as_postfix_does_those_behind_milter_that_quarantines_do_not_see_content(self) -> None:
        """
        As Postfix does, those behind a milter that quarantines do not see the content.
        """

        def eom(self: Any) -> None:
            self.smfi_quarantine("why")

        two = full("Two")
        conversation = chain(full("One", eom=eom), two)
        self.assertEqual(conversation.letters(POSTFIX + MESSAGE), "ccccccqc")
        self.assertEqual(names(two.calls), ["envfrom", "envrcpt", "data", "abort"])

    def merged(self, *actions: list[tuple[Any, ...]]) -> list[tuple[str, bytes]]:
        """
        Give the edits that the MTA is told, for milters that make these.
        """

        def editor(calls: list[tuple[Any, ...]]) -> Any:
            def eom(self: Any) -> None:
                for name, *args in calls:
                    getattr(self, f"smfi_{name}")(*args)

            return milter(eom=eom, header=None)

        conversation = chain(*map(editor, actions))
        conversation.send(POSTFIX, MAIL, RCPT, DATA, HEADER, packet("L", b"X\0old\0"))
        return conversation.packets(EOM)[:-1]

    def test_same_header_twice(self) -> None:
        """
        Of two changes of one field the MTA is told the last; of others it is told all.
        """
        first = b"\0\0\0\1"
        self.assertEqual(
            self.merged([("chgheader", "X", 1, "a")], [("chgheader", "x", 1, "b")]),
            [("m", first + b"x\0b\0")],
        )
        self.assertEqual(
            self.merged([("chgheader", "X", 1, None)], [("chgheader", "X", 1, "b")]),
            [("m", first + b"X\0\0"), ("m", first + b"X\0b\0")],
        )
        self.assertEqual(
            self.merged(
                [("chgheader", "X", 1, "a"), ("addheader", "Y", "y")],
                [("chgheader", "X", 1, "b"), ("addrcpt", "<a>")],
            ),
            [("h", b"Y\0y\0"), ("m", first + b"X\0b\0"), ("+", b"<a>\0")],
        )
        self.assertEqual(
            self.merged(
                [("chgheader", "X", 1, "a"), ("addrcpt", "<a>")], [("chgheader", "X", 1, "b")]
            ),
            [("+", b"<a>\0"), ("m", first + b"X\0b\0")],
        )
        self.assertEqual(
            self.merged([("addheader", "X", "a")], [("chgheader", "X", 2, "b")]),
            [("h", b"X\0a\0"), ("m", b"\0\0\0\2X\0b\0")],
        )

    def test_edits_of_the_envelope_are_all_told_in_the_order_made(self) -> None:
        """
        Edits of the envelope are all told, in the order made: what a later one undoes is for the
        MTA to know.
        """
        self.assertEqual(
            self.merged([("chgfrom", "<a>")], [("chgfrom", "<b>", "RET=HDRS")]),
            [("e", b"<a>\0"), ("e", b"<b>\0RET=HDRS\0")],
        )
        self.assertEqual(
            self.merged(
                [("addrcpt", "a"), ("addheader", "Y", "y")],
                [("delrcpt", "<a>")],
                [("addrcpt", "a")],
            ),
            [("+", b"a\0"), ("h", b"Y\0y\0"), ("-", b"<a>\0"), ("+", b"a\0")],
        )

    def test_milters_without_some_callbacks(self) -> None:
        """
        A milter is called for what it has, whichever that is.
        """
        for wanted in CONTENT:
            cls = milter(**{wanted: None})
            self.assertEqual(chain(cls, full()).letters(MESSAGE), 7 * "c")
            self.assertEqual(names(cls.calls), [wanted])

    def test_list_of_macros_for_connect_tells_the_mtas_apart(self) -> None:
        """
        A list of macros for connect has the one that tells the MTA from its fellow.
        """

        def negotiate(self: Any, *_: Any) -> None:
            self.smfi_setsymlist(c.SMFIM_CONNECT, self.wanted)

        for wanted, expected in (("j", b"j v"), ("v j", b"v j")):
            conversation = Conversation(milter(negotiate=negotiate, wanted=wanted), merge="chain")
            ((_, payload),) = conversation.packets(offer())
            self.assertEqual(payload[12:], b"\0\0\0\0" + expected + b"\0")

    @skipIf(COMPILED, "nothing can be replaced in a compiled engine")
    def test_bug_of_ours(self) -> None:
        """
        An error of the chain itself is logged as what it is, and answered with TEMPFAIL where an
        answer is owed.
        """

        def broken(*_: Any) -> None:
            raise KeyError("a bug")

        for quiet, expected in (((), b"\0\0\0\1t"), (("helo",), b"")):
            waiting = Waiting()
            conversation = chain(full(helo=waiting, quiet=quiet))
            conversation.send(HELO)
            self.patch(conversation.protocol._conversation.merge, "_end_below", broken)
            conversation.transport.clear()
            waiting.fire()
            self.assertEqual(conversation.transport.value(), expected)
            self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
            conversation.drop()


class KeptTests(ConversationTestCase):
    """
    Where no answer was promised.
    """

    def test_final_answer_is_kept(self) -> None:
        """
        A final answer where none was promised is given at the next step that is answered; a
        refusal of one recipient is the milter's bug there.
        """
        for stage, following, answer in (
            ("envfrom", RCPT, "r"),
            ("envrcpt", DATA, "t"),
            ("data", HEADER, "r"),
        ):
            conversation = chain(full("One", quiet=(stage,), **{stage: c.SMFIS_REJECT}))
            before, last = STAGES[stage]
            conversation.send(before)
            self.assertEqual(conversation.letters(last), "", stage)
            self.assertEqual(conversation.letters(following), answer, stage)
        self.assertEqual(len(self.flushLoggedErrors(ReturnCodeError)), 1)

    def test_for_the_connection(self) -> None:
        """
        One given at connect or HELO holds for all of the connection.
        """
        for stage in ("connect", "helo"):
            conversation = chain(full("One", quiet=(stage,), **{stage: c.SMFIS_TEMPFAIL}))
            before, last = STAGES[stage]
            conversation.send(before)
            self.assertEqual(conversation.letters(last), "", stage)
            self.assertEqual(conversation.letters(MAIL, MAIL), "tt", stage)

    def test_one_given_at_unknown_command_is_about_nothing_else_and_dropped(self) -> None:
        """
        One given at an unknown command is about nothing else, and dropped.
        """
        conversation = chain(full("One", quiet=("unknown",), unknown=c.SMFIS_REJECT))
        self.assertEqual(conversation.letters(UNKNOWN, MAIL), "c")

    def test_content_that_is_not_answered_is_taken_in_all_the_same(self) -> None:
        """
        Content that is not answered is taken in all the same.
        """
        cls = full("One", quiet=("header", "eoh", "body"))
        conversation = chain(cls)
        self.assertEqual(conversation.letters(MESSAGE), "cccc")
        self.assertEqual(names(cls.calls)[-4:], list(CONTENT))
