"""
Tests of `yatxmilter._wire.commands`: the rows of the two tables, and the legal order of commands.

The rows are written down a second time as the manual states them. The order is checked against a
plain reading of libmilter's rule, for every set of steps that can be declined.
"""

from __future__ import annotations

from itertools import combinations

from twisted.trial.unittest import SynchronousTestCase

from yatxmilter import constants as c
from yatxmilter._wire import commands, payloads
from yatxmilter._wire.actions import SUBJECTS, AddRecipient, action_of
from yatxmilter._wire.commands import (
    ACTIONS,
    ALL_COMMANDS,
    CALLBACK_STEPS,
    COMMANDS,
    legal_commands,
    stage_of,
)
from yatxmilter._wire.packets import encode_packet
from yatxmilter.constants import ReturnCode

#: Letter -> callback, step that declines it, step that promises no answer, first version.
ROWS = {
    "O": ("xxfi_negotiate", 0, 0, 2),
    "C": ("xxfi_connect", 0x1, 0x1000, 2),
    "H": ("xxfi_helo", 0x2, 0x2000, 2),
    "M": ("xxfi_envfrom", 0x4, 0x4000, 2),
    "R": ("xxfi_envrcpt", 0x8, 0x8000, 2),
    "T": ("xxfi_data", 0x200, 0x10000, 4),
    "L": ("xxfi_header", 0x20, 0x80, 2),
    "N": ("xxfi_eoh", 0x40, 0x40000, 2),
    "B": ("xxfi_body", 0x10, 0x80000, 2),
    "E": ("xxfi_eom", 0, 0, 2),
    "U": ("xxfi_unknown", 0x100, 0x20000, 3),
    "A": ("xxfi_abort", 0, 0, 2),
    "Q": ("xxfi_close", 0, 0, 2),
    "K": ("xxfi_close", 0, 0, 6),
    "D": ("", 0, 0, 2),
}

#: Letter -> return codes that its callback may give.
CODES = {
    "C": "CONTINUE REJECT TEMPFAIL ACCEPT",
    "H": "CONTINUE REJECT TEMPFAIL ACCEPT",
    "M": "CONTINUE REJECT TEMPFAIL ACCEPT DISCARD",
    "R": "CONTINUE REJECT TEMPFAIL ACCEPT DISCARD",
    "T": "CONTINUE REJECT TEMPFAIL ACCEPT DISCARD",
    "L": "CONTINUE REJECT TEMPFAIL ACCEPT DISCARD",
    "N": "CONTINUE REJECT TEMPFAIL ACCEPT DISCARD",
    "B": "CONTINUE REJECT TEMPFAIL ACCEPT DISCARD SKIP",
    "E": "CONTINUE REJECT TEMPFAIL ACCEPT DISCARD",
    "U": "CONTINUE REJECT TEMPFAIL",
}

STATES = [
    "INIT", "OPTS", "CONN", "HELO", "MAIL", "RCPT", "DATA", "HDRS",
    "EOHS", "BODY", "ENDM", "QUIT", "ABRT", "UNKN", "Q_NC",
]  # fmt: skip

#: State -> libmilter's legal commands in it.
NEXT = {
    "INIT": "O", "OPTS": "CU", "CONN": "HMU", "HELO": "HMU", "MAIL": "RAU", "RCPT": "RTLNBEAU",
    "DATA": "LNA", "HDRS": "LNA", "EOHS": "BEA", "BODY": "BEA", "ENDM": "MUQK", "QUIT": "",
    "ABRT": "", "UNKN": "HMRTBUAQK", "Q_NC": "CU",
}  # fmt: skip

#: State -> the step that passes it over.
PASSED_OVER = {
    "CONN": c.SMFIP_NOCONNECT,
    "HELO": c.SMFIP_NOHELO,
    "MAIL": c.SMFIP_NOMAIL,
    "RCPT": c.SMFIP_NORCPT,
    "DATA": c.SMFIP_NODATA,
    "HDRS": c.SMFIP_NOHDRS,
    "EOHS": c.SMFIP_NOEOH,
    "BODY": c.SMFIP_NOBODY,
    "UNKN": c.SMFIP_NOUNKNOWN,
}


def _letters(mask: int) -> str:
    return "".join(sorted(chr(row.letter) for row in ALL_COMMANDS if mask & row.bit))


def _legal(declined: int) -> dict[str, str]:
    masks = legal_commands(declined)
    return {state: _letters(mask) for state, mask in zip(STATES, masks, strict=True)}


