"""
Negotiation: what one milter may ask of the MTA, and what all of them together ask.

Pure functions. `check_request` is libmilter's part for one milter (``engine.c``, ``st_optionneg``);
`merge` makes one agreement of the requests of all, so that each milter can be given what it asked
for and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache, reduce
from operator import and_
from typing import Final, NamedTuple

from yatxmilter import constants as c
from yatxmilter._wire.commands import CALLBACK_STEPS
from yatxmilter._wire.payloads import Offer, from_text, to_text
from yatxmilter.constants import action_names, step_names
from yatxmilter.errors import NegotiationError, ProtocolError

__all__ = [
    "DEFAULT_SYMBOLS",
    "Agreement",
    "Request",
    "check_request",
    "data_size",
    "declined_by",
    "effective_offer",
    "merge",
]

#: The macros that Postfix and Sendmail send where no list was asked for, by ``SMFIM_*`` stage.
#: A milter that relies on them must get them even though another milter asks for a list of its own.
DEFAULT_SYMBOLS: Final = {
    c.SMFIM_CONNECT: "j _ {daemon_name} {daemon_addr} {if_name} {if_addr} v",
    c.SMFIM_HELO: "{tls_version} {cipher} {cipher_bits} {cert_subject} {cert_issuer}",
    c.SMFIM_ENVFROM: "i {auth_type} {auth_authen} {auth_ssf} {auth_author}"
    " {mail_mailer} {mail_host} {mail_addr}",
    c.SMFIM_ENVRCPT: "i {rcpt_mailer} {rcpt_host} {rcpt_addr}",
    c.SMFIM_DATA: "i",
    c.SMFIM_EOM: "i {msg_id}",
    c.SMFIM_EOH: "i",
}

# Steps that are dropped from the answer, not refused, when an old MTA does not know them.
_OPTIONAL_STEPS: Final = c.SMFIP_NODATA | c.SMFIP_NOUNKNOWN
_MDS: Final = c.SMFIP_MDS_256K | c.SMFIP_MDS_1M
_SHARED: Final = c.ALL_NO_STEPS | c.ALL_NR_STEPS | _MDS


class Request(NamedTuple):
    """
    What one milter asks for.

    :ivar actions: ``SMFIF_*`` flags it may use.
    :ivar steps: ``SMFIP_*`` flags; those that the MTA cannot do are kept, and done here.
    :ivar symbol_lists: Names separated by blanks, by ``SMFIM_*`` stage.
    """

    actions: int
    steps: int
    symbol_lists: dict[int, bytes]


class Agreement(NamedTuple):
    """
    What is settled for a connection: the answer to the MTA.

    :ivar offer: The MTA's offer, as it counts (`effective_offer`).
    :ivar declined: The ``SMFIP_NO*`` steps that no milter wants, known to the MTA or not.
    """

    version: int
    actions: int
    steps: int
    symbol_lists: dict[int, bytes]
    offer: Offer
    declined: int


def effective_offer(offer: Offer) -> Offer:
    """
    Read an offer as libmilter does: no actions or no steps mean those of version 1.

    :raises ProtocolError: for a version below 2 (or, the number being signed, above 2**31).
    """
    version, actions, steps = offer
    if not c.SMFI_PROT_VERSION_MIN <= version < 0x80000000:
        raise ProtocolError(f"the MTA speaks milter protocol version {version}, 2 to 6 are known")
    # The topmost internal bit has no meaning yet; libmilter hides it.
    return Offer(
        min(version, c.SMFI_PROT_VERSION),
        actions or c.SMFI_V1_ACTS,
        (steps or c.SMFI_V1_PROT) & ~(c.SMFI_INTERNAL & ~_MDS),
    )


def check_request(request: Request, offer: Offer) -> Request:
    """
    Hold a milter's request against the (effective) offer.

    No-reply steps that are not offered stay in: the answer is given for the milter. So do
    NODATA and NOUNKNOWN, whose commands such an MTA does not send.

    :raises NegotiationError: naming what was asked for and is not offered.
    """
    missing = request.actions & ~offer.actions
    if missing:
        raise NegotiationError(
            f"asks for {action_names(missing)}, the MTA offers {action_names(offer.actions)}"
        )
    missing = request.steps & ~offer.steps & ~c.ALL_NR_STEPS & ~_OPTIONAL_STEPS
    if missing:
        raise NegotiationError(
            f"asks for {step_names(missing)}, the MTA offers {step_names(offer.steps)}"
        )
    return request


def merge(offer: Offer, requests: Sequence[Request]) -> Agreement:
    """
    Make one agreement of the checked requests of all milters on a connection.

    Actions, symbol lists, SKIP, RCPT_REJ, HDR_LEADSPC and flags that have no name yet are joined;
    a step is declined when all decline it, and left without reply when all that want it promise
    not to answer; of data sizes the largest counts. Without any milter all is declined.
    """
    flags = tuple([(request.actions, request.steps) for request in requests])
    actions, steps, declined = _merge_flags(offer, flags)
    lists = _merge_symbol_lists([request.symbol_lists for request in requests])
    return Agreement(offer.version, actions, steps, lists, offer, declined)


# The connections of a server ask the same, one after the other.
@lru_cache(maxsize=256)
def _merge_flags(offer: Offer, requests: tuple[tuple[int, int], ...]) -> tuple[int, int, int]:
    actions = steps = largest = 0
    for one_actions, one_steps in requests:
        actions |= one_actions
        steps |= one_steps & ~_SHARED
        largest |= one_steps & _MDS
    all_steps = [one_steps for _, one_steps in requests]
    declined = reduce(and_, all_steps, c.ALL_NO_STEPS)
    steps |= declined | _unanswered(all_steps)
    # Without any milter nothing was held against the offer yet.
    optional = c.ALL_NR_STEPS | (_OPTIONAL_STEPS if requests else c.ALL_NO_STEPS)
    largest = c.SMFIP_MDS_1M if largest & c.SMFIP_MDS_1M else largest
    return actions, steps & ~(optional & ~offer.steps) | largest, declined


def declined_by(requests: Sequence[Request]) -> int:
    """
    Tell which commands no milter wants, as ``SMFIP_NO*`` steps.
    """
    return reduce(and_, [request.steps for request in requests], c.ALL_NO_STEPS)


def data_size(steps: int) -> int:
    """
    Tell the largest payload that goes with ``SMFIP_MDS_*`` flags, in bytes.
    """
    if steps & c.SMFIP_MDS_1M:
        return c.MILTER_MDS_1M
    return c.MILTER_MDS_256K if steps & c.SMFIP_MDS_256K else c.MILTER_MDS_64K


def _unanswered(requests: Sequence[int]) -> int:
    unanswered = 0
    for command in CALLBACK_STEPS:
        concerned = [steps for steps in requests if not steps & command.no] or requests
        if concerned and all(steps & command.nr for steps in concerned):
            unanswered |= command.nr
    return unanswered


def _merge_symbol_lists(lists: Sequence[dict[int, bytes]]) -> dict[int, bytes]:
    if not any(lists):
        return {}
    if len(lists) == 1:
        return dict(lists[0])
    merged: dict[int, bytes] = {}
    for stage in sorted({stage for one in lists for stage in one}):
        names: dict[str, None] = {}
        for one in lists:
            names.update(dict.fromkeys(_names(to_text(one.get(stage, b"")))))
        if any(stage not in one for one in lists):
            names.update(dict.fromkeys(_names(DEFAULT_SYMBOLS[stage])))
        merged[stage] = from_text(" ".join(names))
    return merged


def _names(symbol_list: str) -> list[str]:
    return [name for name in re.split(r"[\s,]+", symbol_list) if name]
