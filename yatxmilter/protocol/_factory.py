"""
The milter's side as Twisted protocol and factory.

How bytes come and go is in `yatxmilter.protocol._connection`, what they mean in
`yatxmilter._engine.connection`; here are the milters of a connection, and what all connections of a
server have in common.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger

from yatxmilter._engine.addresses import describe_address
from yatxmilter._engine.connection import MERGES
from yatxmilter._engine.context import Context
from yatxmilter._engine.member import wanted_callbacks
from yatxmilter._engine.shadow_statistics import code_for_missing
from yatxmilter._options import choice_option, limit_option, seconds_option
from yatxmilter.defaults import Milter
from yatxmilter.interfaces import IMilter, IMilterFactory
from yatxmilter.protocol._admission import Admission
from yatxmilter.protocol._connection import TransportLine
from yatxmilter.protocol._descriptor_set import ConnectionSet, Served, adoptable
from yatxmilter.protocol._draining import Drains
from yatxmilter.protocol._proxy import HAProxyProtocolWrapper, Unannounced

__all__ = ["MilterProtocol", "MilterProtocolFactory"]

_log = Logger()


class MilterProtocol(TransportLine):
    """
    One connection from an MTA, with its milters.

    :param factory: The factory whose options count; without one, the defaults.
    """

    def __init__(self, factory: MilterProtocolFactory | None = None) -> None:
        super().__init__(MilterProtocolFactory(()) if factory is None else factory)
        self.factory = factory

    def makeConnection(self, transport: Any) -> None:
        """
        Begin; behind HAProxy, when it has said who connects.
        """
        if isinstance(transport, HAProxyProtocolWrapper):
            waiting = Unannounced(self, self._clock, self._options.command_timeout)
            Protocol.makeConnection(waiting, transport)
        else:
            Protocol.makeConnection(self, transport)

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
        for member in self._conversation.everyone:
            if member.milter is milter:
                return member.context
        raise ValueError(f"{milter!r} is not on this connection")

    def refuse(self, code: int) -> None:
        """
        Have the connection answered with a return code in the place of a milter that is missing.
        """
        self._conversation.refuse(code)


class MilterProtocolFactory(Factory):
    """
    Builds a `MilterProtocol` for each connection from an MTA.

    It works wherever Twisted takes a factory: ``reactor.listenTCP``, ``listenUNIX``, endpoints,
    ``StreamServerEndpointService``.

    :param milter_factories: One `IMilterFactory`, or several in the order of their milters.
    :param merge: How several answers become one: ``"first"``, ``"strictest"`` or ``"chain"``.
    :param timeout: Seconds that an MTA may be silent. libmilter's ``smfi_settimeout``. This and
        the limits below may be ``None``, for no limit.
    :param command_timeout: Seconds within which a command must have arrived whole.
    :param write_timeout: Seconds that an MTA may read nothing of the answers that wait for it.
    :param progress_interval: Seconds after which SMFIR_PROGRESS is sent, again and again, while
        a milter is at work at the end of a message; ``None`` for never. The default is half of
        what Sendmail waits for.
    :param allow: Networks that TCP connections may come from, such as ``["127.0.0.0/8"]``.
    :param max_connections: How many MTA connections there may be at once.
    :param max_connections_per_peer: How many there may be from one IP address.
    :param max_macros: How many macros there may be for one stage.
    :param max_macro_bytes: How many bytes of macros there may be for one connection.
    :param max_buffered: Bytes that may wait for a milter before reading is paused.
    :param spool_memory: Bytes of a body that a chain keeps in memory; more go to a temporary file.
    :param reactor: The clock (``IReactorTime``); by default Twisted's reactor.
    :raises TypeError: for what is no milter factory, or an option of the wrong type.
    :raises ValueError: for an option out of range.
    :ivar connections: The connections there are.
    """

    noisy = False

    #: Whether connections are served by a descriptor set of our own where that can be.
    fast_path = True

    def __init__(
        self,
        milter_factories: Any,
        *,
        merge: str = "first",
        timeout: float | None = 7210,
        command_timeout: float | None = 300,
        write_timeout: float | None = 300,
        progress_interval: float | None = 5,
        allow: Iterable[str] | None = None,
        max_connections: int | None = None,
        max_connections_per_peer: int | None = None,
        max_macros: int | None = 512,
        max_macro_bytes: int | None = 512 * 1024,
        max_buffered: int | None = 256 * 1024,
        spool_memory: int | None = 1024 * 1024,
        reactor: IReactorTime | None = None,
    ) -> None:
        self.milter_factories: list[Any] = []
        self.merge = choice_option("merge", merge, list(MERGES))
        self.timeout = seconds_option("timeout", timeout)
        self.progress_interval = seconds_option("progress_interval", progress_interval)
        self.command_timeout = seconds_option("command_timeout", command_timeout)
        self.write_timeout = seconds_option("write_timeout", write_timeout)
        self.max_macros = limit_option("max_macros", max_macros)
        self.max_macro_bytes = limit_option("max_macro_bytes", max_macro_bytes)
        self.max_buffered = limit_option("max_buffered", max_buffered)
        self.spool_memory = limit_option("spool_memory", spool_memory)
        self.admission = Admission(allow, max_connections, max_connections_per_peer)
        self.connections: set[MilterProtocol] = set()
        self._clock = reactor
        self._draining = False
        self._drains = Drains(lambda: self.clock)
        self._connection_set: ConnectionSet | None = None
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
        refusal = "it is shutting down" if self._draining else self.admission.refusal(addr)
        if refusal is not None:
            _log.warn(
                "Refusing the connection from {mta}: {refusal}",
                mta=describe_address(addr),
                refusal=refusal,
            )
            return None
        protocol = MilterProtocol(self)
        for milter_factory in self.milter_factories:
            try:
                protocol.addMilter(milter_factory.build_milter(protocol))
            except Exception:
                code = code_for_missing(milter_factory)
                _log.failure(
                    "Milter {milter} could not be built for {mta}; answering {code} for it",
                    milter=getattr(milter_factory, "name", milter_factory),
                    mta=describe_address(addr),
                    code=code,
                )
                protocol.refuse(code)
        return protocol

    def startFactory(self) -> None:
        """
        Take connections (again).
        """
        self._draining = False

    def serve(self, transport: Any) -> Served | None:
        """
        Put a connection on the fast path, if it can be there.
        """
        if not self.fast_path or not adoptable(transport):
            return None
        connections = self._connection_set
        if connections is None or connections.reactor is not transport.reactor:
            connections = self._connection_set = ConnectionSet(transport.reactor)
        return connections.adopt(transport)

    def connection_made(self, protocol: MilterProtocol, peer: object) -> None:
        """
        Count one that has come.
        """
        self.connections.add(protocol)
        self.admission.enter(peer)

    def connection_lost(self, protocol: MilterProtocol, peer: object) -> None:
        """
        Count a connection that has gone.
        """
        self.connections.discard(protocol)
        self.admission.leave(peer)
        self._drains.gone(protocol)

    def drain(self, timeout: float | None = None) -> Deferred[None]:
        """
        Come to an end without losing mail.

        No connection is taken any more; idle ones are closed; where a message is in progress it
        is finished first. What is left after the time-out is answered TEMPFAIL where an answer is
        owed, and closed. The port is the caller's to close, before this.

        :param timeout: Seconds; ``None`` for any time.
        :return: A Deferred that fires when all connections are gone.
        :raises TypeError: for a time-out that is no number.
        :raises ValueError: for one that is no time.
        """
        seconds = seconds_option("timeout", timeout)
        self._draining = True
        drained = self._drains.start(self.connections, seconds)
        for protocol in list(self.connections):
            protocol.drain()
        return drained
