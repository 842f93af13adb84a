"""
Tests of smtp.
"""
