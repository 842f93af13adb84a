"""
The state of one conversation: what its handlers work on.

Bytes do not come in here, nor do they go out: a `Session` is given one packet after the other. What
a packet does is looked up in the table of the present state (`yatxmilter._engine.command_order`).
Most of what a conversation may need is seldom needed, and is made then.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from threading import get_ident
from typing import TYPE_CHECKING, Any, ClassVar, Final

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from yatxmilter import constants as c
from yatxmilter._engine.callbacks import Caller
from yatxmilter._engine.command_order import Handler, Plan, fresh_plan, plan_for, state_of
from yatxmilter._engine.observing import Watch
from yatxmilter._engine.opening import Opening
from yatxmilter._engine.pending import Pending
from yatxmilter._mail.bounds import Limits
from yatxmilter._wire.commands import HELO, QUIT_ROW, Command
from yatxmilter._wire.macros import MacroStore
from yatxmilter._wire.negotiation import Agreement, Request, declined_by

if TYPE_CHECKING:
    from yatxmilter._engine.member import Member
    from yatxmilter._engine.merge import Kept, Merge

__all__ = ["Message", "Session"]

_log = Logger(__name__)
_NONE: Final[frozenset[Member]] = frozenset()


class Message:
    """
    What lives as long as the message that is open. It is made anew for each.

    :ivar joined: How many milters, from the first, the message has come to.
    :ivar told: Those that have been told already that it is over.
    :ivar left: Those that have accepted for themselves alone.
    :ivar failed: Those whose ``xxfi_eom`` failed, and does not let the message pass: their edits do
        not count.
    :ivar kept: A final answer that waits for a step that is answered.
    :ivar votes: What milters have answered in steps that are not answered, for ``"strictest"``.
    """

    __slots__ = ("failed", "joined", "kept", "left", "told", "votes")

    def __init__(self, joined: int, left: frozenset[Member]) -> None:
        self.joined = joined
        self.left = left
        self.told: Collection[Member] = ()
        self.failed = _NONE
        self.kept: Kept | None = None
        self.votes: dict[Member, c.ReturnCode] | None = None


class Session:
    """
    One conversation between an MTA and milters.

    :param merge: How the answers of several milters become one.
    :param watch: Tells observers of it; ``None`` where there are none.
    :ivar plan: What each command does in each state; ``table``: in the present one. ``base`` is
        what `plan` is at the beginning of each message, ``full`` at that of a connection.
    :ivar message: What is known of the message that is open; ``None`` while there is none.
    :ivar out: The packets that have been answered and not been sent.
    :ivar held: Whether it has to be looked whether the next packet may be handled; it is set
        whenever something has happened that may be in its way.
    :ivar made_merge: Its `merge`, if it has been needed.
    :ivar due: What is to be done before the next packet is looked at: a handler, and its payload.
    :ivar payload: That of the command which is being handled, where it is looked at once more.
    :ivar last_chunk: Whether the command being handled is the body chunk of a BODYEOB, which has no
        answer of its own: the end of message behind it has.
    :ivar kept: A final answer about the SMTP connection that waits for a step that is answered.
    :ivar left: The milters that have accepted for themselves all of the SMTP connection.
    :ivar ended: Whether no packet is handled any more.
    :ivar over: Whether the milters have been told so: none is to be called any more.
    :ivar peer: The MTA's address.
    :ivar number: The connection's number, for the log.
    :ivar thread: The thread that the conversation is in.
    """

    #: What is done when milters cannot agree with the MTA, in a word for the log.
    ENDING: ClassVar[str] = "closing"

    __slots__ = (
        "_caller",
        "_opening",
        "base",
        "clock",
        "due",
        "ended",
        "full",
        "held",
        "kept",
        "last_chunk",
        "left",
        "limits",
        "macros",
        "made_merge",
        "members",
        "message",
        "number",
        "out",
        "over",
        "payload",
        "peer",
        "plan",
        "progress_interval",
        "table",
        "thread",
        "watch",
    )

    def __init__(
        self,
        clock: IReactorTime,
        merge: type[Merge],
        progress_interval: float | None,
        limits: Limits,
        watch: Watch | None,
    ) -> None:
        self.clock = clock
        self.progress_interval = progress_interval
        self.limits = limits
        self.watch = watch
        self.thread = get_ident()
        self.plan = self.base = self.full = plan = fresh_plan(merge, watch is not None)
        self.table = plan.tables[0]
        self.macros = MacroStore()
        self.members: list[Member] = []
        self.out: list[bytes] = []
        self.message: Message | None = None
        self.due: tuple[Handler, bytes] | None = None
        self.payload = b""
        self.kept: Kept | None = None
        self.left = _NONE
        self.peer: object = None
        self.number = 0
        self.held = self.ended = self.over = self.last_chunk = False
        self.made_merge: Merge | None = None
        self._caller: Caller | None = None
        self._opening: Opening | None = None

    # ---- what is made when it is needed

    @property
    def merge(self) -> Any:
        """
        What makes one answer of those of all milters: a `Merge` of the plan's class, which the
        plan's handlers know.
        """
        merge = self.made_merge
        if merge is None:
            plan = self.plan
            merge = self.made_merge = plan.merge(self)
            merge.compile(plan.steps, skip_offered=plan.skip_offered)
        return merge

    @property
    def caller(self) -> Caller:
        """
        What sees to callbacks that do anything else than to answer at once.
        """
        caller = self._caller
        if caller is None:
            caller = self._caller = Caller(self)
        return caller

    @property
    def opening(self) -> Opening:
        """
        What asks the milters at the beginning.
        """
        opening = self._opening
        if opening is None:
            opening = self._opening = Opening(self)
        return opening

    @property
    def refuses_recipient(self) -> bool:
        """
        Whether the MTA has refused the last recipient itself. It shows such if somebody asks for
        them; else the macro says nothing.
        """
        return bool(self.plan.steps & c.SMFIP_RCPT_REJ) and self.macros.refuses_recipient

    @property
    def awaiting(self) -> bool:
        """
        Whether a milter is waited for.
        """
        if self.made_merge is not None and self.made_merge.round:
            return True
        if self._opening is not None and self._opening.awaited:
            return True
        return self._caller is not None and bool(self._caller.settling)

    # ---- packets

    def handle(self, letter: int, payload: bytes) -> None:
        """
        Do what a packet calls for.

        :raises ProtocolError: when it breaks the protocol. The connection must be closed.
        """
        handler, self.table = self.table[letter]
        self.give(handler(self, payload))

    def give(self, answer: bytes | None) -> None:
        """
        Take the answer that a handler has returned, if any.
        """
        if answer is not None:
            self.out.append(answer)

    def put_off(self, handler: Handler, payload: bytes) -> None:
        """
        Have something done before the next packet, but not before what is waited for has come.
        """
        self.due = handler, payload
        self.held = True

    def use(self, plan: Plan) -> None:
        """
        Go on in the same state by another plan.
        """
        self.plan = plan
        self.table = plan.tables[state_of(self.table)]

    def prepare(self, steps: int, declined: int, *, skip_offered: bool) -> Plan:
        """
        Work out what each command does.

        :param steps: The ``SMFIP_*`` steps agreed on with the MTA.
        :param declined: The ``SMFIP_NO*`` steps in force: the states they name are passed over.
        """
        return plan_for(
            self.plan.merge,
            steps,
            declined,
            skip_offered,
            tuple([member.prepare(steps, self.macros) for member in self.members]),
            tuple([member.manner for member in self.members]),
            self.watch is not None,
        )

    def begin(self, plan: Plan) -> None:
        """
        Go by what was agreed on.
        """
        self.made_merge = None
        self.full = plan
        self.base = plan if self.kept is None else plan.keeping(True)
        self.use(self.base)

    def prepare_unasked(self) -> None:
        """
        Work out what each command does where nothing was negotiated.

        libmilter takes commands all the same, and milters are called for what they have.
        """
        declined = declined_by([member.request for member in self.members])
        self.begin(self.prepare(0, declined, skip_offered=False))

    # ---- messages

    @property
    def in_message(self) -> bool:
        """
        Whether a message is open: one of its commands was handled since the last one ended.
        """
        return self.message is not None

    def open_message(self) -> None:
        """
        Take note that a message begins.
        """
        # A lone milter is always there from the beginning.
        self.message = Message(int(len(self.members) == 1), self.left)

    def close_message(self) -> Message | None:
        """
        Forget what belongs to the message that is over.

        :return: What was known of it.
        """
        message, self.message = self.message, None
        # An idle connection should not keep a chunk of a body.
        self.payload = b""
        if self.plan is not self.base:
            self.use(self.base)
        for member in self.members:
            context = member.made_context
            if context is not None:
                context.end_message()
        return message

    def finish(self) -> bool:
        """
        Take note of a final answer (ACCEPT, REJECT, TEMPFAIL, DISCARD); tell if it ends a message.

        Not to be called where the answer is about one recipient or an unknown command alone.
        """
        self.table = self.plan.tables[HELO]
        # The end of message behind a last chunk has been answered with the chunk.
        self.due = None
        self.last_chunk = False
        return self.message is not None

    def abort(self) -> None:
        """
        End the message that is open: cancel what is awaited and call ``xxfi_abort``.
        """
        if self.message is not None or (self.made_merge is not None and self.made_merge.round):
            self.merge.abort()

    def cancel(self) -> None:
        """
        Cancel all that is awaited.
        """
        if self._opening is not None:
            self._opening.cancel()
        if self.made_merge is not None:
            self.made_merge.cancel()

    # ---- what is not for the milters alone

    def negotiate(self, payload: bytes) -> bytes | None:
        """
        Have the milters say what they want of what the MTA offers.

        :return: The answer, if it is known at once.
        """
        self.opening.negotiate(payload)
        return None

    def requests_of_others(self, offer: bytes) -> list[Request]:
        """
        Give requests that count besides those of the milters.
        """
        return []

    def agree(self, agreement: Agreement) -> None:
        """
        Go on with what has been agreed on.
        """

    def end(self) -> None:
        """
        End the conversation: the MTA said so, broke the protocol, or was refused.
        """

    def disconnect(self) -> None:
        """
        Close the connection in the place of an answer.
        """

    def resume(self, work: Callable[[Pending], None], pending: Pending) -> None:
        """
        Do what an awaited result calls for, then go on with the packets that wait.
        """

    def run(self) -> None:
        """
        Go on with the packets that wait.
        """

    def send_progress(self) -> None:
        """
        Tell the MTA at once that a milter is at work.
        """

    def note_decider(self, member: Member | None) -> None:
        """
        Take note, for observers, of the milter that decides about the message, or the connection.
        """
        if self.watch is not None and member is not None:
            self.watch.decider = member.name

    def begin_anew(self) -> None:
        """
        Begin another SMTP connection on the same agreement (QUIT_NC).
        """
        self.abort()
        self.close_members()
        self.macros.clear_from(0)
        self.merge.forget_connection()

    def close_members(self) -> None:
        """
        Tell the milters that their SMTP connection is over.
        """
        self.notify(self.members, QUIT_ROW)

    def notify(self, members: Iterable[Member], command: Command, *arguments: object) -> None:
        """
        Call a callback whose result is ignored, of those who have it.
        """
        for member in members:
            if command.callback not in member.wanted:
                continue
            # Nothing is answered, so no text is kept for an answer.
            context = member.context
            context.mute = True
            result = member.call(command, *arguments)
            if result is None:
                context.mute = False
            else:
                self.caller.ignore(member, command, result)

    def drop(self, dropped: str, why: str) -> None:
        """
        Take note of a command that is dropped.

        :param why: What is wrong with it.
        """
