"""
The table of the commands: one row for each.

`COMMANDS` says of each command from the MTA which callback it means, how its payload is read,
which protocol steps decline it or promise no reply, which return codes are legal, which macros it
makes stale, and which state it leads to. `_NEXT` says which commands are legal in which state, as
libmilter's engine does. Everything else - session, plan, negotiation, client, manual - follows
from the rows. `ACTIONS` is the other table of the protocol; it stands in
`yatxmilter._wire.actions`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from yatxmilter import constants as c
from yatxmilter._wire import payloads
from yatxmilter._wire.actions import ACTIONS
from yatxmilter._wire.packets import read_head
from yatxmilter.constants import ReturnCode

__all__ = [
    "ACTIONS",
    "ALL_COMMANDS",
    "CALLBACK_STEPS",
    "COMMANDS",
    "Command",
    "legal_commands",
    "stage_of",
]

# States, with libmilter's names and numbers (engine.c). UNKN is never entered here, because an
# unknown command leaves the state as it is; its row still counts where it can be skipped to.
INIT, OPTS, CONN, HELO, MAIL, RCPT, DATA, HDRS, EOHS, BODY, ENDM, QUIT, ABRT, UNKN, Q_NC = range(15)

#: The states in which a message is open.
MESSAGE_STATES: Final = frozenset((MAIL, RCPT, DATA, HDRS, EOHS, BODY))

_SETUP: Final = frozenset((c.SMFIS_CONTINUE, c.SMFIS_REJECT, c.SMFIS_TEMPFAIL, c.SMFIS_ACCEPT))
_MESSAGE: Final = _SETUP | {c.SMFIS_DISCARD}
_UNKNOWN: Final = _SETUP - {c.SMFIS_ACCEPT}


@dataclass(frozen=True, slots=True, eq=False)
class Command:
    """
    One command from the MTA.

    :ivar index: Its place in plans and, as ``1 << index``, in masks of commands.
    :ivar state: The state it leads to; ``None`` leaves the state as it is.
    :ivar codes: The return codes legal there; empty where a callback's result is ignored.
    :ivar no: The step that declines it; ``nr``: the step that promises not to answer it.
    :ivar stale: The first stage, in the order in which macros are looked up, whose macros it ends.
    :ivar in_message: Whether it belongs to, and so opens, a message.
    :ivar since: The first protocol version that has it.
    """

    letter: int
    name: str
    callback: str
    index: int
    decode: Callable[[bytes], tuple[Any, ...] | None]
    state: int | None
    codes: frozenset[ReturnCode] = frozenset()
    no: int = 0
    nr: int = 0
    stale: int = 99
    in_message: bool = False
    needs_payload: bool = False
    since: int = 2

    @property
    def bit(self) -> int:
        """
        The command's bit in a mask of commands.
        """
        return 1 << self.index

    @property
    def has_argv(self) -> bool:
        """
        Whether its callback gets a list, which callees must not share.
        """
        return self.decode is payloads.decode_strings


# fmt: off
ALL_COMMANDS: Final = (
    Command(c.SMFIC_OPTNEG, "OPTNEG", "xxfi_negotiate", 0, payloads.decode_offer, OPTS,
            stale=0, needs_payload=True),
    Command(c.SMFIC_CONNECT, "CONNECT", "xxfi_connect", 1, payloads.decode_connect, CONN, _SETUP,
            c.SMFIP_NOCONNECT, c.SMFIP_NR_CONN, stale=1, needs_payload=True),
    Command(c.SMFIC_HELO, "HELO", "xxfi_helo", 2, payloads.decode_string, HELO, _SETUP,
            c.SMFIP_NOHELO, c.SMFIP_NR_HELO, stale=2, needs_payload=True),
    Command(c.SMFIC_MAIL, "MAIL", "xxfi_envfrom", 3, payloads.decode_strings, MAIL, _MESSAGE,
            c.SMFIP_NOMAIL, c.SMFIP_NR_MAIL, stale=3, in_message=True, needs_payload=True),
    Command(c.SMFIC_RCPT, "RCPT", "xxfi_envrcpt", 4, payloads.decode_strings, RCPT, _MESSAGE,
            c.SMFIP_NORCPT, c.SMFIP_NR_RCPT, stale=4, in_message=True, needs_payload=True),
    Command(c.SMFIC_DATA, "DATA", "xxfi_data", 5, payloads.decode_nothing, DATA, _MESSAGE,
            c.SMFIP_NODATA, c.SMFIP_NR_DATA, in_message=True, since=4),
    Command(c.SMFIC_HEADER, "HEADER", "xxfi_header", 6, payloads.decode_header, HDRS, _MESSAGE,
            c.SMFIP_NOHDRS, c.SMFIP_NR_HDR, in_message=True, needs_payload=True),
    Command(c.SMFIC_EOH, "EOH", "xxfi_eoh", 7, payloads.decode_nothing, EOHS, _MESSAGE,
            c.SMFIP_NOEOH, c.SMFIP_NR_EOH, in_message=True),
    Command(c.SMFIC_BODY, "BODY", "xxfi_body", 8, payloads.decode_raw, BODY,
            _MESSAGE | {c.SMFIS_SKIP},
            c.SMFIP_NOBODY, c.SMFIP_NR_BODY, in_message=True, needs_payload=True),
    Command(c.SMFIC_BODYEOB, "BODYEOB", "xxfi_eom", 9, payloads.decode_nothing, ENDM, _MESSAGE,
            in_message=True),
    Command(c.SMFIC_UNKNOWN, "UNKNOWN", "xxfi_unknown", 10, payloads.decode_line, None, _UNKNOWN,
            c.SMFIP_NOUNKNOWN, c.SMFIP_NR_UNKN, needs_payload=True, since=3),
    Command(c.SMFIC_ABORT, "ABORT", "xxfi_abort", 11, payloads.decode_nothing, ABRT),
    Command(c.SMFIC_QUIT, "QUIT", "xxfi_close", 12, payloads.decode_nothing, QUIT),
    Command(c.SMFIC_QUIT_NC, "QUIT_NC", "xxfi_close", 13, payloads.decode_nothing, Q_NC, since=6),
    Command(c.SMFIC_MACRO, "MACRO", "", 14, payloads.decode_nothing, None, needs_payload=True),
)
# fmt: on

#: No command, but treated as one: the TCP connection has come.
MTA_CONNECT_ROW: Final = Command(
    0,
    "(connection)",
    "xxfi_mta_connect",
    len(ALL_COMMANDS),
    payloads.decode_nothing,
    None,
    _MESSAGE,
)

#: And has gone.
MTA_CLOSE_ROW: Final = Command(
    0, "(connection)", "xxfi_mta_close", len(ALL_COMMANDS) + 1, payloads.decode_nothing, None
)

COMMANDS: Final = {command.letter: command for command in ALL_COMMANDS}

(OPTNEG_ROW, CONNECT_ROW, HELO_ROW, MAIL_ROW, RCPT_ROW, DATA_ROW, HEADER_ROW, EOH_ROW, BODY_ROW,
 EOM_ROW, UNKNOWN_ROW, ABORT_ROW, QUIT_ROW, QUIT_NC_ROW, MACRO_ROW) = ALL_COMMANDS  # fmt: skip

#: The commands that call a milter and want an answer, in the order of the SMTP dialogue.
CALLBACK_STEPS: Final = tuple(command for command in ALL_COMMANDS if command.codes)


def stage_of(data: bytes) -> str:
    """
    Name the callback of the last command in a read; give nothing where this is not whole packets.
    """
    stage, position = "", 0
    while len(data) - position > 4:
        length, letter = read_head(data, position)
        if not length or letter not in COMMANDS:
            return ""
        stage = COMMANDS[letter].callback or stage
        position += 4 + length
    return stage if position == len(data) else ""


def _mask(letters: str) -> int:
    return sum(COMMANDS[ord(letter)].bit for letter in letters)


# libmilter's next_states (engine.c). U and K stand in every row: an unknown command changes
# nothing here, and QUIT_NC ends a connection wherever it stands.
_NEXT: Final = tuple(
    _mask(letters) | _mask("UK")
    for letters in (
        "O", "C", "HM", "HM", "RA", "RTLNBEA", "LNA", "LNA",
        "BEA", "BEA", "MQ", "", "", "HMRTBAQ", "C",
    )
)  # fmt: skip

# A state that the milter has declined is passed over: what is legal after it is legal before it.
_SKIPPED_BY: Final = {
    command.state: command.no for command in CALLBACK_STEPS if command.no and command.state
} | {UNKN: c.SMFIP_NOUNKNOWN}


@lru_cache(maxsize=1024)
def legal_commands(declined: int) -> tuple[int, ...]:
    """
    Tell for each state which commands are legal in it, as masks of `Command.bit`.

    :param declined: The ``SMFIP_NO*`` steps in force; a state they name is passed over (engine.c,
        ``trans_ok``). Unlike libmilter's these are the connection's own.
    """
    legal = list(_NEXT)
    for state in range(len(legal) - 2, -1, -1):
        # A message may have no header fields: what comes after them may come in their place.
        # libmilter forgets this, and lets an MTA wait that sends the body after DATA.
        if declined & _SKIPPED_BY.get(state + 1, 0) or state == DATA:
            legal[state] |= legal[state + 1]
    return tuple(legal)
