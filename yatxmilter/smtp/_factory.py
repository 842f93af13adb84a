"""
A factory for SMTP servers that ask milters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import twisted.mail.smtp
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Protocol
from twisted.mail.interfaces import IMessageDelivery, IMessageDeliveryFactory

from yatxmilter._engine.addresses import describe_address
from yatxmilter.protocol._admission import Admission, Refusals
from yatxmilter.protocol._tls import is_tls
from yatxmilter.smtp._milters import SMTPMilters
from yatxmilter.smtp._server import MilterESMTP

__all__ = ["MilterSMTPFactory"]


# Twisted has no types for it.
SMTPFactory: Any = twisted.mail.smtp.SMTPFactory


class MilterSMTPFactory(SMTPFactory):  # type: ignore[misc]  # see above
    """
    Builds a `MilterESMTP` for each connection.

    :param milters: The milters, as `SMTPMilters`.
    :param delivery: An ``IMessageDelivery`` or ``IMessageDeliveryFactory`` for clients that have
        not logged in; without one they are the portal's.
    :param portal: Where clients log in.
    :param challengers: The ways to log in, as for ``ESMTP``: ``{b"PLAIN": PLAINCredentials}``.
    :param contextFactory: For STARTTLS, as for ``ESMTP``.
    :param domain: This server's name; by default the host's.
    :param max_connections: How many clients there may be at once; ``None`` for any number. Those
        above it are told 421.
    :param max_connections_per_peer: How many from one IP address, likewise.
    :raises TypeError: for what is none of these.
    :raises ValueError: for a number out of range.
    """

    noisy = False
    protocol: type[MilterESMTP] = MilterESMTP

    def __init__(
        self,
        milters: SMTPMilters,
        delivery: Any = None,
        portal: Any = None,
        *,
        challengers: Mapping[bytes, Callable[[], Any]] | None = None,
        contextFactory: Any = None,
        domain: bytes | None = None,
        max_connections: int | None = None,
        max_connections_per_peer: int | None = None,
    ) -> None:
        super().__init__(portal)
        if not isinstance(milters, SMTPMilters):
            raise TypeError(f"milters is {milters!r}, expected SMTPMilters")
        self._makes = IMessageDeliveryFactory.providedBy(delivery)
        if not (self._makes or delivery is None or IMessageDelivery.providedBy(delivery)):
            raise TypeError(
                f"delivery is {delivery!r}, expected an IMessageDelivery or IMessageDeliveryFactory"
            )
        self.milters = milters
        self.delivery = delivery
        self.challengers = dict(challengers or {})
        self.contextFactory = contextFactory
        if domain is not None:
            self.domain = domain
        self._admission = Admission(None, max_connections, max_connections_per_peer)
        self._refusals = Refusals(lambda: milters.clock)

    def startFactory(self) -> None:
        """
        Start the milters' factories; SMTP clients that come before that is done wait.

        :raises StartError: when one of them fails to start at once.
        """
        super().startFactory()
        self.milters.open_port()

    def stopFactory(self) -> None:
        """
        Have the milters' factories stopped when the last client has gone.
        """
        super().stopFactory()
        self.milters.close_port()

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        """
        Build the server of one connection; of one too many, what sends the client away.
        """
        refusal = self._admission.refusal(addr)
        if refusal is not None:
            self._refusals.add(describe_address(addr), refusal)
            return _TooMany(self.domain)
        self._admission.enter(addr)
        server: MilterESMTP = super().buildProtocol(addr)
        server.milters = self.milters
        if self._makes:
            server.deliveryFactory = self.delivery
        else:
            server.delivery = self.delivery
        server.challengers = self.challengers
        server.ctx = self.contextFactory
        server.gone = partial(self._admission.leave, addr)
        return server


class _TooMany(Protocol):
    """
    Tells a client that there are too many connections, and closes.
    """

    def __init__(self, domain: bytes) -> None:
        self._domain = domain

    def connectionMade(self) -> None:
        """
        Tell the client to come back later, without waiting for it in any way.
        """
        transport: Any = self.transport
        if is_tls(transport):
            # A handshake takes as long as the client likes.
            transport.abortConnection()
        else:
            transport.write(b"421 4.3.2 %s has too many connections\r\n" % self._domain)
            transport.loseConnection()
