"""
Milters that do what their plan and chance say, and note what they are asked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure

from yatxmilter import Milter, MilterFactory, noreply
from yatxmilter import constants as c

from .chance import Chance
from .plans import ANSWERING, CALLBACKS, MOODS, MilterPlan, Plan, condition

#: Texts longer than this are noted by their length and a digest.
_LONG = 60

_CODES = (
    c.SMFIS_CONTINUE,
    c.SMFIS_REJECT,
    c.SMFIS_TEMPFAIL,
    c.SMFIS_ACCEPT,
    c.SMFIS_DISCARD,
    c.SMFIS_SKIP,
    c.SMFIS_NOREPLY,
)
_VERDICTS = (
    (4, c.SMFIS_REJECT),
    (4, c.SMFIS_TEMPFAIL),
    (3, c.SMFIS_ACCEPT),
    (2, c.SMFIS_DISCARD),
    (2, c.SMFIS_SKIP),
    (1, c.SMFIS_NOREPLY),
)
_NONSENSE: tuple[Any, ...] = (99, "no", c.SMFIS_ALL_OPTS, 1.5, (), True, [c.SMFIS_REJECT])
_MACROS = ("i", "{daemon_name}", "{mail_addr}", "{rcpt_addr}", "{auth_authen}", "v", "nothing")


class Fault(Exception):
    """
    What a milter raises.
    """


def shown(value: Any) -> str:
    """
    Write an argument so that it is the same wherever it was seen.
    """
    if isinstance(value, (IPv4Address, IPv6Address)):
        return f"{value.host}:{value.port}"
    if isinstance(value, UNIXAddress):
        return f"unix:{value.name!r}"
    if isinstance(value, Failure):
        return type(value.value).__name__
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, (bytes, bytearray, memoryview)):
        return shorter(bytes(value))
    if isinstance(value, str):
        return ascii(value) if len(value) <= _LONG else shorter(value.encode("utf-8", "replace"))
    return f"{value:#x}" if isinstance(value, int) else repr(value)


def shorter(data: bytes) -> str:
    """
    Write bytes; many of them by their number and a digest.
    """
    if len(data) <= _LONG:
        return ascii(data.decode("latin-1"))
    return f"{len(data)} bytes {hashlib.sha256(data).hexdigest()[:10]}"


class Stage:
    """
    What the milters of one session share: what was noted, and what is awaited.

    :ivar notes: What was noted since they were taken.
    :ivar shadow_notes: The same of milters in shadow, of each apart: who of them is first is
        nobody's business.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.notes: list[str] = []
        self.shadow_notes: list[list[str]] = [[] for _ in plan.milters]
        self.chance = Chance("fire", plan.number)
        self._awaited: list[tuple[Deferred[Any], Chance]] = []
        self._counts: dict[str, int] = {}

    def count(self, name: str) -> int:
        """
        Say how often this was asked before.
        """
        number = self._counts[name] = self._counts.get(name, 0) + 1
        return number

    @property
    def awaited(self) -> int:
        """
        How many Deferreds could be fired.
        """
        return len(self._awaited)

    def later(self, label: str, note: Callable[[str], None], chance: Chance) -> Deferred[Any]:
        """
        Make a Deferred that fires when chance has it.
        """

        def cancelled(deferred: Deferred[Any]) -> None:
            self._awaited[:] = [each for each in self._awaited if each[0] is not deferred]
            note(f"{label} cancelled")

        deferred: Deferred[Any] = Deferred(cancelled)
        self._awaited.append((deferred, chance))
        return deferred

    def fire(self) -> None:
        """
        Fire one of those that are awaited, if there is one.
        """
        if self._awaited:
            deferred, chance = self._awaited.pop(self.chance.number(0, len(self._awaited) - 1))
            if chance.whether(0.1):
                deferred.errback(Failure(Fault("later")))
            else:
                deferred.callback(None)


