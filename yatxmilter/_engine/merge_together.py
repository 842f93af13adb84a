"""
What `FirstAnswer` and `Strictest` have in common: a command goes to all milters at once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from types import MappingProxyType

from twisted.python.failure import Failure

from yatxmilter._engine.addresses import DECODERS
from yatxmilter._engine.member import Member
from yatxmilter._engine.merge import Callees, Merge
from yatxmilter._engine.pending import Pending
from yatxmilter._engine.return_codes import CONTINUE_PACKET
from yatxmilter._wire.commands import BODY_ROW, EOM_ROW, UNKNOWN_ROW, Command
from yatxmilter.constants import SMFIS_CONTINUE, ReturnCode

__all__ = ["Together"]


class Together(Merge):
    """
    All milters that want a command are called before any of their answers is waited for.
    """

    # The answers of this message that count with the next; kept by `Strictest`.
    _votes: Mapping[Member, ReturnCode] = MappingProxyType({})

    def step(self, command: Command) -> None:
        """
        Call all that want the command, and have it answered if nothing is to be waited for.
        """
        kept = self._kept
        if kept is not None and command is not UNKNOWN_ROW:
            self._give_kept(kept, command)
            return
        members = self._members
        callees = self._plan[command.index]
        pending: list[Pending] = []
        joining = command.in_message and self._joined < len(members)
        if callees:
            arguments = DECODERS[command.index](self._session.payload)
            if arguments is None:
                return
            if command is EOM_ROW:
                self._open_edits(callees)
            # A list that one milter changes must not change for the next.
            shared = arguments[0] if len(callees) > 1 and command.has_argv else None
            for position in callees:
                member = members[position]
                if self._votes and member in self._votes:
                    continue
                if joining:
                    # Before the call, which may close the connection.
                    self._joined = max(self._joined, position + 1)
                if shared is not None:
                    arguments = (shared.copy(),)
                try:
                    # `Member.view`, without a call.
                    if member.adapted is None:
                        result = getattr(member.milter, command.callback)(*arguments)
                    else:
                        result = member.adapted[command.index](*arguments)
                except BaseException:
                    result = Failure()
                if result is None or result is SMFIS_CONTINUE:
                    continue
                result = self._caller.resolve(member, command, result)
                if type(result) is Pending:
                    pending.append(result)
                    continue
                code = self._read(member, command, result)
                if code is SMFIS_CONTINUE:
                    continue
                if self._caller.over:
                    # The conversation was ended in the place of an answer.
                    for one in pending:
                        one.cancel()
                    return
                if self._take(command, member, code, pending):
                    return
        if joining:
            self._joined = len(members)
        if pending:
            self._wait(command, pending)
        elif (
            self._votes
            or self._left
            or command is EOM_ROW
            or command is BODY_ROW
            or command.nr & self._unanswered
        ):
            self._conclude(command, bool(callees))
        else:
            self._out.append(CONTINUE_PACKET)

    def _open_edits(self, callees: Callees) -> None:
        for position in callees:
            member = self._members[position]
            member.context.editing = member not in self._votes

    @abstractmethod
    def _conclude(self, command: Command, called: bool) -> None:
        """
        Answer a command whose answers are all there.

        :param called: Whether anybody was called for it.
        """

    @abstractmethod
    def _take(
        self, command: Command, member: Member, code: ReturnCode, pending: list[Pending]
    ) -> bool:
        """
        Take an answer other than CONTINUE that has come at once.

        :param pending: The answers of those before it that are to be waited for.
        :return: Whether it settles the matter.
        """
