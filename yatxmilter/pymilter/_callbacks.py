"""
The callbacks that a program has registered, and those of a class of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

__all__ = ["STAGES", "Callbacks", "begin", "class_callbacks", "close", "connect"]

Callback = Callable[..., Any]

#: The stages, as the C extension names them.
STAGES: Final = (
    *("connect", "helo", "envfrom", "envrcpt", "header", "eoh", "body", "eom", "abort", "close"),
    *("unknown", "data", "negotiate"),
)


class Callbacks:
    """
    A function for each stage, ``None`` where there is none; the first argument is the context.
    """

    __slots__ = STAGES

    connect: Callback | None
    helo: Callback | None
    envfrom: Callback | None
    envrcpt: Callback | None
    header: Callback | None
    eoh: Callback | None
    body: Callback | None
    eom: Callback | None
    abort: Callback | None
    close: Callback | None
    unknown: Callback | None
    data: Callback | None
    negotiate: Callback | None

    def __init__(self, **callbacks: Callback) -> None:
        for stage in STAGES:
            setattr(self, stage, callbacks.get(stage))

    def replace(self, stage: str, callback: Callback | None) -> Callback | None:
        """
        Put a function in the place of the one that was there, which is returned.

        :raises TypeError: for what cannot be called.
        """
        if callback is not None and not callable(callback):
            raise TypeError("callback parameter must be callable")
        before: Callback | None = getattr(self, stage)
        setattr(self, stage, callback)
        return before


def begin(make: Callable[[], Any], context: Any) -> Any:
    """
    Make the milter of a connection and put it on its context.
    """
    milter = make()
    milter._setctx(context)
    return milter


def connect(make: Callable[[], Any], context: Any, *arguments: Any) -> Any:
    """
    Tell the milter that an SMTP client has connected; make it where nothing was negotiated.
    """
    milter = context.getpriv()
    if not milter:
        milter = begin(make, context)
    return milter.connect(*arguments)


def close(context: Any, code: int) -> Any:
    """
    Tell the milter that its connection is over, and take it off the context.

    :param code: What is answered where there is no milter.
    """
    milter = context.getpriv()
    if not milter:
        return code
    try:
        return milter.close()
    finally:
        milter._setctx(None)


def class_callbacks(make: Callable[[], Any]) -> Callbacks:
    """
    Call the methods of the objects that ``make`` gives, one object for each connection.

    :param make: Called for each connection; the class of `Milter.Base` or what stands for one.
    """
    return Callbacks(
        negotiate=lambda ctx, options: begin(make, ctx).negotiate(options),
        connect=lambda ctx, *arguments: connect(make, ctx, *arguments),
        helo=lambda ctx, hostname: ctx.getpriv().hello(hostname),
        envfrom=lambda ctx, *strings: ctx.getpriv().envfrom_bytes(*strings),
        envrcpt=lambda ctx, *strings: ctx.getpriv().envrcpt_bytes(*strings),
        data=lambda ctx: ctx.getpriv().data(),
        unknown=lambda ctx, command: ctx.getpriv().unknown(command),
        header=lambda ctx, name, value: ctx.getpriv().header_bytes(name, value),
        eoh=lambda ctx: ctx.getpriv().eoh(),
        body=lambda ctx, chunk: ctx.getpriv().body(chunk),
        eom=lambda ctx: ctx.getpriv().eom(),
        abort=lambda ctx: ctx.getpriv().abort(),
        close=lambda ctx: close(ctx, 0),
    )
