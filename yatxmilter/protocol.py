"""
The milter's side as Twisted protocol and factory.

The protocol moves bytes between its transport and a `Conversation`, and watches the clock and the
buffers; what the bytes mean is not decided here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, cast

from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IPushProducer,
    IReactorTime,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from yatxmilter.constants import SMFIS_TEMPFAIL
from yatxmilter.context import Context
from yatxmilter.conversation import MERGES, Conversation
from yatxmilter.defaults import Milter
from yatxmilter.interfaces import IMilter, IMilterFactory
from yatxmilter.members import wanted_callbacks
from yatxmilter.options import choice_option, count_option, seconds_option

__all__ = ["MilterProtocol", "MilterProtocolFactory"]

_log = Logger()

# What may be waiting for a conversation before its transport is paused. An MTA sends one command
# and waits, unless no reply was agreed on.
_MAX_BUFFERED: Final = 256 * 1024


@implementer(IPushProducer)
class MilterProtocol(Protocol):
    """
    One connection from an MTA, with its milters.

    :param factory: The factory whose options count; without one, the defaults.
    """

    transport: Any

    def __init__(self, factory: MilterProtocolFactory | None = None) -> None:
        options = MilterProtocolFactory(()) if factory is None else factory
        self.factory = factory
        self._options = options
        self._paused = False
        self._idle_timer: IDelayedCall | None = None
        self._last_moved = 0.0
        self._conversation = Conversation(
            self,
            options.clock,
            merge=options.merge,
            progress_interval=options.progress_interval,
        )

    # ---- milters

    def addMilter(self, milter: Any) -> None:
        """
        Put a milter on this connection, behind those that are there.

        :param milter: An `IMilter`.
        :raises TypeError: for anything else.
        :raises RuntimeError: when the MTA has begun to talk.
        """
        if not IMilter.providedBy(milter):
            raise TypeError(f"{milter!r} does not provide IMilter")
        member = self._conversation.add(milter, wanted_callbacks(milter, Milter))
        if isinstance(milter, Milter):
            milter._context = member.context

    @property
    def milters(self) -> list[Any]:
        """
        The milters on this connection, in order.
        """
        return [member.milter for member in self._conversation.members]

    def contextOf(self, milter: Any) -> Context:
        """
        Give libmilter's functions to a milter on this connection that is no `Milter`.

        :raises ValueError: for a milter that is not on this connection.
        """
        for member in self._conversation.members:
            if member.milter is milter:
                return member.context
        raise ValueError(f"{milter!r} is not on this connection")

    def refuse(self, code: int) -> None:
        """
        Have the connection answered with a return code in the place of a milter that is missing.
        """
        self._conversation.refuse(code)

    # ---- Twisted's side

    def connectionMade(self) -> None:
        """
        Tell the milters of the connection, and start to watch it.
        """
        if self.factory is not None:
            self.factory.connections.add(self)
        self.transport.registerProducer(self, True)
        self._watch_idleness(self._options.timeout)
        self._conversation.connected(self.transport.getPeer())

    def dataReceived(self, data: bytes) -> None:
        """
        Hand bytes to the conversation; pause the transport when too many are waiting there.
        """
        self._last_moved = self._options.clock.seconds()
        conversation = self._conversation
        conversation.receive(data)
        if conversation.busy and conversation.session.splitter.buffered > _MAX_BUFFERED:
            self._paused = True
            self.transport.pauseProducing()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        Cancel what is awaited, and tell the milters.
        """
        self._stop_watching()
        if self.factory is not None:
            self.factory.connections.discard(self)
        self._conversation.lost(reason)

    # Bytes only leave a mark of their time: to move a timer for each costs more.

    def _watch_idleness(self, seconds: float | None) -> None:
        if seconds is not None:
            self._last_moved = self._options.clock.seconds()
            self._idle_timer = self._options.clock.callLater(seconds, self._check_idleness)

    def _check_idleness(self) -> None:
        self._idle_timer = None
        timeout = self._options.timeout
        assert timeout is not None
        clock = self._options.clock
        if self._conversation.waiting:
            # The MTA is waiting for a milter, not we for the MTA.
            self._watch_idleness(timeout)
            return
        left = self._last_moved + timeout - clock.seconds()
        if left > 0:
            self._idle_timer = clock.callLater(left, self._check_idleness)
            return
        _log.info("The MTA at {mta} was silent too long; closing", mta=self.transport.getPeer())
        self._conversation.end()

    def _stop_watching(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    # ---- IPushProducer: the MTA reads slowly, or reads again

    def pauseProducing(self) -> None:
        """
        Make no more answers until those made are read.
        """
        self._conversation.stalled = True

    def resumeProducing(self) -> None:
        """
        Go on.
        """
        self._conversation.stalled = False
        self._conversation.run()

    def stopProducing(self) -> None:
        """
        Make no more answers; the connection is about to be lost.
        """
        self._conversation.stalled = True

    # ---- Line: the conversation's side

    def send(self, data: bytes) -> None:
        """
        Write to the MTA.
        """
        self._last_moved = self._options.clock.seconds()
        self.transport.write(data)

    def caught_up(self) -> None:
        """
        Read on, if reading was paused.
        """
        if self._paused:
            self._paused = False
            self.transport.resumeProducing()

    def hang_up(self) -> None:
        """
        Close the connection when all is written.
        """
        self._stop_watching()
        self.transport.unregisterProducer()
        self.transport.loseConnection()


class MilterProtocolFactory(Factory):
    """
    Builds a `MilterProtocol` for each connection from an MTA.

    It works wherever Twisted takes a factory: ``reactor.listenTCP``, ``listenUNIX``, endpoints,
    ``StreamServerEndpointService``.

    :param milter_factories: One `IMilterFactory`, or several in the order of their milters.
    :param merge: How several milters' answers become one: ``"first"``.
    :param timeout: Seconds that an MTA may be silent; ``None`` for any time. libmilter's
        ``smfi_settimeout``.
    :param progress_interval: Seconds after which SMFIR_PROGRESS is sent, again and again, while
        a milter is at work at the end of a message; ``None`` for never. The default is half of
        what Sendmail waits for.
    :param max_connections: How many MTA connections there may be at once; ``None`` for any number.
    :param reactor: The clock (``IReactorTime``); by default Twisted's reactor.
    :raises TypeError: for what is no milter factory, or an option of the wrong type.
    :raises ValueError: for an option out of range.
    :ivar connections: The connections there are.
    """

    noisy = False

    def __init__(
        self,
        milter_factories: Any,
        *,
        merge: str = "first",
        timeout: float | None = 7210,
        progress_interval: float | None = 5,
        max_connections: int | None = None,
        reactor: IReactorTime | None = None,
    ) -> None:
        self.milter_factories: list[Any] = []
        self.merge = choice_option("merge", merge, list(MERGES))
        self.timeout = seconds_option("timeout", timeout)
        self.progress_interval = seconds_option("progress_interval", progress_interval)
        self.max_connections = count_option("max_connections", max_connections)
        self.connections: set[MilterProtocol] = set()
        self._clock = reactor
        self.addMilterFactory(milter_factories)

    @property
    def clock(self) -> IReactorTime:
        """
        What keeps time.
        """
        if self._clock is None:
            # Not at the top: to import the reactor is to install it, which is the user's choice.
            from twisted.internet import reactor

            self._clock = cast(IReactorTime, reactor)
        return self._clock

    def addMilterFactory(self, milter_factories: Any) -> None:
        """
        Add one milter factory, or several; connections that come later have their milters too.

        :raises TypeError: for what is no `IMilterFactory`; then none is added.
        """
        one = IMilterFactory.providedBy(milter_factories) or not isinstance(
            milter_factories, Iterable
        )
        added = [milter_factories] if one else list(milter_factories)
        for milter_factory in added:
            if not IMilterFactory.providedBy(milter_factory):
                raise TypeError(f"{milter_factory!r} does not provide IMilterFactory")
        self.milter_factories += added

    def buildProtocol(self, addr: IAddress | None) -> MilterProtocol | None:
        """
        Build a connection with its milters; refuse it when there are too many.

        A milter that cannot be built is logged, and its factory's ``on_error`` is what the
        connection is answered with in its place.
        """
        if self.max_connections is not None and len(self.connections) >= self.max_connections:
            _log.warn(
                "Refusing the connection from {mta}: there are {limit} already",
                mta=addr,
                limit=self.max_connections,
            )
            return None
        protocol = MilterProtocol(self)
        for milter_factory in self.milter_factories:
            try:
                protocol.addMilter(milter_factory.build_milter(protocol))
            except Exception:
                code = getattr(milter_factory, "on_error", SMFIS_TEMPFAIL)
                _log.failure(
                    "{factory} could not build a milter for {mta}; answering {code} for it",
                    factory=milter_factory,
                    mta=addr,
                    code=code,
                )
                protocol.refuse(code)
        return protocol
