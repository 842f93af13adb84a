"""
Mail as MTAs treat it: header models, bounds, the spool of a body, RFC 5322.

Nothing here knows Twisted.
"""