def _expected(state: str, declined: int) -> set[str]:
    """
    Read the rule word by word: a state's commands, and if the next one is passed over, its too.
    """
    letters = set(NEXT[state]) | {"U", "K"}
    if state == "DATA":
        # A message may have no header fields.
        letters |= _expected("HDRS", declined)
    following = STATES[STATES.index(state) + 1 :][:1]
    if following and declined & PASSED_OVER.get(following[0], 0):
        letters |= _expected(following[0], declined)
    return letters


class CommandTableTests(SynchronousTestCase):
    """
    There is one row for each command.
    """

    def test_each_command_has_its_callback_its_two_steps_and_its_version(self) -> None:
        """
        Each command has its callback, its two steps and its version.
        """
        actual = {
            chr(letter): (row.callback, row.no, row.nr, row.since)
            for letter, row in COMMANDS.items()
        }
        self.assertEqual(actual, ROWS)

    def test_every_constant_has_a_row(self) -> None:
        """
        No SMFIC_* command is without a row, and each row has its command's name.
        """
        letters = {
            value: name.removeprefix("SMFIC_")
            for name, value in vars(c).items()
            if name.startswith("SMFIC_")
        }
        self.assertEqual({letter: row.name for letter, row in COMMANDS.items()}, letters)

    def test_rows_index_is_its_place_its_bit_is_its_own(self) -> None:
        """
        A row's index is its place, its bit is its own, and it is found by its letter.
        """
        self.assertEqual([row.index for row in ALL_COMMANDS], list(range(15)))
        self.assertEqual([row.bit for row in ALL_COMMANDS], [1 << place for place in range(15)])
        self.assertEqual(list(COMMANDS.values()), list(ALL_COMMANDS))
        for letter, row in COMMANDS.items():
            self.assertEqual(row.letter, letter)

    def test_modules_names_of_single_rows_are_rows_they_say(self) -> None:
        """
        The module's names of single rows are the rows they say.
        """
        names = {"OPTNEG": "O", "CONNECT": "C", "HELO": "H", "MAIL": "M", "RCPT": "R",
                 "DATA": "T", "HEADER": "L", "EOH": "N", "BODY": "B", "EOM": "E",
                 "UNKNOWN": "U", "ABORT": "A", "QUIT": "Q", "QUIT_NC": "K",
                 "MACRO": "D"}  # fmt: skip
        for name, letter in names.items():
            self.assertIs(getattr(commands, f"{name}_ROW"), COMMANDS[ord(letter)], name)

    def test_each_callback_has_its_legal_return_codes_those_of_abort(self) -> None:
        """
        Each callback has its legal return codes; those of abort, close and macros are ignored.
        """
        actual = {chr(row.letter): row.codes for row in ALL_COMMANDS if row.codes}
        expected = {
            letter: frozenset(ReturnCode[f"SMFIS_{name}"] for name in names.split())
            for letter, names in CODES.items()
        }
        self.assertEqual(actual, expected)

    def test_commands_that_want_answer_are_those_with_return_codes(self) -> None:
        """
        The commands that want an answer are those with return codes, in the dialogue's order.
        """
        letters = "".join(chr(row.letter) for row in CALLBACK_STEPS)
        self.assertEqual(letters, "CHMRTLNBEU")

    def test_steps_are_complete(self) -> None:
        """
        The rows' steps are all the SMFIP_NO* and all the SMFIP_NR_* bits, each once.
        """
        self.assertEqual(sum(row.no for row in ALL_COMMANDS), c.ALL_NO_STEPS)
        self.assertEqual(sum(row.nr for row in ALL_COMMANDS), c.ALL_NR_STEPS)

    def test_b_c_d_h_l_m_o_r_u_need_payload(self) -> None:
        """
        B C D H L M O R U need a payload.
        """
        letters = sorted(chr(row.letter) for row in ALL_COMMANDS if row.needs_payload)
        self.assertEqual("".join(letters), "BCDHLMORU")

    def test_message_is_made_of_m_r_t_l_n_b_e(self) -> None:
        """
        A message is made of M R T L N B E.
        """
        letters = "".join(chr(row.letter) for row in ALL_COMMANDS if row.in_message)
        self.assertEqual(letters, "MRTLNBE")

    def test_o_ends_all_macros_c_those_from_helo_on_h_from_mail_m_from_rcpt(self) -> None:
        """
        O ends all macros, C those from HELO on, H from MAIL, M from RCPT, R from DATA; others none.
        """
        stale = {chr(row.letter): row.stale for row in ALL_COMMANDS if row.stale < 7}
        self.assertEqual(stale, {"O": 0, "C": 1, "H": 2, "M": 3, "R": 4})

    def test_each_command_leads_to_state_of_its_own(self) -> None:
        """
        Each command leads to the state of its own; U and D leave the state as it is.
        """
        states = {
            chr(row.letter): None if row.state is None else STATES[row.state]
            for row in ALL_COMMANDS
        }
        self.assertEqual(states, {
            "O": "OPTS", "C": "CONN", "H": "HELO", "M": "MAIL", "R": "RCPT", "T": "DATA",
            "L": "HDRS", "N": "EOHS", "B": "BODY", "E": "ENDM", "U": None, "A": "ABRT",
            "Q": "QUIT", "K": "Q_NC", "D": None,
        })  # fmt: skip

    def test_states_have_libmilters_names_and_numbers(self) -> None:
        """
        States have libmilter's names and numbers.
        """
        self.assertEqual([getattr(commands, name) for name in STATES], list(range(15)))

    def test_each_commands_payload_is_read_as_its_layout_asks(self) -> None:
        """
        Each command's payload is read as its layout asks.
        """
        decoders = {chr(row.letter): row.decode for row in ALL_COMMANDS}
        self.assertEqual(decoders, {
            "O": payloads.decode_offer, "C": payloads.decode_connect, "H": payloads.decode_string,
            "M": payloads.decode_strings, "R": payloads.decode_strings, "L": payloads.decode_header,
            "B": payloads.decode_raw, "U": payloads.decode_line,
            **dict.fromkeys("TNEAQKD", payloads.decode_nothing),
        })  # fmt: skip

    def test_only_mail_and_rcpt_callbacks_get_a_list_they_could_change(self) -> None:
        """
        Only the callbacks of MAIL and RCPT are given a list that they could change.
        """
        letters = "".join(chr(row.letter) for row in ALL_COMMANDS if row.has_argv)
        self.assertEqual(letters, "MR")


