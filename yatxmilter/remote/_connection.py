"""
One connection to a remote milter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from yatxmilter._wire import commands
from yatxmilter._wire.actions import Agreement, Edit
from yatxmilter._wire.commands import Command
from yatxmilter.client import MilterClient
from yatxmilter.errors import MilterError, PeerError
from yatxmilter.remote._addresses import Address

__all__ = ["Offer", "RemoteClient", "forget_edit", "ignore"]

# How long, in seconds, a connection is kept for whoever comes next.
_IDLE: Final = 60.0

# These do nothing that a client which tries again would not do as well.
_BEFORE_CONTENT: Final = (
    commands.CONNECT_ROW,
    commands.HELO_ROW,
    commands.MAIL_ROW,
    commands.RCPT_ROW,
)

Offer = tuple[int, int]


@implementer(IPushProducer)
class RemoteClient(MilterClient):
    """
    A connection to a remote milter.

    :ivar offer: The actions and steps that were offered to it.
    :ivar kept: Whether it has served another SMTP connection, and nothing was heard of it since.
    :ivar resting: Whether the last that was said was the end of a message, answered CONTINUE.
    :ivar address: Which of the milter's addresses it leads to.
    :ivar said: How many commands of this SMTP connection were sent on it.
    :ivar heard: Whether anything has come since it was negotiated, or was kept.
    :ivar gone: Whether the milter has closed it, or is gone.
    :ivar on_progress: Called at each PROGRESS in answer to an end of message.
    :ivar on_edit: Called with each edit as it comes; a `MilterError` that it raises is a failure of
        the milter. Edits are not in the answer.
    """

    offer: Offer = (0, 0)
    kept = False
    resting = False
    address: Address
    said = 0
    heard = False
    gone = False
    _counted = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "progress": self._pass_on})
        self.on_progress: Callable[[], object] | None = None
        self.on_edit: Callable[[Edit], object] = forget_edit
        self._expiry: IDelayedCall | None = None
        self._full = False
        self._writer: Deferred[None] | None = None

    @property
    def alive(self) -> bool:
        """
        Whether it can still be used.
        """
        return self._failure is None

    @property
    def agreed(self) -> Offer:
        """
        The actions and steps that were negotiated on it.
        """
        agreement = self.settled()
        return agreement.actions, agreement.steps

    def untouched(self, row: Command) -> bool:
        """
        Tell whether its milter is gone without a word, and cannot have done anything about a
        message: so that another one can be given the command at which that was found out.

        It may have been sent one command, of those before the content of a message.
        """
        if not self.gone or self.heard:
            return False
        return not self.said or (self.said == 1 and row in _BEFORE_CONTENT)

    def take(self) -> None:
        """
        Count it as in use by an SMTP connection.
        """
        self.said, self.heard = 0, False
        self._counted = True
        self.address.used += 1

    def release(self) -> None:
        """
        Count it as in use no more.
        """
        if self._counted:
            self._counted = False
            self.address.used -= 1

    def dataReceived(self, data: bytes) -> None:
        """
        Take note that something came.
        """
        self.heard = True
        super().dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        Take note that it is gone.
        """
        self.gone = self.alive
        self.release()
        super().connectionLost(reason)

    def settled(self) -> Agreement:
        """
        Give what was negotiated on it.
        """
        assert self.agreement is not None
        return self.agreement

    def _pass_on(self, command: str) -> None:
        if command == "BODYEOB" and self.on_progress is not None:
            self.on_progress()

    def _keep_edit(self, pending: object, edit: Edit) -> None:
        # A message's edits are made while they come, a read at a time: to make them all at once
        # would hold up everybody else.
        try:
            self.on_edit(edit)
        except MilterError as error:
            raise PeerError(str(error)) from error

    # ---- where no answer is waited for, the milter's reading is

    def connectionMade(self) -> None:
        """
        Have ourselves told when the milter does not read.
        """
        cast(Any, self.transport).registerProducer(self, True)
        super().connectionMade()

    def pauseProducing(self) -> None:
        """
        Take note that too much is waiting to be written.
        """
        self._full = True

    def resumeProducing(self) -> None:
        """
        Take note that the milter has read; or that the connection is gone, which others tell.
        """
        self._full = False
        writer = self._writer
        self._writer = None
        if writer is not None and not writer.called:
            writer.callback(None)

    stopProducing = resumeProducing

    def room(self, clock: IReactorTime) -> Deferred[None]:
        """
        Wait until the milter has read what it was sent.
        """
        room: Deferred[None] = Deferred()
        if not self._full:
            room.callback(None)
            return room
        self._writer = room
        if self.timeout is not None:
            room.addTimeout(self.timeout, clock, self._does_not_read)
        return room

    def _does_not_read(self, result: None | Failure, seconds: float) -> None:
        error = PeerError(f"the milter read nothing for {seconds} s")
        self._fail(error)
        raise error

    # ---- when it is not needed

    def leave(self) -> None:
        """
        Say QUIT, and close when all that was asked is answered.
        """
        self.stop_expiry()
        self.release()
        self.quit()

    def expire(self, clock: IReactorTime, expired: Callable[[], None]) -> None:
        """
        Have something called when it was idle for too long.
        """
        self._expiry = clock.callLater(_IDLE, expired)

    def stop_expiry(self) -> None:
        """
        Count it as idle no more.
        """
        if self._expiry is not None and self._expiry.active():
            self._expiry.cancel()
        self._expiry = None


def forget_edit(edit: Edit) -> None:
    """
    Do nothing about the edit of a message that is over.
    """


def ignore(failure: Failure) -> None:
    """
    Do nothing about a failure that somebody else is told of.
    """
