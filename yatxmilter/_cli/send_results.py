"""
The results of ``yatxmilter send``: told one by one, counted, and judged.

How much is printed of each is the user's choice; what is counted is the same in each case, and the
exit status follows from the counts.
"""

from __future__ import annotations

import base64
import json
import math
import time
from collections import Counter
from collections.abc import Collection
from typing import Any, Final, TextIO

from yatxmilter._cli.report import edited_envelope, short_name, tell_envelope, tell_outcome
from yatxmilter._cli.send_play import Result
from yatxmilter._cli.terminal import Page
from yatxmilter._wire.actions import Edit
from yatxmilter._wire.payloads import from_text
from yatxmilter.client._message import Outcome

__all__ = [
    "EXPECTATIONS",
    "UNUSABLE",
    "Progress",
    "Summary",
    "as_json",
    "result_word",
    "tell_result",
    "tell_summary",
    "verdict_words",
]

#: What can become of a message, in a word.
EXPECTATIONS: Final = ("accept", "quarantine", "reject", "tempfail", "discard")

_COLOURS: Final = {
    "accept": "good", "quarantine": "soft", "reject": "bad", "tempfail": "soft", "discard": "bad"
}  # fmt: skip

# Exit statuses; a later row outweighs those before it.
AS_EXPECTED, UNEXPECTED, UNUSABLE, FAILED, INTERRUPTED = 0, 1, 2, 3, 130


def result_word(outcome: Outcome) -> str:
    """
    Say in a word what became of a message.
    """
    if outcome.accepted:
        return "accept" if outcome.quarantined is None else "quarantine"
    return short_name(outcome.verdict).lower()


class Summary:
    """
    What all results come to.

    :param expected: The words that are as they should be; empty for any.
    """

    def __init__(self, expected: Collection[str] = ()) -> None:
        self._expected = frozenset(expected)
        self._begun = time.perf_counter()
        self.words: Counter[str] = Counter()
        self.failed = self.unusable = self.unexpected = 0
        self.first_error = ""
        self.interrupted = False
        self._seconds: list[float] = []

    @property
    def sent(self) -> int:
        """
        How many messages there is a verdict on.
        """
        return len(self._seconds)

    def add(self, result: Result) -> None:
        """
        Count a result.
        """
        if result.outcome is None:
            self.first_error = self.first_error or f"{result.name}: {result.error}"
            self.unusable += result.unusable
            self.failed += not result.unusable
            return
        self.words[result_word(result.outcome)] += 1
        self.unexpected += self.is_expected(result) is False
        self._seconds.append(result.seconds)

    def is_expected(self, result: Result) -> bool | None:
        """
        Tell whether a message had the verdict it should have; ``None`` where any will do.
        """
        if not self._expected:
            return None
        return result.outcome is not None and result_word(result.outcome) in self._expected

    @property
    def status(self) -> int:
        """
        The exit status.
        """
        if self.interrupted:
            return INTERRUPTED
        if self.failed:
            return FAILED
        if self.unusable:
            return UNUSABLE
        return UNEXPECTED if self.unexpected else AS_EXPECTED

    def rows(self) -> list[tuple[str, str]]:
        """
        Give the rows of the table: label and value.
        """
        rows = [("messages", f"{self.sent}" + self._of_each())]
        if self._expected:
            wanted = " or ".join(word for word in EXPECTATIONS if word in self._expected)
            rows.append(("unexpected", f"{self.unexpected} (expected: {wanted})"))
        rows.append(("errors", f"{self.failed} of the milter, {self.unusable} unusable messages"))
        if self._seconds:
            rows.append(("latency", self.latency()))
        if self.sent > 1:
            rows.append(("rate", f"{self.rate():.4g} messages/s"))
        if self.interrupted:
            rows.append(("interrupted", "what was not done by then is not counted"))
        return rows

    @property
    def is_needed(self) -> bool:
        """
        Whether there is more to say than what was said of one message.
        """
        return self.interrupted or self.sent + self.failed + self.unusable > 1

    def _of_each(self) -> str:
        counts = ", ".join(f"{w} {self.words[w]}" for w in EXPECTATIONS if self.words[w])
        return f": {counts}" if counts else ""

    def latency(self) -> str:
        """
        Say how long messages took.
        """
        ordered = sorted(self._seconds)
        return ", ".join(
            f"{label} {_percentile(ordered, share) * 1000:.1f} ms"
            for label, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
        )

    def rate(self) -> float:
        """
        Give the messages per second so far.
        """
        return self.sent / max(time.perf_counter() - self._begun, 1e-9)

    def line(self) -> str:
        """
        Say all of it in one line.
        """
        said = ["OK", "UNEXPECTED", "UNUSABLE", "FAILED"]
        head = "INTERRUPTED" if self.interrupted else said[self.status]
        error = f"; first error: {self.first_error}" if self.first_error else ""
        body = "; ".join(f"{label} {value}" for label, value in self.rows())
        return f"{head}: {body}{error}"


