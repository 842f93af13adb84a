"""
Each callback to several milters, and one answer back: ``merge="first"``.

All milters that want a command are called, in order, and the first answer that is no continue is
the answer; while there is none, all are waited for.
"""

from __future__ import annotations

from yatxmilter import constants as c
from yatxmilter._engine.member import Member
from yatxmilter._engine.merge_together import Together
from yatxmilter._engine.pending import Pending
from yatxmilter._engine.return_codes import response
from yatxmilter._wire.commands import EOM_ROW, Command
from yatxmilter.constants import SMFIS_CONTINUE, ReturnCode

__all__ = ["FirstAnswer"]


class FirstAnswer(Together):
    """
    The first answer that is no continue is the answer.
    """

    def _take(self, command: Command, member: Member, code: ReturnCode) -> bool:
        message = self._session.message
        end = 0 if message is None else message.joined
        uncalled = self._members[member.position + 1 : end]
        self._decide(command, member, code, self._cancel_asked(), uncalled)
        return True

    def _conclude(self, command: Command, called: bool) -> None:
        self._continue(command, called)

    def _settle(self, pending: Pending) -> None:
        if pending not in self.round:
            # The round is over; to cancel one Deferred may fire another.
            return
        command = pending.command
        self.round.remove(pending)
        if pending.member.made_context is not None:
            pending.member.made_context.editing = False
        code = self._read(pending.member, command, pending.result)
        if code is not SMFIS_CONTINUE:
            rest = self.round
            self._end_round()
            for one in rest:
                one.cancel()
            self._decide(command, pending.member, code, rest, [])
        elif not self.round:
            self._end_round()
            self._continue(command, True)

    def _decide(
        self,
        command: Command,
        member: Member,
        code: ReturnCode,
        pending: list[Pending],
        uncalled: list[Member],
    ) -> None:
        packet = response(code, member.context.take_reply(code))
        if command.nr & self._unanswered and not self._session.last_chunk:
            self._keep(command, member, code, packet)
        elif command is EOM_ROW:
            unfinished = [one.member for one in pending] + uncalled
            if code is c.SMFIS_ACCEPT:
                self._accept_message(packet, unfinished, final=True)
            else:
                self._refuse_message(packet, unfinished)
        else:
            self._answer(command, [member], code, packet)
