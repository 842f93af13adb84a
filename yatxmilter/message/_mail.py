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
from typing import BinaryIO

from twisted.internet.defer import Deferred, succeed
from twisted.internet.threads import deferToThread

from yatxmilter import constants as c
from yatxmilter._mail.bounds import SPOOL_MEMORY
from yatxmilter._mail.mime import Octets, Part, find_parts
from yatxmilter._mail.rfc5322 import wire_body
from yatxmilter._wire.actions import ChangeSender, Edit, Quarantine, ReplaceBody
from yatxmilter._wire.payloads import text_argument
from yatxmilter.constants import ReturnCode
from yatxmilter.errors import LimitExceeded, ValueNotSendable, WrongStage
from yatxmilter.message._body import Body, open_octets
from yatxmilter.message._email import build_email, write_email
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

__all__ = ["Macros", "Message", "Received"]

_BLOCK = 1 << 20
#: `Message` has a method of this name.
_Bytes = bytes


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

    :ivar fields: Names, and all that follows the colons.
    :ivar leading_space: Whether the MTA tells the white space behind the colon; where it does not,
        a blank stands for it.
    :ivar whole: Whether the end has come: the body is there.
    :ivar over: Whether the message is done with, and nothing of it can be used any more.
    :ivar headers: The header, once it is there.
    :ivar max_email: The length of the largest body of which an object is made in between.
    """

    def __init__(
        self,
        argv: Sequence[str],
        memory: int,
        *,
        leading_space: bool = False,
        max_email: int = SPOOL_MEMORY,
    ) -> None:
        self.argv = argv
        self.leading_space = leading_space
        self.max_email = max_email
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
        self._new_body: _Bytes | None = None
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
    def body(self) -> _Bytes:
        """
        The whole body in memory, lines ending in CR LF. It can be set.
        """
        with self.open() as reader:
            return reader.read()

    @body.setter
    def body(self, body: _Bytes) -> None:
        if not isinstance(body, (bytes, bytearray, memoryview)):
            raise ValueNotSendable(f"body is {type(body).__name__}, not bytes")
        self._set_body(wire_body(bytes(body)))

    def _set_body(self, new: _Bytes) -> None:
        if self._received.whole and self._is_received(new):
            self._new_body = None
            return
        self.allow("replacing the body", c.SMFIF_CHGBODY, 0)
        self._new_body = new

    def _is_received(self, body: _Bytes) -> bool:
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

    # ---- octets

    def header_bytes(self) -> _Bytes:
        """
        Give the header as it stands in the message, to the octet, with all edits so far: its lines
        end in CR LF, the empty line that follows it is not there.

        White space behind the colon is as it came where the MTA tells it (SMFIP_HDR_LEADSPC, which
        Postfix and Sendmail do); else there is one blank.
        """
        return self.headers.octets()

    def bytes(self) -> _Bytes:
        """
        Give the whole message, to the octet, with all edits so far: header, empty line, body.

        It is all in memory then; `open_bytes` gives a file.
        """
        return b"".join((self.header_bytes(), b"\r\n", self.body))

    def open_bytes(self) -> BinaryIO:
        """
        Open the whole message for reading, as `bytes` gives it: of a large body, no more than a
        piece is in memory.
        """
        self._check_body()
        header = self.header_bytes() + b"\r\n"
        return open_octets(
            header, self._received.body if self._new_body is None else self._new_body
        )

    # ---- parts

    def walk(self) -> Iterator[Part]:
        """
        Yield the message and all parts in it, in the order in which they begin.

        Nothing is copied or decoded that is not asked for. Parts that lie deeper than 100, and more
        than 10,000, are part of a leaf, which has a defect.
        """
        return find_parts(self._view(), self._all_fields()).walk()

    def email(self) -> EmailMessage:
        """
        Make an ``email.message.EmailMessage`` of the message, with all edits so far.

        Edits of that one reach the MTA with `replace`. It holds the whole message in memory.

        :raises LimitExceeded: for a body longer than ``max_email``: of that one make it with
            ``await msg.parsed()``, while other mail goes on.
        """
        size = self.size
        if size > self._received.max_email:
            raise LimitExceeded(
                f"the body has {size} bytes, more than max_email = {self._received.max_email}: use"
                " await msg.parsed(), which makes the object in a thread while other mail goes on"
            )
        return build_email(self._view(), self._all_fields())

    def parsed(self) -> Deferred[EmailMessage]:
        """
        Make what `email` makes, of a message of any size: of one longer than ``max_email`` in a
        thread.

        :return: A Deferred, to be awaited.
        """
        data, fields = self._view(), self._all_fields()
        if self.size > self._received.max_email:
            return deferToThread(build_email, data, fields)
        return succeed(build_email(data, fields))

    def _view(self) -> Octets:
        self._check_body()
        return self._received.body.view() if self._new_body is None else self._new_body

    def _all_fields(self) -> list[tuple[str, str]]:
        return [(field.name, field.full) for field in self.headers]

    def replace(self, email: AnyEmail) -> None:
        """
        Make header and body those of another message; what is the same stays as it is, and is not
        sent: of one that `email` has made, all that was not touched, to the octet.

        :raises ValueNotSendable: if it is not a message, or cannot be written.
        """
        fields, body = write_email(email)
        self.headers.rewrite(fields)
        old = self.body
        if body != old:
            # What an author writes ends its last line, unless that was open before.
            if body and not body.endswith(b"\n") and (not old or old.endswith(b"\n")):
                body += b"\r\n"
            self._set_body(body)

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
            leading = self._received.leading_space

            def shown(full: str) -> str:
                return full if leading else full[1:]

            old = [(name, shown(full)) for name, full in self._received.fields]
            wanted = [Wanted(f.origin, f.name, shown(f.full)) for f in self._received.headers]
            if [tuple(field[1:]) for field in wanted] != old:
                adds, changes = (bool(actions & f) for f in (c.SMFIF_ADDHDRS, c.SMFIF_CHGHDRS))
                edits += least_edits(
                    flavour, old, wanted, adds=adds, changes=changes, leading_space=leading
                )
        if self._quarantine is not None:
            edits.append(Quarantine(self._quarantine))
        if self._new_body is not None:
            edits.append(ReplaceBody(self._new_body))
        return edits
