"""
What one milter holds on one connection: libmilter's ``ctx``.

The ``smfi_*`` functions live here, `Milter`'s methods of the same names lead to them. Edits are
kept as finished packets in `Context.outbox` until the end of the message is answered. A function
that cannot do what it is asked raises `UsageError` where libmilter answers ``MI_FAILURE``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from threading import get_ident
from typing import Final

from yatxmilter import constants as c
from yatxmilter._wire.commands import ACTIONS
from yatxmilter._wire.macros import MacroStore
from yatxmilter._wire.payloads import (
    encode_indexed_header,
    encode_packet,
    encode_strings,
    text_argument,
    to_text,
)
from yatxmilter._wire.replies import format_multiline_reply, format_reply
from yatxmilter.constants import ReturnCode, action_names
from yatxmilter.errors import NotNegotiated, ValueNotSendable, WrongStage

__all__ = ["Context"]

Text = str | bytes

_ENDS_STRING: Final = re.compile(rb"[\r\n\0]")
# In a header value a line feed folds the line: white space must follow.
_BREAKS_VALUE: Final = re.compile(rb"[\r\0]|\n(?![ \t])")
_MAX_INDEX: Final = 0x7FFFFFFF


class Context:
    """
    One milter's handle on its connection.

    :ivar actions: The ``SMFIF_*`` flags that this milter asked for and may use.
    :ivar editing: Whether its ``xxfi_eom`` is running, the only time for edits.
    :ivar negotiating: Whether its ``xxfi_negotiate`` is running.
    :ivar adds_space: Whether header values need a leading blank that the milter does not write,
        because another milter made the MTA leave blanks alone.
    :ivar outbox: The edits made, as packets, in order.
    :ivar bodies: How many of them replace the body.
    :ivar reply: The text of ``smfi_setreply`` until it is used.
    """

    __slots__ = (
        "_macros",
        "_progress",
        "_thread",
        "actions",
        "adds_space",
        "bodies",
        "editing",
        "max_payload",
        "negotiating",
        "outbox",
        "reply",
        "symbol_lists",
    )

    def __init__(self, macros: MacroStore, progress: Callable[[], None]) -> None:
        self._macros = macros
        self._progress = progress
        # The reactor's: connections are built there.
        self._thread = get_ident()
        self.actions = 0
        self.editing = False
        self.negotiating = False
        self.adds_space = False
        self.max_payload = c.MILTER_MAX_DATA_SIZE
        self.outbox: list[bytes] = []
        self.bodies = 0
        self.reply: bytes | None = None
        self.symbol_lists: dict[int, bytes] = {}

    # ---- for the library

    def claim(self) -> None:
        """
        Be used by this thread from now on.

        For callbacks that run in threads while the conversation waits for them
        (`yatxmilter.pymilter`): nobody else uses it in the meantime.
        """
        self._thread = get_ident()

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
        edits = self.outbox
        self.outbox = []
        self.bodies = 0
        return edits

    def end_message(self) -> None:
        """
        Forget what belongs to the message that has ended.
        """
        self.editing = False
        self.reply = None
        if self.outbox:
            self.take_edits()

    def show_macros(self, macros: MacroStore) -> None:
        """
        Look macros up there from now on.
        """
        self._macros = macros

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
        return self._macros.get(to_text(text_argument("macro name", symname)))

    def setreply(self, rcode: Text, xcode: Text | None, message: Text | None) -> None:
        """
        ``smfi_setreply``.
        """
        self.reply = format_reply(rcode, xcode, message)

    def setmlreply(self, rcode: Text, xcode: Text | None, *lines: Text) -> None:
        """
        ``smfi_setmlreply``.
        """
        self.reply = format_multiline_reply(rcode, xcode, *lines)

    def setsymlist(self, stage: int, macros: Text) -> None:
        """
        ``smfi_setsymlist``.
        """
        if not self.negotiating:
            raise WrongStage("smfi_setsymlist() works in xxfi_negotiate only")
        if not isinstance(stage, int) or not c.SMFIM_FIRST <= stage <= c.SMFIM_LAST:
            raise ValueNotSendable(f"stage {stage!r} is not one of SMFIM_CONNECT ... SMFIM_EOH")
        if stage in self.symbol_lists:
            raise ValueNotSendable(f"{c.STAGE_NAMES[stage]} has a symbol list already")
        self.symbol_lists[int(stage)] = self._string("symbol list", macros, empty=True)

    def addheader(self, headerf: Text, headerv: Text) -> None:
        """
        ``smfi_addheader``.
        """
        payload = encode_strings(self._string("header name", headerf), self._value(headerv))
        self._edit(c.SMFIR_ADDHEADER, payload)

    def insheader(self, hdridx: int, headerf: Text, headerv: Text) -> None:
        """
        ``smfi_insheader``.
        """
        name = self._string("header name", headerf)
        payload = encode_indexed_header(_index(hdridx), name, self._value(headerv))
        self._edit(c.SMFIR_INSHEADER, payload)

    def chgheader(self, headerf: Text, hdridx: int, headerv: Text | None) -> None:
        """
        ``smfi_chgheader``.
        """
        name = self._string("header name", headerf)
        # Nothing, not even the blank that others need, stands for deletion.
        value = b""
        if headerv is not None and text_argument("header value", headerv):
            value = self._value(headerv)
        self._edit(c.SMFIR_CHGHEADER, encode_indexed_header(_index(hdridx), name, value))

    def chgfrom(self, mail: Text, args: Text | None) -> None:
        """
        ``smfi_chgfrom``.
        """
        self._edit(c.SMFIR_CHGFROM, self._address(mail, args))

    def addrcpt(self, rcpt: Text) -> None:
        """
        ``smfi_addrcpt``.
        """
        self._edit(c.SMFIR_ADDRCPT, self._address(rcpt, None))

    def addrcpt_par(self, rcpt: Text, args: Text | None) -> None:
        """
        ``smfi_addrcpt_par``.
        """
        self._edit(c.SMFIR_ADDRCPT_PAR, self._address(rcpt, args))

    def delrcpt(self, rcpt: Text) -> None:
        """
        ``smfi_delrcpt``.
        """
        self._edit(c.SMFIR_DELRCPT, self._address(rcpt, None))

    def quarantine(self, reason: Text) -> None:
        """
        ``smfi_quarantine``.
        """
        self._edit(c.SMFIR_QUARANTINE, encode_strings(self._string("reason", reason)))

    def replacebody(self, bodyp: Text | bytearray | memoryview) -> None:
        """
        ``smfi_replacebody``.
        """
        if not isinstance(bodyp, (str, bytes, bytearray, memoryview)):
            raise ValueNotSendable(f"body is {type(bodyp).__name__}, not bytes")
        body = text_argument("body", bodyp) if isinstance(bodyp, str) else bytes(bodyp)
        size = c.MILTER_CHUNK_SIZE
        for start in range(0, len(body) or 1, size):
            self._edit(c.SMFIR_REPLBODY, body[start : start + size])
        self.bodies += 1

    def progress(self, *, any_stage: bool = False) -> None:
        """
        ``smfi_progress``.
        """
        if not any_stage:
            self._check_stage("smfi_progress")
        self._progress()

    # ---- checks

    def _edit(self, letter: int, payload: bytes) -> None:
        action = ACTIONS[letter]
        self._check_stage(action.function)
        if not self.actions & action.flag:
            raise NotNegotiated(
                f"{action.function}() needs {action_names(action.flag)}, which this milter did not"
                f" negotiate (it has {action_names(self.actions)})"
            )
        if len(payload) > self.max_payload:
            raise ValueNotSendable(
                f"{action.function}() of {len(payload)} bytes; a packet takes {self.max_payload}"
            )
        self.outbox.append(encode_packet(letter, payload))

    def _check_stage(self, function: str) -> None:
        if not self.editing:
            raise WrongStage(f"{function}() works in xxfi_eom only, until that has answered")

    def _string(self, what: str, value: Text, *, empty: bool = False) -> bytes:
        data = text_argument(what, value)
        if not data and not empty:
            raise ValueNotSendable(f"{what} is empty")
        if _ENDS_STRING.search(data):
            raise ValueNotSendable(f"{what} {value!r} has a CR, LF or NUL in it")
        return data

    def _value(self, value: Text) -> bytes:
        data = text_argument("header value", value)
        if _BREAKS_VALUE.search(data):
            raise ValueNotSendable(
                f"header value {value!r} has a CR or NUL in it, or an LF that no blank or tab"
                " follows (fold with LF and white space)"
            )
        return b" " + data if self.adds_space else data

    def _address(self, address: Text, args: Text | None) -> bytes:
        strings = [self._string("address", address)]
        if args is not None:
            strings.append(self._string("ESMTP arguments", args, empty=True))
        return encode_strings(*strings)


def _index(index: int) -> int:
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index <= _MAX_INDEX:
        raise ValueNotSendable(f"header index {index!r} is not a number from 0 to {_MAX_INDEX}")
    return index
