"""
What generated milters do: the calls they make and the codes they return.

A well-behaved one makes the calls that fit the stage with values that can be sent; the other kind
does anything.
"""

from __future__ import annotations

from .case import FUNCTIONS, Call, Reaction, Result
from .source import Source

_VERDICTS: dict[str, tuple[Result, ...]] = {
    "connect": (1, 4, 3),
    "helo": (1, 4, 3),
    "envfrom": (1, 4, 2, 3),
    "envrcpt": (1, 4, 1, 4, 2, 3),
    "data": (1, 4, 2, 3),
    "unknown": (1, 4),
    "header": (1, 4, 2, 3),
    "eoh": (1, 4, 2, 3),
    "body": (8, 8, 8, 1, 4, 2, 3),
    "eom": (3, 3, 1, 4, 2),
    "abort": (0,),
    "close": (0,),
}
"""What a callback may return besides CONTINUE."""

_ANY: tuple[Result, ...] = (
    0, 0, 0, 1, 2, 3, 4, 7, 8, None, 5, 6, 9, 10, 11, 19, 20, 21, 22, 23, 99, -1, -2, 1000000,
    True, False, "0", 1.5,
)  # fmt: skip

_CODES = (b"550", b"450", b"421", b"554")
_BAD_CODES = (b"250", b"55", b"5500", b"5x0", b"", None, b"550 ", b"\xff50", b"550\0")
_ENHANCED = (b"5.7.1", None, b"4.7.1", b"2.0.0", b"5.123.456")
_BAD_ENHANCED = (
    b"",
    b"5.7",
    b"5.7.1234",
    b"3.7.1",
    b"5.7.1 ",
    b"5..1",
    b"x",
    b"5.7.1\0x",
    b"05.7.1",
)
_TEXTS = (b"go away", b"", b"caf\xc3\xa9 100%", b"\xff", b"tab\there", b"x" * 980)
_BAD_TEXTS = (b"x" * 981, b"a\r\nb", b"a\nb", b"a\rb", b"a\0b")
_NAMES = (b"X-Spam", b"Subject", b"X\xff", b"a b", b"a:")
_BAD_NAMES = (b"", None, b"a\nb", b"a\r", b"a\0b", b"n" * 65531)
_VALUES = (b"yes", b"", b"one\n\ttwo", b"\xff\xc3\xa9", b" lead", b"v" * 2000)
_BAD_VALUES = (
    None,
    b"a\nb",
    b"a\r\n b",
    b"a\0b",
    b"a\n",
    b"\n",
    b"v" * 65528,
    b"v" * 65530,
    b"v" * 65535,
)
_ADDRESSES = (b"<n@example.net>", b"<>", b"n@example.net", b"\xff")
_BAD_ADDRESSES = (b"", None, b"a\nb", b"a\rb", b"a\0b", b"a" * 65535)
_ARGUMENTS = (None, b"NOTIFY=NEVER", b"", b"RET=HDRS ENVID=x")
_BAD_ARGUMENTS = (b"a\nb", b"a\0b", b"\xff", b"a" * 65530)
_SYMBOLS = (b"j {client_port}", b"", b"i", b"{msg_id} {x}")
_BAD_SYMBOLS = (None, b"a\nb", b"a\0b")
_MACROS = (
    b"i", b"{i}", b"j", b"{j}", b"_", b"{daemon_name}", b"daemon_name", b"{mail_addr}", b"v", b"",
    b"{}", b"{", b"{{}", b"{i}x", b"\xc3\xa9", b"\xff", b"{\xff}",
)  # fmt: skip

_EDITS = {
    "addheader": 0x01, "insheader": 0x01, "replacebody": 0x02, "addrcpt": 0x04,
    "delrcpt": 0x08, "chgheader": 0x10, "quarantine": 0x20, "chgfrom": 0x40, "addrcpt_par": 0x80,
}  # fmt: skip


