"""
``python -m yatxmilter dev``: a milter that is loaded again each time its file is saved.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple, NoReturn, TextIO

from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory

from yatxmilter._cli.dev_milters import MilterFile
from yatxmilter._cli.dev_watch import Watch
from yatxmilter._cli.messages import read_messages
from yatxmilter._cli.report import tell_difference
from yatxmilter._cli.running import Interrupted, run_reactor
from yatxmilter._cli.send_options import add_session_arguments, make_session, read_seconds
from yatxmilter._cli.send_play import Player, Result
from yatxmilter._cli.send_results import verdict_words
from yatxmilter._cli.serve_log import begin_log
from yatxmilter._cli.serve_options import ConfigurationError, add_some, read_some
from yatxmilter._cli.serve_service import choose_reactor
from yatxmilter._cli.terminal import Page
from yatxmilter._wire.actions import Edit
from yatxmilter.errors import StartError
from yatxmilter.protocol import MilterProtocolFactory
from yatxmilter.protocol._endpoints import server_endpoint
from yatxmilter.protocol._refusals import cannot_listen

__all__ = ["DESCRIPTION", "add_arguments", "run"]

DESCRIPTION: Final = """\
Run the milter of a file while you write it. Each time you save the file, or a module of its
folder, it is loaded again, messages are played to it, and the differences are shown.
Without --messages there is one message, which comes with the package. Nothing is delivered,
and no MTA is needed.

  python -m yatxmilter dev my.py --messages mails/
      play each message of the folder, again and again
  python -m yatxmilter dev my.py:First,Second --merge chain --messages inbox.mbox
      two of the milters in the file
  python -m yatxmilter dev my.py --listen inet:9900@127.0.0.1
      let an MTA use it too
  python -m yatxmilter dev my.py --messages mails/ --client 2001:db8::25 --auth joe --tls
      with another client: all about the session is as for "yatxmilter send"

