"""
Tests of protocol.
"""
