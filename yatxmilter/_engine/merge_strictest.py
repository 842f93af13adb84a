"""
``merge="strictest"``: all milters have their say, and the strictest answer counts.

Every milter that wants a command is called, and all are waited for. DISCARD comes before REJECT,
that before TEMPFAIL, that before CONTINUE. A milter that ACCEPTs takes only itself out, of the
message or, at connect and HELO, of the connection; when all are out the MTA is told.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from yatxmilter import constants as c
from yatxmilter._engine.member import Member
from yatxmilter._engine.merge_together import Together
from yatxmilter._engine.pending import Pending
from yatxmilter._engine.return_codes import response
from yatxmilter._wire.commands import EOM_ROW, RCPT_ROW, UNKNOWN_ROW, Command
from yatxmilter.constants import SMFIS_CONTINUE, ReturnCode

__all__ = ["Strictest"]

_BY_STRICTNESS: Final = (c.SMFIS_DISCARD, c.SMFIS_REJECT, c.SMFIS_TEMPFAIL)


class Strictest(Together):
    """
    The strictest answer of all milters is the answer.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # What milters have answered, other than continues: in this round, and in earlier steps of
        # the message that were not answered.
        self._votes: dict[Member, ReturnCode] = {}
        # Who voted in such a step: that vote stands until the message ends.
        self._standing: set[Member] = set()

    def end_message(self, aborted: Collection[Member]) -> None:
        """
        Forget what belongs to the message, votes included.
        """
        self._votes.clear()
        self._standing.clear()
        super().end_message(aborted)

    def _done(self) -> Collection[Member | None]:
        return {*super()._done(), *self._votes}

    def _take(
        self, command: Command, member: Member, code: ReturnCode, pending: list[Pending]
    ) -> bool:
        self._votes[member] = code
        return False

    def _vote(self, member: Member, command: Command, result: object) -> None:
        code = self._read(member, command, result)
        if code is not SMFIS_CONTINUE:
            self._votes[member] = code

    def _settle(self, pending: Pending) -> None:
        if pending not in self.round:
            return
        self.round.remove(pending)
        pending.member.context.editing = False
        self._vote(pending.member, pending.command, pending.result)
        if not self.round:
            self._end_round()
            self._conclude(pending.command, True)

    # ---- answering

    def _conclude(self, command: Command, called: bool) -> None:
        for member in [m for m, code in self._votes.items() if code is c.SMFIS_ACCEPT]:
            del self._votes[member]
            self._leave(member, command)
        if command.nr & self._unanswered and not self._session.last_chunk:
            self._keep_votes(command)
            return
        decision = self._strictest(command)
        if decision is not None:
            self._refuse_with(command, *decision)
        elif self._all_left() and command is not UNKNOWN_ROW:
            self._accept_for_all(command)
        else:
            self._continue(command, called)

    def _strictest(self, command: Command) -> tuple[Member, ReturnCode] | None:
        # No answer to an unknown command is about the message.
        silent = self._standing if command is UNKNOWN_ROW else ()
        for strictest in _BY_STRICTNESS:
            for member in self._members:
                if member not in silent and self._votes.get(member) is strictest:
                    return member, strictest
        return None

    def _keep_votes(self, command: Command) -> None:
        # Votes of the message are counted at its next step that is answered. What was said before
        # any message is about all of them.
        if command.in_message:
            self._standing.update(self._votes)
            return
        decision = self._strictest(command)
        self._forget_votes()
        if decision is None:
            return
        if command is not UNKNOWN_ROW:
            member, code = decision
            packet = response(code, member.context.take_reply(code))
            self._keep(command, member, code, packet)

    def _refuse_with(self, command: Command, decider: Member, code: ReturnCode) -> None:
        packet = response(code, decider.context.take_reply(code))
        if command is EOM_ROW:
            self._refuse_message(packet, [])
            return
        # Who only refused the recipient has not ended the message for itself.
        voted = [
            m
            for m, vote in self._votes.items()
            if command is not RCPT_ROW or vote is c.SMFIS_DISCARD or m in self._standing
        ]
        for member, vote in self._votes.items():
            # What the others had to say with their answers is not for the next one.
            member.context.take_reply(vote)
        self._forget_votes()
        self._answer(command, voted, code, packet)

    def _forget_votes(self) -> None:
        self._votes = {m: code for m, code in self._votes.items() if m in self._standing}

    def _accept_for_all(self, command: Command) -> None:
        packet = response(c.SMFIS_ACCEPT, None)
        if command is EOM_ROW:
            self._accept_message(packet, [], final=True)
        else:
            self._answer(command, self._members, c.SMFIS_ACCEPT, packet)
