"""
One MTA connection and the milters on it, without the transport.

A `Conversation` pulls calls from its `Session` one by one: negotiation, the end of messages and of
connections it handles itself, everything else goes to the fan-out. While an answer is awaited, or
the MTA does not read, it does not pull, and later commands stay where they are. Answers are
gathered and written at once when there is nothing more to pull.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from yatxmilter import constants as c
from yatxmilter.calling import Caller
from yatxmilter.chain import Chain
from yatxmilter.commands import (
    ABORT_ROW,
    MTA_CLOSE_ROW,
    OPTNEG_ROW,
    QUIT_ROW,
    Command,
)
from yatxmilter.constants import ReturnCode
from yatxmilter.context import Context
from yatxmilter.errors import ProtocolError
from yatxmilter.fanout import FirstAnswer
from yatxmilter.gate import member_of
from yatxmilter.members import Member
from yatxmilter.merging import Merge
from yatxmilter.negotiation import Agreement, Request, data_size, declined_by
from yatxmilter.opening import Opening
from yatxmilter.rounds import Pending
from yatxmilter.session import Session
from yatxmilter.shadow import Shadows
from yatxmilter.strictest import Strictest
from yatxmilter.wire import Offer, encode_offer, encode_packet

__all__ = ["MERGES", "Conversation", "Line"]

_log = Logger()
_PROGRESS_PACKET: Final = encode_packet(c.SMFIR_PROGRESS)

#: The fan-outs there are, by the name of their ``merge``.
MERGES: Final[dict[str, type[Merge]]] = {
    "first": FirstAnswer,
    "strictest": Strictest,
    "chain": Chain,
}


class Line(Protocol):
    """
    What a conversation needs of its connection.
    """

    def send(self, data: bytes) -> None:
        """
        Write bytes to the MTA.
        """

    def caught_up(self) -> None:
        """
        Take note that nothing is waited for: what has arrived so far was handled.
        """

    def hang_up(self) -> None:
        """
        Close the connection when all is written.
        """


class Conversation:
    """
    One MTA connection and the milters on it.

    :param progress_interval: Seconds after which SMFIR_PROGRESS is sent, again and again, while
        the end of a message is awaited; ``None`` for never.
    :param spool_memory: How many bytes of a body that a chain keeps stay in memory.
    :ivar stalled: While true nothing is pulled, because the MTA does not read what we write.
    :ivar busy: Whether what arrives has to wait: for a milter, or for the MTA to read.
    """

    def __init__(
        self,
        line: Line,
        clock: IReactorTime,
        merge: str = "first",
        progress_interval: float | None = None,
        spool_memory: int = 1024 * 1024,
    ) -> None:
        self.session = Session()
        self.members: list[Member] = []
        self.stalled = self.busy = False
        self._line = line
        self._clock = clock
        self._out: list[bytes] = []
        self._shadows: Shadows | None = None
        self._caller = Caller(clock, self.session.macros, self.run)
        self._fanout = MERGES[merge](
            self.session,
            self.members,
            self._caller,
            self._out,
            clock=clock,
            resume=self.resume,
            progress=self.send_progress,
            progress_interval=progress_interval,
            spool_memory=spool_memory,
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
        # Who answers commands; the first time somebody has to see to it that there is a plan.
        self._step = self._first_step
        self._begun = self._running = self._ended = self._lost = self._told = False
        self._draining = False

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
                self._shadows = Shadows(self.session, self._clock)
            return self._shadows.add(milter, wanted, tally)
        context = Context(self.session.macros, self.send_progress)
        member = member_of(milter, len(self.members), wanted, context, self.session.macros)
        self.members.append(member)
        return member

    @property
    def everyone(self) -> list[Member]:
        """
        The members, and the milters in shadow behind them.
        """
        return [*self.members, *(self._shadows.members if self._shadows is not None else ())]

    def refuse(self, code: int) -> None:
        """
        Have the connection answered with a code in the place of a milter that cannot be built.
        """
        if code not in (c.SMFIS_CONTINUE, c.SMFIS_ACCEPT):
            self._fanout.refuse(ReturnCode(code))

    # ---- the loop

    @property
    def waiting(self) -> bool:
        """
        Whether a milter is waited for.
        """
        return bool(self._opening.awaited or self._fanout.round or self._caller.settling)

    def receive(self, data: bytes) -> None:
        """
        Take in bytes from the MTA, and answer what can be answered.
        """
        if not self._ended:
            self.session.splitter.feed(data)
            self.run()

    def run(self) -> None:
        """
        Pull and answer until there is nothing to pull, or something must be waited for.
        """
        # A callback may lead here again, by a Deferred that it fires.
        if self._running:
            return
        self._running = True
        if not self._begun:
            self._begin()
        opening, fanout, caller = self._opening, self._fanout, self._caller
        session = self.session
        try:
            # As in `waiting`, without calls: this is looked at for each command.
            while not (
                self._ended or self.stalled or fanout.round or opening.awaited or caller.settling
            ):
                command = session.next_call()
                if command is None:
                    break
                if command.codes:
                    self._step(command)
                else:
                    self._control(command)
                if session.idle:
                    break
        except ProtocolError as error:
            _log.warn(
                "The MTA at {mta} broke the milter protocol: {error}; closing the connection",
                mta=caller.mta,
                error=str(error),
            )
            # A message counts as open, as in libmilter, whose state is set before a payload is
            # read.
            fanout.join_all()
            self.end()
        finally:
            self._running = False
        if self._ended:
            # A callback may have ended it, and then have answered.
            opening.cancel()
            fanout.cancel()
            self._out.clear()
        elif self._out:
            self._flush()
        if session.dropped is not None:
            self._tell_dropped(session.dropped)
        self.busy = bool(self.stalled or fanout.round or opening.awaited or caller.settling)
        if self.busy or self._ended:
            return
        if self._draining and not self.session.in_message:
            self.end()
        else:
            self._line.caught_up()

    def _tell_dropped(self, dropped: str) -> None:
        # Once: an MTA that is out of step sends many.
        self.session.dropped = None
        if not self._told:
            self._told = True
            _log.info(
                "The MTA at {mta} sent {dropped}, which is out of order: dropped without an"
                " answer (further ones are not logged)",
                mta=self._caller.mta,
                dropped=dropped,
            )

    def resume(self, work: Callable[[Pending], None], pending: Pending) -> None:
        """
        Do what an awaited result calls for, then go on pulling.

        Not before: user code that the work runs must not make the loop pull in its middle.
        """
        running = self._running
        self._running = True
        try:
            work(pending)
        finally:
            self._running = running
        self.run()

    def _begin(self) -> None:
        # Until something is negotiated nothing is agreed on (libmilter takes commands all the
        # same), and milters are called for what they have.
        self._begun = True
        requests = [member.request for member in self.members]
        self.session.decline(declined_by(requests))

    def _first_step(self, command: Command) -> None:
        # Nothing was negotiated.
        self._fanout.compile(0, skip_offered=False)
        self._step = self._fanout.step
        self._step(command)

    def _flush(self) -> None:
        out = self._out
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        if data and not self._lost:
            self._line.send(data)

    def send_progress(self) -> None:
        """
        Write SMFIR_PROGRESS at once, behind what was answered before.
        """
        self._out.append(_PROGRESS_PACKET)
        self._flush()

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

    def connected(self, peer: object) -> None:
        """
        Tell the milters that the MTA has connected.

        :param peer: Its address.
        """
        self._caller.peer = peer
        self._opening.welcome(peer)
        if self._shadows is not None:
            self._shadows.connected(peer)

    def _requests_in_shadow(self) -> list[Request]:
        return [] if self._shadows is None else self._shadows.requests(self.session.payload)

    def _agree(self, agreement: Agreement) -> None:
        self.session.decline(agreement.declined)
        self.session.splitter.limit = data_size(agreement.steps)
        if self._shadows is not None:
            self._shadows.agreed(agreement)
        skip_offered = bool(agreement.offer.steps & c.SMFIP_SKIP)
        self._fanout.compile(agreement.steps, skip_offered=skip_offered)
        self._step = self._fanout.step
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
        self._close_members()
        self.session.splitter.clear()
        if not self._lost:
            self._flush()
            self._line.hang_up()

    def drain(self) -> None:
        """
        End the conversation as soon as no message is open and nothing is waited for.
        """
        self._draining = True
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
