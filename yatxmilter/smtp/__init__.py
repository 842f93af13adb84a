"""
Milters for Twisted's own SMTP server.

`MilterESMTP` is `twisted.mail.smtp.ESMTP` with milters: those of this process and those that are
other programs, asked in the order and at the steps at which Postfix would ask them.
"""

from yatxmilter.smtp._factory import MilterSMTPFactory
from yatxmilter.smtp._milters import SMTPMilters
from yatxmilter.smtp._server import MilterESMTP

__all__ = ["MilterESMTP", "MilterSMTPFactory", "SMTPMilters"]
