"""
One message played to a milter as Postfix plays it.

The commands come in Postfix's order, each with its macros, and stop where Postfix stops: at an
answer that settles the message, or when every recipient has been refused. ABORT ends each
transaction, as it does there, the finished ones included. Which macros go with a command is the
milter's choice where it has asked for a list, otherwise the usual default.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from yatxmilter import constants as c
from yatxmilter._mail.delivery import Delivery
from yatxmilter._mail.envelope import bare_address
from yatxmilter._mail.rfc5322 import Field, split_mail, wire_body
from yatxmilter._wire.actions import Agreement, Edit, EndOfMessage, Response
from yatxmilter._wire.negotiation import DEFAULT_SYMBOLS
from yatxmilter._wire.payloads import to_text
from yatxmilter.client._commands import Dialogue
from yatxmilter.constants import ReturnCode
from yatxmilter.errors import ValueNotSendable

__all__ = ["Envelope", "Outcome", "Recipient", "play", "select_macros", "shown_fields"]

_GOES_ON: Final = (c.SMFIS_CONTINUE, c.SMFIS_SKIP)
_REFUSES: Final = (c.SMFIS_REJECT, c.SMFIS_TEMPFAIL)


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
        return self.response is None or self.response.code not in _REFUSES


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
    Who sends the message to whom, and the ESMTP arguments of both.
    """

    sender: str
    recipients: Sequence[str]
    sender_args: Sequence[str]
    recipient_args: Mapping[str, Sequence[str]]


def select_macros(
    agreement: Agreement | None, stage: int, values: Mapping[str, str]
) -> dict[str, str]:
    """
    Choose the macros that are sent at a stage, as Postfix does: those of the milter's list for it,
    of the default list where it gave none, and of these the ones that have a value.

    :param values: What is known, by name; ``i`` and ``{i}`` are the same.
    """
    asked = agreement.symbol_lists.get(stage) if agreement is not None else None
    known = {name.strip("{}"): value for name, value in values.items()}
    names = asked or DEFAULT_SYMBOLS[stage].split()
    return {name: known[bare] for name in names if (bare := name.strip("{}")) in known}


def shown_fields(fields: Iterable[Field], *, leading_space: bool) -> Iterator[tuple[str, str]]:
    """
    Give the names and values of a message's header as an MTA shows them to its first milter.

    :param leading_space: Whether SMFIP_HDR_LEADSPC was agreed.
    """
    for field in fields:
        value = field.value if leading_space else field.bare_value()
        # Inside the MTA these are C strings: they end at a NUL.
        yield to_text(field.name), to_text(value).partition("\0")[0]


async def play(
    dialogue: Dialogue,
    agreement: Agreement | None,
    message: bytes,
    envelope: Envelope,
    macros: Mapping[str, str],
) -> Outcome:
    """
    Play a message to a milter, and say what became of it.

    :raises ValueNotSendable: for a header field that does not fit into a packet.
    """
    transaction = _Transaction(dialogue, agreement, message, envelope, macros)
    try:
        end = await transaction.run()
    except ValueNotSendable:
        await dialogue.abort()
        raise
    await dialogue.abort()
    return Outcome(
        end.response.code,
        transaction.stage,
        end.response,
        tuple(transaction.recipients),
        end.edits,
        end.progress,
    )


class _Transaction:
    """
    A message on its way; each step answers with the end, or with ``None`` to go on.
    """

    def __init__(
        self,
        dialogue: Dialogue,
        agreement: Agreement | None,
        message: bytes,
        envelope: Envelope,
        macros: Mapping[str, str],
    ) -> None:
        self._dialogue = dialogue
        self._agreement = agreement
        self._mail = split_mail(message)
        self._envelope = envelope
        self._values = macros
        self.stage = "mail"
        self.recipients: list[Recipient] = []

    async def run(self) -> EndOfMessage:
        for step in (self._sender, self._recipients, self._data, self._header, self._body):
            end = await step()
            if end is not None:
                return end
        self.stage = "eom"
        return await self._dialogue.end_of_message(macros=self._macros(c.SMFIM_EOM))

    def _macros(self, stage: int, **more: str) -> dict[str, str]:
        return select_macros(self._agreement, stage, {**more, **self._values})

    def _settled(self, response: Response) -> EndOfMessage | None:
        if response.code in _GOES_ON:
            return None
        if response.code not in _REFUSES:
            # The milter is out of the message; the MTA takes the other recipients by itself.
            tried = len(self.recipients)
            self._take(self._envelope.recipients[tried:])
        return EndOfMessage(response)

    def _take(self, addresses: Iterable[str]) -> None:
        self.recipients.extend(map(Recipient, addresses))

    async def _sender(self) -> EndOfMessage | None:
        sender = self._envelope.sender
        macros = self._macros(c.SMFIM_ENVFROM, mail_addr=bare_address(sender))
        return self._settled(
            await self._dialogue.mail(sender, *self._envelope.sender_args, macros=macros)
        )

    async def _recipients(self) -> EndOfMessage | None:
        self.stage = "rcpt"
        addresses = self._envelope.recipients
        for number, address in enumerate(addresses, 1):
            macros = self._macros(c.SMFIM_ENVRCPT, rcpt_addr=bare_address(address))
            args = self._envelope.recipient_args.get(address, ())
            response = await self._dialogue.rcpt(address, *args, macros=macros)
            self.recipients.append(Recipient(address, response))
            if response.code in _REFUSES and not response.closes:
                continue
            if response.code == c.SMFIS_SKIP:
                # Postfix sends no more recipients then.
                self._take(addresses[number:])
                break
            end = self._settled(response)
            if end is not None:
                return end
        if any(recipient.accepted for recipient in self.recipients):
            return None
        return self._settled(response)

    async def _data(self) -> EndOfMessage | None:
        self.stage = "data"
        return self._settled(await self._dialogue.data(macros=self._macros(c.SMFIM_DATA)))

    async def _header(self) -> EndOfMessage | None:
        self.stage = "header"
        leading_space = self._agreement is not None and (
            self._agreement.steps & c.SMFIP_HDR_LEADSPC
        )
        macros = self._macros(c.SMFIM_EOH)
        for name, value in shown_fields(self._mail.fields, leading_space=bool(leading_space)):
            response = await self._dialogue.header(name, value, macros=macros)
            end = self._settled(response)
            if end is not None:
                return end
            if response.code == c.SMFIS_SKIP:
                break
        self.stage = "eoh"
        return self._settled(await self._dialogue.eoh(macros=macros))

    async def _body(self) -> EndOfMessage | None:
        self.stage = "body"
        body = wire_body(self._mail.body)
        if not body:
            return None
        macros = self._macros(c.SMFIM_EOM)
        return self._settled(await self._dialogue.body(body, macros=macros))
