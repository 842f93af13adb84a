"""
The interfaces between the library and its users.
"""

from __future__ import annotations

from twisted.internet.interfaces import IAddress
from twisted.python.failure import Failure
from zope.interface import Attribute, Interface

__all__ = ["IMilter", "IMilterFactory"]


class IMilter(Interface):
    """
    One mail filter on one MTA connection; libmilter's ``struct smfiDesc`` and its ``ctx``.

    `yatxmilter.Milter` is the implementation to subclass: of it, only the callbacks that a
    subclass overrides are asked for. Of any other provider all are. Each callback but
    ``xxfi_abort``, ``xxfi_close`` and ``xxfi_mta_close``, whose results are ignored, returns a
    return code, a ``Deferred`` of one, a coroutine, or ``None``, which means SMFIS_CONTINUE.

    A provider that is no `Milter` finds libmilter's ``smfi_*`` functions on the context that
    ``protocol.contextOf(milter)`` gives.
    """

    xxfi_name = Attribute("The milter's name in logs and metrics: str.")
    xxfi_flags = Attribute("The SMFIF_* flags it needs: int, or None for all that are offered.")

    def xxfi_mta_connect(address: IAddress) -> object:
        """
        The MTA has connected from ``address`` (an ``IAddress``); nothing is negotiated yet.

        A return code other than SMFIS_CONTINUE and SMFIS_ACCEPT closes the connection.
        """

    def xxfi_negotiate(actions: int, steps: int) -> object:
        """
        The MTA offers these ``SMFIF_*`` and ``SMFIP_*`` flags.
        """

    def xxfi_connect(hostname: str, hostaddr: IAddress | None) -> object:
        """
        An SMTP client has connected to the MTA.
        """

    def xxfi_helo(helohost: str) -> object:
        """
        The client said HELO or EHLO.
        """

    def xxfi_envfrom(argv: list[str]) -> object:
        """
        A message begins: MAIL, the envelope sender first, then its ESMTP arguments.
        """

    def xxfi_envrcpt(argv: list[str]) -> object:
        """
        RCPT: the envelope recipient first, then its ESMTP arguments.
        """

    def xxfi_data() -> object:
        """
        The client said DATA.
        """

    def xxfi_unknown(arg: str) -> object:
        """
        The client sent an SMTP command that the MTA does not know.
        """

    def xxfi_header(headerf: str, headerv: str) -> object:
        """
        A header field: name and value.
        """

    def xxfi_eoh() -> object:
        """
        The header has ended.
        """

    def xxfi_body(bodyp: bytes) -> object:
        """
        A chunk of the body.
        """

    def xxfi_eom() -> object:
        """
        The message has ended; now it may be changed.
        """

    def xxfi_abort() -> object:
        """
        The message that was open has ended otherwise than by this milter.
        """

    def xxfi_close() -> object:
        """
        The conversation is over.
        """

    def xxfi_mta_close(reason: Failure) -> object:
        """
        The connection from the MTA is gone; ``reason`` is a ``Failure``.
        """


class IMilterFactory(Interface):
    """
    Builds one milter for each MTA connection.

    A factory may have the methods ``start()`` and ``stop()``, without arguments, either of which
    may return a Deferred or be a coroutine. ``start`` is called before the first connection is
    taken; when it fails the milters are not served. ``stop`` is called when the last connection has
    gone, after a reload, too. A factory that several servers of a process use is started by the
    first of them and stopped by the last.
    """

    def build_milter(protocol: object) -> object:
        """
        Build an `IMilter` for a connection; ``protocol`` is its `MilterProtocol`.

        The attributes ``on_error`` (what is answered for a callback that fails, as for
        `MilterFactory`), ``timeout`` (seconds one callback may take, or ``None``) and ``name`` of a
        factory are heeded where it has them.
        """
