"""
Tests of `yatxmilter._cli.demo`: the whole play, over real TCP.

The reactor is the test runner's, except where the command starts and stops one of its own.
"""

from __future__ import annotations

import io
from argparse import ArgumentParser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from twisted.internet import defer
from twisted.internet.error import CannotListenError
from twisted.internet.selectreactor import SelectReactor
from twisted.trial.unittest import TestCase

from tests.milterside import stand_in_for_reactor
from yatxmilter import MilterProtocolFactory
from yatxmilter import constants as c
from yatxmilter._cli import demo
from yatxmilter._cli.terminal import Page
from yatxmilter.client._message import Outcome
from yatxmilter.errors import PeerError

SHIPPED = Path(demo.__file__).with_name("demo.eml")


class DemonstrateTests(TestCase):
    """
    The play itself.
    """

    async def demonstrate(self, message: bytes) -> tuple[Outcome, str]:
        """
        Run the demo on a message; give the outcome and what was printed.
        """
        from twisted.internet import reactor

        stream = io.StringIO()
        outcome = await demo.demonstrate(reactor, message, Page(stream, {}))
        return outcome, stream.getvalue()

    async def test_with_message_that_is_shipped_everything_can_be_seen_both_milters(self) -> None:
        """
        With the message that is shipped everything can be seen: both milters, the refusal, the
        edits, the verdict and the difference.
        """
        outcome, text = await self.demonstrate(SHIPPED.read_bytes())
        self.assertEqual((outcome.verdict, outcome.stage), (c.SMFIS_ACCEPT, "eom"))
        self.assertEqual([one.accepted for one in outcome.recipients], [True, False])
        lines = text.splitlines()
        for expected in (
            "  agreed    version 6",
            "            SMFIF_ADDHDRS SMFIF_CHGHDRS",
            "  helo      mail.example.org (not asked for)",
            "  connect   mail.example.org [192.0.2.25]:40025 (not asked for)",
            "  data      (not asked for)",
            "            Tagger CONTINUE, Guard CONTINUE, together CONTINUE",
            "            Guard REJECT, together REJECT 550 5.1.1 Nobody lives here",
            "  header    Subject: Grüße aus der Werkstatt, mit Anhang",
            "  header    X-Comment: this one is Latin-1: caf\\xe9",
            "            Tagger CONTINUE, Guard ACCEPT, together ACCEPT",
            "  ChangeHeader  1 'X-Priority' ''",
            "  and signs of progress: 1",
            "  ACCEPT at eom: the message is delivered",
            "  accepted  <reader@example.net>",
            "  refused   <nobody@example.net>  550 5.1.1 Nobody lives here",
            "-Subject: Grüße aus der Werkstatt, mit Anhang",
            "+Subject: [demo] Grüße aus der Werkstatt, mit Anhang",
            "-X-Priority: 1",
            "+X-Demo-Guard: 1 recipient refused",
        ):
            self.assertIn(expected, lines)
        # The diff is of the header alone: the body was left as it was.
        self.assertEqual(len([one for one in lines if one.startswith("@@")]), 2)

    async def test_message_without_subject_and_with_field_too_long_for_line_will_do(self) -> None:
        """
        A message without Subject, and with a field too long for a line, will do.
        """
        outcome, text = await self.demonstrate(b"A: " + b"x" * 200 + b"\r\n\r\nb\r\n")
        self.assertTrue(outcome.accepted)
        self.assertIn(f"  header    A: {'x' * 74}...\n", text)
        self.assertNotIn("ChangeHeader", text)
        self.assertIn("+X-Demo-Tagger: queue id 4dZq2L0XyZz9x,\n+ 3 body bytes\n", text)

    async def test_of_several_fields_first_is_one_that_is_changed(self) -> None:
        """
        Of several fields the first is the one that is changed, as it was the one looked at.
        """
        _, text = await self.demonstrate(b"Subject: one\nSubject: two\n\n")
        self.assertIn("-Subject: one\n", text)
        self.assertIn("+Subject: [demo] one\n", text)
        self.assertNotIn("Subject: [demo] two", text)

    async def test_port_is_free_again(self) -> None:
        """
        Nothing listens any more when the play is over, even when it ends badly.
        """
        from twisted.internet import reactor

        class Crowded(MilterProtocolFactory):
            def buildProtocol(self, addr: Any) -> None:
                return None

        self.patch(demo, "MilterProtocolFactory", Crowded)
        stream = io.StringIO()
        with self.assertRaises(PeerError):
            await demo.demonstrate(reactor, b"A: b\n\n", Page(stream, {}))
        port = int(stream.getvalue().rpartition(":")[2])
        listening: Any = reactor.listenTCP(  # type: ignore[attr-defined]
            port, Crowded(()), interface="127.0.0.1"
        )
        await listening.stopListening()


