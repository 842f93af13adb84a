"""
Tests of addresses: what libmilter, the MTAs and Twisted write.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from tests.helpers import table_of
from yatxmilter.protocol._endpoints import check_client_spec, client_endpoint, server_endpoint


def connected(spec: str) -> Any:
    """
    Connect, and tell to where, and how long it may take.
    """
    reactor = MemoryReactorClock()
    client_endpoint(reactor, spec, timeout=7).connect(Factory())
    if reactor.unixClients:
        path, _, timeout, _ = reactor.unixClients[0]
        return path, timeout
    host, port, _, timeout, _ = reactor.tcpClients[0]
    return host, port, timeout


def listening(spec: str) -> Any:
    """
    Listen, and tell where.
    """
    reactor = MemoryReactorClock()
    server_endpoint(reactor, spec, backlog=9).listen(Factory())
    if reactor.unixServers:
        path, _, backlog, _, takes_over = reactor.unixServers[0]
        return path, backlog, takes_over
    port, _, backlog, interface = reactor.tcpServers[0]
    return interface, port, backlog


#: What is no address, for either end.
BAD = (
    "", "bogus", "foo:bar", "inet:", "inet:x@y", "inet:-5", "inet:70000", "inet:5@",
    "inet:5@a b", "inet:5@::1", "inet6:5@192.0.2.1", "inet:²@host", "local:", "unix:", "/a\0b",
    "tcp:onlyhost:", "/" + 107 * "x", "tcp:a\0b:1",
    # What the resolver, or the system, would refuse by no failure of the connection.
    "inet:5@..", "inet:5@a..b", "inet:5@\udcff", "inet:5@" + 64 * "x",
)  # fmt: skip


class AddressTests(SynchronousTestCase):
    """
    The same addresses for both ends.
    """

    def test_client_connects_to_where_the_address_says(self) -> None:
        """
        A client connects to where the address says; on this machine when it names no host.
        """
        expected = {
            "inet:8891@127.0.0.1": ("127.0.0.1", 8891, 7),
            "inet:8891@mx.example.com": ("mx.example.com", 8891, 7),
            "inet:8891@[192.0.2.1]": ("192.0.2.1", 8891, 7),
            "inet:8891": ("127.0.0.1", 8891, 7),
            "inet:smtp@localhost": ("localhost", 25, 7),
            "inet6:8891": ("::1", 8891, 7),
            "inet6:8891@2001:db8::1": ("2001:db8::1", 8891, 7),
            "inet6:8891@[2001:db8::1]": ("2001:db8::1", 8891, 7),
            "unix:/run/a": ("/run/a", 7),
            "local:/run/a": ("/run/a", 7),
            "local:/run/a:b=c": ("/run/a:b=c", 7),
            "local:a": ("a", 7),
            ":/run/a": ("/run/a", 7),
            "/run/a": ("/run/a", 7),
            "unix:/run/a:timeout=3": ("/run/a", 3),
            "tcp:mx.example.com:8891": ("mx.example.com", 8891, 30),
            "/" + 106 * "x": ("/" + 106 * "x", 7),
        }
        self.assertEqual(table_of(connected, expected), expected)

    def test_milter_listens_where_the_address_says(self) -> None:
        """
        A milter listens where the address says; everywhere when it names no host.
        """
        expected = {
            "inet:8891@127.0.0.1": ("127.0.0.1", 8891, 9),
            "inet:8891": ("", 8891, 9),
            "inet:0@127.0.0.1": ("127.0.0.1", 0, 9),
            "inet6:8891": ("::", 8891, 9),
            "inet6:8891@[::1]": ("::1", 8891, 9),
            "unix:/run/a": ("/run/a", 9, True),
            "local:/run/a": ("/run/a", 9, True),
            "/run/a": ("/run/a", 9, True),
            "tcp:8891:interface=192.0.2.1": ("192.0.2.1", 8891, 50),
            "unix:/run/a:lockfile=0": ("/run/a", 50, False),
        }
        self.assertEqual(table_of(listening, expected), expected)

    def test_what_is_no_address_is_refused_for_either_end(self) -> None:
        """
        What is no address is refused by a ValueError for either end, before there is a reactor.
        """
        bad = dict.fromkeys(BAD, ValueError)
        self.assertEqual(table_of(check_client_spec, bad), bad)
        self.assertEqual(table_of(listening, bad), bad)

    def test_ports_and_hosts_of_twisted_endpoints_are_looked_at_too(self) -> None:
        """
        Ports and hosts of Twisted's endpoints are looked at as ours are.
        """
        for spec, words in (
            ("tcp:host:99999", "port 99999 is above 65535"),
            ("tcp:host:-1", "port -1 is below 0"),
            ("tls:host:99999", "port 99999 is above 65535"),
            ("tcp:.:25", "'.' cannot be the name of a host"),
        ):
            error = self.assertRaises(ValueError, check_client_spec, spec)
            self.assertIn(words, str(error))
        for spec in ("tcp:99999", "tcp:-5", "haproxy:tcp:99999", "tcp:0:interface=a..b"):
            self.assertRaises(ValueError, listening, spec)
        error = self.assertRaises(ValueError, listening, "tcp:8891:backlog=4294967296")
        self.assertIn("backlog 4294967296 is not between 0 and 2147483647", str(error))

    def test_only_servers_have_port_zero(self) -> None:
        """
        Port 0 is a place to listen, not one to connect to.
        """
        error = self.assertRaises(ValueError, check_client_spec, "inet:0@localhost")
        self.assertEqual(str(error), "'inet:0@localhost' is not an address to connect to: port 0")

    def test_names_what_was_given(self) -> None:
        """
        The error names the address, what is wrong with it, and what was expected.
        """
        error = self.assertRaises(ValueError, check_client_spec, "inet:70000@localhost")
        self.assertEqual(
            str(error),
            "'inet:70000@localhost' is not a milter's address: port 70000 is above 65535; expected"
            " inet:port@host, inet6:port@host, unix:/path, local:/path, /path or a Twisted"
            " endpoint",
        )

    def test_what_is_no_text_is_a_typeerror(self) -> None:
        """
        What is no text is a TypeError.
        """
        for value in (None, 8891, b"inet:8891"):
            self.assertRaises(TypeError, check_client_spec, value)
