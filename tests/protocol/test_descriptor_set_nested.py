"""
Callbacks that have the reactor go on within them, as the loop of ``yatxmilter.pymilter`` may.
"""

from __future__ import annotations

from typing import Any

from tests.conversation_helpers import packet
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


both_paths(globals(), _NestedTests)
