"""
Calling a milter's callbacks, and the one place where user code fails.

Whatever a callback does - answer, raise, return a Deferred or a coroutine, return nonsense - comes
out of here as a return code, or as a `Pending` that will become one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from types import CoroutineType
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from yatxmilter import constants as c
from yatxmilter._engine.addresses import describe_address
from yatxmilter._engine.member import Callback, Member
from yatxmilter._engine.pending import Pending, run_coroutine
from yatxmilter._engine.return_codes import check_code, fallback
from yatxmilter._wire.commands import EOM_ROW, Command
from yatxmilter._wire.macros import MacroStore
from yatxmilter.constants import ReturnCode
from yatxmilter.errors import ReturnCodeError

__all__ = ["FAILURES", "Caller", "printable"]

_log = Logger()

#: What fails a callback: a cancelled task does not ask the process to end, as its like do.
FAILURES: Final = (Exception, asyncio.CancelledError)


def printable(text: str) -> str:
    """
    Write a text from the MTA so that no log chokes on it, and no line of it can be forged.
    """
    return text.encode("unicode_escape").decode("ascii")


class Caller:
    """
    Calls the milters of one connection.

    :ivar peer: The MTA's address.
    :ivar connection: The connection's number, for the log.
    :ivar settling: Callbacks whose results are ignored and that are not over yet.
    """

    __slots__ = ("_clock", "_macros", "_settled", "connection", "peer", "settling")

    def __init__(
        self, clock: IReactorTime, macros: MacroStore, settled: Callable[[], None]
    ) -> None:
        self._clock = clock
        self._macros = macros
        self._settled = settled
        self.peer: object = None
        self.connection = 0
        self.settling: list[Pending] = []

    @property
    def mta(self) -> str:
        """
        The MTA's address, for the log.
        """
        return describe_address(self.peer)

    def call(
        self, member: Member, command: Command, callback: Callback, *arguments: object
    ) -> object:
        """
        Call a callback.

        :return: What it returned in the end; a Failure; or a `Pending`.
        """
        try:
            result = callback(*arguments)
        except FAILURES:
            return Failure()
        return self.resolve(member, command, result)

    def resolve(self, member: Member, command: Command, result: object) -> object:
        """
        Get at what a coroutine or Deferred has to say, as far as it can be had at once.

        :return: As `call`.
        """
        if isinstance(result, CoroutineType):
            try:
                result = run_coroutine(result)
            except FAILURES:
                return Failure()
        if isinstance(result, Deferred):
            if result.called and not result.paused and not isinstance(result.result, Failure):
                # It has fired long since.
                return result.result
            pending = Pending(member, command, result)
            return pending if pending.waiting else pending.result
        return result

    def code(self, member: Member, command: Command, result: object) -> ReturnCode:
        """
        Read a callback's result as a return code that is legal there; failures become one too.
        """
        if result is None or result is c.SMFIS_CONTINUE:
            return c.SMFIS_CONTINUE
        if isinstance(result, Failure):
            return self.failed(member, command, result)
        silent = member.promised_silence(command)
        if silent and isinstance(result, int) and result == c.SMFIS_NOREPLY:
            return c.SMFIS_CONTINUE
        try:
            code = check_code(command, result)
        except ReturnCodeError:
            return self.failed(member, command, Failure())
        if silent and code not in (c.SMFIS_CONTINUE, c.SMFIS_SKIP):
            _log.warn(
                "Milter {milter} promised not to answer in {stage}, but returned {code}; it is"
                " given at the next step that is answered (queue id {queue_id}, MTA {mta})",
                code=code,
                **self._where(member, command),
            )
        return code

    def failed(self, member: Member, command: Command, failure: Failure) -> ReturnCode:
        """
        Log a callback's failure, once, and tell what is answered for it.
        """
        code = fallback(command, member.on_error)
        if command is EOM_ROW:
            member.failed = True
        _log.failure(
            "Milter {milter} failed in {stage} (queue id {queue_id}, MTA {mta});"
            " answering {code} for it",
            failure,
            code=code,
            **self._where(member, command),
        )
        return code

    def notify(self, members: Iterable[Member], command: Command, *arguments: object) -> None:
        """
        Call a callback whose result is ignored; one that is not over at once is in `settling`.
        """
        for member in members:
            callback = member.callback(command.callback)
            if callback is None:
                continue
            result = self.call(member, command, callback, *arguments)
            if isinstance(result, Pending):
                self.settling.append(result)
                result.wait(self._clock, self._settle)
            elif isinstance(result, Failure):
                self._log_ignored(member, command, result)

    def _settle(self, pending: Pending) -> None:
        if isinstance(pending.result, Failure):
            self._log_ignored(pending.member, pending.command, pending.result)
        self.settling.remove(pending)
        if not self.settling:
            self._settled()

    def _log_ignored(self, member: Member, command: Command, failure: Failure) -> None:
        _log.failure(
            "Milter {milter} failed in {stage} (queue id {queue_id}, MTA {mta})",
            failure,
            **self._where(member, command),
        )

    def _where(self, member: Member, command: Command) -> dict[str, Any]:
        return {
            "milter": member.name,
            "stage": command.callback,
            "queue_id": printable(self._macros.get("i") or "unknown"),
            "mta": self.mta,
            "connection": self.connection,
        }
