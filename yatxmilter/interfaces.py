"""
The interfaces between the library and its users.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.interfaces import IAddress
from twisted.python.failure import Failure
from zope.interface import Attribute, Interface

if TYPE_CHECKING:
    from yatxmilter.protocol import MilterProtocol

__all__ = ["IMilter", "IMilterFactory", "IMilterObserver"]


class IMilter(Interface):
    """
    One mail filter on one MTA connection; libmilter's ``struct smfiDesc`` and its ``ctx``.

    `yatxmilter.Milter` is the implementation to subclass: of it, only the callbacks that a
    subclass overrides are asked for. Of any other provider all are. Each callback but
    ``xxfi_abort``, ``xxfi_close`` and ``xxfi_mta_close``, whose results are ignored, returns a
    return code, a ``Deferred`` of one, a coroutine, or ``None``, which means SMFIS_CONTINUE.

    A provider that is not a `Milter` finds libmilter's ``smfi_*`` functions on the context that
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

    def build_milter(protocol: MilterProtocol) -> IMilter:
        """
        Build an `IMilter` for a connection; ``protocol`` is its `MilterProtocol`.

        The attributes ``on_error`` (what is answered for a callback that fails, as for
        `MilterFactory`), ``timeout`` (seconds one callback may take, or ``None``) and ``name`` of a
        factory are heeded where it has them.
        """


class IMilterObserver(Interface):
    """
    Is told what happens on the connections of a `MilterProtocolFactory`, as it happens.

    `yatxmilter.defaults.MilterObserver` has all methods, and each does nothing: subclass it and
    override what you want to know. A method that you do not override costs nothing. Give
    observers to the factory, as ``observers=`` or by ``addObserver()``: they are told of the
    connections that come after that.

    An observer is called in the reactor's thread, in the middle of the work, so it must not wait
    and must not change anything. What it raises is logged, once for each of its methods, and costs
    no answer. Results are ignored.

    ``connection`` is the `MilterProtocol`; ``milter`` the milter's name in logs; ``stage`` the name
    of a callback, such as ``"xxfi_envrcpt"``. Milters in shadow have a method of their own, the
    last, and appear in no other.
    """

    def connection_refused(address: object, reason: str) -> None:
        """
        A connection was not taken; ``address`` is where it came from, ``reason`` says why.
        """

    def connection_taken(connection: object) -> None:
        """
        A connection is taken, and its milters are built. Behind HAProxy it may be gone before it is
        known where it comes from; then the next two do not follow.
        """

    def connection_made(connection: object) -> None:
        """
        An MTA has connected; the milters have not been told yet.
        """

    def connection_lost(connection: object, reason: Failure) -> None:
        """
        The connection is gone, and the milters have been told.
        """

    def message_began(connection: object) -> None:
        """
        The first command of a message is about to be answered.
        """

    def message_ended(connection: object, outcome: str) -> None:
        """
        A message is over: ``outcome`` is what the MTA was told, ``"continue"``, ``"accept"``,
        ``"reject"``, ``"tempfail"`` or ``"discard"``; or ``"aborted"`` where it ended otherwise.
        """

    def callback_called(connection: object, milter: str, stage: str) -> None:
        """
        A callback is about to be called.
        """

    def callback_answered(
        connection: object, milter: str, stage: str, answer: str, seconds: float
    ) -> None:
        """
        A callback has answered, ``seconds`` after it was called.

        ``answer`` is a return code in a word, such as ``"tempfail"``, ``"continue"`` for ``None``
        too; ``"noreply"``; ``"error"`` for an exception or a wrong result; ``"cancelled"``
        where it was late or no longer needed; or ``"done"`` of a callback that gives no return
        code, such as ``xxfi_abort`` and ``xxfi_negotiate``.
        """

    def answer_sent(connection: object, stage: str, answer: str, reply: str | None) -> None:
        """
        The MTA is answered: ``answer`` is ``"continue"``, ``"accept"``, ``"reject"``,
        ``"tempfail"``, ``"discard"``, ``"skip"``, ``"progress"`` or ``"negotiated"``; ``reply`` is
        the text that goes with it, if there is one.
        """

    def edit_sent(connection: object, function: str, arguments: tuple[object, ...]) -> None:
        """
        An edit goes to the MTA: the name of the ``smfi_*`` function, and its arguments as they
        stand in the packet. The answer to the end of the message follows.
        """

    def milter_failed(
        connection: object, milter: str, stage: str, kind: str, failure: Failure
    ) -> None:
        """
        A milter has failed; it is logged, and its ``on_error`` is the answer.

        ``kind`` is ``"timeout"``; ``"return_code"`` for an answer that is not legal there;
        ``"negotiation"`` for a request that cannot be met; ``"limit"`` for more than an option
        allows; ``"error"`` for every other exception. ``stage`` is ``"build_milter"`` where the
        milter could not be built.
        """

    def mta_failed(connection: object, kind: str, description: str) -> None:
        """
        The connection is ended for what the MTA did or left undone: ``kind`` is ``"silent"``,
        ``"slow_command"``, ``"not_reading"``, ``"not_closing"``, ``"protocol"``, ``"macros"`` (too
        many) or ``"tls"``; ``description`` says the same at length, and may quote the MTA.
        """

    def bytes_received(connection: object, count: int) -> None:
        """
        So many bytes were read from the MTA.
        """

    def bytes_sent(connection: object, count: int) -> None:
        """
        So many bytes are written for the MTA.
        """

    def shadow_message_ended(connection: object, milter: str, outcome: str) -> None:
        """
        A message is over for a milter in shadow: ``outcome`` is what it would have answered, in a
        word; ``"undecided"``; or ``"cut_off"`` where it was too far behind.

        This may come when the connection is gone.
        """
