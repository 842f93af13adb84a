"""
What stands in the list of milters for one that runs elsewhere.

A `RemoteMilter` is a `Milter` like any other: each callback passes its command on, with the macros
of its stage, and answers what the remote milter answers; the edits of that one are made by the
``smfi_*`` functions at the end of the message.

The remote milter hears what an MTA would tell it. It is asked one thing after the other: when the
list no longer waits for an answer, because another milter has decided, that answer is still heard
before anything else is sent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from yatxmilter import constants as c
from yatxmilter._engine.addresses import describe_address
from yatxmilter._engine.on_error import answer_for, lets_pass
from yatxmilter._engine.return_codes import ON_ERROR, ends_message, fallback
from yatxmilter._escaping import printable
from yatxmilter._wire import commands
from yatxmilter._wire.actions import Edit, EndOfMessage, OfHeader, Response
from yatxmilter._wire.commands import CALLBACK_STEPS, Command
from yatxmilter._wire.payloads import from_text
from yatxmilter.client import MilterClient
from yatxmilter.client._commands import Macros
from yatxmilter.constants import ReturnCode
from yatxmilter.defaults import Milter
from yatxmilter.errors import PeerError
from yatxmilter.remote._connection import RemoteClient, ignore
from yatxmilter.remote._pool import CANCELLED, Connections

__all__ = ["RemoteMilter"]

_log = Logger()

_Answer = TypeVar("_Answer", Response, EndOfMessage)
_Ask = Callable[[RemoteClient, Macros | None], Deferred[_Answer]]

# What needs nothing of the MTA is offered in any case: a command that the remote milter does not
# want is not passed on, an answer it does not give is given for it, and SKIP works at our side.
_OURS: Final = c.ALL_NO_STEPS | c.ALL_NR_STEPS | c.SMFIP_SKIP
# These an MTA that does not know them need not offer.
_OPTIONAL: Final = c.SMFIP_NODATA | c.SMFIP_NOUNKNOWN
# How many PROGRESS of one message are passed on as they come, and the seconds between the others.
_PROGRESS_BURST: Final = 100
_PROGRESS_PAUSE: Final = 1.0


class _Message:
    """
    A message, for the remote milter.

    :ivar over: The code with which that one has ended it.
    :ivar macros: Those that it was sent, by the letter of their command.
    :ivar progress: How often that one has said that it is at work; ``told``: when that was passed
        on.
    """

    def __init__(self) -> None:
        self.over: ReturnCode | None = None
        self.macros: dict[int, Macros] = {}
        self.progress = 0
        self.told = 0.0


def _passed_on(row: Command, ask: Callable[..., Deferred[Response]]) -> Callable[..., Any]:
    """
    Make the callback that passes a command on.

    :param ask: The client's method for it, which takes what the callback does.
    """

    def callback(self: RemoteMilter, *arguments: Any) -> Any:
        if row.has_argv:
            (arguments,) = arguments
        return self._command(row, lambda client, macros: ask(client, *arguments, macros=macros))

    callback.__doc__ = f"Pass {row.name} on."
    return callback


class RemoteMilter(Milter):
    """
    The stand-in of a remote milter on one MTA connection.

    :param factory: A `RemoteMilterFactory`.
    """

    def __init__(self, factory: Any, protocol: Any) -> None:
        super().__init__(factory, protocol)
        self._connections: Connections = factory.connections
        self._client: RemoteClient | None = None
        self._offer = (0, 0)
        # What was agreed on at the first time counts for all of the MTA's connection.
        self._agreed: tuple[int, int] | None = None
        self._closed = False
        self._message = _Message()

    # ---- negotiation

    async def xxfi_negotiate(self, actions: int, steps: int) -> Any:
        """
        Offer the remote milter what the MTA offers, and ask for what it wants.
        """
        self._offer = actions & c.SMFI_CURR_ACTS, (steps | _OURS) & c.SMFI_CURR_PROT
        try:
            client = await self._connections.get(self._offer)
            self._use(client)
            agreement = client.settled()
            for stage, names in agreement.symbol_lists.items():
                self.smfi_setsymlist(stage, " ".join(names))
        except CANCELLED:
            raise
        except Exception as error:
            self._fail(commands.OPTNEG_ROW, error)
            if answer_for(commands.OPTNEG_ROW, self.factory.on_error).disconnects:
                return ON_ERROR
            return c.SMFIS_CONTINUE, 0, self._steps_without() & (steps | _OPTIONAL)
        self._agreed = agreement.actions, agreement.steps
        return c.SMFIS_CONTINUE, agreement.actions, agreement.steps & (steps | _OPTIONAL)

    def _steps_without(self) -> int:
        # Nothing is asked for but what is needed to answer each message.
        if lets_pass(self.factory.on_error):
            return c.ALL_NO_STEPS
        return c.ALL_NO_STEPS & ~c.SMFIP_NOMAIL

    def _use(self, client: RemoteClient) -> None:
        client.on_progress = self._pass_progress
        self._client = client
        self._message = _Message()

    def _pass_progress(self) -> None:
        if not self._ctx().editing:
            return
        message = self._message
        message.progress += 1
        now = self._connections.clock.seconds()
        # The MTA need not hear all of a flood: what it does not read would pile up here. (A clock
        # may also be set back.)
        if message.progress <= _PROGRESS_BURST or not 0 <= now - message.told < _PROGRESS_PAUSE:
            message.told = now
            self.smfi_progress()

    async def _reopen(self, row: Command) -> None:
        """
        Begin anew behind a QUIT_NC of the MTA, on the same agreement.
        """
        self._closed = False
        try:
            self._use(await self._connections.get(self._offer, self._agreed))
        except CANCELLED:
            raise
        except Exception as error:
            self._fail(row, error)

    # ---- passing commands on

    xxfi_connect = _passed_on(commands.CONNECT_ROW, MilterClient.connect)
    xxfi_helo = _passed_on(commands.HELO_ROW, MilterClient.helo)
    xxfi_envrcpt = _passed_on(commands.RCPT_ROW, MilterClient.rcpt)
    xxfi_data = _passed_on(commands.DATA_ROW, MilterClient.data)
    xxfi_unknown = _passed_on(commands.UNKNOWN_ROW, MilterClient.unknown)
    xxfi_header = _passed_on(commands.HEADER_ROW, MilterClient.header)
    xxfi_eoh = _passed_on(commands.EOH_ROW, MilterClient.eoh)
    xxfi_body = _passed_on(commands.BODY_ROW, MilterClient.body)
    _mail = _passed_on(commands.MAIL_ROW, MilterClient.mail)

    def xxfi_envfrom(self, argv: list[str]) -> Any:
        """
        Begin a message, and pass MAIL on.
        """
        self._message = _Message()
        return self._mail(argv)

    async def xxfi_eom(self) -> ReturnCode:
        """
        Pass the end of the message on; the edits of the remote milter are made as they come.
        """
        row = commands.EOM_ROW
        end: EndOfMessage | ReturnCode = await self._pass(
            row, lambda client, macros: client.end_of_message(macros=macros)
        )
        self._message = _Message()
        if isinstance(end, EndOfMessage):
            return self._answer(row, end.response)
        # What it did before it failed stands where mail passes, or a sender that makes it fail gets
        # rid of its marks. Of a body there may be but a part, and that is worse than the old one.
        self._ctx().drop_body()
        return end

    def xxfi_abort(self) -> None:
        """
        Pass the end of the message on.
        """
        self._message = _Message()
        if self._client is not None:
            self._client.resting = False
            self._client.abort().addErrback(ignore)

    def xxfi_close(self) -> None:
        """
        End the SMTP connection for the remote milter.
        """
        self._closed = True
        self._message = _Message()
        client = self._client
        self._client = None
        if client is not None:
            self._connections.give_back(client)

    async def _command(self, row: Command, ask: _Ask[Response]) -> ReturnCode:
        response = await self._pass(row, ask)
        return self._answer(row, response) if isinstance(response, Response) else response

    async def _pass(self, row: Command, ask: _Ask[_Answer]) -> _Answer | ReturnCode:
        """
        Ask the remote milter when it is its turn.

        :return: The answer; or the return code where it was not asked, or has failed.
        """
        if self._closed and self._agreed is not None:
            await self._reopen(row)
        client = self._client
        if client is None:
            return self._absent(row)
        try:
            if client.alive:
                # To be cancelled while it waits here does no harm.
                await client.turn()
                await client.room(self._connections.clock)
            over = self._message.over
            if over is not None and row.in_message:
                return fallback(row, over)
            return await self._heard(row, client, ask)
        except CANCELLED:
            raise
        except Exception as error:
            return self._fail(row, error)

    async def _heard(self, row: Command, client: RemoteClient, ask: _Ask[_Answer]) -> _Answer:
        """
        Ask it; or another one, where this one has gone before it could do anything.
        """
        tries = self._connections.tries(client)
        while True:
            for earlier in CALLBACK_STEPS[: CALLBACK_STEPS.index(row)]:
                if earlier.no & client.settled().steps:
                    self._send_macros(client, earlier)
            try:
                return await self._send_command(row, client, ask)
            except PeerError as error:
                tries -= 1
                if not tries or not self._connections.give_up(client, row, error):
                    raise
            client = await self._connections.get(self._offer, self._agreed, new=True)
            self._use(client)

    async def _send_command(
        self, row: Command, client: RemoteClient, ask: _Ask[_Answer]
    ) -> _Answer:
        """
        Send a command to the milter elsewhere; note what its answer means for its connection.
        """
        client.resting = False
        client.said += client.alive
        message = self._message
        if row is commands.EOM_ROW:
            client.on_edit = lambda edit: self._edit(message, edit)

        def note(answer: _Answer) -> _Answer:
            response = answer.response if isinstance(answer, EndOfMessage) else answer
            if client.kept and response.letter:
                self._connections.answered(client)
            if row is commands.EOM_ROW:
                client.resting = response.letter == c.SMFIR_CONTINUE
            elif row.in_message and _ends(row, response.code):
                message.over = response.code
            return answer

        return await _unless_cancelled(ask(client, self._macros(row)).addCallback(note))

    # ---- macros

    def _macros(self, row: Command) -> Macros | None:
        macros = self._ctx().macros_of(row.letter)
        self._message.macros[row.letter] = macros or {}
        return macros

    def _send_macros(self, client: RemoteClient, row: Command) -> None:
        """
        Send the macros of a command that the remote milter declined; it may look them up later.
        """
        macros = self._ctx().macros_of(row.letter)
        if macros and macros != self._message.macros.get(row.letter):
            self._message.macros[row.letter] = macros
            client._ask(row, b"", macros).addErrback(ignore)

    # ---- answers

    def _answer(self, row: Command, response: Response) -> ReturnCode:
        if response.code is c.SMFIS_SKIP and row is not commands.BODY_ROW:
            # Programs written for pymilter give it at MAIL, too, where Postfix goes on.
            return c.SMFIS_CONTINUE
        if response.text is not None:
            # As it came: the functions would not let every text pass.
            self._ctx().answer_with(from_text(response.text))
        return response.code

    def _edit(self, message: _Message, edit: Edit) -> None:
        if self._message is not message:
            # Somebody else has decided meanwhile.
            return
        if isinstance(edit, OfHeader):
            edit = edit._replace(value=_ended(edit.value))
        self._ctx().make_edit(edit)

    # ---- failures

    def _absent(self, row: Command) -> ReturnCode:
        silent = self._agreed is not None and self._agreed[1] & row.nr
        # Where it is silent the next step that is answered says it.
        return c.SMFIS_CONTINUE if silent else ON_ERROR

    def _fail(self, row: Command, error: Exception) -> ReturnCode:
        """
        Go on without the remote milter, to the end of the SMTP connection; log why.
        """
        client = self._client
        self._client = None
        if client is not None:
            client.leave()
            if isinstance(error, PeerError):
                self._connections.failed(client, error)
        code = self._absent(row)
        _log.error(
            "Milter {milter} failed in {stage} (queue id {queue_id}, MTA {mta}): {error};"
            " answering {code} for it",
            milter=self.factory.name,
            stage=row.callback,
            queue_id=printable(self.smfi_getsymval("i") or "unknown"),
            mta=describe_address(self.protocol.transport.getPeer()),
            connection=self.protocol.number,
            error=self._connections.describe(client, error),
            code=answer_for(row, self.factory.on_error).described if code is ON_ERROR else code,
        )
        return code


def _ends(row: Command, code: ReturnCode) -> bool:
    if code in (c.SMFIS_CONTINUE, c.SMFIS_SKIP):
        return False
    return ends_message(row, code) or code is c.SMFIS_DISCARD


def _unless_cancelled(answer: Deferred[_Answer]) -> Deferred[_Answer]:
    """
    Wait for an answer that comes all the same when it is not wanted any more.
    """
    waiting: Deferred[_Answer] = Deferred()

    def pass_on(result: _Answer | Failure) -> None:
        if not waiting.called:
            waiting.callback(result)

    answer.addBoth(pass_on)
    return waiting


def _ended(value: str) -> str:
    """
    Take the line end away that some milters put behind a header value.
    """
    return value.replace("\r\n", "\n").rstrip("\n")
