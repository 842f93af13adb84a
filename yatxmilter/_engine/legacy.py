"""
What yatxmilter 0.1.1 gave its users, under the names it had there.
"""

from __future__ import annotations

import warnings
from typing import Final

from yatxmilter import constants as c

__all__ = ["OLD_NAMES", "NegotiateFlags", "NetworkTypes", "ReturnCodes", "take_old_names"]

#: Callbacks of 0.1.1 whose names are not libmilter's.
OLD_NAMES: Final = {"xxfi_env_from": "xxfi_envfrom", "xxfi_env_rcpt": "xxfi_envrcpt"}


def take_old_names(cls: type) -> None:
    """
    Have a class's callbacks of old names found under libmilter's, and warn of them.

    :param cls: A class that is just being made, by a caller of the caller.
    """
    for old, new in OLD_NAMES.items():
        for base in cls.__mro__:
            if new in vars(base):
                break
            if old in vars(base):
                warnings.warn(
                    f"{base.__qualname__}.{old} is the name of yatxmilter 0.1.1;"
                    f" libmilter's is {new}",
                    DeprecationWarning,
                    stacklevel=3,
                )
                setattr(cls, new, vars(base)[old])
                break


class ReturnCodes:
    """
    The return codes under the names of yatxmilter 0.1.1.
    """

    CONTINUE = c.SMFIS_CONTINUE
    REJECT = c.SMFIS_REJECT
    DISCARD = c.SMFIS_DISCARD
    ACCEPT = c.SMFIS_ACCEPT
    TEMPFAIL = c.SMFIS_TEMPFAIL
    NOREPLY = c.SMFIS_NOREPLY
    SKIP = c.SMFIS_SKIP
    ALL_OPTS = c.SMFIS_ALL_OPTS


class NetworkTypes:
    """
    The address families under the names of yatxmilter 0.1.1.
    """

    UNKNOWN = c.SMFIA_UNKNOWN
    UNIX = c.SMFIA_UNIX
    INET = c.SMFIA_INET
    INET6 = c.SMFIA_INET6


class NegotiateFlags:
    """
    The protocol steps under the names of yatxmilter 0.1.1.
    """

    CONNECT = c.SMFIP_NOCONNECT
    HELO = c.SMFIP_NOHELO
    MAIL = c.SMFIP_NOMAIL
    RCPT = c.SMFIP_NORCPT
    BODY = c.SMFIP_NOBODY
    HDRS = c.SMFIP_NOHDRS
    EOH = c.SMFIP_NOEOH
    HDR = c.SMFIP_NR_HDR
    UNKNOWN = c.SMFIP_NOUNKNOWN
    DATA = c.SMFIP_NODATA
    SKIP = c.SMFIP_SKIP
    RCPT_REJ = c.SMFIP_RCPT_REJ
    NR_CONN = c.SMFIP_NR_CONN
    NR_HELO = c.SMFIP_NR_HELO
    NR_MAIL = c.SMFIP_NR_MAIL
    NR_RCPT = c.SMFIP_NR_RCPT
    NR_DATA = c.SMFIP_NR_DATA
    NR_UNKN = c.SMFIP_NR_UNKN
    NR_EOH = c.SMFIP_NR_EOH
    NR_BODY = c.SMFIP_NR_BODY
    HDR_LEADSPC = c.SMFIP_HDR_LEADSPC
    MDS_256K = c.SMFIP_MDS_256K
    MDS_1M = c.SMFIP_MDS_1M
