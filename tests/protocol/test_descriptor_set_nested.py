"""
Callbacks that have the reactor go on within them, as the loop of ``yatxmilter.pymilter`` may.
"""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.conversation_helpers import BODY, HELO, QUIT, Waiting, full, packet, started
from tests.pathways import PathCase, both_paths, reactor
from yatxmilter import Milter
from yatxmilter.constants import SMFIS_CONTINUE


class Nesting(Milter):
    """
    Lets the reactor serve the others in the middle of its first callback.
    """

    names: list[str] = []

    def xxfi_helo(self, name: str) -> Any:
        """
        See `Milter`.
        """
        self.names.append(name)
        if len(self.names) == 1:
            reactor.iterate(0)
        return SMFIS_CONTINUE


class _NestedTests(PathCase):
    """
    What is ready at the same time as the connection whose callback does so.
    """

    async def test_others_that_are_ready_are_served_once_within_the_callback(self) -> None:
        """
        Connections that were ready with it are served within the callback, each once, and go on.
        """
        Nesting.names = []
        self.serve(Nesting)
        mtas = [(await self.mta())[0] for _ in range(4)]
        for number, mta in enumerate(mtas):
            mta.send(packet("H", b"host%d\0" % number))
        await self.until(lambda: all(mta.letters() == "c" for mta in mtas))
        self.assertEqual(sorted(Nesting.names), ["host0", "host1", "host2", "host3"])
        for number, mta in enumerate(mtas):
            mta.send(packet("H", b"again%d\0" % number))
        await self.until(lambda: all(mta.letters() == "cc" for mta in mtas))
        self.assertEqual(len(Nesting.names), 8)


class _RestingTests(PathCase):
    """
    A connection whose callback the reactor does not wait for.
    """

    async def test_nothing_is_read_until_the_callback_is_over(self) -> None:
        """
        Nothing is read until the callback is over; behind the end of the connection nothing is.
        """
        self.serve(full())
        mta, protocol = await self.mta()
        protocol.rest()
        mta.send(HELO)
        for _ in range(5):
            await self.turn()
        self.assertEqual(mta.read(), b"")
        protocol.go_on()
        await self.until(lambda: mta.letters() == "c")
        mta.send(QUIT)
        await self.gone()
        protocol.go_on()
        self.assertFalse(protocol.transport.connected)


class FullTests(SynchronousTestCase):
    """
    A connection that is not read for two reasons.
    """

    def test_what_is_full_is_not_read_when_the_callback_is_over(self) -> None:
        """
        While too much waits for a milter, nothing is read when such a callback is over.
        """
        answer = Waiting()
        conversation = started(full(helo=answer))
        transport: Any = conversation.transport
        transport.stopReading = transport.startReading = lambda: self.fail("it was read on")
        conversation.send(HELO, BODY * 200_000)
        self.assertEqual(transport.producerState, "paused")
        transport.stopReading = lambda: None
        conversation.protocol.rest()
        conversation.protocol.go_on()
        self.assertEqual(conversation.written(), b"")
        conversation.drop()


both_paths(globals(), _NestedTests, _RestingTests)
