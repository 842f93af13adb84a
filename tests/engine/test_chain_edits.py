"""
Tests of `yatxmilter._engine.chain_edits`: the edits of several milters as those of one filter.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.helpers import STEADY
from tests.mail.test_header_models import EDITS, START, model
from yatxmilter import constants as c
from yatxmilter._engine.chain_edits import ChainEdits
from yatxmilter._mail.header_models import HeaderModel, header_model
from yatxmilter._wire.actions import (
    AddHeader,
    AddRecipient,
    ChangeHeader,
    ChangeSender,
    DeleteRecipient,
    Edit,
    InsertHeader,
    Quarantine,
    ReplaceBody,
    edit_packet,
    read_edit,
)


def read(packet: bytes) -> Edit:
    """
    Read an edit from its packet.
    """
    return read_edit(packet[4], packet[5:], c.SMFI_CURR_ACTS)


def merged(flavour: str, *filters: list[Edit], start: tuple[str, ...] = START) -> list[Edit]:
    """
    Give the edits of one filter for those of several.
    """
    first, header, packets = run(flavour, filters, start)
    return [read(packet) for packet in packets]


def run(
    flavour: str, filters: tuple[list[Edit], ...] | list[list[Edit]], start: tuple[str, ...] = START
) -> tuple[HeaderModel, HeaderModel, list[bytes]]:
    """
    Have several filters edit.

    :return: The header before and after it, and what goes to the MTA.
    """
    header = model(flavour, *start)
    first = header.copy()
    edits = ChainEdits()
    for one in filters:
        header.begin_filter(shows_header=True)
        for edit in one:
            edits.add(edit, edit_packet(edit), header)
            header.apply(edit)
    return first, header, edits.packets(header)


class OrderTests(SynchronousTestCase):
    """
    What is sent as it was made, and what is left out.
    """

    def test_edits_that_mean_the_same_to_one_filter_are_sent_as_made(self) -> None:
        """
        Edits that mean the same to one filter as to several are sent as they were made.
        """
        one: list[Edit] = [AddHeader("X", "1"), InsertHeader(1, "Y", "2"), AddRecipient("<a>")]
        two: list[Edit] = [ChangeHeader(1, "B", "z"), Quarantine("why"), DeleteRecipient("<b>")]
        for flavour in ("postfix", "sendmail"):
            self.assertEqual(merged(flavour, one, two), one + two)

    def test_value_that_a_later_milter_changes_again_is_left_out(self) -> None:
        """
        A value that a later milter changes again is left out.
        """
        one: list[Edit] = [ChangeHeader(1, "B", "first")]
        two: list[Edit] = [AddHeader("X", "1"), ChangeHeader(1, "b", "second")]
        self.assertEqual(merged("postfix", one, two), two)

    def test_other_field_deletion_or_earlier_edit_stays(self) -> None:
        """
        One of another field of the name, a deletion, or one before the count has moved stays.
        """
        other = ChangeHeader(1, "A", "1")
        for earlier in (
            ChangeHeader(2, "A", "x"),
            ChangeHeader(1, "A", ""),
            AddHeader("A", "x"),
        ):
            for flavour in ("postfix", "sendmail"):
                first, header, packets = run(flavour, [[earlier, other]])
                self.assertEqual(packets, [edit_packet(earlier), edit_packet(other)])

    def test_added_twice_by_change(self) -> None:
        """
        A change that adds is no change, so both stay.
        """
        far = ChangeHeader(9, "B", "x")
        self.assertEqual(merged("postfix", [far], [far]), [far, far])

    def test_edits_of_the_envelope_are_sent_as_they_were_made(self) -> None:
        """
        Edits of the envelope are sent as they were made: only the MTA knows which spellings are one
        address, and what an address stands for.
        """
        first: list[Edit] = [AddRecipient("one@x"), ChangeSender("<a>"), AddRecipient("<n>")]
        second: list[Edit] = [DeleteRecipient("<one@x>"), ChangeSender("<b>", "RET=HDRS")]
        third: list[Edit] = [AddRecipient("one@x"), AddRecipient("<n>")]
        for flavour in ("postfix", "sendmail"):
            self.assertEqual(merged(flavour, first, second, third), first + second + third)

    def test_last_body_counts_and_comes_last(self) -> None:
        """
        The last body counts, and comes last.
        """
        header = model("postfix", *START)
        edits = ChainEdits()
        edits.replace_body([b"old"])
        edits.add(AddRecipient("<a>"), b"packet", header)
        edits.replace_body([b"new", b"body"])
        self.assertEqual(edits.packets(header), [b"packet", b"new", b"body"])


class RewrittenTests(SynchronousTestCase):
    """
    What an MTA would misunderstand.
    """

    def test_sendmail_counts_the_deleted(self) -> None:
        """
        After a deletion Sendmail counts on for the same filter, but not for the next one.
        """
        first: list[Edit] = [ChangeHeader(1, "A", ""), AddRecipient("<r>")]
        second: list[Edit] = [ChangeHeader(1, "A", "x")]
        self.assertEqual(
            merged("sendmail", first, second),
            [AddRecipient("<r>"), ChangeHeader(1, "A", ""), ChangeHeader(2, "a", "x")],
        )
        self.assertEqual(merged("postfix", first, second), first + second)

    def test_change_of_what_was_added(self) -> None:
        """
        A change that added a field in its place is not left out, or it would be added elsewhere.
        """
        first: list[Edit] = [ChangeHeader(1, "X", "1"), ChangeHeader(9, "B", "b")]
        second: list[Edit] = [ChangeHeader(1, "X", "2")]
        self.assertEqual(
            merged("postfix", first, second),
            [InsertHeader(7, "X", "2"), InsertHeader(8, "B", "b")],
        )

    @given(
        st.sampled_from(["postfix", "sendmail"]),
        st.lists(st.lists(EDITS, max_size=4), max_size=3),
    )
    @settings(STEADY, max_examples=150)
    def test_one_filter_that_sends_the_result_comes_to_the_same_message(
        self, flavour: str, filters: list[list[Edit]]
    ) -> None:
        """
        Whatever several filters do, one that sends the result comes to the same message.
        """
        first, header, packets = run(flavour, filters)
        alone = header_model(flavour, leading_space=False)
        alone.slots = first.copy().slots
        for packet in packets:
            alone.apply(read(packet))
        self.assertEqual(alone.fields(), header.fields())

    def test_every_edit_is_written_as_it_is_read(self) -> None:
        """
        Every edit is written as it is read.
        """
        edits = (
            *(AddHeader("A", " é"), InsertHeader(3, "B", ""), ChangeHeader(1, "C", "\udcff")),
            *(
                AddRecipient("<a@b>"),
                AddRecipient("<a@b>", "NOTIFY=NEVER"),
                AddRecipient("<a>", ""),
            ),
            *(DeleteRecipient("<é>"), ChangeSender("<>"), ChangeSender("<a>", "SIZE=1")),
            *(Quarantine("why"), ReplaceBody(b"\0\xff")),
        )
        for edit in edits:
            self.assertEqual(read(edit_packet(edit)), edit)
