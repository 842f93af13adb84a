"""
The numbers of pymilter's ``milter`` module, under its names.
"""

from __future__ import annotations

from typing import Final

from yatxmilter import constants as c

__all__ = ["NUMBERS"]

# pymilter leaves the prefix of libmilter's names away, or keeps its last letter.
_LISTS: Final = ("CONNECT", "HELO", "ENVFROM", "ENVRCPT", "DATA", "EOM", "EOH")
_STEPS: Final = (
    *("RCPT_REJ", "NR_CONN", "NR_HELO", "NR_MAIL", "NR_RCPT", "NR_DATA", "NR_UNKN", "NR_EOH"),
    *("NR_BODY", "NR_HDR", "NOCONNECT", "NOHELO", "NOMAIL", "NORCPT", "NODATA", "NOUNKNOWN"),
    *("NOEOH", "NOBODY", "NOHDRS", "HDR_LEADSPC", "SKIP"),
)
_ACTIONS: Final = (
    *("ADDHDRS", "CHGBODY", "ADDRCPT", "ADDRCPT_PAR", "DELRCPT", "CHGHDRS", "QUARANTINE"),
    *("CHGFROM", "SETSYMLIST"),
)
_CODES: Final = (
    *("CONTINUE", "REJECT", "DISCARD", "ACCEPT", "TEMPFAIL", "NOREPLY", "SKIP", "ALL_OPTS"),
)

#: Plain numbers, as the C extension has them: programs print them and look them up.
NUMBERS: Final[dict[str, int]] = {
    "SUCCESS": 0,
    "FAILURE": -1,
    "VERSION": int(c.SMFI_VERSION),
    **{name: int(getattr(c, f"SMFIF_{name}")) for name in _ACTIONS},
    "MODBODY": int(c.SMFIF_CHGBODY),
    "V1_ACTS": int(c.SMFI_V1_ACTS),
    "V2_ACTS": int(c.SMFI_V2_ACTS),
    "CURR_ACTS": int(c.SMFI_CURR_ACTS),
    **{f"M_{name}": int(getattr(c, f"SMFIM_{name}")) for name in _LISTS},
    **{f"P_{name}": int(getattr(c, f"SMFIP_{name}")) for name in _STEPS},
    **{name: int(getattr(c, f"SMFIS_{name}")) for name in _CODES},
}
