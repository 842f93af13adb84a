"""
Tests of `yatxmilter.context`: libmilter's C{smfi_*} functions as one milter has them.

Packets were captured from libmilter. A refused call must leave nothing behind.
"""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from yatxmilter import constants as c
from yatxmilter.commands import ACTIONS
from yatxmilter.context import Context
from yatxmilter.errors import NotNegotiated, UsageError, ValueNotSendable, WrongStage
from yatxmilter.macros import MacroStore

from .helpers import outcome

#: Function -> arguments that are all right.
EXAMPLES: dict[str, tuple[Any, ...]] = {
    "addheader": ("X-Spam", "no"),
    "insheader": (0, "X-Top", "one"),
    "chgheader": ("Subject", 1, "[x] hi"),
    "replacebody": (b"new\r\n",),
    "addrcpt": ("<n@example.net>",),
    "addrcpt_par": ("<p@example.net>", "NOTIFY=NEVER"),
    "delrcpt": ("<r@example.net>",),
    "chgfrom": ("<new@example.org>", "RET=HDRS"),
    "quarantine": ("held",),
}
FLAGS = {
    "addheader": c.SMFIF_ADDHDRS,
    "insheader": c.SMFIF_ADDHDRS,
    "chgheader": c.SMFIF_CHGHDRS,
    "replacebody": c.SMFIF_CHGBODY,
    "addrcpt": c.SMFIF_ADDRCPT,
    "addrcpt_par": c.SMFIF_ADDRCPT_PAR,
    "delrcpt": c.SMFIF_DELRCPT,
    "chgfrom": c.SMFIF_CHGFROM,
    "quarantine": c.SMFIF_QUARANTINE,
}


class _Case(SynchronousTestCase):
    """
    A context at the end of a message, with every action agreed on.
    """

    def setUp(self) -> None:
        """
        Make the context, its macros, and a count of progress packets.
        """
        self.progressed = 0
        self.macros = MacroStore()
        self.context = Context(self.macros, self._progress)
        self.context.actions = c.SMFI_CURR_ACTS
        self.context.editing = True

    def _progress(self) -> None:
        self.progressed += 1

    def _call(self, function: str, *args: Any) -> Any:
        """
        Call a function; answer with the packets it made, or with the class of its error.
        """
        result = outcome(getattr(self.context, function), *args)
        return self.context.take_edits() if result is None else result

    def _assert_refused(self, function: str, rows: list[tuple[Any, ...]]) -> None:
        results = {repr(row): self._call(function, *row) for row in rows}
        self.assertEqual(results, {repr(row): ValueNotSendable for row in rows})
        self.assertEqual((self.context.outbox, self.context.bodies), ([], 0))


