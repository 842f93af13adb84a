"""
What `FirstAnswer` and `Strictest` have in common: a command goes to all milters at once.

As long as callbacks answer CONTINUE at once, a command costs the calls and nothing else. What they
say otherwise is taken by the connection's own merge; an answer that is awaited leaves a `Pending`
behind, and the conversation goes no further until the round it belongs to is over.
"""

from __future__ import annotations

from abc import abstractmethod
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from twisted.python.failure import Failure

from yatxmilter._engine.addresses import DECODERS
from yatxmilter._engine.awaitables import begun
from yatxmilter._engine.command_order import Handler, Plan, drop_unread, empty
from yatxmilter._engine.member import TOLD, Member
from yatxmilter._engine.merge import Merge
from yatxmilter._engine.pending import Pending
from yatxmilter._engine.return_codes import CONTINUE_PACKET
from yatxmilter._wire.commands import EOM_ROW, HEADER_ROW, Command
from yatxmilter._wire.payloads import decode_header
from yatxmilter.constants import SMFIS_CONTINUE, ReturnCode

if TYPE_CHECKING:
    from yatxmilter._engine.session import Session

__all__ = ["Together"]


class Together(Merge):
    """
    All milters that want a command are called before any of their answers is waited for.
    """

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        # The answers to the present command that will have to be waited for.
        self._asked: list[Pending] = []

    @classmethod
    def handler(cls, command: Command, plan: Plan, *, answered: bool) -> Handler:
        """
        Make what is done for a command.
        """
        if len(plan.manners) > 1 or plan.careful:
            return _ask_all(command, plan, answered=answered)
        if not plan.callees[command.index]:
            return _ask_nobody(command, answered=answered)
        if command is EOM_ROW:
            return _ask_at_end(manner=plan.manners[0])
        if command is HEADER_ROW:
            return _ask_about_field(manner=plan.manners[0], answered=answered)
        return _ask_one(command, manner=plan.manners[0], answered=answered)

    # ---- what is not the usual answer

    def take(self, command: Command, member: Member, result: object) -> bool:
        """
        Take what a callback has returned, other than CONTINUE.

        :return: Whether the command is done with: nothing is left to be concluded.
        """
        if type(result) is not ReturnCode:
            result = self._session.caller.resolve(member, command, result)
        return self._take_resolved(command, member, result)

    def take_alone(self, command: Command, member: Member, result: object) -> bool:
        """
        Take what the callback of a lone milter has returned, other than CONTINUE.

        :return: Whether it is CONTINUE after all, which is left to be answered.
        """
        if type(result) is not ReturnCode:
            result = self._session.caller.resolve(member, command, result)
            if result is None or result is SMFIS_CONTINUE:
                return not self._session.over
        if not self._take_resolved(command, member, result):
            self.conclude(command, called=True)
        return False

    def _take_resolved(self, command: Command, member: Member, result: object) -> bool:
        session = self._session
        if type(result) is ReturnCode and session.plan.is_plain(command, result, member):
            code = result
        elif type(result) is Pending:
            self._asked.append(result)
            return False
        else:
            code = self._read(member, command, result)
        if session.over:
            # The conversation was ended in the place of an answer.
            self._cancel_asked()
            return True
        return code is not SMFIS_CONTINUE and self._take(command, member, code)

    def conclude(self, command: Command, *, called: bool) -> None:
        """
        Wait for what must be waited for, or answer.

        :param called: Whether anybody was called.
        """
        asked = self._asked
        if asked:
            self._asked = []
            self._wait(command, asked)
        else:
            self._conclude(command, called)

    def end_usual(self) -> None:
        """
        Answer CONTINUE to an end of message that nobody has said anything else to.
        """
        self._continue(EOM_ROW, True)

    def _cancel_asked(self) -> list[Pending]:
        asked, self._asked = self._asked, []
        for one in asked:
            one.cancel()
        return asked

    def cancel(self) -> None:
        """
        Cancel all that is awaited.
        """
        self._cancel_asked()
        super().cancel()

    @abstractmethod
    def _conclude(self, command: Command, called: bool) -> None:
        """
        Answer a command whose answers are all there.

        :param called: Whether anybody was called for it.
        """

    @abstractmethod
    def _take(self, command: Command, member: Member, code: ReturnCode) -> bool:
        """
        Take an answer other than CONTINUE that has come at once.

        :return: Whether it settles the matter.
        """


# ---- what is done for a command


def _ask_nobody(command: Command, *, answered: bool) -> Handler:
    """
    Answer a command that a lone milter does not want, or for which there is none.
    """
    needs_payload, ends = command.needs_payload, command is EOM_ROW
    usual = CONTINUE_PACKET if answered else None

    def handle(session: Session, payload: bytes) -> bytes | None:
        if needs_payload and not payload:
            raise empty(command)
        if not ends:
            return usual
        session.merge.end_usual()
        return None

    return handle


