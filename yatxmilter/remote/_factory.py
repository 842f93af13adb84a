"""
Milters that run elsewhere, as members of the list of milters.

Any program that speaks the milter protocol - OpenDKIM, clamav-milter, one written with libmilter -
stands beside milters of this process::

    MilterProtocolFactory(
        [MilterFactory(Disclaimer), RemoteMilterFactory("inet:8891@127.0.0.1")], merge="chain"
    )
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.internet.interfaces import IStreamClientEndpoint

from yatxmilter import constants as c
from yatxmilter._engine.on_error import OnError
from yatxmilter._mail.bounds import MAX_EDIT_BYTES, MAX_NEW_BODY
from yatxmilter._options import count_option, name_option, seconds_option
from yatxmilter.defaults import MilterFactory
from yatxmilter.protocol._endpoints import check_client_spec
from yatxmilter.remote._addresses import AddressState
from yatxmilter.remote._member import RemoteMilter
from yatxmilter.remote._pool import Connections

__all__ = ["AddressState", "RemoteMilter", "RemoteMilterFactory"]


class RemoteMilterFactory(MilterFactory):
    """
    Builds, for each MTA connection, the stand-in of a milter that runs elsewhere.

    It may run on several hosts, all with the same configuration: each MTA connection has one of
    them to itself, of those that work the one with the fewest.

    :param where: Its address, such as ``inet:8891@127.0.0.1`` or ``unix:/run/x``; or an endpoint;
        or several of these.
    :param on_error: What stands for its answers, from the command on where it cannot be reached,
        is late or breaks the protocol, to the end of the MTA connection; SMFIS_CONTINUE goes on
        without it. As for `MilterFactory`.
    :param timeout: Seconds it may take for one answer, anew after each PROGRESS; ``None`` for any
        time.
    :param connect_timeout: Seconds a connection to it may take; the MTA is waiting meanwhile. If
        there are several addresses that is for each, and its negotiation may take as long; over TLS
        handshake and negotiation together, too.
    :param max_edit_bytes: Bytes of edits that it may make of one message, the new body aside;
        ``None`` for any number. Above that it has failed.
    :param max_edits: How many edits it may make of one message, the pieces of the new body aside;
        ``None`` for any number within ``max_edit_bytes``. Above that it has failed.
    :param max_body: Bytes of the new body that it may give one message, likewise.
    :param reuse: Whether a connection to it may serve one SMTP connection after the other, if the
        milter can do that.
    :param name: Its name in logs and metrics; by default its address.
    :param reactor: What connects and keeps time; by default Twisted's reactor.
    :param options: What other options `MilterFactory` has.
    :raises TypeError: for an option of the wrong type.
    :raises ValueError: if an address is not one, or an option is out of range.
    """

    def __init__(
        self,
        where: str | IStreamClientEndpoint | Iterable[str | IStreamClientEndpoint],
        *,
        on_error: OnError = c.SMFIS_TEMPFAIL,
        timeout: float | None = 300,
        connect_timeout: float = 5,
        max_edit_bytes: int | None = MAX_EDIT_BYTES,
        max_edits: int | None = None,
        max_body: int | None = MAX_NEW_BODY,
        reuse: bool = False,
        name: str | None = None,
        reactor: Any = None,
        **options: Any,
    ) -> None:
        places = _places(where)
        names = [one for one in places if isinstance(one, str)]
        name = name_option("name", name) or ", ".join(names) or "remote milter"
        seconds = seconds_option("connect_timeout", connect_timeout)
        if seconds is None:
            raise TypeError("connect_timeout is None, expected seconds")
        count_option("max_edit_bytes", max_edit_bytes)
        count_option("max_edits", max_edits)
        count_option("max_body", max_body)
        if not isinstance(reuse, bool):
            raise TypeError(f"reuse is {reuse!r}, expected True or False")
        # The limit on a callback stays open: the one on an answer knows of PROGRESS.
        super().__init__(RemoteMilter, on_error=on_error, timeout=None, name=name, **options)
        self.connections = Connections(
            places,
            name=name,
            timeout=seconds_option("timeout", timeout),
            connect_timeout=seconds,
            reuse=reuse,
            reactor=reactor,
            max_edit_bytes=max_edit_bytes,
            max_edits=max_edits,
            max_body=max_body,
        )

    def remote_addresses(self) -> list[AddressState]:
        """
        Tell how each of its addresses does, in the order in which they were given.
        """
        return self.connections.states

    def close(self) -> None:
        """
        End the connections that are kept for the next SMTP connection.
        """
        self.connections.close()

    def stop(self) -> None:
        """
        Do the same when the last user of this factory ends.
        """
        self.close()


def _places(where: object) -> list[Any]:
    """
    Read the addresses.

    :raises TypeError: for what is none.
    :raises ValueError: likewise; for one that is there twice, and for none at all.
    """
    if isinstance(where, str) or IStreamClientEndpoint.providedBy(where):
        places = [where]
    elif isinstance(where, Iterable) and not isinstance(where, (bytes, bytearray)):
        places = list(where)
    else:
        raise TypeError(f"where is {where!r}, expected an address, an endpoint or several of these")
    if not places:
        raise ValueError("where is empty, expected at least one address")
    for number, one in enumerate(places):
        if not IStreamClientEndpoint.providedBy(one):
            check_client_spec(one)
        if one in places[:number]:
            raise ValueError(f"where has {one!r} twice, expected each address once")
    return places
