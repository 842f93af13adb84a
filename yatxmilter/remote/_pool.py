"""
Connections to one remote milter: made, and kept for another SMTP connection where that is safe.

What makes a connection fit for another SMTP connection is QUIT_NC, which no MTA sends: many milters
do not know it, and libmilter takes it only right behind an end of message that it has answered
CONTINUE; in any other state it drops it and the CONNECT behind it without a word. So a connection
is kept only in that state, and only where CONNECT is answered, so that there is an answer to tell
by. A milter that fails there is not asked to do it again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IDelayedCall,
    IPushProducer,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from yatxmilter import constants as c
from yatxmilter._escaping import printable
from yatxmilter._wire.actions import Agreement, Edit
from yatxmilter.client import MilterClient, MilterClientFactory
from yatxmilter.errors import MilterError, PeerError
from yatxmilter.protocol._endpoints import client_endpoint
from yatxmilter.protocol._steady_clock import steady

__all__ = ["Connections", "RemoteClient"]

_log = Logger()

# How long, in seconds, a connection is kept for whoever comes next, and how many are.
_IDLE: Final = 60.0
_MOST_IDLE: Final = 16

Offer = tuple[int, int]


@implementer(IPushProducer)
class RemoteClient(MilterClient):
    """
    A connection to a remote milter.

    :ivar offer: The actions and steps that were offered to it.
    :ivar kept: Whether it has served another SMTP connection, and nothing was heard of it since.
    :ivar resting: Whether the last that was said was the end of a message, answered CONTINUE.
    :ivar on_progress: Called at each PROGRESS in answer to an end of message.
    :ivar on_edit: Called with each edit as it comes; a `MilterError` that it raises is a failure of
        the milter. Edits are not in the answer.
    """

    offer: Offer = (0, 0)
    kept = False
    resting = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "progress": self._pass_on})
        self.on_progress: Callable[[], object] | None = None
        self.on_edit: Callable[[Edit], object] = _forget
        self._expiry: IDelayedCall | None = None
        self._full = False
        self._writer: Deferred[None] | None = None

    @property
    def alive(self) -> bool:
        """
        Whether it can still be used.
        """
        return self._failure is None

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

    def _hang_up(self) -> None:
        # To close it in good order would take a milter that reads.
        cast(Any, self.transport).abortConnection()

    # ---- when it is not needed

    def leave(self) -> None:
        """
        Say QUIT, and close when all that was asked is answered.
        """
        self.stop_expiry()
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


class Connections:
    """
    The connections to one remote milter.

    :param where: Its address, or an endpoint.
    :param timeout: Seconds it may take for an answer.
    :param connect_timeout: Seconds that a connection may take, and the first answer on one that
        was kept.
    :param reuse: Whether connections are kept.
    :param max_edit_bytes: And ``max_body``: see `MilterClient`.
    """

    def __init__(
        self,
        where: str | IStreamClientEndpoint,
        *,
        name: str,
        timeout: float | None,
        connect_timeout: float,
        reuse: bool,
        max_edit_bytes: int | None,
        max_body: int | None,
        reactor: Any = None,
    ) -> None:
        self.timeout = timeout
        self.connect_timeout = connect_timeout
        self.reuse = reuse
        self._where = where
        self._name = name
        self._reactor = reactor
        self._max_edit_bytes = max_edit_bytes
        self._max_body = max_body
        self._idle: list[RemoteClient] = []

    @property
    def clock(self) -> IReactorTime:
        """
        What keeps time.
        """
        return cast(IReactorTime, steady(self.reactor))

    @property
    def reactor(self) -> Any:
        """
        What connects.
        """
        if self._reactor is None:
            # Not at the top: to import the reactor is to install it, which is the user's choice.
            from twisted.internet import reactor

            self._reactor = reactor
        return self._reactor

    async def get(self, offer: Offer) -> RemoteClient:
        """
        Give a connection on which this offer was negotiated: one that was kept, or a new one.

        :raises Exception: when there is none: whatever the endpoint, or the milter, has to say.
        """
        for client in self._idle:
            if client.alive and client.offer == offer:
                self._idle.remove(client)
                client.stop_expiry()
                client.timeout = self._probe_timeout()
                return client
        return await self.make(offer)

    def _probe_timeout(self) -> float:
        if self.timeout is None:
            return self.connect_timeout
        return min(self.timeout, self.connect_timeout)

    async def make(self, offer: Offer) -> RemoteClient:
        """
        Make a new connection, and negotiate on it.
        """
        clock = self.clock
        endpoint = self._where
        if isinstance(endpoint, str):
            endpoint = client_endpoint(self.reactor, endpoint, timeout=self.connect_timeout)
        factory = MilterClientFactory(
            timeout=self.timeout,
            clock=clock,
            max_edit_bytes=self._max_edit_bytes,
            max_body=self._max_body,
        )
        factory.protocol = RemoteClient
        connecting = cast(Deferred[RemoteClient], endpoint.connect(factory))
        client = await connecting.addTimeout(self.connect_timeout, clock, _too_late)
        client.offer = offer
        await client.negotiate(actions=offer[0], steps=offer[1])
        return client

    def answered(self, client: RemoteClient) -> None:
        """
        Take note that a connection that was kept is good.
        """
        client.kept = False
        client.timeout = self.timeout

    def distrust(self, error: PeerError) -> None:
        """
        Keep no connection any more: the milter failed on one that was kept.
        """
        if self.reuse:
            _log.info(
                "Milter {milter} cannot be given another SMTP connection on one connection"
                " ({error}): from now on each has its own",
                milter=self._name,
                error=printable(str(error)),
            )
        self.reuse = False
        self.close()

    def give_back(self, client: RemoteClient) -> None:
        """
        Take a connection that is needed no more: keep it, or end it.
        """
        client.on_progress = None
        client.on_edit = _forget
        for one in [one for one in self._idle if not one.alive]:
            # Else its time would come, when it is no longer among them.
            one.stop_expiry()
            self._idle.remove(one)
        if not self._fit(client) or len(self._idle) >= _MOST_IDLE:
            client.leave()
            return
        client.quit_nc()
        client.resting = False
        client.kept = True
        self._idle.append(client)
        client.expire(self.clock, lambda: self._expired(client))

    def _fit(self, client: RemoteClient) -> bool:
        agreement = client.settled()
        answers = not agreement.steps & (c.SMFIP_NOCONNECT | c.SMFIP_NR_CONN)
        known = agreement.version >= 6
        return self.reuse and client.alive and client.resting and answers and known

    def _expired(self, client: RemoteClient) -> None:
        self._idle.remove(client)
        client.leave()

    def close(self) -> None:
        """
        End the connections that were kept.
        """
        idle = self._idle
        self._idle = []
        for client in idle:
            client.leave()


def _too_late(result: RemoteClient | Failure, seconds: float) -> RemoteClient:
    raise TimeoutError(f"no connection within {seconds} s")


def _forget(edit: Edit) -> None:
    """
    Do nothing about the edit of a message that is over.
    """


def ignore(failure: Failure) -> None:
    """
    Do nothing about a failure that somebody else is told of.
    """
