"""
Tests of manual.
"""
