"""
One SMTP session at the MTA: what its client does, step by step or by whole messages.

A step is one SMTP command, or one part of the message's text. Which of them the milters are asked
about, and what the client is told, goes by the MTA's habits (`yatxmilter.client._profiles`).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final

from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IAddress

from yatxmilter import constants as c
from yatxmilter._mail.rfc5322 import Field, split_mail, wire_body
from yatxmilter._wire.actions import NOT_AWAITED, Agreement, Response
from yatxmilter._wire.payloads import to_text
from yatxmilter.client import MilterClient
from yatxmilter.client._in_memory import InMemoryConnection
from yatxmilter.client._profiles import Flavour, Reply
from yatxmilter.testing._answers import Answer, Result, Sent, Stage, Told, Transaction
from yatxmilter.testing._content import Content, make_field
from yatxmilter.testing._lane import Lane
from yatxmilter.testing._values import Path, bracketed
from yatxmilter.testing._watching import MilterTestFailure

__all__ = ["Session"]

_REFUSES: Final = (c.SMFIS_REJECT, c.SMFIS_TEMPFAIL)
_OK: Final = Reply(250, ("2.0.0 Ok",))
_SEQUENCE: Final = Reply(503, ("5.5.1 Bad sequence of commands",))


class Session:
    """
    One SMTP client of the MTA, and the MTA's connection to its milters.

    Made by `InMemoryMTA.session`. At the end of a ``with`` block it says QUIT.

    :ivar greeting: The answer to the client's connection and its HELO.
    """

    greeting: Answer

    def __init__(
        self,
        mta: Stage,
        client: MilterClient,
        link: InMemoryConnection,
        flavour: Flavour,
        values: Mapping[str, str],
    ) -> None:
        self._mta = mta
        self._client = client
        self._link = link
        self._flavour = flavour
        self._values = {name.strip("{}"): value for name, value in values.items()}
        self._lane = Lane(client, flavour, self._values)
        self._lock = DeferredLock()
        self._off = False
        self._standing: Told | None = None
        self._message: Transaction | None = None
        self._text: Content | None = None
        self._headed = False
        self._messages = 0
        self.closed = False

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exception: object) -> None:
        self.quit()

    @property
    def agreement(self) -> Agreement:
        """
        What was negotiated.

        :raises MilterTestFailure: when it was not.
        """
        self._mta.flush()
        if self._client.agreement is None:
            raise MilterTestFailure("negotiation is not done, or has failed")
        return self._client.agreement

    # ---- asking the milters

    def _run(self, step: str, coroutine: Callable[[], Coroutine[Any, Any, Any]]) -> Answer:
        return Answer(self._mta, step, self._queue(coroutine))

    def _queue(self, coroutine: Callable[[], Coroutine[Any, Any, Any]]) -> Deferred[Any]:
        result = self._lock.run(lambda: Deferred.fromCoroutine(coroutine()))
        self._mta.flush()
        return result

    def _good(self, stage: str, **values: str) -> Reply:
        reply = self._flavour.accepted[stage]
        known = {"i": self._values.get("i", ""), **values}
        return Reply(reply.code, tuple(line.format(**known) for line in reply.lines))

    # ---- the connection

    def open(self, hostname: str, address: IAddress | None, helo: str | None) -> Answer:
        """
        Negotiate, and have the client connect and greet.
        """

        async def opening() -> Told:
            offer = self._flavour.offer
            await self._lane.negotiate(offer.version, offer.actions, offer.steps)
            response = await self._lane.connect(hostname, address)
            result = self._stand("connect", response)
            if helo is not None and not self._off:
                result = await self._helo(helo)
            return result

        return self._run("the connection", opening)

    def helo(self, name: str) -> Answer:
        """
        Say HELO, in a session that was opened with ``helo=None``, or once more.
        """
        return self._run("HELO", lambda: self._helo(name))

    async def _helo(self, name: str) -> Told:
        if self._standing is not None:
            return self._standing
        response = NOT_AWAITED if self._off else await self._lane.helo(name)
        return self._stand("helo", response)

    def _stand(self, stage: str, response: Response) -> Told:
        result = (Reply(220 if stage == "connect" else 250, ("ok",)), response, stage)
        if response.code in _REFUSES:
            self._standing = (self._flavour.refusal(stage, response), response, stage)
            return self._standing
        self._off = self._off or response.code == c.SMFIS_ACCEPT
        return result

    def unknown(self, line: str) -> Answer:
        """
        Say something that is no SMTP command.
        """

        async def saying() -> Told:
            text = line if self._flavour.whole_unknown else line.split(" ")[0]
            asked = not self._off and self._standing is None
            response = await self._lane.unknown(text) if asked else NOT_AWAITED
            if response.code in _REFUSES:
                return self._flavour.refusal("unknown", response), response, "unknown"
            return self._good("unknown", line=line), response, "unknown"

        return self._run(repr(line), saying)

    def rset(self) -> Answer:
        """
        Say RSET: the message, if there is one, is given up.
        """

        async def resetting() -> Told:
            await self._over()
            return _OK, NOT_AWAITED, "rset"

        return self._run("RSET", resetting)

    async def _over(self) -> None:
        open_message, self._message = self._message, None
        self._text = None
        self._values.pop("i", None)
        if open_message is not None or self._flavour.aborts_finished:
            await self._lane.abort()

    def quit(self) -> None:
        """
        Say QUIT.
        """
        if not self.closed:
            self.closed = True
            self._message = self._text = None
            self._client.quit()
            self._mta.flush()

    def vanish(self) -> None:
        """
        Break the MTA's connection to its milters, as a crash would.
        """
        self.closed = True
        self._link.mta.abortConnection()
        self._mta.flush()

    # ---- messages

    def mail(self, sender: str, *args: str) -> Answer:
        """
        Say MAIL.
        """
        return self._run("MAIL", lambda: self._mail(Path(bracketed(sender), args)))

    def rcpt(self, address: str, *args: str) -> Answer:
        """
        Say RCPT.
        """
        return self._run("RCPT", lambda: self._rcpt(Path(bracketed(address), args)))

    def data(self) -> Answer:
        """
        Say DATA.
        """
        self._headed = False
        return self._run("DATA", self._data)

    def content(self, message: bytes) -> Sent:
        """
        Send the message's text and its end.
        """
        return self._sent(lambda: self._content(message))

    def header(self, name: str, value: str) -> Answer:
        """
        Send one header field, in place of `content`; there is no reply to it unless it is refused.

        :param value: Without the blank after the colon.
        :raises ValueError: for what is no field, and once the header has ended.
        """
        field = make_field(name, value)
        if self._headed:
            raise ValueError(f"header field {name!r} comes after the end of the header")
        self._learn(field)
        return self._part("header", lambda text: text.header(field))

    def eoh(self) -> Answer:
        """
        End the header; `body` and `end` do, where this was not called.
        """
        self._headed = True
        return self._part("eoh", lambda text: text.eoh())

    def body(self, chunk: bytes) -> Answer:
        """
        Send a piece of the body, as it is; what is too long for one packet comes in several.
        """
        self._headed = True
        return self._part("body", lambda text: text.body(chunk))

    def end(self) -> Sent:
        """
        End the message that was sent in parts.
        """
        self._headed = True
        return self._sent(self._finish)

    def _sent(self, coroutine: Callable[[], Coroutine[Any, Any, Any]]) -> Sent:
        transaction = self._message or Transaction(Path("<>"))
        return Sent(self._mta, self._queue(coroutine), transaction)

    def send(self, message: bytes, sender: Path, recipients: Sequence[Path]) -> Sent:
        """
        Send a whole message; it ends where the MTA refuses it.
        """
        transaction = Transaction(sender)

        async def sending() -> Told:
            result = await self._mail(sender, transaction)
            if result[0].code != 250:
                return result
            for path in recipients:
                result = await self._rcpt(path)
                if result[1].closes:
                    return result
            if transaction.recipients:
                result = await self._data()
            if result[0].code == 354:
                return await self._content(message)
            await self._over()
            return result

        return Sent(self._mta, self._queue(sending), transaction)

    async def _mail(self, path: Path, transaction: Transaction | None = None) -> Told:
        if self._standing is not None:
            return self._standing
        self._messages += 1
        queue_id = f"4TEST{self._messages:04}"
        self._text = None
        for name in ("i", "msg_id"):
            self._values.pop(name, None)
        if self._flavour.early_queue_id:
            self._values["i"] = queue_id
        self._queue_id = queue_id
        message = self._message = transaction or Transaction(path)
        message.quiet = self._off
        response = NOT_AWAITED
        if not message.quiet:
            macros = {**_resolved("mail", path)}
            response = await self._lane.mail(path.address, *path.args, macros=macros)
        if response.code in _REFUSES:
            reply = self._flavour.refusal("mail", response, path.address)
            await self._over()
            return reply, response, "mail"
        message.note(response)
        return self._good("mail", address=path.address), response, "mail"

    async def _rcpt(self, path: Path) -> Told:
        message = self._message
        if message is None:
            return _SEQUENCE, NOT_AWAITED, "rcpt"
        response = NOT_AWAITED
        if not message.quiet:
            response = await self._lane.rcpt(
                path.address, *path.args, macros=_resolved("rcpt", path)
            )
        if response.code in _REFUSES:
            reply = self._flavour.refusal("rcpt", response, path.address)
            message.refused[path.address] = reply
            return reply, response, "rcpt"
        message.note(response)
        self._values.setdefault("i", self._queue_id)
        message.recipients.append(path)
        return self._good("rcpt", address=path.address), response, "rcpt"

    async def _data(self) -> Told:
        message = self._message
        if message is None:
            return _SEQUENCE, NOT_AWAITED, "data"
        if not message.recipients:
            return self._good("no recipients"), NOT_AWAITED, "data"
        response = NOT_AWAITED if message.quiet else await self._lane.data()
        if response.code in _REFUSES:
            return self._flavour.refusal("data", response), response, "data"
        message.note(response)
        self._text = Content(self._lane, message, self._client.agreement, self._flavour)
        return self._good("data"), response, "data"

    async def _content(self, data: bytes) -> Told:
        text = self._text
        if text is None:
            return _SEQUENCE, NOT_AWAITED, "eom"
        mail = split_mail(data)
        # As both MTAs, which have read the whole message before they show any of it.
        for field in mail.fields:
            self._learn(field)
        for field in mail.fields:
            await text.header(field)
        await text.body(wire_body(mail.body))
        return await self._finish()

    def _learn(self, field: Field) -> None:
        if field.name.lower() == b"message-id":
            self._values["msg_id"] = to_text(field.value.strip())

    async def _finish(self) -> Told:
        text = self._text
        if text is None:
            return _SEQUENCE, NOT_AWAITED, "eom"
        response, stage = await text.end()
        refused = response.code in _REFUSES
        reply = self._flavour.refusal(stage, response) if refused else self._good("eom")
        self._message = self._text = None
        if self._flavour.aborts_finished or stage != "eom":
            await self._lane.abort()
        return reply, response, stage

    def _part(self, stage: str, send: Callable[[Content], Coroutine[Any, Any, Any]]) -> Answer:
        async def sending() -> Result:
            text = self._text
            if text is None:
                return _SEQUENCE, NOT_AWAITED, stage
            response = await send(text)
            if response.code not in _REFUSES:
                return None, response, stage
            settled, at = text.settled or (response, stage)
            return self._flavour.refusal(at, settled), settled, at

        return self._run(stage, sending)


def _resolved(kind: str, path: Path) -> dict[str, str]:
    address = path.address.removeprefix("<").removesuffix(">")
    domain = address.rpartition("@")[2]
    found = {f"{kind}_mailer": "smtp" if domain else "local", f"{kind}_addr": address}
    return {**found, f"{kind}_host": domain}
