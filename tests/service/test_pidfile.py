"""
Tests of the pid file: it is written as root into a folder that may be somebody else's.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from unittest import mock

from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from yatxmilter._cli.pidfile import PidFile


class PidFileTests(SynchronousTestCase):
    """
    A folder in which anything may be.
    """

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.path = self.folder / "pid"
        self.file = PidFile(str(self.path))

    def test_written_and_removed(self) -> None:
        """
        It holds the number of the process, belongs to who has written it, and goes at the end.
        """
        before = os.umask(0o077)
        self.addCleanup(os.umask, before)
        self.file.write()
        self.assertEqual(self.path.read_text(), f"{os.getpid()}\n")
        found = self.path.lstat()
        self.assertEqual((stat.S_IMODE(found.st_mode), found.st_uid), (0o644, os.geteuid()))
        self.assertEqual([one.name for one in self.folder.iterdir()], ["pid"])
        self.file.remove()
        self.file.remove()
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_links_are_not_followed(self) -> None:
        """
        A symbolic or hard link in its place is replaced; what it leads to is not touched.
        """
        for link in (os.symlink, os.link):
            precious = self.folder / "precious"
            precious.write_text("mine")
            link(precious, self.path)
            self.file.write()
            self.assertFalse(self.path.is_symlink())
            self.assertEqual(self.path.read_text(), f"{os.getpid()}\n")
            self.assertEqual(precious.read_text(), "mine")
            self.file.remove()
            self.assertEqual(precious.read_text(), "mine")

    def test_guessed_name_beside_it(self) -> None:
        """
        Whoever guesses the name of the new file gains nothing: what is there is not opened.
        """
        precious = self.folder / "precious"
        precious.write_text("mine")
        (self.folder / "pid.guessed").symlink_to(precious)
        with mock.patch("secrets.token_hex", return_value="guessed"):
            self.assertRaises(FileExistsError, self.file.write)
        self.assertEqual(precious.read_text(), "mine")

    def test_another_s_is_left(self) -> None:
        """
        A file that another process has written since is not removed; one that is gone is no matter.
        """
        self.file.write()
        PidFile(str(self.path)).write()
        self.file.remove()
        self.assertTrue(self.path.exists())
        self.file.write()
        self.path.unlink()
        self.file.remove()

    def test_folder_that_does_not_let_it(self) -> None:
        """
        Where it cannot be removed it is emptied; where it cannot be written either, it stays.
        """
        denied = PermissionError(13, "Denied")
        self.file.write()
        with mock.patch.object(os, "unlink", side_effect=denied):
            self.file.remove()
        self.assertEqual(self.path.read_text(), "")
        self.file.write()
        with (
            mock.patch.object(os, "unlink", side_effect=denied),
            mock.patch.object(os, "open", side_effect=denied),
            capturedLogs() as logs,
        ):
            self.file.remove()
        self.assertEqual(str(formatEvent(logs[0])), f"{self.path} stays: Denied")
        self.assertEqual(self.path.read_text(), f"{os.getpid()}\n")

    def test_only_its_own_is_emptied(self) -> None:
        """
        What has taken its place meanwhile is not emptied.
        """
        self.file.write()

        def swap(path: object) -> None:
            self.path.rename(self.folder / "old")
            self.path.write_text("mine")
            raise PermissionError(13, "Denied")

        with mock.patch.object(os, "unlink", swap):
            self.file.remove()
        self.assertEqual(self.path.read_text(), "mine")

    def test_cannot_be_written(self) -> None:
        """
        Where there is no folder, or a folder has the name, it says so and leaves nothing behind.
        """
        self.assertRaises(FileNotFoundError, PidFile(f"{self.folder}/none/pid").write)
        self.path.mkdir()
        self.assertRaises(OSError, self.file.write)
        self.assertEqual([one.name for one in self.folder.iterdir()], ["pid"])
