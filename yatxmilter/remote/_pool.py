"""
Connections to one remote milter, at whichever of its addresses: made, and kept for another SMTP
connection where that is safe.

What makes a connection fit for another SMTP connection is QUIT_NC, which no MTA sends: many milters
do not know it, and libmilter takes it only right behind an end of message that it has answered
CONTINUE; in any other state it drops it and the CONNECT behind it without a word. So a connection
is kept only in that state, and only where CONNECT is answered, so that there is an answer to tell
by. A milter that fails there is not asked to do it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.interfaces import (
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.logger import Logger
from twisted.python.failure import Failure

from yatxmilter import constants as c
from yatxmilter._escaping import printable
from yatxmilter._wire.commands import Command
from yatxmilter.client import MilterClientFactory
from yatxmilter.errors import NegotiationError, PeerError
from yatxmilter.protocol._endpoints import client_endpoint
from yatxmilter.protocol._steady_clock import steady
from yatxmilter.protocol._tls import is_tls
from yatxmilter.remote._addresses import Address, Addresses, AddressState
from yatxmilter.remote._connection import Offer, RemoteClient, forget_edit

__all__ = ["CANCELLED", "Connections"]

_log = Logger()

# How many connections are kept for whoever comes next.
_MOST_IDLE: Final = 16

#: What comes of an attempt that is not waited for any more.
CANCELLED: Final = (CancelledError, ConnectingCancelledError)


class Connections:
    """
    The connections to one remote milter.

    :param places: Its addresses, or endpoints.
    :param timeout: Seconds it may take for an answer.
    :param connect_timeout: Seconds that a connection may take, and the first answer on one that
        was kept.
    :param reuse: Whether connections are kept.
    :param max_edit_bytes: And ``max_edits``, ``max_body``: see `MilterClient`.
    """

    def __init__(
        self,
        places: Sequence[str | IStreamClientEndpoint],
        *,
        name: str,
        timeout: float | None,
        connect_timeout: float,
        reuse: bool,
        max_edit_bytes: int | None,
        max_edits: int | None,
        max_body: int | None,
        reactor: Any = None,
    ) -> None:
        self.timeout = timeout
        self.connect_timeout = connect_timeout
        self.reuse = reuse
        self.addresses = Addresses(places, name)
        self._name = name
        self._reactor = reactor
        self._max_edit_bytes = max_edit_bytes
        self._max_edits = max_edits
        self._max_body = max_body
        self._idle: list[RemoteClient] = []
        self._trials: set[Deferred[None]] = set()

    @property
    def clock(self) -> IReactorTime:
        """
        The clock, for time-outs.
        """
        return cast(IReactorTime, steady(self.reactor))

    @property
    def reactor(self) -> Any:
        """
        The reactor that connections are made with.
        """
        if self._reactor is None:
            # Not at the top: to import the reactor is to install it, which is the user's choice.
            from twisted.internet import reactor

            self._reactor = reactor
        return self._reactor

    @property
    def states(self) -> list[AddressState]:
        """
        How each of the addresses does.
        """
        return [address.state() for address in self.addresses.all]

    async def get(
        self, offer: Offer, agreed: Offer | None = None, *, new: bool = False
    ) -> RemoteClient:
        """
        Give a connection on which this offer was negotiated: to the address that is the next, or
        if that cannot be had to the one behind it, and so on.

        :param agreed: What has to be agreed on, where something is agreed on already.
        :param new: Whether one that was kept does not do.
        :raises Exception: when there is none: whatever the endpoint, or the milter, has to say.
        """
        self._try_again(offer)
        errors: list[tuple[Address, Exception]] = []
        for address in self.addresses.in_order():
            client = None if new else self._kept(address, offer)
            try:
                if client is None:
                    client = await self._make(address, offer)
                if agreed not in (None, client.agreed):
                    client.leave()
                    raise NegotiationError("asks for something else than it did before")
            except CANCELLED:
                raise
            except Exception as error:
                self.addresses.failed(address, self.clock.seconds(), error)
                errors.append((address, error))
            else:
                self.addresses.pick(address)
                return client
        if not self.addresses.several:
            raise errors[0][1]
        each = "; ".join(f"{address.name}: {_words(error)}" for address, error in errors)
        raise PeerError(f"none of its addresses can be had ({each})")

    def _kept(self, address: Address, offer: Offer) -> RemoteClient | None:
        for client in self._idle:
            if client.address is address and client.alive and client.offer == offer:
                self._idle.remove(client)
                client.stop_expiry()
                client.timeout = self._probe_timeout()
                client.take()
                return client
        return None

    def _probe_timeout(self) -> float:
        if self.timeout is None:
            return self.connect_timeout
        return min(self.timeout, self.connect_timeout)

    async def _make(self, address: Address, offer: Offer) -> RemoteClient:
        """
        Make a new connection, and negotiate on it.
        """
        # It counts already: or all that come while it is on its way would choose the same.
        address.used += 1
        try:
            client = await self._connect(address, offer)
        finally:
            address.used -= 1
        client.take()
        self.addresses.answered(address)
        return client

    async def _connect(self, address: Address, offer: Offer) -> RemoteClient:
        """
        Connect to a milter and negotiate with it.
        """
        clock = self.clock
        endpoint = address.where
        if isinstance(endpoint, str):
            endpoint = client_endpoint(self.reactor, endpoint, timeout=self.connect_timeout)
        factory = MilterClientFactory(
            timeout=self.timeout,
            clock=clock,
            max_edit_bytes=self._max_edit_bytes,
            max_edits=self._max_edits,
            max_body=self._max_body,
        )
        factory.protocol = RemoteClient
        connecting = cast(Deferred[RemoteClient], endpoint.connect(factory))
        client = await connecting.addTimeout(self.connect_timeout, clock, _too_late)
        client.address = address
        client.offer = offer
        if self.addresses.several or is_tls(client.transport):
            # A host that hangs takes connections all the same: there are others to ask. And the
            # handshake of TLS, which is a part of connecting, is still to come.
            client.timeout = self._probe_timeout()
        await client.negotiate(actions=offer[0], steps=offer[1])
        client.timeout = self.timeout
        return client

    # ---- addresses that have failed

    def _try_again(self, offer: Offer) -> None:
        """
        Find out whether addresses that were left out are back; no message waits for that.
        """
        for address in self.addresses.to_be_tried(self.clock.seconds()):
            address.tried = True
            trial = Deferred.fromCoroutine(self._trial(address, offer))
            self._trials.add(trial)
            trial.addBoth(self._trial_ended, trial)

    def _trial_ended(self, _: object, trial: Deferred[None]) -> None:
        self._trials.discard(trial)

    async def _trial(self, address: Address, offer: Offer) -> None:
        try:
            client = await self._make(address, offer)
        except CANCELLED:
            return
        except Exception as error:
            self.addresses.failed(address, self.clock.seconds(), error)
        else:
            client.leave()
        finally:
            address.tried = False

    def tries(self, client: RemoteClient) -> int:
        """
        Tell how often a command may be asked in all that this connection is the first to get.
        """
        return len(self.addresses.all) + client.kept

    def give_up(self, client: RemoteClient, row: Command, error: PeerError) -> bool:
        """
        Take note that a connection failed at a command.

        :return: Whether the command may be given to another one.
        """
        if client.kept:
            self.distrust(error)
            return True
        if not client.untouched(row):
            return False
        self.failed(client, error)
        return True

    def failed(self, client: RemoteClient, error: Exception) -> None:
        """
        Take note that a connection failed when it was in use.
        """
        self.addresses.failed(client.address, self.clock.seconds(), error)

    def describe(self, client: RemoteClient | None, error: Exception) -> str:
        """
        Say what was wrong, and where, if there are several addresses.
        """
        if client is None or not self.addresses.several:
            return _words(error)
        return f"{client.address.name}: {_words(error)}"

    # ---- connections that are kept

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
        client.on_edit = forget_edit
        if client.alive and client.heard:
            self.addresses.ended_well(client.address)
        for one in [one for one in self._idle if not one.alive]:
            # Its timer would go off when it is no longer among them.
            one.stop_expiry()
            self._idle.remove(one)
        if not self._fit(client) or len(self._idle) >= _MOST_IDLE:
            client.leave()
            return
        client.release()
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
        for trial in list(self._trials):
            trial.cancel()
        idle = self._idle
        self._idle = []
        for client in idle:
            client.leave()


def _too_late(result: RemoteClient | Failure, seconds: float) -> RemoteClient:
    raise TimeoutError(f"no connection within {seconds} s")


def _words(error: Exception) -> str:
    return printable(str(error)) or type(error).__name__
