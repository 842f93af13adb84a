"""
What the library promises about several milters on one connection, through its public names only.

Milters are called One, Two and Three, in this order; ``run`` plays a step to them and gives the
letters of what the MTA is told.
"""

from __future__ import annotations

from itertools import permutations, product
from typing import Any

from twisted.internet.defer import Deferred

from tests.conversation_helpers import (
    ABORT,
    BODY,
    CONNECT,
    DATA,
    DECLINED,
    EOH,
    EOM,
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
    Waiting,
    full,
    macros,
    milter,
    names,
    offer,
    packet,
    started,
)
from yatxmilter import constants as c
from yatxmilter.errors import UsageError

BOTH = ("first", "strictest")
CONTINUE, REJECT, DISCARD = c.SMFIS_CONTINUE, c.SMFIS_REJECT, c.SMFIS_DISCARD
ACCEPT, TEMPFAIL, SKIP = c.SMFIS_ACCEPT, c.SMFIS_TEMPFAIL, c.SMFIS_SKIP
LETTERS = {CONTINUE: "c", REJECT: "r", DISCARD: "d", ACCEPT: "a", TEMPFAIL: "t"}
IN_MESSAGE = ("envfrom", "envrcpt", "data", "header", "eoh", "body", "eom")


def asking(steps: int = 0, actions: int = 0, **members: Any) -> Any:
    """
    Make a milter that negotiates exactly this.
    """
    return full(negotiate=(CONTINUE, actions, steps), **members)


