"""
Fuzzing of whole connections: a `MilterProtocol` with its milters, played by decisions.

The MTA negotiates, sends commands in any order and cut anywhere, reads or does not read, vanishes;
the milters do what `tests.fuzz.scripted` knows to do; time passes; the factory drains. Whatever
happens, no exception comes out, the answers are those of `tests.fuzz.model`, what is kept is
bounded, milters hear of each end once, and nothing is left behind.
"""

from __future__ import annotations

import struct
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import LogEvent, globalLogPublisher
from twisted.python.failure import Failure

from yatxmilter import MilterProtocolFactory
from yatxmilter._engine.connection import MERGES

from .choices import Choices
from .model import EDITS, Model, Packet
from .scripted import IN_MESSAGE, NO, Script, milter_factory

_MAX_BUFFERED = 2000
_READ = 400
_BODY = b"0123456789abcdef" * 20

#: What an MTA sends, in the order of a dialogue.
PAYLOADS: list[tuple[str, bytes]] = [
    ("C", b"mail.example.org\x004\x10\xe1192.0.2.1\x00"),
    ("H", b"mail.example.org\x00"),
    ("M", b"<s@example.org>\x00SIZE=1\x00"),
    ("R", b"<r@example.net>\x00"),
    ("T", b""),
    ("L", b"Subject\x00 hi\x00"),
    ("N", b""),
    ("B", _BODY),
    ("E", b""),
]
ODD: list[tuple[str, bytes]] = [
    ("A", b""),
    ("E", b"last"),
    ("U", b"XYZZY\x00"),
    ("K", b""),
    ("D", b"Mi\x004Xyz\x00"),
    ("D", b"R{rcpt_mailer}\x00error\x00"),
    ("A", b""),
    ("Q", b""),
]
#: What no MTA sends; from there on answers cannot be foretold.
BROKEN: list[tuple[str, bytes]] = [
    ("M", b"no end"), ("C", b"h\x00"), ("L", b"N\x00"), ("H", b"abc"), ("Z", b""), ("D", b""),
    ("M", b""), ("B", b"x" * 70000), ("O", b"\0\0\0\6" * 3), ("O", b"\0"),
    ("D", b"C" + b"a\x00" * 2000),
]  # fmt: skip


class Wire(StringTransport):
    """
    A transport that goes down when its world says so, as a socket does.
    """

    def __init__(self) -> None:
        super().__init__(peerAddress=IPv4Address("TCP", "192.0.2.25", 4242))
        self.aborted = False

    def write(self, data: bytes) -> None:
        assert not self.disconnecting and not self.aborted, f"{data!r} after the end"
        super().write(data)

    def abortConnection(self) -> None:
        self.aborted = True