class PacketTests(_Case):
    """
    Each edit is the packet that libmilter would send.
    """

    ROWS: dict[tuple[Any, ...], bytes] = {
        ("insheader", 0, "X-Top", "one"): b"\x00\x00\x00\x0fi\x00\x00\x00\x00X-Top\x00one\x00",
        ("insheader", 0x7FFFFFFF, "N", "v"): b"\x00\x00\x00\x09i\x7f\xff\xff\xffN\x00v\x00",
        ("addheader", "X-Spam", "no"): b"\x00\x00\x00\x0bhX-Spam\x00no\x00",
        ("addheader", b"N", b"\xff"): b"\x00\x00\x00\x05hN\x00\xff\x00",
        ("addheader", "N", "\xfc\udcff"): b"\x00\x00\x00\x07hN\x00\xc3\xbc\xff\x00",
        ("addheader", "N", ""): b"\x00\x00\x00\x04hN\x00\x00",
        ("addheader", "N", "a\n b\n\tc"): b"\x00\x00\x00\x0bhN\x00a\n b\n\tc\x00",
        ("addheader", "a:b c", "v"): b"\x00\x00\x00\x09ha:b c\x00v\x00",
        ("chgheader", "Subject", 1, "[x] hi"):
            b"\x00\x00\x00\x14m\x00\x00\x00\x01Subject\x00[x] hi\x00",
        ("chgheader", "X-Old", 1, None): b"\x00\x00\x00\x0cm\x00\x00\x00\x01X-Old\x00\x00",
        ("chgheader", "X-Old", 1, ""): b"\x00\x00\x00\x0cm\x00\x00\x00\x01X-Old\x00\x00",
        ("chgheader", "X-Old", 0, b""): b"\x00\x00\x00\x0cm\x00\x00\x00\x00X-Old\x00\x00",
        ("quarantine", "held"): b"\x00\x00\x00\x06qheld\x00",
        ("addrcpt", "<n@example.net>"): b"\x00\x00\x00\x11+<n@example.net>\x00",
        ("addrcpt_par", "<p@example.net>", "NOTIFY=NEVER"):
            b"\x00\x00\x00\x1e2<p@example.net>\x00NOTIFY=NEVER\x00",
        ("addrcpt_par", "<p@example.net>", None): b"\x00\x00\x00\x112<p@example.net>\x00",
        ("addrcpt_par", "<p@example.net>", ""): b"\x00\x00\x00\x122<p@example.net>\x00\x00",
        ("delrcpt", "<r@example.net>"): b"\x00\x00\x00\x11-<r@example.net>\x00",
        ("chgfrom", "<new@example.org>", None): b"\x00\x00\x00\x13e<new@example.org>\x00",
        ("chgfrom", "<new@example.org>", "RET=HDRS"):
            b"\x00\x00\x00\x1ce<new@example.org>\x00RET=HDRS\x00",
        ("chgfrom", "<new@example.org>", ""): b"\x00\x00\x00\x14e<new@example.org>\x00\x00",
        ("chgfrom", "<>", None): b"\x00\x00\x00\x04e<>\x00",
        ("replacebody", b"new\r\n"): b"\x00\x00\x00\x06bnew\r\n",
        ("replacebody", b"\0\xff"): b"\x00\x00\x00\x03b\x00\xff",
        ("replacebody", "\xfc\udcff"): b"\x00\x00\x00\x04b\xc3\xbc\xff",
        ("replacebody", b""): b"\x00\x00\x00\x01b",
    }  # fmt: skip

    def test_packets(self) -> None:
        """
        The bytes are libmilter's, for text and for bytes, with and without optional arguments.
        """
        self.assertEqual(
            {row: self._call(*row) for row in self.ROWS},
            {row: [packet] for row, packet in self.ROWS.items()},
        )

    def test_order(self) -> None:
        """
        Edits are kept in the order in which they were made.
        """
        for function, args in EXAMPLES.items():
            self.assertIsNone(getattr(self.context, function)(*args))
        letters = [packet[4:5] for packet in self.context.outbox]
        self.assertEqual(letters, [b"h", b"i", b"m", b"b", b"+", b"2", b"-", b"e", b"q"])

    def test_take_edits(self) -> None:
        """
        Edits are given up once.
        """
        self.context.addheader("X-Spam", "no")
        self.context.replacebody(b"x")
        self.assertEqual(len(self.context.take_edits()), 2)
        self.assertEqual((self.context.take_edits(), self.context.bodies), ([], 0))


