"""
Mistakes that people make with ``serve`` and ``run_milters``, and what is said of each: what is
wrong, by its name, and what to do about it.

Mistakes within the class of a milter are in `tests.engine`.
"""

from __future__ import annotations

import errno
import io
import os
import socket
import sys
import tempfile
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from twisted.internet import endpoints as _endpoints
from twisted.internet.error import CannotListenError
from twisted.trial.unittest import SynchronousTestCase

from yatxmilter._cli import serve, serve_log, serve_service
from yatxmilter._cli.serve_options import ConfigurationError
from yatxmilter.connspec import client_endpoint, server_endpoint
from yatxmilter.protocol._refusals import cannot_become, cannot_listen
from yatxmilter.service._listening import open_port

MODULE = """
from yatxmilter import Milter, MilterFactory
class Mine(Milter): pass
def make(store, delay=300): return MilterFactory(Mine)
def wrong(): return 7
def fails(): raise RuntimeError("no database at db.example.com")
def leaves(): raise SystemExit(3)
number = 7
"""

GOOD = ("--milter=mistaken:Mine", "--listen=unix:sock")

#: Options, and words of what is said of them; ``serve`` has all else that it needs.
OPTIONS = (
    # ---- misspelt
    ("--merge=chian", "--merge is 'chian'", "did you mean 'chain'?"),
    ("--log-level=warning", "--log-level is 'warning'", "did you mean 'warn'?"),
    ("--user=nobdy", "--user is 'nobdy'", "did you mean 'nobody'?"),
    ("--user=qqqqqqqq", "--user is 'qqqqqqqq'", "`adduser --system qqqqqqqq` would make it"),
    ("--group=nogrup", "--group is 'nogrup'", "did you mean 'nogroup'?"),
    ("--socket-group=qqqqqqqq", "--socket-group is", "`addgroup --system qqqqqqqq`"),
    ("--syslog=mial", "--syslog is 'mial'", "did you mean 'mail'?"),
    ("--milter=mistken:Mine", "no module 'mistken'", "did you mean 'mistaken'?"),
    ("--milter=mistaken:Mien", "mistaken has no 'Mien'", "did you mean 'Mine'?"),
    ("--milter=mistaken.py:Mine", "no module 'mistaken.py'", "write it without .py"),
    ("--milter=mistaken", "'mistaken' names no milter", "expected module:name"),
    # ---- a wrong kind of value
    ("--timeout=soon", "--timeout is 'soon'", "expected seconds"),
    ("--timeout=-5", "--timeout is -5", "expected more than 0 seconds"),
    ("--log-file=a\0b", "--log-file is 'a\\x00b'", "expected a text, without NUL"),
    ("--workers=0", "--workers is 0", "expected at least 1"),
    ("--max-connections=many", "--max-connections is 'many'", "expected a whole number"),
    ("--mode=rw-rw----", "--mode is 'rw-rw----'", "an octal number such as 660"),
    ("--allow=localnet", "localnet", "does not appear to be an IPv4 or IPv6 network"),
    ("--milter=mistaken:number", "mistaken:number is 7", "expected a Milter subclass"),
    ("--milter=mistaken:wrong", "mistaken:wrong is 7", "or a function that makes one"),
    # ---- exceptions at each place
    ("--milter=mistaken:fails", "mistaken:fails failed: RuntimeError: no database", ""),
    ("--milter=mistaken:leaves", "mistaken:leaves failed: SystemExit: 3", ""),
    ("--milter=mistaken:make", "mistaken:make failed: TypeError", "store"),
    ("--milter=mistaken_broken:X", "mistaken_broken:X: ZeroDivisionError", ""),
    ("--milter=mistaken_syntax:X", "mistaken_syntax:X: SyntaxError", ""),
    ("--milter=mistaken_wants:X", "no module 'mistaken_nowhere'", "which it imports"),
    # ---- files
    ("--config=nowhere.toml", "nowhere.toml: No such file or directory", ""),
    ("--config=syntax.toml", "syntax.toml:3: ", ""),
    ("--config=single.toml", "single.toml:1: milter must be tables", "under [[milter]]"),
    ("--config=below.toml", "below.toml:3: listen is not a milter's option", "above the first"),
    ("--config=top.toml", "top.toml:1: on_error is an option of a milter", "below [[milter]]"),
    ("--config=dash.toml", "unknown option 'max-connections'", "did you mean 'max_connections'?"),
)

