"""
Scenarios: what is settled in the negotiation, and what the MTA then does.
"""

from __future__ import annotations

from yatxmilter.constants import (
    SMFIF_ADDHDRS,
    SMFIM_CONNECT,
    SMFIM_ENVFROM,
    SMFIM_ENVRCPT,
    SMFIM_EOH,
    SMFIM_EOM,
    SMFIM_HELO,
    SMFIP_HDR_LEADSPC,
    SMFIP_RCPT_REJ,
)

from .bench import MESSAGE, MtaTestCase
from .control import CALLBACKS, script
from .mta import HOSTNAME, UNKNOWN_USER
from .processes import LOOPBACK

#: What both MTAs offer.
ACTIONS, STEPS = 0x1FF, 0x1FFFFF
LONG_BODY = (b"x" * 98 + b"\r\n") * 3000


class Negotiation(MtaTestCase):
    """
    ``xxfi_negotiate`` and its failures.
    """

    def test_milter_sees_what_the_mta_offers(self) -> None:
        """
        A milter sees what the MTA offers.
        """
        self.load(script(xxfi_negotiate=[]))
        self.deliver()
        self.assertEqual(self.milter.arguments("xxfi_negotiate"), [(ACTIONS, STEPS)])

    def test_smfis_all_opts_takes_all_actions_and_gets_all_callbacks(self) -> None:
        """
        SMFIS_ALL_OPTS takes all actions and gets all callbacks.
        """
        edits = [("smfi_addheader", "X-Added", "value"), ("smfi_chgfrom", "<new@client.example>")]
        self.load(script(xxfi_negotiate=["ALL_OPTS"], xxfi_eom=edits))
        delivery = self.deliver()
        self.assertEqual(delivery.values("X-Added"), [b"value"])
        self.assertEqual(delivery.sender.address, "<new@client.example>")
        self.milter.wait("xxfi_close")
        order = [name for name in self.milter.order() if name != "negotiate"]
        self.assertEqual(order, [name[5:] for name in CALLBACKS[:-1]] + ["close"])

    def check_failure(self, *steps: object) -> None:
        """
        Let negotiation fail, and expect the MTA's default action.
        """
        self.load(script("picky", xxfi_negotiate=list(steps)))
        self.assertReply(self.send(), 451)
        self.milter.wait_log("picky")
        self.milter.wait("xxfi_close")
        self.assertEqual(self.milter.order(), ["negotiate", "close"])

    def test_smfis_reject_in_xxfi_negotiate_closes_the_connection(self) -> None:
        """
        SMFIS_REJECT in xxfi_negotiate closes the connection.
        """
        self.check_failure("REJECT")

    def test_milter_that_asks_for_action_that_is_not_offered_closes_connection(self) -> None:
        """
        A milter that asks for an action that is not offered closes the connection.
        """
        self.check_failure(("agree", 0x200, 0))

    def test_reject_in_xxfi_mta_connect_closes_connection_before_anything_is_negotiated(
        self,
    ) -> None:
        """
        REJECT in xxfi_mta_connect closes the connection before anything is negotiated.
        """
        self.load(script(xxfi_mta_connect=["REJECT"], xxfi_mta_close=[], xxfi_negotiate=[]))
        self.assertReply(self.send(), 451)
        self.milter.wait("xxfi_mta_close")
        self.assertNotIn("negotiate", self.milter.order())

    def test_action_not_asked_for(self) -> None:
        """
        An edit that was not negotiated is the milter's error, which the log explains.
        """
        self.load(script(flags=SMFIF_ADDHDRS, xxfi_eom=[("smfi_replacebody", b"new\r\n")]))
        self.assertReply(self.send(), 451)
        self.milter.wait_log("SMFIF_CHGBODY")
        self.assertNothingDelivered()

    def test_illegal_return_code(self) -> None:
        """
        A return code that is illegal at its stage is the milter's error, and answered as one.
        """
        self.load(script(xxfi_helo=["DISCARD"]))
        self.assertReply(self.send(), 451)
        self.milter.wait_log("DISCARD")


