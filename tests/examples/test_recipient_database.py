"""
``examples/recipient_database.py``: a real database in memory, asked at once instead of in a thread.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from twisted.internet.defer import Deferred, execute
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from examples.recipient_database import TABLES, MailboxCheckerFactory
from yatxmilter.testing import MilterTestMixin


class MailboxTests(MilterTestMixin, SynchronousTestCase):
    """
    One domain with a mailbox, one that takes everything.
    """

    def setUp(self) -> None:
        """
        Make the database.
        """
        self.database = sqlite3.connect(":memory:")
        self.addCleanup(self.database.close)
        self.database.executescript(TABLES)
        self.add("domains", "example.com", "all.example")
        self.add("mailboxes", "user@example.com", "@all.example")
        self.clock, self.queries = Clock(), 0
        self.checkers = MailboxCheckerFactory(self.query, self.clock, seconds=60, most=3)
        self.mta = self.milter_mta(self.checkers, clock=self.clock)

    def add(self, table: str, *values: str) -> None:
        self.database.executemany(f"INSERT INTO {table} VALUES (?)", [(one,) for one in values])

    def query(self, sql: str, arguments: tuple[str, ...]) -> Deferred[list[Any]]:
        self.queries += 1
        return execute(lambda: self.database.execute(sql, arguments).fetchall())

    def reply(self, *recipients: str) -> list[str]:
        with self.mta.session() as session:
            session.mail("<a@client.example>")
            return [str(session.rcpt(f"<{recipient}>").reply) for recipient in recipients]

    def test_mailboxes_pass_in_any_case_and_with_details(self) -> None:
        """
        Mailboxes pass in any case and with details, and so does all of a domain that takes it all.
        """
        known = ("user@example.com", "USER@Example.COM", "user+news@example.com", "x@all.example")
        for reply in self.reply(*known):
            self.assertTrue(reply.startswith("250"), reply)

    def test_unknown_mailbox_of_ours_is_refused_for_good(self) -> None:
        """
        An unknown mailbox of ours is refused for good.
        """
        replies = self.reply("nobody@example.com", "user@example.com")
        self.assertEqual(replies[0], "550 5.1.1 no such user here")
        self.assertTrue(replies[1].startswith("250"))

    def test_nothing_is_said_about_domains_that_are_not_ours(self) -> None:
        """
        Nothing is said about domains that are not ours, nor about names without one.
        """
        for reply in self.reply("nobody@example.net", "postmaster"):
            self.assertTrue(reply.startswith("250"), reply)

    def test_answer_holds_for_minute_and_only_so_many_are_kept(self) -> None:
        """
        An answer holds for a minute, and only so many are kept.
        """
        self.reply("new@example.com")
        self.add("mailboxes", "new@example.com")
        self.assertIn("550 5.1.1 no such user here", self.reply("new@example.com"))
        self.assertEqual(self.queries, 1)
        self.clock.advance(60)
        self.assertTrue(self.reply("new@example.com")[0].startswith("250"))
        self.reply(*(f"{number}@example.com" for number in range(9)))
        self.assertEqual(len(self.checkers.known), 3)

    def test_while_database_fails_sender_is_asked_to_try_again(self) -> None:
        """
        While the database fails the sender is asked to try again, and the failure is not kept.
        """
        self.database.execute("ALTER TABLE mailboxes RENAME TO away")
        self.assertEqual(
            self.reply("user@example.com"), ["451 4.3.0 cannot look up the recipient now"]
        )
        self.database.execute("ALTER TABLE away RENAME TO mailboxes")
        self.assertTrue(self.reply("user@example.com")[0].startswith("250"))