class BodyTests(_Case):
    """
    A new body is cut into packets.
    """

    def test_split(self) -> None:
        """
        A body is cut into packets of 65535 bytes; exactly so many are one packet.
        """
        for size, lengths in {
            65534: [65535], 65535: [65536], 65536: [65536, 2], 131070: [65536, 65536],
            131071: [65536, 65536, 2],
        }.items():  # fmt: skip
            body = (b"0123456789abcde" * 9000)[:size]
            packets = self._call("replacebody", body)
            self.assertEqual([int.from_bytes(packet[:4], "big") for packet in packets], lengths)
            self.assertEqual({packet[4:5] for packet in packets}, {b"b"})
            self.assertEqual(b"".join(packet[5:] for packet in packets), body)

    def test_count(self) -> None:
        """
        Each call counts once, however many packets it takes.
        """
        self.context.replacebody(b"x" * 200000)
        self.context.replacebody(b"")
        self.assertEqual((self.context.bodies, len(self.context.outbox)), (2, 5))

    def test_buffers(self) -> None:
        """
        A bytearray and a memoryview are bodies too, and later changes of them are not sent.
        """
        buffer = bytearray(b"abc")
        self.context.replacebody(buffer)
        self.context.replacebody(memoryview(buffer))
        buffer[0] = ord("X")
        self.assertEqual(self.context.outbox, [b"\0\0\0\4babc"] * 2)

    def test_no_body(self) -> None:
        """
        What is no body is refused: a number is not a length here.
        """
        self._assert_refused("replacebody", [(None,), (5,), (["x"],), ("\ud800",)])


class RefusedValueTests(_Case):
    """
    A value that cannot be sent is refused, and nothing is kept of the call.
    """

    #: What can stand in no string: line ends and NUL, what is no text, what has no encoding.
    NO_STRINGS = (None, 5, ["x"], "\ud800", "a\nb", "a\rb", "a\r\n b", "a\n b", "a\0b", b"a\n")
    #: What cannot be a header value: folding is LF and white space.
    NO_VALUES = (None, 5, ["x"], "\ud800", "a\nb", "a\n", "a\n\n b", "a\r\n b", "a\rb", "a\0b",
                 "\n", b"a\nX-Evil: 1")  # fmt: skip
    NO_INDEX = (-1, 0x80000000, None, "1", 1.0, True)

    def test_header_names(self) -> None:
        """
        A header name is not empty and has no CR, LF or NUL.
        """
        for name in (*self.NO_STRINGS, "", b""):
            self._assert_refused("addheader", [(name, "v")])
            self._assert_refused("insheader", [(0, name, "v")])
            self._assert_refused("chgheader", [(name, 1, "v"), (name, 1, None)])

    def test_header_values(self) -> None:
        """
        A header value has no CR or NUL, and white space behind each LF.
        """
        for value in self.NO_VALUES:
            self._assert_refused("addheader", [("N", value)])
            self._assert_refused("insheader", [(0, "N", value)])
            if value is not None:
                self._assert_refused("chgheader", [("N", 1, value)])

    def test_header_indexes(self) -> None:
        """
        A header index is a number from 0 to 2147483647, and no truth value.
        """
        self._assert_refused("insheader", [(index, "N", "v") for index in self.NO_INDEX])
        self._assert_refused("chgheader", [("N", index, "v") for index in self.NO_INDEX])

    def test_addresses(self) -> None:
        """
        An address is not empty and has no CR, LF or NUL.
        """
        for address in (*self.NO_STRINGS, "", b""):
            self._assert_refused("addrcpt", [(address,)])
            self._assert_refused("delrcpt", [(address,)])
            self._assert_refused("addrcpt_par", [(address, None), (address, "NOTIFY=NEVER")])
            self._assert_refused("chgfrom", [(address, None), (address, "RET=HDRS")])

    def test_esmtp_arguments(self) -> None:
        """
        ESMTP arguments may be empty or missing, but have no CR, LF or NUL.
        """
        for args in self.NO_STRINGS[1:]:
            self._assert_refused("addrcpt_par", [("<p@example.net>", args)])
            self._assert_refused("chgfrom", [("<p@example.net>", args)])

    def test_reasons(self) -> None:
        """
        A reason is not empty and has no CR, LF or NUL.
        """
        self._assert_refused("quarantine", [(reason,) for reason in (*self.NO_STRINGS, "", b"")])

    def test_messages(self) -> None:
        """
        The error says what was wrong with which value.
        """
        rows: dict[tuple[Any, ...], str] = {
            ("addheader", "", "v"): "header name is empty",
            ("addheader", "N", "a\nb"): "header value 'a\\nb' has a CR or NUL in it, or an LF that",
            ("addheader", "N", 5): "header value 5 is not str or bytes",
            ("insheader", -1, "N", "v"): "header index -1 is not a number from 0 to 2147483647",
            ("addrcpt", "a\0b"): "address 'a\\x00b' has a CR, LF or NUL in it",
            ("chgfrom", "<>", "a\nb"): "ESMTP arguments 'a\\nb' has a CR, LF or NUL in it",
            ("quarantine", ""): "reason is empty",
            ("replacebody", 5): "body is int, not bytes",
        }
        for (function, *args), message in rows.items():
            error = self.assertRaises(ValueNotSendable, getattr(self.context, function), *args)
            self.assertTrue(str(error).startswith(message), error)


