"""
What users subclass: `Milter`, with a method for each callback and each function of libmilter.

A `Milter` does nothing by itself. Of its callbacks only those that a subclass overrides are asked
of the MTA, so one that looks at recipients alone costs the MTA one command a recipient.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType, SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from twisted.internet.interfaces import IAddress
from twisted.python.failure import Failure
from zope.interface import implementer

from yatxmilter import constants as c
from yatxmilter._describing import described
from yatxmilter._engine.callback_names import check_milter_class
from yatxmilter._engine.context import Body, Context
from yatxmilter._engine.decorators import (
    leading_space,
    noreply,
    rejected_recipients,
    symlist,
    threaded,
)
from yatxmilter._engine.legacy import NegotiateFlags, NetworkTypes, ReturnCodes, take_old_names
from yatxmilter._engine.member import Member
from yatxmilter._engine.on_error import OnError, on_error_option
from yatxmilter._engine.shadow_statistics import Shadow, shadow_option
from yatxmilter._options import (
    CALLBACK_TIMEOUT,
    callable_option,
    name_option,
    seconds_option,
)
from yatxmilter.conditions import Condition, MailView, condition_option
from yatxmilter.errors import ValueNotSendable, WrongStage
from yatxmilter.interfaces import IMilter, IMilterFactory, IMilterObserver

if TYPE_CHECKING:
    from yatxmilter.protocol import MilterProtocol

__all__ = [
    "Milter",
    "MilterFactory",
    "MilterObserver",
    "Shadow",
    "leading_space",
    "noreply",
    "rejected_recipients",
    "symlist",
    "threaded",
]

#: What a callback may return: a return code, or a Deferred, a coroutine or a Future of one.
CallbackResult = int | None | Awaitable[int | None]
_Negotiated = int | tuple[int, int, int] | list[int] | None
#: What ``xxfi_negotiate`` may return.
NegotiateResult = _Negotiated | Awaitable[_Negotiated]


@implementer(IMilter)
class Milter:
    """
    One mail filter on one MTA connection; libmilter's ``struct smfiDesc`` and its ``ctx`` in one.

    Override the callbacks (``xxfi_*``) that you need; each returns a return code (``SMFIS_*``), a
    Deferred of one, a coroutine, or ``None``, which means SMFIS_CONTINUE. Call the functions
    (``smfi_*``) from them: modification actions from ``xxfi_eom`` only. Keep state of your own on
    ``self``; it lives as long as the MTA's connection, over any number of messages.

    :ivar factory: The `MilterFactory` that built it.
    :ivar protocol: The `MilterProtocol` it is on.
    """

    ReturnCodes = ReturnCodes
    NetworkTypes = NetworkTypes
    NegotiateFlags = NegotiateFlags

    #: Its name in logs and metrics: by default the class's name.
    xxfi_name: ClassVar[str] = "Milter"
    #: The ``SMFIF_*`` flags that it needs; ``None`` for every action that the MTA offers.
    xxfi_flags: int | None = None

    factory: MilterFactory = None  # type: ignore[assignment]
    protocol: MilterProtocol = None  # type: ignore[assignment]
    _member: Member | None = None
    _named: ClassVar[bool] = False
    # What stands for callbacks, in classes that have other methods for the author, and for which.
    _hooks: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def __init__(self, factory: MilterFactory, protocol: MilterProtocol) -> None:
        self.factory = factory
        self.protocol = protocol

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_milter_class(cls, Milter, cls._hooks)
        take_old_names(cls)
        if "xxfi_name" in vars(cls):
            cls._named = True
        elif not cls._named:
            cls.xxfi_name = cls.__name__

    # ---- callbacks

    def xxfi_mta_connect(self, address: IAddress) -> CallbackResult:
        """
        The MTA has connected; ours, without a counterpart in libmilter.

        A return code other than SMFIS_CONTINUE and SMFIS_ACCEPT closes the connection.
        """
        return c.SMFIS_CONTINUE

    def xxfi_negotiate(self, actions: int, steps: int) -> NegotiateResult:
        """
        Settle what is done on this connection.

        Not needed by most: without it ``xxfi_flags`` and the callbacks overridden say all.

        :param actions: The ``SMFIF_*`` flags that the MTA offers.
        :param steps: The ``SMFIP_*`` flags that the MTA offers, and all ``SMFIP_NR_*``.
        :return: SMFIS_CONTINUE (as without it), SMFIS_ALL_OPTS (all that is offered),
            SMFIS_REJECT, or ``(SMFIS_CONTINUE, actions, steps)``: exactly these.
        """
        return c.SMFIS_CONTINUE

    def xxfi_connect(self, hostname: str, hostaddr: IAddress | None) -> CallbackResult:
        """
        An SMTP client has connected to the MTA.

        :param hostname: Its name, or its address in brackets.
        :param hostaddr: An ``IPv4Address``, ``IPv6Address`` or ``UNIXAddress``; ``None`` when
            it is unknown.
        """
        return c.SMFIS_CONTINUE

    def xxfi_helo(self, helohost: str) -> CallbackResult:
        """
        The client said HELO or EHLO.
        """
        return c.SMFIS_CONTINUE

    def xxfi_envfrom(self, argv: list[str]) -> CallbackResult:
        """
        A message begins.

        :param argv: The envelope sender, with its angle brackets, and its ESMTP arguments.
        """
        return c.SMFIS_CONTINUE

    def xxfi_envrcpt(self, argv: list[str]) -> CallbackResult:
        """
        A recipient of the message; REJECT and TEMPFAIL are about that recipient alone.

        :param argv: The envelope recipient, with its angle brackets, and its ESMTP arguments.
        """
        return c.SMFIS_CONTINUE

    def xxfi_data(self) -> CallbackResult:
        """
        The client said DATA.
        """
        return c.SMFIS_CONTINUE

    def xxfi_unknown(self, arg: str) -> CallbackResult:
        """
        The client sent a command that the MTA does not know.

        :param arg: The whole command line.
        """
        return c.SMFIS_CONTINUE

    def xxfi_header(self, headerf: str, headerv: str) -> CallbackResult:
        """
        A header field of the message.

        :param headerf: Its name.
        :param headerv: Its value; lines of a folded one are separated by LF and white space.
        """
        return c.SMFIS_CONTINUE

    def xxfi_eoh(self) -> CallbackResult:
        """
        The header of the message has ended.
        """
        return c.SMFIS_CONTINUE

    def xxfi_body(self, bodyp: bytes) -> CallbackResult:
        """
        A chunk of the body; SMFIS_SKIP asks for no more of them.
        """
        return c.SMFIS_CONTINUE

    def xxfi_eom(self) -> CallbackResult:
        """
        The message has ended; now, and only now, it may be changed.
        """
        return c.SMFIS_CONTINUE

    def xxfi_abort(self) -> object:
        """
        The message has ended, and not by this milter: the client gave up, another milter decided.
        """

    def xxfi_close(self) -> object:
        """
        The conversation is over; called once, whatever happened.
        """

    def xxfi_mta_close(self, reason: Failure) -> object:
        """
        The connection from the MTA is gone; ours, without a counterpart in libmilter.
        """

    # ---- functions

    @property
    def message_state(self) -> SimpleNamespace:
        """
        Keep what is the milter's own for one message: a namespace that is new for each.

        It is the message's from ``xxfi_envfrom`` to ``xxfi_eom`` or ``xxfi_abort``, and stays until
        the next message begins.
        """
        return self._ctx().message_state

    def _ctx(self) -> Context:
        member = self._member
        if member is None:
            raise WrongStage(f"{self.xxfi_name} is not on a connection (addMilter puts it there)")
        return member.context

    def smfi_getsymval(self, symname: str | bytes) -> str | None:
        """
        Look up a macro of the MTA, such as ``"i"`` or ``"{client_addr}"``; ``None`` if unknown.
        """
        return self._ctx().getsymval(symname)

    def smfi_setreply(
        self,
        rcode: str | bytes,
        xcode: str | bytes | None = None,
        message: str | bytes | None = None,
    ) -> None:
        """
        Set the text of the SMTP reply that goes with REJECT (``5xx``) or TEMPFAIL (``4xx``).

        A ``%`` must be doubled, as for libmilter. With ``421`` the MTA closes the SMTP connection
        when it has said so.

        :param rcode: The reply code, three digits.
        :param xcode: The enhanced status code, such as ``"5.7.1"``.
        :param message: One line of at most 980 bytes.
        :raises ValueNotSendable: for an argument of another shape.
        """
        self._ctx().setreply(rcode, xcode, message)

    def smfi_setmlreply(
        self, rcode: str | bytes, xcode: str | bytes | None, *lines: str | bytes
    ) -> None:
        """
        Set the text of an SMTP reply of 1 to 32 lines; otherwise as `smfi_setreply`.
        """
        self._ctx().setmlreply(rcode, xcode, *lines)

    def smfi_addheader(self, headerf: str | bytes, headerv: str | bytes) -> None:
        """
        Add a header field at the end. Needs SMFIF_ADDHDRS.

        :raises UsageError: where libmilter answers MI_FAILURE; so do all modification actions.
        """
        self._ctx().addheader(headerf, headerv)

    def smfi_chgheader(
        self, headerf: str | bytes, hdridx: int, headerv: str | bytes | None
    ) -> None:
        """
        Change a header field, or delete it. Needs SMFIF_CHGHDRS.

        :param hdridx: Which of those of that name, counted from 1.
        :param headerv: The new value; ``None`` or empty deletes the field.
        :raises ValueNotSendable: for 0, too, which MTAs would take for 1.
        """
        if hdridx == 0:
            raise ValueNotSendable(
                f"smfi_chgheader({described(headerf)}, 0): the fields of a name are counted from 1"
            )
        self._ctx().chgheader(headerf, hdridx, headerv)

    def smfi_insheader(self, hdridx: int, headerf: str | bytes, headerv: str | bytes) -> None:
        """
        Insert a header field at a place in the header. Needs SMFIF_ADDHDRS.

        :param hdridx: The place: 0 is above all others.
        """
        self._ctx().insheader(hdridx, headerf, headerv)

    def smfi_chgfrom(self, mail: str | bytes, args: str | bytes | None = None) -> None:
        """
        Change the envelope sender, and its ESMTP arguments. Needs SMFIF_CHGFROM.
        """
        self._ctx().chgfrom(mail, args)

    def smfi_addrcpt(self, rcpt: str | bytes) -> None:
        """
        Add an envelope recipient. Needs SMFIF_ADDRCPT.
        """
        self._ctx().addrcpt(rcpt)

    def smfi_addrcpt_par(self, rcpt: str | bytes, args: str | bytes | None = None) -> None:
        """
        Add an envelope recipient with ESMTP arguments. Needs SMFIF_ADDRCPT_PAR.
        """
        self._ctx().addrcpt_par(rcpt, args)

    def smfi_delrcpt(self, rcpt: str | bytes) -> None:
        """
        Remove an envelope recipient. Needs SMFIF_DELRCPT.
        """
        self._ctx().delrcpt(rcpt)

    def smfi_replacebody(self, bodyp: Body) -> None:
        """
        Replace the body, CRLF at its line ends; further calls append. Needs SMFIF_CHGBODY.

        :param bodyp: Bytes or a text; or an iterable of pieces of it, or an open file, which is
            read to its end. What it costs is bounded by ``max_body``, an option of the server;
            where it fails nothing of it is kept.
        """
        self._ctx().replacebody(bodyp)

    def smfi_progress(self, *, any_stage: bool = False) -> None:
        """
        Tell the MTA at once that ``xxfi_eom`` is still at work.

        The library does so by itself, every ``progress_interval`` seconds.

        :param any_stage: Tell it in other callbacks, too, as libmilter does. Postfix then waits
            longer for the answer; Sendmail takes it at the end of a message only.
        """
        self._ctx().progress(any_stage=any_stage)

    def smfi_quarantine(self, reason: str | bytes) -> None:
        """
        Have the MTA hold the message. Needs SMFIF_QUARANTINE.

        This is no verdict: return SMFIS_CONTINUE or SMFIS_ACCEPT with it.
        """
        self._ctx().quarantine(reason)

    def smfi_setsymlist(self, stage: int, macros: str | bytes) -> None:
        """
        Ask for the macros of a stage, in ``xxfi_negotiate`` only.

        :param stage: ``SMFIM_CONNECT`` ... ``SMFIM_EOH``.
        :param macros: Names separated by blanks, those of more than one letter in braces.
        """
        self._ctx().setsymlist(stage, macros)

    def smfi_version(self) -> tuple[int, int, int]:
        """
        Tell which version of libmilter this library answers for: major, minor, patch level.
        """
        version = c.SMFI_VERSION
        return version >> 24 & 0x7F, version >> 8 & 0xFFFF, version & 0x7F


@implementer(IMilterFactory)
class MilterFactory:
    """
    Builds a milter for each MTA connection.

    :param milter: The `Milter` subclass, or any callable that takes this factory and the protocol
        and gives an `IMilter`.
    :param on_error: What is answered for a callback that fails: SMFIS_TEMPFAIL, SMFIS_CONTINUE,
        SMFIS_ACCEPT, SMFIS_REJECT or SMFIS_DISCARD; a `yatxmilter.Reply`, which is a code with its
        text; or `yatxmilter.DISCONNECT`, which closes the connection, so that the MTA's own
        default action decides. Or a mapping of stages (``"eom"`` or ``"xxfi_eom"``) to one of
        these, with ``"default"`` for those it does not name (SMFIS_TEMPFAIL).
    :param timeout: Seconds one callback may take; ``None`` for any time.
    :param name: The milter's name in logs and metrics, in place of its ``xxfi_name``.
    :param when: Which mail the milter is for: a condition (`yatxmilter.conditions`), or a function
        that takes a `MailView`. It sees nothing of other mail.
    :param shadow: Whether the milter works in shadow: what it answers is logged and counted, and
        nothing of it reaches the MTA.
    :raises TypeError: for a milter that is none.
    :raises ValueError: for an option out of range.
    :ivar shadow: With ``shadow=True``, the `Shadow` that counts; ``None`` otherwise.
    """

    milter: Callable[..., Milter | IMilter] = Milter
    on_error: OnError = c.SMFIS_TEMPFAIL
    timeout: float | None = CALLBACK_TIMEOUT
    name: str | None = None
    when: Condition | None = None
    shadow: Shadow | None = None

    def __init__(
        self,
        milter: Callable[..., Milter | IMilter] = Milter,
        *,
        on_error: OnError = c.SMFIS_TEMPFAIL,
        timeout: float | None = CALLBACK_TIMEOUT,
        name: str | None = None,
        when: Condition | Callable[[MailView], object] | None = None,
        shadow: bool = False,
    ) -> None:
        self.milter = callable_option("milter", milter, IMilter)
        self.on_error = on_error_option("on_error", on_error)
        self.timeout = seconds_option("timeout", timeout)
        self.name = name_option("name", name)
        self.when = condition_option("when", when)
        self.shadow = shadow_option("shadow", shadow)

    def build_milter(self, protocol: MilterProtocol) -> Milter | IMilter:
        """
        Build the milter of one connection; override it to pass the milter what it needs.

        :param protocol: The connection's `MilterProtocol`.
        :return: An `IMilter`.
        """
        return self.milter(self, protocol)


@implementer(IMilterObserver)
class MilterObserver:
    """
    An observer that does nothing: subclass it, and override what you want to be told.

    See `yatxmilter.interfaces.IMilterObserver` for what each method means.
    """

    def connection_refused(self, address: object, reason: str) -> None:
        """
        See `IMilterObserver`.
        """

    def connection_taken(self, connection: object) -> None:
        """
        See `IMilterObserver`.
        """

    def connection_made(self, connection: object) -> None:
        """
        See `IMilterObserver`.
        """

    def connection_lost(self, connection: object, reason: Failure) -> None:
        """
        See `IMilterObserver`.
        """

    def message_began(self, connection: object) -> None:
        """
        See `IMilterObserver`.
        """

    def message_ended(self, connection: object, outcome: str) -> None:
        """
        See `IMilterObserver`.
        """

    def callback_called(self, connection: object, milter: str, stage: str) -> None:
        """
        See `IMilterObserver`.
        """

    def callback_answered(
        self, connection: object, milter: str, stage: str, answer: str, seconds: float
    ) -> None:
        """
        See `IMilterObserver`.
        """

    def answer_sent(self, connection: object, stage: str, answer: str, reply: str | None) -> None:
        """
        See `IMilterObserver`.
        """

    def edit_sent(self, connection: object, function: str, arguments: tuple[object, ...]) -> None:
        """
        See `IMilterObserver`.
        """

    def milter_failed(
        self, connection: object, milter: str, stage: str, kind: str, failure: Failure
    ) -> None:
        """
        See `IMilterObserver`.
        """

    def mta_failed(self, connection: object, kind: str, description: str) -> None:
        """
        See `IMilterObserver`.
        """

    def bytes_received(self, connection: object, count: int) -> None:
        """
        See `IMilterObserver`.
        """

    def bytes_sent(self, connection: object, count: int) -> None:
        """
        See `IMilterObserver`.
        """

    def shadow_message_ended(self, connection: object, milter: str, outcome: str) -> None:
        """
        See `IMilterObserver`.
        """
