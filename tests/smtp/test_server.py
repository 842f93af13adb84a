"""
Twisted's SMTP server with milters: what they are shown, and what the client is told.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.mail.smtp import SMTPBadRcpt, SMTPBadSender, SMTPServerError
from twisted.trial.unittest import SynchronousTestCase

from tests.smtp_session import GREETS, MESSAGE, OTHER, RECIPIENT, SENDER, Session, recorder
from yatxmilter import Milter, MilterFactory
from yatxmilter import constants as c
from yatxmilter.smtp import MilterESMTP

Calls = list[tuple[Any, ...]]

GREETING = "220 mx.example.com NO UCE NO UBE NO RELAY PROBES ESMTP"
DEFAULT = {
    c.SMFIS_REJECT: "550 5.7.1 Command rejected",
    c.SMFIS_TEMPFAIL: "451 4.7.1 Service unavailable - try again later",
}


class StagesTests(SynchronousTestCase):
    """
    What milters are shown.
    """

    def test_every_step_of_a_message_has_its_callback_in_order(self) -> None:
        """
        Every step of a message has its callback, in order, with what the client has sent.
        """
        calls: Calls = []
        session = Session(recorder(calls))
        self.assertEqual(session.replies(), [GREETING])
        self.assertEqual(session.say("EHLO client.example"), GREETS)
        self.assertEqual(
            session.say(f"MAIL FROM:{SENDER} SIZE=100 BODY=8BITMIME"),
            ["250 Sender address accepted"],
        )
        self.assertEqual(
            session.say(f"RCPT TO:{RECIPIENT} NOTIFY=NEVER"), ["250 Recipient address accepted"]
        )
        self.assertEqual(session.say("DATA"), ["354 Continue"])
        self.assertEqual(session.say(*MESSAGE, "..dot", "."), ["250 Delivery in progress"])
        self.assertEqual(session.say("QUIT"), ["221 See you later"])
        self.assertEqual(session.say("NOOP"), [])
        self.assertEqual(
            calls,
            [
                ("connect", "unknown", IPv4Address("TCP", "192.168.1.1", 54321)),
                ("helo", "client.example"),
                ("envfrom", [SENDER, "SIZE=100", "BODY=8BITMIME"]),
                ("envrcpt", [RECIPIENT, "NOTIFY=NEVER"]),
                ("data",),
                ("header", "From", "Sender <sender@client.example>"),
                ("header", "Subject", "hello"),
                ("eoh",),
                ("body", b"A short letter.\r\n.dot\r\n"),
                ("eom",),
                ("close",),
            ],
        )
        self.assertEqual(session.delivered, [[*MESSAGE, b".dot"]])
        self.assertEqual(session.clock.getDelayedCalls(), [])

    def test_all_commands_at_once_twice_and_in_single_bytes(self) -> None:
        """
        All commands at once, twice, and in single bytes: each is handled when those before it are.
        """
        lines = [
            *("EHLO client.example", f"MAIL FROM:{SENDER}", f"RCPT TO:{RECIPIENT}", "DATA"),
            *("Subject: x", "", "text", "."),
            *(f"MAIL FROM:{SENDER}", f"RCPT TO:{RECIPIENT}", "DATA", "Subject: y", ".", "QUIT"),
        ]
        expected = [
            *(*GREETS, "250 Sender address accepted", "250 Recipient address accepted"),
            *("354 Continue", "250 Delivery in progress"),
            *("250 Sender address accepted", "250 Recipient address accepted"),
            *("354 Continue", "250 Delivery in progress", "221 See you later"),
        ]
        stream = "".join(line + "\r\n" for line in lines).encode()
        for pieces in ([stream], [stream[place : place + 1] for place in range(len(stream))]):
            calls: Calls = []
            session = Session(recorder(calls))
            session.replies()
            said = [reply for piece in pieces for reply in session.write(piece)]
            self.assertEqual(said, expected)
            self.assertEqual(session.delivered, [[b"Subject: x", b"", b"text"], [b"Subject: y"]])
            self.assertEqual([call[0] for call in calls].count("envfrom"), 2)

    def test_while_milter_takes_its_time_next_commands_wait(self) -> None:
        """
        While a milter takes its time the next commands wait, and so does the client's clock.
        """
        answers: dict[str, Deferred[int]] = {}

        def wait(name: str) -> Any:
            def start(_: Milter) -> Deferred[int]:
                answers[name] = Deferred()
                return answers[name]

            return start

        names = ["connect", "helo", "envfrom", "envrcpt", "data", "header", "eom"]
        slow = MilterFactory(recorder([], **{name: wait(name) for name in names}), timeout=None)
        session = Session(factories=[slow], timeout=None)
        said = session.say(
            *("EHLO client.example", f"MAIL FROM:{SENDER}", f"RCPT TO:{RECIPIENT}", "DATA"),
            *("Subject: x", ".", "QUIT"),
        )
        for name in names:
            self.assertEqual(said, [] if name != "header" else ["354 Continue"])
            session.clock.advance(10_000)
            answers[name].callback(0)
            session.settle()
            said = session.replies()
            if name not in ("data", "header"):
                said = said[:0]
        self.assertEqual(session.delivered, [[b"Subject: x"]])
        self.assertTrue(session.gone)

    def test_client_that_is_silent_is_still_sent_away(self) -> None:
        """
        A client that is silent is still sent away.
        """
        calls: Calls = []
        session = Session(recorder(calls))
        session.begin()
        session.clock.advance(601)
        session.settle()
        self.assertEqual(
            session.replies(), ["421 mx.example.com Timeout. Try talking faster next time!"]
        )
        self.assertTrue(session.gone)
        self.assertEqual([call[0] for call in calls[-2:]], ["abort", "close"])
        self.assertEqual(session.clock.getDelayedCalls(), [])

    def test_macros_are_those_that_mta_gives(self) -> None:
        """
        Macros are those that an MTA gives.
        """
        seen: dict[str, str | None] = {}

        class Looks(Milter):
            def xxfi_negotiate(self, actions: int, steps: int) -> None:
                self.smfi_setsymlist(
                    c.SMFIM_CONNECT, "j _ v {daemon_name} {client_addr} {client_name} {daemon_port}"
                )

            def look(self, *names: str) -> None:
                seen.update((name, self.smfi_getsymval(name)) for name in names)

            def xxfi_connect(self, hostname: str, hostaddr: object) -> None:
                self.look("j", "_", "v", "{daemon_name}", "{client_addr}", "{client_name}")
                self.look("{daemon_port}")

            def xxfi_envfrom(self, argv: list[str]) -> None:
                self.look("i", "{mail_addr}", "{auth_authen}")

            def xxfi_envrcpt(self, argv: list[str]) -> None:
                self.look("{rcpt_addr}")

        session = Session(Looks, daemon_name="submission")
        session.begin()
        self.assertEqual(
            seen,
            {
                "j": "mx.example.com",
                "_": "unknown [192.168.1.1]",
                "v": "yatxmilter",
                "{daemon_name}": "submission",
                "{client_addr}": "192.168.1.1",
                "{client_name}": "unknown",
                "{daemon_port}": "12345",
                "i": session.server.queue_id,
                "{mail_addr}": "sender@client.example",
                "{auth_authen}": None,
                "{rcpt_addr}": "one@example.com",
            },
        )

    def test_server_that_looks_names_up_shows_them(self) -> None:
        """
        A server that looks names up shows them; the greeting waits for that.
        """
        name: Deferred[str] = Deferred()

        class LooksUp(MilterESMTP):
            def clientName(self) -> Deferred[str]:
                return name

        calls: Calls = []
        session = Session(recorder(calls), server=LooksUp)
        self.assertEqual(session.replies(), [])
        name.callback("client.example")
        session.settle()
        self.assertEqual(session.replies(), [GREETING])
        self.assertEqual(calls[0][1], "client.example")

    def test_noop_and_vrfy_are_commands(self) -> None:
        """
        NOOP and VRFY are commands, and no milter is asked about them.
        """
        calls: Calls = []
        session = Session(recorder(calls))
        session.replies()
        said = session.say("NOOP", "VRFY one@example.com")
        self.assertEqual(said, ["250 Ok", "252 Cannot verify, send it and see"])
        self.assertEqual([call[0] for call in calls], ["connect"])

    def test_commands_that_server_does_not_know_are_shown_whole(self) -> None:
        """
        Commands that the server does not know are shown whole; so is one that is no text.
        """
        calls: Calls = []
        session = Session(recorder(calls))
        session.replies()
        self.assertEqual(session.say("FOO  bar", b"\xff\xfe"), ["500 Command not implemented"] * 2)
        self.assertEqual(calls[1:], [("unknown", "FOO  bar"), ("unknown", "\udcff\udcfe")])

    def test_empty_commands_nul_and_lines_too_long_are_refused(self) -> None:
        """
        Empty commands, NUL and lines too long are refused, whatever comes behind them is not.
        """
        calls: Calls = []
        session = Session(recorder(calls))
        session.replies()
        long = b"MAIL FROM:<" + b"a" * 20_000 + b">"
        self.assertEqual(
            session.say("", b"HELO a\0b", long, "AUTH", "RSET"),
            [
                "500 Error: bad syntax",
                "500 Error: bad syntax",
                "500 Line too long",
                "501 Syntax error in parameters or arguments",
                "250 I remember nothing.",
            ],
        )
        pieces = [b"x" * 9_000, b"y" * 9_000, b"z" * 9_000 + b"\r", b"\nRSET\r\n"]
        said = [session.write(piece) for piece in pieces]
        self.assertEqual(said, [[], [], [], ["500 Line too long", "250 I remember nothing."]])
        self.assertEqual([call[0] for call in calls], ["connect"])

    def test_commands_that_twisted_refuses_are_not_shown(self) -> None:
        """
        Commands that Twisted refuses for their order or syntax are not shown.
        """
        calls: Calls = []
        session = Session(recorder(calls))
        session.replies()
        said = session.say(
            "DATA", f"RCPT TO:{RECIPIENT}", "MAIL FROM:", "RCPT what", f"MAIL FROM:{SENDER}"
        )
        self.assertEqual([reply[:3] for reply in said], ["503", "503", "501", "503", "250"])
        said = session.say(f"MAIL FROM:{SENDER}", "DATA", "RCPT what", "MAIL what")
        self.assertEqual([reply[:3] for reply in said], ["503", "503", "501", "503"])
        self.assertEqual([call[0] for call in calls], ["connect", "envfrom"])

    def test_rset_helo_and_clients_going_end_message_for_milters_too_each_once(self) -> None:
        """
        RSET, HELO and the client's going end the message for the milters too, each once.
        """
        calls: Calls = []
        session = Session(recorder(calls))
        for line in ("RSET", "HELO client.example", "EHLO client.example"):
            session.say(f"MAIL FROM:{SENDER}", f"RCPT TO:{RECIPIENT}", line, "RSET")
        self.assertEqual([call[0] for call in calls].count("abort"), 3)
        session.say(f"MAIL FROM:{SENDER}")
        session.vanish()
        self.assertEqual([call[0] for call in calls[-2:]], ["abort", "close"])
        self.assertEqual(session.mailbox.kept, [])

    def test_without_milters_it_is_twisteds_server(self) -> None:
        """
        Without milters it is Twisted's server.
        """
        session = Session()
        self.assertEqual(session.send(), ["250 Delivery in progress"])
        self.assertEqual(session.delivered, [MESSAGE])


class VerdictTests(SynchronousTestCase):
    """
    What the client is told.
    """

    def converse(self, **answers: Any) -> list[str]:
        """
        Play a message to a milter with these answers; give the replies by their commands.
        """
        self.calls: Calls = []
        session = self.session = Session(recorder(self.calls, **answers))
        replies = [session.replies()[-1]]
        lines = ["EHLO x", f"MAIL FROM:{SENDER}", f"RCPT TO:{RECIPIENT}", "DATA"]
        for line in lines:
            replies += session.say(line)[-1:]
        if replies[-1] == "354 Continue":
            replies += session.say(*MESSAGE, ".")
        return replies

    def test_reject_and_tempfail_are_told_where_postfix_tells_them(self) -> None:
        """
        REJECT and TEMPFAIL are told where Postfix tells them, and nothing is delivered.
        """
        fine = [
            GREETING,
            GREETS[-1],
            "250 Sender address accepted",
            "250 Recipient address accepted",
        ]
        fine += ["354 Continue"]
        no_sender, no_one = (
            "503 Must have sender before recipient",
            "503 Must have valid receiver and originator",
        )
        for code, text in DEFAULT.items():
            banner = (
                GREETING
                if code == c.SMFIS_TEMPFAIL
                else "554 mx.example.com ESMTP not accepting connections"
            )
            rows = {
                "connect": [banner, GREETS[-1], text, no_sender, no_one],
                "helo": [GREETING, GREETS[-1], text, no_sender, no_one],
                "envfrom": [GREETING, GREETS[-1], text, no_sender, no_one],
                "envrcpt": [*fine[:3], text, no_one],
                "data": [*fine[:4], text],
                **{name: [*fine, text] for name in ("header", "eoh", "body", "eom")},
            }
            for name, expected in rows.items():
                self.assertEqual(self.converse(**{name: code}), expected, (name, code))
                self.assertEqual(self.session.delivered, [])

    def test_milters_own_text_is_told_as_it_is_in_one_line_or_several(self) -> None:
        """
        The milter's own text is told as it is, in one line or several, percent signs undoubled.
        """

        def reply(milter: Milter) -> int:
            milter.smfi_setmlreply("554", "5.7.9", "No mail", "100%% sure%", "ask \xe9")
            return c.SMFIS_REJECT

        expected = ["554-5.7.9 No mail", "554-5.7.9 100% sure", "554 5.7.9 ask \xc3\xa9"]
        for name in ("envfrom", "envrcpt", "eom"):
            self.assertEqual(self.replies_of(name, reply), expected, name)

    def replies_of(self, name: str, reply: Any) -> list[str]:
        """
        Give the refusal of one step, all its lines.
        """
        session = Session(recorder([], **{name: reply}))
        session.replies()
        if name == "envfrom":
            return session.say(f"MAIL FROM:{SENDER}")
        session.say(f"MAIL FROM:{SENDER}")
        replies = session.say(f"RCPT TO:{RECIPIENT}")
        if name == "envrcpt":
            return replies
        session.say("DATA")
        return session.say(*MESSAGE, ".")

    def test_text_with_421_ends_connection_at_that_very_command(self) -> None:
        """
        A text with 421 ends the connection at that very command; what follows is not looked at.
        """

        def reply(milter: Milter) -> int:
            milter.smfi_setreply("421", "4.3.2", "Going down")
            return c.SMFIS_TEMPFAIL

        for name in ("connect", "helo", "envfrom", "envrcpt", "data", "unknown", "eom"):
            calls: Calls = []
            session = Session(recorder(calls, **{name: reply}))
            said = session.replies()
            lines: list[str | bytes] = [
                "EHLO x",
                "FOO",
                f"MAIL FROM:{SENDER}",
                f"RCPT TO:{RECIPIENT}",
                "DATA",
                *MESSAGE,
            ]
            for line in [*lines, "."]:
                if not session.gone:
                    said = (
                        session.say(line, "RSET")
                        if name not in ("eom", "envrcpt", "data")
                        else session.say(line)
                    )
            self.assertEqual(said, ["421 4.3.2 Going down"], name)
            self.assertTrue(session.gone, name)
            self.assertEqual(calls[-1], ("close",), name)

    def test_text_of_refused_connection_or_helo_is_told_at_each_mail(self) -> None:
        """
        The text of a refused connection, or HELO, is told at each MAIL; a new HELO is asked anew.
        """

        def reply(milter: Milter) -> int:
            milter.smfi_setreply("553", "5.1.8", "not you")
            return c.SMFIS_REJECT

        calls: Calls = []
        session = Session(recorder(calls, connect=reply))
        said = session.say("EHLO x", "FOO", *[f"MAIL FROM:{SENDER}"] * 2)
        self.assertEqual(said[-3:], ["500 Command not implemented", *["553 5.1.8 not you"] * 2])
        self.assertEqual([call[0] for call in calls], ["connect"])
        answers = [reply, lambda _: c.SMFIS_CONTINUE]
        session = Session(recorder(calls, helo=lambda milter: answers.pop(0)(milter)))
        session.replies()
        said = session.say("HELO x", f"MAIL FROM:{SENDER}", "HELO y", f"MAIL FROM:{SENDER}")
        self.assertEqual(said[1], "553 5.1.8 not you")
        self.assertEqual(said[3], "250 Sender address accepted")

    def test_accept_delivers_message_and_its_milter_is_shown_no_more_of_it(self) -> None:
        """
        ACCEPT delivers the message, and its milter is shown no more of it.
        """
        for name in (
            "connect",
            "helo",
            "envfrom",
            "envrcpt",
            "data",
            "header",
            "eoh",
            "body",
            "eom",
        ):
            replies = self.converse(**{name: c.SMFIS_ACCEPT})
            self.assertEqual(replies[-1], "250 Delivery in progress", name)
            self.assertEqual(self.session.delivered, [MESSAGE])
            self.assertEqual(self.calls[-1][0], name)
            self.session.say("EHLO again", "FOO")
            again = self.session.send()
            self.assertEqual(again, ["250 Delivery in progress"])
            if name in ("connect", "helo"):
                self.assertEqual(self.calls[-1][0], name)

    def test_discard_throws_message_away_client_believes_that_all_is_well(self) -> None:
        """
        DISCARD throws the message away; the client believes that all is well.
        """
        for name in ("envfrom", "envrcpt", "data", "header", "eoh", "body", "eom"):
            replies = self.converse(**{name: c.SMFIS_DISCARD})
            self.assertEqual(replies[-1], "250 Delivery in progress", name)
            self.assertEqual(self.session.mailbox.kept, [])
            names = [call[0] for call in self.calls if call[0] != "abort"]
            self.assertEqual(names[-1], name)

    def test_skip_keeps_rest_of_body_back_not_end_of_message(self) -> None:
        """
        SKIP keeps the rest of a body back, not the end of the message.
        """
        calls: Calls = []
        session = Session(recorder(calls, body=c.SMFIS_SKIP))
        lines = [b"", *[b"x" * 1000] * 200]
        self.assertEqual(session.send(lines=lines), ["250 Delivery in progress"])
        self.assertEqual([call[0] for call in calls[-2:]], ["body", "eom"])
        self.assertEqual(session.delivered, [lines])

    def test_refused_recipient_is_refused_alone(self) -> None:
        """
        A refused recipient is refused alone.
        """

        def only_one(argv: list[str]) -> int:
            return c.SMFIS_CONTINUE if argv[0] == RECIPIENT else c.SMFIS_REJECT

        class Picky(Milter):
            def xxfi_envrcpt(self, argv: list[str]) -> int:
                return only_one(argv)

        session = Session(Picky)
        said = session.begin(OTHER, RECIPIENT, OTHER)
        self.assertEqual([reply[:3] for reply in said], ["250", "250", "550", "250", "550", "354"])
        session.say(*MESSAGE, ".")
        self.assertEqual([str(kept.user) for kept in session.mailbox.kept], ["one@example.com"])

    def test_milters_text_takes_place_of_500_bare_reject_says_nothing_more(self) -> None:
        """
        A milter's text takes the place of the 500; a bare REJECT says nothing more.
        """

        def reply(milter: Milter) -> int:
            milter.smfi_setreply("502", "5.5.1", "not here")
            return c.SMFIS_REJECT

        rows = {
            c.SMFIS_REJECT: "500 Command not implemented",
            c.SMFIS_TEMPFAIL: DEFAULT[c.SMFIS_TEMPFAIL],
            reply: "502 5.5.1 not here",
        }
        for answer, expected in rows.items():
            session = Session(recorder([], unknown=answer))
            session.replies()
            self.assertEqual(session.say("FOO"), [expected])

    def test_after_refused_data(self) -> None:
        """
        A refusal at DATA leaves the message open, as in Postfix; RSET ends it.
        """
        calls: Calls = []
        answers = [c.SMFIS_TEMPFAIL, c.SMFIS_CONTINUE]
        session = Session(recorder(calls, data=lambda _: answers.pop(0)))
        self.assertEqual(session.begin()[-1], DEFAULT[c.SMFIS_TEMPFAIL])
        said = session.say(f"MAIL FROM:{SENDER}", f"RCPT TO:{OTHER}", "DATA")
        self.assertEqual([reply[:3] for reply in said], ["503", "451", "451"])
        self.assertEqual(session.say("RSET"), ["250 I remember nothing."])
        self.assertEqual(
            [call[0] for call in calls], ["connect", "helo", "envfrom", "envrcpt", "data"]
        )
        self.assertEqual(session.send(), ["250 Delivery in progress"])


class DeliveryTests(SynchronousTestCase):
    """
    The delivery's own say.
    """

    def test_sender_that_delivery_refuses_is_not_shown_to_milters(self) -> None:
        """
        A sender that the delivery refuses is not shown to milters.
        """
        calls: Calls = []
        session = Session(recorder(calls))
        session.mailbox.faults["from"] = SMTPBadSender(SENDER, resp="who?")
        said = session.begin()
        self.assertEqual(
            said[1], "550 Cannot receive from specified address <sender@client.example>: who?"
        )
        self.assertEqual([call[0] for call in calls], ["connect", "helo"])

    def test_recipient_that_delivery_refuses_is_shown_to_milters_that_ask_for_such(self) -> None:
        """
        A recipient that the delivery refuses is shown to milters that ask for such.
        """
        for asks in (False, True):
            seen: list[tuple[str, str | None, str | None]] = []

            class Watcher(Milter):
                wants = asks

                def xxfi_negotiate(self, actions: int, steps: int) -> tuple[int, int, int]:
                    mine = c.SMFIP_RCPT_REJ if self.wants else 0
                    return c.SMFIS_CONTINUE, 0, mine

                def xxfi_envrcpt(self, argv: list[str], seen: Any = seen) -> None:
                    mailer, text = (
                        self.smfi_getsymval(f"{{rcpt_{n}}}") for n in ("mailer", "addr")
                    )
                    seen.append((argv[0], mailer, text))

            session = Session(Watcher)
            session.mailbox.faults["two@example.com"] = SMTPBadRcpt(OTHER, resp="no such user")
            said = session.begin(RECIPIENT, OTHER)
            self.assertEqual(said[-2:], ["550 no such user", "354 Continue"])
            expected = [(RECIPIENT, None, "one@example.com"), (OTHER, "error", "no such user")]
            self.assertEqual(seen, expected if asks else expected[:1])

    def test_client_is_told_that_message_is_taken_when_delivery_says_so(self) -> None:
        """
        The client is told that a message is taken when the delivery says so, not before.
        """
        session = Session(recorder([]))
        answer: Deferred[None] = Deferred()
        session.mailbox.answer = lambda: answer
        self.assertEqual(session.send(), [])
        self.assertEqual(session.say("RSET"), [])
        answer.callback(None)
        session.settle()
        self.assertEqual(session.replies(), ["250 Delivery in progress", "250 I remember nothing."])

    def test_what_delivery_cannot_do_is_answered_as_twisted_does(self) -> None:
        """
        What the delivery cannot do is answered as Twisted does, or as the delivery wants.
        """
        refusal = SMTPServerError(452, "4.3.1 disk full")
        local = "451 Requested action aborted: local error in processing"
        rows = {
            ("make", refusal): "452 4.3.1 disk full",
            ("line", refusal): "452 4.3.1 disk full",
            ("eom", refusal): "452 4.3.1 disk full",
            ("make", OSError("disk")): local,
            ("line", OSError("disk")): local,
            ("eom", OSError("disk")): "550 Could not send e-mail (2 failures out of 2 recipients)",
        }
        for (occasion, fault), expected in rows.items():
            session = Session(recorder([]))
            session.mailbox.faults[occasion] = fault
            self.assertEqual(session.send(RECIPIENT, OTHER), [expected], (occasion, fault))
            session.mailbox.faults.clear()
            wanted = {"make": [], "line": ["lost", "lost"], "eom": ["eom", "eom"]}[occasion]
            self.assertEqual([kept.end for kept in session.mailbox.kept], wanted)
            self.assertEqual(session.send(), ["250 Delivery in progress"])
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 4)

    def test_cannot_be_told(self) -> None:
        """
        A message object that fails even to be told of a failure does not keep its fellow from it.
        """
        session = Session(recorder([]))
        session.mailbox.faults = {"line": SMTPServerError(452, "full"), "lost": OSError("gone")}
        self.assertEqual(session.send(RECIPIENT, OTHER), ["452 full"])
        self.assertEqual([kept.end for kept in session.mailbox.kept], ["lost", "lost"])
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 2)
