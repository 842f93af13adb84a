"""
One SMTP session at the MTA: what its client does, step by step or by whole messages.

A step is one SMTP command, or one part of the message's text. Which of them the milters are asked
about, and what the client is told, goes by the MTA's habits (`yatxmilter.flavours`).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final

from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IAddress

from yatxmilter import commands
from yatxmilter import constants as c
from yatxmilter.client import MilterClient, apply_edits
from yatxmilter.dialogue import Dialogue, Macros
from yatxmilter.flavours import Flavour, Reply
from yatxmilter.inmemory import InMemoryConnection
from yatxmilter.responses import NOT_AWAITED, Agreement, Response
from yatxmilter.rfc5322 import Mail, split_mail, wire_body
from yatxmilter.testing.answers import Answer, Result, Sent, Stage, Transaction
from yatxmilter.testing.values import Delivered, Path, bracketed, deliver_envelope
from yatxmilter.testing.watching import MilterTestFailure
from yatxmilter.transaction import shown_fields
from yatxmilter.wire import to_text

__all__ = ["Session"]

_REFUSES: Final = (c.SMFIS_REJECT, c.SMFIS_TEMPFAIL)
_OK: Final = Reply(250, ("2.0.0 Ok",))
_SEQUENCE: Final = Reply(503, ("5.5.1 Bad sequence of commands",))


class _Lane(Dialogue):
    """
    The commands, each with the macros that this MTA sends with it.
    """

    def __init__(self, client: MilterClient, flavour: Flavour, values: dict[str, str]) -> None:
        self._client = client
        self._flavour = flavour
        self._values = values

    def _ask(
        self, row: commands.Command, payload: bytes = b"", macros: Macros | None = None
    ) -> Deferred[Any]:
        names = self._flavour.macro_names(row.letter, self._client.agreement)
        known = {**self._values, **(macros or {})}
        chosen = None
        if names is not None:
            chosen = {name: known[bare] for name in names if (bare := name.strip("{}")) in known}
        return self._client._ask(row, payload, chosen)


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
        self._lane = _Lane(client, flavour, self._values)
        self._lock = DeferredLock()
        self._off = False
        self._standing: Result | None = None
        self._message: Transaction | None = None
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

        async def opening() -> Result:
            offer = self._flavour.offer
            await self._lane.negotiate(offer.version, offer.actions, offer.steps)
            response = await self._lane.connect(hostname, address)
            result = self._stand("connect", response)
            if helo is not None and not self._off and self._standing is None:
                response = await self._lane.helo(helo)
                result = self._stand("helo", response)
            return result

        return self._run("the connection", opening)

    def _stand(self, stage: str, response: Response) -> Result:
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

        async def saying() -> Result:
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

        async def resetting() -> Result:
            await self._over()
            return _OK, NOT_AWAITED, "rset"

        return self._run("RSET", resetting)

    async def _over(self) -> None:
        open_message, self._message = self._message, None
        self._values.pop("i", None)
        if open_message is not None or self._flavour.aborts_finished:
            await self._lane.abort()

    def quit(self) -> None:
        """
        Say QUIT.
        """
        if not self.closed:
            self.closed = True
            self._message = None
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
        return self._run("DATA", self._data)

    def content(self, message: bytes) -> Sent:
        """
        Send the message's text and its end.
        """
        transaction = self._message or Transaction(Path("<>"))
        return Sent(self._mta, self._queue(lambda: self._content(message)), transaction)

    def send(self, message: bytes, sender: Path, recipients: Sequence[Path]) -> Sent:
        """
        Send a whole message; it ends where the MTA refuses it.
        """
        transaction = Transaction(sender)

        async def sending() -> Result:
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

    async def _mail(self, path: Path, transaction: Transaction | None = None) -> Result:
        if self._standing is not None:
            return self._standing
        self._messages += 1
        queue_id = f"4TEST{self._messages:04}"
        self._values.pop("i", None)
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
        self._note(message, response)
        return self._good("mail", address=path.address), response, "mail"

    def _note(self, message: Transaction, response: Response) -> None:
        message.discarded = message.discarded or response.code == c.SMFIS_DISCARD
        if response.code in (c.SMFIS_ACCEPT, c.SMFIS_DISCARD):
            message.quiet = True

    async def _rcpt(self, path: Path) -> Result:
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
        self._note(message, response)
        self._values.setdefault("i", self._queue_id)
        message.recipients.append(path)
        return self._good("rcpt", address=path.address), response, "rcpt"

    async def _data(self) -> Result:
        message = self._message
        if message is None:
            return _SEQUENCE, NOT_AWAITED, "data"
        if not message.recipients:
            return self._good("no recipients"), NOT_AWAITED, "data"
        response = NOT_AWAITED if message.quiet else await self._lane.data()
        if response.code in _REFUSES:
            return self._flavour.refusal("data", response), response, "data"
        self._note(message, response)
        return self._good("data"), response, "data"

    async def _content(self, data: bytes) -> Result:
        message = self._message
        if message is None:
            return _SEQUENCE, NOT_AWAITED, "eom"
        mail = split_mail(data)
        for field in mail.fields:
            if field.name.lower() == b"message-id":
                self._values["msg_id"] = to_text(field.value.strip())
        response, stage = await self._filter(message, mail)
        if response.code in _REFUSES:
            reply = self._flavour.refusal(stage, response)
        else:
            reply = self._good("eom")
            if not message.discarded:
                message.delivered = self._deliver(message, mail)
        self._message = None
        if self._flavour.aborts_finished or stage != "eom":
            await self._lane.abort()
        return reply, response, stage

    async def _filter(self, message: Transaction, mail: Mail) -> tuple[Response, str]:
        response = NOT_AWAITED
        steps = {
            "header": self._header,
            "eoh": self._end_header,
            "body": self._body,
            "eom": self._end,
        }
        for stage, step in steps.items():
            if message.quiet:
                break
            response = await step(message, mail)
            self._note(message, response)
            if message.quiet or response.code in _REFUSES:
                return response, stage
        return response, "eom"

    async def _header(self, message: Transaction, mail: Mail) -> Response:
        leading = bool(self.agreement.steps & c.SMFIP_HDR_LEADSPC)
        response = NOT_AWAITED
        for name, value in shown_fields(mail.fields, leading_space=leading):
            response = await self._lane.header(name, value)
            if response.code != c.SMFIS_CONTINUE:
                break
        return response

    async def _end_header(self, message: Transaction, mail: Mail) -> Response:
        return await self._lane.eoh()

    async def _body(self, message: Transaction, mail: Mail) -> Response:
        body = wire_body(mail.body)
        return await self._lane.body(body) if body else NOT_AWAITED

    async def _end(self, message: Transaction, mail: Mail) -> Response:
        end = await self._lane.end_of_message()
        message.edits, message.progress = end.edits, end.progress
        return end.response

    def _deliver(self, message: Transaction, mail: Mail) -> Delivered:
        agreement = self._client.agreement
        leading = agreement is not None and bool(agreement.steps & c.SMFIP_HDR_LEADSPC)
        data = apply_edits(
            Mail(mail.fields, True, wire_body(mail.body), b"\r\n").join(),
            message.edits,
            leading_space=leading,
            flavour=self._flavour.name,
        )
        sender, recipients = deliver_envelope(
            message.sender, message.recipients, message.edits, self._flavour.merges_recipients
        )
        return Delivered(sender, recipients, data)


def _resolved(kind: str, path: Path) -> dict[str, str]:
    address = path.address.removeprefix("<").removesuffix(">")
    domain = address.rpartition("@")[2]
    found = {f"{kind}_mailer": "smtp" if domain else "local", f"{kind}_addr": address}
    return {**found, f"{kind}_host": domain}