def _ask_one(command: Command, *, manner: int, answered: bool) -> Handler:
    """
    Show a command to a lone milter.
    """
    decode, callback, index = DECODERS[command.index], command.callback, command.index
    needs_payload = command.needs_payload
    usual = CONTINUE_PACKET if answered else None

    def handle(session: Session, payload: bytes) -> bytes | None:
        if needs_payload and not payload:
            raise empty(command)
        arguments = decode(payload)
        if arguments is None:
            drop_unread(command, session)
            return None
        member = session.members[0]
        try:
            if not manner:
                result = getattr(member.milter, callback)(*arguments)
            elif manner == TOLD:
                result = member.adapted[index](member, *arguments)
            else:
                result = member.adapted[index](*arguments)
        except BaseException:
            result = Failure()
        if not (result is None or result is SMFIS_CONTINUE):
            if type(result) is CoroutineType:
                # Most do not wait.
                result = begun(result)
                if result is None or result is SMFIS_CONTINUE:
                    return usual
            session.payload = payload
            if not session.merge.take_alone(command, member, result):
                return None
        return usual

    return handle


def _ask_about_field(*, manner: int, answered: bool) -> Handler:
    """
    Show a header field to a lone milter; there are more of them than of all other commands.
    """
    usual = CONTINUE_PACKET if answered else None
    index = HEADER_ROW.index

    def handle(session: Session, payload: bytes) -> bytes | None:
        try:
            # What is no UTF-8 raises one, too, and is read as always.
            name, value, rest = payload.decode().split("\0")
        except ValueError:
            name = rest = ""
        if rest or not name:
            if not payload:
                raise empty(HEADER_ROW)
            name, value = decode_header(payload)
        member = session.members[0]
        try:
            if not manner:
                result = member.milter.xxfi_header(name, value)
            elif manner == TOLD:
                result = member.adapted[index](member, name, value)
            else:
                result = member.adapted[index](name, value)
        except BaseException:
            result = Failure()
        if not (result is None or result is SMFIS_CONTINUE):
            if type(result) is CoroutineType:
                # As in `_ask_one`.
                result = begun(result)
                if result is None or result is SMFIS_CONTINUE:
                    return usual
            session.payload = payload
            if not session.merge.take_alone(HEADER_ROW, member, result):
                return None
        return usual

    return handle


def _ask_at_end(*, manner: int) -> Handler:
    """
    Have a lone milter edit the message, and answer to it.
    """

    def handle(session: Session, payload: bytes) -> bytes | None:
        member = session.members[0]
        context = member.context
        context.editing = True
        try:
            result = (member.milter.xxfi_eom if not manner else member.view(EOM_ROW))()
        except BaseException:
            result = Failure()
        if type(result) is CoroutineType:
            result = begun(result)
        usual = result is None or result is SMFIS_CONTINUE
        if usual and session.made_merge is None:
            # All that `end_usual` of a new one would do.
            if context.edits is not None:
                session.out += context.take_edits()
            session.close_message()
            return CONTINUE_PACKET
        merge = session.merge
        if usual or merge.take_alone(EOM_ROW, member, result):
            merge.end_usual()
        return None

    return handle


def _ask_all(command: Command, plan: Plan, *, answered: bool) -> Handler:
    """
    Show a command to all milters that want it, one after the other.
    """
    decode, callback, index = DECODERS[command.index], command.callback, command.index
    needs_payload, in_message, ends = command.needs_payload, command.in_message, command is EOM_ROW
    callees, manners, count = plan.callees[index], plan.manners, len(plan.manners)
    # A list that one milter changes must not change for the next.
    copies = len(callees) > 1 and command.has_argv
    careful = plan.careful or ends
    usual = CONTINUE_PACKET if answered else None

    def handle(session: Session, payload: bytes) -> bytes | None:
        if needs_payload and not payload:
            raise empty(command)
        members, message = session.members, session.message
        voted = message.votes if careful and message is not None else None
        joining = None
        if in_message and message is not None and message.joined < count:
            joining = message
        merge: Any = None
        arguments: Any = ()
        if callees:
            arguments = decode(payload)
            if arguments is None:
                drop_unread(command, session)
                return None
            if ends:
                for position in callees:
                    members[position].context.editing = not voted or members[position] not in voted
        for position in callees:
            member = members[position]
            if voted and member in voted:
                continue
            if joining is not None:
                # Before the call, which may close the connection.
                joining.joined = max(joining.joined, position + 1)
            shown = (arguments[0].copy(),) if copies else arguments
            try:
                manner = manners[position]
                if not manner:
                    result = getattr(member.milter, callback)(*shown)
                elif manner == TOLD:
                    result = member.adapted[index](member, *shown)
                else:
                    result = member.adapted[index](*shown)
            except BaseException:
                result = Failure()
            if result is not None and type(result) is CoroutineType:
                result = begun(result)
            if result is None or result is SMFIS_CONTINUE:
                if session.over:
                    if merge is not None:
                        merge.cancel()
                    return None
                continue
            if merge is None:
                session.payload = payload
                merge = session.merge
            if merge.take(command, member, result):
                return None
        if joining is not None:
            joining.joined = count
        if merge is not None or careful:
            session.merge.conclude(command, called=bool(callees))
            return None
        return usual

    return handle
