"""
The MTA's side of the milter protocol.

`MilterClient` is a Twisted protocol with one method for each command, which answers with a
Deferred, and `MilterClient.send_message`, which plays a whole message as Postfix does. It works
with any milter, and it stands on the tables and the codec of the milter's side::

    client = await connect_milter("inet:8891@localhost")
    await client.negotiate()
    await client.connect("mail.example.org", IPv4Address("TCP", "192.0.2.1", 25000))
    await client.helo("mail.example.org")
    outcome = await client.send_message(message, "<a@example.org>", ["<b@example.net>"])
    await client.quit()

What was negotiated is honoured: a declined command is not sent, one that needs no answer is not
waited for, and nothing is sent that the agreed version does not know.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from twisted.internet import endpoints
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IAddress, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import ClientFactory

from yatxmilter import commands, wire
from yatxmilter import constants as c
from yatxmilter.delivery import apply_edits
from yatxmilter.errors import PeerError, ValueNotSendable
from yatxmilter.exchange import CommandQueue
from yatxmilter.responses import (
    AddHeader,
    AddRecipient,
    Agreement,
    ChangeHeader,
    ChangeSender,
    DeleteRecipient,
    Edit,
    EndOfMessage,
    InsertHeader,
    Quarantine,
    ReplaceBody,
    Response,
)
from yatxmilter.transaction import Envelope, Outcome, Recipient, play, select_macros
from yatxmilter.wire import ConnectInfo, from_text

__all__ = [
    "AddHeader",
    "AddRecipient",
    "Agreement",
    "ChangeHeader",
    "ChangeSender",
    "DeleteRecipient",
    "Edit",
    "EndOfMessage",
    "InsertHeader",
    "MilterClient",
    "MilterClientFactory",
    "Outcome",
    "PeerError",
    "Quarantine",
    "Recipient",
    "ReplaceBody",
    "Response",
    "apply_edits",
    "connect_milter",
    "milter_endpoint",
    "select_macros",
]

Macros = Mapping[str, str]


def _strings(*texts: str | bytes) -> bytes:
    encoded = [from_text(text) for text in texts]
    for text in encoded:
        if b"\0" in text:
            raise ValueNotSendable(f"{text!r} has a NUL in it")
    return wire.encode_strings(*encoded)


def _connect_info(hostname: str, address: object) -> ConnectInfo:
    if address is None:
        return ConnectInfo(hostname, c.SMFIA_UNKNOWN, 0, "")
    if isinstance(address, IPv4Address):
        return ConnectInfo(hostname, c.SMFIA_INET, address.port, address.host)
    if isinstance(address, IPv6Address):
        return ConnectInfo(hostname, c.SMFIA_INET6, address.port, address.host)
    if isinstance(address, UNIXAddress):
        return ConnectInfo(hostname, c.SMFIA_UNIX, 0, wire.to_text(address.name or b""))
    raise TypeError(f"{address!r} is no IPv4Address, IPv6Address, UNIXAddress or None")


class MilterClient(CommandQueue):
    """
    One connection to a milter, seen from the MTA.

    Commands may be called without waiting for the ones before: they are sent in order, each when
    those before it are answered. Every method answers with a Deferred. It fails with a `PeerError`
    when the milter breaks the protocol, is late, or goes away; then the connection is closed, and
    everything else that waits fails too. A ``macros`` argument, even an empty one, is sent in a
    packet of its own in front of the command.

    :ivar standing: The stage and response with which ``connect`` or ``helo`` settled all that
        follows; ``None`` while messages are to be sent.
    """

    standing: tuple[str, Response] | None = None

    def __init__(
        self,
        *,
        timeout: float | None = 300.0,
        clock: IReactorTime | None = None,
        progress: Callable[[str], object] | None = None,
    ) -> None:
        super().__init__(timeout=timeout, clock=clock, progress=progress)
        self._messages = DeferredLock()

    def _command(self, row: commands.Command, payload: bytes, macros: Macros | None) -> Any:
        packet = None if macros is None else wire.encode_macros(row.letter, dict(macros))
        return self._ask(row, payload, packet)

    def turn(self) -> Deferred[Response]:
        """
        Wait until every command asked for so far is answered; nothing is sent.
        """
        return self._ask(commands.MACRO_ROW)

    def negotiate(
        self,
        version: int = c.SMFI_PROT_VERSION,
        actions: int = c.SMFI_CURR_ACTS,
        steps: int = c.SMFI_CURR_PROT,
    ) -> Deferred[Agreement]:
        """
        Offer a protocol version, actions and steps; the first command of every connection.
        """
        packet = wire.encode_offer(wire.Offer(version, actions, steps))
        return self._ask(commands.OPTNEG_ROW, packet[c.MILTER_LEN_BYTES + 1 :])

    def connect(
        self, hostname: str, address: IAddress | None = None, macros: Macros | None = None
    ) -> Deferred[Response]:
        """
        Announce the SMTP client.

        :param address: An address of `twisted.internet.address`; ``None`` if unknown.
        """
        payload = wire.encode_connect(_connect_info(hostname, address))
        return self._greeting(commands.CONNECT_ROW, payload, macros, "connect")

    def helo(self, helohost: str, macros: Macros | None = None) -> Deferred[Response]:
        """
        Pass on the argument of HELO or EHLO.
        """
        return self._greeting(commands.HELO_ROW, _strings(helohost), macros, "helo")

    def _greeting(
        self, row: commands.Command, payload: bytes, macros: Macros | None, stage: str
    ) -> Deferred[Response]:
        def settle(response: Response) -> Response:
            if response.code in (c.SMFIS_REJECT, c.SMFIS_TEMPFAIL, c.SMFIS_ACCEPT):
                self.standing = stage, response
            elif self.standing is not None and self.standing[0] == stage:
                self.standing = None
            return response

        result: Deferred[Response] = self._command(row, payload, macros)
        return result.addCallback(settle)

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
        return cast(Deferred[Response], self._command(row, _strings(*argv), macros))

    def data(self, macros: Macros | None = None) -> Deferred[Response]:
        """
        Announce the message's content.
        """
        return cast(Deferred[Response], self._command(commands.DATA_ROW, b"", macros))

    def unknown(self, line: str, macros: Macros | None = None) -> Deferred[Response]:
        """
        Pass on an SMTP command line that the MTA does not know.
        """
        return cast(Deferred[Response], self._command(commands.UNKNOWN_ROW, _strings(line), macros))

    def header(self, name: str, value: str, macros: Macros | None = None) -> Deferred[Response]:
        """
        Send a header field, as it is given: lines separated by LF, and with the blank after the
        colon where SMFIP_HDR_LEADSPC was agreed.
        """
        payload = _strings(name, value)
        return cast(Deferred[Response], self._command(commands.HEADER_ROW, payload, macros))

    def eoh(self, macros: Macros | None = None) -> Deferred[Response]:
        """
        End the header.
        """
        return cast(Deferred[Response], self._command(commands.EOH_ROW, b"", macros))

    def body(self, chunk: bytes, macros: Macros | None = None) -> Deferred[Response]:
        """
        Send body bytes, in as many packets as the agreed data size asks for.

        The answer is the one to the last packet; an answer that settles the message or the body
        keeps back the packets after it.
        """
        return cast(Deferred[Response], self._command(commands.BODY_ROW, chunk, macros))

    def end_of_message(
        self, chunk: bytes = b"", macros: Macros | None = None
    ) -> Deferred[EndOfMessage]:
        """
        End the message.

        :param chunk: A last body chunk; the protocol allows it, though today's MTAs send none.
        """
        return cast(Deferred[EndOfMessage], self._command(commands.EOM_ROW, chunk, macros))

    def abort(self) -> Deferred[None]:
        """
        Give up the message; there is no answer to wait for.
        """
        return self._ask(commands.ABORT_ROW)

    def quit_nc(self) -> Deferred[None]:
        """
        End the SMTP session and keep the connection, for ``connect`` on the same agreement.
        """

        def forget(_: object) -> None:
            self.standing = None

        return self._ask(commands.QUIT_NC_ROW).addCallback(forget)

    def quit(self) -> Deferred[None]:
        """
        End the connection; fires when it is closed, by us if the milter leaves it open.
        """
        return self._ask(commands.QUIT_ROW)

    def send_message(
        self,
        message: bytes,
        sender: str = "<>",
        recipients: Iterable[str] = (),
        *,
        sender_args: Sequence[str] = (),
        recipient_args: Mapping[str, Sequence[str]] | None = None,
        macros: Macros | None = None,
    ) -> Deferred[Outcome]:
        """
        Play a message as Postfix does, from MAIL to the end.

        Messages may be sent without waiting for the one before. Once ``connect`` or ``helo`` was
        answered with more than CONTINUE nothing is sent, and that is the outcome.

        :param message: A message file: header, empty line, body; in either kind of line end.
        :param recipients: Addresses, at least one.
        :param recipient_args: ESMTP arguments, by recipient.
        :param macros: What there is to know, such as ``{"i": "4Xyz"}``; the milter's symbol lists
            and the defaults decide what is sent when.
        """
        addresses = tuple(recipients)
        if not addresses:
            raise ValueError("a message needs a recipient")
        envelope = Envelope(sender, addresses, tuple(sender_args), recipient_args or {})
        values = dict(macros or {})
        return self._messages.run(
            lambda: Deferred.fromCoroutine(play(self, message, envelope, values))
        )


class MilterClientFactory(ClientFactory):
    """
    Build clients; the arguments are those of `MilterClient`.

    :cvar protocol: The class to build.
    """

    noisy = False
    protocol: type[MilterClient] = MilterClient

    def __init__(
        self,
        *,
        timeout: float | None = 300.0,
        clock: IReactorTime | None = None,
        progress: Callable[[str], object] | None = None,
    ) -> None:
        self.timeout = timeout
        self.clock = clock
        self.progress = progress

    def buildProtocol(self, addr: IAddress | None) -> MilterClient:
        """
        Build the client of one connection.
        """
        client = self.protocol(timeout=self.timeout, clock=self.clock, progress=self.progress)
        client.factory = self
        return client


def milter_endpoint(reactor: Any, spec: str) -> IStreamClientEndpoint:
    """
    Make an endpoint of a milter's address.

    :param spec: As libmilter and the MTAs write it - ``inet:port@host``, ``inet6:port@host``,
        ``unix:/path``, ``local:/path``, ``/path`` - or a Twisted endpoint, ``tcp:host:port``.
    :raises ValueError: when it is neither.
    """
    # Twisted's endpoints are not annotated.
    make: Any = endpoints
    endpoint: IStreamClientEndpoint
    kind, _, rest = spec.partition(":")
    if kind in ("inet", "inet6"):
        port, _, host = rest.partition("@")
        try:
            number = int(port) if port.isdigit() else socket.getservbyname(port, "tcp")
        except OSError:
            raise ValueError(f"{spec!r} names no port; expected {kind}:port@host") from None
        host = host.removeprefix("[").removesuffix("]")
        if kind == "inet":
            endpoint = make.TCP4ClientEndpoint(reactor, host or "127.0.0.1", number)
        else:
            endpoint = make.TCP6ClientEndpoint(reactor, host or "::1", number)
    elif spec.startswith("/") or kind == "local":
        path = spec if spec.startswith("/") else rest
        endpoint = make.UNIXClientEndpoint(reactor, path)
    else:
        endpoint = make.clientFromString(reactor, spec)
    return endpoint


def connect_milter(
    where: str | IStreamClientEndpoint,
    *,
    timeout: float | None = 300.0,
    clock: IReactorTime | None = None,
    progress: Callable[[str], object] | None = None,
    reactor: Any = None,
) -> Deferred[MilterClient]:
    """
    Connect to a milter.

    :param where: An endpoint, or an address for `milter_endpoint`.
    :param timeout: And ``clock`` and ``progress``: see `MilterClient`.
    :param reactor: Needed for an address, by default the global one.
    """
    if isinstance(where, str):
        if reactor is None:
            from twisted.internet import reactor
        where = milter_endpoint(reactor, where)
    factory = MilterClientFactory(timeout=timeout, clock=clock, progress=progress)
    return cast(Deferred[MilterClient], where.connect(factory))
