"""
The arguments of ``yatxmilter send``, and the session that they describe.
"""

from __future__ import annotations

import math
import socket
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path
from typing import Final

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress

from yatxmilter import constants as c
from yatxmilter._cli.messages import bracketed
from yatxmilter._cli.send_play import Session
from yatxmilter._cli.send_results import EXPECTATIONS
from yatxmilter.client._profiles import FLAVOURS
from yatxmilter.protocol._endpoints import check_client_spec

__all__ = [
    "add_arguments",
    "add_session_arguments",
    "make_session",
    "read_connections",
    "read_seconds",
]

# More than a process has descriptors for.
_MOST_CONNECTIONS: Final = 10_000

#: The stages at which macros can be given, and the letters of their commands.
_STAGES: Final = {
    "connect": c.SMFIC_CONNECT,
    "helo": c.SMFIC_HELO,
    "mail": c.SMFIC_MAIL,
    "rcpt": c.SMFIC_RCPT,
    "data": c.SMFIC_DATA,
    "header": c.SMFIC_HEADER,
    "eoh": c.SMFIC_EOH,
    "body": c.SMFIC_BODY,
    "eom": c.SMFIC_BODYEOB,
}

#: What a session over TLS has.
_TLS: Final = {
    "tls_version": "TLSv1.3",
    "cipher": "TLS_AES_256_GCM_SHA384",
    "cipher_bits": "256",
}

#: What each MTA says of itself, by which milters tell them apart.
_VERSIONS: Final = {"postfix": "Postfix 3.7.11", "sendmail": "8.17.1"}

_Macro = tuple[str, str, str]


def add_arguments(parser: ArgumentParser) -> None:
    """
    Declare the command's arguments.
    """
    parser.add_argument(
        "messages",
        nargs="+",
        metavar="MESSAGE",
        help="a message file, an mbox, a Maildir or a folder of message files; - is standard input",
    )
    parser.add_argument(
        "--to",
        required=True,
        metavar="SPEC",
        type=_spec,
        help="the milter: inet:port@host, inet6:port@host, unix:/path, or an endpoint of Twisted",
    )
    add_session_arguments(parser)
    _add_run(parser)
    _add_output(parser)


def add_session_arguments(parser: ArgumentParser) -> None:
    """
    Declare those of the session that `make_session` makes, all but the milter's address and the
    time to wait.
    """
    _add_client(parser)
    _add_envelope(parser)
    _add_macros(parser)


