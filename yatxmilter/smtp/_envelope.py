"""
A message's envelope on its way through an SMTP server: the recipients in Twisted's terms, and what
milters' edits make of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import twisted.mail.smtp
from twisted.mail.smtp import Address, User

from yatxmilter._mail.controls import is_clean_text
from yatxmilter._mail.delivery import Delivery
from yatxmilter._mail.envelope import bare_address
from yatxmilter._wire.actions import AddRecipient
from yatxmilter._wire.payloads import from_text, to_text

__all__ = ["Envelope", "Mailbox", "bracketed", "parse_path"]

# Twisted has no types for it.
AddressError: Any = twisted.mail.smtp.AddressError

# RFC 5321 has 256 octets at least. Twisted takes the square of the length to parse one.
_LONGEST_PATH: Final = 1000


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

    def edited(self, delivery: Delivery, protocol: Any) -> Envelope:
        """
        Make milters' edits; with another sender the delivery has to be asked about everyone anew.

        :raises AddressError: if it is not an address to Twisted, or to this server.
        """
        origin = self.origin
        if delivery.sender is not None:
            origin = parse_path(_path(delivery.sender.address), protocol.host)
        for edit in delivery.recipients:
            # What no milter may name is refused before anything is made of it.
            parse_path(_path(edit.address), protocol.host)

        def make(edit: AddRecipient) -> Mailbox:
            return Mailbox(User(_path(edit.address), self.helo, protocol, origin), None)

        left = delivery.edit_recipients(self.mailboxes, _address_of, make)
        if origin is not self.origin:
            left = [Mailbox(User(old.user.dest, self.helo, protocol, origin), None) for old in left]
        return Envelope(self.helo, origin, left)


def bracketed(address: Any) -> str:
    """
    Write an address as milters see it.
    """
    return f"<{to_text(bytes(address))}>"


def parse_path(path: bytes, host: bytes) -> Address:
    """
    Parse an address, in brackets or not, as Twisted does.

    :param host: The domain of one that has none.
    :raises AddressError: if it is not an address to Twisted, has control characters, is not UTF-8,
        or is very long.
    """
    if len(path) > _LONGEST_PATH or not is_clean_text(path):
        raise AddressError(
            f"{path[:_LONGEST_PATH]!r} is not an address of at most {_LONGEST_PATH} printable bytes"
        )
    return Address(path, host)


def _path(address: str) -> bytes:
    return b"<" + from_text(bare_address(address)) + b">"


def _address_of(mailbox: Mailbox) -> str:
    return to_text(bytes(mailbox.user.dest))
