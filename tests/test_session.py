"""
Tests of `yatxmilter.session`: which calls a stream of packets gives, state by state.

The driver here stands in for what is above a session: it pulls calls, and notes the end of a
message where a callback ends one. It answers nothing, so all is as if each callback had continued.
"""

from __future__ import annotations

from collections.abc import Iterable

from twisted.trial.unittest import SynchronousTestCase

from yatxmilter import commands
from yatxmilter import constants as c
from yatxmilter.errors import ProtocolError
from yatxmilter.session import Session
from yatxmilter.wire import encode_packet

from .helpers import byte_by_byte, every_split

#: A payload for each command, as an MTA would send it.
PAYLOADS = {
    "O": b"\x00\x00\x00\x06\x00\x00\x01\xff\x00\x1f\xff\xff",
    "C": b"mail.example.org\x004\x10\xe1192.0.2.1\x00",
    "H": b"mail.example.org\x00",
    "M": b"<s@example.org>\x00",
    "R": b"<r@example.net>\x00",
    "L": b"Subject\x00hi\x00",
    "B": b"Hello\r\n",
    "U": b"VRFY root\x00",
    "D": b"Ci\x001\x00",
}

STATES = [
    "INIT", "OPTS", "CONN", "HELO", "MAIL", "RCPT", "DATA", "HDRS",
    "EOHS", "BODY", "ENDM", "QUIT", "ABRT", "UNKN", "Q_NC",
]  # fmt: skip

#: State -> the commands that lead to it.
WAYS = {
    "INIT": "", "OPTS": "O", "CONN": "OC", "HELO": "OCH", "MAIL": "OCHM", "RCPT": "OCHMR",
    "DATA": "OCHMRT", "HDRS": "OCHMRTL", "EOHS": "OCHMRTLN", "BODY": "OCHMRTLNB",
    "ENDM": "OCHMRTLNBE", "ABRT": "OCHMA", "Q_NC": "OCHMRTLNBEK",
}  # fmt: skip

COLUMNS = "O C H M R T L N B E U A Q K D"
#: State -> for each command, the calls it gives: its own, or that of an abort; "-" for none.
MATRIX = {
    "INIT": "O -  H  M - - - - - - U - Q  K -",
    "OPTS": "- C  H  M - - - - - - U - Q  K -",
    "CONN": "- -  H  M - - - - - - U - Q  K -",
    "HELO": "- -  H  M - - - - - - U - Q  K -",
    "MAIL": "A A AH AM R A A A A A U A AQ K -",
    "RCPT": "A A AH AM R T L N B E U A AQ K -",
    "DATA": "A A AH AM A A L N A A U A AQ K -",
    "HDRS": "A A AH AM A A L N A A U A AQ K -",
    "EOHS": "A A AH AM A A A A B E U A AQ K -",
    "BODY": "A A AH AM A A A A B E U A AQ K -",
    "ENDM": "- -  H  M - - - - - - U - Q  K -",
    "ABRT": "- -  H  M - - - - - - U - Q  K -",
    "Q_NC": "- C  H  M - - - - - - U - Q  K -",
}
#: Command -> the state it leads to where it is accepted; others leave the state as it is.
LEADS_TO = {
    "O": "OPTS", "C": "CONN", "H": "HELO", "M": "MAIL", "R": "RCPT", "T": "DATA", "L": "HDRS",
    "N": "EOHS", "B": "BODY", "E": "ENDM", "A": "ABRT", "Q": "QUIT", "K": "Q_NC",
}  # fmt: skip


def _packet(letter: str, payload: bytes | None = None) -> bytes:
    return encode_packet(ord(letter), PAYLOADS.get(letter, b"") if payload is None else payload)


def _packets(letters: str) -> bytes:
    return b"".join(map(_packet, letters))


