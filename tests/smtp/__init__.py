"""
Tests of milters in Twisted's SMTP server.
"""