class NegotiationTests(ConversationTestCase):
    """
    Section 4: negotiation, merged.
    """

    def steps(self, *wanted: int, offered: int = 0x1FFFFF) -> int:
        """
        Give the steps agreed upon for milters that ask for these.
        """
        return Conversation(*(asking(steps) for steps in wanted)).agree(steps=offered)[2]

    def test_version_is_the_lower_of_the_mtas_and_6(self) -> None:
        """
        The version is the lower of the MTA's and 6.
        """
        for theirs, agreed in {2: 2, 4: 4, 6: 6, 7: 6, 99: 6}.items():
            self.assertEqual(
                Conversation(milter(xxfi_flags=0), milter(xxfi_flags=0)).agree(version=theirs)[0],
                agreed,
            )

    def test_actions_are_the_union_and_each_milter_may_use_its_own_only(self) -> None:
        """
        Actions are the union, and each milter may use its own only.
        """
        refused: list[str] = []

        def eom(self: Any) -> None:
            try:
                self.smfi_quarantine("why")
            except UsageError as error:
                refused.append(str(error))

        one = milter("One", xxfi_flags=c.SMFIF_ADDHDRS, eom=eom)
        two = milter("Two", xxfi_flags=c.SMFIF_QUARANTINE, eom=eom)
        conversation = Conversation(one, two)
        self.assertEqual(conversation.agree()[1], c.SMFIF_ADDHDRS | c.SMFIF_QUARANTINE)
        self.assertEqual(conversation.packets(EOM), [("q", b"why\0"), ("c", b"")])
        self.assertEqual(len(refused), 1)
        self.assertIn("SMFIF_QUARANTINE", refused[0])

    def test_step_is_declined_where_every_milter_declined_it(self) -> None:
        """
        A step is declined where every milter declined it; none is called for what it declined.
        """
        self.assertEqual(self.steps(c.SMFIP_NOHELO | c.SMFIP_NODATA, c.SMFIP_NOHELO), 2)
        one, two = asking(c.SMFIP_NOHELO), asking()
        conversation = started(one, two)
        self.assertEqual(conversation.letters(HELO), "c")
        self.assertEqual(names(one.calls), ["negotiate"])
        self.assertEqual(names(two.calls), ["negotiate", "helo"])

    def test_no_reply_is_agreed_where_every_milter_asked_for_it(self) -> None:
        """
        No reply is agreed where every milter that wants the step asked for it, and it is offered.
        """
        both = c.SMFIP_NR_HDR
        self.assertEqual(self.steps(both, both), both)
        self.assertEqual(self.steps(both, 0), 0)
        self.assertEqual(self.steps(both, c.SMFIP_NOHDRS), both)
        self.assertEqual(self.steps(both, both, offered=0x37F), 0)

    def test_no_reply_of_one(self) -> None:
        """
        Where the wire needs an answer after all, one is given for the milter that gives none.
        """
        one, two = asking(c.SMFIP_NR_HDR, header=c.SMFIS_NOREPLY), asking()
        conversation = started(one, two)
        self.assertEqual(conversation.letters(MAIL, RCPT, DATA, HEADER), "cccc")

    def test_skip_is_agreed_when_offered_and_wanted(self) -> None:
        """
        SKIP is agreed when offered and wanted, and sent when all who want the body have skipped.
        """
        two_skips: list[Any] = [CONTINUE, SKIP]
        one = full("One", body=SKIP)
        two = full("Two", body=lambda *_: two_skips.pop(0))
        three = milter("Three")
        for merge in BOTH:
            two_skips[:] = [CONTINUE, SKIP]
            one.calls.clear()
            conversation = Conversation(one, two, three, merge=merge)
            self.assertEqual(conversation.agree()[2], c.SMFIP_SKIP)
            conversation.send(MAIL, RCPT, DATA, EOH)
            self.assertEqual(conversation.letters(BODY, BODY, EOM), "csc")
            self.assertEqual(names(one.calls).count("body"), 1)
        self.assertEqual(Conversation(milter(), milter()).agree()[2], DECLINED)

    def test_skip_not_offered(self) -> None:
        """
        A milter's SKIP works even where the MTA does not offer it.
        """
        one, two = full("One", body=SKIP), full("Two")
        conversation = Conversation(one, two)
        self.assertEqual(conversation.agree(steps=0x37F)[2], 0)
        conversation.send(MAIL, RCPT, DATA, EOH)
        self.assertEqual(conversation.letters(BODY, BODY), "cc")
        self.assertEqual(names(one.calls).count("body"), 1)
        self.assertEqual(names(two.calls).count("body"), 2)

    def test_recipients_that_mta_refused_are_shown_to_those_who_asked_for_them(self) -> None:
        """
        Recipients that the MTA refused are shown to those who asked for them.
        """
        self.assertEqual(self.steps(c.SMFIP_RCPT_REJ, 0), c.SMFIP_RCPT_REJ)
        one, two = asking(c.SMFIP_RCPT_REJ), asking()
        conversation = started(one, two)
        refused = macros("R", b"{rcpt_mailer}", b"error", b"{rcpt_host}", b"5.1.1") + RCPT
        good = macros("R", b"{rcpt_mailer}", b"local") + RCPT
        self.assertEqual(conversation.letters(MAIL, refused, good), "ccc")
        self.assertEqual(names(one.calls).count("envrcpt"), 2)
        self.assertEqual(names(two.calls).count("envrcpt"), 1)

    def test_one_that_did_not_ask_for_leading_spaces_sees_none(self) -> None:
        """
        One that did not ask for leading spaces sees none, and need not write any.
        """

        def eom(self: Any) -> None:
            self.smfi_addheader("X", "y")
            self.smfi_insheader(0, "X", "y")
            self.smfi_chgheader("X", 1, "y")

        one = asking(c.SMFIP_HDR_LEADSPC, 0x1FF, eom=eom)
        two = asking(0, 0x1FF, eom=eom)
        conversation = Conversation(one, two)
        self.assertEqual(conversation.agree()[2], c.SMFIP_HDR_LEADSPC)
        conversation.send(MAIL, RCPT, DATA)
        for value in (b" a", b"  a", b"\ta", b"a", b""):
            conversation.send(packet("L", b"X\0" + value + b"\0"))
        seen = [[call[2] for call in cls.calls if call[0] == "header"] for cls in (one, two)]
        self.assertEqual(seen[0], [" a", "  a", "\ta", "a", ""])
        self.assertEqual(seen[1], ["a", " a", "\ta", "a", ""])
        conversation.send(EOH)
        zero, first = b"\0\0\0\0", b"\0\0\0\1"
        self.assertEqual(
            conversation.packets(EOM),
            [
                ("h", b"X\0y\0"),
                ("i", zero + b"X\0y\0"),
                ("m", first + b"X\0y\0"),
                ("h", b"X\0 y\0"),
                ("i", zero + b"X\0 y\0"),
                ("m", first + b"X\0 y\0"),
                ("c", b""),
            ],
        )

    def test_delete_with_leading_space(self) -> None:
        """
        Deleting a header stays deleting, whoever asked for leading spaces.
        """

        def eom(self: Any) -> None:
            self.smfi_chgheader("X", 1, None)

        conversation = started(asking(c.SMFIP_HDR_LEADSPC), asking(0, 0x1FF, eom=eom))
        conversation.send(MAIL, RCPT)
        self.assertEqual(conversation.packets(EOM)[0], ("m", b"\0\0\0\1X\0\0"))

    def test_largest_size_asked_for_and_offered_is_agreed(self) -> None:
        """
        The largest size asked for and offered; one that did not ask gets chunks of 65,535 bytes.
        """
        large, larger = c.SMFIP_MDS_256K, c.SMFIP_MDS_1M
        everything = 0x1FFFFF | large | larger
        self.assertEqual(self.steps(large, larger, offered=everything), larger)
        self.assertEqual(self.steps(large, 0, offered=everything), large)
        self.assertEqual(self.steps(0, 0, offered=everything), 0)
        one, two = asking(large), asking()
        conversation = Conversation(one, two)
        conversation.agree(steps=everything)
        conversation.send(MAIL, RCPT, DATA, EOH)
        body = bytes(range(256)) * 800
        self.assertEqual(conversation.letters(packet("B", body)), "c")
        chunks = [[call[1] for call in cls.calls if call[0] == "body"] for cls in (one, two)]
        self.assertEqual(chunks[0], [body])
        self.assertEqual([len(chunk) for chunk in chunks[1]], [65535, 65535, 65535, 8195])
        self.assertEqual(b"".join(chunks[1]), body)

    def test_symbol_lists_are_a_union_in_the_order_first_asked(self) -> None:
        """
        Symbol lists are a union in first-asked order; default names stay where one relies on them.
        """

        def listing(**lists: str) -> Any:
            def negotiate(self: Any, *_: Any) -> None:
                for stage, symbols in lists.items():
                    self.smfi_setsymlist(getattr(c, f"SMFIM_{stage}"), symbols)

            return full(negotiate=negotiate)

        both = Conversation(listing(EOM="i {b}"), listing(EOM="{a} i"))
        ((_, payload),) = both.packets(offer())
        self.assertEqual(payload[12:], b"\0\0\0\5i {b} {a}\0")
        one = Conversation(listing(CONNECT="{client_port}"), listing())
        ((_, payload),) = one.packets(offer())
        self.assertEqual(payload[12:16], b"\0\0\0\0")
        symbols = payload[16:-1].split(b" ")
        self.assertEqual(symbols[0], b"{client_port}")
        self.assertLessEqual({b"j", b"_", b"{daemon_name}"}, set(symbols))

    def test_what_one_asks_for_and_is_not_offered_closes_and_is_logged(self) -> None:
        """
        What one milter asks for and is not offered, or its REJECT, closes; the log names it.
        """
        for bad in (
            milter("Bad", xxfi_flags=c.SMFIF_QUARANTINE),
            milter("Bad", negotiate=REJECT),
            asking(c.SMFIP_SKIP),
        ):
            bad.xxfi_name = "Bad"
            good = full("Good", xxfi_flags=0)
            conversation = Conversation(good, bad)
            self.assertEqual(conversation.send(offer(0x37F, 0x1F)), b"")
            self.assertTrue(conversation.closed)
            self.assertEqual(names(good.calls), ["close"])
            self.assertIn("Bad", self.log_text())
            self.events.clear()

    def test_offer_is_the_mtas(self) -> None:
        """
        Each milter sees the MTA's offer, not what was merged.
        """
        one = asking(DECLINED, 1)
        two = full(negotiate=(CONTINUE, 2, 0))
        Conversation(one, two).agree(actions=0x3F)
        self.assertEqual([one.calls[0], two.calls[0]], 2 * [("negotiate", 0x3F, 0x1FFFFF)])


