"""
Examples behind a real Postfix and a real Sendmail, where these could spoil what the examples do:
signatures that have to hold for the message as delivered, and recipients that nobody is to see.
"""

from __future__ import annotations

from typing import ClassVar

import dkim

from tests.examples.test_dkim_signer import make_key

from .bench import MESSAGE
from .control import ROOT
from .hosting import HostCase
from .mta import Mta
from .postfix import Postfix
from .sendmail import Sendmail

EXAMPLES = ROOT / "examples"


class _Examples(HostCase):
    """
    A test of an example.
    """

    mta_class: ClassVar[type[Mta]]

    def run_example(self, name: str, *arguments: object) -> None:
        endpoint = f"tcp:{self.mta.addresses.example_port}:interface=127.0.0.1"
        self.run_program(EXAMPLES / name, endpoint, *map(str, arguments))

    def test_signature_holds_for_message_as_delivered(self) -> None:
        """
        The signature holds for the message as delivered.
        """
        path, record = make_key(self.folder)
        self.run_example("dkim_signer.py", "client.example", "sel", path)
        data = self.deliver(door="example").without_trace()
        self.assertTrue(data.startswith(b"DKIM-Signature: "), data)
        self.assertTrue(dkim.verify(data, dnsfunc=lambda name, timeout=5: record), data)
        self.assertFalse(dkim.verify(data + b"more\r\n", dnsfunc=lambda name, timeout=5: record))
        self.assertNotIn("Traceback", self.log.read_text())

    def test_archive_gets_the_message_which_does_not_tell_of_it(self) -> None:
        """
        The archive gets the message, which does not tell of it.
        """
        self.run_example("archive_bcc.py", "client.example=archive@sink.example")
        delivery = self.deliver(door="example")
        got = {path.address: path.args for path in delivery.recipients}
        self.assertEqual(set(got), {"<rcpt@sink.example>", "<archive@sink.example>"})
        self.assertIn("NOTIFY=NEVER", got["<archive@sink.example>"])
        self.assertEqual(delivery.without_trace(), MESSAGE)
        self.assertNotIn(b"archive", delivery.data)


class PostfixTests(_Examples):
    """
    Behind Postfix.
    """

    mta_class = Postfix


class SendmailTests(_Examples):
    """
    Behind Sendmail.
    """

    mta_class = Sendmail


del _Examples
