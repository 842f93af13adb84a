"""
``python -m yatxmilter demo``: two small milters at work on a message, over real TCP.

Both ends are the library's own. Two milters, one of them asynchronous, share a port of the loopback
interface that the system picks; a `MilterClient` plays an MTA to them. It is the client that tells
the story, command by command, out of the table of commands; what each milter answered the two have
noted down themselves, in a journal that is read at each response.
"""

from __future__ import annotations

import functools
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TextIO, cast

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater

from yatxmilter import constants as c
from yatxmilter._cli.report import KINDS, short_name, shortened, tell_outcome
from yatxmilter._cli.running import Interrupted, run_reactor
from yatxmilter._cli.terminal import Page
from yatxmilter._mail.rfc5322 import split_mail
from yatxmilter._wire.commands import (
    BODY_ROW,
    CALLBACK_STEPS,
    CONNECT_ROW,
    EOM_ROW,
    HEADER_ROW,
    Command,
)
from yatxmilter.client import (
    Agreement,
    EndOfMessage,
    MilterClient,
    MilterClientFactory,
    Outcome,
    Response,
    apply_edits,
    select_macros,
)
from yatxmilter.constants import ReturnCode, action_names, step_names
from yatxmilter.defaults import Milter, MilterFactory
from yatxmilter.errors import MilterError
from yatxmilter.protocol import MilterProtocolFactory

__all__ = ["add_arguments", "demonstrate", "run"]

_SENDER: Final = "<workshop@example.org>"
_RECIPIENTS: Final = ("<reader@example.net>", "<nobody@example.net>")
_CLIENT: Final = IPv4Address("TCP", "192.0.2.25", 40025)
_MACROS: Final = {
    "j": "mx.example.net",
    "i": "4dZq2L0XyZz9x",
    "{daemon_name}": "demo",
    "{client_addr}": _CLIENT.host,
}

# How long, in seconds, the asynchronous milter pretends to look something up.
_LOOK_UP: Final = 0.05


# ---- the milters


def _noted(callback: Callable[..., Any]) -> Callable[..., Any]:
    """
    Have a callback note its return code in the journal.
    """

    @functools.wraps(callback)
    def call(self: Any, *args: Any) -> Any:
        def note(code: ReturnCode | None) -> ReturnCode:
            code = c.SMFIS_CONTINUE if code is None else code
            self.factory.journal[self.xxfi_name] = code
            return code

        answer = callback(self, *args)
        if isinstance(answer, Coroutine):
            return Deferred.fromCoroutine(answer).addCallback(note)
        return note(answer)

    return call


class Tagger(Milter):
    """
    Look at header and body, and change the header at the end.
    """

    xxfi_flags = c.SMFIF_ADDHDRS | c.SMFIF_CHGHDRS

    @_noted
    def xxfi_envfrom(self, argv: list[str]) -> None:
        """
        Begin to count anew: one connection has many messages.
        """
        self.subject: str | None = None
        self.has_priority = False
        self.size = 0

    @_noted
    def xxfi_header(self, headerf: str, headerv: str) -> None:
        """
        Remember what is needed at the end.
        """
        if headerf.lower() == "subject" and self.subject is None:
            self.subject = headerv
        elif headerf.lower() == "x-priority":
            self.has_priority = True

    @_noted
    def xxfi_body(self, bodyp: bytes) -> None:
        """
        Count bytes.
        """
        self.size += len(bodyp)

    @_noted
    def xxfi_eom(self) -> ReturnCode:
        """
        Insert, change, delete and add header fields.
        """
        queue_id = self.smfi_getsymval("i")
        self.smfi_insheader(0, "X-Demo-Tagger", f"queue id {queue_id},\n {self.size} body bytes")
        if self.subject is not None:
            self.smfi_chgheader("Subject", 1, f"[demo] {self.subject}")
        if self.has_priority:
            self.smfi_chgheader("X-Priority", 1, None)
        return c.SMFIS_CONTINUE


class Guard(Milter):
    """
    Look recipients up, as in a database that takes its time, and refuse one.
    """

    xxfi_flags = c.SMFIF_ADDHDRS

    def _look_up(self) -> Deferred[None]:
        factory: Any = self.factory
        return deferLater(factory.reactor, _LOOK_UP)

    @_noted
    def xxfi_envfrom(self, argv: list[str]) -> None:
        """
        Begin a new list of the refused.
        """
        self.refused: list[str] = []

    @_noted
    async def xxfi_envrcpt(self, argv: list[str]) -> ReturnCode:
        """
        Let all recipients pass, but one.
        """
        await self._look_up()
        if argv[0].startswith("<nobody@"):
            self.refused.append(argv[0])
            self.smfi_setreply("550", "5.1.1", "Nobody lives here")
            return c.SMFIS_REJECT
        return c.SMFIS_CONTINUE

    @_noted
    async def xxfi_eom(self) -> ReturnCode:
        """
        Take time here too, and tell the MTA so.
        """
        self.smfi_progress()
        await self._look_up()
        self.smfi_addheader("X-Demo-Guard", f"{len(self.refused)} recipient refused")
        return c.SMFIS_ACCEPT


class _DemoFactory(MilterFactory):
    def __init__(self, milter: type[Milter], reactor: Any, journal: dict[str, ReturnCode]) -> None:
        super().__init__(milter)
        self.reactor = reactor
        self.journal = journal


# ---- what is printed


def _flags(names: str) -> list[str]:
    return names.split("|")