class SymbolLists(MtaTestCase):
    """
    Macros asked for with ``smfi_setsymlist``.
    """

    ASKED = (
        ("xxfi_connect", SMFIM_CONNECT, "{client_addr}", LOOPBACK),
        ("xxfi_helo", SMFIM_HELO, "j", HOSTNAME),
        ("xxfi_envfrom", SMFIM_ENVFROM, "{client_name}", None),
        ("xxfi_envrcpt", SMFIM_ENVRCPT, "{client_addr}", LOOPBACK),
        ("xxfi_eoh", SMFIM_EOH, "{daemon_addr}", LOOPBACK),
        ("xxfi_eom", SMFIM_EOM, "{client_port}", None),
    )

    def values(self, negotiate: list[object]) -> list[str | None]:
        """
        Send a message, and give the value of each macro at the stage for which it is asked.
        """
        calls = {callback: [("smfi_getsymval", name)] for callback, _, name, _ in self.ASKED}
        self.load(script(xxfi_negotiate=negotiate, **calls))
        self.deliver()
        return [value for _, value in self.milter.arguments("smfi_getsymval")]

    def test_macros_asked_for_at_a_stage_come_at_that_stage(self) -> None:
        """
        Macros asked for at a stage come at that stage.
        """
        asked = [("smfi_setsymlist", stage, name) for _, stage, name, _ in self.ASKED]
        for (_, _, name, expected), value in zip(self.ASKED, self.values([*asked]), strict=True):
            self.assertIsNotNone(value, name)
            if expected is not None:
                self.assertEqual(value, expected, name)

    def test_not_asked_for(self) -> None:
        """
        Without a list the MTA sends what it is configured to, which is less.
        """
        values = self.values([])
        self.assertIsNone(values[0])
        self.assertIsNone(values[-1])

    def test_lists_of_two_milters(self) -> None:
        """
        Milters that ask for different macros get what both asked for.
        """

        def asking(name: str, symbol: str) -> dict[str, object]:
            symbols = ("{client_addr}", "{client_port}")
            return script(
                name,
                xxfi_negotiate=[("smfi_setsymlist", SMFIM_CONNECT, symbol)],
                xxfi_connect=[("smfi_getsymval", each) for each in symbols],
            )

        self.load(asking("first", "{client_addr}"), asking("second", "{client_port}"))
        self.deliver()
        for milter in ("first", "second"):
            values = dict(self.milter.arguments("smfi_getsymval", milter=milter))
            self.assertEqual(values["{client_addr}"], LOOPBACK)
            self.assertRegex(values["{client_port}"] or "", r"^\d+$")


