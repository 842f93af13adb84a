"""
Scenarios: each return code and each kind of reply text, at each stage.

The stages differ in where the SMTP client learns of a refusal: one at connect or HELO is told at
MAIL, one in the message's text at its end.  Tests are made from a table of stages and answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .bench import MESSAGE, MtaTestCase
from .control import script
from .smtp import Reply

ADDRESS = "<rcpt@sink.example>"
SENDER = "<sender@client.example>"


@dataclass(frozen=True)
class Stage:
    """
    A callback, and the SMTP command whose reply shows what it returned.
    """

    callback: str
    shown_at: str

    @property
    def name(self) -> str:
        """
        The callback's name without its prefix.
        """
        return self.callback.removeprefix("xxfi_")


STAGES = (
    Stage("xxfi_connect", "MAIL"),
    Stage("xxfi_helo", "MAIL"),
    Stage("xxfi_envfrom", "MAIL"),
    Stage("xxfi_envrcpt", "RCPT"),
    Stage("xxfi_data", "DATA"),
    Stage("xxfi_header", "."),
    Stage("xxfi_eoh", "."),
    Stage("xxfi_body", "."),
    Stage("xxfi_eom", "."),
)
MESSAGE_STAGES = STAGES[2:]


class Verdicts(MtaTestCase):
    """
    What the client sees of a callback's answer.
    """

    def converse(self) -> dict[str, Reply]:
        """
        Send a message up to the first refusal, and give the reply to each command.
        """
        client = self.connect()
        replies = {}
        for command, line in (("MAIL", f"MAIL FROM:{SENDER}"), ("RCPT", f"RCPT TO:{ADDRESS}")):
            replies[command] = client.command(line)
            if replies[command].code != 250:
                return replies
        replies["DATA"] = client.command("DATA")
        if replies["DATA"].code == 354:
            replies["."] = client.content(MESSAGE)
        client.quit()
        return replies

    def refusal(self, stage: Stage) -> Reply:
        """
        Send a message, and check that it is refused at the right place, and not delivered.
        """
        command, reply = list(self.converse().items())[-1]
        self.assertEqual(command, stage.shown_at, reply)
        self.assertNothingDelivered()
        return reply

    def lines(self, stage: Stage, status: str, *texts: str) -> tuple[str, ...]:
        """
        Give the lines of a custom reply as the MTA shows them at a stage.
        """
        address = {"xxfi_envfrom": f"{SENDER}... ", "xxfi_envrcpt": f"{ADDRESS}... "}
        shown = self.traits.shows_address and status.startswith("5")
        first = address.get(stage.callback, "") if shown else ""
        return tuple(f"{status} {text}" for text in (first + texts[0], *texts[1:]))

    def keeps_text(self, stage: Stage) -> bool:
        """
        Tell whether the MTA passes the text of a reply on from a stage.
        """
        return stage.callback != "xxfi_connect" or self.traits.connect_reply_kept

    def check_reject(self, stage: Stage) -> None:
        """
        REJECT refuses for good, with the MTA's own text.
        """
        self.load(script(**{stage.callback: ["REJECT"]}))
        reply = self.refusal(stage)
        self.assertReply(reply, self.traits.content_reject if stage.shown_at == "." else 550)
        self.assertIn("Command rejected", reply.lines[0])

    def check_tempfail(self, stage: Stage) -> None:
        """
        TEMPFAIL refuses for now, with the MTA's own text.
        """
        self.load(script(**{stage.callback: ["TEMPFAIL"]}))
        reply = self.refusal(stage)
        self.assertReply(reply, 451)
        self.assertIn(self.traits.tempfail_status, reply.lines[0])

    def check_reply(self, stage: Stage) -> None:
        """
        REJECT after smfi_setreply shows the milter's code and text.
        """
        call = ("smfi_setreply", "553", "5.7.2", "No mail today")
        self.load(script(**{stage.callback: [call, "REJECT"]}))
        reply = self.refusal(stage)
        if self.keeps_text(stage):
            self.assertReply(reply, 553, *self.lines(stage, "5.7.2", "No mail today"))
        else:
            self.assertReply(reply, 550)

    def check_tempfail_reply(self, stage: Stage) -> None:
        """
        TEMPFAIL after smfi_setreply shows the milter's code and text.
        """
        call = ("smfi_setreply", "452", "4.2.2", "Come back later")
        self.load(script(**{stage.callback: [call, "TEMPFAIL"]}))
        reply = self.refusal(stage)
        if self.keeps_text(stage):
            self.assertReply(reply, 452, *self.lines(stage, "4.2.2", "Come back later"))
        else:
            self.assertReply(reply, 451)

    def check_multiline_reply(self, stage: Stage) -> None:
        """
        REJECT after smfi_setmlreply shows all lines.
        """
        texts = ("No mail today", "100%% sure", "ask postmaster")
        call = ("smfi_setmlreply", "553", "5.7.2", *texts)
        self.load(script(**{stage.callback: [call, "REJECT"]}))
        reply = self.refusal(stage)
        if self.keeps_text(stage):
            shown = (text.replace("%%", "%") for text in texts)
            self.assertReply(reply, 553, *self.lines(stage, "5.7.2", *shown))
        else:
            self.assertReply(reply, 550)

    def check_discard(self, stage: Stage) -> None:
        """
        DISCARD lets the client believe that all is well, and drops the message.
        """
        self.load(script(**{stage.callback: ["DISCARD"]}))
        self.assertReply(self.converse()["."], 250)
        self.assertNothingDelivered()

    def check_accept(self, stage: Stage) -> None:
        """
        ACCEPT ends filtering, of the message or, before MAIL, of the session.
        """
        self.load(script(**{stage.callback: ["ACCEPT"]}))
        self.assertReply(self.converse()["."], 250)
        self.assertEqual(self.sink.wait()[0].without_trace(), MESSAGE)
        self.milter.wait("xxfi_close")
        callbacks = [name for name in self.milter.order() if name not in ("abort", "close")]
        self.assertEqual(callbacks[-1], stage.name)
        self.assertEqual(self.milter.arguments("xxfi_abort"), [])

    def check_coroutine(self, stage: Stage) -> None:
        """
        A refusal from a coroutine callback is the same as from a plain one.
        """
        call = ("smfi_setreply", "553", "5.7.2", "No mail today")
        self.load(script(how="coroutine", **{stage.callback: [call, "REJECT"]}))
        self.assertReply(self.refusal(stage), 553 if self.keeps_text(stage) else 550)

    def check_deferred(self, stage: Stage) -> None:
        """
        A refusal from a Deferred is the same as from a plain callback.
        """
        call = ("smfi_setreply", "452", "4.2.2", "Come back later")
        self.load(script(how="deferred", **{stage.callback: [call, "TEMPFAIL"]}))
        self.assertReply(self.refusal(stage), 452 if self.keeps_text(stage) else 451)

    def check_error(self, stage: Stage) -> None:
        """
        A callback that raises is answered with a temporary failure, and logged.
        """
        self.load(script(**{stage.callback: [("raise", "a bug in the milter")]}))
        self.assertReply(self.refusal(stage), 451)
        self.assertIn(stage.callback, self.milter.wait_log("a bug in the milter"))


_CHECKS: dict[Callable[..., None], tuple[Stage, ...]] = {
    Verdicts.check_reject: STAGES,
    Verdicts.check_tempfail: STAGES,
    Verdicts.check_reply: STAGES,
    Verdicts.check_tempfail_reply: STAGES,
    Verdicts.check_multiline_reply: STAGES,
    Verdicts.check_discard: MESSAGE_STAGES,
    Verdicts.check_accept: STAGES,
    Verdicts.check_coroutine: STAGES,
    Verdicts.check_deferred: STAGES,
    Verdicts.check_error: STAGES,
}


def _make_test(check: Callable[..., None], stage: Stage) -> Callable[[Any], None]:
    def test(self: Verdicts) -> None:
        check(self, stage)

    test.__name__ = f"test_{check.__name__.removeprefix('check_')}_at_{stage.name}"
    test.__doc__ = f"{(check.__doc__ or '').strip()} (In {stage.callback}.)"
    return test


for _check, _stages in _CHECKS.items():
    for _stage in _stages:
        _test = _make_test(_check, _stage)
        setattr(Verdicts, _test.__name__, _test)
