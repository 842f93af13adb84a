"""
Scenarios: two milters in one factory.
"""

from __future__ import annotations

from .bench import MESSAGE, MtaTestCase
from .control import script
from .mta import BRIEF

REFUSAL = ("smfi_setreply", "553", "5.7.2", "from the second")


def adding(name: str, **kwargs: object) -> dict[str, object]:
    """
    Make a milter that adds a header field of its own name.
    """
    return script(name, xxfi_eom=[("smfi_addheader", f"X-{name}", "value")], **kwargs)


class First(MtaTestCase):
    """
    ``merge="first"``, the default.
    """

    def ending(self, milter: str) -> list[str]:
        """
        Give a milter's callbacks once the connection is closed.
        """
        self.milter.wait("xxfi_close", milter=milter)
        return self.milter.order(milter=milter)

    def test_edits_in_order(self) -> None:
        """
        Edits are made in the milters' order.
        """
        self.load(adding("One"), adding("Two"))
        self.assertEqual(self.deliver().names()[-2:], ["X-One", "X-Two"])

    def test_edits_in_order_when_slow(self) -> None:
        """
        They are when the first one takes longer, too.
        """
        edit = ("smfi_addheader", "X-One", "value")
        self.load(script("One", xxfi_eom=[("wait", 0.3), edit]), adding("Two", how="deferred"))
        self.assertEqual(self.deliver().names()[-2:], ["X-One", "X-Two"])

    def test_first_refusal_is_the_answer_with_its_own_text(self) -> None:
        """
        The first refusal is the answer, with its own text; the fellow's message is aborted.
        """
        self.load(script("One"), script("Two", xxfi_envfrom=[REFUSAL, "REJECT"]))
        self.assertIn("from the second", self.send().lines[0])
        self.assertEqual(self.ending("One"), ["connect", "helo", "envfrom", "abort", "close"])
        self.assertEqual(self.ending("Two"), ["connect", "helo", "envfrom", "close"])

    def test_after_an_answer_at_once_the_other_milter_is_not_called(self) -> None:
        """
        After an answer given at once the other milter is not called for that step.
        """
        self.load(script("One", xxfi_data=["REJECT"]), script("Two"))
        self.assertReply(self.send(), 550)
        self.assertEqual(
            self.ending("Two"), ["connect", "helo", "envfrom", "envrcpt", "abort", "close"]
        )

    def test_of_two_slow_milters_the_quicker_one_decides(self) -> None:
        """
        Of two milters that take their time, the quicker one decides, and the other is cancelled.
        """
        self.load(
            script("One", xxfi_eom=[("wait", 30), "ACCEPT"]),
            script("Two", xxfi_eom=[("wait", 0.1), REFUSAL, "REJECT"]),
        )
        self.assertIn("from the second", self.send().lines[0])
        self.assertEqual(self.ending("One")[-3:], ["eom", "abort", "close"])
        self.assertNothingDelivered()

    def test_accept_ends_filtering(self) -> None:
        """
        One milter's ACCEPT ends filtering for all.
        """
        self.load(script("One", xxfi_header=["ACCEPT"]), script("Two", xxfi_eom=["REJECT"]))
        self.assertReply(self.send(), 250)
        self.sink.wait()
        self.assertEqual(self.ending("Two")[-2:], ["abort", "close"])

    def test_refused_recipient_ends_no_milters_message(self) -> None:
        """
        A refused recipient ends no milter's message.
        """
        refused = {"<no@sink.example>": ["REJECT"]}
        self.load(script("One", xxfi_envrcpt=refused), adding("Two"))
        client = self.connect()
        client.command("MAIL FROM:<sender@client.example>")
        self.assertReply(client.command("RCPT TO:<no@sink.example>"), 550)
        client.command("RCPT TO:<rcpt@sink.example>")
        client.command("DATA")
        self.assertReply(client.content(MESSAGE), 250)
        client.quit()
        self.assertEqual(self.sink.wait()[0].values("X-Two"), [b"value"])
        self.assertNotIn("abort", self.ending("One"))
        self.assertNotIn("abort", self.ending("Two"))

    def test_reset_aborts_both(self) -> None:
        """
        RSET aborts the message of both.
        """
        self.load(script("One"), script("Two"))
        client = self.connect()
        client.command("MAIL FROM:<sender@client.example>")
        client.command("RSET")
        client.quit()
        for name in ("One", "Two"):
            self.assertEqual(self.ending(name), ["connect", "helo", "envfrom", "abort", "close"])

    def test_skip_is_ones_own(self) -> None:
        """
        One milter's SKIP does not keep the body from the other.
        """
        body = (b"x" * 98 + b"\r\n") * 3000
        self.load(script("One", xxfi_body=["SKIP"]), script("Two"))
        self.deliver(MESSAGE + body)
        self.assertEqual(len(self.milter.arguments("xxfi_body", milter="One")), 1)
        self.assertGreater(len(self.milter.arguments("xxfi_body", milter="Two")), 4)

    def test_two_milters_that_both_replace_the_body_are_a_conflict(self) -> None:
        """
        Two milters that both replace the body are a conflict: a temporary failure, and logged.
        """
        self.load(
            script("One", xxfi_eom=[("smfi_replacebody", b"one\r\n")]),
            script("Two", xxfi_eom=[("smfi_replacebody", b"two\r\n")]),
        )
        self.assertReply(self.send(), 451)
        self.assertIn("Two", self.milter.wait_log("One"))
        self.assertNothingDelivered()

    def test_failure_of_one(self) -> None:
        """
        A bug in one milter, set to be ignored, leaves the other's work alone.
        """
        self.load(
            script("One", options={"on_error": 0}, xxfi_header=[("raise", "a bug")]),
            adding("Two"),
        )
        self.assertEqual(self.deliver().values("X-Two"), [b"value"])
        self.milter.wait_log("a bug")
        self.milter.take_log()


