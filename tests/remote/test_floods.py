"""
Tests of what a milter may send without end: each kind has a bound, at which the milter has failed.
"""

from __future__ import annotations

import struct
import tracemalloc
from inspect import signature
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.conversation_helpers import EOM, MAIL, RCPT, ConversationTestCase, full, macros
from tests.growth import assert_linear
from tests.milterside import Rig, packet, reply
from tests.remotes import CONTINUE, breaking, started
from yatxmilter import constants as c
from yatxmilter._mail.bounds import MAX_EDIT_BYTES, MAX_NEW_BODY
from yatxmilter._wire import payloads
from yatxmilter.client import MilterClient, MilterClientFactory, PeerError, connect_milter
from yatxmilter.remote import RemoteMilterFactory

#: An edit of 100 bytes, and a piece of a body of as many.
EDIT = packet("h", b"X-Field\0" + b"v" * 91 + b"\0")
CHUNK = packet("b", b"x" * 100)


class ClientTests(SynchronousTestCase):
    """
    A client, used by itself.
    """

    def ending(self, **options: Any) -> tuple[Rig, Any]:
        """
        Make a client that waits for the answer to the end of a message.
        """
        rig = Rig(**options)
        rig.agree()
        return rig, rig.client.end_of_message()

    def assertFailed(self, rig: Rig, result: Any, text: str) -> None:
        """
        Check that a command has failed for a reason, and the connection with it.
        """
        self.assertIn(text, str(self.failureResultOf(result, PeerError).value))
        self.assertFalse(rig.transport.connected)

    def test_edits_up_to_the_bound(self) -> None:
        """
        Edits of just as many bytes as are taken are in the answer.
        """
        rig, result = self.ending(max_edit_bytes=1000)
        rig.client.dataReceived(EDIT * 10 + packet("c"))
        self.assertEqual(len(self.successResultOf(result).edits), 10)

    def test_edits_without_end(self) -> None:
        """
        Edits of more bytes than are taken fail the milter, and its connection is dropped.
        """
        rig, result = self.ending(max_edit_bytes=1000)
        rig.client.dataReceived(EDIT * 11 + packet("c"))
        self.assertFailed(rig, result, "edits of more than 1000 bytes (see max_edit_bytes)")

    def test_number_of_edits(self) -> None:
        """
        With ``max_edits`` a milter may make so many edits and no more, however small; the pieces
        of a new body do not count.
        """
        rig, result = self.ending(max_edits=3)
        rig.client.dataReceived(EDIT * 3 + CHUNK * 10 + packet("c"))
        self.assertEqual(len(self.successResultOf(result).edits), 13)
        rig, result = self.ending(max_edits=3)
        rig.client.dataReceived(CHUNK * 10 + packet("-", b"a\0") * 4)
        self.assertFailed(rig, result, "the milter made more than 3 edits (see max_edits)")

    def test_body_without_end(self) -> None:
        """
        A new body of more bytes than are taken fails the milter; edits do not count with it.
        """
        rig, result = self.ending(max_body=1000, max_edit_bytes=1000)
        rig.client.dataReceived(CHUNK * 10 + EDIT * 10 + packet("c"))
        self.assertEqual(len(self.successResultOf(result).edits), 20)
        result = rig.client.end_of_message()
        rig.client.dataReceived(CHUNK * 11)
        self.assertFailed(rig, result, "a new body of more than 1000 bytes (see max_body)")

    def test_each_message_has_its_own(self) -> None:
        """
        What one message was given does not count in the next.
        """
        rig, result = self.ending(max_edit_bytes=1000, max_body=1000)
        for _ in range(3):
            rig.client.dataReceived(EDIT * 9 + CHUNK * 9 + packet("c"))
            self.assertEqual(len(self.successResultOf(result).edits), 18)
            result = rig.client.end_of_message()

    def test_edits_next_to_nothing_on_the_wire_have_a_bound_all_the_same(self) -> None:
        """
        Edits that are next to nothing on the wire have a bound all the same.
        """
        for tiny in (packet("b"), packet("-", b"\0")):
            rig, result = self.ending(max_edit_bytes=1 << 17)
            rig.client.dataReceived(tiny * 2048 + packet("c"))
            self.assertEqual(len(self.successResultOf(result).edits), 2048)
            result = rig.client.end_of_message()
            rig.client.dataReceived(tiny * 2049)
            self.assertFailed(rig, result, "the milter sent 2049 edits")

    def test_what_is_kept(self) -> None:
        """
        However much a milter sends, little more than the bound is kept while it sends.
        """
        for flood in (EDIT * 100, CHUNK * 100, packet("+", b"<a>\0") * 1000):
            rig, result = self.ending(max_edit_bytes=100_000, max_body=100_000)
            tracemalloc.start()
            for _ in range(1000):
                rig.client.dataReceived(flood)
            kept, most = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            self.failureResultOf(result, PeerError)
            self.assertLess(most, 1_500_000)
            self.assertLess(kept, 100_000)

    def test_without_bounds_any_number_is_taken(self) -> None:
        """
        Without bounds any number is taken.
        """
        rig, result = self.ending(max_edit_bytes=None, max_body=None)
        rig.client.dataReceived((EDIT + CHUNK) * 2000 + packet("c"))
        self.assertEqual(len(self.successResultOf(result).edits), 4000)

    def test_bounds_are_the_same_by_default_wherever_they_are_given(self) -> None:
        """
        Bounds are the same by default wherever they are given, and checked there.
        """
        makers: tuple[Any, ...] = (
            MilterClient,
            MilterClientFactory,
            connect_milter,
            RemoteMilterFactory,
        )
        for make in makers:
            known = signature(make).parameters
            self.assertEqual(known["max_edit_bytes"].default, MAX_EDIT_BYTES)
            self.assertEqual(known["max_body"].default, MAX_NEW_BODY)
            self.assertIsNone(known["max_edits"].default)
            where = () if make in (MilterClient, MilterClientFactory) else ("inet:1",)
            for name in ("max_edit_bytes", "max_edits", "max_body"):
                with self.assertRaisesRegex(ValueError, f"{name} is 0"):
                    make(*where, **{name: 0})
                with self.assertRaisesRegex(TypeError, f"{name} is '1'"):
                    make(*where, **{name: "1"})

    def test_factory_passes_on(self) -> None:
        """
        A factory's clients have its bounds.
        """
        factory = MilterClientFactory(max_edit_bytes=5, max_edits=7, max_body=6)
        client = factory.buildProtocol(None)
        self.assertEqual((client.max_edit_bytes, client.max_edits, client.max_body), (5, 7, 6))

    def test_progress_without_end(self) -> None:
        """
        A milter that says for ever that it is at work has failed, asked or not.
        """
        flood = packet("p") * 100_000
        rig, result = self.ending()
        rig.client.dataReceived(flood)
        self.assertNoResult(result)
        rig.answer("p")
        self.assertFailed(rig, result, "more than 100000 times that it is at work")
        rig = Rig()
        rig.agree()
        rig.client.dataReceived(flood)
        rig.client.dataReceived(packet("p"))
        self.assertFalse(rig.transport.connected)

    def test_unasked_progress_of_many_commands(self) -> None:
        """
        What was said unasked before a command does not count after it.
        """
        rig = Rig()
        rig.agree(c.SMFIP_NR_HDR)
        for _ in range(3):
            rig.client.dataReceived(packet("p") * 99_999)
            rig.client.header("X", "y")
        self.assertTrue(rig.transport.connected)

    def test_what_nobody_asked_for_fails_at_once(self) -> None:
        """
        What nobody asked for fails at once: before negotiation, and between two commands.
        """
        for agree in (False, True):
            for flood in (packet("c") * 1000, EDIT * 1000, b"\0\0\0\0" * 1000, b"\xff" * 1000):
                rig = Rig()
                if agree:
                    rig.agree()
                rig.client.dataReceived(flood)
                self.assertFalse(rig.transport.connected)
                self.failureResultOf(rig.client.helo("h"), PeerError)

    def test_behind_the_end(self) -> None:
        """
        Of what still comes when a milter has failed, or was told QUIT, nothing is kept.
        """
        failed, quitting = Rig(), Rig()
        for rig in (failed, quitting):
            rig.agree()
        failed.answer("c")
        quitting.client.quit()
        for rig in (failed, quitting):
            tracemalloc.start()
            for _ in range(1000):
                rig.client.dataReceived(packet("h", bytes(10_000)))
            kept, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            self.assertLess(kept, 100_000)

    def test_symbol_lists_of_any_number(self) -> None:
        """
        An answer to the offer may ask for 512 macros at one stage, and have 65,535 bytes.
        """
        words = struct.pack(">III", 6, 0, 0)
        rows = {
            b"\0\0\0\0" + b"x " * 512 + b"\0": None,
            b"\0\0\0\0" + b"x " * 513 + b"\0": "asks for 513 macros at one stage, at most 512",
            b"\0\0\0\0" + b" " * (65_535 - 17) + b"\0": None,
            b"\0\0\0\0" + b" " * (65_535 - 16) + b"\0": "sent OPTNEG of 65536 bytes",
        }
        for lists, problem in rows.items():
            rig = Rig()
            result = rig.client.negotiate()
            rig.answer("O", words + lists)
            if problem is None:
                self.successResultOf(result)
            else:
                self.assertFailed(rig, result, problem)

    def test_symbol_lists_in_linear_time(self) -> None:
        """
        Many short lists are read in a time that grows with their number.
        """

        def prepare(size: int) -> Any:
            payload = bytes(12) + b"\0\0\0\1\0" * size
            return lambda: payloads.split_symbol_lists(payload)

        assert_linear(prepare, 5000)

    def test_replies_of_any_length(self) -> None:
        """
        A reply of thousands of lines is read in a time that grows with their number; one of more
        bytes than any MTA takes fails the milter.
        """
        rig = Rig()
        rig.agree()
        result = rig.client.helo("h")
        lines = "550-x\r\n" * 9000 + "550 x"
        rig.client.dataReceived(reply(lines))
        self.assertEqual(self.successResultOf(result).text, lines)
        result = rig.client.mail("<>")
        rig.client.dataReceived(reply("550-x\r\n" * 10_000 + "550 x"))
        self.assertFailed(rig, result, "sent REPLYCODE of 70006 bytes, at most 65535 are taken")


