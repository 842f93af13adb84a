"""
The milters of one SMTP connection, asked as an MTA asks them.

`Filtering` plays the MTA: it knows which of a message's commands are still to be sent, chooses the
macros that go with them, and says what an answer means for the SMTP client. The table that it
keeps to is Postfix's: a refusal of the connection or of HELO is told at each MAIL, ACCEPT and
DISCARD keep the rest of a message from the milters, one recipient may be refused by itself.

Once the milters cannot be talked to any more one return code stands for all their answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from yatxmilter import constants as c
from yatxmilter._engine.on_error import Reply
from yatxmilter._escaping import printable
from yatxmilter._wire.actions import NOT_AWAITED, Agreement, EndOfMessage, Response
from yatxmilter._wire.payloads import from_text, to_text
from yatxmilter.client import MilterClient
from yatxmilter.client._message import select_macros, shown_fields
from yatxmilter.constants import ReturnCode
from yatxmilter.errors import PeerError, ValueNotSendable
from yatxmilter.smtp._content import Content

__all__ = ["Filtering", "refusal"]

_log = Logger()

_DEFAULT_REPLIES: Final = {
    c.SMFIS_REJECT: b"550 5.7.1 Command rejected",
    c.SMFIS_TEMPFAIL: b"451 4.7.1 Service unavailable - try again later",
}
_SETTLES: Final = (c.SMFIS_ACCEPT, c.SMFIS_DISCARD)
_TOO_LARGE: Final = Response(
    c.SMFIS_REJECT, c.SMFIR_REPLYCODE, "552 5.3.4 Message header too large"
)
# After so many header fields other connections have their turn.
_FIELDS_IN_A_TURN: Final = 100
_UNSPOKEN: Final = Agreement(c.SMFI_PROT_VERSION, 0, 0, {})

_Ask = Callable[..., Deferred[Any]]


def refusal(response: Response) -> bytes | None:
    """
    Give the SMTP reply of an answer that refuses something, ``None`` for any other answer.
    """
    if response.text is not None:
        # A lone percent sign is no text, two of them are one: so MTAs have it.
        return re.sub(rb"%(%?)", rb"\1", from_text(response.text))
    return _DEFAULT_REPLIES.get(response.code)


class Filtering:
    """
    One SMTP connection, for its milters.

    :param client: The connection to them.
    :param on_error: What stands for their answers once the connection fails.
    :param clock: Whose turns are used.
    :ivar values: What macros there are, by name.
    """

    def __init__(
        self, client: MilterClient, on_error: ReturnCode | Reply, clock: IReactorTime
    ) -> None:
        self.values: dict[str, str] = {}
        self._client = client
        self._clock = clock
        self._on_error = (
            Response(on_error.code, c.SMFIR_REPLYCODE, to_text(on_error.text))
            if isinstance(on_error, Reply)
            else Response(on_error)
        )
        self._failed = False
        self._open = False
        # The answer that was the milters' last in this message.
        self._settled: Response | None = None

    @property
    def _agreement(self) -> Agreement:
        return self._client.agreement or _UNSPOKEN

    @property
    def leading_space(self) -> bool:
        """
        Whether SMFIP_HDR_LEADSPC was agreed.
        """
        return bool(self._agreement.steps & c.SMFIP_HDR_LEADSPC)

    # ---- asking

    async def _ask(self, stage: int, ask: _Ask, *arguments: object, **values: str) -> Any:
        if self._failed:
            return self._on_error
        macros = select_macros(self._client.agreement, stage, {**self.values, **values})
        return await self._heard(ask(*arguments, macros=macros))

    async def _heard(self, answer: Deferred[Any]) -> Any:
        try:
            return await answer
        except PeerError as error:
            self._failed = True
            _log.error(
                "The milters of {client} cannot be asked (queue id {queue_id}): {error};"
                " answering {code} for them",
                client=printable(self.values.get("_", "unknown")),
                queue_id=self.values.get("i", "unknown"),
                error=error,
                code=self._on_error.code,
            )
            return self._on_error

    # ---- the connection

    async def connect(self, hostname: str, address: IAddress | None) -> Response:
        """
        Negotiate, and announce the SMTP client.
        """
        await self._heard(self._client.negotiate())
        response: Response = await self._ask(
            c.SMFIM_CONNECT, self._client.connect, hostname, address
        )
        return response

    async def helo(self, helohost: str) -> Response:
        """
        Pass on HELO or EHLO.
        """
        if self._out():
            return NOT_AWAITED
        response: Response = await self._ask(c.SMFIM_HELO, self._client.helo, helohost)
        return response

    async def unknown(self, line: str) -> Response:
        """
        Pass on a command that the server does not know.
        """
        if self._failed or self._client.standing is not None or self._settled is not None:
            return NOT_AWAITED
        response: Response = await self._heard(self._client.unknown(line))
        return response

    def _out(self) -> bool:
        """
        Tell whether the milters have said all that they will: a refusal of HELO is for one HELO.
        """
        standing = self._client.standing
        if standing is None:
            return False
        stage, response = standing
        return stage == "connect" or response.code == c.SMFIS_ACCEPT

    # ---- the envelope

    async def mail(self, *argv: str) -> Response:
        """
        Begin a message.

        :param argv: The sender in angle brackets, and its ESMTP arguments.
        """
        self.abort()
        standing = self._client.standing
        if self._failed:
            response = self._on_error
        elif standing is not None:
            response = standing[1]
        else:
            self._open = True
            response = await self._ask(
                c.SMFIM_ENVFROM, self._client.mail, *argv, mail_addr=argv[0].strip("<>")
            )
        if refusal(response) is not None:
            self.abort()
        return self._note(response)

    async def rcpt(self, *argv: str) -> Response:
        """
        Add a recipient.

        :param argv: The recipient in angle brackets, and its ESMTP arguments.
        """
        return await self._rcpt(argv, {"rcpt_addr": argv[0].strip("<>")})

    async def rcpt_refused(self, text: str, *argv: str) -> None:
        """
        Tell the milters that want to know of a recipient that the server has refused.

        :param text: What was wrong.
        """
        if self._agreement.steps & c.SMFIP_RCPT_REJ:
            # Postfix's macros for it.
            await self._rcpt(argv, {"rcpt_mailer": "error", "rcpt_addr": text})

    async def _rcpt(self, argv: tuple[str, ...], values: Mapping[str, str]) -> Response:
        if self._settled is not None:
            return self._settled
        return self._note(await self._ask(c.SMFIM_ENVRCPT, self._client.rcpt, *argv, **values))

    def _note(self, response: Response) -> Response:
        if response.code in _SETTLES:
            self._settled = response
        return response

    # ---- the content

    async def data(self) -> Response:
        """
        Announce the message's content.
        """
        if self._settled is None:
            response: Response = await self._ask(c.SMFIM_DATA, self._client.data)
            # A refusal too ends the message for them, though not for the client.
            self._settled = None if response.code == c.SMFIS_CONTINUE else response
            return response
        return self._settled

    async def content(self, content: Content) -> EndOfMessage:
        """
        Show the message's content, and end the message.
        """
        try:
            end = await self._content(content)
        except ValueNotSendable:
            end = EndOfMessage(_TOO_LARGE)
        self.abort()
        return end

    async def _content(self, content: Content) -> EndOfMessage:
        if self._settled is not None:
            return EndOfMessage(self._settled)
        for number, (stage, ask, arguments) in enumerate(self._commands(content), 1):
            response = await self._ask(stage, ask, *arguments)
            if response.code == c.SMFIS_SKIP:
                # At the body, of which no more is wanted.
                break
            if response.code != c.SMFIS_CONTINUE:
                return EndOfMessage(response)
            if stage == c.SMFIM_EOM or number % _FIELDS_IN_A_TURN == 0:
                # The message may be large: let other connections have their turn.
                await deferLater(self._clock, 0)
        end = await self._ask(c.SMFIM_EOM, self._client.end_of_message)
        if not isinstance(end, EndOfMessage):
            return EndOfMessage(end)
        self._open = False
        return end

    def _commands(self, content: Content) -> Iterator[tuple[int, _Ask, tuple[Any, ...]]]:
        client = self._client
        for field in shown_fields(content.fields, leading_space=self.leading_space):
            yield c.SMFIM_EOH, client.header, field
        yield c.SMFIM_EOH, client.eoh, ()
        if self._agreement.steps & c.SMFIP_NOBODY:
            return
        for chunk in content.body.chunks(c.MILTER_MDS_64K):
            yield c.SMFIM_EOM, client.body, (chunk,)

    # ---- the end

    def abort(self) -> None:
        """
        Give up the message, if one is open.
        """
        if self._open:
            self._client.abort().addErrback(_ignore)
        self._open = False
        self._settled = None

    def close(self) -> None:
        """
        End the connection.
        """
        self.abort()
        self._client.quit()


def _ignore(_: object) -> None:
    pass