class StageTests(SynchronousTestCase):
    """
    What a read was about.
    """

    def test_stage_of_a_read_is_that_of_its_last_command(self) -> None:
        """
        Macros have no stage of their own; where a read is no whole packets nothing is told.
        """
        macros, helo, mail = (
            encode_packet(ord(letter), payload)
            for letter, payload in (("D", b"Ci\0x\0"), ("H", b"a\0"), ("M", b"<>\0"))
        )
        for data, stage in (
            (helo, "xxfi_helo"),
            (helo + macros + mail, "xxfi_envfrom"),
            (mail + macros, "xxfi_envfrom"),
            (macros, ""),
            (b"", ""),
            (helo + mail[:-1], ""),
            (helo + b"\0\0", ""),
            (b"\0\0\0\0Q", ""),
            (encode_packet(ord("z")) + helo, ""),
        ):
            self.assertEqual(stage_of(data), stage, data)


class LegalOrderTests(SynchronousTestCase):
    """
    Which commands are legal in which state.
    """

    def test_with_all_callbacks_wanted_legal_commands_are_libmilters(self) -> None:
        """
        With all callbacks wanted, the legal commands are libmilter's; U and K are legal anywhere.
        """
        expected = {
            state: "".join(sorted(set(letters) | {"U", "K"})) for state, letters in NEXT.items()
        }
        self.assertEqual(_legal(0), expected)

    def test_every_set_of_declined_steps(self) -> None:
        """
        A state that is declined is passed over: what is legal after it is legal before it.
        """
        bits = list(PASSED_OVER.values())
        for number in range(len(bits) + 1):
            for chosen in combinations(bits, number):
                declined = sum(chosen)
                expected = {state: "".join(sorted(_expected(state, declined))) for state in STATES}
                self.assertEqual(_legal(declined), expected, c.step_names(declined))

    def test_end_of_message_only(self) -> None:
        """
        With all steps declined, an end of message is legal from the start of the dialogue on.
        """
        legal = _legal(c.ALL_NO_STEPS)
        wanted = [state for state in STATES if "E" in legal[state]]
        self.assertEqual(wanted, STATES[1:10])

    def test_without_xxfi_envfrom_abort_is_legal_after_helo_too(self) -> None:
        """
        Without xxfi_envfrom an ABORT is legal after HELO too, as libmilter has it.
        """
        self.assertNotIn("A", _legal(0)["HELO"])
        self.assertIn("A", _legal(c.SMFIP_NOMAIL)["HELO"])

    def test_steps_other_than_smfip_no_ones_do_not_change_order(self) -> None:
        """
        Steps other than the SMFIP_NO* ones do not change the order.
        """
        self.assertEqual(legal_commands(~c.ALL_NO_STEPS & 0xFFFFFFFF), legal_commands(0))

    def test_each_connection_its_own(self) -> None:
        """
        What one connection declines leaves the order of the others as it was.
        """
        before = legal_commands(0)
        self.assertNotEqual(legal_commands(c.ALL_NO_STEPS), before)
        self.assertEqual(legal_commands(0), before)
        self.assertIsInstance(before, tuple)


