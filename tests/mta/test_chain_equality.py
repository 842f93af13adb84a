"""
``merge="chain"`` is what it says: milters in a chain do what they do as filters of their own.
"""

from __future__ import annotations

from . import chain_tests


class PostfixEqualityTests(chain_tests.Equality):
    """
    The equality with Postfix.
    """

    mta = "postfix"


class SendmailEqualityTests(chain_tests.Equality):
    """
    The equality with Sendmail.
    """

    mta = "sendmail"
