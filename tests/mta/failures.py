"""
Scenarios: milters that are slow, fail, or die.

A slow milter is put behind the door "brief", whose MTA waits BRIEF seconds for an answer; it takes
twice as long, so that without progress messages the MTA gives up.
"""

from __future__ import annotations

from yatxmilter.constants import SMFIS_ACCEPT, SMFIS_REJECT

from .bench import MESSAGE, MtaTestCase
from .control import script
from .mta import BRIEF

SLOW = ("wait", 2 * BRIEF)
EDIT = ("smfi_addheader", "X-Added", "value")


class Slow(MtaTestCase):
    """
    Milters that take their time.
    """

    def test_slow_end_of_message_is_kept_alive_by_progress_messages(self) -> None:
        """
        A slow end of message is kept alive by progress messages that come by themselves.
        """
        self.load(script(xxfi_eom=[SLOW, EDIT]), progress_interval=BRIEF / 6)
        self.assertEqual(self.deliver(door="brief").values("X-Added"), [b"value"])

    def test_progress_of_second(self) -> None:
        """
        Progress is made for a slow milter though its fellow has finished, with edits.
        """
        self.load(
            script("quick", xxfi_eom=[("smfi_addheader", "X-Quick", "value")]),
            script("slow", how="coroutine", xxfi_eom=[SLOW, EDIT]),
            progress_interval=BRIEF / 6,
        )
        delivery = self.deliver(door="brief")
        self.assertEqual(delivery.names()[-2:], ["X-Quick", "X-Added"])

    def test_mta_gives_up_without_progress_messages(self) -> None:
        """
        Without them the MTA gives up; the milter is told, and its late answer does no harm.
        """
        self.load(script(xxfi_eom=[SLOW, EDIT]), progress_interval=20 * BRIEF)
        self.assertReply(self.send(door="brief"), 451)
        self.milter.wait("xxfi_close")
        self.assertEqual(self.milter.order()[-3:], ["eom", "abort", "close"])
        self.assertNothingDelivered()

    def test_slow_before_end(self) -> None:
        """
        A milter that is slow at an earlier stage is given up, and told.
        """
        self.load(script(xxfi_envrcpt=[SLOW]))
        self.assertReply(self.send(door="brief"), 451)
        self.milter.wait("xxfi_close")
        self.assertEqual(self.milter.order()[-3:], ["envrcpt", "abort", "close"])

    def test_callback_that_outlasts_its_factorys_timeout_is_answered_for(self) -> None:
        """
        A callback that takes longer than its factory's timeout is answered in its place.
        """
        self.load(script(options={"timeout": 0.5}, xxfi_eom=[("hang",)]))
        self.assertReply(self.send(), 451)
        self.assertIn("xxfi_eom", self.milter.wait_log("milter"))

    def test_others_go_on(self) -> None:
        """
        While one session waits for its milter another one is served.
        """
        self.load(script(xxfi_envfrom={"<slow@client.example>": [("hang",)]}))
        waiting = self.connect()
        waiting.send(b"MAIL FROM:<slow@client.example>\r\n")
        self.milter.wait("xxfi_envfrom")
        self.deliver(MESSAGE, "<quick@client.example>")
        waiting.vanish()


