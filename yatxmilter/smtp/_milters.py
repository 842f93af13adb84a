"""
Which milters an SMTP server asks, and how.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from time import time
from typing import Any, Literal

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from yatxmilter import constants as c
from yatxmilter._engine.on_error import Reply
from yatxmilter._mail import bounds
from yatxmilter._options import code_option, limit_option, name_option, seconds_option
from yatxmilter.client import MilterClient
from yatxmilter.client._in_memory import connect_in_memory
from yatxmilter.protocol import MilterProtocolFactory
from yatxmilter.protocol._draining import Drains
from yatxmilter.smtp._filtering import Filtering

__all__ = ["SMTPMilters"]


class SMTPMilters:
    """
    The milters of an SMTP server, for all its connections.

    :param milter_factories: One `IMilterFactory`, or several in the order of their milters: those
        of this process, and `RemoteMilterFactory` for others.
    :param merge: How several answers become one, as for `MilterProtocolFactory`. With ``"chain"``
        it is as if an MTA ran one after the other.
    :param on_error: The return code, or the `yatxmilter.Reply`, that stands for the answers of all
        of them when they cannot be asked: a milter refuses negotiation, disconnects, or is silent
        for too long. Each factory's own ``on_error`` counts before that.
    :param timeout: Seconds that they may take for one answer, anew after each PROGRESS; ``None``
        for any time. Each factory's own ``timeout`` should be shorter.
    :param quarantine: Takes a message that milters want to be held: called with the reason, the
        sender and the recipients (`twisted.mail.smtp.User`), it gives an ``IMessage`` for it.
        Without it such a message is refused for now.
    :param daemon_name: The macro ``{daemon_name}``.
    :param spool_memory: Bytes of a body that are kept in memory; more go to a temporary file.
    :param max_size: Bytes that a message may have, which clients are told as SIZE; ``None`` for any
        number. A larger one is answered with 552.
    :param max_recipients: Recipients that a message may have; ``None`` for any number. Those above
        it are answered with 452, and the client sends them another message.
    :param max_header_bytes: Bytes that the header of a message may have, line ends included;
        ``None`` for any number. A larger header is answered with 552.
    :param max_errors: Commands of one client that may fail, logins included, without a message
        that is taken between them; ``None`` for any number. Then it is told 421, as Postfix does by
        its ``smtpd_hard_error_limit``. Recipients above ``max_recipients`` do not count.
    :param reactor: What keeps time; by default Twisted's reactor.
    :raises TypeError: if a milter factory is not one, or an option has the wrong type.
    :raises ValueError: for an option out of range.
    :ivar sessions: The SMTP connections there are, each a `MilterESMTP`.
    """

    def __init__(
        self,
        milter_factories: Any,
        *,
        merge: Literal["first", "strictest", "chain"] = "chain",
        on_error: int | Reply = c.SMFIS_TEMPFAIL,
        timeout: float | None = 600,
        quarantine: Callable[[str, Any, Sequence[Any]], Any] | None = None,
        daemon_name: str = "smtpd",
        spool_memory: int | None = bounds.SPOOL_MEMORY,
        max_size: int | None = bounds.SMTP_MAX_SIZE,
        max_recipients: int | None = bounds.SMTP_MAX_RECIPIENTS,
        max_header_bytes: int | None = bounds.MAX_HEADER_BYTES,
        max_errors: int | None = bounds.SMTP_MAX_ERRORS,
        reactor: Any = None,
    ) -> None:
        # Behind this server there is no MTA whose default action could decide.
        self.on_error = (
            on_error if isinstance(on_error, Reply) else code_option("on_error", on_error)
        )
        self.timeout = seconds_option("timeout", timeout)
        if quarantine is not None and not callable(quarantine):
            raise TypeError(f"quarantine is {quarantine!r}, expected a callable or None")
        self.quarantine = quarantine
        self.daemon_name = name_option("daemon_name", daemon_name) or "smtpd"
        self.spool_memory = limit_option("spool_memory", spool_memory)
        self.max_size = limit_option("max_size", max_size)
        self.max_recipients = limit_option("max_recipients", max_recipients)
        self.max_header_bytes = limit_option("max_header_bytes", max_header_bytes)
        self.max_errors = limit_option("max_errors", max_errors)
        #: What clients are told.
        self.announced_size = max_size
        # Both ends are here: no limits are needed between them.
        self._factory = MilterProtocolFactory(
            milter_factories,
            merge=merge,
            timeout=None,
            command_timeout=None,
            write_timeout=None,
            # What the server takes is within its own bounds already.
            max_header_bytes=None,
            max_recipients=None,
            max_body=max_size,
            spool_memory=spool_memory,
            reactor=reactor,
        )
        self._numbers = count()
        self.sessions: set[Any] = set()
        self._draining = False
        self._drains = Drains(lambda: self.clock)

    @property
    def clock(self) -> IReactorTime:
        """
        What keeps time.
        """
        return self._factory.clock

    def open_port(self) -> None:
        """
        Take note that a port is opened whose clients ask these milters; start their factories.

        `MilterSMTPFactory` does it. Another factory need not: the first connection starts them, and
        `drain` stops them.

        :raises StartError: when one of them fails to start at once.
        """
        self._draining = False
        factory: Any = self._factory
        factory.doStart()

    def close_port(self) -> None:
        """
        Take note that a port is closed. Behind the last one the milters' factories are stopped.
        """
        factory: Any = self._factory
        factory.doStop()

    def next_queue_id(self) -> str:
        """
        Make a name for a message, which no other one of this server has or had.
        """
        # By the calendar: the clock for time-outs begins anew with the machine.
        return f"{int(time() * 1000):011X}{next(self._numbers) & 0xFFFF:04X}"

    def filtering(self, transport: Any) -> Filtering:
        """
        Build the milters of an SMTP connection.
        """
        client = MilterClient(timeout=self.timeout, clock=self.clock)
        connect_in_memory(client, self._factory, mta_address=transport.getPeer())
        return Filtering(client, self.on_error, self.clock)

    def enter(self, server: Any) -> bool:
        """
        Take note of an SMTP connection.

        :return: Whether it may stay.
        """
        self.sessions.add(server)
        return not self._draining

    def leave(self, server: Any) -> None:
        """
        Take note that an SMTP connection is gone.
        """
        self.sessions.discard(server)
        self._drains.gone(server)

    def drain(self, timeout: float | None = None) -> Deferred[None]:
        """
        Bring all SMTP connections to an end without losing mail.

        Clients with no message open are told 421, and so are new ones; where one is open, from
        MAIL on, it is finished first. What is left after the time-out is told 421 in the middle
        of its message. The port is the caller's to close, before this.

        :param timeout: Seconds; ``None`` for any time.
        :return: A Deferred that fires when all connections are gone, the milters' too.
        :raises TypeError: if a time-out is not a number.
        :raises ValueError: if it is not a time.
        """
        seconds = seconds_option("timeout", timeout)
        self._draining = True
        drained = self._drains.start(self.sessions, seconds)
        for server in list(self.sessions):
            server.drain()
        return drained.addCallback(lambda _: self._factory.drain())
