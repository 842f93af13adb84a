"""
Tests of milters that run elsewhere: macros on the way there, edits on the way back.
"""

from __future__ import annotations

from typing import Any

from tests.conversation_helpers import (
    BODY,
    CONNECT,
    DECLINED,
    EOM,
    MAIL,
    RCPT,
    ConversationTestCase,
    full,
    macros,
    packet,
)
from tests.remotes import (
    COMMANDS,
    CONTINUE,
    breaking,
    serving,
    started,
)
from yatxmilter import constants as c
from yatxmilter._wire.payloads import Offer, encode_offer


class MacroTests(ConversationTestCase):
    """
    The remote milter knows the MTA's macros.
    """

    def test_macros_are_passed_on_with_the_command_that_they_came_with(self) -> None:
        """
        Macros are passed on with the command that they came with.
        """
        seen: list[tuple[str, str | None]] = []

        def look(name: str) -> Any:
            return lambda self, *_: seen.append((name, self.smfi_getsymval(name)))

        far = full(
            connect=look("j"), envfrom=look("i"), envrcpt=look("{rcpt_addr}"), eom=look("{msg_id}")
        )
        conversation = started(serving(far))
        conversation.send(
            macros("C", b"j", b"mx.example.net") + CONNECT,
            macros("M", b"i", b"4Xyz") + MAIL,
            macros("R", b"{rcpt_addr}", b"r@example.net") + RCPT,
            macros("E", b"{msg_id}", b"<1@x>\xff") + EOM,
        )
        self.assertEqual(
            seen,
            [("j", "mx.example.net"), ("i", "4Xyz"), ("{rcpt_addr}", "r@example.net")]
            + [("{msg_id}", "<1@x>\udcff")],
        )

    def test_macros_of_declined_commands_are_sent_once_a_message(self) -> None:
        """
        The macros of a command that the remote milter does not want are sent to it all the same,
        once a message, for it may look them up later.
        """
        steps = DECLINED & ~c.SMFIP_NOBODY
        remote = breaking(O=[encode_offer(Offer(6, 0, steps))])
        conversation = started(remote)
        connect = macros("C", b"j", b"mx.example.net") + CONNECT
        mail = macros("M", b"i", b"4Xyz")
        conversation.send(connect, mail + BODY, BODY, EOM, BODY, EOM)
        once = [("D", b"Cj\0mx.example.net\0"), ("D", b"Mi\x004Xyz\0")]
        body, end = ("B", b"Hello\r\n"), ("E", b"")
        expected = [*once, body, body, end, *once, body, end]
        self.assertEqual(remote.servers[0].heard[1:], expected)

    def test_names_as_they_came(self) -> None:
        """
        Names go on as they came, and one that lost its value is left out.
        """
        remote = breaking()
        conversation = started(remote)
        conversation.send(packet("D", b"C{j}\0mx\0{client_addr}\0") + CONNECT)
        self.assertEqual(remote.servers[0].heard[1], ("D", b"C{j}\0mx\0"))


