"""
An SMTP session against milters: the one script of it, for whatever plays an MTA.

`SessionScript` has a method for each step of the SMTP client's. It knows whether the milters are
asked about it, which macros go with the command, what their answer means for the steps behind it,
and when ABORT follows. All in which MTAs differ is data, in `yatxmilter.client._profiles`.
`MessageState` holds the rules of one message without sending anything.

Whole messages are played by `yatxmilter.client._message`; the test kit, the SMTP server and the
commands ``send`` and ``replay`` are on top of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress

from yatxmilter import constants as c
from yatxmilter._mail.envelope import bare_address
from yatxmilter._mail.rfc5322 import Field
from yatxmilter._wire import commands
from yatxmilter._wire.actions import NOT_AWAITED, Agreement, EndOfMessage, Response
from yatxmilter._wire.commands import Command
from yatxmilter._wire.negotiation import DEFAULT_SYMBOLS
from yatxmilter._wire.payloads import to_text
from yatxmilter.client._command_queue import CommandQueue
from yatxmilter.client._commands import Dialogue, Macros
from yatxmilter.client._profiles import Flavour

__all__ = ["REFUSES", "Commands", "MessageState", "SessionScript", "select_macros", "shown_fields"]

#: What refuses a recipient, a message or a connection.
REFUSES: Final = (c.SMFIS_REJECT, c.SMFIS_TEMPFAIL)
# What stands for the answer to a step of a message that was given up meanwhile.
_GIVEN_UP: Final = Response(c.SMFIS_TEMPFAIL)
_GOES_ON: Final = (c.SMFIS_CONTINUE, c.SMFIS_SKIP)

_BEFORE_CONTENT: Final = ("mail", "rcpt", "data", "unknown")


def stage_name(row: Command) -> str:
    """
    Name the stage of a command: ``mail``, ``rcpt`` and so on, ``eom`` at the end.
    """
    return "eom" if row is commands.EOM_ROW else row.name.lower()


# ---- macros and header fields


def select_macros(
    agreement: Agreement | None, stage: int, values: Mapping[str, str]
) -> dict[str, str]:
    """
    Choose the macros that are sent at a stage, as Postfix does: those of the milter's list for it,
    of the default list where it gave none, and of these the ones that have a value.

    :param values: What is known, by name; ``i`` and ``{i}`` are the same.
    """
    asked = agreement.symbol_lists.get(stage) if agreement is not None else None
    return _known(asked or DEFAULT_SYMBOLS[stage].split(), _bare(values))


def _bare(values: Mapping[str, str]) -> dict[str, str]:
    return {name.strip("{}"): value for name, value in values.items()}


def _known(names: Iterable[str], values: Mapping[str, str]) -> dict[str, str]:
    return {name: values[bare] for name in names if (bare := name.strip("{}")) in values}


def shown_fields(fields: Iterable[Field], *, leading_space: bool) -> Iterator[tuple[str, str]]:
    """
    Give the names and values of a message's header as an MTA shows them to its first milter.

    :param leading_space: Whether SMFIP_HDR_LEADSPC was agreed.
    """
    for field in fields:
        value = field.value if leading_space else field.bare_value()
        # Inside the MTA these are C strings: they end at a NUL.
        yield to_text(field.name), to_text(value).partition("\0")[0]


class Commands(Dialogue):
    """
    The commands of a connection, each with the macros that one kind of MTA sends with it.

    The ``macros`` of a command are what is found out about it; what is known in `values` goes
    before them.

    :param values: What is known, by name without braces.
    :param forced: Macros that are sent with a command in any case, by its letter.
    :param inner: Whether they pass the commands that wait behind the holder of the queue.
    """

    def __init__(
        self,
        client: CommandQueue,
        profile: Flavour,
        values: Mapping[str, str],
        forced: Mapping[int, Mapping[str, str]],
        *,
        inner: bool,
    ) -> None:
        self.client = client
        self.profile = profile
        self.values = _bare(values)
        self._forced = forced
        self._inner = inner

    def _ask(
        self, row: Command, payload: bytes = b"", macros: Macros | None = None
    ) -> Deferred[Any]:
        return self.client._ask(row, payload, self._macros(row, macros or {}), inner=self._inner)

    def _macros(self, row: Command, found: Macros) -> dict[str, str] | None:
        names = self.profile.macro_names(row.letter, self.client.agreement)
        forced = self._forced.get(row.letter, {})
        if names is None and not forced:
            return None
        known = {**found, **self.values}
        for name in forced:
            known.pop(name.strip("{}"), None)
        return {**_known(names or (), known), **forced}


# ---- one message


class MessageState:
    """
    What the milters have made of a message so far, and what an MTA still asks them about it.

    :param skips: What is kept from them after SKIP, by the command that had it as its answer.
    :ivar settled: The stage and the answer that were their last; ``None`` while they are asked.
    :ivar refused: How many recipients were refused; ``accepted``: how many were not.
    """

    def __init__(self, skips: Mapping[int, int]) -> None:
        self.settled: tuple[str, Response] | None = None
        self.refused = self.accepted = 0
        self._skips = skips
        self._skipped: set[int] = set()

    @property
    def discarded(self) -> bool:
        """
        Whether the message is dropped.
        """
        return self.settled is not None and self.settled[1].code == c.SMFIS_DISCARD

    @property
    def unasked(self) -> Response:
        """
        What stands for the answer to a step about which the milters are not asked.

        A refusal counts for all that comes behind it, and what was said of the content for the rest
        of the content. Milters that were out of it before have nothing to say.
        """
        if self.settled is None:
            return NOT_AWAITED
        stage, response = self.settled
        keeps = response.code in REFUSES or stage not in _BEFORE_CONTENT
        return response if keeps else NOT_AWAITED

    def asks(self, row: Command) -> bool:
        """
        Tell whether the milters are asked about a step.
        """
        if self.settled is not None or row.letter in self._skipped:
            return False
        # Without a recipient the content is not sent.
        content = row.in_message and row.index > commands.RCPT_ROW.index
        return not content or self.accepted > 0 or not self.refused

    def heard(self, row: Command, response: Response, *, by_mta: bool = False) -> None:
        """
        Take note of an answer.

        :param by_mta: Whether it is to a recipient that the MTA has refused by itself.
        """
        code = response.code
        refused = code in REFUSES
        if code == c.SMFIS_SKIP:
            self._skipped.add(self._skips.get(row.letter, 0))
        if row is commands.RCPT_ROW:
            self.refused += refused or by_mta
            self.accepted += not (refused or by_mta)
        # One recipient may be refused by itself, and an unknown command is not of the message.
        apart = row in (commands.RCPT_ROW, commands.UNKNOWN_ROW) and refused
        if code not in _GOES_ON and (not apart or response.closes):
            self.settled = stage_name(row), response


# ---- the session


class SessionScript:
    """
    One SMTP client of an MTA, for its milters.

    Steps are to be awaited one after the other. The answer is what the milters say, or what stands
    for it where they are not asked; what the SMTP client is told of it is not said here.

    :param profile: The habits of the MTA.
    :param values: What is known of the session, by macro name.
    :param forced: And ``inner``: see `Commands`.
    :ivar message: What has become of the message that is open; ``None`` where none is.
    """

    def __init__(
        self,
        client: CommandQueue,
        profile: Flavour,
        values: Mapping[str, str],
        *,
        forced: Mapping[int, Mapping[str, str]] | None = None,
        inner: bool = False,
    ) -> None:
        self.commands = Commands(client, profile, values, forced or {}, inner=inner)
        self.profile = profile
        self.message: MessageState | None = None
        self._client = client
        # Whether the milters have a message that nothing has ended for them.
        self._open = False
        self._queue_id: str | None = None

    @property
    def values(self) -> dict[str, str]:
        """
        What is known, by macro name without braces; it may be added to.
        """
        return self.commands.values

    @property
    def standing(self) -> tuple[str, Response] | None:
        """
        The stage and answer with which CONNECT or HELO has settled all messages.
        """
        return self._client.standing

    @property
    def leading_space(self) -> bool:
        """
        Whether SMFIP_HDR_LEADSPC was agreed.
        """
        return self._has_agreed(c.SMFIP_HDR_LEADSPC)

    def _has_agreed(self, step: int) -> bool:
        agreement = self._client.agreement
        return agreement is not None and bool(agreement.steps & step)

    async def _hear(self, answer: Deferred[Any]) -> Any:
        """
        Wait for an answer of the milters'.
        """
        return await answer

    async def _about_message(self, row: Command, answer: Deferred[Any]) -> Response:
        response: Response = await self._hear(answer)
        if self.message is not None:
            self.message.heard(row, response)
        return response

    # ---- the connection

    async def negotiate(self) -> None:
        """
        Offer what the MTA offers.
        """
        await self._hear(self.commands.negotiate(*self.profile.offer))

    async def connect(self, hostname: str, address: IAddress | None) -> Response:
        """
        Announce the SMTP client.
        """
        response: Response = await self._hear(self.commands.connect(hostname, address))
        return response

    async def helo(self, name: str) -> Response:
        """
        Pass on HELO or EHLO.
        """
        if self.standing is not None:
            stage, standing = self.standing
            again = stage == "helo" and not self.profile.keeps_helo_refusal
            if not again or standing.code == c.SMFIS_ACCEPT:
                return standing if standing.code in REFUSES else NOT_AWAITED
        response: Response = await self._hear(self.commands.helo(name))
        return response

    async def unknown(self, line: str) -> Response:
        """
        Pass on a command that the MTA does not know.
        """
        if self.standing is not None or not self._asks(commands.UNKNOWN_ROW):
            return NOT_AWAITED
        text = line if self.profile.whole_unknown else line.split(" ")[0]
        return await self._about_message(commands.UNKNOWN_ROW, self.commands.unknown(text))

    # ---- a message

    def _asks(self, row: Command) -> bool:
        return self.message is None or self.message.asks(row)

    async def _step(self, row: Command, ask: Any, *arguments: object, **found: str) -> Response:
        message = self.message
        if message is None:
            return _GIVEN_UP
        if not message.asks(row):
            return message.unasked
        return await self._about_message(row, ask(*arguments, macros=found))

    async def mail(
        self, address: str, *args: str, queue_id: str | None = None, **found: str
    ) -> Response:
        """
        Begin a message. Where the answer refuses it, none is open.

        :param queue_id: The macro ``i``, from when on the MTA has one.
        :param found: Macros that say how the address was resolved.
        """
        self.message = MessageState(self.profile.skips)
        self._queue_id = queue_id
        if queue_id is not None:
            self.values.pop("i", None)
        if self.profile.early_queue_id:
            self._name_message()
        if self.standing is not None:
            self.message.heard(commands.MAIL_ROW, self.standing[1])
            response = self.message.unasked
        else:
            self._open = True
            response = await self._step(
                commands.MAIL_ROW,
                self.commands.mail,
                address,
                *args,
                **{"mail_addr": bare_address(address), **found},
            )
        if response.code in REFUSES:
            self.message = None
        return response

    def _name_message(self) -> None:
        if self._queue_id is not None:
            self.values["i"] = self._queue_id

    async def rcpt(self, address: str, *args: str, **found: str) -> Response:
        """
        Add a recipient.

        :param found: Macros that say how the address was resolved.
        """
        response = await self._step(
            commands.RCPT_ROW,
            self.commands.rcpt,
            address,
            *args,
            **{"rcpt_addr": bare_address(address), **found},
        )
        if response.code not in REFUSES:
            self._name_message()
        return response

    async def rcpt_refused(self, text: str, address: str, *args: str) -> None:
        """
        Tell the milters that want to know it of a recipient that the MTA has refused.

        Their answer changes nothing for the SMTP client.

        :param text: What was wrong.
        """
        message = self.message
        if message is None or message.settled or not self._has_agreed(c.SMFIP_RCPT_REJ):
            return
        macros = {"rcpt_mailer": "error", "rcpt_addr": text}
        response = await self._hear(self.commands.rcpt(address, *args, macros=macros))
        if response.code not in (*_GOES_ON, *REFUSES):
            message.settled = "rcpt", response

    async def data(self) -> Response:
        """
        Announce the content. A refusal ends the message for the milters: none is asked twice.
        """
        return await self._step(commands.DATA_ROW, self.commands.data)

    async def header(self, field: Field) -> Response:
        """
        Show a header field, with the macros of its stage.
        """
        ((name, value),) = shown_fields([field], leading_space=self.leading_space)
        return await self._step(commands.HEADER_ROW, self.commands.header, name, value)

    async def eoh(self) -> Response:
        """
        End the header.
        """
        return await self._step(commands.EOH_ROW, self.commands.eoh)

    async def body(self, chunk: bytes) -> Response:
        """
        Show a piece of the body, with the line ends of the wire.
        """
        return await self._step(commands.BODY_ROW, self.commands.body, chunk)

    async def end(self) -> EndOfMessage:
        """
        End the message; `abort` is to follow.
        """
        message = self.message
        if message is None:
            return EndOfMessage(_GIVEN_UP)
        if not message.asks(commands.EOM_ROW):
            return EndOfMessage(message.unasked)
        end = await self._hear(self.commands.end_of_message())
        if not isinstance(end, EndOfMessage):
            return EndOfMessage(end)
        self._open = False
        message.heard(commands.EOM_ROW, end.response)
        return end

    def abort(self) -> Deferred[None]:
        """
        Have done with a message, finished or not: send ABORT, if the MTA does.
        """
        opened, self._open = self._open, False
        self.message = None
        if self._queue_id is not None:
            self.values.pop("i", None)
        return self.commands.abort() if opened or self.profile.aborts_finished else succeed(None)