def _wrapped(page: Page, label: str, words: Iterable[str]) -> None:
    line = f"  {label:<9}"
    for word in words:
        if len(line) + len(word) > 98:
            page.line(line)
            line = " " * 11
        line += " " + word
    page.line(line)


def _arguments(row: Command, payload: bytes) -> str:
    if row is BODY_ROW:
        return f"{len(payload)} bytes"
    values: tuple[Any, ...] = row.decode(payload) or ()
    if row is CONNECT_ROW:
        hostname, _, port, address = values
        return f"{hostname} [{address}]:{port}"
    if row is HEADER_ROW:
        return ": ".join(values)
    # MAIL and RCPT have a list, HELO a word, the others nothing.
    return " ".join(word for value in values for word in ([value], value)[isinstance(value, list)])


class _Narrator(MilterClient):
    """
    A client that tells of each command that gets an answer.
    """

    page: Page
    journal: dict[str, ReturnCode]

    def _ask(
        self,
        row: Command,
        payload: bytes = b"",
        macros: Mapping[str, str] | None = None,
        *,
        inner: bool = False,
    ) -> Any:
        result = super()._ask(row, payload, macros, inner=inner)
        return result.addCallback(self._tell, row, payload) if row in CALLBACK_STEPS else result

    def _tell(self, result: Any, row: Command, payload: bytes) -> Any:
        response: Response = result.response if isinstance(result, EndOfMessage) else result
        name = "eom" if row is EOM_ROW else row.name.lower()
        step = f"  {name:<9} {shortened(_arguments(row, payload))}".rstrip()
        if not response.letter:
            self.page.line(f"{step:<11} (not asked for)", "dim")
            return result
        self.page.line(step)
        answers = "".join(f"{name} {short_name(code)}, " for name, code in self.journal.items())
        self.journal.clear()
        verdict = f"together {short_name(response.code)} {response.text or ''}"
        self.page.line(" " * 12 + answers + verdict, KINDS.get(response.code, ""))
        return result


def _tell_agreement(page: Page, agreement: Agreement) -> None:
    page.title("Negotiation")
    _wrapped(page, "offered", [f"version {c.SMFI_PROT_VERSION}"])
    _wrapped(page, "", _flags(action_names(c.SMFI_CURR_ACTS)))
    _wrapped(page, "", _flags(step_names(c.SMFI_CURR_PROT)))
    _wrapped(page, "agreed", [f"version {agreement.version}"])
    _wrapped(page, "", _flags(action_names(agreement.actions)))
    _wrapped(page, "", _flags(step_names(agreement.steps)))


# ---- the play


async def demonstrate(reactor: Any, message: bytes, page: Page) -> Outcome:
    """
    Start the milters, play the message to them, tell of it, and stop the milters.
    """
    journal: dict[str, ReturnCode] = {}
    factories = [_DemoFactory(milter, reactor, journal) for milter in (Tagger, Guard)]
    port: IListeningPort = reactor.listenTCP(
        0, MilterProtocolFactory(factories), interface="127.0.0.1"
    )
    try:
        number = cast(IPv4Address, port.getHost()).port
        page.line(f"Two milters, {Tagger.xxfi_name} and {Guard.xxfi_name}, on 127.0.0.1:{number}")
        return await _play(reactor, number, message, page, journal)
    finally:
        await cast(Any, port.stopListening())


async def _play(
    reactor: Any, number: int, message: bytes, page: Page, journal: dict[str, ReturnCode]
) -> Outcome:
    factory = MilterClientFactory(timeout=30, clock=reactor)
    factory.protocol = _Narrator
    endpoint: Any = TCP4ClientEndpoint(reactor, "127.0.0.1", number)
    client: _Narrator = await endpoint.connect(cast(Factory, factory))
    client.page, client.journal = page, journal
    agreement = await client.negotiate()
    _tell_agreement(page, agreement)
    page.title("Conversation")
    macros = select_macros(agreement, c.SMFIM_CONNECT, _MACROS)
    await client.connect("mail.example.org", _CLIENT, macros)
    await client.helo("mail.example.org", {})
    outcome = await client.send_message(message, _SENDER, _RECIPIENTS, macros=_MACROS)
    await client.quit()
    tell_outcome(page, outcome, message, apply_edits(message, outcome.edits))
    return outcome


# ---- the command


def add_arguments(parser: ArgumentParser) -> None:
    """
    Declare the command's arguments.
    """
    parser.add_argument(
        "message",
        nargs="?",
        type=Path,
        default=Path(__file__).with_name("demo.eml"),
        help="a message file, header and body; by default the one that comes with the package",
    )


def run(arguments: Namespace, *, reactor: Any = None, out: TextIO | None = None) -> int:
    """
    Run the command: 0 when it went well, 1 when it did not, 2 for a file that cannot be used.
    """
    try:
        message = arguments.message.read_bytes()
    except OSError as error:
        sys.stderr.write(f"yatxmilter demo: cannot read {arguments.message}: {error.strerror}\n")
        return 2
    if not split_mail(message).fields:
        sys.stderr.write(f"yatxmilter demo: {arguments.message} does not begin with a header\n")
        return 2
    page = Page(out or sys.stdout)

    async def play(reactor: Any) -> None:
        await demonstrate(reactor, message, page)

    try:
        run_reactor(play, reactor)
    except MilterError as error:
        # Others - no port to be had, a pipe that was closed - are not for us to judge.
        sys.stderr.write(f"yatxmilter demo: {error}\n")
        return 1
    except Interrupted:
        return 1
    return 0
