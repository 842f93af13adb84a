"""
The message as milters have left it, handed over to the deliveries of Twisted's SMTP server.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from yatxmilter.smtp._content import Content
from yatxmilter.smtp._envelope import Envelope

__all__ = ["HandOver"]

_log = Logger()

# So many bytes are handed over in one turn of the reactor.
_TURN: Final = 1024 * 1024


class HandOver:
    """
    The message objects of one message.

    They are told of the end of the message, or that there will be none: always one of the two.

    :param envelope: With the milters' edits.
    :param received: Makes the server's own header field for some users.
    :param clock: Whose turns are used.
    """

    def __init__(
        self, envelope: Envelope, received: Callable[..., Any], clock: IReactorTime
    ) -> None:
        self._envelope = envelope
        self._received = received
        self._clock = clock
        # Message objects, and the header field of each.
        self._messages: list[tuple[Any, Any]] = []

    def add(self, message: Any, users: Sequence[Any]) -> None:
        """
        Take the message object for one user, or for several.
        """
        self._messages.append((message, None))
        received = self._received(self._envelope.helo, self._envelope.origin, users)
        self._messages[-1] = message, received

    async def give(self, content: Content) -> list[Deferred[Any]]:
        """
        Give all of them the content.

        :return: What `eomReceived` of each answers.
        """
        size = 0
        for line in content.lines():
            for message, received in self._messages:
                if line is not None:
                    message.lineReceived(line)
                elif received:
                    message.lineReceived(received)
            size += len(line or b"")
            if size >= _TURN:
                size = 0
                await deferLater(self._clock, 0)
        messages, self._messages = self._messages, []
        return [maybeDeferred(message.eomReceived) for message, _ in messages]

    def give_up(self) -> None:
        """
        Tell those that have not been told of the message's end that it will not come.
        """
        for message, _ in self._messages:
            try:
                message.connectionLost()
            except Exception:
                _log.failure("A message object could not be told that its message is lost")
