"""
Scenarios: SMTP sessions of several messages and recipients, and transactions broken off.
"""

from __future__ import annotations

from .bench import MESSAGE, MtaTestCase
from .callbacks import WHOLE
from .control import script

SHORT = b"From: a@client.example\r\nSubject: short\r\n\r\nshort\r\n"


class Sessions(MtaTestCase):
    """
    Sessions, as the milter sees them.
    """

    def test_three_messages_in_session_are_three_messages_on_one_connection_to_milter(self) -> None:
        """
        Three messages in a session are three messages on one connection to the milter.
        """
        self.load(script(xxfi_eom=[("smfi_addheader", "X-Added", "value")]))
        client = self.connect()
        for number in range(3):
            self.assertReply(client.message(SHORT, f"<s{number}@client.example>"), 250)
        client.quit()
        deliveries = self.sink.wait(3)
        senders = sorted(each.sender.address for each in deliveries)
        self.assertEqual(senders, [f"<s{number}@client.example>" for number in range(3)])
        self.assertEqual([d.values("X-Added") for d in deliveries], [[b"value"]] * 3)
        self.milter.wait("xxfi_close")
        self.assertEqual(self.milter.order(), [*WHOLE[:2], *WHOLE[2:] * 3, "close"])
        self.assertEqual(len({event.connection for event in self.milter.events()}), 1)

    def test_client_that_does_not_wait_for_replies_is_served_as_any_other(self) -> None:
        """
        A client that does not wait for replies is served as any other.
        """
        self.load(script(xxfi_envrcpt={"<no@sink.example>": ["REJECT"]}))
        client = self.connect()
        client.send(
            b"MAIL FROM:<sender@client.example>\r\nRCPT TO:<rcpt@sink.example>\r\n"
            b"RCPT TO:<no@sink.example>\r\nDATA\r\n"
        )
        self.assertEqual([client.reply().code for _ in range(4)], [250, 250, 550, 354])
        self.assertReply(client.content(MESSAGE), 250)
        client.quit()
        self.assertEqual(self.sink.wait()[0].without_trace(), MESSAGE)

    def test_after_refused_sender(self) -> None:
        """
        After a refused sender the next message of the session is filtered and accepted.
        """
        self.load(script(xxfi_envfrom={"<bad@client.example>": ["REJECT"]}))
        client = self.connect()
        self.assertReply(client.message(SHORT, "<bad@client.example>"), 550)
        self.assertReply(client.message(SHORT, "<good@client.example>"), 250)
        client.quit()
        self.assertEqual(len(self.sink.wait()), 1)
        self.assertEqual(len(self.milter.arguments("xxfi_eom")), 1)

    def test_after_refused_message(self) -> None:
        """
        After a message is refused at any stage the next one of the session is filtered afresh.
        """
        for callback in ("xxfi_data", "xxfi_header", "xxfi_eoh", "xxfi_body", "xxfi_eom"):
            call = ("smfi_setreply", "553", "5.7.2", callback)
            self.load(script(**{callback: [call, "REJECT"]}))
            client = self.connect()
            for number in (1, 2):
                reply = client.message(SHORT, f"<s{number}@client.example>")
                self.assertReply(reply, 553, f"5.7.2 {callback}")
                client.command("RSET")
                self.assertEqual(len(self.milter.arguments(callback)), number)
            client.quit()
        self.assertNothingDelivered()

    def test_accept_then_next_message(self) -> None:
        """
        ACCEPT at MAIL is for that message only.
        """
        self.load(script(xxfi_envfrom={"<good@client.example>": ["ACCEPT"]}, xxfi_eom=["REJECT"]))
        client = self.connect()
        self.assertReply(client.message(SHORT, "<good@client.example>"), 250)
        reply = client.message(SHORT, "<other@client.example>")
        self.assertReply(reply, self.traits.content_reject)
        client.quit()
        self.assertEqual(len(self.sink.wait()), 1)

    def test_one_recipient_refused(self) -> None:
        """
        A refusal at xxfi_envrcpt is about that recipient alone.
        """
        refusals = {
            "<no@sink.example>": [("smfi_setreply", "550", "5.1.1", "Not here"), "REJECT"],
            "<later@sink.example>": ["TEMPFAIL"],
        }
        self.load(script(xxfi_envrcpt=refusals))
        client = self.connect()
        client.command("MAIL FROM:<sender@client.example>")
        codes = [
            client.command(f"RCPT TO:<{user}@sink.example>").code
            for user in ("one", "no", "later", "two")
        ]
        self.assertEqual(codes, [250, 550, 451, 250])
        client.command("DATA")
        self.assertReply(client.content(MESSAGE), 250)
        client.quit()
        recipients = {path.address for path in self.sink.wait()[0].recipients}
        self.assertEqual(recipients, {"<one@sink.example>", "<two@sink.example>"})

    def test_all_recipients_refused(self) -> None:
        """
        When all recipients are refused the session goes on with the next message.
        """
        self.load(script(xxfi_envrcpt={"<no@sink.example>": ["REJECT"]}))
        client = self.connect()
        self.assertReply(client.message(SHORT, recipients=["<no@sink.example>"]), 550)
        client.command("RSET")
        self.assertReply(client.message(SHORT), 250)
        client.quit()
        self.milter.wait("xxfi_close")
        self.assertEqual(self.milter.order().count("abort"), 1)
        self.assertEqual(len(self.milter.arguments("xxfi_eom")), 1)

    def test_rset_in_transaction_aborts_message_and_next_one_is_filtered(self) -> None:
        """
        RSET in a transaction aborts the message, and the next one is filtered.
        """
        self.load(script())
        client = self.connect()
        client.command("MAIL FROM:<one@client.example>")
        client.command("RCPT TO:<rcpt@sink.example>")
        self.assertReply(client.command("RSET"), 250)
        self.assertReply(client.message(SHORT, "<two@client.example>"), 250)
        client.quit()
        self.milter.wait("xxfi_close")
        self.assertEqual(self.milter.order(), [*WHOLE[:4], "abort", *WHOLE[2:], "close"])

    def test_reset_between_messages(self) -> None:
        """
        RSET outside a transaction aborts nothing.
        """
        self.load(script())
        client = self.connect()
        client.command("RSET")
        client.message(SHORT)
        client.command("RSET")
        client.quit()
        self.milter.wait("xxfi_close")
        self.assertEqual(self.milter.order(), [*WHOLE, "close"])

    def test_ehlo_in_a_transaction_aborts_the_message(self) -> None:
        """
        EHLO in a transaction aborts the message.
        """
        self.load(script())
        client = self.connect()
        client.command("MAIL FROM:<one@client.example>")
        client.command("RCPT TO:<rcpt@sink.example>")
        client.ehlo()
        client.quit()
        self.milter.wait("xxfi_close")
        order = self.milter.order()
        self.assertEqual(order.count("abort"), 1, order)
        self.assertEqual(len(self.milter.arguments("xxfi_helo")), 2)

    def check_vanishing(self, *lines: str, content: bytes = b"") -> None:
        """
        Send some commands, leave without QUIT, and expect the message's and connection's ends.
        """
        self.load(script())
        client = self.connect()
        for line in lines:
            self.assertLess(client.command(line).code, 400)
        client.send(content)
        client.vanish()
        self.milter.wait("xxfi_close")
        endings = [name for name in self.milter.order() if name in ("abort", "close")]
        self.assertEqual(endings, ["abort", "close"] if lines else ["close"])
        self.assertEqual(self.milter.arguments("xxfi_eom"), [])
        self.assertNothingDelivered()

    def test_gone_after_helo(self) -> None:
        """
        A client that goes between messages leaves nothing to abort.
        """
        self.check_vanishing()

    def test_gone_after_mail(self) -> None:
        """
        A client that goes after MAIL has its message aborted.
        """
        self.check_vanishing("MAIL FROM:<sender@client.example>")

    def test_gone_after_rcpt(self) -> None:
        """
        A client that goes after RCPT has its message aborted.
        """
        self.check_vanishing("MAIL FROM:<sender@client.example>", "RCPT TO:<rcpt@sink.example>")

    def test_gone_after_data(self) -> None:
        """
        A client that goes in the message's text has its message aborted.
        """
        self.check_vanishing(
            "MAIL FROM:<sender@client.example>",
            "RCPT TO:<rcpt@sink.example>",
            "DATA",
            content=b"Subject: cut off\r\n\r\nThis is only h",
        )

    def test_two_sessions_at_once(self) -> None:
        """
        Two sessions at once have a milter of their own each.
        """
        self.load(script(xxfi_envfrom=[], xxfi_eom=[("smfi_getsymval", "{mail_addr}")]))
        clients = [self.connect(), self.connect()]
        for number, client in enumerate(clients):
            client.command(f"MAIL FROM:<s{number}@client.example>")
        for client in clients:
            client.command("RCPT TO:<rcpt@sink.example>")
            client.command("DATA")
        for client in reversed(clients):
            self.assertReply(client.content(MESSAGE), 250)
            client.quit()
        events = self.milter.events()
        seen = {
            (event.connection, event.args[0][0].strip("<>"))
            for event in events
            if event.callback == "xxfi_envfrom"
        }
        asked = {
            (event.connection, event.args[1])
            for event in events
            if event.callback == "smfi_getsymval"
        }
        self.assertEqual(len(seen), 2)
        self.assertEqual(seen, asked)
