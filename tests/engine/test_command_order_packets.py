"""
Broken packets, macro packets, and streams however they arrive.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.helpers import byte_by_byte, every_split
from tests.sessions import (
    PAYLOADS,
    STATES,
    WAYS,
    called,
    calls_after,
    command_packet,
    command_packets,
    pull_calls,
    session_after,
)
from yatxmilter._engine.command_order import Session
from yatxmilter._wire import commands
from yatxmilter._wire.packets import encode_packet
from yatxmilter.errors import ProtocolError


class BrokenPacketTests(SynchronousTestCase):
    """
    What libmilter closes the connection for raises ProtocolError.
    """

    def _assert_fatal(self, letters: str, data: bytes) -> None:
        session = session_after(letters)
        session.receive(data)
        self.assertRaises(ProtocolError, pull_calls, session)

    def test_unknown_letters(self) -> None:
        """
        A packet whose letter is no command is fatal in any state, with or without payload.
        """
        for letter in range(256):
            if chr(letter) not in "OCHMRTLNBEUAQKD":
                for payload in (b"", b"x\0"):
                    for way in ("", "OCHMR"):
                        self._assert_fatal(way, encode_packet(letter, payload))

    def test_empty_payload(self) -> None:
        """
        B C H L M O R U without payload are fatal where they are legal.
        """
        ways = {"O": "", "C": "O", "H": "OC", "M": "OCH", "R": "OCHM", "U": "O", "L": "OCHMR",
                "B": "OCHMR"}  # fmt: skip
        for letter, way in ways.items():
            self._assert_fatal(way, command_packet(letter, b""))

    def test_state_before_payload(self) -> None:
        """
        An illegal command is dropped before anyone sees that its payload is missing.
        """
        for letter in "OCLRB":
            session = session_after("OCH")
            session.receive(command_packet(letter, b"") + command_packet("M"))
            self.assertEqual(called(session), "M", letter)

    def test_message_ends_before_the_payload_is_missed(self) -> None:
        """
        An illegal empty HELO in a message aborts it, once, and is fatal then.
        """
        session = session_after("OCHM")
        session.receive(command_packet("H", b""))
        self.assertIs(session.next_call(), commands.ABORT_ROW)
        session.in_message = False
        self.assertRaises(ProtocolError, session.next_call)
        self.assertFalse(session.in_message)

    def test_empty_macro_packet(self) -> None:
        """
        A macro packet without even a stage is fatal in any state.
        """
        for way in WAYS.values():
            self._assert_fatal(way, command_packet("D", b""))

    def test_too_long(self) -> None:
        """
        A packet that is too long is fatal, what came before it is not lost.
        """
        session = session_after("OCHM")
        session.receive(command_packet("R") + b"\x00\x01\x00\x01B")
        self.assertIs(session.next_call(), commands.RCPT_ROW)
        self.assertRaises(ProtocolError, session.next_call)

    def test_odd_lengths(self) -> None:
        """
        A length of 0 and a negative one are a command without payload.
        """
        for length in (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x80\0\0\1"):
            self.assertEqual(calls_after("O", [length + b"Q"]), [("Q", b"")])

    def test_payload_where_none_belongs(self) -> None:
        """
        A payload of T N A Q K does not keep them from being served.
        """
        session = session_after("OCHMR")
        session.receive(b"".join(command_packet(letter, b"junk") for letter in "TNAKQ"))
        self.assertEqual(called(session), "TNAKQ")

    def test_error_names_the_command(self) -> None:
        """
        The error says which command it was.
        """
        for data, text in {
            command_packet("M", b""): "MAIL without payload",
            command_packet("Z"): "unknown command 'Z'",
            command_packet("D", b""): "MACRO without a stage",
        }.items():
            session = session_after("OCH")
            session.receive(data)
            self.assertEqual(str(self.assertRaises(ProtocolError, session.next_call)), text)


class MacroTests(SynchronousTestCase):
    """
    Macro packets give no calls, and commands end the macros of the stages after theirs.
    """

    STAGES = "CHMRTNE"

    def _filled(self, way: str) -> Session:
        session = session_after(way)
        for letter in self.STAGES:
            session.receive(command_packet("D", f"{letter}{{{letter}{letter}}}\0v\0".encode()))
        self.assertEqual(called(session), "")
        self.assertEqual(self._found(session), self.STAGES)
        return session

    def _found(self, session: Session) -> str:
        get = session.macros.get
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
            session = self._filled(way)
            session.receive(command_packet(letter))
            self.assertEqual(called(session), letter)
            actual[way, letter] = self._found(session)
        self.assertEqual(actual, rows)

    def test_dropped_commands_end_none(self) -> None:
        """
        A command that is dropped as illegal ends no macros.
        """
        for letter in "OCR":
            session = self._filled("OCH")
            session.receive(command_packet(letter))
            self.assertEqual(called(session), "")
            self.assertEqual(self._found(session), self.STAGES, letter)

    def test_visible_in_abort(self) -> None:
        """
        When a MAIL ends the message before it, the abort still sees that message's macros.
        """
        session = self._filled("OCHMR")
        session.receive(command_packet("M"))
        self.assertIs(session.next_call(), commands.ABORT_ROW)
        self.assertEqual(self._found(session), self.STAGES)
        session.in_message = False
        self.assertIs(session.next_call(), commands.MAIL_ROW)
        self.assertEqual(self._found(session), "CHM")

    def test_belong_to_the_command_they_precede(self) -> None:
        """
        Macros that arrive together with later commands are not seen before those are pulled.
        """
        session = session_after("OCH")
        session.receive(command_packet("D", b"Mi\x001\x00") + command_packet("M")
                        + command_packet("D", b"Ri\x002\x00") + command_packet("R"))  # fmt: skip
        self.assertIs(session.next_call(), commands.MAIL_ROW)
        self.assertEqual(session.macros.get("i"), "1")
        self.assertIs(session.next_call(), commands.RCPT_ROW)
        self.assertEqual(session.macros.get("i"), "2")

    def test_kept_until_replaced(self) -> None:
        """
        A message's MAIL macros stay until the next macro packet for MAIL.
        """
        session = session_after("OCH")
        session.receive(command_packet("D", b"Mi\x001\x00") + command_packets("MREM"))
        pull_calls(session)
        self.assertEqual(session.macros.get("i"), "1")

    def test_too_early(self) -> None:
        """
        Macros for DATA that come before MAIL are gone after it.
        """
        session = session_after("OCH")
        session.receive(command_packet("D", b"Ti\x00early\x00") + command_packet("M"))
        pull_calls(session)
        self.assertEqual(session.macros.get("i"), None)


class StreamTests(SynchronousTestCase):
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

    def test_whole(self) -> None:
        """
        Many commands in one read are given one after the other, with their payloads.
        """
        calls = calls_after("", [self.STREAM])
        self.assertEqual("".join(letter for letter, _ in calls), self.LETTERS)
        payloads = {letter: payload for letter, payload in calls if payload != b"last"}
        self.assertEqual(
            payloads, {letter: PAYLOADS.get(letter, b"") for letter in "OCHMRTLNBEUAQ"}
        )

    def test_byte_by_byte(self) -> None:
        """
        Commands that arrive byte by byte give the same calls.
        """
        self.assertEqual(calls_after("", byte_by_byte(self.STREAM)), calls_after("", [self.STREAM]))

    def test_every_split(self) -> None:
        """
        Wherever the stream is cut in two, it gives the same calls.
        """
        expected = calls_after("", [self.STREAM])
        for chunks in every_split(self.STREAM):
            self.assertEqual(calls_after("", chunks), expected)

    def test_pulled_not_pushed(self) -> None:
        """
        Commands stay where they are until they are asked for.
        """
        session = Session()
        session.receive(command_packets("OC"))
        self.assertEqual(STATES[session.state], "INIT")
        self.assertIs(session.next_call(), commands.OPTNEG_ROW)
        self.assertEqual(STATES[session.state], "OPTS")
        self.assertIs(session.next_call(), commands.CONNECT_ROW)
        self.assertIs(session.next_call(), None)