class Strictest(MtaTestCase):
    """
    ``merge="strictest"``.
    """

    def test_reject_over_tempfail(self) -> None:
        """
        REJECT wins over TEMPFAIL, whoever was first.
        """
        self.load(
            script("One", xxfi_eom=["TEMPFAIL"]),
            script("Two", how="deferred", xxfi_eom=[REFUSAL, "REJECT"]),
            merge="strictest",
        )
        self.assertReply(self.send(), 553, "5.7.2 from the second")

    def test_accept_takes_out_one(self) -> None:
        """
        ACCEPT takes only its own milter out of the message.
        """
        self.load(
            script("One", xxfi_envfrom=["ACCEPT"]),
            adding("Two"),
            merge="strictest",
        )
        self.assertEqual(self.deliver().values("X-Two"), [b"value"])
        self.assertEqual(self.milter.order(milter="One")[:3], ["connect", "helo", "envfrom"])
        self.assertNotIn("envrcpt", self.milter.order(milter="One"))

    def test_edits_with_accept(self) -> None:
        """
        Edits of both are made when one accepts and the other continues.
        """
        edit = ("smfi_addheader", "X-One", "value")
        self.load(script("One", xxfi_eom=[edit, "ACCEPT"]), adding("Two"), merge="strictest")
        self.assertEqual(self.deliver().names()[-2:], ["X-One", "X-Two"])


