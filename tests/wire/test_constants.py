"""
Tests of `yatxmilter.constants`: names, numbers, and how they print.

The numbers are written down here a second time, by hand. Where a libmilter is installed its own
headers are read as well.
"""

from __future__ import annotations

import re
from pathlib import Path
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from yatxmilter import constants
from yatxmilter.constants import ReturnCode, action_names, step_names

HEADERS = Path("/usr/include/libmilter")

RETURN_CODES = {
    "SMFIS_CONTINUE": 0,
    "SMFIS_REJECT": 1,
    "SMFIS_DISCARD": 2,
    "SMFIS_ACCEPT": 3,
    "SMFIS_TEMPFAIL": 4,
    "SMFIS_NOREPLY": 7,
    "SMFIS_SKIP": 8,
    "SMFIS_ALL_OPTS": 10,
}

ACTION_FLAGS = {
    "SMFIF_ADDHDRS": 0x001,
    "SMFIF_CHGBODY": 0x002,
    "SMFIF_ADDRCPT": 0x004,
    "SMFIF_DELRCPT": 0x008,
    "SMFIF_CHGHDRS": 0x010,
    "SMFIF_QUARANTINE": 0x020,
    "SMFIF_CHGFROM": 0x040,
    "SMFIF_ADDRCPT_PAR": 0x080,
    "SMFIF_SETSYMLIST": 0x100,
}

NO_STEPS = {
    "SMFIP_NOCONNECT": 0x00000001,
    "SMFIP_NOHELO": 0x00000002,
    "SMFIP_NOMAIL": 0x00000004,
    "SMFIP_NORCPT": 0x00000008,
    "SMFIP_NOBODY": 0x00000010,
    "SMFIP_NOHDRS": 0x00000020,
    "SMFIP_NOEOH": 0x00000040,
    "SMFIP_NOUNKNOWN": 0x00000100,
    "SMFIP_NODATA": 0x00000200,
}

NR_STEPS = {
    "SMFIP_NR_HDR": 0x00000080,
    "SMFIP_NR_CONN": 0x00001000,
    "SMFIP_NR_HELO": 0x00002000,
    "SMFIP_NR_MAIL": 0x00004000,
    "SMFIP_NR_RCPT": 0x00008000,
    "SMFIP_NR_DATA": 0x00010000,
    "SMFIP_NR_UNKN": 0x00020000,
    "SMFIP_NR_EOH": 0x00040000,
    "SMFIP_NR_BODY": 0x00080000,
}

OTHER_STEPS = {
    "SMFIP_SKIP": 0x00000400,
    "SMFIP_RCPT_REJ": 0x00000800,
    "SMFIP_HDR_LEADSPC": 0x00100000,
    "SMFIP_MDS_256K": 0x10000000,
    "SMFIP_MDS_1M": 0x20000000,
    "SMFIP_TEST": 0x80000000,
}

LETTERS = {
    "SMFIA_UNKNOWN": b"U",
    "SMFIA_UNIX": b"L",
    "SMFIA_INET": b"4",
    "SMFIA_INET6": b"6",
    "SMFIC_ABORT": b"A",
    "SMFIC_BODY": b"B",
    "SMFIC_CONNECT": b"C",
    "SMFIC_MACRO": b"D",
    "SMFIC_BODYEOB": b"E",
    "SMFIC_HELO": b"H",
    "SMFIC_QUIT_NC": b"K",
    "SMFIC_HEADER": b"L",
    "SMFIC_MAIL": b"M",
    "SMFIC_EOH": b"N",
    "SMFIC_OPTNEG": b"O",
    "SMFIC_QUIT": b"Q",
    "SMFIC_RCPT": b"R",
    "SMFIC_DATA": b"T",
    "SMFIC_UNKNOWN": b"U",
    "SMFIR_ADDRCPT": b"+",
    "SMFIR_DELRCPT": b"-",
    "SMFIR_ADDRCPT_PAR": b"2",
    "SMFIR_SHUTDOWN": b"4",
    "SMFIR_ACCEPT": b"a",
    "SMFIR_REPLBODY": b"b",
    "SMFIR_CONTINUE": b"c",
    "SMFIR_DISCARD": b"d",
    "SMFIR_CHGFROM": b"e",
    "SMFIR_CONN_FAIL": b"f",
    "SMFIR_ADDHEADER": b"h",
    "SMFIR_INSHEADER": b"i",
    "SMFIR_SETSYMLIST": b"l",
    "SMFIR_CHGHEADER": b"m",
    "SMFIR_PROGRESS": b"p",
    "SMFIR_QUARANTINE": b"q",
    "SMFIR_REJECT": b"r",
    "SMFIR_SKIP": b"s",
    "SMFIR_TEMPFAIL": b"t",
    "SMFIR_REPLYCODE": b"y",
}

