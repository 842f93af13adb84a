"""
A message's text on its way to the milters: header fields, the header's end, body, end.

It comes in as many parts as the test gives.
"""

from __future__ import annotations

from yatxmilter._mail.rfc5322 import Field, Mail, split_mail, wire_body
from yatxmilter._wire.actions import NOT_AWAITED, Response
from yatxmilter._wire.payloads import from_text
from yatxmilter.client import apply_edits
from yatxmilter.client._session_script import REFUSES, MessageState, SessionScript
from yatxmilter.testing._answers import Transaction
from yatxmilter.testing._values import Delivered, deliver_envelope

__all__ = ["Content", "make_field"]


def make_field(name: str, value: str) -> Field:
    """
    Make a header field as it stands in a message: with a blank after the colon.

    :raises ValueError: for what is not one field.
    """
    mail = split_mail(from_text(f"{name}: {value}\n"))
    if len(mail.fields) != 1 or mail.body or mail.separated:
        raise ValueError(f"{name!r} with value {value!r} is not one header field")
    return mail.fields[0]


class Content:
    """
    The text of one message.

    :param state: What the milters have made of the message.
    """

    def __init__(
        self, script: SessionScript, state: MessageState, transaction: Transaction
    ) -> None:
        self.state = state
        self._script = script
        self._transaction = transaction
        self._fields: list[Field] = []
        self._body: list[bytes] = []
        self._headed = False

    async def header(self, field: Field) -> Response:
        """
        Send a field.
        """
        self._fields.append(field)
        return await self._script.header(field)

    async def eoh(self) -> Response:
        """
        End the header, if it is not at its end.
        """
        if self._headed:
            return NOT_AWAITED
        self._headed = True
        return await self._script.eoh()

    async def body(self, chunk: bytes) -> Response:
        """
        Send a piece of the body, which has to have the line ends of the wire.
        """
        await self.eoh()
        self._body.append(chunk)
        return await self._script.body(chunk) if chunk else self.state.unasked

    async def end(self) -> tuple[Response, str]:
        """
        End the message; answer with what settles it, and the stage.
        """
        await self.eoh()
        transaction = self._transaction
        end = await self._script.end()
        transaction.edits, transaction.progress = end.edits, end.progress
        stage = "eom"
        if end.response is not NOT_AWAITED and self.state.settled is not None:
            stage = self.state.settled[0]
        if end.response.code not in REFUSES and not self.state.discarded:
            transaction.delivered = self._deliver()
        return end.response, stage

    def _deliver(self) -> Delivered:
        transaction, profile = self._transaction, self._script.profile
        data = apply_edits(
            Mail(self._fields, True, wire_body(b"".join(self._body)), b"\r\n").join(),
            transaction.edits,
            leading_space=self._script.leading_space,
            flavour=profile.name,
        )
        sender, recipients = deliver_envelope(
            transaction.sender, transaction.recipients, transaction.edits, profile.merges_recipients
        )
        return Delivered(sender, recipients, data)
