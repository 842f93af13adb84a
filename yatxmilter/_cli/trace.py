"""
``python -m yatxmilter trace``: between an MTA and a milter, and tells what they say.

`trace_relay` passes the bytes on, `trace_view` shows them, `trace_output` prints without holding
anybody up, and `record` keeps them. Here is what starts and stops all that.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path
from time import time
from typing import Any, Final, TextIO, cast

from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError

from yatxmilter._cli.running import Interrupted, run_reactor
from yatxmilter._cli.terminal import Page
from yatxmilter._cli.trace_output import Outlet
from yatxmilter._cli.trace_relay import Relay
from yatxmilter._cli.trace_view import TraceView
from yatxmilter._escaping import printable
from yatxmilter._records.private import open_private
from yatxmilter._records.record import Recorder, is_end
from yatxmilter._records.record_redaction import KINDS
from yatxmilter.protocol._endpoints import client_endpoint, server_endpoint
from yatxmilter.protocol._refusals import cannot_listen

__all__ = ["DESCRIPTION", "add_arguments", "redact_kinds", "run"]

DESCRIPTION = """\
Sit between an MTA and a milter, and print each packet: time, connection, queue id,
direction, and what is said, in words. Every byte is passed on unchanged and at once. If the
milter cannot be reached, the MTA's connection is closed, and its default action applies.

  python -m yatxmilter trace --listen inet:9900@localhost --to inet:8891@localhost
      then tell the MTA that its milter is at port 9900: smtpd_milters = inet:localhost:9900
  python -m yatxmilter trace --listen unix:/run/trace.sock --to unix:/run/filter.sock --bodies
      with the text of bodies
  python -m yatxmilter trace --listen inet:9900@localhost --to inet:8891@localhost \\
      --record mail.jsonl --redact body,addresses --quiet
      only keep the record, without private data, for "replay"
  python -m yatxmilter trace --listen inet:9900@localhost --to inet:8891@localhost --json
      a JSON object for each packet

Addresses are written as for libmilter (inet:port@host, inet6:port@host, unix:/path) or as
endpoints of Twisted (tcp:8891:interface=127.0.0.1). Ctrl-C or SIGTERM ends it, and completes
the record. NO_COLOR=1 leaves colours out.

The exit status is 0 when it was told to end, 1 if the record or the output could not be
written, 2 for wrong arguments or a record that is already there, 3 if it cannot listen."""

# The line that ends a record is within so many bytes.
_LONGEST_END: Final = 4096

_OK: Final = 0
_WRITE_FAILED: Final = 1
_UNUSABLE: Final = 2
_CANNOT_LISTEN: Final = 3


def redact_kinds(text: str) -> tuple[str, ...]:
    """
    Read the value of ``--redact``.

    :raises ArgumentTypeError: for an unknown kind.
    """
    kinds = tuple(word.strip() for word in text.split(","))
    if not set(kinds) <= set(KINDS):
        raise ArgumentTypeError(f"{text!r} is not {' or '.join(KINDS)}, or both with a comma")
    return kinds


def add_arguments(parser: ArgumentParser) -> None:
    """
    Declare the command's arguments.
    """
    parser.add_argument(
        "--listen", required=True, metavar="SPEC", help="where the MTA will find the milter"
    )
    parser.add_argument("--to", required=True, metavar="SPEC", help="where the milter is")
    parser.add_argument("--bodies", action="store_true", help="show the text of bodies")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print a JSON object for each packet")
    form.add_argument("--quiet", "-q", action="store_true", help="print nothing")
    parser.add_argument("--record", type=Path, metavar="FILE", help="keep all of it, for replay")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--append", action="store_true", help="add to a record that is there")
    how.add_argument("--force", action="store_true", help="overwrite a file that is there")
    parser.add_argument(
        "--redact",
        type=redact_kinds,
        default=(),
        metavar="KINDS",
        help="what to leave out of the record: body, addresses, or both with a comma",
    )


class _Refused(Exception):
    """
    The command cannot do what it was asked for.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def run(
    arguments: Namespace,
    *,
    reactor: Any = None,
    out: TextIO | None = None,
    err: TextIO | None = None,
) -> int:
    """
    Run the command until it is told to end, and give the exit status.
    """
    out, err = out or sys.stdout, err or sys.stderr
    broken: Deferred[None] = Deferred()
    reactors: list[Any] = []
    outlet = Outlet(out, lambda: reactors[0].callFromThread(broken.callback, None))
    tracer = _Tracer(arguments, outlet, err)

    async def play(reactor: Any) -> None:
        reactors.append(reactor)
        await tracer.start(reactor)
        await broken

    try:
        run_reactor(play, reactor)
    except Interrupted:
        pass
    except _Refused as error:
        err.write(f"yatxmilter trace: {printable(str(error))}\n")
        return error.status
    finally:
        failure = tracer.finish()
        outlet.finish()
    if failure:
        err.write(f"yatxmilter trace: the record is not complete: {failure}\n")
    if isinstance(outlet.failure, BrokenPipeError):
        raise outlet.failure
    if outlet.failure is not None:
        err.write(f"yatxmilter trace: cannot print: {outlet.failure.strerror}\n")
    return _WRITE_FAILED if failure or outlet.failure else _OK


