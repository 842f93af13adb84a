"""
A whole message, in Postfix's order, up to where Postfix stops.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError
from twisted.trial.unittest import SynchronousTestCase

from tests.milterside import CONTINUE, Packet, Rig, letters_of, packet, reply
from yatxmilter import constants as c
from yatxmilter._wire.actions import AddHeader, Quarantine, Response
from yatxmilter.client import Agreement, Outcome, PeerError, select_macros
from yatxmilter.errors import ValueNotSendable

MESSAGE = b"From: a\nSubject:  hi\n there\n\nbody\nline"
A, B = "<a@example.net>", "<b@example.net>"


class PlayTests(SynchronousTestCase):
    """
    A message to a milter that follows a script.
    """

    def play(
        self,
        script: dict[str, list[bytes]] | None = None,
        message: bytes = MESSAGE,
        recipients: tuple[str, ...] = (A, B),
        steps: int = 0,
        **more: Any,
    ) -> tuple[Outcome, list[Packet]]:
        """
        Play a message; give the outcome, and what the milter was sent.
        """
        rig = Rig()
        rig.agree(steps)
        result = rig.client.send_message(message, "<s@example.org>", recipients, **more)
        seen = rig.serve(script)
        return self.successResultOf(result), seen

    def test_commands_are_postfixs_each_with_its_macros_before_it(self) -> None:
        """
        The commands are Postfix's, each with its macros before it, ABORT after the end included.
        """
        outcome, seen = self.play(macros={"i": "Q1"}, sender_args=["SIZE=9"],
                                  recipient_args={B: ["NOTIFY=NEVER"]})  # fmt: skip
        self.assertEqual(letters_of(seen, macros=True), "DMDRDRDTDLDLDNDBDEA")
        self.assertEqual(
            [one for one in seen if one[0] != "D"],
            [
                ("M", b"<s@example.org>\0SIZE=9\0"),
                ("R", b"<a@example.net>\0"),
                ("R", b"<b@example.net>\0NOTIFY=NEVER\0"),
                ("T", b""),
                ("L", b"From\0a\0"),
                ("L", b"Subject\0 hi\n there\0"),
                ("N", b""),
                ("B", b"body\r\nline\r\n"),
                ("E", b""),
                ("A", b""),
            ],
        )
        self.assertEqual(
            [payload for letter, payload in seen if letter == "D"],
            [
                b"Mi\0Q1\0{mail_addr}\0s@example.org\0",
                b"Ri\0Q1\0{rcpt_addr}\0a@example.net\0",
                b"Ri\0Q1\0{rcpt_addr}\0b@example.net\0",
                b"Ti\0Q1\0",
                b"Li\0Q1\0",
                b"Li\0Q1\0",
                b"Ni\0Q1\0",
                b"Bi\0Q1\0",
                b"Ei\0Q1\0",
            ],
        )
        self.assertEqual((outcome.verdict, outcome.stage), (c.SMFIS_CONTINUE, "eom"))
        self.assertTrue(outcome.accepted)
        self.assertEqual([one.response for one in outcome.recipients], [CONTINUE, CONTINUE])

    def test_where_it_stops(self) -> None:
        """
        An answer that settles the message is the last; ABORT follows, and nothing else.
        """
        commands = {
            "M": ("M", "mail"),
            "R": ("MR", "rcpt"),
            "T": ("MRRT", "data"),
            "L": ("MRRTL", "header"),
            "N": ("MRRTLLN", "eoh"),
            "B": ("MRRTLLNB", "body"),
            "E": ("MRRTLLNBE", "eom"),
        }
        codes = {"a": c.SMFIS_ACCEPT, "d": c.SMFIS_DISCARD, "r": c.SMFIS_REJECT,
                 "t": c.SMFIS_TEMPFAIL}  # fmt: skip
        for command, (expected, stage) in commands.items():
            for letter, code in codes.items():
                if command == "R" and letter in "rt":
                    continue
                outcome, seen = self.play({command: [packet(letter)]})
                self.assertEqual(letters_of(seen), expected + "A")
                self.assertEqual((outcome.verdict, outcome.stage), (code, stage))
                self.assertEqual(outcome.response, Response(code, ord(letter)))
                self.assertEqual(outcome.accepted, letter == "a")

    def test_mta_accepts_recipients_once_a_milter_is_out_of_the_message(self) -> None:
        """
        Once a milter is out of the message the MTA accepts the other recipients by itself.
        """
        table = {
            ("M", "a"): [(A, None), (B, None)],
            ("M", "d"): [(A, None), (B, None)],
            ("M", "r"): [],
            ("R", "a"): [(A, "a"), (B, None)],
            ("R", "d"): [(A, "d"), (B, None)],
            ("T", "r"): [(A, "c"), (B, "c")],
        }
        for (command, letter), expected in table.items():
            outcome, _ = self.play({command: [packet(letter)]})
            recipients = [
                (one.address, chr(one.response.letter) if one.response else None)
                for one in outcome.recipients
            ]
            self.assertEqual(recipients, expected)
            self.assertTrue(all(one.accepted for one in outcome.recipients))

    def test_refused_recipient_is_refused_alone_with_its_own_text(self) -> None:
        """
        A refused recipient is refused alone, with its own text.
        """
        outcome, seen = self.play({"R": [reply("550 5.1.1 no")]})
        self.assertEqual(letters_of(seen), "MRRTLLNBEA")
        self.assertEqual([one.accepted for one in outcome.recipients], [False, True])
        response = outcome.recipients[0].response
        self.assertEqual(response and response.text, "550 5.1.1 no")
        self.assertTrue(outcome.accepted)

    def test_when_all_recipients_are_refused_content_is_not_sent(self) -> None:
        """
        When all recipients are refused the content is not sent; the last refusal is the verdict.
        """
        outcome, seen = self.play({"R": [packet("t"), reply("550 5.1.1 no")]})
        self.assertEqual(letters_of(seen), "MRRA")
        self.assertEqual((outcome.verdict, outcome.stage), (c.SMFIS_REJECT, "rcpt"))
        self.assertEqual(outcome.text, "550 5.1.1 no")

    def test_disconnect_at_recipient(self) -> None:
        """
        A 421 at a recipient, or SHUTDOWN, is the end of the message: an MTA hangs up.
        """
        for answer in (reply("421 4.7.0 bye"), packet("4")):
            outcome, seen = self.play({"R": [answer]})
            self.assertEqual(letters_of(seen), "MRA")
            self.assertEqual((outcome.verdict, outcome.stage), (c.SMFIS_TEMPFAIL, "rcpt"))

    def test_skip_ends_recipients_header_fields_or_body_as_for_postfix(self) -> None:
        """
        SKIP ends the recipients, the header fields or the body, as for Postfix; else it goes on.
        """
        table = {
            "M": "MRRTLLNBEA",
            "R": "MRTLLNBEA",
            "T": "MRRTLLNBEA",
            "L": "MRRTLNBEA",
            "N": "MRRTLLNBEA",
            "B": "MRRTLLNBEA",
            "E": "MRRTLLNBEA",
        }
        for command, expected in table.items():
            outcome, seen = self.play({command: [packet("s")]})
            self.assertEqual(letters_of(seen), expected)
            self.assertTrue(outcome.accepted)
            self.assertEqual(len(outcome.recipients), 2)

    def test_skip_after_refusals(self) -> None:
        """
        Recipients left out after SKIP are accepted, so the message goes on.
        """
        outcome, seen = self.play({"R": [packet("r"), packet("s")]}, recipients=(A, B, "<c>"))
        self.assertEqual(letters_of(seen), "MRRTLLNBEA")
        self.assertEqual([one.accepted for one in outcome.recipients], [False, True, True])

    def test_with_smfip_hdr_leadspc_values_are_sent_as_they_are_blanks_included(self) -> None:
        """
        With SMFIP_HDR_LEADSPC values are sent as they are, blanks included.
        """
        _, seen = self.play(steps=c.SMFIP_HDR_LEADSPC)
        self.assertEqual(
            [payload for letter, payload in seen if letter == "L"],
            [b"From\0 a\0", b"Subject\0  hi\n there\0"],
        )

    def test_declined_commands_are_left_out_their_macros_are_sent_all_same(self) -> None:
        """
        Declined commands are left out; their macros are sent all the same.
        """
        _, seen = self.play(steps=c.ALL_NO_STEPS)
        self.assertEqual(letters_of(seen), "EA")
        stages = [chr(payload[0]) for letter, payload in seen if letter == "D"]
        self.assertEqual("".join(stages), "MRRTLLNBE")

    def test_empty_body_makes_no_body_command(self) -> None:
        """
        An empty body makes no body command.
        """
        _, seen = self.play(message=b"From: a\n\n")
        self.assertEqual(letters_of(seen), "MRRTLNEA")

    def test_nul_in_header(self) -> None:
        """
        A NUL ends the value of a header field, as it does inside an MTA.
        """
        _, seen = self.play(message=b"A: b\0c\n\nd")
        self.assertIn(("L", b"A\0b\0"), seen)

    def test_edits_progress_and_quarantine_are_part_of_outcome(self) -> None:
        """
        Edits, progress and quarantine are part of the outcome.
        """
        actions = packet("p") + packet("h", b"X\0y\0")
        actions += packet("q", b"one\0") + packet("q", b"two\0")
        outcome, _ = self.play({"E": [actions + packet("a")]})
        self.assertEqual(outcome.edits, (AddHeader("X", "y"), Quarantine("one"), Quarantine("two")))
        self.assertEqual((outcome.progress, outcome.quarantined), (1, "two"))
        self.assertIsNone(self.play()[0].quarantined)

    def test_once_connect_or_helo_was_settled_no_message_is_sent(self) -> None:
        """
        Once connect or helo was settled no message is sent, and each has that outcome.
        """
        for letter, accepted in (("a", True), ("r", False)):
            rig = Rig()
            rig.agree()
            connected = rig.client.connect("h")
            result = rig.client.send_message(MESSAGE, recipients=[A])
            rig.written()
            rig.answer(letter)
            self.assertEqual(rig.sent(), [])
            outcome = self.successResultOf(result)
            self.assertEqual(outcome.response, self.successResultOf(connected))
            self.assertEqual((outcome.stage, outcome.accepted), ("connect", accepted))
            self.assertEqual((outcome.recipients, outcome.edits), ((), ()))

    def test_messages_in_a_row(self) -> None:
        """
        Messages asked for at once are played one after the other.
        """
        rig = Rig()
        rig.client.negotiate()
        results = [
            rig.client.send_message(b"A: b\n\n", recipients=[f"<{n}@example.net>"])
            for n in range(2)
        ]
        self.assertEqual(rig.letters(), "O")
        rig.answer("O", b"\0\0\0\6" + b"\0\0\0\0" * 2)
        seen = rig.serve() + rig.serve()
        self.assertEqual(letters_of(seen), "MRTLNEAMRTLNEA")
        for result in results:
            self.assertTrue(self.successResultOf(result).accepted)

    def test_commands_wait_behind(self) -> None:
        """
        Commands asked for after a message are sent when it is done; cancelled, they never are.
        """
        rig = Rig()
        rig.client.mail("<>")
        message = rig.client.send_message(b"A: b\n\n", recipients=[A])
        helo, cancelled = rig.client.helo("h"), rig.client.eoh()
        self.assertEqual(rig.letters(), "M")
        rig.answer("c")
        cancelled.cancel()
        self.failureResultOf(cancelled)
        self.assertEqual(letters_of(rig.serve()), "MRTLNEAH")
        self.successResultOf(message)
        self.successResultOf(helo)

    def test_message_cancelled_before_its_turn_is_not_sent(self) -> None:
        """
        A message cancelled before its turn is not sent, and what waited behind it is.
        """
        rig = Rig()
        rig.client.helo("h")
        message = rig.client.send_message(MESSAGE, recipients=[A])
        rig.client.unknown("X")
        message.cancel()
        self.failureResultOf(message, CancelledError)
        self.assertEqual(letters_of(rig.serve()), "HU")

    def test_header_field_that_fits_into_no_packet_fails_message(self) -> None:
        """
        A header field that fits into no packet fails the message, which is then aborted.
        """
        rig = Rig()
        rig.agree()
        result = rig.client.send_message(b"A: " + b"x" * 65533 + b"\n\n", recipients=[A])
        self.assertEqual(letters_of(rig.serve()), "MRTA")
        self.failureResultOf(result, ValueNotSendable)
        rig.client.send_message(b"A: " + b"x" * 65532 + b"\n\n", recipients=[A])
        self.assertEqual(letters_of(rig.serve()), "MRTLNEA")

    def test_milter_that_goes_away_fails_message_and_next_one_too(self) -> None:
        """
        A milter that goes away fails the message, and the next one too.
        """
        rig = Rig()
        results = [rig.client.send_message(MESSAGE, recipients=[A]) for _ in range(2)]
        rig.transport.loseConnection()
        for result in results:
            self.failureResultOf(result, PeerError)


class MacroTests(SynchronousTestCase):
    """
    Which macros go with a stage.
    """

    VALUES = {"i": "1", "{mail_addr}": "a", "client_addr": "192.0.2.1", "{x}": "one letter"}

    def select(self, stage: int, *names: str) -> dict[str, str]:
        """
        Select by this list for end of message.
        """
        agreement = Agreement(6, 0, 0, {c.SMFIM_EOM: list(names)})
        return select_macros(agreement, stage, self.VALUES)

    def test_without_list_or_with_empty_one(self) -> None:
        """
        Without a list, or with an empty one, the usual macros that have a value are sent.
        """
        self.assertEqual(
            select_macros(None, c.SMFIM_ENVFROM, self.VALUES), {"i": "1", "{mail_addr}": "a"}
        )
        self.assertEqual(self.select(c.SMFIM_ENVFROM), {"i": "1", "{mail_addr}": "a"})
        self.assertEqual(self.select(c.SMFIM_EOM), {"i": "1"})

    def test_list_decides_alone_and_names_are_sent_as_it_writes_them(self) -> None:
        """
        A list decides alone, and names are sent as it writes them.
        """
        names = ("{client_addr}", "x", "{i}", "{unknown}")
        self.assertEqual(
            self.select(c.SMFIM_EOM, *names),
            {"{client_addr}": "192.0.2.1", "x": "one letter", "{i}": "1"},
        )
        self.assertEqual(self.select(c.SMFIM_EOM, "client_addr"), {"client_addr": "192.0.2.1"})
