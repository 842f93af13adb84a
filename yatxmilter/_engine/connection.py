"""
One MTA connection and the milters on it, without the transport.

A `Conversation` takes bytes in, cuts packets out of them and has each of them handled; what that
means is in the tables of its plan (`yatxmilter._engine.command_order`), how the answers of several
milters become one in the merges. Answers are gathered, and written at once when there is nothing
more to handle. While an answer is awaited, or the MTA does not read, what comes later stays where
it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from yatxmilter import constants as c
from yatxmilter._engine.command_order import Plan
from yatxmilter._engine.conditional_member import member_of
from yatxmilter._engine.member import Member, Shape
from yatxmilter._engine.merge import Kept, Merge
from yatxmilter._engine.merge_chain import Chain
from yatxmilter._engine.merge_first import FirstAnswer
from yatxmilter._engine.merge_strictest import Strictest
from yatxmilter._engine.observing import Watch
from yatxmilter._engine.on_error import Fallback
from yatxmilter._engine.pending import Pending
from yatxmilter._engine.return_codes import response
from yatxmilter._engine.session import Session
from yatxmilter._engine.shadow import Shadows
from yatxmilter._escaping import printable
from yatxmilter._mail.bounds import Limits
from yatxmilter._wire.commands import MTA_CLOSE_ROW, MTA_CONNECT_ROW
from yatxmilter._wire.negotiation import Agreement, Request, data_size
from yatxmilter._wire.packets import PacketSplitter, read_head
from yatxmilter._wire.payloads import Offer, encode_offer, encode_packet
from yatxmilter.constants import MILTER_OPTLEN
from yatxmilter.errors import ProtocolError

__all__ = [
    "COMPILED",
    "EASY",
    "MERGES",
    "RUNNING",
    "Conversation",
    "Line",
]

#: Whether the engine is compiled; see ``setup.py``.
COMPILED: Final = not __file__.endswith((".py", ".pyc"))

_log = Logger(__name__)
# In a read of no more than this there is no packet longer than any MTA may send; whether longer
# ones were agreed on, the splitter looks.
_ONE_PACKET: Final = c.MILTER_CHUNK_SIZE + 5
# So many packets, most likely, are an edit or two and an answer.
_FEW_PACKETS: Final = 4
#: How packets go through. Easily: the line knows that nothing is waited for, and nothing is left of
#: what was read before.
EASY: Final = 0
#: Or one is being handled.
RUNNING: Final = 1
# Or with care: anything may be.
_CAREFUL: Final = 2
_PROGRESS_PACKET: Final = encode_packet(c.SMFIR_PROGRESS)

_DROPPED: Final = (
    "The MTA at {mta} sent {dropped}, which {why}: dropped without an answer (further ones are not"
    " logged)"
)
_OVERLOOKED: Final = (
    "The MTA at {mta} sent a packet of length {length}: taken for one without a payload, as"
    " libmilter does (further ones are not logged)"
)

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

    def look_back(self, data: bytes, began: float, now: float) -> None:
        """
        Tell of a read if it has been slow.
        """

    def send_packets(self, packets: list[bytes]) -> None:
        """
        Write packets to the MTA; empty the list.
        """

    def hurry(self) -> None:
        """
        Have the MTA send more: what has come calls for no answer.
        """

    def held_up(self) -> None:
        """
        Take note that something is waited for: what arrives has to wait.
        """

    def caught_up(self) -> None:
        """
        Take note that nothing is waited for: what has arrived so far was handled.
        """

    def hang_up(self) -> None:
        """
        Close the connection when all is written.
        """


class _Settled:
    """
    What came of a negotiation; it belongs to no connection.

    :ivar requests: What the milters have asked for.
    :ivar adapts: Whether one of them is called otherwise than by its callbacks as they are.
    :ivar limit: The largest payload that may come.
    """

    __slots__ = ("adapts", "agreement", "answer", "limit", "plan", "requests")

    def __init__(
        self, agreement: Agreement, requests: list[Request], plan: Plan, answer: bytes
    ) -> None:
        self.agreement = agreement
        self.requests = requests
        self.plan = plan
        self.answer = answer
        self.adapts = any(plan.manners)
        self.limit = data_size(agreement.steps)


#: What came of negotiations, by all that it follows from.
_MOST_SETTLED: Final = 256
_settled: Final[dict[tuple[object, ...], _Settled]] = {}


class Conversation(Session):
    """
    One MTA connection and the milters on it.

    :param progress_interval: Seconds after which SMFIR_PROGRESS is sent, again and again, while
        the end of a message is awaited; ``None`` for never.
    :param limits: How much of one message may be kept.
    :param watch: Tells observers; see `yatxmilter._engine.observed_connection`.
    :ivar line: Its connection.
    :ivar members: The milters, those in shadow left out.
    :ivar hurried: Whether the line is to be told of what is not answered.
    :ivar takers: What is called with each packet, before it is looked at; see `show`.
    :ivar moved: When bytes moved last, as its line says.
    :ivar way: How packets go through: `EASY`, `RUNNING`, or with care.
    :ivar busy: Whether what arrives has to wait: for a milter, or for the MTA to read.
    :ivar elsewhere: Whether a callback is running that the reactor does not wait for.
    """

    __slots__ = (
        "_begun",
        "_draining",
        "_limit",
        "_lost",
        "_shadows",
        "_splitter",
        "_stalled",
        "_to_settle",
        "_told",
        "_unwelcome",
        "busy",
        "elsewhere",
        "hurried",
        "line",
        "moved",
        "takers",
        "way",
    )

    def __init__(
        self,
        line: Line,
        clock: IReactorTime,
        merge: str = "first",
        progress_interval: float | None = None,
        limits: Limits = Limits(),  # noqa: B008 (it cannot be changed)
        watch: Watch | None = None,
    ) -> None:
        super().__init__(clock, MERGES[merge], progress_interval, limits, watch)
        self._splitter: PacketSplitter | None = None
        # The largest payload that may come.
        self._limit = c.MILTER_MAX_DATA_SIZE
        self.takers: tuple[Callable[[tuple[int, bytes]], None], ...] = ()
        self.busy = self.elsewhere = self.hurried = False
        self.moved = 0.0
        self.line = line
        self._stalled = self._begun = self._lost = False
        self._draining = False
        # What is logged once, and has been.
        self._told: tuple[str, ...] = ()
        self.way = EASY
        self._shadows: Shadows | None = None
        # What the agreement that is being made follows from.
        self._to_settle: tuple[object, ...] | None = None
        # The place of a milter that could not be built is taken by an end of the connection.
        self._unwelcome = False

    @property
    def splitter(self) -> PacketSplitter:
        """
        What has arrived and is not handled yet; most connections never have any.
        """
        splitter = self._splitter
        if splitter is None:
            splitter = self._splitter = PacketSplitter(self._limit, odd=self._overlook)
        return splitter

    # ---- bytes come in

    def take_in(self, data: bytes) -> bytes | None:
        """
        Take in bytes from the MTA; handle the packets, one after the other, until none is left, or
        something must be waited for.

        :return: What is to be sent, where there is nothing else to do: nothing is waited for, and
            no part of a packet is left, as it was before. ``None`` when all is done.
        """
        position = 0
        answer: bytes | None = None
        lent: tuple[bytes, int] | None = None
        if self.way or self.held:
            lent = self._receive_more(data)
            if lent is None:
                return None
            data, position = lent
        while True:
            size = len(data)
            self.way = RUNNING
            try:
                if 4 < size <= _ONE_PACKET:
                    # Whole packets, with nothing before them.
                    while True:
                        length, letter = read_head(data, position)
                        end = position + 4 + length
                        if end > size or not length:
                            break
                        if answer is not None:
                            self.out.append(answer)
                            answer = None
                        handler, self.table = self.table[letter]
                        answer = handler(self, data[position + 5 : end])
                        position = end
                        if self.held or size - end < 5:
                            break
            except BaseException as error:
                if not self.broken_by(error):
                    raise
                return None
            if position == size and lent is None and not self.held:
                if answer is None or self.out:
                    return self.go_on(answer)
                self.way = EASY
                if self.watch is not None:
                    self.watch.count_sent(len(answer))
                return answer
            self.way = _CAREFUL
            if answer is not None:
                self.out.append(answer)
                answer = None
            if position < size:
                # A part of a packet, an odd length, or what must wait.
                self.splitter.put_back(data, position)
            if self.held and self._must_wait():
                self._wait()
                return None
            lent = self._receive_more(b"")
            if lent is None:
                return None
            data, position = lent

    def go_on(self, answer: bytes | None) -> bytes | None:
        """
        Do what is left to do when all that was read has been handled, and not answered as usual.

        :param answer: The last packet's, if that was a usual one.
        :return: As `take_in`.
        """
        if not self.held:
            self.way = EASY
            return self._send(answer)
        self.way = _CAREFUL
        if answer is not None:
            self.out.append(answer)
        if self._must_wait():
            self._wait()
            return None
        return self.take_in(b"")

    def broken_by(self, error: BaseException) -> bool:
        """
        End the conversation if what a packet has raised says that the MTA broke the protocol.

        :return: Whether it says so.
        """
        self.way = _CAREFUL
        if not isinstance(error, ProtocolError):
            return False
        self._break_off(error)
        self._wait()
        return True

    def _send(self, answer: bytes | None) -> bytes | None:
        """
        Send what was answered, if anything was.

        :return: As `take_in`; a few packets are sent by who asked.
        """
        out = self.out
        if answer is not None:
            out.append(answer)
        if out:
            if len(out) <= _FEW_PACKETS and sum(map(len, out)) <= _ONE_PACKET:
                return self.take_out()
            self.send(out)
            if self.held:
                self._wait()
                return None
        elif self.hurried:
            self.line.hurry()
        return b""

    def send(self, out: list[bytes]) -> None:
        """
        Send packets, and empty the list.
        """
        self.line.send_packets(out)

    def take_out(self) -> bytes:
        """
        Give the packets that are to be sent, joined, to who sends them.
        """
        data = b"".join(self.out)
        self.out.clear()
        return data

    def _receive_more(self, data: bytes) -> tuple[bytes, int] | None:
        """
        Take in bytes where anything may be: parts of packets, something that is waited for.

        :return: A read, and a place in it, from which on there are whole packets and nothing
            before them; ``None`` when all is done that can be.
        """
        # A callback may lead here again, by a Deferred that it fires.
        if self.way == RUNNING or (self.held and self._must_wait()):
            self._put_aside(data)
            return None
        splitter = self.splitter
        if data:
            splitter.feed(data)
        self.way = RUNNING
        try:
            while not self.held or self._may_go_on():
                packet = splitter.next_packet()
                if packet is None:
                    break
                for take in self.takers:
                    take(packet)
                self.handle(*packet)
                left = len(splitter.buffer) - splitter.position
                if left > 4 and not (self.held or self.takers):
                    return splitter.lend()
        except ProtocolError as error:
            self._break_off(error)
        finally:
            self.way = _CAREFUL
        if not self.held:
            if self.out:
                self.send(self.out)
            elif self.hurried:
                self.line.hurry()
        if self.held:
            self._wait()
        else:
            self._catch_up()
        return None

    def show(self, take: Callable[[tuple[int, bytes]], None]) -> None:
        """
        Show each packet from now on, before it is looked at.

        :param take: Called with its letter and its payload.
        """
        self.takers += (take,)
        self.held = True

    def _must_wait(self) -> bool:
        return self.ended or self._stalled or self.awaiting

    def _may_go_on(self) -> bool:
        """
        Look whether the next packet may be handled; do what is due before that.
        """
        while not self._must_wait():
            self.held = False
            if self.due is None:
                return True
            (handler, payload), self.due = self.due, None
            self.give(handler(self, payload))
        self.held = True
        return False

    def _put_aside(self, data: bytes) -> None:
        if not self.ended:
            if data:
                self.splitter.feed(data)
            self.held = True
            if self.way != RUNNING:
                self.busy = True
                self.line.held_up()

    def _wait(self) -> None:
        if self.ended:
            # A callback may have ended it, and then have answered, or asked to be waited for.
            if self.awaiting:
                self.cancel()
            self.out.clear()
            self._forget_arrived()
            return
        if self.out:
            self.send(self.out)
        self.busy = True
        self.line.held_up()

    def _forget_arrived(self) -> None:
        if self._splitter is not None:
            self._splitter.clear()

    def _catch_up(self) -> None:
        self.busy = False
        if self._draining and self.message is None:
            self.end()
            return
        if not (self.splitter.partial or self._draining or self.takers):
            self.way = EASY
        self.line.caught_up()

    def run(self) -> None:
        """
        Go on with what has arrived, and tell the line how that stands.
        """
        self.held = True
        self.take_in(b"")

    def resume(self, work: Callable[[Pending], None], pending: Pending) -> None:
        """
        Do what an awaited result calls for, then go on with what has arrived.

        Not before: user code that the work runs must not make the loop go on in its middle.
        """
        before = self.way
        self.way = RUNNING
        try:
            work(pending)
        finally:
            self.way = before
        self.run()

    def _break_off(self, error: ProtocolError) -> None:
        _log.warn(
            "The MTA at {mta} broke the milter protocol: {error}; closing the connection",
            mta=self.caller.mta,
            connection=self.number,
            error=printable(str(error)),
        )
        # A message counts as open, as in libmilter, whose state is set before a payload is read.
        self.merge.join_all()
        self.end()

    def drop(self, dropped: str, why: str) -> None:
        """
        Take note of a command that is dropped.

        :param why: What is wrong with it.
        """
        self._tell_once(_DROPPED, dropped=dropped, why=why)

    def _overlook(self, length: int) -> None:
        """
        Take note of a packet whose length no packet can have, and which is taken all the same.
        """
        self._tell_once(_OVERLOOKED, length=length)

    def _tell_once(self, text: str, **values: object) -> None:
        # An MTA that is out of step sends many.
        if text not in self._told:
            self._told += (text,)
            _log.info(text, mta=self.caller.mta, connection=self.number, **values)

    # ---- whether something is waited for

    @property
    def stalled(self) -> bool:
        """
        Whether no packet is handled, because the MTA does not read what we write.
        """
        return self._stalled

    @stalled.setter
    def stalled(self, stalled: bool) -> None:
        watch = self.watch
        if watch is not None:
            # While the MTA does not read nobody is at work.
            if stalled:
                watch.count_work(now=self.at_work)
            else:
                watch.count_anew()
        self._stalled = stalled
        self.held = self.held or stalled

    @property
    def waiting(self) -> bool:
        """
        Whether a milter is waited for.
        """
        return self.elsewhere or self.awaiting

    @property
    def at_work(self) -> bool:
        """
        Whether a packet is being handled, or a milter waited for.
        """
        return self.way == RUNNING or (self.busy and not self._stalled)

    @property
    def session(self) -> Conversation:
        """
        The connection's rules: they are the conversation itself.
        """
        return self

    # ---- membership

    def add(self, milter: object, shape: Shape) -> Member:
        """
        Add a milter behind those that are there.

        :param shape: What its callbacks tell of it.
        :raises RuntimeError: when the MTA has begun to talk.
        """
        if self._begun:
            raise RuntimeError("a milter cannot be added once the MTA has begun to talk")
        tally = getattr(getattr(milter, "factory", None), "shadow", None)
        if tally is not None:
            if self._shadows is None:
                self._shadows = Shadows(self, self.clock, self.watch)
            return self._shadows.add(milter, shape, tally)
        member = member_of(milter, len(self.members), shape, self)
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
            packet = response(answer.code, answer.reply)
            self.kept = Kept(answer.code, packet, None, True)

    # ---- the connection comes

    def connected(self, peer: object, number: int) -> None:
        """
        Tell the milters that the MTA has connected.

        :param peer: Its address.
        :param number: The connection's number, for the log.
        """
        self.peer = peer
        self.number = number
        for member in self.members:
            if MTA_CONNECT_ROW.callback in member.wanted:
                self.opening.welcome(peer)
                break
        if self._shadows is not None:
            self._shadows.connected(peer, number)
        if self._unwelcome:
            self.end()

    def negotiate(self, payload: bytes) -> bytes | None:
        """
        Have the milters say what they want of what the MTA offers.

        Most connections of a server have the same milters, and the MTA offers the same: what came
        of it once is known.

        :return: The answer, if it is known.
        """
        asked = self._asked(payload)
        self._begun = True
        settled = _settled.get(asked) if asked is not None else None
        if settled is None:
            self._to_settle = asked
            self.opening.negotiate(payload)
            return None
        agreement = settled.agreement
        for member, request in zip(self.members, settled.requests):  # noqa: B905 (it is in the key)
            member.agree(request, agreement)
        if settled.adapts:
            for member in self.members:
                member.prepare(agreement.steps, self.macros)
        self._begin(settled)
        return settled.answer

    def prepare_unasked(self) -> None:
        """
        Work out what each command does where nothing was negotiated.
        """
        self._begun = True
        super().prepare_unasked()

    def _asked(self, payload: bytes) -> tuple[object, ...] | None:
        """
        Give all that the agreement follows from; ``None`` where a milter may want anything.
        """
        if self._shadows is not None:
            return None
        if len(payload) < MILTER_OPTLEN:
            return None
        times = None if self.watch is None else self.watch.times
        asked: list[object] = [payload[:MILTER_OPTLEN], self.plan.merge, times]
        for member in self.members:
            flags = member.asks_as_others
            if flags is False:
                return None
            asked += (member.shape, flags)
        return tuple(asked)

    def _begin(self, settled: _Settled) -> None:
        self._limit = settled.limit
        if self._splitter is not None:
            self._splitter.limit = settled.limit
        self.begin(settled.plan)

    def requests_of_others(self, offer: bytes) -> list[Request]:
        """
        Give what milters in shadow ask for.
        """
        return [] if self._shadows is None else self._shadows.requests(offer)

    def agree(self, agreement: Agreement) -> None:
        """
        Go on with what has been agreed on, and say so to the MTA.
        """
        if self._shadows is not None:
            self._shadows.agreed(agreement)
        skip_offered = bool(agreement.offer.steps & c.SMFIP_SKIP)
        plan = self.prepare(agreement.steps, agreement.declined, skip_offered=skip_offered)
        answer = Offer(agreement.version, agreement.actions, agreement.steps)
        settled = _Settled(
            agreement,
            [member.request for member in self.members],
            plan,
            encode_offer(answer, self._symbol_lists(agreement)),
        )
        if self._to_settle is not None:
            if len(_settled) >= _MOST_SETTLED:
                _settled.clear()
            _settled[self._to_settle] = settled
            self._to_settle = None
        self._begin(settled)
        self.out.append(settled.answer)

    def _symbol_lists(self, agreement: Agreement) -> dict[int, bytes]:
        lists = agreement.symbol_lists
        for stage, names in self.plan.merge.symbols.items():
            # Where no list is asked for the MTA sends those anyway.
            if stage in lists and names not in lists[stage].split():
                lists[stage] += b" " + names
        return lists

    def send_progress(self) -> None:
        """
        Write SMFIR_PROGRESS at once, behind what was answered before.
        """
        if not self._lost:
            self.out.append(_PROGRESS_PACKET)
            self.send(self.out)

    # ---- the connection goes

    def end(self) -> None:
        """
        End the conversation: the MTA said so, broke the protocol, or was refused.
        """
        if self.ended:
            return
        self.ended = self.held = True
        if self.awaiting:
            self.cancel()
        self.abort()
        self.over = True
        self.close_members()
        self._forget_arrived()
        if not self._lost:
            if self.out:
                self.send(self.out)
            self.line.hang_up()

    def disconnect(self) -> None:
        """
        Close the connection in the place of an answer.
        """
        self.end()

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
        if self.made_merge is not None:
            self.made_merge.give_up()
        self.end()

    def lost(self, reason: Failure) -> None:
        """
        Take note that the connection is gone.
        """
        self._lost = True
        self.end()
        self.notify(self.members, MTA_CLOSE_ROW, reason)
        if self._shadows is not None:
            self._shadows.lost(reason)
