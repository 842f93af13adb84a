"""
Tests of `yatxmilter._records.decoding`: each packet in words.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.helpers import STEADY
from yatxmilter import constants as c
from yatxmilter._records.decoding import QueueId, body_of, decode_packet
from yatxmilter._wire.commands import ACTIONS, COMMANDS

OFFER = b"\0\0\0\6\0\0\0\x01\0\0\0\2"

#: From the MTA or not, letter and payload -> what is printed.
TABLE = {
    (True, "O", OFFER): "OPTNEG version 6, actions SMFIF_ADDHDRS, steps SMFIP_NOHELO",
    (True, "O", b"\0\0\0\6" + bytes(8)): "OPTNEG version 6, actions 0, steps 0",
    (False, "O", OFFER): "OPTNEG version 6, actions SMFIF_ADDHDRS, steps SMFIP_NOHELO",
    (False, "O", OFFER + b"\0\0\0\0j {x}\0\0\0\0\x09\0"): (
        "OPTNEG version 6, actions SMFIF_ADDHDRS, steps SMFIP_NOHELO,"
        " macros SMFIM_CONNECT: j {x}; 9:"
    ),
    (True, "C", b"a.example\x004\x10\xe1192.0.2.1\0"): "CONNECT a.example [192.0.2.1]:4321",
    (True, "C", b"a.example\0U"): "CONNECT a.example (address unknown)",
    (True, "H", b"a.example\0"): "HELO a.example",
    (True, "M", b"<a@example.org>\0SIZE=4\0"): "MAIL <a@example.org> SIZE=4",
    (True, "R", b"<b@example.net>\0"): "RCPT <b@example.net>",
    (True, "T", b""): "DATA",
    (True, "U", b"XFOO bar\0"): "UNKNOWN XFOO bar",
    (True, "L", b"Subject\0hi\0"): "HEADER Subject: hi",
    (True, "N", b""): "EOH",
    (True, "B", b"text"): "BODY 4 bytes",
    (True, "E", b""): "BODYEOB",
    (True, "E", b"end"): "BODYEOB 3 bytes",
    (True, "Q", b""): "QUIT",
    (True, "D", b"Mi\x00Q1\0{x}\0"): "MACRO for MAIL: i=Q1 {x}=",
    (True, "D", b"Z"): "MACRO for 'Z':",
    (False, "c", b""): "CONTINUE",
    (False, "c", b"odd"): "CONTINUE b'odd'",
    (False, "y", b"550-5.7.1 a\r\n550 5.7.1 b\0"): "REPLYCODE 550-5.7.1 a | 550 5.7.1 b",
    (False, "h", b"X\0y\0"): "ADDHEADER X: y",
    (False, "m", b"\0\0\0\2X\0y\0"): "CHGHEADER 2 X: y",
    (False, "b", b"new"): "REPLBODY 3 bytes",
    (False, "2", b"<a@example.org>\0NOTIFY=NEVER\0"): "ADDRCPT_PAR <a@example.org> NOTIFY=NEVER",
    (False, "q", b"why\0"): "QUARANTINE why",
    (False, "p", b""): "PROGRESS",
}

#: The same, for what cannot be read: name, and a word of the reason.
BROKEN = {
    (True, "O", b"short"): ("OPTNEG", "12"),
    (True, "H", b"no end"): ("HELO", "NUL"),
    (True, "D", b""): ("MACRO", "letter"),
    (True, "M", b"no end"): ("MAIL", "NUL"),
    (True, "Z", b"what"): ("'Z'", "not a letter of the MTA"),
    (False, "Z", b""): ("'Z'", "not a letter of the milter"),
    (False, "m", b"\0"): ("CHGHEADER", "index"),
}


class DecodeTests(SynchronousTestCase):
    """
    A packet in words.
    """

    def test_each_kind_of_packet_has_its_name_and_its_arguments(self) -> None:
        """
        Each kind of packet has its name and its arguments, and no error.
        """
        for (from_mta, letter, payload), expected in TABLE.items():
            decoded = decode_packet(from_mta, ord(letter), payload)
            self.assertEqual(f"{decoded.name} {decoded.text}".rstrip(), expected)
            self.assertEqual(decoded.error, "")

    def test_what_cannot_be_read_is_shown_all_the_same_with_the_reason(self) -> None:
        """
        What cannot be read is shown all the same, with the reason.
        """
        for (from_mta, letter, payload), (name, word) in BROKEN.items():
            decoded = decode_packet(from_mta, ord(letter), payload)
            self.assertEqual((decoded.name, decoded.text), (name, repr(payload)))
            self.assertIn(word, decoded.error)

    def test_arguments_come_by_name_too(self) -> None:
        """
        The arguments come by name, too.
        """
        decoded = decode_packet(False, ord("O"), OFFER + b"\0\0\0\0j\0")
        self.assertEqual(decoded.fields["actions"], ["SMFIF_ADDHDRS"])
        self.assertEqual(decoded.fields["symbol_lists"], {"SMFIM_CONNECT": ["j"]})
        decoded = decode_packet(True, ord("M"), b"<>\0SIZE=4\0")
        self.assertEqual(decoded.fields, {"address": "<>", "arguments": ["SIZE=4"]})

    def test_every_letter_has_a_name(self) -> None:
        """
        Every letter of the protocol is known.
        """
        letters = [(True, letter) for letter in COMMANDS]
        letters += [(False, letter) for letter in ACTIONS]
        letters += [(False, ord(letter)) for letter in "acdfrsty4O"]
        for from_mta, letter in letters:
            self.assertNotIn("'", decode_packet(from_mta, letter, b"").name)

    @STEADY
    @given(st.booleans(), st.integers(0, 255), st.binary(max_size=40))
    def test_whatever_comes_can_be_shown(self, from_mta: bool, letter: int, payload: bytes) -> None:
        """
        Whatever comes can be shown.
        """
        self.assertTrue(decode_packet(from_mta, letter, payload).name)

    def test_three_kinds_of_packet_carry_body_text(self) -> None:
        """
        Three kinds of packet carry body text.
        """
        self.assertEqual(body_of(True, c.SMFIC_BODY, b"x"), b"x")
        self.assertEqual(body_of(True, c.SMFIC_BODYEOB, b"x"), b"x")
        self.assertEqual(body_of(False, c.SMFIR_REPLBODY, b"x"), b"x")
        self.assertIsNone(body_of(True, c.SMFIC_HELO, b"x"))


class QueueIdTests(SynchronousTestCase):
    """
    The queue id of the message under way.
    """

    def test_queue_id_is_known_from_the_first_macro_on(self) -> None:
        """
        It is known from the first macro on, and forgotten when another message begins.
        """
        queue_id = QueueId()
        seen = []
        for letter, payload in (
            ("D", b""),
            ("D", b"Mx\x001\0"),
            ("M", b"<>\0"),
            ("D", b"Ti\x00Q1\0"),
            ("B", b"text"),
            ("D", b"Mx\x001\0"),
            ("D", b"Mi\x00Q2\0"),
            ("M", b"<>\0"),
            ("D", b"E{i}\x00Q3\0"),
            ("M", b"<>\0"),
        ):
            queue_id.follow(ord(letter), payload)
            seen.append(queue_id.value)
        self.assertEqual(seen, [None, None, None, "Q1", "Q1", None, "Q2", "Q2", "Q3", None])

    def test_of_what_is_too_long_for_queue_id_its_beginning_is_kept(self) -> None:
        """
        Of what is too long for a queue id its beginning is kept.
        """
        queue_id = QueueId()
        queue_id.follow(ord("D"), b"Mi\0" + b"q" * 1000 + b"\0")
        self.assertEqual(queue_id.value, "q" * 100)
