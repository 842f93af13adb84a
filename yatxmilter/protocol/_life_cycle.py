"""
The life cycle of milter factories: ``start()`` before the first connection is taken, ``stop()``
when the last one has gone.

A factory that several servers of this process use is started by the first of them and stopped by
the last. Nothing here waits for ever: what does not come to its end in time has failed, and is
told. A ``start()`` that fails, or is cancelled, has to take down itself what it had built:
``stop()`` is called for what has started.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Final

from twisted.internet.defer import CancelledError, Deferred, DeferredList, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IHandshakeListener, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from yatxmilter._engine.awaitables import outcome_of
from yatxmilter._engine.explaining import explained
from yatxmilter._escaping import printable
from yatxmilter.errors import StartError
from yatxmilter.protocol._steady_clock import SteadyClock

__all__ = ["FAILED", "IDLE", "STARTED", "STARTING", "Lives", "Waiting", "factory_name", "reason_of"]

_log = Logger()

#: What `Lives.state` may be.
IDLE: Final = "idle"
STARTING: Final = "starting"
STARTED: Final = "started"
FAILED: Final = "failed"

Clock = Callable[[], IReactorTime]


def reason_of(failure: Failure) -> str:
    """
    Say in a line why something failed.
    """
    kind = getattr(failure.type, "__name__", "error")
    text = failure.getErrorMessage()
    return printable(f"{kind}: {text}" if text else kind)


def factory_name(factory: Any) -> str:
    """
    Name a milter factory for the log, as its milters are named.
    """
    milter = getattr(factory, "milter", None)
    for owner, attribute in ((factory, "name"), (milter, "xxfi_name"), (milter, "__name__")):
        name = getattr(owner, attribute, None)
        if isinstance(name, str):
            return printable(name)
    return type(factory).__name__


def _call(method: Callable[[], Any] | None) -> Deferred[Any]:
    try:
        result = outcome_of(None if method is None else method())
        return result if isinstance(result, Deferred) else succeed(result)
    except KeyboardInterrupt:
        # Ctrl-C, while it was at work.
        raise
    except BaseException:
        # A library that raises SystemExit does not end all the others.
        return fail(Failure())


def _call_in_loop(method: Callable[[], Any] | None, clock: Clock) -> Deferred[Any]:
    """
    Call a factory's method; under asyncio's reactor not before its loop runs, which it may need.
    """
    if method is not None:
        now = clock()
        reactor: Any = getattr(now, "reactor", now)
        loop = getattr(reactor, "_asyncioEventloop", None)
        if loop is not None and not loop.is_running():
            turn: Deferred[Any] = Deferred()
            reactor.callLater(0, turn.callback, None)
            return turn.addCallback(lambda _: _call(method))
    return _call(method)


class _Bounded:
    """
    Wait for a Deferred, but not for ever; what becomes of it later is dropped.

    :ivar outcome: Fires with its result, or fails when its time is over or it is given up.
    """

    def __init__(self, deferred: Deferred[Any], clock: Clock, seconds: float | None) -> None:
        self.outcome: Deferred[Any] = Deferred()
        self._deferred = deferred
        self._seconds = seconds
        self._timer: IDelayedCall | None = None
        deferred.addBoth(self._fired)
        if seconds is not None and not self.outcome.called:
            self._timer = clock().callLater(seconds, self._late)

    def _fired(self, result: Any) -> None:
        if self.outcome.called:
            return
        if self._timer is not None:
            self._timer.cancel()
        self.outcome.callback(result)

    def _late(self) -> None:
        self._timer = None
        self.give_up(TimeoutError(f"it was not done within {self._seconds:g} seconds"))

    def give_up(self, error: Exception) -> None:
        """
        Wait no more, and cancel it.
        """
        if self._timer is not None:
            self._timer.cancel()
        self.outcome.errback(Failure(error))
        try:
            self._deferred.cancel()
        except BaseException:
            _log.failure("A canceller failed")


class _Life:
    """
    One factory's life, over all who use it.
    """

    #: Those that are used, by their factories' identity: factories need not be hashable.
    known: ClassVar[dict[int, _Life]] = {}

    def __init__(self, factory: Any) -> None:
        self._factory = factory
        self._users = 0
        self._running = False
        self._work: _Bounded | None = None
        self._starting = False
        self._entered: list[Deferred[None]] = []
        self._left: list[Deferred[None]] = []
        self._options: tuple[Clock, float | None, float | None] | None = None

    @classmethod
    def of(cls, factory: Any) -> _Life:
        """
        Find the life of a factory, or begin one.
        """
        # What only passes these methods on, as the test kit's factories do, is the same factory.
        method = getattr(factory, "start", None) or getattr(factory, "stop", None)
        factory = getattr(method, "__self__", factory)
        life = cls.known.get(id(factory))
        if life is None:
            life = cls.known[id(factory)] = cls(factory)
        return life

    def enter(
        self, clock: Clock, start_timeout: float | None, stop_timeout: float | None
    ) -> Deferred[None]:
        """
        Use the factory; who is the first has it started.

        :return: A Deferred that fires when it is started. When it fails, or is cancelled, the
            factory is not used.
        """
        self._users += 1
        self._options = (clock, start_timeout, stop_timeout)
        entered: Deferred[None] = Deferred(self._withdraw)
        self._entered.append(entered)
        self._go_on()
        return entered

    def _withdraw(self, entered: Deferred[None]) -> None:
        self._entered.remove(entered)
        self._users -= 1
        if not self._users and self._starting and self._work is not None:
            self._work.give_up(CancelledError())

    def leave(self) -> Deferred[None]:
        """
        Use the factory no more; who is the last has it stopped.

        :return: A Deferred that fires when it is stopped, if it is to be. It does not fail.
        """
        self._users -= 1
        if self._users:
            return succeed(None)
        left: Deferred[None] = Deferred()
        self._left.append(left)
        self._go_on()
        return left

    def _go_on(self) -> None:
        if self._work is not None:
            return
        if bool(self._users) == self._running:
            self._rest()
            return
        assert self._options is not None
        clock, start_timeout, stop_timeout = self._options
        self._starting = not self._running
        method = getattr(self._factory, "start" if self._starting else "stop", None)
        seconds = start_timeout if self._starting else stop_timeout
        work = self._work = _Bounded(_call_in_loop(method, clock), clock, seconds)
        work.outcome.addBoth(self._started if self._starting else self._stopped)

    def _rest(self) -> None:
        waiting = self._entered if self._running else self._left
        if not self._running:
            self.known.pop(id(self._factory), None)
        self._entered, self._left = [], []
        for one in waiting:
            one.callback(None)

    def _started(self, result: object) -> None:
        self._work, self._starting = None, False
        if not isinstance(result, Failure):
            self._running = True
            self._go_on()
            return
        result = explained(result, self._factory)
        refused, self._entered = self._entered, []
        self._users -= len(refused)
        self._go_on()
        error = StartError(
            f"milter {factory_name(self._factory)} could not start: {reason_of(result)}"
        )
        error.__cause__ = result.value
        for one in refused:
            one.errback(error)

    def _stopped(self, result: object) -> None:
        self._work, self._running = None, False
        if isinstance(result, Failure):
            if result.check(TimeoutError) is None:
                _log.failure(
                    "Milter {milter} failed to stop", result, milter=factory_name(self._factory)
                )
            else:
                _log.error(
                    "Milter {milter} does not stop: {error}; going on without waiting for it",
                    milter=factory_name(self._factory),
                    error=result.getErrorMessage(),
                )
        self._go_on()


class Lives:
    """
    The lives of all factories of one server.

    :param clock: Gives what keeps time; not asked before there is something to start.
    :param start_timeout: Seconds that a ``start()`` may take; ``None`` for any time.
    :param stop_timeout: Seconds that a ``stop()`` may take, likewise.
    :param ending: Called when the reactor, if that is the clock, is about to stop while factories
        run; the Deferred that it gives is waited for.
    :ivar state: Whether the factories are started.
    :ivar reason: Why they could not be.
    """

    def __init__(
        self,
        clock: Clock,
        start_timeout: float | None,
        stop_timeout: float | None,
        ending: Callable[[], Deferred[Any]],
    ) -> None:
        self.state = IDLE
        self.reason = ""
        self.start_timeout = start_timeout
        self.stop_timeout = stop_timeout
        self._clock = clock
        self._ending = ending
        self._trigger: Any = None
        self._used: list[_Life] = []
        # What is being started; and who waits for it to be over, however it ends.
        self._entering: list[tuple[Deferred[Any], Deferred[None]]] = []
        self._waiting: list[Deferred[None]] = []
        self._giving_up = False
        self._anew: list[tuple[Deferred[None], Iterable[Any]]] = []
        self._stops = 0
        self._stopped: list[Deferred[None]] = []

    def start(self, factories: Iterable[Any]) -> Deferred[None]:
        """
        Start the factories, all at once, unless they are started already.

        :return: A Deferred that fails with a `StartError` if one of them does not start, once those
            that had started have stopped.
        """
        if self.state == STARTED:
            return succeed(None)
        started: Deferred[None] = Deferred()
        if self._giving_up:
            # What is being given up has to have ended.
            self._anew.append((started, factories))
            return started
        self._waiting.append(started)
        if self.state != STARTING:
            self.state = STARTING
            self.add(factories).addBoth(self._all_started)
        return started

    def _all_started(self, result: Failure | None) -> None:
        if result is None:
            self.state, self.reason = STARTED, ""
        else:
            self.state = IDLE if result.check(CancelledError) else FAILED
            self.reason = result.getErrorMessage()
        self._giving_up = False
        waiting, self._waiting = self._waiting, []
        anew, self._anew = self._anew, []
        for started in waiting:
            started.callback(result)
        for started, factories in anew:
            self.start(factories).chainDeferred(started)

    def add(self, factories: Iterable[Any]) -> Deferred[None]:
        """
        Start more factories, beside those that are started.

        :return: As `start`; when it fails, the others go on.
        """
        managed = [one for one in factories if hasattr(one, "start") or hasattr(one, "stop")]
        if not managed:
            return succeed(None)
        good: list[_Life] = []
        failures: list[Failure] = []
        entries: list[Deferred[Any]] = []
        for life in map(_Life.of, managed):
            entry: Deferred[Any] = life.enter(self._clock, self.start_timeout, self.stop_timeout)
            entries.append(entry)
            entry.addCallback(_note, good, life)
            entry.addErrback(_fail_all, failures, entries)
            if failures:
                break
        entered: Deferred[Any] = DeferredList(entries)
        over: Deferred[None] = Deferred()
        self._entering.append((entered, over))
        entered.addCallback(lambda _: self._entered(good, failures))
        return entered.addBoth(self._over, (entered, over))

    def _entered(self, good: list[_Life], failures: list[Failure]) -> Deferred[Any] | None:
        if failures:
            left: Deferred[Any] = DeferredList([life.leave() for life in good])
            return left.addCallback(lambda _: failures[0])
        self._used += good
        clock = self._clock()
        # A clock of a test's comes to no end.
        if self._trigger is None and isinstance(clock, SteadyClock):
            reactor = clock.reactor
            trigger = reactor.addSystemEventTrigger("before", "shutdown", self._end)
            self._trigger = reactor, trigger
        return None

    def _over(self, result: Any, entering: tuple[Deferred[Any], Deferred[None]]) -> Any:
        self._entering.remove(entering)
        entering[1].callback(None)
        return result

    def _end(self) -> Deferred[Any]:
        self._trigger = None
        # Whoever brings the server to its end by other means has a turn to begin with it.
        turn: Deferred[Any] = Deferred()
        self._clock().callLater(0, turn.callback, None)
        return turn.addCallback(lambda _: self._ending())

    def stop(self) -> Deferred[None]:
        """
        Stop what was started, and give up what is being started.

        :return: A Deferred that fires when that is done. It does not fail.
        """
        if self._trigger is not None:
            reactor, trigger = self._trigger
            reactor.removeSystemEventTrigger(trigger)
            self._trigger = None
        used, self._used = self._used, []
        waiting = [life.leave() for life in used]
        for entered, over in self._entering.copy():
            waiting.append(over)
            entered.cancel()
        if self.state == STARTING:
            self._giving_up = True
        else:
            self.state = IDLE
        # Who asks a second time waits for the first time, too.
        self._stops += 1
        DeferredList(waiting).addCallback(self._stop_over)
        if not self._stops:
            return succeed(None)
        stopped: Deferred[None] = Deferred()
        self._stopped.append(stopped)
        return stopped

    def _stop_over(self, _: object) -> None:
        self._stops -= 1
        if not self._stops:
            waiting, self._stopped = self._stopped, []
            for stopped in waiting:
                stopped.callback(None)


def _note(_: object, good: list[_Life], life: _Life) -> None:
    good.append(life)


def _fail_all(failure: Failure, failures: list[Failure], entries: list[Deferred[Any]]) -> None:
    failures.append(failure)
    for entry in entries:
        entry.cancel()


@implementer(IHandshakeListener)
class Waiting(Protocol):
    """
    A connection that has come before the milters' factories have started; it is not read from.

    :param build: Builds the connection when they have; gives ``None`` to close it.
    :param came: Called with this when it is there, and ``gone`` when it is no more.
    """

    def __init__(
        self,
        build: Callable[[], Any],
        came: Callable[[Waiting], None],
        gone: Callable[[Waiting], None],
    ) -> None:
        self._build = build
        self._came = came
        self._gone = gone
        self._built: Any = None
        self._early: list[bytes] = []
        self._shaken = False

    transport: Any

    def connectionMade(self) -> None:
        """
        Wait.
        """
        self.transport.pauseProducing()
        self._came(self)

    def handshakeCompleted(self) -> None:
        """
        Pass it on, now or later: who begins to wait for it behind it would wait in vain.
        """
        self._shaken = True
        if IHandshakeListener.providedBy(self._built):
            self._built.handshakeCompleted()

    def dataReceived(self, data: bytes) -> None:
        """
        Keep what was read together with what HAProxy or TLS say first; later, pass it on.
        """
        if self._built is None:
            self._early.append(data)
        else:
            self._built.dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        Wait no more.
        """
        if self._built is None:
            self._gone(self)
        else:
            self._built.connectionLost(reason)

    def go_on(self) -> None:
        """
        Let the connection be what it is to be, or close it.
        """
        self._gone(self)
        transport = self.transport
        built = self._built = self._build()
        if built is None:
            self._close()
            return
        for name in ("protocol", "wrappedProtocol"):
            if getattr(transport, name, None) is self:
                setattr(transport, name, built)
        built.makeConnection(transport)
        if self._shaken:
            built.handshakeCompleted()
        early, self._early = self._early, []
        for data in early:
            built.dataReceived(data)
        transport.resumeProducing()

    def close(self) -> None:
        """
        Close the connection: the factories are not going to start.
        """
        self._gone(self)
        self._close()

    def _close(self) -> None:
        self._built = Protocol()
        self.transport.loseConnection()
        # Paused, it would not see its own end.
        self.transport.resumeProducing()
