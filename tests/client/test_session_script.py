"""
The script of an SMTP session: which steps the milters are asked about, by the habits of the MTA.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.milterside import V4, Packet, Rig, letters_of, packet, reply
from yatxmilter import constants as c
from yatxmilter._mail.rfc5322 import Field
from yatxmilter._wire.actions import NOT_AWAITED, Response
from yatxmilter.client._profiles import SERVER, find_flavour
from yatxmilter.client._session_script import SessionScript

A, B = "<a@example.net>", "<b@example.net>"
SENDER = "<s@example.org>"
FIELD = Field(b"X", b" 1")


class SessionTestCase(SynchronousTestCase):
    """
    A script, and a milter that answers as the test says.
    """

    def start(self, profile: Any = "postfix", steps: int = 0, **options: Any) -> SessionScript:
        """
        Negotiate; the answers are given by `run`.
        """
        self.rig = Rig()
        self.rig.agree(steps)
        known = find_flavour(profile) if isinstance(profile, str) else profile
        self.script = SessionScript(self.rig.client, known, **{"values": {}, **options})
        return self.script

    def run_step(
        self, step: Coroutine[Any, Any, Any], answers: dict[str, list[bytes]] | None = None
    ) -> tuple[Any, list[Packet]]:
        """
        Take a step; give what it comes to, and what the milter was sent.
        """
        result = Deferred.fromCoroutine(step)
        seen = self.rig.serve(answers)
        return self.successResultOf(result), seen

    def say(self, step: Coroutine[Any, Any, Any], letter: str = "c") -> tuple[Any, str]:
        """
        Take a step that is answered with this letter; give the letters of what was sent too.
        """
        answer = {one: [packet(letter)] for one in "CHMRTLNBEU"}
        result, seen = self.run_step(step, answer)
        return result, letters_of(seen)

    def begin(self, *recipients: str) -> None:
        """
        Begin a message whose envelope is accepted.
        """
        self.say(self.script.mail(SENDER))
        for recipient in recipients:
            self.say(self.script.rcpt(recipient))


class SkipTests(SessionTestCase):
    """
    SKIP, where the MTA does not offer it or does.
    """

    def test_recipients_at_postfix(self) -> None:
        """
        Postfix sends no more recipients of the message after SKIP, and the content all the same.
        """
        script = self.start()
        self.begin()
        self.assertEqual(self.say(script.rcpt(A), "s")[1], "R")
        self.assertEqual(self.say(script.rcpt(B)), (NOT_AWAITED, ""))
        self.assertEqual(self.say(script.data())[1], "T")
        self.begin()
        self.assertEqual(self.say(script.rcpt(A))[1], "R")

    def test_after_skip_at_field_postfix_goes_on_with_headers_end(self) -> None:
        """
        After SKIP at a field Postfix goes on with the header's end, Sendmail leaves out the body.
        """
        for profile, expected in (("postfix", "LNBE"), ("sendmail", "LLNE")):
            script = self.start(profile)
            self.begin(A)
            sent = self.say(script.header(FIELD), "s")[1] + self.say(script.header(FIELD))[1]
            sent += self.say(script.eoh())[1] + self.say(script.body(b"x"))[1]
            self.assertEqual(sent + self.say(script.end())[1], expected, profile)


class MessageTests(SessionTestCase):
    """
    What ends a message for the milters.
    """

    def test_refusal_of_data_is_not_asked_for_twice(self) -> None:
        """
        A refusal of DATA is not asked for twice: it stands until the message is given up.
        """
        script = self.start()
        self.begin(A)
        refused, sent = self.say(script.data(), "t")
        self.assertEqual((refused, sent), (Response(c.SMFIS_TEMPFAIL, ord("t")), "T"))
        self.assertEqual(self.say(script.data()), (refused, ""))
        self.assertEqual(self.say(script.rcpt(B)), (refused, ""))

    def test_without_accepted_recipient_milters_are_not_asked_about_content(self) -> None:
        """
        Without an accepted recipient the milters are not asked about the content.
        """
        script = self.start()
        self.begin()
        self.say(script.rcpt(A), "r")
        self.assertEqual(self.say(script.data()), (NOT_AWAITED, ""))
        self.say(script.rcpt(B))
        self.assertEqual(self.say(script.data())[1], "T")

    def test_421_to_recipient_ends_message_mta_hangs_up(self) -> None:
        """
        A 421 to a recipient ends the message: the MTA hangs up.
        """
        script = self.start()
        self.begin(A)
        answer, _ = self.run_step(script.rcpt(B), {"R": [reply("421 4.7.0 bye")]})
        self.assertTrue(answer.closes)
        self.assertEqual(self.say(script.data()), (answer, ""))

    def test_unknown_command_is_not_shown_to_milters_out_of_a_message(self) -> None:
        """
        Milters that are out of a message are not asked about an unknown command in it, and what
        they answer to one can take them out of it.
        """
        for letter in "ad":
            script = self.start()
            self.begin(A)
            self.assertEqual(self.say(script.unknown("XYZ 1"), letter)[1], "U")
            self.assertEqual(self.say(script.unknown("XYZ 2")), (NOT_AWAITED, ""))
            self.assertEqual(self.say(script.data()), (NOT_AWAITED, ""))
            assert script.message is not None
            self.assertEqual(script.message.discarded, letter == "d")

    def test_unknown_command_refused(self) -> None:
        """
        A refusal of an unknown command is for that command alone.
        """
        script = self.start()
        self.begin(A)
        self.assertEqual(self.say(script.unknown("XYZ"), "r")[1], "U")
        self.assertEqual(self.say(script.data())[1], "T")

    def test_step_of_message_that_was_given_up_meanwhile_is_refused_for_now(self) -> None:
        """
        A step of a message that was given up meanwhile is refused for now, and not sent.
        """
        script = self.start()
        self.begin(A)
        script.abort()
        self.assertEqual(letters_of(self.rig.sent()), "A")
        for step in (script.rcpt(B), script.data(), script.header(FIELD), script.body(b"x")):
            self.assertEqual(self.say(step), (Response(c.SMFIS_TEMPFAIL), ""))
        self.assertEqual(self.say(script.end())[0].response, Response(c.SMFIS_TEMPFAIL))

    def test_abort_follows_finished_message_where_mta_sends_it_there(self) -> None:
        """
        ABORT follows a finished message where the MTA sends it there, and what is given up always.
        """
        for profile, expected in (("postfix", "A"), ("sendmail", ""), (SERVER, "")):
            script = self.start(profile)
            self.begin(A)
            self.say(script.end())
            script.abort()
            self.assertEqual(letters_of(self.rig.sent()), expected)
            self.begin(A)
            script.abort()
            self.assertEqual(letters_of(self.rig.sent()), "A")


class ConnectionTests(SessionTestCase):
    """
    What CONNECT and HELO settle.
    """

    def test_refusal_of_helo_stands_at_mta_whatever_name_comes_next(self) -> None:
        """
        A refusal of HELO stands at an MTA, whatever name comes next; the SMTP server asks again.
        """
        for profile, sent in (("postfix", ""), ("sendmail", ""), (SERVER, "H")):
            script = self.start(profile)
            refused, _ = self.say(script.helo("bad.example"), "r")
            self.assertEqual(self.say(script.helo("good.example"))[1], sent)
            self.assertEqual(self.say(script.mail(SENDER))[0] == refused, not sent)

    def test_after_accept_at_connect_milters_are_asked_nothing_any_more(self) -> None:
        """
        After ACCEPT at CONNECT the milters are asked nothing any more, and all mail passes.
        """
        script = self.start()
        self.say(script.connect("client.example", V4), "a")
        for step in (script.helo("x"), script.unknown("XYZ"), script.mail(SENDER), script.data()):
            self.assertEqual(self.say(step), (NOT_AWAITED, ""))


class MacroTests(SessionTestCase):
    """
    Which macros go with a command.
    """

    def macros(self, step: Coroutine[Any, Any, Any]) -> list[bytes]:
        """
        Give the macro packets of a step.
        """
        return [payload for letter, payload in self.run_step(step)[1] if letter == "D"]

    def test_postfix_knows_queue_id_once_recipient_is_accepted_sendmail_at_mail(self) -> None:
        """
        Postfix knows the queue id once a recipient is accepted, Sendmail at MAIL.
        """
        for profile, known in (("postfix", [0, 0, 1, 1]), ("sendmail", [1, 0, 0, 0])):
            script = self.start(profile)
            steps = (script.mail(SENDER, queue_id="Q7"), script.rcpt(A), script.rcpt(B))
            seen = [b"".join(self.macros(step)) for step in steps]
            seen.append(b"".join(self.macros(script.data())))
            self.assertEqual([b"i\0Q7\0" in one for one in seen], [bool(one) for one in known])

    def test_what_was_given_counts(self) -> None:
        """
        What the user has given goes before what is found out; forced macros go before both.
        """
        forced = {c.SMFIC_RCPT: {"{rcpt_addr}": "forced"}, c.SMFIC_DATA: {"x": "y"}}
        script = self.start("sendmail", values={"{mail_addr}": "given"}, forced=forced)
        mail = self.macros(script.mail(SENDER, mail_host="h"))
        self.assertEqual(mail, [b"M{mail_host}\0h\0{mail_addr}\0given\0"])
        self.assertEqual(self.macros(script.rcpt(A)), [b"R{rcpt_addr}\0forced\0"])
        self.assertEqual(self.macros(script.data()), [b"Tx\0y\0"])


class RefusedRecipientTests(SessionTestCase):
    """
    Recipients that the MTA refuses by itself.
    """

    def test_milters_that_asked_for_it_are_shown_them_with_what_is_wrong(self) -> None:
        """
        Milters that asked for it are shown them, with what is wrong; a refusal changes nothing.
        """
        script = self.start(steps=c.SMFIP_RCPT_REJ)
        self.begin(A)
        seen = self.run_step(script.rcpt_refused("no such user", B), {"R": [packet("r")]})[1]
        self.assertEqual(letters_of(seen), "R")
        self.assertIn(b"{rcpt_addr}\0no such user\0", seen[0][1])
        self.assertEqual(self.say(script.data())[1], "T")

    def test_milter_that_accepts_message_at_one_has_no_more_of_it(self) -> None:
        """
        A milter that accepts the message at one has no more of it.
        """
        script = self.start(steps=c.SMFIP_RCPT_REJ)
        self.begin(A)
        self.assertEqual(self.say(script.rcpt_refused("x", B), "a")[1], "R")
        self.assertEqual(self.say(script.rcpt_refused("x", B))[1], "")
        self.assertEqual(self.say(script.data()), (NOT_AWAITED, ""))

    def test_others_are_not_shown_them_and_nobody_is_where_no_message_is_open(self) -> None:
        """
        Others are not shown them, and nobody is where no message is open.
        """
        script = self.start()
        self.begin(A)
        self.assertEqual(self.say(script.rcpt_refused("x", B))[1], "")
        script = self.start(steps=c.SMFIP_RCPT_REJ)
        self.assertEqual(self.say(script.rcpt_refused("x", B))[1], "")
