"""
Tests of `yatxmilter._mail.delivery`: what Postfix makes of a message and a list of edits.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.helpers import done_in_pieces
from yatxmilter._mail.delivery import Delivery, apply_edits
from yatxmilter._mail.pieces import PIECE
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
)

MESSAGE = b"A: 1\nB: 2\nA: 3\n\nbody\n"


class HeaderTests(SynchronousTestCase):
    """
    Header edits.
    """

    def header(self, *edits: Edit, message: bytes = MESSAGE, leading_space: bool = False) -> str:
        """
        Apply edits, and give the header's lines, separated by a bar.
        """
        edited = apply_edits(message, edits, leading_space=leading_space)
        return edited.partition(b"\n\n")[0].decode("utf-8").replace("\n", "|")

    def test_field_is_added_at_end_whatever_its_name(self) -> None:
        """
        A field is added at the end, whatever its name.
        """
        self.assertEqual(self.header(AddHeader("A", "x")), "A: 1|B: 2|A: 3|A: x")
        self.assertEqual(self.header(AddHeader("X", "")), "A: 1|B: 2|A: 3|X: ")

    def test_places_count_from_0_at_top_mtas_own_received_not_seen_here(self) -> None:
        """
        Places count from 0 at the top; the MTA's own Received, not seen here, is one of them.
        """
        table = {
            0: "X: x|A: 1|B: 2|A: 3",
            1: "X: x|A: 1|B: 2|A: 3",
            2: "A: 1|X: x|B: 2|A: 3",
            4: "A: 1|B: 2|A: 3|X: x",
            99: "A: 1|B: 2|A: 3|X: x",
            0xFFFFFFFF: "A: 1|B: 2|A: 3|X: x",
        }
        self.assertEqual({n: self.header(InsertHeader(n, "X", "x")) for n in table}, table)

    def test_many_edits_are_made_in_pieces(self) -> None:
        """
        Many edits, like many fields, are worked on in pieces between which others have their turn.
        """
        edits: list[Edit] = [AddHeader(f"X-{number}", "x") for number in range(PIECE)]
        work = Delivery(edits).header_work([], leading_space=False, flavour="postfix")
        pauses, header = done_in_pieces(work)
        self.assertEqual(pauses, 1)
        self.assertEqual(sum(map(len, header.shown(3))), PIECE)

    def test_insert_around_received(self) -> None:
        """
        Index 0 is above the MTA's own Received and index 1 below it.
        """
        edits = [InsertHeader(1, "Y", "y"), InsertHeader(0, "X", "x"), InsertHeader(3, "Z", "z")]
        self.assertEqual(self.header(*edits), "X: x|Y: y|Z: z|A: 1|B: 2|A: 3")

    def test_index_counts_fields_of_that_name_from_1_in_any_case(self) -> None:
        """
        The index counts fields of that name, from 1, in any case; the new spelling is taken.
        """
        table = {
            (0, "a"): "a: x|B: 2|A: 3",
            (1, "A"): "A: x|B: 2|A: 3",
            (2, "A"): "A: 1|B: 2|A: x",
            (3, "A"): "A: 1|B: 2|A: 3|A: x",
            (1, "C"): "A: 1|B: 2|A: 3|C: x",
            (0xFFFFFFFF, "B"): "A: 1|B: 2|A: 3|B: x",
        }
        results = {(n, name): self.header(ChangeHeader(n, name, "x")) for n, name in table}
        self.assertEqual(results, table)

    def test_empty_value_deletes_and_rest_moves_up_at_once(self) -> None:
        """
        An empty value deletes, and the rest moves up at once; what is not there stays away.
        """
        self.assertEqual(self.header(ChangeHeader(1, "A", "")), "B: 2|A: 3")
        self.assertEqual(self.header(ChangeHeader(3, "A", "")), "A: 1|B: 2|A: 3")
        twice = [ChangeHeader(1, "A", ""), ChangeHeader(2, "A", "")]
        self.assertEqual(self.header(*twice), "B: 2|A: 3")
        self.assertEqual(self.header(*reversed(twice)), "B: 2")

    def test_received_is_out_of_reach(self) -> None:
        """
        The first Received that a milter can change is the first that it has seen.
        """
        message = b"Received: there\nA: 1\n\n"
        self.assertEqual(
            self.header(ChangeHeader(1, "Received", "x"), message=message), "Received: x|A: 1"
        )

    def test_with_smfip_hdr_leadspc_the_milters_value_is_taken_as_it_is(self) -> None:
        """
        With SMFIP_HDR_LEADSPC the milter's value is taken as it is, else a blank is put before it.
        """
        edits = AddHeader("X", "x"), InsertHeader(0, "Y", " y"), ChangeHeader(1, "B", "\tb")
        self.assertEqual(self.header(*edits, leading_space=True), "Y: y|A: 1|B:\tb|A: 3|X:x")
        self.assertEqual(self.header(*edits), "Y:  y|A: 1|B: \tb|A: 3|X: x")

    def test_folded_values_stay_folded(self) -> None:
        """
        Folded values stay folded, and a line without white space in front gets a tab.
        """
        self.assertEqual(
            self.header(AddHeader("X", "a\n b\n\tc\nBcc: d")),
            "A: 1|B: 2|A: 3|X: a| b|\tc|\tBcc: d",
        )

    def test_bytes_that_are_not_utf_8_come_out_as_they_came_in(self) -> None:
        """
        Bytes that are not UTF-8 come out as they came in.
        """
        edited = apply_edits(b"A: \xe9\n\n\xff", [AddHeader("X", "\udce9\xe9")])
        self.assertEqual(edited, b"A: \xe9\nX: \xe9\xc3\xa9\n\n\xff")


class BodyTests(SynchronousTestCase):
    """
    Body edits, and those that leave the message alone.
    """

    def test_chunks_together_are_new_body_in_messages_own_line_ends(self) -> None:
        """
        The chunks together are the new body, in the message's own line ends.
        """
        edits = [ReplaceBody(b"new\r"), ReplaceBody(b"\nline")]
        self.assertEqual(apply_edits(b"A: 1\n\nold\n", edits), b"A: 1\n\nnew\nline\n")
        self.assertEqual(apply_edits(b"A: 1\r\n\r\nold\r\n", edits), b"A: 1\r\n\r\nnew\r\nline\r\n")

    def test_one_empty_chunk_empties_body(self) -> None:
        """
        One empty chunk empties the body.
        """
        self.assertEqual(apply_edits(b"A: 1\n\nold\n", [ReplaceBody(b"")]), b"A: 1\n\n")

    def test_body_for_none(self) -> None:
        """
        A message without a body gets its empty line together with the new body.
        """
        self.assertEqual(apply_edits(b"A: 1\n", [ReplaceBody(b"x\r\n")]), b"A: 1\n\nx\n")

    def test_envelope_edits_and_quarantine_leave_messages_bytes_alone(self) -> None:
        """
        Envelope edits and quarantine leave the message's bytes alone.
        """
        edits: list[Edit] = [
            AddRecipient("<a@example.net>"),
            DeleteRecipient("<b@example.net>"),
            ChangeSender("<c@example.net>", "RET=HDRS"),
            Quarantine("held"),
        ]
        self.assertEqual(apply_edits(MESSAGE, edits), MESSAGE)