class Steps(MtaTestCase):
    """
    What the protocol step flags change.
    """

    def test_skip_in_xxfi_body_means_no_more_of_the_body(self) -> None:
        """
        SKIP in xxfi_body means no more of the body.
        """
        self.load(script(xxfi_body=["SKIP"]))
        body = self.deliver(MESSAGE + LONG_BODY).body
        self.assertTrue(body.endswith(LONG_BODY))
        self.assertEqual(len(self.milter.arguments("xxfi_body")), 1)
        self.assertEqual(len(self.milter.arguments("xxfi_eom")), 1)

    def test_without_skip_the_whole_body_comes_in_pieces(self) -> None:
        """
        Without SKIP the whole body comes, in pieces.
        """
        self.load(script())
        self.deliver(MESSAGE + LONG_BODY)
        self.assertGreater(len(self.milter.arguments("xxfi_body")), 4)

    def test_callbacks_that_promise_no_answer_are_called_all_the_same(self) -> None:
        """
        Callbacks that promise not to answer are called all the same, and the message passes.
        """
        silent = [name for name in CALLBACKS if name not in ("xxfi_eom",)]
        self.load(script(noreply=silent, xxfi_eom=[("smfi_addheader", "X-Added", "value")]))
        client = self.connect()
        client.command("XFOO bar")
        for _ in range(2):
            self.assertReply(client.message(MESSAGE + LONG_BODY), 250)
        client.quit()
        for delivery in self.sink.wait(2):
            self.assertEqual(delivery.values("X-Added"), [b"value"])
        self.milter.wait("xxfi_close")
        message = [name[5:] for name in CALLBACKS[2:-1]]
        order = [name for name in self.milter.order() if name != "unknown"]
        self.assertEqual(order, ["connect", "helo", *message, *message, "close"])

    def test_noreply_then_reject(self) -> None:
        """
        A milter that looks at the header in silence can still refuse the message at its end.
        """
        self.load(script(noreply=["xxfi_header", "xxfi_body"], xxfi_eom=["REJECT"]))
        self.assertReply(self.send(), self.traits.content_reject)

    def test_noreply_of_one(self) -> None:
        """
        One milter's promise not to answer does not bind the other.
        """
        self.load(
            script("silent", noreply=["xxfi_header", "xxfi_eoh"]),
            script("loud", xxfi_eoh=["REJECT"]),
        )
        self.assertReply(self.send(), self.traits.content_reject)
        self.assertEqual(len(self.milter.arguments("xxfi_header", milter="silent")), 8)

    def test_with_smfip_rcpt_rej_milter_is_shown_recipients_that_mta_refuses(self) -> None:
        """
        With SMFIP_RCPT_REJ the milter is shown recipients that the MTA refuses.
        """
        self.load(
            script(
                xxfi_negotiate=[("agree", ACTIONS, SMFIP_RCPT_REJ)],
                xxfi_envrcpt=[("smfi_getsymval", "{rcpt_mailer}")],
            )
        )
        recipients = self.send_to_unknown_user()
        self.assertEqual(recipients, [[UNKNOWN_USER], ["<rcpt@sink.example>"]])
        mailers = [value for _, value in self.milter.arguments("smfi_getsymval")]
        self.assertEqual(mailers[0], "error")
        self.assertNotEqual(mailers[1], "error")

    def test_refused_recipients_not_asked_for(self) -> None:
        """
        Without SMFIP_RCPT_REJ it is not.
        """
        self.load(script())
        self.assertEqual(self.send_to_unknown_user(), [["<rcpt@sink.example>"]])

    def test_refused_recipients_of_one(self) -> None:
        """
        A milter that did not ask is not shown what its fellow asked for.
        """
        self.load(
            script("curious", xxfi_negotiate=[("agree", ACTIONS, SMFIP_RCPT_REJ)]),
            script("other"),
        )
        self.send_to_unknown_user()
        self.assertEqual(len(self.milter.arguments("xxfi_envrcpt", milter="curious")), 2)
        self.assertEqual(len(self.milter.arguments("xxfi_envrcpt", milter="other")), 1)

    def send_to_unknown_user(self) -> list[list[str]]:
        """
        Send to a recipient that the MTA refuses and to another, and give those the milter saw.
        """
        client = self.connect()
        client.command("MAIL FROM:<sender@client.example>")
        self.assertGreaterEqual(client.command(f"RCPT TO:{UNKNOWN_USER}").code, 500)
        self.assertReply(client.command("RCPT TO:<rcpt@sink.example>"), 250)
        client.command("DATA")
        self.assertReply(client.content(MESSAGE), 250)
        client.quit()
        return [args[0] for args in self.milter.arguments("xxfi_envrcpt")]

    LEADING = [
        ("smfi_addheader", "X-None", "none"),
        ("smfi_addheader", "X-Two", "  two"),
        ("smfi_addheader", "X-Tab", "\ttab"),
    ]

    def test_with_smfip_hdr_leadspc_header_values_have_their_blanks_both_ways(self) -> None:
        """
        With SMFIP_HDR_LEADSPC header values have their blanks, both ways.
        """
        negotiate = [("agree", ACTIONS, SMFIP_HDR_LEADSPC)]
        self.load(script(xxfi_negotiate=negotiate, xxfi_eom=self.LEADING))
        fields = dict(self.deliver().fields)
        self.assertEqual(
            [fields[name] for name in ("X-None", "X-Two", "X-Tab")], [b"none", b"  two", b"\ttab"]
        )
        headers = dict(self.milter.arguments("xxfi_header"))
        self.assertEqual(headers["Subject"], " A test")
        self.assertEqual(headers["X-Blanks"], "   three before")

    def test_leading_space_not_asked_for(self) -> None:
        """
        Without it the MTA adds a blank.
        """
        self.load(script(xxfi_eom=self.LEADING))
        fields = dict(self.deliver().fields)
        self.assertEqual(fields["X-None"], b" none")

    def test_leading_space_of_one(self) -> None:
        """
        A milter that did not ask neither gets nor writes the blank though its fellow does.
        """
        edit = [("smfi_addheader", "X-Plain", "plain")]
        self.load(
            script(
                "exact",
                xxfi_negotiate=[("agree", ACTIONS, SMFIP_HDR_LEADSPC)],
                xxfi_eom=self.LEADING,
            ),
            script("plain", xxfi_eom=edit),
        )
        fields = dict(self.deliver().fields)
        self.assertEqual(fields["X-None"], b"none")
        self.assertEqual(fields["X-Plain"], b" plain")
        self.assertEqual(
            dict(self.milter.arguments("xxfi_header", milter="exact"))["Subject"], " A test"
        )
        self.assertEqual(
            dict(self.milter.arguments("xxfi_header", milter="plain"))["Subject"], "A test"
        )
