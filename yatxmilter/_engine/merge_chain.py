"""
``merge="chain"``: one milter after the other, as if the MTA ran each by itself.

From connect to DATA each command goes down the chain. Headers and body are taken in first; at the
end of the message each milter in turn gets all of it, as the ones before it have left it, and
makes its edits. They reach the MTA once, at the end. ACCEPT takes its own milter out; a negative
answer ends the chain.

A command goes down in a loop, which is left when a milter lets wait and taken up again with its
answer. The end of the message is a coroutine: it may wait at any field or chunk of any milter.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, Generator, Iterable, Iterator
from functools import lru_cache, partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock, deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from yatxmilter import constants as c
from yatxmilter._engine.addresses import DECODERS
from yatxmilter._engine.awaitables import run_coroutine
from yatxmilter._engine.chain_content import ChainContent
from yatxmilter._engine.command_order import Handler, Plan, drop_unread, empty
from yatxmilter._engine.member import Member
from yatxmilter._engine.merge import Merge
from yatxmilter._engine.pending import Pending
from yatxmilter._engine.return_codes import CONTINUE_PACKET, response
from yatxmilter._mail.body_spool import BodySpool
from yatxmilter._mail.header_models import HeaderModel, header_model
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
from yatxmilter._wire.payloads import decode_header
from yatxmilter.constants import SMFIS_CONTINUE, ReturnCode
from yatxmilter.errors import LimitExceeded

if TYPE_CHECKING:
    from yatxmilter._engine.session import Session

__all__ = ["Chain"]

_log = Logger(__name__)

_CONTENT: Final = frozenset((HEADER_ROW, EOH_ROW, BODY_ROW))

# So many bytes of body are given to milters in one turn of the reactor, and for what else there is
# to do it counts like so many bytes: 250 header fields or edits make a turn.
_TURN: Final = 4_000_000
_STEP: Final = _TURN // 250
# So many fields are shown before it is looked whether the turn is over.
_FIELDS: Final = 50

_Result = TypeVar("_Result", bool, list[bytes])


class _OpenMessage:
    """
    What a chain knows of the message that is open. It is made anew for each.

    :ivar met: The milters that an MTA would have told of the message by now, were each a filter of
        its own: a bit for each position.
    :ivar recipients: How many recipients there have been, those left out that the MTA refused.
    :ivar overrun: What is answered for milters that cannot be shown all recipients.
    :ivar content: Its header and body; ``None`` as long as there is nothing of them.
    """

    __slots__ = ("content", "met", "overrun", "recipients")

    def __init__(self) -> None:
        self.met = 0
        self.recipients = 0
        self.overrun: dict[Member, ReturnCode] = {}
        self.content: ChainContent | None = None

    def close(self) -> None:
        """
        Give the room back that its body takes.
        """
        if self.content is not None:
            self.content.body.close()


class Chain(Merge):
    """
    One milter after the other.

    :ivar message: What it knows of the message that is open.
    """

    # How the MTA is told from its fellow.
    symbols = MappingProxyType({c.SMFIM_CONNECT: b"v"})

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.message = _OpenMessage()
        # For each command, the milters that an MTA would tell of the message by it, as in `met`.
        self._told_of: tuple[int, ...] = ()
        # The macros of the last recipient, and the milters that were not shown it. They are looked
        # up after the end of the message too.
        self._recipient: bytes | None = None
        self._missed: set[Member] = set()
        # The command that is going down the chain, and what is done with the answer awaited to it.
        self._current: Command | None = None
        self._then: Callable[[Pending], None] | None = None
        # The end of the message, when it waits.
        self._filtering: Deferred[None] | None = None
        # What the MTA is, once it has said so.
        self._flavour: str | None = None
        # How much was given to milters in this turn of the reactor. Where tests turn the clock
        # nobody else waits for a turn.
        self._given = 0
        self._step = 0 if isinstance(self._clock, Clock) else _STEP

    def compile(self, steps: int, *, skip_offered: bool) -> None:
        """
        Work out which milters an MTA would tell of a message, by which command.
        """
        self._shows_refused = bool(steps & c.SMFIP_RCPT_REJ)
        self._told_of = _told_by(tuple([member.request.steps for member in self._members]))

    @classmethod
    def handler(cls, command: Command, plan: Plan, *, answered: bool) -> Handler:
        """
        Make what is done for a command.
        """
        wanted = bool(plan.callees[command.index])
        if command in _CONTENT:
            return _keep_content(command, wanted=wanted, answered=answered)
        if command is EOM_ROW:
            return _filter_message
        return _send_down(command, wanted=wanted)

    # ---- waiting

    def _await(self, pending: Pending, then: Callable[[Pending], None]) -> None:
        self.round = [pending]
        self._then = then
        if self._current is EOM_ROW and self._progress_timer is None:
            self._start_progress()
        pending.wait(self._clock, partial(self._resume, self._settle))

    def _settle(self, pending: Pending) -> None:
        if pending in self.round:
            self.round = []
            then = self._then
            assert then is not None
            try:
                then(pending)
            except BaseException:
                self._broke(Failure())

    def _broke(self, failure: Failure) -> None:
        if failure.check(CancelledError):
            return
        _log.failure("The chain broke; this is a bug of yatxmilter", failure)
        self._end_round()
        command = self._current
        # The MTA must not be left waiting, nor the message get through.
        if command is not None and not command.nr & self._unanswered:
            self._answer(command, (), c.SMFIS_TEMPFAIL, response(c.SMFIS_TEMPFAIL, None))

    def cancel(self) -> None:
        """
        Cancel all that is awaited.
        """
        super().cancel()
        filtering, self._filtering = self._filtering, None
        if filtering is not None:
            filtering.cancel()

    def give_up(self) -> None:
        """
        Cancel what is awaited, and answer TEMPFAIL where that is owed.
        """
        # A milter that is shown the header lets the end of the message wait.
        if self.round and self._current is not None:
            owed = not self._current.nr & self._unanswered
            self.cancel()
            if owed:
                self._out.append(response(c.SMFIS_TEMPFAIL, None))

    # ---- connect to DATA

    def send_down(self, command: Command, arguments: tuple[Any, ...]) -> bytes | None:
        """
        Show a command to the milters that want it, one after the other.

        :return: The usual answer, if that is to be given.
        """
        self._current = command
        if command is MAIL_ROW:
            self._see_recipients(self._members)
            self._recipient = None
        return self._go_down(command, arguments, iter(self._session.plan.callees[command.index]))

    def _go_down(
        self, command: Command, arguments: tuple[Any, ...], below: Iterator[int]
    ) -> bytes | None:
        session, members, message = self._session, self._members, self.message
        told, has_argv = self._told_of[command.index], command.has_argv
        withholds = command is RCPT_ROW and self._may_withhold()
        for position in below:
            member = members[position]
            if told:
                # Before the call: the MTA may go while it is awaited.
                message.met |= told & ((2 << position) - 1)
            code = self._withheld(member) if withholds else None
            if code is None:
                # A list that one milter changes must not change for the next.
                shown = (arguments[0].copy(),) if has_argv else arguments
                try:
                    result = member.view(command)(*shown)
                except BaseException:
                    result = Failure()
                if (result is None or result is SMFIS_CONTINUE) and not session.over:
                    continue
                result = self._caller.resolve(member, command, result)
                if type(result) is Pending:
                    self._await(result, partial(self._go_on_down, command, arguments, below))
                    return None
                code = self._read(member, command, result)
            if not self._goes_on(command, member, code, below):
                return None
        message.met |= told
        return self._end_below(command)

    def _go_on_down(
        self, command: Command, arguments: tuple[Any, ...], below: Iterator[int], pending: Pending
    ) -> None:
        code = self._read(pending.member, command, pending.result)
        if self._goes_on(command, pending.member, code, below):
            self._session.give(self._go_down(command, arguments, below))

    def _goes_on(
        self, command: Command, member: Member, code: ReturnCode, below: Iterable[int]
    ) -> bool:
        """
        Take an answer; tell whether the command goes further down.
        """
        if self._session.over:
            # The conversation was ended in the place of an answer.
            return False
        if code is c.SMFIS_ACCEPT:
            self._leave(member, command)
        elif code is not SMFIS_CONTINUE:
            if command is RCPT_ROW:
                self._miss_recipient([self._members[position] for position in below])
                self._recipient = self._session.macros.recipient
            packet = self._packet(command, member, code)
            if command.nr & self._unanswered:
                self._keep(command, member, code, packet)
            else:
                self._answer(command, [member], code, packet)
            return False
        return True

    def _end_below(self, command: Command) -> bytes | None:
        """
        Answer a command that no milter has said no to.

        :return: The usual answer, if it is that one.
        """
        plan = self._session.plan
        if command is RCPT_ROW:
            self.message.recipients += not self._session.refuses_recipient
            self._recipient = self._session.macros.recipient
        if command.nr & plan.unanswered:
            return None
        # Nobody has left where the plan is not careful.
        if plan.careful and command is not UNKNOWN_ROW and self._all_left():
            packet = response(c.SMFIS_ACCEPT, None)
            self._answer(command, self._members, c.SMFIS_ACCEPT, packet)
            return None
        return CONTINUE_PACKET

    # ---- milters that are not shown a recipient

    def _may_withhold(self) -> bool:
        full = self.message.recipients >= self._limits.max_recipients
        return full or bool(self._missed) or self._shows_refused

    def _withheld(self, member: Member) -> ReturnCode | None:
        """
        Give the answer of a milter that is not to be shown the recipient; ``None`` if it is.
        """
        if self._session.refuses_recipient:
            if not member.request.steps & c.SMFIP_RCPT_REJ:
                self._miss_recipient([member])
                return SMFIS_CONTINUE
        elif self.message.recipients >= self._limits.max_recipients:
            self._miss_recipient([member])
            return self._overrun(member)
        self._see_recipients([member])
        return None

    def _overrun(self, member: Member) -> ReturnCode:
        overrun = self.message.overrun
        code = overrun.get(member)
        if code is None:
            limit = self._limits.max_recipients
            error = LimitExceeded(f"a message of more than {limit} recipients (max_recipients)")
            code = overrun[member] = self._caller.failed(member, RCPT_ROW, Failure(error))
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

    # ---- the end of the message

    @property
    def content(self) -> ChainContent:
        """
        Header and body of the message that is open, which milters are shown at its end.
        """
        message = self.message
        content = message.content
        if content is None:
            content = message.content = self._new_content()
        return content

    def _new_content(self) -> ChainContent:
        flavour = self._flavour
        if flavour is None:
            macros = self._session.macros
            version = macros.get("v")
            hostname = None if version else macros.get("j")
            flavour = mta_flavour(version, hostname)
            if version or hostname:
                # It is the same MTA as long as the connection lasts.
                self._flavour = flavour
        plan = self._session.plan
        header: HeaderModel | None = None
        if plan.callees[HEADER_ROW.index]:
            header = header_model(flavour, leading_space=bool(plan.steps & c.SMFIP_HDR_LEADSPC))
        return ChainContent(
            header,
            BodySpool(self._limits.spool_memory, flavour),
            self._limits,
            stops_when_held=flavour == "postfix",
        )

    def filter(self) -> None:
        """
        Show the message to one milter after the other, with the edits of those before.
        """
        self._current = EOM_ROW
        try:
            result = run_coroutine(self._filter(self.content))
        except CancelledError:
            # The conversation was ended in the place of an answer.
            return
        if isinstance(result, Deferred):
            self._filtering = result
            result.addErrback(self._broke)

    async def _filter(self, content: ChainContent) -> None:
        told = self._told_of[EOM_ROW.index]
        left = self._left
        below = [member for member in self._members if member not in left]
        while below:
            member = below.pop(0)
            self.message.met |= told & ((2 << member.position) - 1)
            code = await self._show_message(member, content)
            if code is c.SMFIS_ACCEPT:
                self._leave(member, EOM_ROW)
            elif code is not SMFIS_CONTINUE:
                self._end_round()
                packet = self._packet(EOM_ROW, member, code)
                self._refuse_message(packet, below)
                return
            # Also those of an `xxfi_eom` that failed: its `on_error` lets the message pass.
            edits = [] if member.made_context is None else member.made_context.take_edits()
            if edits:
                held = await self._in_turns(content.edit(edits))
                if held:
                    break
        self._out += await self._in_turns(content.edits())
        self._end_round()
        final = self._all_left()
        self._out.append(response(c.SMFIS_ACCEPT if final else SMFIS_CONTINUE, None))
        self._end(final=final, unfinished=below)

    async def _show_message(self, member: Member, content: ChainContent) -> ReturnCode:
        """
        Show a milter all of the message, up to its first answer that is no continue.
        """
        if content.header is not None:
            shows_header = not member.request.steps & c.SMFIP_NOHDRS
            content.header.begin_filter(shows_header=shows_header)
        code = await self._show_header(member, content)
        if code is SMFIS_CONTINUE and self._is_called(member, BODY_ROW):
            code = await self._show_body(member, content)
        if code is SMFIS_CONTINUE and self._is_called(member, EOM_ROW):
            context = member.context
            context.editing = True
            unusual = self._show(member, EOM_ROW)
            if unusual is not None:
                code = await unusual
            context.editing = False
        return code

    async def _show_header(self, member: Member, content: ChainContent) -> ReturnCode:
        code = SMFIS_CONTINUE
        if self._is_called(member, HEADER_ROW):
            if content.header is None:
                return self._fail_content(member, HEADER_ROW, content.lost[HEADER_ROW])
            show, session = member.view(HEADER_ROW), self._session
            for fields in content.header.shown(_FIELDS):
                for name, value in fields:
                    # As in `_show`, without a call.
                    try:
                        result = show(name, value)
                    except BaseException:
                        result = Failure()
                    if session.over or not (result is None or result is SMFIS_CONTINUE):
                        code = await self._answer_to(member, HEADER_ROW, result)
                        if code is not SMFIS_CONTINUE:
                            return code
                if self._ends_turn(len(fields) * self._step):
                    await self._next_turn()
        if self._is_called(member, EOH_ROW):
            unusual = self._show(member, EOH_ROW)
            if unusual is not None:
                code = await unusual
        return code

    async def _show_body(self, member: Member, content: ChainContent) -> ReturnCode:
        if BODY_ROW in content.lost:
            return self._fail_content(member, BODY_ROW, content.lost[BODY_ROW])
        chunks = content.body.chunks(data_size(member.request.steps))
        while True:
            try:
                chunk = next(chunks, None)
            except OSError:
                return self._fail_content(member, BODY_ROW, Failure())
            if chunk is None:
                return SMFIS_CONTINUE
            unusual = self._show(member, BODY_ROW, chunk)
            if unusual is not None:
                code = await unusual
                # SKIP has it called no more.
                if code is not SMFIS_CONTINUE or not self._is_called(member, BODY_ROW):
                    return code
            if self._ends_turn(len(chunk)):
                await self._next_turn()

    def _is_called(self, member: Member, command: Command) -> bool:
        return member.position in self._session.plan.callees[command.index]

    def _show(
        self, member: Member, command: Command, *arguments: object
    ) -> Coroutine[Any, Any, ReturnCode] | None:
        """
        Call a callback.

        :return: ``None`` for a continue; else gives its answer, when that has come.
        """
        try:
            result = member.view(command)(*arguments)
        except BaseException:
            result = Failure()
        if self._session.over or not (result is None or result is SMFIS_CONTINUE):
            return self._answer_to(member, command, result)
        return None

    async def _answer_to(self, member: Member, command: Command, result: object) -> ReturnCode:
        result = self._caller.resolve(member, command, result)
        if type(result) is Pending:
            result = await self._arrival(result)
        code = self._read(member, command, result)
        if self._session.over:
            raise CancelledError
        return code

    async def _arrival(self, pending: Pending) -> object:
        arrival: Deferred[Pending] = Deferred()
        self._await(pending, arrival.callback)
        await arrival
        return pending.result

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

    # ---- turns of the reactor

    async def _in_turns(self, work: Generator[None, None, _Result]) -> _Result:
        """
        Do work that takes long, and let other connections have their turns in between.
        """
        while True:
            try:
                next(work)
            except StopIteration as done:
                result: _Result = done.value
                return result
            if self._ends_turn(self._step):
                await self._next_turn()

    def _ends_turn(self, amount: int) -> bool:
        """
        Count what was done in this turn; tell whether it is enough.
        """
        self._given += amount
        if self._given < _TURN:
            return False
        self._given = 0
        return True

    async def _next_turn(self) -> None:
        turn: Deferred[None] = deferLater(self._clock, 0)
        await self._arrival(Pending(self._members[-1], EOM_ROW, turn))

    # ---- messages

    def join_all(self) -> None:
        """
        Count the open message as begun for all milters.
        """
        if self._session.message is not None:
            self.message.met = (1 << len(self._members)) - 1

    def _in_message(self) -> Collection[Member]:
        met = self.message.met
        return [member for member in self._members if met >> member.position & 1]

    def end_message(self, aborted: Collection[Member]) -> None:
        """
        Forget what belongs to the message, its content included.
        """
        met = self.message.met
        self.message.close()
        self.message = _OpenMessage()
        super().end_message([member for member in aborted if met >> member.position & 1])

    def forget_connection(self) -> None:
        """
        Forget what belongs to the SMTP connection that has ended (QUIT_NC).
        """
        self._see_recipients(self._members)
        self._recipient = None
        super().forget_connection()


# Most connections of a server have milters that ask for the same.
@lru_cache(maxsize=256)
def _told_by(requests: tuple[int, ...]) -> tuple[int, ...]:
    """
    Tell for each command which milters an MTA would tell of a message by it, as in `met`.

    :param requests: The ``SMFIP_*`` steps of the milters, in order.
    """
    return tuple(
        [
            sum(
                [
                    1 << position
                    for position, steps in enumerate(requests)
                    if command.in_message and not command.no & steps
                ]
            )
            for command in ALL_COMMANDS
        ]
    )


# ---- what is done for a command


def _send_down(command: Command, *, wanted: bool) -> Handler:
    decode, needs_payload = DECODERS[command.index], command.needs_payload

    def handle(session: Session, payload: bytes) -> bytes | None:
        if needs_payload and not payload:
            raise empty(command)
        arguments = decode(payload) if wanted else ()
        if arguments is None:
            drop_unread(command, session)
            return None
        answer: bytes | None = session.merge.send_down(command, arguments)
        return answer

    return handle


def _keep_content(command: Command, *, wanted: bool, answered: bool) -> Handler:
    needs_payload = command.needs_payload
    is_field, is_chunk = command is HEADER_ROW, command is BODY_ROW
    usual = CONTINUE_PACKET if answered else None

    def handle(session: Session, payload: bytes) -> bytes | None:
        if needs_payload and not payload:
            raise empty(command)
        if wanted:
            merge: Any = session.made_merge or session.merge
            content = merge.message.content or merge.content
            if is_field:
                # Name and value each have a NUL behind them.
                content.take_field(decode_header(payload), len(payload) - 2)
            elif is_chunk:
                content.take_chunk(payload)
        return usual

    return handle


def _filter_message(session: Session, payload: bytes) -> None:
    session.merge.filter()