class BothMergesTests(ConversationTestCase):
    """
    Section 5: what holds for all merges.
    """

    def test_at_every_step_all_are_called_in_order(self) -> None:
        """
        At every step all are called, in order, and all continues make a CONTINUE.
        """
        for merge, (stage, (before, last)) in product(BOTH, STAGES.items()):
            order: list[str] = []

            def note(self: Any, *_: Any, order: list[str] = order) -> None:
                order.append(self.xxfi_name)

            conversation = started(
                full("One", **{stage: note}), full("Two", **{stage: note}), merge=merge
            )
            conversation.send(before)
            order.clear()
            self.assertEqual(conversation.letters(last), "c")
            self.assertEqual(order, ["One", "Two"])

    def test_any_order_of_answers(self) -> None:
        """
        All are waited for, in whatever order they answer, and one answer is written.
        """
        for merge, order in product(BOTH, permutations(range(3))):
            answers = [Waiting() for _ in range(3)]
            conversation = started(*(full(header=one) for one in answers), merge=merge)
            conversation.send(MAIL, RCPT, DATA)
            self.assertEqual(conversation.letters(HEADER), "")
            for place in order[:-1]:
                answers[place].fire()
                self.assertEqual(conversation.written(), b"")
            answers[order[-1]].fire()
            self.assertEqual(conversation.written(), packet("c"))

    def test_reject_and_tempfail_of_recipient_are_about_that_recipient_alone(self) -> None:
        """
        REJECT and TEMPFAIL of a recipient are about that recipient alone.
        """
        for merge, code in product(BOTH, (REJECT, TEMPFAIL)):
            one, two = full("One", envrcpt=code), full("Two")
            conversation = started(one, two, merge=merge)
            letter = LETTERS[code]
            self.assertEqual(conversation.letters(MAIL, RCPT, RCPT, EOM), f"c{letter}{letter}c")
            self.assertNotIn("abort", names(one.calls) + names(two.calls))
            self.assertIn("eom", names(two.calls))

    def test_abort_of_the_others(self) -> None:
        """
        When an answer ends the message, every other milter that was in it gets `xxfi_abort`.
        """
        for merge, stage in product(BOTH, IN_MESSAGE):
            if stage in ("envrcpt", "eom"):
                continue
            one, two, three = full("One"), full("Two", **{stage: REJECT}), full("Three")
            conversation = started(one, two, three, merge=merge)
            before, last = STAGES[stage]
            conversation.send(before)
            self.assertEqual(conversation.letters(last), "r")
            self.assertEqual(names(one.calls).count("abort"), 1, (merge, stage))
            self.assertEqual(names(two.calls).count("abort"), 0, (merge, stage))
            # At MAIL a first answer keeps those behind it out of the message.
            was_in = merge == "strictest" or stage != "envfrom"
            self.assertEqual(names(three.calls).count("abort"), int(was_in), (merge, stage))
            conversation.send(ABORT, QUIT)
            for cls in (one, two, three):
                self.assertLessEqual(names(cls.calls).count("abort"), 1)
                self.assertEqual(names(cls.calls).count("close"), 1)

    def test_no_abort_outside_messages(self) -> None:
        """
        A REJECT at connect or HELO aborts nothing.
        """
        for merge, stage in product(BOTH, ("connect", "helo")):
            one, two = full("One"), full("Two", **{stage: REJECT})
            conversation = started(one, two, merge=merge)
            before, last = STAGES[stage]
            conversation.send(before)
            self.assertEqual(conversation.letters(last), "r")
            self.assertNotIn("abort", names(one.calls) + names(two.calls))

    def test_text_of_the_decider(self) -> None:
        """
        The text is that of the milter that decides.
        """

        def saying(text: str, code: Any) -> Any:
            def helo(self: Any, *_: Any) -> Any:
                self.smfi_setreply("550", "5.7.1", text)
                return code

            return helo

        for merge in BOTH:
            conversation = started(
                full(helo=saying("one", CONTINUE)), full(helo=saying("two", REJECT)), merge=merge
            )
            self.assertEqual(conversation.packets(HELO), [("y", b"550 5.7.1 two\0")])

    def test_answer_to_an_unknown_command_ends_nothing(self) -> None:
        """
        An answer to an unknown command ends nothing.
        """
        for merge in BOTH:
            one, two = full("One"), full("Two", unknown=REJECT)
            conversation = started(one, two, merge=merge)
            self.assertEqual(conversation.letters(MAIL, UNKNOWN, RCPT, EOM), "crcc")
            self.assertNotIn("abort", names(one.calls) + names(two.calls))

    def test_when_the_mta_goes_all_that_is_awaited_is_cancelled(self) -> None:
        """
        When the MTA goes, all that is awaited is cancelled, and all ends are called once.
        """
        for merge in BOTH:
            answers = [Waiting(), Waiting()]
            milters = [full(eoh=one, mta_close=None) for one in answers]
            conversation = started(*milters, merge=merge)
            conversation.send(MAIL, RCPT, DATA, EOH)
            conversation.drop()
            for cls, answer in zip(milters, answers, strict=True):
                self.assertEqual(answer.cancelled, 1)
                self.assertEqual(names(cls.calls)[-3:], ["abort", "close", "mta_close"])
                self.assertEqual(names(cls.calls).count("abort"), 1)

    def test_what_one_milter_does_to_its_argv_does_not_show_in_anothers(self) -> None:
        """
        What one milter does to its argv does not show in another's.
        """
        two = full("Two")

        def spoil(self: Any, argv: list[str]) -> None:
            argv.clear()

        for merge in BOTH:
            two.calls.clear()
            started(full("One", envfrom=spoil), two, merge=merge).send(MAIL)
            self.assertEqual(two.calls, [("envfrom", ["<s@example.org>"])])


