"""
What is compared: cases and records.

A case is a milter's whole behaviour (which callbacks it has, what each of their invocations does
and returns) and the bytes that an MTA sends to it. A record is what came of it: which callbacks ran
with which arguments, what their smfi_* calls answered, and what was written to the MTA. Both are
plain values: a case's `repr` is Python source that makes it again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

CALLBACKS = (
    "negotiate",
    "connect",
    "helo",
    "envfrom",
    "envrcpt",
    "data",
    "unknown",
    "header",
    "eoh",
    "body",
    "eom",
    "abort",
    "close",
)
"""In the order of their numbers in scripted_milter.c."""

FUNCTIONS = (
    "getsymval",
    "setreply",
    "setmlreply",
    "addheader",
    "chgheader",
    "insheader",
    "chgfrom",
    "addrcpt",
    "addrcpt_par",
    "delrcpt",
    "replacebody",
    "progress",
    "quarantine",
    "setsymlist",
    "version",
)
"""In the order of their numbers in scripted_milter.c."""

OPTIONAL = CALLBACKS[:11]
"""Callbacks that a milter may leave out; abort and close are always there, to be recorded."""

API_VERSIONS = {6: 0x01000001, 4: 4, 3: 3, 2: 2}
"""
The values smfi_register() takes; negotiate needs more than 4, data more than 3, unknown more than
2.
"""

NEEDS_VERSION = {"negotiate": 5, "data": 4, "unknown": 3}

DISCONNECT = -1
"""The on_error that ends the connection."""

OnError = int | bytes

Argument = bytes | int | None
Result = int | None | str | float
Answer = int | bytes | None


@dataclass(frozen=True)
class Call:
    """
    One smfi_* call: the name without its prefix, and arguments in libmilter's order (None is NULL).
    """

    function: str
    args: tuple[Argument, ...] = ()


@dataclass(frozen=True)
class Reaction:
    """
    What one invocation of a callback does.

    `actions` and `steps` are what xxfi_negotiate asks for when it returns CONTINUE (None: leaves
    libmilter's preset alone). `how` is the way a Python callback gives its result: "plain", "fired"
    (a Deferred that has fired), "later" (a Deferred that fires when the transport has been idle) or
    "async" (a coroutine).
    """

    result: Result = 0
    calls: tuple[Call, ...] = ()
    actions: int | None = None
    steps: int | None = None
    how: str = "plain"


@dataclass(frozen=True)
class Case:
    """
    A milter's script and an MTA's conversation.

    `conversation` is a tuple of byte strings, one for each packet where packets are whole.
    `delivery` says how the bytes reach yatxmilter: one packet at a time ("packets"), all at once
    ("whole"), or in pieces of that many bytes.

    Two things are yatxmilter's alone. `on_error` is what it is told to answer for a callback that
    fails: a return code, `DISCONNECT`, or a reply's text. `members` is among how many milters of
    one connection it shares out the callbacks, where none of them is negotiate: together they are
    to do what the one of libmilter does.
    """

    callbacks: tuple[str, ...] = OPTIONAL
    reactions: tuple[tuple[str, tuple[Reaction, ...]], ...] = ()
    conversation: tuple[bytes, ...] = ()
    version: int = 6
    flags: int = 0x1FF
    delivery: str | int = "packets"
    on_error: OnError = 4
    members: int = 1

    def owner(self, callback: str) -> int:
        """Tell which of the milters has a callback."""
        shared = self.members > 1 and "negotiate" not in self.registered
        return CALLBACKS.index(callback) % self.members if shared else 0

    @property
    def several(self) -> bool:
        """Whether there is more than one milter."""
        return any(self.owner(name) for name in OPTIONAL)

    @property
    def registered(self) -> frozenset[str]:
        """Name the callbacks that count as there, given the API version."""
        return frozenset(
            name for name in self.callbacks if self.version >= NEEDS_VERSION.get(name, 0)
        )

    @property
    def stream(self) -> bytes:
        """Join the conversation."""
        return b"".join(self.conversation)

    def script(self) -> dict[str, tuple[Reaction, ...]]:
        """Index the reactions by callback."""
        return dict(self.reactions)


@dataclass
class Invocation:
    """
    One callback that ran: its arguments, its calls' answers, and how much had been written before
    it.
    """

    callback: str
    args: tuple[Answer, ...]
    answers: list[Answer] = field(default_factory=list)
    written: int = 0


@dataclass
class Record:
    """
    All that came of a case. `consumed` is how much of the conversation was read before the end.
    """

    invocations: list[Invocation]
    output: bytes
    consumed: int
