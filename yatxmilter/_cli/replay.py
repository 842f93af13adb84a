"""
``python -m yatxmilter replay``: recorded sessions against a milter; what does it do differently?

`record` reads the sessions, `replay_steps` takes them apart, `replay_player` plays them,
`replay_compare` compares, and `replay_report` tells. Here several are played side by side, and
told of in the order of the record.
"""

from __future__ import annotations

import json
import re
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator
from typing import Any, BinaryIO, Final, TextIO

from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.internet.error import ConnectError

from yatxmilter._cli.replay_report import Summary, result_lines, tell_result
from yatxmilter._cli.running import Interrupted, interruptible, run_reactor
from yatxmilter._cli.send_options import read_connections, read_seconds
from yatxmilter._cli.terminal import Page
from yatxmilter._escaping import printable
from yatxmilter._records.record import RecordError, Session, read_sessions, record_lines
from yatxmilter._records.replay_compare import Rules
from yatxmilter._records.replay_player import Result, play_session
from yatxmilter._records.replay_steps import Recorded, read_steps
from yatxmilter.client import MilterClientFactory
from yatxmilter.protocol._endpoints import client_endpoint

__all__ = ["DESCRIPTION", "add_arguments", "run"]

DESCRIPTION = """\
Send a recording of "trace --record" to a milter, command by command, and report each answer
and each edit that is different now: a test suite made from real mail.

  python -m yatxmilter replay mail.jsonl --to inet:8891@localhost
      nothing but the differences, and a line that counts
  python -m yatxmilter replay mail.jsonl --to unix:/run/filter.sock \\
      --ignore Authentication-Results --ignore X-Date --mask 'queue id [0-9A-Za-z]+'
      without fields, and parts of lines, that are new each time
  python -m yatxmilter replay mail.jsonl --to inet:8891@localhost --only 4bXyZ123
      only the session in which that queue id was
  python -m yatxmilter replay *.jsonl --to inet:8891@localhost --concurrency 8 --json
      eight sessions at a time, a JSON object for each message

If the milter asks for less, or for more, than when the record was made, it is treated as an
MTA would treat it. Steps that it declines are not sent. If it ends a message early, the rest
of the message is not sent. Steps that are not in the record cannot be sent; the report says so.

The exit status is 0 if nothing differs, 1 if something does, 2 for wrong arguments, 3 if the
milter cannot be reached or the record cannot be used, 130 after Ctrl-C."""

# How many results may wait for one before them.
_MOST_WAITING: Final = 1_000

_SAME: Final = 0
_DIFFERENT: Final = 1
_UNUSABLE: Final = 2
_FAILED: Final = 3
_INTERRUPTED: Final = 130


def _mask(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise ArgumentTypeError(f"{text!r} is not a regular expression: {error}") from None


def add_arguments(parser: ArgumentParser) -> None:
    """
    Declare the command's arguments.
    """
    parser.add_argument("records", nargs="+", metavar="FILE", help="a record; - is standard input")
    parser.add_argument("--to", required=True, metavar="SPEC", help="where the milter is")
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="HEADER",
        help="do not compare edits of this header field; may be given several times",
    )
    parser.add_argument(
        "--mask",
        action="append",
        default=[],
        type=_mask,
        metavar="REGEX",
        help="in answers, treat all text that matches as equal; may be given several times",
    )
    parser.add_argument(
        "--ignore-negotiation", action="store_true", help="do not compare what is negotiated"
    )
    parser.add_argument(
        "--only", metavar="QUEUE_ID", help="play only the sessions in which this queue id was"
    )
    parser.add_argument(
        "--partial", action="store_true", help="play what there is of a record that was cut"
    )
    parser.add_argument(
        "--concurrency",
        type=read_connections,
        default=1,
        metavar="N",
        help="play N sessions at a time",
    )
    parser.add_argument(
        "--timeout",
        type=read_seconds,
        default=300.0,
        metavar="SECONDS",
        help="how long to wait for an answer (300)",
    )
    parser.add_argument("--fail-fast", action="store_true", help="end at the first difference")
    parser.add_argument("--json", action="store_true", help="print a JSON object for each message")
    parser.add_argument("--verbose", "-v", action="store_true", help="also tell what is equal")


def run(
    arguments: Namespace,
    *,
    reactor: Any = None,
    out: TextIO | None = None,
    err: TextIO | None = None,
) -> int:
    """
    Run the command, and give the exit status.
    """
    out, err = out or sys.stdout, err or sys.stderr
    replay = _Replay(arguments, out)
    status = _SAME
    try:
        run_reactor(replay.play, reactor)
    except Interrupted:
        status = _INTERRUPTED
    except ValueError as error:
        err.write(f"yatxmilter replay: {printable(str(error))}\n")
        return _UNUSABLE
    if replay.error:
        err.write(f"yatxmilter replay: {printable(str(replay.error))}\n")
    replay.tell_summary()
    if status == _SAME:
        status = _FAILED if replay.error else _DIFFERENT if replay.summary.differences else _SAME
    return status


