"""
What all merges of several milters' answers have in common.

A merge gives each command to the milters that want it and puts one answer into the output. What
to call for which command is compiled into a plan when negotiation is done. How the answers of
several milters become one is left to the subclasses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple

from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from yatxmilter import constants as c
from yatxmilter._engine.callbacks import Caller
from yatxmilter._engine.command_order import Callees, Handler, Plan
from yatxmilter._engine.member import Member
from yatxmilter._engine.pending import Pending
from yatxmilter._engine.return_codes import CONTINUE_PACKET, SKIP_PACKET, ends_message, response
from yatxmilter._escaping import printable
from yatxmilter._wire.commands import (
    ABORT_ROW,
    BODY_ROW,
    CONNECT_ROW,
    EOM_ROW,
    HELO_ROW,
    RCPT_ROW,
    UNKNOWN_ROW,
    Command,
)
from yatxmilter.constants import SMFIS_CONTINUE, ReturnCode

if TYPE_CHECKING:
    from yatxmilter._engine.session import Session

__all__ = ["Callees", "Kept", "Merge"]

_log = Logger(__name__)

_NOBODY: Final[frozenset[Member]] = frozenset()

# The answers that an SMTP reply goes with.
_REFUSES: Final = (c.SMFIS_REJECT, c.SMFIS_TEMPFAIL)


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
    What makes one answer of those of all milters, on one connection.

    What it does when all milters answer at once is in its handlers, which all connections share;
    one of its own a connection has when it is needed.
    """

    #: Macros that it needs itself, by ``SMFIM_*`` stage.
    symbols: ClassVar[Mapping[int, bytes]] = MappingProxyType({})

    def __init__(self, session: Session) -> None:
        self._session = session
        self._members = session.members
        self._out = session.out
        self._clock = session.clock
        self._limits = session.limits
        self._progress_timer: IDelayedCall | None = None
        self._round: list[Pending] = []

    def compile(self, steps: int, *, skip_offered: bool) -> None:
        """
        Take note of what was agreed on.

        :param steps: The steps agreed on with the MTA.
        """
        return

    @classmethod
    @abstractmethod
    def handler(cls, command: Command, plan: Plan, *, answered: bool) -> Handler:
        """
        Make what is done for a command that milters answer.

        :param answered: Whether the MTA waits for an answer.
        """

    @property
    def round(self) -> list[Pending]:
        """
        The answers that are awaited to the present command.
        """
        return self._round

    @round.setter
    def round(self, pending: list[Pending]) -> None:
        self._round = pending
        if pending:
            self._session.held = True

    # ---- what is known of connection and message

    @property
    def _caller(self) -> Caller:
        return self._session.caller

    @property
    def _resume(self) -> Callable[[Callable[[Pending], None], Pending], None]:
        return self._session.resume

    @property
    def _unanswered(self) -> int:
        return self._session.plan.unanswered

    @property
    def _kept(self) -> Kept | None:
        message = self._session.message
        kept = None if message is None else message.kept
        return self._session.kept if kept is None else kept

    @property
    def _left(self) -> frozenset[Member]:
        message = self._session.message
        return self._session.left if message is None else message.left

    # ---- one command

    def join_all(self) -> None:
        """
        Count the open message as begun for all milters, though not all were called for it.
        """
        message = self._session.message
        if message is not None:
            message.joined = len(self._members)

    def _read(self, member: Member, command: Command, result: object) -> ReturnCode:
        code = self._caller.code(member, command, result)
        if code is not c.SMFIS_SKIP:
            return code
        # A milter's SKIP is its own: its fellows go on getting the body.
        self._uncall(member, BODY_ROW)
        return SMFIS_CONTINUE

    def _uncall(self, member: Member, command: Command) -> None:
        session = self._session
        session.use(session.plan.without(member.position, command))

    def _leave(self, member: Member, command: Command) -> None:
        """
        Call a milter no more: in this message, or after connect and HELO in this connection.
        """
        session = self._session
        session.note_decider(member)
        if session.message is not None:
            session.message.left |= {member}
        if command is CONNECT_ROW or command is HELO_ROW:
            session.left |= {member}
            session.base = session.base.without(member.position)
        session.use(session.plan.without(member.position))

    # ---- waiting

    def _wait(self, command: Command, pending: list[Pending]) -> None:
        # All are in the round before the first can settle.
        self.round = pending
        if command is EOM_ROW:
            awaited = [one.member for one in pending]
            for member in self._members:
                if member.made_context is not None:
                    member.made_context.editing = member in awaited
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
        interval = self._session.progress_interval
        if interval is not None:
            self._progress_timer = self._clock.callLater(interval, self._send_progress)

    def _send_progress(self) -> None:
        self._start_progress()
        self._session.send_progress()

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

    def _packet(self, command: Command, member: Member, code: ReturnCode) -> bytes:
        """
        Write the answer of the milter that decides, with its own text if it has set one.
        """
        # Of one recipient, or of an unknown command, nothing else is decided.
        if ends_message(command, code) or code is c.SMFIS_DISCARD:
            self._session.note_decider(member)
        context = member.made_context
        if context is None:
            return response(code, None)
        reply = context.take_reply(code)
        if reply is None and context.reply is not None and code in _REFUSES:
            self._caller.warn_of_text(member, command, code, context.reply)
        return response(code, reply)

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
        plan = self._session.plan
        return plan.skip_offered and not plan.callees[BODY_ROW.index]

    def _keep(self, command: Command, member: Member, code: ReturnCode, packet: bytes) -> None:
        """
        Keep an answer given where none was promised; one to an unknown command is about that alone.
        """
        if command is not UNKNOWN_ROW:
            for_connection = command is CONNECT_ROW or command is HELO_ROW
            kept = Kept(code, packet, member, for_connection)
            session = self._session
            if session.message is not None and not for_connection:
                session.message.kept = kept
            else:
                session.kept = kept
                session.base = session.base.keeping(True)
            session.use(session.plan.keeping(True))

    def give_kept(self, command: Command) -> None:
        """
        Give the answer that was kept, if an answer is awaited.
        """
        kept = self._kept
        assert kept is not None
        if command.nr & self._unanswered and not self._session.last_chunk:
            return
        code = kept.code
        self._session.note_decider(kept.member)
        over = not kept.for_connection or command is CONNECT_ROW or command is HELO_ROW
        if over and ends_message(command, code):
            self._forget_kept(kept)
        self._answer(command, [kept.member], code, kept.packet)

    def _forget_kept(self, kept: Kept) -> None:
        session = self._session
        if kept is session.kept:
            session.kept = None
            session.base = session.base.keeping(False)
        else:
            assert session.message is not None
            session.message.kept = None
        session.use(session.plan.keeping(False))

    def _answer(
        self, command: Command, done: Collection[Member | None], code: ReturnCode, packet: bytes
    ) -> None:
        """
        Give an answer other than CONTINUE.

        :param done: The milters that have said so themselves; the others, when the answer ends the
            message, are told by ``xxfi_abort``.
        """
        self._out.append(packet)
        if ends_message(command, code):
            others = self._others(done)
            if self._session.finish():
                self.end_message(others)
        elif command is RCPT_ROW and code is c.SMFIS_DISCARD:
            others = self._others(done)
            # For the others the message is over, even though as for libmilter it stays open for
            # the one who said so, until the MTA ends it. They hear no more of it.
            message = self._session.message
            assert message is not None
            others = [member for member in others if member not in message.told]
            over = [member for member in self._members if member not in done]
            message.told = [*message.told, *over]
            plan = self._session.plan
            for one in over:
                plan = plan.without(one.position)
            self._session.use(plan)
            self._abort_members(others)

    def _others(self, done: Collection[Member | None]) -> list[Member]:
        left = self._left
        return [m for m in self._in_message() if m not in done and m not in left]

    def _accept_message(
        self, packet: bytes, unfinished: list[Member], *, final: bool = False
    ) -> None:
        message = self._session.message
        failed = () if message is None else message.failed
        editors = []
        for member in self._members:
            context = member.made_context
            if context is None or context.edits is None:
                continue
            if member not in failed and member not in unfinished:
                editors.append((member, context))
        replacing = [member.name for member, context in editors if context.bodies]
        if len(replacing) > 1:
            _log.error(
                "Milters {milters} replaced the body of one message, which the MTA would take for"
                " one body; answering SMFIS_TEMPFAIL (queue id {queue_id})",
                milters=", ".join(replacing),
                queue_id=printable(self._session.macros.get("i") or "unknown"),
            )
            self._refuse_message(response(c.SMFIS_TEMPFAIL, None), unfinished)
            return
        for _, context in editors:
            self._out += context.take_edits()
        self._out.append(packet)
        self._end(final=final, unfinished=unfinished)

    def _refuse_message(self, packet: bytes, unfinished: list[Member]) -> None:
        # libmilter sends edits when they are made, so a lone milter's go out before its REJECT.
        message = self._session.message
        if len(self._members) == 1 and (message is None or not message.failed):
            self._out += self._members[0].context.take_edits()
        self._out.append(packet)
        self._end(final=True, unfinished=unfinished)

    def _end(self, *, final: bool, unfinished: list[Member]) -> None:
        if final:
            self._session.finish()
        self.end_message(unfinished)

    # ---- messages

    def abort(self) -> None:
        """
        End the message that is open: cancel what is awaited and call ``xxfi_abort``.
        """
        self.cancel()
        if self._session.message is not None:
            done = self._done()
            self.end_message([m for m in self._in_message() if m not in done])

    def _in_message(self) -> Collection[Member]:
        """
        Give the milters that the open message has come to.
        """
        message = self._session.message
        return () if message is None else self._members[: message.joined]

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
        message = self._session.close_message()
        if message is not None and message.told:
            aborted = [member for member in aborted if member not in message.told]
        if aborted:
            self._abort_members(aborted)

    def _abort_members(self, members: Collection[Member]) -> None:
        if members and not self._session.over:
            self._session.notify(members, ABORT_ROW)

    def forget_connection(self) -> None:
        """
        Forget what belongs to the SMTP connection that has ended (QUIT_NC).
        """
        session = self._session
        session.kept = None
        session.left = _NOBODY
        session.base = session.full
        self.end_message(())
        for member in self._members:
            if member.made_context is not None:
                member.made_context.end_connection()
