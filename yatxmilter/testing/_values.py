"""
What comes out of a test: callbacks, answers, and the message as it is delivered.
"""

from __future__ import annotations

from collections.abc import Iterable
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import NamedTuple

from yatxmilter._mail.delivery import Delivery
from yatxmilter._mail.rfc5322 import split_mail
from yatxmilter._wire.actions import AddRecipient, Edit
from yatxmilter._wire.payloads import to_text

__all__ = ["Call", "Delivered", "Path", "deliver_envelope"]


class Call(NamedTuple):
    """
    A callback that was called.

    :ivar milter: The milter's ``xxfi_name``.
    """

    milter: str
    name: str
    args: tuple[object, ...]

    def __str__(self) -> str:
        return f"{self.milter}.{self.name}({', '.join(map(repr, self.args))})"


class Path(NamedTuple):
    """
    A sender or recipient, in angle brackets, and its ESMTP arguments.
    """

    address: str
    args: tuple[str, ...] = ()


class Delivered(NamedTuple):
    """
    A message as it leaves the MTA, without what the MTA adds by itself.

    :ivar data: The message file, with CR LF.
    """

    sender: Path
    recipients: tuple[Path, ...]
    data: bytes

    @property
    def fields(self) -> list[tuple[str, str]]:
        """
        The header fields, values without the blank after the colon.
        """
        fields = split_mail(self.data).fields
        return [(to_text(field.name), to_text(field.bare_value())) for field in fields]

    @property
    def body(self) -> bytes:
        """
        What follows the header.
        """
        return split_mail(self.data).body

    @property
    def message(self) -> EmailMessage:
        """
        The message, parsed.
        """
        message = message_from_bytes(self.data, policy=policy.default)
        assert isinstance(message, EmailMessage)
        return message

    def values(self, name: str) -> list[str]:
        """
        Give the values of all fields of a name.
        """
        return [value for own, value in self.fields if own.lower() == name.lower()]


def bracketed(address: str) -> str:
    """
    Write an address in angle brackets.
    """
    return address if address.startswith("<") else f"<{address}>"


def deliver_envelope(
    sender: Path, recipients: Iterable[Path], edits: Iterable[Edit], merges: bool
) -> tuple[Path, tuple[Path, ...]]:
    """
    Apply the edits of an envelope.

    :param merges: Whether a recipient that is there already is not added again.
    """
    delivery = Delivery(edits)
    if delivery.sender is not None:
        address, args = delivery.sender
        sender = Path(bracketed(address), tuple(args.split()) if args else sender.args)
    left = delivery.edit_recipients(recipients, lambda path: path.address, _added, merges=merges)
    return sender, tuple(left)


def _added(edit: AddRecipient) -> Path:
    return Path(bracketed(edit.address), tuple((edit.args or "").split()))
