"""
What one milter holds on one connection: libmilter's ``ctx``.

The ``smfi_*`` functions live here, `Milter`'s methods of the same names lead to them. Edits are
kept as finished packets in `Context.outbox` until the end of the message is answered. A function
that cannot do what it is asked raises `UsageError` where libmilter answers ``MI_FAILURE``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from threading import get_ident
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from yatxmilter import constants as c
from yatxmilter._describing import described, not_awaited, type_name
from yatxmilter._wire.actions import ACTIONS, Action, Edit, ReplaceBody, action_of
from yatxmilter._wire.macros import MacroStore
from yatxmilter._wire.payloads import encode_packet, text_argument, to_text
from yatxmilter._wire.replies import format_multiline_reply, format_reply
from yatxmilter.constants import ReturnCode, action_names
from yatxmilter.errors import (
    LimitExceeded,
    NotNegotiated,
    ValueNotSendable,
    WrongStage,
    WrongThread,
)

if TYPE_CHECKING:
    from yatxmilter._engine.session import Message, Session

__all__ = ["Body", "Context"]

Text = str | bytes
#: What a new body may be given as.
Body = str | bytes | bytearray | memoryview | Iterable[str | bytes | bytearray | memoryview]

_ENDS_STRING: Final = re.compile(rb"[\r\n\0]")
# In a header value a line feed folds the line, and white space follows: else it would begin
# another field, or the body.
_LINE_END: Final = re.compile(rb"\n(?![ \t])")
# As numbers: to look for a piece of bytes in bytes costs ten times as much.
_LF, _CR, _NUL = b"\n\r\0"
_MAX_INDEX: Final = 0x7FFFFFFF
_FIELD_NAME: Final = re.compile(rb"[!-9;-~]+")


# libmilter's functions that edit.
_ADDHEADER: Final = ACTIONS[c.SMFIR_ADDHEADER]
_INSHEADER: Final = ACTIONS[c.SMFIR_INSHEADER]
_CHGHEADER: Final = ACTIONS[c.SMFIR_CHGHEADER]
_CHGFROM: Final = ACTIONS[c.SMFIR_CHGFROM]
_ADDRCPT: Final = ACTIONS[c.SMFIR_ADDRCPT]
_ADDRCPT_PAR: Final = ACTIONS[c.SMFIR_ADDRCPT_PAR]
_DELRCPT: Final = ACTIONS[c.SMFIR_DELRCPT]
_QUARANTINE: Final = ACTIONS[c.SMFIR_QUARANTINE]
_REPLBODY: Final = ACTIONS[c.SMFIR_REPLBODY]


class _Edits:
    """
    The edits of one message.

    :ivar packets: They, in order.
    :ivar bodies: How many of them replace the body.
    :ivar size: The bytes of the packets, the body aside; ``body_size``: those of the new body.
    """

    __slots__ = ("bodies", "body_size", "packets", "size")

    def __init__(self) -> None:
        self.packets: list[bytes] = []
        self.bodies = self.size = self.body_size = 0


class Context:
    """
    One milter's handle on its connection.

    :ivar actions: The ``SMFIF_*`` flags that this milter asked for and may use.
    :ivar edits: The edits made of this message; ``None`` while there are none.
    :ivar editing: Whether its ``xxfi_eom`` is running, the only time for edits.
    :ivar negotiating: Whether its ``xxfi_negotiate`` is running.
    :ivar adds_space: Whether header values need a leading blank that the milter does not write,
        because another milter made the MTA leave blanks alone.
    :ivar leading_space: Whether header values come with the white space behind the colon, and go
        with it, because the milter asked for it.
    :ivar limits: How much of one message may be kept.
    :ivar reply: The text of ``smfi_setreply`` until it is used.
    :ivar mute: Whether a callback is running that answers nothing, such as ``xxfi_abort``: a text
        that it sets is gone at once.
    :ivar early: Whether a callback of the connection's is running, connect or HELO, though a
        message is open: a condition can have them called late.
    """

    __slots__ = (
        "_for_connection",
        "_hop",
        "_lent",
        "_macros",
        "_owner",
        "_session",
        "_state",
        "_state_of",
        "actions",
        "adds_space",
        "early",
        "editing",
        "edits",
        "leading_space",
        "limits",
        "max_payload",
        "mute",
        "negotiating",
        "reply",
        "symbol_lists",
    )

    def __init__(self, session: Session) -> None:
        self._macros = session.macros
        self._session = session
        # Whose it is. The reactor's: conversations begin there.
        self._owner = session.thread
        self._hop: Callable[[Callable[[], None]], None] | None = None
        # The states of the messages for which threads have it, also where they are late.
        self._lent: dict[int, SimpleNamespace] | None = None
        # Whether the reply's text was set outside a message.
        self._for_connection = False
        self._state: SimpleNamespace | None = None
        self._state_of: Message | None = None
        self.mute = False
        self.early = False
        self.actions = 0
        self.editing = False
        self.negotiating = False
        self.adds_space = False
        self.leading_space = False
        self.max_payload = c.MILTER_MAX_DATA_SIZE
        self.limits = session.limits
        self.edits: _Edits | None = None
        self.reply: bytes | None = None
        self.symbol_lists: dict[int, bytes] = {}

    # ---- for the library

    def lend(self, hop: Callable[[Callable[[], None]], None]) -> None:
        """
        Be used by this thread until the reactor's claims it back.

        :param hop: Has something done in the reactor's thread.
        """
        thread = get_ident()
        # What it does too late must find what belongs to its own message, not to the next one.
        state = self.message_state
        if self._lent is None:
            self._lent = {}
        self._lent[thread] = state
        if self.editing:
            self._made_edits()
        self._hop = hop
        self._owner = thread

    def give_back(self) -> None:
        """
        Take note that the thread that it was lent to, this one, has no use for it any more.
        """
        assert self._lent is not None
        self._lent.pop(get_ident(), None)

    def claim(self) -> None:
        """
        Be used by this thread from now on.

        For callbacks that run in threads while the conversation waits for them
        (`yatxmilter.pymilter`): nobody else uses it in the meantime.
        """
        # In this order: a thread that finds no way to hop is refused by the check that follows.
        self._owner = get_ident()
        self._hop = None

    def take_reply(self, code: ReturnCode) -> bytes | None:
        """
        Give up the stored reply text, if it is of the class of ``code`` (5xx reject, 4xx tempfail).
        """
        reply = self.reply
        if reply is None:
            return None
        wanted = {c.SMFIS_REJECT: b"5", c.SMFIS_TEMPFAIL: b"4"}.get(code)
        if wanted is None or not reply.startswith(wanted):
            return None
        self.reply = None
        return reply

    def take_edits(self) -> list[bytes]:
        """
        Give up the edits made.
        """
        edits = self.edits
        if edits is None:
            return []
        self.edits = None
        if edits.bodies:
            # Postfix refuses a new body that other edits stand between.
            edits.packets.sort(key=lambda packet: packet[4] == c.SMFIR_REPLBODY)
        return edits.packets

    def drop_body(self) -> None:
        """
        Forget the edits made that replace the body.
        """
        edits = self.edits
        if edits is not None and edits.bodies:
            edits.packets = [one for one in edits.packets if one[4] != c.SMFIR_REPLBODY]
            edits.bodies = edits.body_size = 0

    @property
    def outbox(self) -> list[bytes]:
        """
        The edits made, as packets, in order.
        """
        return [] if self.edits is None else self.edits.packets

    @property
    def bodies(self) -> int:
        """
        How many of them replace the body.
        """
        return 0 if self.edits is None else self.edits.bodies

    def answer_with(self, reply: bytes | None) -> None:
        """
        Have this text go with the answer that is being given, and no other.
        """
        self.reply = reply
        self._for_connection = False

    def end_message(self) -> None:
        """
        Forget what belongs to the message that has ended.
        """
        self.editing = False
        self.edits = None
        if self.reply is not None and not self._for_connection:
            self.reply = None

    def end_connection(self) -> None:
        """
        Forget what belongs to the SMTP connection that has ended.
        """
        self.reply = None

    def show_macros(self, macros: MacroStore) -> None:
        """
        Look macros up there from now on.
        """
        self._macros = macros

    @property
    def message_state(self) -> SimpleNamespace:
        """
        What the milter keeps of its own for a message; a new one where another has begun.
        """
        if self._lent:
            lent = self._lent.get(get_ident())
            if lent is not None:
                return lent
        state = self._state
        message = None if self.early else self._session.message
        if state is None or (message is not None and message is not self._state_of):
            state = self._state = SimpleNamespace()
            self._state_of = message
        return state

    @property
    def macros(self) -> MacroStore:
        """
        The macros as they are now, for a callback that runs later.
        """
        return self._macros.copy()

    def macros_of(self, letter: int) -> dict[str, str] | None:
        """
        Give the macros that came with a stage, to pass them on; ``None`` when none came.

        :param letter: The stage's command, ``SMFIC_*``.
        """
        return self._macros.of_stage(letter)

    # ---- libmilter's functions

    def getsymval(self, symname: Text) -> str | None:
        """
        ``smfi_getsymval``.
        """
        self._check_thread("smfi_getsymval")
        return self._macros.get(to_text(text_argument("macro name", symname)))

    def setreply(self, rcode: Text, xcode: Text | None, message: Text | None) -> None:
        """
        ``smfi_setreply``.
        """
        self._set_reply("smfi_setreply", format_reply(rcode, xcode, message))

    def setmlreply(self, rcode: Text, xcode: Text | None, *lines: Text) -> None:
        """
        ``smfi_setmlreply``.
        """
        self._set_reply("smfi_setmlreply", format_multiline_reply(rcode, xcode, *lines))

    def _set_reply(self, function: str, reply: bytes) -> None:
        # Last, for the sake of a thread that is late by a moment.
        self._check_thread(function)
        if not self.mute:
            self.reply = reply
            self._for_connection = self.early or self._session.message is None

    def setsymlist(self, stage: int, macros: Text) -> None:
        """
        ``smfi_setsymlist``.
        """
        self._check_thread("smfi_setsymlist")
        if not self.negotiating:
            raise WrongStage("smfi_setsymlist() works in xxfi_negotiate only")
        if not isinstance(stage, int) or not c.SMFIM_FIRST <= stage <= c.SMFIM_LAST:
            raise ValueNotSendable(
                f"stage {described(stage)} is not one of SMFIM_CONNECT ... SMFIM_EOH"
            )
        if stage in self.symbol_lists:
            raise ValueNotSendable(f"{c.STAGE_NAMES[stage]} has a symbol list already")
        self.symbol_lists[int(stage)] = self._string("symbol list", macros, empty=True)

    def addheader(self, headerf: Text, headerv: Text) -> None:
        """
        ``smfi_addheader``.
        """
        self._edit(_ADDHEADER, headerf, headerv)

    def insheader(self, hdridx: int, headerf: Text, headerv: Text) -> None:
        """
        ``smfi_insheader``.
        """
        self._edit(_INSHEADER, hdridx, headerf, headerv)

    def chgheader(self, headerf: Text, hdridx: int, headerv: Text | None) -> None:
        """
        ``smfi_chgheader``.
        """
        self._edit(_CHGHEADER, hdridx, headerf, headerv)

    def chgfrom(self, mail: Text, args: Text | None) -> None:
        """
        ``smfi_chgfrom``.
        """
        self._edit(_CHGFROM, mail, args)

    def addrcpt(self, rcpt: Text) -> None:
        """
        ``smfi_addrcpt``.
        """
        self._edit(_ADDRCPT, rcpt)

    def addrcpt_par(self, rcpt: Text, args: Text | None) -> None:
        """
        ``smfi_addrcpt_par``.
        """
        self._edit(_ADDRCPT_PAR, rcpt, args)

    def delrcpt(self, rcpt: Text) -> None:
        """
        ``smfi_delrcpt``.
        """
        self._edit(_DELRCPT, rcpt)

    def quarantine(self, reason: Text) -> None:
        """
        ``smfi_quarantine``.
        """
        self._edit(_QUARANTINE, reason)

    def replacebody(self, bodyp: Body) -> None:
        """
        ``smfi_replacebody``.
        """
        action = _REPLBODY
        edits = self.edits
        self._check_action(action)
        limit = self.limits.max_body
        before = 0 if edits is None else edits.body_size
        packets: list[bytes] = []
        size = 0
        for piece in _regular(_pieces(bodyp)):
            size += len(piece)
            if before + size > limit:
                raise LimitExceeded(
                    f"smfi_replacebody() of {size} bytes or more after {before}:"
                    f" max_body, an option of the server, is {limit}"
                )
            packets.append(encode_packet(action.letter, piece))
        # Reading may have taken long: for a thread the message may be over, and another one begun.
        self._check_action(action)
        if edits is None:
            edits = self._made_edits()
        # All of it, or nothing.
        edits.packets += packets
        edits.bodies += 1
        edits.body_size += size

    def progress(self, *, any_stage: bool = False) -> None:
        """
        ``smfi_progress``.
        """
        hop = self._hop
        if any_stage:
            self._check_thread("smfi_progress")
        else:
            self._check_stage("smfi_progress")
        if hop is None:
            self._session.send_progress()
        else:
            hop(self._session.send_progress)

    def make_edit(self, edit: Edit) -> None:
        """
        Make an edit, by the function of libmilter's that is for it.

        :raises UsageError: as that function does.
        """
        if isinstance(edit, ReplaceBody):
            self.replacebody(edit.chunk)
            return
        action = action_of(edit, self.actions)
        self._edit(action, *edit[: len(action.arguments)])

    # ---- checks

    def _edit(self, action: Action, *values: Any) -> None:
        """
        Make an edit other than one of the body.

        :param values: One for each of the action's arguments.
        """
        checked = []
        for check, value in zip(_CHECKS[action.letter], values):  # noqa: B905 (it takes its time)
            checked.append(check(self, value))
        self._send(action, action.encode(*checked))

    def _check_action(self, action: Action) -> None:
        self._check_stage(action.function)
        if not self.actions & action.flag:
            raise NotNegotiated(
                f"{action.function}() needs {action_names(action.flag)}, which this milter did not"
                f" negotiate (it has {action_names(self.actions)})"
            )

    def _send(self, action: Action, payload: bytes) -> None:
        # Before the check: a thread that is late after it has the edits of its own message.
        edits = self.edits
        self._check_action(action)
        if len(payload) > self.max_payload:
            raise ValueNotSendable(
                f"{action.function}() of {len(payload)} bytes; a packet takes {self.max_payload}"
            )
        packet = encode_packet(action.letter, payload)
        if edits is None:
            edits = self._made_edits()
        size = edits.size + len(packet)
        if size > self.limits.max_edit_bytes:
            raise LimitExceeded(
                f"{action.function}(): the edits of this message have {size} bytes:"
                f" max_edit_bytes, an option of the server, is {self.limits.max_edit_bytes}"
            )
        edits.size = size
        edits.packets.append(packet)

    def _made_edits(self) -> _Edits:
        edits = self.edits
        if edits is None:
            edits = self.edits = _Edits()
        return edits

    def _check_thread(self, function: str) -> None:
        if get_ident() != self._owner:
            raise WrongThread(
                f"{function}() was called in another thread than the connection is served in; call"
                " it by reactor.callFromThread(), or blockingCallFromThread() for its result"
            )

    def _check_stage(self, function: str) -> None:
        self._check_thread(function)
        if not self.editing:
            raise WrongStage(f"{function}() works in xxfi_eom only, until that has answered")

    def _string(self, what: str, value: Text, *, empty: bool = False) -> bytes:
        data = text_argument(what, value)
        if not data and not empty:
            raise ValueNotSendable(f"{what} is empty")
        if _ENDS_STRING.search(data):
            raise ValueNotSendable(f"{what} {described(value)} has a CR, LF or NUL in it")
        return data

    def _value(self, value: Text) -> bytes:
        data = text_argument("header value", value)
        folded = _LF in data
        if folded:
            data = data.replace(b"\r\n", b"\n")
        if _CR in data or _NUL in data:
            raise ValueNotSendable(
                f"header value {described(value)} has a NUL in it, or a CR that no LF follows"
            )
        if folded:
            data = _LINE_END.sub(b"\n\t", data)
        return b" " + data if self.adds_space else data

    def _new_value(self, value: Text | None) -> bytes:
        # Nothing, not even the blank that others need, stands for deletion.
        if value is None or not text_argument("header value", value):
            return b""
        return self._value(value)

    def _address(self, address: Text) -> bytes:
        return self._string("address", address)

    def _parameters(self, args: Text | None) -> bytes | None:
        return None if args is None else self._string("ESMTP arguments", args, empty=True)

    def _reason(self, reason: Text) -> bytes:
        return self._string("reason", reason)

    def _header_name(self, name: Text) -> bytes:
        return _usual_name(name) if type(name) is str and len(name) < 80 else _name(name)

    def _index(self, index: int) -> int:
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index <= _MAX_INDEX:
            raise ValueNotSendable(
                f"header index {described(index)} is not a number from 0 to {_MAX_INDEX}"
            )
        return index


def _pieces(body: object) -> Iterator[bytes]:
    """
    Read a new body, whatever it was given as, piece by piece.

    :raises ValueNotSendable: if it is not a body.
    """
    if isinstance(body, (str, bytes, bytearray, memoryview)):
        yield _piece("body", body)
        return
    read = getattr(body, "read", None)
    if callable(read):
        # A file; its size is not known before its end.
        pieces: Iterable[object] = iter(lambda: read(c.MILTER_CHUNK_SIZE) or b"", b"")
    elif isinstance(body, Iterable) and not isinstance(body, Mapping):
        pieces = body
    else:
        raise ValueNotSendable(
            f"body is {type_name(body)}, not bytes, a text, a file or an iterable of pieces"
            f"{not_awaited(body)}"
        )
    for number, piece in enumerate(pieces):
        yield _piece(f"piece {number} of the body", piece)


def _piece(what: str, piece: object) -> bytes:
    if isinstance(piece, str):
        return text_argument(what, piece)
    if not isinstance(piece, (bytes, bytearray, memoryview)):
        raise ValueNotSendable(f"{what} is {described(piece)}, not bytes or a text")
    return bytes(piece)


def _regular(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """
    Cut pieces of any size into such as libmilter sends: full ones, and the rest; one at least.
    """
    size = c.MILTER_CHUNK_SIZE
    waiting: list[bytes] = []
    length = 0
    began = False
    for piece in pieces:
        waiting.append(piece)
        length += len(piece)
        if length >= size:
            whole = b"".join(waiting)
            end = length - length % size
            yield from (whole[start : start + size] for start in range(0, end, size))
            waiting, length = [whole[end:]], length - end
            began = True
    rest = b"".join(waiting)
    if rest or not began:
        yield rest


def _name(name: Text) -> bytes:
    data = text_argument("header name", name)
    if not data:
        raise ValueNotSendable("header name is empty")
    # RFC 5322, 2.2: anything else would make another field of it, or none.
    if not _FIELD_NAME.fullmatch(data):
        raise ValueNotSendable(
            f"header name {described(name)} is not printable ASCII without blanks and colons"
        )
    return data


# A milter adds the same fields to each message.
_usual_name: Final = lru_cache(maxsize=256)(_name)


_Check = Callable[[Context, Any], bytes | int | None]

# How an argument of an action is checked and encoded, by its kind.
_CHECKS_OF_KINDS: Final[Mapping[str, _Check]] = {
    "index": Context._index,
    "name": Context._header_name,
    "value": Context._value,
    "value or nothing": Context._new_value,
    "address": Context._address,
    "parameters": Context._parameters,
    "reason": Context._reason,
}

# The same for the arguments of each action, by its letter. Bodies have a function of their own.
_CHECKS: Final[Mapping[int, tuple[_Check, ...]]] = {
    action.letter: tuple(_CHECKS_OF_KINDS[kind] for kind in action.arguments)
    for action in ACTIONS.values()
    if action.subject != "body"
}
