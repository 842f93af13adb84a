"""
The milter's side as Twisted protocol and factory.

How bytes come and go is in `yatxmilter.protocol._connection`, what they mean in
`yatxmilter._engine.connection`; here are the milters of a connection, and what all connections of a
server have in common.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, Literal, TypeAlias

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from yatxmilter._describing import described
from yatxmilter._engine.addresses import describe_address
from yatxmilter._engine.connection import MERGES
from yatxmilter._engine.context import Context
from yatxmilter._engine.member import shape_of
from yatxmilter._engine.observing import Audience
from yatxmilter._engine.on_error import answer_for, on_error_option
from yatxmilter._engine.shadow_statistics import on_error_for_missing
from yatxmilter._engine.slow_callbacks import SlowCallbacks
from yatxmilter._mail.bounds import (
    MAX_BODY,
    MAX_EDIT_BYTES,
    MAX_HEADER_BYTES,
    MAX_RECIPIENTS,
    SPOOL_MEMORY,
    Limits,
)
from yatxmilter._options import choice_option, flag_option, limit_option, seconds_option
from yatxmilter._wire.commands import CONNECT_ROW
from yatxmilter._wire.macros import MacroLimits
from yatxmilter.defaults import Milter, MilterFactory, MilterObserver
from yatxmilter.interfaces import IMilter, IMilterFactory, IMilterObserver
from yatxmilter.protocol._accepting import adopt_port
from yatxmilter.protocol._admission import Admission, Refusals
from yatxmilter.protocol._connection import TransportLine
from yatxmilter.protocol._descriptor_set import (
    ConnectionSet,
    Served,
    adoptable,
    connection_set,
)
from yatxmilter.protocol._draining import Drains
from yatxmilter.protocol._life_cycle import (
    FAILED,
    IDLE,
    STARTED,
    STARTING,
    Lives,
    Waiting,
    factory_name,
)
from yatxmilter.protocol._message_log import MessageLog
from yatxmilter.protocol._proxy import HAProxyProtocolWrapper, Lobby, Unannounced
from yatxmilter.protocol._steady_clock import steady
from yatxmilter.protocol._time_limits import TimeLimits

__all__ = ["MilterProtocol", "MilterProtocolFactory"]

_log = Logger()

#: One milter factory, or several; in quotes, as Python 3.10 cannot add interfaces to types.
_Factories: TypeAlias = "MilterFactory | IMilterFactory | Iterable[MilterFactory | IMilterFactory]"


def _clock_option(reactor: Any) -> Any:
    # What the clock of a test has is enough.
    if not (hasattr(reactor, "callLater") and hasattr(reactor, "seconds")):
        raise TypeError(f"reactor is {described(reactor)}, expected an IReactorTime")
    return steady(reactor)


class MilterProtocol(TransportLine):
    """
    One connection from an MTA, with its milters.

    :param factory: The factory whose options count; without one, the defaults.
    """

    __slots__ = ()

    def __init__(self, factory: MilterProtocolFactory | None = None) -> None:
        super().__init__(MilterProtocolFactory(()) if factory is None else factory)
        self.factory = factory

    def makeConnection(self, transport: Any) -> None:
        """
        Begin; behind HAProxy, when it has said who connects.
        """
        if isinstance(transport, HAProxyProtocolWrapper):
            waiting = Unannounced(self, self._options.lobby)
            Protocol.makeConnection(waiting, transport)
        else:
            Protocol.makeConnection(self, transport)

    # ---- milters

    def addMilter(self, milter: Milter | IMilter) -> None:
        """
        Put a milter on this connection, behind those that are there.

        :param milter: An `IMilter`.
        :raises TypeError: for anything else.
        :raises RuntimeError: when the MTA has begun to talk.
        """
        if isinstance(milter, Milter):
            milter._member = self._conversation.add(milter, shape_of(milter, Milter))
        elif IMilter.providedBy(milter):
            self._conversation.add(milter, shape_of(milter, Milter))
        else:
            raise TypeError(f"{described(milter)} does not provide IMilter")

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

    def refuse(self, on_error: Any) -> None:
        """
        Have the connection answered in the place of a milter that is missing.

        :param on_error: What is answered, as for `MilterFactory`.
        """
        on_error = on_error_option("on_error", on_error)
        self._conversation.refuse(answer_for(CONNECT_ROW, on_error))


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
    :param max_header_bytes: Bytes of header fields that a chain keeps of one message, or of
        recipients that are kept for a condition.
    :param max_recipients: Recipients of one message that a chain takes, or a condition looks at.
    :param max_edit_bytes: Bytes of one milter's edits of one message, a new body aside.
    :param max_body: Bytes of a body that a chain keeps in all, or that a milter puts in.
    :param spool_memory: Bytes of a body that a chain keeps in memory; more go to a temporary file.
    :param start_timeout: Seconds that the ``start()`` of a milter factory may take.
    :param stop_timeout: Seconds that the ``stop()`` of one may take.
    :param slow_callback: Seconds that a callback may block the process, with all its connections,
        before the log tells of it.
    :param observers: What is told of all that happens: `IMilterObserver`.
    :param log_messages: Whether each message is logged at its end, in one line at level info: who
        sent it, what became of it, who decided, and how long it took. By default it is where
        ``serve`` or `run_milters` runs the milters.
    :param reactor: The clock (``IReactorTime``); by default Twisted's reactor, whose time is taken
        from a clock that nobody can set.
    :raises TypeError: if something is not a milter factory, or for an option of the wrong type.
    :raises ValueError: for an option out of range.
    :ivar connections: The connections there are.
    :ivar limits: How much of one message may be kept; milters find it in their context, too.
    """

    noisy = False

    #: Whether it drains by itself when the reactor stops while milter factories run that have to
    #: be stopped; else whoever stops the reactor has to see to it.
    drains_with_reactor = True
    #: What has the threads of callbacks that are `threaded`; ``None`` for the reactor.
    threads: Any = None

    #: Whether connections are served by a descriptor set of our own where that can be.
    fast_path = True

    def __init__(
        self,
        milter_factories: _Factories,
        *,
        merge: Literal["first", "strictest", "chain"] = "first",
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
        max_header_bytes: int | None = MAX_HEADER_BYTES,
        max_recipients: int | None = MAX_RECIPIENTS,
        max_edit_bytes: int | None = MAX_EDIT_BYTES,
        max_body: int | None = MAX_BODY,
        spool_memory: int | None = SPOOL_MEMORY,
        start_timeout: float | None = 60,
        stop_timeout: float | None = 10,
        slow_callback: float | None = 0.5,
        observers: Iterable[MilterObserver | IMilterObserver] = (),
        log_messages: bool | None = None,
        reactor: IReactorTime | None = None,
    ) -> None:
        self.milter_factories: list[MilterFactory | IMilterFactory] = []
        self.merge = choice_option("merge", merge, list(MERGES))
        self.timeout = seconds_option("timeout", timeout)
        self.progress_interval = seconds_option("progress_interval", progress_interval)
        self.command_timeout = seconds_option("command_timeout", command_timeout)
        self.write_timeout = seconds_option("write_timeout", write_timeout)
        self.max_macros = limit_option("max_macros", max_macros)
        self.max_macro_bytes = limit_option("max_macro_bytes", max_macro_bytes)
        self.max_buffered = limit_option("max_buffered", max_buffered)
        self.max_header_bytes = limit_option("max_header_bytes", max_header_bytes)
        self.max_recipients = limit_option("max_recipients", max_recipients)
        self.max_edit_bytes = limit_option("max_edit_bytes", max_edit_bytes)
        self.max_body = limit_option("max_body", max_body)
        self.spool_memory = limit_option("spool_memory", spool_memory)
        self.macro_limits = MacroLimits(self.max_macros, self.max_macro_bytes)
        self.limits = Limits(
            self.max_header_bytes,
            self.max_recipients,
            self.max_edit_bytes,
            self.max_body,
            self.spool_memory,
        )
        self.admission = Admission(allow, max_connections, max_connections_per_peer)
        self.connections: set[TransportLine] = set()
        self._clock: IReactorTime | None = None if reactor is None else _clock_option(reactor)
        self._draining = False
        self._closing = False
        self._drains = Drains(lambda: self.clock)
        self._refusals = Refusals(lambda: self.clock)
        self.time_limits = TimeLimits(
            lambda: self.clock, self.timeout, self.command_timeout, self.write_timeout
        )
        self.lobby = Lobby(
            lambda: self.clock,
            self.command_timeout,
            self.admission,
            self._refused,
            self._one_gone,
        )
        self._lives = Lives(
            lambda: self.clock,
            seconds_option("start_timeout", start_timeout),
            seconds_option("stop_timeout", stop_timeout),
            self._reactor_stops,
        )
        self._early: list[Waiting] = []
        self._emptied: list[Deferred[None]] = []
        self._connection_set: ConnectionSet | None = None
        self.slow_callback = seconds_option("slow_callback", slow_callback)
        self.slow_callbacks = SlowCallbacks(self.slow_callback, lambda: self.clock)
        self.audience = Audience(MilterObserver, self.slow_callbacks)
        if not isinstance(observers, Iterable):
            raise TypeError(f"observers is {described(observers)}, expected a list of observers")
        for observer in observers:
            self.addObserver(observer)
        self.log_messages = flag_option("log_messages", log_messages)
        if log_messages:
            self._log_messages()
        self.addMilterFactory(milter_factories)

    def begin_message_log(self) -> None:
        """
        Log messages from now on, unless ``log_messages`` said whether to do so; for programs that
        run milters.
        """
        if self.log_messages is None:
            self._log_messages()

    def _log_messages(self) -> None:
        self.log_messages = True
        self.addObserver(MessageLog())

    @property
    def clock(self) -> IReactorTime:
        """
        What keeps time.
        """
        clock = self._clock
        if clock is None:
            # Not at the top: to import the reactor is to install it, which is the user's choice.
            from twisted.internet import reactor

            clock = self._clock = steady(reactor)
        return clock

    def addMilterFactory(self, milter_factories: _Factories) -> None:
        """
        Add one milter factory, or several; connections that come later have their milters too.

        One that has a ``start()`` is added when it has started, if the others are started.

        :raises TypeError: for what is no `IMilterFactory`; then none is added.
        :raises StartError: when one fails to start at once; then none is added either.
        """
        one = IMilterFactory.providedBy(milter_factories) or not isinstance(
            milter_factories, Iterable
        )
        several: Any = [milter_factories] if one else milter_factories
        added: list[MilterFactory | IMilterFactory] = list(several)
        for milter_factory in added:
            if not IMilterFactory.providedBy(milter_factory):
                raise TypeError(f"{milter_factory!r} does not provide IMilterFactory")
        if self._lives.state in (STARTED, STARTING):
            started = self._lives.add(added)
            started.addCallback(lambda _: self.milter_factories.extend(added))
            _raise_or_log(started, "it is not added")
        else:
            self.milter_factories += added

    def addObserver(self, observer: MilterObserver | IMilterObserver) -> None:
        """
        Have an observer told of the connections that come from now on, behind those that are there.

        :param observer: An `IMilterObserver`; most are a `yatxmilter.defaults.MilterObserver`.
        :raises TypeError: for anything else.
        """
        if not IMilterObserver.providedBy(observer):
            raise TypeError(
                f"{described(observer)} does not provide IMilterObserver; subclass MilterObserver"
            )
        self.audience.add(observer)

    @property
    def observers(self) -> list[Any]:
        """
        The observers, in the order in which they are told.
        """
        return self.audience.observers.copy()

    # ---- the life cycle of the milter factories

    def start(self) -> Deferred[None]:
        """
        Start the milter factories: call the ``start()`` of those that have one.

        Twisted does it, by `startFactory`, when a port is opened; whoever wants to know when they
        are started, or to open the port only then, calls this before. Once is enough.

        :return: A Deferred that fires when they are started. It fails with a `StartError` when one
            of them does not start; those that had started have been stopped by then.
        """
        self._draining = self._closing = False
        started = self._lives.start(self.milter_factories)
        return started.addBoth(self._let_in)

    def _let_in(self, result: Any) -> Any:
        early, self._early = self._early, []
        for waiting in early:
            waiting.go_on()
        return result

    def stop(self) -> Deferred[None]:
        """
        Stop the milter factories when the last connection has gone, unless they are started again
        before.

        Twisted does it, by `stopFactory`, when the last port is closed.

        :return: A Deferred that fires when they have stopped, or are not to be stopped any more.
            It does not fail: what goes wrong is logged, and what takes longer than ``stop_timeout``
            is not waited for.
        """
        self._closing = True
        self._refusals.flush()
        if self.connections or self.lobby.inside:
            emptied: Deferred[None] = Deferred()
            self._emptied.append(emptied)
            return emptied.addCallback(lambda _: self._stop_now())
        return self._stop_now()

    def _stop_now(self) -> Deferred[None]:
        if not self._closing:
            return succeed(None)
        self._turn_away()
        return self._lives.stop()

    def _turn_away(self) -> None:
        early, self._early = self._early, []
        for waiting in early:
            waiting.close()

    def _reactor_stops(self) -> Deferred[Any]:
        if self._draining:
            # Somebody else brings it to its end, with more patience, or less.
            return self.drain()
        return self.drain(self._lives.stop_timeout) if self.drains_with_reactor else succeed(None)

    def startFactory(self) -> None:
        """
        Take connections (again); those that come while milter factories are being started wait.

        :raises StartError: when one of them fails to start at once. When it fails later, it is
            logged, and connections are refused.
        """
        _raise_or_log(self.start(), "connections are refused")

    def stopFactory(self) -> None:
        """
        Have the milter factories stopped when the last connection has gone.
        """
        self.stop()

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """
        Build a connection with its milters; refuse it when there are too many.

        A milter that cannot be built is logged, and its factory's ``on_error`` is what the
        connection is answered with in its place.

        :return: A `MilterProtocol`; ``None`` for a connection that is refused; or, while the milter
            factories are being started, a protocol that waits and becomes either.
        """
        refusal = "it is shutting down" if self._draining else self.admission.refusal(addr)
        if refusal is None and self._lives.state != STARTED:
            if self._lives.state == IDLE:
                # By other means than a port of Twisted's, which would have started them.
                self.start().addErrback(lambda failure: None)
            if self._lives.state == STARTING:
                return Waiting(
                    partial(self.buildProtocol, addr), self._came_early, self._gone_early
                )
            if self._lives.state == FAILED:
                refusal = self._lives.reason
        if refusal is not None:
            self._refused(addr, refusal)
            return None
        protocol = MilterProtocol(self)
        for milter_factory in self.milter_factories:
            try:
                protocol.addMilter(milter_factory.build_milter(protocol))
            except BaseException:
                on_error = on_error_for_missing(milter_factory)
                name = factory_name(milter_factory)
                _log.failure(
                    "Milter {milter} could not be built for {mta}; answering {code} for it",
                    milter=name,
                    mta=describe_address(addr),
                    code=answer_for(CONNECT_ROW, on_error).described,
                )
                protocol.missing_milter(name, Failure())
                protocol.refuse(on_error)
        if self.audience.connection_taken is not None:
            self.audience.connection_taken(protocol)
        return protocol

    def _refused(self, addr: object, refusal: str) -> None:
        if self.audience.connection_refused is not None:
            self.audience.connection_refused(addr, refusal)
        self._refusals.add(describe_address(addr), refusal)

    def _came_early(self, waiting: Waiting) -> None:
        self._early.append(waiting)
        self.admission.enter(None)

    def _gone_early(self, waiting: Waiting) -> None:
        if waiting in self._early:
            self._early.remove(waiting)
        self.admission.leave(None)

    def serve(self, transport: Any) -> Served | None:
        """
        Put a connection on the fast path, if it can be there.
        """
        if not self.fast_path or not adoptable(transport):
            return None
        connections = self._connection_set
        if connections is None or connections.reactor is not transport.reactor:
            connections = self._connection_set = connection_set(transport.reactor)
        # From now on its port's connections need no transport.
        adopt_port(connections, transport.server)
        return connections.adopt(transport)

    def connection_made(self, protocol: TransportLine, peer: object) -> None:
        """
        Count one that has come.
        """
        self.connections.add(protocol)
        self.admission.enter(peer)

    def connection_lost(self, protocol: TransportLine, peer: object) -> None:
        """
        Count a connection that has gone.
        """
        self.connections.discard(protocol)
        self.admission.leave(peer)
        self._drains.gone(protocol)
        self._one_gone()

    def _one_gone(self) -> None:
        if not self.connections and not self.lobby.inside:
            emptied, self._emptied = self._emptied, []
            for one in emptied:
                one.callback(None)

    def drain(self, timeout: float | None = None) -> Deferred[None]:
        """
        Come to an end without losing mail.

        No connection is taken any more; idle ones are closed; where a message is in progress it
        is finished first. What is left after the time-out is answered TEMPFAIL where an answer is
        owed, and closed. The port is the caller's to close, before this.

        :param timeout: Seconds; ``None`` for any time.
        :return: A Deferred that fires when all connections are gone, and the milter factories have
            stopped. It does not fail.
        :raises TypeError: for a time-out that is no number.
        :raises ValueError: for one that is no time.
        """
        seconds = seconds_option("timeout", timeout)
        self._draining = True
        drained = self._drains.start(self.connections, seconds)
        self._turn_away()
        self.lobby.close()
        for protocol in list(self.connections):
            protocol.drain()
        return drained.addCallback(self._drained)

    def _drained(self, result: None) -> Deferred[None]:
        # Connections may be taken again meanwhile.
        return self.stop() if self._draining else succeed(None)


def _raise_or_log(started: Deferred[None], so: str) -> None:
    """
    Raise why factories do not start, if that is known at once; log it when it turns out later.
    """
    failures: list[Failure] = []
    begun = False

    def failed(failure: Failure) -> None:
        if not begun:
            failures.append(failure)
        elif not failure.check(CancelledError):
            _log.critical("{error}; {so}", error=failure.getErrorMessage(), so=so)

    started.addErrback(failed)
    begun = True
    if failures:
        failures[0].raiseException()
