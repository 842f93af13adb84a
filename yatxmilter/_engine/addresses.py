"""
Addresses as Twisted has them: in ``xxfi_connect``'s arguments and in the log.
"""

from __future__ import annotations

import os
from typing import Final

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

from yatxmilter import constants as c
from yatxmilter._escaping import printable
from yatxmilter._wire.commands import ALL_COMMANDS, CONNECT_ROW
from yatxmilter._wire.payloads import from_text, read_connect

__all__ = ["DECODERS", "describe_address"]


def _connect_arguments(payload: bytes) -> tuple[str, object]:
    hostname, family, port, address = read_connect(payload)
    if family == c.SMFIA_INET:
        return hostname, IPv4Address("TCP", address, port)
    if family == c.SMFIA_INET6:
        return hostname, IPv6Address("TCP", address, port)
    if family == c.SMFIA_UNIX:
        return hostname, UNIXAddress(from_text(address))
    return hostname, None


#: How a command's payload becomes its callback's arguments, by `Command.index`.
DECODERS: Final = tuple(
    _connect_arguments if command is CONNECT_ROW else command.decode for command in ALL_COMMANDS
)


def describe_address(address: object) -> str:
    """
    Write an address for the log.
    """
    if isinstance(address, (IPv4Address, IPv6Address)):
        return printable(f"[{address.host}]:{address.port}")
    if isinstance(address, UNIXAddress):
        return printable(f"unix:{os.fsdecode(address.name or b'')}")
    return "unknown address" if address is None else printable(str(address))
