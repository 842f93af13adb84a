"""
The switches of the reference engine: one for each deliberate difference from libmilter.

All off is libmilter, all on is yatxmilter. What each is about, and why, stands in `differences.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Rules:
    """Which of the deliberate differences are in force."""

    checked_codes: bool = False
    late_answers: bool = False
    one_answer_for_last_chunk: bool = False
    unknown_keeps_state: bool = False
    quit_nc_anywhere: bool = False
    abort_in_message_only: bool = False
    own_marks: bool = False
    declined_not_called: bool = False
    local_skip: bool = False
    no_header_fields: bool = False
    reply_ends_with_message: bool = False
    one_of_several: bool = False
    checked_values: bool = False
    edits_in_eom_only: bool = False
    symlist_in_negotiate_only: bool = False
    edits_together: bool = False
    computed_request: bool = False
    larger_packets: bool = False
    limited_macros: bool = False
    counted_fields: bool = False


NAMES = tuple(rule.name for rule in fields(Rules))
LIBMILTER = Rules()
YATXMILTER = Rules(**dict.fromkeys(NAMES, True))
