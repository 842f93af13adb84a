"""
Tests of milters written in messages.
"""
