"""
Tests of mail.
"""