def _add_client(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("the SMTP client that the milter is told of")
    group.add_argument(
        "--client",
        metavar="ADDRESS",
        type=_client,
        default="192.0.2.25",
        help="IPv4 or IPv6 address, unix:/path, or unknown (default: %(default)s)",
    )
    group.add_argument(
        "--client-port", metavar="PORT", type=_port, default=40025, help="default: %(default)s"
    )
    group.add_argument(
        "--client-name", metavar="NAME", default="mail.example.net", help="default: %(default)s"
    )
    group.add_argument("--helo", metavar="NAME", help="by default the client's name")
    group.add_argument(
        "--tls", action="store_true", help="set the macros of a session over TLS: {tls_version} ..."
    )
    group.add_argument(
        "--auth", metavar="USER", help="set those of a user who has logged in: {auth_authen} ..."
    )


def _add_envelope(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("the envelope, by default that of each message")
    group.add_argument(
        "--from",
        dest="sender",
        metavar="ADDRESS",
        type=bracketed,
        help="by default from the mbox's From line, or Return-Path, Sender or From",
    )
    group.add_argument(
        "--rcpt",
        dest="recipients",
        metavar="ADDRESS",
        type=bracketed,
        action="append",
        default=[],
        help="repeat for more; by default Delivered-To, or To, Cc and Bcc, or <postmaster>",
    )
    for command in ("mail", "rcpt"):
        group.add_argument(
            f"--{command}-arg",
            metavar="ARG",
            action="append",
            default=[],
            help=f"an ESMTP argument of {command.upper()}, repeat for more",
        )


def _add_macros(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("the MTA that is played")
    group.add_argument(
        "--flavour",
        choices=tuple(FLAVOURS),
        default="postfix",
        help="which macros are sent when, and by whose rules edits are made (default: %(default)s)",
    )
    group.add_argument(
        "--macro",
        dest="macros",
        metavar="[STAGE:]NAME=VALUE",
        type=_macro,
        action="append",
        default=[],
        help="sent where the milter, or the MTA's default list, asks for it; with a stage"
        f" ({' '.join(_STAGES)}) in any case there; repeat for more",
    )


def _add_run(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("how much, and for how long")
    group.add_argument(
        "--repeat", metavar="N", type=_count, default=1, help="send each message N times"
    )
    group.add_argument(
        "--concurrency",
        metavar="N",
        type=read_connections,
        default=1,
        help="N connections at once",
    )
    group.add_argument(
        "--reuse", action="store_true", help="send many messages over each connection, not one"
    )
    group.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=read_seconds,
        default=300.0,
        help="to wait for one answer (default: %(default)g); to connect 30 at most",
    )
    group.add_argument(
        "--max-time",
        metavar="SECONDS",
        type=read_seconds,
        help="for all of it; the rest is given up",
    )


def _add_output(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("what comes out")
    group.add_argument(
        "--expect",
        metavar="WORD[,WORD]",
        type=_words,
        default=(),
        help=f"what each message should meet: {', '.join(EXPECTATIONS)}",
    )
    group.add_argument(
        "--save",
        metavar="FOLDER",
        type=Path,
        help="write each message that is delivered, as it is delivered, to FOLDER/NUMBER.eml",
    )
    form = group.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="a JSON object a message, one a line")
    form.add_argument("-b", "--brief", action="store_true", help="one line a message")
    form.add_argument("-q", "--quiet", action="store_true", help="one line for all of it")


def make_session(arguments: Namespace) -> Session:
    """
    Make the session that the arguments describe.
    """
    address = _address(arguments.client, arguments.client_port)
    return Session(
        where=arguments.to,
        hostname=arguments.client_name,
        address=address,
        helo=arguments.helo if arguments.helo is not None else arguments.client_name,
        sender=arguments.sender,
        recipients=tuple(arguments.recipients),
        sender_args=tuple(arguments.mail_arg),
        recipient_args=tuple(arguments.rcpt_arg),
        macros=_known(arguments),
        forced=_forced(arguments.macros),
        flavour=arguments.flavour,
        timeout=arguments.timeout,
    )


def _known(arguments: Namespace) -> dict[str, str]:
    name, address = arguments.client_name, arguments.client
    known = {
        "j": socket.gethostname(),
        "v": _VERSIONS[arguments.flavour],
        "_": f"{name} [{address}]",
        "daemon_name": "yatxmilter",
        "daemon_addr": "127.0.0.1",
        "client_name": name,
        "client_ptr": name,
        "client_addr": address,
        "client_port": str(arguments.client_port),
        "client_resolve": "OK",
        "mail_mailer": "smtp",
        "rcpt_mailer": "smtp",
    }
    if arguments.tls:
        known.update(_TLS)
    if arguments.auth is not None:
        known.update(auth_type="PLAIN", auth_authen=arguments.auth)
    known.update((name, value) for stage, name, value in arguments.macros if not stage)
    return known


def _forced(macros: list[_Macro]) -> dict[int, dict[str, str]]:
    forced: dict[int, dict[str, str]] = {}
    for stage, name, value in macros:
        if stage:
            # On the wire a name of one letter has no braces, a longer one has.
            written = name if len(name) == 1 else f"{{{name}}}"
            forced.setdefault(_STAGES[stage], {})[written] = value
    return forced


# ---- values


def _address(client: str, port: int) -> IAddress | None:
    if client == "unknown":
        return None
    if client.startswith("unix:"):
        return UNIXAddress(client.removeprefix("unix:").encode("utf-8", "surrogateescape"))
    kind = IPv6Address if isIPv6Address(client) else IPv4Address
    return kind("TCP", client, port)


def _client(text: str) -> str:
    text = text.removeprefix("[").removesuffix("]")
    address = isIPAddress(text) or isIPv6Address(text)
    if address or text == "unknown" or text.startswith("unix:/"):
        return text
    raise ArgumentTypeError(f"{text!r} is not an IPv4 or IPv6 address, unix:/path or unknown")


def _spec(text: str) -> str:
    try:
        check_client_spec(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from error
    return text


def _macro(text: str) -> _Macro:
    name, equals, value = text.partition("=")
    stage, colon, rest = name.partition(":")
    if not colon:
        stage, rest = "", name
    rest = rest.strip("{}")
    if not equals or not rest or (stage and stage not in _STAGES) or (colon and not stage):
        raise ArgumentTypeError(
            f"{text!r} is not a macro: expected NAME=VALUE, or STAGE:NAME=VALUE with a stage of"
            f" {', '.join(_STAGES)}"
        )
    return stage, rest, value


def _words(text: str) -> tuple[str, ...]:
    words = tuple(text.split(","))
    for word in words:
        if word not in EXPECTATIONS:
            raise ArgumentTypeError(f"{word!r} is none of {', '.join(EXPECTATIONS)}")
    return words


def _count(text: str) -> int:
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    raise ArgumentTypeError(f"{text!r} is not a whole number above 0")


def read_connections(text: str) -> int:
    """
    Read how many connections there may be at once.
    """
    count = _count(text)
    if count > _MOST_CONNECTIONS:
        raise ArgumentTypeError(f"{text!r} is more than {_MOST_CONNECTIONS}, the most there may be")
    return count


def _port(text: str) -> int:
    if text.isascii() and text.isdigit() and int(text) <= 0xFFFF:
        return int(text)
    raise ArgumentTypeError(f"{text!r} is not a port: expected a number from 0 to 65535")


def read_seconds(text: str) -> float:
    """
    Read a time that is more than none.
    """
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if 0 < seconds < math.inf:
        return seconds
    raise ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