STAGES = {
    "SMFIM_CONNECT": 0,
    "SMFIM_HELO": 1,
    "SMFIM_ENVFROM": 2,
    "SMFIM_ENVRCPT": 3,
    "SMFIM_DATA": 4,
    "SMFIM_EOM": 5,
    "SMFIM_EOH": 6,
}

NUMBERS = {
    "SMFIF_NONE": 0,
    "SMFIF_MODBODY": 0x002,
    "SMFIP_NOHREPL": 0x00000080,
    "SMFIM_NOMACROS": -1,
    "SMFIM_FIRST": 0,
    "SMFIM_LAST": 6,
    "SMFI_V1_ACTS": 0x0F,
    "SMFI_V2_ACTS": 0x3F,
    "SMFI_CURR_ACTS": 0x1FF,
    "SMFI_V1_PROT": 0x3F,
    "SMFI_V2_PROT": 0x7F,
    "SMFI_CURR_PROT": 0x1FFFFF,
    "SMFI_INTERNAL": 0x70000000,
    "SMFI_VERSION": 0x01000001,
    "SMFI_PROT_VERSION": 6,
    "SMFI_PROT_VERSION_MIN": 2,
    "MI_SUCCESS": 0,
    "MI_FAILURE": -1,
    "MI_CONTINUE": 1,
    "MILTER_LEN_BYTES": 4,
    "MILTER_OPTLEN": 12,
    "MILTER_CHUNK_SIZE": 65535,
    "MILTER_MAX_DATA_SIZE": 65535,
    "MILTER_MDS_64K": 65535,
    "MILTER_MDS_256K": 262143,
    "MILTER_MDS_1M": 1048575,
    "MAXREPLYLEN": 980,
    "MAXREPLIES": 32,
    "ALL_NO_STEPS": 0x0000037F,
    "ALL_NR_STEPS": 0x000FF080,
}

EXPECTED = (
    RETURN_CODES
    | ACTION_FLAGS
    | NO_STEPS
    | NR_STEPS
    | OTHER_STEPS
    | {name: ord(letter) for name, letter in LETTERS.items()}
    | STAGES
    | NUMBERS
)


def _header_constants() -> dict[str, set[int]]:
    """
    Read the ``#define`` lines of libmilter's headers; a name may stand in two branches of an #if.
    """
    if not HEADERS.is_dir():
        raise SkipTest("no libmilter headers on this machine")
    text = "".join((HEADERS / name).read_text() for name in ("mfapi.h", "mfdef.h"))
    found: dict[str, set[int]] = {}
    for name, value in re.findall(
        r"^#\s*define\s+((?:SMFI|MI_|MILTER_)\w*)\s+([^/\n]+?)\s*(?:/\*.*)?$", text, re.MULTILINE
    ):
        python = re.sub(r"\b(0x[0-9A-Fa-f]+|[0-9]+)L\b", r"\1", value)
        python = re.sub(r"'(.)'", lambda quoted: str(ord(quoted[1])), python)
        known = {key: next(iter(numbers)) for key, numbers in found.items()}
        found.setdefault(name, set()).add(eval(python, {"__builtins__": {}}, known))
    return found


class NumberTests(SynchronousTestCase):
    """
    Constants have libmilter's names and numbers.
    """

    def test_each_constant_has_number_of_c_mfapi_h_or_c_mfdef_h(self) -> None:
        """
        Each constant has the number of C{mfapi.h} or C{mfdef.h}, and there are no others.
        """
        actual = {
            name: int(value)
            for name, value in vars(constants).items()
            if isinstance(value, int) and name.isupper()
        }
        self.assertEqual(actual, EXPECTED)

    def test_each_constant_of_libmilters_headers_is_here_with_its_number(self) -> None:
        """
        Each constant that the installed libmilter's headers define is here with its number.
        """
        headers = _header_constants()
        self.assertGreater(len(headers), 90)
        # The version of the library is another one when it is built for larger packets.
        del headers["SMFI_VERSION_MDS"]
        wrong = {
            name: values
            for name, values in headers.items()
            if getattr(constants, name, None) not in values
        }
        self.assertEqual(wrong, {})

    def test_letters_are_elements_of_bytes(self) -> None:
        """
        Commands, responses and families compare equal to an element of a bytes object.
        """
        for name, letter in LETTERS.items():
            self.assertEqual(getattr(constants, name), letter[0], name)

    def test_flags_are_plain_integers(self) -> None:
        """
        Flags are C{int} itself, so that testing a bit costs what it costs for an int.
        """
        for name in ACTION_FLAGS | NO_STEPS | NR_STEPS | OTHER_STEPS:
            self.assertIs(type(getattr(constants, name)), int, name)

    def test_sets_of_steps(self) -> None:
        """
        The two sets of steps are the union of the nine SMFIP_NO* and of the nine SMFIP_NR_* bits.
        """
        self.assertEqual(constants.ALL_NO_STEPS, sum(NO_STEPS.values()))
        self.assertEqual(constants.ALL_NR_STEPS, sum(NR_STEPS.values()))
        self.assertEqual((len(NO_STEPS), len(NR_STEPS)), (9, 9))

    def test_current_sets_hold_every_flag_but_those_for_larger_packets(self) -> None:
        """
        SMFI_CURR_ACTS and SMFI_CURR_PROT hold every flag that is not about larger packets.
        """
        self.assertEqual(constants.SMFI_CURR_ACTS, sum(ACTION_FLAGS.values()))
        steps = NO_STEPS | NR_STEPS | OTHER_STEPS
        large = constants.SMFI_INTERNAL | constants.SMFIP_TEST
        self.assertEqual(constants.SMFI_CURR_PROT, sum(steps.values()) & ~large)

    def test_star_import_brings_every_constant_enumeration_and_helpers(self) -> None:
        """
        A star import brings every constant, the enumeration and the helpers, and nothing else.
        """
        helpers = {"ReturnCode", "STAGE_NAMES", "action_names", "step_names"}
        self.assertEqual(sorted(EXPECTED.keys() | helpers), constants.__all__)


