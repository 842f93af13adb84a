"""
Twisted's ESMTP server, one command at a time.

Twisted handles each line as it comes, even while it waits for the answer to the one before. Here a
line waits until the one before it is answered, so that a milter may take its time over a command
while the client has sent the next. While we take our time the client's clock stands
still, and when too much is waiting nothing more is read. A reply is known by its last line.

Whatever takes time is a coroutine, of which there is one at a time; it is cancelled when the client
goes, and nothing is sent from then on.

Nothing that ends a line, or moves a cursor, is part of a command. A client that reads no replies is
cut off, and so is one that does not let its connection be closed.

A client that makes errors only is sent away, as Postfix does: it guesses at passwords or addresses.

A server that is to leave does so as soon as no message is open: the client is told 421, unasked if
need be.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Final

import twisted.mail.smtp
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from yatxmilter._engine.addresses import describe_address
from yatxmilter._mail.bounds import MAX_UNREAD_REPLIES, SMTP_MAX_ERRORS
from yatxmilter._mail.controls import has_controls
from yatxmilter._wire.payloads import from_text
from yatxmilter.protocol._steady_clock import steady
from yatxmilter.smtp._lines import LineBuffer
from yatxmilter.smtp._unread import UnreadReplies

__all__ = ["AUTH", "COMMAND", "DATA", "PacedESMTP", "SMTPBadSender", "SMTPServerError"]

# Twisted has no types for these.
ESMTP: Any = twisted.mail.smtp.ESMTP
SMTPServerError: Any = twisted.mail.smtp.SMTPServerError
SMTPBadSender: Any = twisted.mail.smtp.SMTPBadSender
AUTH: Any = twisted.mail.smtp.AUTH
COMMAND: Any = twisted.mail.smtp.COMMAND
DATA: Any = twisted.mail.smtp.DATA

_log = Logger()

# So many bytes may wait for an answer before reading is paused.
_MOST_WAITING: Final = 256 * 1024

# After so many bytes of replies the reactor has a turn. It writes between its turns only, and a
# client that reads is not to be taken for one that does not.
_REPLIES_IN_A_ROW: Final = 16 * 1024


class PacedESMTP(ESMTP):  # type: ignore[misc]  # see above
    """
    An ESMTP server that handles one command at a time.
    """

    transport: Any
    _from: Any
    _to: list[Any]
    _helo: tuple[Any, Any]
    _onLogout: Any
    authenticated: bool
    delivery: Any
    deliveryFactory: Any

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._lines = LineBuffer(self.MAX_LENGTH)
        self._unread = UnreadReplies()
        self._clock: Any = None
        self._job: Deferred[Any] | None = None
        self._gone = self._ended = self._pumping = self._paused = self._hangs_up = False
        self._leaving = False
        # The reply that replaces Twisted's next one.
        self._instead: bytes | None = None
        # The client is owed a reply, the greeting at first.
        self._owed = True
        self._line = b""
        # How much has been replied in a row, and the call behind that.
        self._said = 0
        self._next_turn: Any = None
        # How many commands have failed since a message was taken.
        self._errors = 0
        self._max_errors: float = SMTP_MAX_ERRORS

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        Give up the command that is being answered.
        """
        self._gone = True
        self._unread.stopProducing()
        if self._next_turn is not None:
            self._next_turn.cancel()
            self._next_turn = None
        if self._job is not None:
            self._job.cancel()
        try:
            super().connectionLost(reason)
        except BaseException:
            _log.failure("The end of an SMTP connection could not be handled")

    def callLater(self, period: float, func: Callable[[], object]) -> Any:
        """
        Have something called later, for Twisted's time-outs.
        """
        if self._clock is None:
            from twisted.internet import reactor

            self._clock = steady(reactor)
        return self._clock.callLater(period, func)

    # ---- one thing at a time

    def _do(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """
        Run the coroutine that answers a command, before the next command.
        """
        self._run(coroutine).addErrback(self._broken)

    def _broken(self, failure: Failure) -> None:
        if failure.check(SMTPServerError) and self._owed:
            self._refuse(failure)
            return
        _log.failure("A command of an SMTP client could not be handled", failure)
        if self._owed:
            self.sendCode(451, b"Requested action aborted: local error in processing")

    def _refuse(self, failure: Failure) -> None:
        error: Any = failure.value
        code, text = error.code, error.resp
        if isinstance(text, str):
            text = from_text(text)
        if isinstance(code, int) and isinstance(text, bytes):
            self.sendCode(code, text)
        else:
            self._broken(Failure(TypeError(f"{error!r} has no code and text for a reply")))

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Deferred[Any]:
        """
        Run a coroutine; its result, or failure, comes only if the client is still there.
        """
        result: Deferred[Any] = Deferred()

        def done(outcome: Any) -> None:
            # The next command's may have begun.
            if self._job is job:
                self._job = None
            if not self._gone:
                result.callback(outcome)
            elif isinstance(outcome, Failure) and not outcome.check(CancelledError):
                _log.failure("A message could not be handled; its client is gone", outcome)

        self._job = job = Deferred.fromCoroutine(coroutine)
        job.addBoth(done)
        return result

    # ---- coming to an end

    def drain(self) -> None:
        """
        Come to an end as soon as no message is open; at once if there is none.
        """
        self._leaving = True
        self._leave()

    @property
    def _may_leave(self) -> bool:
        return self._leaving and not self._owed and self.mode != DATA and self._from is None

    def _leave(self) -> None:
        if self._may_leave:
            self.give_up()

    def give_up(self, reason: bytes = b"4.3.2 %s is shutting down") -> None:
        """
        Come to an end now: the client is told to come back later.
        """
        if self._gone or self._ended:
            return
        self._ended = True
        self._instead = None
        self.sendCode(421, reason % self.host)
        # Nothing more is sent, and what is being done is no longer of use.
        self._gone = True
        if self._job is not None:
            self._job.cancel()

    # ---- lines in and out

    def dataReceived(self, data: bytes) -> None:
        """
        Handle the commands that have come, each when those before it are answered.
        """
        if self._ended:
            return
        self._lines.feed(data)
        self._pump()
        busy = self._owed or self._next_turn is not None
        if busy and len(self._lines) > _MOST_WAITING and not self._paused:
            self._paused = True
            self.transport.pauseProducing()

    def _pump(self) -> None:
        """
        Handle the lines that have come, until one has to be answered first, or it is another
        turn's.
        """
        if self._pumping or self._next_turn is not None:
            return
        self._pumping = True
        while not (self._owed or self._ended or self._gone or self._may_leave):
            if self._said > _REPLIES_IN_A_ROW:
                self._next_turn = self.callLater(0, self._go_on)
                break
            line = self._lines.next_line()
            if line is None:
                break
            # Within a message only its end is answered.
            self._owed = self.mode != DATA or line == b"."
            self._line = line
            try:
                if self._errors >= self._max_errors and self.mode != DATA:
                    _log.warn(
                        "The SMTP client at {client} makes errors only; closing the connection",
                        client=describe_address(self.transport.getPeer()),
                    )
                    self.give_up(b"4.7.0 %s Too many errors")
                elif self._lines.too_long:
                    self.lineLengthExceeded(line)
                else:
                    self.lineReceived(line)
            except BaseException:
                # Whatever it is, it is not the other connections' matter, and is answered.
                self._broken(Failure())
        self._pumping = False
        if self._owed:
            # The time is ours, not the client's.
            self.setTimeout(None)
        elif self._paused and self._next_turn is None:
            self._paused = False
            self.transport.resumeProducing()

    def _go_on(self) -> None:
        self._next_turn = None
        self._said = 0
        self._pump()

    def _unhurried(self, reply: Callable[[], None]) -> None:
        """
        Reply by a method that does more behind the reply, before the next command comes.
        """
        self._pumping = True
        reply()
        self._pumping = False
        self._pump()

    def sendCode(self, code: int, message: bytes = b"") -> None:
        """
        Reply to the client, with what a milter has said where it has said something.
        """
        self._ended = self._ended or self._hangs_up
        reply, self._instead = self._instead, None
        if (code if reply is None else int(reply[:3])) >= 400:
            self._errors += 1
        if reply is None:
            super().sendCode(code, message)
        else:
            for line in reply.splitlines():
                self.sendLine(line)
        if self._ended:
            self.transport.loseConnection()

    def sendLine(self, line: bytes) -> None:
        """
        Send a line; the last one of a reply lets the next command come.
        """
        if self._gone:
            return
        self._unread.before_write(self.transport)
        super().sendLine(line)
        self._unread.after_write(len(line) + 2, self.callLater)
        self._said += len(line) + 2
        if self._unread.size > MAX_UNREAD_REPLIES:
            _log.warn(
                "The SMTP client at {client} does not read what it is told; closing the connection",
                client=describe_address(self.transport.getPeer()),
            )
            self._ended = self._gone = True
            self.transport.abortConnection()
            return
        if line[3:4] != b"-":
            self._owed = False
            self.setTimeout(self.timeout)
            if self._may_leave:
                # Whoever has replied may not be done.
                self.callLater(0, self._leave)
            self._pump()

    def state_COMMAND(self, line: bytes) -> None:
        """
        Handle a command, unless it has control characters in it.
        """
        # A tab stands for a blank between words; where it stands in one is seen later.
        if has_controls(line.replace(b"\t", b" ")):
            self.sendSyntaxError()
        else:
            super().state_COMMAND(line)

    def lookupMethod(self, command: bytes) -> Any:
        """
        Find what handles a command; names that are not ASCII have nothing.
        """
        return super().lookupMethod(command) if command.isascii() else None

    def do_NOOP(self, rest: bytes) -> None:
        """
        Do nothing, which Twisted's server cannot.
        """
        self.sendCode(250, b"Ok")

    def do_VRFY(self, rest: bytes) -> None:
        """
        Say nothing of an address, as RFC 5321 wants it to be said.
        """
        self.sendCode(252, b"Cannot verify, send it and see")

    def do_QUIT(self, rest: bytes) -> None:
        """
        End the connection; what the client has sent behind it is not looked at.
        """
        self._ended = True
        super().do_QUIT(rest)

    def timeoutConnection(self) -> None:
        """
        End the connection of a client that is silent, or does not let it be closed.
        """
        if self._ended:
            self.transport.abortConnection()
            return
        self._ended = True
        super().timeoutConnection()
