"""
What unit tests of programs for pymilter look at afterwards: the edits and the reply of a message.
"""

from __future__ import annotations

import email
from collections.abc import Iterable
from io import BytesIO
from typing import Any, Final

from yatxmilter.pymilter._names import NUMBERS

__all__ = ["Recorder", "parts_of", "pieces"]

_STAGES: Final = 7
_MOST_SYMBOLS: Final = 5
#: What is read of a body at once.
PIECE: Final = 8192


class Recorder:
    """
    The record of one connection and its last message, and the functions that write it.

    :ivar _reply: The arguments of ``setreply``.
    :ivar _body: At the end of a message, and after it, a file: the message, or its new body.
    """

    _priv: Any

    def _begin(self) -> None:
        self._macros: dict[str, str] = {}
        self._symlist: list[set[str] | None] = [None] * _STAGES
        self._stage: int | None = None
        self._sender: str | None = None
        self._envfromchanged = False
        self._addrcpt: list[Any] = []
        self._delrcpt: list[str] = []
        self._quarantined: str | None = None
        self._new_message()

    def _new_message(self) -> None:
        self._body: BytesIO | None = None
        self._bodyreplaced = False
        self._headerschanged = False
        self._reply: tuple[Any, ...] | None = None
        self._msg: Any = None

    def _finish_body(self, header: bytes, body: bytes) -> None:
        """
        Leave the message behind, with its new body if it has one.
        """
        file = self._body
        new = file.getvalue() if file is not None and self._bodyreplaced else body
        self._body = BytesIO(header + b"\n\n" + new)

    def _in_eom(self, function: str) -> BytesIO:
        if self._body is None or self._stage != NUMBERS["M_EOM"]:
            raise OSError(f"{function} not called from eom()")
        return self._body

    def getsymval(self, name: str) -> str | None:
        """
        Look a macro up; one that is not in the list asked for at this stage is not there.
        """
        if self._stage is not None and self._stage >= 0:
            asked = self._symlist[self._stage]
            if asked is not None and name not in asked:
                return None
        return self._macros.get(name)

    def setreply(self, rcode: str, xcode: str | None, *lines: str) -> Any:
        """
        Record the reply.
        """
        self._reply = (rcode, xcode, *lines)

    def setsymlist(self, stage: int, *macros: str | bytes) -> None:
        """
        Record which macros are asked for.
        """
        if self._stage != -1:
            raise RuntimeError("setsymlist may only be called from negotiate")
        texts = [one.decode() if isinstance(one, bytes) else one for one in macros]
        names = [name for text in texts for name in text.split()]
        if len(names) > _MOST_SYMBOLS:
            raise ValueError(f"setsymlist limited to {_MOST_SYMBOLS} macros by MTA")
        if self._symlist[stage] is not None:
            raise ValueError(f"setsymlist already called for stage: {stage}")
        if not names:
            raise ValueError(f"setsymlist with empty list for stage: {stage}")
        self._symlist[stage] = set(names)

    def addheader(self, field: str, value: str, idx: int = -1) -> Any:
        """
        Record a header field.
        """
        self._in_eom("addheader")
        self._change(field, value)

    def chgheader(self, field: str, idx: int, value: str | None) -> Any:
        """
        Record a change of a header field, or that it is deleted.
        """
        self._in_eom("chgheader")
        self._change(field, value)

    def _change(self, field: str, value: str | None) -> None:
        if value:
            self._msg[field] = value
        else:
            del self._msg[field]
        self._headerschanged = True

    def addrcpt(self, rcpt: str, params: str | None = None) -> Any:
        """
        Record a recipient.
        """
        self._in_eom("addrcpt")
        self._addrcpt.append(self._recipient(rcpt, params))

    def _recipient(self, rcpt: str, params: str | None) -> Any:
        return rcpt

    def delrcpt(self, rcpt: str) -> Any:
        """
        Record that a recipient is removed.
        """
        self._in_eom("delrcpt")
        self._delrcpt.append(rcpt)

    def chgfrom(self, sender: str, params: str | None = None) -> Any:
        """
        Record the new sender.
        """
        self._in_eom("chgfrom")
        self._envfromchanged = True
        self._sender = sender

    def replacebody(self, chunk: bytes | str) -> Any:
        """
        Record a piece of the new body.
        """
        body = self._in_eom("replacebody")
        body.write(chunk.encode() if isinstance(chunk, str) else chunk)
        self._bodyreplaced = True

    def quarantine(self, reason: str) -> Any:
        """
        Record that the message is held.
        """
        self._in_eom("quarantine")
        self._quarantined = reason

    def progress(self) -> Any:
        """
        Do nothing.
        """


def parts_of(file: Any) -> tuple[Any, list[tuple[str, bytes]], bytes, bytes]:
    """
    Read a message.

    :return: The message; its header fields, their values as they are; its header; its body.
    """
    data = file.read()
    if isinstance(data, str):
        data = data.encode("utf-8", "surrogateescape")
    data = data.replace(b"\r\n", b"\n")
    message = email.message_from_bytes(data)
    header, _, body = data.partition(b"\n\n")
    fields = [(name, _raw(value)) for name, value in message.raw_items()]
    return message, fields, header, body


def _raw(value: Any) -> bytes:
    return str(value).encode("utf-8", "surrogateescape")


def pieces(body: bytes) -> Iterable[bytes]:
    """
    Cut a body into what an MTA sends at once.
    """
    for place in range(0, len(body), PIECE):
        yield body[place : place + PIECE]
