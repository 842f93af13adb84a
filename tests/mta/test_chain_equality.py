"""
``merge="chain"`` is what it says: milters in a chain do what they do as filters of their own.
"""

from __future__ import annotations

from . import chain_tests
from .chain_bench import Case
from .chain_cases import MESSAGES, insert
from .control import script


class PostfixEqualityTests(chain_tests.Equality):
    """
    The equality with Postfix.
    """

    mta = "postfix"

    def test_inserted_at_the_top(self) -> None:
        """
        What one inserts above all is shown to the next one, as it is not by Postfix: that hides the
        first line, whatever it is, and so shows its own Received.
        """
        milters = (script("One", xxfi_eom=[insert(0, "X-Top")]), script("Two"))
        case = Case("top", milters, MESSAGES["bare"])
        names = []
        for outcome in (self.bench.chained(case), self.bench.separate(case)):
            headers = [e.args[0] for e in outcome.shown[1] if e.callback == "xxfi_header"]
            names.append(headers[0])
        self.assertEqual(names, ["X-Top", "Received"])


class SendmailEqualityTests(chain_tests.Equality):
    """
    The equality with Sendmail.
    """

    mta = "sendmail"
