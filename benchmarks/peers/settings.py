"""
What the benchmark asks of a milter, read from the environment.

Every peer of the comparison is given the same, whatever language it is written in:

``BENCH_LISTEN``
    ``unix:PATH`` or ``inet:PORT@127.0.0.1``.
``BENCH_ADD``
    1: add the header field ``X-Bench: seen`` at the end of each message.
``BENCH_WAIT``
    Milliseconds to wait at the end of each message.
``BENCH_NOREPLY``
    1: promise not to answer header fields.

Only for yatxmilter: ``BENCH_MILTERS``, how many milters one connection has, ``BENCH_MERGE``, how
they are merged, ``BENCH_STYLE``, ``sync``, ``deferred`` or ``coroutine``, for its workers
``BENCH_WORKERS``, how many, and for ``serve`` ``BENCH_METRICS``, 1 for a page of metrics, and
``BENCH_LOG_LEVEL``, from which level on it logs.
"""

from __future__ import annotations

import os

LISTEN = os.environ.get("BENCH_LISTEN", "")
ADD = os.environ.get("BENCH_ADD", "1") == "1"
WAIT = int(os.environ.get("BENCH_WAIT", "0")) / 1000
NOREPLY = os.environ.get("BENCH_NOREPLY", "0") == "1"
MILTERS = int(os.environ.get("BENCH_MILTERS", "1"))
MERGE = os.environ.get("BENCH_MERGE", "first")
METRICS = os.environ.get("BENCH_METRICS", "0") == "1"
LOG_LEVEL = os.environ.get("BENCH_LOG_LEVEL", "")
WORKERS = int(os.environ.get("BENCH_WORKERS", "2"))
STYLE = os.environ.get("BENCH_STYLE", "sync")

#: Where to listen: the path of a UNIX socket, or a port of the loopback interface.
PATH = LISTEN.removeprefix("unix:") if LISTEN.startswith("unix:") else None
PORT = 0 if PATH else int(LISTEN.removeprefix("inet:").partition("@")[0] or 0)
