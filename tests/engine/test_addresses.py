"""
Tests of `yatxmilter._engine.addresses`: the arguments of C{xxfi_connect}, and addresses in the log.
"""

from __future__ import annotations

from twisted.internet.address import HostnameAddress, IPv4Address, IPv6Address, UNIXAddress
from twisted.trial.unittest import SynchronousTestCase

from yatxmilter._engine.addresses import DECODERS, describe_address
from yatxmilter._wire.commands import ALL_COMMANDS, CONNECT_ROW
from yatxmilter.errors import ProtocolError


class DecoderTests(SynchronousTestCase):
    """
    Payloads become arguments of callbacks.
    """

    ROWS = {
        b"mail.example.org\x004\x10\xe1192.0.2.1\x00": (
            "mail.example.org",
            IPv4Address("TCP", "192.0.2.1", 4321),
        ),
        b"[IPv6:2001:db8:0:0:0:0:0:9]\x006a\xa8IPv6:2001:db8:0:0:0:0:0:9\x00": (
            "[IPv6:2001:db8:0:0:0:0:0:9]",
            IPv6Address("TCP", "2001:db8::9", 25000),
        ),
        b"localhost\x00L\x00\x00/run/\xff.sock\x00": (
            "localhost",
            UNIXAddress(b"/run/\xff.sock"),
        ),
        b"localhost\x00U": ("localhost", None),
        b"\x00U": ("", None),
    }

    def test_smtp_clients_address_is_one_of_twisteds(self) -> None:
        """
        An SMTP client's address is one of Twisted's, or None when it is unknown.
        """
        decode = DECODERS[CONNECT_ROW.index]
        self.assertEqual({payload: decode(payload) for payload in self.ROWS}, self.ROWS)

    def test_malformed_connect_is_refused_here_too(self) -> None:
        """
        A malformed CONNECT is refused here too.
        """
        self.assertRaises(ProtocolError, DECODERS[CONNECT_ROW.index], b"host\x004\x00\x19x\x00")

    def test_payload_of_every_other_command_is_read_as_its_row_says(self) -> None:
        """
        Every other command's payload is read as its row says.
        """
        self.assertEqual(len(DECODERS), len(ALL_COMMANDS))
        for command, decode in zip(ALL_COMMANDS, DECODERS, strict=True):
            if command is not CONNECT_ROW:
                self.assertIs(decode, command.decode, command.name)


class DescriptionTests(SynchronousTestCase):
    """
    Addresses are written for people.
    """

    def test_internet_addresses_have_brackets_and_port(self) -> None:
        """
        Internet addresses have brackets and port, UNIX ones their path, and others what they say.
        """
        rows = [
            (IPv4Address("TCP", "192.0.2.1", 4321), "[192.0.2.1]:4321"),
            (IPv6Address("TCP", "::1", 25), "[::1]:25"),
            (UNIXAddress(b"/run/mta.sock"), "unix:/run/mta.sock"),
            (UNIXAddress(b"/run/\xff"), "unix:/run/\\xff"),
            (UNIXAddress(None), "unix:"),
            (None, "unknown address"),
        ]
        self.assertEqual([(address, describe_address(address)) for address, _ in rows], rows)
        other = HostnameAddress(b"mx.example.org", 25)
        self.assertEqual(describe_address(other), str(other))
