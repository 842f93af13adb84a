"""
Scenarios: the order of callbacks and their arguments, over whole SMTP sessions.
"""

from __future__ import annotations

import re
import subprocess

from .bench import MESSAGE, MtaTestCase
from .control import script
from .mta import HOSTNAME
from .smtp import Dialogue

WHOLE = ["connect", "helo", "envfrom", "envrcpt", "data", "header", "eoh", "body", "eom"]
SHORT = b"From: a@client.example\r\nSubject: short\r\n\r\nshort\r\n"


class Callbacks(MtaTestCase):
    """
    What a milter gets to see.
    """

    def test_untouched(self) -> None:
        """
        A message that a milter looks at and leaves alone is delivered byte by byte as sent.
        """
        self.load(script())
        self.assertEqual(self.deliver().without_trace(), MESSAGE)

    def test_untouched_tcp(self) -> None:
        """
        It is no different over TCP.
        """
        self.load(script())
        self.assertEqual(self.deliver(door="inet").without_trace(), MESSAGE)
        self.milter.wait("xxfi_close")
        self.assertEqual(self.milter.order(), [*WHOLE, "close"])

    def test_order(self) -> None:
        """
        The callbacks of one message come in order, and the connection's end is told.
        """
        self.load(script(only=()), script("all", xxfi_mta_connect=[], xxfi_mta_close=[]))
        self.deliver()
        self.milter.wait("xxfi_mta_close", milter="all")
        order = self.milter.order(milter="all")
        self.assertEqual(order, ["mta_connect", *WHOLE, "close", "mta_close"])
        self.assertEqual(self.milter.order(milter="milter"), [])

    def test_arguments(self) -> None:
        """
        Each callback's arguments are what the client said.
        """
        self.load(script())
        self.deliver(
            MESSAGE,
            "<sender@client.example> BODY=8BITMIME RET=HDRS",
            recipients=("<rcpt@sink.example> NOTIFY=NEVER", "<two@sink.example>"),
        )
        arguments = self.milter.arguments
        [(hostname, address)] = arguments("xxfi_connect")
        self.assertTrue(hostname)
        self.assertRegex(address, r"^IPv4Address\(.*host='127\.0\.0\.1', port=\d+\)$")
        self.assertEqual(arguments("xxfi_helo"), [("client.example.test",)])
        self.assertEqual(
            arguments("xxfi_envfrom"), [(["<sender@client.example>", "BODY=8BITMIME", "RET=HDRS"],)]
        )
        self.assertEqual(
            arguments("xxfi_envrcpt"),
            [(["<rcpt@sink.example>", "NOTIFY=NEVER"],), (["<two@sink.example>"],)],
        )
        self.assertEqual(
            arguments("xxfi_body"), [(MESSAGE.partition(b"\r\n\r\n")[2].decode("latin-1"),)]
        )

    def test_header_arguments(self) -> None:
        """
        Header values come without the blank after the colon; folds and octets are kept.
        """
        self.load(script())
        self.deliver()
        headers = self.milter.arguments("xxfi_header")
        self.assertEqual(headers[0], ("From", "Sender <sender@client.example>"))
        self.assertEqual(
            headers[5:],
            [
                ("X-Folded", "one\n\ttwo\n  three"),
                ("X-Blanks", "  three before"),
                ("X-Octets", "\udce4\udcf6\udcff"),
            ],
        )

    def test_octets_round_trip(self) -> None:
        """
        A value with octets that are no UTF-8 can be given back as it came.
        """
        value = "\udce4\udcf6\udcff"
        self.load(script(xxfi_eom=[("smfi_addheader", "X-Copy", value)]))
        delivery = self.deliver()
        self.assertEqual(delivery.values("X-Copy"), delivery.values("X-Octets"))

    def test_null_sender(self) -> None:
        """
        The null sender is an address of two brackets.
        """
        self.load(script())
        self.assertEqual(self.deliver(MESSAGE, "<>").sender.address, "<>")
        self.assertEqual(self.milter.arguments("xxfi_envfrom"), [(["<>"],)])

    def test_empty_body(self) -> None:
        """
        A message without body has no xxfi_body.
        """
        self.load(script())
        self.deliver(SHORT.partition(b"short\r\n\r\n")[0] + b"empty\r\n\r\n")
        self.milter.wait("xxfi_close")
        self.assertEqual(self.milter.order(), [*WHOLE[:7], "eom", "close"])

    def test_macros(self) -> None:
        """
        smfi_getsymval gives the macros that the MTA sends by default.
        """
        names = ["j", "{daemon_name}", "i", "{mail_addr}", "{rcpt_addr}", "{nosuchmacro}"]
        self.load(script(xxfi_eom=[("smfi_getsymval", name) for name in names]))
        self.deliver()
        values = dict(self.milter.arguments("smfi_getsymval"))
        self.assertEqual(values["j"], HOSTNAME)
        self.assertTrue(values["{daemon_name}"])
        self.assertRegex(values["i"], re.compile(r"^\w+$"))
        self.assertEqual(values["{mail_addr}"], "sender@client.example")
        self.assertEqual(values["{rcpt_addr}"], "rcpt@sink.example")
        self.assertIsNone(values["{nosuchmacro}"])

    def test_only_asked_for(self) -> None:
        """
        Callbacks that no milter overrides are not asked for, and all the same the edits are made.
        """
        edit = [("smfi_addheader", "X-Added", "value")]
        self.load(script(only=(), xxfi_eom=edit, xxfi_header=[]))
        self.assertEqual(self.deliver().values("X-Added"), [b"value"])
        self.assertEqual(self.milter.order(), ["header", "eom"])

    def test_unknown_command(self) -> None:
        """
        A command that the MTA does not know is shown, and the transaction goes on.
        """
        self.load(script())
        client = self.connect()
        client.command("MAIL FROM:<sender@client.example>")
        self.assertReply(client.command("XFOO bar"), 500)
        client.command("RCPT TO:<rcpt@sink.example>")
        client.command("DATA")
        self.assertReply(client.content(MESSAGE), 250)
        client.quit()
        self.assertEqual(self.milter.arguments("xxfi_unknown"), [(self.traits.unknown_arg,)])
        self.assertEqual(len(self.milter.arguments("xxfi_eom")), 1)
        self.sink.wait()

    def test_unknown_command_without_data(self) -> None:
        """
        An unknown command in a transaction does no harm where xxfi_data is not asked for.
        """
        self.load(script(only=(), xxfi_unknown=[], xxfi_header=[], xxfi_eom=[]))
        client = self.connect()
        client.command("MAIL FROM:<sender@client.example>")
        client.command("RCPT TO:<rcpt@sink.example>")
        self.assertReply(client.command("XFOO bar"), 500)
        client.command("DATA")
        self.assertReply(client.content(MESSAGE), 250)
        self.assertEqual(self.milter.order(), ["unknown", "header", "eom"])

    def check_unknown(self, *steps: object) -> None:
        """
        Answer an unknown command, and send a message after it.
        """
        self.load(script(xxfi_unknown=list(steps)))
        client = self.connect()
        client.command("MAIL FROM:<sender@client.example>")
        self.unknown_reply = client.command("XFOO bar")
        client.command("RSET")
        self.assertReply(client.message(MESSAGE), 250)
        client.quit()

    def test_unknown_reject(self) -> None:
        """
        A refusal of an unknown command takes the place of the MTA's own.
        """
        self.check_unknown("REJECT")
        self.assertReply(self.unknown_reply, 550)

    def test_unknown_reply(self) -> None:
        """
        A custom reply to an unknown command takes the place of the MTA's own.
        """
        self.check_unknown(("smfi_setreply", "454", "4.5.1", "Not this"), "TEMPFAIL")
        self.assertReply(self.unknown_reply, 454, "4.5.1 Not this")

    def test_unknown_multiline_reply(self) -> None:
        """
        It may have several lines.
        """
        self.check_unknown(("smfi_setmlreply", "554", "5.5.1", "Not", "this"), "REJECT")
        self.assertReply(self.unknown_reply, 554, "5.5.1 Not", "5.5.1 this")

    def test_unknown_tempfail(self) -> None:
        """
        TEMPFAIL for an unknown command makes it a temporary failure.
        """
        self.check_unknown("TEMPFAIL")
        self.assertReply(self.unknown_reply, 451)


