"""
Which addresses are the same, and recipients added and deleted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.growth import assert_linear
from tests.helpers import STEADY
from yatxmilter._mail.envelope import bare_address, edit_recipients, same_address
from yatxmilter._wire.actions import AddRecipient, DeleteRecipient, Edit, Quarantine
from yatxmilter.errors import ValueNotSendable
from yatxmilter.message._envelope import Recipients

_ADDRESSES = st.sampled_from(
    ["<a@x>", "a@x", "<a@X>", "<A@x>", '"a"@x', "<@r.example:a@x>", "b@x", "<b@x>", "<>", "a"]
)
_EDITS = st.lists(st.builds(AddRecipient, _ADDRESSES) | st.builds(DeleteRecipient, _ADDRESSES))


def edited(recipients: list[str], edits: list[Edit], merges: bool = True) -> list[str]:
    """
    Edit a list of addresses.
    """
    return edit_recipients(recipients, edits, str, lambda edit: edit.address, merges=merges)


class AddressTests(SynchronousTestCase):
    """
    Spellings of one address.
    """

    def test_brackets_blanks_around_source_route(self) -> None:
        """
        Brackets, blanks around, a source route, quotes and the domain's case make no difference.
        """
        for other in (
            "joe@example.com",
            " <joe@EXAMPLE.com> ",
            "<@one.example,@two.example:joe@example.com>",
            '<"joe"@example.com>',
            '"j\\oe"@example.com',
        ):
            self.assertTrue(same_address("<joe@example.com>", other), other)
        self.assertTrue(same_address("<>", ""))
        self.assertTrue(same_address("postmaster", "<postmaster>"))

    def test_case_of_local_part_and_anything_else_does(self) -> None:
        """
        The case of the local part, and anything else, does.
        """
        for other in (
            "Joe@example.com",
            "joe@example.com.",
            "joe",
            "<joe@example.com",
            "joe @example.com",
            '"joe@example.com"',
            "",
        ):
            self.assertFalse(same_address("<joe@example.com>", other), other)
        self.assertFalse(same_address("joe@", "joe"))
        self.assertFalse(same_address('"', '""'))

    def test_brackets_are_taken_off_if_both_are_there(self) -> None:
        """
        Brackets are taken off if both are there.
        """
        pairs = {"<a@b>": "a@b", " <a@b> ": "a@b", "a@b": "a@b", "<a@b": "<a@b", "": "", "<>": ""}
        for given_, bare in pairs.items():
            self.assertEqual(bare_address(given_), bare)


class RecipientTests(SynchronousTestCase):
    """
    Recipients that are added and deleted.
    """

    def test_all_of_an_address_are_deleted(self) -> None:
        """
        A deletion is of all spellings; what is deleted can be added again.
        """
        edits: list[Edit] = [DeleteRecipient("a@x"), Quarantine("why"), AddRecipient("<a@X>")]
        self.assertEqual(edited(["<a@x>", "<A@x>", "a@X"], edits), ["<A@x>", "<a@X>"])

    def test_merged_or_not(self) -> None:
        """
        One that is there is added once more only where the MTA would.
        """
        edits: list[Edit] = [AddRecipient("a@x"), AddRecipient("<b@x>"), AddRecipient("b@x")]
        self.assertEqual(edited(["<a@x>"], edits), ["<a@x>", "<b@x>"])
        self.assertEqual(edited(["<a@x>"], edits, False), ["<a@x>", "a@x", "<b@x>", "b@x"])

    @given(st.lists(_ADDRESSES, max_size=5), _EDITS, st.booleans())
    @settings(STEADY, max_examples=150)
    def test_as_one_by_one(self, recipients: list[str], edits: list[Any], merges: bool) -> None:
        """
        Any list of edits comes to what looking at each recipient for each edit comes to.
        """
        left = list(recipients)
        for edit in edits:
            if isinstance(edit, DeleteRecipient):
                left = [one for one in left if not same_address(one, edit.address)]
            elif not (merges and any(same_address(one, edit.address) for one in left)):
                left.append(edit.address)
        self.assertEqual(edited(recipients, edits, merges), left)

    def test_many_edits_of_many_recipients_cost_no_more_each(self) -> None:
        """
        Many edits of many recipients cost no more each.
        """

        def prepare(size: int) -> Callable[[], object]:
            people = [f"<p{number}@example.com>" for number in range(size)]
            edits: list[Edit] = [DeleteRecipient(one) for one in people[::2]]
            edits += [AddRecipient(one) for one in people]
            return lambda: edited(people, edits)

        assert_linear(prepare, 500)


class MessageTests(SynchronousTestCase):
    """
    The recipients of a milter written in messages.
    """

    def recipients(self, *given: str) -> Recipients:
        """
        Make the recipients of a message, of which everything is allowed.
        """
        recipients = Recipients(lambda *reply: None, lambda *action: None)
        for address in given:
            recipients.receive([address])
        return recipients

    def test_all_spellings_of_address_are_one_to_look_for_to_add_once_to_remove(self) -> None:
        """
        All spellings of an address are one: to look for, to add once, to remove.
        """
        recipients = self.recipients("<a@x>", "<A@x>", "<a@X>", "<b@x>")
        self.assertIn('"a"@x', recipients)
        self.assertNotIn("c@x", recipients)
        recipients.add("b@X")
        self.assertEqual(recipients.edits(), [])
        recipients.remove("a@x")
        self.assertEqual([one.given for one in recipients], ["<A@x>", "<b@x>"])
        self.assertEqual(recipients.edits(), [DeleteRecipient("<a@x>"), DeleteRecipient("<a@X>")])
        recipients.add("<a@X>")
        self.assertEqual(recipients.edits(), [DeleteRecipient("<a@x>")])

    def test_refused_after_it_was_removed(self) -> None:
        """
        A recipient that is gone already can be refused.
        """
        recipients = self.recipients("<a@x>")
        refused = recipients.receive(["<b@x>"])
        recipients.remove("b@x")
        recipients.refuse(refused)
        self.assertEqual((len(recipients), recipients.edits()), (1, []))

    def test_removing_one_that_is_not_there_is_an_error(self) -> None:
        """
        To remove one that is not there is an error that names some of those that are.
        """
        recipients = self.recipients(*(f"<p{number}@x>" for number in range(20)))
        with self.assertRaisesRegex(ValueNotSendable, r"'c@x' is not one of p0@x, .*, p9@x \.\.\."):
            recipients.remove("c@x")
        with self.assertRaisesRegex(ValueNotSendable, "'c@x' is not one of a@x$"):
            self.recipients("<a@x>").remove("c@x")

    def test_many_recipients_that_are_refused(self) -> None:
        """
        Many recipients that are refused, removed and added cost no more each.
        """

        def prepare(size: int) -> Callable[[], object]:
            def work() -> None:
                recipients = self.recipients(*(f"<p{number}@x>" for number in range(size)))
                refused = [recipients.receive([f"<r{number}@x>"]) for number in range(size)]
                for one in refused:
                    recipients.refuse(one)
                for number in range(size):
                    recipients.remove(f"p{number}@x")
                    recipients.add(f"<n{number}@x>")
                recipients.edits()

            return work

        assert_linear(prepare, 300)
