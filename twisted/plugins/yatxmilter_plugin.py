"""
``twist yatxmilter`` and ``twistd yatxmilter``.
"""

from twisted.application.service import ServiceMaker

yatxmilter = ServiceMaker(
    "yatxmilter", "yatxmilter._cli.serve_service", "Milters for Postfix and Sendmail", "yatxmilter"
)