def _pull(session: Session) -> list[tuple[str, bytes]]:
    """
    Pull all calls that there are; answer with their letters and payloads.
    """
    calls = []
    while (row := session.next_call()) is not None:
        calls.append((chr(row.letter), session.payload))
        if row.callback in ("xxfi_abort", "xxfi_eom", "xxfi_close"):
            session.in_message = False
    return calls


def _letters(session: Session) -> str:
    return "".join(letter for letter, _ in _pull(session))


def _session(letters: str = "", *, declined: int = 0) -> Session:
    """
    Give a session that has had these commands.
    """
    session = Session()
    session.decline(declined)
    session.receive(_packets(letters))
    _pull(session)
    return session


def _calls(letters: str, chunks: Iterable[bytes], *, declined: int = 0) -> list[tuple[str, bytes]]:
    """
    Give the calls of some bytes that arrive after these commands.
    """
    session = _session(letters, declined=declined)
    calls = []
    for chunk in chunks:
        session.receive(chunk)
        calls += _pull(session)
    return calls


class OrderTests(SynchronousTestCase):
    """
    Commands are handled in libmilter's order.
    """

    def test_ways(self) -> None:
        """
        The usual dialogue is legal, and each of its commands leads to its state.
        """
        states = {state: STATES[_session(way).state] for state, way in WAYS.items()}
        self.assertEqual(states, {state: state for state in WAYS})

    def test_matrix(self) -> None:
        """
        Each command in each state gives libmilter's calls; U and K are served in all states.
        """
        actual = {}
        for state, way in WAYS.items():
            cells = []
            for letter in COLUMNS.split():
                session = _session(way)
                session.receive(_packet(letter))
                cells.append(_letters(session) or "-")
            actual[state] = cells
        self.assertEqual(actual, {state: row.split() for state, row in MATRIX.items()})

    def test_states_afterwards(self) -> None:
        """
        An accepted command leads to its state, a dropped one to HELO; U and D change none.
        """
        for state, row in MATRIX.items():
            for letter, calls in zip(COLUMNS.split(), row.split(), strict=True):
                session = _session(WAYS[state])
                session.receive(_packet(letter))
                _pull(session)
                accepted = calls.endswith(letter)
                dropped = "HELO" if letter not in "UD" else state
                expected = LEADS_TO.get(letter, state) if accepted else dropped
                self.assertEqual(STATES[session.state], expected, f"{letter} in {state}")

    def test_one_abort_for_several(self) -> None:
        """
        Of several illegal commands in a row only the first ends the message.
        """
        session = _session("OCHM")
        session.receive(_packets("LLRNE"))
        self.assertEqual(_letters(session), "A")

    def test_abort_is_called_once(self) -> None:
        """
        A message is aborted once, however many ABORTs come, and none comes after it has ended.
        """
        session = _session("OCHM")
        session.receive(_packets("AAA"))
        self.assertEqual(_letters(session), "A")
        session = _session("OCHMRTLNBE")
        session.receive(_packets("AA"))
        self.assertEqual(_letters(session), "")

    def test_several_messages(self) -> None:
        """
        Messages follow each other without a reset, and with the ABORTs that Postfix sends.
        """
        session = _session("OC")
        session.receive(_packets("HMRRTLLNBBEMRTLNBEAMRAAHMRTNEAAQ"))
        self.assertEqual(_letters(session), "HMRRTLLNBBEMRTLNBEMRAHMRTNEQ")

    def test_steps_left_out(self) -> None:
        """
        From RCPT on, DATA, headers, their end and the body may be left out.
        """
        for letters in ("MRLNBE", "MRTNBE", "MRNBE", "MRBE", "MRE", "MRTLNE"):
            session = _session("OCH")
            session.receive(_packets(letters))
            self.assertEqual(_letters(session), letters)

    def test_unknown_command_in_a_message(self) -> None:
        """
        After U the message goes on where it was: nothing of it is lost, with or without DATA.
        """
        session = _session("OCHMR")
        session.receive(_packets("URUTULUNUBUE"))
        self.assertEqual(_letters(session), "URUTULUNUBUE")
        session = _session("OCHMR", declined=c.SMFIP_NODATA)
        session.receive(_packets("ULNBE"))
        self.assertEqual(_letters(session), "ULNBE")

    def test_unknown_command_before_negotiation(self) -> None:
        """
        U before negotiation does not stand in its way.
        """
        session = _session("U")
        session.receive(_packets("OC"))
        self.assertEqual(_letters(session), "OC")

    def test_quit_nc(self) -> None:
        """
        After QUIT_NC a new connection begins without negotiation, wherever it came.
        """
        for state, way in WAYS.items():
            session = _session(way)
            session.receive(_packets("KCHMRE"))
            self.assertEqual(_letters(session), "KCHMRE", state)

    def test_second_negotiation(self) -> None:
        """
        A second OPTNEG is dropped, and a CONNECT behind it too.
        """
        session = _session("O")
        session.receive(_packets("OC"))
        self.assertEqual(_letters(session), "")

    def test_dropped(self) -> None:
        """
        What was dropped last is remembered with the state it came in, for the log.
        """
        session = _session("OCHMRTLNBE")
        self.assertEqual(session.dropped, None)
        session.receive(_packet("R"))
        _pull(session)
        self.assertEqual(session.dropped, "RCPT in state ENDM")
        session.receive(_packet("T"))
        _pull(session)
        self.assertEqual(session.dropped, "DATA in state HELO")

    def test_stray_abort(self) -> None:
        """
        A stray ABORT, which Postfix sends after each message, is dropped without a note.
        """
        session = _session("OCHMRTLNBEA")
        self.assertEqual((session.dropped, STATES[session.state]), (None, "HELO"))


