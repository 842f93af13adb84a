"""
Tests of `yatxmilter._engine.context`: when a milter may do what, its reply text and symbol lists.
"""

from __future__ import annotations

from typing import Any

from tests.contexts import EXAMPLES, FLAGS, ContextCase, Progress, conversation_of
from tests.helpers import outcome
from yatxmilter import constants as c
from yatxmilter._engine.context import Context
from yatxmilter._wire.commands import ACTIONS
from yatxmilter.errors import NotNegotiated, UsageError, ValueNotSendable, WrongStage


class FlagTests(ContextCase):
    """
    An edit needs its flag in what this milter asked for.
    """

    def test_function_works_with_its_own_flag_only(self) -> None:
        """
        With only its own flag a function works; with all others and without its own it does not.
        """
        for function, args in EXAMPLES.items():
            self.context.actions = FLAGS[function]
            self.assertEqual(len(self.call(function, *args)), 1, function)
            self.context.actions = c.SMFI_CURR_ACTS & ~FLAGS[function]
            self.assertIs(self.call(function, *args), NotNegotiated, function)
            self.assertEqual((self.context.outbox, self.context.bodies), ([], 0))

    def test_functions_of_the_table(self) -> None:
        """
        The functions that need a flag are those of the table of actions.
        """
        table = {row.function.removeprefix("smfi_"): row.flag for row in ACTIONS.values()}
        self.assertEqual(table, FLAGS | {"progress": 0})

    def test_error_names_function_flag_it_needs_and_those_that_there_are(self) -> None:
        """
        The error names the function, the flag it needs and those that there are.
        """
        self.context.actions = c.SMFIF_ADDHDRS
        error = self.assertRaises(NotNegotiated, self.context.quarantine, "held")
        self.assertIn("smfi_quarantine() needs SMFIF_QUARANTINE", str(error))
        self.assertIn("it has SMFIF_ADDHDRS", str(error))

    def test_progress_needs_none(self) -> None:
        """
        Progress needs no flag.
        """
        self.context.actions = 0
        self.context.progress()
        self.assertEqual(self.progressed, 1)


class StageTests(ContextCase):
    """
    Edits and progress belong to the end of the message, symbol lists to negotiation.
    """

    def test_outside_xxfi_eom_no_edit_is_made(self) -> None:
        """
        Outside xxfi_eom no edit is made, and the error names the function and the right place.
        """
        self.context.editing = False
        for function, args in EXAMPLES.items():
            error = self.assertRaises(WrongStage, getattr(self.context, function), *args)
            self.assertTrue(str(error).startswith(f"smfi_{function}() works in xxfi_eom"), error)
        self.assertEqual((self.context.outbox, self.context.bodies), ([], 0))

    def test_progress_goes_out_at_once_in_xxfi_eom_and_not_at_all_elsewhere(self) -> None:
        """
        Progress goes out at once in xxfi_eom, and not at all elsewhere.
        """
        self.context.progress()
        self.context.progress()
        self.assertEqual((self.progressed, self.context.outbox), (2, []))
        self.context.editing = False
        error = self.assertRaises(WrongStage, self.context.progress)
        self.assertTrue(str(error).startswith("smfi_progress() works in xxfi_eom"), error)
        self.assertEqual(self.progressed, 2)

    def test_stage_before_flag(self) -> None:
        """
        At the wrong stage the stage is what the error is about, even if the flag is missing too.
        """
        self.context.editing = False
        self.context.actions = 0
        self.assertRaises(WrongStage, self.context.addheader, "N", "v")

    def test_end_of_message_ends_it(self) -> None:
        """
        When the message has ended its edits are gone, and none can be made any more.
        """
        self.context.addheader("N", "v")
        self.context.replacebody(b"x")
        self.context.end_message()
        self.assertEqual((self.context.outbox, self.context.bodies), ([], 0))
        self.assertRaises(WrongStage, self.context.addheader, "N", "v")

    def test_context_that_has_not_negotiated_can_do_nothing_yet(self) -> None:
        """
        A context that has not negotiated can do nothing yet.
        """
        fresh = Context(conversation_of(Progress()))
        for function, args in EXAMPLES.items():
            self.assertRaises(UsageError, getattr(fresh, function), *args)
        self.assertRaises(WrongStage, fresh.setsymlist, 0, "i")
        self.assertEqual((fresh.actions, fresh.symbol_lists, fresh.reply), (0, {}, None))


