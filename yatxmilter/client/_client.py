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

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import ClientFactory

from yatxmilter._mail.bounds import MAX_EDIT_BYTES, MAX_NEW_BODY
from yatxmilter._options import limit_option
from yatxmilter._wire import commands
from yatxmilter._wire.actions import Response
from yatxmilter.client._command_queue import CommandQueue
from yatxmilter.client._commands import Dialogue, Macros
from yatxmilter.client._message import Envelope, Outcome, play
from yatxmilter.client._profiles import CLIENT
from yatxmilter.client._session_script import SessionScript
from yatxmilter.protocol._endpoints import client_endpoint

__all__ = ["MilterClient", "MilterClientFactory", "connect_milter"]


class MilterClient(CommandQueue, Dialogue):
    """
    One connection to a milter, seen from the MTA.

    Commands may be called without waiting for the ones before: they are sent in order, each when
    those before it are answered. Every method answers with a Deferred. It fails with a `PeerError`
    when the milter breaks the protocol, is late, or goes away; then the connection is closed, and
    everything else that waits fails too. A ``macros`` argument, even an empty one, is sent in a
    packet of its own in front of the command.
    """

    def turn(self) -> Deferred[Response]:
        """
        Wait until every command asked for so far is answered; nothing is sent.
        """
        return self._ask(commands.MACRO_ROW)

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

        The commands of a message stay together: whatever is asked for after it, another message
        included, waits until it is done. Once ``connect`` or ``helo`` was
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
        script = SessionScript(self, CLIENT, macros or {}, inner=True)
        return Deferred.fromCoroutine(self._play(script, message, envelope))

    async def _play(
        self,
        script: SessionScript,
        message: bytes,
        envelope: Envelope,
        queue_id: str | None = None,
    ) -> Outcome:
        await self._hold()
        try:
            return await play(script, message, envelope, queue_id)
        finally:
            self._release()


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
        max_edit_bytes: int | None = MAX_EDIT_BYTES,
        max_edits: int | None = None,
        max_body: int | None = MAX_NEW_BODY,
    ) -> None:
        limit_option("max_edit_bytes", max_edit_bytes)
        limit_option("max_edits", max_edits)
        limit_option("max_body", max_body)
        self.timeout = timeout
        self.clock = clock
        self.progress = progress
        self.max_edit_bytes = max_edit_bytes
        self.max_edits = max_edits
        self.max_body = max_body

    def buildProtocol(self, addr: IAddress | None) -> MilterClient:
        """
        Build the client of one connection.
        """
        client = self.protocol(
            timeout=self.timeout,
            clock=self.clock,
            progress=self.progress,
            max_edit_bytes=self.max_edit_bytes,
            max_edits=self.max_edits,
            max_body=self.max_body,
        )
        client.factory = self
        return client


def connect_milter(
    where: str | IStreamClientEndpoint,
    *,
    timeout: float | None = 300.0,
    clock: IReactorTime | None = None,
    progress: Callable[[str], object] | None = None,
    max_edit_bytes: int | None = MAX_EDIT_BYTES,
    max_edits: int | None = None,
    max_body: int | None = MAX_NEW_BODY,
    reactor: Any = None,
) -> Deferred[MilterClient]:
    """
    Connect to a milter.

    :param where: An endpoint, or an address for `client_endpoint`.
    :param timeout: And ``clock``, ``progress``, ``max_edit_bytes``, ``max_edits`` and ``max_body``:
        see `MilterClient`.
    :param reactor: Needed for an address, by default the global one.
    """
    if isinstance(where, str):
        if reactor is None:
            from twisted.internet import reactor
        where = client_endpoint(reactor, where)
    factory = MilterClientFactory(
        timeout=timeout,
        clock=clock,
        progress=progress,
        max_edit_bytes=max_edit_bytes,
        max_edits=max_edits,
        max_body=max_body,
    )
    return cast(Deferred[MilterClient], where.connect(factory))
