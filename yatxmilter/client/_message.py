"""
One whole message played to a milter, and what became of it.

The steps are those of `yatxmilter.client._session_script`. They stop at an answer that settles the
message, or when every recipient has been refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from yatxmilter import constants as c
from yatxmilter._mail.delivery import Delivery
from yatxmilter._mail.rfc5322 import split_mail, wire_body
from yatxmilter._wire.actions import Edit, EndOfMessage, Response
from yatxmilter._wire.commands import HEADER_ROW, RCPT_ROW
from yatxmilter.client._session_script import REFUSES, MessageState, SessionScript
from yatxmilter.constants import ReturnCode
from yatxmilter.errors import ValueNotSendable

__all__ = ["Envelope", "Outcome", "Recipient", "play"]

_GOES_ON: Final = (c.SMFIS_CONTINUE, c.SMFIS_SKIP)


class Recipient(NamedTuple):
    """
    What became of one recipient.

    :ivar response: The milter's answer, ``None`` if it was not asked.
    """

    address: str
    response: Response | None = None

    @property
    def accepted(self) -> bool:
        """
        Whether the MTA accepts this recipient.
        """
        return self.response is None or self.response.code not in REFUSES


class Outcome(NamedTuple):
    """
    What became of a message.

    :ivar verdict: The code that settled it; CONTINUE, as ACCEPT, means that it is delivered.
    :ivar stage: Where that was: ``connect``, ``helo``, ``mail``, ``rcpt``, ``data``, ``header``,
        ``eoh``, ``body`` or ``eom``.
    :ivar response: The milter's response there.
    :ivar recipients: Those that were tried, in order.
    :ivar edits: Modification actions in the order they came in; of no effect unless `accepted`.
    :ivar progress: How many times the milter said that it was still at work.
    """

    verdict: ReturnCode
    stage: str
    response: Response
    recipients: tuple[Recipient, ...] = ()
    edits: tuple[Edit, ...] = ()
    progress: int = 0

    @property
    def text(self) -> str | None:
        """
        The whole SMTP reply that the milter gave with its verdict, if any.
        """
        return self.response.text

    @property
    def accepted(self) -> bool:
        """
        Whether the message is delivered.
        """
        return self.verdict in _GOES_ON or self.verdict == c.SMFIS_ACCEPT

    @property
    def quarantined(self) -> str | None:
        """
        The reason for which the message is held, the last one where there are several.
        """
        return Delivery(self.edits).held


class Envelope(NamedTuple):
    """
    The sender and the recipients of a message, with their ESMTP arguments.
    """

    sender: str
    recipients: Sequence[str]
    sender_args: Sequence[str]
    recipient_args: Mapping[str, Sequence[str]]


async def play(
    script: SessionScript, message: bytes, envelope: Envelope, queue_id: str | None = None
) -> Outcome:
    """
    Play a message to a milter, and say what became of it.

    :param queue_id: As for `SessionScript.mail`.
    :raises ValueNotSendable: for a header field that does not fit into a packet.
    """
    if script.standing is not None:
        stage, response = script.standing
        return Outcome(response.code, stage, response)
    try:
        outcome = await _Transaction(script, message, envelope).run(queue_id)
    except ValueNotSendable:
        await script.abort()
        raise
    await script.abort()
    return outcome


class _Transaction:
    """
    One message on its way through the commands, from MAIL to its end.
    """

    def __init__(self, script: SessionScript, message: bytes, envelope: Envelope) -> None:
        self._script = script
        self._mail = split_mail(message)
        self._envelope = envelope
        self._recipients: list[Recipient] = []

    async def run(self, queue_id: str | None) -> Outcome:
        script, envelope = self._script, self._envelope
        response = await script.mail(envelope.sender, *envelope.sender_args, queue_id=queue_id)
        message = script.message
        if message is None:
            return self._outcome("mail", EndOfMessage(response))
        for address in envelope.recipients:
            await self._recipient(message, address)
            if message.settled is not None and message.settled[1].code in REFUSES:
                break
        if message.settled is None and not message.accepted:
            # All recipients are refused: the last refusal is the message's.
            refused = self._recipients[-1].response
            assert refused is not None
            return self._outcome("rcpt", EndOfMessage(refused))
        end = await self._content(message)
        stage, response = message.settled or ("eom", end.response)
        return self._outcome(stage, end._replace(response=response))

    async def _recipient(self, message: MessageState, address: str) -> None:
        # Once the milter is out of the message the MTA takes the others by itself.
        response = None
        if message.asks(RCPT_ROW):
            args = self._envelope.recipient_args.get(address, ())
            response = await self._script.rcpt(address, *args)
        self._recipients.append(Recipient(address, response))

    async def _content(self, message: MessageState) -> EndOfMessage:
        script = self._script
        await script.data()
        for field in self._mail.fields:
            if not message.asks(HEADER_ROW):
                break
            await script.header(field)
        await script.eoh()
        if body := wire_body(self._mail.body):
            await script.body(body)
        return await script.end()

    def _outcome(self, stage: str, end: EndOfMessage) -> Outcome:
        response = end.response
        recipients = tuple(self._recipients)
        return Outcome(response.code, stage, response, recipients, end.edits, end.progress)
