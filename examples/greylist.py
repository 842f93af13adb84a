"""
Greylisting: a stranger's first delivery attempt is put off, a later one passes.

Real mail servers try again, much spam software does not. Who sends what to whom is kept in SQLite,
or, for several hosts together, in PostgreSQL or Redis. All three block, so they are asked in a
thread, and the callback, an ``async def``, awaits the answer.

    python greylist.py [--when-away pass|tempfail] [--trust NETWORK]... [ENDPOINT [STORE [SECONDS]]]
    GREYLIST_STORE=STORE python -m yatxmilter serve --listen ENDPOINT --milter greylist:make

Or in the file of serve, with any of the options of `make`:

    [[milter]]
    object = "greylist:make"
    options = { store = "sqlite:////var/lib/greylist/greylist.sqlite", trusted = ["192.0.2.0/24"] }

STORE is ``sqlite:///greylist.sqlite`` (the default; four slashes for an absolute path),
``postgresql://user@host/database`` (``pip install psycopg2-binary``), or ``redis://host:6379/0``
(``pip install redis``; a Redis server from 7.0). SECONDS is how long a stranger has to wait, 300.
"""

import argparse
import contextlib
import hashlib
import ipaddress
import os
import sqlite3
import sys
import time
from typing import NamedTuple

from twisted.internet import reactor, task
from twisted.internet.defer import Deferred, DeferredLock, TimeoutError
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger, globalLogPublisher, textFileLogObserver
from twisted.python.threadpool import ThreadPool

from yatxmilter import Milter, MilterFactory, MilterProtocolFactory
from yatxmilter.conditions import client_in
from yatxmilter.constants import SMFIS_ACCEPT, SMFIS_CONTINUE, SMFIS_TEMPFAIL
from yatxmilter.service import run_milters

HOUR = 3600.0
DAY = 24 * HOUR
DEFAULT_STORE = "sqlite:///greylist.sqlite"
#: Seconds after which a store that does not answer is away.
PATIENCE = 3

log = Logger(namespace="greylist")


class Terms(NamedTuple):
    """
    How long a stranger waits, when an attempt that was not repeated is forgotten, and when a good
    triplet is of which there was no more mail.
    """

    delay: float = 300.0
    retry: float = 2 * DAY
    keep: float = 36 * DAY


class StoreAway(Exception):
    """
    The store does not answer.
    """


TABLE = """CREATE TABLE IF NOT EXISTS greylist (
    triplet CHAR(64) PRIMARY KEY, first DOUBLE PRECISION NOT NULL, expires DOUBLE PRECISION NOT NULL
)"""
INDEX = "CREATE INDEX IF NOT EXISTS greylist_expires ON greylist (expires)"
# One statement, so whoever comes first decides, and all the others read what that was.
SEEN = """INSERT INTO greylist AS known (triplet, first, expires)
    VALUES (%(triplet)s, %(now)s, %(now)s + %(retry)s)
    ON CONFLICT (triplet) DO UPDATE SET
        first = CASE WHEN known.expires <= %(now)s THEN %(now)s ELSE known.first END,
        expires = CASE WHEN known.expires <= %(now)s THEN %(now)s + %(retry)s
            WHEN %(now)s - known.first >= %(delay)s THEN %(now)s + %(keep)s
            ELSE known.expires END
    RETURNING first"""
FORGET = "DELETE FROM greylist WHERE expires <= %(now)s"


class SqlStore:
    """
    A table in a database; every statement is a transaction of its own.
    """

    def __init__(self, url):
        self.url = url
        self.connection = None

    def execute(self, statement, values):
        if self.connection is None:
            self.connection = self.connect()
        with contextlib.closing(self.connection.cursor()) as cursor:
            cursor.execute(statement, values)
            # All that there is: only then SQLite has finished the statement.
            return cursor.fetchall() if cursor.description else []

    def first_seen(self, triplet, now, terms):
        """
        Note an attempt; answer when the first one of its like was.
        """
        ((first,),) = self.execute(SEEN, {"triplet": triplet, "now": now, **terms._asdict()})
        return first

    def forget(self, now):
        self.execute(FORGET, {"now": now})

    def disconnect(self):
        """
        Drop the connection; what comes next makes another.
        """
        connection, self.connection = self.connection, None
        if connection is not None:
            with contextlib.suppress(*self.errors):
                connection.close()


class SqliteStore(SqlStore):
    """
    A file, for the processes of one host.
    """

    errors = (sqlite3.Error,)

    def connect(self):
        path = self.url.removeprefix("sqlite:///")
        connection = sqlite3.connect(
            path, timeout=PATIENCE, isolation_level=None, check_same_thread=False
        )
        # Loses the last attempts when the power fails, and waits for the disk much less.
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(TABLE)
        connection.execute(INDEX)
        return connection

    def execute(self, statement, values):
        return super().execute(statement % {name: f":{name}" for name in values}, values)


