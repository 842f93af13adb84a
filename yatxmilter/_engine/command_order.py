"""
What each command does in each state: tables from a letter to its handler.

The order of commands is libmilter's (``engine.c``): an illegal one ends the message that is open,
and is then tried once more as if after HELO; if it is illegal there too it is dropped without a
word. What a legal one does is compiled once for all connections that have agreed on the same, with
the same milters: a `Plan` has a table for each state. What happens in a message may lead to another
plan, which has other handlers in its tables: a milter that hears no more of it, or an answer that
has been given already.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final

from yatxmilter import constants as c
from yatxmilter._wire.commands import (
    ABORT_ROW,
    ALL_COMMANDS,
    BODY_ROW,
    CALLBACK_STEPS,
    CONNECT_ROW,
    EOM_ROW,
    HELO,
    INIT,
    MACRO_ROW,
    MAIL_ROW,
    MESSAGE_STATES,
    OPTNEG_ROW,
    QUIT_NC_ROW,
    QUIT_ROW,
    RCPT_ROW,
    UNKNOWN_ROW,
    Command,
    legal_commands,
)
from yatxmilter._wire.macros import NO_MACROS
from yatxmilter.constants import ReturnCode
from yatxmilter.errors import ProtocolError

if TYPE_CHECKING:
    from yatxmilter._engine.member import Member
    from yatxmilter._engine.merge import Merge
    from yatxmilter._engine.session import Session

__all__ = [
    "Callees",
    "Handler",
    "Plan",
    "StateTable",
    "empty",
    "fresh_plan",
    "plan_for",
    "state_of",
]

#: What a command does: it is given the session and the payload. It returns the usual answer, if
#: that is what it gives, behind all that it has put out itself.
Handler = Callable[["Session", bytes], "bytes | None"]

#: Who is called for a command, by their positions.
Callees = tuple[int, ...]

_NAMES: Final = (
    "INIT", "OPTS", "CONN", "HELO", "MAIL", "RCPT", "DATA", "HDRS",
    "EOHS", "BODY", "ENDM", "QUIT", "ABRT", "UNKN", "Q_NC",
)  # fmt: skip

#: What is kept of what they say, where there are observers: whose message it is.
_TELL_OF_MESSAGE: Final = frozenset({CONNECT_ROW, MAIL_ROW, RCPT_ROW})

# The answer that is kept is given for these: those of the milters, but not to unknown commands.
_GIVES_KEPT: Final = frozenset(CALLBACK_STEPS) - {UNKNOWN_ROW}


#: What each command does in one state, by its letter, and the table of the state it leads to; last
#: comes the state. It is a plain list, as a place in that is found the fastest.
StateTable = list[Any]  # of "tuple[Handler, StateTable]", but for the last

_LETTERS: Final = 256


def state_of(table: StateTable) -> int:
    """
    Tell of which state a table is.
    """
    state: int = table[_LETTERS]
    return state


class Plan:
    """
    What each command does in each state. It belongs to no connection, and does not change.

    :ivar merge: How the answers of several milters become one.
    :ivar steps: The ``SMFIP_*`` steps agreed on; ``unanswered``: those of them that promise not to
        answer; ``declined``: the steps passed over.
    :ivar callees: Who is called for each command, by `Command.index`.
    :ivar manners: For each milter, how its callbacks are called; see `Member.manner`.
    :ivar kept: Whether there is an answer already, which is given to each command.
    :ivar careful: Whether each command must be concluded with care: some milter has accepted for
        itself alone, or has given an answer that counts later.
    :ivar tables: By state.
    :ivar chunk: What is done with the body chunk of a BODYEOB, and ``eom`` with what follows it.
    :ivar abort: What is done with an ABORT.
    """

    __slots__ = (
        "abort",
        "callees",
        "careful",
        "chunk",
        "declined",
        "eom",
        "kept",
        "manners",
        "merge",
        "observed",
        "skip_offered",
        "steps",
        "tables",
        "unanswered",
    )

    def __init__(
        self,
        merge: type[Merge],
        steps: int,
        declined: int,
        skip_offered: bool,
        callees: tuple[Callees, ...],
        manners: tuple[int, ...],
        observed: bool,
        kept: bool,
        careful: bool,
    ) -> None:
        self.merge = merge
        self.steps = steps
        self.unanswered = steps & c.ALL_NR_STEPS
        self.declined = declined
        self.skip_offered = skip_offered
        self.callees = callees
        self.manners = manners
        self.observed = observed
        self.kept = kept
        self.careful = careful
        self.tables = tuple([[*_UNKNOWN, state] for state in range(len(_NAMES))])
        handlers = {command: self._handler(command) for command in ALL_COMMANDS}
        self.abort = handlers[ABORT_ROW]
        self.eom = handlers[EOM_ROW]
        self.chunk = self._observed(BODY_ROW, self._milters(BODY_ROW, last_chunk=True))
        handlers[EOM_ROW] = _end_of_message
        self._fill(handlers)

    # ---- other plans

    def keeping(self, kept: bool) -> Plan:
        """
        Give the plan where there is an answer already, or none any more.
        """
        return self._other(self.callees, kept, self.careful)

    def careful_of(self) -> Plan:
        """
        Give the plan where each command is concluded with care.
        """
        return self._other(self.callees, self.kept, True)

    def without(self, position: int, command: Command | None = None) -> Plan:
        """
        Give the plan where a milter is not called any more: for this command, or for any.
        """
        callees = tuple(
            [
                tuple([one for one in callees if one != position])
                if command is None or index == command.index
                else callees
                for index, callees in enumerate(self.callees)
            ]
        )
        return self._other(callees, self.kept, self.careful or command is None)

    def _other(self, callees: tuple[Callees, ...], kept: bool, careful: bool) -> Plan:
        return _compiled(
            self.merge,
            self.steps,
            self.declined,
            self.skip_offered,
            callees,
            self.manners,
            self.observed,
            kept,
            careful,
        )

    # ---- what is compiled

    def is_plain(self, command: Command, code: ReturnCode, member: Member) -> bool:
        """
        Tell whether a return code is one that is legal at a command, and needs no second look.
        """
        silent = command.nr & (self.unanswered | member.request.steps)
        return not silent and code is not c.SMFIS_SKIP and code in command.codes

    def answered(self, command: Command) -> bool:
        """
        Tell whether the MTA waits for an answer to a command.
        """
        return not command.nr & self.unanswered

    def _fill(self, handlers: dict[Command, Handler]) -> None:
        legal = legal_commands(self.declined)
        tables = self.tables
        for state, table in enumerate(tables):
            for command in ALL_COMMANDS:
                after = table if command.state is None else tables[command.state]
                entry: tuple[Handler, StateTable]
                if command is MACRO_ROW:
                    entry = _take_macros, table
                elif legal[state] & command.bit:
                    entry = _in_order(command, state, handlers[command]), after
                elif state in MESSAGE_STATES:
                    entry = partial(_end_message_first, command.letter), tables[HELO]
                elif command is QUIT_ROW:
                    entry = handlers[command], after
                elif legal[HELO] & command.bit:
                    entry = _in_order(command, HELO, handlers[command]), after
                elif command is ABORT_ROW:
                    # No mistake: Postfix sends one after each message.
                    entry = _nothing, tables[HELO]
                else:
                    dropped = f"{command.name} in state {_NAMES[state]}"
                    entry = partial(_drop, dropped), tables[HELO]
                table[command.letter] = entry

    def _handler(self, command: Command) -> Handler:
        milters = self._milters(command, last_chunk=False) if command.codes else None
        return self._observed(command, milters or _CONTROLS[command])

    def _milters(self, command: Command, *, last_chunk: bool) -> Handler:
        if self.kept and command in _GIVES_KEPT:
            return partial(_give_kept, command)
        return self.merge.handler(command, self, answered=self.answered(command) and not last_chunk)

    def _observed(self, command: Command, handler: Handler) -> Handler:
        if not (self.observed and command.callback):
            return handler
        return _observe(command, handler, answered=self.answered(command))


_compiled: Final = lru_cache(maxsize=256)(Plan)


@lru_cache(maxsize=256)
def plan_for(
    merge: type[Merge],
    steps: int,
    declined: int,
    skip_offered: bool,
    masks: tuple[int, ...],
    manners: tuple[int, ...],
    observed: bool,
) -> Plan:
    """
    Give the plan of connections that have agreed on the same.

    :param masks: For each milter the commands it is called for, as `Member.prepare` gives them.
    """
    callees = tuple(
        [
            tuple([position for position, mask in enumerate(masks) if mask & command.bit])
            for command in ALL_COMMANDS
        ]
    )
    return _compiled(merge, steps, declined, skip_offered, callees, manners, observed, False, False)


class _FreshPlan(Plan):
    """
    What is done as long as nothing was negotiated.

    Everything but the negotiation has a plan made first, and is then looked up in that.
    """

    __slots__ = ()

    def _fill(self, handlers: dict[Command, Handler]) -> None:
        table = self.tables[INIT]
        for command in ALL_COMMANDS:
            table[command.letter] = partial(_unasked, command.letter), table
        negotiate = _in_order(OPTNEG_ROW, INIT, handlers[OPTNEG_ROW])
        opts = self.tables[OPTNEG_ROW.state or 0]
        table[OPTNEG_ROW.letter] = negotiate, opts
        table[MACRO_ROW.letter] = _take_macros, table


@lru_cache(maxsize=16)
def fresh_plan(merge: type[Merge], observed: bool) -> Plan:
    """
    Give the plan of connections on which nothing was agreed yet.
    """
    nobody = ((),) * len(ALL_COMMANDS)
    return _FreshPlan(merge, 0, 0, False, nobody, (), observed, False, False)


# ---- handlers


def drop_unread(command: Command, session: Session) -> None:
    """
    Take note of a command whose payload cannot be read, and which is dropped for that: a HELO.
    """
    session.drop(command.name, "does not end in NUL")


def empty(command: Command) -> ProtocolError:
    """
    Make the error of a command whose payload is missing.
    """
    return ProtocolError(f"{command.name} without payload")


def _in_order(command: Command, state: int, handler: Handler) -> Handler:
    """
    Put before a handler what its command does besides: it ends macros, or begins a message.
    """
    stale = NO_MACROS[command.stale :]
    first = command.stale
    opens = command.in_message and state not in MESSAGE_STATES
    if not (opens or stale):
        return handler
    needs_payload = command.needs_payload

    def handle(session: Session, payload: bytes) -> bytes | None:
        if payload or not needs_payload:
            if opens:
                session.open_message()
            if stale:
                session.macros.payloads[first:] = stale
        return handler(session, payload)

    return handle


def _unknown(letter: int, session: Session, payload: bytes) -> None:
    raise ProtocolError(f"unknown command {chr(letter)!r}")


def _take_macros(session: Session, payload: bytes) -> None:
    # They belong to the command behind them, and are in no state's way.
    if not payload:
        raise ProtocolError("MACRO without a stage")
    session.macros.put(payload)


def _end_message_first(letter: int, session: Session, payload: bytes) -> None:
    # The command is looked at again after that.
    session.put_off(partial(_look_again, letter), payload)
    session.plan.abort(session, b"")


def _look_again(letter: int, session: Session, payload: bytes) -> None:
    try:
        session.handle(letter, payload)
    except ProtocolError:
        # The milters have been told that a message is over, and know of no other.
        session.close_message()
        raise


def _drop(dropped: str, session: Session, payload: bytes) -> None:
    session.drop(dropped, "is out of order")


def _nothing(session: Session, payload: bytes) -> None:
    pass


def _unasked(letter: int, session: Session, payload: bytes) -> None:
    session.prepare_unasked()
    session.handle(letter, payload)


def _end_of_message(session: Session, payload: bytes) -> bytes | None:
    if not payload:
        return session.plan.eom(session, b"")
    # The last chunk of the body comes first.
    session.last_chunk = True
    session.put_off(_after_chunk, b"")
    return session.plan.chunk(session, payload)


def _after_chunk(session: Session, payload: bytes) -> bytes | None:
    session.last_chunk = False
    return session.plan.eom(session, payload)


def _give_kept(command: Command, session: Session, payload: bytes) -> None:
    if command.needs_payload and not payload:
        raise empty(command)
    session.merge.give_kept(command)


def _observe(command: Command, handler: Handler, *, answered: bool) -> Handler:
    # The sessions are `ObservedConversation`.
    def observe(session: Any, payload: bytes) -> bytes | None:
        answer: bytes | None = session.observe(command, handler, payload)
        return answer

    def observe_in_message(session: Any, payload: bytes) -> bytes | None:
        if not session.untold:
            return observe(session, payload)
        # In the middle of a message; of what is usual nothing is told but the call.
        answer = handler(session, payload)
        unusual = answer is None and (answered or session.out)
        if unusual or session.message is None:
            answer = session.end_command(command, answer)
        return answer

    seen = observe_in_message if command.in_message else observe
    return partial(_hear, command, seen) if command in _TELL_OF_MESSAGE else seen


def _hear(command: Command, handler: Handler, session: Session, payload: bytes) -> bytes | None:
    watch = session.watch
    assert watch is not None
    if command is RCPT_ROW:
        watch.hear_recipient(refused=session.refuses_recipient)
    else:
        watch.hear(command, payload)
    return handler(session, payload)


def _negotiate(session: Session, payload: bytes) -> bytes | None:
    if not payload:
        raise empty(OPTNEG_ROW)
    return session.negotiate(payload)


def _abort(session: Session, payload: bytes) -> None:
    session.abort()


def _quit(session: Session, payload: bytes) -> None:
    session.end()


def _begin_anew(session: Session, payload: bytes) -> None:
    session.begin_anew()


#: What is done for the commands that no milter answers.
_CONTROLS: Final[dict[Command, Handler]] = {
    OPTNEG_ROW: _negotiate,
    ABORT_ROW: _abort,
    QUIT_ROW: _quit,
    QUIT_NC_ROW: _begin_anew,
    MACRO_ROW: _take_macros,
}

# What there is for each letter where no command has it. As it breaks the protocol, nothing comes
# after it.
_NOWHERE: Final[StateTable] = []
_UNKNOWN: Final[StateTable] = [(partial(_unknown, letter), _NOWHERE) for letter in range(_LETTERS)]
_NOWHERE.extend([*_UNKNOWN, INIT])
