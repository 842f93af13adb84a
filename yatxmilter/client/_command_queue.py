"""
One command after another: the queue beneath `yatxmilter.client`.

Commands may be asked for at any time; each waits until those before it are answered, because their
answers decide whether it is sent at all. So everything that depends on the agreement, or on what
the milter has said of this message, is decided when a command's turn comes. A failure - the milter
breaks the protocol, is late, or goes away - fails everything that waits, and the connection stays
failed.

Whatever the milter sends has a bound: what belongs to no command fails at once, and what belongs to
one is counted before it is kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime, ITCPTransport, IUNIXTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from yatxmilter import constants as c
from yatxmilter._mail.bounds import MAX_EDIT_BYTES, MAX_NEW_BODY
from yatxmilter._options import limit_option
from yatxmilter._wire.actions import (
    NOT_AWAITED,
    Agreement,
    Edit,
    Edits,
    EndOfMessage,
    Response,
    read_agreement,
    read_edit,
    read_response,
)
from yatxmilter._wire.commands import (
    ABORT_ROW,
    ACTIONS,
    BODY_ROW,
    CONNECT_ROW,
    EOM_ROW,
    HELO_ROW,
    MACRO_ROW,
    MAIL_ROW,
    OPTNEG_ROW,
    QUIT_NC_ROW,
    QUIT_ROW,
    Command,
)
from yatxmilter._wire.negotiation import data_size
from yatxmilter._wire.payloads import PacketSplitter, decode_offer, encode_macros, encode_packet
from yatxmilter.errors import PeerError, ProtocolError, ValueNotSendable
from yatxmilter.protocol._steady_clock import steady
from yatxmilter.protocol._tls import tls_failure

__all__ = ["CommandQueue"]

# The largest response payload: no milter sends more than its largest body chunk, which is a
# megabyte for one that was built with libmilter's MDS option.
_LIMIT: Final = c.MILTER_MDS_1M

# How long, in seconds, a milter has to close the connection after QUIT before we do.
_QUIT_GRACE: Final = 5.0

# How often a milter may say that it is at work, for one command: once a second makes a day of it.
_MOST_PROGRESS: Final = 100_000

# An edit that is kept takes some memory of its own, however short it is.
_LEAST_EDIT: Final = 64
_FEW_EDITS: Final = 1_000

# Until something is agreed, everything is sent and answered, and nothing may be edited.
_NOTHING_AGREED: Final = Agreement(c.SMFI_PROT_VERSION, 0, 0, {})


@dataclass(eq=False, slots=True)
class _Pending:
    """
    A command that waits for its turn, or for its answer.

    :ivar row: MACRO for macros alone, or for nothing but a turn.
    :ivar chunks: Body chunks still to be sent for this command.
    """

    row: Command
    payload: bytes
    macros: bytes | None
    result: Deferred[Any]
    chunks: deque[bytes] = field(default_factory=deque)
    edits: list[Edit] = field(default_factory=list)
    edit_count: int = 0
    edit_bytes: int = 0
    body_pieces: int = 0
    body_bytes: int = 0
    progress: int = 0


class CommandQueue(Protocol):
    """
    Send commands strictly in order, and match the answers to them.

    :param timeout: Seconds to wait for an answer, anew after each PROGRESS; ``None`` for ever.
    :param clock: Where time comes from, by default the reactor.
    :param progress: Called with the command's name at each PROGRESS.
    :param max_edit_bytes: Bytes of edits that the milter may make of one message, the new body
        aside; ``None`` for any number. Small edits count as if they had 64 bytes once there are
        more than a thousand.
    :param max_edits: How many edits it may make of one message, the pieces of the new body aside;
        ``None`` for any number within ``max_edit_bytes``.
    :param max_body: Bytes of the new body that it may give a message; ``None`` for any number.
    :ivar agreement: What was negotiated, ``None`` before.
    :ivar standing: The stage and response with which CONNECT or HELO settled all that follows;
        ``None`` while messages are to be sent.
    """

    def __init__(
        self,
        *,
        timeout: float | None = 300.0,
        clock: IReactorTime | None = None,
        progress: Callable[[str], object] | None = None,
        max_edit_bytes: int | None = MAX_EDIT_BYTES,
        max_edits: int | None = None,
        max_body: int | None = MAX_NEW_BODY,
    ) -> None:
        self.timeout = timeout
        self.max_edit_bytes = limit_option("max_edit_bytes", max_edit_bytes)
        self.max_edits = limit_option("max_edits", max_edits)
        self.max_body = limit_option("max_body", max_body)
        self.agreement: Agreement | None = None
        self._clock = None if clock is None else cast(IReactorTime, steady(clock))
        self._progress = progress
        self._splitter = PacketSplitter(_LIMIT, strict=True)
        self.standing: tuple[str, Response] | None = None
        self._queue: deque[_Pending] = deque()
        # The commands of whoever holds the queue, which pass those that wait in it.
        self._inner: deque[_Pending] | None = None
        self._current: _Pending | None = None
        self._timer: IDelayedCall | None = None
        self._failure: PeerError | None = None
        self._pumping = False
        self._body_skipped = False
        # How many PROGRESS came unasked since the last command was sent.
        self._unasked = 0

    # ---- asking

    def _ask(
        self,
        row: Command,
        payload: bytes = b"",
        macros: Mapping[str, str] | None = None,
        *,
        inner: bool = False,
    ) -> Deferred[Any]:
        """
        Have a command sent in its turn, or in that of the holder of the queue.
        """
        packet = None if macros is None else encode_macros(row.letter, dict(macros))
        result: Deferred[Any] = Deferred(lambda _: self._withdraw(pending))
        pending = _Pending(row, payload, packet, result)
        if self._failure is None:
            lane = self._inner if inner and self._inner is not None else self._queue
            lane.append(pending)
            self._pump()
        elif row is QUIT_ROW:
            result.callback(None)
        else:
            result.errback(self._failure)
        return result

    def _hold(self) -> Deferred[Any]:
        """
        Wait for a turn, and keep it until `_release`: only inner commands are sent meanwhile.
        """

        def held(_: object) -> None:
            self._inner = deque()

        return self._ask(MACRO_ROW).addCallback(held)

    def _release(self) -> None:
        self._inner = None
        self._pump()

    def _withdraw(self, pending: _Pending) -> None:
        for lane in (self._inner, self._queue):
            if lane is not None and pending in lane:
                lane.remove(pending)
                return
        # Its answer may still come, and could not be told from the next command's.
        self._current = None
        self._fail(PeerError(f"the answer to {pending.row.name} is no longer awaited"))

    def _pump(self) -> None:
        if self._pumping:
            return
        self._pumping = True
        try:
            while self._current is None and self.connected and self._lane:
                self._start(self._lane.popleft())
        finally:
            self._pumping = False

    @property
    def _lane(self) -> deque[_Pending]:
        return self._queue if self._inner is None else self._inner

    # ---- sending

    def _start(self, pending: _Pending) -> None:
        """
        Send a command, or pass it over where the agreement says so.
        """
        row = pending.row
        agreement = self.agreement or _NOTHING_AGREED
        size = data_size(agreement.steps)
        if row in (MAIL_ROW, ABORT_ROW):
            self._body_skipped = False
        skipped = row is BODY_ROW and self._body_skipped
        if row.since > agreement.version or skipped:
            pending.result.callback(NOT_AWAITED)
        elif row is MACRO_ROW or row.no & agreement.steps:
            # Postfix sends the macros of a declined command all the same.
            self._write(pending.macros or b"")
            pending.result.callback(NOT_AWAITED)
        elif row is not BODY_ROW and len(pending.payload) > size:
            sizes = f"{len(pending.payload)} bytes, at most {size} were agreed"
            pending.result.errback(ValueNotSendable(f"payload of {row.name}: {sizes}"))
        else:
            self._send(pending, size, awaited=not row.nr & agreement.steps)

    def _send(self, pending: _Pending, size: int, *, awaited: bool) -> None:
        """
        Send a command, a body in chunks of one size; it is done with at once if it is not answered.
        """
        row, payload = pending.row, pending.payload
        self._unasked = 0
        if not pending.chunks:
            starts = range(0, len(payload), size) if row is BODY_ROW and payload else (0,)
            pending.chunks.extend(payload[start : start + size] for start in starts)
        if not awaited:
            while pending.chunks:
                self._send_next(pending)
            pending.result.callback(NOT_AWAITED)
            return
        self._current = pending
        self._send_next(pending)
        if row is QUIT_ROW:
            self._start_timer(_QUIT_GRACE, self._hang_up)
        elif row in (ABORT_ROW, QUIT_NC_ROW):
            if row is QUIT_NC_ROW:
                self.standing = None
            self._finish(pending, None)
        else:
            self._await_answer()

    def _send_next(self, pending: _Pending) -> None:
        packet = encode_packet(pending.row.letter, pending.chunks.popleft())
        self._write((pending.macros or b"") + packet)

    def _write(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)

    # ---- receiving

    def connectionMade(self) -> None:
        """
        Begin to send what was asked for meanwhile.
        """
        if ITCPTransport.providedBy(self.transport) and not IUNIXTransport.providedBy(
            self.transport
        ):
            # Commands that are not answered go out in small writes, one behind the other: with
            # Nagle's algorithm each would wait for the acknowledgement of the one before it.
            self.transport.setTcpNoDelay(True)
        self._pump()

    def dataReceived(self, data: bytes) -> None:
        """
        Take in bytes from the milter, and settle the commands whose answers are whole.
        """
        if self._failure is not None:
            # Not every transport is quiet at once; what is not looked at is not kept either.
            return
        self._splitter.feed(data)
        # Nothing is sent before all of it is looked at: what was there before a command is no
        # answer to it, and would have each later command take the answer to the one before.
        pumping, self._pumping = self._pumping, True
        try:
            while self._failure is None and (packet := self._splitter.next_packet()) is not None:
                self._receive(*packet)
        except PeerError as error:
            self._fail(error)
        except ProtocolError as error:
            self._fail(PeerError(f"the milter sent no milter packet: {error}"))
        finally:
            self._pumping = pumping
        self._pump()

    def _receive(self, letter: int, payload: bytes) -> None:
        """
        Take one packet from the milter: progress, an edit, or the answer to the current command.
        """
        pending = self._current
        if pending is None:
            # libmilter's smfi_progress() sends from any callback, those not answered included.
            self._unasked += 1
            if letter != c.SMFIR_PROGRESS:
                raise PeerError(f"the milter sent {chr(letter)!r} unasked")
            _check_progress(self._unasked)
            return
        row = pending.row
        if row is QUIT_ROW:
            return
        if letter == c.SMFIR_PROGRESS and not payload:
            self._note_progress(pending)
        elif row is OPTNEG_ROW:
            self.agreement = read_agreement(decode_offer(pending.payload), letter, payload)
            self._finish(pending, self.agreement)
        elif letter in ACTIONS and letter != c.SMFIR_PROGRESS:
            if row is not EOM_ROW:
                name = ACTIONS[letter].name
                raise PeerError(f"the milter sent {name} in answer to {row.name}")
            agreed = (self.agreement or _NOTHING_AGREED).actions
            edit = read_edit(letter, payload, agreed)
            self._count_edit(pending, letter, payload)
            self._keep_edit(pending, edit)
        else:
            self._answered(pending, read_response(letter, payload))

    def _count_edit(self, pending: _Pending, letter: int, payload: bytes) -> None:
        """
        Count an edit, and refuse a milter that sends more than is kept.
        """
        pending.edit_count += 1
        if letter == c.SMFIR_REPLBODY:
            pending.body_pieces += 1
            pending.body_bytes += len(payload)
        else:
            pending.edit_bytes += len(payload)
        if pending.body_bytes > self.max_body:
            raise PeerError(
                f"the milter sent a new body of more than {self.max_body} bytes (see max_body)"
            )
        if pending.edit_bytes > self.max_edit_bytes:
            raise PeerError(
                f"the milter sent edits of more than {self.max_edit_bytes} bytes"
                " (see max_edit_bytes)"
            )
        if pending.edit_count - pending.body_pieces > self.max_edits:
            raise PeerError(f"the milter made more than {self.max_edits} edits (see max_edits)")
        if pending.edit_count > max(_FEW_EDITS, self.max_edit_bytes // _LEAST_EDIT):
            raise PeerError(
                f"the milter sent {pending.edit_count} edits, of {_LEAST_EDIT} bytes at least"
                f" together more than {self.max_edit_bytes} (see max_edit_bytes)"
            )

    def _keep_edit(self, pending: _Pending, edit: Edit) -> None:
        """
        Keep an edit for the answer to the end of the message.
        """
        pending.edits.append(edit)

    def _note_progress(self, pending: _Pending) -> None:
        pending.progress += 1
        _check_progress(pending.progress)
        self._await_answer()
        if self._progress is not None:
            self._progress(pending.row.name)

    def _answered(self, pending: _Pending, response: Response) -> None:
        if pending.row is EOM_ROW:
            self._body_skipped = False
            edits = Edits(pending.edits)
            steps = (self.agreement or _NOTHING_AGREED).steps
            edits.leading_space = bool(steps & c.SMFIP_HDR_LEADSPC)
            self._finish(pending, EndOfMessage(response, edits, pending.progress))
        elif pending.chunks and response.code == c.SMFIS_CONTINUE:
            self._stop_timer()
            self._current = None
            self._lane.appendleft(pending)
        else:
            if pending.row is BODY_ROW and response.code == c.SMFIS_SKIP:
                self._body_skipped = True
            elif pending.row in (CONNECT_ROW, HELO_ROW):
                self._settle(pending.row.name.lower(), response)
            self._finish(pending, response)

    def _settle(self, stage: str, response: Response) -> None:
        if response.code in (c.SMFIS_REJECT, c.SMFIS_TEMPFAIL, c.SMFIS_ACCEPT):
            self.standing = stage, response
        elif self.standing is not None and self.standing[0] == stage:
            # A new HELO takes back what was said to the last one.
            self.standing = None

    def _finish(self, pending: _Pending, result: object) -> None:
        self._stop_timer()
        self._current = None
        pending.result.callback(result)
        self._pump()

    # ---- waiting

    def _await_answer(self) -> None:
        self._stop_timer()
        if self.timeout is not None:
            self._start_timer(self.timeout, self._timed_out)

    def _start_timer(self, seconds: float, call: Callable[[], None]) -> None:
        if self._clock is None:
            from twisted.internet import reactor

            self._clock = cast(IReactorTime, steady(reactor))
        self._timer = self._clock.callLater(seconds, call)

    def _stop_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _timed_out(self) -> None:
        self._fail(PeerError(f"the milter was silent for {self.timeout} s{self._awaited()}"))

    def _awaited(self) -> str:
        return f", awaited: {self._current.row.name}" if self._current is not None else ""

    # ---- the end

    def _hang_up(self) -> None:
        # To close it in good order would take a milter that reads, and over TLS one that agrees.
        cast(ITCPTransport, self.transport).abortConnection()

    def _fail(self, error: PeerError) -> None:
        """
        Fail everything that waits, and drop the connection.
        """
        self._end(error)
        # abortConnection: what is still to be written is of no use to anyone.
        cast(ITCPTransport, self.transport).abortConnection()

    def _end(self, error: PeerError) -> None:
        self._failure = error
        self._splitter.clear()
        self._stop_timer()
        waiting = [self._current] if self._current is not None else []
        waiting.extend(self._inner or ())
        self._current = self._inner = None
        self._queue.extendleft(reversed(waiting))
        # One by one: a callback may cancel what waits behind it.
        while self._queue:
            pending = self._queue.popleft()
            # The error's traceback may be kept for long, and leads here.
            pending.edits.clear()
            if pending.row is QUIT_ROW:
                pending.result.callback(None)
            else:
                pending.result.errback(error)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        Fail everything that waits for an answer.
        """
        if self._failure is None:
            why = tls_failure(self.transport, reason)
            what = "the milter closed the connection"
            if why is not None:
                what = f"the connection to the milter failed in TLS ({why})"
            error = PeerError(f"{what}{self._awaited()}")
            error.__cause__ = reason.value
            self._end(error)


def _check_progress(count: int) -> None:
    if count > _MOST_PROGRESS:
        raise PeerError(f"the milter said more than {_MOST_PROGRESS} times that it is at work")
