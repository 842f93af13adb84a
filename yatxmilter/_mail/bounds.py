"""
The bounds of what is kept of other people's mail: one table, from which defaults and manual come.

What an MTA, a remote milter or an SMTP client sends may fill memory up to these, and no further.
The limits of a connection (silence, macros, buffered bytes) are options of
`yatxmilter.protocol.MilterProtocolFactory` and described there.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Final

__all__ = [
    "BOUNDS",
    "MAX_BODY",
    "MAX_EDIT_BYTES",
    "MAX_HEADER_BYTES",
    "MAX_LATE_COMMANDS",
    "MAX_MIME_DEPTH",
    "MAX_MIME_PARTS",
    "MAX_NEW_BODY",
    "MAX_RECIPIENTS",
    "MAX_UNREAD_REPLIES",
    "SMTP_MAX_ERRORS",
    "SMTP_MAX_RECIPIENTS",
    "SMTP_MAX_SIZE",
    "SPOOL_MEMORY",
    "Bound",
    "Limits",
]

#: Bytes of header fields, as they stand in a message, that are kept for one message.
MAX_HEADER_BYTES: Final = 1024 * 1024
#: Recipients that are kept for one message.
MAX_RECIPIENTS: Final = 10_000
#: Commands before a message, CONNECT included, that are kept for a milter whose condition is not
#: known yet, and unknown commands in it. A client says HELO once or twice, and nothing unknown.
MAX_LATE_COMMANDS: Final = 20
#: Recipients that an SMTP server takes for one message.
SMTP_MAX_RECIPIENTS: Final = 1_000
#: Bytes of one milter's edits of one message, its new body aside.
MAX_EDIT_BYTES: Final = 16 * 1024 * 1024
#: Bytes of a body that are kept in memory; what is longer goes to a temporary file.
SPOOL_MEMORY: Final = 1024 * 1024
#: Bytes of a body that are kept in all: any number.
MAX_BODY: Final[int | None] = None
#: Bytes of the new body that a remote milter gives one message.
MAX_NEW_BODY: Final = 50 * 1024 * 1024
#: Bytes of a message that an SMTP server takes: what it announces as SIZE.
SMTP_MAX_SIZE: Final = 50 * 1024 * 1024
#: Commands of an SMTP client that may fail with no message taken between them. Postfix takes 20,
#: which a list with old addresses in it reaches in one message.
SMTP_MAX_ERRORS: Final = 100
#: Bytes of SMTP replies that wait for a client which does not read them.
MAX_UNREAD_REPLIES: Final = 256 * 1024
#: How deep MIME parts may lie in one another; what lies deeper is part of a leaf.
MAX_MIME_DEPTH: Final = 100
#: How many MIME parts a message may have; the rest of it is part of a leaf.
MAX_MIME_PARTS: Final = 10_000


@dataclass(frozen=True)
class Limits:
    """
    What may be kept of one message: the options of `yatxmilter.protocol.MilterProtocolFactory`.

    Where there is no limit it is a number that is never reached.
    """

    max_header_bytes: int = MAX_HEADER_BYTES
    max_recipients: int = MAX_RECIPIENTS
    max_edit_bytes: int = MAX_EDIT_BYTES
    max_body: int = sys.maxsize
    spool_memory: int = SPOOL_MEMORY


@dataclass(frozen=True)
class Bound:
    """
    A row of the table of bounds.

    :ivar what: What is bounded.
    :ivar option: The option that sets the bound, or ``None`` where it is fixed.
    :ivar default: The bound, in bytes or as a number of things; ``None`` for no bound.
    :ivar smtp: The default of the SMTP server, where it differs.
    :ivar exceeded: What happens to what exceeds it.
    """

    what: str
    option: str | None
    default: int | None
    exceeded: str
    smtp: int | None = None


_FAILED = (
    "a failure of that milter: its `on_error` is the answer; the SMTP server refuses the message"
)

_NOT_KEPT = "a failure of that milter: its `on_error` is the answer for each further recipient"

#: All bounds, in the order in which the manual has them.
BOUNDS: Final = (
    Bound(
        "bytes of header fields that a chain, a `MessageMilter` or the SMTP server keeps for one"
        " message",
        "max_header_bytes",
        MAX_HEADER_BYTES,
        _FAILED,
    ),
    Bound(
        "recipients kept for one message, likewise",
        "max_recipients",
        MAX_RECIPIENTS,
        _FAILED,
        SMTP_MAX_RECIPIENTS,
    ),
    Bound(
        "recipients of one message that are kept for a milter with a condition which looks at them",
        "max_recipients",
        MAX_RECIPIENTS,
        _NOT_KEPT,
    ),
    Bound(
        "bytes of these recipients, with the macros of those not decided upon",
        "max_header_bytes",
        MAX_HEADER_BYTES,
        _NOT_KEPT,
    ),
    Bound(
        "commands before a message (connect, HELO, unknown ones), and unknown ones in a message,"
        " that are kept for a milter whose condition is not known yet",
        None,
        MAX_LATE_COMMANDS,
        "the milter is shown the connection, the last HELO and the last others before the message,"
        " and the first in the message; the log says so",
    ),
    Bound(
        "bytes of these commands before a message, with macros",
        "max_header_bytes",
        MAX_HEADER_BYTES,
        "likewise",
    ),
    Bound(
        "bytes of the edits of one milter for one message, those of a remote one included, the"
        " new body aside",
        "max_edit_bytes",
        MAX_EDIT_BYTES,
        "a failure of that milter: its `on_error` is the answer",
    ),
    Bound(
        "bytes of a body that are kept in memory",
        "spool_memory",
        SPOOL_MEMORY,
        "more go to a temporary file",
    ),
    Bound(
        "bytes of a body that are kept in all",
        "max_body",
        MAX_BODY,
        _FAILED,
        SMTP_MAX_SIZE,
    ),
    Bound(
        "bytes of the new body that a remote milter gives one message",
        "max_body",
        MAX_NEW_BODY,
        "a failure of that milter: its `on_error` is the answer",
    ),
    Bound(
        "bytes of SMTP replies that a client does not read",
        None,
        MAX_UNREAD_REPLIES,
        "the connection ends",
    ),
    Bound(
        "commands of an SMTP client that fail, logins included, with no message taken between them",
        "max_errors",
        SMTP_MAX_ERRORS,
        "the client is told 421, and the connection ends",
    ),
    Bound(
        "depth of MIME parts",
        None,
        MAX_MIME_DEPTH,
        "what lies deeper is a leaf with a defect",
    ),
    Bound(
        "number of MIME parts",
        None,
        MAX_MIME_PARTS,
        "the rest is a leaf with a defect",
    ),
)
