"""
A message's envelope on its way through an SMTP server: the recipients in Twisted's terms, and what
milters' edits make of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from twisted.mail.smtp import Address, User

from yatxmilter._mail.envelope import edit_recipients
from yatxmilter._wire.actions import AddRecipient, ChangeSender, Edit, Quarantine
from yatxmilter._wire.payloads import from_text, to_text

__all__ = ["Envelope", "Mailbox", "bracketed", "quarantine_reason"]


class Mailbox(NamedTuple):
    """
    A recipient.

    :ivar user: As the delivery is asked about it.
    :ivar make: What makes the message object for it: the delivery's answer. ``None`` for one that a
        milter has added, of which the delivery knows nothing yet.
    """

    user: User
    make: Callable[[], Any] | None


class Envelope(NamedTuple):
    """
    Who sends a message to whom.
    """

    helo: tuple[Any, Any]
    origin: Any
    mailboxes: list[Mailbox]

    def edited(self, edits: Iterable[Edit], protocol: Any) -> Envelope:
        """
        Make milters' edits; with another sender the delivery has to be asked about everyone anew.

        :raises AddressError: for what is no address to Twisted.
        """
        edits = list(edits)
        origin = self.origin
        for edit in edits:
            if isinstance(edit, ChangeSender):
                origin = Address(_path(edit.address), protocol.host)

        def make(edit: AddRecipient) -> Mailbox:
            return Mailbox(User(_path(edit.address), self.helo, protocol, origin), None)

        mailboxes = edit_recipients(self.mailboxes, edits, _address_of, make)
        if origin is not self.origin:
            mailboxes = [
                Mailbox(User(old.user.dest, self.helo, protocol, origin), None) for old in mailboxes
            ]
        return Envelope(self.helo, origin, mailboxes)


def quarantine_reason(edits: Iterable[Edit]) -> str | None:
    """
    Give the reason for which a message is to be held, the last one where there are several.
    """
    reasons = [edit.reason for edit in edits if isinstance(edit, Quarantine)]
    return reasons[-1] if reasons else None


def bracketed(address: Any) -> str:
    """
    Write an address as milters see it.
    """
    return f"<{to_text(bytes(address))}>"


def _path(address: str) -> bytes:
    # Brackets may be there or not.
    return b"<" + from_text(address).strip().removeprefix(b"<").removesuffix(b">") + b">"


def _address_of(mailbox: Mailbox) -> str:
    return to_text(bytes(mailbox.user.dest))
