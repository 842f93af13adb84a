"""
A factory for SMTP servers that ask milters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import twisted.mail.smtp
from twisted.internet.interfaces import IAddress
from twisted.mail.interfaces import IMessageDelivery, IMessageDeliveryFactory

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
    :raises TypeError: for what is none of these.
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

    def buildProtocol(self, addr: IAddress | None) -> MilterESMTP:
        """
        Build the server of one connection.
        """
        server: MilterESMTP = super().buildProtocol(addr)
        server.milters = self.milters
        if self._makes:
            server.deliveryFactory = self.delivery
        else:
            server.delivery = self.delivery
        server.challengers = self.challengers
        server.ctx = self.contextFactory
        return server
