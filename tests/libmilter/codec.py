"""
How a case travels to scripted_milter.c and its record back.

Both ways: a 32-bit length, then that many bytes; numbers are little-endian. A text or body is b"n"
for NULL, or b"s", a 32-bit length, the bytes (towards the milter with a NUL behind them, which the
length counts).
"""

from __future__ import annotations

import struct

from .case import (
    API_VERSIONS,
    CALLBACKS,
    FUNCTIONS,
    Answer,
    Argument,
    Call,
    Case,
    Invocation,
    Reaction,
    Record,
    Result,
)

_CALLBACK_BIT = {name: 1 << number for number, name in enumerate(CALLBACKS)}
_FUNCTION_NUMBER = {name: number for number, name in enumerate(FUNCTIONS)}
_U32 = struct.Struct("<I")
_U32_AT = _U32.unpack_from
_I64_AT = struct.Struct("<q").unpack_from
_NOTHING = struct.Struct("<H").pack(0)

NONSENSE = 99
"""What a C callback returns where the Python one returns something that is no number at all."""


def c_result(result: Result) -> int:
    """Give the C callback's result for what a Python callback returns."""
    if result is None:
        return 0
    if isinstance(result, int):
        return int(result)
    return NONSENSE


def _text(value: Argument) -> bytes:
    if value is None:
        return b"n"
    assert isinstance(value, bytes)
    return b"s" + _U32.pack(len(value) + 1) + value + b"\0"


def _call(call: Call) -> bytes:
    parts = [bytes((_FUNCTION_NUMBER[call.function],))]
    args = call.args
    if call.function == "setmlreply":
        parts += [_text(args[0]), _text(args[1]), bytes((len(args) - 2,))]
        args = args[2:]
    for arg in args:
        parts.append(struct.pack("<i", arg) if isinstance(arg, int) else _text(arg))
    return b"".join(parts)


def _reaction(reaction: Reaction) -> bytes:
    block = struct.pack(
        "<iBQBQH",
        c_result(reaction.result),
        reaction.actions is not None,
        reaction.actions or 0,
        reaction.steps is not None,
        reaction.steps or 0,
        len(reaction.calls),
    ) + b"".join([_call(call) for call in reaction.calls])
    return _U32.pack(len(block)) + block


def encode_case(case: Case) -> bytes:
    """Encode a case for scripted_milter's standard input."""
    mask = 0
    for name in case.callbacks:
        mask |= _CALLBACK_BIT[name]
    parts = [struct.pack("<IIQ", API_VERSIONS[case.version], mask, case.flags)]
    script = case.script()
    for name in CALLBACKS:
        reactions = script.get(name)
        if not reactions:
            parts.append(_NOTHING)
            continue
        parts.append(struct.pack("<H", len(reactions)))
        parts += [_reaction(reaction) for reaction in reactions]
    stream = case.stream
    parts += [_U32.pack(len(stream)), stream]
    body = b"".join(parts)
    return _U32.pack(len(body)) + body


class _Reader:
    """Walks over one answer of scripted_milter."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def number(self) -> int:
        self.at += 4
        value: int = _U32_AT(self.data, self.at - 4)[0]
        return value

    def raw(self, length: int) -> bytes:
        self.at += length
        return self.data[self.at - length : self.at]

    def value(self, kind: int) -> Answer:
        if kind == 0x6E:
            return None
        if kind == 0x73:
            return self.raw(self.number())
        self.at += 8
        value: int = _I64_AT(self.data, self.at - 8)[0]
        return value


def decode_record(data: bytes) -> Record:
    """Decode what scripted_milter wrote for one case (without the length before it)."""
    reader = _Reader(data)
    invocations: list[Invocation] = []
    while True:
        tag = reader.byte()
        if tag == 0x43:  # C: a callback begins
            callback = CALLBACKS[reader.byte()]
            written = reader.number()
            args = []
            while (kind := reader.byte()) != 0x2E:
                args.append(reader.value(kind))
            invocations.append(Invocation(callback, tuple(args), [], written))
        elif tag == 0x52:  # R: a call has answered
            reader.byte()
            invocations[-1].answers.append(reader.value(reader.byte()))
        else:
            consumed = reader.number()
            return Record(invocations, reader.raw(reader.number()), consumed)
