"""
The same messages through `yatxmilter.testing` and through a real MTA: one table of scenarios.

A scenario is a milter's script (`tests.mta.control`), and what the SMTP client sends. Both sides
are asked for the same: the replies, the callbacks with their arguments and the macros that were
known, and what is delivered. ``python -m tests.mta.fidelity`` prints a table of who agrees.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from yatxmilter.constants import SMFIP_HDR_LEADSPC
from yatxmilter.testing import InMemoryMTA, Path

from .bench import MESSAGE, Bench, bench_for
from .control import CALLBACKS, Script, script
from .mta import Mta
from .postfix import Postfix
from .sendmail import Sendmail
from .smtp import Reply, SmtpClient

SENDER = "<sender@client.example>"
ONE, TWO, NEW = "<rcpt@sink.example>", "<two@sink.example>", "<new@sink.example>"

#: The macros of which it is compared whether they are known, and the values of those below.
MACROS = (
    *("j", "v", "_", "i", "{daemon_name}", "{daemon_addr}", "{tls_version}", "{auth_type}"),
    *("{mail_addr}", "{mail_host}", "{mail_mailer}"),
    *("{rcpt_addr}", "{rcpt_host}", "{rcpt_mailer}", "{msg_id}", "{client_addr}"),
)
# Hosts and mailers are matters of an MTA's routing.
VALUES = ("{mail_addr}", "{rcpt_addr}", "{msg_id}", "{client_addr}")
HEADER = MESSAGE.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
REPEATED = HEADER.replace(b"Subject:", b"X-Rep: one\r\nX-Rep: two\r\nX-Rep: three\r\nSubject:")


@dataclass(frozen=True)
class Scenario:
    """
    What is sent, and what the milter does.

    :ivar differs: MTA -> why the kit is not the same.
    """

    script: Script
    message: bytes = MESSAGE
    recipients: tuple[str, ...] = (ONE,)
    sender: str = SENDER
    count: int = 1
    unknown: str = ""
    differs: dict[str, str] = field(default_factory=dict)


@dataclass
class Seen:
    """
    What came of a scenario, made comparable.
    """

    replies: list[str] = field(default_factory=list)
    calls: list[Any] = field(default_factory=list)
    delivered: list[Any] = field(default_factory=list)
    held: bool = False


def _text(code: int = 550, status: str = "5.7.1", text: str = "Not today") -> list[Any]:
    verdict = "REJECT" if code >= 500 else "TEMPFAIL"
    return [("smfi_setreply", str(code), status, text), verdict]


def _macros(**callbacks: Any) -> dict[str, Any]:
    asked = [("smfi_getsymval", name) for name in MACROS]
    return {**{name: asked for name in CALLBACKS if name != "xxfi_unknown"}, **callbacks}


def _edit(*edits: tuple[Any, ...], message: bytes = MESSAGE, **more: Any) -> Scenario:
    return Scenario(script(xxfi_eom=list(edits)), message, **more)


def _scenarios() -> Iterator[tuple[str, Scenario]]:
    yield "accepted", Scenario(script())
    stages = {name.removeprefix("xxfi_"): name for name in CALLBACKS if name != "xxfi_unknown"}
    for stage, callback in stages.items():
        yield f"REJECT at {stage}", Scenario(script(**{callback: ["REJECT"]}))
        yield f"REJECT with text at {stage}", Scenario(script(**{callback: _text()}))
        yield f"TEMPFAIL at {stage}", Scenario(script(**{callback: ["TEMPFAIL"]}))
        yield f"ACCEPT at {stage}", Scenario(script(**{callback: ["ACCEPT"]}))
    again = {"Postfix": "asks non_smtpd_milters about the envelope again, as of mail of its own"}
    for stage, why in (("envfrom", again), ("envrcpt", again), ("header", {}), ("eom", {})):
        discard = script(**{f"xxfi_{stage}": ["DISCARD"]})
        yield f"DISCARD at {stage}", Scenario(discard, differs=why)
    text = _text(450, "4.2.0", "100%% full")
    yield "TEMPFAIL with text", Scenario(script(xxfi_envfrom=text))
    yield "text without status", Scenario(script(xxfi_eom=[("smfi_setreply", "554"), "REJECT"]))
    lines = [("smfi_setmlreply", "550", "5.7.1", "One", "two", "three"), "REJECT"]
    yield "reply of three lines at eom", Scenario(script(xxfi_eom=lines))
    yield "reply of three lines at envrcpt", Scenario(script(xxfi_envrcpt=lines))
    yield (
        "one recipient of two refused",
        Scenario(script(xxfi_envrcpt={ONE: _text()}), recipients=(ONE, TWO)),
    )
    yield "quarantine", _edit(("smfi_quarantine", "looks odd"))
    yield from _header_edits()
    yield from _other_edits()
    yield "macros", Scenario(script(**_macros()))
    yield "macros, null sender", Scenario(script(**_macros()), sender="<>")
    yield "macros, two messages", Scenario(script(**_macros()), count=2)
    yield "two messages", Scenario(script(xxfi_eom=[("smfi_addheader", "X-Added", "x")]), count=2)
    yield "no reply", Scenario(script(noreply=["xxfi_header", "xxfi_eoh", "xxfi_body"]))
    long = MESSAGE + b"x" * 70 + b"\r\n"
    yield "SKIP", Scenario(script(xxfi_body=["SKIP"]), MESSAGE + long * 1000)
    yield "long body", Scenario(script(), HEADER + (b"y" * 78 + b"\r\n") * 2000)
    yield "long line", Scenario(script(), HEADER + b"z" * 980 + b"\r\n")
    yield "empty body", Scenario(script(), HEADER)
    negotiate = [("agree", 0x1FF, SMFIP_HDR_LEADSPC)]
    edits = [("smfi_addheader", "X-None", "none"), ("smfi_addheader", "X-Two", "  two")]
    yield "leading space", Scenario(script(xxfi_negotiate=negotiate, xxfi_eom=edits))
    yield "unknown command", Scenario(script(), unknown="XFOO bar")
    yield "unknown, rejected", Scenario(script(xxfi_unknown=["REJECT"]), unknown="XFOO bar")
    yield "unknown, text", Scenario(script(xxfi_unknown=_text()), unknown="XFOO bar")


def _header_edits() -> Iterator[tuple[str, Scenario]]:
    yield "addheader", _edit(("smfi_addheader", "X-Added", "value"))
    yield "addheader, known name", _edit(("smfi_addheader", "X-Rep", "4"), message=REPEATED)
    yield "addheader, folded, 8-bit", _edit(("smfi_addheader", "X-A", "one\n\ttw\u00f6"))
    for index in (0, 1, 3, 9, 1000):
        yield f"insheader {index}", _edit(("smfi_insheader", index, "X-In", "one\n\ttwo"))
    for index in (1, 2, 3, 4):
        change = ("smfi_chgheader", "X-Rep", index, "new")
        yield f"chgheader {index} of 3", _edit(change, message=REPEATED)
        delete = ("smfi_chgheader", "X-Rep", index, None)
        yield f"delete {index} of 3", _edit(delete, message=REPEATED)
    yield "chgheader, other case", _edit(("smfi_chgheader", "SUBJECT", 1, "new"))
    yield (
        "delete 1 and 1 again",
        _edit(*[("smfi_chgheader", "X-Rep", 1, None)] * 2, message=REPEATED),
    )


def _other_edits() -> Iterator[tuple[str, Scenario]]:
    yield "replacebody", _edit(("smfi_replacebody", b"new\r\n.\r\n\xff\r\n"))
    yield "replacebody, empty", _edit(("smfi_replacebody", b""))
    yield "chgfrom", _edit(("smfi_chgfrom", "<other@client.example>"))
    yield "chgfrom, null sender", _edit(("smfi_chgfrom", "<>"))
    yield "chgfrom, arguments", _edit(("smfi_chgfrom", "<o@client.example>", "RET=HDRS"))
    yield "addrcpt", _edit(("smfi_addrcpt", NEW))
    yield "addrcpt, known", _edit(("smfi_addrcpt", ONE))
    yield "addrcpt_par", _edit(("smfi_addrcpt_par", NEW, "NOTIFY=NEVER"))
    yield "delrcpt", _edit(("smfi_delrcpt", TWO), recipients=(ONE, TWO))


SCENARIOS: dict[str, Scenario] = dict(_scenarios())


# ---- the real one


def play_real(bench: Bench, scenario: Scenario) -> Seen:
    """
    Play a scenario to a running MTA.
    """
    bench.mta.settle()
    bench.sink.clear()
    bench.milter.load([scenario.script], {})
    client = SmtpClient(bench.mta.ports["unix"])
    seen = Seen()
    with contextlib.closing(client):
        client.ehlo()
        _speak(seen, scenario, client)
        client.quit()
    bench.milter.wait("xxfi_close")
    bench.mta.settle()
    seen.held = bool(bench.mta.held())
    bench.mta.release()
    for delivery in bench.sink.deliveries:
        sender = Path(delivery.sender.address, delivery.sender.args)
        paths = [Path(path.address, path.args) for path in delivery.recipients]
        seen.delivered.append(_comparable(sender, paths, delivery.data))
    seen.delivered.sort()
    seen.calls = [_call(event.callback, event.args) for event in bench.milter.events()]
    bench.milter.take_log()
    return seen


def _speak(seen: Seen, scenario: Scenario, client: SmtpClient) -> None:
    def note(reply: Reply) -> int:
        seen.replies.append(_reply(reply.code, reply.lines))
        return reply.code

    if scenario.unknown:
        note(client.command(scenario.unknown))
    for _ in range(scenario.count):
        if note(client.command(f"MAIL FROM:{scenario.sender}")) != 250:
            continue
        codes = [note(client.command(f"RCPT TO:{one}")) for one in scenario.recipients]
        if 250 in codes and note(client.command("DATA")) == 354:
            note(client.content(scenario.message))
        else:
            client.command("RSET")


# ---- ours


def play_ours(flavour: str, scenario: Scenario) -> Seen:
    """
    Play a scenario to the MTA in memory.
    """
    from .scripted import make_milter

    events: list[dict[str, Any]] = []
    milter = make_milter(json.loads(json.dumps(scenario.script)), events.append)
    mta = InMemoryMTA(milter, flavour=flavour)
    session = mta.session(
        "[127.0.0.1]", helo="client.example.test", macros={"client_addr": "127.0.0.1"}
    )
    seen = Seen()

    def note(reply: Any) -> int:
        seen.replies.append(_reply(reply.code, reply.lines))
        return int(reply.code)

    if scenario.unknown:
        note(session.unknown(scenario.unknown).reply)
    for _ in range(scenario.count):
        if note(session.mail(scenario.sender).reply) != 250:
            continue
        codes = [note(session.rcpt(one).reply) for one in scenario.recipients]
        if 250 not in codes or note(session.data().reply) != 354:
            session.rset()
            continue
        sent = session.content(scenario.message)
        note(sent.reply)
        seen.held = seen.held or sent.quarantined is not None
        delivered = sent.transaction.delivered
        if delivered is not None and not sent.quarantined:
            paths = list(delivered.recipients)
            seen.delivered.append(_comparable(delivered.sender, paths, delivered.data))
    session.quit()
    mta.finish()
    seen.delivered.sort()
    seen.calls = [_call(event["callback"], tuple(event["args"])) for event in events]
    return seen


# ---- made comparable


def _reply(code: int, lines: tuple[str, ...]) -> str:
    text = " | ".join(lines)
    text = re.sub(r"queued as \w+|2\.0\.0 \w+ Message", "(id)", text)
    return f"{code} {text}"


def _call(name: str, args: tuple[Any, ...]) -> Any:
    if name == "smfi_getsymval":
        known = args[1] is not None
        return (name, args[0], args[1] if args[0] in VALUES else known)
    if name == "xxfi_connect":
        # Who the client is depends on the machine.
        return (name, re.sub(r"port=\d+|192\.0\.2\.25|127\.0\.0\.1", "", str(args[1])))
    return (name, *json.loads(json.dumps(args)))


def _comparable(sender: Path, recipients: list[Path], data: bytes) -> Any:
    # Received is the MTA's own; what is in front of it counts.
    data = re.sub(rb"(?m)^Received:.*\r\n([ \t].*\r\n)*", b"", data)
    args = [
        sorted(arg for arg in one.args if not arg.startswith(("SIZE=", "BODY=", "ORCPT=")))
        for one in (sender, *sorted(recipients))
    ]
    return (sender.address, sorted(one.address for one in recipients), args, data)


def differences(real: Seen, ours: Seen) -> list[str]:
    """
    Say in what the two differ.
    """
    return [
        f"{what}: real {getattr(real, what)!r}\n      ours {getattr(ours, what)!r}"
        for what in ("replies", "calls", "delivered", "held")
        if getattr(real, what) != getattr(ours, what)
    ]


def compare(mta: type[Mta], show: Callable[[str], object] = lambda _: None) -> dict[str, list[str]]:
    """
    Play all scenarios both ways; give the differences by scenario.
    """
    bench = bench_for(mta)
    found = {}
    for name, scenario in SCENARIOS.items():
        real = play_real(bench, scenario)
        found[name] = differences(real, play_ours(mta.name.lower(), scenario))
        show(name)
    return found


def main(details: bool) -> None:
    """
    Print the table.
    """
    tables = {mta.name: compare(mta) for mta in (Postfix, Sendmail)}
    print(f"{'scenario':36} kit as Postfix   kit as Sendmail")
    for name, scenario in SCENARIOS.items():
        words = ["different" if tables[mta][name] else "same" for mta in tables]
        print(f"{name:36} {words[0]:16} {words[1]}")
        for mta, why in scenario.differs.items():
            print(f"    {mta} {why}")
        for mta in tables if details else ():
            for line in tables[mta][name]:
                print(f"  {mta}: {line[:3000]}")


if __name__ == "__main__":
    main("--details" in sys.argv)

__all__ = ["SCENARIOS", "Scenario", "compare", "main"]
