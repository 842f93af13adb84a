"""
Greylisting with coroutines: a first delivery attempt is put off, a later one passes.

Real mail servers try again, much spam software does not. Who sent what to whom is kept in SQLite;
its calls block, so they run in a thread (``twisted.enterprise.adbapi``) and the callback, an
``async def``, awaits them.

    python greylist.py [ENDPOINT [DATABASE [SECONDS]]]
"""

import sys
import time

from twisted.enterprise import adbapi
from twisted.internet import endpoints, reactor

from yatxmilter import Milter, MilterFactory, MilterProtocolFactory
from yatxmilter.constants import SMFIS_ACCEPT, SMFIS_CONTINUE, SMFIS_TEMPFAIL

TABLE = """CREATE TABLE IF NOT EXISTS seen (
    client TEXT, sender TEXT, recipient TEXT, first REAL,
    PRIMARY KEY (client, sender, recipient)
)"""
INSERT = "INSERT OR IGNORE INTO seen VALUES (?, ?, ?, ?)"
SELECT = "SELECT first FROM seen WHERE client = ? AND sender = ? AND recipient = ?"


def first_seen(cursor, client, sender, recipient, now):
    """
    Note a delivery attempt; answer when its like was seen for the first time.
    """
    cursor.execute(INSERT, (client, sender, recipient, now))
    cursor.execute(SELECT, (client, sender, recipient))
    return cursor.fetchone()[0]


class Greylist(Milter):
    """
    Answer "try again later" to recipients of strangers.
    """

    xxfi_flags = 0

    def __init__(self, factory, protocol):
        super().__init__(factory, protocol)
        self.client = self.sender = ""

    def xxfi_connect(self, hostname, hostaddr):
        self.client = getattr(hostaddr, "host", "")
        # Local submission over a UNIX socket has no address, and nobody who would come again.
        return SMFIS_CONTINUE if self.client else SMFIS_ACCEPT

    def xxfi_envfrom(self, argv):
        self.sender = argv[0].lower()

    async def xxfi_envrcpt(self, argv):
        now = time.time()
        first = await self.factory.database.runInteraction(
            first_seen, self.client, self.sender, argv[0].lower(), now
        )
        wait = self.factory.delay - (now - first)
        if first != now and wait <= 0:
            return SMFIS_CONTINUE
        self.smfi_setreply("451", "4.7.1", f"greylisted, try again in {max(wait, 1):.0f} seconds")
        return SMFIS_TEMPFAIL


class GreylistFactory(MilterFactory):
    """
    Hold what all connections share: the database and the delay.
    """

    def __init__(self, path, delay):
        super().__init__(Greylist)
        self.delay = delay
        # One thread with one connection: SQLite wants no more, and writes never collide.
        self.database = adbapi.ConnectionPool(
            "sqlite3", path, check_same_thread=False, cp_min=1, cp_max=1
        )
        self.database.runOperation(TABLE)


def main(argv):
    endpoint = argv[0] if argv else "tcp:9900:interface=127.0.0.1"
    path = argv[1] if argv[1:] else "greylist.sqlite"
    delay = float(argv[2]) if argv[2:] else 300.0
    factory = MilterProtocolFactory(GreylistFactory(path, delay))
    endpoints.serverFromString(reactor, endpoint).listen(factory)
    reactor.run()


if __name__ == "__main__":
    main(sys.argv[1:])
