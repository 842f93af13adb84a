"""
``python -m yatxmilter serve``: run milters as a daemon.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from argparse import ArgumentParser, Namespace
from typing import Any

from twisted.internet.error import CannotListenError

from yatxmilter._cli import serve_options
from yatxmilter._cli.serve_log import begin_log
from yatxmilter._cli.serve_milters import build_factory, check_milters, loading_errors
from yatxmilter._cli.serve_options import ConfigurationError
from yatxmilter._cli.serve_service import ServeService, choose_reactor, parse
from yatxmilter._escaping import printable
from yatxmilter.protocol._refusals import cannot_listen

__all__ = ["DESCRIPTION", "add_arguments", "run"]

DESCRIPTION = """\
Run milters as a daemon. SIGTERM lets messages in progress end; SIGHUP reads the
configuration and the milters' modules again, for new connections.

  python -m yatxmilter serve --listen inet:8891@localhost --milter mymilter:MyMilter
  python -m yatxmilter serve --listen unix:/run/filter.sock --milter one:One --milter two:Two
  python -m yatxmilter serve --config yatxmilter.toml --workers 2
  python -m yatxmilter serve --config yatxmilter.toml --check-config

The exit status is 0 after SIGTERM, 2 for wrong options or a milter that cannot be loaded,
3 if it cannot listen, 4 if a milter cannot start."""


def add_arguments(parser: ArgumentParser) -> None:
    """
    Declare what it takes.
    """
    serve_options.add_arguments(parser)


def _words(arguments: Namespace) -> list[str]:
    """
    Write the arguments as words again, which SIGHUP reads once more.
    """
    words: list[str] = []
    for name in ("milter", "config", *(row.name for row in serve_options.OPTIONS)):
        value = getattr(arguments, name)
        flag = "--" + name.replace("_", "-")
        if value is True:
            words.append(flag)
        elif value is not None:
            words += [f"{flag}={one}" for one in (value if isinstance(value, list) else [value])]
    return words


def _complain(error: object, status: int) -> int:
    for line in str(error).splitlines():
        print(f"yatxmilter serve: {printable(line)}", file=sys.stderr)
    return status


def _read(words: list[str], checks: bool) -> dict[str, Any]:
    """
    Read the options; where some are wrong, look at the milters as well, and tell of all.
    """
    try:
        return parse(words)
    except ConfigurationError as error:
        # When root is to serve, the milters are another user's to load.
        also = loading_errors(error.sound) if checks or os.geteuid() != 0 else []
        raise ConfigurationError("\n".join(_in_order([*str(error).splitlines(), *also]))) from None


def _in_order(lines: list[str]) -> list[str]:
    """
    Sort what is told of a file by its lines.
    """

    def line(text: str) -> int:
        found = re.match(r".*?:(\d+): ", text)
        return int(found[1]) if found else 0

    return sorted(lines, key=line)


def run(arguments: Namespace) -> int:
    """
    Serve until told to end.
    """
    words = _words(arguments)
    # They would end a process that loads its milters; what they ask for is done when it serves.
    early: list[int] = []
    for number in (signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, lambda told, _: early.append(told))
    try:
        settings = _read(words, arguments.check_config)
        choose_reactor(settings)
        if arguments.check_config:
            check_milters(build_factory(settings), settings)
            print("the configuration is good")
            return 0
        service = ServeService(words, settings)
        begin_log(settings, owner=service.account)
        service.privilegedStartService()
    except ConfigurationError as error:
        return _complain(error, 2)
    except CannotListenError as error:
        return _complain(cannot_listen(None, error), 3)
    except OSError as error:
        return _complain(error, 3)
    from twisted.internet import reactor

    service.startService()
    # Behind what handles them.
    reactor.callLater(0, lambda: list(map(signal.raise_signal, early)))
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    reactor.run()
    return service.status
