"""
Tests of `yatxmilter._mail.header_models`: the header as Postfix and Sendmail keep it.

What the two do was found out by experiment; `tests.mta.chain_equality` compares with real ones.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.growth import assert_linear
from tests.helpers import STEADY, done_in_pieces
from yatxmilter._mail.header_models import HeaderModel, PostfixHeader, SendmailHeader, header_model
from yatxmilter._mail.rfc5322 import Field
from yatxmilter._wire.actions import (
    AddHeader,
    AddRecipient,
    ChangeHeader,
    Edit,
    InsertHeader,
    ReplaceBody,
)

FLAVOURS = ("postfix", "sendmail")


def model(flavour: str, *fields: str, leading_space: bool = False) -> HeaderModel:
    """
    Make a header of fields like ``"A: 1"``, as they are shown to the first filter.
    """
    header = header_model(flavour, leading_space=leading_space)
    for field in fields:
        name, _, value = field.partition(":")
        header.receive(name, value if leading_space else value.removeprefix(" "))
    return header


def fields_of(header: HeaderModel) -> list[tuple[str, str]]:
    """
    Give the fields that the next filter would be shown.
    """
    pieces = list(header.shown(3))
    assert all(len(piece) <= 3 for piece in pieces)
    return [*chain(*pieces)]


def shown(header: HeaderModel) -> str:
    """
    Give what the next filter would be shown, separated by bars.
    """
    return "|".join(f"{name}:{value}" for name, value in fields_of(header))


class BothTests(SynchronousTestCase):
    """
    What the two have in common.
    """

    def test_there_are_two_flavours_and_no_third(self) -> None:
        """
        There are two flavours, and no third.
        """
        self.assertIsInstance(model("postfix"), PostfixHeader)
        self.assertIsInstance(model("sendmail"), SendmailHeader)
        with self.assertRaisesRegex(ValueError, "'exim'"):
            header_model("exim", leading_space=False)

    def test_what_comes_in_is_shown_to_the_next_filter_in_the_same_way(self) -> None:
        """
        What comes in is shown to the next filter in the same way, hidden fields are not.
        """
        for flavour in FLAVOURS:
            header = model(flavour, "A: 1", "b:  2", "C:\t3", "D: e\n f")
            self.assertEqual(shown(header), "A:1|b: 2|C:\t3|D:e\n f")
            header = model(flavour, "A: 1", "b:2", leading_space=True)
            self.assertEqual(shown(header), "A: 1|b:2")

    def test_field_that_comes_after_an_edit_is_counted(self) -> None:
        """
        A field that comes after edits is shown behind the others, and later edits find it.
        """
        for flavour in FLAVOURS:
            header = model(flavour, "A: 1", "B: 2")
            header.apply(ChangeHeader(1, "A", "x"))
            header.receive("A", "3")
            self.assertTrue(header.finds("A", 2))
            header.apply(ChangeHeader(2, "A", "y"))
            self.assertEqual(shown(header), "A:x|B:2|A:y")

    def test_field_that_comes_after_an_edit_is_shown_as_the_mta_keeps_it(self) -> None:
        """
        A field that comes after a filter has added one is shown as the MTA keeps it, though as many
        came before that could be shown as they were.
        """
        for flavour in FLAVOURS:
            header = model(flavour, "A: 1")
            self.assertEqual(shown(header), "A:1")
            header.apply(AddHeader("B", "2"))
            header.receive("C", "3\nfolded")
            self.assertEqual(shown(header), "A:1|B:2|C:3\n\tfolded")

    def test_folded_as_no_mta_does(self) -> None:
        """
        A field whose folded lines do not begin with a blank is shown as the MTA keeps it.
        """
        for flavour in FLAVOURS:
            header = model(flavour, "A: 1\n 2\n\t3", "B: 1\n2\n 3")
            self.assertEqual(shown(header), "A:1\n 2\n\t3|B:1\n\t2\n 3")

    def test_fields_of_a_file(self) -> None:
        """
        Fields may also be given as they stand in a file, and after edits, too.
        """
        for flavour in FLAVOURS:
            header = model(flavour)
            header.receive_field(Field(b"A", b"1"))
            self.assertEqual(shown(header), "A:1")
            self.assertEqual(header.fields(), [Field(b"A", b"1")])
            header.apply(ChangeHeader(1, "A", "2"))
            header.receive("B", "3")
            self.assertEqual(shown(header), "A:2|B:3")

    def test_edits_of_anything_else_leave_the_header_alone(self) -> None:
        """
        Edits of anything else leave the header alone.
        """
        for flavour in FLAVOURS:
            header = model(flavour, "A: 1")
            before = header.state()
            header.apply(AddRecipient("<a@example.com>"))
            header.apply(ReplaceBody(b"x"))
            self.assertEqual(header.state(), before)

    def test_new_line_of_value_that_has_no_blank_in_front_gets_tab(self) -> None:
        """
        A new line of a value that has no blank in front gets a tab.
        """
        for flavour in FLAVOURS:
            header = model(flavour)
            header.apply(AddHeader("X", "a\nb\n c"))
            self.assertEqual(shown(header), "X:a\n\tb\n c")

    def test_copy_goes_its_own_way(self) -> None:
        """
        A copy goes its own way.
        """
        for flavour in FLAVOURS:
            header = model(flavour, "A: 1")
            twin = header.copy()
            twin.apply(ChangeHeader(1, "A", "2"))
            self.assertEqual((shown(header), shown(twin)), ("A:1", "A:2"))

    def test_field_is_found_by_name_in_any_case_and_number(self) -> None:
        """
        A field is found by its name in any case and its number, 0 being 1.
        """
        for flavour in FLAVOURS:
            header = model(flavour, "A: 1", "B: 2", "a: 3")
            found = [header.finds("a", index) for index in range(4)]
            self.assertEqual(found, [True, True, True, False])
            self.assertFalse(header.finds("Received", 1))

    def test_index_that_is_negative(self) -> None:
        """
        An index of 2**31 and more, which the MTAs read as a number below 0, is beyond the end.
        """
        for flavour in FLAVOURS:
            header = model(flavour, "A: 1")
            header.apply(InsertHeader(0xFFFFFFFF, "X", "x"))
            self.assertEqual(shown(header), "A:1|X:x")


class PostfixTests(SynchronousTestCase):
    """
    Lines, of which the first is skipped.
    """

    def edited(self, *edits: Edit, start: tuple[str, ...] = ("A: 1", "B: 2", "a: 3")) -> str:
        """
        Have one filter make edits.
        """
        header = model("postfix", *start)
        header.begin_filter(shows_header=True)
        for edit in edits:
            header.apply(edit)
        return shown(header)

    def test_field_is_added_at_the_end(self) -> None:
        """
        A field is added at the end.
        """
        self.assertEqual(self.edited(AddHeader("A", "x")), "A:1|B:2|a:3|A:x")

    def test_index_counts_lines_the_mtas_own_received_included(self) -> None:
        """
        The index counts lines, the MTA's own Received included.
        """
        table = {0: "X:x|A:1|B:2", 1: "X:x|A:1|B:2", 2: "A:1|X:x|B:2", 9: "A:1|B:2|X:x"}
        for index, expected in table.items():
            edit = InsertHeader(index, "X", "x")
            self.assertEqual(self.edited(edit, start=("A: 1", "B: 2")), expected, str(index))

    def test_name_gets_its_new_spelling(self) -> None:
        """
        The name gets its new spelling; what is not there is added at the end.
        """
        self.assertEqual(self.edited(ChangeHeader(2, "A", "x")), "A:1|B:2|A:x")
        self.assertEqual(self.edited(ChangeHeader(3, "A", "x")), "A:1|B:2|a:3|A:x")

    def test_what_is_behind_a_deleted_field_moves_up_at_once(self) -> None:
        """
        What is behind a deleted field moves up at once.
        """
        both = [ChangeHeader(1, "A", ""), ChangeHeader(1, "A", "")]
        self.assertEqual(self.edited(*both), "B:2")
        self.assertEqual(self.edited(ChangeHeader(3, "A", "")), "A:1|B:2|a:3")

    def test_mtas_own_received_is_out_of_reach(self) -> None:
        """
        The MTA's own Received is out of reach, also when something has been put above it, which
        is shown to the next filter.
        """
        edits = [
            InsertHeader(0, "X", "x"),
            ChangeHeader(1, "Received", ""),
            ChangeHeader(1, "X", "y"),
        ]
        self.assertEqual(self.edited(*edits, start=("A: 1",)), "X:y|A:1")
        edits[1] = ChangeHeader(1, "Received", "z")
        self.assertEqual(self.edited(*edits, start=("A: 1",)), "X:y|A:1|Received:z")
        header = model("postfix", "A: 1")
        for edit in edits:
            header.apply(edit)
        self.assertEqual([slot.name for slot in header.slots][:2], [b"X", b"Received"])


class SendmailTests(SynchronousTestCase):
    """
    Slots, some of them empty.
    """

    def edited(self, *edits: Edit, start: tuple[str, ...] = ("A: 1", "B: 2", "a: 3")) -> str:
        """
        Have one filter make edits.
        """
        header = model("sendmail", *start)
        for edit in edits:
            header.apply(edit)
        return shown(header)

    def test_field_is_added_before_first_of_its_name_or_at_end(self) -> None:
        """
        A field is added before the first of its name, or at the end.
        """
        self.assertEqual(self.edited(AddHeader("a", "x")), "a:x|A:1|B:2|a:3")
        self.assertEqual(self.edited(AddHeader("X", "x")), "A:1|B:2|a:3|X:x")

    def test_add_what_it_makes_itself(self) -> None:
        """
        Such a field takes the slot of the MTA's own, on top; the next one goes before it.
        """
        date = AddHeader("Date", "x")
        self.assertEqual(self.edited(date), "Date:x|A:1|B:2|a:3")
        self.assertEqual(self.edited(date, AddHeader("date", "y"))[:12], "date:y|Date:")
        self.assertEqual(self.edited(AddHeader("Received", "x"))[:12], "Received:x|A")

    def test_index_counts_slots_of_the_mtas_own_fields_but_the_first(self) -> None:
        """
        The index counts the slots of the MTA's own fields, the first one not.
        """
        for index in (0, 1, 8):
            self.assertEqual(self.edited(InsertHeader(index, "X", "x")), "X:x|A:1|B:2|a:3")
        self.assertEqual(self.edited(InsertHeader(9, "X", "x")), "A:1|X:x|B:2|a:3")
        self.assertEqual(self.edited(InsertHeader(99, "X", "x")), "A:1|B:2|a:3|X:x")

    def test_name_keeps_its_spelling(self) -> None:
        """
        The name keeps its spelling; what is not there is added before the first of its name.
        """
        self.assertEqual(self.edited(ChangeHeader(2, "A", "x")), "A:1|B:2|a:x")
        self.assertEqual(self.edited(ChangeHeader(3, "A", "x")), "A:x|A:1|B:2|a:3")
        self.assertEqual(self.edited(ChangeHeader(1, "C", "x")), "A:1|B:2|a:3|C:x")
        self.assertEqual(self.edited(ChangeHeader(1, "C", "")), "A:1|B:2|a:3")

    def test_change_what_it_makes_itself(self) -> None:
        """
        An index beyond the count is about the MTA's own field.
        """
        start = ("A: 1", "Date: 2")
        self.assertEqual(
            self.edited(ChangeHeader(2, "Date", "x"), start=start), "Date:x|A:1|Date:2"
        )
        self.assertEqual(self.edited(ChangeHeader(2, "Date", ""), start=start), "A:1|Date:2")

    def test_deleted_field_goes_on_being_counted_by_its_filter(self) -> None:
        """
        A deleted field goes on being counted by its filter, and can be brought back.
        """
        first = ChangeHeader(1, "A", "")
        self.assertEqual(self.edited(first, first), "B:2|a:3")
        self.assertEqual(self.edited(first, ChangeHeader(2, "A", "")), "B:2")
        self.assertEqual(self.edited(first, ChangeHeader(1, "A", "x")), "A:x|B:2|a:3")

    def test_slot_of_deleted_field_is_taken_again_where_a_field_has_come_since(self) -> None:
        """
        The slot of a deleted field is taken again also where a field has come since.
        """
        header = model("sendmail", "A: 1", "A: 2")
        header.apply(ChangeHeader(1, "A", ""))
        header.receive("B", "3")
        header.begin_filter(shows_header=True)
        header.apply(AddHeader("A", "4"))
        self.assertEqual(shown(header), "A:4|A:2|B:3")
        header.apply(AddHeader("A", "5"))
        self.assertEqual(shown(header), "A:5|A:4|A:2|B:3")

    def test_filter_that_is_sent_the_header_counts_only_what_it_sees(self) -> None:
        """
        A filter that is sent the header counts only what it sees; a slot it does not see is
        filled by what it adds.
        """
        for shows_header, changed, added in (
            (True, "B:2|a:x", "A:x|B:2|a:3"),
            (False, "A:x|B:2|a:3", "A:x|B:2|a:3"),
        ):
            header = model("sendmail", "A: 1", "B: 2", "a: 3")
            header.apply(ChangeHeader(1, "A", ""))
            header.begin_filter(shows_header=shows_header)
            twin = header.copy()
            header.apply(ChangeHeader(1, "A", "x"))
            twin.apply(AddHeader("A", "x"))
            self.assertEqual((shown(header), shown(twin)), (changed, added))


NAMES = st.sampled_from(["A", "a", "B", "Date", "Received", "From", "New", "Via"])
VALUES = st.sampled_from(["x", " y", "two\n\tlines", "ä", ""])
EDITS = st.one_of(
    st.builds(AddHeader, NAMES, VALUES),
    st.builds(InsertHeader, st.integers(0, 14), NAMES, VALUES),
    st.builds(ChangeHeader, st.integers(0, 4), NAMES, VALUES),
)
START = ("A: 1", "Date: 2", "B: 3", "a: 4", "Received: 5", "A: 6")


class EditsFromTests(SynchronousTestCase):
    """
    One filter's edits for those of several.
    """

    def check(self, flavour: str, filters: list[list[Edit]], leading_space: bool) -> None:
        """
        Have several filters edit, and one do the same: what is visible must be the same.
        """
        first = model(flavour, *START, leading_space=leading_space)
        header = first.copy()
        for edits in filters:
            header.begin_filter(shows_header=True)
            for edit in edits:
                header.apply(edit)
        alone = first.copy()
        for edit in header.edits_from(first):
            alone.apply(edit)
        self.assertEqual(alone.fields(), header.fields())

    def written(self, flavour: str, *edits: Edit) -> list[Edit]:
        """
        Give what is written for one filter's edits.
        """
        first = model(flavour, *START)
        header = first.copy()
        for edit in edits:
            header.apply(edit)
        return header.edits_from(first)

    def test_deleted_field_that_is_made_anew_without_value_is_inserted(self) -> None:
        """
        A field that one filter deleted and the next made anew without a value is inserted: to
        change it to nothing would be to delete it.
        """
        first_filter = [AddHeader("B", "x"), ChangeHeader(2, "B", "")]
        self.check("sendmail", [first_filter, [AddHeader("B", "")]], False)

    def test_postfix_from_the_bottom(self) -> None:
        """
        Of fields of one name the last is deleted first, so that the count stays.
        """
        gone = ChangeHeader(1, "A", "")
        self.assertEqual(
            self.written("postfix", gone, gone),
            [ChangeHeader(2, "a", ""), ChangeHeader(1, "A", "")],
        )

    def test_sendmail_own_fields_last(self) -> None:
        """
        A field that the MTA makes itself is counted once it is set, so it comes last.
        """
        edits = ChangeHeader(1, "Date", "x"), ChangeHeader(2, "Date", "y")
        self.assertEqual(
            self.written("sendmail", *edits), [ChangeHeader(1, "Date", "x"), AddHeader("Date", "y")]
        )
        gone = self.written("sendmail", ChangeHeader(2, "Date", ""))
        self.assertEqual(gone, [ChangeHeader(0x7FFFFFFF, "Date", "")])

    def test_sendmail_below_the_first(self) -> None:
        """
        What is below Sendmail's own slot for Return-Path is inserted at 0.
        """
        edits: list[Edit] = [AddHeader("Return-Path", "r"), InsertHeader(0, "Received", "x")]
        self.assertEqual(self.written("sendmail", *edits), edits)

    @given(st.lists(st.lists(EDITS, max_size=4), max_size=3), st.booleans())
    @settings(STEADY, max_examples=150)
    def test_whatever_filters_have_made_of_sendmails_header_one_can_make_it_too(
        self, filters: list[list[Edit]], leading_space: bool
    ) -> None:
        """
        Whatever filters have made of Sendmail's header, one can make it, too.
        """
        self.check("sendmail", filters, leading_space)

    @given(st.lists(st.lists(EDITS, max_size=4), max_size=3), st.booleans())
    @settings(STEADY, max_examples=150)
    def test_whatever_filters_have_made_of_postfixs_header_one_can_make_it_too(
        self, filters: list[list[Edit]], leading_space: bool
    ) -> None:
        """
        Whatever filters have made of Postfix's header, one can make it, too.
        """
        self.check("postfix", filters, leading_space)


# Of these Sendmail never fills an empty slot (H_TRACE in its conf.c).
TRACE = ("received", "x400-received", "via", "mail-from")


class _Lines:
    """
    A header as an MTA keeps it, in the plainest way: a list that is gone through for each edit.
    """

    def __init__(self, flavour: str, fields: list[tuple[str, str]]) -> None:
        self.sendmail = flavour == "sendmail"
        own = ("Return-Path Received Resent-Date Date Resent-From From Full-Name Resent-Message-Id"
               " Message-Id")  # fmt: skip
        names = own.split() if self.sendmail else ["Received"]
        # Name, value, whether it is shown.
        self.lines: list[list[Any]] = [[name, "", False] for name in names]
        self.lines += [[name, value, True] for name, value in fields]

    def next_filter(self) -> None:
        for line in self.lines:
            line[2] = line[2] and line[1] is not None

    def shown(self) -> list[tuple[str, str]]:
        return [(name, value) for name, value, shown in self.lines if shown and value is not None]

    def named(self, name: str, shown: bool | None = None) -> list[list[Any]]:
        return [
            line
            for line in self.lines
            if line[0].lower() == name.lower() and (shown is None or line[2] is shown)
        ]

    def hidden(self, name: str) -> list[list[Any]]:
        return self.named(name, False) if self.sendmail and name.lower() not in TRACE else []

    def put(self, name: str, value: str) -> None:
        place = len(self.lines)
        if self.sendmail and self.named(name):
            place = self.lines.index(self.named(name)[0])
        self.lines.insert(place, [name, value, True])

    def apply(self, edit: Edit) -> None:
        if isinstance(edit, AddHeader):
            if self.hidden(edit.name):
                self.hidden(edit.name)[0][1:] = [edit.value, True]
            else:
                self.put(edit.name, edit.value)
        elif isinstance(edit, InsertHeader):
            self.lines.insert(edit.index + self.sendmail, [edit.name, edit.value, True])
        elif isinstance(edit, ChangeHeader):
            self.change(edit)

    def change(self, edit: ChangeHeader) -> None:
        found = self.named(edit.name, True)[max(edit.index, 1) - 1 :][:1]
        found = found or self.hidden(edit.name)[-1:]
        if not found:
            if edit.value:
                self.put(edit.name, edit.value)
        elif self.sendmail:
            found[0][1:] = [edit.value or None, found[0][2] or bool(edit.value)]
        elif edit.value:
            found[0][:2] = [edit.name, edit.value]
        else:
            self.lines = [line for line in self.lines if line is not found[0]]


# The next filter's Via must not take the place of the one that is deleted.
_VIA_DELETED: list[Edit] = [
    AddHeader("Via", "x"),
    ChangeHeader(0, "Via", ""),
    InsertHeader(0, "Via", "y"),
]


class ManyTests(SynchronousTestCase):
    """
    Many edits of many fields.
    """

    @given(
        st.sampled_from(FLAVOURS), st.lists(st.lists(EDITS, max_size=12), min_size=1, max_size=4)
    )
    @settings(STEADY, max_examples=300)
    @example("sendmail", [_VIA_DELETED, [AddHeader("Via", "x")]])
    def test_as_line_by_line(self, flavour: str, filters: list[list[Edit]]) -> None:
        """
        Any edits, by any number of filters, come to what going through all lines for each comes to.
        """
        header = model(flavour, *START)
        lines = _Lines(flavour, fields_of(header))
        for edits in filters:
            header.begin_filter(shows_header=True)
            lines.next_filter()
            self.assertEqual(fields_of(header), lines.shown())
            for edit in edits:
                header.apply(edit)
                lines.apply(edit)
            self.assertEqual(fields_of(header), lines.shown())

    def edited(
        self, flavour: str, edit: Callable[[int, int], Edit]
    ) -> Callable[[int], Callable[[], object]]:
        """
        Prepare as many edits as there are fields, of one name.
        """

        def prepare(size: int) -> Callable[[], object]:
            start = model(flavour, *(size * ["X: y"]))
            edits = [edit(number, size) for number in range(size)]

            def work() -> None:
                header = start.copy()
                for each in edits:
                    header.apply(each)
                header.begin_filter(shows_header=True)
                fields_of(header)
                header.edits_from(start)

            return work

        return prepare

    def test_edit_of_any_kind_costs_no_more_when_there_are_many_fields(self) -> None:
        """
        An edit of any kind costs no more when there are many fields and edits.
        """
        kinds: list[Callable[[int, int], Edit]] = [
            lambda number, size: ChangeHeader(size - number, "X", ""),
            lambda number, size: ChangeHeader(number % 3, "x", "z" if number % 2 else ""),
            lambda number, size: AddHeader("X" if number % 2 else "Date", "z"),
            lambda number, size: InsertHeader(number * 7919 % size, "X", "z"),
            lambda number, size: InsertHeader(0, f"Y{number}", "z"),
        ]
        for flavour in FLAVOURS:
            for kind in kinds:
                assert_linear(self.edited(flavour, kind), 300)


class LongTests(SynchronousTestCase):
    """
    Fields of more octets than Postfix shows.
    """

    def shown(self, flavour: str, name: str, *lines: int, leading_space: bool = False) -> list[int]:
        """
        Give the lengths of the lines that are shown of such a field.
        """
        header = model(flavour, leading_space=leading_space)
        value = "\n\t".join("x" * length for length in lines)
        header.apply(AddHeader(name, " " + value if leading_space else value))
        [(_, shown)] = fields_of(header)
        return [len(line) for line in shown.split("\n")]

    def test_first_60_000_octets_of_a_field_are_shown(self) -> None:
        """
        The first 60,000 octets of a field are shown, its name, colon and blank included, and no
        part of a line that begins in the last tenth of them. All of it stays in the message.
        """
        for lines, expected in {
            (59_997,): [59_997],
            (59_998,): [59_997],
            (10, 64_000): [10, 59_986],
            (59_980, 5, 4_000): [59_980, 6],
            (59_996, 0, 3): [59_996],
            (59_993, 2): [59_993, 3],
            (53_996, 9_000): [53_996, 6_000],
            (53_997, 9_000): [53_997],
            (30_000, 30_000): [30_000, 29_996],
        }.items():
            self.assertEqual(self.shown("postfix", "X", *lines), expected)
        self.assertEqual(self.shown("postfix", "X-Name", 60_000), [59_992])
        self.assertEqual(self.shown("postfix", "X", 60_000, leading_space=True), [59_998])
        self.assertEqual(self.shown("postfix", 60_001 * "X", 1), [0])
        header = model("postfix")
        header.apply(AddHeader("X", 60_001 * "x"))
        self.assertEqual(header.fields(), [Field(b"X", b" " + 60_001 * b"x")])

    def test_all_of_it(self) -> None:
        """
        Sendmail shows all.
        """
        self.assertEqual(self.shown("sendmail", "X", 64_000, 1), [64_000, 2])


class PieceTests(SynchronousTestCase):
    """
    Very many fields: they get their places, and are indexed, in pieces.
    """

    EDITS: tuple[Edit, ...] = (
        ChangeHeader(7, "a", "x"),
        ChangeHeader(7, "A", ""),
        InsertHeader(9, "b", "y"),
        AddHeader("c", "z"),
        AddRecipient("<a@example.org>", None),
    )

    def test_pieces_are_small(self) -> None:
        """
        A thousand fields are a piece, twice; when they are indexed, and in a header as most
        messages have it, there are none.
        """
        for flavour in FLAVOURS:
            for count, expected in ((30, 0), (20_000, 40)):
                fields = [f"{'ab'[number % 2]}: {number}" for number in range(count)]
                one, other = model(flavour, *fields), model(flavour, *fields)
                self.assertEqual(sum(1 for _ in one.prepare(self.EDITS[0])), expected)
                for edit in self.EDITS:
                    self.assertEqual(list(one.prepare(edit)), [])
                    one.apply(edit)
                    other.apply(edit)
                self.assertEqual(one.state(), other.state())

    def test_added_at_the_end(self) -> None:
        """
        Postfix adds a field at the end, which takes no index, before another edit and after it.
        """
        header = model("postfix", *(f"a: {number}" for number in range(2_000)))
        edits = AddHeader("b", "x"), ChangeHeader(1, "b", "y"), AddHeader("b", "z")
        pieces = []
        for edit in edits:
            pieces.append(sum(1 for _ in header.prepare(edit)))
            header.apply(edit)
        self.assertEqual(pieces, [0, 4, 0])
        self.assertTrue(shown(header).endswith("|a:1999|b:y|b:z"))

    def test_copied_and_compared_in_pieces(self) -> None:
        """
        A copy is made in pieces, and what leads from it to the present is found in pieces.
        """
        for flavour in FLAVOURS:
            header = model(flavour, *(f"a: {number}" for number in range(20_000)))
            header.apply(ChangeHeader(7, "a", "x"))
            pieces, twin = done_in_pieces(header.copying())
            self.assertGreaterEqual(pieces, 20)
            self.assertEqual(twin.state(), header.state())
            header.apply(ChangeHeader(8, "a", "y"))
            self.assertGreaterEqual(sum(1 for _ in header.finding_edits(twin)), 3)
            self.assertEqual(header.edits_from(twin), [ChangeHeader(8, "a", "y")])

    def test_what_is_begun_and_not_done_is_done_when_it_is_needed(self) -> None:
        """
        What is begun and not done is done when it is needed.
        """
        for flavour in FLAVOURS:
            for begun in (1, 2, 3):
                fields = [f"a: {number}" for number in range(2_000)]
                one, other = model(flavour, *fields), model(flavour, *fields)
                edit = ChangeHeader(1_999, "a", "x")
                for _ in zip(range(begun), one.prepare(edit), strict=False):
                    pass
                one.receive("a", "late")
                other.receive("a", "late")
                one.apply(edit)
                other.apply(edit)
                self.assertEqual(one.state(), other.state())