class Sessions(MtaTestCase):
    """
    Several messages and several recipients, transactions broken off.
    """

    def test_several_messages(self) -> None:
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

    def test_pipelining(self) -> None:
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

    def test_refused_then_accepted(self) -> None:
        """
        After a message is refused at any stage, the next one of the session is filtered afresh.
        """
        refusing = ("xxfi_envfrom", "xxfi_data", "xxfi_eoh", "xxfi_body", "xxfi_eom")
        for callback in refusing:
            steps = (
                {"<bad@client.example>": ["REJECT"]} if callback == "xxfi_envfrom" else ["REJECT"]
            )
            self.load(script(**{callback: steps}))
            client = self.connect()
            self.assertGreaterEqual(client.message(SHORT, "<bad@client.example>").code, 500)
            client.command("RSET")
            second = client.message(SHORT, "<good@client.example>")
            self.assertReply(second, 250 if callback == "xxfi_envfrom" else second.code)
            client.quit()
            self.milter.wait("xxfi_close")
            self.assertEqual(len(self.milter.arguments("xxfi_envfrom")), 2, callback)
            self.assertEqual(len(self.milter.arguments(callback)), 2, callback)

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

    def test_reset(self) -> None:
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

    def test_helo_again(self) -> None:
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


class Submission(MtaTestCase):
    """
    Mail handed in on the machine itself, with the sendmail program.
    """

    TEXT = (
        b"From: sender@client.example\r\nTo: rcpt@sink.example\r\nSubject: local\r\n"
        b"\r\nlocal body\r\n"
    )

    def test_command_line(self) -> None:
        """
        Mail from the command line is filtered where the MTA does so.
        """
        self.load(script(xxfi_eom=[("smfi_addheader", "X-Added", "value")]))
        command = self.mta.submission("-i", "-f", "sender@client.example", "rcpt@sink.example")
        subprocess.run(command, input=self.TEXT.replace(b"\r\n", b"\n"), check=True)
        delivery = self.sink.wait()[0]
        self.assertEqual(delivery.body, b"local body\r\n")
        if self.traits.filters_submission:
            self.assertEqual(delivery.values("X-Added"), [b"value"])
            self.assertEqual(self.milter.arguments("xxfi_envfrom"), [(["sender@client.example"],)])
            self.assertEqual(self.milter.arguments("xxfi_envrcpt"), [(["rcpt@sink.example"],)])
        else:
            self.assertEqual(self.milter.events(), [])

    def test_smtp_on_a_pipe(self) -> None:
        """
        Mail from ``sendmail -bs`` is filtered, and has no client address or that of the machine.
        """
        self.load(script(xxfi_eom=[("smfi_addheader", "X-Added", "value")]))
        program = subprocess.Popen(
            self.mta.submission("-bs"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.addCleanup(program.wait)
        assert program.stdout is not None and program.stdin is not None
        dialogue = Dialogue(program.stdout, program.stdin)
        dialogue.ehlo()
        self.assertReply(dialogue.message(self.TEXT), 250)
        dialogue.quit()
        self.assertEqual(self.sink.wait()[0].values("X-Added"), [b"value"])
        [(hostname, address)] = self.milter.arguments("xxfi_connect")
        self.assertEqual(hostname, "localhost")
        if self.traits.filters_submission:
            self.assertRegex(address, r"host='127\.0\.0\.1', port=0\)$")
        else:
            self.assertIsNone(address)
