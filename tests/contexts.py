"""
A milter's context for tests, at the end of a message.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from yatxmilter import constants as c
from yatxmilter._engine.context import Context
from yatxmilter._engine.merge_first import FirstAnswer
from yatxmilter._engine.session import Session
from yatxmilter._mail.bounds import Limits
from yatxmilter.errors import ValueNotSendable

from .helpers import outcome

#: Function -> arguments that are all right.
EXAMPLES: dict[str, tuple[Any, ...]] = {
    "addheader": ("X-Spam", "no"),
    "insheader": (0, "X-Top", "one"),
    "chgheader": ("Subject", 1, "[x] hi"),
    "replacebody": (b"new\r\n",),
    "addrcpt": ("<n@example.net>",),
    "addrcpt_par": ("<p@example.net>", "NOTIFY=NEVER"),
    "delrcpt": ("<r@example.net>",),
    "chgfrom": ("<new@example.org>", "RET=HDRS"),
    "quarantine": ("held",),
}
FLAGS = {
    "addheader": c.SMFIF_ADDHDRS,
    "insheader": c.SMFIF_ADDHDRS,
    "chgheader": c.SMFIF_CHGHDRS,
    "replacebody": c.SMFIF_CHGBODY,
    "addrcpt": c.SMFIF_ADDRCPT,
    "addrcpt_par": c.SMFIF_ADDRCPT_PAR,
    "delrcpt": c.SMFIF_DELRCPT,
    "chgfrom": c.SMFIF_CHGFROM,
    "quarantine": c.SMFIF_QUARANTINE,
}


class CountingSession(Session):
    """
    A conversation, with a message open, that goes on nowhere.

    :ivar progressed: How many times it was told that a milter is at work.
    """

    def __init__(self) -> None:
        super().__init__(Clock(), FirstAnswer, None, Limits(), None)
        self.progressed = 0
        self.open_message()

    def send_progress(self) -> None:
        """
        Count.
        """
        self.progressed += 1


class ContextCase(SynchronousTestCase):
    """
    A context at the end of a message, with every action agreed on.
    """

    def setUp(self) -> None:
        """
        Make the context, its macros, and a count of progress packets.
        """
        self.session = CountingSession()
        self.macros = self.session.macros
        self.context = Context(self.session)
        self.context.actions = c.SMFI_CURR_ACTS
        self.context.editing = True

    @property
    def progressed(self) -> int:
        """
        How many times progress was made.
        """
        return self.session.progressed

    def call(self, function: str, *args: Any) -> Any:
        """
        Call a function; answer with the packets it made, or with the class of its error.
        """
        result = outcome(getattr(self.context, function), *args)
        return self.context.take_edits() if result is None else result

    def assert_refused(self, function: str, rows: list[tuple[Any, ...]]) -> None:
        results = {repr(row): self.call(function, *row) for row in rows}
        self.assertEqual(results, {repr(row): ValueNotSendable for row in rows})
        self.assertEqual((self.context.outbox, self.context.bodies), ([], 0))