class SizeTests(_Case):
    """
    A packet's payload has at most 65535 bytes.
    """

    def test_largest(self) -> None:
        """
        Names, values, NULs and index may be exactly 65535 bytes together, and not one more.
        """
        rows = {
            ("addheader", "N", "x" * 65532): True,
            ("addheader", "N", "x" * 65533): False,
            ("insheader", 0, "N", "x" * 65528): True,
            ("insheader", 0, "N", "x" * 65529): False,
            ("chgheader", "N", 1, "\xfc" * 32764): True,
            ("chgheader", "N", 1, "\xfc" * 32764 + "x"): False,
            ("addrcpt", "x" * 65534): True,
            ("addrcpt", "x" * 65535): False,
            ("quarantine", "x" * 65534): True,
            ("quarantine", "x" * 65535): False,
        }
        actual = {}
        for row in rows:
            result = self._call(*row)
            if isinstance(result, list):
                self.assertEqual([len(packet) for packet in result], [65540])
            actual[row] = result is not ValueNotSendable
        self.assertEqual(actual, rows)

    def test_larger_size_agreed(self) -> None:
        """
        Where a larger data size was agreed on, that is the limit.
        """
        self.context.max_payload = 262143
        self.assertEqual(len(self._call("addheader", "N", "x" * 262140)[0]), 262148)
        self.assertIs(self._call("addheader", "N", "x" * 262141), ValueNotSendable)

    def test_message(self) -> None:
        """
        The error says how long it was and how long it may be.
        """
        error = self.assertRaises(ValueNotSendable, self.context.addheader, "N", "x" * 65533)
        self.assertEqual(str(error), "smfi_addheader() of 65536 bytes; a packet takes 65535")


class FlagTests(_Case):
    """
    An edit needs its flag in what this milter asked for.
    """

    def test_each_flag(self) -> None:
        """
        With only its own flag a function works; with all others and without its own it does not.
        """
        for function, args in EXAMPLES.items():
            self.context.actions = FLAGS[function]
            self.assertEqual(len(self._call(function, *args)), 1, function)
            self.context.actions = c.SMFI_CURR_ACTS & ~FLAGS[function]
            self.assertIs(self._call(function, *args), NotNegotiated, function)
            self.assertEqual((self.context.outbox, self.context.bodies), ([], 0))

    def test_functions_of_the_table(self) -> None:
        """
        The functions that need a flag are those of the table of actions.
        """
        table = {row.function.removeprefix("smfi_"): row.flag for row in ACTIONS.values()}
        self.assertEqual(table, FLAGS | {"progress": 0})

    def test_message(self) -> None:
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


