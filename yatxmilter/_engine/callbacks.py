"""
Calling a milter's callbacks, and the one place where user code fails.

Whatever a callback does - answer, raise, return a Deferred or a coroutine, return nonsense - comes
out of here as a return code, or as a `Pending` that will become one.

Raising is raising, be it SystemExit: a library that gives up must not take the process, or the
mail of other connections, with it. Nor must an object that raises when it is looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from yatxmilter import constants as c
from yatxmilter._engine.addresses import describe_address
from yatxmilter._engine.awaitables import outcome_of
from yatxmilter._engine.explaining import explained
from yatxmilter._engine.member import Member
from yatxmilter._engine.on_error import Fallback, answer_for
from yatxmilter._engine.pending import Pending
from yatxmilter._engine.return_codes import ON_ERROR, check_code
from yatxmilter._escaping import printable
from yatxmilter._wire.commands import EOM_ROW, OPTNEG_ROW, RCPT_ROW, Command
from yatxmilter._wire.payloads import to_text
from yatxmilter.constants import ReturnCode
from yatxmilter.errors import ReturnCodeError

if TYPE_CHECKING:
    from yatxmilter._engine.session import Session

__all__ = ["Caller"]

_log = Logger(__name__)

_REFUSES: Final = (c.SMFIS_REJECT, c.SMFIS_TEMPFAIL)
_PASSES: Final = (c.SMFIS_CONTINUE, c.SMFIS_ACCEPT)

# So many bytes of a reply are logged.
_SHOWN: Final = 200


def _instead(command: Command, answer: Fallback) -> str:
    # A negotiation has no such answer: the connection goes on or is closed.
    if command is OPTNEG_ROW:
        return f"its on_error is {answer.described}"
    return f"answering {answer.described} for it"


class Caller:
    """
    Sees to the callbacks of one conversation that do anything else than to answer at once.

    :ivar settling: Callbacks whose results are ignored and that are not over yet.
    """

    __slots__ = ("_session", "settling")

    def __init__(self, session: Session) -> None:
        self._session = session
        self.settling: list[Pending] = []

    @property
    def mta(self) -> str:
        """
        The MTA's address, for the log.
        """
        return describe_address(self._session.peer)

    @property
    def connection(self) -> int:
        """
        The connection's number, for the log.
        """
        return self._session.number

    def ask(self, member: Member, command: Command, *arguments: object) -> object:
        """
        Call the callback that a milter has for a command, if it has it.

        :return: What it returned in the end; a Failure; or a `Pending`.
        """
        result = member.call(command, *arguments)
        return None if result is None else self.resolve(member, command, result)

    def resolve(self, member: Member, command: Command, result: object) -> object:
        """
        Get at what a coroutine or Deferred has to say, as far as it can be had at once.

        :return: As `ask`.
        """
        try:
            result = outcome_of(result)
            if result is not None and isinstance(result, Deferred):
                if result.called and not result.paused and not isinstance(result.result, Failure):
                    # It has fired long since.
                    return result.result
                pending = Pending(member, command, result)
                return pending if pending.waiting else pending.result
        except BaseException:
            # The coroutine's, or that of an object which does not let itself be looked at.
            return Failure()
        return result

    def code(self, member: Member, command: Command, result: object) -> ReturnCode:
        """
        Read a callback's result as a return code that is legal there; failures become one too.
        """
        if result is None or result is c.SMFIS_CONTINUE:
            return c.SMFIS_CONTINUE
        if result is ON_ERROR:
            return self.stand_in(member, command)
        # An object that is looked at by `isinstance` may raise.
        if issubclass(type(result), Failure):
            return self.failed(member, command, cast(Failure, result))
        silent = member.promised_silence(command)
        try:
            if silent and isinstance(result, int) and result == c.SMFIS_NOREPLY:
                return c.SMFIS_CONTINUE
            code = check_code(command, result)
            if code in _REFUSES and command is RCPT_ROW and not self._answered(command):
                # It would be given to all recipients, at the next step that is answered.
                raise ReturnCodeError(
                    f"{command.callback} refused a recipient ({code}), and had promised not to"
                    " answer (SMFIP_NR_RCPT)"
                )
        except BaseException:
            return self.failed(member, command, Failure())
        if silent and code not in (c.SMFIS_CONTINUE, c.SMFIS_SKIP):
            # The MTA may have offered no such promise, or another milter not have made it.
            answered = self._answered(command)
            _log.warn(
                "Milter {milter} promised not to answer in {stage}, but returned {code}; it is"
                " given {when} (queue id {queue_id}, MTA {mta})",
                code=code,
                when="all the same" if answered else "at the next step that is answered",
                **self._where(member, command),
            )
        return code

    def failed(self, member: Member, command: Command, failure: Failure) -> ReturnCode:
        """
        Log a callback's failure, once, and tell what is answered for it.
        """
        answer = answer_for(command, member.on_error)
        failure = explained(failure, member.milter)
        self.tell_failure(member, command, failure)
        _log.failure(
            "Milter {milter} failed in {stage} (queue id {queue_id}, MTA {mta}); {instead}",
            failure,
            instead=_instead(command, answer),
            code=answer.described,
            **self._where(member, command),
        )
        return self.stand_in(member, command)

    def stand_in(self, member: Member, command: Command) -> ReturnCode:
        """
        Tell what is answered for a milter that has failed; with DISCONNECT, close the connection.

        The failure has been told.
        """
        answer = answer_for(command, member.on_error)
        if answer.reply is not None:
            member.context.answer_with(answer.reply)
        elif command is RCPT_ROW and not self._answered(command):
            # Whatever was to be said was about one recipient.
            member.context.answer_with(None)
        if command is EOM_ROW:
            # Who lets the message pass lets it pass as edited so far: a sender who can make one
            # call fail must not get rid of the edits made before it.
            self._note_failed(member, answer.disconnects or answer.code not in _PASSES)
        if answer.disconnects:
            self._session.note_decider(member)
            self._session.disconnect()
        return answer.code

    def _note_failed(self, member: Member, failed: bool) -> None:
        message = self._session.message
        if failed and message is not None:
            message.failed |= {member}

    def _answered(self, command: Command) -> bool:
        return self._session.plan.answered(command)

    def ignore(self, member: Member, command: Command, result: object) -> None:
        """
        See to the end of a callback whose result is ignored; until then it is in `settling`.

        :param result: What it has returned, or a Failure.
        """
        result = self.resolve(member, command, result)
        if type(result) is Pending:
            self.settling.append(result)
            self._session.held = True
            result.wait(self._session.clock, self._settle)
            return
        member.context.mute = False
        if type(result) is Failure:
            self._log_ignored(member, command, result)

    def _settle(self, pending: Pending) -> None:
        pending.member.context.mute = False
        if type(pending.result) is Failure:
            self._log_ignored(pending.member, pending.command, pending.result)
        self.settling.remove(pending)
        if not self.settling:
            self._session.run()

    def tell_failure(self, member: Member, command: Command, failure: Failure) -> None:
        """
        Tell observers of a callback's failure.
        """
        watch = self._session.watch
        if watch is not None:
            watch.milter_failed(member.name, command.callback, failure)

    def warn_of_text(
        self, member: Member, command: Command, code: ReturnCode, reply: bytes
    ) -> None:
        """
        Log that the text which a milter has set is of the other class than its answer.
        """
        _log.warn(
            "Milter {milter} answered {code} in {stage}, and the reply it has set, {reply}, is of"
            " the other class: the MTA gets the answer without a text (queue id {queue_id}, MTA"
            " {mta})",
            code=code,
            reply=ascii(to_text(reply[:_SHOWN])),
            **self._where(member, command),
        )

    def _log_ignored(self, member: Member, command: Command, failure: Failure) -> None:
        failure = explained(failure, member.milter)
        self.tell_failure(member, command, failure)
        _log.failure(
            "Milter {milter} failed in {stage} (queue id {queue_id}, MTA {mta})",
            failure,
            **self._where(member, command),
        )

    def _where(self, member: Member, command: Command) -> dict[str, Any]:
        return {
            "milter": member.name,
            "stage": command.callback,
            "queue_id": printable(self._session.macros.get("i") or "unknown"),
            "mta": self.mta,
            "connection": self.connection,
        }
