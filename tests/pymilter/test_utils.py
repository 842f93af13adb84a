"""
``Milter.utils``: addresses, networks and header values.
"""

from __future__ import annotations

import socket
from typing import Any

from Milter import utils
from twisted.trial.unittest import SynchronousTestCase


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
        ):
            self.assertEqual(utils.parse_header(text), decoded)
