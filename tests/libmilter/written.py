"""
How a point of behaviour is written down: a case, and its outcome on both libraries.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Any

from .case import OPTIONAL, Answer, Case
from .packets import offer, packet, strings

Seen = tuple[Answer | str, ...]
"""A callback's name and its arguments."""


@dataclass(frozen=True)
class Outcome:
    """
    What a case comes to.

    :ivar output: Packets without their lengths. The answer to a usual offer is written as O.
    :ivar closed: Whether the milter closed the connection before the conversation was over.
    :ivar answers: What the smfi_* calls gave, all in one list.
    """

    callbacks: tuple[Seen, ...]
    output: tuple[bytes, ...]
    closed: bool = False
    answers: tuple[Answer, ...] = ()


@dataclass(frozen=True)
class Vector:
    """One point: a case, its outcome on libmilter, and on yatxmilter where that is another."""

    title: str
    case: Case
    libmilter: Outcome
    ours: Outcome
    difference: str = ""


def agreement(version: int, actions: int, steps: int) -> bytes:
    """Write the answer to an offer."""
    return b"O" + struct.pack(">III", version, actions, steps)


PLAIN = OPTIONAL[1:]
OFFER, T, N, E, A, Q, K = (
    offer(),
    *(packet(letter) for letter in (b"T", b"N", b"E", b"A", b"Q", b"K")),
)
C = packet(b"C", b"h\x004" + struct.pack(">H", 25) + b"192.0.2.1\0")
H = packet(b"H", strings(b"x"))
M = packet(b"M", strings(b"<s@example.org>"))
R = packet(b"R", strings(b"<r@example.net>"))
U = packet(b"U", strings(b"FOO"))
SENTINEL = packet(b"D", b"C")

AGREED = agreement(6, 0x1FF, 0)
AGREED_OURS = agreement(6, 0x1FF, 0x400)
"""With SKIP: who wants the body and has no xxfi_negotiate asks for it (computed_request)."""

CONNECT: Seen = ("connect", b"h", b"192.0.2.1", 25, 4)
HELO: Seen = ("helo", b"x")
MAIL: Seen = ("envfrom", b"<s@example.org>")
RCPT: Seen = ("envrcpt", b"<r@example.net>")
CLOSE: Seen = ("close",)
ABORT: Seen = ("abort",)
DATA: Seen = ("data",)
EOH: Seen = ("eoh",)
EOM: Seen = ("eom",)


def _to_ours(outcome: Outcome) -> Outcome:
    output = tuple(AGREED_OURS if one == AGREED else one for one in outcome.output)
    return replace(outcome, output=output)


def vector(
    title: str,
    conversation: tuple[bytes, ...],
    called: tuple[Seen, ...],
    output: tuple[bytes, ...] = (),
    *,
    closed: bool = False,
    answers: tuple[Answer, ...] = (),
    ours: dict[str, Any] | None = None,
    difference: str = "",
    **milter: Any,
) -> Vector:
    """Make a vector; `ours` has what is different with us, `difference` the reason."""
    milter.setdefault("callbacks", PLAIN)
    reactions = tuple(milter.pop("reactions", {}).items())
    case = Case(reactions=reactions, conversation=(*conversation, SENTINEL), **milter)
    real = Outcome(called, output, closed, answers)
    return Vector(title, case, real, replace(_to_ours(real), **(ours or {})), difference)
