"""
Conditions: which mail is a milter's business, for ``MilterFactory(..., when=...)``.
"""

from yatxmilter._engine.conditions import (
    Condition,
    MailView,
    authenticated,
    client_in,
    condition_option,
    known_at,
    macro_is,
    over_tls,
    recipient_matches,
    sender_matches,
)

__all__ = [
    "Condition",
    "MailView",
    "authenticated",
    "client_in",
    "condition_option",
    "known_at",
    "macro_is",
    "over_tls",
    "recipient_matches",
    "sender_matches",
]
