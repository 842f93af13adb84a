"""
The edits of several milters in a row as those of one filter.

An MTA makes edits in the order in which they come, so those of the milters after one another, in
their order, mostly have the effect that they would have if each milter were a filter by itself;
what a later edit undoes is left out. The exceptions are where an MTA counts header fields
differently once another filter has begun. So the list is tried on a model of the MTA's header, and
when something else comes out than the milters meant, their edits of the header are written anew.
Bodies cannot follow one another, since the MTA would join them: the last one counts, and goes in
one row because Postfix wants it so.
"""

from __future__ import annotations

from collections.abc import Callable

from yatxmilter import constants as c
from yatxmilter._engine.context import Context
from yatxmilter._mail.header_models import HeaderModel
from yatxmilter._wire.actions import (
    AddHeader,
    AddRecipient,
    ChangeHeader,
    ChangeSender,
    DeleteRecipient,
    Edit,
    InsertHeader,
    ReplaceBody,
)
from yatxmilter._wire.payloads import (
    encode_indexed_header,
    encode_packet,
    encode_strings,
    from_text,
)

__all__ = ["ChainEdits", "edit_packet", "make_edit"]

_OfHeader = (AddHeader, InsertHeader, ChangeHeader)


class ChainEdits:
    """
    What the milters of a chain have made of one message so far.

    :param header: The header as the MTA has shown it to the first milter.
    """

    def __init__(self, header: HeaderModel) -> None:
        self._received = header.copy()
        self._edits: list[tuple[Edit, bytes]] = []
        self._body: list[bytes] = []

    def add(self, edit: Edit, packet: bytes, header: HeaderModel) -> None:
        """
        Add an edit other than one of the body.

        :param packet: The edit as it goes over the wire.
        :param header: The header as it is before the edit.
        """
        if isinstance(edit, ChangeSender):
            # The ESMTP arguments of one stay when the next has none.
            self._drop(lambda earlier: isinstance(earlier, ChangeSender) and earlier.args is None)
        elif isinstance(edit, AddRecipient):
            if any(earlier == edit for earlier, _ in self._edits if type(earlier) is AddRecipient):
                return
        elif isinstance(edit, DeleteRecipient):
            self._drop(lambda earlier: _about_recipient(earlier, edit.address))
        elif isinstance(edit, ChangeHeader) and header.finds(edit.name, edit.index):
            self._drop_change(edit)
        self._edits.append((edit, packet))

    def replace_body(self, packets: list[bytes]) -> None:
        """
        Take a milter's new body in place of what there was.
        """
        self._body = packets

    def packets(self, header: HeaderModel) -> list[bytes]:
        """
        Give all edits as packets, in an order that MTAs apply right.

        :param header: The header as all the milters have left it.
        """
        pairs = self._edits
        tried = self._received.copy()
        for edit, _ in pairs:
            tried.apply(edit)
        if tried.state() != header.state():
            pairs = [pair for pair in pairs if not isinstance(pair[0], _OfHeader)]
            pairs += [(edit, edit_packet(edit)) for edit in header.edits_from(self._received)]
        return [packet for _, packet in pairs] + self._body

    def _drop(self, is_undone: Callable[[Edit], bool]) -> None:
        self._edits = [pair for pair in self._edits if not is_undone(pair[0])]

    def _drop_change(self, change: ChangeHeader) -> None:
        # The last edit of a field of this name, if it gave the very field another value: that
        # value is not seen any more. Anything else may have moved the count.
        for place in range(len(self._edits) - 1, -1, -1):
            earlier = self._edits[place][0]
            if not isinstance(earlier, _OfHeader):
                continue
            if earlier.name.lower() == change.name.lower():
                if isinstance(earlier, ChangeHeader) and _same_field(earlier, change):
                    del self._edits[place]
                return


def _about_recipient(edit: Edit, address: str) -> bool:
    return isinstance(edit, (AddRecipient, DeleteRecipient)) and edit.address == address


def _same_field(earlier: ChangeHeader, later: ChangeHeader) -> bool:
    return earlier.index == later.index and bool(earlier.value)


def edit_packet(edit: Edit) -> bytes:
    """
    Write an edit of the header as a packet.
    """
    match edit:
        case InsertHeader(index, name, value):
            payload = encode_indexed_header(index, from_text(name), from_text(value))
            return encode_packet(c.SMFIR_INSHEADER, payload)
        case ChangeHeader(index, name, value):
            payload = encode_indexed_header(index, from_text(name), from_text(value))
            return encode_packet(c.SMFIR_CHGHEADER, payload)
        case AddHeader(name, value):
            return encode_packet(
                c.SMFIR_ADDHEADER, encode_strings(from_text(name), from_text(value))
            )
    raise TypeError(edit)


def make_edit(context: Context, edit: Edit) -> None:
    """
    Have a milter make an edit, by the function of libmilter's that is for it.

    :raises UsageError: as that function does.
    """
    match edit:
        case AddHeader(name, value):
            context.addheader(name, value)
        case InsertHeader(index, name, value):
            context.insheader(index, name, value)
        case ChangeHeader(index, name, value):
            context.chgheader(name, index, value)
        case AddRecipient(address, None) if context.actions & c.SMFIF_ADDRCPT:
            context.addrcpt(address)
        case AddRecipient(address, args):
            context.addrcpt_par(address, args)
        case DeleteRecipient(address):
            context.delrcpt(address)
        case ChangeSender(address, args):
            context.chgfrom(address, args)
        case ReplaceBody(body):
            context.replacebody(body)
        case _:
            context.quarantine(edit.reason)
