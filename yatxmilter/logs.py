"""
Log observers for those who run milters: one JSON object a line, and addresses replaced on demand.
"""

from yatxmilter.service._logs import (
    FIELDS,
    JournalLog,
    JsonLog,
    Redactor,
    TextLog,
)

__all__ = [
    "FIELDS",
    "JournalLog",
    "JsonLog",
    "Redactor",
    "TextLog",
]
