"""
Return codes: which are legal where, what they look like on the wire, how far they reach.

Pure functions and tables; the rows of `yatxmilter._wire.commands` say which code is legal at which
command.
"""

from __future__ import annotations

from typing import Final, cast

from yatxmilter import constants as c
from yatxmilter._describing import described
from yatxmilter._wire.commands import RCPT_ROW, UNKNOWN_ROW, Command
from yatxmilter._wire.payloads import encode_packet
from yatxmilter.constants import ReturnCode
from yatxmilter.errors import ReturnCodeError

__all__ = [
    "CONTINUE_PACKET",
    "ON_ERROR",
    "SKIP_PACKET",
    "check_code",
    "ends_message",
    "fallback",
    "response",
    "word_of",
]

CONTINUE_PACKET: Final = encode_packet(c.SMFIR_CONTINUE)
SKIP_PACKET: Final = encode_packet(c.SMFIR_SKIP)

#: What a milter of ours returns when it has failed, and has said so itself: its ``on_error`` is
#: the answer, and nothing is logged.
ON_ERROR: Final = cast(ReturnCode, object())

_BARE: Final = {
    c.SMFIS_REJECT: encode_packet(c.SMFIR_REJECT),
    c.SMFIS_TEMPFAIL: encode_packet(c.SMFIR_TEMPFAIL),
    c.SMFIS_DISCARD: encode_packet(c.SMFIR_DISCARD),
    c.SMFIS_ACCEPT: encode_packet(c.SMFIR_ACCEPT),
    c.SMFIS_CONTINUE: CONTINUE_PACKET,
}


def check_code(command: Command, result: object) -> ReturnCode:
    """
    Read what a callback returned as one of the codes legal at its command; ``None`` is CONTINUE.

    :raises ReturnCodeError: naming the value and what was expected.
    """
    if result is None:
        return c.SMFIS_CONTINUE
    if isinstance(result, int) and not isinstance(result, bool) and result in command.codes:
        return ReturnCode(result)
    legal = ", ".join(code.name for code in sorted(command.codes))
    raise ReturnCodeError(
        f"{command.callback} returned {described(result)}; legal there: {legal}, None"
    )


def word_of(code: ReturnCode) -> str:
    """
    Name a return code in a word, for labels: ``"tempfail"``.
    """
    return code.name.removeprefix("SMFIS_").lower()


def fallback(command: Command, on_error: ReturnCode) -> ReturnCode:
    """
    Tell what a failed callback answers: ``on_error``, or what comes nearest at this command.

    Where DISCARD is not legal TEMPFAIL takes its place, where ACCEPT is not, CONTINUE. In
    negotiation, which has answers of its own, it is ``on_error`` as it is.
    """
    if on_error in command.codes or not command.codes:
        return on_error
    return c.SMFIS_CONTINUE if on_error is c.SMFIS_ACCEPT else c.SMFIS_TEMPFAIL


def ends_message(command: Command, code: ReturnCode) -> bool:
    """
    Tell whether an answer other than CONTINUE ends the message, or the connection's filtering.

    REJECT and TEMPFAIL of a recipient are about that recipient alone, and for libmilter a message
    stays open after DISCARD there too; no answer to an unknown command is about anything else.
    """
    if command is RCPT_ROW:
        return code is c.SMFIS_ACCEPT
    return command is not UNKNOWN_ROW


def response(code: ReturnCode, reply: bytes | None) -> bytes:
    """
    Write the packet of a final answer, with the text of ``smfi_setreply`` if there is one.
    """
    if reply is not None:
        return encode_packet(c.SMFIR_REPLYCODE, reply + b"\0")
    return _BARE[code]
