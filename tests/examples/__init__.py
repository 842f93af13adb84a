"""
Tests of examples.
"""
