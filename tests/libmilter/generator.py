"""
Cases by three profiles.

"conforming" plays an MTA that keeps to the rules, against a milter that does: any offer, any
selection of callbacks and steps, what comes next depends on what the milter answers. "misused" has
the same conversations, but the milter does anything anywhere: every function at every stage with
good and bad values, every return code. "hostile" has the same milters, and conversations in any
order, broken in every way.
"""

from __future__ import annotations

from dataclasses import replace

from . import packets
from .case import DISCONNECT, OPTIONAL, Case, OnError, Reaction, Result
from .packets import packet, strings
from .reactions import Behaviour
from .reference_tables import ALL_NO, ALL_NR, INTERNAL, NODATA, NOUNKNOWN, SKIP_STEP, STEPS
from .source import Source

PROFILES = ("conforming", "misused", "hostile")

_OFFERED_STEPS = {2: 0x7F, 3: 0x17F, 4: 0x37F, 5: 0x37F, 6: 0x1FFFFF, 7: 0x1FFFFF}
_REFUSALS: tuple[Result, ...] = (1, 4, 3, 7, 99, -1, 8, False, "0")
_ON_ERROR: tuple[OnError, ...] = (
    4, 4, 4, 0, 1, 2, 3, b"451 4.3.0 later", b"550 5.7.1 no", b"421 4.7.0 bye", DISCONNECT
)  # fmt: skip
_SINCE = {"data": 4, "unknown": 3}
_DELIVERIES: tuple[str | int, ...] = (
    "packets",
    "packets",
    "packets",
    "whole",
    "whole",
    1,
    2,
    3,
    5,
    7,
    16,
    100,
)


