"""
The milter underneath: it gathers what the MTA sends, asks the author's hooks, and sends the edits.

A class asks the MTA for what its hooks need: the callbacks are put on it when it is made. What is
answered to one of them comes from the hook's result, from what the hook has said on the object it
was given, or from what was said on the message before, in this order.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Final, cast

from twisted.internet.interfaces import IAddress

from yatxmilter import constants as c
from yatxmilter._engine.callback_names import check_signature
from yatxmilter._engine.on_error import answer_for, on_error_option
from yatxmilter._engine.return_codes import ON_ERROR
from yatxmilter._engine.threads import in_thread, threads_of
from yatxmilter._mail.bounds import MAX_BODY, MAX_HEADER_BYTES, MAX_RECIPIENTS, SPOOL_MEMORY
from yatxmilter._wire.actions import SUBJECTS
from yatxmilter._wire.commands import RCPT_ROW
from yatxmilter._wire.macros import mta_flavour
from yatxmilter._wire.payloads import from_text
from yatxmilter.constants import action_names
from yatxmilter.defaults import CallbackResult, Milter
from yatxmilter.errors import LimitExceeded, NotNegotiated, ValueNotSendable
from yatxmilter.message._envelope import Client, Recipient, Verdict
from yatxmilter.message._headers import Headers
from yatxmilter.message._mail import Macros, Message, Received

__all__ = ["MessageMilter"]

#: What each hook is called with.
_ARGUMENTS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "connected": ("client",),
        "greeted": ("client",),
        "sender": ("msg",),
        "recipient": ("msg", "rcpt"),
        "headers": ("msg",),
        "message": ("msg",),
    }
)

#: The class attributes that are bounds.
_BOUNDS: Final = (
    "max_email",
    "spool_memory",
    "body_memory",
    "max_body",
    "max_header_bytes",
    "max_recipients",
    "max_size",
)

#: The edits of a header of more fields are worked out in a thread: some milliseconds' work.
_MANY: Final = 500

_GOES_ON: Final = (None, c.SMFIS_CONTINUE)
_REFUSES: Final = (c.SMFIS_REJECT, c.SMFIS_TEMPFAIL)


class MessageMilter(Milter):
    """
    A milter that is written in messages.

    Override `message`, and the other hooks for what must be answered earlier. A hook returns a
    return code, a Deferred or coroutine of one, or ``None``: then what it has said on the object it
    was given counts, as ``msg.reject()``. `threaded` and `symlist` may stand above any hook,
    `rejected_recipients` above `recipient`.

    :cvar may_edit: What it edits: of ``"headers"``, ``"body"``, ``"sender"``, ``"recipients"`` and
        ``"quarantine"``; ``None`` for all that the MTA offers.
    :cvar wants_body: Whether it needs the body; without, `message` has none.
    :cvar max_size: The length of the largest body that is looked at, in bytes; ``None`` for any.
    :cvar too_large: What is answered for a longer one, of which `message` is not called.
    :cvar max_email: The length of the largest body of which ``msg.email()`` makes an object.
    :cvar spool_memory: Bytes of a body that are kept in memory; the rest is kept on disk. The
        older name ``body_memory`` counts where it is set.
    :cvar max_body: Bytes of a body that are kept in all. More are a failure of the milter, as for
        the next two: ``on_error`` of its factory is the answer. ``None`` is for no bound.
    :cvar max_header_bytes: Bytes of header fields that are kept, names and values.
    :cvar max_recipients: How many recipients are kept.
    """

    may_edit: ClassVar[Collection[str] | None] = None
    wants_body: ClassVar[bool] = True
    max_email: ClassVar[int] = SPOOL_MEMORY
    spool_memory: ClassVar[int] = SPOOL_MEMORY
    body_memory: ClassVar[int | None] = None
    max_body: ClassVar[int | None] = MAX_BODY
    max_header_bytes: ClassVar[int | None] = MAX_HEADER_BYTES
    max_recipients: ClassVar[int | None] = MAX_RECIPIENTS
    max_size: ClassVar[int | None] = None
    too_large: ClassVar[int] = c.SMFIS_CONTINUE

    _hooks: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "connected": "xxfi_connect",
            "greeted": "xxfi_helo",
            "sender": "xxfi_envfrom",
            "recipient": "xxfi_envrcpt",
            "headers": "xxfi_eoh",
            "message": "xxfi_eom",
        }
    )
    # Whether `recipient` is shown those that the MTA has refused itself.
    _sees_refused: ClassVar[bool] = False

    _offered = 0
    _client: Client
    _received: Received | None = None
    _message: Message
    # Whether the body is longer than is looked at; whether there is more than is kept; and whether
    # there are more recipients.
    _oversize = False
    _given_up = False
    _overrun = False
    _header_bytes = 0

    def __init__(self, factory: Any, protocol: Any) -> None:
        super().__init__(factory, protocol)
        self._client = Client(self._set_reply, "unknown", None)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        unknown = [] if cls.may_edit is None else [w for w in cls.may_edit if w not in SUBJECTS]
        if isinstance(cls.may_edit, str) or unknown:
            raise TypeError(
                f"{cls.__qualname__}.may_edit is {cls.may_edit!r}, expected a list of"
                f" {', '.join(SUBJECTS)}"
            )
        for option in _BOUNDS:
            bound = getattr(cls, option)
            if bound is not None and (
                not isinstance(bound, int) or isinstance(bound, bool) or bound < 0
            ):
                raise TypeError(
                    f"{cls.__qualname__}.{option} is {bound!r}, expected a number from 0 on,"
                    " or None"
                )
        for hook in cls._hooks:
            check_signature(cls, hook, _ARGUMENTS[hook])
        cls._sees_refused = getattr(cls.recipient, "smfip_rejected_recipients", None) is True
        needed = {
            name
            for hook, names in _NEEDS.items()
            if getattr(cls, hook) is not getattr(MessageMilter, hook)
            for name in names.split()
        }
        if not cls.wants_body:
            needed.discard("body")
        for name, callback in _CALLBACKS.items():
            present = getattr(cls, f"xxfi_{name}")
            if name in needed and present is getattr(Milter, f"xxfi_{name}"):
                setattr(cls, f"xxfi_{name}", callback)
            elif name not in needed and present is callback:
                setattr(cls, f"xxfi_{name}", getattr(Milter, f"xxfi_{name}"))

    # ---- hooks

    def connected(self, client: Client) -> CallbackResult:
        """
        Look at a client; what is refused here is refused all mail.
        """
        return None

    def greeted(self, client: Client) -> CallbackResult:
        """
        Look at a client that has said HELO.
        """
        return None

    def sender(self, msg: Message) -> CallbackResult:
        """
        Look at the sender, where the message begins.
        """
        return None

    def recipient(self, msg: Message, rcpt: Recipient) -> CallbackResult:
        """
        Look at a recipient. ``rcpt.reject()`` refuses this one, ``msg.reject()`` the message.
        """
        return None

    def headers(self, msg: Message) -> CallbackResult:
        """
        Look at the header, before the body comes.
        """
        return None

    def message(self, msg: Message) -> CallbackResult:
        """
        Look at the whole message.
        """
        return None

    # ---- what the hooks use

    def xxfi_negotiate(self, actions: int, steps: int) -> None:
        """
        Ask for the edits of ``may_edit`` that the MTA offers.
        """
        self._offered = actions
        if self.may_edit is not None:
            wanted = 0
            for word in self.may_edit:
                wanted |= SUBJECTS[word]
            self.xxfi_flags = actions & wanted

    def _allow(self, what: str, flags: int, size: int) -> None:
        context = self._ctx()
        missing = flags & ~context.actions
        if missing & self._offered:
            asked = f"xxfi_flags of {self.xxfi_name}"
            if self.may_edit is not None:
                asked = f"may_edit = {self.may_edit!r} of {self.xxfi_name}"
            raise NotNegotiated(f"{what} needs {action_names(missing)}, which {asked} leaves out")
        if missing:
            raise NotNegotiated(
                f"{what} needs {action_names(missing)}, which the MTA does not offer"
            )
        if size > context.max_payload:
            raise ValueNotSendable(
                f"{what} takes {size} bytes; a packet takes {context.max_payload}"
            )

    def _set_reply(self, code: str, status: str, lines: list[str]) -> None:
        if lines == [""]:
            self.smfi_setreply(code, status)
        elif len(lines) == 1:
            self.smfi_setreply(code, status, lines[0])
        else:
            self.smfi_setmlreply(code, status, *lines)

    # ---- from the MTA

    def _call_hook(
        self, finish: Callable[[Any], CallbackResult], hook: Callable[..., Any], *about: Any
    ) -> CallbackResult:
        result = hook(*about)
        if inspect.isawaitable(result):
            return self._later(finish, result)
        return finish(result)

    async def _later(self, finish: Callable[[Any], CallbackResult], result: Awaitable[Any]) -> Any:
        return finish(await result)

    def _open_message(self, argv: list[str]) -> Message:
        self._forget()
        self._oversize = self._given_up = self._overrun = False
        self._header_bytes = 0
        memory = self.spool_memory if self.body_memory is None else self.body_memory
        self._received = Received(
            argv,
            memory,
            leading_space=self._ctx().leading_space,
            max_email=self.max_email,
        )
        self._message = Message(
            self._received,
            self._client,
            Macros(self.smfi_getsymval),
            self._set_reply,
            self._allow,
        )
        return self._message

    def _standing(self, result: Any = None) -> Any:
        return _answer(result, self._message)

    def _give_up(self, option: str, what: str) -> None:
        """
        Keep no more of a message that has too much of something; the hooks are asked no more.

        :raises LimitExceeded: always.
        """
        self._given_up = True
        raise LimitExceeded(
            f"the message has {what}: more than {option} = {getattr(self, option)} of"
            f" {self.xxfi_name}"
        )

    def _forget(self) -> None:
        if self._received is not None:
            self._received.forget()

    def xxfi_abort(self) -> None:
        """
        Be done with the message.
        """
        self._forget()

    def xxfi_close(self) -> None:
        """
        Be done with the message, if there is one.
        """
        self._forget()


def _answer(result: Any, *said: Verdict) -> Any:
    """
    Give what is answered: a hook's result, or what was said.
    """
    if result not in _GOES_ON:
        said = tuple(verdict for verdict in said if verdict.code == result)
    for verdict in said:
        if verdict.code is not None:
            verdict.repeat()
            return verdict.code
    return result


# ---- the callbacks that a class gets when its hooks need them


def _connect(self: MessageMilter, hostname: str, hostaddr: IAddress | None) -> CallbackResult:
    self._client = client = Client(self._set_reply, hostname, hostaddr)
    return self._call_hook(lambda result: _answer(result, client), self.connected, client)


def _helo(self: MessageMilter, helohost: str) -> CallbackResult:
    client = self._client
    client.helo = helohost
    # A client may say it again, with another name.
    client.code = None
    return self._call_hook(lambda result: _answer(result, client), self.greeted, client)


def _envfrom(self: MessageMilter, argv: list[str]) -> CallbackResult:
    return self._call_hook(self._standing, self.sender, self._open_message(argv))


async def _envrcpt(self: MessageMilter, argv: list[str]) -> Any:
    message = self._message
    if self.max_recipients is not None and message.recipients.received >= self.max_recipients:
        if self._overrun:
            # It has been told.
            return ON_ERROR
        self._overrun = True
        raise LimitExceeded(
            f"the message has more recipients than max_recipients = {self.max_recipients} of"
            f" {self.xxfi_name}"
        )
    recipient = message.recipients.receive(argv)
    refused = self._sees_refused and self.smfi_getsymval("{rcpt_mailer}") == "error"
    # The answer if the hook fails.
    on_error = on_error_option("on_error", getattr(self.factory, "on_error", c.SMFIS_TEMPFAIL))
    code = answer_for(RCPT_ROW, on_error).code
    try:
        result: Any = None
        if message.code is None:
            result = self.recipient(message, recipient)
            if inspect.isawaitable(result):
                result = await result
        code = _answer(result, recipient, message)
        return code
    finally:
        if code in _REFUSES or refused:
            message.recipients.refuse(recipient)


def _header(self: MessageMilter, headerf: str, headerv: str) -> CallbackResult:
    received = cast(Received, self._received)
    if not self._given_up:
        self._header_bytes += len(headerf) + (
            len(headerv) if headerv.isascii() else len(from_text(headerv))
        )
        if self.max_header_bytes is not None and self._header_bytes > self.max_header_bytes:
            received.fields.clear()
            self._give_up("max_header_bytes", f"{self._header_bytes} bytes of header fields so far")
        received.fields.append((headerf, headerv if received.leading_space else f" {headerv}"))
    return cast(CallbackResult, self._standing())


# With the white space behind the colon, where the MTA tells it.
_header.smfip_leading_space = True  # type: ignore[attr-defined]


def _eoh(self: MessageMilter) -> CallbackResult:
    received, message = cast(Received, self._received), self._message
    if self._given_up:
        return cast(CallbackResult, self._standing())
    received.headers = Headers(received.fields, message.allow)
    return self._call_hook(self._standing, self.headers, message)


def _body(self: MessageMilter, bodyp: bytes) -> CallbackResult:
    if self._given_up or self._oversize:
        return c.SMFIS_SKIP
    body = cast(Received, self._received).body
    size = body.size + len(bodyp)
    if self.max_body is not None and size > self.max_body:
        self._give_up("max_body", f"{size} bytes of body so far")
    if self.max_size is None or size <= self.max_size:
        body.write(bodyp)
        return None
    self._oversize = True
    return c.SMFIS_SKIP if self.too_large == c.SMFIS_CONTINUE else self.too_large


async def _eom(self: MessageMilter) -> Any:
    received, message = cast(Received, self._received), self._message
    try:
        code = self._standing()
        if code in _GOES_ON and not self._oversize and not self._given_up:
            received.whole = self.wants_body
            result: Any = self.message(message)
            if inspect.isawaitable(result):
                result = await result
            code = self._standing(result)
        if code in (*_GOES_ON, c.SMFIS_ACCEPT):
            if len(received.fields) > _MANY and threads_of(self) is not None:
                await in_thread(self, _make_edits, (self, message), {})
            else:
                _make_edits(self, message)
        return code
    finally:
        received.forget()


def _make_edits(self: MessageMilter, message: Message) -> None:
    flavour = mta_flavour(self.smfi_getsymval("v"), self.smfi_getsymval("j"))
    context = self._ctx()
    for edit in message.edits(flavour, context.actions):
        context.make_edit(edit)


_CALLBACKS: Final = MappingProxyType(
    {
        "connect": _connect,
        "helo": _helo,
        "envfrom": _envfrom,
        "envrcpt": _envrcpt,
        "header": _header,
        "eoh": _eoh,
        "body": _body,
        "eom": _eom,
    }
)

_NEEDS: Final = MappingProxyType(
    {
        "connected": "connect",
        "greeted": "connect helo",
        "sender": "connect helo envfrom eom",
        "recipient": "connect helo envfrom envrcpt eom",
        "headers": "connect helo envfrom envrcpt header eoh eom",
        "message": "connect helo envfrom envrcpt header eoh body eom",
    }
)