class DeclinedTests(SynchronousTestCase):
    """
    Steps that are declined are passed over.
    """

    def test_end_of_message_only(self) -> None:
        """
        With all steps declined an end of message is accepted in every state.
        """
        for state in WAYS:
            session = _session(WAYS[state], declined=c.ALL_NO_STEPS)
            session.receive(_packet("E"))
            self.assertEqual(_letters(session)[-1:], "E", state)

    def test_each_step_alone(self) -> None:
        """
        Where one step is declined the dialogue goes on without its command.
        """
        steps = {"C": c.SMFIP_NOCONNECT, "H": c.SMFIP_NOHELO, "M": c.SMFIP_NOMAIL,
                 "R": c.SMFIP_NORCPT, "T": c.SMFIP_NODATA, "L": c.SMFIP_NOHDRS,
                 "N": c.SMFIP_NOEOH, "B": c.SMFIP_NOBODY}  # fmt: skip
        for letter, step in steps.items():
            dialogue = "OCHMRTLNBE".replace(letter, "")
            session = Session()
            session.receive(_packet("O"))
            _pull(session)
            session.decline(step)
            session.receive(_packets(dialogue[1:]))
            self.assertEqual(_letters(session), dialogue[1:], letter)

    def test_declined_and_sent(self) -> None:
        """
        A declined step that is sent all the same is a call like any other.
        """
        session = _session("O", declined=c.ALL_NO_STEPS)
        session.receive(_packets("CHMRTLNBEU"))
        self.assertEqual(_letters(session), "CHMRTLNBEU")

    def test_each_connection_its_own(self) -> None:
        """
        What one connection declines does not loosen the order of another.
        """
        loose = _session("OC", declined=c.ALL_NO_STEPS)
        strict = _session("OC")
        for session in (loose, strict):
            session.receive(_packet("E"))
        self.assertEqual([_letters(loose), _letters(strict)], ["E", ""])


