"""
Tests of milters that run elsewhere: what happens when they fail, and when others decide before they
have answered.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred

from tests.conversation_helpers import (
    ABORT,
    BODY,
    CONNECT,
    DATA,
    DECLINED,
    EOM,
    HEADER,
    HELO,
    MAIL,
    MESSAGE,
    QUIT,
    RCPT,
    ConversationTestCase,
    Waiting,
    full,
    macros,
    names,
    offer,
    packet,
)
from tests.remotes import (
    COMMANDS,
    CONTINUE,
    RemoteConversation,
    breaking,
    scripted,
    serving,
    started,
)
from yatxmilter import MilterFactory
from yatxmilter import constants as c
from yatxmilter._wire.payloads import Offer, encode_offer


class TooManyAnswersTests(ConversationTestCase):
    """
    The remote milter answers more often than it is asked.
    """

    def test_refusal_behind_it_is_not_lost_in_chain(self) -> None:
        """
        In a chain the next command waits already: an answer too many is not taken for the answer to
        it, which would let a message pass before it is refused.
        """
        remote = breaking(L=[2 * CONTINUE], E=[packet("r")])
        conversation = started(remote, before=(full(),), merge="chain")
        self.assertEqual(conversation.letters(*COMMANDS), "cccccct")
        self.assertIn("the milter sent 'c' unasked", self.log_text())


class FellowTests(ConversationTestCase):
    """
    A fellow decides while the remote milter is still asked.
    """

    def test_late_answers_are_heard(self) -> None:
        """
        An answer that nobody waits for any more is heard before the next message begins.
        """
        waiting = Waiting()
        far = full(envfrom=waiting)
        near = full(envfrom=lambda self, argv: verdicts.pop(0))
        verdicts = [c.SMFIS_REJECT, c.SMFIS_CONTINUE]
        conversation = started(serving(far), after=(near,))
        self.assertEqual(conversation.letters(CONNECT, HELO, MAIL), "ccr")
        self.assertEqual(conversation.letters(MAIL), "")
        self.assertEqual(names(far.calls), ["connect", "helo", "envfrom"])
        waiting.fire()
        conversation.carry()
        self.assertEqual(names(far.calls)[2:], ["envfrom", "abort", "envfrom"])
        waiting.fire()
        self.assertEqual(conversation.carry(), CONTINUE)
        self.assertEqual(self.log_text(), "")

    def test_late_end_of_a_message(self) -> None:
        """
        When a fellow has refused a recipient before the remote milter accepted the message, that
        one is asked no more in it.
        """
        for code, letter in ((c.SMFIS_ACCEPT, "a"), (c.SMFIS_DISCARD, "d")):
            waiting = Waiting()
            verdicts = [c.SMFIS_REJECT, c.SMFIS_CONTINUE]
            near = full(envrcpt=lambda self, argv, verdicts=verdicts: verdicts.pop(0))
            far = full(envrcpt=waiting)
            conversation = started(serving(far), after=(near,))
            self.assertEqual(conversation.letters(MAIL, RCPT), "cr")
            self.assertEqual(conversation.letters(RCPT), "")
            waiting.fire(code)
            self.assertEqual(conversation.carry(), packet(letter))
            self.assertEqual(names(far.calls)[:2], ["envfrom", "envrcpt"])
            self.assertEqual(names(far.calls).count("envrcpt"), 1)

    def test_failure_that_nobody_waits_for(self) -> None:
        """
        A remote milter that goes away when nobody waits for it is found out at the next command.
        """
        waiting = Waiting()
        far = full(envfrom=waiting)
        near = full(envfrom=c.SMFIS_REJECT)
        conversation = started(serving(far), after=(near,), on_error=c.SMFIS_DISCARD)
        self.assertEqual(conversation.letters(MAIL), "r")
        conversation.remote.crash()
        conversation.carry()
        self.assertEqual(self.log_text(), "")
        self.assertEqual(conversation.letters(MAIL), "d")
        self.assertIn("Milter afar failed in xxfi_envfrom", self.log_text())

    def test_failure_while_another_command_waits(self) -> None:
        """
        The command that waits behind an answer that never comes has failed with it.
        """
        waiting = Waiting()
        near = full(envfrom=lambda self, argv: verdicts.pop(0))
        verdicts = [c.SMFIS_REJECT, c.SMFIS_CONTINUE]
        conversation = started(serving(full(envfrom=waiting)), after=(near,))
        self.assertEqual(conversation.letters(MAIL, MAIL), "r")
        conversation.remote.crash()
        self.assertEqual(conversation.carry(), packet("t"))

    def test_gone_in_mid_message(self) -> None:
        """
        An ABORT to a remote milter that is gone does no harm.
        """
        conversation = started(serving(full()))
        conversation.send(MAIL)
        conversation.remote.crash()
        conversation.carry()
        self.assertEqual(conversation.letters(ABORT, MAIL), "t")

    def test_end_of_message_of_a_fellow(self) -> None:
        """
        What is answered too late at the end of a message is dropped, and PROGRESS with it.
        """
        answer: Deferred[int] = Deferred()
        near = full(eom=lambda self: answer)
        remote = breaking(E=[b"", CONTINUE])
        conversation = started(remote, after=(near,))
        conversation.send(*COMMANDS)
        answer.callback(c.SMFIS_REJECT)
        self.assertEqual(conversation.carry(), packet("r"))
        remote.servers[0].transport.write(packet("p") + packet("h", b"X\0y\0") + CONTINUE)
        self.assertEqual(conversation.carry(), b"")
        self.assertEqual(conversation.letters(MAIL), "c")


class FailureTests(ConversationTestCase):
    """
    ``on_error`` stands for a remote milter that has failed.
    """

    def test_who_cannot_be_reached_is_answered_for_at_each_message_logged_once(self) -> None:
        """
        Who cannot be reached is answered for at each message, logged once, and tried again at the
        MTA's next connection.
        """
        far = full()
        remote = serving(far)
        remote.refusing = True
        conversation = RemoteConversation(remote)
        self.assertEqual(conversation.agree(), (6, 0, DECLINED & ~c.SMFIP_NOMAIL))
        self.assertEqual(conversation.letters(MAIL, MAIL, QUIT), "tt")
        self.assertEqual(
            self.log_text(),
            "Milter afar failed in xxfi_negotiate (queue id unknown, MTA [192.0.2.25]:4242):"
            " Connection was refused by other side.; answering SMFIS_TEMPFAIL for it",
        )
        remote.refusing = False
        conversation.connect()
        conversation.agree()
        self.assertEqual(conversation.letters(CONNECT, HELO, *COMMANDS), 9 * "c")

    def test_each_code_may_stand_for_one_that_cannot_be_reached(self) -> None:
        """
        Each code may stand for one that cannot be reached; with CONTINUE and ACCEPT the MTA is
        asked for nothing.
        """
        for code, letter in (
            (c.SMFIS_REJECT, "r"),
            (c.SMFIS_TEMPFAIL, "t"),
            (c.SMFIS_DISCARD, "d"),
            (c.SMFIS_CONTINUE, ""),
            (c.SMFIS_ACCEPT, ""),
        ):
            remote = breaking()
            remote.refusing = True
            conversation = RemoteConversation(remote, on_error=code)
            steps = conversation.agree()[2]
            if letter:
                self.assertEqual(conversation.letters(MAIL), letter)
            else:
                self.assertEqual(steps, DECLINED)

    def test_message_given_up(self) -> None:
        """
        A message may be given up, and the next one begun, without the remote milter.
        """
        conversation = started(breaking(R=[None]), on_error=c.SMFIS_CONTINUE)
        self.assertEqual(conversation.letters(MAIL, RCPT, ABORT, *COMMANDS), "cc" + 7 * "c")

    def test_others_go_on(self) -> None:
        """
        With CONTINUE the others see the message to its end.
        """
        near = full()
        remote = breaking(R=[None])
        conversation = started(remote, after=(near,), on_error=c.SMFIS_CONTINUE)
        self.assertEqual(conversation.letters(*COMMANDS), 7 * "c")
        self.assertEqual(names(near.calls)[-1], "eom")
        self.assertEqual(self.log_text().count("failed"), 1)

    def test_breaks_the_protocol(self) -> None:
        """
        Nonsense from afar ends the connection to it; the log says what it was, where, and in which
        message.
        """
        remote = breaking(R=[packet("h", b"X\0y\0")])
        conversation = started(remote)
        queue = macros("M", b"i", b"4Xyz")
        self.assertEqual(conversation.letters(queue + MAIL, RCPT, DATA), "ctt")
        self.assertEqual(
            self.log_text(),
            "Milter afar failed in xxfi_envrcpt (queue id 4Xyz, MTA [192.0.2.25]:4242): the milter"
            " sent ADDHEADER in answer to RCPT; answering SMFIS_TEMPFAIL for it",
        )
        self.assertEqual(remote.open, 0)

    def test_refuses_to_negotiate(self) -> None:
        """
        One that closes the connection, or asks for what was not offered, has failed.
        """
        for answer in (None, encode_offer(Offer(6, 0x1FF, 0))):
            conversation = RemoteConversation(scripted({"O": [answer]}))
            conversation.agree(actions=0x1)
            self.assertEqual(conversation.letters(MAIL), "t")

    def test_impossible_symbol_list(self) -> None:
        """
        A list of macros for no stage is a failure too.
        """
        answer = encode_offer(Offer(6, 0, 0), {9: b"j"})
        conversation = RemoteConversation(scripted({"O": [answer], "Q": [None]}))
        self.assertEqual(conversation.agree()[1:], (0, DECLINED & ~c.SMFIP_NOMAIL))
        self.assertEqual(conversation.remote.open, 0)

    def test_no_connection_in_time(self) -> None:
        """
        A connection that does not come in time has failed.
        """
        remote = breaking()
        remote.hanging = True
        conversation = RemoteConversation(remote, connect_timeout=4)
        conversation.send(offer())
        conversation.reactor.advance(4)
        self.assertEqual(conversation.letters(MAIL), "Ot")
        self.assertIn("no connection within 4 s", self.log_text())
        self.assertEqual(remote.cancelled, 1)

    def test_answer_that_does_not_come_in_time_has_failed(self) -> None:
        """
        An answer that does not come in time has failed; PROGRESS gives it time again.
        """
        remote = breaking(E=[packet("p")])
        conversation = started(remote, timeout=10)
        conversation.send(*COMMANDS)
        conversation.reactor.advance(9)
        remote.servers[0].transport.write(packet("p"))
        self.assertEqual(conversation.carry(), packet("p"))
        conversation.reactor.advance(9)
        self.assertEqual(conversation.carry(), b"")
        conversation.reactor.advance(1)
        self.assertEqual(conversation.carry(), packet("t"))
        self.assertIn("the milter was silent for 10 s, awaited: BODYEOB", self.log_text())

    def test_does_not_read(self) -> None:
        """
        Where no answer is promised a remote milter that does not read is waited for, as long as
        for an answer.
        """
        remote = breaking(O=[encode_offer(Offer(6, 0, c.SMFIP_NR_BODY))], B=[b""])
        conversation = started(remote, timeout=10)
        conversation.send(*COMMANDS[:-1])
        client = conversation.protocol.milters[0]._client
        client.pauseProducing()
        heard = remote.servers[0].letters
        self.assertEqual(conversation.send(BODY, BODY), b"")
        self.assertEqual(remote.servers[0].letters, heard)
        conversation.reactor.advance(9)
        client.resumeProducing()
        conversation.carry()
        self.assertEqual(remote.servers[0].letters, heard + "BB")
        client.pauseProducing()
        self.assertEqual(conversation.send(BODY, EOM), b"")
        conversation.reactor.advance(10)
        self.assertEqual(conversation.carry(), packet("t"))
        self.assertIn("the milter read nothing for 10 s", self.log_text())
        self.assertEqual(remote.open, 0)

    def test_does_not_read_and_may_take_any_time(self) -> None:
        """
        Without a time-out it is waited for until the MTA gives up.
        """
        conversation = started(breaking(), timeout=None)
        client = conversation.protocol.milters[0]._client
        client.pauseProducing()
        self.assertEqual(conversation.send(MAIL), b"")
        self.assertEqual(conversation.reactor.getDelayedCalls(), [])
        conversation.drop()
        client.resumeProducing()
        conversation.carry()
        self.assertEqual(self.log_text(), "")

    def test_silent_steps_stay_silent(self) -> None:
        """
        Where no answer was promised a failure is said at the next step that has one.
        """
        agreed = encode_offer(Offer(6, 0, c.SMFIP_NR_HDR))
        remote = breaking(O=[agreed], T=[None])
        conversation = started(remote, on_error=c.SMFIS_DISCARD)
        self.assertEqual(conversation.letters(MAIL, RCPT, DATA), "ccd")
        remote = breaking(O=[agreed], R=[None])
        conversation = started(remote, on_error=c.SMFIS_TEMPFAIL)
        self.assertEqual(conversation.letters(MAIL, RCPT, DATA), "ctt")
        remote = breaking(O=[agreed], R=[None])
        near = full(envrcpt=c.SMFIS_CONTINUE)
        conversation = started(remote, before=(near,), on_error=c.SMFIS_TEMPFAIL, merge="strictest")
        self.assertEqual(conversation.letters(MAIL, RCPT, HEADER), "ctc")
        self.assertNotIn("promised", self.log_text())

    def test_too_large_for_it(self) -> None:
        """
        A header field that a fellow let grow beyond the remote milter's packets is a failure.
        """
        large = c.SMFIP_MDS_256K
        near = full(negotiate=(c.SMFIS_CONTINUE, 0, large))
        conversation = RemoteConversation(serving(full()), before=(near,))
        conversation.agree(steps=0x1FFFFF | large)
        field = packet("L", b"X\0" + 70000 * b"a" + b"\0")
        self.assertEqual(conversation.letters(MAIL, RCPT, DATA, field), "ccct")
        self.assertIn("70003 bytes, at most 65535 were agreed", self.log_text())

    def test_illegal_code_is_held_against_the_remote_milter(self) -> None:
        """
        A code that is illegal at its stage is held against the remote milter like any other's.
        """
        conversation = started(breaking(C=[packet("d")]))
        self.assertEqual(conversation.letters(CONNECT), "t")
        self.assertEqual(len(self.failures()), 1)

    def test_name_in_the_list(self) -> None:
        """
        In the list of milters the stand-in is one like the others, by the name of its factory.
        """
        conversation = started(breaking(), name="DKIM")
        (member,) = conversation.protocol.milters
        self.assertEqual(member.factory.name, "DKIM")
        self.assertEqual(type(member).xxfi_helo.__doc__, "Pass HELO on.")
        self.assertIsInstance(member.factory, MilterFactory)
        self.assertEqual(conversation.letters(MESSAGE), 7 * "c")
