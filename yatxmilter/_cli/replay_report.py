"""
What a replay found, for people and for programs.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, Final

from yatxmilter._cli.terminal import Page
from yatxmilter._records.differing import unified_lines
from yatxmilter._records.replay_compare import Difference
from yatxmilter._records.replay_player import Part, Result

__all__ = ["Summary", "result_lines", "tell_result"]

_KINDS: Final = {"+": "good", "-": "bad"}


class Summary:
    """
    Counts results.
    """

    def __init__(self) -> None:
        self.sessions = self.messages = self.differing = self.differences = 0

    def add(self, result: Result) -> None:
        """
        Count one.
        """
        self.sessions += 1
        self.messages += sum(part.message > 0 for part in result.parts)
        self.differing += result.differences > 0
        self.differences += result.differences

    def line(self) -> str:
        """
        Say it in a line.
        """
        told = [_count(self.sessions, "session"), _count(self.messages, "message")]
        if self.differences:
            where = _count(self.differing, "session")
            told.append(f"{_count(self.differences, 'difference')} in {where}")
        else:
            told.append("no difference")
        return ", ".join(told)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def tell_result(page: Page, result: Result, *, verbose: bool) -> None:
    """
    Tell what is different in a session; with ``verbose`` also that nothing is.
    """
    connection = f"connection {result.session.connection}"
    for part in result.parts:
        if part.differences or verbose:
            what = _count(len(part.differences), "difference") if part.differences else "the same"
            page.line(f"{connection}, {_name(part)} (line {part.line}): {what}", "head")
        for difference in part.differences:
            _tell_difference(page, difference)
        if part.unsent and (part.differences or verbose):
            page.line(f"  {_count(part.unsent, 'recorded command')} not sent after that", "dim")
    if result.differences or verbose:
        for note in result.notes:
            page.line(f"{connection}: note: {note}", "dim")


def _name(part: Part) -> str:
    if not part.message:
        return "before any message"
    return f"message {part.message}" + (f" [{part.queue_id}]" if part.queue_id else "")


def _tell_difference(page: Page, difference: Difference) -> None:
    page.line(f"  {difference.at} (line {difference.line})", "place")
    for mark, line in unified_lines(difference.was, difference.now, context=1):
        # Places are of no use in so few lines.
        if mark != "@":
            kind = {"-": "was", "+": "now"}.get(mark, "")
            page.line(f"    {kind:<3} {line}", _KINDS.get(mark, "dim"))


def result_lines(result: Result) -> list[str]:
    """
    Put a session in lines of JSON, one for each part.
    """
    common: dict[str, Any] = {
        "connection": result.session.connection,
        "notes": result.notes,
    }
    return [
        json.dumps({**common, **asdict(part), "same": not part.differences})
        for part in result.parts
    ]
