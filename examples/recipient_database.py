"""
Refuse recipients that no mailbox is known for: 550 at RCPT, before there is a message to bounce.

Domains and mailboxes are in an SQLite database, which is asked in a thread. An answer holds for a
minute; nothing is known of other domains, so the MTA's own rules decide about these.

    python recipient_database.py [ENDPOINT [DATABASE]]
"""

import sqlite3
import sys
from collections import OrderedDict

from twisted.enterprise import adbapi
from twisted.internet import reactor

from yatxmilter import Milter, MilterFactory, MilterProtocolFactory
from yatxmilter.constants import SMFIS_CONTINUE, SMFIS_REJECT, SMFIS_TEMPFAIL
from yatxmilter.service import run_milters

TABLES = """
CREATE TABLE IF NOT EXISTS domains (name TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS mailboxes (address TEXT PRIMARY KEY);
"""
# Ours and unknown?  A mailbox "@example.com" takes all of a domain's mail.
UNKNOWN = """SELECT EXISTS (SELECT 1 FROM domains WHERE name = ?)
    AND NOT EXISTS (SELECT 1 FROM mailboxes WHERE address IN (?, ?, ?))"""


class MailboxChecker(Milter):
    """
    Look up each recipient.
    """

    xxfi_flags = 0

    async def xxfi_envrcpt(self, argv):
        try:
            unknown = await self.factory.is_unknown(argv[0].strip("<>").lower())
        except sqlite3.Error:
            self.smfi_setreply("451", "4.3.0", "cannot look up the recipient now")
            return SMFIS_TEMPFAIL
        if unknown:
            self.smfi_setreply("550", "5.1.1", "no such user here")
            return SMFIS_REJECT
        return SMFIS_CONTINUE


class MailboxCheckerFactory(MilterFactory):
    """
    Ask the database, and remember what it said last.

    :param query: Runs a query, as ``adbapi.ConnectionPool.runQuery`` does.
    """

    def __init__(self, query, clock=reactor, seconds=60, most=10_000):
        super().__init__(MailboxChecker)
        self.query, self.clock, self.seconds, self.most = query, clock, seconds, most
        self.known = OrderedDict()

    async def is_unknown(self, address):
        unknown, until = self.known.get(address, (None, 0))
        if self.clock.seconds() < until:
            return unknown
        local, _, domain = address.rpartition("@")
        plain = f"{local.partition('+')[0]}@{domain}"
        rows = await self.query(UNKNOWN, (domain, address, plain, f"@{domain}"))
        unknown = bool(rows[0][0])
        self.known[address] = unknown, self.clock.seconds() + self.seconds
        self.known.move_to_end(address)
        if len(self.known) > self.most:
            self.known.popitem(last=False)
        return unknown


def main(argv):
    endpoint = argv[0] if argv else "tcp:9900:interface=127.0.0.1"
    path = argv[1] if argv[1:] else "recipients.sqlite"
    with sqlite3.connect(path) as database:
        database.executescript(TABLES)
    database.close()
    pool = adbapi.ConnectionPool("sqlite3", path, check_same_thread=False, cp_max=4)
    factory = MilterProtocolFactory(MailboxCheckerFactory(pool.runQuery))
    run_milters(endpoint, factory)


if __name__ == "__main__":
    main(sys.argv[1:])