class World:
    """
    One connection.
    """

    def __init__(self, data: bytes) -> None:
        self.choices = choices = Choices(data)
        self.script = Script(choices)
        self.clock = Clock()
        factories = [milter_factory(self.script, n) for n in range(1 + choices.below(3))]
        self.factory = MilterProtocolFactory(
            factories,
            merge=choices.pick(sorted(MERGES)),
            max_buffered=_MAX_BUFFERED,
            timeout=60,
            command_timeout=30,
            write_timeout=30,
            reactor=self.clock,
        )
        self.errors: list[LogEvent] = []
        self.sent: list[Packet] = []
        self.waiting = b""
        self.exact = True
        self.lost = False
        self.unread = False
        self.drained: list[object] = []
        self.gave_up = False

    # ---- the course of events

    def run(self) -> None:
        globalLogPublisher.addObserver(self._observe)
        try:
            self._connect()
            self._negotiate()
            while self.choices and not self.lost:
                self._event()
            self._finish()
            self._check_answers()
            self._end()
        finally:
            globalLogPublisher.removeObserver(self._observe)
        assert not self.errors, self.errors

    def _observe(self, event: LogEvent) -> None:
        if "log_failure" in event and "milter" not in event:
            self.errors.append(event)

    def _connect(self) -> None:
        self.wire = Wire()
        self.protocol: Any = self.factory.buildProtocol(self.wire.getPeer())
        self.milters = self.protocol.milters
        self.protocol.makeConnection(self.wire)
        self._settle()

    def _negotiate(self) -> None:
        choices = self.choices
        if choices.one_in(8):
            return
        steps = 0x1FFFFF if choices.below(3) else 0x37F | choices.bits() & 0x1FFFFF
        if choices.one_in(20):
            steps = choices.bits()
            self.exact = False
        self._say("O", struct.pack("!III", 6, 0x1FF, steps))

    def _event(self) -> None:
        choices = self.choices
        what = choices.below(16)
        if what < 9:
            self._dialogue()
        elif what < 12:
            self.script.fire()
        elif what == 12:
            self.clock.advance(choices.pick((0.5, 5, 6, 31)))
        elif what == 13:
            self._reading()
        elif what == 14 and choices.one_in(4):
            self._drain()
        elif what == 15 and choices.one_in(3):
            self._lose()
        self._settle()

    def _dialogue(self) -> None:
        choices = self.choices
        start = choices.below(len(PAYLOADS))
        for letter, payload in PAYLOADS[start : start + 1 + choices.below(len(PAYLOADS))]:
            self._say(letter, payload)
        if choices.one_in(3):
            self._say(*choices.pick(ODD))
        if choices.one_in(40):
            self.exact = False
            self.script.lenient = True
            self._say(*choices.pick(BROKEN))

    def _reading(self) -> None:
        if self.wire.producer is None:
            # It is being closed, which nothing holds up but what is not read.
            self.unread = False
            return
        self.unread = not self.unread
        if self.unread:
            self.wire.producer.pauseProducing()
        else:
            self.wire.producer.resumeProducing()

    def _drain(self) -> None:
        self.factory.drain(self.choices.pick((None, 10))).addCallback(self.drained.append)
        self.gave_up = True

    def _finish(self) -> None:
        # All that is awaited comes, all that was written is read: then nothing may be open.
        while not self.lost and (self.script.awaited or self.unread or self.waiting):
            if self.unread:
                self._reading()
            self.script.fire()
            self._settle()
            waits = self.protocol._conversation.busy and not self._closing and not self.unread
            assert self.script.awaited or not waits, "it waits for nothing"

    # ---- the wire

    def _say(self, letter: str, payload: bytes) -> None:
        self.sent.append((letter, payload))
        self.waiting += struct.pack("!I", len(payload) + 1) + letter.encode() + payload
        if not self.choices.one_in(4):
            self._deliver()

    def _deliver(self) -> None:
        size = self.choices.pick((_READ, 5, 1, 7, 100, _READ, _READ, _READ))
        while self.waiting and not self._closing and self.wire.producerState != "paused":
            data, self.waiting = self.waiting[:size], self.waiting[size:]
            self.protocol.dataReceived(data)
            kept = self.protocol._conversation.session.splitter.buffered
            # One packet may be on its way to being whole besides.
            assert kept <= _MAX_BUFFERED + _READ + 70000, kept
            if self.wire.producerState != "paused" and self.protocol._conversation.busy:
                assert kept <= _MAX_BUFFERED, kept

    @property
    def _closing(self) -> bool:
        return self.lost or self.wire.disconnecting or self.wire.aborted

    def _settle(self) -> None:
        # A connection that is being closed goes when what was written is read, or at once.
        if not self.lost and (self.wire.aborted or self.wire.disconnecting and not self.unread):
            self._lose()
        elif not self.lost:
            self._deliver()

    def _lose(self) -> None:
        self.lost = True
        self.answered_all = False
        reason = ConnectionLost() if self.wire.aborted else ConnectionDone()
        self.protocol.connectionLost(Failure(reason))

    # ---- what must hold

    def _answers(self) -> list[Packet]:
        data = self.wire.value()
        found = []
        while data:
            (length,) = struct.unpack_from("!I", data)
            assert len(data) >= 4 + length >= 5, data
            found.append((chr(data[4]), data[5 : 4 + length]))
            data = data[4 + length :]
        return found

    def _judge(self) -> Model:
        declined = 0
        for name, flag in NO.items():
            if not any(name in milter.wanted for milter in self.milters):
                declined |= flag
        model = Model(declined, self._answers())
        model.run(self.sent)
        return model

    def _check_answers(self) -> None:
        if not self.exact:
            return
        model = self._judge()
        left = "".join(letter for letter, _ in model.left)
        if self.gave_up:
            # What was owed was answered TEMPFAIL, with everything that follows unanswered.
            assert not left.strip(EDITS + "p"), left
        elif model.over and not self.lost:
            assert self._closing, "still open"
            assert not left, left
        elif model.unanswered:
            assert self._closing, f"{model.unanswered!r} was not answered"
        else:
            assert not left.strip(EDITS + "p"), left

    def _end(self) -> None:
        alone = self.exact and not self.lost and not self.gave_up and len(self.milters) == 1
        # One that fails to negotiate may be out for good.
        alone = alone and not hasattr(type(self.milters[0]), "negotiates")
        # To a chain, a message is no milter's before one step of it comes that the milter wants.
        wants_all = alone and set(IN_MESSAGE) <= set(self.milters[0].wanted)
        alone = alone and (self.factory.merge != "chain" or wants_all)
        closings = self._judge().closings if self.exact else 99
        if not self.lost:
            self._lose()
        for milter in self.milters:
            record = milter.record
            assert record.gone == 1, f"xxfi_mta_close {record.gone} times"
            assert 1 <= record.closes <= closings + 1, f"xxfi_close {record.closes} times"
            if alone:
                aborted = self._judge().aborted
                assert aborted in (None, record.aborts), f"{record.aborts} aborts, not {aborted}"
        # Answers were cancelled; what else is awaited are the ends of abort and close.
        answers = [deferred for deferred, answer in self.script.awaited if answer]
        assert not answers, answers
        while self.script.awaited:
            self.script.fire()
        assert not self.factory.connections
        assert not self.factory.admission.count
        if self.gave_up:
            assert self.drained
        left = self.clock.getDelayedCalls()
        assert not left, left


def test_one(data: bytes) -> None:
    """
    Play one connection.
    """
    World(data).run()
