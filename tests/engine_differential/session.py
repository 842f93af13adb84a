"""
One session, run on one of the ways, and what was seen of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from yatxmilter import MilterProtocolFactory

from .chance import Chance
from .dialogue import DECLINED, UNANSWERED, Command, Script, damaged, offer, parse
from .milters import Stage, make_factories, shorter
from .plans import Plan, make_plan
from .ways import InMemory, Sockets, Way

#: What is seen of one step: what was done, what milters noted, those in shadow, what failed, the
#: bytes that came back, and whether the connection is over.
Step = dict[str, Any]

#: The letters with which a command is answered.
_FINAL = frozenset("acrtdsyf4")


#: Twisted reads so much at once. A milter that closes the connection itself is shown what had been
#: read with it, and no more: each way must read as much.
_READ = 65536


class Session:
    """
    A session on one way.

    :ivar steps: What was seen; steps in which nothing happened are left out.
    """

    def __init__(self, plan: Plan, way: Way, stage: Stage, faults: list[str]) -> None:
        self.steps: list[Step] = []
        self._plan = plan
        self._way = way
        self._stage = stage
        self._faults = faults
        self._chance = Chance("drive", plan.number)
        self._agreed: int | None = None
        self._closed = False
        self._letters = ""
        self._look("connect")

    def run(self) -> None:
        """
        Run it to its end.
        """
        plan = self._plan
        self._send(offer(plan))
        self._answered()
        commands = Script(plan).commands()
        if plan.manner == "polite":
            self._politely(commands)
        else:
            if plan.manner == "broken":
                commands = damaged(commands, Chance("damage", plan.number))
            self._hastily(b"".join(command.packets for command in commands))
        self._end()

    # ---- manners

    def _politely(self, commands: list[Command]) -> None:
        chance = self._chance
        obedient = chance.whether(0.85)
        skipping, skipped = "", False
        for command in commands:
            if self._way.closed:
                return
            letter = command.letter
            if letter == "M":
                skipping, skipped = skipping.replace("m", ""), False
            if letter == "K":
                skipping = ""
            if ("m" in skipping and command.message) or ("c" in skipping and letter not in "QK"):
                continue
            if obedient and self._steps() & DECLINED.get(letter, 0):
                continue
            if skipped and letter == "B":
                continue
            self._send(command.packets)
            if self._steps() & UNANSWERED.get(letter, 0):
                continue
            verdict = self._answered()
            skipped = skipped or verdict == "s"
            if verdict in ("", "c", "s") or (letter == "R" and verdict not in "ad"):
                continue
            if letter == "U":
                continue
            # A verdict on the connection, or on the message.
            skipping += "m" if command.message else "c"

    def _steps(self) -> int:
        return self._agreed or 0

    def _answered(self) -> str:
        """
        Wait for an answer as long as that makes sense; give its letter.
        """
        for _ in range(4):
            final = [letter for letter in self._letters if letter in _FINAL]
            if final or self._way.closed or not self._stage.awaited:
                return final[-1] if final else ""
            self._let_go_on()
        return ""

    def _hastily(self, data: bytes) -> None:
        chance = self._chance
        pieces = chance.weighed([(3, 1), (3, 6), (2, 25)])
        cuts = sorted(chance.number(0, len(data)) for _ in range(pieces - 1))
        if chance.whether(0.1):
            # Byte by byte, in the beginning.
            cuts = sorted({*range(min(40, len(data))), *cuts})
        for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            if self._way.closed:
                return
            if begin < end:
                self._send(data[begin:end])
            if chance.whether(0.3):
                self._let_go_on()

    def _let_go_on(self) -> None:
        """
        Fire a Deferred, or let time pass.
        """
        chance = self._chance
        if chance.whether(0.8):
            self._stage.fire()
            self._way.settle()
            self._look("fire")
        elif not self._plan.jumps:
            self._pass(chance.pick((1, 6)))
        else:
            self._pass(chance.weighed([(6, 1), (3, 2000), (1, 10_000)]))

    def _pass(self, seconds: float) -> None:
        self._way.advance(seconds)
        if seconds > 100:
            # Whatever looks at limits only now and then has done so now.
            self._way.advance(60)
            self._way.advance(60)
        self._look(f"{seconds} s")

    def _end(self) -> None:
        chance = self._chance
        patient = self._plan.tight or chance.whether(0.7)
        for _ in range(60):
            if self._way.closed or not patient or not self._stage.awaited:
                break
            self._stage.fire()
            self._way.settle()
            self._look("fire")
        if not self._way.closed:
            self._way.lose()
            self._look("lose")
        for _ in range(5):
            if self._stage.awaited:
                self._stage.fire()
                self._way.settle()
                self._look("fire")
        self._way.advance(100_000)
        self._look("end")

    # ---- what is seen

    def _send(self, data: bytes) -> None:
        self._letters = ""
        for begin in range(0, len(data), _READ):
            self._way.send(data[begin : begin + _READ])
        self._look(f"send {shorter(data)}")

    def _look(self, done: str) -> None:
        received = self._way.received()
        for letter, payload in parse(received):
            self._letters += letter
            if letter == "O" and self._agreed is None:
                self._agreed = int.from_bytes(payload[8:12], "big")
        seen = {
            "notes": self._stage.notes[:],
            "shadow": [note for notes in self._stage.shadow_notes for note in notes],
            "faults": self._faults[:],
            "bytes": _written(received),
            "closed": self._way.closed and not self._closed,
        }
        self._closed = self._way.closed
        self._stage.notes.clear()
        for notes in self._stage.shadow_notes:
            notes.clear()
        self._faults.clear()
        happened = {name: value for name, value in seen.items() if value}
        if happened:
            self.steps.append({"done": done, **happened})


def _written(data: bytes) -> str:
    if len(data) <= 200:
        return ascii(data.decode("latin-1"))[1:-1]
    letters = "".join(letter for letter, _ in parse(data))
    return f"{len(data)} bytes {letters[:40]} {hashlib.sha256(data).hexdigest()[:16]}"


@contextmanager
def _noting_faults() -> Any:
    """
    Collect the failures that are logged, by their types.
    """
    faults: list[str] = []

    def observe(event: Any) -> None:
        failure = event.get("log_failure")
        if failure is not None:
            faults.append(type(failure.value).__name__)

    globalLogPublisher.addObserver(observe)
    try:
        yield faults
    finally:
        globalLogPublisher.removeObserver(observe)


def _run(number: int, connect: Callable[[MilterProtocolFactory, Clock], Any]) -> list[Step]:
    plan = make_plan(number)
    stage = Stage(plan)
    clock = Clock()
    milter_factories = make_factories(stage)
    factory = MilterProtocolFactory(milter_factories, reactor=clock, **plan.options)
    with _noting_faults() as faults:
        way = connect(factory, clock)
        try:
            session = Session(plan, way, stage, faults)
            session.run()
        finally:
            if hasattr(way, "end"):
                way.end()
    tallies = [_tally(each) for each in milter_factories if each.shadow is not None]
    return [*session.steps, *([{"done": "count", "shadow": tallies}] if tallies else [])]


def _tally(factory: Any) -> str:
    shadow = factory.shadow
    verdicts, recipients = (
        {int(code): count for code, count in sorted(counted.items())}
        for counted in (shadow.verdicts, shadow.recipients)
    )
    return f"{verdicts} {recipients} {shadow.edited} {shadow.undecided} {shadow.cut_off}"


def run_in_memory(number: int) -> list[Step]:
    """
    Run a session on the transport in memory.
    """
    return _run(number, InMemory)


def run_on_socket(number: int, sockets: Sockets, fast_path: bool = True) -> list[Step]:
    """
    Run a session over a socket.
    """

    def connect(factory: MilterProtocolFactory, clock: Clock) -> Any:
        factory.fast_path = fast_path
        return sockets.connect(factory, clock)

    return _run(number, connect)