class Behaviour:
    """Makes reactions."""

    def __init__(self, source: Source, good: bool) -> None:
        self.source = source
        self.good = good
        self.flags = 0
        self.verdicts = source.choice((5, 2, 15, 40))
        self.nonsense = 0 if good else source.choice((0, 5, 20, 60))
        self.busy = source.choice((30, 10, 60))

    def how(self) -> str:
        """Choose the way in which a Python callback answers."""
        return self.source.choice(("plain", "plain", "plain", "plain", "fired", "later", "async"))

    def reaction(self, callback: str, unanswered: bool) -> Reaction:
        """Make one reaction; `unanswered`: the milter has promised not to answer."""
        source = self.source
        result: Result = source.choice((0, 0, None))
        if source.chance(50 if callback in ("eom", "body") else self.verdicts):
            result = source.choice(_VERDICTS[callback])
        if unanswered and (self.good or source.chance(60)):
            result = 7
        if source.chance(self.nonsense) or (
            # What is done before it fails counts there.
            callback == "eom" and not self.good and source.chance(20)
        ):
            result = source.choice(_ANY)
        return Reaction(result, self.calls(callback, result), how=self.how())

    def calls(self, callback: str, result: Result = 0) -> tuple[Call, ...]:
        """Make the calls of one reaction."""
        source = self.source
        if not self.good:
            if not source.chance(self.busy):
                return self._reply_for(result)
            if callback == "eom" and source.chance(60):
                return tuple(self._edit() for _ in range(source.integer(1, 4)))
            return tuple(self._any_call() for _ in range(source.integer(1, 4)))
        calls = []
        if callback == "negotiate":
            for stage in range(7):
                if source.chance(8):
                    calls.append(Call("setsymlist", (stage, source.choice(_SYMBOLS))))
            return tuple(calls)
        if source.chance(20):
            calls.append(Call("getsymval", (source.choice(_MACROS),)))
        if callback == "eom":
            calls += [self._edit() for _ in range(source.choice((0, 1, 2, 5)))]
        return (*calls, *self._reply_for(result))

    def _reply_for(self, result: Result) -> tuple[Call, ...]:
        if result not in (1, 4) or isinstance(result, bool) or not self.source.chance(60):
            return ()
        return (self._reply(b"5" if result == 1 else b"4"),)

    def _reply(self, digit: bytes) -> Call:
        source = self.source
        code = digit + b"50"
        if source.chance(60):
            return Call(
                "setreply", (code, source.choice(_ENHANCED), source.choice((*_TEXTS, None)))
            )
        lines = [source.choice(_TEXTS) for _ in range(source.choice((1, 2, 3, 32)))]
        return Call("setmlreply", (code, source.choice(_ENHANCED), *lines))

    def _edit(self) -> Call:
        source = self.source
        allowed = [name for name, flag in _EDITS.items() if flag & self.flags]
        return self._call(source.choice([*allowed, "progress"]), bad=False)

    def _any_call(self) -> Call:
        source = self.source
        return self._call(source.choice(FUNCTIONS), bad=source.chance(30))

    def _one(
        self, good: tuple[bytes | None, ...], poor: tuple[bytes | None, ...], bad: bool
    ) -> bytes | None:
        source = self.source
        return source.choice(poor) if bad and source.chance(60) else source.choice(good)

    def _call(self, function: str, bad: bool) -> Call:
        source, one = self.source, self._one
        name, value = one(_NAMES, _BAD_NAMES, bad), one(_VALUES, _BAD_VALUES, bad)
        index = (
            source.choice((1, 0, 2, 77, 0x7FFFFFFF))
            if not bad
            else source.choice((-1, 1, -0x80000000))
        )
        address, args = one(_ADDRESSES, _BAD_ADDRESSES, bad), one(_ARGUMENTS, _BAD_ARGUMENTS, bad)
        if function == "getsymval":
            return Call(function, (source.choice((*_MACROS, None) if bad else _MACROS),))
        if function in ("setreply", "setmlreply"):
            code, extended = one(_CODES, _BAD_CODES, bad), one(_ENHANCED, _BAD_ENHANCED, bad)
            count = (
                1
                if function == "setreply"
                else source.choice((2, 1, 3, 32) if not bad else (0, 1, 2, 32, 33))
            )
            return Call(
                function, (code, extended, *[one(_TEXTS, _BAD_TEXTS, bad) for _ in range(count)])
            )
        if function == "addheader":
            return Call(function, (name, value))
        if function == "chgheader":
            return Call(function, (name, index, value if bad or source.chance(80) else None))
        if function == "insheader":
            return Call(function, (index, name, value))
        if function in ("chgfrom", "addrcpt_par"):
            return Call(function, (address, args))
        if function in ("addrcpt", "delrcpt"):
            return Call(function, (address,))
        if function == "replacebody":
            if source.chance(2):
                return Call(function, (b"r" * source.choice((65535, 65536, 131070)),))
            return Call(function, (one((b"new\r\n", b"", b"a\0b", b"\xff"), (None, b""), bad),))
        if function == "quarantine":
            return Call(function, (one((b"held", b"\xff"), (b"", None, b"a\nb", b"a\0b"), bad),))
        if function == "setsymlist":
            stage = source.integer(0, 6) if not bad else source.choice((0, 7, -1, 3))
            return Call(function, (stage, one(_SYMBOLS, _BAD_SYMBOLS, bad)))
        return Call(function)