class Chain(MtaTestCase):
    """
    ``merge="chain"``.
    """

    def test_edits_are_seen(self) -> None:
        """
        The second milter sees the message as the first has left it, and its edits come on top.
        """
        self.load(
            script(
                "One",
                xxfi_eom=[
                    ("smfi_addheader", "X-One", "value"),
                    ("smfi_chgheader", "Subject", 1, "Changed"),
                    ("smfi_replacebody", b"body of one\r\n"),
                ],
            ),
            script("Two", xxfi_eom=[("smfi_replacebody", b"body of two\r\n")]),
            merge="chain",
        )
        delivery = self.deliver()
        headers = dict(self.milter.arguments("xxfi_header", milter="Two"))
        self.assertEqual(headers["X-One"], "value")
        self.assertEqual(headers["Subject"], "Changed")
        self.assertEqual(self.milter.arguments("xxfi_body", milter="Two"), [("body of one\r\n",)])
        self.assertEqual(delivery.values("X-One"), [b"value"])
        self.assertEqual(delivery.values("Subject"), [b"Changed"])
        self.assertEqual(delivery.body, b"body of two\r\n")

    def test_envelope_is_edited_by_one_after_the_other(self) -> None:
        """
        The envelope is edited by one after the other: the second can undo what the first did.
        """
        self.load(
            script(
                "One",
                xxfi_eom=[
                    ("smfi_chgfrom", "<one@client.example>"),
                    ("smfi_addrcpt", "<one@sink.example>"),
                    ("smfi_addrcpt", "<kept@sink.example>"),
                ],
            ),
            script(
                "Two",
                xxfi_eom=[
                    ("smfi_chgfrom", "<two@client.example>"),
                    ("smfi_delrcpt", "<one@sink.example>"),
                ],
            ),
            merge="chain",
        )
        self.assertEqual(self.deliver().sender.address, "<two@client.example>")
        self.mta.settle()
        recipients = [path.address for each in self.sink.deliveries for path in each.recipients]
        self.assertEqual(sorted(recipients), ["<kept@sink.example>", "<rcpt@sink.example>"])

    def test_edits_that_meet(self) -> None:
        """
        The second can change and delete header fields that the first has added, by their count.
        """
        self.load(
            script(
                "One",
                xxfi_eom=[
                    ("smfi_addheader", "X-One", "first"),
                    ("smfi_addheader", "X-Other", "value"),
                    ("smfi_insheader", 0, "X-Top", "value"),
                ],
            ),
            script(
                "Two",
                xxfi_eom=[
                    ("smfi_chgheader", "X-One", 1, "changed"),
                    ("smfi_chgheader", "X-Other", 1, None),
                    ("smfi_addheader", "X-Two", "value"),
                ],
            ),
            merge="chain",
        )
        delivery = self.deliver()
        self.assertEqual(delivery.values("X-One"), [b"changed"])
        names = [name for name in delivery.names() if name.startswith("X-")]
        self.assertEqual(names[:1] + names[-2:], ["X-Top", "X-One", "X-Two"])
        self.assertNotIn("X-Other", names)

    def test_two_slow_milters_are_kept_alive_by_progress_messages(self) -> None:
        """
        Two that take their time one after the other are kept alive by progress messages.
        """
        half = ("wait", 0.7 * BRIEF)
        self.load(
            script("One", xxfi_eom=[half, ("smfi_addheader", "X-One", "value")]),
            script("Two", xxfi_eom=[half, ("smfi_addheader", "X-Two", "value")]),
            merge="chain",
            progress_interval=BRIEF / 6,
        )
        self.assertEqual(self.deliver(door="brief").names()[-2:], ["X-One", "X-Two"])

    def test_refusal_of_the_first_ends_the_chain(self) -> None:
        """
        A refusal of the first ends the chain.
        """
        self.load(script("One", xxfi_eom=["REJECT"]), adding("Two"), merge="chain")
        self.assertReply(self.send(), self.traits.content_reject)
        self.assertNotIn("eom", self.milter.order(milter="Two"))

    def test_refusal_of_second(self) -> None:
        """
        A refusal of the second is the answer.
        """
        self.load(adding("One"), script("Two", xxfi_eom=[REFUSAL, "REJECT"]), merge="chain")
        self.assertReply(self.send(), 553, "5.7.2 from the second")
