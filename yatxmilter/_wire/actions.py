"""
What a milter sends, as the MTA's side sees it: responses, modification actions, the agreement.

`ACTIONS` is the table of the modification actions: one row for each, from which follow the checks
and the packets of the milter's side, the reading at the MTA's, what is told of an edit, the words
of ``may_edit`` and the tables of the manual. What an MTA does on an edit is in
`yatxmilter._mail.delivery`.

All that is read is named tuples, made by three readers. They are strict where both Postfix and
Sendmail are, or where only one of them copes by chance: a milter that passes here passes there.
Text is decoded as in `yatxmilter._wire.payloads`, so any byte survives the round trip.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeAlias

from yatxmilter import constants as c
from yatxmilter._wire import payloads
from yatxmilter._wire.payloads import Offer
from yatxmilter.constants import ReturnCode
from yatxmilter.errors import PeerError, ProtocolError

__all__ = [
    "ACTIONS",
    "NOT_AWAITED",
    "SUBJECTS",
    "Action",
    "AddHeader",
    "AddRecipient",
    "Agreement",
    "ChangeHeader",
    "ChangeSender",
    "DeleteRecipient",
    "Edit",
    "Edits",
    "EndOfMessage",
    "InsertHeader",
    "OfHeader",
    "Quarantine",
    "ReplaceBody",
    "Response",
    "action_of",
    "describe",
    "edit_packet",
    "read_agreement",
    "read_edit",
    "read_response",
]


class Response(NamedTuple):
    """
    A milter's answer to a command.

    :ivar code: What it means; CONTINUE where nothing was sent or no answer was promised.
    :ivar letter: The response's letter (``SMFIR_*``), 0 where none came.
    :ivar text: The whole SMTP reply of a REPLYCODE, its lines separated by CR LF.
    """

    code: ReturnCode
    letter: int = 0
    text: str | None = None

    @property
    def closes(self) -> bool:
        """
        Whether an MTA ends the SMTP connection on this response.
        """
        if self.text is not None:
            return self.text.startswith("421")
        return self.letter in (c.SMFIR_SHUTDOWN, c.SMFIR_CONN_FAIL)

    def __repr__(self) -> str:
        letter = chr(self.letter) if self.letter else ""
        return f"Response({self.code}, {letter!r}, {self.text!r})"


#: Where nothing is sent, or no answer is awaited, the message goes on.
NOT_AWAITED: Final = Response(c.SMFIS_CONTINUE)


class AddHeader(NamedTuple):
    """
    A header field for the end of the header.
    """

    name: str
    value: str


class InsertHeader(NamedTuple):
    """
    A header field for a place in the header; 0 is the very top.
    """

    index: int  # type: ignore[assignment]  # tuple.index is of no use here
    name: str
    value: str


class ChangeHeader(NamedTuple):
    """
    A new value for the index-th field of this name; an empty one deletes it.
    """

    index: int  # type: ignore[assignment]  # tuple.index is of no use here
    name: str
    value: str


class AddRecipient(NamedTuple):
    """
    One more envelope recipient, perhaps with ESMTP arguments.
    """

    address: str
    args: str | None = None


class DeleteRecipient(NamedTuple):
    """
    An envelope recipient that no longer gets the message.
    """

    address: str


class ChangeSender(NamedTuple):
    """
    Another envelope sender, perhaps with ESMTP arguments.
    """

    address: str
    args: str | None = None


class ReplaceBody(NamedTuple):
    """
    A chunk of the new body; the first takes the old body's place, the next ones follow it.
    """

    chunk: bytes


class Quarantine(NamedTuple):
    """
    The message is to be held, for this reason.
    """

    reason: str


Edit: TypeAlias = (
    AddHeader
    | InsertHeader
    | ChangeHeader
    | AddRecipient
    | DeleteRecipient
    | ChangeSender
    | ReplaceBody
    | Quarantine
)


#: The edits of the header.
OfHeader: Final = (AddHeader, InsertHeader, ChangeHeader)


class Edits(tuple[Edit, ...]):
    """
    Edits as they came over the wire.

    :ivar leading_space: Whether values of header fields come with the blank after the colon, since
        SMFIP_HDR_LEADSPC was agreed.
    """

    leading_space = False


class EndOfMessage(NamedTuple):
    """
    The answer to the end of a message.

    :ivar edits: The modification actions before the response, in the order they came in.
    :ivar progress: How many times the milter said that it was still at work.
    """

    response: Response
    edits: tuple[Edit, ...] = ()
    progress: int = 0


class Agreement(NamedTuple):
    """
    What was settled in negotiation.

    :ivar actions: The ``SMFIF_*`` actions that the milter may use.
    :ivar steps: The ``SMFIP_*`` steps that the milter asked for.
    :ivar symbol_lists: The macro names that it wants, by ``SMFIM_*`` stage.
    """

    version: int
    actions: int
    steps: int
    symbol_lists: Mapping[int, list[str]]


# No MTA takes a longer answer, and libmilter makes none.
_LONGEST: Final = c.MILTER_MAX_DATA_SIZE
# Each command is preceded by the macros that were asked for, so there must be an end to them. An
# MTA that is served by this library may send as many for one stage, unless it is told otherwise.
_MOST_NAMES: Final = 512


def _check_length(name: str, payload: bytes) -> None:
    if len(payload) > _LONGEST:
        size = f"{len(payload)} bytes, at most {_LONGEST} are taken"
        raise PeerError(f"the milter sent {name} of {size}")


# ---- the agreement


def read_agreement(offer: Offer, letter: int, payload: bytes) -> Agreement:
    """
    Read a milter's answer to an offer.

    :raises PeerError: when it is none, or claims what was not offered.
    """
    if letter != c.SMFIC_OPTNEG:
        raise PeerError(f"the milter answered OPTNEG with {chr(letter)!r}")
    _check_length("OPTNEG", payload)
    try:
        version, actions, steps = payloads.decode_offer(payload)
        lists = payloads.split_symbol_lists(payload)
    except ProtocolError as error:
        raise PeerError(str(error)) from error
    if not c.SMFI_PROT_VERSION_MIN <= version <= offer.version:
        raise PeerError(f"the milter answered version {version} to an offer of {offer.version}")
    # A word of zero has always meant the first version's set (libmilter's engine.c, st_optionneg).
    more_actions = actions & ~(offer.actions or c.SMFI_V1_ACTS)
    more_steps = steps & ~(offer.steps or c.SMFI_V1_PROT)
    if more_actions:
        names = c.action_names(more_actions)
        raise PeerError(f"the milter asks for actions that were not offered: {names}")
    if more_steps:
        names = c.step_names(more_steps)
        raise PeerError(f"the milter asks for steps that were not offered: {names}")
    symbol_lists = {stage: names.split() for stage, names in lists.items()}
    most = max(map(len, symbol_lists.values()), default=0)
    if most > _MOST_NAMES:
        raise PeerError(
            f"the milter asks for {most} macros at one stage, at most {_MOST_NAMES} are sent"
        )
    return Agreement(version, actions, steps, symbol_lists)


# ---- responses

_CODES: Final = {
    c.SMFIR_CONTINUE: c.SMFIS_CONTINUE,
    c.SMFIR_ACCEPT: c.SMFIS_ACCEPT,
    c.SMFIR_REJECT: c.SMFIS_REJECT,
    c.SMFIR_TEMPFAIL: c.SMFIS_TEMPFAIL,
    c.SMFIR_DISCARD: c.SMFIS_DISCARD,
    c.SMFIR_SKIP: c.SMFIS_SKIP,
    # No function of libmilter makes these two; Postfix answers SHUTDOWN with a 421 and hangs up.
    c.SMFIR_SHUTDOWN: c.SMFIS_TEMPFAIL,
    c.SMFIR_CONN_FAIL: c.SMFIS_TEMPFAIL,
}

# Each line but the last has a "-" behind its code, and all are of one class. Codes may differ
# within it, and neither MTA insists on the NUL at the end.
_REPLY: Final = re.compile(r"([45])[0-9][0-9](?:-[^\r\n\0]*\r\n\1[0-9][0-9])* [^\r\n\0]*")


def read_response(letter: int, payload: bytes) -> Response:
    """
    Read the response that ends a command.

    :raises PeerError: when the letter is none of a response, or the payload is malformed.
    """
    if letter == c.SMFIR_REPLYCODE:
        return _read_reply(payload)
    if letter not in _CODES:
        raise PeerError(f"the milter sent {chr(letter)!r}, which is not a response")
    if payload:
        raise PeerError(f"the milter sent {chr(letter)!r} with a payload: {payload[:80]!r}")
    return Response(_CODES[letter], letter)


def _read_reply(payload: bytes) -> Response:
    _check_length("REPLYCODE", payload)
    text = payloads.to_text(payload[:-1] if payload.endswith(b"\0") else payload)
    match = _REPLY.fullmatch(text)
    if match is None:
        raise PeerError(f"the milter sent a malformed SMTP reply: {payload[:80]!r}")
    code = c.SMFIS_REJECT if match[1] == "5" else c.SMFIS_TEMPFAIL
    return Response(code, c.SMFIR_REPLYCODE, text)


# ---- modification actions


_BODY: Final = ("body",)


@dataclass(frozen=True, slots=True, eq=False)
class Action:
    """
    One modification action, or progress.

    :ivar function: The ``smfi_*`` function that sends it; it is named here without a flag too.
    :ivar flag: The ``SMFIF_*`` flag that must have been negotiated.
    :ivar decode: How its payload is read by whoever takes what libmilter's reader takes.
    :ivar edit: What it is read as; ``None`` for progress.
    :ivar subject: What of a message it is about, as ``may_edit`` has it.
    :ivar arguments: The kinds of its arguments, in the order of the wire; those of an edit have
        the same order, and the names of the edit's fields say what they are.
    :ivar required: How many of them there must be.
    """

    letter: int
    name: str
    function: str
    flag: int
    decode: Callable[[bytes], tuple[Any, ...] | None]
    edit: type[Edit] | None = None
    subject: str = ""
    arguments: tuple[str, ...] = ()
    required: int = 0
    # Worked out once: how many bytes stand before the strings, and whether there are none.
    _start: int = field(init=False)
    _raw: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_start", 4 if "index" in self.arguments else 0)
        object.__setattr__(self, "_raw", self.arguments == _BODY)

    def encode(self, *values: Any) -> bytes:
        """
        Write the payload.

        :param values: One for each of `arguments`: bytes, an index, ``None`` for what is left out.
        """
        if self._raw:
            chunk: bytes = values[0]
            return chunk
        if self._start:
            return payloads.encode_indexed_header(*values)
        return payloads.encode_strings(*values if values[-1] is not None else values[:-1])

    def read(self, payload: bytes) -> Edit:
        """
        Read the payload as an MTA does.

        :raises PeerError: when it is malformed.
        """
        if self._raw:
            return ReplaceBody(payload)
        start = self._start
        strings = payload[start:] if start else payload
        count = strings.count(b"\0") + (start > 0)
        if not strings.endswith(b"\0") or not self.required <= count <= len(self.arguments):
            raise PeerError(f"the milter sent a malformed {self.name}: {payload[:80]!r}")
        values: list[Any] = payloads.to_text(strings[:-1]).split("\0")
        if start:
            values.insert(0, int.from_bytes(payload[:4], "big"))
        assert self.edit is not None
        return self.edit(*values)


_FIELD: Final = ("name", "value")
# An empty value deletes the field.
_CHANGE: Final = ("index", "name", "value or nothing")
_PATH: Final = ("address", "parameters")

# fmt: off
_ROWS: Final = (
    Action(c.SMFIR_ADDHEADER, "ADDHEADER", "smfi_addheader", c.SMFIF_ADDHDRS,
           payloads.decode_header, AddHeader, "headers", _FIELD, 2),
    Action(c.SMFIR_INSHEADER, "INSHEADER", "smfi_insheader", c.SMFIF_ADDHDRS,
           payloads.decode_indexed_header, InsertHeader, "headers", ("index", *_FIELD), 3),
    Action(c.SMFIR_CHGHEADER, "CHGHEADER", "smfi_chgheader", c.SMFIF_CHGHDRS,
           payloads.decode_indexed_header, ChangeHeader, "headers", _CHANGE, 3),
    Action(c.SMFIR_REPLBODY, "REPLBODY", "smfi_replacebody", c.SMFIF_CHGBODY,
           payloads.decode_raw, ReplaceBody, "body", _BODY, 1),
    Action(c.SMFIR_ADDRCPT, "ADDRCPT", "smfi_addrcpt", c.SMFIF_ADDRCPT,
           payloads.decode_strings, AddRecipient, "recipients", ("address",), 1),
    Action(c.SMFIR_ADDRCPT_PAR, "ADDRCPT_PAR", "smfi_addrcpt_par", c.SMFIF_ADDRCPT_PAR,
           payloads.decode_strings, AddRecipient, "recipients", _PATH, 1),
    Action(c.SMFIR_DELRCPT, "DELRCPT", "smfi_delrcpt", c.SMFIF_DELRCPT,
           payloads.decode_strings, DeleteRecipient, "recipients", ("address",), 1),
    Action(c.SMFIR_CHGFROM, "CHGFROM", "smfi_chgfrom", c.SMFIF_CHGFROM,
           payloads.decode_strings, ChangeSender, "sender", _PATH, 1),
    Action(c.SMFIR_QUARANTINE, "QUARANTINE", "smfi_quarantine", c.SMFIF_QUARANTINE,
           payloads.decode_string, Quarantine, "quarantine", ("reason",), 1),
    Action(c.SMFIR_PROGRESS, "PROGRESS", "smfi_progress", c.SMFIF_NONE, payloads.decode_nothing),
)
# fmt: on

#: By letter.
ACTIONS: Final[Mapping[int, Action]] = {action.letter: action for action in _ROWS}

_OF_EDIT: Final[Mapping[type[Edit], tuple[Action, ...]]] = {
    edit: tuple(action for action in _ROWS if action.edit is edit)
    for edit in dict.fromkeys(action.edit for action in _ROWS)
    if edit is not None
}


def _flags(subject: str) -> int:
    flags = 0
    for action in _ROWS:
        if action.subject == subject:
            flags |= action.flag
    return flags


#: What of a message can be edited, and the ``SMFIF_*`` flags that it takes.
SUBJECTS: Final[Mapping[str, int]] = {
    subject: _flags(subject)
    for subject in ("headers", "body", "sender", "recipients", "quarantine")
}


def action_of(edit: Edit, agreed: int = c.SMFI_CURR_ACTS) -> Action:
    """
    Give the action that makes an edit.

    :param agreed: The ``SMFIF_*`` actions of which one is preferred, where there are two.
    """
    rows = _OF_EDIT[type(edit)]
    for action in rows:
        if action.flag & agreed and all(value is None for value in edit[len(action.arguments) :]):
            return action
    return rows[-1]


def edit_packet(edit: Edit) -> bytes:
    """
    Write an edit as a packet, as it is read by `read_edit`.
    """
    action = action_of(edit)
    values = [payloads.from_text(value) if isinstance(value, str) else value for value in edit]
    return payloads.encode_packet(action.letter, action.encode(*values[: len(action.arguments)]))


def read_edit(letter: int, payload: bytes, agreed: int) -> Edit:
    """
    Read a modification action.

    :param letter: One of ``ACTIONS`` other than PROGRESS.
    :param agreed: The ``SMFIF_*`` actions of the agreement.
    :raises PeerError: when the action was not agreed, or the payload is malformed.
    """
    action = ACTIONS[letter]
    if not action.flag & agreed:
        flag = c.action_names(action.flag)
        raise PeerError(f"the milter sent {action.name}, but {flag} was not agreed")
    return action.read(payload)


# How many characters of a value are told.
_SHOWN: Final = 200


def describe(edit: Edit) -> str:
    """
    Write an edit as the call of libmilter's that makes it; values of any length are safe in logs.
    """
    action = action_of(edit)
    values = list(edit[: len(action.arguments)])
    if action.letter == c.SMFIR_CHGHEADER:
        # The function takes the name first.
        values[:2] = reversed(values[:2])
    told = [_told(value) for value in values if value is not None]
    return f"{action.function}({', '.join(told)})"


def _told(value: object) -> str:
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    text = ascii(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"
