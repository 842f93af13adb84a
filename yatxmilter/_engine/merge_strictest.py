"""
``merge="strictest"``: all milters have their say, and the strictest answer counts.

Every milter that wants a command is called, and all are waited for. DISCARD comes before REJECT,
that before TEMPFAIL, that before CONTINUE. A milter that ACCEPTs takes only itself out, of the
message or, at connect and HELO, of the connection; when all are out the MTA is told.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from yatxmilter import constants as c
from yatxmilter._engine.member import Member
from yatxmilter._engine.merge_together import Together
from yatxmilter._engine.pending import Pending
from yatxmilter._engine.return_codes import response
from yatxmilter._wire.commands import EOM_ROW, RCPT_ROW, UNKNOWN_ROW, Command
from yatxmilter.constants import SMFIS_CONTINUE, ReturnCode

if TYPE_CHECKING:
    from yatxmilter._engine.session import Session

__all__ = ["Strictest"]

_NO_VOTES: Final[Mapping[Member, ReturnCode]] = MappingProxyType({})
_BY_STRICTNESS: Final = (c.SMFIS_DISCARD, c.SMFIS_REJECT, c.SMFIS_TEMPFAIL)


class Strictest(Together):
    """
    The strictest answer of all milters is the answer.
    """

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        # What milters have answered to the present command, other than continues.
        self._votes: dict[Member, ReturnCode] = {}

    @property
    def _standing(self) -> Mapping[Member, ReturnCode]:
        # What was answered in steps of the message that are not answered: these votes stand until
        # the message ends.
        message = self._session.message
        return _NO_VOTES if message is None or message.votes is None else message.votes

    def end_message(self, aborted: Collection[Member]) -> None:
        """
        Forget what belongs to the message.
        """
        self._votes = {}
        super().end_message(aborted)

    def _done(self) -> Collection[Member | None]:
        return {*super()._done(), *self._standing, *self._votes}

    def _take(self, command: Command, member: Member, code: ReturnCode) -> bool:
        self._votes[member] = code
        return False

    def _settle(self, pending: Pending) -> None:
        if pending not in self.round:
            return
        self.round.remove(pending)
        if pending.member.made_context is not None:
            pending.member.made_context.editing = False
        code = self._read(pending.member, pending.command, pending.result)
        if code is not SMFIS_CONTINUE:
            self._votes[pending.member] = code
        if not self.round:
            self._end_round()
            self._conclude(pending.command, True)

    # ---- answering

    def _conclude(self, command: Command, called: bool) -> None:
        new, self._votes = self._votes, {}
        for member in [m for m, code in new.items() if code is c.SMFIS_ACCEPT]:
            del new[member]
            self._leave(member, command)
        if command.nr & self._unanswered and not self._session.last_chunk:
            if new:
                self._keep_votes(command, new)
            return
        decision = self._strictest(command, new)
        if decision is not None:
            self._refuse_with(command, new, *decision)
        elif self._all_left() and command is not UNKNOWN_ROW:
            self._accept_for_all(command)
        else:
            self._continue(command, called)

    def _strictest(
        self, command: Command, new: Mapping[Member, ReturnCode]
    ) -> tuple[Member, ReturnCode] | None:
        # No answer to an unknown command is about the message.
        votes = new if command is UNKNOWN_ROW else {**self._standing, **new}
        for strictest in _BY_STRICTNESS:
            for member in self._members:
                if votes.get(member) is strictest:
                    return member, strictest
        return None

    def _keep_votes(self, command: Command, new: dict[Member, ReturnCode]) -> None:
        # Votes of the message are counted at its next step that is answered. What was said before
        # any message is about all of them.
        session = self._session
        if command.in_message and session.message is not None:
            session.message.votes = {**self._standing, **new}
            session.use(session.plan.careful_of())
            return
        decision = self._strictest(command, new)
        if decision is not None and command is not UNKNOWN_ROW:
            member, code = decision
            packet = response(code, member.context.take_reply(code))
            self._keep(command, member, code, packet)

    def _refuse_with(
        self, command: Command, new: dict[Member, ReturnCode], decider: Member, code: ReturnCode
    ) -> None:
        packet = response(code, decider.context.take_reply(code))
        if command is EOM_ROW:
            self._refuse_message(packet, [])
            return
        # Who only refused the recipient has not ended the message for itself.
        votes = {**self._standing, **new}
        voted = [
            m
            for m, vote in votes.items()
            if command is not RCPT_ROW or vote is c.SMFIS_DISCARD or m in self._standing
        ]
        for member, vote in votes.items():
            # What the others had to say with their answers is not for the next one.
            member.context.take_reply(vote)
        self._answer(command, voted, code, packet)

    def _accept_for_all(self, command: Command) -> None:
        packet = response(c.SMFIS_ACCEPT, None)
        if command is EOM_ROW:
            self._accept_message(packet, [], final=True)
        else:
            self._answer(command, self._members, c.SMFIS_ACCEPT, packet)
