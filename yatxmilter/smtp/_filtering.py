"""
The milters of one SMTP connection, asked as an MTA asks them.

`Filtering` is the script of the session (`yatxmilter.client._session_script`), with turns for other
connections while a large message is shown. Once the milters cannot be talked to any more one return
code stands for all their answers.
"""

from __future__ import annotations

import re
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from yatxmilter import constants as c
from yatxmilter._engine.on_error import Reply
from yatxmilter._escaping import printable
from yatxmilter._wire.actions import NOT_AWAITED, EndOfMessage, Response
from yatxmilter._wire.commands import BODY_ROW
from yatxmilter._wire.payloads import from_text, to_text
from yatxmilter.client import MilterClient
from yatxmilter.client._profiles import SERVER
from yatxmilter.client._session_script import SessionScript
from yatxmilter.constants import ReturnCode
from yatxmilter.errors import PeerError, ValueNotSendable
from yatxmilter.smtp._content import Content

__all__ = ["Filtering", "refusal"]

_log = Logger()

_DEFAULT_REPLIES: Final = {
    c.SMFIS_REJECT: b"550 5.7.1 Command rejected",
    c.SMFIS_TEMPFAIL: b"451 4.7.1 Service unavailable - try again later",
}
_TOO_LARGE: Final = Response(
    c.SMFIS_REJECT, c.SMFIR_REPLYCODE, "552 5.3.4 Message header too large"
)
# After so many header fields other connections have their turn.
_FIELDS_IN_A_TURN: Final = 100


def refusal(response: Response) -> bytes | None:
    """
    Give the SMTP reply of an answer that refuses something, ``None`` for any other answer.
    """
    if response.text is not None:
        # MTAs drop a lone percent sign, and make one of two.
        return re.sub(rb"%(%?)", rb"\1", from_text(response.text))
    return _DEFAULT_REPLIES.get(response.code)


class Filtering(SessionScript):
    """
    One SMTP connection, for its milters.

    :param client: The connection to them.
    :param on_error: What stands for their answers once the connection fails.
    :param clock: Whose turns are used.
    """

    def __init__(
        self, client: MilterClient, on_error: ReturnCode | Reply, clock: IReactorTime
    ) -> None:
        super().__init__(client, SERVER, {})
        self._clock = clock
        self._on_error = (
            Response(on_error.code, c.SMFIR_REPLYCODE, to_text(on_error.text))
            if isinstance(on_error, Reply)
            else Response(on_error)
        )
        self._failed = False

    @property
    def standing(self) -> tuple[str, Response] | None:
        """
        The stage and answer that have settled all messages; none while the milters have failed.
        """
        return None if self._failed else super().standing

    async def _hear(self, answer: Deferred[Any]) -> Any:
        try:
            return await answer
        except PeerError as error:
            if not self._failed:
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

    async def connect(self, hostname: str, address: IAddress | None) -> Response:
        """
        Negotiate, and announce the SMTP client.
        """
        await self.negotiate()
        return await super().connect(hostname, address)

    async def unknown(self, line: str) -> Response:
        """
        Pass on a command that the server does not know.
        """
        return NOT_AWAITED if self._failed else await super().unknown(line)

    async def content(self, content: Content) -> EndOfMessage:
        """
        Show the message's content, and end the message.
        """
        try:
            await self._show(content)
            end = await self.end()
        except ValueNotSendable:
            end = EndOfMessage(_TOO_LARGE)
        message = self.message
        if message is not None and message.discarded and message.settled is not None:
            # Where milters have said it before the content they were not asked at the end.
            end = EndOfMessage(message.settled[1])
        self.give_up()
        return end

    async def _show(self, content: Content) -> None:
        for number, field in enumerate(content.fields, 1):
            await self.header(field)
            if number % _FIELDS_IN_A_TURN == 0:
                await deferLater(self._clock, 0)
        await self.eoh()
        if self._has_agreed(c.SMFIP_NOBODY):
            return
        for chunk in content.body.chunks(c.MILTER_MDS_64K):
            if self.message is None or not self.message.asks(BODY_ROW):
                return
            await self.body(chunk)
            # The message may be large: let other connections have their turn.
            await deferLater(self._clock, 0)

    # ---- the end

    def give_up(self) -> None:
        """
        Have done with the message, if one is open.
        """
        self.abort().addErrback(_ignore)

    def close(self) -> None:
        """
        End the connection.
        """
        self.give_up()
        self.commands.quit()


def _ignore(_: object) -> None:
    pass
