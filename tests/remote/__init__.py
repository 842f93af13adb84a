"""
Tests of milters elsewhere as members.
"""
