"""
All scenarios with a real Sendmail.
"""

from __future__ import annotations

from . import agreement, callbacks, edits, failures, sessions, several, verdicts
from .sendmail import Sendmail


class SendmailVerdictTests(verdicts.Verdicts):
    """
    The scenarios of :class:`~tests.mta.verdicts.Verdicts`.
    """

    mta_class = Sendmail


class SendmailHeadersTests(edits.Headers):
    """
    The scenarios of :class:`~tests.mta.edits.Headers`.
    """

    mta_class = Sendmail


class SendmailBodiesTests(edits.Bodies):
    """
    The scenarios of :class:`~tests.mta.edits.Bodies`.
    """

    mta_class = Sendmail


class SendmailEnvelopeTests(edits.Envelope):
    """
    The scenarios of :class:`~tests.mta.edits.Envelope`.
    """

    mta_class = Sendmail


class SendmailTogetherTests(edits.Together):
    """
    The scenarios of :class:`~tests.mta.edits.Together`.
    """

    mta_class = Sendmail


class SendmailCallbacksTests(callbacks.Callbacks):
    """
    The scenarios of :class:`~tests.mta.callbacks.Callbacks`.
    """

    mta_class = Sendmail


class SendmailSessionsTests(sessions.Sessions):
    """
    The scenarios of :class:`~tests.mta.sessions.Sessions`.
    """

    mta_class = Sendmail


class SendmailSubmissionTests(callbacks.Submission):
    """
    The scenarios of :class:`~tests.mta.callbacks.Submission`.
    """

    mta_class = Sendmail


class SendmailNegotiationTests(agreement.Negotiation):
    """
    The scenarios of :class:`~tests.mta.agreement.Negotiation`.
    """

    mta_class = Sendmail


class SendmailSymbolListsTests(agreement.SymbolLists):
    """
    The scenarios of :class:`~tests.mta.agreement.SymbolLists`.
    """

    mta_class = Sendmail


class SendmailStepsTests(agreement.Steps):
    """
    The scenarios of :class:`~tests.mta.agreement.Steps`.
    """

    mta_class = Sendmail


class SendmailFirstTests(several.First):
    """
    The scenarios of :class:`~tests.mta.several.First`.
    """

    mta_class = Sendmail


class SendmailStrictestTests(several.Strictest):
    """
    The scenarios of :class:`~tests.mta.several.Strictest`.
    """

    mta_class = Sendmail


class SendmailChainTests(several.Chain):
    """
    The scenarios of :class:`~tests.mta.several.Chain`.
    """

    mta_class = Sendmail


class SendmailSlowTests(failures.Slow):
    """
    The scenarios of :class:`~tests.mta.failures.Slow`.
    """

    mta_class = Sendmail


class SendmailBrokenTests(failures.Broken):
    """
    The scenarios of :class:`~tests.mta.failures.Broken`.
    """

    mta_class = Sendmail


class SendmailDeadTests(failures.Dead):
    """
    The scenarios of :class:`~tests.mta.failures.Dead`.
    """

    mta_class = Sendmail
