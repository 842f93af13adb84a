"""
A milter behind a condition: `GatedMember`, for ``MilterFactory(..., when=...)``.

For the fan-out it is a member like any other. It wants the commands that the condition looks at,
besides those that the milter wants, and decides for each whether the milter is shown it. What the
milter would have been shown while that is not known is kept, with the macros of its time; when the
condition comes true it is caught up on, in order, before the callback of the current step.

What a caught-up callback answers, other than CONTINUE, is answered at the current step, and stands
for as long as it would have if it had come in time: for the message, or for the connection.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock, deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from yatxmilter import constants as c
from yatxmilter._engine.awaitables import awaited, is_awaited, run_coroutine
from yatxmilter._engine.condition_state import CONNECTION_ROWS, Decision, Late, Standing
from yatxmilter._engine.conditions import Condition
from yatxmilter._engine.member import ADAPTED, Callback, Member, Shape
from yatxmilter._engine.on_error import answer_for
from yatxmilter._engine.return_codes import ON_ERROR
from yatxmilter._escaping import printable
from yatxmilter._wire.commands import (
    ABORT_ROW,
    BODY_ROW,
    CONNECT_ROW,
    EOM_ROW,
    MAIL_ROW,
    QUIT_ROW,
    RCPT_ROW,
    UNKNOWN_ROW,
    Command,
)
from yatxmilter._wire.macros import MacroStore
from yatxmilter._wire.negotiation import DEFAULT_SYMBOLS, Request
from yatxmilter._wire.payloads import Offer, from_text, to_text
from yatxmilter.constants import SMFIS_CONTINUE, ReturnCode
from yatxmilter.errors import LimitExceeded

if TYPE_CHECKING:
    from yatxmilter._engine.session import Session

__all__ = ["GatedMember", "member_of"]

_log = Logger(__name__)

#: Where an answer that stands is given again: what comes later belongs to a message that others
#: let pass.
_REPEATS = (*CONNECTION_ROWS, MAIL_ROW, RCPT_ROW)

#: So many callbacks are called late in one turn of the reactor.
_TURN: Final = 250

_DROPPED: Final = (
    "Milter {milter} is not shown {count} HELO and unknown commands, which came before its"
    " condition was known, at {stage} (queue id {queue_id}): so many are not kept"
)
_REFUSED: Final = (
    "Milter {milter} refused {count} recipients, which were accepted before its condition was"
    " known, at {stage}: they stay (queue id {queue_id})"
)


class GatedMember(Member):
    """
    One milter on one connection, behind a condition.
    """

    __slots__ = (
        "_concerned",
        "_condition",
        "_decision",
        "_gone",
        "_late_macros",
        "_macros",
        "_met",
        "_needs",
        "_own_steps_agreed",
        "_seen",
    )

    def __init__(
        self,
        milter: Any,
        position: int,
        shape: Shape,
        session: Session,
        *,
        condition: Condition,
    ) -> None:
        self._gone = False
        super().__init__(milter, position, shape, session)
        self._condition = condition
        self._macros = session.macros
        self._needs = condition.needs
        if condition.needs - {CONNECT_ROW}:
            # Nothing that comes after connect is known before a message begins: the client may
            # say HELO again. And each message begins the matter anew.
            self._needs |= {MAIL_ROW}
        # Whether the milter was shown any of the connection, and of the message.
        self._met = self._seen = False
        self._concerned = False
        self._own_steps_agreed = self.request.steps
        self._decision = Decision(condition, self.on_error, session.macros, session.limits)
        # One for all that is shown late: macros that many callbacks have in common are read once.
        self._late_macros = MacroStore()
        self.request = self.widened(self.request, Offer(0, 0, 0))

    # ---- negotiation

    @property
    def asks_as_others(self) -> bool:
        """
        Tell that it is asked for what the condition looks at, too.
        """
        return False

    def widened(self, request: Request, offer: Offer) -> Request:
        """
        Ask for what the condition looks at, too.
        """
        self._own_steps_agreed = request.steps
        if self._gone:
            return request
        steps = request.steps
        for command in self._needs:
            steps &= ~command.no
        lists = dict(request.symbol_lists)
        if offer.actions & c.SMFIF_SETSYMLIST:
            for stage, name in sorted(self._condition.symbols):
                names = to_text(lists[stage]).split() if stage in lists else None
                names = DEFAULT_SYMBOLS[stage].split() if names is None else names
                if name not in names:
                    lists[stage] = from_text(" ".join([*names, name]))
        return request._replace(steps=steps, symbol_lists=lists)

    def retire(self) -> None:
        """
        Take the milter out of the connection, and the condition with it.
        """
        self._gone = True
        super().retire()

    @property
    def concerned(self) -> bool:
        """
        Whether the last message was the milter's business.
        """
        return self._concerned or self._decision.known is True

    # ---- what is called

    def callback(self, name: str) -> Callback | None:
        """
        Give a callback of the milter's own, ``xxfi_abort`` and ``xxfi_close`` with their gate.
        """
        callback = super().callback(name)
        if self._gone:
            return callback
        if name == ABORT_ROW.callback:
            return partial(self._abort, callback)
        if name == QUIT_ROW.callback:
            return partial(self._close, callback)
        return callback

    def callee(self, command: Command) -> Callback | None:
        """
        Give what to call for a command: the gate, wherever milter or condition want it.
        """
        callback = self.callback(command.callback)
        if self._own_steps_agreed & command.no:
            callback = None
        if callback is None and command not in self._needs and command is not EOM_ROW:
            return None
        return partial(self._called, command, callback)

    def prepare(self, steps: int, macros: MacroStore) -> int:
        """
        Work out how the milter is called: through the gate.
        """
        if self._gone:
            return super().prepare(steps, macros)
        self.adapted, self.manner = self._adapt(steps & ~self.request.steps, macros), ADAPTED
        return sum(1 << index for index in self.adapted)

    def _abort(self, callback: Callback | None) -> object:
        decision = self._decision
        # Of a connection that is all its own it has seen what came, called for it or not.
        seen = self._seen or (decision.known is True and decision.standing is None)
        self._end_message()
        return callback() if seen and callback is not None else None

    def _close(self, callback: Callback | None) -> object:
        met = self._met
        self._met = self._seen = False
        self._decision.begin_connection()
        return callback() if met and callback is not None else None

    def _end_message(self) -> None:
        self._seen = False
        self._decision.end_message()

    # ---- deciding

    def _called(self, command: Command, callback: Callback | None, *arguments: Any) -> object:
        """
        Take the step of the fan-out: show it to the milter, keep it for later, or drop it.
        """
        decision = self._decision
        if command is CONNECT_ROW or command is MAIL_ROW:
            self._seen = self._concerned = False
        told = decision.overrun is not None
        if not decision.note(command, arguments):
            return self._overrun(told)
        joins = not decision.open
        opened = decision.decide(command)
        late = Late(command, callback, arguments)
        if opened is None:
            return None if decision.keep(late) else self._overrun(told)
        if not opened or decision.standing is not None:
            return self._do_without(command, opened and (joins or command in _REPEATS))
        missed = decision.missed()
        if not missed:
            return self._show(late)
        dropped = decision.dropped()
        if dropped:
            self._warn(_DROPPED, dropped, command)
        return run_coroutine(self._catch_up(missed, late))

    def _overrun(self, told: bool) -> object:
        """
        Fail at a recipient that is not kept: it is not the milter's, which stays in the message.

        :param told: Whether that has been told of the message.
        """
        decision = self._decision
        answer = answer_for(RCPT_ROW, self.on_error)
        if answer.disconnects or answer.code is not SMFIS_CONTINUE:
            decision.received -= 1
        if told:
            return ON_ERROR
        raise LimitExceeded(f"the condition has {decision.overrun}")

    # ---- calling

    def _do_without(self, command: Command, says: bool) -> object:
        """
        Answer for the milter.

        :param says: Whether the answer that stands is given; it is if the milter comes to the
            message only now, too.
        """
        standing = self._decision.standing
        if command is EOM_ROW:
            self._end_message()
        if standing is None or not says or command is UNKNOWN_ROW:
            # Who is out of the message does without the rest of it.
            return c.SMFIS_SKIP if command is BODY_ROW else None
        self.context.answer_with(standing.reply)
        return standing.code

    def _show(self, late: Late) -> object:
        self._met = True
        if late.command.in_message:
            self._seen = self._concerned = True
        if late.command is EOM_ROW:
            return self._finish(late)
        return None if late.callback is None else late.callback(*late.arguments)

    def _finish(self, late: Late) -> object:
        try:
            result = None if late.callback is None else late.callback()
        except BaseException:
            self._end_message()
            raise
        if is_awaited(result):
            return run_coroutine(self._finished(result))
        self._end_message()
        return result

    async def _finished(self, result: Any) -> object:
        # If it is cancelled xxfi_abort may follow, and ends the message.
        result = await awaited(result)
        self._end_message()
        return result

    async def _catch_up(self, missed: list[Late], now: Late) -> object:
        refused: list[Standing] = []
        takes_turns = not isinstance(self._session.clock, Clock)
        for count, late in enumerate(missed, 1):
            try:
                code = await self._show_late(
                    late, now.command, in_turn=takes_turns and not count % _TURN
                )
            except CancelledError:
                self._decision.put_back(missed[count:])
                raise
            if self._session.over:
                return ON_ERROR
            if code is SMFIS_CONTINUE or late.command is UNKNOWN_ROW:
                continue
            reply = self.context.take_reply(code)
            standing = Standing(code, reply, late.command in CONNECTION_ROWS)
            if late.command is not RCPT_ROW or code is c.SMFIS_DISCARD or code is c.SMFIS_ACCEPT:
                return self._stand(standing, now.command)
            refused.append(standing)
        if refused and len(refused) == self._decision.received:
            return self._stand(refused[-1], now.command)
        if refused:
            self._warn(_REFUSED, len(refused), now.command)
        self.context.editing = now.command is EOM_ROW
        return await awaited(self._show(now))

    def _stand(self, standing: Standing, command: Command) -> object:
        self._decision.standing = standing
        # For the milter the message is over.
        self._seen = False
        return self._do_without(command, True)

    async def _show_late(self, late: Late, now: Command, *, in_turn: bool) -> ReturnCode:
        context = self.context
        context.editing = False
        self._late_macros.become(late.macros)
        context.show_macros(self._late_macros)
        context.early = late.early
        try:
            if in_turn:
                # Other connections have theirs.
                await deferLater(self._session.clock, 0)
            result = await self._shown_late(late)
        except CancelledError:
            # Its time is over, or the message: the first is answered for at the current step.
            answer = answer_for(now, self.on_error)
            self._decision.standing = Standing(answer.code, answer.reply, False)
            raise
        finally:
            context.early = False
            context.show_macros(self._macros)
        return self._session.caller.code(self, late.command, result)

    async def _shown_late(self, late: Late) -> object:
        try:
            return await awaited(self._show(late))
        except (CancelledError, GeneratorExit):
            # It is no longer waited for.
            raise
        except BaseException:
            return Failure()

    def _warn(self, text: str, count: int, command: Command) -> None:
        _log.warn(
            text,
            milter=self.name,
            count=count,
            stage=command.callback,
            queue_id=self._queue_id(),
        )

    def _queue_id(self) -> str:
        return printable(self._macros.get("i") or "unknown")


def member_of(milter: Any, position: int, shape: Shape, session: Session) -> Member:
    """
    Make a milter a member, behind the condition of its factory if that has one.
    """
    condition = getattr(getattr(milter, "factory", None), "when", None)
    if condition is None:
        return Member(milter, position, shape, session)
    return GatedMember(milter, position, shape, session, condition=condition)