class MessageTests(SynchronousTestCase):
    """
    A session knows whether a message is open.
    """

    def test_in_message(self) -> None:
        """
        A message is open from its first command on, whichever of them that is.
        """
        in_message = {
            state: _session(way).in_message for state, way in WAYS.items() if state != "INIT"
        }
        opened = ("MAIL", "RCPT", "DATA", "HDRS", "EOHS", "BODY")
        self.assertEqual(in_message, {state: state in opened for state in in_message})
        for letter in "MRTLNB":
            session = _session("O" + letter, declined=c.ALL_NO_STEPS)
            self.assertTrue(session.in_message, letter)

    def test_open_at_end_of_message(self) -> None:
        """
        While the end of message is handled the message is still open.
        """
        session = _session("OCHMR")
        session.receive(_packet("E"))
        self.assertIs(session.next_call(), commands.EOM_ROW)
        self.assertTrue(session.in_message)

    def test_finish(self) -> None:
        """
        A final answer ends the message: the rest of it is dropped, the next one is served.
        """
        for state in ("MAIL", "RCPT", "DATA", "HDRS", "EOHS", "BODY"):
            session = _session(WAYS[state])
            self.assertTrue(session.finish(), state)
            self.assertEqual((STATES[session.state], session.in_message), ("HELO", False))
            session.receive(_packets("RTLNBEAMR"))
            self.assertEqual(_letters(session), "MR", state)

    def test_finish_without_message(self) -> None:
        """
        A final answer to CONNECT or HELO ends no message.
        """
        for letters in ("OC", "OCH"):
            session = _session(letters)
            self.assertFalse(session.finish())
            self.assertEqual(STATES[session.state], "HELO")

    def test_pending_command_after_abort(self) -> None:
        """
        The command that ended a message comes as soon as the abort has been handled.
        """
        session = _session("OCHMR")
        session.receive(_packets("MR"))
        self.assertIs(session.next_call(), commands.ABORT_ROW)
        self.assertEqual((session.payload, STATES[session.state]), (b"", "HELO"))
        session.in_message = False
        self.assertIs(session.next_call(), commands.MAIL_ROW)
        self.assertEqual(session.payload, PAYLOADS["M"])
        self.assertTrue(session.in_message)
        self.assertIs(session.next_call(), commands.RCPT_ROW)


class LastChunkTests(SynchronousTestCase):
    """
    An end of message may bring the last chunk of the body.
    """

    def _with_chunk(self, letters: str = "OCHMRN") -> Session:
        session = _session(letters)
        session.receive(_packet("E", b"abc"))
        self.assertIs(session.next_call(), commands.BODY_ROW)
        self.assertEqual((session.payload, session.last_chunk), (b"abc", True))
        return session

    def test_two_calls(self) -> None:
        """
        BODYEOB with data is a body call, and then an end of message.
        """
        session = self._with_chunk()
        self.assertTrue(session.in_message)
        self.assertIs(session.next_call(), commands.EOM_ROW)
        self.assertEqual((session.payload, session.last_chunk), (b"", False))
        self.assertEqual(STATES[session.state], "ENDM")
        session.in_message = False
        session.receive(_packets("MR"))
        self.assertEqual(_letters(session), "MR")

    def test_final_answer_to_the_chunk(self) -> None:
        """
        When the last chunk's answer is final there is no end of message behind it.
        """
        session = self._with_chunk()
        self.assertTrue(session.finish())
        self.assertEqual(session.next_call(), None)
        session.receive(_packets("EMR"))
        self.assertEqual(_letters(session), "MR")

    def test_not_before_the_chunk_is_handled(self) -> None:
        """
        Commands behind BODYEOB come after its own end of message.
        """
        session = _session("OCHMR")
        session.receive(_packet("E", b"abc") + _packets("MR"))
        self.assertEqual(_letters(session), "BEMR")

    def test_only_a_chunk_of_its_own(self) -> None:
        """
        A plain body chunk is not the last one, also when one was before.
        """
        session = self._with_chunk()
        session.finish()
        session.receive(_packets("MRB"))
        _pull(session)
        self.assertFalse(session.last_chunk)

    def test_illegal(self) -> None:
        """
        A BODYEOB with data that is illegal ends the message and is dropped whole.
        """
        session = _session("OCHM")
        session.receive(_packet("E", b"abc"))
        self.assertEqual(_pull(session), [("A", b"")])


