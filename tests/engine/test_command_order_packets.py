"""
Broken packets, macro packets, and streams however they arrive.
"""

from __future__ import annotations

from tests.conversation_helpers import ConversationTestCase, full, milter, started
from tests.helpers import byte_by_byte, every_split
from tests.sessions import (
    ARGUMENTS,
    WAYS,
    Dialogue,
    calls_after,
    command_packet,
    command_packets,
)
from yatxmilter import constants as c
from yatxmilter._wire.packets import encode_packet

_OF_MAIL = ("envfrom", "envrcpt", "abort", "close")


class BrokenPacketTests(ConversationTestCase):
    """
    What libmilter closes the connection for closes it.
    """

    def _assert_fatal(self, letters: str, data: bytes) -> None:
        dialogue = Dialogue(letters)
        dialogue.receive(data)
        self.assertTrue(dialogue.closed, (letters, data))

    def test_packet_whose_letter_is_no_command_is_fatal_in_any_state(self) -> None:
        """
        A packet whose letter is no command is fatal in any state, with or without payload.
        """
        for letter in range(256):
            if chr(letter) not in "OCHMRTLNBEUAQKD":
                for way, payload in (("", b""), ("OCHMR", b"x\0")):
                    self._assert_fatal(way, encode_packet(letter, payload))

    def test_commands_that_need_a_payload_are_fatal_without_it(self) -> None:
        """
        B C H L M O R U without payload are fatal where they are legal.
        """
        ways = {"O": "", "C": "O", "H": "OC", "M": "OCH", "R": "OCHM", "U": "O", "L": "OCHMR",
                "B": "OCHMR"}  # fmt: skip
        for letter, way in ways.items():
            self._assert_fatal(way, command_packet(letter, b""))

    def test_empty_payload_with_several_milters(self) -> None:
        """
        The same, however many milters there are and whatever makes one answer of theirs, also where
        none of them wants the command, and where an answer is kept.
        """
        for merge in ("first", "strictest", "chain"):
            for classes in ((full("One"), full("Other")), (milter("Neither"), milter("Nor"))):
                conversation = started(*classes, merge=merge)
                conversation.send(command_packets("CHM") + command_packet("R", b""))
                self.assertTrue(conversation.closed, merge)
            quiet = full("Quiet", quiet=("helo",), helo=c.SMFIS_REJECT)
            conversation = started(quiet, merge=merge)
            conversation.send(command_packets("CH") + command_packet("M", b""))
            self.assertTrue(conversation.closed, merge)

    def test_state_before_payload(self) -> None:
        """
        An illegal command is dropped before anyone sees that its payload is missing.
        """
        for letter in "OCLRB":
            dialogue = Dialogue("OCH")
            dialogue.receive(command_packet(letter, b"") + command_packet("M"))
            self.assertEqual(dialogue.called(), "M", letter)

    def test_message_ends_before_the_payload_is_missed(self) -> None:
        """
        An illegal empty HELO in a message aborts it, once, and is fatal then.
        """
        dialogue = Dialogue("OCHM")
        dialogue.receive(command_packet("H", b""))
        self.assertEqual((dialogue.called(), dialogue.closed), ("AQ", True))

    def test_missing_payload_opens_no_message(self) -> None:
        """
        A MAIL without payload begins no message: none is aborted.
        """
        dialogue = Dialogue("OCH")
        dialogue.receive(command_packet("M", b""))
        self.assertEqual((dialogue.called(), dialogue.closed), ("Q", True))

    def test_malformed_payload_opens_a_message(self) -> None:
        """
        A MAIL that cannot be read has begun a message all the same, as with libmilter.
        """
        dialogue = Dialogue("OCH")
        dialogue.receive(command_packet("M", b"no end"))
        self.assertEqual((dialogue.called(), dialogue.closed), ("AQ", True))

    def test_empty_macro_packet(self) -> None:
        """
        A macro packet without even a stage is fatal in any state.
        """
        for way in WAYS.values():
            self._assert_fatal(way, command_packet("D", b""))

    def test_packet_that_is_too_long_is_fatal(self) -> None:
        """
        A packet that is too long is fatal, what came before it is not lost.
        """
        dialogue = Dialogue("OCHM")
        answers = dialogue.receive(command_packet("R") + b"\x00\x01\x00\x01B")
        self.assertEqual((answers, dialogue.called()), (b"\0\0\0\1c", "RAQ"))
        self.assertTrue(dialogue.closed)

    def test_length_of_0_or_below_is_a_command_without_payload(self) -> None:
        """
        A length of 0 and a negative one are a command without payload.
        """
        for length in (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x80\0\0\1"):
            self.assertEqual(calls_after("O", [length + b"Q"]), [("Q", ())])

    def test_length_that_none_has_and_helo_without_its_end_are_told_once(self) -> None:
        """
        What is taken, or dropped, as libmilter does, though it breaks the protocol, is logged once
        with the peer's address.
        """
        mta = started(milter(helo=None))
        mta.send(b"\0\0\0\0A")
        text = self.log_text()
        self.assertIn("The MTA at [192.0.2.25]:4242 sent a packet of length 0: taken for one", text)
        mta.send(b"\xff\xff\xff\xffA")
        self.assertEqual(self.log_text().count("of length"), 1)
        for merge in ("first", "strictest", "chain"):
            for milters in ((full(),), (full(), full())):
                mta = started(*milters, merge=merge)
                self.events.clear()
                self.assertEqual(mta.send(command_packet("H", b"abc")), b"")
                self.assertIn("sent HELO, which does not end in NUL: dropped", self.log_text())
                mta.send(command_packet("H", b"abc"))
                self.assertEqual(self.log_text().count("sent HELO"), 1)
                self.assertEqual(mta.send(command_packet("M")), b"\0\0\0\1c")

    def test_broken_command_that_ends_a_message_ends_it_once(self) -> None:
        """
        A command that ends a message and cannot be read has the abort called once; the first MAIL
        that cannot be read, as ever.
        """
        for merge in ("first", "strictest", "chain"):
            for count in (1, 2):
                milters = [full() for _ in range(count)]
                for letters, data, expected in (
                    ("M", command_packet("M", b"abc"), ["envfrom", "abort", "close"]),
                    ("MR", command_packet("M", b""), ["envfrom", "envrcpt", "abort", "close"]),
                    ("", command_packet("M", b"abc"), ["abort", "close"]),
                    ("MRTLNBE", command_packet("M", b"abc"), ["abort", "close"]),
                ):
                    mta = started(*milters, merge=merge)
                    mta.send(command_packets(letters))
                    if letters.endswith("E"):
                        for one in milters:
                            one.calls.clear()
                    mta.send(data)
                    self.assertTrue(mta.closed)
                    for one in milters:
                        called = [name for name, *_ in one.calls if name in _OF_MAIL]
                        self.assertEqual(called, expected, (merge, count, letters))
                        one.calls.clear()

    def test_payload_where_none_belongs(self) -> None:
        """
        A payload of T N A Q K does not keep them from being served.
        """
        dialogue = Dialogue("OCHMR")
        dialogue.receive(b"".join(command_packet(letter, b"junk") for letter in "TNAKQ"))
        self.assertEqual(dialogue.called(), "TNAKQ")

    def test_error_names_the_command(self) -> None:
        """
        The log says which command it was.
        """
        for data, text in {
            command_packet("M", b""): "MAIL without payload",
            command_packet("Z"): "unknown command 'Z'",
            command_packet("D", b""): "MACRO without a stage",
        }.items():
            Dialogue("OCH").receive(data)
            self.assertIn(text, self.log_text())


class MacroTests(ConversationTestCase):
    """
    Macro packets give no calls, and commands end the macros of the stages after theirs.
    """

    STAGES = "CHMRTNE"

    def _filled(self, way: str) -> Dialogue:
        dialogue = Dialogue(way)
        for letter in self.STAGES:
            dialogue.receive(command_packet("D", f"{letter}{{{letter}{letter}}}\0v\0".encode()))
        self.assertEqual(dialogue.called(), "")
        self.assertEqual(self._found(dialogue.milter), self.STAGES)
        return dialogue

    def _found(self, one: object) -> str:
        get = one.smfi_getsymval  # type: ignore[attr-defined]
        return "".join(letter for letter in self.STAGES if get(f"{{{letter}{letter}}}"))

    def test_what_commands_end(self) -> None:
        """
        O ends all macros, C those from HELO on, H from MAIL, M from RCPT, R from DATA; others none.
        """
        rows = {
            ("", "O"): "", ("O", "C"): "C", ("OC", "H"): "CH", ("OCH", "M"): "CHM",
            ("OCHM", "R"): "CHMR", ("OCHMR", "R"): "CHMR",
            ("OCHMR", "T"): self.STAGES, ("OCHMR", "L"): self.STAGES,
            ("OCHMR", "N"): self.STAGES, ("OCHMR", "B"): self.STAGES,
            ("OCHMR", "E"): self.STAGES, ("OCHMR", "U"): self.STAGES,
            ("OCHMR", "A"): self.STAGES,
        }  # fmt: skip
        actual = {}
        for way, letter in rows:
            dialogue = self._filled(way)
            dialogue.receive(command_packet(letter))
            self.assertEqual(dialogue.called(), letter)
            actual[way, letter] = self._found(dialogue.milter)
        self.assertEqual(actual, rows)

    def test_dropped_commands_end_none(self) -> None:
        """
        A command that is dropped as illegal ends no macros.
        """
        for letter in "OCR":
            dialogue = self._filled("OCH")
            dialogue.receive(command_packet(letter))
            self.assertEqual(dialogue.called(), "")
            self.assertEqual(self._found(dialogue.milter), self.STAGES, letter)

    def test_visible_in_abort(self) -> None:
        """
        When a MAIL ends the message before it, the abort still sees that message's macros.
        """
        found: list[str] = []

        def look(one: object, *_: object) -> None:
            found.append(self._found(one))

        dialogue = Dialogue("OCHMR", abort=look, envfrom=look)
        for letter in self.STAGES:
            dialogue.receive(command_packet("D", f"{letter}{{{letter}{letter}}}\0v\0".encode()))
        found.clear()
        dialogue.receive(command_packet("M"))
        self.assertEqual(found, [self.STAGES, "CHM"])

    def test_belong_to_the_command_they_precede(self) -> None:
        """
        Macros that arrive together with later commands are not seen before those.
        """
        found: list[str | None] = []

        def look(one: object, *_: object) -> None:
            found.append(one.smfi_getsymval("i"))  # type: ignore[attr-defined]

        dialogue = Dialogue("OCH", envfrom=look, envrcpt=look)
        dialogue.receive(command_packet("D", b"Mi\x001\x00") + command_packet("M")
                         + command_packet("D", b"Ri\x002\x00") + command_packet("R"))  # fmt: skip
        self.assertEqual(found, ["1", "2"])

    def test_kept_until_replaced(self) -> None:
        """
        A message's MAIL macros stay until the next macro packet for MAIL.
        """
        dialogue = Dialogue("OCH")
        dialogue.receive(command_packet("D", b"Mi\x001\x00") + command_packets("MREM"))
        self.assertEqual(dialogue.milter.smfi_getsymval("i"), "1")

    def test_macros_for_data_that_come_before_mail_are_gone_after_it(self) -> None:
        """
        Macros for DATA that come before MAIL are gone after it.
        """
        dialogue = Dialogue("OCH")
        dialogue.receive(command_packet("D", b"Ti\x00early\x00") + command_packet("M"))
        self.assertEqual(dialogue.milter.smfi_getsymval("i"), None)


class StreamTests(ConversationTestCase):
    """
    The calls of a stream do not depend on how it arrives.
    """

    STREAM = (
        command_packet("O")
        + b"\x00\x00\x00%DCj\x00mx.example.net\x00{daemon_name}\x00MTA\x00"
        + command_packets("CHMRTLNBEA")
        + command_packet("D", b"Mi\x00Q2\x00")
        + command_packets("MRULNB")
        + command_packet("E", b"last")
        + command_packets("AMMQ")
    )
    LETTERS = "OCHMRTLNBEMRULNBBEMAMAQ"

    def test_many_commands_in_one_read_are_handled_one_after_the_other(self) -> None:
        """
        Many commands in one read are handled one after the other, each with its own payload.
        """
        calls = calls_after("", [self.STREAM])
        self.assertEqual("".join(letter for letter, _ in calls), self.LETTERS)
        seen = dict(call for call in calls if call != ("B", (b"last",)))
        self.assertEqual({letter: seen[letter] for letter in ARGUMENTS}, ARGUMENTS)
        self.assertIn(("B", (b"last",)), calls)

    def test_byte_by_byte(self) -> None:
        """
        Commands that arrive byte by byte give the same calls.
        """
        self.assertEqual(calls_after("", byte_by_byte(self.STREAM)), calls_after("", [self.STREAM]))

    def test_wherever_the_stream_is_cut_in_two_it_gives_the_same_calls(self) -> None:
        """
        Wherever the stream is cut in two, it gives the same calls.
        """
        expected = calls_after("", [self.STREAM])
        for chunks in every_split(self.STREAM):
            self.assertEqual(calls_after("", chunks), expected)
