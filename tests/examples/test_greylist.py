"""
What the greylisting example starts and stops; what it answers is in `tests.examples.test_examples`.
"""

from __future__ import annotations

import os
import runpy
import sqlite3
import tempfile
import threading
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from yatxmilter import MilterProtocolFactory
from yatxmilter.constants import SMFIS_CONTINUE, SMFIS_TEMPFAIL

EXAMPLE = Path(__file__).resolve().parent.parent.parent / "examples" / "greylist.py"


class LifeTests(TestCase):
    """
    The example as `serve` runs it.
    """

    timeout = 120

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = f"{folder.name}/seen.sqlite"
        self.example = runpy.run_path(str(EXAMPLE))
        with mock.patch.dict(os.environ, {"GREYLIST_STORE": f"sqlite:///{self.path}"}):
            self.greylist: Any = self.example["make"]()

    def test_in_file_of_serve_store_and_all_else_may_be_given(self) -> None:
        """
        In the file of ``serve`` the store and all else may be given; what is wrong is named.
        """
        make = self.example["make"]
        greylist = make(f"sqlite:///{self.path}", seconds=5, trusted=["192.0.2.0/24"])
        self.assertEqual((greylist.terms.delay, greylist.when_away), (5, SMFIS_CONTINUE))
        self.assertIsNotNone(greylist.when)
        self.assertEqual(make(when_away="tempfail").when_away, SMFIS_TEMPFAIL)
        error = self.assertRaises(ValueError, make, when_away="perhaps")
        self.assertIn("when_away is 'perhaps', expected one of pass, tempfail", str(error))

    def threads(self) -> list[str]:
        return [one.name for one in threading.enumerate() if "-store-" in one.name]

    async def test_cleans_up_and_leaves_nothing(self) -> None:
        """
        What has expired is deleted as soon as it runs; when it stops, neither the thread nor the
        connection is left, and it may be started again.
        """
        self.assertEqual(self.threads(), [])
        server = MilterProtocolFactory(self.greylist)
        for _ in range(2):
            await server.start()
            await self.greylist.first_seen(
                "192.0.2.0/24", "<a@example.com>", "<b@example.net>", 1.0
            )
            self.assertEqual(len(self.threads()), 1)
            await server.stop()
            self.assertEqual(self.threads(), [])
            self.assertIsNone(self.greylist.thread.store.connection)
        await server.start()
        with sqlite3.connect(self.path) as database:
            while database.execute("SELECT count(*) FROM greylist").fetchone() != (0,):
                await deferLater(reactor, 0.01)
        database.close()
        await server.stop()