A mistake in the file is shown, and the milter that was loaded before stays. Ctrl-C ends it,
with status 0. The status is 2 for wrong arguments and 3 if it cannot listen."""

_WRONG, _CANNOT_LISTEN = 2, 3


def add_arguments(parser: ArgumentParser) -> None:
    """
    Declare the command's arguments.
    """
    parser.add_argument(
        "file",
        metavar="FILE.py[:NAME]",
        help="the file, and the milters in it, with commas; not needed if there is only one",
    )
    parser.add_argument(
        "--messages",
        metavar="PATH",
        action="append",
        default=[],
        help="a message file, an mbox, a Maildir or a folder of message files; repeat for more",
    )
    parser.add_argument(
        "--listen",
        metavar="SPEC",
        action="append",
        default=[],
        help="where an MTA can reach it: inet:port@host, unix:/path ...; repeat for more",
    )
    parser.add_argument(
        "--merge",
        choices=("first", "strictest", "chain"),
        default="first",
        help="how several milters come to one answer (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=read_seconds,
        default=30.0,
        help="to wait for one answer (default: %(default)g)",
    )
    add_some(parser, ["reactor"])
    add_session_arguments(parser)


def run(
    arguments: Namespace,
    *,
    reactor: Any = None,
    out: TextIO | None = None,
    err: TextIO | None = None,
) -> int:
    """
    Run the command until it is interrupted, and give the exit status.
    """
    out, err = out or sys.stdout, err or sys.stderr
    begin_log({"json_log": False, "redact": False, "log_level": "warn"})
    with TemporaryDirectory(prefix="yatxmilter-dev-") as folder:
        arguments.to = f"unix:{folder}/milter.sock"

        async def play(reactor: Any) -> NoReturn:
            await _Workshop(arguments, reactor, Page(out), out).work()

        try:
            if reactor is None:
                choose_reactor(read_some(arguments, ["reactor"]))
            run_reactor(play, reactor)
        except Interrupted:
            return 0
        except ConfigurationError as error:
            err.write(f"yatxmilter dev: {error}\n")
            return _WRONG
        except _Deaf as error:
            err.write(f"yatxmilter dev: {error}\n")
            return _CANNOT_LISTEN


class _Deaf(Exception):
    """
    It cannot listen where it was told to.
    """


class _Seen(NamedTuple):
    """
    What became of a message in one run.

    :ivar words: In a line.
    :ivar after: As it would be delivered; empty if it would not.
    """

    words: str
    after: bytes
    edits: tuple[Edit, ...]


def _seen(result: Result) -> _Seen:
    outcome = result.outcome
    if outcome is None:
        return _Seen(result.error, b"", ())
    if not outcome.accepted:
        return _Seen(verdict_words(outcome), b"", ())
    return _Seen(verdict_words(outcome), result.after, tuple(outcome.edits))


class _Latest(Factory):
    """
    Builds connections by the factory that was loaded last.
    """

    noisy = False

    def __init__(self) -> None:
        self.current: MilterProtocolFactory | None = None

    def buildProtocol(self, addr: Any) -> Any:
        """
        Build a connection; none as long as nothing could be loaded.
        """
        return None if self.current is None else self.current.buildProtocol(addr)


def _named(path: Path) -> str:
    try:
        return os.path.relpath(path)
    except OSError:
        # The working directory is gone, as when another branch is checked out.
        return str(path)


class _Workshop:
    """
    Load, play, compare, and wait for a change.
    """

    def __init__(self, arguments: Namespace, reactor: Any, page: Page, out: TextIO) -> None:
        self._arguments = arguments
        self._reactor = reactor
        self._page = page
        self._out = out
        self._file = MilterFile(arguments.file, (f"--merge={arguments.merge}",))
        self._messages = arguments.messages or [str(Path(__file__).with_name("demo.eml"))]
        self._latest = _Latest()
        self._before: dict[str, _Seen] | None = None

    async def work(self) -> NoReturn:
        """
        Go on until the reactor stops.
        """
        for spec in (self._arguments.to, *self._arguments.listen):
            try:
                await server_endpoint(self._reactor, spec).listen(self._latest)
            except ValueError as error:
                raise ConfigurationError(str(error)) from error
            except (CannotListenError, OSError) as error:
                raise _Deaf(cannot_listen(spec, error)) from error
        watch = Watch(self._reactor, lambda: [*self._file.files(), *self._message_files()])
        while True:
            watch.remember()
            if await self._load():
                await self._play()
            # What the file has loaded just now is known too; what has changed since is not.
            watch.include()
            self._say("waiting for a change (Ctrl-C ends)", "dim")
            changed = await watch.changed()
            names = ", ".join(map(_named, changed))
            self._page.line()
            self._say(f"changed: {names}", "head")

    def _say(self, text: str, kind: str = "") -> None:
        for line in text.splitlines():
            self._page.line(line, kind)
        self._out.flush()

    def _message_files(self) -> Iterator[Path]:
        for name in self._messages:
            yield Path(name)
            # It passes over folders that go, or may not be read, while it looks.
            for folder, folders, files in os.walk(name):
                yield from (Path(folder, each) for each in (*folders, *files))

    async def _load(self) -> bool:
        before = self._latest.current
        try:
            factory = self._file.load()
            await factory.start()
        except (ConfigurationError, StartError) as error:
            self._say(str(error), "bad")
            if before is not None:
                self._say("the milter that was loaded before stays", "soft")
            return False
        self._latest.current = factory
        if before is not None:
            # When its last connection has gone; nobody waits for that.
            before.stop()
        return True

    async def _play(self) -> None:
        results: list[Result] = []
        session = make_session(self._arguments)
        sources = read_messages(self._messages)
        await Player(session, sources, results.append, reactor=self._reactor).play()
        now = {result.name: _seen(result) for result in results}
        if self._before is None:
            for name, seen in now.items():
                self._say(f"{name}: {seen.words}")
        else:
            self._compare(self._before, now)
        self._before = now

    def _compare(self, before: dict[str, _Seen], now: dict[str, _Seen]) -> None:
        same = 0
        for name, seen in now.items():
            if name not in before:
                self._say(f"{name}: new: {seen.words}", "head")
            elif before[name] == seen:
                same += 1
            else:
                self._tell_change(name, before[name], seen)
        for name in before.keys() - now.keys():
            self._say(f"{name}: gone", "soft")
        self._say(f"{len(now)} played, {same} as before", "good" if same == len(now) else "soft")

    def _tell_change(self, name: str, old: _Seen, new: _Seen) -> None:
        self._say(f"{name}:", "head")
        if old.words != new.words:
            self._say(f"  was  {old.words}\n  is   {new.words}")
        if old.after and new.after and old.after != new.after:
            tell_difference(self._page, old.after, new.after, "  delivered then and now")
        elif old.edits != new.edits:
            for sign, edits in (("-", old.edits), ("+", new.edits)):
                for edit in edits:
                    values = " ".join(repr(value) for value in edit)
                    self._say(f"  {sign} {type(edit).__name__} {values}")
