"""
``merge="chain"``: one milter after the other, as if the MTA ran each by itself.

From connect to DATA each command goes down the chain. Headers and body are taken in first; at the
end of the message each milter in turn gets all of it, as the ones before it have left it, and
makes its edits. They reach the MTA once, at the end. ACCEPT takes its own milter out; a negative
answer ends the chain.

What is walked here may wait at any milter, so it is written as coroutines, which are stepped by
hand and cost little more than the calls as long as nobody waits.
"""

from __future__ import annotations

from collections.abc import Collection, Coroutine, Generator, Iterable, Iterator
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import Logger
from twisted.python.failure import Failure

from yatxmilter import constants as c
from yatxmilter._engine.addresses import DECODERS
from yatxmilter._engine.awaitables import run_coroutine
from yatxmilter._engine.chain_edits import ChainEdits
from yatxmilter._engine.command_order import Callees, Handler, Plan, empty
from yatxmilter._engine.member import Callback, Member
from yatxmilter._engine.merge import Merge
from yatxmilter._engine.pending import Pending
from yatxmilter._engine.return_codes import CONTINUE_PACKET, response
from yatxmilter._mail.body_spool import BodySpool
from yatxmilter._mail.bounds import Limits
from yatxmilter._mail.header_models import HeaderModel, header_model
from yatxmilter._wire.actions import OfHeader, Quarantine, ReplaceBody, read_edit
from yatxmilter._wire.commands import (
    ALL_COMMANDS,
    BODY_ROW,
    EOH_ROW,
    EOM_ROW,
    HEADER_ROW,
    MAIL_ROW,
    RCPT_ROW,
    UNKNOWN_ROW,
    Command,
)
from yatxmilter._wire.macros import RecipientMissed, mta_flavour
from yatxmilter._wire.negotiation import data_size
from yatxmilter.constants import SMFIS_CONTINUE, ReturnCode
from yatxmilter.errors import LimitExceeded

if TYPE_CHECKING:
    from yatxmilter._engine.session import Session

__all__ = ["Chain"]

_log = Logger()

_CONTENT = frozenset((HEADER_ROW, EOH_ROW, BODY_ROW))

# So many bytes of body are given to milters in one turn of the reactor, and for what else there is
# to do it counts like so many bytes: 250 header fields or edits make a turn.
_TURN = 4_000_000
_STEP = _TURN // 250

_NOBODY: frozenset[Member] = frozenset()
_Result = TypeVar("_Result")