#: Addresses, and words of what is said of them.
ADDRESSES = (
    ("9900", "did you mean 'inet:9900@127.0.0.1'?"),
    ("127.0.0.1:9900", "did you mean 'inet:9900@127.0.0.1'?"),
    ("mx.example.com:9900", "did you mean 'inet:9900@mx.example.com'?"),
    ("tpc:9900", "there is no 'tpc', did you mean 'tcp'?"),
    ("INET:9900@127.0.0.1", "did you mean 'inet'?"),
    ("zzzzzz:x", "there is no 'zzzzzz'"),
    ("run/filter.sock", "a path begins with /"),
    ("inet:70000@127.0.0.1", "port 70000 is above 65535"),
    ("inet:smpt@127.0.0.1", "no port 'smpt'"),
    ("inet:9900@::1", "::1 is an address for inet6, as in inet6:9900@::1"),
    ("inet6:9900@127.0.0.1", "127.0.0.1 is an address for inet, as in inet:9900@127.0.0.1"),
    ("inet6:127.0.0.1:9900", "127.0.0.1 is an address for inet, as in inet:9900@127.0.0.1"),
    ("unix:", "no path"),
    ("ssl:9900:privateKey=none.pem", "No such file or directory"),
    ("unix:/" + "x" * 110, "a path of 111 bytes, at most 107 are possible"),
    ("unix:/run/x:mod=660", "'mod=660', expected each of mode, backlog"),
    ("unix:/run/x:mode=rw", "mode 'rw' is not an octal number such as 660"),
    ("unix:/run/x:owner=nobdy", "owner is 'nobdy', expected a user", "did you mean 'nobody'?"),
    ("tcp:x", "'x' is not a number"),
    ("tcp:9900:intrface=127.0.0.1", "has no option 'intrface', did you mean 'interface'?"),
    ("tcp:9900:zzz=1", "tcp has no option 'zzz'; it has port, interface, backlog"),
    ("systemd:", "say which socket, as systemd:domain=UNIX:index=0"),
    ("systemd:index=0", "domain is missing, as in systemd:domain=UNIX:index=0"),
    ("systemd:domain=UNIX:index=0", "systemd gave this process no sockets", "its .socket unit"),
    ("systemd:domain=UNIX:nmae=x", "options domain, index (a number) and name"),
)


