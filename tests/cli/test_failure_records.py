"""
Tests of ``serve --record-failures``: the sessions in which milters fail, kept for a replay.
"""

from __future__ import annotations

import stat
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from tests.conversation_helpers import (
    CONNECT,
    EOH,
    EOM,
    HELO,
    MAIL,
    MESSAGE,
    QUIT,
    RCPT,
    Conversation,
    ConversationTestCase,
    full,
    macros,
    packet,
)
from yatxmilter import MilterFactory
from yatxmilter._cli import serve_milters
from yatxmilter._cli.serve_service import parse
from yatxmilter._records import failures
from yatxmilter._records.failures import FailureRecorder
from yatxmilter.testing import MilterTestMixin

BROKEN = macros("M", b"i", b"4BAD") + MAIL


def eom(self: Any) -> None:
    """
    Fail at one of the messages.
    """
    self.smfi_addheader("X-Seen", "<s@example.org>")
    if self.smfi_getsymval("i") == "4BAD":
        raise KeyError("broken")


class RecordTests(MilterTestMixin, ConversationTestCase):
    """
    What is written, and when.
    """

    def setUp(self) -> None:
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.milter = full("Broken", eom=eom)

    def talk(self, *pieces: bytes, milter: Any = None) -> None:
        """
        Have a conversation with a milter, to its end.
        """
        conversation = Conversation(milter or self.milter, observers=[FailureRecorder(self.folder)])
        conversation.agree()
        conversation.send(CONNECT, HELO, *pieces, QUIT)
        conversation.drop()

    @property
    def files(self) -> list[Path]:
        return sorted(self.folder.iterdir())

    def test_session_that_led_to_failure_is_written_when_its_message_ends(self) -> None:
        """
        The session that led to a failure is written when its message ends, without the messages
        before it; it is its owner's alone, and has neither body nor addresses.
        """
        rest = (RCPT, packet("T"), EOH, packet("B", b"secret\r\n"), EOM)
        self.talk(MESSAGE, BROKEN, *rest, macros("M", b"i", b"4GOOD"), MESSAGE)
        self.assertEqual(len(self.failures()), 1)
        (file,) = self.files
        self.assertEqual(stat.S_IMODE(file.stat().st_mode), 0o600)
        text = file.read_text()
        self.assertIn("4BAD", text)
        self.assertEqual(text.count('"MAIL"'), 1)
        self.assertNotIn("secret", text)
        self.assertNotIn("s@example.org", text)
        self.assertIn(f"failed in xxfi_eom is kept for yatxmilter replay: {file}", self.log_text())

    def test_written_session_fails_again_when_it_is_replayed(self) -> None:
        """
        It can be replayed: the same milter fails again, and one that is mended does not.
        """
        self.talk(BROKEN, RCPT, packet("T"), EOH, EOM)
        self.failures()
        (file,) = self.files
        mta = self.milter_mta(self.milter)
        with self.expect_milter_errors(mta, "KeyError"):
            self.assertEqual(mta.replay(file).differences, [])
        replayed = self.milter_mta(full("Mended")).replay(file)
        self.assertEqual(len(replayed.differences), 1)
        self.assertIn("was TEMPFAIL", replayed.differences[0])

    def test_failure_outside_a_finished_message_is_written_at_the_end(self) -> None:
        """
        A failure outside messages, or in one that is not finished, is written at the end.
        """

        def fail(self: Any, *_: Any) -> None:
            raise KeyError("broken")

        self.talk(milter=full(helo=fail))
        self.talk(MAIL, milter=full(envfrom=fail, envrcpt=fail))
        self.talk(MAIL, RCPT, milter=full(close=fail))
        self.assertEqual(len(self.files), 3)
        self.assertEqual(len(self.failures()), 3)

    def test_milter_that_could_not_be_built_has_had_no_session(self) -> None:
        """
        A milter that could not be built has had no session.
        """

        def build(factory: Any, protocol: Any) -> Any:
            raise KeyError("broken")

        self.talk(MESSAGE, milter=MilterFactory(build))
        self.assertEqual(self.files, [])
        self.assertEqual(len(self.failures()), 1)

    def test_nothing_to_keep(self) -> None:
        """
        Where no milter fails nothing is written.
        """
        self.talk(MESSAGE, MESSAGE)
        self.assertEqual(self.files, [])

    def test_folder_has_so_many_files_at_most(self) -> None:
        """
        A folder has so many files at most, and a session that is too long is not kept; both are
        told, the first once.
        """
        with mock.patch.object(failures, "MOST_FILES", 1):
            conversation = Conversation(self.milter, observers=[FailureRecorder(self.folder)])
            conversation.agree()
            conversation.send(*3 * [BROKEN, RCPT, packet("T"), EOH, EOM])
        self.assertEqual(len(self.files), 1)
        self.assertEqual(self.log_text().count("are not kept in"), 1)
        with mock.patch.object(failures, "MOST_BYTES", 100):
            self.talk(BROKEN, RCPT, packet("T"), EOH, packet("B", b"x" * 200), EOM)
        self.assertEqual(len(self.files), 1)
        self.assertIn("it has more than 100 bytes", self.log_text())
        self.failures()

    def test_folder_that_has_gone_or_disk_that_is_full_costs_no_mail(self) -> None:
        """
        A folder that has gone, or a disk that is full, costs no mail: it is told.
        """
        with mock.patch.object(failures, "_record", lambda *_: "No space left"):
            self.talk(BROKEN, RCPT, packet("T"), EOH, EOM)
        self.assertIn("No space left", self.log_text())
        self.folder = self.folder / "gone"
        self.talk(BROKEN, RCPT, packet("T"), EOH, EOM)
        self.assertIn("No such file or directory", self.log_text())
        self.failures()

    def test_serve_record_failures_has_it_done(self) -> None:
        """
        ``serve --record-failures`` has it done; the folder must be there.
        """
        words = ["--listen=inet:0@127.0.0.1", "--milter=yatxmilter:Milter", "--log-level=warn"]
        settings = parse([*words, f"--record-failures={self.folder}"])
        (observer,) = serve_milters.build_factory(settings).observers
        self.assertIsInstance(observer, FailureRecorder)
        error = self.assertRaises(
            serve_milters.ConfigurationError, parse, [*words, "--record-failures=/nowhere"]
        )
        self.assertIn("expected a folder that is there", str(error))
