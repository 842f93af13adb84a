"""
``examples/archive_bcc.py``: recipients that no header shows.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from examples.archive_bcc import ArchiverFactory
from yatxmilter.testing import MilterTestMixin, Sent

ARCHIVES = {"example.com": "archive@example.net", "example.org": "other@example.net"}
MESSAGE = b"From: <a@example.com>\r\nSubject: hello\r\n\r\nA letter.\r\n"


class ArchiveTests(MilterTestMixin, SynchronousTestCase):
    """
    Two domains, each with its archive.
    """

    def sent(self, sender: str, *recipients: str) -> Sent:
        return self.milter_mta(ArchiverFactory(ARCHIVES)).send(MESSAGE, sender, recipients)

    def test_what_domain_sends_goes_to_its_archive_too_silently(self) -> None:
        """
        What a domain sends goes to its archive too, silently; the message stays as it is.
        """
        sent = self.sent("<a@EXAMPLE.com>", "<b@client.example>")
        added = sent.delivered.recipients[-1]
        self.assertEqual(added, ("<archive@example.net>", ("NOTIFY=NEVER",)))
        self.assertEqual(sent.delivered.data, MESSAGE)

    def test_what_goes_to_several_domains_goes_to_each_archive_once(self) -> None:
        """
        What goes to several domains goes to each archive, once.
        """
        sent = self.sent("<>", "<a@example.com>", "<b@example.com>", "<c@example.org>")
        paths = [path.address for path in sent.delivered.recipients[3:]]
        self.assertEqual(paths, ["<archive@example.net>", "<other@example.net>"])

    def test_archive_that_is_recipient_already_is_not_added_again(self) -> None:
        """
        An archive that is a recipient already is not added again; other mail has no archive.
        """
        self.assertEqual(self.sent("<a@example.com>", "<Archive@example.net>").edits, ())
        self.assertEqual(self.sent("<a@client.example>", "<b@sub.example.com>").edits, ())
