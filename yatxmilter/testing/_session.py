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

from yatxmilter._mail.envelope import bare_address
from yatxmilter._mail.rfc5322 import Field, split_mail, wire_body
from yatxmilter._wire.actions import NOT_AWAITED, Agreement, Response
from yatxmilter._wire.payloads import to_text
from yatxmilter.client import MilterClient
from yatxmilter.client._in_memory import InMemoryConnection
from yatxmilter.client._profiles import Flavour, Reply
from yatxmilter.client._session_script import REFUSES, SessionScript
from yatxmilter.constants import SMFIS_ACCEPT
from yatxmilter.testing._answers import Answer, Result, Sent, Stage, Told, Transaction
from yatxmilter.testing._content import Content, make_field
from yatxmilter.testing._values import Path, bracketed
from yatxmilter.testing._watching import MilterTestFailure

__all__ = ["Session"]

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
        self._script = SessionScript(client, flavour, values)
        self._lock = DeferredLock()
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
        known = {"i": self._script.values.get("i", ""), **values}
        return Reply(reply.code, tuple(line.format(**known) for line in reply.lines))

    # ---- the connection

    def open(self, hostname: str, address: IAddress | None, helo: str | None) -> Answer:
        """
        Negotiate, and have the client connect and greet.
        """

        async def opening() -> Told:
            await self._script.negotiate()
            response = await self._script.connect(hostname, address)
            if helo is None or response.code == SMFIS_ACCEPT:
                return self._greeted("connect", response)
            return await self._helo(helo)

        return self._run("the connection", opening)

    def helo(self, name: str) -> Answer:
        """
        Say HELO, in a session that was opened with ``helo=None``, or once more.
        """
        return self._run("HELO", lambda: self._helo(name))

    async def _helo(self, name: str) -> Told:
        return self._greeted("helo", await self._script.helo(name))

    def _greeted(self, stage: str, response: Response) -> Told:
        if response.code in REFUSES:
            return self._refused()
        return Reply(220 if stage == "connect" else 250, ("ok",)), response, stage

    def _refused(self) -> Told:
        """
        Give the answer that CONNECT or HELO had, which stands for the session.
        """
        assert self._script.standing is not None
        stage, response = self._script.standing
        return self._flavour.refusal(stage, response), response, stage

    def unknown(self, line: str) -> Answer:
        """
        Say something that is not an SMTP command.
        """

        async def saying() -> Told:
            response = await self._script.unknown(line)
            if response.code in REFUSES:
                return self._flavour.refusal("unknown", response), response, "unknown"
            return self._good("unknown", line=line), response, "unknown"

        return self._run(repr(line), saying)

    def rset(self) -> Answer:
        """
        Say RSET: the message, if there is one, is given up.
        """

        async def resetting() -> Told:
            self._message = self._text = None
            await self._script.abort()
            return _OK, NOT_AWAITED, "rset"

        return self._run("RSET", resetting)

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
        Send one header field, instead of `content`; there is no reply to it unless it is refused.

        :param value: Without the blank after the colon.
        :raises ValueError: if it is not a field, or the header has ended.
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
            self._message = self._text = None
            await self._script.abort()
            return result

        return Sent(self._mta, self._queue(sending), transaction)

    async def _mail(self, path: Path, transaction: Transaction | None = None) -> Told:
        script = self._script
        self._text = None
        script.values.pop("msg_id", None)
        self._messages += 1
        self._message = transaction or Transaction(path)
        response = await script.mail(
            path.address,
            *path.args,
            queue_id=f"4TEST{self._messages:04}",
            **_resolved("mail", path),
        )
        if script.message is not None:
            return self._good("mail", address=path.address), response, "mail"
        self._message = None
        if script.standing is not None:
            return self._refused()
        await script.abort()
        return self._flavour.refusal("mail", response, path.address), response, "mail"

    async def _rcpt(self, path: Path) -> Told:
        message = self._message
        if message is None:
            return _SEQUENCE, NOT_AWAITED, "rcpt"
        response = await self._script.rcpt(path.address, *path.args, **_resolved("rcpt", path))
        if response.code in REFUSES:
            reply = self._flavour.refusal("rcpt", response, path.address)
            message.refused[path.address] = reply
            return reply, response, "rcpt"
        message.recipients.append(path)
        return self._good("rcpt", address=path.address), response, "rcpt"

    async def _data(self) -> Told:
        message, state = self._message, self._script.message
        if message is None or state is None:
            return _SEQUENCE, NOT_AWAITED, "data"
        if not message.recipients:
            return self._good("no recipients"), NOT_AWAITED, "data"
        response = await self._script.data()
        if response.code in REFUSES:
            return self._flavour.refusal("data", response), response, "data"
        self._text = Content(self._script, state, message)
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
            self._script.values["msg_id"] = to_text(field.value.strip())

    async def _finish(self) -> Told:
        text = self._text
        if text is None:
            return _SEQUENCE, NOT_AWAITED, "eom"
        response, stage = await text.end()
        refused = response.code in REFUSES
        reply = self._flavour.refusal(stage, response) if refused else self._good("eom")
        self._message = self._text = None
        await self._script.abort()
        return reply, response, stage

    def _part(self, stage: str, send: Callable[[Content], Coroutine[Any, Any, Any]]) -> Answer:
        async def sending() -> Result:
            text = self._text
            if text is None:
                return _SEQUENCE, NOT_AWAITED, stage
            response = await send(text)
            if response.code not in REFUSES:
                return None, response, stage
            at, settled = text.state.settled or (stage, response)
            return self._flavour.refusal(at, settled), settled, at

        return self._run(stage, sending)


def _resolved(kind: str, path: Path) -> dict[str, str]:
    domain = bare_address(path.address).rpartition("@")[2]
    return {f"{kind}_mailer": "smtp" if domain else "local", f"{kind}_host": domain}
