"""
What a callback of pymilter's is given first: ``milter.Context``, the handle on its connection.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, Final

from yatxmilter._engine.context import Context as Engine
from yatxmilter._wire.macros import MacroStore
from yatxmilter.errors import UsageError
from yatxmilter.pymilter._arguments import body, number, optional_text, text

__all__ = ["Context", "Error", "diagnosis", "error_class"]

_MOST_LINES: Final = 32

_made: Final = count(1)
_closed: Final = count(1)
_counts: Final = [0, 0]


class Error(Exception):
    """
    What the functions of ``milter`` raise where libmilter answers ``MI_FAILURE``.
    """


Error.__name__ = Error.__qualname__ = "error"
Error.__module__ = "milter"


def error_class() -> type[Exception]:
    """
    Give the class of the exceptions that a program catches as ``milter.error``.

    It is ours, or, where the C extension has been imported, its own.
    """
    found: type[Exception] = getattr(sys.modules.get("milter"), "error", Error)
    return found


def diagnosis() -> tuple[int, int]:
    """
    Tell how many contexts were made, and how many of them are closed.
    """
    return _counts[0], _counts[1]


@contextmanager
def _failing(what: str) -> Iterator[None]:
    try:
        yield
    except UsageError as error:
        raise error_class()(f"{what}: {error}") from error


class Context:
    """
    One SMTP connection, as the functions of pymilter see it.

    What each does is libmilter's; the arguments are checked as the C extension checks them, and
    where that raises ``milter.error`` so does this, with a reason.

    :param engine: The functions of the milter's connection.
    :param hop: Has something done where the engine is; ``None`` where that is here.
    """

    __slots__ = ("_ended", "_engine", "_hop", "_macros", "_priv", "_signs", "_stale")

    def __init__(self, engine: Engine, hop: Callable[..., object] | None) -> None:
        self._engine = engine
        self._hop = hop
        # Signs of progress that are to be sent.
        self._signs = 0
        self._priv: Any = None
        self._ended = False
        # What a callback that runs late is to find, in the place of what holds now.
        self._macros: MacroStore | None = None
        # Why the callback that is running may do nothing any more.
        self._stale: str | None = None
        _counts[0] = next(_made)

    def _use(self) -> Engine:
        if self._ended:
            raise error_class()("bad context")
        if self._stale is not None:
            raise error_class()(self._stale)
        # As with libmilter any thread may call, the program's own ones included.
        self._engine.claim()
        return self._engine

    def _send_signs(self) -> None:
        """
        Send the signs of progress, where the engine is, before the callback is answered.
        """
        while self._signs:
            self._signs -= 1
            self._engine.claim()
            self._engine.progress(any_stage=True)

    def _end(self) -> None:
        self._ended = True
        _counts[1] = next(_closed)

    # ---- the program's own object

    def getpriv(self, /) -> Any:
        """
        Give what `setpriv` was last called with; ``None`` before that.
        """
        return self._priv

    def setpriv(self, value: Any, /) -> Any:
        """
        Keep an object with the connection; the one before it is returned.
        """
        before, self._priv = self._priv, value
        return before

    # ---- what is known, and what is answered

    def getsymval(self, name: str, /) -> str | None:
        """
        Look a macro up; ``None`` for one that the MTA has not sent.
        """
        name = text("getsymval", 1, name)
        engine = self._use()
        return engine.getsymval(name) if self._macros is None else self._macros.get(name)

    def setreply(self, rcode: str, xcode: str | None, /, *lines: str) -> None:
        """
        Set the text that goes with REJECT or TEMPFAIL.
        """
        rcode = text("setreply", 1, rcode)
        xcode = optional_text("setreply", 2, xcode)
        if len(lines) > _MOST_LINES:
            most = _MOST_LINES + 2
            raise TypeError(f"setreply() takes at most {most} arguments ({len(lines) + 2} given)")
        texts = [text("setreply", place, line) for place, line in enumerate(lines, 3)]
        with _failing("cannot set reply"):
            if len(texts) > 1:
                self._use().setmlreply(rcode, xcode, *texts)
            else:
                self._use().setreply(rcode, xcode, texts[0] if texts else None)

    def setsymlist(self, stage: int, macros: str | bytes, /) -> None:
        """
        Ask for the macros of a stage, while negotiating.
        """
        stage = number(stage)
        # `Milter.Base` of pymilter hands bytes on, which the C extension then refuses.
        names = macros if isinstance(macros, bytes) else text("setsymlist", 2, macros)
        with _failing("cannot set macro list"):
            self._use().setsymlist(stage, names)

    def progress(self, /) -> None:
        """
        Tell the MTA that the milter is still at work, at whatever stage.
        """
        self._use()
        self._signs += 1
        if self._hop is None:
            self._send_signs()
        else:
            self._hop(self._send_signs)

    # ---- edits

    def addheader(self, field: str, value: str, idx: int = -1, /) -> None:
        """
        Add a header field at the end, or insert it at a place counted from 0.
        """
        field, value = text("addheader", 1, field), text("addheader", 2, value)
        idx = number(idx)
        with _failing("cannot add header"):
            if idx < 0:
                self._use().addheader(field, value)
            else:
                self._use().insheader(idx, field, value)

    def chgheader(self, field: str, idx: int, value: str | None, /) -> None:
        """
        Change a header field, or, with ``None`` or nothing for its value, delete it.
        """
        field, idx = text("chgheader", 1, field), number(idx)
        value = optional_text("chgheader", 3, value)
        with _failing("cannot change header"):
            self._use().chgheader(field, idx, value)

    def addrcpt(self, rcpt: str, params: str | None = None, /) -> None:
        """
        Add an envelope recipient, with or without ESMTP arguments.
        """
        rcpt, params = text("addrcpt", 1, rcpt), optional_text("addrcpt", 2, params)
        with _failing("cannot add recipient"):
            if params is None:
                self._use().addrcpt(rcpt)
            else:
                self._use().addrcpt_par(rcpt, params)

    def delrcpt(self, rcpt: str, /) -> None:
        """
        Remove an envelope recipient.
        """
        rcpt = text("delrcpt", 1, rcpt)
        with _failing("cannot delete recipient"):
            self._use().delrcpt(rcpt)

    def chgfrom(self, sender: str, params: str | None = None, /) -> None:
        """
        Change the envelope sender.
        """
        sender, params = text("chgfrom", 1, sender), optional_text("chgfrom", 2, params)
        with _failing("cannot change sender"):
            self._use().chgfrom(sender, params)

    def replacebody(self, piece: bytes | str, /) -> None:
        """
        Replace the body; further calls append.
        """
        data = body(piece)
        with _failing("cannot replace message body"):
            self._use().replacebody(data)

    def quarantine(self, reason: str, /) -> None:
        """
        Have the MTA hold the message.
        """
        reason = text("quarantine", 1, reason)
        with _failing("cannot quarantine message"):
            self._use().quarantine(reason)


Context.__module__ = "milter"
