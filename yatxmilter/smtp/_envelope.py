"""
A message's envelope on its way through an SMTP server: the recipients in Twisted's terms, and what
milters' edits make of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

import twisted.mail.smtp
from twisted.mail.smtp import Address, User

from yatxmilter._mail.controls import is_clean_text
from yatxmilter._wire.actions import AddRecipient, ChangeSender, DeleteRecipient, Edit, Quarantine
from yatxmilter._wire.payloads import from_text, to_text

__all__ = ["Envelope", "Mailbox", "bracketed", "parse_path", "quarantine_reason"]

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

    def edited(self, edits: Iterable[Edit], protocol: Any) -> Envelope:
        """
        Make milters' edits; with another sender the delivery has to be asked about everyone anew.

        :raises AddressError: for what is no address to Twisted, or to this server.
        """
        origin = self.origin
        mailboxes: list[Mailbox | None] = list(self.mailboxes)
        # Where the recipients of each address are.
        places: defaultdict[tuple[bytes, bytes], list[int]] = defaultdict(list)
        for place, mailbox in enumerate(self.mailboxes):
            places[_key(mailbox.user.dest)].append(place)
        for edit in edits:
            match edit:
                case ChangeSender(address):
                    origin = parse_path(_path(address), protocol.host)
                case AddRecipient(address):
                    path = _path(address)
                    key = _key(parse_path(path, protocol.host))
                    if key not in places:
                        places[key].append(len(mailboxes))
                        mailboxes.append(Mailbox(User(path, self.helo, protocol, origin), None))
                case DeleteRecipient(address):
                    for place in places.pop(_key(parse_path(_path(address), protocol.host)), ()):
                        mailboxes[place] = None
        left = [mailbox for mailbox in mailboxes if mailbox is not None]
        if origin is not self.origin:
            left = [Mailbox(User(old.user.dest, self.helo, protocol, origin), None) for old in left]
        return Envelope(self.helo, origin, left)


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


def parse_path(path: bytes, host: bytes) -> Address:
    """
    Parse an address, in brackets or not, as Twisted does.

    :param host: The domain of one that has none.
    :raises AddressError: for what is no address to Twisted, has control characters, is not UTF-8,
        or is very long.
    """
    if len(path) > _LONGEST_PATH or not is_clean_text(path):
        raise AddressError(
            f"{path[:_LONGEST_PATH]!r} is not an address of at most {_LONGEST_PATH} printable bytes"
        )
    return Address(path, host)


def _path(address: str) -> bytes:
    # Brackets may be there or not.
    return b"<" + from_text(address).strip().removeprefix(b"<").removesuffix(b">") + b">"


def _key(address: Address) -> tuple[bytes, bytes]:
    return address.local, address.domain.lower()
