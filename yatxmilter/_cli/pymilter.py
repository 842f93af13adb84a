"""
``python -m yatxmilter pymilter``: run a program written for pymilter.
"""

from __future__ import annotations

import os
import runpy
import shutil
import sys
from argparse import REMAINDER, ArgumentParser, Namespace
from collections.abc import Callable
from importlib.util import find_spec

from yatxmilter._cli.serve_log import begin_log
from yatxmilter._cli.serve_options import (
    FACTORY_OPTIONS,
    ConfigurationError,
    add_some,
    read_some,
)
from yatxmilter.pymilter import install
from yatxmilter.pymilter._program import PROGRAM, RunOptions

__all__ = ["DESCRIPTION", "add_arguments", "run"]

DESCRIPTION = """\
Run a program that is written for pymilter, as it is: its imports of milter and Milter find
those of yatxmilter. No libmilter and no compiler are needed.

  python -m yatxmilter pymilter mymilter.py
  python -m yatxmilter pymilter dkimpy-milter /etc/dkimpy-milter.conf
  python -m yatxmilter pymilter -m mypackage.milter --option
  python -m yatxmilter pymilter --workers 2 --metrics inet:9100@localhost mymilter.py

Callbacks that wait run in threads. --inline runs all callbacks in the thread that serves the
connections, for milters that never wait for anything.

Put options of this command before PROGRAM. Everything behind PROGRAM goes to the program."""

#: Options of ``serve`` that mean the same here. How long an MTA may be silent the program says.
_SHARED = (
    *("workers", "metrics", "drain_timeout", "log_level", "json_log", "redact"),
    *(name for name in FACTORY_OPTIONS if name not in ("merge", "timeout")),
)


def add_arguments(parser: ArgumentParser) -> None:
    """
    Declare what it takes.
    """
    parser.add_argument(
        "-m", dest="module", action="store_true", help="PROGRAM is a module, as for python -m"
    )
    parser.add_argument(
        "--inline", action="store_true", help="callbacks never wait: run them without threads"
    )
    add_some(parser, _SHARED)
    parser.add_argument("program", metavar="PROGRAM", help="a file, or a command on the path")
    parser.add_argument("arguments", metavar="ARGS", nargs=REMAINDER, help="the program's own")


def run(arguments: Namespace) -> int:
    """
    Run the program, and give the exit status that it asks for.
    """
    try:
        settings = read_some(arguments, _SHARED)
        start = _module(arguments.program) if arguments.module else _script(arguments.program)
    except ConfigurationError as error:
        for line in str(error).splitlines():
            print(f"yatxmilter pymilter: {line}", file=sys.stderr)
        return 2
    begin_log(settings)
    PROGRAM.options = RunOptions(
        inline=arguments.inline,
        workers=settings["workers"],
        metrics=settings["metrics"],
        drain_timeout=settings["drain_timeout"],
        factory={name: settings[name] for name in FACTORY_OPTIONS if name in settings},
    )
    install()
    sys.argv[1:] = arguments.arguments
    start()
    return 0


def _module(name: str) -> Callable[[], object]:
    # As `python -m` does it: the working directory is where modules are looked for.
    sys.path.insert(0, os.getcwd())
    # Not the module itself: to find one of a package imports that, and it may ask for Milter.
    package = name.partition(".")[0]
    if not package or find_spec(package) is None:
        raise ConfigurationError(f"there is no module {name!r}; a file is given without -m")
    sys.argv[0] = name
    return lambda: runpy.run_module(name, run_name="__main__", alter_sys=True)


def _script(name: str) -> Callable[[], object]:
    path = name if os.path.exists(name) else shutil.which(name)
    if path is None:
        raise ConfigurationError(f"there is no file {name!r}, and no command of that name")
    _check_file(path)
    # As `python` does it: modules are looked for beside the program, links followed.
    sys.path.insert(0, os.path.dirname(os.path.realpath(path)))
    sys.argv[0] = path
    return lambda: runpy.run_path(path, run_name="__main__")


def _check_file(path: str) -> None:
    """
    Say what Python would say in a traceback of its own machinery.
    """
    if os.path.isdir(path):
        if not os.path.exists(os.path.join(path, "__main__.py")):
            raise ConfigurationError(f"{path!r} is a folder without a __main__.py: give a file")
    elif os.path.isfile(path):
        try:
            with open(path, "rb") as file:
                magic = file.read(4)
        except OSError as error:
            raise ConfigurationError(f"cannot read {path!r}: {error.strerror}") from error
        if magic == b"\x7fELF":
            raise ConfigurationError(
                f"{path!r} is no Python program, but one of machine code: start it by itself;"
                " it goes into a list of milters as a remote one"
            )
