"""
A message's text on its way to the milters: header fields, the header's end, body, end.

It comes in as many parts as the test gives. Once the milters have settled the message they are
asked no more, whatever parts are left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from twisted.internet.defer import Deferred

from yatxmilter import constants as c
from yatxmilter._mail.rfc5322 import Field, Mail, split_mail, wire_body
from yatxmilter._wire.actions import NOT_AWAITED, Agreement, Response
from yatxmilter._wire.payloads import from_text
from yatxmilter.client import apply_edits
from yatxmilter.client._commands import Dialogue
from yatxmilter.client._message import shown_fields
from yatxmilter.client._profiles import Flavour
from yatxmilter.testing._answers import Transaction
from yatxmilter.testing._values import Delivered, deliver_envelope

__all__ = ["Content", "make_field"]

_REFUSES: Final = (c.SMFIS_REJECT, c.SMFIS_TEMPFAIL)


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

    :ivar settled: The answer that ended the asking, and its stage.
    """

    def __init__(
        self, lane: Dialogue, message: Transaction, agreement: Agreement | None, flavour: Flavour
    ) -> None:
        self.settled: tuple[Response, str] | None = None
        self._lane = lane
        self._message = message
        self._leading = agreement is not None and bool(agreement.steps & c.SMFIP_HDR_LEADSPC)
        self._flavour = flavour
        self._fields: list[Field] = []
        self._body = b""
        self._headed = self._skipped = False

    async def _ask(self, stage: str, ask: Callable[[], Deferred[Response]]) -> Response:
        if self.settled is not None:
            return self.settled[0]
        if self._message.quiet:
            return NOT_AWAITED
        response = await ask()
        self._message.note(response)
        if self._message.quiet or response.code in _REFUSES:
            self.settled = response, stage
        return response

    async def header(self, field: Field) -> Response:
        """
        Send a field.
        """
        self._fields.append(field)
        ((name, value),) = shown_fields([field], leading_space=self._leading)
        return await self._ask("header", lambda: self._lane.header(name, value))

    async def eoh(self) -> Response:
        """
        End the header, if it is not at its end.
        """
        if self._headed:
            return NOT_AWAITED
        self._headed = True
        return await self._ask("eoh", self._lane.eoh)

    async def body(self, chunk: bytes) -> Response:
        """
        Send a piece of the body, which has to have the line ends of the wire.
        """
        await self.eoh()
        self._body += chunk
        if self._skipped or not chunk:
            return self.settled[0] if self.settled else NOT_AWAITED
        response = await self._ask("body", lambda: self._lane.body(chunk))
        self._skipped = response.code == c.SMFIS_SKIP
        return response

    async def end(self) -> tuple[Response, str]:
        """
        End the message; answer with what settles it, and the stage.
        """
        await self.eoh()
        response = NOT_AWAITED
        if self.settled is None and not self._message.quiet:
            end = await self._lane.end_of_message()
            self._message.edits, self._message.progress = end.edits, end.progress
            response = end.response
            self._message.note(response)
        response, stage = self.settled or (response, "eom")
        if response.code not in _REFUSES and not self._message.discarded:
            self._message.delivered = self._deliver()
        return response, stage

    def _deliver(self) -> Delivered:
        message = self._message
        data = apply_edits(
            Mail(self._fields, True, wire_body(self._body), b"\r\n").join(),
            message.edits,
            leading_space=self._leading,
            flavour=self._flavour.name,
        )
        sender, recipients = deliver_envelope(
            message.sender, message.recipients, message.edits, self._flavour.merges_recipients
        )
        return Delivered(sender, recipients, data)
