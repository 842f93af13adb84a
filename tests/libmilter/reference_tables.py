"""
libmilter's numbers and tables, for the reference engine.
"""

from __future__ import annotations

from .reference_calls import ENDM

INIT, OPTS, CONN, HELO, MAIL, RCPT, DATA, HDRS, EOHS, BODY = range(10)
QUIT, ABRT, UNKN, Q_NC = range(11, 15)
NONE = -1

CONTINUE, REJECT, DISCARD, ACCEPT, TEMPFAIL = range(5)
NOREPLY, SKIP, ALL_OPTS, KEEP, END_SESSION, OPTIONS, FAIL = 7, 8, 10, 20, 21, 22, -1

# letter: state, needs a payload, first stage of macros that become stale
COMMANDS = {
    ord("O"): (OPTS, True, 0),
    ord("C"): (CONN, True, 1),
    ord("H"): (HELO, True, 2),
    ord("M"): (MAIL, True, 3),
    ord("R"): (RCPT, True, 4),
    ord("T"): (DATA, False, 7),
    ord("L"): (HDRS, True, 7),
    ord("N"): (EOHS, False, 7),
    ord("B"): (BODY, True, 7),
    ord("E"): (ENDM, False, 7),
    ord("U"): (UNKN, True, 7),
    ord("A"): (ABRT, False, 7),
    ord("Q"): (QUIT, False, 7),
    ord("K"): (Q_NC, False, 7),
    ord("D"): (NONE, True, 7),
}
_STATE = {chr(letter): row[0] for letter, row in COMMANDS.items()}
NEXT = tuple(
    sum(1 << _STATE[letter] for letter in letters)
    for letters in (
        "O", "CU", "HMU", "HMU", "RAU", "RTLNBEAU", "LNA", "LNA",
        "BEA", "BEA", "MUQK", "", "", "HMRTBUAQK", "CU",
    )
)  # fmt: skip

# callback: the step that declines it, the state it runs in, the step that promises no reply
STEPS = {
    "connect": (0x1, CONN, 0x1000),
    "helo": (0x2, HELO, 0x2000),
    "envfrom": (0x4, MAIL, 0x4000),
    "envrcpt": (0x8, RCPT, 0x8000),
    "body": (0x10, BODY, 0x80000),
    "header": (0x20, HDRS, 0x80),
    "eoh": (0x40, EOHS, 0x40000),
    "unknown": (0x100, UNKN, 0x20000),
    "data": (0x200, DATA, 0x10000),
}
NR_OF_STATE = {state: bit for _, state, bit in STEPS.values()}
ALL_NO = sum(no for no, _, _ in STEPS.values())
ALL_NR = sum(NR_OF_STATE.values())
SKIP_STEP, NODATA, NOUNKNOWN = 0x400, 0x200, 0x100
MDS_256K, MDS_1M, INTERNAL = 0x10000000, 0x20000000, 0x70000000
MDS = MDS_256K | MDS_1M

PLAIN = {CONTINUE: b"c", DISCARD: b"d", ACCEPT: b"a", SKIP: b"s"}
VERDICTS = (REJECT, DISCARD, ACCEPT, TEMPFAIL)

_SETUP = (CONTINUE, REJECT, TEMPFAIL, ACCEPT)
_MESSAGE = (*_SETUP, DISCARD)
CODES = {
    **dict.fromkeys(("envfrom", "envrcpt", "data", "header", "eoh", "eom"), _MESSAGE),
    **dict.fromkeys(("connect", "helo"), _SETUP),
    "unknown": (CONTINUE, REJECT, TEMPFAIL),
    "body": (*_MESSAGE, SKIP),
}
"""The return codes that yatxmilter takes, by callback; libmilter takes any."""

__all__ = [name for name in dir() if name.isupper()] + ["ENDM"]
