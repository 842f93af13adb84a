"""
A milter's context for tests, at the end of a message.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from yatxmilter import Milter
from yatxmilter import constants as c
from yatxmilter._engine.connection import Conversation
from yatxmilter._engine.context import Context
from yatxmilter._engine.member import Member, shape_of
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


class Progress:
    """
    The line of a conversation, which counts what milters have it send at once.

    :ivar made: How many packets were written, which all say that a milter is at work.
    """

    def __init__(self) -> None:
        self.made = 0

    def send_packets(self, packets: list[bytes]) -> None:
        """
        Count the packets; empty the list.
        """
        assert set(packets) == {b"\0\0\0\1p"}, packets
        self.made += len(packets)
        packets.clear()


def conversation_of(progress: Progress) -> Conversation:
    """
    Make a conversation, with a message open, that goes on nowhere.
    """
    line: Any = progress
    conversation = Conversation(line, Clock())
    conversation.open_message()
    return conversation


def member(made: Any) -> Member:
    """
    Make a member of a milter.
    """
    return Member(made, 0, shape_of(made, Milter), conversation_of(Progress()))


class ContextCase(SynchronousTestCase):
    """
    A context at the end of a message, with every action agreed on.
    """

    def setUp(self) -> None:
        """
        Make the context, its macros, and a count of progress packets.
        """
        self._progress = Progress()
        conversation = conversation_of(self._progress)
        self.macros = conversation.macros
        self.context = Context(conversation)
        self.context.actions = c.SMFI_CURR_ACTS
        self.context.editing = True

    @property
    def progressed(self) -> int:
        """
        How many times progress was made.
        """
        return self._progress.made

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