class PostgresStore(SqlStore):
    """
    A PostgreSQL server, for any number of hosts.
    """

    def __init__(self, url):
        import psycopg2

        super().__init__(url)
        self.module = psycopg2
        self.errors = (psycopg2.Error,)

    def connect(self):
        connection = self.module.connect(
            self.url,
            connect_timeout=PATIENCE,
            tcp_user_timeout=PATIENCE * 1000,
            options=f"-c statement_timeout={PATIENCE}s -c synchronous_commit=off"
            " -c client_min_messages=warning",
        )
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(TABLE)
            cursor.execute(INDEX)
        return connection


class RedisStore:
    """
    A Redis server, for any number of hosts; it forgets by itself.
    """

    def __init__(self, url):
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        self.errors = (redis.RedisError, OSError)
        # Who tries again after a failure is StoreThread.
        self.client = redis.Redis.from_url(
            url,
            socket_timeout=PATIENCE,
            socket_connect_timeout=PATIENCE,
            retry=Retry(NoBackoff(), 0),
        )

    def first_seen(self, triplet, now, terms):
        key = f"greylist:{triplet}"
        found = self.client.set(key, repr(now), nx=True, get=True, px=int(terms.retry * 1000))
        first = now if found is None else float(found)
        if now - first >= terms.delay:
            self.client.pexpire(key, int(terms.keep * 1000))
        return first

    def forget(self, now):
        """
        Nothing to do.
        """

    def disconnect(self):
        self.client.close()
        self.client.connection_pool.disconnect()


STORES = {
    "sqlite": SqliteStore,
    "postgresql": PostgresStore,
    "redis": RedisStore,
    "rediss": RedisStore,
    "unix": RedisStore,
}


def open_store(url):
    """
    Make the store that a URL names; nothing is connected yet.
    """
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in STORES:
        known = ", ".join(f"{known}://" for known in STORES)
        raise argparse.ArgumentTypeError(f"{url!r} begins with none of {known}")
    try:
        return STORES[scheme](url)
    except ImportError as error:
        raise argparse.ArgumentTypeError(f"{url!r} needs a package: {error}") from None


class StoreThread:
    """
    One thread with one connection, which asks a store, from the first question to `stop`.

    What fails is tried once more, on a new connection: the old one may only have been from before
    a restart. If that fails too, or is late, the store is away, and has rest, so that mail need not
    wait.
    """

    def __init__(self, store, rest=5.0, late=2.0 * PATIENCE):
        self.store = store
        self.rest = rest
        self.late = late
        self.away = False
        self.pool = None
        self.stopping = DeferredLock()
        self._rested = time.monotonic()

    async def stop(self):
        await self.stopping.acquire()
        try:
            pool, self.pool = self.pool, None
            if pool is not None:
                # Behind what has been asked; while a server hangs, the thread cannot be ended.
                await deferToThreadPool(reactor, pool, self.store.disconnect)
                pool.stop()
        finally:
            self.stopping.release()

    async def ask(self, method, *arguments):
        """
        Have a method of the store called; raise `StoreAway` if it does not answer.
        """
        try:
            answer = await self._answer(method, arguments)
        except StoreAway as error:
            if not self.away:
                log.error("the store is away: {error}", error=error)
            self.away = True
            raise
        if self.away:
            log.info("the store is back")
        self.away = False
        return answer

    async def _answer(self, method, arguments):
        self._check_rest()
        if self.pool is None:
            self.pool = ThreadPool(0, 1, "store")
            self.pool.start()
        answer = deferToThreadPool(reactor, self.pool, self._ask, method, arguments)
        try:
            # A server that hangs keeps the thread, whatever the time-outs of its client.
            return await answer.addTimeout(self.late, reactor)
        except TimeoutError:
            self._rested = time.monotonic() + self.rest
            raise StoreAway(f"no answer in {self.late:g} seconds") from None

    def _check_rest(self):
        if time.monotonic() < self._rested:
            raise StoreAway("it was a moment ago")

    def _ask(self, method, arguments):
        # What had to wait behind it may have found out.
        self._check_rest()
        try:
            try:
                return method(*arguments)
            except self.store.errors:
                self.store.disconnect()
                return method(*arguments)
        except self.store.errors as error:
            self.store.disconnect()
            self._rested = time.monotonic() + self.rest
            raise StoreAway(f"{type(error).__name__}: {str(error).strip()}") from None


def network_of(host):
    """
    Give the network of a client: big senders try again from another of their hosts.
    """
    address = ipaddress.ip_address(host.partition("%")[0])
    address = getattr(address, "ipv4_mapped", None) or address
    return str(ipaddress.ip_network((address, 24 if address.version == 4 else 64), strict=False))