def _percentile(ordered: list[float], share: float) -> float:
    # The nearest rank: always a time that was measured.
    return ordered[max(math.ceil(len(ordered) * share), 1) - 1]


def tell_result(page: Page, result: Result, expected: bool | None, *, brief: bool) -> None:
    """
    Tell of one message, in a line or at length.
    """
    outcome = result.outcome
    if outcome is None:
        page.line(f"{result.name}: {result.error}", "bad")
        return
    if brief:
        mark = " (unexpected)" if expected is False else ""
        page.line(f"{result.name}: {verdict_words(outcome)}{mark}", _COLOURS[result_word(outcome)])
        return
    page.line(f"{result.name}: from {result.sender} to {' '.join(result.recipients)}", "head")
    tell_outcome(page, outcome, result.message, result.after)
    if outcome.accepted:
        tell_envelope(page, outcome, result.sender)
    if expected is not None:
        page.line()
        word = "as expected" if expected else "not what was expected"
        page.line(f"  {word}", "good" if expected else "bad")
    page.line()


def verdict_words(outcome: Outcome) -> str:
    """
    Say in a line what became of a message.
    """
    said = outcome.text or (outcome.quarantined if outcome.accepted else None) or ""
    count = len(outcome.edits) if outcome.accepted else 0
    edits = f", {count} edit{'s' * (count > 1)}" if count else ""
    return " ".join(f"{result_word(outcome)} at {outcome.stage}{edits} {said}".split())


def tell_summary(page: Page, summary: Summary) -> None:
    """
    Tell what all results come to.
    """
    page.title("Summary")
    for label, value in summary.rows():
        page.line(f"  {label:<12} {value}")


# ---- JSON


def as_json(result: Result, expected: bool | None) -> str:
    """
    Write a result as one line of JSON.
    """
    outcome = result.outcome
    row: dict[str, Any] = {
        "number": result.number,
        "message": _text(result.name),
        "result": "error" if outcome is None else result_word(outcome),
        "error": _text(result.error) if result.error else None,
        "expected": expected,
        "seconds": round(result.seconds, 6),
    }
    if outcome is not None:
        row.update(_outcome(result, outcome))
    return json.dumps(row)


def _outcome(result: Result, outcome: Outcome) -> dict[str, Any]:
    accepted = [each.address for each in outcome.recipients if each.accepted]
    sender, recipients = edited_envelope(result.sender, accepted, outcome.edits)
    return {
        "verdict": short_name(outcome.verdict),
        "stage": outcome.stage,
        "reply": _text(outcome.text),
        "sender": _text(result.sender),
        "recipients": [
            {
                "address": _text(each.address),
                "accepted": each.accepted,
                "reply": _text(each.response.text) if each.response is not None else None,
            }
            for each in outcome.recipients
        ],
        "quarantine": _text(outcome.quarantined),
        "progress": outcome.progress,
        "edits": [_edit(edit) for edit in outcome.edits],
        "delivered": {"sender": _text(sender), "recipients": [*map(_text, recipients)]}
        if outcome.accepted
        else None,
    }


def _edit(edit: Edit) -> dict[str, Any]:
    row = {name: _text(value) for name, value in edit._asdict().items()}
    return {"action": type(edit).__name__, **row}


def _text(value: Any) -> Any:
    """
    Give text as text if it is UTF-8, otherwise its bytes in base64.
    """
    if not isinstance(value, (str, bytes)):
        return value
    data = from_text(value)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode("ascii")}


# ---- progress


class Progress:
    """
    A line on a terminal that tells how far a long run has come.

    :param stream: Standard error; nothing is written unless it is a terminal.
    :param hidden: Whether nothing is written in any case.
    """

    #: Seconds before the first line, and between two.
    PAUSE: Final = 0.5

    def __init__(self, stream: TextIO, summary: Summary, *, hidden: bool = False) -> None:
        self._stream = stream
        self._summary = summary
        self._shown = False
        self._next = time.perf_counter() + self.PAUSE
        self._on = stream.isatty() and not hidden

    def step(self) -> None:
        """
        Write the line anew, if it is time.
        """
        now = time.perf_counter()
        if not self._on or now < self._next:
            return
        self._next = now + self.PAUSE
        self._shown = True
        summary = self._summary
        errors = summary.failed + summary.unusable
        text = f"{summary.sent} messages, {errors} errors, {summary.rate():.4g}/s"
        self._stream.write(f"\r\x1b[K{text}")
        self._stream.flush()

    def clear(self) -> None:
        """
        Take the line away.
        """
        if self._shown:
            self._shown = False
            self._stream.write("\r\x1b[K")
            self._stream.flush()
