"""
The numbers of the milter protocol, under libmilter's own names.

Everything here has the name and the value of ``mfapi.h`` and ``mfdef.h``. Commands, responses and
address families, which are characters in C, are the integers of those characters: an element of a
``bytes`` object compares equal to them. Flags are plain integers because testing a bit of an
``IntFlag`` costs forty times as much and is done for each packet; `action_names` and `step_names`
print them.
"""

from __future__ import annotations

from enum import IntEnum

# Versions and sizes (mfdef.h)
SMFI_PROT_VERSION = 6
SMFI_PROT_VERSION_MIN = 2
SMFI_VERSION = 0x01000001
MILTER_LEN_BYTES = 4
MILTER_OPTLEN = 12
MILTER_CHUNK_SIZE = 65535
MILTER_MAX_DATA_SIZE = 65535
MILTER_MDS_64K = 64 * 1024 - 1
MILTER_MDS_256K = 256 * 1024 - 1
MILTER_MDS_1M = 1024 * 1024 - 1

# What libmilter's functions return (mfapi.h)
MI_SUCCESS = 0
MI_FAILURE = -1
MI_CONTINUE = 1

# Limits of SMTP replies (libmilter's smfi.c; not in a public header)
MAXREPLYLEN = 980
MAXREPLIES = 32


class ReturnCode(IntEnum):
    """
    What a callback returns; ``sfsistat`` in libmilter.

    Members print their names and compare equal to libmilter's numbers.
    """

    SMFIS_CONTINUE = 0
    SMFIS_REJECT = 1
    SMFIS_DISCARD = 2
    SMFIS_ACCEPT = 3
    SMFIS_TEMPFAIL = 4
    SMFIS_NOREPLY = 7
    SMFIS_SKIP = 8
    SMFIS_ALL_OPTS = 10

    def __str__(self) -> str:
        return self.name

    def __format__(self, spec: str) -> str:
        return format(self.name, spec)

    # The name is also the source: ``eval(repr(code)) is code`` after a star import.
    __repr__ = __str__


SMFIS_CONTINUE = ReturnCode.SMFIS_CONTINUE
SMFIS_REJECT = ReturnCode.SMFIS_REJECT
SMFIS_DISCARD = ReturnCode.SMFIS_DISCARD
SMFIS_ACCEPT = ReturnCode.SMFIS_ACCEPT
SMFIS_TEMPFAIL = ReturnCode.SMFIS_TEMPFAIL
SMFIS_NOREPLY = ReturnCode.SMFIS_NOREPLY
SMFIS_SKIP = ReturnCode.SMFIS_SKIP
SMFIS_ALL_OPTS = ReturnCode.SMFIS_ALL_OPTS

# Action flags: what a milter may do to a message (mfapi.h)
SMFIF_NONE = 0x000
SMFIF_ADDHDRS = 0x001
SMFIF_CHGBODY = 0x002
SMFIF_MODBODY = SMFIF_CHGBODY
SMFIF_ADDRCPT = 0x004
SMFIF_DELRCPT = 0x008
SMFIF_CHGHDRS = 0x010
SMFIF_QUARANTINE = 0x020
SMFIF_CHGFROM = 0x040
SMFIF_ADDRCPT_PAR = 0x080
SMFIF_SETSYMLIST = 0x100

SMFI_V1_ACTS = 0x00F
SMFI_V2_ACTS = 0x03F
SMFI_CURR_ACTS = 0x1FF

# Protocol steps: what the MTA need not send, what needs no reply, what both understand (mfdef.h)
SMFIP_NOCONNECT = 0x00000001
SMFIP_NOHELO = 0x00000002
SMFIP_NOMAIL = 0x00000004
SMFIP_NORCPT = 0x00000008
SMFIP_NOBODY = 0x00000010
SMFIP_NOHDRS = 0x00000020
SMFIP_NOEOH = 0x00000040
SMFIP_NR_HDR = 0x00000080
SMFIP_NOHREPL = SMFIP_NR_HDR
SMFIP_NOUNKNOWN = 0x00000100
SMFIP_NODATA = 0x00000200
SMFIP_SKIP = 0x00000400
SMFIP_RCPT_REJ = 0x00000800
SMFIP_NR_CONN = 0x00001000
SMFIP_NR_HELO = 0x00002000
SMFIP_NR_MAIL = 0x00004000
SMFIP_NR_RCPT = 0x00008000
SMFIP_NR_DATA = 0x00010000
SMFIP_NR_UNKN = 0x00020000
SMFIP_NR_EOH = 0x00040000
SMFIP_NR_BODY = 0x00080000
SMFIP_HDR_LEADSPC = 0x00100000
SMFIP_MDS_256K = 0x10000000
SMFIP_MDS_1M = 0x20000000
SMFIP_TEST = 0x80000000