class Session:
    """One case in the making."""

    def __init__(self, source: Source, profile: str) -> None:
        self.source = source
        self.profile = profile
        self.good = profile == "conforming"
        self.sent: list[bytes] = []
        self.reactions: dict[str, list[Reaction]] = {}
        self.version = source.choice((6, 6, 6, 6, 6, 6, 4, 3, 2))
        self.callbacks = self._callbacks()
        self.registered = Case(self.callbacks, version=self.version).registered
        self.flags = source.choice((0x1FF, 0x1FF, 0, 0x3F, 0x31, 0xCE, 0x0F, 0x100))
        self.declined = 0
        self.unanswered = 0
        self.mta_version = 6
        self.behaviour = Behaviour(source, self.good)
        self.continued = False
        self.on_error: OnError = source.choice(_ON_ERROR)
        self.members = source.choice((1, 1, 2, 3, 5))

    def _callbacks(self) -> tuple[str, ...]:
        source = self.source
        kind = source.integer(0, 9)
        if kind < 3:
            return OPTIONAL[1:]
        if kind < 6:
            return OPTIONAL
        percent = source.choice((80, 50, 20))
        return tuple(name for name in OPTIONAL if source.chance(percent))

    # ---- negotiation

    def negotiate(self) -> bool:
        """
        Send the offer and decide what the milter makes of it; tell whether the connection goes on.
        """
        source = self.source
        version = source.choice((6, 6, 6, 6, 6, 6, 6, 2, 3, 4, 5, 7))
        actions, steps = source.choice((0x1FF,) * 6 + (0x3F, 0)), _OFFERED_STEPS[version]
        if self.flags & ~actions and source.chance(70):
            self.flags &= actions
        if source.chance(10):
            steps = source.choice(
                (0, 0x3F, 0xFF, 0x1FFFFF, 0x7FF, 0x3FF, 0x0FFFFF, 0xF07F, 0x8F3FFFFF)
            )
        if not self.good and source.chance(10):
            version = source.choice((1, 0, 0x80000006, 100, 6))
            actions = source.integer(0, 0x3FF)
            steps = source.choice((0x701FFFFF, 0x3FFFFF, 0xFFFFFFFF, source.integer(0, 0x1FFFFF)))
        self.sent.append(packets.offer(version, actions, steps))
        self.mta_version = version
        self.behaviour.flags = self.flags
        offered = (steps or 0x3F) & ~INTERNAL
        actions = actions or 0x0F
        own = sum(no for name, (no, _, _) in STEPS.items() if name not in self.registered)
        if "negotiate" in self.registered:
            wanted = self._request(actions, offered, own)
        else:
            wanted = (self.flags, own)
        if wanted is None:
            return False
        self.behaviour.flags = wanted[0]
        self.declined = wanted[1] & ALL_NO & offered
        self.unanswered = wanted[1] & ALL_NR
        missing = wanted[1] & ~offered & ~ALL_NR & ~NODATA & ~NOUNKNOWN
        return not (wanted[0] & ~actions or missing)

    def _request(self, actions: int, offered: int, own: int) -> tuple[int, int] | None:
        source = self.source
        result: Result = source.choice((0, 0, 0, 0, 10))
        if source.chance(3 if self.good else 6):
            result = 1 if self.good else source.choice(_REFUSALS)
        calls = self.behaviour.calls("negotiate")
        how = self.behaviour.how()
        if result == 10:
            self.reactions["negotiate"] = [Reaction(10, calls, how=how)]
            return actions, own | offered & SKIP_STEP
        asked = source.choice((actions, actions & 0x3F, 0, actions & source.integer(0, 0x1FF)))
        steps = own & offered if source.chance(90) else 0
        for _ in range(source.integer(0, 4)):
            steps |= source.choice(
                (0x1, 0x2, 0x4, 0x8, 0x10, 0x20, 0x40, 0x100, 0x200, SKIP_STEP, 0x800, 0x100000)
            )
        if self.good:
            steps &= offered
        for _ in range(source.choice((0, 0, 1, 4, 9))):
            steps |= source.choice([nr for _, _, nr in STEPS.values()])
        if not self.good and source.chance(5):
            steps |= source.choice(
                (0x200000, 0x80000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000, 0x800)
            )
            asked |= source.choice((0, 0x200, 0x40, 0x10000))
        preset = source.chance(10)
        reaction = Reaction(
            result, calls, None if preset else asked, None if preset else steps, how
        )
        self.reactions["negotiate"] = [reaction]
        if result != 0 or isinstance(result, bool):
            return None
        return (actions, own | offered & SKIP_STEP) if preset else (asked, steps)

    # ---- the dialogue

    def say(self, callback: str, *sent: bytes) -> object:
        """
        Send a command if the milter wants it.

        :return: What its callback will return; 0 where there is none.
        """
        if self.good or self.source.chance(85):
            no, _, nr = STEPS.get(callback, (0, 0, 0))
            if self.declined & no or _SINCE.get(callback, 0) > self.mta_version:
                return 0
            self.sent.extend(sent)
            return self.react(callback, bool(self.unanswered & nr))
        self.sent.extend(sent)
        return self.react(callback, False)

    def react(self, callback: str, unanswered: bool) -> object:
        """Decide the next reaction of a callback."""
        if callback not in self.registered:
            return 0
        reaction = self.behaviour.reaction(callback, unanswered)
        self.reactions.setdefault(callback, []).append(reaction)
        return 0 if reaction.result is None else reaction.result

    def macros(self, stage: bytes) -> None:
        """Perhaps send macros for a stage."""
        if self.source.chance(40):
            self.sent.append(packets.macros(self.source, stage, good=True))

    def dialogue(self) -> None:
        """Play a whole SMTP session."""
        source = self.source
        if source.chance(85):
            self.macros(b"C")
            if self.say("connect", packets.connect(source, good=True)) in (1, 3, 4) and self.good:
                return self.quit()
        for _ in range(source.choice((1, 0, 2))):
            if self.greet() in (1, 3, 4) and self.good:
                return self.quit()
            self.unknown()
        for number in range(source.choice((1, 1, 2, 3, 0))):
            if number and source.chance(15) and self.greet() in (1, 3, 4) and self.good:
                return self.quit()
            self.message()
            # libmilter knows QUIT_NC behind an end of message that it has answered CONTINUE.
            if source.chance(25) and (self.continued or not self.good):
                return self.another()
            if source.chance(40):
                self.abort()
            self.unknown(10)
        return self.quit()

    def another(self) -> None:
        """Begin another SMTP session on the same connection."""
        self.sent.append(packet(b"K"))
        self.react("close", False)
        self.dialogue()

    def greet(self) -> object:
        """Say HELO."""
        self.macros(b"H")
        return self.say("helo", packet(b"H", strings(self.source.choice(packets.HOSTS))))

    def quit(self) -> None:
        """End the session one way or another."""
        if self.source.chance(80):
            self.sent.append(packet(b"Q"))
        self.react("abort", False)
        self.react("close", False)

    def abort(self) -> None:
        """Send an abort."""
        self.sent.append(packet(b"A"))
        self.react("abort", False)

    def unknown(self, percent: int = 4) -> None:
        """Perhaps send an unknown command."""
        if self.source.chance(percent):
            self.say("unknown", packet(b"U", strings(self.source.choice(packets.LINES))))

    def message(self) -> None:
        """Play one message, as far as the milter lets it come."""
        source = self.source
        self.continued = False
        self.macros(b"M")
        if self.say("envfrom", packets.argv(source, b"M")) != 0 and self.good:
            return None
        accepted = 0
        for _ in range(source.choice((1, 1, 2, 3))):
            self.unknown()
            self.macros(b"R")
            result = self.say("envrcpt", packets.argv(source, b"R"))
            if result in (2, 3) and self.good:
                return None
            accepted += result not in (1, 4)
        if not accepted and self.good or source.chance(10):
            return self.abort()
        self.macros(b"T")
        if self.say("data", packet(b"T")) not in (0, 7) and self.good:
            return None
        return self._content()

    def _content(self) -> None:
        source = self.source
        for _ in range(source.choice((1, 2, 0, 4))):
            if self.say("header", packets.header(source)) not in (0, 7) and self.good:
                return
        self.macros(b"N")
        if self.say("eoh", packet(b"N")) not in (0, 7) and self.good:
            return
        for _ in range(source.choice((1, 1, 2, 0))):
            result = self.say("body", packets.body(source))
            if result == 8 and self.good:
                break
            if result not in (0, 7) and self.good:
                return
        if source.chance(5):
            self.abort()
            return
        self.macros(b"E")
        chunk = b""
        if not self.good and source.chance(15):
            chunk = source.choice(packets.BODIES)
            self.react("body", False)
        self.sent.append(packet(b"E", chunk))
        self.continued = self.react("eom", False) == 0

    def chaos(self) -> None:
        """Send anything in any order, sometimes starting from a conversation that makes sense."""
        source = self.source
        if source.chance(90):
            self.negotiate()
        if source.chance(75):
            self.dialogue()
            for _ in range(source.integer(0, 4)):
                self._disturb()
        else:
            for _ in range(source.integer(0, 14)):
                self.sent.append(
                    packets.broken(source) if source.chance(15) else packets.any_packet(source)
                )
        for callback in OPTIONAL[1:]:
            for _ in range(source.choice((0, 0, 0, 1, 2))):
                self.react(callback, source.chance(20))

    def _disturb(self) -> None:
        """Put something in, take something out, or break something, anywhere."""
        source = self.source
        at = source.integer(0, len(self.sent))
        kind = source.integer(0, 3)
        piece = packets.broken(source) if source.chance(40) else packets.any_packet(source)
        if kind == 3 and at < len(self.sent) and self.sent[at][4:5] in packets.ODD:
            letter = self.sent[at][4:5]
            piece = packet(letter, source.choice(packets.ODD[letter]))
        self.sent[at : at + (kind != 0)] = [] if kind == 2 else [piece]

    def case(self) -> Case:
        """Put it together."""
        reactions = tuple((name, tuple(self.reactions[name])) for name in sorted(self.reactions))
        case = Case(
            self.callbacks,
            reactions,
            tuple(self.sent),
            self.version,
            self.flags,
            self.source.choice(_DELIVERIES),
            self.on_error,
            self.members,
        )
        if not case.several:
            return case
        # Which of several milters is told of the end, and how often, is no matter of libmilter's.
        quiet = tuple(row for row in reactions if row[0] not in ("abort", "close"))
        return replace(case, reactions=quiet)


SENTINEL = packet(b"D", b"C")
"""
A macro packet without macros: it changes nothing, so it can stand at the end of every conversation,
where it tells whether the connection was still open.
"""


def generate(source: Source, profile: str) -> Case:
    """Make one case."""
    session = Session(source, profile)
    if profile == "hostile":
        session.chaos()
    elif session.negotiate() or (profile == "misused" and source.chance(20)):
        session.dialogue()
    session.sent.append(SENTINEL)
    return session.case()
