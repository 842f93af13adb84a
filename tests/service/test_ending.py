"""
Tests of the end of a process: whatever is left at work in it does not keep it.
"""

from __future__ import annotations

import io
import os
import sys
import threading

from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from yatxmilter.service import _ending as ending


class EndingTests(SynchronousTestCase):
    """
    What would end this process, but for a patch.
    """

    def setUp(self) -> None:
        self.ended: list[int] = []
        self.over = threading.Event()
        self.slept: list[float] = []

        def end(status: int) -> None:
            self.ended.append(status)
            self.over.set()

        self.patch(os, "_exit", end)
        self.patch(ending.time, "sleep", self.slept.append)

    def end(self) -> str:
        """
        End, and give what is said.
        """
        with capturedLogs() as logs:
            ending.end_within(7, 4)
            self.assertTrue(self.over.wait(20))
        self.assertEqual((self.slept, self.ended), ([7], [4]))
        return str(formatEvent(logs[-1]))

    def test_threads_are_named(self) -> None:
        """
        When the time is over the process ends with its status, and the threads at work are named.
        """
        release = threading.Event()
        thread = threading.Thread(target=release.wait, name="forgotten")
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(release.set)
        self.assertIn("forgotten", self.end())

    def test_where_no_other_thread_is_left_it_is_main_thread_that_did_not_end(self) -> None:
        """
        Where no other thread is left, it is the main thread that did not end.
        """
        self.patch(threading, "enumerate", lambda: [threading.main_thread()])
        self.assertIn("its main thread", self.end())

    def test_behind_the_main_thread(self) -> None:
        """
        A process may be given time from the end of its main thread on; until then it goes on.
        """
        release = threading.Event()
        main = threading.Thread(target=release.wait)
        main.start()
        self.patch(threading, "main_thread", lambda: main)
        ending.end_behind_main(7, 4)
        self.assertEqual(self.slept, [])
        release.set()
        self.assertTrue(self.over.wait(20))
        self.assertEqual((self.slept, self.ended), ([7], [4]))

    def test_streams_that_are_broken(self) -> None:
        """
        Nothing that fails on the way keeps the process.
        """
        broken = io.StringIO()
        broken.close()
        self.patch(sys, "stdout", broken)
        self.end()
