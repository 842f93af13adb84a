"""
Tests of where a text of ``smfi_setreply`` ends: with its use, its message, or its connection.
"""

from __future__ import annotations

from typing import Any

from tests.conversation_helpers import (
    ABORT,
    CONNECT,
    EOM,
    HELO,
    MAIL,
    QUIT_NC,
    RCPT,
    UNKNOWN,
    ConversationTestCase,
    Waiting,
    milter,
    packet,
    started,
)
from yatxmilter import MilterFactory
from yatxmilter import constants as c
from yatxmilter.conditions import known_at

TEXT = [("y", b"550 5.7.1 listed\0")]
BARE = [("r", b"")]
MERGES = ("first", "strictest", "chain")


def sets(self: Any, *_: Any) -> None:
    """
    Set the text, and let the mail pass.
    """
    self.smfi_setreply("550", "5.7.1", "listed")


def refuses_at(number: int) -> Any:
    """
    Make a callback that refuses at its so manyth call.
    """

    def callback(self: Any, *_: Any) -> Any:
        self.times = getattr(self, "times", 0) + 1
        return c.SMFIS_REJECT if self.times == number else None

    return callback


class TextTests(ConversationTestCase):
    """
    A text that was set, and when it is said.
    """

    def test_set_before_a_message(self) -> None:
        """
        One set in connect, HELO or an unknown command before a message, at once or later, is kept
        over messages until it is used, once.
        """

        async def later(self: Any, *_: Any) -> None:
            sets(self)

        for merge in MERGES:
            for stage, sent in (("connect", CONNECT), ("helo", HELO), ("unknown", UNKNOWN)):
                for how in (sets, later):
                    cls = milter(eom=None, envfrom=refuses_at(3), helo=None, connect=None,
                                 unknown=None, envrcpt=c.SMFIS_REJECT)  # fmt: skip
                    setattr(cls, f"xxfi_{stage}", how)
                    conversation = started(cls, milter(envfrom=None), merge=merge)
                    conversation.send(sent + MAIL + ABORT + MAIL + packet("N") + EOM)
                    about = (merge, stage)
                    self.assertEqual(conversation.packets(MAIL), TEXT, about)
                    conversation.send(MAIL)
                    self.assertEqual(conversation.packets(RCPT), BARE, about)

    def test_is_gone_with_its_smtp_connection_on_socket_that_serves_several(self) -> None:
        """
        It is gone with its SMTP connection, on a socket that serves several.
        """
        for stage, sent in (("helo", HELO), ("connect", CONNECT), ("close", b"")):
            cls = milter(envfrom=refuses_at(1), **{stage: sets})
            conversation = started(cls)
            conversation.send(sent + QUIT_NC)
            cls.xxfi_helo = cls.xxfi_connect = lambda *_: None
            self.assertEqual(conversation.packets(CONNECT + HELO + MAIL)[-1:], BARE, stage)

    def test_set_in_a_message(self) -> None:
        """
        One set in a message is gone with it, however that ends; one of the connection's that it
        has taken the place of is gone too.
        """
        for merge in MERGES:
            for stage in ("envfrom", "envrcpt", "unknown"):
                for end in (ABORT, packet("N") + EOM):
                    cls = milter(helo=sets, eom=None, unknown=None, envrcpt=None, envfrom=None)
                    setattr(cls, f"xxfi_{stage}", sets)
                    conversation = started(cls, merge=merge)
                    conversation.send(HELO + MAIL + RCPT + UNKNOWN + end)
                    cls.xxfi_envfrom = lambda *_: c.SMFIS_REJECT
                    self.assertEqual(conversation.packets(MAIL), BARE, (merge, stage))

    def test_set_in_abort(self) -> None:
        """
        One set in xxfi_abort is gone at once, also if that takes its time; one of the connection's
        stays what it was.
        """
        for merge in MERGES:
            for before, answer in ((None, BARE), (sets, TEXT)):
                waiting = Waiting()

                async def abort(self: Any, waiting: Waiting = waiting) -> None:
                    self.smfi_setreply("550", "5.7.1", "aborted")
                    await waiting()
                    self.smfi_setreply("550", "5.7.1", "aborted")

                cls = milter(helo=before, envfrom=refuses_at(2), abort=abort)
                conversation = started(cls, merge=merge)
                conversation.send(HELO + MAIL + ABORT + MAIL)
                conversation.transport.clear()
                waiting.fire()
                self.assertEqual(conversation.packets(b""), answer, merge)

    def test_bad_text_in_abort(self) -> None:
        """
        A text that cannot be one is refused there as anywhere.
        """
        cls = milter(envfrom=None, abort=lambda self: self.smfi_setmlreply("250", None, "x"))
        started(cls).send(MAIL + ABORT)
        self.assertEqual(len(self.failures()), 1)

    def test_connect_called_late(self) -> None:
        """
        One set in a connect that a condition has called late, in a message, is the connection's.
        """
        for merge in MERGES:
            cls = milter(connect=sets, envfrom=refuses_at(2), eom=None)
            behind = MilterFactory(cls, when=known_at("envfrom")(lambda view: True))
            conversation = started(behind, merge=merge)
            conversation.send(CONNECT + HELO + MAIL + packet("N") + EOM)
            self.assertEqual(conversation.packets(MAIL), TEXT, merge)
