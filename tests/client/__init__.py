"""
Tests of client.
"""