class ReturnCodeTests(SynchronousTestCase):
    """
    Return codes are enum members that act as libmilter's numbers.
    """

    def test_return_code_compares_equal_to_libmilters_number(self) -> None:
        """
        A return code compares equal to libmilter's number.
        """
        self.assertEqual({code.name: code for code in ReturnCode}, RETURN_CODES)

    def test_members_under_their_own_name(self) -> None:
        """
        The module's SMFIS_* names are the members themselves, not copies of their numbers.
        """
        for code in ReturnCode:
            self.assertIs(getattr(constants, code.name), code)

    def test_return_code_prints_its_name_in_str_repr(self) -> None:
        """
        A return code prints its name in str, repr, f-strings and in containers.
        """
        code = constants.SMFIS_TEMPFAIL
        name = "SMFIS_TEMPFAIL"
        self.assertEqual([str(code), repr(code), f"{code}", f"{code!r}"], [name] * 4)
        self.assertEqual(f"{code:>16}|", "  SMFIS_TEMPFAIL|")
        self.assertEqual(f"{[code]}", "[SMFIS_TEMPFAIL]")

    def test_repr_is_source(self) -> None:
        """
        What repr prints evaluates to the same member after a star import.
        """
        for code in ReturnCode:
            self.assertIs(eval(repr(code), vars(constants)), code)


class FlagNameTests(SynchronousTestCase):
    """
    Flags can be spelled for logs and errors.
    """

    def test_each_flag_alone_is_spelled_by_its_own_name_never_by_its_alias(self) -> None:
        """
        Each flag alone is spelled by its own name, never by its alias.
        """
        self.assertEqual({name: action_names(bit) for name, bit in ACTION_FLAGS.items()},
                         {name: name for name in ACTION_FLAGS})  # fmt: skip
        steps = NO_STEPS | NR_STEPS | OTHER_STEPS
        self.assertEqual({name: step_names(bit) for name, bit in steps.items()},
                         {name: name for name in steps})  # fmt: skip

    def test_several_flags_are_joined_by_bars_lowest_bit_first(self) -> None:
        """
        Several flags are joined by bars, lowest bit first.
        """
        self.assertEqual(action_names(0x31), "SMFIF_ADDHDRS|SMFIF_CHGHDRS|SMFIF_QUARANTINE")
        self.assertEqual(step_names(0x482), "SMFIP_NOHELO|SMFIP_NR_HDR|SMFIP_SKIP")

    def test_bits_without_a_name(self) -> None:
        """
        Bits without a name are kept, together, in hexadecimal behind those that have one.
        """
        self.assertEqual(action_names(0x600), "0x600")
        self.assertEqual(action_names(0x601), "SMFIF_ADDHDRS|0x600")
        self.assertEqual(step_names(0x40200001), "SMFIP_NOCONNECT|0x40200000")

    def test_no_flag_at_all_is_spelled_as_zero(self) -> None:
        """
        No flag at all is spelled as a zero.
        """
        self.assertEqual([action_names(0), step_names(0)], ["0", "0"])

    def test_each_stage_has_its_name(self) -> None:
        """
        Each stage has its name, in libmilter's numbering where EOM is 5 and EOH 6.
        """
        self.assertEqual(constants.STAGE_NAMES, {number: name for name, number in STAGES.items()})
