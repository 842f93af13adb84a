"""
Many messages played to a milter: over one connection or many, one after the other or at once.

A `Player` has as many workers as there may be connections. Each takes the next message that no one
has taken yet and plays it to the end; so only as many messages are in memory as are being played.
A failure is the result of the message that it befell, and the next one gets a new connection.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

from twisted.internet.defer import CancelledError, Deferred, FirstError, gatherResults
from twisted.internet.error import ConnectError, ConnectingCancelledError
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory

from yatxmilter._cli.messages import Source
from yatxmilter._cli.running import interruptible
from yatxmilter.client import MilterClient, MilterClientFactory, apply_edits
from yatxmilter.client._message import Envelope, Outcome, play
from yatxmilter.client._profiles import find_flavour
from yatxmilter.client._session_script import SessionScript
from yatxmilter.errors import PeerError, ValueNotSendable
from yatxmilter.protocol._endpoints import client_endpoint
from yatxmilter.protocol._steady_clock import steady

__all__ = ["Player", "Result", "Session"]

# Seconds to connect, where no shorter time was asked for.
_CONNECTING: Final = 30.0


@dataclass(frozen=True)
class Session:
    """
    The MTA that is played, and what it knows of its client.

    :ivar where: The milter's address.
    :ivar sender: The envelope sender; ``None`` for that of each message.
    :ivar recipients: The envelope recipients; empty for those of each message.
    :ivar macros: What there is to know, by name; sent where it is asked for.
    :ivar forced: Macros that are sent with a command in any case, by its letter.
    :ivar timeout: Seconds to wait for each answer.
    """

    where: str
    hostname: str
    address: IAddress | None
    helo: str
    sender: str | None = None
    recipients: tuple[str, ...] = ()
    sender_args: tuple[str, ...] = ()
    recipient_args: tuple[str, ...] = ()
    macros: Mapping[str, str] = field(default_factory=dict)
    forced: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    flavour: str = "postfix"
    timeout: float = 300.0


@dataclass
class Result:
    """
    What became of a message, or why nothing did.

    :ivar number: Which one it is, from 1.
    :ivar name: Where it came from.
    :ivar message: The message file; ``after``: as the edits have made it.
    :ivar seconds: From its first command, or from the connection that was made for it, to the
        verdict.
    :ivar error: Why the message has no outcome.
    :ivar unusable: Whether that is the message's fault and not the milter's.
    """

    number: int
    name: str
    message: bytes = b""
    sender: str = ""
    recipients: tuple[str, ...] = ()
    message_id: str = ""
    outcome: Outcome | None = None
    after: bytes = b""
    seconds: float = 0.0
    error: str = ""
    unusable: bool = False

    @property
    def ends_session(self) -> bool:
        """
        Whether an MTA hangs up on its client now.
        """
        return self.outcome is not None and self.outcome.response.closes


class _Line:
    """
    One worker's connection to the milter, made when it is needed.
    """

    def __init__(self, session: Session, reactor: Any) -> None:
        self._session = session
        self._reactor = reactor
        self._client: MilterClient | None = None
        self._script: SessionScript | None = None

    async def play(self, result: Result) -> None:
        """
        Play a message, and note what became of it.
        """
        session = self._session
        script = self._script or await self._begin()
        known = {"i": f"SEND{result.number:06}", "msg_id": result.message_id, **session.macros}
        queue_id = known.pop("i")
        script.values.update(known)
        arguments = dict.fromkeys(result.recipients, session.recipient_args)
        envelope = Envelope(result.sender, result.recipients, session.sender_args, arguments)
        outcome = await play(script, result.message, envelope, queue_id)
        result.outcome = outcome
        result.after = result.message
        if outcome.edits:
            result.after = apply_edits(
                result.message,
                outcome.edits,
                leading_space=script.leading_space,
                flavour=session.flavour,
            )

    async def _begin(self) -> SessionScript:
        session = self._session
        timeout = min(session.timeout, _CONNECTING)
        endpoint: Any = client_endpoint(self._reactor, session.where, timeout=timeout)
        factory = MilterClientFactory(timeout=session.timeout, clock=self._reactor)
        try:
            client: MilterClient = await endpoint.connect(cast(Factory, factory))
        except (ConnectError, OSError) as error:
            raise _Unreachable(f"cannot connect to {session.where}: {error}") from error
        self._client = client
        profile = find_flavour(session.flavour)
        script = SessionScript(client, profile, session.macros, forced=session.forced)
        await script.negotiate()
        await script.connect(session.hostname, session.address)
        await script.helo(session.helo)
        self._script = script
        return script

    async def close(self) -> None:
        """
        End the connection as an MTA does.
        """
        client, self._client = self._client, None
        self._script = None
        if client is not None:
            await client.quit()

    def drop(self) -> None:
        """
        End the connection at once.
        """
        client, self._client = self._client, None
        self._script = None
        if client is not None and client.transport is not None:
            cast(Any, client.transport).abortConnection()


class _Unreachable(Exception):
    """
    The milter could not be connected to.
    """


class Player:
    """
    Play all messages, and tell of each when it is done.

    :param done: Called with each result.
    :param repeat: How many times each message is sent.
    :param concurrency: How many connections there may be at once.
    :param reuse: Whether messages share connections.
    :param max_time: Seconds after which what is not done is given up.
    """

    def __init__(
        self,
        session: Session,
        sources: Iterable[Source],
        done: Callable[[Result], object],
        *,
        reactor: Any,
        repeat: int = 1,
        concurrency: int = 1,
        reuse: bool = False,
        max_time: float | None = None,
    ) -> None:
        self._session = session
        self._jobs = _jobs(sources, session, repeat)
        self._done = done
        self._reactor = reactor
        self._concurrency = concurrency
        self._reuse = reuse
        self._max_time = max_time
        self._over = self._expired = self._stopped = self._reached = False

    async def play(self) -> None:
        """
        Play until the last message is done, or the time is over, or no milter is to be found.
        """
        workers = [Deferred.fromCoroutine(self._work()) for _ in range(self._concurrency)]
        self._reactor.addSystemEventTrigger("before", "shutdown", self._stop)
        timer = None
        if self._max_time is not None:
            timer = steady(self._reactor).callLater(self._max_time, self._expire, workers)
        try:
            await gatherResults(workers, consumeErrors=True)
        except FirstError as error:
            error.subFailure.raiseException()
        finally:
            if timer is not None and timer.active():
                timer.cancel()

    def _stop(self) -> None:
        # The reactor ends all connections: the milter has not failed.
        self._over = self._stopped = True

    def _expire(self, workers: list[Deferred[None]]) -> None:
        self._over = self._expired = True
        for worker in workers:
            worker.cancel()

    async def _work(self) -> None:
        line = _Line(self._session, self._reactor)
        try:
            while not self._over and (result := self._next()) is not None:
                if not result.error:
                    await self._one(line, result)
                if self._stopped:
                    return
                self._done(result)
                if not self._reuse or result.ends_session:
                    await line.close()
            await line.close()
        except CancelledError:
            # The time was over while the milter let QUIT wait: all is done.
            pass
        finally:
            line.drop()

    def _next(self) -> Result | None:
        with interruptible():
            return next(self._jobs, None)

    async def _one(self, line: _Line, result: Result) -> None:
        """
        Send one message and note what comes of it.
        """
        begun = time.perf_counter()
        try:
            await line.play(result)
            self._reached = True
        except _Unreachable as error:
            result.error = str(error)
            # Whoever was not there for the first message is not waited for by the thousandth.
            self._over = self._over or not self._reached
        except ValueNotSendable as error:
            result.error, result.unusable = str(error), True
        except (PeerError, CancelledError, ConnectingCancelledError) as error:
            result.error = str(error)
            if self._expired:
                result.error = f"not done when {self._max_time:g} s were over"
        if result.error:
            line.drop()
        result.seconds = time.perf_counter() - begun


def _jobs(sources: Iterable[Source], session: Session, repeat: int) -> Iterator[Result]:
    number = 0
    for source in sources:
        if source.error:
            number += 1
            yield Result(number, source.name, error=source.error, unusable=True)
            continue
        sender = source.sender() if session.sender is None else session.sender
        recipients = session.recipients or tuple(source.recipients())
        message_id = source.field(b"message-id").strip()
        for _ in range(repeat):
            number += 1
            yield Result(number, source.name, source.data, sender, recipients, message_id)
