"""
The addresses of one remote milter: how each does, and which of them is asked next.

An address that fails is left out for a while, and for twice as long each time it fails again. To be
left out means to come last, not never: when all of them are, all are tried. So it does no harm to
leave one out that was not to blame, as when a message makes each host fail that sees it.

A host that is broken, but takes connections, would have the fewest of them and so draw them all:
that is why it counts as a failure, too, when one breaks off later; and why an address is only back
on its feet when an SMTP connection has come to a good end on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.logger import Logger

from yatxmilter._escaping import printable

__all__ = ["Address", "AddressState", "Addresses"]

_log = Logger()

# For how long, in seconds, an address is left out that has failed, and at most if it goes on so.
_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 60.0


class AddressState(NamedTuple):
    """
    How one address of a remote milter does.

    :ivar address: As it was given to the factory; an endpoint object is ``endpoint 1``, the place
        that it has among the addresses.
    :ivar up: Whether it is asked like the others; else it is left out, because it failed.
    :ivar open: How many SMTP connections use it now.
    :ivar connections: How many connections to it were made and negotiated, ever.
    :ivar failures: How often it could not be had, or a connection to it failed later on.
    """

    address: str
    up: bool
    open: int
    connections: int
    failures: int


class Address:
    """
    One address.

    :ivar where: What the user has given; ``name``: what it is called.
    :ivar used: How many SMTP connections use it, or wait for it.
    :ivar picked: When it was last chosen, as a number that grows.
    :ivar out: Whether it is left out; ``until``: at least to this time.
    :ivar in_a_row: How many failures there were since an SMTP connection came to a good end.
    :ivar tried: Whether somebody is just finding out if it is back.
    """

    def __init__(self, where: str | IStreamClientEndpoint, name: str) -> None:
        self.where = where
        self.name = name
        self.used = self.picked = self.made = self.failures = self.in_a_row = 0
        self.out = self.tried = False
        self.until = 0.0

    def state(self) -> AddressState:
        """
        Tell how it does.
        """
        return AddressState(self.name, not self.out, self.used, self.made, self.failures)


class Addresses:
    """
    All of them.

    :param places: Where the milter is, each address once.
    :param milter: What it is called in the log.
    :ivar several: Whether there is a choice; one that is alone is never left out.
    """

    def __init__(self, places: Sequence[str | IStreamClientEndpoint], milter: str) -> None:
        self.all = [
            Address(where, where if isinstance(where, str) else f"endpoint {number}")
            for number, where in enumerate(places, 1)
        ]
        self.several = len(self.all) > 1
        self._milter = milter
        self._picks = 0

    def in_order(self) -> list[Address]:
        """
        Give them as they are to be tried: first the one with the fewest connections, in turn where
        these are equal; at the end those that are left out, the one that is back soonest first.
        """
        return sorted(
            self.all,
            key=lambda one: (
                one.out,
                *((one.until, 0.0) if one.out else (float(one.used), float(one.picked))),
            ),
        )

    def pick(self, address: Address) -> None:
        """
        Take note that one is chosen.
        """
        self._picks += 1
        address.picked = self._picks

    def to_be_tried(self, now: float) -> list[Address]:
        """
        Give those that have been left out for long enough; none when no other can be asked
        meanwhile.
        """
        if all(one.out for one in self.all):
            return []
        return [one for one in self.all if one.out and not one.tried and now >= one.until]

    def failed(self, address: Address, now: float, error: object) -> None:
        """
        Take note of a failure, and leave the address out.
        """
        address.failures += 1
        if not self.several:
            return
        address.in_a_row += 1
        # The exponent has a bound, too: a float has one.
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(address.in_a_row - 1, 10))
        address.until = now + pause
        if not address.out:
            address.out = True
            _log.warn(
                "Milter {milter}: {address} is left out for now: {error}",
                milter=self._milter,
                address=address.name,
                error=printable(str(error)) or type(error).__name__,
            )

    def answered(self, address: Address) -> None:
        """
        Take note that one can be had, and negotiates.
        """
        address.made += 1
        if address.out:
            address.out = False
            _log.info(
                "Milter {milter}: {address} can be had again",
                milter=self._milter,
                address=address.name,
            )

    def ended_well(self, address: Address) -> None:
        """
        Take note that an SMTP connection came to its end.
        """
        address.in_a_row = 0