class StageTests(_Case):
    """
    Edits and progress belong to the end of the message, symbol lists to negotiation.
    """

    def test_edits(self) -> None:
        """
        Outside xxfi_eom no edit is made, and the error names the function and the right place.
        """
        self.context.editing = False
        for function, args in EXAMPLES.items():
            error = self.assertRaises(WrongStage, getattr(self.context, function), *args)
            self.assertTrue(str(error).startswith(f"smfi_{function}() works in xxfi_eom"), error)
        self.assertEqual((self.context.outbox, self.context.bodies), ([], 0))

    def test_progress(self) -> None:
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

    def test_new_context(self) -> None:
        """
        A context that has not negotiated can do nothing yet.
        """
        fresh = Context(MacroStore(), self._progress)
        for function, args in EXAMPLES.items():
            self.assertRaises(UsageError, getattr(fresh, function), *args)
        self.assertRaises(WrongStage, fresh.setsymlist, 0, "i")
        self.assertEqual((fresh.actions, fresh.symbol_lists, fresh.reply), (0, {}, None))


class LeadingSpaceTests(_Case):
    """
    Where another milter makes the MTA leave blanks alone, this one's values get theirs.
    """

    def test_added(self) -> None:
        """
        A blank is put before each header value, an empty one included.
        """
        self.context.adds_space = True
        self.assertEqual(self._call("addheader", "N", "v"), [b"\x00\x00\x00\x06hN\x00 v\x00"])
        self.assertEqual(self._call("addheader", "N", ""), [b"\x00\x00\x00\x05hN\x00 \x00"])
        self.assertEqual(
            self._call("insheader", 1, "N", "\tv"), [b"\0\0\0\x0bi\0\0\0\1N\x00 \tv\x00"]
        )
        self.assertEqual(self._call("chgheader", "N", 1, "v"), [b"\0\0\0\x0am\0\0\0\1N\x00 v\x00"])

    def test_deleting_still_deletes(self) -> None:
        """
        What deletes a header field stays empty.
        """
        self.context.adds_space = True
        for value in (None, "", b""):
            self.assertEqual(
                self._call("chgheader", "N", 1, value), [b"\0\0\0\x08m\0\0\0\1N\x00\x00"]
            )


class ReplyTests(_Case):
    """
    The text of C{smfi_setreply} is kept until it is used, or its message ends.
    """

    def test_stored(self) -> None:
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

    def test_taken(self) -> None:
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

    def test_used_once(self) -> None:
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

    def test_any_stage(self) -> None:
        """
        A reply can be set in any callback and needs no flag.
        """
        self.context.editing = False
        self.context.actions = 0
        self.context.setreply("450", "4.7.1", "x")
        self.assertEqual(self.context.take_reply(c.SMFIS_TEMPFAIL), b"450 4.7.1 x")


class SymbolListTests(_Case):
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

    def test_stages(self) -> None:
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

    def test_refused(self) -> None:
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

    def test_no_edits(self) -> None:
        """
        Negotiation is no time for edits or progress.
        """
        self.assertRaises(WrongStage, self.context.addheader, "N", "v")
        self.assertRaises(WrongStage, self.context.progress)


class MacroTests(_Case):
    """
    C{smfi_getsymval} looks into the macros of the connection.
    """

    def test_names(self) -> None:
        """
        A name may be text or bytes; what is unknown, or has no name, is None.
        """
        self.macros.put(b"Cj\x00mx\x00\xff\x00byte\x00{daemon_name}\x00MTA\x00")
        rows = {"j": "mx", b"{j}": "mx", "{daemon_name}": "MTA", b"\xff": "byte",
                "\udcff": "byte", "i": None, "": None, b"": None}  # fmt: skip
        self.assertEqual({name: self.context.getsymval(name) for name in rows}, rows)

    def test_no_text(self) -> None:
        """
        A name that is no text is refused.
        """
        for name in (None, 5, ["j"]):
            self.assertRaises(ValueNotSendable, self.context.getsymval, name)

    def test_any_stage(self) -> None:
        """
        Macros can be looked up in any callback.
        """
        self.context.editing = False
        self.macros.put(b"Mi\x001\x00")
        self.assertEqual(self.context.getsymval("i"), "1")
