"""
What an MTA makes of a message when it makes a milter's edits: header, body, envelope, quarantine.

`Delivery` is the one place that says so; the kits differ in what they keep a message in. The header
follows the rules of the model that ``merge="chain"`` uses, so what is tried here is what milters in
a chain see. Fields that only the MTA knows are not in the result.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

from yatxmilter._mail.envelope import edit_recipients
from yatxmilter._mail.header_models import HeaderModel, header_model
from yatxmilter._mail.pieces import PIECE, done_at_once
from yatxmilter._mail.rfc5322 import Field, Mail, split_mail, wire_body
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

__all__ = ["Delivery", "apply_edits"]

T = TypeVar("T")


class Delivery:
    """
    Edits, and what an MTA makes of a message with them.

    :ivar held: The reason for which the message is held, the last one where there are several;
        ``None`` if it is not.
    :ivar sender: The new envelope sender, ``None`` where the old one stays.
    :ivar recipients: The edits of the recipients.
    :ivar header: The edits of the header.
    :ivar body: The new body in chunks, ``None`` where the old one stays.
    """

    def __init__(self, edits: Iterable[Edit] = ()) -> None:
        self.held: str | None = None
        self.sender: ChangeSender | None = None
        self.recipients: list[AddRecipient | DeleteRecipient] = []
        self.header: list[AddHeader | InsertHeader | ChangeHeader] = []
        self.body: list[bytes] | None = None
        for edit in edits:
            self.add(edit)

    def add(self, edit: Edit) -> None:
        """
        Add an edit behind the others.
        """
        match edit:
            case Quarantine(reason):
                self.held = reason
            case ChangeSender(address, args):
                # ESMTP arguments that are there stay where no others are given.
                before = None if self.sender is None else self.sender.args
                self.sender = ChangeSender(address, args or before)
            case AddRecipient() | DeleteRecipient():
                self.recipients.append(edit)
            case ReplaceBody(chunk):
                # The first takes the old body's place, the next ones follow it.
                if self.body is None:
                    self.body = []
                self.body.append(chunk)
            case _:
                self.header.append(edit)

    def edit_header(
        self, fields: Iterable[Field], *, leading_space: bool, flavour: str
    ) -> HeaderModel:
        """
        Edit the header of a message.

        :raises ValueError: for a flavour that there is not.
        """
        return done_at_once(self.header_work(fields, leading_space=leading_space, flavour=flavour))

    def header_work(
        self, fields: Iterable[Field], *, leading_space: bool, flavour: str
    ) -> Generator[None, None, HeaderModel]:
        """
        Do the same in pieces; the header is what is returned.
        """
        model = header_model(flavour, leading_space=leading_space)
        for number, field in enumerate(fields, 1):
            model.receive_field(field)
            if number % PIECE == 0:
                yield
        for number, edit in enumerate(self.header, 1):
            yield from model.prepare(edit)
            model.apply(edit)
            if number % PIECE == 0:
                yield
        return model

    def edit_recipients(
        self,
        recipients: Iterable[T],
        address_of: Callable[[T], str],
        make: Callable[[AddRecipient], T],
        *,
        merges: bool = True,
    ) -> list[T]:
        """
        Edit the recipients; the arguments are those of `envelope.edit_recipients`.
        """
        return edit_recipients(recipients, self.recipients, address_of, make, merges=merges)


def apply_edits(
    message: bytes,
    edits: Iterable[Edit],
    *,
    leading_space: bool | None = None,
    flavour: str = "postfix",
) -> bytes:
    """
    Edit a message as an MTA does.

    Envelope edits and quarantine leave the message's bytes alone.

    :param message: What the milter saw, in either kind of line end; the result has the same.
    :param leading_space: Whether SMFIP_HDR_LEADSPC was agreed, so that the milter gave the blank
        after the colon itself. By default what the edits of an `Outcome` say; of others, not.
    :param flavour: Whose rules: ``"postfix"`` or ``"sendmail"``.
    :raises ValueError: for another flavour.
    """
    if leading_space is None:
        leading_space = bool(getattr(edits, "leading_space", False))
    mail = split_mail(message)
    delivery = Delivery(edits)
    header = delivery.edit_header(mail.fields, leading_space=leading_space, flavour=flavour)
    body = mail.body if delivery.body is None else wire_body(b"".join(delivery.body))
    return Mail(header.fields(), mail.separated, body, mail.line_end).join()
