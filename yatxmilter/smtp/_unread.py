"""
What an SMTP client is told and does not read.

A transport says to a producer when its buffer is full. A TLS transport does so one turn of the
reactor later, and is not closed while it has a producer: so there is one from a write to the
turn behind it, or until there is room again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

__all__ = ["UnreadReplies"]


@implementer(IPushProducer)
class UnreadReplies:
    """
    Counts the bytes that are written while the transport's buffer is full.

    :ivar size: How many there are; none while there is room in the buffer.
    """

    def __init__(self) -> None:
        self.size = 0
        self._full = False
        self._transport: Any = None
        self._release_call: Any = None

    def before_write(self, transport: Any) -> None:
        """
        Watch a transport, to which something is written next.
        """
        if self._transport is not None:
            return
        self._transport = transport
        try:
            transport.registerProducer(self, True)
        except RuntimeError:
            # It has one: whoever writes there is told already.
            self._transport = None

    def after_write(self, size: int, call_later: Callable[..., Any]) -> None:
        """
        Count what has been written.

        :param call_later: Calls something in a later turn.
        """
        if self._full:
            self.size += size
        elif self._transport is not None and self._release_call is None:
            self._release_call = call_later(0, self._release_if_room)

    def _release_if_room(self) -> None:
        self._release_call = None
        if not self._full:
            self._release()

    def _release(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.unregisterProducer()

    def pauseProducing(self) -> None:
        """
        Learn that the buffer is full.
        """
        self._full = True

    def resumeProducing(self) -> None:
        """
        Learn that all has been read.
        """
        self.size = 0
        self._full = False
        self._release()

    def stopProducing(self) -> None:
        """
        Learn that the connection is gone.
        """
        self._transport = None
        call, self._release_call = self._release_call, None
        if call is not None:
            call.cancel()
