"""
Twisted's ESMTP server, asking milters at each step.

`MilterESMTP` is `twisted.mail.smtp.ESMTP`, and its deliveries are what they are there: what it does
more it does in the methods that ESMTP has for that. Only the content goes another way. It is kept
until the milters have decided, and then the delivery's message objects are made, for the
envelope and with the content as edited.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.protocol import connectionDone
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.mail.imap4 import IllegalClientResponse
from twisted.mail.smtp import quoteaddr
from twisted.python.failure import Failure

from yatxmilter import constants as c
from yatxmilter._escaping import printable
from yatxmilter._mail.controls import has_controls, is_clean_text
from yatxmilter._mail.delivery import Delivery
from yatxmilter._wire.actions import Response
from yatxmilter._wire.payloads import from_text, to_text
from yatxmilter.smtp._content import Content
from yatxmilter.smtp._envelope import (
    AddressError,
    Envelope,
    Mailbox,
    bracketed,
    parse_path,
)
from yatxmilter.smtp._filtering import refusal
from yatxmilter.smtp._handover import HandOver
from yatxmilter.smtp._milters import SMTPMilters
from yatxmilter.smtp._pacing import AUTH, COMMAND, DATA, PacedESMTP, SMTPBadSender, SMTPServerError
from yatxmilter.smtp._values import AUTH_NAMES, auth_values, connect_values, tls_values

__all__ = ["MilterESMTP"]

_log = Logger()

# RFC 1870.
_SIZE_ARGUMENT: Final = re.compile(rb"SIZE(?:=(.*))?", re.IGNORECASE | re.DOTALL)
_SIZE_VALUE: Final = re.compile(rb"[0-9]{1,20}")


class _Refused(SMTPServerError):  # type: ignore[misc]  # Twisted has no types for it
    """
    A refusal by milters; its text is already where `MilterESMTP.sendCode` finds it.
    """

    def __init__(self) -> None:
        super().__init__(550, "refused by a milter")


class MilterESMTP(PacedESMTP):
    """
    An ESMTP server that asks milters.

    :cvar milters: Which, and how; whoever builds the protocol sets it, as ``delivery`` and
        ``portal`` are set.
    :ivar queue_id: What milters know the message by that is open.
    """

    milters: SMTPMilters | None = None
    queue_id = ""
    #: Called when the client has gone; whoever counts connections sets it.
    gone: Callable[[], object] = staticmethod(lambda: None)

    def connectionMade(self) -> None:
        """
        Tell the milters of the connection, and greet the client when they have answered.
        """
        self._milters = SMTPMilters(()) if self.milters is None else self.milters
        self._max_errors = self._milters.max_errors
        self._clock = self._milters.clock
        self._filtering = self._milters.filtering(self.transport)
        self._content: Content | None = None
        self._mechanism = b""
        self._asking = False
        self._credentials: Any = None
        self._warned = False
        # What is asked while nobody has logged in.
        self._for_strangers = self.delivery, self.deliveryFactory
        if self._milters.enter(self):
            self._do(self._greet(super().connectionMade))
        else:
            self.give_up()

    async def _greet(self, greet: Any) -> None:
        transport = self.transport
        name = await self._checked_client_name()
        self._filtering.values.update(
            connect_values(transport, to_text(self.host), name, self._milters.daemon_name)
        )
        response = await self._filtering.connect(name, transport.getPeer())
        self._note(response)
        if self._instead is not None and not response.closes:
            # As Postfix does: each MAIL is told what for.
            refused = response.code == c.SMFIS_REJECT
            self._instead = (
                b"554 %s ESMTP not accepting connections" % self.host if refused else None
            )
        if self._leaving:
            self.give_up()
        else:
            self._unhurried(greet)

    async def _checked_client_name(self) -> str:
        try:
            name: Any = await maybeDeferred(self.clientName)
        except BaseException:
            if self._gone:
                raise
            _log.failure("A client could not be named")
            return "unknown"
        # Whoever has an address has its name in the DNS, with any octets in it.
        clean = isinstance(name, str) and name and is_clean_text(from_text(name))
        return name if clean else "unknown"

    def clientName(self) -> str | Deferred[str]:
        """
        Name the client, for the milters: a host name that was looked up and checked, or "unknown".

        :return: A name, or a Deferred of one. This one looks nothing up.
        """
        return "unknown"

    def _note(self, response: Response) -> bool:
        """
        Have a refusal told to the client in the place of Twisted's next reply.

        :return: Whether it is one.
        """
        self._instead = refusal(response)
        self._hangs_up = self._instead is not None and response.closes
        return self._instead is not None

    def _check(self, response: Response) -> None:
        if self._note(response):
            raise _Refused

    # ---- commands

    def do_HELO(self, rest: bytes) -> None:
        """
        Pass HELO on.
        """
        self._do(self._helo_command(rest, extended=False))

    def do_EHLO(self, rest: bytes) -> None:
        """
        Pass EHLO on.
        """
        self._do(self._helo_command(rest, extended=True))

    async def _helo_command(self, rest: bytes, *, extended: bool) -> None:
        self._filtering.give_up()
        self._filtering.values.update(tls_values(self.transport))
        name = b" ".join(rest.split())
        response = await self._filtering.helo(to_text(name))
        # Any other refusal is told at MAIL.
        if not (self._note(response) and response.closes):
            self._instead = None
        # Twisted's own methods take each client for one that has an IP address.
        client = from_text(self._filtering.values["client_addr"])
        self._helo = name, client
        self._from = None
        self._to = []
        reply = b"%s Hello %s, nice to meet you" % (self.host, client)
        self.sendCode(250, reply + b"\n" + self.listExtensions() if extended else reply)

    def extensions(self) -> Any:
        """
        Tell which extensions there are, SIZE with the most that a message may have.
        """
        most = self._milters.announced_size
        return {b"SIZE": None if most is None else [b"%d" % most], **super().extensions()}

    def ext_STARTTLS(self, rest: bytes) -> None:
        """
        Begin anew with TLS: what came in the clear behind the command is dropped, not obeyed.
        """
        before = self.startedTLS
        super().ext_STARTTLS(rest)
        if self.startedTLS and not before:
            self._lines.clear()
            self._forget()

    def _forget(self) -> None:
        # Whoever is between the client and this server may have said it.
        self._filtering.give_up()
        self._from = None
        self._to = []
        self._helo = b"", self._helo[1]
        if self.authenticated:
            self.authenticated = False
            self._credentials = None
            for name in AUTH_NAMES:
                self._filtering.values.pop(name, None)
            self.delivery, self.deliveryFactory = self._for_strangers
            log_out, self._onLogout = self._onLogout, None
            log_out()

    def ext_AUTH(self, rest: bytes) -> None:
        """
        Note the mechanism, for the macro.
        """
        if not rest:
            self.sendCode(501, b"Syntax error in parameters or arguments")
            return
        if self._from is not None:
            self.sendCode(503, b"5.5.1 A message is open")
            return
        if not self.authenticated:
            self._mechanism = rest.split()[0]
        super().ext_AUTH(rest)

    def state_AUTH(self, response: bytes | None) -> None:
        """
        Note who it is, for the macro.
        """
        self._credentials = self.challenger
        try:
            if response is not None and has_controls(response):
                raise IllegalClientResponse(response)
            super().state_AUTH(response)
        except BaseException as error:
            self._end_exchange()
            if not isinstance(error, IllegalClientResponse):
                raise
            self.sendCode(501, b"Syntax error in parameters or arguments")

    def _end_exchange(self) -> None:
        self.mode = COMMAND
        self.challenger = None

    def do_MAIL(self, rest: bytes) -> None:
        """
        Begin a message.
        """
        match = None if self._from else self.mail_re.match(rest)
        if match is not None:
            fault = self._path_fault(match, b"7 Bad sender") or self._size_fault(match)
            if fault is not None:
                self.sendCode(*fault)
                return
        self._arguments = _arguments(match)
        self._warned = False
        super().do_MAIL(rest)

    def _path_fault(self, match: Any, what: bytes) -> tuple[int, bytes] | None:
        try:
            parse_path(match["path"], self.host)
        except AddressError:
            # Not Twisted's text, which has all of it, twice.
            return 501, b"5.1.%s address syntax" % what
        return None

    def _size_fault(self, match: Any) -> tuple[int, bytes] | None:
        most = self._milters.announced_size
        for argument in (match["opts"] or b"").split():
            given = _SIZE_ARGUMENT.fullmatch(argument)
            if given is None:
                continue
            if not _SIZE_VALUE.fullmatch(given[1] or b""):
                return 501, b"5.5.4 Bad message size syntax"
            if most is not None and int(given[1]) > most:
                return 552, b"5.3.4 Message size exceeds fixed limit"
        return None

    def validateFrom(self, helo: Any, origin: Any) -> Deferred[Any]:
        """
        Ask the delivery about the sender, then the milters.
        """
        if self._asking:
            return maybeDeferred(super().validateFrom, helo, origin)
        return self._run(self._validate_from(helo, origin))

    async def _ask_about_sender(self, helo: Any, origin: Any) -> Any:
        # Twisted logs an anonymous client in and then calls `validateFrom` once more.
        self._asking = True
        try:
            return await maybeDeferred(super().validateFrom, helo, origin)
        finally:
            self._asking = False

    async def _validate_from(self, helo: Any, origin: Any) -> Any:
        self.queue_id = self._milters.next_queue_id()
        filtering = self._filtering
        filtering.values["i"] = self.queue_id
        if self.authenticated:
            filtering.values.update(auth_values(self._mechanism, self._credentials))
        result = await self._ask_about_sender(helo, origin)
        response = await filtering.mail(bracketed(origin), *self._arguments)
        if self._note(response):
            filtering.give_up()
            raise _Refused
        return result

    def do_RCPT(self, rest: bytes) -> None:
        """
        Add a recipient.
        """
        match = self.rcpt_re.match(rest) if self._from else None
        if match is not None:
            fault = self._path_fault(match, b"3 Bad recipient") or self._count_fault()
            if fault is not None:
                # One too many is no guess.
                self._errors -= fault[0] == 452
                self.sendCode(*fault)
                return
        self._arguments = _arguments(match)
        super().do_RCPT(rest)

    def _count_fault(self) -> tuple[int, bytes] | None:
        if len(self._to) < self._milters.max_recipients:
            return None
        if not self._warned:
            self._warned = True
            self._warn(f"has more than {self._milters.max_recipients} recipients")
        # The client sends those in a message of their own.
        return 452, b"4.5.3 Too many recipients"

    def _warn(self, what: str) -> None:
        _log.warn(
            "Message {queue_id} of {client} {what}",
            queue_id=self.queue_id,
            client=self._filtering.values["_"],
            what=what,
        )

    def _ebFromValidate(self, failure: Failure) -> None:
        """
        Answer what the delivery, or the milters, have against a sender.
        """
        if failure.check(SMTPBadSender):
            error: Any = failure.value
            # Without the address where it cannot be written.
            with suppress(Exception):
                text = error.resp if isinstance(error.resp, str) else to_text(error.resp)
                where = f"Cannot receive from specified address {to_text(quoteaddr(error.addr))}: "
                failure = Failure(SMTPServerError(error.code, where + text))
        self._broken(failure)

    def _ebToValidate(self, failure: Failure) -> None:
        """
        Answer what the delivery, or the milters, have against a recipient.
        """
        self._broken(failure)

    def validateTo(self, user: Any) -> Deferred[Any]:
        """
        Ask the delivery about a recipient, then the milters.
        """
        return self._run(self._validate_to(user))

    async def _validate_to(self, user: Any) -> Any:
        argv = bracketed(user.dest), *self._arguments
        try:
            result = await maybeDeferred(super().validateTo, user)
        except SMTPServerError as error:
            await self._filtering.rcpt_refused(str(error.resp), *argv)
            raise
        self._check(await self._filtering.rcpt(*argv))
        return result

    def do_RSET(self, rest: bytes) -> None:
        """
        Give the message up.
        """
        self._filtering.give_up()
        super().do_RSET(rest)

    def do_UNKNOWN(self, rest: bytes) -> None:
        """
        Ask the milters about a command that this server does not know.
        """
        self._do(self._unknown(super().do_UNKNOWN, rest))

    async def _unknown(self, command: Any, rest: bytes) -> None:
        response = await self._filtering.unknown(to_text(self._line))
        self._note(response)
        if response.text is None and response.code == c.SMFIS_REJECT:
            # That is what an unknown command gets anyway.
            self._instead = None
        command(rest)

    # ---- the content

    def do_DATA(self, rest: bytes) -> None:
        """
        Begin the content.
        """
        if self._from is None or not self._to:
            super().do_DATA(rest)
        else:
            self._do(self._begin_content())

    def _broken(self, failure: Failure) -> None:
        if self._content is not None and self.mode == DATA:
            # Some of it may be missing.
            self._content.refuse(b"451 4.3.0 Requested action aborted: local error in processing")
        super()._broken(failure)

    async def _begin_content(self) -> None:
        self._check(await self._filtering.data())
        self._envelope = Envelope(
            self._helo, self._from, [Mailbox(user, make) for user, make in self._to]
        )
        self._from = None
        self._to = []
        milters = self._milters
        self._content = Content(milters.spool_memory, milters.max_size, milters.max_header_bytes)
        self.mode = DATA
        self.sendCode(354, b"Continue")

    def lineLengthExceeded(self, line: bytes) -> None:
        """
        Refuse a command that is too long; a message with such a line is refused at its end.
        """
        if self._content is not None and self.mode == DATA:
            self._content.refuse(b"500 5.5.2 Line too long")
            return
        if self.mode == AUTH:
            self._end_exchange()
        self.sendCode(500, b"Line too long")

    def state_DATA(self, line: bytes) -> None:
        """
        Take a line of the content; at the end ask the milters, and hand the message over.
        """
        assert self._content is not None
        if line == b".":
            self.mode = COMMAND
            self._do(self._finish(self._content))
        else:
            self._content.add_line(line.removeprefix(b"."))

    async def _finish(self, content: Content) -> None:
        try:
            self._check_content(content)
            end = await self._filtering.content(content)
            self._check(end.response)
            results: list[Deferred[Any]] = []
            if end.response.code != c.SMFIS_DISCARD:
                delivery = Delivery(end.edits)
                edits = content.edit(delivery, leading_space=self._filtering.leading_space)
                for _ in edits:
                    await deferLater(self._milters.clock, 0)
                self._check_content(content)
                results = await self._hand_over(content, delivery)
        finally:
            self._content = None
            content.close()
        # Not part of this coroutine: what has been handed over is not taken back.
        handled: Deferred[Any] = DeferredList(results, consumeErrors=True)
        handled.addCallback(self._messageHandled).addErrback(self._broken)

    def _check_content(self, content: Content) -> None:
        if content.fault is not None:
            self._filtering.give_up()
            self._instead = content.fault
            self._warn(f"is refused: {to_text(content.fault)}")
            raise _Refused

    async def _hand_over(self, content: Content, delivery: Delivery) -> list[Deferred[Any]]:
        before = self._envelope
        envelope = before.edited(delivery, self)
        hand_over = HandOver(envelope, self.receivedHeader, self._milters.clock)
        try:
            if delivery.held is not None:
                self._quarantine(hand_over, envelope, delivery.held)
            else:
                if envelope.origin is not before.origin:
                    await self._ask_about_sender(envelope.helo, envelope.origin)
                for user, known in envelope.mailboxes:
                    make: Any = known or await maybeDeferred(super().validateTo, user)
                    hand_over.add(make(), [user])
            return await hand_over.give(content)
        finally:
            hand_over.give_up()

    def _quarantine(self, hand_over: HandOver, envelope: Envelope, reason: str) -> None:
        if self._milters.quarantine is None:
            _log.error(
                "Milters want message {queue_id} to be held, but SMTPMilters has no quarantine:"
                " {reason}",
                queue_id=self.queue_id,
                reason=printable(reason),
            )
            raise SMTPServerError(451, "4.7.1 Service unavailable - try again later")
        users = [user for user, _ in envelope.mailboxes]
        hand_over.add(self._milters.quarantine(reason, envelope.origin, users), users)

    def _messageHandled(self, resultList: Any) -> None:
        """
        Answer what the message objects say: their own code and text where they give one.
        """
        for _, result in resultList:
            if isinstance(result, Failure) and result.check(SMTPServerError):
                self._refuse(result)
                return
        self._errors = 0
        super()._messageHandled(resultList)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        Give up what is open, and tell the milters.
        """
        try:
            # What is being done looks at the content.
            super().connectionLost(reason)
            if self._content is not None:
                self._content.close()
            self._filtering.close()
        finally:
            # Whatever else has failed, it is not counted for ever.
            self._milters.leave(self)
            self.gone()


def _arguments(match: Any) -> list[str]:
    # Not as text, where there are more blanks.
    return [to_text(argument) for argument in (match["opts"] or b"").split()] if match else []
