"""
The package ``Milter`` of programs written for pymilter, for those who have no pymilter.

`yatxmilter.pymilter.install` has it found under that name. `Base` is what programs subclass; the
decorators, `runmilter` and the helpers are those of pymilter's package, by what they do.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from functools import wraps
from itertools import count
from types import FunctionType, MethodType
from typing import Any, TypeVar

from yatxmilter.pymilter import _callbacks as _binding
from yatxmilter.pymilter import _milter as milter
from yatxmilter.pymilter._milter import (
    error,
    getdiag,
    getversion,
    main,
    opensocket,
    register,
    set_abort_callback,
    set_body_callback,
    set_close_callback,
    set_connect_callback,
    set_envfrom_callback,
    set_envrcpt_callback,
    set_eoh_callback,
    set_eom_callback,
    set_exception_policy,
    set_flags,
    set_header_callback,
    set_helo_callback,
    setbacklog,
    setconn,
    setdbg,
    settimeout,
    stop,
)
from yatxmilter.pymilter._names import NUMBERS as _NUMBERS

#: The version of pymilter whose API this is.
__version__ = "1.0.5"

globals().update(_NUMBERS)

# Some of them by name: programs' tests put other numbers in their places.
CONTINUE = _NUMBERS["CONTINUE"]
NOREPLY = _NUMBERS["NOREPLY"]
ALL_OPTS = _NUMBERS["ALL_OPTS"]
CURR_ACTS = _NUMBERS["CURR_ACTS"]
P_RCPT_REJ = _NUMBERS["P_RCPT_REJ"]
P_HDR_LEADSPC = _NUMBERS["P_HDR_LEADSPC"]

_Function = TypeVar("_Function", bound=Callable[..., Any])

_MOST_SYMBOLS = 5
_PERCENTS = re.compile("%+")
_numbers = count(1)
_last = 0


def _bits(*names: str) -> tuple[int, ...]:
    return tuple(_NUMBERS[name] for name in names)


#: The callbacks that need not be called: the step that promises no reply, and the declining one.
OPTIONAL_CALLBACKS = {
    "connect": _bits("P_NR_CONN", "P_NOCONNECT"),
    "hello": _bits("P_NR_HELO", "P_NOHELO"),
    "envfrom": _bits("P_NR_MAIL", "P_NOMAIL"),
    "envrcpt": _bits("P_NR_RCPT", "P_NORCPT"),
    "data": _bits("P_NR_DATA", "P_NODATA"),
    "unknown": _bits("P_NR_UNKN", "P_NOUNKNOWN"),
    "eoh": _bits("P_NR_EOH", "P_NOEOH"),
    "body": _bits("P_NR_BODY", "P_NOBODY"),
    "header": _bits("P_NR_HDR", "P_NOHDRS"),
}

#: The stages that macros can be asked for.
MACRO_CALLBACKS = {
    "connect": _NUMBERS["M_CONNECT"],
    "hello": _NUMBERS["M_HELO"],
    "envfrom": _NUMBERS["M_ENVFROM"],
    "envrcpt": _NUMBERS["M_ENVRCPT"],
    "data": _NUMBERS["M_DATA"],
    "eom": _NUMBERS["M_EOM"],
    "eoh": _NUMBERS["M_EOH"],
}


class DisabledAction(RuntimeError):
    """
    An edit that was not negotiated.
    """


def uniqueID() -> int:
    """
    Give a number that no other call in this process gives.
    """
    global _last
    _last = next(_numbers)
    return _last


def decode_mask(bits: int, names: Iterable[str]) -> list[str]:
    """
    Name the bits of a mask; what is left over is given in hexadecimal.
    """
    named = []
    for name in names:
        value = _NUMBERS[name]
        if bits & value:
            named.append(name)
    for name in names:
        bits &= ~_NUMBERS[name]
    return [*named, hex(bits)] if bits else named


# ---- decorators


def enable_protocols(klass: Any, mask: int) -> Any:
    """
    Ask for protocol steps, in a class, that are not asked for otherwise.
    """
    klass._enabled_steps = getattr(klass, "_enabled_steps", 0) | mask
    return klass


def rejected_recipients(klass: Any) -> Any:
    """
    Ask, as a class decorator, to be shown recipients that the MTA has refused.
    """
    return enable_protocols(klass, P_RCPT_REJ)


def header_leading_space(klass: Any) -> Any:
    """
    Ask, as a class decorator, for header values with the white space that they begin with.
    """
    return enable_protocols(klass, P_HDR_LEADSPC)


def _optional(function: Callable[..., Any], decorator: str) -> tuple[int, ...]:
    name = function.__name__
    if name not in OPTIONAL_CALLBACKS:
        raise ValueError(f"@{decorator} applied to non-optional method: {name}")
    return OPTIONAL_CALLBACKS[name]


def _check_continue(code: Any, function: Callable[..., Any], decorator: str) -> None:
    if code != CONTINUE:
        raise RuntimeError(f"{function.__name__} return code must be CONTINUE with @{decorator}")


def nocallback(function: _Function) -> _Function:
    """
    Mark a callback as one that the MTA need not call.
    """
    declined = _optional(function, "nocallback")[1]

    @wraps(function)
    def checked(self: Any, *arguments: Any) -> int:
        _check_continue(function(self, *arguments), function, "nocallback")
        return CONTINUE

    checked.milter_protocol = declined  # type: ignore[attr-defined]
    return checked  # type: ignore[return-value]


def noreply(function: _Function) -> _Function:
    """
    Mark a callback as one that never answers: the MTA need not wait for it.
    """
    silent = _optional(function, "noreply")[0]

    @wraps(function)
    def checked(self: Any, *arguments: Any) -> Any:
        code = function(self, *arguments)
        if not self._protocol & silent:
            return code
        _check_continue(code, function, "noreply")
        return NOREPLY

    checked.milter_protocol = silent  # type: ignore[attr-defined]
    return checked  # type: ignore[return-value]


def decode(strategy: str) -> Callable[[_Function], _Function]:
    """
    Choose how a callback of envelope or header is given bytes that are not UTF-8.

    :param strategy: ``bytes`` for bytes in any case, ``strict`` for bytes if they are not UTF-8,
        or an error handler of ``bytes.decode``; the default is ``surrogateescape``.
    """

    def mark(function: _Function) -> _Function:
        function.error_strategy = strategy  # type: ignore[attr-defined]
        return function

    return mark


def symlist(*symbols: str) -> Callable[[_Function], _Function]:
    """
    Ask for the macros that a callback needs, at most five, instead of the MTA's own list.
    """

    def mark(function: _Function) -> _Function:
        name = function.__name__
        if len(symbols) > _MOST_SYMBOLS:
            raise ValueError(f"@symlist limited to {_MOST_SYMBOLS} macros by MTA: {name}")
        if name not in MACRO_CALLBACKS:
            raise ValueError(f"@symlist applied to non-symlist method: {name}")
        function._symlist = symbols  # type: ignore[attr-defined]
        return function

    return mark


# ---- what programs subclass


def _mark_of(callback: Callable[..., Any], name: str, otherwise: Any = None) -> Any:
    """
    Give what a decorator has left on a callback.
    """
    if type(callback) is MethodType and type(callback.__func__) is FunctionType:
        # It is nearly always missing, and then `getattr` costs as much as many callbacks.
        return callback.__func__.__dict__.get(name, otherwise)
    return getattr(callback, name, otherwise)


def _decoded(callback: Callable[..., Any], values: tuple[bytes, ...]) -> tuple[Any, ...]:
    strategy = _mark_of(callback, "error_strategy", "surrogateescape")
    if strategy == "bytes":
        return values
    try:
        return tuple([value.decode("utf-8", strategy) for value in values])
    except UnicodeDecodeError:
        return values


class Base:
    """
    One SMTP connection. Override the callbacks that are needed; each returns a code.

    :ivar _ctx: The context, on which the edits are made.
    :ivar _actions: The edits that may be made.
    :ivar _protocol: The protocol steps that were negotiated.
    """

    _ctx: Any
    _actions: int
    _protocol: int

    def _setctx(self, ctx: Any) -> None:
        self._ctx = ctx
        self._actions = CURR_ACTS
        self._protocol = 0
        if ctx:
            ctx.setpriv(self)

    def log(self, *msg: Any) -> None:
        """
        Do nothing: programs that log override it.
        """

    # ---- callbacks

    @nocallback
    def connect(self, hostname: str, family: int, hostaddr: Any) -> Any:
        """
        An SMTP client has connected.

        :param family: ``socket.AF_INET``, ``AF_INET6`` or ``AF_UNIX``; 0 when it is unknown.
        :param hostaddr: ``(ip, port)``, ``(ip6, port, flow, scope)``, a path, or ``None``.
        """
        return CONTINUE

    @nocallback
    def hello(self, hostname: str) -> Any:
        """
        The client said HELO or EHLO.
        """
        return CONTINUE

    def envfrom_bytes(self, *strings: bytes) -> Any:
        """
        Decode the arguments of MAIL, and call `envfrom`.
        """
        return self.envfrom(*_decoded(self.envfrom, strings))

    @nocallback
    def envfrom(self, mailfrom: str, *params: str) -> Any:
        """
        A message begins.
        """
        return CONTINUE

    def envrcpt_bytes(self, *strings: bytes) -> Any:
        """
        Decode the arguments of RCPT, and call `envrcpt`.
        """
        return self.envrcpt(*_decoded(self.envrcpt, strings))

    @nocallback
    def envrcpt(self, to: str, *params: str) -> Any:
        """
        A recipient of the message.
        """
        return CONTINUE

    @nocallback
    def data(self) -> Any:
        """
        The client said DATA.
        """
        return CONTINUE

    def header_bytes(self, field: str, value: bytes) -> Any:
        """
        Decode the value of a header field, and call `header`.
        """
        header = self.header
        return header(field, *_decoded(header, (value,)))

    @nocallback
    def header(self, field: str, value: str) -> Any:
        """
        A header field.
        """
        return CONTINUE

    @nocallback
    def eoh(self) -> Any:
        """
        The header is over.
        """
        return CONTINUE

    @nocallback
    def body(self, blk: bytes) -> Any:
        """
        A piece of the body.
        """
        return CONTINUE

    @nocallback
    def unknown(self, cmd: str) -> Any:
        """
        The client sent a command that the MTA does not know.
        """
        return CONTINUE

    def eom(self) -> Any:
        """
        The message is over; now it may be changed.
        """
        return CONTINUE

    def abort(self) -> Any:
        """
        The message was given up.
        """
        return CONTINUE

    def close(self) -> Any:
        """
        The connection is over.
        """
        return CONTINUE

    # ---- negotiation

    @classmethod
    def protocol_mask(cls) -> int:
        """
        Tell which protocol steps are not asked for, from what the class's callbacks are marked as.
        """
        # A class may say so itself.
        said: int | None = getattr(cls, "_protocol_mask", None)
        if said is not None:
            return said
        found: int | None = vars(cls).get("_computed_mask")
        if found is not None:
            return found
        mask = P_RCPT_REJ | P_HDR_LEADSPC
        for name, bits in OPTIONAL_CALLBACKS.items():
            marked = getattr(getattr(cls, name), "milter_protocol", 0)
            mask |= sum(bits) & ~marked
        mask &= ~getattr(cls, "_enabled_steps", 0)
        cls._computed_mask = mask  # type: ignore[attr-defined]
        return mask

    def negotiate(self, opts: list[int]) -> int:
        """
        Settle what is done on this connection, by changing a list of four numbers.

        :param opts: The edits and the protocol steps that the MTA offers, and two zeros.
        """
        try:
            self._actions, steps = opts[:2]
            for name, stage in MACRO_CALLBACKS.items():
                symbols = _mark_of(getattr(self, name), "_symlist")
                if symbols is not None:
                    self.setsymlist(stage, *symbols)
            self._protocol = steps & ~self.protocol_mask()
            opts[1:] = [self._protocol, 0, 0]
        except Exception:
            return ALL_OPTS
        return CONTINUE

    # ---- functions

    def getsymval(self, sym: str) -> str | None:
        """
        Look a macro up.
        """
        value: str | None = self._ctx.getsymval(sym)
        return value

    def setreply(self, rcode: str, xcode: str | None = None, *lines: str) -> Any:
        """
        Set the text that goes with REJECT or TEMPFAIL, of one line or of several.

        :raises ValueError: for a ``%`` that is not doubled.
        """
        for line in lines:
            if any(len(run) % 2 for run in _PERCENTS.findall(line)):
                raise ValueError(f"'%' must be doubled: {line}")
        if not lines:
            raise TypeError("setreply() needs the text of the reply")
        return self._ctx.setreply(rcode, xcode, *lines)

    def setsymlist(self, stage: int, *macros: str) -> Any:
        """
        Ask for the macros of a stage, while negotiating.
        """
        self._check("SETSYMLIST")
        names = [name for text in macros for name in text.split()]
        if len(macros) > _MOST_SYMBOLS:
            raise ValueError(f"setsymlist limited to {_MOST_SYMBOLS} macros by MTA")
        return self._ctx.setsymlist(stage, " ".join(names))

    def _check(self, action: str) -> None:
        if not self._actions & _NUMBERS[action]:
            raise DisabledAction(action)

    def addheader(self, field: str, value: str, idx: int = -1) -> Any:
        """
        Add a header field at the end, or insert it at a place counted from 0.
        """
        self._check("ADDHDRS")
        return self._ctx.addheader(field, value, idx)

    def chgheader(self, field: str, idx: int, value: str | None) -> Any:
        """
        Change a header field, or, without a value, delete it.
        """
        self._check("CHGHDRS")
        return self._ctx.chgheader(field, idx, value)

    def addrcpt(self, rcpt: str, params: str | None = None) -> Any:
        """
        Add an envelope recipient.
        """
        self._check("ADDRCPT")
        if params:
            self._check("ADDRCPT_PAR")
        return self._ctx.addrcpt(rcpt, params)

    def delrcpt(self, rcpt: str) -> Any:
        """
        Remove an envelope recipient.
        """
        self._check("DELRCPT")
        return self._ctx.delrcpt(rcpt)

    def replacebody(self, body: bytes | str) -> Any:
        """
        Replace the body; further calls append.
        """
        self._check("MODBODY")
        return self._ctx.replacebody(body)

    def chgfrom(self, sender: str, params: str | None = None) -> Any:
        """
        Change the envelope sender.
        """
        self._check("CHGFROM")
        return self._ctx.chgfrom(sender, params)

    def quarantine(self, reason: str) -> Any:
        """
        Have the MTA hold the message.
        """
        self._check("QUARANTINE")
        return self._ctx.quarantine(reason)

    def progress(self) -> Any:
        """
        Tell the MTA that the milter is still at work.
        """
        return self._ctx.progress()


class Milter(Base):
    """
    A milter that prints what it sees, and changes nothing.
    """

    def log(self, *msg: Any) -> None:
        """
        Print a line.
        """
        print("Milter:", *msg)

    @noreply
    def connect(self, hostname: str, family: int, hostaddr: Any) -> Any:
        """
        Print it.
        """
        self.log(f"connect from {hostname} at {hostaddr}")
        return CONTINUE

    @noreply
    def hello(self, hostname: str) -> Any:
        """
        Print it.
        """
        self.log(f"hello from {hostname}")
        return CONTINUE

    @noreply
    def envfrom(self, mailfrom: str, *params: str) -> Any:
        """
        Print it.
        """
        self.log("mail from", mailfrom, params)
        return CONTINUE

    @noreply
    def envrcpt(self, to: str, *params: str) -> Any:
        """
        Print it.
        """
        self.log("rcpt to", to, params)
        return CONTINUE

    @noreply
    def header(self, field: str, value: str) -> Any:
        """
        Print it.
        """
        self.log(f"{field}: {value}")
        return CONTINUE

    @noreply
    def eoh(self) -> Any:
        """
        Print it.
        """
        self.log("eoh")
        return CONTINUE

    def eom(self) -> Any:
        """
        Print it.
        """
        self.log("eom")
        return CONTINUE

    def abort(self) -> Any:
        """
        Print it.
        """
        self.log("abort")
        return CONTINUE

    def close(self) -> Any:
        """
        Print it.
        """
        self.log("close")
        return CONTINUE


# ---- running


#: What makes the milter of a connection; programs set it before `runmilter`, or later.
factory: Callable[[], Any] = Milter


def negotiate_callback(ctx: Any, opts: list[int]) -> Any:
    """
    Make the milter of a connection, and let it negotiate.
    """
    return _binding.begin(factory, ctx).negotiate(opts)


def connect_callback(
    ctx: Any, hostname: str, family: int, hostaddr: Any, nr_mask: int = _NUMBERS["P_NR_CONN"]
) -> Any:
    """
    Tell the milter of an SMTP client; make it where nothing was negotiated.
    """
    return _binding.connect(factory, ctx, hostname, family, hostaddr)


def close_callback(ctx: Any) -> Any:
    """
    Tell the milter that its connection is over.
    """
    return _binding.close(ctx, CONTINUE)


def runmilter(name: str, socketname: str, timeout: int = 0, rmsock: bool = True) -> None:
    """
    Serve `factory` until `stop` is called or a signal says so.

    :param socketname: ``unix:/path``, ``inet:port@host``, ``inet6:port@host`` or ``fd:3``.
    :param timeout: Seconds that the MTA may be silent; 0 for the default.
    :param rmsock: Whether a UNIX socket that is there is removed first.
    :raises milter.error: when that cannot be.
    """
    # What is called is looked up at each call: tests put other functions there.
    registered = _binding.class_callbacks(lambda: factory())
    for stage in ("helo", "envfrom", "envrcpt", "header", "eoh", "body", "eom", "abort"):
        getattr(milter, f"set_{stage}_callback")(getattr(registered, stage))
    milter.set_connect_callback(lambda *arguments: connect_callback(*arguments))
    milter.set_close_callback(lambda ctx: close_callback(ctx))
    milter.setconn(socketname)
    if timeout > 0:
        milter.settimeout(timeout)
    milter.register(
        name,
        data=registered.data,
        unknown=registered.unknown,
        negotiate=lambda ctx, opts: negotiate_callback(ctx, opts),
    )
    milter.opensocket(rmsock)
    milter.main()


# ---- helpers


def _argument(text: str) -> tuple[str, str | None]:
    name, equals, value = text.partition("=")
    return name.upper(), value if equals else None


def dictfromlist(args: Iterable[str]) -> dict[str, str]:
    """
    Make a dictionary of the ESMTP arguments that have values; the names in capitals.
    """
    pairs = map(_argument, args)
    return {name: value for name, value in pairs if name and value is not None}


def param2dict(args: Iterable[str]) -> dict[str, str | None]:
    """
    Make a dictionary of ESMTP arguments, with ``None`` for those without a value.
    """
    return dict(map(_argument, args))


def envcallback(function: Callable[..., Any], args: Iterable[str]) -> Any:
    """
    Call a function with the address, and the ESMTP arguments as keyword arguments.
    """
    first, *rest = args
    plain = [text for text in rest if text.find("=") <= 0]
    return function(first, *plain, **dictfromlist(rest))


#: All but `factory`, which each program has to set where it is: here.
__all__ = [
    *_NUMBERS,
    "MACRO_CALLBACKS",
    "OPTIONAL_CALLBACKS",
    "Base",
    "DisabledAction",
    "Milter",
    "close_callback",
    "connect_callback",
    "decode",
    "decode_mask",
    "dictfromlist",
    "enable_protocols",
    "envcallback",
    "error",
    "getdiag",
    "getversion",
    "header_leading_space",
    "main",
    "negotiate_callback",
    "nocallback",
    "noreply",
    "opensocket",
    "param2dict",
    # Programs that import everything from here expect to find these three.
    "re",
    "register",
    "rejected_recipients",
    "runmilter",
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
    "symlist",
    "sys",
    "uniqueID",
    "wraps",
]
