"""
Milters that do what bytes tell them, and note what is done to them.

A `Script` decides, callback by callback, what is answered: a return code that is legal or not, a
failure, nonsense, a Deferred that fires by itself or when another milter is called or cancelled, a
coroutine. A `Record` holds a milter to the promises about ``xxfi_abort`` and ``xxfi_close``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed

from yatxmilter import DISCONNECT, Milter, MilterFactory, Reply, noreply
from yatxmilter import constants as c
from yatxmilter.errors import UsageError

from .choices import Choices

STEPS = ("connect", "helo", "envfrom", "envrcpt", "data", "unknown", "header", "eoh", "body", "eom")
IN_MESSAGE = ("envfrom", "envrcpt", "data", "header", "eoh", "body", "eom")
#: SMFIP_NO* by step.
NO = {
    "connect": 0x1, "helo": 0x2, "envfrom": 0x4, "envrcpt": 0x8, "body": 0x10, "header": 0x20,
    "eoh": 0x40, "unknown": 0x100, "data": 0x200,
}  # fmt: skip
CODES = (
    c.SMFIS_CONTINUE, c.SMFIS_REJECT, c.SMFIS_DISCARD, c.SMFIS_ACCEPT, c.SMFIS_TEMPFAIL,
    c.SMFIS_SKIP, c.SMFIS_NOREPLY, c.SMFIS_ALL_OPTS, None, None, None, None, 99, "no", True,
)  # fmt: skip


class Trouble(BaseException):
    """
    A milter's failure.
    """


class Record:
    """
    What has been done to one milter.
    """

    def __init__(self) -> None:
        self.touched = True
        self.aborts = 0
        self.closes = 0
        self.gone = 0
        self.calls = 0

    def note(self, name: str, lenient: bool) -> None:
        """
        Note a callback.

        :param lenient: Whether the message may have passed by the milter unseen.
        """
        assert not self.gone, f"{name} after xxfi_mta_close"
        self.calls += 1
        if name in IN_MESSAGE:
            self.touched = True
        elif name == "abort":
            assert self.touched or lenient, "xxfi_abort twice, or without a message"
            self.touched = False
            self.aborts += 1
        elif name == "close":
            self.closes += 1
        elif name == "mta_close":
            assert self.closes, "xxfi_mta_close before xxfi_close"
            self.gone += 1


class Script:
    """
    What the milters of one connection answer.

    :ivar awaited: Deferreds that have not fired, and whether they were an answer's.
    :ivar lenient: Whether a message may have been opened without any callback.
    """

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.awaited: list[tuple[Deferred[Any], bool]] = []
        self.lenient = False

    def code(self) -> Any:
        """
        Choose a result.
        """
        return self.choices.pick(CODES) if self.choices.one_in(3) else None

    def later(self, answer: bool) -> Deferred[Any]:
        """
        Make a result that comes later; to cancel it may make another one come.
        """
        deferred: Deferred[Any] = Deferred(self._cancelled)
        self.awaited.append((deferred, answer))
        return deferred

    def _cancelled(self, deferred: Deferred[Any]) -> None:
        self._forget(deferred)
        what = self.choices.below(8)
        if what == 1:
            self.fire()
        elif what == 2:
            raise Trouble("canceller")
        elif what == 3:
            deferred.callback(self.code())

    def _forget(self, deferred: Deferred[Any]) -> None:
        self.awaited = [one for one in self.awaited if one[0] is not deferred]

    def fire(self) -> None:
        """
        Have one of them fire.
        """
        if not self.awaited:
            return
        deferred, _ = self.choices.pick(self.awaited)
        self._forget(deferred)
        if self.choices.one_in(5):
            deferred.errback(Trouble("late"))
        else:
            deferred.callback(self.code())

    def answer(self, milter: Any, name: str) -> Any:
        """
        Choose what a callback does.
        """
        answer = name not in ("abort", "close", "mta_close")
        choices = self.choices
        if choices.one_in(12):
            # It brings about what another milter is waiting for.
            self.fire()
        if name == "eom":
            self.edit(milter)
        elif choices.one_in(10):
            milter.smfi_setreply(choices.pick(("550", "421")), None, "no")
        kind = choices.below(12)
        if kind == 1:
            raise Trouble(name)
        if kind == 2:
            return succeed(self.code())
        if kind == 3:
            return fail(Trouble(name))
        if kind in (4, 5):
            return self.later(answer)
        if kind in (6, 7):
            return self.coroutine(milter, name, answer)
        return self.code()

    async def coroutine(self, milter: Any, name: str, answer: bool) -> Any:
        """
        Wait, or not, and perhaps not even stop when cancelled.
        """
        choices = self.choices
        if choices.below(2):
            await succeed(None)
        try:
            await (self.later(answer) if choices.below(3) else succeed(None))
        except Exception:
            if choices.below(3):
                raise
        if name == "eom":
            self.edit(milter)
        return self.code()

    def edit(self, milter: Any) -> None:
        """
        Change the message, if that is allowed now.
        """
        choices = self.choices
        for _ in range(choices.below(3)):
            try:
                choices.pick(
                    (
                        lambda: milter.smfi_addheader("X-Fuzz", "yes"),
                        lambda: milter.smfi_replacebody(b"x" * choices.below(256)),
                        lambda: milter.smfi_addrcpt("<a@example.org>"),
                        milter.smfi_progress,
                        lambda: milter.smfi_chgheader("X", -1, "\r\n"),
                    )
                )()
            except UsageError:
                continue


def _callback(script: Script, name: str) -> Callable[..., Any]:
    def callback(self: Any, *args: Any) -> Any:
        self.record.note(name, script.lenient or "envfrom" not in self.wanted)
        return script.answer(self, name)

    return callback


def milter_factory(script: Script, number: int) -> Any:
    """
    Make a factory of milters with a choice of callbacks.
    """
    choices = script.choices
    mask = choices.below(256) | choices.below(256) << 8
    if choices.below(3):
        mask |= 0x7FFF
    wanted = [name for bit, name in enumerate(STEPS) if mask >> bit & 1]
    silent = choices.below(256) | choices.below(256) << 8 if choices.one_in(3) else 0
    namespace: dict[str, Any] = {"wanted": wanted}
    for bit, name in enumerate((*wanted, "abort", "close", "mta_close")):
        callback = _callback(script, name)
        quiet = silent >> bit & 1 and name not in ("eom", "abort", "close", "mta_close")
        namespace[f"xxfi_{name}"] = noreply(callback) if quiet else callback
    if choices.one_in(4):
        namespace["xxfi_negotiate"] = _callback(script, "negotiate")
        namespace["negotiates"] = True
    if choices.one_in(6):
        namespace["xxfi_mta_connect"] = _callback(script, "mta_connect")
    kind = type(f"Fuzz{number}", (Milter,), namespace)
    timeout = 5 if choices.one_in(4) else None
    on_error = choices.pick(
        (
            *(c.SMFIS_TEMPFAIL, c.SMFIS_REJECT, c.SMFIS_ACCEPT, c.SMFIS_DISCARD, c.SMFIS_CONTINUE),
            *(DISCONNECT, Reply("451", "4.3.0", "broken"), {"eom": c.SMFIS_ACCEPT, "rcpt": 0}),
        )
    )

    def build(factory: Any, protocol: Any) -> Any:
        milter: Any = kind(factory, protocol)
        milter.record = Record()
        return milter

    return MilterFactory(build, on_error=on_error, timeout=timeout)