def triplet_of(network, sender, recipient):
    """
    Make one key of three values: of one length, of any octets, and without addresses in it.
    """
    text = "\0".join((network, sender.lower(), recipient.lower()))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


class Greylist(Milter):
    """
    Answer "try again later" to recipients of strangers.
    """

    xxfi_flags = 0

    def __init__(self, factory, protocol):
        super().__init__(factory, protocol)
        self.network = self.sender = ""

    def xxfi_connect(self, hostname, hostaddr):
        host = getattr(hostaddr, "host", "")
        self.network = network_of(host) if host else ""
        # Local submission over a UNIX socket has no address, and nobody who would come again.
        return SMFIS_CONTINUE if host else SMFIS_ACCEPT

    def xxfi_envfrom(self, argv):
        # Bounces, from "<>", are put off as well: who sends them is a mail server.
        self.sender = argv[0]
        return SMFIS_ACCEPT if self.smfi_getsymval("{auth_authen}") else SMFIS_CONTINUE

    async def xxfi_envrcpt(self, argv):
        now = self.factory.now()
        try:
            first = await self.factory.first_seen(self.network, self.sender, argv[0], now)
        except StoreAway:
            if self.factory.when_away == SMFIS_TEMPFAIL:
                self.smfi_setreply("451", "4.3.0", "the greylist is away, try again later")
            return self.factory.when_away
        wait = self.factory.terms.delay - (now - first)
        if first < now and wait <= 0:
            return SMFIS_CONTINUE
        self.smfi_setreply("451", "4.7.1", f"greylisted, try again in {max(wait, 1):.0f} seconds")
        return SMFIS_TEMPFAIL


class GreylistFactory(MilterFactory):
    """
    Hold what all connections share, from the first one to the last.

    :param when_away: What is answered while the store is away: by default mail passes.
    :param trusted: Networks whose mail is never put off.
    :param now: Tells the time, in seconds; that of all hosts should be the same.
    :param thread: Options of `StoreThread`.
    """

    def __init__(self, store, terms, when_away=SMFIS_CONTINUE, trusted=(), now=time.time, **thread):
        super().__init__(Greylist, when=~client_in(*trusted) if trusted else None)
        self.terms = terms
        self.when_away = when_away
        self.now = now
        self.thread = StoreThread(store, **thread)
        self.forgetting = task.LoopingCall(lambda: Deferred.fromCoroutine(self.forget()))

    def start(self):
        self.forgetting.start(HOUR)

    async def stop(self):
        self.forgetting.stop()
        await self.thread.stop()

    async def first_seen(self, network, sender, recipient, now):
        triplet = triplet_of(network, sender, recipient)
        return await self.thread.ask(self.thread.store.first_seen, triplet, now, self.terms)

    async def forget(self):
        with contextlib.suppress(StoreAway):
            await self.thread.ask(self.thread.store.forget, self.now())


WHEN_AWAY = {"pass": SMFIS_CONTINUE, "tempfail": SMFIS_TEMPFAIL}


def make(store=None, *, seconds=300.0, when_away="pass", trusted=()):
    """
    Make a factory for ``yatxmilter serve``.

    :param store: STORE; by default the environment's GREYLIST_STORE.
    :param seconds: SECONDS.
    :param when_away: Whether mail may "pass" while the store is away, or is put off: "tempfail".
    :param trusted: Networks whose mail is never put off.
    """
    if when_away not in WHEN_AWAY:
        raise ValueError(f"when_away is {when_away!r}, expected one of {', '.join(WHEN_AWAY)}")
    store = store or os.environ.get("GREYLIST_STORE", DEFAULT_STORE)
    return GreylistFactory(open_store(store), Terms(seconds), WHEN_AWAY[when_away], trusted)


def parse(argv):
    parser = argparse.ArgumentParser(description="Greylisting")
    parser.add_argument("endpoint", nargs="?", default="tcp:9900:interface=127.0.0.1")
    parser.add_argument("store", nargs="?", default=DEFAULT_STORE, type=open_store)
    parser.add_argument("seconds", nargs="?", default=Terms().delay, type=float)
    parser.add_argument("--when-away", choices=tuple(WHEN_AWAY), default="pass")
    parser.add_argument(
        "--trust", action="append", default=[], metavar="NETWORK", type=ipaddress.ip_network
    )
    return parser.parse_args(argv)


def main(argv):
    options = parse(argv)
    globalLogPublisher.addObserver(textFileLogObserver(sys.stderr))
    when_away = WHEN_AWAY[options.when_away]
    trusted = [str(network) for network in options.trust]
    greylist = GreylistFactory(options.store, Terms(options.seconds), when_away, trusted)
    run_milters(options.endpoint, MilterProtocolFactory(greylist))


if __name__ == "__main__":
    main(sys.argv[1:])
