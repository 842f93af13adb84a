"""
How a connection begins: ``xxfi_mta_connect``, then ``xxfi_negotiate`` of each milter.

All milters are asked; when all have answered there is an agreement, or, as soon as one refuses,
none.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Final

from twisted.logger import Logger
from twisted.python.failure import Failure

from yatxmilter import constants as c
from yatxmilter._engine.callbacks import Caller
from yatxmilter._engine.member import Member
from yatxmilter._engine.pending import Pending
from yatxmilter._engine.return_codes import ON_ERROR
from yatxmilter._escaping import printable
from yatxmilter._wire.commands import MTA_CONNECT_ROW, OPTNEG_ROW
from yatxmilter._wire.negotiation import Request, check_request, effective_offer, merge
from yatxmilter._wire.payloads import Offer, decode_offer, to_text
from yatxmilter.errors import NegotiationError

if TYPE_CHECKING:
    from yatxmilter._engine.session import Session

__all__ = ["Opening"]

_log = Logger(__name__)

#: So many macros of one stage Sendmail sends (``MAXFILTERMACROS``), and it drops the others.
_MOST_SYMBOLS: Final = 50

_NO_OFFER: Final = Offer(0, 0, 0)


class Opening:
    """
    The beginning of one connection.

    :ivar awaited: The answers that are awaited.
    """

    __slots__ = ("_members", "_offer", "_payload", "_refusing", "_requests", "_session", "awaited")

    def __init__(self, session: Session) -> None:
        self._session = session
        self._members = session.members
        self._refusing = False
        self._offer = _NO_OFFER
        self._payload = b""
        self._requests: list[Request | None] = []
        self.awaited: list[Pending] = []

    def cancel(self) -> None:
        """
        Cancel all that is awaited.
        """
        awaited = self.awaited
        self.awaited = []
        for pending in awaited:
            pending.cancel()

    def _await(self, pending: Pending) -> None:
        self.awaited.append(pending)
        self._session.held = True

    def _wait(self, settle: Callable[[Pending], object]) -> None:
        session = self._session
        for pending in self.awaited.copy():
            # A result that has come already may refuse the connection.
            if pending in self.awaited:
                pending.wait(session.clock, partial(session.resume, partial(self._come, settle)))

    def _come(self, settle: Callable[[Pending], object], pending: Pending) -> None:
        # To cancel one Deferred may fire another, which is no longer awaited then.
        if pending in self.awaited:
            self.awaited.remove(pending)
            settle(pending)

    def _refuse(self) -> None:
        self._refusing = True
        self._session.end()

    @property
    def _caller(self) -> Caller:
        return self._session.caller

    # ---- the connection comes

    def welcome(self, peer: object) -> None:
        """
        Tell the milters that the MTA has connected.

        :param peer: Its address.
        """
        for member in self._members:
            if MTA_CONNECT_ROW.callback in member.wanted:
                result = self._caller.ask(member, MTA_CONNECT_ROW, peer)
                if type(result) is Pending:
                    self._await(result)
                elif not self._welcomes(member, result):
                    return
        self._wait(lambda pending: self._welcomes(pending.member, pending.result))

    def _welcomes(self, member: Member, result: object) -> bool:
        code = self._caller.code(member, MTA_CONNECT_ROW, result)
        if code in (c.SMFIS_CONTINUE, c.SMFIS_ACCEPT):
            return True
        self._refuse()
        return False

    # ---- negotiation

    def negotiate(self, payload: bytes) -> None:
        """
        Ask all milters what they want of what the MTA offers.

        :param payload: That of OPTNEG.
        :raises ProtocolError: when it cannot be read, or no version is common.
        """
        self._payload = payload
        offer = self._offer = effective_offer(decode_offer(payload))
        # libmilter can do without an answer for any step, whatever the MTA offers.
        shown = offer.steps | c.ALL_NR_STEPS
        self._requests = [None] * len(self._members)
        for member in self._members:
            if OPTNEG_ROW.callback not in member.wanted:
                self._take_request(member, None)
                continue
            member.context.negotiating = True
            result = self._caller.ask(member, OPTNEG_ROW, offer.actions, shown)
            if type(result) is Pending:
                self._await(result)
            else:
                self._take_request(member, result)
            if self._refusing:
                return
        if self.awaited:
            self._wait(self._settle_request)
        else:
            self._agree()

    def _settle_request(self, pending: Pending) -> None:
        self._take_request(pending.member, pending.result)
        self._agree()

    def _take_request(self, member: Member, result: object) -> None:
        if member.made_context is not None:
            member.made_context.negotiating = False
        try:
            request = self._read_request(member, result, self._offer)
            if request is None:
                self._refuse()
                return
            request = check_request(request, self._offer)
            self._requests[member.position] = member.widened(request, self._offer)
        except NegotiationError as error:
            self._caller.tell_failure(member, OPTNEG_ROW, Failure())
            _log.error(
                "Milter {milter} {error}: negotiation failed; {ending} the connection from {mta}",
                milter=member.name,
                error=printable(str(error)),
                ending=self._session.ENDING,
                mta=self._caller.mta,
                connection=self._caller.connection,
            )
            self._refuse()

    def _read_request(self, member: Member, result: object, offer: Offer) -> Request | None:
        """
        Read a milter's request; ``None`` when it has failed and is not to be done without.
        """
        failure = result if type(result) is Failure else None
        if result is ON_ERROR:
            self._caller.stand_in(member, OPTNEG_ROW)
            return None
        if failure is None:
            try:
                return member.read_request(result, offer)
            except NegotiationError:
                raise
            except BaseException:
                # Not one of its answers, or an object that does not let itself be looked at.
                failure = Failure()
        code = self._caller.failed(member, OPTNEG_ROW, failure)
        if code is c.SMFIS_CONTINUE:
            try:
                return member.computed_request(offer)
            except BaseException:
                # Its flags are not to be had either: that has been told.
                code = c.SMFIS_ACCEPT
        if code is c.SMFIS_ACCEPT:
            member.retire()
            return member.request
        return None

    def _agree(self) -> None:
        requests = [request for request in self._requests if request is not None]
        if self._refusing or len(requests) < len(self._members):
            return
        session = self._session
        agreement = merge(self._offer, [*requests, *session.requests_of_others(self._payload)])
        for stage, names in agreement.symbol_lists.items():
            _tell_if_long(stage, names)
        for member, request in zip(self._members, requests, strict=True):
            member.agree(request, agreement)
        session.agree(agreement)


# Once: each connection asks for the same.
@lru_cache(maxsize=64)
def _tell_if_long(stage: int, names: bytes) -> None:
    found = to_text(names).split()
    if len(found) > _MOST_SYMBOLS:
        _log.warn(
            "The milters ask for {count} macros at {stage}; Sendmail sends {most} of them, and not:"
            " {missing}",
            count=len(found),
            stage=c.STAGE_NAMES[stage],
            most=_MOST_SYMBOLS,
            missing=printable(" ".join(found[_MOST_SYMBOLS:])),
        )
