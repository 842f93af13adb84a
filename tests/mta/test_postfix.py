"""
All scenarios with a real Postfix.
"""

from __future__ import annotations

from . import agreement, callbacks, edits, failures, sessions, several, verdicts
from .postfix import Postfix


class PostfixVerdictTests(verdicts.Verdicts):
    """
    The scenarios of :class:`~tests.mta.verdicts.Verdicts`.
    """

    mta_class = Postfix


class PostfixHeadersTests(edits.Headers):
    """
    The scenarios of :class:`~tests.mta.edits.Headers`.
    """

    mta_class = Postfix


class PostfixBodiesTests(edits.Bodies):
    """
    The scenarios of :class:`~tests.mta.edits.Bodies`.
    """

    mta_class = Postfix


class PostfixEnvelopeTests(edits.Envelope):
    """
    The scenarios of :class:`~tests.mta.edits.Envelope`.
    """

    mta_class = Postfix


class PostfixTogetherTests(edits.Together):
    """
    The scenarios of :class:`~tests.mta.edits.Together`.
    """

    mta_class = Postfix


class PostfixCallbacksTests(callbacks.Callbacks):
    """
    The scenarios of :class:`~tests.mta.callbacks.Callbacks`.
    """

    mta_class = Postfix


class PostfixSessionsTests(sessions.Sessions):
    """
    The scenarios of :class:`~tests.mta.sessions.Sessions`.
    """

    mta_class = Postfix


class PostfixSubmissionTests(callbacks.Submission):
    """
    The scenarios of :class:`~tests.mta.callbacks.Submission`.
    """

    mta_class = Postfix


class PostfixNegotiationTests(agreement.Negotiation):
    """
    The scenarios of :class:`~tests.mta.agreement.Negotiation`.
    """

    mta_class = Postfix


class PostfixSymbolListsTests(agreement.SymbolLists):
    """
    The scenarios of :class:`~tests.mta.agreement.SymbolLists`.
    """

    mta_class = Postfix


class PostfixStepsTests(agreement.Steps):
    """
    The scenarios of :class:`~tests.mta.agreement.Steps`.
    """

    mta_class = Postfix


class PostfixFirstTests(several.First):
    """
    The scenarios of :class:`~tests.mta.several.First`.
    """

    mta_class = Postfix


class PostfixStrictestTests(several.Strictest):
    """
    The scenarios of :class:`~tests.mta.several.Strictest`.
    """

    mta_class = Postfix


class PostfixChainTests(several.Chain):
    """
    The scenarios of :class:`~tests.mta.several.Chain`.
    """

    mta_class = Postfix


class PostfixSlowTests(failures.Slow):
    """
    The scenarios of :class:`~tests.mta.failures.Slow`.
    """

    mta_class = Postfix


class PostfixBrokenTests(failures.Broken):
    """
    The scenarios of :class:`~tests.mta.failures.Broken`.
    """

    mta_class = Postfix


class PostfixDeadTests(failures.Dead):
    """
    The scenarios of :class:`~tests.mta.failures.Dead`.
    """

    mta_class = Postfix
