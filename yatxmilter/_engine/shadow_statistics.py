"""
What milters in shadow would have done: counted for a factory, and told of each message.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from yatxmilter._engine.on_error import on_error_option
from yatxmilter._engine.return_codes import word_of
from yatxmilter._wire.actions import describe, read_edit
from yatxmilter.constants import SMFI_CURR_ACTS, SMFIS_CONTINUE, SMFIS_TEMPFAIL, ReturnCode

__all__ = ["Report", "Shadow", "describe_edit", "on_error_for_missing", "shadow_option"]


class Shadow:
    """
    What the milters of one factory with ``shadow=True`` would have done.

    :ivar verdicts: By return code, how many messages it would have been the answer to.
    :ivar recipients: By return code, how many recipients it would have been the answer to.
    :ivar edited: How many messages would have been edited.
    :ivar undecided: How many messages ended before the milter had answered.
    :ivar cut_off: How many messages were taken from the milter because it was too far behind.
    :ivar backlog: How many bytes of commands may wait for a milter on one connection.
    :ivar linger: Seconds that a milter may go on when the MTA's connection is gone.
    """

    def __init__(self) -> None:
        self.verdicts: Counter[ReturnCode] = Counter()
        self.recipients: Counter[ReturnCode] = Counter()
        self.edited = 0
        self.undecided = 0
        self.cut_off = 0
        self.backlog = 1024 * 1024
        self.linger = 60.0

    def count(self, report: Report) -> None:
        """
        Count a message that is over.
        """
        self.recipients.update(code for _, code, _ in report.recipients)
        self.edited += bool(report.edits)
        if report.cut_off:
            self.cut_off += 1
        elif report.verdict is None:
            self.undecided += 1
        else:
            self.verdicts[report.verdict] += 1


@dataclass(slots=True)
class Report:
    """
    What a milter in shadow made of one message.

    :ivar verdict: Its answer to the message; ``None`` while there is none.
    :ivar stage: The callback that gave it.
    :ivar reply: The text of ``smfi_setreply`` that goes with it.
    :ivar edits: Its edits, written as calls.
    :ivar recipients: Those it refused: address, return code, text of the reply.
    """

    queue_id: str = "unknown"
    verdict: ReturnCode | None = None
    stage: str | None = None
    reply: str | None = None
    edits: list[str] = field(default_factory=list)
    recipients: list[tuple[str, ReturnCode, str | None]] = field(default_factory=list)
    cut_off: bool = False

    @property
    def says_no(self) -> bool:
        """
        Whether it is more than a continue.
        """
        return self.verdict not in (None, SMFIS_CONTINUE) or bool(self.recipients)

    @property
    def word(self) -> str:
        """
        Say in a word, as a label, what the verdict is.
        """
        if self.cut_off:
            return "cut_off"
        return "undecided" if self.verdict is None else word_of(self.verdict)

    @property
    def outcome(self) -> str:
        """
        Say in a word what the verdict is.
        """
        if self.cut_off:
            return "cut off"
        return "undecided" if self.verdict is None else str(self.verdict)


def describe_edit(packet: bytes) -> str:
    """
    Write an edit, given as it goes over the wire, as the call that made it.
    """
    return describe(read_edit(packet[4], packet[5:], SMFI_CURR_ACTS))


def shadow_option(name: str, value: bool) -> Shadow | None:
    """
    Check for a yes or no; give what counts if it is yes.

    :raises TypeError: for anything else.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}, expected True or False")
    return Shadow() if value else None


def on_error_for_missing(factory: object) -> Any:
    """
    Tell what stands for a milter that its factory could not build: nothing, if it is in shadow.
    """
    try:
        if getattr(factory, "shadow", None) is not None:
            return SMFIS_CONTINUE
        return on_error_option("on_error", getattr(factory, "on_error", SMFIS_TEMPFAIL))
    except BaseException:
        # It is the factory that is broken, in more than one way.
        return SMFIS_TEMPFAIL