class _Message:
    """
    What is known of the message that is open.

    :ivar header: ``None`` once it was too long to be kept.
    :ivar lost: Why header or body cannot be shown to milters any more, by the commands that it
        came with.
    """

    def __init__(
        self, header: HeaderModel, body: BodySpool, limits: Limits, *, stops_when_held: bool
    ) -> None:
        self.header: HeaderModel | None = header
        self.body = body
        self.lost: dict[Command, Failure] = {}
        self._limits = limits
        self._header_bytes = 0
        self._edits: ChainEdits | None = None
        self._stops_when_held = stops_when_held

    # ---- what the MTA sends

    def take_field(self, name: str, value: str, *, size: int) -> None:
        """
        Keep a header field.

        :param size: The bytes of name and value.
        """
        if self.header is None:
            return
        # As it stands in a message, with colon, blank and line end.
        self._header_bytes += size + 4
        limit = self._limits.max_header_bytes
        if self._header_bytes > limit:
            self.header = None
            self._lose(HEADER_ROW, f"header fields of more than {limit} bytes (max_header_bytes)")
        else:
            self.header.receive(name, value)

    def take_chunk(self, chunk: bytes) -> None:
        """
        Keep a piece of the body.
        """
        if BODY_ROW in self.lost:
            return
        limit = self._limits.max_body
        if self.body.size + len(chunk) > limit:
            self._lose_body(f"a body of more than {limit} bytes (max_body)")
            return
        try:
            self.body.write(chunk)
        except OSError as error:
            self._lose_body(error)

    def _lose_body(self, why: str | OSError) -> None:
        self.body.close()
        self._lose(BODY_ROW, why)

    def _lose(self, command: Command, why: str | OSError) -> None:
        # A milter that wants to be shown it fails when its turn has come.
        error = LimitExceeded(f"{why} are not kept") if isinstance(why, str) else why
        self.lost[command] = Failure(error)

    # ---- what milters make of it

    def shown(self) -> Iterator[tuple[str, str]]:
        """
        Give the header fields as the next milter sees them.
        """
        return iter(()) if self.header is None else self.header.shown()

    def begin_filter(self, *, shows_header: bool) -> None:
        """
        Give the message to the next milter.
        """
        if self.header is not None:
            self.header.begin_filter(shows_header=shows_header)

    def edit(self, packets: list[bytes]) -> Generator[None, None, bool]:
        """
        Make a milter's edits, one after the other.

        :return: Whether no further filter would be shown the message: Postfix holds one that is
            quarantined.
        """
        body: list[bytes] = []
        held = False
        if self._edits is None:
            self._edits = ChainEdits(self.header)
        for packet in packets:
            edit = read_edit(packet[4], packet[5:], c.SMFI_CURR_ACTS)
            if isinstance(edit, ReplaceBody):
                body.append(packet)
                continue
            if self.header is not None and isinstance(edit, OfHeader):
                yield from self.header.prepare()
            self._edits.add(edit, packet, self.header)
            if self.header is not None:
                self.header.apply(edit)
            held = held or isinstance(edit, Quarantine)
            yield
        if body:
            self._edits.replace_body(body)
            self._replace(packet[5:] for packet in body)
        return held and self._stops_when_held

    def _replace(self, chunks: Iterable[bytes]) -> None:
        # The new body is as good as the old one, which may not have been kept.
        if self.lost.pop(BODY_ROW, None) is not None:
            self.body = self.body.another()
        try:
            self.body.replace(chunks)
        except OSError as error:
            self._lose_body(error)

    def edits(self) -> Generator[None, None, list[bytes]]:
        """
        Give what the milters have made of it as packets.
        """
        return [] if self._edits is None else (yield from self._edits.work(self.header))