class Scripted(Milter):
    """
    A milter whose callbacks ask its `Stage` and its plan what to do.
    """

    stage: Stage
    plan: MilterPlan
    place = 0

    def __init__(self, factory: Any, protocol: Any) -> None:
        super().__init__(factory, protocol)
        self.label = f"{self.place}.{self.stage.count(f'built {self.place}')}"

    # ---- what is noted

    def note(self, text: str) -> None:
        notes = self.stage.shadow_notes[self.place] if self.plan.shadow else self.stage.notes
        notes.append(f"{self.label} {text}")

    def attempt(self, function: str, *arguments: Any) -> None:
        """
        Call one of libmilter's functions, and note what came of it.
        """
        try:
            result = getattr(self, f"smfi_{function}")(*arguments)
        except Exception as error:
            self.note(f"{function} {type(error).__name__}")
        else:
            self.note(f"{function}" if result is None else f"{function} {shown(result)}")

    # ---- what a callback does

    def called(self, name: str, *arguments: Any) -> Any:
        """
        Be called; give what is returned, or raise.
        """
        self.note(f"{name}({', '.join(map(shown, self.seen(name, arguments)))})")
        chance = Chance(
            self.stage.plan.number, self.label, name, self.stage.count(f"{self.label}{name}")
        )
        self.act(name, chance)
        return self.answer(name, chance, arguments)

    async def called_in_coroutine(self, name: str, *arguments: Any) -> Any:
        """
        The same in a coroutine, which awaits what it would have returned.
        """
        result = self.called(name, *arguments)
        if isinstance(result, Deferred):
            result = await result
        return await result if hasattr(result, "__await__") else result

    @staticmethod
    def seen(name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        # Where an MTA's connection comes from depends on the way.
        return () if name == "mta_connect" else arguments

    def act(self, name: str, chance: Chance) -> None:
        """
        Call functions, the right ones mostly.
        """
        if chance.whether(0.2):
            self.attempt("getsymval", chance.pick(_MACROS))
        if name == "negotiate":
            while chance.whether(0.4):
                stage = chance.number(0, 7)
                names = " ".join(chance.some(_MACROS[:6], 0.4))
                self.attempt("setsymlist", stage, names)
        if chance.whether(0.6 if name == "eom" else 0.01):
            for _ in range(chance.number(1, 6)):
                self.attempt(*_edit(chance, self.stage.plan.large))
        if chance.whether(0.004):
            self.note(f"transport {self.protocol.transport is not None}")
        if chance.whether(0.004) and not (self.plan.shadow or self.stage.plan.large):
            self.note("closes")
            self.protocol.transport.loseConnection()

    def answer(self, name: str, chance: Chance, arguments: tuple[Any, ...]) -> Any:
        """
        Make the answer in one of the shapes that there are.
        """
        often, waits = MOODS[self.plan.mood]
        shape = "plain"
        if chance.whether(waits):
            shape = chance.weighed(
                [(3, "fired"), (5, "later"), (2, "coroutine"), (4, "waiting coroutine")]
            )
        if name in ("abort", "close", "mta_close"):
            if chance.whether(often / 2):
                raise Fault(name)
            return None
        fails = chance.whether(often / 6)
        value = self.value(name, chance, often, arguments)
        if shape == "plain":
            if fails:
                raise Fault(name)
            return value
        if shape == "fired":
            return fail(Fault(name)) if fails else succeed(value)
        if shape == "later":
            deferred = self.stage.later(f"{name}", self.note, chance)
            return deferred.addCallback(lambda _: self.afterwards(name, chance, value, fails))
        return self.coroutine(name, chance, value, fails, shape == "waiting coroutine")

    async def coroutine(
        self, name: str, chance: Chance, value: Any, fails: bool, waits: bool
    ) -> Any:
        if waits:
            await self.stage.later(name, self.note, chance)
            if chance.whether(0.3):
                await self.stage.later(name, self.note, chance)
        return self.afterwards(name, chance, value, fails)

    def afterwards(self, name: str, chance: Chance, value: Any, fails: bool) -> Any:
        """
        Go on, after having waited or not.
        """
        self.note(f"{name} goes on")
        if chance.whether(0.5 if name == "eom" else 0.05):
            self.attempt(*_edit(chance, self.stage.plan.large))
        if fails:
            raise Fault(name)
        return value

    def value(self, name: str, chance: Chance, often: float, arguments: tuple[Any, ...]) -> Any:
        """
        Choose the answer itself.
        """
        if name == "negotiate":
            return _negotiated(chance, *arguments)
        if not chance.whether(often):
            return chance.pick((None, c.SMFIS_CONTINUE, c.SMFIS_CONTINUE))
        if chance.whether(0.08):
            return chance.pick(_NONSENSE)
        value: Any = chance.weighed(_VERDICTS)
        if chance.whether(0.4):
            self.attempt(*_reply(chance))
        return int(value) if chance.whether(0.1) else value


def _negotiated(chance: Chance, actions: int, steps: int) -> Any:
    asked = actions & chance.number(0, 0x1FF)
    wanted = steps & chance.number(0, 0x1FFFFF)
    if chance.whether(0.7):
        # Shown most, so that there is something to compare.
        wanted &= ~0x27F | chance.number(0, 0x27F) & chance.number(0, 0x27F)
    return chance.weighed(
        [
            (4, (c.SMFIS_CONTINUE, asked, wanted)),
            (3, c.SMFIS_CONTINUE),
            (2, None),
            (2, c.SMFIS_ALL_OPTS),
            (1, [c.SMFIS_CONTINUE, 6, asked, wanted]),
            (0.2, c.SMFIS_REJECT),
            (0.2, (c.SMFIS_CONTINUE, actions | 0x1FF, wanted)),
            (0.1, (c.SMFIS_CONTINUE, asked)),
            (0.1, c.SMFIS_TEMPFAIL),
        ]
    )


def _reply(chance: Chance) -> tuple[Any, ...]:
    code = chance.pick(("550", "451", "554", "421", "250", "5"))
    enhanced = chance.pick((None, "5.7.1", "4.3.0", "9.9"))
    if chance.whether(0.3):
        return ("setmlreply", code, enhanced, *chance.some(("one", "two 100%%", "three"), 0.7))
    return ("setreply", code, enhanced, chance.pick((None, "not today", "100%% sure", "1%\r")))


def _edit(chance: Chance, large: bool) -> tuple[Any, ...]:
    good = chance.whether(0.9)
    name = chance.pick(("X-Tag", "Subject", "X-None", "Received") if good else ("bad:name", ""))
    value = chance.pick(
        ("yes", "a\n\tb", "", "late \u00e9", "lone\nfeed") if good else ("nul\0", "\r")
    )
    address = chance.pick(
        ("<bob@example.net>", "<new@example.com>", "plain@example.org") if good else ("", "<a>\r")
    )
    edit: tuple[Any, ...] = chance.weighed(
        [
            (5, ("addheader", name, value)),
            (3, ("insheader", chance.number(0 if good else -2, 4), name, value)),
            (3, ("chgheader", name, chance.number(0, 3), chance.pick((None, value)))),
            (
                2,
                (
                    "replacebody",
                    chance.pick((b"new\r\n", b"", b"x" * (70_000 if large else 700), "text\r\n")),
                ),
            ),
            (2, ("addrcpt", address)),
            (1, ("addrcpt_par", address, chance.pick((None, "NOTIFY=NEVER")))),
            (2, ("delrcpt", address)),
            (1, ("chgfrom", address, chance.pick((None, "SIZE=1")))),
            (1, ("quarantine", chance.pick(("look", "")))),
            (1, ("progress",)),
            (0.3, ("setsymlist", 3, "i")),
        ]
    )
    return edit


# ---- classes


def _callback(name: str, coroutine: bool) -> Any:
    """
    Make a callback with as many arguments as libmilter gives it.
    """
    if coroutine and name in ANSWERING:
        return {0: _none_awaited, 1: _one_awaited, 2: _two_awaited}[CALLBACKS[name]](name)
    return {0: _none, 1: _one, 2: _two}[CALLBACKS[name]](name)


def _none(name: str) -> Any:
    def callback(self: Scripted) -> Any:
        return self.called(name)

    return callback


def _one(name: str) -> Any:
    def callback(self: Scripted, argument: Any) -> Any:
        return self.called(name, argument)

    return callback


def _two(name: str) -> Any:
    def callback(self: Scripted, one: Any, other: Any) -> Any:
        return self.called(name, one, other)

    return callback


def _none_awaited(name: str) -> Any:
    async def callback(self: Scripted) -> Any:
        return await self.called_in_coroutine(name)

    return callback


def _one_awaited(name: str) -> Any:
    async def callback(self: Scripted, argument: Any) -> Any:
        return await self.called_in_coroutine(name, argument)

    return callback


def _two_awaited(name: str) -> Any:
    async def callback(self: Scripted, one: Any, other: Any) -> Any:
        return await self.called_in_coroutine(name, one, other)

    return callback


def make_factories(stage: Stage) -> list[MilterFactory]:
    """
    Make the milter factories of a session.
    """
    factories = []
    for place, plan in enumerate(stage.plan.milters):
        members: dict[str, Any] = {
            "stage": stage,
            "plan": plan,
            "place": place,
            "xxfi_flags": plan.flags,
        }
        for name in plan.callbacks:
            callback = _callback(name, name in plan.coroutines)
            members[f"xxfi_{name}"] = noreply(callback) if name in plan.silent else callback
        factories.append(
            MilterFactory(
                type("Scripted", (Scripted,), members),
                on_error=plan.on_error,
                timeout=plan.timeout,
                when=None if plan.condition is None else condition(plan.condition),
                shadow=plan.shadow,
            )
        )
    return factories
