"""
What the milters' answers come to, step by step and for a whole message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from yatxmilter._engine.awaitables import running_loop
from yatxmilter._mail.delivery import Delivery
from yatxmilter._wire.actions import NOT_AWAITED, Edit, Response
from yatxmilter.client._profiles import Reply
from yatxmilter.constants import ReturnCode
from yatxmilter.testing._values import Delivered, Path
from yatxmilter.testing._watching import MilterTestFailure

__all__ = ["Answer", "Result", "Sent", "Stage", "Told", "Transaction"]

_Self = TypeVar("_Self", bound="Answer")

#: What the client is told, what the milters answered, and at which stage.
Told = tuple[Reply, Response, str]

#: The same where the client may be told nothing.
Result = tuple[Reply | None, Response, str]


class Stage(Protocol):
    """
    What an answer needs of the MTA.
    """

    def flush(self) -> None:
        """
        Carry what has been said.
        """

    def settle(self, over: Callable[[], bool]) -> None:
        """
        Wait for the threads of callbacks.
        """

    def call_after_flush(self, deferred: Deferred[None]) -> None:
        """
        Fire a Deferred when all has been carried.
        """

    def awaited(self) -> None:
        """
        Take note that somebody awaits an answer.
        """

    @property
    def waiting(self) -> Sequence[object]:
        """
        The callbacks that are waited for.
        """


class Answer:
    """
    The answer to one step, once the milters have given it.
    """

    def __init__(self, mta: Stage, step: str, result: Deferred[Any]) -> None:
        self.step = step
        self._mta = mta
        self._outcome: Result | Failure | None = None
        self._waiting: list[Deferred[None]] = []
        self._future: asyncio.Future[None] | None = None
        result.addBoth(self._take)

    def _take(self, outcome: Any) -> None:
        self._outcome = outcome
        if self._future is not None:
            self._future.set_result(None)
        for one in self._waiting:
            # Not from within: the test may end there.
            self._mta.call_after_flush(one)

    def __await__(self: _Self) -> Generator[Any, Any, _Self]:
        """
        Wait for the answer, in a test that is a coroutine: one of asyncio's, or one of trial's.

        :return: The answer itself.
        """
        # Before it is looked: what comes after that is told.
        self._mta.awaited()
        if not self.done:
            loop = running_loop()
            if loop is not None and asyncio.current_task(loop) is not None:
                self._future = self._future or loop.create_future()
                yield from asyncio.shield(self._future)
            else:
                deferred: Deferred[None] = Deferred()
                self._waiting.append(deferred)
                yield from deferred.__await__()
        return self

    @property
    def done(self) -> bool:
        """
        Whether there is an answer.
        """
        self._mta.flush()
        return self._outcome is not None

    def _result(self) -> Result:
        self._mta.settle(lambda: self._outcome is not None)
        if self._outcome is None:
            calls = ", ".join(map(str, self._mta.waiting)) or "no callback"
            raise MilterTestFailure(f"{self.step} has no answer yet; waiting for {calls}")
        if isinstance(self._outcome, Failure):
            self._outcome.raiseException()
        assert isinstance(self._outcome, tuple)
        return self._outcome

    @property
    def reply(self) -> Reply:
        """
        What the SMTP client is told.

        :raises MilterTestFailure: while a milter has not answered, and where nothing is told.
        """
        reply = self._result()[0]
        if reply is None:
            raise MilterTestFailure(
                f"the SMTP client gets no reply to {self.step}, only at the end"
            )
        return reply

    @property
    def verdict(self) -> ReturnCode:
        """
        What the milters have answered; CONTINUE where they were not asked.
        """
        return self._result()[1].code

    @property
    def awaited(self) -> bool:
        """
        Whether the milters were asked, and had not promised to give no answer.
        """
        return self._result()[1] is not NOT_AWAITED

    @property
    def stage(self) -> str:
        """
        Where that was.
        """
        return self._result()[2]

    def __repr__(self) -> str:
        state = "waiting"
        if self.done:
            reply, response, _ = self._result()
            state = str(reply or response.code)
        return f"<{type(self).__name__} to {self.step}: {state}>"


@dataclass
class Transaction:
    """
    What came of a message.
    """

    sender: Path
    recipients: list[Path] = field(default_factory=list)
    refused: dict[str, Reply] = field(default_factory=dict)
    edits: tuple[Edit, ...] = ()
    progress: int = 0
    delivered: Delivered | None = None


class Sent(Answer):
    """
    What became of a message.
    """

    def __init__(self, mta: Stage, result: Deferred[Any], transaction: Transaction) -> None:
        super().__init__(mta, "the message", result)
        self._transaction = transaction

    @property
    def transaction(self) -> Transaction:
        """
        All that is known of the message, once it is over.
        """
        self._result()
        return self._transaction

    @property
    def accepted(self) -> bool:
        """
        Whether the client was told that the message is taken.
        """
        return self.reply.code == 250

    @property
    def edits(self) -> tuple[Edit, ...]:
        """
        The modification actions, in order.
        """
        return self.transaction.edits

    @property
    def quarantined(self) -> str | None:
        """
        Why the message is held, if it is.
        """
        return Delivery(self.edits).held if self.accepted else None

    @property
    def recipients(self) -> list[str]:
        """
        The recipients that were accepted.
        """
        return [path.address for path in self.transaction.recipients]

    @property
    def refused(self) -> dict[str, Reply]:
        """
        Those that were not, and what the client was told.
        """
        return self.transaction.refused

    @property
    def delivered(self) -> Delivered:
        """
        The message as it leaves the MTA (once it is released, if it is held).

        :raises MilterTestFailure: where it was refused or discarded.
        """
        delivered = self.transaction.delivered
        if delivered is None:
            raise MilterTestFailure(f"nothing is delivered: {self.verdict!s}, {self.reply}")
        return delivered