class FirstTests(ConversationTestCase):
    """
    Section 5: ``merge="first"``, the default.
    """

    def test_first_answer_other_than_continue_is_the_answer(self) -> None:
        """
        The first answer that is no continue is the answer, ACCEPT included.
        """
        for one, two in product(LETTERS, LETTERS):
            conversation = started(full(eoh=one), full(eoh=two))
            conversation.send(MAIL, RCPT, DATA)
            decides = two if one is CONTINUE else one
            self.assertEqual(conversation.letters(EOH), LETTERS[decides])

    def test_first_answer_at_once_keeps_others_from_being_called(self) -> None:
        """
        A first answer given at once keeps those behind it from being called for that step.
        """
        one, two = full("One", helo=REJECT), full("Two")
        self.assertEqual(started(one, two).letters(HELO), "r")
        self.assertEqual(names(two.calls), [])

    def test_first_that_answers_decides_the_others_are_cancelled(self) -> None:
        """
        The first that answers decides, the others are cancelled, and what they say is dropped.
        """
        slow: list[Deferred[Any]] = []

        def stubborn(*_: Any) -> Any:
            slow.append(Deferred(lambda _: None))
            return slow[-1]

        cancelled, quick = Waiting(), Waiting()
        one = full("One", eoh=stubborn)
        two = full("Two", eoh=quick)
        three = full("Three", eoh=cancelled)
        conversation = started(one, two, three)
        conversation.send(MAIL, RCPT, DATA, EOH)
        quick.fire(REJECT)
        self.assertEqual(conversation.written(), packet("r"))
        self.assertEqual(cancelled.cancelled, 1)
        self.assertTrue(slow[0].called)
        self.assertEqual(names(one.calls)[-1], "abort")
        self.assertEqual(names(three.calls)[-1], "abort")
        self.assertEqual(conversation.letters(MAIL), "c")

    def test_accept_is_for_all(self) -> None:
        """
        One milter's ACCEPT ends filtering of the message for all.
        """
        one, two = full("One", envrcpt=ACCEPT), full("Two", envrcpt=Waiting())
        conversation = started(one, two)
        self.assertEqual(conversation.letters(MAIL, RCPT, EOM), "ca")
        self.assertEqual(names(two.calls), ["envfrom", "abort"])


