"""
A milter as a service of ``twisted.application``, and as a program: it listens, and when it is
stopped it drains.
"""

from __future__ import annotations

from typing import Any

from twisted.application.internet import StreamServerEndpointService
from twisted.internet.base import ReactorBase
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.internet.task import react
from twisted.logger import Logger
from twisted.python.failure import Failure

from yatxmilter._options import seconds_option
from yatxmilter.errors import StartError
from yatxmilter.protocol import MilterProtocolFactory
from yatxmilter.protocol._endpoints import refusing_endpoint, server_endpoint
from yatxmilter.protocol._refusals import cannot_listen
from yatxmilter.service._ending import GRACE, LONGEST, end_within
from yatxmilter.service._logs import begin_usual_log
from yatxmilter.service._reactors import ReactorName, install_reactor

__all__ = ["MilterService", "run_milters"]

_log = Logger()


class MilterService(StreamServerEndpointService):
    """
    Listen on an endpoint while the service runs; finish the messages in progress when it stops.

    :param endpoint: Where to listen, such as ``serverFromString(reactor, "unix:/run/x.sock")``.
    :param factory: What builds the connections.
    :param drain_timeout: Seconds that messages in progress may take to come to an end before they
        are answered SMFIS_TEMPFAIL; ``None`` for any time.
    :raises TypeError: if the factory is not one, or a time-out is not a number.
    :raises ValueError: if a time-out is not a time.
    """

    def __init__(
        self,
        endpoint: IStreamServerEndpoint,
        factory: MilterProtocolFactory,
        *,
        drain_timeout: float | None = 30,
    ) -> None:
        if not isinstance(factory, MilterProtocolFactory):
            raise TypeError(f"factory is {factory!r}, expected a MilterProtocolFactory")
        StreamServerEndpointService.__init__(self, refusing_endpoint(endpoint), factory)
        self.drain_timeout = seconds_option("drain_timeout", drain_timeout)

    def startService(self) -> None:
        """
        Start the milter factories, and listen.

        Connections that come before the factories have started wait for it. When one does not
        start, which is logged, the port is closed.
        """
        StreamServerEndpointService.startService(self)
        waiting: Any = self._waitingForPort
        waiting.addCallback(self._listening)

    def _listening(self, port: Any) -> Any:
        if port is not None:
            self.factory.start().addErrback(self._not_started)
        return port

    def _not_started(self, failure: Failure) -> None:
        if self.running and not failure.check(CancelledError):
            StreamServerEndpointService.stopService(self)

    def stopService(self) -> Deferred[Any]:
        """
        Stop listening, and drain.

        :return: A Deferred that fires when the port is closed and all connections are gone.
        """
        closed: Deferred[Any] = maybeDeferred(StreamServerEndpointService.stopService, self)
        drained: Deferred[Any] = self.factory.drain(self.drain_timeout)

        def both(result: object) -> Deferred[Any]:
            # A port that failed to close is reported, but not before the connections are gone.
            return drained.addCallback(lambda _: result)

        return closed.addBoth(both)


def run_milters(
    spec: str,
    factory: MilterProtocolFactory,
    *,
    drain_timeout: float | None = 30,
    reactor: ReactorName | None = None,
) -> None:
    """
    Serve until the process is told to end, by SIGTERM or Ctrl-C, and drain: libmilter's main loop.

    It says where it listens, on standard error unless the program has begun a log of its own. It
    runs the reactor, and ends the process behind it, whatever threads the milters have left at
    work. Messages are logged, as with ``log_messages=True``, unless the factory says otherwise.

    :param spec: Where to listen: ``inet:9900@127.0.0.1``, ``unix:/run/filter.sock``, or an endpoint
        string of Twisted.
    :param factory: What builds the connections.
    :param drain_timeout: As for `MilterService`.
    :param reactor: The reactor to run: ``"asyncio"``, for callbacks that await what asyncio awaits,
        ``"epoll"``, ``"poll"`` or ``"select"``; by default the one that is installed, or Twisted's
        choice.
    :raises TypeError: if the factory is not one, or a time-out is not a number.
    :raises ValueError: if the address is not one, a time-out is not a time, or there is no such
        reactor.
    :raises RuntimeError: when another reactor has been installed before.
    :raises SystemExit: always: with 0, or saying why it could not listen, or which milter could not
        start.
    """
    install_reactor(reactor)
    from twisted.internet import reactor as installed

    endpoint = server_endpoint(installed, spec)
    service = MilterService(endpoint, factory, drain_timeout=drain_timeout)
    begin_usual_log()
    factory.begin_message_log()
    react(_serve, (spec, service))


async def _serve(reactor: Any, spec: str, service: MilterService) -> None:
    ports: list[Any] = []

    async def end() -> None:
        if ports:
            _log.info(
                "Draining: {count} connections come to their end",
                count=len(service.factory.connections),
            )
        for port in ports:
            await maybeDeferred(port.stopListening)
        await service.factory.drain(service.drain_timeout)
        if ports:
            _log.info("Stopped")
        if isinstance(reactor, ReactorBase):
            end_within(LONGEST)

    if isinstance(reactor, ReactorBase):
        reactor.addSystemEventTrigger("during", "shutdown", end_within, GRACE)
    reactor.addSystemEventTrigger("before", "shutdown", lambda: Deferred.fromCoroutine(end()))
    try:
        await service.factory.start()
        ports.append(await service.endpoint.listen(service.factory))
        _log.info("Ready, listening on {where}", where=spec)
    except StartError as error:
        raise SystemExit(str(error)) from None
    except (CannotListenError, OSError) as error:
        raise SystemExit(cannot_listen(spec, error)) from None
    except CancelledError:
        # It was told to end before it had begun.
        pass
    await Deferred()
