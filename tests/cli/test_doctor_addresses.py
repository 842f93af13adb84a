"""
Tests of the addresses of milters as Postfix and Sendmail spell them.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.helpers import table_of
from yatxmilter._cli.doctor_addresses import postfix_address, sendmail_address
from yatxmilter._cli.doctor_findings import InetAddress, Misspelt


def said_of(function: object, text: str) -> tuple[str, str]:
    """
    Give what is said of an address that is wrong, and what is to be done.
    """
    assert callable(function)
    try:
        function(text)
    except Misspelt as error:
        return error.what, error.todo
    raise AssertionError(f"{text} is taken")


class PostfixTests(SynchronousTestCase):
    """
    Postfix.
    """

    def test_what_postfix_takes_is_read(self) -> None:
        """
        What Postfix takes is read.
        """
        table = {
            "inet:127.0.0.1:9900": InetAddress("127.0.0.1", 9900),
            "inet:[127.0.0.1]:9900": InetAddress("127.0.0.1", 9900),
            "inet:[::1]:9900": InetAddress("::1", 9900),
            "inet:milter.example.com:9900": InetAddress("milter.example.com", 9900),
            "inet:localhost:smtp": InetAddress("localhost", 25),
            "inet:9900": InetAddress("", 9900),
            "inet::9900": InetAddress("", 9900),
            "unix:/run/m.sock": "/run/m.sock",
            "unix:milters/m.sock": "milters/m.sock",
            "local:m.sock": "m.sock",
        }
        self.assertEqual(table_of(postfix_address, table), table)

    def test_what_postfix_does_not_take_is_refused_with_spelling_that_was_meant(self) -> None:
        """
        What Postfix does not take is refused with the spelling that was meant.
        """
        table = {
            "inet:9900@127.0.0.1": "write inet:127.0.0.1:9900",
            "inet:9900@[::1]": "write inet:[::1]:9900",
            "inet:9900@localhost": "write inet:localhost:9900",
            "inet:x@localhost": "write inet:host:port",
            "inet:::1:9900": "write inet:[::1]:9900",
            "inet:127.0.0.1": "write inet:127.0.0.1:port",
            "inet:127.0.0.1:": "write inet:host:port",
            "inet6:9900@::1": "write inet:[::1]:9900",
            "inet6:[::1]:9900": "write inet:[::1]:9900",
            "/run/m.sock": "write unix:/run/m.sock",
            "m.sock": "write inet:host:port or unix:path",
            "unix:": "write inet:host:port or unix:path",
            "127.0.0.1:9900": "write inet:127.0.0.1:9900",
            "tcp:localhost:x": "write inet:host:port or unix:path",
            '"inet:127.0.0.1:9900"': "write inet:127.0.0.1:9900",
            "inet:localhost:99999": "write the port at which the milter listens",
            "inet:localhost:0": "write the port at which the milter listens",
            "inet:localhost:nosuch": "write the port as a number",
            "unix:/" + 107 * "x": "let the milter listen at a shorter path",
        }
        said = {text: said_of(postfix_address, text)[1] for text in table}
        self.assertEqual(said, table)

    def test_the_address_is_named(self) -> None:
        """
        What is said names what stands in the configuration.
        """
        for text in ("inet:9900@127.0.0.1", "m.sock", "unix:", "tcp:a:b", "inet:localhost:99999"):
            self.assertIn(text, said_of(postfix_address, text)[0])

    def test_address_of_family_that_inet_protocols_has_not_is_refused(self) -> None:
        """
        An address of a family that inet_protocols has not is refused, a name is of what it has.
        """
        four, six = frozenset({"ipv4"}), frozenset({"ipv6"})
        for text, protocols, missing in (
            ("inet:[::1]:9900", four, "ipv6"),
            ("inet:127.0.0.1:9900", six, "ipv4"),
        ):
            with self.assertRaises(Misspelt) as caught:
                postfix_address(text, protocols)
            self.assertIn(f"add {missing} to inet_protocols", caught.exception.todo)
        for protocols, family in ((four, "inet"), (six, "inet6"), (four | six, "")):
            address = postfix_address("inet:localhost:9900", protocols)
            self.assertEqual(address, InetAddress("localhost", 9900, family))


class SendmailTests(SynchronousTestCase):
    """
    Sendmail.
    """

    def test_what_sendmail_takes_is_read(self) -> None:
        """
        What Sendmail takes is read.
        """
        table = {
            "inet:9900@127.0.0.1": InetAddress("127.0.0.1", 9900, "inet"),
            "inet:9900@[127.0.0.1]": InetAddress("127.0.0.1", 9900, "inet"),
            "inet6:9900@::1": InetAddress("::1", 9900, "inet6"),
            "inet:9900@localhost": InetAddress("localhost", 9900, "inet"),
            "local:/run/m.sock": "/run/m.sock",
            "unix:/run/m.sock": "/run/m.sock",
            "/run/m.sock": "/run/m.sock",
        }
        self.assertEqual(table_of(sendmail_address, table), table)

    def test_what_sendmail_does_not_take_is_refused_with_spelling_that_was_meant(self) -> None:
        """
        What Sendmail does not take is refused with the spelling that was meant.
        """
        table = {
            "inet:127.0.0.1:9900": "write S=inet:9900@127.0.0.1",
            "inet6:[::1]:9900": "write S=inet6:9900@::1",
            "inet:9900": "write S=inet:port@host",
            "inet:9900@": "write S=inet:port@host",
            "inet:9900@::1": "write S=inet6:9900@::1",
            "inet6:9900@127.0.0.1": "write S=inet:9900@127.0.0.1",
            "inet:9900@127.0.0.1 F=T": "put a comma between S=, F= and T=",
            "inet:nosuch@localhost": "write the port as a number",
            "inet:70000@localhost": "write the port at which the milter listens",
            "tcp:9900@localhost": "write S=inet:port@host or S=local:/path",
            "local:m.sock": "write S=local:/path",
            "local:/" + 107 * "x": "let the milter listen at a shorter path",
        }
        said = {text: said_of(sendmail_address, text)[1] for text in table}
        self.assertEqual(said, table)
