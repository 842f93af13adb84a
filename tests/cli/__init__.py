"""
Tests of cli.
"""
