"""
Scenarios: which callbacks come for one message, in which order and with which arguments.
"""

from __future__ import annotations

import re
import subprocess

from .bench import MESSAGE, MtaTestCase
from .control import script
from .mta import HOSTNAME
from .smtp import Dialogue

WHOLE = ["connect", "helo", "envfrom", "envrcpt", "data", "header", "eoh", "body", "eom"]


class Callbacks(MtaTestCase):
    """
    What a milter gets to see.
    """

    def test_message_left_alone_is_delivered_byte_by_byte_as_sent(self) -> None:
        """
        A message that a milter looks at and leaves alone is delivered byte by byte as sent.
        """
        self.load(script())
        self.assertEqual(self.deliver().without_trace(), MESSAGE)

    def test_is_no_different_over_tcp(self) -> None:
        """
        It is no different over TCP.
        """
        self.load(script())
        self.assertEqual(self.deliver(door="inet").without_trace(), MESSAGE)
        self.milter.wait("xxfi_close")
        self.assertEqual(self.milter.order(), [*WHOLE, "close"])

    def test_callbacks_of_one_message_come_in_order_and_connections_end_is_told(self) -> None:
        """
        The callbacks of one message come in order, and the connection's end is told.
        """
        self.load(script(only=()), script("all", xxfi_mta_connect=[], xxfi_mta_close=[]))
        self.deliver()
        self.milter.wait("xxfi_mta_close", milter="all")
        order = self.milter.order(milter="all")
        self.assertEqual(order, ["mta_connect", *WHOLE, "close", "mta_close"])
        self.assertEqual(self.milter.order(milter="milter"), [])

    def test_each_callbacks_arguments_are_what_the_client_said(self) -> None:
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

    def test_header_values_come_without_the_blank_after_the_colon(self) -> None:
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

    def test_null_sender_is_an_address_of_two_brackets(self) -> None:
        """
        The null sender is an address of two brackets.
        """
        self.load(script())
        self.assertEqual(self.deliver(MESSAGE, "<>").sender.address, "<>")
        self.assertEqual(self.milter.arguments("xxfi_envfrom"), [(["<>"],)])

    def test_message_without_body_has_no_xxfi_body(self) -> None:
        """
        A message without body has no xxfi_body.
        """
        self.load(script())
        self.deliver(b"From: a@client.example\r\nSubject: empty\r\n\r\n")
        self.milter.wait("xxfi_close")
        self.assertEqual(self.milter.order(), [*WHOLE[:7], "eom", "close"])

    def test_smfi_getsymval_gives_the_macros_that_the_mta_sends_by_default(self) -> None:
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

    def test_command_that_mta_does_not_know_is_shown_and_transaction_goes_on(self) -> None:
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

    def test_refusal_of_unknown_command_takes_place_of_mtas_own(self) -> None:
        """
        A refusal of an unknown command takes the place of the MTA's own.
        """
        self.check_unknown("REJECT")
        self.assertReply(self.unknown_reply, 550)

    def test_custom_reply_to_unknown_command_takes_place_of_mtas_own(self) -> None:
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

    def test_tempfail_for_an_unknown_command_makes_it_a_temporary_failure(self) -> None:
        """
        TEMPFAIL for an unknown command makes it a temporary failure.
        """
        self.check_unknown("TEMPFAIL")
        self.assertReply(self.unknown_reply, 451)


class Submission(MtaTestCase):
    """
    Mail handed in on the machine itself, with the sendmail program.
    """

    TEXT = (
        b"From: sender@client.example\r\nTo: rcpt@sink.example\r\nSubject: local\r\n"
        b"\r\nlocal body\r\n"
    )

    def test_mail_from_the_command_line_is_filtered_where_the_mta_does_so(self) -> None:
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