class StrictestTests(ConversationTestCase):
    """
    Section 5: ``merge="strictest"``.
    """

    ORDER = (DISCARD, REJECT, TEMPFAIL, CONTINUE)

    def test_strictest_answer_is_discard_then_reject_then_tempfail_then_continue(self) -> None:
        """
        DISCARD over REJECT over TEMPFAIL over CONTINUE; two ACCEPTs accept.
        """
        for one, two in product(LETTERS, LETTERS):
            conversation = started(full(eoh=one), full(eoh=two), merge="strictest")
            conversation.send(MAIL, RCPT, DATA)
            strict = [code for code in self.ORDER if code in (one, two)]
            expected = LETTERS[strict[0]] if strict else "a"
            self.assertEqual(conversation.letters(EOH), expected, (one, two))

    def test_all_are_called(self) -> None:
        """
        A strict answer stops nobody's call, and all are waited for.
        """
        slow = Waiting()
        two, three = full("Two", helo=slow), full("Three")
        conversation = started(full("One", helo=REJECT), two, three, merge="strictest")
        self.assertEqual(conversation.letters(HELO), "")
        self.assertEqual(names(three.calls), ["helo"])
        slow.fire(TEMPFAIL)
        self.assertEqual(conversation.written(), packet("r"))

    def test_accept_takes_itself_out(self) -> None:
        """
        ACCEPT takes its own milter out of the message, no other, and no longer.
        """
        one, two = full("One", envfrom=ACCEPT), full("Two", eom=REJECT)
        conversation = started(one, two, merge="strictest")
        self.assertEqual(conversation.letters(MESSAGE), "ccccccr")
        self.assertEqual(names(one.calls), ["envfrom"])
        conversation.send(MESSAGE)
        self.assertEqual(names(one.calls), ["envfrom", "envfrom"])

    def test_accept_of_the_connection(self) -> None:
        """
        ACCEPT at connect or HELO takes its own milter out of the connection.
        """
        for stage in ("connect", "helo"):
            one, two = full("One", **{stage: ACCEPT}), full("Two")
            conversation = started(one, two, merge="strictest")
            self.assertEqual(conversation.letters(CONNECT, HELO, MESSAGE, MESSAGE), 16 * "c")
            self.assertEqual(names(one.calls)[-1], stage)

    def test_left_and_then_rejected(self) -> None:
        """
        One that has accepted is not told of the message's end by another.
        """
        one, two = full("One", envfrom=ACCEPT), full("Two", data=REJECT)
        conversation = started(one, two, merge="strictest")
        self.assertEqual(conversation.letters(MAIL, RCPT, DATA), "ccr")
        self.assertEqual(names(one.calls), ["envfrom"])