class ReplyTests(ContextCase):
    """
    The text of C{smfi_setreply} is kept until it is used, or its message ends.
    """

    def test_last_call_wins_be_it_of_one_line_or_several(self) -> None:
        """
        The last call wins, one line or several.
        """
        self.context.setreply("550", "5.7.1", "a")
        self.assertEqual(self.context.reply, b"550 5.7.1 a")
        self.context.setmlreply("451", None, "a", "b")
        self.assertEqual(self.context.reply, b"451-4.0.0 a\r\n451 4.0.0 b")

    def test_refused_call_changes_nothing(self) -> None:
        """
        A call that fails leaves the previous text in place.
        """
        self.context.setreply("550", None, "a")
        self.assertRaises(ValueNotSendable, self.context.setreply, "250", None, "b")
        self.assertRaises(ValueNotSendable, self.context.setmlreply, "550", None)
        self.assertEqual(self.context.reply, b"550 a")

    def test_5xx_text_goes_with_reject_a_4xx_one_with_tempfail(self) -> None:
        """
        A 5xx text goes with REJECT, a 4xx one with TEMPFAIL; with any other code it stays.
        """
        fitting = {("550", c.SMFIS_REJECT), ("451", c.SMFIS_TEMPFAIL)}
        for rcode in ("550", "451"):
            for code in c.ReturnCode:
                self.context.setreply(rcode, None, "x")
                text = rcode.encode() + b" x"
                fits = (rcode, code) in fitting
                self.assertEqual(self.context.take_reply(code), text if fits else None)
                self.assertEqual(self.context.reply, None if fits else text)

    def test_text_that_was_used_is_gone(self) -> None:
        """
        A text that was used is gone: the next recipient gets the bare answer.
        """
        self.context.setreply("550", None, "x")
        self.assertEqual(self.context.take_reply(c.SMFIS_REJECT), b"550 x")
        self.assertEqual(self.context.take_reply(c.SMFIS_REJECT), None)

    def test_gone_with_the_message(self) -> None:
        """
        A text that was not used is gone when its message has ended.
        """
        self.context.setreply("550", None, "x")
        self.context.end_message()
        self.assertEqual(self.context.take_reply(c.SMFIS_REJECT), None)

    def test_reply_can_be_set_in_any_callback_and_needs_no_flag(self) -> None:
        """
        A reply can be set in any callback and needs no flag.
        """
        self.context.editing = False
        self.context.actions = 0
        self.context.setreply("450", "4.7.1", "x")
        self.assertEqual(self.context.take_reply(c.SMFIS_TEMPFAIL), b"450 4.7.1 x")


class SymbolListTests(ContextCase):
    """
    Symbol lists are set in negotiation.
    """

    def setUp(self) -> None:
        """
        Go to negotiation.
        """
        super().setUp()
        self.context.editing = False
        self.context.negotiating = True

    def test_each_stage_can_have_a_list_an_empty_one_too(self) -> None:
        """
        Each stage can have a list, an empty one too; no flag is needed.
        """
        self.context.actions = 0
        for stage in range(c.SMFIM_FIRST, c.SMFIM_LAST + 1):
            self.context.setsymlist(stage, "" if stage == 1 else f"i {{m{stage}}}")
        self.assertEqual(self.context.symbol_lists, {
            0: b"i {m0}", 1: b"", 2: b"i {m2}", 3: b"i {m3}", 4: b"i {m4}", 5: b"i {m5}",
            6: b"i {m6}",
        })  # fmt: skip

    def test_other_stages_and_what_is_no_list_are_refused(self) -> None:
        """
        Other stages and what is no list are refused.
        """
        rows: list[tuple[Any, ...]] = [(stage, "i") for stage in (-1, 7, None, "0", 1.0)]
        rows += [(0, value) for value in (None, 5, ["i"], "i\0j", "i\nj", "i\rj", "\ud800")]
        results = {repr(row): outcome(self.context.setsymlist, *row) for row in rows}
        self.assertEqual(results, {repr(row): ValueNotSendable for row in rows})
        self.assertEqual(self.context.symbol_lists, {})

    def test_once_for_each_stage(self) -> None:
        """
        A second list for a stage is refused, naming it, and the first one stays.
        """
        self.context.setsymlist(c.SMFIM_EOM, b"i")
        error = self.assertRaises(ValueNotSendable, self.context.setsymlist, c.SMFIM_EOM, "j")
        self.assertEqual(str(error), "SMFIM_EOM has a symbol list already")
        self.assertEqual(self.context.symbol_lists, {c.SMFIM_EOM: b"i"})

    def test_only_in_negotiation(self) -> None:
        """
        Outside negotiation a list is refused, as it would have no effect.
        """
        self.context.negotiating = False
        error = self.assertRaises(WrongStage, self.context.setsymlist, 0, "i")
        self.assertIn("xxfi_negotiate", str(error))

    def test_negotiation_is_no_time_for_edits_or_progress(self) -> None:
        """
        Negotiation is no time for edits or progress.
        """
        self.assertRaises(WrongStage, self.context.addheader, "N", "v")
        self.assertRaises(WrongStage, self.context.progress)


class MacroTests(ContextCase):
    """
    C{smfi_getsymval} looks into the macros of the connection.
    """

    def test_name_may_be_text_or_bytes(self) -> None:
        """
        A name may be text or bytes; what is unknown, or has no name, is None.
        """
        self.macros.put(b"Cj\x00mx\x00\xff\x00byte\x00{daemon_name}\x00MTA\x00")
        rows = [("j", "mx"), (b"{j}", "mx"), ("{daemon_name}", "MTA"), (b"\xff", "byte"),
                ("\udcff", "byte"), ("i", None), (b"i", None), ("", None), (b"", None)]  # fmt: skip
        self.assertEqual([(name, self.context.getsymval(name)) for name, _ in rows], rows)

    def test_name_that_is_no_text_is_refused(self) -> None:
        """
        A name that is no text is refused.
        """
        for name in (None, 5, ["j"]):
            self.assertRaises(ValueNotSendable, self.context.getsymval, name)

    def test_macros_can_be_looked_up_in_any_callback(self) -> None:
        """
        Macros can be looked up in any callback.
        """
        self.context.editing = False
        self.macros.put(b"Mi\x001\x00")
        self.assertEqual(self.context.getsymval("i"), "1")
