"""
The edits of several milters in a row as one list.

An MTA makes edits in the order in which they come, so those of the milters after one another, in
their order, have the effect they would have if each milter were asked by itself. Only bodies
cannot follow one another, since the MTA would join them: the last one counts, and goes in one row
because Postfix wants it so. What a later edit undoes is left out.
"""

from __future__ import annotations

from collections.abc import Callable

from yatxmilter.model import PostfixHeader
from yatxmilter.responses import (
    AddHeader,
    AddRecipient,
    ChangeHeader,
    ChangeSender,
    DeleteRecipient,
    Edit,
    InsertHeader,
)

__all__ = ["ChainEdits"]


class ChainEdits:
    """
    What the milters of a chain have made of one message so far.
    """

    def __init__(self) -> None:
        self._edits: list[tuple[Edit, bytes]] = []
        self._body: list[bytes] = []

    def add(self, edit: Edit, packet: bytes, header: PostfixHeader) -> None:
        """
        Add an edit other than one of the body.

        :param packet: The edit as it goes over the wire.
        :param header: The header as it is before the edit.
        """
        if isinstance(edit, ChangeSender):
            self._drop(lambda earlier: isinstance(earlier, ChangeSender))
        elif isinstance(edit, AddRecipient):
            if any(earlier == edit for earlier, _ in self._edits if type(earlier) is AddRecipient):
                return
        elif isinstance(edit, DeleteRecipient):
            self._drop(lambda earlier: _about_recipient(earlier, edit.address))
        elif isinstance(edit, ChangeHeader) and header.has(edit.name, edit.index):
            self._drop_change(edit)
        self._edits.append((edit, packet))

    def replace_body(self, packets: list[bytes]) -> None:
        """
        Take a milter's new body in place of what there was.
        """
        self._body = packets

    def packets(self) -> list[bytes]:
        """
        Give all edits as packets, in an order that MTAs apply right.
        """
        return [packet for _, packet in self._edits] + self._body

    def _drop(self, is_undone: Callable[[Edit], bool]) -> None:
        self._edits = [pair for pair in self._edits if not is_undone(pair[0])]

    def _drop_change(self, change: ChangeHeader) -> None:
        # The last edit of a field of this name, if it gave the very field another value: that
        # value is not seen any more. Anything else may have moved the count.
        for place in range(len(self._edits) - 1, -1, -1):
            earlier = self._edits[place][0]
            if not isinstance(earlier, (AddHeader, InsertHeader, ChangeHeader)):
                continue
            if earlier.name.lower() == change.name.lower():
                if isinstance(earlier, ChangeHeader) and _same_field(earlier, change):
                    del self._edits[place]
                return


def _about_recipient(edit: Edit, address: str) -> bool:
    return isinstance(edit, (AddRecipient, DeleteRecipient)) and edit.address == address


def _same_field(earlier: ChangeHeader, later: ChangeHeader) -> bool:
    return earlier.index == later.index and bool(earlier.value)