class ActionTableTests(SynchronousTestCase):
    """
    There is one row for each modification action, and one for progress.
    """

    #: Letter -> function, flag, a payload as captured from libmilter, what it means.
    ROWS = {
        "h": ("smfi_addheader", 0x01, b"X-Spam\x00no\x00", ("X-Spam", "no")),
        "i": ("smfi_insheader", 0x01, b"\x00\x00\x00\x00X-Top\x00one\x00", (0, "X-Top", "one")),
        "m": ("smfi_chgheader", 0x10, b"\x00\x00\x00\x01X-Old\x00\x00", (1, "X-Old", "")),
        "b": ("smfi_replacebody", 0x02, b"new\x0d\x0a", (b"new\r\n",)),
        "+": ("smfi_addrcpt", 0x04, b"<n@example.net>\x00", (["<n@example.net>"],)),
        "2": ("smfi_addrcpt_par", 0x80, b"<p@example.net>\x00NOTIFY=NEVER\x00",
              (["<p@example.net>", "NOTIFY=NEVER"],)),
        "-": ("smfi_delrcpt", 0x08, b"<r@example.net>\x00", (["<r@example.net>"],)),
        "e": ("smfi_chgfrom", 0x40, b"<new@example.org>\x00RET=HDRS\x00",
              (["<new@example.org>", "RET=HDRS"],)),
        "q": ("smfi_quarantine", 0x20, b"held\x00", ("held",)),
        "p": ("smfi_progress", 0x00, b"", ()),
    }  # fmt: skip

    def test_each_action_has_its_function_its_flag(self) -> None:
        """
        Each action has its function, its flag, and a payload that is read as libmilter's.
        """
        self.assertEqual(set(ACTIONS), {ord(letter) for letter in self.ROWS})
        for letter, (function, flag, payload, meaning) in self.ROWS.items():
            row = ACTIONS[ord(letter)]
            self.assertEqual((row.letter, row.function, row.flag), (ord(letter), function, flag))
            self.assertEqual(row.decode(payload), meaning, letter)

    def test_each_row_has_name_of_its_smfir_constant(self) -> None:
        """
        Each row has the name of its SMFIR_* constant.
        """
        for letter, row in ACTIONS.items():
            self.assertEqual(getattr(c, f"SMFIR_{row.name}"), letter)

    def test_every_flag_is_used(self) -> None:
        """
        Every action flag but that of symbol lists has an action.
        """
        flags = {row.flag for row in ACTIONS.values()}
        self.assertEqual(sum(flags), c.SMFI_CURR_ACTS & ~c.SMFIF_SETSYMLIST)

    def test_each_thing_that_can_be_edited_has_flags_of_all_its_actions(self) -> None:
        """
        Each thing that can be edited has the flags of all its actions, and no flag is left over.
        """
        self.assertEqual(
            dict(SUBJECTS),
            {"headers": 0x11, "body": 0x02, "sender": 0x40, "recipients": 0x8C, "quarantine": 0x20},
        )

    def test_action_of_an_edit(self) -> None:
        """
        A recipient is added by the action that was agreed; ESMTP arguments need one of their own.
        """
        plain, both = AddRecipient("<a@b>"), AddRecipient("<a@b>", "NOTIFY=NEVER")
        self.assertEqual(action_of(plain).function, "smfi_addrcpt")
        self.assertEqual(action_of(plain, c.SMFIF_ADDRCPT_PAR).function, "smfi_addrcpt_par")
        self.assertEqual(action_of(both, c.SMFIF_ADDRCPT).function, "smfi_addrcpt_par")
