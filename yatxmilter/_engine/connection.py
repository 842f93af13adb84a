"""
One MTA connection and the milters on it, without the transport.

How commands are taken and answered is in `yatxmilter._engine.command_loop`, how the answers of
several milters become one in the merges; a `Conversation` puts these together, and sees to the
connection's beginning and end.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from yatxmilter import constants as c
from yatxmilter._engine.callbacks import Caller
from yatxmilter._engine.command_loop import Line, Pulling
from yatxmilter._engine.conditional_member import member_of
from yatxmilter._engine.context import Context
from yatxmilter._engine.member import Member
from yatxmilter._engine.merge import Merge
from yatxmilter._engine.merge_chain import Chain
from yatxmilter._engine.merge_first import FirstAnswer
from yatxmilter._engine.merge_strictest import Strictest
from yatxmilter._engine.observing import Watch
from yatxmilter._engine.on_error import Fallback
from yatxmilter._engine.opening import Opening
from yatxmilter._engine.pending import Pending
from yatxmilter._engine.return_codes import CONTINUE_PACKET
from yatxmilter._engine.shadow import Shadows
from yatxmilter._mail.bounds import Limits
from yatxmilter._wire.commands import (
    ABORT_ROW,
    MTA_CLOSE_ROW,
    OPTNEG_ROW,
    QUIT_ROW,
    Command,
)
from yatxmilter._wire.negotiation import Agreement, Request, data_size, declined_by
from yatxmilter._wire.payloads import Offer, encode_offer, encode_packet
from yatxmilter.errors import ProtocolError

__all__ = ["MERGES", "Conversation", "ObservedConversation"]

_log = Logger()
_PROGRESS_PACKET: Final = encode_packet(c.SMFIR_PROGRESS)

#: The fan-outs there are, by the name of their ``merge``.
MERGES: Final[dict[str, type[Merge]]] = {
    "first": FirstAnswer,
    "strictest": Strictest,
    "chain": Chain,
}


class Conversation(Pulling):
    """
    One MTA connection and the milters on it.

    :param progress_interval: Seconds after which SMFIR_PROGRESS is sent, again and again, while
        the end of a message is awaited; ``None`` for never.
    :param limits: How much of one message may be kept.
    :param watch: Tells observers; see `ObservedConversation`.
    :ivar members: The milters, those in shadow left out.
    """

    def __init__(
        self,
        line: Line,
        clock: IReactorTime,
        merge: str = "first",
        progress_interval: float | None = None,
        limits: Limits = Limits(),  # noqa: B008 (it cannot be changed)
        watch: Watch | None = None,
    ) -> None:
        super().__init__(line)
        self._watch = watch
        self.members: list[Member] = []
        self._clock = clock
        self._limits = limits
        self._shadows: Shadows | None = None
        self._caller = Caller(clock, self.session.macros, self.run)
        self._caller.disconnect = self.end
        self._caller.watch = watch
        # The place of a milter that could not be built is taken by an end of the connection.
        self._unwelcome = False
        self._fanout = MERGES[merge](
            self.session,
            self.members,
            self._caller,
            self._out,
            clock=clock,
            resume=self.resume,
            progress=self.send_progress,
            progress_interval=progress_interval,
            limits=limits,
        )
        self._opening = Opening(
            self.members,
            self._caller,
            clock=clock,
            resume=self.resume,
            agreed=self._agree,
            refused=self.end,
            others=self._requests_in_shadow,
        )

    # ---- membership

    def add(self, milter: object, wanted: frozenset[str]) -> Member:
        """
        Add a milter behind those that are there.

        :param wanted: The names of the callbacks it has of its own.
        :raises RuntimeError: when the MTA has begun to talk.
        """
        if self._begun:
            raise RuntimeError("a milter cannot be added once the MTA has begun to talk")
        tally = getattr(getattr(milter, "factory", None), "shadow", None)
        if tally is not None:
            if self._shadows is None:
                self._shadows = Shadows(self.session, self._clock, self._watch)
            return self._shadows.add(milter, wanted, tally)
        context = Context(self.session.macros, self.send_progress, self.session)
        context.limits = self._limits
        macros = self.session.macros
        member = member_of(milter, len(self.members), wanted, context, macros, self._caller)
        member.watch = self._watch
        self.members.append(member)
        return member

    @property
    def everyone(self) -> list[Member]:
        """
        The members, and the milters in shadow behind them.
        """
        return [*self.members, *(self._shadows.members if self._shadows is not None else ())]

    def refuse(self, answer: Fallback) -> None:
        """
        Have the connection answered in the place of a milter that cannot be built.
        """
        if answer.disconnects:
            self._unwelcome = True
        elif answer.code not in (c.SMFIS_CONTINUE, c.SMFIS_ACCEPT):
            self._fanout.refuse(answer.code, answer.reply)

    def _begin(self) -> None:
        # Until something is negotiated nothing is agreed on (libmilter takes commands all the
        # same), and milters are called for what they have.
        self._begun = True
        requests = [member.request for member in self.members]
        self.session.decline(declined_by(requests))

    def _first_step(self, command: Command) -> None:
        # Nothing was negotiated.
        self._fanout.compile(0, skip_offered=False)
        self._step = self._handler()
        self._step(command)

    def _handler(self) -> Callable[[Command], None]:
        # Answers commands once it is known what is agreed on.
        return self._fanout.step

    def send_progress(self) -> None:
        """
        Write SMFIR_PROGRESS at once, behind what was answered before.
        """
        if not self._lost:
            self._out.append(_PROGRESS_PACKET)
            self._send(self._out)

    def _control(self, command: Command) -> None:
        if command is OPTNEG_ROW:
            self._opening.negotiate(self.session.payload)
        elif command is ABORT_ROW:
            self._fanout.abort()
        elif command is QUIT_ROW:
            self.end()
        else:
            self._fanout.abort()
            self._close_members()
            self.session.macros.clear_from(0)
            self._fanout.forget_connection()

    # ---- the connection comes

    def connected(self, peer: object, number: int) -> None:
        """
        Tell the milters that the MTA has connected.

        :param peer: Its address.
        :param number: The connection's number, for the log.
        """
        self._caller.peer = peer
        self._caller.connection = number
        self._opening.welcome(peer)
        if self._shadows is not None:
            self._shadows.connected(peer, number)
        if self._unwelcome:
            self.end()

    def _requests_in_shadow(self) -> list[Request]:
        return [] if self._shadows is None else self._shadows.requests(self.session.payload)

    def _agree(self, agreement: Agreement) -> None:
        self.session.decline(agreement.declined)
        self.session.splitter.limit = data_size(agreement.steps)
        if self._shadows is not None:
            self._shadows.agreed(agreement)
        skip_offered = bool(agreement.offer.steps & c.SMFIP_SKIP)
        self._fanout.compile(agreement.steps, skip_offered=skip_offered)
        self._step = self._handler()
        answer = Offer(agreement.version, agreement.actions, agreement.steps)
        self._out.append(encode_offer(answer, self._symbol_lists(agreement)))

    def _symbol_lists(self, agreement: Agreement) -> dict[int, bytes]:
        lists = agreement.symbol_lists
        for stage, names in self._fanout.symbols.items():
            # Where no list is asked for the MTA sends those anyway.
            if stage in lists and names not in lists[stage].split():
                lists[stage] += b" " + names
        return lists

    # ---- the connection goes

    def end(self) -> None:
        """
        End the conversation: the MTA said so, broke the protocol, or was refused.
        """
        if self._ended:
            return
        self._ended = True
        self._opening.cancel()
        self._fanout.abort()
        self._caller.over = True
        self._close_members()
        self.session.splitter.clear()
        if not self._lost:
            if self._out:
                self._send(self._out)
            self._line.hang_up()

    def drain(self) -> None:
        """
        End the conversation as soon as no message is open and nothing is waited for.
        """
        self._draining = True
        self._at_ease = False
        self.run()

    def give_up(self) -> None:
        """
        End the conversation now; what is awaited is answered TEMPFAIL.
        """
        self._fanout.give_up()
        self.end()

    def lost(self, reason: Failure) -> None:
        """
        Take note that the connection is gone.
        """
        self._lost = True
        self.end()
        self._caller.notify(self.members, MTA_CLOSE_ROW, reason)
        if self._shadows is not None:
            self._shadows.lost(reason)

    def _close_members(self) -> None:
        self._caller.notify(self.members, QUIT_ROW)


class ObservedConversation(Conversation):
    """
    A conversation that observers are told of; the same rules, and a word about each thing done.

    It is chosen when the connection is made, so that others have nothing of this on their way.
    """

    _watch: Watch

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # Whether observers know that a message is open, and how much they know of the output.
        self._message_told = False
        self._told_of = 0
        # Whether nobody needs to be told of each answer.
        self._quiet = self._watch.audience.answer_sent is None
        self._send = self._observed_send

    def receive(self, data: bytes = b"") -> bool:
        """
        Take in bytes from the MTA, and tell how many.
        """
        self._watch.received += len(data)
        if data and self._watch.audience.bytes_received is not None:
            self._watch.tell("bytes_received", len(data))
        return super().receive(data)

    def _observed_send(self, out: list[bytes]) -> None:
        watch = self._watch
        if len(out) == 1 and out[0] is CONTINUE_PACKET and self._quiet:
            # The usual answer.
            watch.last = "continue"
            size = 5
        else:
            self._tell_output()
            size = sum(map(len, out))
        self._told_of = 0
        watch.sent += size
        if watch.audience.bytes_sent is not None:
            watch.tell("bytes_sent", size)
        self._line.send_packets(out)

    def _handler(self) -> Callable[[Command], None]:
        return self._observed_step

    def _observed_step(self, command: Command) -> None:
        self._watch.stage = command.callback
        if command.in_message and not self._message_told:
            self._message_told = True
            self._watch.tell("message_began")
        self._fanout.step(command)
        if not self._quiet or (self._message_told and not self.session.in_message):
            self._tell_done()

    def _control(self, command: Command) -> None:
        self._watch.stage = command.callback
        super()._control(command)
        self._tell_done("aborted")

    def resume(self, work: Callable[[Pending], None], pending: Pending) -> None:
        """
        Do what an awaited result calls for, tell of it, then go on pulling.
        """
        super().resume(partial(self._work, work), pending)

    def _work(self, work: Callable[[Pending], None], pending: Pending) -> None:
        work(pending)
        self._tell_done()

    def end(self) -> None:
        """
        End the conversation; a message that is open is aborted.
        """
        self._tell_output()
        super().end()
        self._tell_done("aborted")

    def _break_off(self, error: ProtocolError) -> None:
        self._watch.tell("mta_failed", error.kind, str(error))
        super()._break_off(error)

    def _tell_done(self, outcome: str | None = None) -> None:
        self._tell_output()
        if self._message_told and not self.session.in_message:
            self._message_told = False
            self._watch.tell("message_ended", outcome or self._watch.last)

    def _tell_output(self) -> None:
        if len(self._out) > self._told_of and not self._ended:
            for packet in self._out[self._told_of :]:
                self._watch.output(packet)
            self._told_of = len(self._out)
