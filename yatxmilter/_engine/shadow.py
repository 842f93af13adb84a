"""
Milters in shadow, for ``MilterFactory(..., shadow=True)``: they run, and nobody hears of it.

A milter in shadow has a conversation of its own behind the real one. Each packet that the real one
takes is put into its queue; it is worked off after the real answer has been given, in order, at
the milter's pace. Its answers go into a `Report` for each message, and nowhere else. What it has
to do with the MTA is the agreement alone: steps and macros that it wants are asked for too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from yatxmilter import constants as c
from yatxmilter._engine.command_order import state_of
from yatxmilter._engine.conditional_member import member_of
from yatxmilter._engine.member import Member, Shape
from yatxmilter._engine.observing import Watch
from yatxmilter._engine.pending import Pending
from yatxmilter._engine.session import Message, Session
from yatxmilter._engine.shadow_answers import Recorder
from yatxmilter._engine.shadow_queue import Backlog, Packet
from yatxmilter._engine.shadow_statistics import Report, Shadow
from yatxmilter._mail.bounds import Limits
from yatxmilter._wire.commands import (
    EOM_ROW,
    MTA_CLOSE_ROW,
    OPTNEG_ROW,
)
from yatxmilter._wire.negotiation import Agreement, Request
from yatxmilter.errors import ProtocolError

if TYPE_CHECKING:
    from yatxmilter._engine.connection import Conversation

__all__ = ["Shadows"]

_log = Logger(__name__)


class _Shadow(Session):
    """
    One milter in shadow, on one connection: a conversation whose answers reach nobody.
    """

    ENDING = "its shadow is gone from"

    __slots__ = (
        "_agreement",
        "_asked",
        "_audience",
        "_gone",
        "_name",
        "_offer",
        "_patience",
        "_queue",
        "_ready",
        "_reason",
        "_tally",
        "_turn",
        "member",
    )

    def __init__(
        self,
        milter: Any,
        shape: Shape,
        tally: Shadow,
        clock: IReactorTime,
        audience: Watch | None,
    ) -> None:
        # What it does is no event of the connection's.
        super().__init__(clock, Recorder, None, Limits(), None)
        self._tally = tally
        self._audience = audience
        self._queue = Backlog()
        # The negotiation is taken to the milter by itself.
        self.table = self.plan.tables[OPTNEG_ROW.state or 0]
        self.member = member_of(milter, 0, shape, self)
        self._name = self.member.name
        self.member.name = f"{self._name} (shadow)"
        self.members.append(self.member)
        self._offer: bytes | None = None
        self._asked: Agreement | None = None
        self._agreement: Agreement | None = None
        self._ready = self._gone = False
        self._turn: IDelayedCall | None = None
        self._patience: IDelayedCall | None = None
        self._reason: Failure | None = None

    # ---- what the real conversation tells

    def connected(self, peer: object, number: int) -> None:
        self.peer = peer
        self.number = number
        self.opening.welcome(peer)

    def request(self, offer: bytes) -> Request | None:
        """
        Tell the milter of the MTA's offer; give what is asked for its sake.

        A milter that has not answered yet is taken to want the callbacks that it has.
        """
        self._offer = offer
        self.run()
        if self.ended:
            return None
        request = self.member.request
        return Request(0, request.steps & c.ALL_NO_STEPS | c.ALL_NR_STEPS, request.symbol_lists)

    def agreed(self, agreement: Agreement) -> None:
        self._agreement = agreement
        self._prepare()

    def take(self, packet: Packet) -> None:
        if self.ended or packet[0] == c.SMFIC_OPTNEG:
            return
        self._queue.put(packet)
        if self._behind:
            self._cut_off()
        self._take_turn()

    def lost(self, reason: Failure) -> None:
        self._reason = reason
        self._patience = self.clock.callLater(self._tally.linger, self._give_up)
        self._take_turn()

    # ---- the loop

    @property
    def _behind(self) -> bool:
        # One that is not waited for has its turn at once.
        return self.awaiting and self._queue.size > self._tally.backlog

    def _take_turn(self) -> None:
        if self._turn is None:
            # Not before the reactor has had the time to write the real answer.
            self._turn = self.clock.callLater(0, self._wait_once_more)

    def _wait_once_more(self) -> None:
        self._turn = self.clock.callLater(0, self._take_it)

    def _take_it(self) -> None:
        self._turn = None
        self.run()

    def run(self) -> None:
        """
        Work off what waits, until the milter has to be waited for.
        """
        try:
            self._negotiate()
            while self._ready and not (self.ended or self.awaiting):
                if self.due is not None:
                    (handler, payload), self.due = self.due, None
                    self.give(handler(self, payload))
                    continue
                packet = self._queue.next_packet()
                if packet is None:
                    break
                self.handle(*packet)
        except ProtocolError:
            # The real conversation says so.
            self.end()
        finally:
            self.out.clear()
        if self._reason is not None and not self.awaiting:
            self._go(self._reason)

    def resume(self, work: Callable[[Pending], None], pending: Pending) -> None:
        work(pending)
        self.run()

    def _negotiate(self) -> None:
        offer = self._offer
        if offer is not None and not (self.ended or self.opening.awaited):
            self._offer = None
            self.negotiate(offer)

    def open_message(self) -> None:
        # The milter comes to it when it is asked.
        self.message = Message(0, self.left)

    def agree(self, agreement: Agreement) -> None:
        self._asked = agreement
        self._prepare()

    def _prepare(self) -> None:
        if self._asked is not None and self._agreement is not None:
            self._ready = True
            # What the MTA does with header fields is settled with the others.
            context = self.member.context
            context.leading_space &= bool(self._agreement.steps & c.SMFIP_HDR_LEADSPC)
            # Whatever the MTA does not wait for, an answer is an answer here.
            steps = self._agreement.steps & ~c.ALL_NR_STEPS
            self.begin(self.prepare(steps, self._agreement.declined, skip_offered=False))

    # ---- the end

    def _cut_off(self) -> None:
        if self.message is not None:
            begun = state_of(self.table) != EOM_ROW.state
            self._stop_message()
            if begun:
                self._queue.drop_message(begun=True)
        while self._behind and self._queue.drop_message(begun=False):
            self.tell(Report(cut_off=True))

    def _stop_message(self) -> None:
        recorder = self.merge
        assert isinstance(recorder, Recorder)
        if recorder.report is not None:
            recorder.report.cut_off = True
        self.abort()
        # What is still to come of it is out of order now, and dropped.
        self.finish()

    def _give_up(self) -> None:
        self._patience = None
        self._stop_message()
        self.opening.cancel()
        for pending in self.caller.settling:
            pending.cancel()
        self.caller.settling.clear()
        assert self._reason is not None
        self._go(self._reason)

    def end(self) -> None:
        """
        End the conversation.
        """
        if not self.ended:
            self.ended = True
            self.opening.cancel()
            self.abort()
            self.close_members()
            self._queue.clear()

    def _go(self, reason: Failure) -> None:
        if not self._gone:
            self._gone = True
            self.end()
            if self._patience is not None:
                self._patience.cancel()
                self._patience = None
            self.notify(self.members, MTA_CLOSE_ROW, reason)

    def tell(self, report: Report) -> None:
        """
        Count a message that is over, and tell of it.
        """
        self._tally.count(report)
        if self._audience is not None:
            self._audience.tell("shadow_message_ended", self._name, report.word)
        _log.info(
            "Milter {milter} in shadow: {outcome} at {stage} (queue id {queue_id}, MTA {mta});"
            " reply {reply}; edits {edits}; recipients refused {recipients}",
            milter=self._name,
            outcome=report.outcome,
            verdict=report.verdict,
            stage=report.stage,
            queue_id=report.queue_id,
            mta=self.caller.mta,
            connection=self.number,
            reply=report.reply,
            edits=report.edits,
            recipients=report.recipients,
            cut_off=report.cut_off,
        )


class Shadows:
    """
    The milters in shadow on one connection.

    :param session: The connection's.
    :param watch: Tells observers of what they would have done.
    """

    def __init__(self, session: Conversation, clock: IReactorTime, watch: Watch | None) -> None:
        self._watch = watch
        self._session = session
        self._clock = clock
        self._all: list[_Shadow] = []

    @property
    def members(self) -> list[Member]:
        """
        The milters as members.
        """
        return [one.member for one in self._all]

    def add(self, milter: object, shape: Shape, tally: Shadow) -> Member:
        """
        Add a milter, before the MTA has begun to talk.
        """
        shadow = _Shadow(milter, shape, tally, self._clock, self._watch)
        self._session.show(shadow.take)
        self._all.append(shadow)
        return shadow.member

    def connected(self, peer: object, number: int) -> None:
        """
        Tell them that the MTA has connected.
        """
        for one in self._all:
            one.connected(peer, number)

    def requests(self, offer: bytes) -> list[Request]:
        """
        Tell them what the MTA offers; give what is asked for their sake.
        """
        requests = [one.request(offer) for one in self._all]
        return [request for request in requests if request is not None]

    def agreed(self, agreement: Agreement) -> None:
        """
        Tell them what was settled.
        """
        for one in self._all:
            one.agreed(agreement)

    def lost(self, reason: Failure) -> None:
        """
        Tell them that the connection is gone.
        """
        for one in self._all:
            one.lost(reason)
