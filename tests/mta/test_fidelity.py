"""
The MTA in memory against the real ones, in all scenarios of `tests.mta.fidelity`.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from .fidelity import SCENARIOS, compare
from .mta import Mta
from .postfix import Postfix
from .sendmail import Sendmail


class FidelityTests(SynchronousTestCase):
    """
    The same replies, callbacks, macros and delivered messages.
    """

    def check(self, mta: type[Mta]) -> None:
        """
        Play all scenarios, and check that those differ that are said to.
        """
        found = compare(mta)
        expected = {name for name, one in SCENARIOS.items() if mta.name in one.differs}
        wrong = {name: found[name] for name in found if bool(found[name]) != (name in expected)}
        self.assertEqual(wrong, {})

    def test_as_postfix_the_kit_does_what_postfix_does(self) -> None:
        """
        As Postfix the kit does what Postfix does.
        """
        self.check(Postfix)

    def test_as_sendmail_the_kit_does_what_sendmail_does(self) -> None:
        """
        As Sendmail the kit does what Sendmail does.
        """
        self.check(Sendmail)