class Chain(Merge):
    """
    One milter after the other.
    """

    # How the MTA is told from its fellow.
    symbols = MappingProxyType({c.SMFIM_CONNECT: b"v"})

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._message: _Message | None = None
        # The milters that an MTA would have told of the open message by now, were each a filter of
        # its own, and for each command those that it would tell.
        self._met = _NOBODY
        self._told_of: list[frozenset[Member]] = []
        self._recipients = 0
        # What is answered for those that cannot be shown all recipients.
        self._overrun: dict[Member, ReturnCode] = {}
        # The macros of the last recipient, and the milters that were not shown it.
        self._recipient: bytes | None = None
        self._missed: set[Member] = set()
        # The coroutine that is waiting, what it is for, and what it waits for.
        self._walk: Deferred[None] | None = None
        self._walked: Command | None = None
        self._arrival: Deferred[None] | None = None
        self._sizes: dict[Member, int] = {}
        self._given = 0
        # Where tests turn the clock nobody else waits for a turn.
        self._step = 0 if isinstance(self._clock, Clock) else _STEP

    def compile(self, steps: int, *, skip_offered: bool) -> None:
        """
        Work out what is called for which command.
        """
        self._leading_space = bool(steps & c.SMFIP_HDR_LEADSPC)
        self._shows_refused = bool(steps & c.SMFIP_RCPT_REJ)
        self._sizes = {m: data_size(m.request.steps) for m in self._members}
        self._told_of = [
            frozenset(
                m for m in self._members if command.in_message and not command.no & m.request.steps
            )
            for command in ALL_COMMANDS
        ]

    @classmethod
    def handler(cls, command: Command, plan: Plan, *, answered: bool) -> Handler:
        """
        Make what is done for a command.
        """

        def handle(session: Session, payload: bytes) -> None:
            if command.needs_payload and not payload:
                raise empty(command)
            session.payload = payload
            session.merge.step(command)

        return handle

    def step(self, command: Command) -> None:
        """
        Send a command down the chain, or take in a piece of the content.
        """
        if command in _CONTENT:
            self._take(command)
        elif command is EOM_ROW:
            self._start(command, self._content())
        else:
            callees = self._plan[command.index]
            arguments = DECODERS[command.index](self._session.payload) if callees else ()
            if arguments is not None:
                self._start(command, self._down(command, callees, arguments))

    # ---- coroutines

    def _start(self, command: Command, walk: Coroutine[Any, Any, None]) -> None:
        self._walked = command
        try:
            result = run_coroutine(walk)
        except CancelledError:
            # The conversation was ended in the place of an answer.
            return
        if isinstance(result, Deferred):
            self._walk = result
            result.addErrback(self._walk_failed)

    def _walk_failed(self, failure: Failure) -> None:
        if failure.check(CancelledError):
            return
        _log.failure("The chain broke; this is a bug of yatxmilter", failure)
        self._end_round()
        command = self._walked
        # The MTA must not be left waiting, nor the message get through.
        if command is not None and not command.nr & self._unanswered:
            self._answer(command, (), c.SMFIS_TEMPFAIL, response(c.SMFIS_TEMPFAIL, None))

    async def _ask(
        self, member: Member, command: Command, callback: Callback, *arguments: object
    ) -> ReturnCode:
        result = self._caller.call(member, command, callback, *arguments)
        if type(result) is Pending:
            await self._arrive(result)
            result = result.result
        code = self._read(member, command, result)
        if self._caller.over:
            raise CancelledError
        return code

    async def _arrive(self, pending: Pending) -> None:
        arrival = self._arrival = Deferred()
        self.round = [pending]
        if self._walked is EOM_ROW and self._progress_timer is None:
            self._start_progress()
        pending.wait(self._clock, partial(self._resume, self._settle))
        await arrival

    async def _pause(self, member: Member) -> None:
        """
        Let other connections have their turn.
        """
        turn: Deferred[None] = Deferred(lambda _: call.cancel())
        call = self._clock.callLater(0, turn.callback, None)
        await self._arrive(Pending(member, EOM_ROW, turn))

    def _settle(self, pending: Pending) -> None:
        if pending in self.round:
            self.round = []
            assert self._arrival is not None
            self._arrival.callback(None)

    def cancel(self) -> None:
        """
        Cancel all that is awaited.
        """
        super().cancel()
        walk = self._walk
        self._walk = None
        if walk is not None:
            walk.cancel()

    def give_up(self) -> None:
        """
        Cancel what is awaited, and answer TEMPFAIL where that is owed.
        """
        if self.round and self._walked is not None:
            owed = not self._walked.nr & self._unanswered
            self.cancel()
            if owed:
                self._out.append(response(c.SMFIS_TEMPFAIL, None))

    # ---- connect to DATA

    async def _down(
        self,
        command: Command,
        callees: Callees,
        arguments: tuple[Any, ...],
    ) -> None:
        if command is MAIL_ROW:
            self._see_recipients(self._members)
            self._recipient = None
        members = [self._members[position] for position in callees]
        for number, member in enumerate(members):
            # Before the call: the MTA may go while it is awaited.
            self._meet(command, member.position + 1)
            if command is RCPT_ROW:
                code = await self._ask_recipient(member, arguments[0])
            else:
                own = (arguments[0].copy(),) if command.has_argv else arguments
                code = await self._ask(member, command, member.view(command), *own)
            if code is c.SMFIS_ACCEPT:
                self._leave(member, command)
            elif code is not SMFIS_CONTINUE:
                if command is RCPT_ROW:
                    self._miss_recipient(members[number + 1 :])
                    self._recipient = self._session.macros.recipient
                self._end_chain(command, member, code)
                return
        self._meet(command, len(self._members))
        if command is RCPT_ROW:
            self._recipients += not self._is_refused()
            self._recipient = self._session.macros.recipient
        if self._all_left() and not command.nr & self._unanswered and command is not UNKNOWN_ROW:
            packet = response(c.SMFIS_ACCEPT, None)
            self._answer(command, self._members, c.SMFIS_ACCEPT, packet)
        else:
            self._continue(command, bool(callees))

    def _meet(self, command: Command, end: int) -> None:
        told = self._told_of[command.index]
        if not told <= self._met:
            self._met = self._met.union(member for member in told if member.position < end)

    def join_all(self) -> None:
        """
        Count the open message as begun for all milters.
        """
        self._met = frozenset(self._members)

    def _in_message(self) -> Collection[Member]:
        return [member for member in self._members if member in self._met]

    # ---- recipients

    async def _ask_recipient(self, member: Member, argv: list[str]) -> ReturnCode:
        if self._is_refused():
            if not member.request.steps & c.SMFIP_RCPT_REJ:
                self._miss_recipient([member])
                return SMFIS_CONTINUE
        elif self._recipients >= self._limits.max_recipients:
            self._miss_recipient([member])
            return self._fail_recipient(member)
        self._see_recipients([member])
        return await self._ask(member, RCPT_ROW, member.view(RCPT_ROW), argv.copy())

    def _is_refused(self) -> bool:
        # By the MTA itself, which shows such if somebody asks for them.
        return self._shows_refused and self._session.macros.get("{rcpt_mailer}") == "error"

    def _fail_recipient(self, member: Member) -> ReturnCode:
        code = self._overrun.get(member)
        if code is None:
            limit = self._limits.max_recipients
            error = LimitExceeded(f"a message of more than {limit} recipients (max_recipients)")
            code = self._overrun[member] = self._caller.failed(member, RCPT_ROW, Failure(error))
        return code

    def _miss_recipient(self, members: Iterable[Member]) -> None:
        macros = self._session.macros
        for member in members:
            if member not in self._missed:
                self._missed.add(member)
                member.context.show_macros(RecipientMissed(macros, self._recipient))

    def _see_recipients(self, members: Iterable[Member]) -> None:
        if self._missed:
            for member in self._missed.intersection(members):
                self._missed.discard(member)
                member.context.show_macros(self._session.macros)

    def _end_chain(self, command: Command, member: Member, code: ReturnCode) -> None:
        packet = response(code, member.context.take_reply(code))
        if not command.nr & self._unanswered:
            self._answer(command, [member], code, packet)
        else:
            self._keep(command, member, code, packet)

    # ---- headers to the end of the message

    def _take(self, command: Command) -> None:
        if self._plan[command.index]:
            payload = self._session.payload
            arguments = DECODERS[command.index](payload)
            assert arguments is not None
            message = self._message
            if message is None:
                message = self._message = self._new_message()
            if command is HEADER_ROW:
                # Name and value each have a NUL behind them.
                message.take_field(*arguments, size=len(payload) - 2)
            elif command is BODY_ROW:
                message.take_chunk(*arguments)
        if not (self._session.last_chunk or command.nr & self._unanswered):
            self._out.append(CONTINUE_PACKET)

    def _new_message(self) -> _Message:
        macros = self._session.macros
        flavour = mta_flavour(macros.get("v"), macros.get("j"))
        header = header_model(flavour, leading_space=self._leading_space)
        body = BodySpool(self._limits.spool_memory, flavour)
        return _Message(header, body, self._limits, stops_when_held=flavour == "postfix")

    async def _content(self) -> None:
        message = self._message
        if message is None:
            message = self._message = self._new_message()
        remaining = [member for member in self._members if member not in self._left]
        while remaining:
            member = remaining.pop(0)
            self._meet(EOM_ROW, member.position + 1)
            shows_header = not member.request.steps & c.SMFIP_NOHDRS
            message.begin_filter(shows_header=shows_header)
            code = await self._give(member, message)
            if code is c.SMFIS_ACCEPT:
                self._leave(member, EOM_ROW)
            elif code is not SMFIS_CONTINUE:
                self._end_round()
                packet = response(code, member.context.take_reply(code))
                self._refuse_message(packet, remaining)
                return
            # Also those of an `xxfi_eom` that failed: its `on_error` lets the message pass.
            packets = member.context.take_edits()
            if packets:
                held = await self._work(member, message.edit(packets))
                if held:
                    break
        packets = await self._work(self._members[-1], message.edits()) if self._members else []
        self._end_round()
        self._out += packets
        final = self._all_left()
        self._out.append(response(c.SMFIS_ACCEPT if final else SMFIS_CONTINUE, None))
        self._end(final=final, unfinished=remaining)

    async def _work(self, member: Member, work: Generator[None, None, _Result]) -> _Result:
        """
        Do a piece of work that takes long, and let other connections have their turns in between.
        """
        while True:
            try:
                next(work)
            except StopIteration as done:
                result: _Result = done.value
                return result
            if self._spend(self._step):
                await self._pause(member)

    def _spend(self, amount: int) -> bool:
        self._given += amount
        if self._given < _TURN:
            return False
        self._given = 0
        return True

    async def _give(self, member: Member, message: _Message) -> ReturnCode:
        """
        Give a milter all of the message, up to its first answer that is no continue.
        """
        callback = self._callee(member, HEADER_ROW)
        if callback is not None:
            if HEADER_ROW in message.lost:
                return self._fail_content(member, HEADER_ROW, message.lost[HEADER_ROW])
            for name, value in message.shown():
                code = await self._ask(member, HEADER_ROW, callback, name, value)
                if code is not SMFIS_CONTINUE:
                    return code
                if self._spend(self._step):
                    await self._pause(member)
        callback = self._callee(member, EOH_ROW)
        if callback is not None:
            code = await self._ask(member, EOH_ROW, callback)
            if code is not SMFIS_CONTINUE:
                return code
        code = await self._give_body(member, message)
        if code is not SMFIS_CONTINUE:
            return code
        callback = self._callee(member, EOM_ROW)
        if callback is None:
            return SMFIS_CONTINUE
        member.context.editing = True
        code = await self._ask(member, EOM_ROW, callback)
        member.context.editing = False
        return code

    async def _give_body(self, member: Member, message: _Message) -> ReturnCode:
        chunks = message.body.chunks(self._sizes[member])
        while True:
            # Looked up each time: SKIP takes it away.
            callback = self._callee(member, BODY_ROW)
            if callback is None:
                return SMFIS_CONTINUE
            if BODY_ROW in message.lost:
                return self._fail_content(member, BODY_ROW, message.lost[BODY_ROW])
            try:
                chunk = next(chunks, None)
            except OSError:
                return self._fail_content(member, BODY_ROW, Failure())
            if chunk is None:
                return SMFIS_CONTINUE
            code = await self._ask(member, BODY_ROW, callback, chunk)
            if code is not SMFIS_CONTINUE:
                return code
            if self._spend(len(chunk)):
                await self._pause(member)

    def _fail_content(self, member: Member, command: Command, failure: Failure) -> ReturnCode:
        """
        Give the answer of a milter that cannot be shown what it wants.

        One that lets the message pass is out of it: it must not judge what it has not seen.
        """
        code = self._caller.failed(member, command, failure)
        if code is SMFIS_CONTINUE or code is c.SMFIS_ACCEPT:
            self._abort_members([member])
            return c.SMFIS_ACCEPT
        return code

    def _callee(self, member: Member, command: Command) -> Callback | None:
        return member.view(command) if member.position in self._plan[command.index] else None

    def forget_connection(self) -> None:
        """
        Forget what belongs to the SMTP connection that has ended (QUIT_NC).
        """
        self._see_recipients(self._members)
        self._recipient = None
        super().forget_connection()

    def end_message(self, aborted: Collection[Member]) -> None:
        """
        Forget what belongs to the message, its content included.
        """
        if self._message is not None:
            self._message.body.close()
            self._message = None
        aborted = [member for member in aborted if member in self._met]
        self._met = _NOBODY
        self._recipients = 0
        self._overrun.clear()
        super().end_message(aborted)
