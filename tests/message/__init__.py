"""
Tests of message.
"""