class RunTests(TestCase):
    """
    The command: files, reactor and exit status.
    """

    def run_command(self, *words: str, reactor: Any = None) -> tuple[int, str, str]:
        """
        Run the command with a reactor of its own; give status, output and complaints.
        """
        parser = ArgumentParser()
        demo.add_arguments(parser)
        out, err = io.StringIO(), io.StringIO()
        self.patch(demo.sys, "stderr", err)  # type: ignore[attr-defined]
        status = demo.run(parser.parse_args(words), reactor=reactor, out=out)
        return status, out.getvalue(), err.getvalue()

    def folder(self) -> Path:
        """
        Make a folder that is removed after the test.
        """
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        return Path(folder.name)

    def test_without_reactor_of_ones_own_it_is_global_one(self) -> None:
        """
        Without a reactor of one's own it is the global one.
        """
        stand_in_for_reactor(self, own_reactor())
        self.assertEqual(self.run_command()[0], 0)

    def test_without_file_it_is_shipped_message_and_status_is_0(self) -> None:
        """
        Without a file it is the shipped message, and the status is 0.
        """
        status, out, err = self.run_command(reactor=own_reactor())
        self.assertEqual((status, err), (0, ""))
        self.assertIn("Grüße", out)

    def test_file_of_users_own_is_played(self) -> None:
        """
        A file of the user's own is played.
        """
        path = self.folder() / "mine.eml"
        path.write_bytes(b"Subject: mine\n\n")
        status, out, _ = self.run_command(str(path), reactor=own_reactor())
        self.assertEqual(status, 0)
        self.assertIn("+Subject: [demo] mine\n", out)

    def test_file_that_is_not_there_or_that_is_no_message_is_named(self) -> None:
        """
        A file that is not there, or that is no message, is named, and the status is 2.
        """
        folder = self.folder()
        (folder / "empty").write_bytes(b"")
        table = {"missing": "No such file", "empty": "header", ".": "directory"}
        for name, words in table.items():
            path = str(folder / name)
            status, out, err = self.run_command(path)
            self.assertEqual((status, out), (2, ""))
            self.assertIn(path, err)
            self.assertIn(words, err)

    def test_when_play_fails_reason_is_printed_and_status_is_1(self) -> None:
        """
        When the play fails the reason is printed, and the status is 1.
        """

        async def fail(*arguments: object) -> None:
            raise PeerError("the milter went away")

        self.patch(demo, "demonstrate", fail)
        status, _, err = self.run_command(reactor=own_reactor())
        self.assertEqual((status, err), (1, "yatxmilter demo: the milter went away\n"))

    def test_other_errors_such_as_no_port_to_be_had(self) -> None:
        """
        Other errors, such as no port to be had, come out as they are.
        """

        class Full(SelectReactor):
            def listenTCP(self, port: int, *more: Any, **options: Any) -> Any:
                raise CannotListenError("127.0.0.1", port, OSError("none left"))

        self.assertRaises(CannotListenError, self.run_command, reactor=Full())

    def test_when_reactor_is_stopped_from_outside_as_by_interrupt_status_is_1(self) -> None:
        """
        When the reactor is stopped from outside, as by an interrupt, the status is 1.
        """
        reactor = own_reactor()

        async def wait(*arguments: object) -> None:
            reactor.callLater(0, reactor.stop)
            await defer.Deferred()

        self.patch(demo, "demonstrate", wait)
        status, _, err = self.run_command(reactor=reactor)
        self.assertEqual((status, err), (1, ""))


def own_reactor() -> Any:
    """
    Make a reactor that is not the test runner's.
    """
    return SelectReactor()
