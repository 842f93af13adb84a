"""
The envelope's rules: which addresses are the same, and what edits make of a list of recipients.

RFC 5321 has it so (2.4, 4.1.2): the local part counts as it is written, quoted or not, the domain
in any case, and a source route is ignored. Angle brackets and blanks around are not part of an
address.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable
from typing import Final, TypeVar

from yatxmilter._wire.actions import AddRecipient, DeleteRecipient, Edit

__all__ = ["address_key", "bare_address", "edit_recipients", "same_address"]

T = TypeVar("T")

_ROUTE: Final = re.compile(r"@[^:\"]*:")
_QUOTED_PAIR: Final = re.compile(r"\\(.)", re.DOTALL)


def bare_address(address: str) -> str:
    """
    Take the angle brackets off an address, and the blanks around it.
    """
    address = address.strip()
    return address[1:-1] if address[:1] == "<" and address[-1:] == ">" else address


def address_key(address: str) -> Hashable:
    """
    Give what is equal for two spellings of one address, and for no others.
    """
    bare = bare_address(address)
    route = _ROUTE.match(bare)
    if route is not None:
        bare = bare[route.end() :]
    local, at, domain = bare.rpartition("@")
    if not at:
        local, domain = bare, ""
    if len(local) > 1 and local[0] == local[-1] == '"':
        local = _QUOTED_PAIR.sub(r"\1", local[1:-1])
    return local, at, domain.lower()


def same_address(one: str, other: str) -> bool:
    """
    Tell whether two spellings, with angle brackets or without, are one address.
    """
    return address_key(one) == address_key(other)


def edit_recipients(
    recipients: Iterable[T],
    edits: Iterable[Edit],
    address_of: Callable[[T], str],
    make: Callable[[AddRecipient], T],
    *,
    merges: bool = True,
) -> list[T]:
    """
    Add and delete recipients, as an MTA does when it is told so.

    :param address_of: Gives the address of a recipient.
    :param make: Makes the recipient that is added.
    :param merges: Whether one that is there already is not added again.
    """
    # A number for each, so that all of one address are found, and gone, at once.
    left: dict[int, T] = dict(enumerate(recipients))
    numbers: dict[Hashable, list[int]] = {}
    for number, recipient in left.items():
        numbers.setdefault(address_key(address_of(recipient)), []).append(number)
    count = len(left)
    for edit in edits:
        if isinstance(edit, AddRecipient):
            same = numbers.setdefault(address_key(edit.address), [])
            if not (merges and same):
                left[count] = make(edit)
                same.append(count)
                count += 1
        elif isinstance(edit, DeleteRecipient):
            for number in numbers.pop(address_key(edit.address), ()):
                del left[number]
    return list(left.values())
