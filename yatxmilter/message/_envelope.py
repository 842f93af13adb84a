"""
Who sends a message to whom, and what can be answered to each.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import islice
from typing import Any

from twisted.internet.interfaces import IAddress

from yatxmilter import constants as c
from yatxmilter._mail.envelope import address_key, bare_address
from yatxmilter._wire.actions import AddRecipient, DeleteRecipient, Edit
from yatxmilter._wire.payloads import text_argument
from yatxmilter.constants import ReturnCode
from yatxmilter.errors import ValueNotSendable

__all__ = ["Client", "Recipient", "Recipients", "Verdict", "bare_address", "bracketed"]

#: Sets the SMTP reply: code, enhanced status code, lines.
SetReply = Callable[[str, str, list[str]], None]


def bracketed(what: str, address: object) -> str:
    """
    Put an address in angle brackets.

    :raises ValueNotSendable: if they cannot hold that text.
    """
    if not isinstance(address, str):
        raise ValueNotSendable(f"{what} {address!r} is not str")
    bare = bare_address(address)
    text_argument(what, bare)
    if any(mark in bare for mark in "\r\n\0<>"):
        raise ValueNotSendable(f"{what} {address!r} has a line end, NUL or angle bracket in it")
    return f"<{bare}>"


class Verdict:
    """
    What is answered to the MTA, once something is.

    Each of its methods returns the return code, so that ``return msg.reject(...)`` can be written.

    :ivar code: The return code; ``None`` as long as nothing is answered.
    """

    def __init__(self, set_reply: SetReply) -> None:
        self._set_reply = set_reply
        self._reply: tuple[str, str, list[str]] | None = None
        self.code: ReturnCode | None = None

    def reject(
        self, code: int = 550, status: str | None = None, text: str | None = None
    ) -> ReturnCode:
        """
        Refuse for good.

        :param code: The SMTP reply code, 5xx.
        :param status: The enhanced status code, by default 5.7.1.
        :param text: The text, one line of the reply for each of its lines; without any of these
            the MTA says what it likes.
        :raises ValueNotSendable: for an argument of another shape.
        """
        return self._refuse(c.SMFIS_REJECT, "reject", code, status, text, plain=code == 550)

    def tempfail(
        self, code: int = 451, status: str | None = None, text: str | None = None
    ) -> ReturnCode:
        """
        Refuse for now; as `reject`, with 4xx and 4.7.1.
        """
        return self._refuse(c.SMFIS_TEMPFAIL, "tempfail", code, status, text, plain=code == 451)

    def accept(self) -> ReturnCode:
        """
        Let it pass, and see no more of it.
        """
        return self._settle(c.SMFIS_ACCEPT)

    def repeat(self) -> None:
        """
        Set the reply once more: the MTA's answer uses it up.
        """
        if self._reply is not None:
            self._set_reply(*self._reply)

    def _refuse(
        self,
        verdict: ReturnCode,
        function: str,
        code: object,
        status: str | None,
        text: str | None,
        *,
        plain: bool,
    ) -> ReturnCode:
        reply = None
        if not plain or status is not None or text is not None:
            family = "5" if verdict is c.SMFIS_REJECT else "4"
            status = f"{family}.7.1" if status is None else status
            for value in (str(code), str(status)):
                if value[:1] != family:
                    raise ValueNotSendable(f"{function}() takes codes of {family}, not {value!r}")
            # The MTA makes one of two.
            lines = (text or "").replace("%", "%%").split("\n")
            reply = (str(code), status, lines)
            self._set_reply(*reply)
        return self._settle(verdict, reply)

    def _settle(
        self, code: ReturnCode, reply: tuple[str, str, list[str]] | None = None
    ) -> ReturnCode:
        self.code, self._reply = code, reply
        return code


class Client(Verdict):
    """
    The SMTP client.

    :ivar host: Its name, or its address in brackets.
    :ivar address: An ``IPv4Address``, ``IPv6Address`` or ``UNIXAddress``; ``None`` if unknown.
    :ivar helo: What it said with HELO or EHLO, ``None`` before.
    """

    def __init__(self, set_reply: SetReply, host: str, address: IAddress | None) -> None:
        super().__init__(set_reply)
        self.host = host
        self.address = address
        self.helo: str | None = None

    @property
    def ip(self) -> str | None:
        """
        Its IP address; ``None`` where it has none.
        """
        host: Any = getattr(self.address, "host", None)
        return host if isinstance(host, str) else None


class Recipient(Verdict):
    """
    A recipient; what is answered to one counts in the hook ``recipient`` only.

    :ivar address: Without angle brackets.
    :ivar args: Its ESMTP arguments.
    :ivar given: The address as the MTA has it.
    """

    def __init__(self, set_reply: SetReply, given: str, args: Sequence[str]) -> None:
        super().__init__(set_reply)
        self.given = given
        self.address = bare_address(given)
        self.args = tuple(args)

    def __repr__(self) -> str:
        return f"<Recipient {' '.join((self.given, *self.args))}>"


class Recipients:
    """
    The recipients of a message, those that were refused left out.

    :param allow: Raises for what cannot be done.
    """

    def __init__(self, set_reply: SetReply, allow: Callable[[str, int, int], None]) -> None:
        self._set_reply = set_reply
        self._allow = allow
        # Dictionaries, so that each is found at once; by their addresses, too.
        self._received: dict[Recipient, None] = {}
        self._list: dict[Recipient, None] = {}
        self._named: dict[Hashable, dict[Recipient, None]] = {}
        # Those received that are left out, by how they were given.
        self._removed: dict[tuple[str, tuple[str, ...]], Recipient] = {}

    def receive(self, argv: Sequence[str]) -> Recipient:
        """
        Take one that the client names.
        """
        recipient = Recipient(self._set_reply, argv[0], argv[1:])
        self._received[recipient] = None
        self._enter(recipient)
        return recipient

    @property
    def received(self) -> int:
        """
        How many the client has named that were not refused.
        """
        return len(self._received)

    def refuse(self, recipient: Recipient) -> None:
        """
        Forget one that is refused.
        """
        del self._received[recipient]
        if recipient in self._list:
            del self._list[recipient]
            del self._named[address_key(recipient.address)][recipient]

    def _enter(self, recipient: Recipient) -> None:
        self._list[recipient] = None
        self._named.setdefault(address_key(recipient.address), {})[recipient] = None

    def __iter__(self) -> Iterator[Recipient]:
        return iter(self._list)

    def __len__(self) -> int:
        return len(self._list)

    def __contains__(self, address: object) -> bool:
        return isinstance(address, str) and bool(self._named.get(address_key(address)))

    def add(self, address: str, args: str | None = None) -> None:
        """
        Add one; nothing happens if there is one of this address.

        :param args: Its ESMTP arguments, separated by blanks.
        """
        given = bracketed("recipient", address)
        words = () if args is None else args.split()
        if given == "<>":
            raise ValueNotSendable("recipient is empty")
        if "\0" in "".join(words):
            raise ValueNotSendable(f"ESMTP arguments {args!r} have a NUL in them")
        if address in self:
            return
        flag = c.SMFIF_ADDRCPT_PAR if words else c.SMFIF_ADDRCPT
        self._allow(f"adding recipient {given}", flag, len(given) + len(args or "") + 2)
        before = self._removed.get((given, tuple(words)))
        self._enter(Recipient(self._set_reply, given, words) if before is None else before)

    def remove(self, address: str) -> None:
        """
        Remove one.

        :raises ValueNotSendable: when there is none of this address.
        """
        if address not in self:
            some = ", ".join(recipient.address for recipient in islice(self._list, 10))
            more = " ..." if len(self._list) > 10 else ""
            raise ValueNotSendable(f"recipient {address!r} is not one of {some}{more}")
        self._allow(f"removing recipient {address}", c.SMFIF_DELRCPT, 0)
        for recipient in self._named.pop(address_key(address)):
            del self._list[recipient]
            if recipient in self._received:
                self._removed.setdefault((recipient.given, recipient.args), recipient)

    def edits(self) -> list[Edit]:
        """
        Give what makes of the recipients received these.
        """
        # The MTA removes all of one address.
        gone = dict.fromkeys(recipient.given for recipient in self._received)
        for recipient in self._list:
            if recipient in self._received:
                gone.pop(recipient.given, None)
        edits: list[Edit] = [DeleteRecipient(given) for given in gone]
        for recipient in self._list:
            if recipient not in self._received:
                edits.append(AddRecipient(recipient.given, " ".join(recipient.args) or None))
        return edits
