"""
Tests of `yatxmilter._wire.payloads`: the payloads that have a layout of their own.

These are CONNECT, macro packets and OPTNEG. What is malformed has a row for each way to be so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.helpers import STEADY, STRINGS, table_of
from yatxmilter._wire import payloads
from yatxmilter._wire.payloads import ConnectInfo, Offer
from yatxmilter.constants import SMFIA_INET, SMFIA_INET6, SMFIA_UNIX, SMFIA_UNKNOWN
from yatxmilter.errors import ProtocolError


class ConnectTests(SynchronousTestCase):
    """
    CONNECT: host name, family, port and address.
    """

    #: Payloads that have one form only, so that they are also what is written.
    CANONICAL = {
        b"mail.example.org\x004\x10\xe1192.0.2.1\x00": ConnectInfo(
            "mail.example.org", SMFIA_INET, 4321, "192.0.2.1"
        ),
        b"[::1]\x006\x00\x00::1\x00": ConnectInfo("[::1]", SMFIA_INET6, 0, "::1"),
        b"x\x006\xff\xff2001:db8::9\x00": ConnectInfo("x", SMFIA_INET6, 65535, "2001:db8::9"),
        b"x\x006\x00\x19::ffff:192.0.2.1\x00": ConnectInfo(
            "x", SMFIA_INET6, 25, "::ffff:192.0.2.1"
        ),
        b"localhost\x00L\x00\x00/run/mta.sock\x00": ConnectInfo(
            "localhost", SMFIA_UNIX, 0, "/run/mta.sock"
        ),
        b"localhost\x00L\x00\x00\x00": ConnectInfo("localhost", SMFIA_UNIX, 0, ""),
        b"localhost\x00U": ConnectInfo("localhost", SMFIA_UNKNOWN, 0, ""),
        b"\x004\x00\x00192.0.2.1\x00": ConnectInfo("", SMFIA_INET, 0, "192.0.2.1"),
        b"h\xc3\xbcte\xff\x00U": ConnectInfo("h\xfcte\udcff", SMFIA_UNKNOWN, 0, ""),
        b"x\x00L\x00\x00" + b"p" * 107 + b"\x00": ConnectInfo("x", SMFIA_UNIX, 0, "p" * 107),
        b"x\x00L\x00\x00/\xff\x00": ConnectInfo("x", SMFIA_UNIX, 0, "/\udcff"),
    }

    def test_each_family_has_its_layout_for_reading_and_for_writing(self) -> None:
        """
        Each family has its layout, for reading and for writing.
        """
        self.assertEqual(table_of(payloads.decode_connect, self.CANONICAL), self.CANONICAL)
        self.assertEqual(
            {payloads.encode_connect(info): info for info in self.CANONICAL.values()},
            self.CANONICAL,
        )

    ADDRESSES = {
        b"4192.0.2.1": "192.0.2.1",
        b"410.1": "10.0.0.1",
        b"40x7f.1": "127.0.0.1",
        b"41.2.3.4 junk": "1.2.3.4",
        b"41.2.3.4\0junk": "1.2.3.4",
        b"4": ProtocolError,
        b"4[1.2.3.4]": ProtocolError,
        b"4::1": ProtocolError,
        b"4mail.example.org": ProtocolError,
        b"4256.0.0.1": ProtocolError,
        b"4\xff": ProtocolError,
        b"6::1": "::1",
        b"6IPv6:0:0:0:0:0:0:0:1": "::1",
        b"6ipv6:::1": "::1",
        b"6IPV6:2001:DB8:0:0:0:0:0:9": "2001:db8::9",
        b"6::ffff:1.2.3.4": "::ffff:1.2.3.4",
        b"6": ProtocolError,
        b"6IPv6:": ProtocolError,
        b"6IPv6:IPv6:::1": ProtocolError,
        b"6[::1]": ProtocolError,
        b"6fe80::1%1": ProtocolError,
        b"6192.0.2.1": ProtocolError,
        b"6\xff": ProtocolError,
        b"L" + b"p" * 108: ProtocolError,
        b"L" + b"\xc3\xbc" * 54: ProtocolError,
        b"L" + b"\xc3\xbc" * 53: "\xfc" * 53,
        b"L/a\0b": "/a",
        b"5192.0.2.1": ProtocolError,
        b"\x00192.0.2.1": ProtocolError,
        b"u192.0.2.1": ProtocolError,
    }

    @staticmethod
    def _address(row: bytes) -> str:
        return payloads.decode_connect(b"h\0" + row[:1] + b"\0\0" + row[1:] + b"\0").address

    def test_addresses_are_read_as_inet_aton_and_inet_pton_read_them(self) -> None:
        """
        Addresses are read as inet_aton and inet_pton read them; any other closes the connection.
        """
        self.assertEqual(table_of(self._address, self.ADDRESSES), self.ADDRESSES)

    MALFORMED = (
        b"",
        b"host",
        b"host\0",
        b"\0",
        b"host\x004",
        b"host\x004\x00",
        b"host\x004\x00\x19",
        b"host\x004\x00\x191.2.3.4",
        b"host\x006\x00\x19::1",
        b"host\x00L\x00\x00/run/sock",
        b"host\x00L\x00\x00",
    )

    def test_missing_family_port_address_or_last_nul_closes_connection(self) -> None:
        """
        A missing family, port, address or last NUL closes the connection.
        """
        rows = dict.fromkeys(self.MALFORMED, ProtocolError)
        self.assertEqual(table_of(payloads.decode_connect, rows), rows)

    def test_for_unknown_family_what_stands_behind_it_is_ignored(self) -> None:
        """
        For an unknown family what stands behind it is ignored.
        """
        self.assertEqual(
            payloads.decode_connect(b"localhost\0Ujunk"), ("localhost", SMFIA_UNKNOWN, 0, "")
        )

    def test_errors_name_the_reason(self) -> None:
        """
        The error says which address was refused, or which family is not known.
        """
        reasons: dict[bytes, str] = {
            b"4::1": "'::1' is none of family 4",
            b"5::1": "unknown address family '5'",
            b"L" + b"p" * 108: "path of 108 bytes, at most 107",
        }
        for row, reason in reasons.items():
            error = self.assertRaises(ProtocolError, self._address, row)
            self.assertIn(reason, str(error))


class MacroTests(SynchronousTestCase):
    """
    Macro packets: a stage's letter, then names and values.
    """

    PACKETS: dict[bytes, tuple[int, dict[str, str]]] = {
        b"\x00\x00\x00%DCj\x00mx.example.net\x00{daemon_name}\x00MTA\x00": (
            ord("C"), {"j": "mx.example.net", "{daemon_name}": "MTA"},
        ),
        b"\x00\x00\x00#DMi\x004Xyz\x00{mail_addr}\x00s@example.org\x00": (
            ord("M"), {"i": "4Xyz", "{mail_addr}": "s@example.org"},
        ),
        b"\x00\x00\x00\x02DH": (ord("H"), {}),
        b"\x00\x00\x00\x06DTx\x00\xff\x00": (ord("T"), {"x": "\udcff"}),
    }  # fmt: skip

    def test_names_and_values_are_written_behind_stages_letter_and_read_back(self) -> None:
        """
        Names and values are written behind the stage's letter, and read back.
        """
        for packet, (letter, macros) in self.PACKETS.items():
            self.assertEqual(payloads.encode_macros(letter, macros), packet)
            self.assertEqual(payloads.decode_macros(packet[6:]), macros)

    ROWS: dict[bytes, dict[str, str | None]] = {
        b"": {},
        b"i": {},
        b"i\0": {"i": None},
        b"i\x001\0": {"i": "1"},
        b"i\x001\0j\0": {"i": "1", "j": None},
        b"i\x001\0j": {"i": "1"},
        b"i\x001\0j\x002": {"i": "1", "j": None},
        b"i\x001\0i\x002\0": {"i": "1"},
        b"i\x001\0i\0": {"i": "1"},
        b"i\0\0": {"i": ""},
        b"\0v\0": {"": "v"},
    }

    def test_bytes_behind_last_nul_are_dropped_odd_last_name_has_no_value(self) -> None:
        """
        Bytes behind the last NUL are dropped, an odd last name has no value, the first of two wins.
        """
        self.assertEqual(table_of(payloads.decode_macros, self.ROWS), self.ROWS)

    @STEADY
    @given(st.dictionaries(STRINGS, STRINGS, max_size=5))
    def test_any_names_and_values_without_nul_survive_encoding_and_decoding(
        self, macros: dict[bytes, bytes]
    ) -> None:
        """
        Any names and values without a NUL survive encoding and decoding.
        """
        text = {payloads.to_text(name): payloads.to_text(value) for name, value in macros.items()}
        self.assertEqual(payloads.decode_macros(payloads.encode_macros(ord("R"), text)[6:]), text)


class OfferTests(SynchronousTestCase):
    """
    OPTNEG: three words, and symbol lists behind a milter's.
    """

    PACKETS: dict[bytes, tuple[Offer, dict[int, bytes]]] = {
        b"\x00\x00\x00\x0dO\x00\x00\x00\x06\x00\x00\x01\xff\x00\x1f\xff\xff": (
            Offer(6, 0x1FF, 0x1FFFFF), {},
        ),
        b"\x00\x00\x00\x0dO\x00\x00\x00\x02\x00\x00\x00\x0f\x00\x00\x00\x00": (
            Offer(2, 0x0F, 0), {},
        ),
        b"\x00\x00\x00\x0dO\x80\x00\x00\x06\xff\xff\xff\xff\xf0\x1f\xff\xff": (
            Offer(0x80000006, 0xFFFFFFFF, 0xF01FFFFF), {},
        ),
        b"\x00\x00\x005O\x00\x00\x00\x06\x00\x00\x01\xff\x00\x00\x07z"
        b"\x00\x00\x00\x00j {client_port}\x00\x00\x00\x00\x01\x00\x00\x00\x00\x05i {msg_id}\x00": (
            Offer(6, 0x1FF, 0x77A), {5: b"i {msg_id}", 0: b"j {client_port}", 1: b""},
        ),
    }  # fmt: skip

    def test_words_are_big_endian_and_unsigned(self) -> None:
        """
        Words are big-endian and unsigned; symbol lists stand in ascending order of their stages.
        """
        for packet, (offer, lists) in self.PACKETS.items():
            self.assertEqual(payloads.encode_offer(offer, lists), packet)
            self.assertEqual(payloads.decode_offer(packet[5:]), offer)
            self.assertEqual(
                payloads.split_symbol_lists(packet[5:]),
                {stage: names.decode() for stage, names in lists.items()},
            )

    def test_offer_without_symbol_lists_is_twelve_bytes(self) -> None:
        """
        An offer without symbol lists is twelve bytes.
        """
        self.assertEqual(len(payloads.encode_offer(Offer(6, 0, 0))), 17)

    OFFERS: dict[bytes, Any] = {
        b"": ProtocolError,
        b"\0\0\0\6\0\0\1\xff\0\x1f\xff": ProtocolError,
        b"\0\0\0\6\0\0\1\xff\0\x1f\xff\xff": Offer(6, 0x1FF, 0x1FFFFF),
        b"\0\0\0\6\0\0\1\xff\0\x1f\xff\xff\1\2\3": Offer(6, 0x1FF, 0x1FFFFF),
    }

    def test_offer_of_fewer_than_twelve_bytes_is_fatal(self) -> None:
        """
        An offer of fewer than twelve bytes is fatal; what stands behind them is ignored.
        """
        self.assertEqual(table_of(payloads.decode_offer, self.OFFERS), self.OFFERS)

    LISTS: dict[bytes, Any] = {
        b"": {},
        b"\0\0\0\0\0": {0: ""},
        b"\0\0\0\x02i\0": {2: "i"},
        b"\0\0\0\x06i\xff\0\0\0\0\x05j\0": {5: "j", 6: "i\udcff"},
        b"\0": ProtocolError,
        b"\0\0\0\0": ProtocolError,
        b"\0\0\0\2i": ProtocolError,
        b"\0\0\0\2i\0\0\0\0\3": ProtocolError,
    }

    def test_symbol_lists_are_read_by_stage_empty_one_counts_cut_one_is_refused(self) -> None:
        """
        Symbol lists are read by stage; an empty one counts, a cut one is refused.
        """
        words = b"\0" * 12
        split: Callable[[bytes], Any] = lambda row: payloads.split_symbol_lists(words + row)  # noqa: E731
        self.assertEqual(table_of(split, self.LISTS), self.LISTS)