SMFI_V1_PROT = 0x0000003F
SMFI_V2_PROT = 0x0000007F
SMFI_CURR_PROT = 0x001FFFFF
SMFI_INTERNAL = 0x70000000

# Stages, for smfi_setsymlist (mfapi.h)
SMFIM_NOMACROS = -1
SMFIM_FIRST = 0
SMFIM_CONNECT = 0
SMFIM_HELO = 1
SMFIM_ENVFROM = 2
SMFIM_ENVRCPT = 3
SMFIM_DATA = 4
SMFIM_EOM = 5
SMFIM_EOH = 6
SMFIM_LAST = 6

# Address families in CONNECT (mfdef.h)
SMFIA_UNKNOWN = ord("U")
SMFIA_UNIX = ord("L")
SMFIA_INET = ord("4")
SMFIA_INET6 = ord("6")

# Commands, from the MTA (mfdef.h)
SMFIC_ABORT = ord("A")
SMFIC_BODY = ord("B")
SMFIC_CONNECT = ord("C")
SMFIC_MACRO = ord("D")
SMFIC_BODYEOB = ord("E")
SMFIC_HELO = ord("H")
SMFIC_QUIT_NC = ord("K")
SMFIC_HEADER = ord("L")
SMFIC_MAIL = ord("M")
SMFIC_EOH = ord("N")
SMFIC_OPTNEG = ord("O")
SMFIC_QUIT = ord("Q")
SMFIC_RCPT = ord("R")
SMFIC_DATA = ord("T")
SMFIC_UNKNOWN = ord("U")

# Responses and modification actions, to the MTA (mfdef.h)
SMFIR_ADDRCPT = ord("+")
SMFIR_DELRCPT = ord("-")
SMFIR_ADDRCPT_PAR = ord("2")
SMFIR_SHUTDOWN = ord("4")
SMFIR_ACCEPT = ord("a")
SMFIR_REPLBODY = ord("b")
SMFIR_CONTINUE = ord("c")
SMFIR_DISCARD = ord("d")
SMFIR_CHGFROM = ord("e")
SMFIR_CONN_FAIL = ord("f")
SMFIR_ADDHEADER = ord("h")
SMFIR_INSHEADER = ord("i")
SMFIR_SETSYMLIST = ord("l")
SMFIR_CHGHEADER = ord("m")
SMFIR_PROGRESS = ord("p")
SMFIR_QUARANTINE = ord("q")
SMFIR_REJECT = ord("r")
SMFIR_SKIP = ord("s")
SMFIR_TEMPFAIL = ord("t")
SMFIR_REPLYCODE = ord("y")


def _names(prefix: str, aliases: tuple[str, ...]) -> dict[int, str]:
    return {
        value: name
        for name, value in globals().items()
        if name.startswith(prefix) and value and name not in aliases
    }


_ACTION_NAMES = _names("SMFIF_", ("SMFIF_MODBODY",))
_STEP_NAMES = _names("SMFIP_", ("SMFIP_NOHREPL",))
STAGE_NAMES = {
    SMFIM_CONNECT: "SMFIM_CONNECT",
    SMFIM_HELO: "SMFIM_HELO",
    SMFIM_ENVFROM: "SMFIM_ENVFROM",
    SMFIM_ENVRCPT: "SMFIM_ENVRCPT",
    SMFIM_DATA: "SMFIM_DATA",
    SMFIM_EOM: "SMFIM_EOM",
    SMFIM_EOH: "SMFIM_EOH",
}


def _flag_names(flags: int, names: dict[int, str]) -> str:
    known = [name for bit, name in names.items() if flags & bit]
    rest = flags & ~sum(names)
    if rest:
        known.append(hex(rest))
    return "|".join(known) or "0"


def action_names(flags: int) -> str:
    """
    Spell action flags: ``SMFIF_ADDHDRS|SMFIF_QUARANTINE``; bits without a name in hexadecimal.
    """
    return _flag_names(flags, _ACTION_NAMES)


def step_names(flags: int) -> str:
    """
    Spell protocol steps: ``SMFIP_NOHELO|SMFIP_SKIP``; bits without a name in hexadecimal.
    """
    return _flag_names(flags, _STEP_NAMES)


#: All that a CONNECT..QUIT conversation may be told not to send, and not to wait for.
ALL_NO_STEPS = 0x0000037F
ALL_NR_STEPS = 0x000FF080

__all__ = sorted(
    [name for name in globals() if name.startswith(("SMFI", "MILTER_", "MI_", "MAXREPL"))]
    + ["ALL_NO_STEPS", "ALL_NR_STEPS", "STAGE_NAMES", "ReturnCode", "action_names", "step_names"]
)
