"""
Tests of `yatxmilter._engine.command_order`: which calls commands give, state by state.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.sessions import (
    PAYLOADS,
    STATES,
    WAYS,
    called,
    command_packet,
    command_packets,
    pull_calls,
    session_after,
)
from yatxmilter import constants as c
from yatxmilter._engine.command_order import Session
from yatxmilter._wire import commands

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


class OrderTests(SynchronousTestCase):
    """
    Commands are handled in libmilter's order.
    """

    def test_ways(self) -> None:
        """
        The usual dialogue is legal, and each of its commands leads to its state.
        """
        states = {state: STATES[session_after(way).state] for state, way in WAYS.items()}
        self.assertEqual(states, {state: state for state in WAYS})

    def test_matrix(self) -> None:
        """
        Each command in each state gives libmilter's calls; U and K are served in all states.
        """
        actual = {}
        for state, way in WAYS.items():
            cells = []
            for letter in COLUMNS.split():
                session = session_after(way)
                session.receive(command_packet(letter))
                cells.append(called(session) or "-")
            actual[state] = cells
        self.assertEqual(actual, {state: row.split() for state, row in MATRIX.items()})

    def test_states_afterwards(self) -> None:
        """
        An accepted command leads to its state, a dropped one to HELO; U and D change none.
        """
        for state, row in MATRIX.items():
            for letter, calls in zip(COLUMNS.split(), row.split(), strict=True):
                session = session_after(WAYS[state])
                session.receive(command_packet(letter))
                pull_calls(session)
                accepted = calls.endswith(letter)
                dropped = "HELO" if letter not in "UD" else state
                expected = LEADS_TO.get(letter, state) if accepted else dropped
                self.assertEqual(STATES[session.state], expected, f"{letter} in {state}")

    def test_one_abort_for_several(self) -> None:
        """
        Of several illegal commands in a row only the first ends the message.
        """
        session = session_after("OCHM")
        session.receive(command_packets("LLRNE"))
        self.assertEqual(called(session), "A")

    def test_abort_is_called_once(self) -> None:
        """
        A message is aborted once, however many ABORTs come, and none comes after it has ended.
        """
        session = session_after("OCHM")
        session.receive(command_packets("AAA"))
        self.assertEqual(called(session), "A")
        session = session_after("OCHMRTLNBE")
        session.receive(command_packets("AA"))
        self.assertEqual(called(session), "")

    def test_several_messages(self) -> None:
        """
        Messages follow each other without a reset, and with the ABORTs that Postfix sends.
        """
        session = session_after("OC")
        session.receive(command_packets("HMRRTLLNBBEMRTLNBEAMRAAHMRTNEAAQ"))
        self.assertEqual(called(session), "HMRRTLLNBBEMRTLNBEMRAHMRTNEQ")

    def test_steps_left_out(self) -> None:
        """
        From RCPT on, DATA, headers, their end and the body may be left out.
        """
        for letters in ("MRLNBE", "MRTNBE", "MRNBE", "MRBE", "MRE", "MRTLNE"):
            session = session_after("OCH")
            session.receive(command_packets(letters))
            self.assertEqual(called(session), letters)

    def test_unknown_command_in_a_message(self) -> None:
        """
        After U the message goes on where it was: nothing of it is lost, with or without DATA.
        """
        session = session_after("OCHMR")
        session.receive(command_packets("URUTULUNUBUE"))
        self.assertEqual(called(session), "URUTULUNUBUE")
        session = session_after("OCHMR", declined=c.SMFIP_NODATA)
        session.receive(command_packets("ULNBE"))
        self.assertEqual(called(session), "ULNBE")

    def test_unknown_command_before_negotiation(self) -> None:
        """
        U before negotiation does not stand in its way.
        """
        session = session_after("U")
        session.receive(command_packets("OC"))
        self.assertEqual(called(session), "OC")

    def test_quit_nc(self) -> None:
        """
        After QUIT_NC a new connection begins without negotiation, wherever it came.
        """
        for state, way in WAYS.items():
            session = session_after(way)
            session.receive(command_packets("KCHMRE"))
            self.assertEqual(called(session), "KCHMRE", state)

    def test_second_negotiation(self) -> None:
        """
        A second OPTNEG is dropped, and a CONNECT behind it too.
        """
        session = session_after("O")
        session.receive(command_packets("OC"))
        self.assertEqual(called(session), "")

    def test_dropped(self) -> None:
        """
        What was dropped last is remembered with the state it came in, for the log.
        """
        session = session_after("OCHMRTLNBE")
        self.assertEqual(session.dropped, None)
        session.receive(command_packet("R"))
        pull_calls(session)
        self.assertEqual(session.dropped, "RCPT in state ENDM")
        session.receive(command_packet("T"))
        pull_calls(session)
        self.assertEqual(session.dropped, "DATA in state HELO")

    def test_stray_abort(self) -> None:
        """
        A stray ABORT, which Postfix sends after each message, is dropped without a note.
        """
        session = session_after("OCHMRTLNBEA")
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
            session = session_after(WAYS[state], declined=c.ALL_NO_STEPS)
            session.receive(command_packet("E"))
            self.assertEqual(called(session)[-1:], "E", state)

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
            session.receive(command_packet("O"))
            pull_calls(session)
            session.decline(step)
            session.receive(command_packets(dialogue[1:]))
            self.assertEqual(called(session), dialogue[1:], letter)

    def test_declined_and_sent(self) -> None:
        """
        A declined step that is sent all the same is a call like any other.
        """
        session = session_after("O", declined=c.ALL_NO_STEPS)
        session.receive(command_packets("CHMRTLNBEU"))
        self.assertEqual(called(session), "CHMRTLNBEU")

    def test_each_connection_its_own(self) -> None:
        """
        What one connection declines does not loosen the order of another.
        """
        loose = session_after("OC", declined=c.ALL_NO_STEPS)
        strict = session_after("OC")
        for session in (loose, strict):
            session.receive(command_packet("E"))
        self.assertEqual([called(loose), called(strict)], ["E", ""])


class MessageTests(SynchronousTestCase):
    """
    A session knows whether a message is open.
    """

    def test_in_message(self) -> None:
        """
        A message is open from its first command on, whichever of them that is.
        """
        in_message = {
            state: session_after(way).in_message for state, way in WAYS.items() if state != "INIT"
        }
        opened = ("MAIL", "RCPT", "DATA", "HDRS", "EOHS", "BODY")
        self.assertEqual(in_message, {state: state in opened for state in in_message})
        for letter in "MRTLNB":
            session = session_after("O" + letter, declined=c.ALL_NO_STEPS)
            self.assertTrue(session.in_message, letter)

    def test_open_at_end_of_message(self) -> None:
        """
        While the end of message is handled a message is open, even if that is all there was of it.
        """
        for way, declined in (("OCHMR", 0), ("O", c.ALL_NO_STEPS)):
            session = session_after(way, declined=declined)
            session.receive(command_packet("E"))
            self.assertIs(session.next_call(), commands.EOM_ROW)
            self.assertTrue(session.in_message)

    def test_finish(self) -> None:
        """
        A final answer ends the message: the rest of it is dropped, the next one is served.
        """
        for state in ("MAIL", "RCPT", "DATA", "HDRS", "EOHS", "BODY"):
            session = session_after(WAYS[state])
            self.assertTrue(session.finish(), state)
            self.assertEqual((STATES[session.state], session.in_message), ("HELO", False))
            session.receive(command_packets("RTLNBEAMR"))
            self.assertEqual(called(session), "MR", state)

    def test_finish_without_message(self) -> None:
        """
        A final answer to CONNECT or HELO ends no message.
        """
        for letters in ("OC", "OCH"):
            session = session_after(letters)
            self.assertFalse(session.finish())
            self.assertEqual(STATES[session.state], "HELO")

    def test_pending_command_after_abort(self) -> None:
        """
        The command that ended a message comes as soon as the abort has been handled.
        """
        session = session_after("OCHMR")
        session.receive(command_packets("MR"))
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
        session = session_after(letters)
        session.receive(command_packet("E", b"abc"))
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
        session.receive(command_packets("MR"))
        self.assertEqual(called(session), "MR")

    def test_final_answer_to_the_chunk(self) -> None:
        """
        When the last chunk's answer is final there is no end of message behind it.
        """
        session = self._with_chunk()
        self.assertTrue(session.finish())
        self.assertEqual(session.next_call(), None)
        session.receive(command_packets("EMR"))
        self.assertEqual(called(session), "MR")

    def test_not_before_the_chunk_is_handled(self) -> None:
        """
        Commands behind BODYEOB come after its own end of message.
        """
        session = session_after("OCHMR")
        session.receive(command_packet("E", b"abc") + command_packets("MR"))
        self.assertEqual(called(session), "BEMR")

    def test_only_a_chunk_of_its_own(self) -> None:
        """
        A plain body chunk is not the last one, also when one was before.
        """
        session = self._with_chunk()
        session.finish()
        session.receive(command_packets("MRB"))
        pull_calls(session)
        self.assertFalse(session.last_chunk)

    def test_illegal(self) -> None:
        """
        A BODYEOB with data that is illegal ends the message and is dropped whole.
        """
        session = session_after("OCHM")
        session.receive(command_packet("E", b"abc"))
        self.assertEqual(pull_calls(session), [("A", b"")])
