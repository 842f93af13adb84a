"""
Deadlines pass when they should, and not a moment sooner.
"""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from yatxmilter.protocol._time_limits import Deadline


class DeadlineTests(SynchronousTestCase):
    """
    One deadline.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.passed: list[float] = []

    def deadline(self, seconds: float | None = 10) -> Deadline:
        return Deadline(self.clock, seconds, self.note, "was late")

    def note(self, fault: str) -> None:
        self.assertEqual(fault, "was late")
        self.passed.append(self.clock.seconds())

    def test_passes(self) -> None:
        """
        It passes once, when its time is over, and leaves no timer.
        """
        deadline = self.deadline()
        deadline.start()
        self.clock.advance(9.99)
        self.assertEqual(self.passed, [])
        self.clock.advance(0.01)
        self.assertEqual(self.passed, [10])
        self.assertEqual((deadline.since, self.clock.getDelayedCalls()), (None, []))

    def test_not_started(self) -> None:
        """
        One that was not started, or has no limit, makes no timer.
        """
        self.deadline()
        self.deadline(None).start()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_start_again(self) -> None:
        """
        To start one that counts changes nothing.
        """
        deadline = self.deadline()
        deadline.start()
        self.clock.advance(9)
        deadline.start()
        self.clock.advance(1)
        self.assertEqual(self.passed, [10])

    def test_mark(self) -> None:
        """
        A mark of something that moved puts it off, exactly.
        """
        deadline = self.deadline()
        deadline.start()
        self.clock.advance(7)
        deadline.since = self.clock.seconds()
        self.clock.pump([3, 6.9])
        self.assertEqual(self.passed, [])
        self.clock.advance(0.1)
        self.assertEqual(self.passed, [17])

    def test_stop(self) -> None:
        """
        One that was stopped does not pass; started again it counts from then.
        """
        deadline = self.deadline()
        deadline.start()
        self.clock.advance(5)
        deadline.stop()
        self.clock.advance(1)
        deadline.start()
        self.clock.pump([4, 5.9])
        self.assertEqual(self.passed, [])
        self.clock.advance(0.1)
        self.assertEqual(self.passed, [16])

    def test_stopped_for_good(self) -> None:
        """
        One that was stopped lets its timer run out, and makes no other.
        """
        deadline = self.deadline()
        deadline.start()
        deadline.stop()
        self.clock.advance(10)
        self.assertEqual((self.passed, self.clock.getDelayedCalls()), ([], []))

    def test_cancel(self) -> None:
        """
        One that is cancelled leaves no timer; it may be started again, and cancelled twice.
        """
        deadline = self.deadline()
        deadline.start()
        deadline.cancel()
        deadline.cancel()
        self.assertEqual((deadline.since, self.clock.getDelayedCalls()), (None, []))
        deadline.start()
        self.clock.advance(10)
        self.assertEqual(self.passed, [10])