class MistakeTests(SynchronousTestCase):
    """
    Each mistake is told in words that name it, and say what to do.
    """

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.folder)
        self.patch(sys, "path", [str(self.folder), *sys.path])
        self.patch(sys, "dont_write_bytecode", True)
        for name in ("LISTEN_FDS", "LISTEN_PID"):
            self.patch(os, "environ", {k: v for k, v in os.environ.items() if k != name})
        for name, text in (
            ("mistaken.py", MODULE),
            ("mistaken_broken.py", "1 / 0\n"),
            ("mistaken_syntax.py", "def\n"),
            ("mistaken_wants.py", "import mistaken_nowhere\n"),
            ("syntax.toml", "timeout = 5\nlisten = [\n  'x',\n"),
            ("single.toml", "[milter]\nobject = 'mistaken:Mine'\n"),
            ("below.toml", "[[milter]]\nobject = 'mistaken:Mine'\nlisten = ['unix:x']\n"),
            ("top.toml", "on_error = 'accept'\n"),
            ("dash.toml", "max-connections = 3\n"),
        ):
            (self.folder / name).write_text(text)
            self.addCleanup(sys.modules.pop, name.removesuffix(".py"), None)

    def serve(self, *words: str) -> tuple[int, str]:
        """
        Run the command as far as it goes; give its status and what it says.
        """
        parser = ArgumentParser()
        serve.add_arguments(parser)
        self.patch(sys, "stderr", io.StringIO())
        self.patch(serve, "begin_log", lambda *_, **more: None)
        status = serve.run(parser.parse_args(words))
        return status, sys.stderr.getvalue()

    def test_wrong_options_and_files_are_told_in_one_line_with_the_name(self) -> None:
        """
        Options, milters and files: one line, with the name of what is wrong.
        """
        for option, *words in OPTIONS:
            name = option.partition("=")[0]
            rest = [one for one in GOOD if not one.startswith(name)]
            status, said = self.serve(option, *rest, "--check-config")
            self.assertEqual(status, 2, option)
            for word in words:
                self.assertIn(word, said)
            self.assertEqual(len(said.splitlines()), 1, said)
            self.assertTrue(said.startswith("yatxmilter serve: "), said)

    def test_addresses_are_told_in_the_same_words_on_command_line_and_in_programs(self) -> None:
        """
        Addresses: the same words from the command line and from a program.
        """
        for spec, *words in ADDRESSES:
            error = self.assertRaises(ValueError, server_endpoint, object(), spec)
            status, said = self.serve(f"--listen={spec}", GOOD[0])
            self.assertEqual(status, 2)
            for word in (repr(spec), *words):
                self.assertIn(word, str(error))
                self.assertIn(word, said)

    def test_to_connect_to(self) -> None:
        """
        Addresses that can be listened on, but not connected to, are told as such.
        """
        for spec, word in (
            ("systemd:domain=UNIX:index=0", "listened on, not connected to"),
            ("tcp:9900", "needs 'port'"),
            ("tcp:h:1:tiemout=3", "has no option 'tiemout', did you mean 'timeout'?"),
            ("tls:example.com", "tls"),
        ):
            error = self.assertRaises(ValueError, client_endpoint, object(), spec)
            self.assertIn(word, str(error))

    def test_sockets_of_systemd(self) -> None:
        """
        A socket that is not among those that systemd gave is told with their number.
        """
        self.patch(os, "environ", {**os.environ, "LISTEN_FDS": "2"})
        for spec in ("systemd:domain=UNIX:index=7", "systemd:domain=UNIX:name=other"):
            error = self.assertRaises(ValueError, server_endpoint, object(), spec)
            self.assertIn("gave this process 2 sockets, and not that one", str(error))
        endpoints: Any = _endpoints
        self.patch(endpoints._SystemdParser._sddaemon, "_descriptors", [3, 4])
        wrong = "systemd:domain=XX:index=0"
        error = self.assertRaises(ValueError, server_endpoint, object(), wrong)
        self.assertIn("domain has to be UNIX, INET or INET6", str(error))

    def test_spelling_of_postfix(self) -> None:
        """
        What Postfix writes, with the host first, is understood.
        """
        for spec, host in (
            ("inet:127.0.0.1:9900", "127.0.0.1"),
            ("inet:localhost:9900", "localhost"),
            ("inet:[::1]:9900", "::1"),
            ("inet6:[::1]:9900", "::1"),
        ):
            endpoint: Any = client_endpoint(object(), spec)
            self.assertEqual((endpoint._host, endpoint._port), (host, 9900))

    def listening(self, spec: str) -> str:
        """
        Give what is said when it is not possible to listen.
        """
        from twisted.internet import reactor

        error = self.assertRaises(CannotListenError, open_port, reactor, spec)
        return cannot_listen(spec, error)

    def test_places_that_are_taken(self) -> None:
        """
        Ports and paths that are taken, or that there are not, are told with what to do.
        """
        (self.folder / "file").write_text("")
        with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
            tcp.bind(("127.0.0.1", 0))
            tcp.listen()
            unix.bind("taken")
            unix.listen()
            port = tcp.getsockname()[1]
            for spec, word in (
                (f"inet:{port}@127.0.0.1", "another program listens there; `ss -ltnp` shows which"),
                (f"unix:{self.folder}/taken", "another program listens there"),
                (f"unix:{self.folder}/file", "which is not a socket; it is left alone"),
                (f"unix:{self.folder}/none/x", f"there is no folder {self.folder}/none. Make it"),
                (f"unix:{self.folder}/file/x", "is a file"),
                ("inet:9900@192.0.2.1", "this machine does not have that address"),
            ):
                said = self.listening(spec)
                self.assertTrue(said.startswith(f"cannot listen on {spec}: "), said)
                self.assertIn(word, said)

    def test_lock_beside_socket_is_told_with_process_that_it_names(self) -> None:
        """
        The lock beside a socket is told with the process that it names, and how to go on.
        """
        lock = self.folder / "sock.lock"
        for make, word in (
            (
                lambda: lock.symlink_to(str(os.getppid())),
                f"names process {os.getppid()}, which runs",
            ),
            (lambda: lock.symlink_to("elsewhere"), "sock.lock is in the way, which is not a lock"),
            (lambda: lock.write_text(""), "sock.lock is in the way, which is not a lock"),
        ):
            make()
            said = self.listening(f"unix:{self.folder}/sock")
            self.assertIn(word, said)
            lock.unlink()

    def test_locks_of_others(self) -> None:
        """
        A lock of another user's process is told like any other; where none can be made, that is.
        """
        lock = self.folder / "sock.lock"
        lock.symlink_to("1")

        def denied(*_: object) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        self.patch(sys.modules["twisted.python.lockfile"], "kill", denied)
        self.assertIn("names process 1, which runs", self.listening(f"unix:{self.folder}/sock"))
        lock.unlink()
        for error in (PermissionError(errno.EACCES, "no"), OSError(errno.EROFS, "no")):

            def cannot(*_: object, error: OSError = error) -> None:
                raise error

            self.patch(sys.modules["twisted.python.lockfile"], "symlink", cannot)
            said = self.listening(f"unix:{self.folder}/sock")
            self.assertIn(
                "may not make a socket" if error.errno == errno.EACCES else "only be", said
            )

    def test_what_may_not_be_done_is_told_with_who_may(self) -> None:
        """
        What may not be done is told with who may, and what to do.
        """
        denied = OSError(errno.EACCES, "Permission denied")

        def unix(error: Any, path: str = f"{self.folder}/none") -> str:
            return cannot_listen(None, CannotListenError(None, path, error))

        def tcp(error: Any, port: int) -> str:
            return cannot_listen(None, CannotListenError("", port, error))

        (self.folder / "there").write_text("")
        cases: tuple[tuple[str, str], ...] = (
            (
                unix(denied),
                f"may not make a socket in {self.folder}. Give that folder to that user",
            ),
            (unix(denied, str(self.folder / "there")), "what is there is another user's"),
            (unix(OSError(errno.EROFS, "Read-only")), "ReadWritePaths= or RuntimeDirectory="),
            (unix(OSError(errno.EIO, "I/O error")), "/none: I/O error"),
            (unix("Cannot acquire lock"), "another program listens there"),
            (unix(OSError(errno.EADDRINUSE, "in use")), "No such file"),
            (tcp(denied, 25), "*:25: Permission denied: ports below 1024 are root's"),
            (tcp(denied, 9900), "*:9900: Permission denied"),
            (tcp(socket.gaierror(-2, "Name unknown"), 9900), "this host name has no address here"),
            (cannot_listen("tls:x", OSError(5, "no key")), "cannot listen on tls:x: no key"),
            (cannot_listen(None, OSError(5, "no key")), "no key"),
            (
                cannot_become("milter", "postfix", OSError(1, "Operation not permitted")),
                "cannot become user 'milter' and group 'postfix': Operation not permitted; only"
                " root may. Start it as root, or as that user without --user and --group",
            ),
        )
        for said, words in cases:
            self.assertIn(words, said)

    def test_socket_that_is_left_behind_is_told_with_command_that_removes_it(self) -> None:
        """
        A socket that is left behind is told with the command that removes it.
        """
        with socket.socket(socket.AF_UNIX) as unix:
            unix.bind("left")
        error = CannotListenError(None, "left", OSError(errno.EADDRINUSE, "in use"))
        self.assertIn("remove it: rm left", cannot_listen(None, error))

    def test_user_without_a_name(self) -> None:
        """
        A process whose user has no name is told by its number.
        """
        self.patch(os, "geteuid", lambda: 4_000_000)
        error = CannotListenError(None, "x/y", OSError(errno.EACCES, "no"))
        self.assertIn("user 4000000 may not", cannot_listen(None, error))

    def served(self, expected: int, *words: str) -> str:
        """
        Serve, which is not possible; give what is said.
        """
        status, said = self.serve(*GOOD, *words)
        self.assertEqual(status, expected, said)
        return said

    def test_user_that_this_one_may_not_become_is_told(self) -> None:
        """
        A user that this one may not become is told, and there is no pid file.
        """

        def denied(*_: object) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        self.patch(serve_service, "switchUID", denied)
        self.patch(serve_service, "open_port", lambda *_, **more: None)
        said = self.served(2, "--user=nobody", "--pidfile=pid")
        self.assertIn("cannot become user 'nobody': Operation not permitted; only root may", said)
        self.assertFalse(Path("pid").exists())

    def test_pid_file_that_cannot_be_written_is_told_with_its_name(self) -> None:
        """
        A pid file that cannot be written is told with its name and with what it takes.
        """
        self.patch(serve_service, "open_port", lambda *_, **more: None)
        said = self.served(3, "--pidfile=none/pid")
        self.assertIn("cannot write the pid file none/pid: No such file or directory; its", said)

    def test_under_twist_the_same_is_said_as_the_end_of_the_process(self) -> None:
        """
        Under twist the same is said, as the end of the process.
        """
        options = serve_service.Options()
        options.parseOptions(GOOD)
        for error, words in (
            (CannotListenError("", 25, OSError(errno.EACCES, "Permission denied")), "*:25: Perm"),
            (OSError(errno.EIO, "I/O error"), "I/O error"),
            (ConfigurationError("mistaken"), "mistaken"),
        ):

            def refuse(*_: object, error: BaseException = error, **more: object) -> None:
                raise error

            self.patch(serve_service, "open_port", refuse)
            end = self.assertRaises(
                SystemExit, serve_service.makeService(options).privilegedStartService
            )
            self.assertIn(words, str(end.code))
            self.assertTrue(str(end.code).startswith("yatxmilter: "))

    def test_log_that_cannot_be_written_ends_it_before_it_serves(self) -> None:
        """
        A log that cannot be written ends it before it serves.
        """
        self.patch(serve, "begin_log", serve_log.begin_log)
        for words, expected in (
            ("--log-file=none/log", "cannot write the log to none/log"),
            ("--syslog=mail", "cannot write the log to syslog at nowhere"),
        ):
            settings = serve_service.parse([*GOOD, words, "--syslog-socket=nowhere"])
            outlet = serve_log.Outlet()
            error = self.assertRaises(ConfigurationError, outlet.open, settings, None)
            self.assertIn(expected, str(error))

    def test_there_are_many(self) -> None:
        """
        The tables have the kinds of mistakes that were made before, and more.
        """
        self.assertGreaterEqual(len(OPTIONS) + len(ADDRESSES), 45)
        self.assertEqual(
            len({row[0] for row in (*OPTIONS, *ADDRESSES)}), len(OPTIONS) + len(ADDRESSES)
        )