class EditTests(ConversationTestCase):
    """
    The remote milter's edits.
    """

    EDITS = (
        packet("h", b"X-Spam\0no\0"),
        packet("i", b"\0\0\0\0X-Top\0one\n\ttwo\0"),
        packet("m", b"\0\0\0\1Subject\0[x] hi\0"),
        packet("m", b"\0\0\0\2X-Old\0\0"),
        packet("+", b"<n@example.net>\0"),
        packet("2", b"<p@example.net>\0NOTIFY=NEVER\0"),
        packet("-", b"<r@example.net>\0"),
        packet("e", b"<new@example.org>\0"),
        packet("e", b"<new@example.org>\0RET=HDRS\0"),
        packet("b", b"new\r\n"),
        packet("b", b""),
        packet("q", b"held \xff\0"),
    )

    def test_each_edit_reaches_mta_as_it_was_sent_in_order(self) -> None:
        """
        Each edit reaches the MTA as it was sent, in order, in one write with the answer; a new
        body comes behind the others.
        """
        edits = b"".join(self.EDITS)
        conversation = started(breaking(E=[edits + CONTINUE]))
        conversation.send(*COMMANDS[:-1])
        in_order = sorted(self.EDITS, key=lambda edit: edit[4:5] == b"b")
        self.assertEqual(conversation.send(EOM), b"".join(in_order) + CONTINUE)

    def test_recipient_by_the_other_action(self) -> None:
        """
        Who may add recipients with ESMTP arguments only does so, with none.
        """
        add = packet("2", b"<p@example.net>\0")
        remote = breaking(O=[encode_offer(Offer(6, 0x80, 0))], E=[add + CONTINUE])
        conversation = started(remote)
        conversation.send(MAIL, RCPT)
        self.assertEqual(conversation.send(EOM), add + CONTINUE)

    def test_changed_header_values_are_folded_as_the_mta_would(self) -> None:
        """
        Header values are folded as an MTA would do it with those that are not.
        """
        rows = {
            b"a\r\n\tb": b"a\n\tb",
            b"a\r\nb": b"a\n\tb",
            b"a\nb\n c": b"a\n\tb\n c",
            b"a\r\n": b"a",
        }
        for value, folded in rows.items():
            conversation = started(breaking(E=[packet("h", b"X\0" + value + b"\0") + CONTINUE]))
            packets = conversation.packets(MAIL, RCPT, EOM)
            self.assertIn(("h", b"X\0" + folded + b"\0"), packets)

    def test_edit_that_would_break_message_is_failure_of_remote_milter(self) -> None:
        """
        An edit that would break the message is a failure of the remote milter. What it did before
        stands where mail passes, but for the body, of which there may be but a part.
        """
        edits = packet("h", b"X\0y\0") + packet("b", b"z") + packet("h", b"X\0a\rb\0")
        for code, letters in ((c.SMFIS_TEMPFAIL, "t"), (c.SMFIS_CONTINUE, "hc")):
            conversation = started(breaking(E=[edits + CONTINUE]), on_error=code)
            self.assertEqual(conversation.letters(MAIL, RCPT, EOM), "cc" + letters)
        self.assertEqual(self.log_text().count("Milter afar failed in xxfi_eom"), 2)

    def test_order_of_members(self) -> None:
        """
        Edits come in the order of the members, whoever is done first.
        """
        near = full(eom=lambda self: self.smfi_addheader("X-Near", "1"))
        far = full(eom=lambda self: self.smfi_addheader("X-Far", "2"))
        conversation = started(serving(far), before=(near,), after=(near,))
        conversation.send(*COMMANDS[:-1])
        fields = [payload[:6] for letter, payload in conversation.packets(EOM) if letter == "h"]
        self.assertEqual(fields, [b"X-Near", b"X-Far\0", b"X-Near"])

    def test_in_chain_remote_milter_is_shown_what_milters_before_it_have_made(self) -> None:
        """
        In a chain the remote milter is shown what the milters before it have made.
        """
        near = full(eom=lambda self: self.smfi_replacebody(b"edited\r\n"))
        far = full()
        conversation = started(serving(far), before=(near,), merge="chain")
        self.assertEqual(conversation.letters(*COMMANDS), "cccccc" + "bc")
        self.assertIn(("body", b"edited\r\n"), far.calls)

    def test_progress_from_afar_goes_on_at_end_of_message_and_nowhere_else(self) -> None:
        """
        PROGRESS from afar goes on at the end of a message, and nowhere else.
        """
        progress = packet("p")
        remote = breaking(R=[progress + CONTINUE], E=[progress + progress + CONTINUE])
        conversation = started(remote)
        self.assertEqual(conversation.letters(MAIL, RCPT, EOM), "cc" + "ppc")
