"""
What all merges of several milters' answers have in common.

A merge gives each command to the milters that want it and puts one answer into the output. What
to call for which command is compiled into a plan when negotiation is done. How the answers of
several milters become one is left to the subclasses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import ClassVar, Final, NamedTuple

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from yatxmilter import constants as c
from yatxmilter._engine.callbacks import Caller
from yatxmilter._engine.command_order import Session
from yatxmilter._engine.member import Member, plan_of
from yatxmilter._engine.pending import Pending
from yatxmilter._engine.return_codes import CONTINUE_PACKET, SKIP_PACKET, ends_message, response
from yatxmilter._escaping import printable
from yatxmilter._mail.bounds import Limits
from yatxmilter._wire.commands import (
    ABORT_ROW,
    ALL_COMMANDS,
    BODY_ROW,
    CONNECT_ROW,
    EOM_ROW,
    HELO_ROW,
    RCPT_ROW,
    UNKNOWN_ROW,
    Command,
)
from yatxmilter.constants import SMFIS_CONTINUE, ReturnCode

__all__ = ["Callees", "Kept", "Merge"]

_log = Logger()

_NOBODY: Final[frozenset[Member]] = frozenset()

#: Who is called for a command, by their positions.
Callees = tuple[int, ...]


class Kept(NamedTuple):
    """
    A final answer given where no answer was promised; it waits for a step that is answered.
    """

    code: ReturnCode
    packet: bytes
    member: Member | None
    for_connection: bool


class Merge(ABC):
    """
    The fan-out of one connection.

    :param out: Where answers are put, as packets.
    :param resume: Called with what is to be done of an awaited result that has come; it goes on
        with the conversation after that.
    :param progress: Called every ``progress_interval`` seconds while an end of message is awaited.
    :param limits: How much of one message may be kept.
    :ivar round: The answers that are awaited to the present command.
    """

    #: Macros that it needs itself, by ``SMFIM_*`` stage.
    symbols: ClassVar[Mapping[int, bytes]] = MappingProxyType({})

    def __init__(
        self,
        session: Session,
        members: list[Member],
        caller: Caller,
        out: list[bytes],
        *,
        clock: IReactorTime,
        resume: Callable[[Callable[[Pending], None], Pending], None],
        progress: Callable[[], None],
        progress_interval: float | None,
        limits: Limits,
    ) -> None:
        self._session = session
        self._members = members
        self._caller = caller
        self._out = out
        self._clock = clock
        self._resume = resume
        self._progress = progress
        self._progress_interval = progress_interval
        self._limits = limits
        self._progress_timer: IDelayedCall | None = None
        self._plan: Sequence[Callees] = ()
        self._full_plan: Sequence[Callees] = ()
        self._unanswered = 0
        self._skip_offered = False
        self._kept: Kept | None = None
        # How many milters, from the first, the message that is open has come to, and which of
        # them have been told already that it is over.
        self._joined = 0
        self._told: Collection[Member] = ()
        self.round: list[Pending] = []
        # Who has accepted for itself alone: this message, or all of the connection.
        self._left: frozenset[Member] = _NOBODY
        self._left_for_good: frozenset[Member] = _NOBODY

    def compile(self, steps: int, *, skip_offered: bool) -> None:
        """
        Work out what is called for which command.

        :param steps: The steps agreed on with the MTA.
        """
        self._unanswered = self._caller.unanswered = steps & c.ALL_NR_STEPS
        self._skip_offered = skip_offered
        macros = self._session.macros
        masks = tuple([member.prepare(steps, macros) for member in self._members])
        self._plan = self._full_plan = plan_of(masks)

    def refuse(self, code: ReturnCode, reply: bytes | None = None) -> None:
        """
        Have the connection answered with REJECT or TEMPFAIL, once something is answered.
        """
        self._kept = Kept(code, response(code, reply), None, True)

    # ---- one command

    @abstractmethod
    def step(self, command: Command) -> None:
        """
        Have a command answered by the milters: at once, or when all that is awaited has come.

        :raises ProtocolError: when its payload cannot be read.
        """

    def join_all(self) -> None:
        """
        Count the open message as begun for all milters, though not all were called for it.
        """
        self._joined = len(self._members)

    def _read(self, member: Member, command: Command, result: object) -> ReturnCode:
        code = self._caller.code(member, command, result)
        if code is not c.SMFIS_SKIP:
            return code
        # A milter's SKIP is its own: its fellows go on getting the body.
        self._uncall(member, BODY_ROW)
        return SMFIS_CONTINUE

    def _uncall(self, member: Member, command: Command) -> None:
        callees = self._plan[command.index]
        if member.position in callees:
            plan = list(self._plan)
            plan[command.index] = tuple([one for one in callees if one != member.position])
            self._plan = plan

    def _leave(self, member: Member, command: Command) -> None:
        """
        Call a milter no more: in this message, or after connect and HELO in this connection.
        """
        self._left |= {member}
        if command is CONNECT_ROW or command is HELO_ROW:
            self._left_for_good |= {member}
        self._uncall_all(member)

    def _uncall_all(self, member: Member) -> None:
        for row in ALL_COMMANDS:
            self._uncall(member, row)

    # ---- waiting

    def _wait(self, command: Command, pending: list[Pending]) -> None:
        # All are in the round before the first can settle.
        self.round = pending
        if command is EOM_ROW:
            awaited = [one.member for one in pending]
            for member in self._members:
                member.context.editing = member in awaited
            self._start_progress()
        for one in pending.copy():
            # A result that has come already may end the round.
            if one in self.round:
                one.wait(self._clock, partial(self._resume, self._settle))

    @abstractmethod
    def _settle(self, pending: Pending) -> None:
        """
        Take an awaited result that has come.
        """

    def _end_round(self) -> None:
        self.round = []
        if self._progress_timer is not None:
            self._progress_timer.cancel()
            self._progress_timer = None

    def _start_progress(self) -> None:
        if self._progress_interval is not None:
            self._progress_timer = self._clock.callLater(
                self._progress_interval, self._send_progress
            )

    def _send_progress(self) -> None:
        self._start_progress()
        self._progress()

    def cancel(self) -> None:
        """
        Cancel all that is awaited.
        """
        pending = self.round
        self._end_round()
        for one in pending:
            one.cancel()

    def give_up(self) -> None:
        """
        Cancel what is awaited, and answer TEMPFAIL where that is owed.
        """
        if not self.round:
            return
        command = self.round[0].command
        self.cancel()
        if self._session.last_chunk or not command.nr & self._unanswered:
            self._out.append(response(c.SMFIS_TEMPFAIL, None))

    # ---- answering

    def _continue(self, command: Command, called: bool) -> None:
        if command is EOM_ROW:
            self._accept_message(CONTINUE_PACKET, [])
        elif self._session.last_chunk or command.nr & self._unanswered:
            pass
        elif command is BODY_ROW and called and self._all_skipped():
            self._out.append(SKIP_PACKET)
        else:
            self._out.append(CONTINUE_PACKET)

    def _all_skipped(self) -> bool:
        return self._skip_offered and not self._plan[BODY_ROW.index]

    def _keep(self, command: Command, member: Member, code: ReturnCode, packet: bytes) -> None:
        """
        Keep an answer given where none was promised; one to an unknown command is about that alone.
        """
        if command is not UNKNOWN_ROW:
            for_connection = command is CONNECT_ROW or command is HELO_ROW
            self._kept = Kept(code, packet, member, for_connection)

    def _give_kept(self, kept: Kept, command: Command) -> None:
        if command.nr & self._unanswered and not self._session.last_chunk:
            return
        code = kept.code
        over = not kept.for_connection or command is CONNECT_ROW or command is HELO_ROW
        if over and ends_message(command, code):
            self._kept = None
        self._answer(command, [kept.member], code, kept.packet)

    def _answer(
        self, command: Command, done: Collection[Member | None], code: ReturnCode, packet: bytes
    ) -> None:
        """
        Give an answer other than CONTINUE.

        :param done: The milters that have said so themselves; the others, when the answer ends the
            message, are told by ``xxfi_abort``.
        """
        self._out.append(packet)
        others = [m for m in self._in_message() if m not in done and m not in self._left]
        if ends_message(command, code):
            if self._session.finish():
                self.end_message(others)
        elif command is RCPT_ROW and code is c.SMFIS_DISCARD:
            # For the others the message is over, even though as for libmilter it stays open for
            # the one who said so, until the MTA ends it. They hear no more of it.
            others = [member for member in others if member not in self._told]
            over = [member for member in self._members if member not in done]
            self._told = [*self._told, *over]
            for one in over:
                self._uncall_all(one)
            self._abort_members(others)

    def _accept_message(
        self, packet: bytes, unfinished: list[Member], *, final: bool = False
    ) -> None:
        editors = [m for m in self._members if not m.failed and m not in unfinished]
        replacing = [m.name for m in editors if m.context.bodies]
        if len(replacing) > 1:
            _log.error(
                "Milters {milters} replaced the body of one message, which the MTA would take for"
                " one body; answering SMFIS_TEMPFAIL (queue id {queue_id})",
                milters=", ".join(replacing),
                queue_id=printable(self._session.macros.get("i") or "unknown"),
            )
            self._refuse_message(response(c.SMFIS_TEMPFAIL, None), unfinished)
            return
        for one in editors:
            self._out += one.context.take_edits()
        self._out.append(packet)
        self._end(final=final, unfinished=unfinished)

    def _refuse_message(self, packet: bytes, unfinished: list[Member]) -> None:
        # libmilter sends edits when they are made, so a lone milter's go out before its REJECT.
        if len(self._members) == 1 and not self._members[0].failed:
            self._out += self._members[0].context.take_edits()
        self._out.append(packet)
        self._end(final=True, unfinished=unfinished)

    def _end(self, *, final: bool, unfinished: list[Member]) -> None:
        if final:
            self._session.finish()
        else:
            self._session.in_message = False
        self.end_message(unfinished)

    # ---- messages

    def abort(self) -> None:
        """
        End the message that is open: cancel what is awaited and call ``xxfi_abort``.
        """
        self.cancel()
        if self._session.in_message:
            self._session.in_message = False
            done = self._done()
            self.end_message([m for m in self._in_message() if m not in done])

    def _in_message(self) -> Collection[Member]:
        """
        Give the milters that the open message has come to.
        """
        return self._members[: self._joined]

    def _done(self) -> Collection[Member | None]:
        """
        Give the milters that have ended the open message for themselves.
        """
        return self._left if self._kept is None else {*self._left, self._kept.member}

    def _all_left(self) -> bool:
        return bool(self._left) and len(self._left) == len(self._members)

    def end_message(self, aborted: Collection[Member]) -> None:
        """
        Forget what belongs to the message, and call ``xxfi_abort`` of those still in it.
        """
        aborted = [member for member in aborted if member not in self._told]
        self._joined = 0
        self._told = ()
        if self._kept is not None and not self._kept.for_connection:
            self._kept = None
        if self._plan is not self._full_plan:
            self._left = _NOBODY
            self._plan = self._full_plan
            for member in self._left_for_good:
                self._leave(member, CONNECT_ROW)
        for member in self._members:
            member.failed = False
            member.context.end_message()
        self._abort_members(aborted)

    def _abort_members(self, members: Collection[Member]) -> None:
        if members and not self._caller.over:
            self._caller.notify(members, ABORT_ROW)

    def forget_connection(self) -> None:
        """
        Forget what belongs to the SMTP connection that has ended (QUIT_NC).
        """
        self._kept = None
        self._left_for_good = _NOBODY
        self.end_message(())
        for member in self._members:
            member.context.end_connection()
