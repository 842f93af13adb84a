"""
Tests of the order of commands: which callbacks they lead to, state by state.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.conversation_helpers import ConversationTestCase, Waiting
from tests.sessions import WAYS, Dialogue, command_packet, command_packets
from yatxmilter import constants as c

COLUMNS = "O C H M R T L N B E U A Q K D"
#: State -> for each command, the calls it gives: its own, that of an abort, or "-" for none.
MATRIX = {
    "INIT": "O -  H  M - - - - - - U -  Q  K -",
    "OPTS": "- C  H  M - - - - - - U -  Q  K -",
    "CONN": "- -  H  M - - - - - - U -  Q  K -",
    "HELO": "- -  H  M - - - - - - U -  Q  K -",
    "MAIL": "A A AH AM R A A A A A U A AQ AK -",
    "RCPT": "A A AH AM R T L N B E U A AQ AK -",
    "DATA": "A A AH AM A A L N A A U A AQ AK -",
    "HDRS": "A A AH AM A A L N A A U A AQ AK -",
    "EOHS": "A A AH AM A A A A B E U A AQ AK -",
    "BODY": "A A AH AM A A A A B E U A AQ AK -",
    "ENDM": "- -  H  M - - - - - - U -  Q  K -",
    "ABRT": "- -  H  M - - - - - - U -  Q  K -",
    "Q_NC": "- C  H  M - - - - - - U -  Q  K -",
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

    def _called(self, before: str, letters: str, *, declined: int = 0) -> str:
        dialogue = Dialogue(before, declined=declined)
        dialogue.receive(command_packets(letters))
        return dialogue.called()

    def test_usual_dialogue_is_legal(self) -> None:
        """
        The usual dialogue is legal, and each of its commands leads to its state.
        """
        states = {state: Dialogue(way).state for state, way in WAYS.items()}
        self.assertEqual(states, {state: state for state in WAYS})

    def test_each_command_in_each_state_gives_libmilters_calls(self) -> None:
        """
        Each command in each state gives libmilter's calls; U and K are served in all states.
        """
        actual = {
            state: [self._called(way, letter) or "-" for letter in COLUMNS.split()]
            for state, way in WAYS.items()
        }
        self.assertEqual(actual, {state: row.split() for state, row in MATRIX.items()})

    def test_accepted_command_leads_to_its_state_and_dropped_one_to_helo(self) -> None:
        """
        An accepted command leads to its state, a dropped one to HELO; U and D change none.
        """
        for state, row in MATRIX.items():
            for letter, calls in zip(COLUMNS.split(), row.split(), strict=True):
                dialogue = Dialogue(WAYS[state])
                dialogue.receive(command_packet(letter))
                accepted = calls.endswith(letter)
                dropped = "HELO" if letter not in "UD" else state
                expected = LEADS_TO.get(letter, state) if accepted else dropped
                self.assertEqual(dialogue.state, expected, f"{letter} in {state}")

    def test_one_abort_for_several(self) -> None:
        """
        Of several illegal commands in a row only the first ends the message.
        """
        self.assertEqual(self._called("OCHM", "LLRNE"), "A")

    def test_abort_is_called_once(self) -> None:
        """
        A message is aborted once, however many ABORTs come, and none comes after it has ended.
        """
        self.assertEqual(self._called("OCHM", "AAA"), "A")
        self.assertEqual(self._called("OCHMRTLNBE", "AA"), "")

    def test_messages_follow_each_other_without_reset_and_with_aborts_that_postfix_sends(
        self,
    ) -> None:
        """
        Messages follow each other without a reset, and with the ABORTs that Postfix sends.
        """
        called = self._called("OC", "HMRRTLLNBBEMRTLNBEAMRAAHMRTNEAAQ")
        self.assertEqual(called, "HMRRTLLNBBEMRTLNBEMRAHMRTNEQ")

    def test_steps_left_out(self) -> None:
        """
        From RCPT on, DATA, headers, their end and the body may be left out.
        """
        for letters in ("MRLNBE", "MRTNBE", "MRNBE", "MRBE", "MRE", "MRTLNE"):
            self.assertEqual(self._called("OCH", letters), letters)

    def test_unknown_command_in_a_message(self) -> None:
        """
        After U the message goes on where it was: nothing of it is lost, with or without DATA.
        """
        self.assertEqual(self._called("OCHMR", "URUTULUNUBUE"), "URUTULUNUBUE")
        self.assertEqual(self._called("OCHMR", "ULNBE", declined=c.SMFIP_NODATA), "ULNBE")

    def test_unknown_command_before_negotiation(self) -> None:
        """
        U before negotiation does not stand in its way.
        """
        self.assertEqual(self._called("U", "OC"), "OC")

    def test_after_quit_nc_new_connection_begins_without_negotiation_wherever_it_came(self) -> None:
        """
        After QUIT_NC a new connection begins without negotiation, wherever it came.
        """
        for state, way in WAYS.items():
            called = self._called(way, "KCHMRE")
            aborts = "A" if state in ("MAIL", "RCPT", "DATA", "HDRS", "EOHS", "BODY") else ""
            self.assertEqual(called, aborts + "KCHMRE", state)

    def test_second_optneg_is_dropped_and_a_connect_behind_it_too(self) -> None:
        """
        A second OPTNEG is dropped, and a CONNECT behind it too.
        """
        self.assertEqual(self._called("O", "OC"), "")


class DroppedTests(ConversationTestCase):
    """
    What is out of order is told of once.
    """

    def test_what_was_dropped_first_is_logged_with_its_state(self) -> None:
        """
        What was dropped first is logged with the state it came in; further ones are not.
        """
        dialogue = Dialogue("OCHMRTLNBE")
        self.assertNotIn("out of order", self.log_text())
        dialogue.receive(command_packet("R"))
        self.assertIn("RCPT in state ENDM", self.log_text())
        dialogue.receive(command_packet("T"))
        self.assertNotIn("DATA in state", self.log_text())

    def test_dropped_behind_an_abort(self) -> None:
        """
        What ends a message and is out of order in itself is dropped after HELO.
        """
        Dialogue("OCHM").receive(command_packet("T"))
        self.assertIn("DATA in state HELO", self.log_text())

    def test_stray_abort_which_postfix_sends_after_each_message_is_dropped_without_note(
        self,
    ) -> None:
        """
        A stray ABORT, which Postfix sends after each message, is dropped without a note.
        """
        self.assertEqual(Dialogue("OCHMRTLNBEA").state, "HELO")
        self.assertNotIn("out of order", self.log_text())


class DeclinedTests(SynchronousTestCase):
    """
    Steps that are declined are passed over.
    """

    def test_end_of_message_only(self) -> None:
        """
        With all steps declined an end of message is accepted in every state.
        """
        for state in WAYS:
            dialogue = Dialogue(WAYS[state] or "O", declined=c.ALL_NO_STEPS)
            dialogue.receive(command_packet("E"))
            self.assertEqual(dialogue.called()[-1:], "E", state)

    def test_each_step_alone(self) -> None:
        """
        Where one step is declined the dialogue goes on without its command.
        """
        steps = {"C": c.SMFIP_NOCONNECT, "H": c.SMFIP_NOHELO, "M": c.SMFIP_NOMAIL,
                 "R": c.SMFIP_NORCPT, "T": c.SMFIP_NODATA, "L": c.SMFIP_NOHDRS,
                 "N": c.SMFIP_NOEOH, "B": c.SMFIP_NOBODY}  # fmt: skip
        for letter, step in steps.items():
            letters = "CHMRTLNBE".replace(letter, "")
            dialogue = Dialogue("O", declined=step)
            dialogue.receive(command_packets(letters))
            self.assertEqual(dialogue.called(), letters, letter)

    def test_declined_and_sent(self) -> None:
        """
        A declined step that is sent all the same is answered, and opens a message as any other.
        """
        dialogue = Dialogue("O", declined=c.ALL_NO_STEPS)
        answers = dialogue.receive(command_packets("CHMRTLNB"))
        self.assertEqual(answers, 8 * b"\0\0\0\1c")
        self.assertEqual(dialogue.called(), "")
        self.assertEqual(dialogue.told(), "AQ")

    def test_each_connection_its_own(self) -> None:
        """
        What one connection declines does not loosen the order of another.
        """
        loose = Dialogue("OC", declined=c.ALL_NO_STEPS)
        strict = Dialogue("OC")
        for dialogue in (loose, strict):
            dialogue.receive(command_packet("E"))
        self.assertEqual([loose.called(), strict.called()], ["E", ""])


class MessageTests(SynchronousTestCase):
    """
    A milter is told of the end of a message that is open, and of no other.
    """

    def test_message_is_open_from_its_first_command_on(self) -> None:
        """
        A message is open from its first command on, whichever of them that is.
        """
        told = {state: Dialogue(way).told() for state, way in WAYS.items()}
        opened = ("MAIL", "RCPT", "DATA", "HDRS", "EOHS", "BODY")
        self.assertEqual(told, {state: "AQ" if state in opened else "Q" for state in told})
        for letter in "MRTLNB":
            dialogue = Dialogue("O" + letter, declined=c.ALL_NO_STEPS)
            self.assertEqual(dialogue.told(), "AQ", letter)

    def test_open_at_end_of_message(self) -> None:
        """
        While the end of message is handled a message is open, even if that is all there was of it.
        """
        for way, declined in (("OCHMR", 0), ("O", c.ALL_NO_STEPS)):
            dialogue = Dialogue(way + "E", declined=declined, eom=Waiting())
            self.assertEqual(dialogue.told(), "AQ")

    def test_final_answer_ends_the_message(self) -> None:
        """
        A final answer ends the message: the rest of it is dropped, the next one is served.
        """
        for way, name in (
            ("OCHM", "envfrom"), ("OCHMR", "envrcpt"), ("OCHMRT", "data"), ("OCHMRTL", "header"),
            ("OCHMRTLN", "eoh"), ("OCHMRTLNB", "body"),
        ):  # fmt: skip
            answers = [c.SMFIS_ACCEPT]
            dialogue = Dialogue(
                way, **{name: lambda *_, answers=answers: answers.pop() if answers else None}
            )
            self.assertEqual(dialogue.state, "HELO", name)
            dialogue.receive(command_packets("RTLNBEAMR"))
            self.assertEqual(dialogue.called(), "MR", name)

    def test_finish_without_message(self) -> None:
        """
        A final answer to CONNECT or HELO ends no message.
        """
        for letters, name in (("OC", "connect"), ("OCH", "helo")):
            dialogue = Dialogue(letters, **{name: c.SMFIS_REJECT})
            self.assertEqual(dialogue.state, "HELO")
            self.assertEqual(dialogue.told(), "Q")

    def test_pending_command_after_abort(self) -> None:
        """
        The command that ended a message comes as soon as the abort has been handled.
        """
        aborting = Waiting()
        dialogue = Dialogue("OCHMR", abort=aborting)
        dialogue.receive(command_packets("MR"))
        self.assertEqual((dialogue.called(), dialogue.state), ("A", "HELO"))
        aborting.fire(None)
        self.assertEqual(dialogue.called(), "MR")

    def test_lost_before_the_pending_command(self) -> None:
        """
        When the MTA goes while the abort is handled, the command behind it is not.
        """
        dialogue = Dialogue("OCHMR", abort=Waiting())
        dialogue.receive(command_packets("MR"))
        self.assertEqual(dialogue.called(), "A")
        self.assertEqual(dialogue.told(), "Q")


class LastChunkTests(SynchronousTestCase):
    """
    An end of message may bring the last chunk of the body.
    """

    def test_bodyeob_with_data_is_body_call_and_then_end_of_message(self) -> None:
        """
        BODYEOB with data is a body call, and then an end of message.
        """
        dialogue = Dialogue("OCHMRN")
        self.assertEqual(dialogue.receive(command_packet("E", b"abc")), b"\0\0\0\1c")
        self.assertEqual(dialogue.calls(), [("B", (b"abc",)), ("E", ())])
        self.assertEqual(dialogue.state, "ENDM")
        dialogue.receive(command_packets("MR"))
        self.assertEqual(dialogue.called(), "MR")

    def test_chunk_is_waited_for(self) -> None:
        """
        The end of message comes when the chunk has been answered, and not before.
        """
        body = Waiting()
        dialogue = Dialogue("OCHMRN", body=body)
        self.assertEqual(dialogue.receive(command_packet("E", b"abc") + command_packet("M")), b"")
        self.assertEqual(dialogue.called(), "B")
        body.fire()
        self.assertEqual(dialogue.called(), "EM")

    def test_final_answer_to_the_chunk(self) -> None:
        """
        When the last chunk's answer is final there is no end of message behind it.
        """
        for answer in (c.SMFIS_REJECT, Waiting()):
            dialogue = Dialogue("OCHMRN", body=answer)
            answered = dialogue.receive(command_packet("E", b"abc"))
            if isinstance(answer, Waiting):
                answer.fire(c.SMFIS_REJECT)
                answered = dialogue.conversation.written()
            self.assertEqual(answered, b"\0\0\0\1r")
            dialogue.receive(command_packets("EMR"))
            self.assertEqual(dialogue.called(), "BMR")

    def test_not_before_the_chunk_is_handled(self) -> None:
        """
        Commands behind BODYEOB come after its own end of message.
        """
        dialogue = Dialogue("OCHMR")
        dialogue.receive(command_packet("E", b"abc") + command_packets("MR"))
        self.assertEqual(dialogue.called(), "BEMR")

    def test_only_a_chunk_of_its_own(self) -> None:
        """
        A plain body chunk is not the last one, also when one was before: it is answered.
        """
        answers = [c.SMFIS_REJECT]
        dialogue = Dialogue("OCHMRN", body=lambda *_: answers.pop() if answers else None)
        dialogue.receive(command_packet("E", b"abc"))
        dialogue.receive(command_packets("MR"))
        self.assertEqual(dialogue.receive(command_packet("B")), b"\0\0\0\1c")

    def test_bodyeob_with_data_that_is_illegal_ends_message_and_is_dropped_whole(self) -> None:
        """
        A BODYEOB with data that is illegal ends the message and is dropped whole.
        """
        dialogue = Dialogue("OCHM")
        dialogue.receive(command_packet("E", b"abc"))
        self.assertEqual(dialogue.calls(), [("A", ())])
