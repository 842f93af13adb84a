"""
libmilter's smfi_* functions, for the reference engine: what they check, what they write.

Each deliberate difference is one field of `Rules` (False: as libmilter); `differences.py` says why
it is there.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from typing import ClassVar

from .case import Answer, Argument, Call
from .rules import Rules

ENDM = 10
MAX_PAYLOAD = 65535
MAX_LINE = 980
MAX_LINES = 32
STAGES = b"CHMRTNE"
"""The stages that have macros, in the order of the store (the last is looked at first)."""

_RCODE = re.compile(rb"[45][0-9][0-9]")
_XCODE = re.compile(rb"[245]\.[0-9]{1,3}\.[0-9]{1,3}")
_LINE_END = re.compile(rb"[\r\n]")
_NOT_IN_TEXT = re.compile(rb"[\r\n\0]")
_FIELD_NAME = re.compile(rb"[!-9;-~]+")
_NOT_IN_VALUE = re.compile(rb"[\r\0]")
_UNFOLDED = re.compile(rb"\n(?![ \t])")

ADDHDRS, CHGBODY, ADDRCPT, DELRCPT, CHGHDRS, QUARANTINE, CHGFROM, ADDRCPT_PAR = (
    1 << bit for bit in range(8)
)


def packet(letter: bytes, payload: bytes = b"") -> bytes:
    """Frame a payload."""
    return struct.pack(">I", len(payload) + 1) + letter + payload


def c_string(value: Argument) -> bytes | None:
    """See an argument as C does: up to its first NUL."""
    if value is None:
        return None
    assert isinstance(value, bytes)
    return value.partition(b"\0")[0]


@dataclass
class Context:
    """
    What libmilter keeps for one connection and the smfi_* functions look at.

    `speaker` is whose text of smfi_setreply it is about; with one milter always the same.
    """

    rules: Rules
    output: bytearray = field(default_factory=bytearray)
    state: int = 0
    actions: int = 0
    running: str = ""
    in_message: bool = False
    speaker: int = 0
    replies: dict[int, bytes] = field(default_factory=dict)
    lasting: set[int] = field(default_factory=set)
    macros: list[list[bytes] | None] = field(default_factory=lambda: [None] * 7)
    symbol_lists: dict[int, bytes] = field(default_factory=dict)
    edits: list[bytes] = field(default_factory=list)
    max_payload: int = MAX_PAYLOAD

    MI_SUCCESS: ClassVar[int] = 0
    MI_FAILURE: ClassVar[int] = -1

    @property
    def reply(self) -> bytes | None:
        """The speaker's text."""
        return self.replies.get(self.speaker)

    @reply.setter
    def reply(self, text: bytes | None) -> None:
        if text is None:
            self.replies.pop(self.speaker, None)
        else:
            self.replies[self.speaker] = text

    def end_message(self) -> None:
        """Forget the texts that were set in the message."""
        for speaker in list(self.replies):
            if speaker not in self.lasting:
                del self.replies[speaker]

    def perform(self, call: Call) -> Answer:
        """Make one call and give its answer."""
        if call.function == "getsymval":
            return self._getsymval(c_string(call.args[0]))
        if call.function == "version":
            return 1000001
        try:
            done = getattr(self, "_" + call.function)(*call.args)
        except _Refused:
            return self.MI_FAILURE
        return self.MI_SUCCESS if done else self.MI_FAILURE

    # ---- reading

    def _getsymval(self, name: bytes | None) -> bytes | None:
        if not name:
            return None
        names = {name}
        if len(name) == 1:
            names.add(b"{%s}" % name)
        elif len(name) == 3 and name.startswith(b"{") and name.endswith(b"}"):
            names.add(name[1:2])
        for table in reversed(self.macros):
            for at in range(0, len(table or ()), 2):
                assert table is not None
                if table[at] in names:
                    return table[at + 1] if at + 1 < len(table) else None
        return None

    # ---- replies

    def _line(self, text: bytes) -> bytes:
        pattern = _NOT_IN_TEXT if self.rules.checked_values else _LINE_END
        shown = text if self.rules.checked_values else text.partition(b"\0")[0]
        if len(shown) > MAX_LINE or pattern.search(shown):
            raise _Refused
        return shown

    def _code(self, value: Argument, pattern: re.Pattern[bytes]) -> bytes:
        text = self._whole(value)
        if text is None or not pattern.fullmatch(text):
            raise _Refused
        return text

    def _whole(self, value: Argument) -> bytes | None:
        # C never sees what stands behind a NUL; Python does.
        if self.rules.checked_values:
            assert value is None or isinstance(value, bytes)
            return value
        return c_string(value)

    def _setreply(self, rcode: Argument, xcode: Argument, message: Argument) -> bool:
        text = self._code(rcode, _RCODE) + b" "
        if xcode is not None:
            text += self._code(xcode, _XCODE)
            if message is not None:
                text += b" "
        if message is not None:
            assert isinstance(message, bytes)
            text += self._line(message)
        return self._set(text)

    def _set(self, text: bytes) -> bool:
        if not self.rules.reply_ends_with_message or self.running not in ("abort", "close"):
            self.reply = text
            self.lasting.discard(self.speaker)
            if not self.in_message:
                self.lasting.add(self.speaker)
        return True

    def _setmlreply(self, rcode: Argument, xcode: Argument, *lines: Argument) -> bool:
        code = self._code(rcode, _RCODE)
        extended = code[:1] + b".0.0" if xcode is None else self._code(xcode, _XCODE)
        given = lines
        if None in lines:
            if self.rules.checked_values:
                raise _Refused
            given = lines[: lines.index(None)]
        if len(given) > MAX_LINES:
            raise _Refused
        if not given:
            if self.rules.checked_values:
                raise _Refused
            return self._set(code + b"-" + extended)
        texts = []
        for line in given:
            assert isinstance(line, bytes)
            texts.append(extended + b" " + self._line(line))
        head = [code + b"-" + text for text in texts[:-1]]
        return self._set(b"\r\n".join([*head, code + b" " + texts[-1]]))

    # ---- edits

    def _editing(self, flag: int) -> bool:
        if self.rules.edits_in_eom_only and self.running != "eom":
            return False
        return self.state == ENDM and bool(self.actions & flag)

    def _send(self, flag: int, letter: bytes, payload: bytes) -> bool:
        if not self._editing(flag) or len(payload) > self.max_payload:
            return False
        self._put(packet(letter, payload))
        return True

    def _put(self, edit: bytes) -> None:
        if self.rules.edits_together:
            self.edits.append(edit)
        else:
            self.output += edit

    def _text(self, value: Argument) -> bytes:
        if self.rules.checked_values and value is not None:
            assert isinstance(value, bytes)
            if _NOT_IN_TEXT.search(value):
                raise _Refused
        return c_string(value) or b""

    def _field(self, name: Argument, value: Argument) -> bytes:
        text = self._text(name)
        if not text or value is None:
            raise _Refused
        assert isinstance(value, bytes)
        if self.rules.checked_values and not _FIELD_NAME.fullmatch(text):
            raise _Refused
        if self.rules.checked_values:
            value = value.replace(b"\r\n", b"\n")
            if _NOT_IN_VALUE.search(value):
                raise _Refused
            value = _UNFOLDED.sub(b"\n\t", value)
        return text + b"\0" + (c_string(value) or b"") + b"\0"

    def _addheader(self, name: Argument, value: Argument) -> bool:
        return self._send(ADDHDRS, b"h", self._field(name, value))

    def _chgheader(self, name: Argument, index: Argument, value: Argument) -> bool:
        assert isinstance(index, int)
        payload = self._field(name, value or b"")
        least = 1 if self.rules.counted_fields else 0
        return index >= least and self._send(CHGHDRS, b"m", struct.pack(">i", index) + payload)

    def _insheader(self, index: Argument, name: Argument, value: Argument) -> bool:
        assert isinstance(index, int)
        payload = self._field(name, value)
        return index >= 0 and self._send(ADDHDRS, b"i", struct.pack(">i", index) + payload)

    def _address(self, address: Argument, args: Argument = None) -> bytes:
        payload = self._text(address)
        if not payload:
            raise _Refused
        payload += b"\0"
        if args is not None:
            payload += self._text(args) + b"\0"
        return payload

    def _chgfrom(self, mail: Argument, args: Argument) -> bool:
        return self._send(CHGFROM, b"e", self._address(mail, args))

    def _addrcpt(self, rcpt: Argument) -> bool:
        return self._send(ADDRCPT, b"+", self._address(rcpt))

    def _addrcpt_par(self, rcpt: Argument, args: Argument) -> bool:
        return self._send(ADDRCPT_PAR, b"2", self._address(rcpt, args))

    def _delrcpt(self, rcpt: Argument) -> bool:
        return self._send(DELRCPT, b"-", self._address(rcpt))

    def _quarantine(self, reason: Argument) -> bool:
        return self._send(QUARANTINE, b"q", self._address(reason))

    def _replacebody(self, body: Argument) -> bool:
        if body is None or not self._editing(CHGBODY):
            return False
        assert isinstance(body, bytes)
        for start in range(0, len(body) or 1, MAX_PAYLOAD):
            self._put(packet(b"b", body[start : start + MAX_PAYLOAD]))
        return True

    def _progress(self) -> bool:
        if self.rules.edits_in_eom_only and self.running != "eom":
            return False
        self.output += packet(b"p")
        return True

    def _setsymlist(self, stage: Argument, macros: Argument) -> bool:
        assert isinstance(stage, int)
        if self.rules.symlist_in_negotiate_only and self.running != "negotiate":
            return False
        if macros is None or not 0 <= stage <= 6 or stage in self.symbol_lists:
            return False
        self.symbol_lists[stage] = self._text(macros)
        return True


class _Refused(Exception):
    """A value that the function does not take."""
