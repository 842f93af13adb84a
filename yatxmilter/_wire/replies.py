"""
SMTP replies: what ``smfi_setreply`` and ``smfi_setmlreply`` store.

The checks are libmilter's (``smfi.c``): they look at the shape of the codes and the length of the
lines and leave the rest to the MTA. One is added: a multi-line reply needs a line, because the
text that libmilter stores without one makes Postfix give up and Sendmail's client hang.
"""

from __future__ import annotations

import re
from typing import Final

from yatxmilter._describing import described
from yatxmilter._wire.payloads import text_argument
from yatxmilter.constants import MAXREPLIES, MAXREPLYLEN
from yatxmilter.errors import ValueNotSendable

__all__ = ["format_multiline_reply", "format_reply"]

_RCODE: Final = re.compile(rb"[45][0-9][0-9]", re.ASCII)
_XCODE: Final = re.compile(rb"[245]\.[0-9]{1,3}\.[0-9]{1,3}", re.ASCII)
_ENDS_LINE: Final = re.compile(rb"[\r\n\0]")


def _checked_code(what: str, value: object, pattern: re.Pattern[bytes], shape: str) -> bytes:
    code = text_argument(what, value)
    if not pattern.fullmatch(code):
        raise ValueNotSendable(f"{what} {described(value)} is not {shape}")
    return code


def _reply_code(value: object) -> bytes:
    return _checked_code("reply code", value, _RCODE, "three digits, the first a 4 or a 5")


def _enhanced_code(value: object) -> bytes:
    return _checked_code("enhanced status code", value, _XCODE, "like 5.7.1 (class 2, 4 or 5)")


def _line(value: object) -> bytes:
    line = text_argument("reply text", value)
    if len(line) > MAXREPLYLEN:
        raise ValueNotSendable(f"reply text of {len(line)} bytes, at most {MAXREPLYLEN} per line")
    if _ENDS_LINE.search(line):
        raise ValueNotSendable(f"reply text {described(value)} has a CR, LF or NUL in it")
    return line


def format_reply(
    rcode: str | bytes, xcode: str | bytes | None = None, message: str | bytes | None = None
) -> bytes:
    """
    Write a one-line reply as libmilter stores it.

    :param rcode: Three digits, ``4xx`` or ``5xx``.
    :param xcode: Enhanced status code; its class is not compared with that of ``rcode``.
    :raises ValueNotSendable: where ``smfi_setreply`` answers ``MI_FAILURE``.
    """
    parts = []
    if xcode is not None:
        parts.append(_enhanced_code(xcode))
    if message is not None:
        parts.append(_line(message))
    return _reply_code(rcode) + b" " + b" ".join(parts)


def format_multiline_reply(
    rcode: str | bytes, xcode: str | bytes | None, *lines: str | bytes
) -> bytes:
    """
    Write a reply of several lines as libmilter stores it.

    :param xcode: Enhanced status code, by default ``4.0.0`` or ``5.0.0`` as ``rcode`` is.
    :raises ValueNotSendable: where ``smfi_setmlreply`` answers ``MI_FAILURE``, and without lines.
    """
    code = _reply_code(rcode)
    extended = code[:1] + b".0.0" if xcode is None else _enhanced_code(xcode)
    if not 0 < len(lines) <= MAXREPLIES:
        raise ValueNotSendable(f"a reply of {len(lines)} lines; 1 to {MAXREPLIES} can be sent")
    texts = [extended + b" " + _line(line) for line in lines]
    last = code + b" " + texts.pop()
    return b"\r\n".join([code + b"-" + text for text in texts] + [last])