class _Replay:
    """
    Plays sessions.

    :ivar error: Why not all of them could be; empty while they can.
    """

    def __init__(self, arguments: Namespace, out: TextIO) -> None:
        self._arguments = arguments
        self._out = out
        self._page = Page(out)
        self._rules = Rules(
            frozenset(name.lower() for name in arguments.ignore),
            tuple(arguments.mask),
            not arguments.ignore_negotiation,
        )
        self._sessions = self._read()
        self._finished: dict[int, Result] = {}
        self._begun = self._told = 0
        self._waiting: list[Deferred[None]] = []
        self.summary = Summary()
        self.error = ""

    async def play(self, reactor: Any) -> None:
        """
        Play all sessions, several at a time.
        """
        endpoint = client_endpoint(reactor, self._arguments.to)
        workers = [
            Deferred.fromCoroutine(self._work(reactor, endpoint))
            for _ in range(self._arguments.concurrency)
        ]
        try:
            await gatherResults(workers, consumeErrors=True)
        except FirstError as error:
            error.subFailure.raiseException()
        # Those behind one that could not be played.
        for number in sorted(self._finished):
            self._tell(self._finished[number])
        if not self.summary.sessions and not self.error:
            only = self._arguments.only
            what = f"has the queue id {only!r}" if only else "is in the record"
            self.error = f"no session {what}"

    async def _work(self, reactor: Any, endpoint: Any) -> None:
        while (taken := await self._next()) is not None:
            session, recorded = taken
            number = self._begun
            self._begun += 1
            factory = MilterClientFactory(timeout=self._arguments.timeout, clock=reactor)
            try:
                result = await play_session(endpoint, session, recorded, self._rules, factory)
            except (ConnectError, OSError) as error:
                self.error = f"the milter at {self._arguments.to} cannot be reached: {error}"
                self._go_on()
                return
            self._finished[number] = result
            while self._told in self._finished:
                self._tell(self._finished.pop(self._told))
                self._told += 1
            self._go_on()

    async def _next(self) -> tuple[Session, Recorded] | None:
        # Results are told in order: those that wait for a slow one must not become too many.
        while self._begun - self._told >= _MOST_WAITING and not self.error:
            waiting: Deferred[None] = Deferred()
            self._waiting.append(waiting)
            await waiting
        return self._next_session()

    def _go_on(self) -> None:
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.callback(None)

    def _next_session(self) -> tuple[Session, Recorded] | None:
        stopped = self._arguments.fail_fast and self.summary.differences
        if self.error or stopped:
            return None
        try:
            with interruptible():
                return next(self._sessions, None)
        except RecordError as error:
            self.error = str(error)
            return None

    def _read(self) -> Iterator[tuple[Session, Recorded]]:
        for name in self._arguments.records:
            try:
                yield from self._read_file(name)
            except OSError as error:
                raise RecordError(f"cannot read {name}: {error.strerror}") from None
            except RecordError as error:
                raise RecordError(f"{name}: {error}") from None

    def _read_file(self, name: str) -> Iterator[tuple[Session, Recorded]]:
        if name == "-" and sys.stdin is None:
            raise RecordError("cannot be read: standard input is closed")
        if name == "-":
            yield from self._select(sys.stdin.buffer)
            return
        with open(name, "rb") as file:
            yield from self._select(file)

    def _select(self, file: BinaryIO) -> Iterator[tuple[Session, Recorded]]:
        only = self._arguments.only
        for session in read_sessions(record_lines(file), partial=self._arguments.partial):
            recorded = read_steps(session)
            # They are in the steps, which are gone when they are played; a result is not.
            session.packets = []
            if recorded is None:
                continue
            if only is None or any(step.queue_id == only for step in recorded.steps):
                yield session, recorded

    def _tell(self, result: Result) -> None:
        self.summary.add(result)
        if self._arguments.json:
            self._out.writelines(line + "\n" for line in result_lines(result))
        else:
            tell_result(self._page, result, verbose=self._arguments.verbose)
        self._out.flush()

    def tell_summary(self) -> None:
        """
        Count, at the end.
        """
        if self._arguments.json:
            self._out.write(json.dumps({"summary": vars(self.summary)}) + "\n")
        else:
            self._page.line(self.summary.line())
