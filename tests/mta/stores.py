"""
The stores that the greylisting example knows, each in a folder of its own.

Servers are the real ones. They listen on a UNIX socket in that folder, and run as an unprivileged
user, as PostgreSQL insists on.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import sqlite3
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .processes import PATIENCE, descendants, require, require_program, start, stop, wait_until

#: Present on every Debian, and nobody's.
_USER = "nobody"


def _as_user(*command: str | Path) -> list[str]:
    words = [str(word) for word in command]
    if os.geteuid() != 0:
        return words
    return [require_program("setpriv"), f"--reuid={_USER}", "--clear-groups", *words]


class StoreServer(ABC):
    """
    A server, not yet started.

    :cvar name: What it is called in messages.
    :ivar folder: What it writes into.
    :ivar url: What the example is told.
    """

    name: str
    url: str

    def __init__(self) -> None:
        self.require_installed()
        _as_user()
        self.folder = Path(tempfile.mkdtemp(prefix="yatxmilter-store-"))
        if os.geteuid() == 0:
            os.chown(self.folder, pwd.getpwnam(_USER).pw_uid, -1)
        self._process: subprocess.Popen[bytes] | None = None
        self.prepare()

    @abstractmethod
    def require_installed(self) -> None:
        """
        Skip the test, or fail it, without the server or the Python package for it.
        """

    @abstractmethod
    def prepare(self) -> None:
        """
        Make what the server needs.
        """

    @abstractmethod
    def command(self) -> list[str | Path]:
        """
        Give the command that runs it in the foreground.
        """

    @abstractmethod
    def is_up(self) -> bool:
        """
        Tell whether it answers.
        """

    @abstractmethod
    def clear(self) -> None:
        """
        Have it forget everything, the table included.
        """

    @abstractmethod
    def lifetimes(self) -> Iterator[float]:
        """
        Give the seconds after which each triplet that it keeps would be forgotten.
        """

    def start(self) -> None:
        """
        Start it, and wait until it answers.
        """
        log = self.folder / "log"
        self._process = process = start(_as_user(*self.command()), log)
        wait_until(lambda: process.poll() is not None or self.is_up(), f"{self.name} to answer")
        if process.poll() is not None:
            raise AssertionError(f"{self.name} did not start: {log.read_text()}")

    def stop(self) -> None:
        """
        Stop it; what it keeps stays.
        """
        if self._process is not None:
            stop(self._process)
            self._process = None

    def freeze(self) -> None:
        """
        Have it answer nobody.
        """
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """
        Have it answer again.
        """
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: int) -> None:
        assert self._process is not None
        for pid in (self._process.pid, *descendants(self._process.pid)):
            os.kill(pid, number)

    def remove(self) -> None:
        """
        Stop it, and remove all that it has kept.
        """
        self.stop()
        shutil.rmtree(self.folder)


def _package(name: str) -> Any:
    try:
        return __import__(name)
    except ImportError:
        require(False, f"the Python package {name} is not installed")
        raise


class PostgresServer(StoreServer):
    """
    PostgreSQL, as Debian installs it.
    """

    name = "PostgreSQL"

    def require_installed(self) -> None:
        """
        See `StoreServer`.
        """
        folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
        require(bool(folders), "PostgreSQL is not installed")
        self._programs = folders[-1].parent
        self._module = _package("psycopg2")

    def prepare(self) -> None:
        """
        Make the database's files.
        """
        self.url = f"postgresql://greylist@/postgres?host={self.folder}"
        words = ("-D", self.folder / "data", "-U", "greylist", "-A", "trust", "--no-sync")
        subprocess.run(
            _as_user(self._programs / "initdb", *words, "--no-locale", "-E", "UTF8"),
            check=True,
            stdout=subprocess.DEVNULL,
            cwd="/",
        )

    def command(self) -> list[str | Path]:
        """
        See `StoreServer`.
        """
        settings = ("-c", "listen_addresses=", "-c", "fsync=off", "-c", "shared_buffers=16MB")
        return [
            self._programs / "postgres",
            *("-D", self.folder / "data", "-k", self.folder),
            *settings,
        ]

    def query(self, statement: str) -> list[Any]:
        """
        Ask the database.
        """
        connection = self._module.connect(self.url)
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(statement)
                return list(cursor.fetchall()) if cursor.description else []
        finally:
            connection.close()

    def clear(self) -> None:
        """
        See `StoreServer`.
        """
        self.query("SET client_min_messages = warning; DROP TABLE IF EXISTS greylist")

    def stop(self) -> None:
        """
        Stop it at once; asked by SIGTERM it would wait for its clients to go.
        """
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(PATIENCE)
        super().stop()

    def is_up(self) -> bool:
        """
        See `StoreServer`.
        """
        try:
            return self.query("SELECT 1") == [(1,)]
        except self._module.OperationalError:
            return False

    def lifetimes(self) -> Iterator[float]:
        """
        See `StoreServer`.
        """
        for (seconds,) in self.query("SELECT expires - first FROM greylist"):
            yield seconds


class RedisServer(StoreServer):
    """
    Redis.
    """

    name = "Redis"

    def require_installed(self) -> None:
        """
        See `StoreServer`.
        """
        self._program = require_program("redis-server")
        self._module = _package("redis")

    def prepare(self) -> None:
        """
        Choose the socket.
        """
        self.url = f"unix://{self.folder}/socket"
        self._client = self._module.Redis.from_url(self.url)

    def command(self) -> list[str | Path]:
        """
        See `StoreServer`.
        """
        files = ("--dir", self.folder, "--appendonly", "yes", "--save", "")
        return [self._program, "--port", "0", "--unixsocket", self.folder / "socket", *files]

    def is_up(self) -> bool:
        """
        See `StoreServer`.
        """
        try:
            return bool(self._client.ping())
        except self._module.ConnectionError:
            return False

    def lifetimes(self) -> Iterator[float]:
        """
        See `StoreServer`.
        """
        for key in self._client.scan_iter("greylist:*"):
            yield self._client.pttl(key) / 1000

    def clear(self) -> None:
        """
        See `StoreServer`.
        """
        self._client.flushall()

    def stop(self) -> None:
        """
        See `StoreServer`.
        """
        self._client.close()
        super().stop()


class SqliteFile(StoreServer):
    """
    SQLite, which has no server.
    """

    name = "SQLite"

    def require_installed(self) -> None:
        """
        It comes with Python.
        """

    def prepare(self) -> None:
        """
        Choose the file.
        """
        self.path = self.folder / "greylist.sqlite"
        self.url = f"sqlite:///{self.path}"

    def command(self) -> list[str | Path]:
        """
        There is nothing to run.
        """
        raise NotImplementedError

    def is_up(self) -> bool:
        """
        It always is.
        """
        return True

    def start(self) -> None:
        """
        There is nothing to start.
        """

    def clear(self) -> None:
        """
        See `StoreServer`.
        """
        for path in self.folder.iterdir():
            path.unlink()

    def lifetimes(self) -> Iterator[float]:
        """
        See `StoreServer`.
        """
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            for (seconds,) in connection.execute("SELECT expires - first FROM greylist"):
                yield seconds
