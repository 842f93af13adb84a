"""
Tests of `yatxmilter._wire.actions`: what the MTA's side makes of a milter's packets.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.helpers import outcome, table_of
from yatxmilter import constants as c
from yatxmilter._wire.actions import (
    AddHeader,
    AddRecipient,
    Agreement,
    ChangeHeader,
    ChangeSender,
    DeleteRecipient,
    InsertHeader,
    Quarantine,
    ReplaceBody,
    Response,
    read_agreement,
    read_edit,
    read_response,
)
from yatxmilter._wire.payloads import Offer, encode_offer
from yatxmilter.errors import PeerError

OFFER = Offer(6, c.SMFI_CURR_ACTS, c.SMFI_CURR_PROT)


class ResponseTests(SynchronousTestCase):
    """
    The packets that end a command.
    """

    CODES = {
        "c": c.SMFIS_CONTINUE,
        "a": c.SMFIS_ACCEPT,
        "r": c.SMFIS_REJECT,
        "t": c.SMFIS_TEMPFAIL,
        "d": c.SMFIS_DISCARD,
        "s": c.SMFIS_SKIP,
        "4": c.SMFIS_TEMPFAIL,
        "f": c.SMFIS_TEMPFAIL,
        "l": PeerError,
        "O": PeerError,
        "p": PeerError,
        "Z": PeerError,
    }

    def test_each_letter_of_response_has_its_return_code(self) -> None:
        """
        Each letter of a response has its return code, and other letters are none.
        """

        def code(letter: str) -> object:
            response = read_response(ord(letter), b"")
            self.assertEqual((response.letter, response.text), (ord(letter), None))
            return response.code

        self.assertEqual(table_of(code, self.CODES), self.CODES)

    def test_response_that_is_letter_alone_has_no_payload_as_postfix_insists(self) -> None:
        """
        A response that is a letter alone has no payload, as Postfix insists.
        """
        for letter in "cartds4f":
            self.assertRaises(PeerError, read_response, ord(letter), b"\0")

    TEXTS = {
        b"550 5.7.1 x\0": ("550 5.7.1 x", c.SMFIS_REJECT),
        b"451 4.7.1 x\0": ("451 4.7.1 x", c.SMFIS_TEMPFAIL),
        b"550 \0": ("550 ", c.SMFIS_REJECT),
        b"550 x": ("550 x", c.SMFIS_REJECT),
        b"550 4.7.1 \xff\0": ("550 4.7.1 \udcff", c.SMFIS_REJECT),
        b"550-a\r\n551-\r\n550 b\0": ("550-a\r\n551-\r\n550 b", c.SMFIS_REJECT),
        b"": PeerError,
        b"\0": PeerError,
        b"550\0": PeerError,
        b"250 x\0": PeerError,
        b"55a x\0": PeerError,
        b"5505.7.1\0": PeerError,
        b"550 a\0b\0": PeerError,
        b"550-5.7.1\0": PeerError,
        b"550 a\r\n550 b\0": PeerError,
        b"550-a\n550 b\0": PeerError,
        b"550-a\r\n550 b\r\n\0": PeerError,
        b"550-a\r\n450 b\0": PeerError,
    }

    def test_smtp_reply_decides_between_reject_and_tempfail(self) -> None:
        """
        An SMTP reply decides between REJECT and TEMPFAIL, and what no MTA can pass on is refused.
        """

        def read(payload: bytes) -> object:
            response = read_response(c.SMFIR_REPLYCODE, payload)
            return response.text, response.code

        self.assertEqual(table_of(read, self.TEXTS), self.TEXTS)

    def test_421_shutdown_and_conn_fail_end_smtp_connection(self) -> None:
        """
        A 421, SHUTDOWN and CONN_FAIL end the SMTP connection; other responses do not.
        """
        table = {
            (ord("y"), b"421 4.3.2 bye\0"): True,
            (ord("4"), b""): True,
            (ord("f"), b""): True,
            (ord("y"), b"451 4.3.2 later\0"): False,
            (ord("t"), b""): False,
        }
        self.assertEqual({row: read_response(*row).closes for row in table}, table)

    def test_response_prints_its_letter_not_letters_number(self) -> None:
        """
        A response prints its letter, not the letter's number.
        """
        self.assertEqual(
            [repr(read_response(ord("r"), b"")), repr(Response(c.SMFIS_CONTINUE))],
            ["Response(SMFIS_REJECT, 'r', None)", "Response(SMFIS_CONTINUE, '', None)"],
        )


class EditTests(SynchronousTestCase):
    """
    The modification actions.
    """

    EDITS = {
        ("h", b"X\0v\0"): AddHeader("X", "v"),
        ("h", b"\0\0"): AddHeader("", ""),
        ("i", b"\0\0\0\1X\0v\n w\0"): InsertHeader(1, "X", "v\n w"),
        ("m", b"\xff\xff\xff\xffX\0\0"): ChangeHeader(0xFFFFFFFF, "X", ""),
        ("+", b"<a@b>\0"): AddRecipient("<a@b>"),
        ("2", b"<a@b>\0"): AddRecipient("<a@b>"),
        ("2", b"<a@b>\0NOTIFY=NEVER\0"): AddRecipient("<a@b>", "NOTIFY=NEVER"),
        ("-", b"<a@b>\0"): DeleteRecipient("<a@b>"),
        ("e", b"<>\0"): ChangeSender("<>"),
        ("e", b"<a@b>\0RET=HDRS\0"): ChangeSender("<a@b>", "RET=HDRS"),
        ("b", b"a\0\r\n"): ReplaceBody(b"a\0\r\n"),
        ("b", b""): ReplaceBody(b""),
        ("q", b"held \xff\0"): Quarantine("held \udcff"),
        ("h", b"X\0v"): PeerError,
        ("h", b"X\0"): PeerError,
        ("h", b"X\0v\0w\0"): PeerError,
        ("i", b"\0\0\1"): PeerError,
        ("i", b"\0\0\0\0"): PeerError,
        ("m", b"\0\0\0\1X\0"): PeerError,
        ("+", b"<a@b>"): PeerError,
        ("+", b"<a@b>\0x\0"): PeerError,
        ("2", b"<a@b>\0x\0y\0"): PeerError,
        ("-", b""): PeerError,
        ("q", b"a\0b\0"): PeerError,
    }

    def test_each_action_is_read_into_tuple_of_its_own(self) -> None:
        """
        Each action is read into a tuple of its own; one with strings missing or left over is not.
        """

        def read(row: tuple[str, bytes]) -> object:
            return read_edit(ord(row[0]), row[1], c.SMFI_CURR_ACTS)

        self.assertEqual(table_of(read, self.EDITS), self.EDITS)
        for row, edit in self.EDITS.items():
            if edit is not PeerError:
                self.assertIs(type(read(row)), type(edit))

    def test_action_that_was_not_agreed_is_breach_and_flag_is_named(self) -> None:
        """
        An action that was not agreed is a breach, and the flag is named.
        """
        agreed = c.SMFI_CURR_ACTS & ~c.SMFIF_CHGHDRS
        error = self.assertRaises(PeerError, read_edit, ord("m"), b"\0\0\0\1X\0\0", agreed)
        self.assertIn("SMFIF_CHGHDRS", str(error))
        self.assertEqual(read_edit(ord("h"), b"X\0v\0", agreed), AddHeader("X", "v"))


class AgreementTests(SynchronousTestCase):
    """
    The answer to an offer.
    """

    def test_words_and_lists(self) -> None:
        """
        An agreement has the three words, and the symbol lists as lists of names by stage.
        """
        lists = {c.SMFIM_EOM: b"i {msg_id}", c.SMFIM_HELO: b""}
        packet = encode_offer(Offer(4, c.SMFIF_ADDHDRS, c.SMFIP_NOHELO), lists)
        self.assertEqual(
            read_agreement(OFFER, packet[4], packet[5:]),
            Agreement(4, c.SMFIF_ADDHDRS, c.SMFIP_NOHELO, {5: ["i", "{msg_id}"], 1: []}),
        )

    def test_answer_must_not_claim_more_than_was_offered_nor_be_cut(self) -> None:
        """
        An answer must not claim more than was offered, nor be cut.
        """
        table = {
            (6, 0x1FF, 0x1FFFFF): Agreement(6, 0x1FF, 0x1FFFFF, {}),
            (2, 0, 0): Agreement(2, 0, 0, {}),
            (7, 0, 0): PeerError,
            (1, 0, 0): PeerError,
            (0, 0, 0): PeerError,
            (6, 0x200, 0): PeerError,
            (6, 0, 0x200000): PeerError,
        }

        def read(row: tuple[int, int, int]) -> object:
            return read_agreement(OFFER, c.SMFIC_OPTNEG, encode_offer(Offer(*row))[5:])

        self.assertEqual(table_of(read, table), table)

    def test_zero_offers_version_1(self) -> None:
        """
        An offer of no actions and no steps means those of version 1, as for libmilter.
        """
        table = {
            (2, 0x0F, 0x3F): Agreement(2, 0x0F, 0x3F, {}),
            (2, 0x1F, 0): PeerError,
            (2, 0, 0x7F): PeerError,
        }

        def read(row: tuple[int, int, int]) -> object:
            payload = encode_offer(Offer(*row))[5:]
            return read_agreement(Offer(2, 0, 0), c.SMFIC_OPTNEG, payload)

        self.assertEqual(table_of(read, table), table)

    def test_malformed_answers_are_no_answers(self) -> None:
        """
        Another letter, fewer than twelve bytes and a cut symbol list are no answers.
        """
        words = b"\0\0\0\6" + bytes(8)
        rows = {
            ("c", b""): PeerError,
            ("O", words[:11]): PeerError,
            ("O", words + b"\0\0\0\5i"): PeerError,
            ("O", words + b"\0\0\0"): PeerError,
            ("O", words): Agreement(6, 0, 0, {}),
        }
        results = {row: outcome(read_agreement, OFFER, ord(row[0]), row[1]) for row in rows}
        self.assertEqual(results, rows)
