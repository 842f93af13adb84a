"""
Tests of UNIX sockets as files: their permissions, their owners, and what they replace and remove.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
import tempfile
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.internet import reactor
from twisted.internet.endpoints import UNIXServerEndpoint
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import ServerFactory
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase, TestCase

from yatxmilter import MilterFactory, MilterProtocolFactory
from yatxmilter.errors import StartError
from yatxmilter.protocol import _socket_file as socketfile
from yatxmilter.protocol._endpoints import server_endpoint
from yatxmilter.protocol._socket_file import find_group, find_user
from yatxmilter.service._listening import open_port

NOBODY = pwd.getpwnam("nobody")


class Broken(MilterFactory):
    """
    Does not start.
    """

    def start(self) -> None:
        raise ValueError("no")


class SocketCase(TestCase):
    """
    A folder.
    """

    timeout = 30

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.path = self.folder / "socket"

    async def listen(self, options: str = "", factory: Any = None) -> Any:
        """
        Listen at once, as a program does.
        """
        endpoint: Any = server_endpoint(reactor, f"unix:{self.path}{options}")
        port = await endpoint.listen(factory or ServerFactory())
        self.addCleanup(port.stopListening)
        return port

    def open(self, options: str = "", **usual: Any) -> Any:
        """
        Listen as ``serve`` does.
        """
        port = open_port(reactor, f"unix:{self.path}{options}", ServerFactory(), **usual)
        self.addCleanup(port.stopListening)
        return port

    def mode(self) -> int:
        return stat.S_IMODE(self.path.lstat().st_mode)

    def root(self) -> None:
        if os.getuid() != 0:
            raise unittest.SkipTest("only root can give files away")


class ModeTests(SocketCase):
    """
    Who may connect.
    """

    async def test_unless_told_otherwise_owner_and_group_may_connect_whatever_umask_is(
        self,
    ) -> None:
        """
        Unless told otherwise owner and group may connect, whatever the umask is.
        """
        for umask in (0, 0o77):
            before = os.umask(umask)
            try:
                port = await self.listen()
            finally:
                os.umask(before)
            self.assertEqual(self.mode(), 0o660)
            await port.stopListening()
            self.assertFalse(self.path.exists())

    async def test_owner_in_the_address_counts_before_that_of_serve(
        self,
    ) -> None:
        """
        The address says it; what ``serve`` is told counts where the address says nothing.
        """
        await (await self.listen(":mode=600")).stopListening()
        for options, usual, mode in (
            (":mode=600", 0o666, 0o600),
            ("", 0o640, 0o640),
            ("", None, 0o660),
            (":mode=666", 0o660, 0o666),
        ):
            port = self.open(options, mode=usual)
            self.assertEqual(self.mode(), mode)
            await port.stopListening()

    async def test_permissions_are_there_before_anybody_can_connect(self) -> None:
        """
        When the socket begins to listen it has its permissions, and nothing is changed afterwards.
        """
        with mock.patch.object(os, "chmod") as chmod:
            await self.listen(":mode=640")
        self.assertEqual(self.mode(), 0o640)
        chmod.assert_not_called()

    async def test_socket_that_everybody_may_connect_to_is_told(self) -> None:
        """
        A socket that everybody may connect to is told.
        """
        for mode, said in (("666", 1), ("662", 1), ("660", 0), ("664", 0)):
            with capturedLogs() as logs:
                port = await self.listen(f":mode={mode}")
            warnings = [str(formatEvent(e)) for e in logs if "Every user" in str(formatEvent(e))]
            self.assertEqual(len(warnings), said)
            self.assertEqual([mode in one for one in warnings], [True] * said)
            await port.stopListening()

    async def test_endpoints_of_others(self) -> None:
        """
        With ``serve`` an endpoint around a UNIX socket has what is usual, too.
        """
        port = open_port(reactor, f"haproxy:unix:{self.path}", ServerFactory())
        self.assertEqual(self.mode(), 0o660)
        await port.stopListening()
        port = open_port(reactor, f"haproxy:unix:{self.path}:mode=600", ServerFactory())
        self.assertEqual(self.mode(), 0o600)
        await port.stopListening()


class OwnerTests(SocketCase):
    """
    Whose it is.
    """

    async def test_address_or_what_is_usual_says_owner_and_group(self) -> None:
        """
        The address, or what is usual, says owner and group, by name or by number.
        """
        self.root()
        group = grp.getgrgid(NOBODY.pw_gid).gr_name
        await self.listen(f":owner=nobody:group={group}")
        found = self.path.stat()
        self.assertEqual((found.st_uid, found.st_gid), (NOBODY.pw_uid, NOBODY.pw_gid))

    async def test_usual_owner_counts_where_the_address_does_not_say_it(self) -> None:
        """
        What is usual counts for each of the two where the address does not say it.
        """
        self.root()
        self.open(f":owner={NOBODY.pw_uid}", owner=1, group=NOBODY.pw_gid)
        found = self.path.stat()
        self.assertEqual((found.st_uid, found.st_gid), (NOBODY.pw_uid, NOBODY.pw_gid))

    async def test_socket_that_cannot_be_given_away_is_not_left_behind(self) -> None:
        """
        A socket that cannot be given away is not left behind, nor listened on.
        """
        with mock.patch.object(os, "chown", side_effect=PermissionError(1, "Not permitted")):
            error = self.assertRaises(CannotListenError, self.open, "", owner=1)
        self.assertIn("cannot be given to user 1, group -1: Not permitted", str(error))
        self.assertEqual(list(self.folder.iterdir()), [])

    async def test_file_put_in_its_place_meanwhile_is_given_to_nobody(self) -> None:
        """
        A file that somebody has put in its place meanwhile is given to nobody.
        """
        precious = self.folder / "precious"
        precious.write_text("mine")
        real = os.open

        def swapping(path: Any, *arguments: Any, **named: Any) -> int:
            self.path.unlink()
            precious.rename(self.path)
            return real(path, *arguments, **named)

        before = precious.stat()
        with mock.patch.object(os, "open", swapping):
            error = self.assertRaises(CannotListenError, self.open, "", owner=1)
        self.assertIn("replaced by another", str(error))
        self.assertEqual(self.path.stat().st_uid, before.st_uid)
        self.assertEqual(self.path.read_text(), "mine")

    def test_user_or_group_that_there_is_not_is_named_with_address(self) -> None:
        """
        A user or group that there is not is named, with the address.
        """
        for options, said in (
            (":owner=no-such-one", "owner is 'no-such-one', expected a user"),
            (":group=no-such-one", "group is 'no-such-one', expected a group"),
        ):
            error = self.assertRaises(ValueError, server_endpoint, reactor, f"unix:/x{options}")
            self.assertIn(said, str(error))

    def test_names_that_no_system_has_are_refused_by_a_valueerror(self) -> None:
        """
        Names that no system has are refused by a ValueError, whatever is in them.
        """
        for name in ("", "\0", "\ud800", "a\nb", "9" * 40, "-1", " ", "²"):
            self.assertRaises(ValueError, find_user, "user", name)
            self.assertRaises(ValueError, find_group, "group", name)
        self.assertEqual(find_user("user", str(NOBODY.pw_uid)).pw_name, "nobody")
        self.assertEqual(find_group("group", str(NOBODY.pw_gid)), NOBODY.pw_gid)


class PlaceTests(SocketCase):
    """
    What is there already, and what is left.
    """

    async def test_only_its_own_file_is_removed(self) -> None:
        """
        A socket in whose place there is another file by now leaves that alone.
        """
        port = await self.listen()
        self.path.unlink()
        self.path.write_text("another's")
        await port.stopListening()
        self.assertEqual(self.path.read_text(), "another's")

    async def test_file_that_is_gone(self) -> None:
        """
        A file that is gone already is told, by the port that is closed.
        """
        port = await self.listen()
        self.path.unlink()
        with self.assertRaises(FileNotFoundError):
            await port.stopListening()

    async def test_second_of_two_that_want_the_same_path_is_told(self) -> None:
        """
        Two that want the same path: the second is told that the first has it.
        """
        await self.listen()
        with self.assertRaises(CannotListenError) as raised:
            await self.listen()
        self.assertIn("another process has its lock", str(raised.exception))

    async def test_socket_of_a_dead_process_is_taken_over(self) -> None:
        """
        What a dead process has left is taken over, a file that is no socket is not.
        """
        for stale in ("socket", "file", "nothing"):
            lock = Path(f"{self.path}.lock")
            lock.symlink_to("999999999")
            if stale == "socket":
                with mock.patch.object(os, "unlink"):
                    await (await self.listen(":lockfile=0")).stopListening()
                self.assertTrue(self.path.is_socket())
            elif stale == "file":
                self.path.write_text("mine")
                with self.assertRaises(CannotListenError):
                    await self.listen()
                self.assertEqual(self.path.read_text(), "mine")
                self.path.unlink()
                continue
            await (await self.listen()).stopListening()

    async def test_symbolic_link_at_its_path_is_not_followed(self) -> None:
        """
        A symbolic link at its path is not followed.
        """
        target = self.folder / "target"
        self.path.symlink_to(target)
        with self.assertRaises(CannotListenError):
            await self.listen()
        self.assertFalse(target.exists())

    async def test_socket_without_a_file_is_listened_on_as_well(self) -> None:
        """
        A socket without a file is listened on as well.
        """
        endpoint: Any = UNIXServerEndpoint(reactor, "\0yatxmilter-test")
        file = socketfile.SocketFile(f"\0yatxmilter-{os.getpid()}", takes_over=False)
        port = socketfile.open_socket_file(reactor, file, ServerFactory())
        self.assertIsNotNone(endpoint)
        await port.stopListening()

    async def test_factory_that_does_not_start(self) -> None:
        """
        A factory that refuses to start leaves no file and no lock.
        """
        with self.assertRaises(StartError):
            await self.listen(factory=MilterProtocolFactory(Broken()))
        self.assertEqual(list(self.folder.iterdir()), [])

    async def test_without_a_reserve(self) -> None:
        """
        It does without what Twisted keeps in reserve, where Twisted keeps none.
        """
        self.patch(socketfile, "_RESERVED", None)
        await self.listen()


class SpecTests(SynchronousTestCase):
    """
    ``unix:`` with options.
    """

    def listening(self, spec: str) -> Any:
        memory = MemoryReactorClock()
        server_endpoint(memory, spec).listen(ServerFactory())
        ((path, _, backlog, mode, takes_over),) = memory.unixServers
        return path, backlog, mode, takes_over

    def test_each_option_is_read_in_any_order(self) -> None:
        """
        Each option is read, in any order; a backslash takes a colon's meaning away.
        """
        for spec, expected in (
            ("unix:/a:mode=600:backlog=7", ("/a", 7, 0o600, True)),
            ("unix:/a:lockfile=0:mode=0600", ("/a", 50, 0o600, False)),
            ("unix:address=/a:mode=660", ("/a", 50, 0o660, True)),
            ("unix:/a\\:b", ("/a:b", 50, 0o660, True)),
        ):
            self.assertEqual(self.listening(spec), expected)

    def test_what_is_no_option_or_no_value_of_one_is_named(self) -> None:
        """
        What is no option, or no value of one, is named.
        """
        for spec, said in (
            ("unix:/a:moed=600", "'moed=600', expected each of mode, backlog, lockfile, owner"),
            ("unix:/a:mode=600:mode=660", "'mode=660'"),
            ("unix:/a:mode", "'mode'"),
            ("unix:/a:mode=rw", "mode 'rw' is not an octal number"),
            ("unix:/a:mode=1777", "mode '1777' is not an octal number"),
            ("unix:/a:backlog=x", "backlog has to be a number"),
            ("unix:/a:lockfile=yes", "lockfile 0 or 1"),
            ("unix::", "no path"),
        ):
            error = self.assertRaises(ValueError, self.listening, spec)
            self.assertIn(said, str(error))