class EditTests(ConversationTestCase):
    """
    Section 6: edits.
    """

    def editor(self, name: str, waiting: Any = None, code: Any = None, **members: Any) -> Any:
        """
        Make a milter that adds two headers of its name, before and after it waits.
        """

        def eom(self: Any) -> Any:
            self.smfi_addheader(name, "1")
            if waiting is None:
                self.smfi_addheader(name, "2")
                return code
            return waiting().addCallback(lambda code: self.smfi_addheader(name, "2") or code)

        return milter(name, eom=eom, **members)

    def test_edits_come_in_the_milters_order_whichever_finished_first(self) -> None:
        """
        Edits come in the milters' order, whichever finished first, in one write with the answer.
        """
        for merge, order in product(BOTH, permutations(range(3))):
            answers = [Waiting() for _ in range(3)]
            conversation = started(
                *(self.editor(f"X{place}", one) for place, one in enumerate(answers)), merge=merge
            )
            writes: list[bytes] = []
            self.patch(conversation.transport, "write", writes.append)
            conversation.send(EOM)
            for place in order:
                self.assertEqual(writes, [])
                answers[place].fire()
            headers = [(f"X{place}", number) for place in range(3) for number in "12"]
            expected = b"".join(
                packet("h", f"{name}\0{number}\0".encode()) for name, number in headers
            )
            self.assertEqual(writes, [expected + packet("c")])

    def test_edits_of_a_refused_message(self) -> None:
        """
        Of a message that several milters do not accept nothing is sent but the answer.
        """
        for merge in BOTH:
            conversation = started(self.editor("X"), self.editor("Y", code=REJECT), merge=merge)
            self.assertEqual(conversation.packets(EOM), [("r", b"")])
            self.assertEqual(conversation.packets(MAIL), [("c", b"")])

    def test_edits_do_not_stay(self) -> None:
        """
        The next message begins without edits.
        """
        codes: list[Any] = [REJECT, CONTINUE]

        def eom(self: Any) -> Any:
            code = codes.pop(0)
            if code is REJECT:
                self.smfi_addheader("X", "y")
            return code

        for merge in BOTH:
            codes[:] = [REJECT, CONTINUE]
            conversation = started(milter(eom=eom), milter(), merge=merge)
            self.assertEqual(conversation.letters(EOM), "r")
            self.assertEqual(conversation.letters(EOM), "c")

    def test_two_milters_that_replace_body_tempfail_and_log_names_both(self) -> None:
        """
        Two milters that replace the body: TEMPFAIL, and the log names both.
        """

        def eom(self: Any) -> None:
            self.smfi_replacebody(b"new")

        for merge in BOTH:
            self.events.clear()
            conversation = started(
                milter("Alpha", eom=eom), milter("Beta", eom=eom), milter("Gamma"), merge=merge
            )
            self.assertEqual(conversation.packets(EOM), [("t", b"")])
            self.assertIn("Alpha", self.log_text())
            self.assertIn("Beta", self.log_text())
            self.assertNotIn("Gamma", self.log_text())

    def test_one_milter_may_replace_body_in_as_many_pieces_as_it_likes(self) -> None:
        """
        One milter may replace the body, in as many pieces as it likes.
        """

        def eom(self: Any) -> None:
            self.smfi_replacebody(b"new")
            self.smfi_replacebody(b"er")

        for merge in BOTH:
            conversation = started(milter(eom=eom), self.editor("X"), merge=merge)
            self.assertEqual(conversation.letters(EOM), "bbhhc")

    def test_edits_with_accept(self) -> None:
        """
        Edits made before an ACCEPT at the end of the message are sent with it.
        """
        for merge, letter in (("first", "a"), ("strictest", "c")):
            conversation = started(self.editor("X"), self.editor("Y", code=ACCEPT), merge=merge)
            self.assertEqual(conversation.letters(EOM), "hhhh" + letter)

    def test_edits_of_one_still_at_work_are_lost_at_anothers_accept(self) -> None:
        """
        When another's ACCEPT ends the message, the edits of one that was still at work are lost.
        """
        slow = Waiting()
        one = self.editor("X", slow)
        conversation = started(one, self.editor("Y", code=ACCEPT))
        self.assertEqual(conversation.letters(EOM), "hha")
        self.assertEqual(slow.cancelled, 1)
        self.assertEqual(names(one.calls), ["eom", "abort"])

    def test_edits_of_a_failed_milter(self) -> None:
        """
        The edits that a milter made before it failed stand where its `on_error` lets the message
        pass; where it does not, none are sent.
        """
        from yatxmilter import MilterFactory

        def eom(self: Any) -> Any:
            self.smfi_addheader("X", "y")
            raise ValueError("bug")

        for merge in BOTH:
            for on_error, letters in ((CONTINUE, "hhhc"), (REJECT, "r"), (TEMPFAIL, "t")):
                conversation = started(
                    MilterFactory(milter(eom=eom), on_error=on_error),
                    self.editor("Y"),
                    merge=merge,
                )
                self.assertEqual(conversation.letters(EOM), letters, (merge, on_error))
        self.flushLoggedErrors(ValueError)
