"""
The module ``milter`` of programs written for pymilter, in the place of its C extension.

`yatxmilter.pymilter.install` has it found under that name. What a function does is what it does
there; where the C extension raises ``milter.error`` so does this, with a reason.
"""

from __future__ import annotations

from typing import Any

from yatxmilter import constants as _c
from yatxmilter.pymilter._arguments import number as _number
from yatxmilter.pymilter._arguments import text as _text
from yatxmilter.pymilter._callbacks import Callbacks as _Callbacks
from yatxmilter.pymilter._context import Error as error
from yatxmilter.pymilter._context import diagnosis as _diagnosis
from yatxmilter.pymilter._names import NUMBERS as _NUMBERS
from yatxmilter.pymilter._program import PROGRAM as _PROGRAM

__all__ = [
    *_NUMBERS,
    "error",
    "getdiag",
    "getversion",
    "main",
    "opensocket",
    "register",
    "set_abort_callback",
    "set_body_callback",
    "set_close_callback",
    "set_connect_callback",
    "set_envfrom_callback",
    "set_envrcpt_callback",
    "set_eoh_callback",
    "set_eom_callback",
    "set_exception_policy",
    "set_flags",
    "set_header_callback",
    "set_helo_callback",
    "setbacklog",
    "setconn",
    "setdbg",
    "settimeout",
    "stop",
]

globals().update(_NUMBERS)

_POLICIES = (_c.SMFIS_REJECT, _c.SMFIS_TEMPFAIL, _c.SMFIS_CONTINUE, _c.SMFIS_ACCEPT)


def _callbacks() -> _Callbacks:
    return _PROGRAM.callbacks


def set_connect_callback(function: Any, /) -> Any:
    """
    Set what is called when an SMTP client connects: ``(ctx, hostname, family, hostaddr)``.

    :return: What was set before. ``None`` sets nothing; so do all functions of this kind.
    :raises TypeError: for what cannot be called.
    """
    return _callbacks().replace("connect", function)


def set_helo_callback(function: Any, /) -> Any:
    """
    Set what is called at HELO: ``(ctx, hostname)``.
    """
    return _callbacks().replace("helo", function)


def set_envfrom_callback(function: Any, /) -> Any:
    """
    Set what is called at MAIL: ``(ctx, sender, *params)``, all bytes.
    """
    return _callbacks().replace("envfrom", function)


def set_envrcpt_callback(function: Any, /) -> Any:
    """
    Set what is called at RCPT: ``(ctx, recipient, *params)``, all bytes.
    """
    return _callbacks().replace("envrcpt", function)


def set_header_callback(function: Any, /) -> Any:
    """
    Set what is called for a header field: ``(ctx, name, value)``, the value in bytes.
    """
    return _callbacks().replace("header", function)


def set_eoh_callback(function: Any, /) -> Any:
    """
    Set what is called at the end of the header: ``(ctx)``.
    """
    return _callbacks().replace("eoh", function)


def set_body_callback(function: Any, /) -> Any:
    """
    Set what is called for a piece of the body: ``(ctx, bytes)``.
    """
    return _callbacks().replace("body", function)


def set_eom_callback(function: Any, /) -> Any:
    """
    Set what is called at the end of a message: ``(ctx)``.
    """
    return _callbacks().replace("eom", function)


def set_abort_callback(function: Any, /) -> Any:
    """
    Set what is called when a message is given up: ``(ctx)``.
    """
    return _callbacks().replace("abort", function)


def set_close_callback(function: Any, /) -> Any:
    """
    Set what is called at the end of a connection: ``(ctx)``.
    """
    return _callbacks().replace("close", function)


def set_flags(flags: int, /) -> None:
    """
    Say which edits there will be: `ADDHDRS` and its like, joined with ``|``.
    """
    _PROGRAM.flags = _number(flags)


def set_exception_policy(code: int, /) -> None:
    """
    Say what is answered for a callback that fails: TEMPFAIL, REJECT, CONTINUE or ACCEPT.
    """
    value = _number(code)
    if value not in _POLICIES:
        raise error(f"invalid exception policy: {value}")
    _PROGRAM.policy = value


def register(name: str, **callbacks: Any) -> None:
    """
    Name the milter; ``unknown=``, ``data=`` and ``negotiate=`` set callbacks, ``None`` none.
    """
    _text("register", 1, name)
    for stage, callback in callbacks.items():
        if stage not in ("unknown", "data", "negotiate"):
            raise TypeError(f"{stage!r} is an invalid keyword argument for register()")
        if callback is not None and not callable(callback):
            raise TypeError(f"{stage} parameter must be callable")
    for stage, callback in callbacks.items():
        _callbacks().replace(stage, callback)
    _PROGRAM.name = name


def setconn(spec: str, /) -> None:
    """
    Say where to listen: ``unix:/path``, ``inet:port@host``, ``inet6:port@host`` or ``fd:3``.
    """
    spec = _text("setconn", 1, spec)
    if not spec:
        raise error("cannot set connection: it is empty")
    _PROGRAM.spec = spec


def opensocket(rmsock: int, /) -> None:
    """
    Listen now, as the user and with the umask of now.

    :param rmsock: Whether a UNIX socket that is there is removed first.
    """
    _PROGRAM.open(bool(_number(rmsock)))


def settimeout(seconds: int, /) -> None:
    """
    Set how long the MTA may be silent; 0 is for any time.
    """
    _PROGRAM.timeout = _number(seconds)


def setbacklog(connections: int, /) -> None:
    """
    Set how many connections may wait to be taken.
    """
    value = _number(connections)
    if value <= 0:
        raise error(f"cannot set backlog: {value} is not above 0")
    _PROGRAM.backlog = value


def setdbg(level: int, /) -> None:
    """
    Do nothing: libmilter's debug output is not ours. ``--log-level debug`` shows more.
    """
    _number(level)


def main() -> None:
    """
    Serve until `stop` is called or a signal says so.

    :raises milter.error: when that cannot be; one program at a time can be served.
    """
    _PROGRAM.main()


def stop() -> None:
    """
    Have `main` return; messages in progress come to their end before.
    """
    _PROGRAM.stop()


def getdiag() -> tuple[int, int]:
    """
    Tell how many contexts were made, and how many of them are gone.
    """
    return _diagnosis()


def getversion() -> tuple[int, int, int]:
    """
    Tell which version of libmilter this answers for.
    """
    version = _c.SMFI_VERSION
    return version >> 24 & 0x7F, version >> 8 & 0xFFFF, version & 0x7F
