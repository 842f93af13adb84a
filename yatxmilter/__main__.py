"""
``python -m yatxmilter``: one sub-command for each thing to do.

A sub-command is a row of `_COMMANDS` and a module of `yatxmilter._cli`.
"""

from __future__ import annotations

import errno
import os
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from types import ModuleType
from typing import Final, NamedTuple

from yatxmilter import __version__
from yatxmilter._cli import demo, dev, doctor, pymilter, replay, send, serve, trace
from yatxmilter._engine.connection import COMPILED
from yatxmilter.service._ending import GRACE, end_behind_main

__all__ = ["main"]


class _Row(NamedTuple):
    name: str
    module: ModuleType
    summary: str
    description: str


_COMMANDS: Final = (
    _Row(
        "demo",
        demo,
        "see two milters at work on a message",
        """\
Start two small milters on a free port of the loopback interface, play an MTA to them with
a message, and print all that happens: what is negotiated, how each milter answers each
command, the modification actions, the verdict, and the message before and after.

Nothing is delivered, and nothing is left running.

  python -m yatxmilter demo                   with a message that comes with the package
  python -m yatxmilter demo message.eml       with one of your own
  NO_COLOR=1 python -m yatxmilter demo        without colour on a terminal""",
    ),
    _Row("dev", dev, "run a milter while you write it", dev.DESCRIPTION),
    _Row("serve", serve, "run milters as a daemon", serve.DESCRIPTION),
    _Row(
        "pymilter",
        pymilter,
        "run a program written for pymilter",
        pymilter.DESCRIPTION,
    ),
    _Row("send", send, "send messages to any milter, and see what it does", send.DESCRIPTION),
    _Row("trace", trace, "show and record what an MTA and a milter say", trace.DESCRIPTION),
    _Row(
        "replay",
        replay,
        "send recorded mail to a milter again",
        replay.DESCRIPTION,
    ),
    _Row("doctor", doctor, "check an MTA's configuration for its milters", doctor.DESCRIPTION),
)

_UNUSABLE: Final = 2
_INTERRUPTED: Final = 130

#: What is wrong where a disk takes no more.
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_DESCRIPTION: Final = """\
Milters - mail filters for Postfix and Sendmail - in Twisted, with libmilter's API.

  python -m yatxmilter demo              see two milters at work on a message
  python -m yatxmilter dev               run a milter while you write it
  python -m yatxmilter serve             run milters as a daemon
  python -m yatxmilter pymilter          run a program written for pymilter
  python -m yatxmilter send              send messages to any milter, and see what it does
  python -m yatxmilter trace             show and record what an MTA and a milter say
  python -m yatxmilter replay            send recorded mail to a milter again
  python -m yatxmilter doctor            check an MTA's configuration for its milters
  python -m yatxmilter COMMAND --help    what a command does, with examples"""


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="yatxmilter", description=_DESCRIPTION, formatter_class=RawDescriptionHelpFormatter
    )
    version = f"yatxmilter {__version__}{' (compiled)' if COMPILED else ''}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for row in _COMMANDS:
        command = commands.add_parser(
            row.name,
            help=row.summary,
            description=row.description,
            formatter_class=RawDescriptionHelpFormatter,
        )
        row.module.add_arguments(command)
        command.set_defaults(run=row.module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run a command, and answer with the exit status.

    :param argv: The arguments, by default those of the process.
    """
    # Where there is none, as after ``>&-``, what is printed goes nowhere.
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:
            # It stays open for as long as the process lives.
            setattr(sys, stream, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    arguments = Namespace(command="")
    try:
        status = _run(arguments, argv)
        sys.stdout.flush()
    except KeyboardInterrupt:
        # Before there was a reactor, as while a configuration is read from a pipe.
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        _forget_output()
        return 1
    except OSError as error:
        # Milters and programs of others write elsewhere, too; not before they run.
        others = hasattr(arguments, "run") and arguments.command in ("dev", "serve", "pymilter")
        if error.errno not in _FULL or others:
            raise
        sys.stderr.write(f"yatxmilter: cannot write the output: {error.strerror}\n")
        _forget_output()
        return _UNUSABLE
    return status


def _run(arguments: Namespace, argv: Sequence[str] | None) -> int:
    try:
        _parser().parse_args(argv, arguments)
    except SystemExit as end:
        # argparse leaves by itself: 0 after --help and --version, 2 for wrong arguments.
        return int(end.code or 0)
    status: int = arguments.run(arguments)
    return status


def _forget_output() -> None:
    # What is still buffered must not fail once more when the interpreter flushes it at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    exit_status = main()
    # A thread that a milter has left at work does not keep the process.
    end_behind_main(GRACE, exit_status)
    sys.exit(exit_status)
