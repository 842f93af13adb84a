"""
Tests of `yatxmilter._records.private`: files for their owner alone.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from yatxmilter._records import private
from yatxmilter._records.private import open_private


class PrivateTests(SynchronousTestCase):
    """
    Who may read what is written.
    """

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "file"
        # Whatever the user's mask is.
        self.addCleanup(os.umask, os.umask(0))

    def write(self, mode: str) -> None:
        """
        Write a word.
        """
        with os.fdopen(open_private(self.path, mode), "w") as file:
            file.write("new")

    def test_new_file_is_its_owners_alone_from_the_beginning(self) -> None:
        """
        A new file is its owner's alone from the beginning.
        """
        for mode in "xwa":
            self.write(mode)
            self.assertEqual(self.path.stat().st_mode & 0o777, 0o600)
            self.assertEqual(self.path.read_text(), "new")
            self.path.unlink()

    def test_file_that_is_there_is_left_alone_overwritten_or_added_to(self) -> None:
        """
        A file that is there is left alone, overwritten, or added to; others may read it no more.
        """
        for mode, text in (("x", "old"), ("w", "new"), ("a", "oldnew")):
            self.path.write_text("old")
            self.path.chmod(0o666)
            if mode == "x":
                self.assertRaises(FileExistsError, self.write, mode)
            else:
                self.write(mode)
                self.assertEqual(self.path.stat().st_mode & 0o777, 0o600)
            self.assertEqual(self.path.read_text(), text)

    def test_symbolic_link_is_not_followed(self) -> None:
        """
        A symbolic link is not followed, whether what it leads to is there or not.
        """
        other = self.path.with_name("other")
        self.path.symlink_to(other)
        for _ in range(2):
            for mode in "xwa":
                error = self.assertRaises(OSError, self.write, mode)
                words = ("File exists", "it is a symbolic link")
                self.assertEqual(error.strerror, words[mode != "x"])
            other.write_text("old")
        self.assertEqual(other.read_text(), "old")

    def test_file_of_another_user_is_not_written_to(self) -> None:
        """
        A file of another user is not written to: that user could read it.
        """
        self.path.write_text("old")
        self.patch(private.os, "geteuid", lambda: os.getuid() + 1)
        for mode in "wa":
            error = self.assertRaises(PermissionError, self.write, mode)
            self.assertEqual(error.strerror, "it belongs to another user")
        self.assertEqual(self.path.read_text(), "old")

    def test_device_is_written_to_as_it_is(self) -> None:
        """
        A device is written to as it is.
        """
        self.path = Path("/dev/null")
        before = self.path.stat().st_mode
        for mode in "wa":
            self.write(mode)
        self.assertEqual(self.path.stat().st_mode, before)

    def test_whatever_else_is_in_the_way_is_told_as_it_is(self) -> None:
        """
        Whatever else is in the way is told as it is.
        """
        self.path = self.path / "below"
        self.assertRaises(FileNotFoundError, self.write, "w")
