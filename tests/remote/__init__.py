"""
Tests of remote.
"""
