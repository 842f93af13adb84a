"""
Tests of `yatxmilter._cli.running`: what ends a command before it is done.
"""

from __future__ import annotations

import signal

from twisted.trial.unittest import SynchronousTestCase

from yatxmilter._cli.running import interruptible


class InterruptibleTests(SynchronousTestCase):
    """
    A read that may last for ever ends with a signal.
    """

    def handle(self, number: int, handler: signal.Handlers | None = None) -> list[int]:
        """
        Take note of a signal, as a reactor does, or do something else with it, in this test.
        """
        noted: list[int] = []
        before = signal.signal(number, handler or (lambda number, frame: noted.append(number)))
        self.addCleanup(signal.signal, number, before)
        return noted

    def test_signal_that_is_only_noted_elsewhere_ends_the_read(self) -> None:
        """
        A signal that is only noted elsewhere ends the read; afterwards it is noted again.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            noted = self.handle(number)

            def read(number: signal.Signals = number) -> None:
                with interruptible():
                    signal.raise_signal(number)

            self.assertRaises(KeyboardInterrupt, read)
            self.assertEqual(noted, [])
            signal.raise_signal(number)
            self.assertEqual(noted, [number])

    def test_signal_that_is_ignored_stays_so(self) -> None:
        """
        A signal that is ignored, as Ctrl-C is in the background of a shell, stays so.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            self.handle(number, signal.SIG_IGN)
        with interruptible():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
