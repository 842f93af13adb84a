"""
Tests of the MTA's side.
"""
