"""
``Milter.utils``: addresses, networks and header values.
"""

from __future__ import annotations

import encodings
import socket
from email.errors import HeaderParseError
from email.header import decode_header
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from Milter import utils
from twisted.trial.unittest import SynchronousTestCase

from tests.growth import assert_linear
from tests.helpers import STEADY

PIECES = (
    *(
        "=?utf-8?q?a?=",
        "=?UTF-8?B?w6Q=?=",
        "=?utf-8?b?w6?=",
        "=?iso-8859-1?q?=e9_x?=",
        "=?utf-8?b?a?=",
    ),
    *("=?utf-8?q?=c3?=", "=?utf-8?q?=a4?=", "=?utf-8?q? ?=", "=?utf-8?q??=", "=?us-ascii?Q?a b?="),
    *(" ", "\n ", "\r\n\t", "x", "é", "=?", "?=", "?", "=", "\x0c", "=?utf-8\n?q?b?="),
)


class UtilsTests(SynchronousTestCase):
    """
    Each function by examples.
    """

    def test_two_patterns_know_addresses_from_what_is_none(self) -> None:
        """
        The two patterns know addresses from what is none.
        """
        for text in ("192.0.2.1", "0.0.0.0", "255.255.255.255"):
            self.assertTrue(utils.ip4re.match(text), text)
        for text in ("256.0.0.1", "1.2.3", "1.2.3.4.5", "01.2.3.4", "x"):
            self.assertFalse(utils.ip4re.match(text), text)
        for text in (
            "::",
            "::1",
            "2001:db8::1",
            "1:2:3:4:5:6:7:8",
            "1::8",
            "::ffff:192.0.2.1",
            "1:2:3:4:5:6:7::",
            "1:2:3:4:5:6::8",
            "2001:DB8::A:B",
            "1:2:3:4:5:6:192.0.2.1",
        ):
            self.assertTrue(utils.ip6re.match(text), text)
        for text in ("1::2::3", ":", "1:2:3", "g::1", "1:2:3:4:5:6:7:8:9", "12345::"):
            self.assertFalse(utils.ip6re.match(text), text)

    def test_addresses_are_read_as_numbers_what_is_none_raises_with_its_text(self) -> None:
        """
        Addresses are read as numbers; what is none raises, with its text.
        """
        self.assertEqual(utils.addr2bin("192.0.2.1"), 0xC0000201)
        self.assertEqual(utils.addr2bin("::1"), 1)
        self.assertEqual(utils.inet_ntop(utils.inet_pton("2001:DB8::1 ")), "2001:db8::1")
        for text in ("x:y", "x"):
            self.assertIn(text, str(self.assertRaises(OSError, utils.addr2bin, text)))

    def test_lists_of_networks(self) -> None:
        """
        An address is in a list by itself, by its network, by a pattern, or by a host's name.
        """
        names = {("mx.example.com", socket.AF_INET): "192.0.2.9"}

        def look_up(name: str, port: int, family: int) -> Any:
            if (name, family) not in names:
                raise socket.gaierror
            return [(family, 0, 0, "", (names[name, family], port))]

        self.patch(socket, "getaddrinfo", look_up)
        for address, pattern in (
            ("192.0.2.1", "192.0.2.1"),
            ("192.0.2.1", "192.0.2.128/24"),
            ("192.0.2.1", "192.0.2.*"),
            ("192.0.2.9", "mx.example.com"),
            ("192.0.2.1", "mx.example.com/24"),
            ("2001:db8::1", "2001:DB8::/32"),
        ):
            self.assertTrue(utils.iniplist(address, ["127.0.0.1", pattern]), pattern)
        self.assertFalse(
            utils.iniplist("198.51.100.1", ["2001:db8::/32", "192.0.2.0/24", "no.example", "x*"])
        )
        self.assertFalse(utils.iniplist("198.51.100.1", ["mx.example.com"]))
        self.assertRaises(ValueError, utils.iniplist, "2g01::1", [])

    def test_envelope_address_is_split_at_its_last(self) -> None:
        """
        An envelope address is split at its last @; quotes and routes are left away.
        """
        for text, parts in (
            ("user@example.com", ["user", "example.com"]),
            ("<user@example.com>", ["user", "example.com"]),
            ('"user@example.com"', ["user@example.com"]),
            ('"user@bar"@example.com', ["user@bar", "example.com"]),
            ('"odd', ['"odd']),
            ("foo", ["foo"]),
            ("@mx.example.com:user@example.com", ["user", "example.com"]),
            ("@user@example.com", ["@user", "example.com"]),
        ):
            self.assertEqual(utils.parse_addr(text), parts)

    def test_full_name_with_special_characters_and_source_route_are_understood(self) -> None:
        """
        A full name with special characters, and a source route, are understood.
        """
        for text, parts in (
            ("user@example.com", ("", "user@example.com")),
            ('"Full Name" <foo@example.com>', ("Full Name", "foo@example.com")),
            ("spam@spammer.com <foo@example.com>", ("spam@spammer.com", "foo@example.com")),
            ("God@heaven <@hop1.org,@hop2.net:jeff@spec.org>", ("God@heaven", "jeff@spec.org")),
            ("Name <>", ("Name", "")),
        ):
            self.assertEqual(utils.parseaddr(text), parts)

    def test_encoded_words_are_decoded(self) -> None:
        """
        Encoded words are decoded; what cannot be stays as it is.
        """
        for text, decoded in (
            ("plain", "plain"),
            ("", ""),
            ("=?iso-8859-1?Q?Peter_=D8rum?= <a@b>", "Peter Ørum <a@b>"),
            ("=?utf-8?B?w6Q=?=", "ä"),
            ("=?nonsense?Q?abc?=", "abc"),
            ("=?nonsense?Q?=FF?=", "=?nonsense?Q?=FF?="),
            ("=?utf-8?B?a?=", "=?utf-8?B?a?="),
            ("=?utf-8?Q?a", "=?utf-8?Q?a"),
            ("=?utf-8?Q?=C3?= =?utf-8?Q?=A4?=", "ä"),
            ("=?zlib?Q?abc?=", "abc"),
        ):
            self.assertEqual(utils.parse_header(text), decoded)

    @STEADY
    @given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join))
    def test_header_is_decoded_as_by_pymilter(self, text: str) -> None:
        """
        A header is decoded as by pymilter, which leaves it to the standard library.
        """
        expected = text
        try:
            parts = decode_header(text)
            if any(charset for _, charset in parts):
                expected = "".join(
                    [
                        octets.decode(charset, "replace") if charset else octets.decode()
                        for octets, charset in parts
                    ]
                )
        except (ValueError, HeaderParseError):
            pass
        self.assertEqual(utils.parse_header(text), expected)

    def test_long_list_has_the_same_first_address_as_short_one(self) -> None:
        """
        A list that is long, or has brackets without end, has the same first address as a short
        one. Encoded words in a name are left alone.
        """
        for first, found in (
            ("A =?utf-8?q?b?= <a@b.test>", ("A =?utf-8?q?b?=", "a@b.test")),
            ("a@b.test", ("", "a@b.test")),
            ("Team: a@b.test", ("", "a@b.test")),
            ('"A\0B" <a@b.test>', ("A\ufffdB", "a@b.test")),
            ("A <@x.test:a@b.test>", ("A", "a@b.test")),
            ("A " * 5000 + "<a@b.test>", (("A " * 5000).strip(), "a@b.test")),
        ):
            self.assertEqual(utils.parseaddr(first + ", c@d.test" * 5000), found)
        self.assertEqual(utils.parseaddr("(" * 5000), ("", ""))
        self.assertEqual(utils.parseaddr("x:;" * 5000 + "a@b.test"), ("", "a@b.test"))
        self.assertIsInstance(utils.parseaddr("a:" * 2000), tuple)

    def test_charsets_of_strangers_are_not_remembered(self) -> None:
        """
        Python, which remembers each codec that it was asked for, is not asked for a stranger's.
        """
        for number in range(50):
            self.assertEqual(utils.parse_header(f"=?stranger{number}?q?a?="), "a")
        known: Any = encodings._cache  # type: ignore[attr-defined]
        self.assertEqual([name for name in known if "stranger" in name], [])

    def test_time_is_linear_whatever_a_field_says(self) -> None:
        """
        Time is linear in the length of a field, whatever it says.
        """
        for piece in ("=?a?q?b ", "=?", "=?utf-8?q?a?= ", "=?a?q?=?b?b?a?= x", "=?utf-8?q?"):
            assert_linear(lambda size, piece=piece: lambda: utils.parse_header(piece * size))
        assert_linear(
            lambda size: lambda: utils.parse_header(f"=?punycode?q?{'a' * size}-{'b' * size}?=")
        )
        for start, piece in (("g:", "a@b,"), ("", "a:"), ("", "("), ("", "<"), ("x <", "a@b,")):
            assert_linear(
                lambda size, start=start, piece=piece: (
                    lambda: utils.parseaddr(start + piece * size + ">")
                ),
                4000,
            )
