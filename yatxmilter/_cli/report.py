"""
What became of a message, for people to read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from yatxmilter import constants as c
from yatxmilter._cli.terminal import Page
from yatxmilter._mail.delivery import Delivery
from yatxmilter._mail.envelope import bare_address
from yatxmilter._mail.rfc5322 import split_mail
from yatxmilter._records.differing import unified_lines
from yatxmilter._wire.actions import Edit
from yatxmilter._wire.payloads import to_text
from yatxmilter.client._message import Outcome
from yatxmilter.constants import ReturnCode

__all__ = [
    "KINDS",
    "edited_envelope",
    "short_name",
    "shortened",
    "tell_difference",
    "tell_envelope",
    "tell_outcome",
]

#: The colour of a return code.
KINDS: Final = {
    c.SMFIS_REJECT: "bad",
    c.SMFIS_TEMPFAIL: "soft",
    c.SMFIS_DISCARD: "bad",
    c.SMFIS_ACCEPT: "good",
}

_DIFF_KINDS: Final = {"+": "good", "-": "bad", "@": "place"}

# Two bodies of more lines than this are not compared: nobody reads what would be told.
_MOST_LINES: Final = 20_000


def short_name(code: ReturnCode) -> str:
    """
    Name a return code without its prefix.
    """
    return code.name.removeprefix("SMFIS_")


def shortened(text: str) -> str:
    """
    Cut a text that is too long for a line.
    """
    return text if len(text) <= 80 else text[:77] + "..."


def tell_outcome(page: Page, outcome: Outcome, message: bytes, after: bytes) -> None:
    """
    Tell what became of a message.

    :param after: The message as the edits have made it.
    """
    page.title("Modification actions")
    for edit in outcome.edits:
        values = " ".join(shortened(repr(value)) for value in edit)
        page.line(f"  {type(edit).__name__:<13} {values}")
    page.line(f"  and signs of progress: {outcome.progress}")
    page.title("Verdict")
    kind = "good" if outcome.accepted else "bad"
    what = "delivered" if outcome.accepted else "not delivered"
    page.line(f"  {short_name(outcome.verdict)} at {outcome.stage}: the message is {what}", kind)
    for line in (outcome.text or "").splitlines():
        page.line(f"  {line}", kind)
    if outcome.accepted and outcome.quarantined is not None:
        page.line(f"  held in quarantine: {outcome.quarantined}", "soft")
    for recipient in outcome.recipients:
        to = "accepted" if recipient.accepted else "refused"
        reply = recipient.response.text if recipient.response is not None else None
        told = f"{to:<9} {recipient.address}  {' '.join((reply or '').splitlines())}"
        page.line(f"  {told}", "good" if recipient.accepted else "bad")
    if outcome.accepted:
        tell_difference(page, message, after)


def edited_envelope(
    sender: str, recipients: Iterable[str], edits: Iterable[Edit]
) -> tuple[str, list[str]]:
    """
    Give sender and recipients as edits make them, with ESMTP arguments where these were given.
    """
    delivery = Delivery(edits)
    if delivery.sender is not None:
        sender = _with(*delivery.sender)
    people = delivery.edit_recipients(
        [(address, address) for address in recipients],
        lambda person: person[0],
        lambda edit: (edit.address, _with(edit.address, edit.args)),
    )
    return sender, [text for _, text in people]


def _with(address: str, args: str | None) -> str:
    return f"<{bare_address(address)}>" + (f" {args}" if args else "")


def tell_envelope(page: Page, outcome: Outcome, sender: str) -> None:
    """
    Tell how the envelope of a delivered message was changed, if it was.
    """
    recipients = [each.address for each in outcome.recipients if each.accepted]
    before = _envelope_lines(sender, recipients)
    after = _envelope_lines(*edited_envelope(sender, recipients, outcome.edits))
    if before != after:
        page.title("The envelope before and after")
        _tell_lines(page, before, after)


def _envelope_lines(sender: str, recipients: Sequence[str]) -> list[str]:
    return [f"MAIL FROM:{sender}", *(f"RCPT TO:{address}" for address in recipients)]


def tell_difference(
    page: Page, before: bytes, after: bytes, title: str = "The message before and after"
) -> None:
    """
    Tell how a message was changed, as a unified diff.
    """
    page.title(title)
    if before == after:
        page.line("  no difference", "dim")
        return
    bodies = [split_mail(message).body for message in (before, after)]
    if bodies[0] == bodies[1]:
        # Nothing to look for there, however long it is.
        size = len(bodies[0])
        before, after = (message[: len(message) - size] for message in (before, after))
    elif sum(body.count(b"\n") for body in bodies) > _MOST_LINES:
        sizes = " and ".join(f"{len(body)} bytes" for body in bodies)
        page.line(f"  the bodies, {sizes}, are too long to be compared line by line", "soft")
        pairs = zip((before, after), bodies, strict=True)
        before, after = (message[: len(message) - len(body)] for message, body in pairs)
    old, new = _lines(before), _lines(after)
    while old and new and not (old[-1] or new[-1]):
        # Both end in a line end, or the empty line behind the header.
        del old[-1], new[-1]
    _tell_lines(page, old, new)


def _lines(message: bytes) -> list[str]:
    return to_text(message).replace("\r\n", "\n").split("\n")


def _tell_lines(page: Page, before: Sequence[str], after: Sequence[str]) -> None:
    lines = unified_lines(before, after)
    for number, (mark, text) in enumerate(lines):
        if not number:
            page.line("--- before", _DIFF_KINDS["-"])
            page.line("+++ after", _DIFF_KINDS["+"])
        page.line(text if mark == "@" else mark + text, _DIFF_KINDS.get(mark, ""))
