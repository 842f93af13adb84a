"""
What is answered for a milter that has failed: the option ``on_error``.

It is a return code; a `Reply`, which is a code with its text; or `DISCONNECT`. A mapping gives one
of these for each stage. `answer_for` tells what becomes of it at a command.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from enum import Enum
from typing import Any, Final, NamedTuple

from yatxmilter import constants as c
from yatxmilter._describing import described
from yatxmilter._engine.return_codes import fallback
from yatxmilter._options import code_option
from yatxmilter._wire.commands import (
    CALLBACK_STEPS,
    MAIL_ROW,
    MTA_CONNECT_ROW,
    OPTNEG_ROW,
    RCPT_ROW,
    Command,
)
from yatxmilter._wire.payloads import to_text
from yatxmilter._wire.replies import format_multiline_reply, format_reply
from yatxmilter.constants import ReturnCode

__all__ = [
    "DISCONNECT",
    "Disconnect",
    "Fallback",
    "OnError",
    "OnErrorAnswer",
    "Reply",
    "answer_for",
    "lets_pass",
    "on_error_option",
]


class Disconnect(Enum):
    """
    The class of `DISCONNECT`.
    """

    DISCONNECT = "DISCONNECT"

    def __repr__(self) -> str:
        return self.name

    __str__ = __repr__


#: For ``on_error``: the connection is closed, so that the MTA's own default action decides.
DISCONNECT: Final = Disconnect.DISCONNECT


class Reply:
    """
    A return code with its text, for ``on_error``: ``Reply("451", "4.3.0", "Try again later")``.

    A ``%`` must be doubled, as for `Milter.smfi_setreply`.

    :param rcode: The reply code: ``4xx`` is SMFIS_TEMPFAIL, ``5xx`` is SMFIS_REJECT.
    :param xcode: The enhanced status code, such as ``"4.3.0"``.
    :param message: One line of at most 980 bytes.
    :param more: Further lines, 32 in all at most.
    :raises ValueError: for an argument of another shape.
    :ivar code: The return code.
    :ivar text: The whole reply, as it is sent.
    """

    __slots__ = ("code", "text")

    code: ReturnCode
    text: bytes

    def __init__(
        self,
        rcode: str | bytes,
        xcode: str | bytes | None = None,
        message: str | bytes | None = None,
        *more: str | bytes,
    ) -> None:
        if more:
            text = format_multiline_reply(rcode, xcode, message or "", *more)
        else:
            text = format_reply(rcode, xcode, message)
        self.text = text
        self.code = c.SMFIS_TEMPFAIL if text.startswith(b"4") else c.SMFIS_REJECT

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reply) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"<Reply {to_text(self.text)!r}>"


OnErrorAnswer = int | Reply | Disconnect
OnError = OnErrorAnswer | Mapping[str, OnErrorAnswer]

#: The key of a mapping for the stages that it does not name.
_DEFAULT: Final = "default"
_STEPS: Final = (MTA_CONNECT_ROW, OPTNEG_ROW, *CALLBACK_STEPS)
#: The stages by all their names: callbacks with and without ``xxfi_``, and the SMTP commands.
_STAGES: Final = {
    **{row.callback: row for row in _STEPS},
    **{row.callback.removeprefix("xxfi_"): row for row in _STEPS},
    "mail": MAIL_ROW,
    "rcpt": RCPT_ROW,
}


def on_error_option(name: str, value: Any) -> Any:
    """
    Check for what may be answered for a failed callback.

    :return: A `ReturnCode`, a `Reply` or `DISCONNECT`; of a mapping, a dict of these by the names
        of callbacks, with the one of all other stages as ``"default"``.
    :raises ValueError: for anything else.
    """
    if isinstance(value, Mapping):
        return _by_stage(name, value)
    if isinstance(value, (Reply, Disconnect)):
        return value
    try:
        return code_option(name, value)
    except ValueError as error:
        raise ValueError(f"{error}; or a Reply, DISCONNECT, or a dict of stages") from None


def _by_stage(name: str, value: Mapping[Any, Any]) -> dict[str, Any]:
    answers: dict[str, Any] = {_DEFAULT: c.SMFIS_TEMPFAIL}
    seen: dict[str, Any] = {}
    for stage, answer in value.items():
        where = f"{name}[{described(stage)}]"
        row = None if stage == _DEFAULT else _stage(name, stage)
        if isinstance(answer, Mapping):
            raise ValueError(f"{where} is {described(answer)}, expected no further mapping")
        answer = on_error_option(where, answer)
        if row is None:
            answers[_DEFAULT] = answer
            continue
        if row.callback in seen:
            raise ValueError(f"{where} and {name}[{seen[row.callback]!r}] are the same stage")
        seen[row.callback] = stage
        if isinstance(answer, ReturnCode) and row.codes and answer not in row.codes:
            legal = ", ".join(code.name for code in sorted(row.codes - {c.SMFIS_SKIP}))
            raise ValueError(f"{where} is {answer!r}; legal there: {legal}")
        answers[row.callback] = answer
    return answers


def _stage(name: str, stage: Any) -> Command:
    if isinstance(stage, str) and stage in _STAGES:
        return _STAGES[stage]
    known = [row.callback.removeprefix("xxfi_") for row in _STEPS] + [_DEFAULT]
    nearest = difflib.get_close_matches(stage, known, 1) if isinstance(stage, str) else []
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"expected one of {', '.join(known)}"
    raise ValueError(f"{name} has the stage {described(stage)}, {hint}")


class Fallback(NamedTuple):
    """
    What is answered for a failed callback.

    :ivar reply: The text that goes with it.
    :ivar disconnects: Whether the connection is closed instead.
    """

    code: ReturnCode
    reply: bytes | None = None
    disconnects: bool = False

    @property
    def described(self) -> ReturnCode | str:
        """
        What is to be told of it.
        """
        if self.disconnects:
            return DISCONNECT.name
        return self.code if self.reply is None else f"{self.code} ({to_text(self.reply)!r})"


def answer_for(command: Command, on_error: Any) -> Fallback:
    """
    Tell what is answered for a callback that has failed.

    :param on_error: As `on_error_option` gives it.
    """
    if isinstance(on_error, dict):
        on_error = on_error.get(command.callback, on_error[_DEFAULT])
    if isinstance(on_error, Reply):
        return Fallback(on_error.code, on_error.text)
    if isinstance(on_error, Disconnect):
        return Fallback(c.SMFIS_TEMPFAIL, None, True)
    return Fallback(fallback(command, on_error))


def lets_pass(on_error: Any) -> bool:
    """
    Tell whether mail passes a milter that has failed, whatever the stage.
    """
    answers = on_error.values() if isinstance(on_error, dict) else [on_error]
    return all(answer in (c.SMFIS_CONTINUE, c.SMFIS_ACCEPT) for answer in answers)
