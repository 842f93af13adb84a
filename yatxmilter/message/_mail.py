"""
A message as the author of a milter holds it: read it, edit it, say what becomes of it.

What the MTA sends is gathered in `Received`; `Message` is the view of it, and knows besides what
was edited. Nothing goes to the MTA before the end of the message: then the edits are worked out
from what there was and what there is.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from email.message import EmailMessage
from email.message import Message as AnyEmail
from email.parser import BytesFeedParser
from typing import Any, BinaryIO, cast

from yatxmilter import constants as c
from yatxmilter._mail.rfc5322 import split_mail, wire_body
from yatxmilter._wire.actions import ChangeSender, Edit, Quarantine, ReplaceBody
from yatxmilter._wire.payloads import from_text, text_argument, to_text
from yatxmilter.constants import ReturnCode
from yatxmilter.errors import ValueNotSendable, WrongStage
from yatxmilter.message._body import Body
from yatxmilter.message._envelope import (
    Client,
    Recipients,
    SetReply,
    Verdict,
    bare_address,
    bracketed,
)
from yatxmilter.message._headers import Allow, Headers
from yatxmilter.message._least import Wanted, least_edits
from yatxmilter.message._values import POLICY, write_email

__all__ = ["Macros", "Message", "Received"]

_BLOCK = 1 << 20


class Macros:
    """
    The macros of the MTA, by name; braces may be left out: ``macros["auth_authen"]``.

    :param look_up: Gives a macro by its name as the MTA spells it.
    """

    def __init__(self, look_up: Callable[[str], str | None]) -> None:
        self._look_up = look_up

    def get(self, name: str, default: str | None = None) -> str | None:
        """
        Look a macro up.
        """
        value = self._look_up(name)
        if value is None and not name.startswith("{"):
            value = self._look_up(f"{{{name}}}")
        return default if value is None else value

    def __getitem__(self, name: str) -> str:
        value = self.get(name)
        if value is None:
            raise KeyError(name)
        return value

    def __contains__(self, name: str) -> bool:
        return self.get(name) is not None


class Received:
    """
    A message as it comes in.

    :ivar whole: Whether the end has come: the body is there.
    :ivar over: Whether the message is done with, and nothing of it can be used any more.
    :ivar headers: The header, once it is there.
    """

    def __init__(self, argv: Sequence[str], memory: int) -> None:
        self.argv = argv
        self.fields: list[tuple[str, str]] = []
        self.headers: Headers | None = None
        self.body = Body(memory)
        self.whole = False
        self.over = False

    def forget(self) -> None:
        """
        Be done with it.
        """
        self.over = True
        self.body.close()


class Message(Verdict):
    """
    A message.

    :ivar client: The SMTP client that it comes from.
    :ivar macros: What the MTA tells besides.
    :ivar recipients: To look through, and to ``add`` to and ``remove`` from.
    """

    def __init__(
        self,
        received: Received,
        client: Client,
        macros: Macros,
        set_reply: SetReply,
        allow: Allow,
    ) -> None:
        super().__init__(set_reply)
        self._received = received
        self._permit = allow
        self.client = client
        self.macros = macros
        self.recipients = Recipients(set_reply, self.allow)
        sender, *args = received.argv
        self._sender: tuple[str, tuple[str, ...]] = bare_address(sender), tuple(args)
        self._new_sender: ChangeSender | None = None
        self._new_body: bytes | None = None
        self._quarantine: str | None = None

    def allow(self, what: str, flags: int, size: int) -> None:
        """
        Check that an edit can be made.

        :param flags: The ``SMFIF_*`` flags that it needs.
        :param size: How many bytes it has on the wire.
        :raises UsageError: when it cannot.
        """
        if self._received.over:
            raise WrongStage(f"{what}: the message is over")
        self._permit(what, flags, size)

    # ---- envelope

    @property
    def queue_id(self) -> str | None:
        """
        The MTA's name for the message; ``None`` while it has none: Postfix gives it with DATA.
        """
        return self.macros.get("i")

    @property
    def sender(self) -> str:
        """
        The envelope sender without angle brackets, ``""`` for bounces. It can be set.
        """
        return self._sender[0]

    @sender.setter
    def sender(self, address: str) -> None:
        self.set_sender(address)

    @property
    def sender_args(self) -> tuple[str, ...]:
        """
        The ESMTP arguments of the sender.
        """
        return self._sender[1]

    def set_sender(self, address: str, args: str | None = None) -> None:
        """
        Change the envelope sender.

        :param args: New ESMTP arguments, separated by blanks; those that there are by default.
        """
        given = bracketed("sender", address)
        if args is not None and any(mark in args for mark in "\r\n\0"):
            raise ValueNotSendable(f"ESMTP arguments {args!r} have a line end or NUL in them")
        words = self.sender_args if args is None else tuple(args.split())
        sender = (bare_address(given), words)
        if sender == self._sender:
            return
        self.allow("changing the sender", c.SMFIF_CHGFROM, len(given) + len(args or "") + 2)
        first, *received = self._received.argv
        self._sender = sender
        same_args = words == tuple(received)
        self._new_sender = None
        if not same_args or sender[0] != bare_address(first):
            self._new_sender = ChangeSender(given, None if same_args else " ".join(words))

    # ---- content

    @property
    def headers(self) -> Headers:
        """
        The header; there from the hook ``headers`` on.
        """
        headers = self._received.headers
        if headers is None:
            raise WrongStage("the header is not there yet: use the hook headers, or message")
        return headers

    @property
    def size(self) -> int:
        """
        The length of the body in bytes.
        """
        self._check_body()
        return self._received.body.size if self._new_body is None else len(self._new_body)

    @property
    def body(self) -> bytes:
        """
        The whole body in memory, lines ending in CR LF. It can be set.
        """
        with self.open() as reader:
            return reader.read()

    @body.setter
    def body(self, body: bytes) -> None:
        if not isinstance(body, (bytes, bytearray, memoryview)):
            raise ValueNotSendable(f"body is {type(body).__name__}, not bytes")
        new = wire_body(bytes(body))
        if self._received.whole and self._is_received(new):
            self._new_body = None
            return
        self.allow("replacing the body", c.SMFIF_CHGBODY, 0)
        self._new_body = new

    def _is_received(self, body: bytes) -> bool:
        return not self._received.over and (
            len(body) == self._received.body.size
            and all(
                body.startswith(chunk, n * _BLOCK)
                for n, chunk in enumerate(self._received.body.chunks(_BLOCK))
            )
        )

    def open(self) -> BinaryIO:
        """
        Open the body for reading, as a binary file: no more than a piece of it is in memory.
        """
        self._check_body()
        return self._received.body.open() if self._new_body is None else io.BytesIO(self._new_body)

    def _check_body(self) -> None:
        if self._received.over:
            raise WrongStage("the body is gone: the message is over")
        if not self._received.whole and self._new_body is None:
            raise WrongStage("the body is not there: it is with the hook message, if wants_body")

    def email(self) -> EmailMessage:
        """
        Parse the message, with all edits so far, as an ``email.message.EmailMessage``.

        Edits of that one reach the MTA with `replace`. It holds the whole message in memory.
        """
        parser: BytesFeedParser[Any] = BytesFeedParser(policy=POLICY)
        for field in self.headers:
            # The parser would take a CR for the end of the field.
            raw = field.raw.replace("\r", " ")
            parser.feed(from_text(f"{field.name}: {raw}\n"))
        parser.feed(b"\n")
        for block in self._blocks():
            parser.feed(block.replace(b"\r\n", b"\n"))
        return cast(EmailMessage, parser.close())

    def _blocks(self) -> Iterator[bytes]:
        with self.open() as reader:
            while block := reader.read(_BLOCK):
                # No line end is cut in two.
                yield block + reader.read(1) if block.endswith(b"\r") else block

    def replace(self, email: AnyEmail) -> None:
        """
        Make header and body those of another message; what is the same stays as it is.
        """
        mail = split_mail(write_email(email))
        self.headers.rewrite(
            (to_text(field.name), to_text(field.bare_value())) for field in mail.fields
        )
        self.body = mail.body

    # ---- what becomes of it

    def discard(self) -> ReturnCode:
        """
        Take it from the client and drop it.
        """
        return self._settle(c.SMFIS_DISCARD)

    def quarantine(self, reason: str) -> None:
        """
        Have the MTA hold it.
        """
        text_argument("reason", reason)
        if not reason or any(mark in reason for mark in "\r\n\0"):
            raise ValueNotSendable(f"reason {reason!r} is empty, or has a line end or NUL in it")
        self.allow("quarantine", c.SMFIF_QUARANTINE, len(reason) + 1)
        self._quarantine = reason

    # ---- at the end

    def edits(self, flavour: str, actions: int = c.SMFI_CURR_ACTS) -> list[Edit]:
        """
        Give the least edits that make of the message received this one.

        :param flavour: The MTA: ``"postfix"`` or ``"sendmail"``.
        :param actions: The ``SMFIF_*`` flags of those that may be used.
        """
        edits: list[Edit] = []
        if self._new_sender is not None:
            edits.append(self._new_sender)
        edits += self.recipients.edits()
        if self._received.headers is not None:
            wanted = [Wanted(f.origin, f.name, f.raw) for f in self._received.headers]
            adds, changes = (bool(actions & flag) for flag in (c.SMFIF_ADDHDRS, c.SMFIF_CHGHDRS))
            edits += least_edits(flavour, self._received.fields, wanted, adds=adds, changes=changes)
        if self._quarantine is not None:
            edits.append(Quarantine(self._quarantine))
        if self._new_body is not None:
            edits.append(ReplaceBody(self._new_body))
        return edits
