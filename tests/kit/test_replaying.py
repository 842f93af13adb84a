"""
Tests of recordings as tests: a record played to milters in memory, and what they do differently.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.conversation_helpers import (
    CONNECT,
    HELO,
    MESSAGE,
    QUIT,
    Conversation,
    macros,
    offer,
    parse,
)
from yatxmilter import Milter, threaded
from yatxmilter import constants as c
from yatxmilter._records.record import Recorder
from yatxmilter.testing import MilterTestFailure, MilterTestMixin

NAMED = macros("M", b"i", b"4QID")


class Tagger(Milter):
    """
    Add a field with the queue id.
    """

    word = "seen"

    def xxfi_eom(self) -> None:
        """
        Add it.
        """
        self.smfi_addheader("X-Tag", f"{self.word} {self.smfi_getsymval('i')}")


class Other(Tagger):
    """
    Add another.
    """

    word = "looked at"


def record(path: Path, milter: Any, *pieces: bytes, end: bool = True) -> None:
    """
    Record a session.
    """
    conversation = Conversation(milter)
    recorder = Recorder(path.open("w"))
    recorder.begin(0)
    recorder.open(1, 0)
    for packet in parse(b"".join(pieces)):
        letter, payload = packet
        recorder.packet(1, 0, True, ord(letter), payload)
        sent = (len(payload) + 1).to_bytes(4, "big") + letter.encode() + payload
        for letter, payload in conversation.packets(sent):
            recorder.packet(1, 0, False, ord(letter), payload)
    recorder.close(1, 0, "mta")
    if end:
        recorder.end(0)
    else:
        recorder._stream.close()


class ReplayTests(MilterTestMixin, SynchronousTestCase):
    """
    ``InMemoryMTA.replay``.
    """

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.file = Path(folder.name, "mail.jsonl")
        record(self.file, Tagger, offer(), CONNECT, HELO, NAMED, MESSAGE, NAMED, MESSAGE, QUIT)

    def test_same_milter_does_the_same_again(self) -> None:
        """
        The same milter does the same: sessions and messages are counted, and nothing differs.
        """
        replayed = self.milter_mta(Tagger).replay(self.file)
        self.assertEqual((replayed.sessions, replayed.messages), (1, 2))
        self.assertEqual(replayed.differences, [])
        replayed.check()

    def test_what_another_milter_does_differently_is_told(self) -> None:
        """
        What another milter does differently is told, with what it was and what it is.
        """
        replayed = self.milter_mta(Other).replay(str(self.file))
        self.assertEqual(len(replayed.differences), 2)
        first = replayed.differences[0].splitlines()
        self.assertRegex(first[0], r"connection 1, message 1 \[4QID\]: BODYEOB \(line \d+\)")
        self.assertIn("  was ADDHEADER X-Tag: seen 4QID", first)
        self.assertIn("  now ADDHEADER X-Tag: looked at 4QID", first)
        failure = self.assertRaises(MilterTestFailure, replayed.check)
        self.assertIn("looked at 4QID", str(failure))

    def test_negotiation_that_differs_is_told(self) -> None:
        """
        So is what it negotiates, before any message; and a note says what the record does not have.
        """
        curious = type("Curious", (Tagger,), {"xxfi_helo": lambda self, helohost: None})
        replayed = self.milter_mta(curious).replay(self.file)
        self.assertIn("connection 1, before any message: negotiation", replayed.differences[0])
        self.assertIn("connection 1: note: the milter wants now", replayed.notes[0])
        replayed = self.milter_mta(curious).replay(self.file, negotiation=False)
        self.assertEqual(replayed.differences, [])

    def test_fields_that_are_ignored_and_what_mask_matches_make_no_difference(self) -> None:
        """
        Fields that are ignored, and what a mask matches, make no difference.
        """
        mta = self.milter_mta(Other)
        self.assertEqual(mta.replay(self.file, ignore=["x-tag"]).differences, [])
        self.assertEqual(mta.replay(self.file, mask=["seen|looked at"]).differences, [])

    def test_milter_that_waits_for_something_is_named(self) -> None:
        """
        A milter that waits for something is named; one that works in a thread is waited for.
        """

        class Working(Tagger):
            @threaded
            def xxfi_eom(self) -> None:
                super().xxfi_eom()

        self.milter_mta(Working).replay(self.file).check()
        later: Deferred[int] = Deferred()
        waiting = type("Waiting", (Milter,), {"xxfi_eom": lambda self: later})
        mta = self.milter_mta(waiting)
        failure = self.assertRaises(MilterTestFailure, mta.replay, self.file)
        self.assertIn("waiting for Waiting.xxfi_eom()", str(failure))
        later.callback(c.SMFIS_CONTINUE)

    def test_file_that_is_no_record_is_refused_by_its_name(self) -> None:
        """
        A file that is no record, or has no session, is refused by its name; one that was cut too,
        unless that is allowed.
        """
        mta = self.milter_mta(Tagger)
        self.assertRaises(OSError, mta.replay, self.file.with_name("nowhere"))
        cut = self.file.with_name("cut.jsonl")
        record(cut, Tagger, offer(), CONNECT, NAMED, MESSAGE, end=False)
        error = self.assertRaises(ValueError, mta.replay, cut)
        self.assertIn("cut.jsonl: line", str(error))
        self.assertEqual(mta.replay(cut, partial=True).messages, 1)
        empty = self.file.with_name("empty.jsonl")
        record(empty, Tagger)
        error = self.assertRaises(ValueError, mta.replay, empty)
        self.assertIn("no session is in the record", str(error))

    def test_what_goes_wrong_with_the_playing_itself_is_raised(self) -> None:
        """
        What goes wrong with the playing itself is raised.
        """

        def join(client: object) -> None:
            raise RuntimeError("no connection")

        mta = self.milter_mta(Tagger)
        self.patch(mta, "join", join)
        self.assertRaises(RuntimeError, mta.replay, self.file)
