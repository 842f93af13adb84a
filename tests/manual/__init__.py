"""
Tests of README and manual.
"""