class BrokenPacketTests(SynchronousTestCase):
    """
    What libmilter closes the connection for raises ProtocolError.
    """

    def _assert_fatal(self, letters: str, data: bytes) -> None:
        session = _session(letters)
        session.receive(data)
        self.assertRaises(ProtocolError, _pull, session)

    def test_unknown_letters(self) -> None:
        """
        A packet whose letter is no command is fatal in any state, with or without payload.
        """
        for letter in range(256):
            if chr(letter) not in COLUMNS.split():
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
            self._assert_fatal(way, _packet(letter, b""))

    def test_state_before_payload(self) -> None:
        """
        An illegal command is dropped before anyone sees that its payload is missing.
        """
        for letter in "OCLRB":
            session = _session("OCH")
            session.receive(_packet(letter, b"") + _packet("M"))
            self.assertEqual(_letters(session), "M", letter)

    def test_message_ends_before_the_payload_is_missed(self) -> None:
        """
        An illegal empty HELO in a message aborts it, once, and is fatal then.
        """
        session = _session("OCHM")
        session.receive(_packet("H", b""))
        self.assertIs(session.next_call(), commands.ABORT_ROW)
        session.in_message = False
        self.assertRaises(ProtocolError, session.next_call)
        self.assertFalse(session.in_message)

    def test_empty_macro_packet(self) -> None:
        """
        A macro packet without even a stage is fatal in any state.
        """
        for way in WAYS.values():
            self._assert_fatal(way, _packet("D", b""))

    def test_too_long(self) -> None:
        """
        A packet that is too long is fatal, what came before it is not lost.
        """
        session = _session("OCHM")
        session.receive(_packet("R") + b"\x00\x01\x00\x01B")
        self.assertIs(session.next_call(), commands.RCPT_ROW)
        self.assertRaises(ProtocolError, session.next_call)

    def test_odd_lengths(self) -> None:
        """
        A length of 0 and a negative one are a command without payload.
        """
        for length in (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x80\0\0\1"):
            self.assertEqual(_calls("O", [length + b"Q"]), [("Q", b"")])

    def test_payload_where_none_belongs(self) -> None:
        """
        A payload of T N A Q K does not keep them from being served.
        """
        session = _session("OCHMR")
        session.receive(b"".join(_packet(letter, b"junk") for letter in "TNAKQ"))
        self.assertEqual(_letters(session), "TNAKQ")

    def test_error_names_the_command(self) -> None:
        """
        The error says which command it was.
        """
        for data, text in {
            _packet("M", b""): "MAIL without payload",
            _packet("Z"): "unknown command 'Z'",
            _packet("D", b""): "MACRO without a stage",
        }.items():
            session = _session("OCH")
            session.receive(data)
            self.assertEqual(str(self.assertRaises(ProtocolError, session.next_call)), text)


class MacroTests(SynchronousTestCase):
    """
    Macro packets give no calls, and commands end the macros of the stages after theirs.
    """

    STAGES = "CHMRTNE"

    def _filled(self, way: str) -> Session:
        session = _session(way)
        for letter in self.STAGES:
            session.receive(_packet("D", f"{letter}{{{letter}{letter}}}\0v\0".encode()))
        self.assertEqual(_letters(session), "")
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
            session.receive(_packet(letter))
            self.assertEqual(_letters(session), letter)
            actual[way, letter] = self._found(session)
        self.assertEqual(actual, rows)

    def test_dropped_commands_end_none(self) -> None:
        """
        A command that is dropped as illegal ends no macros.
        """
        for letter in "OCR":
            session = self._filled("OCH")
            session.receive(_packet(letter))
            self.assertEqual(_letters(session), "")
            self.assertEqual(self._found(session), self.STAGES, letter)

    def test_visible_in_abort(self) -> None:
        """
        When a MAIL ends the message before it, the abort still sees that message's macros.
        """
        session = self._filled("OCHMR")
        session.receive(_packet("M"))
        self.assertIs(session.next_call(), commands.ABORT_ROW)
        self.assertEqual(self._found(session), self.STAGES)
        session.in_message = False
        self.assertIs(session.next_call(), commands.MAIL_ROW)
        self.assertEqual(self._found(session), "CHM")

    def test_belong_to_the_command_they_precede(self) -> None:
        """
        Macros that arrive together with later commands are not seen before those are pulled.
        """
        session = _session("OCH")
        session.receive(_packet("D", b"Mi\x001\x00") + _packet("M")
                        + _packet("D", b"Ri\x002\x00") + _packet("R"))  # fmt: skip
        self.assertIs(session.next_call(), commands.MAIL_ROW)
        self.assertEqual(session.macros.get("i"), "1")
        self.assertIs(session.next_call(), commands.RCPT_ROW)
        self.assertEqual(session.macros.get("i"), "2")

    def test_kept_until_replaced(self) -> None:
        """
        A message's MAIL macros stay until the next macro packet for MAIL.
        """
        session = _session("OCH")
        session.receive(_packet("D", b"Mi\x001\x00") + _packets("MREM"))
        _pull(session)
        self.assertEqual(session.macros.get("i"), "1")

    def test_too_early(self) -> None:
        """
        Macros for DATA that come before MAIL are gone after it.
        """
        session = _session("OCH")
        session.receive(_packet("D", b"Ti\x00early\x00") + _packet("M"))
        _pull(session)
        self.assertEqual(session.macros.get("i"), None)


class StreamTests(SynchronousTestCase):
    """
    The calls of a stream do not depend on how it arrives.
    """

    STREAM = (
        _packet("O")
        + b"\x00\x00\x00%DCj\x00mx.example.net\x00{daemon_name}\x00MTA\x00"
        + _packets("CHMRTLNBEA")
        + _packet("D", b"Mi\x00Q2\x00")
        + _packets("MRULNB")
        + _packet("E", b"last")
        + _packets("AMMQ")
    )
    LETTERS = "OCHMRTLNBEMRULNBBEMAMAQ"

    def test_whole(self) -> None:
        """
        Many commands in one read are given one after the other, with their payloads.
        """
        calls = _calls("", [self.STREAM])
        self.assertEqual("".join(letter for letter, _ in calls), self.LETTERS)
        payloads = {letter: payload for letter, payload in calls if payload != b"last"}
        self.assertEqual(
            payloads, {letter: PAYLOADS.get(letter, b"") for letter in "OCHMRTLNBEUAQ"}
        )

    def test_byte_by_byte(self) -> None:
        """
        Commands that arrive byte by byte give the same calls.
        """
        self.assertEqual(_calls("", byte_by_byte(self.STREAM)), _calls("", [self.STREAM]))

    def test_every_split(self) -> None:
        """
        Wherever the stream is cut in two, it gives the same calls.
        """
        expected = _calls("", [self.STREAM])
        for chunks in every_split(self.STREAM):
            self.assertEqual(_calls("", chunks), expected)

    def test_pulled_not_pushed(self) -> None:
        """
        Commands stay where they are until they are asked for.
        """
        session = Session()
        session.receive(_packets("OC"))
        self.assertEqual(STATES[session.state], "INIT")
        self.assertIs(session.next_call(), commands.OPTNEG_ROW)
        self.assertEqual(STATES[session.state], "OPTS")
        self.assertIs(session.next_call(), commands.CONNECT_ROW)
        self.assertIs(session.next_call(), None)
