"""
``python -m yatxmilter send``: play an MTA to a milter with messages of one's own.

The parts are in modules of their own: `send_options` reads the arguments, `messages` the messages,
`send_play` plays them, and `send_results` tells of them and counts. Here they are put together.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from typing import Any, TextIO

from yatxmilter._cli.messages import read_messages
from yatxmilter._cli.running import Interrupted, run_reactor
from yatxmilter._cli.send_options import add_arguments, make_session
from yatxmilter._cli.send_play import Player, Result
from yatxmilter._cli.send_results import (
    UNUSABLE,
    Progress,
    Summary,
    as_json,
    tell_result,
    tell_summary,
)
from yatxmilter._cli.terminal import Page
from yatxmilter._records.private import open_private

__all__ = ["DESCRIPTION", "add_arguments", "run"]

DESCRIPTION = """\
Play an MTA to a milter with messages of your own. For each it prints the verdict, the
edits, and the message before and after; for several, a summary.
It works with any milter in any language. Nothing is delivered.

  python -m yatxmilter send message.eml --to inet:8891@localhost
      one message, told at length; --brief tells it in a line
  python -m yatxmilter send inbox.mbox ~/Maildir --to unix:/run/filter.sock --brief
      whole mailboxes, a line for each message and a summary
  python -m yatxmilter send spam/ --to inet:9900@localhost --brief --expect reject,quarantine
      is all of it refused? status 0 if it is, 1 if not
  python -m yatxmilter send probe.eml --to inet:8891@localhost -q --expect accept --max-time 5
      a check for a monitoring system: one line, and the status
  python -m yatxmilter send message.eml --to inet:9900@localhost -q \\
      --repeat 5000 --concurrency 20 --reuse
      how fast is it?
  python -m yatxmilter send - --to inet:9900@localhost --client 2001:db8::25 --auth joe --tls \\
      --from a@example.org --rcpt b@example.com --macro daemon_name=smtps <message.eml
      all about the envelope and the session
  python -m yatxmilter send folder/ --to inet:9900@localhost --json >results
      a JSON object for each message

The exit status is 0 if each message met what was expected of it (without --expect: any
verdict), 1 if not, 2 for wrong arguments or a message that cannot be used, 3 if the milter
cannot be reached, fails, is late or breaks the protocol, 130 after Ctrl-C. Of several the
highest counts; one bad message does not stop the others."""


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
    try:
        return _run(arguments, reactor, out, err)
    except BrokenPipeError:
        raise
    except OSError as error:
        where = error.filename or "the output"
        err.write(f"yatxmilter send: cannot write {where}: {error.strerror}\n")
        return UNUSABLE


def _run(arguments: Namespace, reactor: Any, out: TextIO, err: TextIO) -> int:
    summary = Summary(arguments.expect)
    # Where results pass by on the terminal there is nothing to wait for.
    bar = Progress(err, summary, hidden=out.isatty() and not arguments.quiet)
    try:
        if arguments.save is not None:
            arguments.save.mkdir(0o700, parents=True, exist_ok=True)
        _play(arguments, reactor, _Teller(arguments, summary, bar, out))
    except Interrupted:
        summary.interrupted = True
    finally:
        bar.clear()
    if arguments.quiet:
        Page(out).line(summary.line())
    elif summary.is_needed:
        tell_summary(Page(err if arguments.json else out), summary)
    out.flush()
    return summary.status


def _play(arguments: Namespace, reactor: Any, teller: _Teller) -> None:
    async def play(reactor: Any) -> None:
        player = Player(
            make_session(arguments),
            read_messages(arguments.messages),
            teller.tell,
            reactor=reactor,
            repeat=arguments.repeat,
            concurrency=arguments.concurrency,
            reuse=arguments.reuse,
            max_time=arguments.max_time,
        )
        await player.play()

    run_reactor(play, reactor)


class _Teller:
    """
    Takes the results as they come.
    """

    def __init__(self, arguments: Namespace, summary: Summary, bar: Progress, out: TextIO) -> None:
        self._arguments = arguments
        self._summary = summary
        self._bar = bar
        self._out = out
        self._page = Page(out)

    def tell(self, result: Result) -> None:
        """
        Count a result, and print it if that is wanted.
        """
        arguments, summary = self._arguments, self._summary
        summary.add(result)
        if arguments.save is not None and result.outcome is not None and result.outcome.accepted:
            path = arguments.save / f"{result.number:06}.eml"
            with os.fdopen(open_private(path, "w"), "wb") as file:
                file.write(result.after)
        expected = summary.is_expected(result)
        if arguments.json:
            self._out.write(as_json(result, expected) + "\n")
        elif not arguments.quiet:
            tell_result(self._page, result, expected, brief=arguments.brief)
        if not arguments.quiet:
            # For whoever reads along at the other end of a pipe.
            self._out.flush()
        self._bar.step()
