"""
Where the answers of a milter in shadow go: into a `Report` for each message, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Final

from yatxmilter import constants as c
from yatxmilter._engine.command_order import Handler, Plan
from yatxmilter._engine.member import Member
from yatxmilter._engine.merge_first import FirstAnswer
from yatxmilter._engine.pending import Pending
from yatxmilter._engine.shadow_statistics import Report, describe_edit
from yatxmilter._escaping import printable
from yatxmilter._wire.commands import CONNECT_ROW, EOM_ROW, HELO_ROW, RCPT_ROW, UNKNOWN_ROW, Command
from yatxmilter._wire.payloads import decode_strings, to_text
from yatxmilter.constants import ReturnCode

if TYPE_CHECKING:
    from yatxmilter._engine.session import Session

__all__ = ["Recorder"]

_FINE: Final = (c.SMFIS_CONTINUE, c.SMFIS_ACCEPT)


class Recorder(FirstAnswer):
    """
    The answers of one milter.

    Its session is told of a report when the message is over.
    """

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.report: Report | None = None
        # What it answered to the connection: an MTA would not ask it about its messages.
        self._for_connection: tuple[ReturnCode, str, str | None] | None = None

    @classmethod
    def handler(cls, command: Command, plan: Plan, *, answered: bool) -> Handler:
        """
        Have the milter answer, unless an MTA would not ask it any more.
        """
        ask = super().handler(command, plan, answered=answered)

        def handle(session: Session, payload: bytes) -> bytes | None:
            recorder = session.merge
            assert isinstance(recorder, Recorder)
            if recorder.is_asked(command):
                return ask(session, payload)
            recorder._continue(command, False)
            return None

        return handle

    def is_asked(self, command: Command) -> bool:
        """
        Tell whether an MTA would still ask the milter, and take note of the message.
        """
        if command is CONNECT_ROW:
            self._for_connection = None
        if command.in_message:
            report = self.report = self.report or self._new_report()
            report.queue_id = printable(self._session.macros.get("i") or report.queue_id)
            if report.verdict is not None:
                return False
            self.join_all()
        return True

    def _new_report(self) -> Report:
        report = Report()
        if self._for_connection is not None:
            report.verdict, report.stage, report.reply = self._for_connection
        return report

    def _continue(self, command: Command, called: bool) -> None:
        if command is EOM_ROW:
            self._take_verdict(command, c.SMFIS_CONTINUE, None)
        super()._continue(command, called)

    def _decide(
        self,
        command: Command,
        member: Member,
        code: ReturnCode,
        pending: list[Pending],
        uncalled: list[Member],
    ) -> None:
        reply = member.context.take_reply(code)
        text = None if reply is None else printable(to_text(reply))
        if command is CONNECT_ROW or command is HELO_ROW:
            self._for_connection = (code, command.callback, text)
        elif command is RCPT_ROW and code in (c.SMFIS_REJECT, c.SMFIS_TEMPFAIL):
            assert self.report is not None
            recipient = decode_strings(self._session.payload)[0][0]
            self.report.recipients.append((printable(recipient), code, text))
        elif command is not UNKNOWN_ROW:
            self._take_verdict(command, code, text)
        super()._decide(command, member, code, pending, uncalled)

    def _take_verdict(self, command: Command, code: ReturnCode, text: str | None) -> None:
        report = self.report
        if report is None or report.verdict is not None:
            return
        report.verdict, report.stage, report.reply = code, command.callback, text
        message = self._session.message
        failed = () if message is None else message.failed
        for member in self._members:
            if code in _FINE and member not in failed:
                report.edits = [describe_edit(packet) for packet in member.context.outbox]

    def end_message(self, aborted: Collection[Member]) -> None:
        """
        Forget the message, and tell of it.
        """
        super().end_message(aborted)
        report, self.report = self.report, None
        if report is not None and (report.says_no or self._members[0].concerned):
            shadow: Any = self._session
            shadow.tell(report)
