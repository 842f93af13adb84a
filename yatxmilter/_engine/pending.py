"""
Waiting for callbacks that did not answer at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from yatxmilter._wire.commands import Command

if TYPE_CHECKING:
    from yatxmilter._engine.member import Member

__all__ = ["Pending"]

_log = Logger(__name__)


class Pending:
    """
    One milter's answer that is awaited.

    :param settle: Called with this object once its ``result`` is there, unless it was dropped.
        A result that is there at once is only stored.
    :ivar result: What the callback's Deferred gave: a value or a Failure.
    :ivar waiting: Whether the result is still to come.
    """

    __slots__ = ("_deferred", "_settle", "_timer", "command", "member", "result", "waiting")

    def __init__(self, member: Member, command: Command, deferred: Deferred[Any]) -> None:
        self.member = member
        self.command = command
        self.result: object = None
        self.waiting = True
        self._deferred = deferred
        self._settle: Callable[[Pending], None] | None = None
        self._timer: IDelayedCall | None = None
        deferred.addBoth(self._fired)

    def wait(self, clock: IReactorTime, settle: Callable[[Pending], None]) -> None:
        """
        Have ``settle`` called when the result comes, or the milter's time is over.

        At once if it has come meanwhile: another milter's callback may have brought it about.
        """
        if not self.waiting:
            settle(self)
            return
        self._settle = settle
        if self.member.timeout is not None:
            self._timer = clock.callLater(self.member.timeout, self._late)

    def cancel(self) -> None:
        """
        Cancel what is awaited; whatever comes of it is dropped.
        """
        self._stop_waiting()
        self._settle = None
        try:
            self._deferred.cancel()
        except BaseException:
            _log.failure("A canceller of milter {milter} failed", milter=self.member.name)

    def _stop_waiting(self) -> None:
        self.waiting = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fired(self, result: object) -> None:
        # Also reached after a cancellation; then nobody is left to be told, and a Failure must
        # not be reported as unhandled: its result is None from here on.
        if not self.waiting:
            return
        self._stop_waiting()
        self.result = result
        if self._settle is not None:
            self._settle(self)

    def _late(self) -> None:
        self._timer = None
        settle = self._settle
        self.cancel()
        seconds = self.member.timeout
        self.result = Failure(
            TimeoutError(f"{self.command.callback} did not answer within {seconds} seconds")
        )
        assert settle is not None
        settle(self)