class _Tracer:
    """
    What listens, passes on, prints and records.
    """

    def __init__(self, arguments: Namespace, outlet: Outlet, err: TextIO) -> None:
        self._arguments = arguments
        self._outlet = outlet
        self._err = err
        self._recorder: Recorder | None = None

    async def start(self, reactor: Any) -> None:
        arguments = self._arguments
        endpoint, target = _endpoints(reactor, arguments)
        relay = Relay(target)
        try:
            port: Any = await endpoint.listen(relay)
        except (CannotListenError, OSError) as error:
            raise _Refused(cannot_listen(arguments.listen, error), _CANNOT_LISTEN) from None
        try:
            # Not before it is sure that there will be something to write: what stood in the
            # record must not be lost for a port that is in use.
            relay.watcher = self._make_view()
        except _Refused:
            await port.stopListening()
            raise

        def stop() -> Deferred[Any]:
            closed: Deferred[Any] = relay.stop(reactor)
            return closed.addCallback(lambda _: port.stopListening())

        reactor.addSystemEventTrigger("before", "shutdown", stop)
        self._err.write(
            f"yatxmilter trace: between {arguments.listen} and {arguments.to}; Ctrl-C ends it\n"
        )
        self._err.flush()

    def _make_view(self) -> TraceView:
        arguments = self._arguments
        if arguments.record is not None:
            stream = _open_record(arguments.record, arguments.append, arguments.force)
            self._recorder = Recorder(stream, arguments.redact)
            self._recorder.begin(time())
        return TraceView(
            None if arguments.quiet or arguments.json else Page(self._outlet),
            self._outlet.write if arguments.json else None,
            bodies=arguments.bodies,
            recorder=self._recorder,
        )

    def finish(self) -> str:
        """
        Complete the record; say what is wrong with it, if something is.
        """
        if self._recorder is None:
            return ""
        self._recorder.end(time())
        return self._recorder.failure


def _endpoints(reactor: Any, arguments: Namespace) -> tuple[Any, Any]:
    if arguments.listen == arguments.to:
        text = f"--listen and --to are the same, {arguments.to}: it would talk to itself"
        raise _Refused(text, _UNUSABLE)
    try:
        return (
            server_endpoint(reactor, arguments.listen),
            client_endpoint(reactor, arguments.to),
        )
    except ValueError as error:
        raise _Refused(str(error), _UNUSABLE) from None


def _open_record(path: Path, append: bool, force: bool) -> TextIO:
    mode = "a" if append else "w" if force else "x"
    try:
        # A pipe or a device has no end to look at.
        if append and path.is_file():
            _check_end(path)
        stream = os.fdopen(open_private(path, mode), mode, buffering=1, encoding="ascii")
        return cast(TextIO, stream)
    except FileExistsError:
        text = f"{path} is there already; add to it with --append, overwrite it with --force"
        raise _Refused(text, _UNUSABLE) from None
    except OSError as error:
        raise _Refused(f"cannot write {path}: {error.strerror}", _UNUSABLE) from None


def _check_end(path: Path) -> None:
    """
    Make sure that a record can be added to: that it is one, and whole.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - _LONGEST_END, 0))
        last = file.read(_LONGEST_END)
    if size and not is_end(last[last.rfind(b"\n", 0, -1) + 1 :]):
        text = f"cannot add to {path}: it does not end as a record does, with a line of type end"
        raise _Refused(text, _UNUSABLE)
