"""
An MTA in memory: it has milters, SMTP clients that tests play, and a clock that tests set.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from email import policy
from email.message import EmailMessage
from pathlib import Path as FilePath
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.internet.task import Clock

from yatxmilter.client import MilterClient
from yatxmilter.client._in_memory import InMemoryConnection, connect_in_memory
from yatxmilter.client._profiles import find_flavour
from yatxmilter.defaults import MilterFactory
from yatxmilter.protocol import MilterProtocolFactory
from yatxmilter.testing._answers import Sent
from yatxmilter.testing._recording import Notebook, RecordingFactory
from yatxmilter.testing._replaying import Replayed, replay
from yatxmilter.testing._session import Session
from yatxmilter.testing._threads import Threads
from yatxmilter.testing._values import Call, Path, bracketed
from yatxmilter.testing._watching import ErrorWatch, MilterTestFailure

__all__ = ["InMemoryMTA"]

#: The SMTP client of sessions that say nothing else.
CLIENT = IPv4Address("TCP", "192.0.2.25", 40025)


def _known(flavour: str, hostname: str, address: IAddress | None) -> dict[str, str]:
    host = getattr(address, "host", "unknown")
    return {
        "j": "mta.example.com",
        "v": "Postfix 3.7.11" if flavour == "postfix" else "8.17.1.9",
        "_": f"{hostname} [{host}]",
        "daemon_name": "mta.example.com" if flavour == "postfix" else "MTA",
        "daemon_addr": "192.0.2.1",
        "daemon_port": "25",
        "if_name": "mta.example.com",
        "if_addr": "192.0.2.1",
        "client_addr": str(host),
        "client_port": str(getattr(address, "port", 0)),
        "client_name": hostname,
        "client_ptr": hostname,
        "client_resolve": "OK",
    }


class InMemoryMTA:
    """
    An MTA that asks milters, without sockets and without a reactor.

    Milter factories that have a ``start()`` are started at once, those that have a ``stop()`` are
    stopped by `finish`. While one starts, sessions wait.

    :param milters: A `Milter` class, a milter factory, or several of both.
    :param flavour: Whose habits it has: ``"postfix"`` or ``"sendmail"``.
    :param clock: What keeps time, by default one of its own.
    :param macros: What is known beside, or instead of, what is known to every session.
    :param options: Those of `MilterProtocolFactory`, such as ``merge``.
    :raises ValueError: for another flavour, or an option out of range.
    :raises TypeError: for what makes no milters.
    :raises StartError: when a milter factory fails to start at once.
    :ivar clock: Advance time with `advance`.
    """

    def __init__(
        self,
        milters: Any,
        *,
        flavour: str = "postfix",
        clock: Clock | None = None,
        macros: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        self.flavour = find_flavour(flavour)
        self.clock = clock or Clock()
        self._notebook = Notebook()
        self._macros = dict(macros or {})
        several = milters if isinstance(milters, Sequence) else [milters]
        factories = [MilterFactory(one) if isinstance(one, type) else one for one in several]
        for factory in factories:
            if not hasattr(factory, "build_milter"):
                raise TypeError(f"{factory!r} is neither a Milter class nor a milter factory")
        recording = [RecordingFactory(factory, self._notebook) for factory in factories]
        self.factory = MilterProtocolFactory(recording, reactor=self.clock, **options)
        self.factory.threads = self._threads = Threads(self.flush)
        self._links: list[InMemoryConnection] = []
        self._flushing = False
        self._due: list[Deferred[None]] = []
        self._sessions: list[Session] = []
        self._own: Session | None = None
        self._watch = ErrorWatch()
        self.factory.startFactory()
        self._watch.start()

    # ---- what happened

    @property
    def calls(self) -> list[Call]:
        """
        The callbacks that were called, in order.
        """
        self.flush()
        return list(self._notebook.calls)

    @property
    def waiting(self) -> list[Call]:
        """
        The callbacks whose Deferred has not fired.
        """
        self.flush()
        return list(self._notebook.waiting)

    @property
    def milters(self) -> list[Any]:
        """
        The milters that were built, in order.
        """
        return list(self._notebook.milters)

    # ---- time

    def advance(self, seconds: float) -> None:
        """
        Let time pass.
        """
        self.clock.advance(seconds)
        self.flush()

    def flush(self) -> None:
        """
        Carry what has been said.
        """
        if self._flushing:
            return
        self._flushing = True
        try:
            while self._threads.take():
                pass
            for link in self._links:
                link.flush()
        finally:
            self._flushing = False
        due, self._due = self._due, []
        for deferred in due:
            deferred.callback(None)

    def call_after_flush(self, deferred: Deferred[None]) -> None:
        """
        Fire a Deferred when all has been carried.
        """
        self._due.append(deferred)

    def settle(self, over: Callable[[], bool]) -> None:
        """
        Wait for the threads of callbacks that are `threaded`.

        :param over: Tells whether there is something left to wait for.
        """
        self.flush()
        while not over() and self._threads.take(wait=True):
            self.flush()

    def awaited(self) -> None:
        """
        Go on by itself when a thread is done, since somebody awaits an answer.
        """
        self._threads.awaited()

    # ---- SMTP clients

    def session(
        self,
        hostname: str = "client.example",
        address: IAddress | None = CLIENT,
        helo: str | None = "client.example",
        macros: Mapping[str, str] | None = None,
    ) -> Session:
        """
        Have an SMTP client connect; the session is the test's to end.

        :param address: ``None`` where it is unknown.
        :param helo: ``None`` for a client that does not greet.
        :param macros: What is known of this session.
        """
        if address is not None and not IAddress.providedBy(address):
            raise TypeError(f"address is {address!r}, expected one of twisted.internet.address")
        known = {**_known(self.flavour.name, hostname, address), **self._macros, **(macros or {})}
        client = MilterClient(clock=self.clock, timeout=None)
        link = connect_in_memory(client, self.factory)
        self._links.append(link)
        session = Session(self, client, link, self.flavour, known)
        self._sessions.append(session)
        session.greeting = session.open(hostname, address, helo)
        return session

    def send(
        self,
        message: EmailMessage | bytes,
        sender: str = "<sender@client.example>",
        recipients: Iterable[str] = ("<reader@example.com>",),
        *,
        sender_args: Sequence[str] = (),
        recipient_args: Mapping[str, Sequence[str]] | None = None,
        session: Session | None = None,
    ) -> Sent:
        """
        Send a message, in a session that all such messages share, or in one of the test's.

        :param message: A message, or a message file in either kind of line end.
        :param recipient_args: ESMTP arguments, by recipient.
        """
        if not isinstance(message, (EmailMessage, bytes)):
            raise TypeError(f"message is {message!r}, expected bytes or an EmailMessage")
        if isinstance(recipients, str):
            raise TypeError(f"recipients is {recipients!r}, expected a list of addresses")
        if session is None:
            if self._own is None or self._own.closed:
                self._own = self.session()
            session = self._own
        if isinstance(message, EmailMessage):
            message = message.as_bytes(policy=policy.SMTP)
        args = recipient_args or {}
        paths = [Path(bracketed(one), tuple(args.get(one, ()))) for one in recipients]
        if not paths:
            raise ValueError("a message needs a recipient")
        return session.send(message, Path(bracketed(sender), tuple(sender_args)), paths)

    def join(self, client: MilterClient) -> None:
        """
        Connect a client to the milters.
        """
        self._links.append(connect_in_memory(client, self.factory))

    def replay(
        self,
        file: str | FilePath,
        *,
        ignore: Iterable[str] = (),
        mask: Iterable[str | re.Pattern[str]] = (),
        negotiation: bool = True,
        partial: bool = False,
    ) -> Replayed:
        """
        Play recorded sessions to the milters, as ``yatxmilter replay`` does.

        Each command is sent as it was, with the macros that it had. A milter that waits for
        something that is not there at once makes it fail.

        :param file: What ``yatxmilter trace --record`` or ``serve --record-failures`` has kept.
        :param ignore: Header fields whose edits are not compared.
        :param mask: Regular expressions: what one matches is as good as what else it matches.
        :param negotiation: Whether what is negotiated is compared.
        :param partial: Play what there is of a record that was cut.
        :return: What the milters did differently.
        :raises ValueError: for what is no record.
        :raises OSError: for a file that cannot be read.
        :raises MilterTestFailure: when a milter does not answer.
        """
        return replay(self, file, ignore, mask, negotiation=negotiation, partial=partial)

    # ---- the end

    def expect_errors(self, pattern: str = "") -> AbstractContextManager[list[str]]:
        """
        Take errors of milters inside a ``with`` block for expected; there has to be one.

        :param pattern: A regular expression that is to be found in each.
        """
        return self._watch.expect(pattern)

    def finish(self) -> None:
        """
        End the test.

        :raises MilterTestFailure: when a milter had an error, has not answered, when a session was
            left open, or a milter factory has not stopped.
        """
        if self._own is not None:
            self._own.quit()
        self.settle(lambda: not self._notebook.waiting)
        waiting = [f"{call} has not been answered" for call in self.waiting]
        left = [session for session in self._sessions if not session.closed]
        for session in left:
            session.vanish()
        for link in self._links:
            link.mta.abortConnection()
        self.flush()
        stopped: list[object] = []
        self.factory.stop().addCallback(stopped.append)
        self._watch.stop()
        problems = [*self._watch.errors, *waiting]
        if not stopped:
            problems.append("a milter factory has not stopped: its stop() has no result yet")
        if left:
            problems.append(f"{len(left)} session(s) left open: end them with quit() or vanish()")
        if problems:
            raise MilterTestFailure("\n".join(problems))