class RemoteTests(ConversationTestCase):
    """
    A remote milter beside others.
    """

    def test_remote_milter_that_sends_more_than_it_may_has_failed(self) -> None:
        """
        A remote milter that sends more than it may has failed: `on_error` is the answer, and its
        connection is dropped.
        """
        floods = {
            EDIT * 11: "edits of more than 1000 bytes",
            CHUNK * 11: "a new body of more than 1000 bytes",
            packet("-", b"a\0") * 1001: "edits of more than 1000 bytes",
            packet("b") * 1001: "1001 edits",
            packet("p") * 100_001: "more than 100000 times",
            reply("550-x\r\n" * 10_000 + "550 x"): "REPLYCODE of 70006 bytes",
        }
        for flood, reason in floods.items():
            remote = breaking(E=[flood + CONTINUE])
            conversation = started(remote, max_edit_bytes=1000, max_body=1000)
            answer = conversation.letters(MAIL, RCPT, EOM)
            self.assertEqual(answer.replace("p", ""), "cct")
            self.assertEqual(remote.open, 0)
            self.assertEqual(self.log_text().count("Milter afar failed in xxfi_eom"), 1)
            self.assertIn(reason, self.log_text())
            self.events.clear()

    def test_number_of_edits(self) -> None:
        """
        ``max_edits`` holds for a remote milter, too.
        """
        for edits, letters in ((3, "hhhc"), (4, "t")):
            conversation = started(breaking(E=[EDIT * edits + CONTINUE]), max_edits=3)
            self.assertEqual(conversation.letters(MAIL, RCPT, EOM), "cc" + letters)
        self.assertIn("more than 3 edits (see max_edits)", self.log_text())

    def test_others_go_on(self) -> None:
        """
        What the others do to a message is done all the same where mail passes without it, and what
        it did itself before it failed stands, but for the body.
        """
        near = full(eom=lambda self: self.smfi_addheader("X-Near", "1"))
        conversation = started(
            breaking(E=[CHUNK + EDIT * 11 + CONTINUE]),
            after=(near,),
            on_error=c.SMFIS_CONTINUE,
            max_edit_bytes=1000,
        )
        self.assertEqual(conversation.letters(MAIL, RCPT, EOM), "cc" + "h" * 11 + "c")

    def test_nothing_of_a_refused_message(self) -> None:
        """
        Where mail does not pass without it, none of its edits reaches the MTA.
        """
        for code, letter in ((c.SMFIS_REJECT, "r"), (c.SMFIS_DISCARD, "d")):
            conversation = started(
                breaking(E=[EDIT * 11 + CONTINUE]), on_error=code, max_edit_bytes=1000
            )
            self.assertEqual(conversation.letters(MAIL, RCPT, EOM), "cc" + letter)

    def test_with_none_a_remote_milter_may_do_as_much_as_it_likes(self) -> None:
        """
        With ``None`` a remote milter may do as much as it likes.
        """
        conversation = started(
            breaking(E=[(EDIT + CHUNK) * 1000 + CONTINUE]), max_edit_bytes=None, max_body=None
        )
        self.assertEqual(
            conversation.letters(MAIL, RCPT, EOM), "cc" + "h" * 1000 + "b" * 1000 + "c"
        )

    def test_edits_of_a_message_that_is_over(self) -> None:
        """
        Edits that come when somebody else has decided are those of no message.
        """
        near = full(eom=lambda self: verdicts.pop(0))
        verdicts = [c.SMFIS_REJECT, c.SMFIS_CONTINUE]
        remote = breaking(E=[b"", CONTINUE])
        conversation = started(remote, after=(near,))
        self.assertEqual(conversation.letters(MAIL, RCPT, EOM), "ccr")
        remote.servers[0].transport.write(EDIT + CONTINUE)
        self.assertEqual(conversation.letters(MAIL, RCPT, EOM), "ccc")

    def test_of_flood_of_progress_mta_gets_first_hundred_and_then_one_second(self) -> None:
        """
        Of a flood of PROGRESS the MTA gets the first hundred, and then one a second.
        """
        remote = breaking(E=[packet("p") * 5000])
        conversation = started(remote)
        self.assertEqual(conversation.letters(MAIL, RCPT, EOM), "cc" + "p" * 100)
        answers = []
        for seconds in (0.5, 0.5, 0.5, -100.0, 1.0):
            conversation.reactor.rightNow += seconds
            remote.servers[0].transport.write(packet("p") * 5)
            answers.append(conversation.carry().count(b"p"))
        self.assertEqual(answers, [0, 1, 0, 1, 1])

    def test_queue_ids_in_the_log(self) -> None:
        """
        A queue id cannot forge a line of the log, nor move the cursor of a terminal.
        """
        conversation = started(breaking(M=[packet("?")]))
        conversation.send(macros("M", b"i", "4X\r\n\x1b[2J\u2028\u202e\x85".encode()) + MAIL)
        text = self.log_text()
        self.assertIn("Milter afar failed in xxfi_envfrom (queue id 4X", text)
        self.assertTrue(text.isprintable(), text)
