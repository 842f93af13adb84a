"""
The commands of the milter protocol as methods: what they take, and the payload that it makes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress

from yatxmilter import constants as c
from yatxmilter._wire import commands, payloads
from yatxmilter._wire.actions import Agreement, EndOfMessage, Response
from yatxmilter._wire.payloads import ConnectInfo, from_text
from yatxmilter.errors import ValueNotSendable

__all__ = ["Dialogue", "Macros"]

Macros = Mapping[str, str]


def _strings(*texts: str | bytes) -> bytes:
    # A NUL would end the string for the milter, and begin another.
    encoded = [from_text(text) for text in texts]
    for text in encoded:
        if b"\0" in text:
            raise ValueNotSendable(f"{text!r} has a NUL in it")
    return payloads.encode_strings(*encoded)


def _connect_info(hostname: str, address: object) -> ConnectInfo:
    if address is None:
        return ConnectInfo(hostname, c.SMFIA_UNKNOWN, 0, "")
    if isinstance(address, IPv4Address):
        return ConnectInfo(hostname, c.SMFIA_INET, address.port, address.host)
    if isinstance(address, IPv6Address):
        return ConnectInfo(hostname, c.SMFIA_INET6, address.port, address.host)
    if isinstance(address, UNIXAddress):
        return ConnectInfo(hostname, c.SMFIA_UNIX, 0, payloads.to_text(address.name or b""))
    raise TypeError(f"{address!r} is not an IPv4Address, IPv6Address, UNIXAddress or None")


class Dialogue:
    """
    One method for each command; the answers come from `_ask`, which a subclass has.
    """

    @abstractmethod
    def _ask(
        self, row: commands.Command, payload: bytes = b"", macros: Macros | None = None
    ) -> Deferred[Any]:
        """
        Send a command in its turn; answer with its result.
        """

    def negotiate(
        self,
        version: int = c.SMFI_PROT_VERSION,
        actions: int = c.SMFI_CURR_ACTS,
        steps: int = c.SMFI_CURR_PROT,
    ) -> Deferred[Agreement]:
        """
        Offer a protocol version, actions and steps; the first command of every connection.
        """
        packet = payloads.encode_offer(payloads.Offer(version, actions, steps))
        return self._ask(commands.OPTNEG_ROW, packet[c.MILTER_LEN_BYTES + 1 :])

    def connect(
        self, hostname: str, address: IAddress | None = None, macros: Macros | None = None
    ) -> Deferred[Response]:
        """
        Announce the SMTP client.

        :param address: An address of `twisted.internet.address`; ``None`` if unknown.
        """
        info = _connect_info(hostname, address)
        _strings(info.hostname, info.address)
        payload = payloads.encode_connect(info)
        return self._ask(commands.CONNECT_ROW, payload, macros)

    def helo(self, helohost: str, macros: Macros | None = None) -> Deferred[Response]:
        """
        Pass on the argument of HELO or EHLO.
        """
        return self._ask(commands.HELO_ROW, _strings(helohost), macros)

    def mail(self, *argv: str, macros: Macros | None = None) -> Deferred[Response]:
        """
        Begin a message.

        :param argv: The envelope sender with its angle brackets, and its ESMTP arguments.
        """
        return self._envelope(commands.MAIL_ROW, argv, macros)

    def rcpt(self, *argv: str, macros: Macros | None = None) -> Deferred[Response]:
        """
        Add a recipient.

        :param argv: The envelope recipient with its angle brackets, and its ESMTP arguments.
        """
        return self._envelope(commands.RCPT_ROW, argv, macros)

    def _envelope(
        self, row: commands.Command, argv: tuple[str, ...], macros: Macros | None
    ) -> Deferred[Response]:
        if not argv:
            raise TypeError(f"{row.name} needs an address")
        return self._ask(row, _strings(*argv), macros)

    def data(self, macros: Macros | None = None) -> Deferred[Response]:
        """
        Announce the message's content.
        """
        return self._ask(commands.DATA_ROW, b"", macros)

    def unknown(self, line: str, macros: Macros | None = None) -> Deferred[Response]:
        """
        Pass on an SMTP command line that the MTA does not know.
        """
        return self._ask(commands.UNKNOWN_ROW, _strings(line), macros)

    def header(self, name: str, value: str, macros: Macros | None = None) -> Deferred[Response]:
        """
        Send a header field, as it is given: lines separated by LF, and with the blank after the
        colon where SMFIP_HDR_LEADSPC was agreed.
        """
        payload = _strings(name, value)
        return self._ask(commands.HEADER_ROW, payload, macros)

    def eoh(self, macros: Macros | None = None) -> Deferred[Response]:
        """
        End the header.
        """
        return self._ask(commands.EOH_ROW, b"", macros)

    def body(self, chunk: bytes, macros: Macros | None = None) -> Deferred[Response]:
        """
        Send body bytes, in as many packets as the agreed data size asks for.

        The answer is the one to the last packet; an answer that settles the message or the body
        keeps back the packets after it.
        """
        return self._ask(commands.BODY_ROW, chunk, macros)

    def end_of_message(
        self, chunk: bytes = b"", macros: Macros | None = None
    ) -> Deferred[EndOfMessage]:
        """
        End the message.

        :param chunk: A last body chunk; the protocol allows it, though today's MTAs send none.
        """
        return self._ask(commands.EOM_ROW, chunk, macros)

    def abort(self) -> Deferred[None]:
        """
        Give up the message; there is no answer to wait for.
        """
        return self._ask(commands.ABORT_ROW)

    def quit_nc(self) -> Deferred[None]:
        """
        End the SMTP session and keep the connection, for ``connect`` on the same agreement.
        """
        return self._ask(commands.QUIT_NC_ROW)

    def quit(self) -> Deferred[None]:
        """
        End the connection; fires when it is closed, by us if the milter leaves it open.
        """
        return self._ask(commands.QUIT_ROW)
