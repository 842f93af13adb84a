"""
Each callback to several milters, and one answer back: ``merge="first"``.

All milters that want a command are called, in order, and the first answer that is no continue is
the answer; while there is none, all are waited for. What to call for which command is compiled
into a plan when negotiation is done. As long as callbacks answer at once, a command costs the
calls and nothing else; one that does not leaves a `Pending` behind, and the conversation pulls
nothing more until the round it belongs to is over.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import NamedTuple

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from yatxmilter import constants as c
from yatxmilter.addresses import DECODERS
from yatxmilter.calling import Caller
from yatxmilter.commands import (
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
from yatxmilter.errors import ProtocolError
from yatxmilter.members import Callback, Member
from yatxmilter.rounds import Pending
from yatxmilter.session import Session
from yatxmilter.verdicts import CONTINUE_PACKET, SKIP_PACKET, ends_message, fallback, response

__all__ = ["FirstAnswer"]

_log = Logger()

Callees = tuple[tuple[Member, Callback], ...]


class _Kept(NamedTuple):
    """
    A final answer given where no answer was promised; it waits for a step that is answered.
    """

    code: ReturnCode
    packet: bytes
    member: Member | None
    for_connection: bool


class FirstAnswer:
    """
    The fan-out of one connection.

    :param out: Where answers are put, as packets.
    :param resume: Called with what is to be done of an awaited result that has come; it goes on
        with the conversation after that.
    :param progress: Called every ``progress_interval`` seconds while an end of message is awaited.
    """

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
    ) -> None:
        self._session = session
        self._members = members
        self._caller = caller
        self._out = out
        self._clock = clock
        self._resume = resume
        self._progress = progress
        self._progress_interval = progress_interval
        self._progress_timer: IDelayedCall | None = None
        self._plan: list[Callees] = []
        self._body_callees: Callees = ()
        self._unanswered = 0
        self._skip_offered = False
        self._kept: _Kept | None = None
        # How many milters, from the first, the message that is open has come to, and which of
        # them have been told already that it is over.
        self._joined = 0
        self._told: Collection[Member] = ()
        self._round: list[Pending] = []

    @property
    def waiting(self) -> bool:
        """
        Whether an answer is awaited.
        """
        return bool(self._round)

    def compile(self, steps: int, *, skip_offered: bool) -> None:
        """
        Work out what is called for which command.

        :param steps: The steps agreed on with the MTA.
        """
        self._unanswered = steps & c.ALL_NR_STEPS
        self._skip_offered = skip_offered
        self._plan = [self._callees(command, steps) for command in ALL_COMMANDS]
        self._body_callees = self._plan[BODY_ROW.index]

    def _callees(self, command: Command, steps: int) -> Callees:
        if not command.codes:
            return ()
        macros = self._session.macros
        shared = len(self._members) > 1
        views = [(m, m.view(command, steps, macros, shared)) for m in self._members]
        return tuple((member, view) for member, view in views if view is not None)

    def refuse(self, code: ReturnCode) -> None:
        """
        Have the connection answered with REJECT or TEMPFAIL, once something is answered.
        """
        code = fallback(CONNECT_ROW, code)
        self._kept = _Kept(code, response(code, None), None, True)

    # ---- one command

    def step(self, command: Command) -> None:
        """
        Have a command answered by the milters: at once, or when all that is awaited has come.

        :raises ProtocolError: when its payload cannot be read.
        """
        kept = self._kept
        if kept is not None and command is not UNKNOWN_ROW:
            self._give_kept(kept, command)
            return
        callees = self._plan[command.index]
        pending: list[Pending] | None = None
        if callees:
            arguments = self._arguments(command)
            if arguments is None:
                return
            if command is EOM_ROW:
                for member, _ in callees:
                    member.context.editing = True
            for member, callback in callees:
                try:
                    result = callback(*arguments)
                except Exception:
                    result = Failure()
                if result is None or result is SMFIS_CONTINUE:
                    continue
                result = self._caller.resolve(member, command, result)
                if isinstance(result, Pending):
                    pending = pending or []
                    pending.append(result)
                    continue
                code = self._read(member, command, result)
                if code is not SMFIS_CONTINUE:
                    uncalled = self._members[member.position + 1 : self._joined]
                    if command.in_message:
                        self._joined = max(self._joined, member.position + 1)
                    self._decide(command, member, code, pending or [], uncalled)
                    return
        if command.in_message:
            self._joined = len(self._members)
        if pending:
            self._wait(command, pending)
        else:
            self._continue(command, bool(callees))

    def _arguments(self, command: Command) -> tuple[object, ...] | None:
        try:
            return DECODERS[command.index](self._session.payload)
        except ProtocolError:
            # The message counts as open, as in libmilter, where the state is set before the
            # payload is read.
            if command.in_message:
                self._joined = len(self._members)
            raise

    def _read(self, member: Member, command: Command, result: object) -> ReturnCode:
        code = self._caller.code(member, command, result)
        if code is not c.SMFIS_SKIP:
            return code
        # A milter's SKIP is its own: its fellows go on getting the body.
        callees = self._plan[BODY_ROW.index]
        self._plan[BODY_ROW.index] = tuple(one for one in callees if one[0] is not member)
        return SMFIS_CONTINUE

    # ---- waiting

    def _wait(self, command: Command, pending: list[Pending]) -> None:
        # All are in the round before the first can settle.
        self._round = pending
        for one in pending:
            one.wait(self._clock, partial(self._resume, self._settle))
        if command is EOM_ROW:
            awaited = [one.member for one in pending]
            for member in self._members:
                member.context.editing = member in awaited
            self._start_progress()

    def _settle(self, pending: Pending) -> None:
        command = pending.command
        self._round.remove(pending)
        pending.member.context.editing = False
        code = self._read(pending.member, command, pending.result)
        if code is not SMFIS_CONTINUE:
            rest = self._round
            self._end_round()
            self._decide(command, pending.member, code, rest, [])
        elif not self._round:
            self._end_round()
            self._continue(command, True)

    def _end_round(self) -> None:
        self._round = []
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
        pending = self._round
        self._end_round()
        for one in pending:
            one.cancel()

    def give_up(self) -> None:
        """
        Cancel what is awaited, and answer TEMPFAIL where that is owed.
        """
        if not self._round:
            return
        command = self._round[0].command
        self.cancel()
        if self._session.last_chunk or not command.nr & self._unanswered:
            self._out.append(response(c.SMFIS_TEMPFAIL, None))

    # ---- answering

    def _continue(self, command: Command, called: bool) -> None:
        if command is EOM_ROW:
            self._accept_message(None, CONTINUE_PACKET, [])
        elif self._session.last_chunk or command.nr & self._unanswered:
            pass
        elif command is BODY_ROW and called and self._all_skipped():
            self._out.append(SKIP_PACKET)
        else:
            self._out.append(CONTINUE_PACKET)

    def _all_skipped(self) -> bool:
        return self._skip_offered and not self._plan[BODY_ROW.index]

    def _decide(
        self,
        command: Command,
        member: Member,
        code: ReturnCode,
        pending: list[Pending],
        uncalled: list[Member],
    ) -> None:
        for one in pending:
            one.cancel()
        packet = response(code, member.context.take_reply(code))
        if command.nr & self._unanswered and not self._session.last_chunk:
            if command is UNKNOWN_ROW:
                return
            for_connection = command is CONNECT_ROW or command is HELO_ROW
            self._kept = _Kept(code, packet, member, for_connection)
        elif command is EOM_ROW:
            unfinished = [one.member for one in pending] + uncalled
            if code is c.SMFIS_ACCEPT:
                self._accept_message(member, packet, unfinished)
            else:
                self._refuse_message(packet, unfinished)
        else:
            self._answer(command, member, code, packet)

    def _give_kept(self, kept: _Kept, command: Command) -> None:
        if command.nr & self._unanswered and not self._session.last_chunk:
            return
        code = kept.code
        over = not kept.for_connection or command is CONNECT_ROW or command is HELO_ROW
        if over and ends_message(command, code):
            self._kept = None
        self._answer(command, kept.member, code, kept.packet)

    def _answer(
        self, command: Command, member: Member | None, code: ReturnCode, packet: bytes
    ) -> None:
        self._out.append(packet)
        others = [one for one in self._members[: self._joined] if one is not member]
        if ends_message(command, code):
            if self._session.finish():
                self.end_message(others)
        elif command is RCPT_ROW and code is c.SMFIS_DISCARD:
            # For the others the message is over, even though as for libmilter it stays open for
            # the one who said so, until the MTA ends it.
            self._abort_members(others)
            self._told = others

    def _accept_message(
        self, member: Member | None, packet: bytes, unfinished: list[Member]
    ) -> None:
        editors = [m for m in self._members if not m.failed and m not in unfinished]
        replacing = [m.name for m in editors if m.context.bodies]
        if len(replacing) > 1:
            _log.error(
                "Milters {milters} replaced the body of one message, which the MTA would take for"
                " one body; answering SMFIS_TEMPFAIL (queue id {queue_id})",
                milters=", ".join(replacing),
                queue_id=self._session.macros.get("i"),
            )
            self._refuse_message(response(c.SMFIS_TEMPFAIL, None), unfinished)
            return
        for one in editors:
            self._out += one.context.take_edits()
        self._out.append(packet)
        self._end(final=member is not None, unfinished=unfinished)

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
        kept = self._kept
        joined = self._members[: self._joined]
        if self._session.in_message:
            self._session.in_message = False
            self.end_message([m for m in joined if kept is None or m is not kept.member])

    def end_message(self, aborted: Collection[Member]) -> None:
        """
        Forget what belongs to the message, and call ``xxfi_abort`` of those still in it.
        """
        aborted = [member for member in aborted if member not in self._told]
        self._joined = 0
        self._told = ()
        if self._kept is not None and not self._kept.for_connection:
            self._kept = None
        if self._plan:
            self._plan[BODY_ROW.index] = self._body_callees
        for member in self._members:
            member.failed = False
            member.context.end_message()
        self._abort_members(aborted)

    def _abort_members(self, members: Collection[Member]) -> None:
        if members:
            self._caller.notify(members, ABORT_ROW)

    def forget_connection(self) -> None:
        """
        Forget what belongs to the SMTP connection that has ended (QUIT_NC).
        """
        self._kept = None
        for member in self._members:
            member.context.end_message()
