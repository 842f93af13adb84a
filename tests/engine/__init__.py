"""
Tests of one MTA connection without its transport.
"""
