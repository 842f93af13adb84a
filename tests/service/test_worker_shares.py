"""
Tests of sharing connections out between workers: who takes one, and who leaves it to others.
"""

from __future__ import annotations

import os
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from yatxmilter.service._worker_shares import Share, shared_numbers


class ShareTests(SynchronousTestCase):
    """
    Workers with numbers in common.
    """

    def workers(self, count: int) -> list[Share]:
        descriptor = shared_numbers(count)
        shares = [Share(descriptor, number) for number in range(count)]
        os.close(descriptor)
        for share in shares:
            share.begin()
        return shares

    def take(self, share: Share, connections: int) -> int:
        """
        Let a worker come back to a connection until it takes it; count how often it leaves it.
        """
        moments = 0
        while share.leaves(connections):
            moments += 1
        share.took()
        return moments

    def test_worker_that_has_no_fellow_takes_all(self) -> None:
        """
        A worker that has no fellow takes all.
        """
        (share,) = self.workers(1)
        self.assertEqual([share.leaves(count) for count in (0, 10, 1000)], [False] * 3)

    def test_connections_fall_to_the_workers_evenly(self) -> None:
        """
        Connections that each worker is told of fall to them evenly, whoever looks first.
        """
        for count in (2, 3, 8):
            shares = self.workers(count)
            held = [0] * count
            for _ in range(202):
                place = 0
                while shares[place].leaves(held[place]):
                    place += 1
                shares[place].took()
                held[place] += 1
            self.assertLessEqual(max(held), 202 / count * 1.1)

    def test_worker_takes_connection_while_it_has_hardly_more_than_the_others(self) -> None:
        """
        A worker takes a connection while it has hardly more than the others.
        """
        first, second = self.workers(2)
        second.leaves(100)
        self.assertEqual([first.leaves(count) for count in (100, 104, 105)], [False, False, True])

    def test_connection_that_no_other_takes_is_taken_after_some_moments(self) -> None:
        """
        A connection that no other one takes is taken after some moments, the next after fewer, and
        in the end at once.
        """
        first, _ = self.workers(2)
        moments = [self.take(first, 10 + number) for number in range(6)]
        self.assertEqual(moments, [10, 5, 2, 1, 0, 0])

    def test_when_another_one_takes_connections_again_they_are_left_to_it_again(self) -> None:
        """
        When another one takes connections again, they are left to it again.
        """
        first, second = self.workers(2)
        for number in range(6):
            self.take(first, 10 + number)
        self.take(second, 0)
        self.assertTrue(first.leaves(16))

    def test_worker_that_takes_none_is_left_nothing(self) -> None:
        """
        Nothing is left to a worker that takes none: one that ends, has died, or has not begun.
        """
        first, second, third = self.workers(3)
        second.end()
        self.assertTrue(first.leaves(10))
        third.end()
        self.assertFalse(first.leaves(10))
        descriptor = shared_numbers(2)
        begun = Share(descriptor, 0)
        os.close(descriptor)
        begun.begin()
        self.assertFalse(begun.leaves(10))

    def test_without_memory_files(self) -> None:
        """
        Where the system has no files in memory, a temporary one serves.
        """
        with mock.patch.object(os, "memfd_create", create=True):
            del os.memfd_create
            first, second = self.workers(2)
        second.leaves(5)
        self.assertTrue(first.leaves(10))
