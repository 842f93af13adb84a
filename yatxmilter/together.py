"""
What `FirstAnswer` and `Strictest` have in common: a command goes to all milters at once.
"""

from __future__ import annotations

from abc import abstractmethod

from twisted.python.failure import Failure

from yatxmilter.addresses import DECODERS
from yatxmilter.commands import EOM_ROW, Command
from yatxmilter.constants import SMFIS_CONTINUE, ReturnCode
from yatxmilter.members import Member
from yatxmilter.merging import Callees, Merge
from yatxmilter.rounds import Pending

__all__ = ["Together"]


class Together(Merge):
    """
    All milters that want a command are called before any of their answers is waited for.
    """

    def _call(self, command: Command, callees: Callees) -> list[Pending] | None:
        """
        Call milters, in order, and have each answer that is there at once and no continue taken.

        :return: The answers to be waited for; ``None`` when there is nothing more to do.
        """
        arguments = DECODERS[command.index](self._session.payload)
        if arguments is None:
            return None
        members = self._members
        if command is EOM_ROW:
            for position in callees:
                members[position].context.editing = True
        joining = command.in_message and self._joined < len(members)
        # A list that one milter changes must not change for the next.
        shared = arguments[0] if len(callees) > 1 and command.has_argv else None
        pending: list[Pending] = []
        for position in callees:
            member = members[position]
            if joining:
                # Before the call, which may close the connection.
                self._joined = max(self._joined, position + 1)
            if shared is not None:
                arguments = (shared.copy(),)
            try:
                # `Member.view`, without the call.
                if member.adapted is None:
                    result = getattr(member.milter, command.callback)(*arguments)
                else:
                    result = member.adapted[command.index](*arguments)
            except Exception:
                result = Failure()
            if result is None or result is SMFIS_CONTINUE:
                continue
            result = self._caller.resolve(member, command, result)
            if isinstance(result, Pending):
                pending.append(result)
                continue
            code = self._read(member, command, result)
            if code is not SMFIS_CONTINUE and self._take(command, member, code, pending):
                return None
        return pending

    @abstractmethod
    def _take(
        self, command: Command, member: Member, code: ReturnCode, pending: list[Pending]
    ) -> bool:
        """
        Take an answer other than CONTINUE that has come at once.

        :param pending: The answers of those before it that are to be waited for.
        :return: Whether it settles the matter.
        """