class Broken(MtaTestCase):
    """
    Milters with bugs.
    """

    BUG = ("raise", "a bug in the milter")

    def test_on_error_accept(self) -> None:
        """
        ``on_error=SMFIS_ACCEPT`` lets a message through when its milter fails.
        """
        self.load(script(options={"on_error": int(SMFIS_ACCEPT)}, xxfi_header=[self.BUG]))
        self.assertEqual(self.deliver().without_trace(), MESSAGE)
        self.milter.wait_log("a bug in the milter")

    def test_on_error_reject(self) -> None:
        """
        ``on_error=SMFIS_REJECT`` refuses it.
        """
        self.load(script(options={"on_error": int(SMFIS_REJECT)}, xxfi_header=[self.BUG]))
        self.assertReply(self.send(), self.traits.content_reject)
        self.milter.wait_log("a bug in the milter")

    def test_after_failure_next_message_of_session_is_filtered_as_ever(self) -> None:
        """
        After a failure the next message of the session is filtered as ever.
        """
        self.load(script(xxfi_envfrom={"<bad@client.example>": [self.BUG]}, xxfi_eom=[EDIT]))
        client = self.connect()
        self.assertReply(client.message(MESSAGE, "<bad@client.example>"), 451)
        client.command("RSET")
        self.assertReply(client.message(MESSAGE), 250)
        client.quit()
        self.assertEqual(self.sink.wait()[0].values("X-Added"), [b"value"])
        self.milter.wait_log("a bug in the milter")

    def test_queue_id_logged(self) -> None:
        """
        The log of a failure names the message by its queue id.
        """
        self.load(script(xxfi_eom=[("smfi_getsymval", "i"), self.BUG]))
        self.assertReply(self.send(), 451)
        [(_, queue_id)] = self.milter.arguments("smfi_getsymval")
        self.assertIn(queue_id, self.milter.wait_log("a bug in the milter"))


class Dead(MtaTestCase):
    """
    The milter's process ends.
    """

    def die_at(self, callback: str, door: str) -> tuple[str, int]:
        """
        Kill the milter while the MTA waits for a callback, and give the command and reply code.
        """
        self.load(script(**{callback: [("hang",)]}))
        client = self.connect(door)
        commands = [
            ("MAIL", "MAIL FROM:<sender@client.example>\r\n", "xxfi_envfrom"),
            ("RCPT", "RCPT TO:<rcpt@sink.example>\r\n", "xxfi_envrcpt"),
            ("DATA", "DATA\r\n", "xxfi_data"),
            (".", MESSAGE.decode("latin-1").replace("\r\n.", "\r\n..") + ".\r\n", "xxfi_eom"),
        ]
        for command, text, awaited in commands:
            client.send(text.encode("latin-1"))
            if awaited == callback:
                self.milter.wait(callback)
                self.milter.kill()
            code = client.reply().code
            if code >= 400:
                client.quit()
                return command, code
        client.quit()
        return ".", 250

    def test_milter_that_dies_at_mail_makes_it_a_temporary_failure(self) -> None:
        """
        A milter that dies at MAIL makes it a temporary failure.
        """
        self.assertEqual(self.die_at("xxfi_envfrom", "unix"), ("MAIL", 451))

    def test_milter_that_dies_at_rcpt_makes_it_a_temporary_failure(self) -> None:
        """
        A milter that dies at RCPT makes it a temporary failure.
        """
        self.assertEqual(self.die_at("xxfi_envrcpt", "inet"), ("RCPT", 451))

    def test_milter_that_dies_at_data_makes_it_a_temporary_failure(self) -> None:
        """
        A milter that dies at DATA makes it a temporary failure.
        """
        self.assertEqual(self.die_at("xxfi_data", "unix"), ("DATA", 451))

    def test_milter_that_dies_at_end_of_message_makes_it_temporary_failure(self) -> None:
        """
        A milter that dies at the end of the message makes it a temporary failure.
        """
        self.assertEqual(self.die_at("xxfi_eom", "unix"), (".", 451))
        self.assertNothingDelivered()

    def test_where_the_mta_is_told_to_refuse_then_it_does(self) -> None:
        """
        Where the MTA is told to refuse then, it does.
        """
        self.assertEqual(self.die_at("xxfi_eom", "reject"), (".", self.traits.default_reject))
        self.assertNothingDelivered()

    def test_without_the_milter_the_message_is_delivered_as_it_was(self) -> None:
        """
        Where the MTA is told to do without the milter, the message is delivered as it was.
        """
        self.assertEqual(self.die_at("xxfi_eom", "accept"), (".", 250))
        self.assertEqual(self.sink.wait()[0].without_trace(), MESSAGE)

    def test_milter_that_does_not_run_is_temporary_failure_until_it_runs_again(self) -> None:
        """
        A milter that does not run is a temporary failure until it runs again.
        """
        self.load(script())
        self.milter.kill()
        self.assertReply(self.send(), 451)
        self.load(script())
        self.assertReply(self.send(), 250)
        self.sink.wait()
