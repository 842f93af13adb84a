"""
From a callback's result to an answer, for the reference engine.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from .case import DISCONNECT, OnError
from .reference_calls import Context, packet
from .reference_tables import (
    ACCEPT,
    CODES,
    CONN,
    CONTINUE,
    END_SESSION,
    HELO,
    NOREPLY,
    NR_OF_STATE,
    OPTIONS,
    PLAIN,
    RCPT,
    REJECT,
    SKIP,
    SKIP_STEP,
    TEMPFAIL,
    UNKN,
    VERDICTS,
)
from .rules import Rules


class Kept(NamedTuple):
    """A verdict from where no answer was promised, and the packet that says it."""

    code: int
    packet: bytes
    for_connection: bool


class Answers:
    """What is answered. `steps` are the milter's own, `offered` the MTA's."""

    def __init__(self, rules: Rules, on_error: OnError) -> None:
        self.rules = rules
        self.on_error = on_error
        self.context = Context(rules)
        self.version = self.steps = self.answered_steps = self.offered = 0
        self.kept: Kept | None = None

    def _stand_in(self, callback: str) -> int:
        """Give the code that stands for a callback that has failed, and set its text."""
        on_error = self.on_error
        if isinstance(on_error, bytes):
            self.context.reply = on_error
            self.context.lasting.discard(self.context.speaker)
            return TEMPFAIL if on_error.startswith(b"4") else REJECT
        if on_error == DISCONNECT:
            return END_SESSION
        if on_error in CODES[callback]:
            return on_error
        return CONTINUE if on_error == ACCEPT else TEMPFAIL

    def _answer(self, result: int) -> int:
        """Answer a callback's result; give what counts for the state."""
        bit = NR_OF_STATE.get(self.context.state, 0) & self.steps
        silent = bool(bit & self.offered)
        if bit and self.rules.late_answers and result in VERDICTS:
            if not silent:
                self.context.output += self._verdict(result)
                return result
            if self.context.state == RCPT and result in (REJECT, TEMPFAIL):
                # It was about one recipient, and so was its text.
                self.context.reply = None
                result = self._stand_in("envrcpt")
                if result not in VERDICTS:
                    return NOREPLY if result == CONTINUE else result
            verdict = self._verdict(result)
            if self.context.state != UNKN:  # it was about that command alone
                for_connection = self.context.state in (CONN, HELO)
                self.kept = Kept(result, verdict, for_connection)
            return NOREPLY
        shown = result
        if bit and result in (*PLAIN, REJECT, TEMPFAIL, OPTIONS):
            faked_skip = result == SKIP and not silent and self.rules.local_skip
            shown = result if faked_skip else NOREPLY
        if shown == SKIP and self.rules.local_skip and not self.offered & SKIP_STEP:
            shown = CONTINUE
        if shown == NOREPLY:
            if bit and not silent:
                self.context.output += packet(b"c")
        elif shown in (REJECT, TEMPFAIL) or shown in PLAIN:
            self.context.output += self._verdict(shown)
        elif shown == OPTIONS:
            self.context.output += self._options()
        return result

    def _verdict(self, result: int) -> bytes:
        if result in PLAIN:
            return packet(PLAIN[result])
        reply = self.context.reply
        if reply is not None and reply[:1] == (b"5" if result == REJECT else b"4"):
            self.context.reply = None
            return packet(b"y", reply + b"\0")
        return packet(b"r" if result == REJECT else b"t")

    def _give_kept(self, state: int, payload: bool) -> int:
        kept = self.kept
        assert kept is not None
        if NR_OF_STATE.get(state, 0) & self.steps & self.offered:
            return NOREPLY
        ends = state != RCPT or kept.code == ACCEPT
        if ends and (not kept.for_connection or state in (CONN, HELO)):
            self.kept = None
        self.context.output += kept.packet
        return kept.code

    def _options(self) -> bytes:
        answer = struct.pack(
            ">III",
            self.version,
            self.context.actions & 0xFFFFFFFF,
            self.answered_steps & 0xFFFFFFFF,
        )
        for stage, names in sorted(self.context.symbol_lists.items()):
            answer += struct.pack(">I", stage) + names + b"\0"
        return packet(b"O", answer)
