"""
The message as milters have left it, handed over to the deliveries of Twisted's SMTP server.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from yatxmilter._mail.controls import CONTROLS
from yatxmilter.smtp._content import Content
from yatxmilter.smtp._envelope import Envelope

__all__ = ["HandOver"]

_log = Logger()

# So much is handed over in one turn of the reactor: the bytes, and a fixed price for each line.
_TURN: Final = 1024 * 1024
_LINE: Final = 64

_FIRST_LINE: Final = re.compile(rb"[!-9;-~]+[ \t]*:")
_LINE_END: Final = re.compile(rb"\r\n|[\r\n]")


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
        # Message objects, and the lines of the header field of each.
        self._messages: list[tuple[Any, list[bytes]]] = []

    def add(self, message: Any, users: Sequence[Any]) -> None:
        """
        Take the message object for one user, or for several.
        """
        self._messages.append((message, []))
        received = self._received(self._envelope.helo, self._envelope.origin, users)
        self._messages[-1] = message, _field_lines(received)

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
                else:
                    for one in received:
                        message.lineReceived(one)
            size += (len(line or b"") + _LINE) * len(self._messages)
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
            except BaseException:
                # The others are told all the same.
                _log.failure("A message object could not be told that its message is lost")


def _field_lines(received: Any) -> list[bytes]:
    """
    Split what `receivedHeader` has given: it is one field, whatever a client has put into it.

    :raises TypeError: for what is not bytes.
    :raises ValueError: for what does not begin with a field's name.
    """
    if not received:
        return []
    if not isinstance(received, bytes):
        raise TypeError(f"receivedHeader gave {received!r}, expected a header field as bytes")
    lines = [line for line in _LINE_END.split(received) if line.strip()]
    if not lines or not _FIRST_LINE.match(lines[0]):
        raise ValueError(f"receivedHeader gave {received!r}, expected one field: 'Name: value'")
    # A line that does not begin with a blank would be a field, or the body, of its own.
    folded = [line if line[:1] in (b" ", b"\t") else b"\t" + line for line in lines[1:]]
    return [CONTROLS.sub(_printable, line) for line in (lines[0], *folded)]


def _printable(control: re.Match[bytes]) -> bytes:
    return b"\t" if control[0] == b"\t" else b"?"
