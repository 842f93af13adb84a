"""
Tests of `yatxmilter.errors`: which `except` clause catches what.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from yatxmilter import errors

#: Each error with the direct bases that users may rely on.
BASES = {
    "MilterError": (Exception,),
    "ProtocolError": (errors.MilterError,),
    "PeerError": (errors.MilterError,),
    "StartError": (errors.MilterError,),
    "NegotiationError": (errors.MilterError,),
    "UsageError": (errors.MilterError,),
    "NotNegotiated": (errors.UsageError,),
    "WrongStage": (errors.UsageError,),
    "WrongThread": (errors.UsageError,),
    "ValueNotSendable": (errors.UsageError, ValueError),
    "LimitExceeded": (errors.UsageError,),
    "ReturnCodeError": (errors.UsageError,),
    "WrongReactor": (errors.UsageError, RuntimeError),
    "NotOnce": (errors.UsageError, LookupError),
}


class HierarchyTests(SynchronousTestCase):
    """
    Errors form two families: the MTA's fault and the milter's fault.
    """

    def test_each_error_has_the_bases_that_are_promised(self) -> None:
        """
        Each error has the bases that are promised, and no error is missing from the promise.
        """
        actual = {name: getattr(errors, name).__bases__ for name in errors.__all__}
        self.assertEqual(actual, BASES)

    def test_all_is_complete(self) -> None:
        """
        Every exception that the module defines is public.
        """
        defined = {
            name
            for name, value in vars(errors).items()
            if isinstance(value, type) and value.__module__ == errors.__name__
        }
        self.assertEqual(sorted(defined), errors.__all__)

    def test_usage_is_not_the_mtas_fault(self) -> None:
        """
        A handler for what the MTA did wrong never catches what the milter did wrong.
        """
        for name, bases in BASES.items():
            if errors.UsageError not in bases:
                continue
            self.assertFalse(issubclass(getattr(errors, name), errors.ProtocolError), name)
        self.assertFalse(issubclass(errors.ProtocolError, errors.UsageError))

    def test_value_that_cannot_be_sent_is_valueerror_too_and_keeps_its_explanation(self) -> None:
        """
        A value that cannot be sent is a ValueError too, and keeps its explanation.
        """
        with self.assertRaises(ValueError) as caught:
            raise errors.ValueNotSendable("reply code '250'")
        self.assertEqual(str(caught.exception), "reply code '250'")
